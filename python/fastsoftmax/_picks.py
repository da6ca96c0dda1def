"""Log-probabilities of picked classes: arguments checked, then one call of the core."""

from typing import Any, SupportsFloat, SupportsIndex

from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import Array, check_indices, delivered, one_pass_arguments, to_indices, to_k, work_array


def log_softmax_at(
    x: ArrayLike,
    indices: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """The log-probabilities of the classes that `indices` names, as `log_softmax` gives them; no others are computed.

    Parameters
    ----------
    x, temperature, where, dtype
        As for `log_softmax`.
    indices : array_like
        Class indices, of any integer dtype: in the shape of `x` except for its extent along `axis`, so many of each
        slice; or in the shape of `x` without `axis`, one of each slice.
    axis : int, default -1
        The class axis of `x`.
    out : ndarray, optional
        Receives the result: the shape of `indices` and the result's dtype, any strides.

    Returns
    -------
    ndarray or scalar
        The log-probabilities, in the shape of `indices`; `out`, if it is given. A 0-d result is a scalar.

    Raises
    ------
    TypeError
        As for `log_softmax`; or if `indices` has no integer dtype, is a masked array or not in memory, or `axis` is no
        integer.
    ValueError
        As for `log_softmax`; or if `indices` has another shape, or an index is outside [0, C), C the number of classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax, cross_entropy, numpy.take_along_axis

    Notes
    -----
    With `indices` of as many axes as `x`, the result is::

        numpy.take_along_axis(log_softmax(x, axis), indices, axis)

    bit for bit, without an array of the size of `x`. A negative index is an error. The index of an entry that `where`
    masks gives -inf. Scores that share a slice are read once for all of its indices.

    Examples
    --------
    The probability that a model gives to a text is the product of those of its tokens:

    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], np.float32)
    >>> fs.log_softmax_at(logits, [0, 1]).round(4)
    array([-0.4076, -0.0949], dtype=float32)
    >>> fs.log_softmax_at(logits, [[2, 0], [1, 1]]).round(4)
    array([[-2.4076, -0.4076],
           [-0.0949, -0.0949]], dtype=float32)
    """
    array, axis, temperature, mask, dtype = one_pass_arguments(x, axis, temperature, where, dtype)
    indices = to_indices(indices, array.shape, axis)
    work = None
    if out is not None:
        check_indices(indices, array.shape[axis])
        work = work_array(out, indices.shape, dtype, (), (array, indices, mask))
    result = _core.log_softmax_at(array, indices, work, dtype, axis, temperature, mask)
    if result is None:
        check_indices(indices, array.shape[axis])
        raise ValueError("indices changed while the call read them")
    return result if work is out else delivered(result, out)


def log_softmax_top_k(
    x: ArrayLike,
    k: SupportsIndex,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Array]:
    """The k largest log-probabilities of each slice and their classes, largest first.

    Parameters
    ----------
    x, temperature, dtype
        As for `log_softmax`.
    k : int
        How many classes: from 1 to as many as there are.
    axis : int, default -1
        The class axis of `x`.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Entries that are False take no part, whatever they hold: they come last, with
        -inf.

    Returns
    -------
    log_probabilities : ndarray
        In the shape of `x`, with extent `k` along `axis`.
    indices : ndarray of intp
        Their class indices, in the same shape.

    Raises
    ------
    TypeError
        As for `log_softmax`; or if `k` or `axis` is no integer.
    ValueError
        As for `log_softmax`; or if `k` is less than 1 or more than the number of classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax_at, log_softmax

    Notes
    -----
    The order is that of the scores, also where rounding makes different scores equal log-probabilities; of equal scores
    the one with the lowest index comes first. The log-probabilities are those of `log_softmax`, bit for bit.

    In a slice that holds NaN or +inf, or nothing but -inf, all log-probabilities are NaN: it gives the first `k`
    indices that take part. Masked entries follow after all that take part, by rising index.

    Nothing is sorted except the `k` largest, and no array of the size of `x` is made.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> log_probabilities, indices = fs.log_softmax_top_k([1.0, 3.0, 0.0, 3.0], 3)
    >>> indices
    array([1, 3, 0])
    >>> log_probabilities.round(4)
    array([-0.7817, -0.7817, -2.7817])
    """
    array, axis, temperature, mask, dtype = one_pass_arguments(x, axis, temperature, where, dtype)
    result: tuple[Array, Array] = _core.log_softmax_top_k(
        array, to_k(k, array.shape[axis]), dtype, axis, temperature, mask
    )
    return result
