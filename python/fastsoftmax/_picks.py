"""Log-probabilities of picked classes. Each function checks its arguments, then calls the core."""

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
    """The entries of `log_softmax` at the given class indices; no others are computed.

    Parameters
    ----------
    x, temperature, where, dtype
        As for `log_softmax`.
    indices : array_like
        Class indices of any integer dtype. In the shape of `x` with any extent along `axis`, for several classes of
        each slice; or in the shape of `x` without `axis`, for one class of each slice.
    axis : int, default -1
        The class axis of `x`.
    out : ndarray, optional
        Array to write the result to, of the shape of `indices` and the result's dtype, with any strides.

    Returns
    -------
    ndarray or scalar
        The log-probabilities, in the shape of `indices`; `out`, if it is given. A 0-d result is a scalar.

    Raises
    ------
    TypeError
        As for `log_softmax`; or if `indices` does not have an integer dtype, is a masked array or is not in memory, or
        `axis` is not an integer.
    ValueError
        As for `log_softmax`; or if `indices` has a wrong shape, or an index is outside [0, C) for C classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax, cross_entropy, numpy.take_along_axis

    Notes
    -----
    If `indices` has as many axes as `x`, the result is::

        numpy.take_along_axis(log_softmax(x, axis), indices, axis)

    bit for bit, but no array of the size of `x` is made. A negative index is an error. The index of a masked entry
    gives -inf. The scores of a slice are read once for all of its indices.

    Examples
    --------
    The log-probability that a language model gives to a text is the sum of those of its tokens:

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
        The number of classes to return, from 1 to all classes of `x`.
    axis : int, default -1
        The class axis of `x`.
    where : array_like of bool, optional
        Mask that broadcasts to the shape of `x`. Entries where it is False take no part, whatever `x` holds there: they
        come last, with -inf.

    Returns
    -------
    log_probabilities : ndarray
        In the shape of `x`, with extent `k` along `axis`.
    indices : ndarray of intp
        Their class indices, in the same shape.

    Raises
    ------
    TypeError
        As for `log_softmax`; or if `k` or `axis` is not an integer.
    ValueError
        As for `log_softmax`; or if `k` is less than 1 or more than the number of classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax_at, log_softmax

    Notes
    -----
    Classes are ordered by score, also where rounding makes the log-probabilities of different scores equal. Among equal
    scores, the lowest index comes first. The log-probabilities are those of `log_softmax`, bit for bit.

    In a slice that holds NaN or +inf, or nothing but -inf, all log-probabilities are NaN, and the indices are the first
    `k` that take part. Masked entries come after all others, in the order of their indices.

    Only the `k` largest are sorted, and no array of the size of `x` is made.

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
