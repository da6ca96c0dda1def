"""Cross-entropy with its gradient: arguments checked, then one call of the core."""

from typing import Any, Literal, SupportsFloat, SupportsIndex

from numpy.typing import ArrayLike

from . import _core
from ._arguments import (
    Array,
    delivered,
    divergence_arguments,
    hess_outs,
    loss_arguments,
    reduced_shape,
    to_upstream,
    work_array,
)


@_core.with_shortcut
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Any:
    """The cross-entropy of targets and softmax probabilities, from the logits.

    Parameters
    ----------
    logits : array_like
        Scores, float16, bfloat16, float32, float64, integers or bool.
    targets : array_like
        Class indices: integers, in the shape of `logits` without `axis`. Or class probabilities: floating, in the shape
        of `logits`.
    axis : int, default -1
        The class axis of `logits`.
    weight : array_like, optional
        One factor for each class, finite and not negative, of any real dtype.
    ignore_index : int, optional
        Samples with this class index have loss 0, whatever their logits hold, and leave the mean. It need not be in
        range.
    label_smoothing : float, default 0.0
        In [0, 1]: the share of each target that is spread evenly over all classes.
    temperature : float, default 1.0
        Positive and finite; the loss is that of ``logits / temperature``.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return of the samples' losses. The mean over class indices is weighted: it divides by the sum of the
        weights of the targets that count; over class probabilities it divides by the number of samples.

    Returns
    -------
    scalar or ndarray
        The loss; with ``reduction="none"`` that of each sample, in the shape of `logits` without `axis`. Its dtype is
        that of `logits`, float32 for half precision, float64 for integers. A 0-d result is a scalar.

    Raises
    ------
    TypeError
        If `logits`, `targets` or `weight` has an unsupported dtype, is a masked array or not in memory, `targets` is
        bool, `axis` or `ignore_index` is no integer, or `label_smoothing` or `temperature` is no number.
    ValueError
        If `targets` or `weight` has a wrong shape, an index is outside [0, C) and is not `ignore_index`, `ignore_index`
        is given with class probabilities, a weight is negative or not finite, `label_smoothing`, `temperature` or
        `reduction` is none of those allowed, or there are no classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy_grad, cross_entropy_with_grad

    Notes
    -----
    With p = softmax(logits / T) over C classes, weights w, smoothing e, and the target's probabilities q (1 for the
    class of an index, else 0), a sample has the loss::

        L = -sum_c w_c ((1 - e) q_c + e / C) log p_c

    as `torch.nn.functional.cross_entropy` defines it (label smoothing: C. Szegedy et al., "Rethinking the Inception
    Architecture for Computer Vision", 2016), except that a class whose weight or target probability is exactly 0
    contributes 0 also where its log p is -inf.

    NaN or +inf in the logits of a sample, or nothing but -inf, gives NaN, whatever its weight, unless it is ignored; a
    target whose logit is -inf gives +inf. The mean is NaN if there are no samples, if all are ignored, or if the
    weights of those that count sum to 0. If all may be ignored and the loss is then to be 0, take ``reduction="sum"``
    and divide by the number of samples that count, or by 1 if there are none.

    To weight samples, multiply the losses that ``reduction="none"`` gives by the weights, and pass the weights to
    `cross_entropy_grad` as `upstream`, also with ``reduction="none"``.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> logits = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
    >>> fs.cross_entropy(logits, [0, 1], reduction="none").round(4)
    array([0.1698, 0.5514])
    >>> print(f"{fs.cross_entropy(logits, [0, 1]):.4f}")
    0.3606
    """
    arguments = loss_arguments(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction)
    loss, _ = _core.cross_entropy(*arguments, 1.0, True, False, None)
    return loss


