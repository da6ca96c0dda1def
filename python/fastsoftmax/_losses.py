"""Cross-entropy, divergence and their gradients. Each function checks its arguments, then calls the core."""

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
    """The cross-entropy of targets and the softmax of logits: its mean or sum over the samples, or one for each sample.

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
        Samples with this target have loss 0, whatever their logits hold, and do not count in the mean. It need not be a
        valid class index.
    label_smoothing : float, default 0.0
        In [0, 1]: the share of each target that is spread evenly over all classes.
    temperature : float, default 1.0
        Positive and finite; the loss is that of ``logits / temperature``.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean or the sum of the samples' losses, or each of them. With class indices the mean is
        weighted: its divisor is the sum of the weights of the targets that count. With class probabilities it is the
        number of samples.

    Returns
    -------
    scalar or ndarray
        The loss; with ``reduction="none"`` that of each sample, in the shape of `logits` without `axis`. Its dtype is
        that of `logits`, but float32 for half precision and float64 for integers. A 0-d result is a scalar.

    Raises
    ------
    TypeError
        If `logits`, `targets` or `weight` has an unsupported dtype, is a masked array or is not in memory, `targets` is
        bool, `axis` or `ignore_index` is not an integer, or `label_smoothing` or `temperature` is not a real number.
    ValueError
        If `targets` or `weight` has a wrong shape, an index is outside [0, C) and is not `ignore_index`, `ignore_index`
        is given with class probabilities, a weight is negative or not finite, `label_smoothing` or `temperature` is out
        of range, `reduction` is not one of those above, or there are no classes.
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
    contributes 0 even where its log p is -inf.

    A sample whose logits hold NaN or +inf, or nothing but -inf, has loss NaN whatever its weight, unless it is ignored.
    A target whose logit is -inf gives +inf. The mean is NaN if there are no samples, if all are ignored, or if the
    weights of those that count sum to 0. For a mean that is 0 if all samples are ignored, pass ``reduction="sum"`` and
    divide by the number of samples that count, or by 1 if there are none.

    To weight samples, multiply the losses from ``reduction="none"`` by the weights, and pass the weights to
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
        A factor of the gradient: the derivative of the final result with respect to the (reduced) loss. A number, or
        with ``reduction="none"`` also an array of any real dtype in the shape of the loss, such as weights of the
        samples. None means 1.
    out : ndarray, optional
        Array to write the gradient to, of its shape and dtype, with any strides. ``out=logits`` replaces the logits by
        their gradient in place.

    Returns
    -------
    ndarray
        The gradient, in the shape and dtype of `logits` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        As for `cross_entropy`; or if `upstream` has an unsupported dtype, is a masked array or is not in memory, or
        `out` is not an ndarray or has a wrong dtype.
    ValueError
        As for `cross_entropy`; or if `upstream` has a wrong shape, or `out` has a wrong shape, is read-only, or has
        elements that overlap each other.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy, cross_entropy_with_grad

    Notes
    -----
    In the notation of `cross_entropy`, with a_c = w_c ((1 - e) q_c + e / C), a sample has the gradient::

        g_c = u (p_c sum_k a_k - a_c) / T

    where u is `upstream`, for a mean divided by its divisor. No intermediate result overflows unless the gradient does.

    A sample whose logits hold NaN or +inf, or nothing but -inf, has gradient NaN, even if a factor of it is 0. An
    ignored sample has gradient 0, whatever its logits and `upstream` hold, even if all samples are ignored. If the
    weights of the samples that count sum to 0, the gradient of their mean is NaN. Empty input gives an empty result.

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
    """The cross-entropy and its gradient with respect to the logits, in little more time than one of them takes.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction
        As for `cross_entropy`.
    upstream : float or array_like, optional
        As for `cross_entropy_grad`. The loss does not depend on it.
    out : ndarray, optional
        As for `cross_entropy_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As from `cross_entropy`.
    grad : ndarray
        As from `cross_entropy_grad`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `cross_entropy_grad`.

    See Also
    --------
    cross_entropy, cross_entropy_grad

    Notes
    -----
    Both results are those of `cross_entropy` and `cross_entropy_grad`, bit for bit, also for NaN, infinities and empty
    input.

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
        As for `cross_entropy_grad`: a factor of the gradient and the Hessian. The loss does not depend on it.
    out : tuple of two ndarrays or None, optional
        Arrays to write the gradient and the Hessian to, of their shape and dtype, with any strides. The two must not
        overlap. ``out=(logits, None)`` replaces the logits by their gradient in place.

    Returns
    -------
    loss : scalar or ndarray
        As from `cross_entropy`.
    grad : ndarray
        As from `cross_entropy_grad`.
    hess : ndarray
        The second derivative with respect to each logit, in the shape and dtype of `logits` (float64 for integers).

    Raises
    ------
    TypeError
        As for `cross_entropy_grad`; or if `out` is not a tuple of two.
    ValueError
        As for `cross_entropy_grad`; or if the two arrays in `out` overlap.
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

    where 1 - p_c is computed without cancellation if p_c is near 1. NaN, ignored samples and empty input are as in
    `cross_entropy_grad`.

    The objectives for gradient boosting in ``fastsoftmax.boosting`` use these derivatives.

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
    """The loss, or None without `with_loss`, and the gradient."""
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
    """The Kullback-Leibler divergence KL(p || q) of two softmax distributions, from their logits.

    Parameters
    ----------
    p_logits : array_like
        Scores of the distribution p, such as a teacher's: float16, bfloat16, float32, float64, integers or bool.
    q_logits : array_like
        Scores of the distribution q that approximates p, such as a student's, in the shape of `p_logits`.
    axis : int, default -1
        The class axis.
    temperature : float, default 1.0
        Positive and finite; p and q are the softmax of ``p_logits / temperature`` and ``q_logits / temperature``.
    where : array_like of bool, optional
        Mask that broadcasts to the shape of `p_logits`. Entries where it is False take no part in either distribution,
        whatever the logits hold there.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean or the sum of the divergences of all slices, or each of them.

    Returns
    -------
    scalar or ndarray
        The divergence; with ``reduction="none"`` that of each slice, in the shape of `p_logits` without `axis`. Its
        dtype is ``numpy.result_type(p_logits, q_logits)``, but float32 for half precision and float64 for integers. A
        0-d result is a scalar.

    Raises
    ------
    TypeError
        If `p_logits` or `q_logits` has an unsupported dtype, is a masked array or is not in memory, `where` is not
        bool, `axis` is not an integer, or `temperature` is not a real number.
    ValueError
        If `p_logits` and `q_logits` differ in shape, `where` does not broadcast to their shape, `temperature` is not
        positive and finite, `reduction` is not one of those above, or there are no classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    kl_divergence_with_grad, cross_entropy, entropy

    Notes
    -----
    A slice has the divergence::

        KL(p || q) = sum_c p_c d_c = sum_c p_c (exp(-d_c) - 1 + d_c),    d_c = log p_c - log q_c

    in nats. The second form is computed. None of its terms is negative, so the result never is, and it keeps its digits
    where p and q nearly agree: the error is at most 6 ULP of ``sum_c |p_c d_c|`` and, if no ``|d_c|`` exceeds 1, at
    most 8 ULP of the result. The differences of the given logits are taken without rounding. If the logits themselves
    were rounded before, the divergence is that of the rounded ones.

    A class of probability 0 under p contributes 0 to the first form. Where q is 0 and p is not, the divergence is +inf.
    NaN or +inf in either slice, or nothing but -inf, gives NaN. A slice with no True entry in `where` gives 0. The mean
    of no slices is NaN.

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
        A factor of the gradient: the derivative of the final result with respect to the (reduced) divergence. A number,
        or with ``reduction="none"`` also an array of any real dtype in the shape of the divergence. None means 1. The
        divergence does not depend on it.
    out : ndarray, optional
        Array to write the gradient to, of its shape and dtype, with any strides. ``out=q_logits`` replaces the logits
        by their gradient in place.

    Returns
    -------
    divergence : scalar or ndarray
        As from `kl_divergence`.
    grad : ndarray
        The gradient, in the shape and dtype of `q_logits` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        As for `kl_divergence`; and for `upstream` and `out` as for `cross_entropy_grad`.
    ValueError
        As for `kl_divergence`; and for `upstream` and `out` as for `cross_entropy_grad`.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    kl_divergence, cross_entropy_with_grad

    Notes
    -----
    The gradient is ``u (q_c - p_c) / T``, where u is `upstream`, for a mean divided by the number of slices. Where q
    and p nearly agree, q_c - p_c is computed as p_c (exp(-d_c) - 1), which does not cancel. The gradient is finite also
    where the divergence is infinite. Masked entries have gradient 0. Otherwise see `kl_divergence`.

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