def cross_entropy_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of `cross_entropy` with respect to the logits.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction
        As for `cross_entropy`.
    upstream : float or array_like, optional
        The gradient of what follows with respect to the (reduced) loss, of any real dtype: a number, or, with
        ``reduction="none"``, an array of the loss's shape, such as weights of the samples. None is 1.
    out : ndarray, optional
        Receives the gradient: its shape and dtype, any strides. ``out=logits`` turns the logits into their gradient in
        place.

    Returns
    -------
    ndarray
        The gradient, in the shape and dtype of `logits` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        As `cross_entropy`; or if `upstream` has an unsupported dtype, is a masked array or not in memory, or `out` is
        no array or has another dtype.
    ValueError
        As `cross_entropy`; or if `upstream` has a wrong shape, or `out` has another shape, is read-only or has elements
        that overlap each other.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy, cross_entropy_with_grad

    Notes
    -----
    In the notation of `cross_entropy`, with a_c = w_c ((1 - e) q_c + e / C), a sample has the gradient::

        g_c = u (p_c sum_k a_k - a_c) / T

    where u is `upstream`, divided by what the mean divides by. No factor overflows on the way to a result that does
    not.

    NaN or +inf in the logits of a sample, or nothing but -inf, gives NaN, whatever multiplies it. An ignored sample has
    gradient 0, whatever its logits and `upstream` hold; so have all if all are ignored. If the weights of those that
    count sum to 0, their mean has gradient NaN. Empty input gives an empty result.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_grad([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [0, 1]).round(4)
    array([[-0.0781,  0.0571,  0.021 ],
           [ 0.106 , -0.2119,  0.106 ]])
    """
    _, grad = _differentiate(
        logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, upstream, out, False
    )
    return grad


@_core.with_shortcut
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """The cross-entropy and its gradient with respect to the logits, for little more than the price of one of them.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction
        As for `cross_entropy`.
    upstream : float or array_like, optional
        The gradient of what follows with respect to the (reduced) loss, of any real dtype: a number, or, with
        ``reduction="none"``, an array of the loss's shape. None is 1. The loss does not depend on it.
    out : ndarray, optional
        Receives the gradient: its shape and dtype, any strides. ``out=logits`` turns the logits into their gradient in
        place.

    Returns
    -------
    loss : scalar or ndarray
        As from `cross_entropy`.
    grad : ndarray
        As from `cross_entropy_grad`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `cross_entropy_grad`.

    See Also
    --------
    cross_entropy, cross_entropy_grad

    Notes
    -----
    Formulas, NaN, infinities and empty input: as in `cross_entropy` and `cross_entropy_grad`, bit for bit.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.cross_entropy_with_grad([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [0, 1])
    >>> print(f"{loss:.4f}")
    0.3606
    >>> grad.round(4)
    array([[-0.0781,  0.0571,  0.021 ],
           [ 0.106 , -0.2119,  0.106 ]])
    """
    return _differentiate(
        logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, upstream, out, True
    )


def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: tuple[Array | None, Array | None] | None = None,
) -> tuple[Any, Array, Array]:
    """The cross-entropy, its gradient and the diagonal of its Hessian with respect to the logits.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction
        As for `cross_entropy`.
    upstream : float or array_like, optional
        As for `cross_entropy_with_grad`: a factor of gradient and Hessian.
    out : tuple of two ndarrays or None, optional
        Receive the gradient and the Hessian: their shape and dtype, any strides. They may not overlap each other.
        ``out=(logits, None)`` turns the logits into their gradient in place.

    Returns
    -------
    loss : scalar or ndarray
        As from `cross_entropy`.
    grad : ndarray
        As from `cross_entropy_grad`.
    hess : ndarray
        The second derivatives by each of the logits, in their shape and dtype (float64 for integers).

    Raises
    ------
    TypeError
        As `cross_entropy_grad`; or if `out` is no tuple of two.
    ValueError
        As `cross_entropy_grad`; or if the two arrays in `out` overlap.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy, cross_entropy_grad, cross_entropy_with_grad

    Notes
    -----
    Loss and gradient are those of `cross_entropy_with_grad`, bit for bit. In the notation of `cross_entropy_grad`, a
    sample has the second derivatives::

        h_c = u p_c (1 - p_c) sum_k a_k / T^2

    of which 1 - p_c does not cancel where p_c is near 1. NaN, ignored samples and empty input are as in
    `cross_entropy_grad`.

    Boosting takes them as they are, or twice as large, as XGBoost does.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> loss, grad, hess = fs.cross_entropy_with_grad_hess([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [0, 1])
    >>> hess.round(4)
    array([[0.0659, 0.0506, 0.0201],
           [0.0835, 0.1221, 0.0835]])
    """
    arguments = loss_arguments(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction)
    logits, targets, axis, weight, dtype = *arguments[:4], arguments[8]
    factor = to_upstream(upstream, reduction, reduced_shape(logits.shape, (axis,)))
    grad_out, hess_out = hess_outs(out)
    works = [
        None if given is None else work_array(given, logits.shape, dtype, in_place, inputs)
        for given, in_place, inputs in (
            (grad_out, (logits,), (targets, weight, factor)),
            (hess_out, (), (logits, targets, weight, factor)),
        )
    ]
    loss, grad, hess = _core.cross_entropy_with_grad_hess(*arguments, factor, *works)
    return (
        loss,
        grad if works[0] is grad_out else delivered(grad, grad_out),
        hess if works[1] is hess_out else delivered(hess, hess_out),
    )


def _differentiate(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex,
    weight: ArrayLike | None,
    ignore_index: SupportsIndex | None,
    label_smoothing: SupportsFloat,
    temperature: SupportsFloat,
    reduction: str,
    upstream: ArrayLike | None,
    out: Array | None,
    with_loss: bool,
) -> tuple[Any, Array]:
    """(loss or None, gradient)."""
    arguments = loss_arguments(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction)
    if upstream is None:
        upstream = 1.0
    elif type(upstream) is not float:
        upstream = to_upstream(upstream, reduction, reduced_shape(arguments[0].shape, (arguments[2],)))
    work = None
    if out is not None:
        logits, targets, weight, dtype = arguments[0], arguments[1], arguments[3], arguments[8]
        work = work_array(out, logits.shape, dtype, (logits,), (targets, weight, upstream))
    loss, grad = _core.cross_entropy(*arguments, upstream, with_loss, True, work)
    return loss, grad if work is out else delivered(grad, out)


def kl_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Any:
    """The Kullback-Leibler divergence of two softmax distributions, from their logits.

    Parameters
    ----------
    p_logits : array_like
        Scores of the distribution p, such as a teacher's: float16, bfloat16, float32, float64, integers or bool.
    q_logits : array_like
        Scores of the distribution q that stands for it, such as a student's, in the shape of `p_logits`.
    axis : int, default -1
        The class axis.
    temperature : float, default 1.0
        Positive and finite; p and q are those of ``p_logits / temperature`` and ``q_logits / temperature``.
    where : array_like of bool, optional
        Broadcasts to the shape of `p_logits`. Entries that are False take no part in either distribution, whatever
        they hold.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return of the divergences of all slices. The mean divides by their number.

    Returns
    -------
    scalar or ndarray
        The divergence; with ``reduction="none"`` that of each slice, in the shape of `p_logits` without `axis`. Its
        dtype is that of ``numpy.result_type(p_logits, q_logits)``, float32 for half precision, float64 for integers. A
        0-d result is a scalar.

    Raises
    ------
    TypeError
        If `p_logits` or `q_logits` has an unsupported dtype, is a masked array or not in memory, `where` is not
        boolean, `axis` is no integer, or `temperature` is no number.
    ValueError
        If the shapes differ, `where` does not broadcast, `temperature` or `reduction` is none of those allowed, or
        there are no classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    kl_divergence_with_grad, cross_entropy, entropy

    Notes
    -----
    A slice has the divergence::

        KL(p || q) = sum_c p_c d_c = sum_c p_c (exp(-d_c) - 1 + d_c),    d_c = log p_c - log q_c

    in nats. The second form is computed: none of its terms is negative, so the result never is, and it keeps its digits
    where p and q nearly agree: its error is at most 4 ULP of ``sum_c |p_c d_c|``, and 8 ULP of itself. It is as good as
    the differences d_c of the given logits, which are taken without rounding: logits that were rounded before differ by
    what that lost.

    A class of probability 0 under p contributes 0 to the first form. Where q is 0 and p is not, the divergence is +inf.
    NaN or +inf in either slice, or nothing but -inf, gives NaN; nothing True in `where` gives 0. The mean of no slices
    is NaN.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> teacher, student = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[1.5, 0.5, -1.0], [0.0, 1.0, 0.0]]
    >>> fs.kl_divergence(teacher, student, reduction="none").round(4)
    array([0.0665, 0.    ])
    """
    arguments = divergence_arguments(p_logits, q_logits, axis, temperature, where, reduction)
    divergence, _ = _core.kl_divergence(*arguments, 1.0, False, None)
    return divergence


def kl_divergence_with_grad(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """The Kullback-Leibler divergence of two softmax distributions and its gradient with respect to `q_logits`.

    Parameters
    ----------
    p_logits, q_logits, axis, temperature, where, reduction
        As for `kl_divergence`.
    upstream : float or array_like, optional
        The gradient of what follows with respect to the (reduced) divergence, of any real dtype: a number, or, with
        ``reduction="none"``, an array of the divergence's shape. None is 1. The divergence does not depend on it.
    out : ndarray, optional
        Receives the gradient: its shape and dtype, any strides. ``out=q_logits`` turns the logits into their gradient
        in place.

    Returns
    -------
    divergence : scalar or ndarray
        As from `kl_divergence`.
    grad : ndarray
        The gradient, in the shape and dtype of `q_logits` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        As `kl_divergence`; or if `upstream` has an unsupported dtype, is a masked array or not in memory, or `out` is
        no array or has another dtype.
    ValueError
        As `kl_divergence`; or if `upstream` has a wrong shape, or `out` has another shape, is read-only or has elements
        that overlap each other.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    kl_divergence, cross_entropy_with_grad

    Notes
    -----
    The gradient is ``u (q_c - p_c) / T``, with u `upstream`, divided by what the mean divides by: where q and p nearly
    agree, as p_c (exp(-d_c) - 1), which does not cancel. Where the divergence is infinite, the gradient is not. The
    rest is as in `kl_divergence`; masked entries have gradient 0.

    For distillation at a temperature T (G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015) pass
    ``upstream=T**2``, so that the gradient does not shrink as T grows.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> teacher, student = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[1.5, 0.5, -1.0], [0.0, 1.0, 0.0]]
    >>> divergence, grad = fs.kl_divergence_with_grad(teacher, student)
    >>> grad.round(4)
    array([[-0.0771,  0.0698,  0.0073],
           [ 0.    ,  0.    ,  0.    ]])
    """
    arguments = divergence_arguments(p_logits, q_logits, axis, temperature, where, reduction)
    p, q, axis, grad_dtype = *arguments[:3], arguments[7]
    factor = to_upstream(upstream, reduction, reduced_shape(p.shape, (axis,)))
    work = None if out is None else work_array(out, q.shape, grad_dtype, (p, q), (factor, arguments[4]))
    divergence, grad = _core.kl_divergence(*arguments, factor, True, work)
    return divergence, grad if work is out else delivered(grad, out)
