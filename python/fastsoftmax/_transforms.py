"""Probabilities, their logarithms, entropy and gradients. Each function checks its arguments, then calls the core."""

from typing import Any, SupportsFloat

from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import (
    Array,
    Axis,
    Flag,
    delivered,
    logsumexp_arguments,
    reduced_shape,
    to_flag,
    transform_arguments,
    transform_grad_arguments,
    work_array,
)


@_core.with_shortcut
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """The probabilities of scores: in proportion to ``exp(x / temperature)``, with sum 1 in each slice.

    Parameters
    ----------
    x : array_like
        Scores (logits), float16, bfloat16, float32, float64, integers or bool.
    axis : int, tuple of ints or None, default -1
        The axes of a slice, whose entries are normalised together. None means all axes, () makes every element a slice.
    temperature : float, default 1.0
        Scores are divided by it. Positive and finite. The quotients are neither stored nor rounded to half precision.
    where : array_like of bool, optional
        Mask that broadcasts to the shape of `x`. Entries where it is False take no part, whatever `x` holds there, and
        have probability 0.
    dtype : dtype, optional
        The dtype of the result: float32 or float64 if that is wider than `x`, either for integers and bool. By default
        that of `x`; float64 for integers and bool.
    out : ndarray, optional
        Array to write the result to, of the result's shape and dtype, with any strides. May be `x` itself.

    Returns
    -------
    ndarray
        The probabilities, in the shape of `x`; `out`, if it is given. A scalar if `x` is 0-d.

    Raises
    ------
    TypeError
        If `x` has an unsupported dtype, is a masked array or is not in memory (see Notes), `axis` is a bool or a list,
        `temperature` is not a real number, `where` is not bool, `dtype` is not one of those allowed, or `out` is not an
        ndarray or has a wrong dtype.
    ValueError
        If an axis repeats, `temperature` is not positive and finite, `where` does not broadcast to the shape of `x`,
        or `out` has a wrong shape, is read-only, or has elements that overlap each other.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    log_softmax, softmax_grad

    Notes
    -----
    With T for the temperature and sums over a slice::

        softmax(x)_c = exp(x_c / T) / sum_k exp(x_k / T)

    (J. S. Bridle, "Training stochastic model recognition algorithms as networks can lead to maximum mutual information
    estimation of parameters", 1990). Half precision is computed in float32 and rounded once.

    A slice that holds NaN or +inf, or nothing but -inf, is NaN in every entry that takes part. Otherwise a score of
    -inf has probability exactly 0. A slice with no True entry in `where` is 0 everywhere. Empty input gives an empty
    result.

    For `numpy.random.Generator.multinomial` pass ``dtype=np.float64``: it refuses probabilities whose sum exceeds 1 by
    1e-12, and the sum of float32 probabilities may exceed 1 by more.

    Every array argument of this package may be anything that `numpy.asarray` turns into numbers, provided that no mask
    is lost and that nothing has to be read from a file or computed for it:

    - Masked arrays are refused: those of NumPy and other libraries, those in a list, and those that an object converts
      to.
    - Arrays that are not in memory are refused: those with a dask graph, and those that can be indexed but are in
      chunks (zarr, blosc2), or neither compute nor give access to their memory as a buffer, by the array interface or
      by Arrow (h5py, h5netcdf, netCDF4, PyTables, nibabel's ``dataobj``). An xarray object or a pint quantity is judged
      by the array in it. Pass ``x[...]``, or ``x.compute()`` if `x` has that method. A `numpy.memmap` is accepted.
    - A DataFrame of numbers and bools without a common dtype in NumPy is converted by ``x.to_numpy(float)``, which
      makes NA NaN; as `where`, a DataFrame of nullable bools by ``where.to_numpy(bool)``.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.softmax([1.0, 2.0, 3.0]).round(4)
    array([0.09  , 0.2447, 0.6652])
    >>> fs.softmax([[1.0, 2.0, 3.0]], where=[True, False, True]).round(4)
    array([[0.1192, 0.    , 0.8808]])
    """
    x, axes, temperature, mask, dtype = transform_arguments(x, axis, temperature, where, dtype)
    work = None if out is None else work_array(out, x.shape, dtype, (x,), (mask,))
    result = _core.softmax(x, work, dtype, axes, temperature, mask)
    return result if work is out else delivered(result, out)


@_core.with_shortcut
def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """The logarithms of the probabilities that `softmax` gives, accurate also for probabilities close to 0 or 1.

    Parameters
    ----------
    x : array_like
        Scores (logits), float16, bfloat16, float32, float64, integers or bool.
    axis : int, tuple of ints or None, default -1
        The axes of a slice, whose entries are normalised together. None means all axes, () makes every element a slice.
    temperature : float, default 1.0
        Scores are divided by it. Positive and finite. The quotients are neither stored nor rounded to half precision.
    where : array_like of bool, optional
        Mask that broadcasts to the shape of `x`. Entries where it is False take no part, whatever `x` holds there, and
        have log-probability -inf.
    dtype : dtype, optional
        The dtype of the result: float32 or float64 if that is wider than `x`, either for integers and bool. By default
        that of `x`; float64 for integers and bool.
    out : ndarray, optional
        Array to write the result to, of the result's shape and dtype, with any strides. May be `x` itself.

    Returns
    -------
    ndarray
        The log-probabilities, in the shape of `x`; `out`, if it is given. A scalar if `x` is 0-d.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`.

    See Also
    --------
    softmax, log_softmax_grad, logsumexp

    Notes
    -----
    With T for the temperature and sums over a slice::

        log_softmax(x)_c = x_c / T - log(sum_k exp(x_k / T))

    (P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal
    of Numerical Analysis, 2021). Half precision is computed in float32 and rounded once.

    A slice that holds NaN or +inf, or nothing but -inf, is NaN in every entry that takes part. Otherwise a score of
    -inf stays -inf. A slice with no True entry in `where` is -inf everywhere. Empty input gives an empty result.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.log_softmax([1.0, 2.0, 3.0]).round(4)
    array([-2.4076, -1.4076, -0.4076])
    >>> fs.log_softmax(np.array([0.0, 1.0], np.float16), dtype=np.float32).round(4)
    array([-1.3133, -0.3133], dtype=float32)
    """
    x, axes, temperature, mask, dtype = transform_arguments(x, axis, temperature, where, dtype)
    work = None if out is None else work_array(out, x.shape, dtype, (x,), (mask,))
    result = _core.log_softmax(x, work, dtype, axes, temperature, mask)
    return result if work is out else delivered(result, out)


@_core.with_shortcut
def logsumexp(
    x: ArrayLike,
    axis: Axis = None,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    keepdims: Flag = False,
    return_sign: Flag = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """The logarithm of the sum of the exponentials of `x`, computed without overflow.

    Parameters
    ----------
    x : array_like
        Exponents: float16, bfloat16, float32, float64, integers or bool.
    axis : int, tuple of ints or None, default None
        The axes to sum over, those of `x` and `b` broadcast together. None means all axes, () makes every element a
        slice.
    b : array_like, optional
        Weights of the terms, of any dtype that `x` may have; broadcast against `x`. They may be negative. A term of
        weight 0 takes no part, whatever `x` holds there. Keyword only: ``scipy.special.logsumexp(x, axis, b)`` is
        written ``logsumexp(x, axis, b=b)``.
    where : array_like of bool, optional
        Mask that broadcasts to the common shape of `x` and `b`. Terms where it is False take no part, whatever they
        hold.
    keepdims : bool, default False
        Keep the axes summed over, with extent 1.
    return_sign : bool, default False
        Return the logarithm of the absolute value of the sum, and the sign of the sum.
    dtype : dtype, optional
        The dtype of the result: float32 or float64, not narrower than a floating `x` or `b`. By default that of `x`
        (with an array `b`, of ``numpy.result_type(x, b)``); float64 for integers and bool.
    out : ndarray, optional
        Array to write the logarithm to, of the result's shape and dtype, with any strides.

    Returns
    -------
    ndarray or scalar
        The logarithm, in the shape of `x` and `b` without `axis`; `out`, if it is given. A 0-d result is a scalar.
    sign : ndarray or scalar
        Only with `return_sign`: 1, -1, 0 or NaN, in the dtype of the result.

    Raises
    ------
    TypeError
        As for `softmax`, for `b` as for `x`; or if `keepdims` or `return_sign` has no truth value.
    ValueError
        As for `softmax`; or if `x` and `b` do not broadcast against each other.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    log_softmax, scipy.special.logsumexp

    Notes
    -----
    With sums over a slice::

        logsumexp(x, b) = log(sum_k b_k exp(x_k))

    as in `scipy.special.logsumexp`. Half precision is computed in float32 and rounded once.

    Where terms of opposite sign cancel, digits are lost: the error, besides the rounding of the result, is up to
    ``2^-55 (1 + sum_k |b_k| exp(x_k) / |sum_k b_k exp(x_k)|)``, where terms of equal `x` count as one term with the
    sum of their `b`. If large terms cancel exactly, the sum of the others is right as long as these exceed exp(-22000)
    times the largest.

    A slice that holds NaN gives NaN; otherwise, one that holds +inf gives +inf. An empty sum, and one in which all `x`
    are -inf, gives -inf with sign 0. A negative sum gives NaN without `return_sign`.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> print(f"{fs.logsumexp([1000.0, 1000.0]):.4f}")
    1000.6931
    >>> log, sign = fs.logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)
    >>> print(f"{log:.4f} {sign:.0f}")
    1.5413 -1
    """
    array, axes, weights, mask, dtype = logsumexp_arguments(x, axis, b, where, dtype)
    keepdims = keepdims is not False and to_flag(keepdims, "keepdims")
    return_sign = return_sign is not False and to_flag(return_sign, "return_sign")
    work = None
    if out is not None:
        shape = reduced_shape(array.shape, axes, keepdims)
        work = work_array(out, shape, dtype, (), (array, weights, mask))
    result = _core.logsumexp(array, work, dtype, axes, weights, mask, keepdims, return_sign)
    if work is out:
        return result
    return (delivered(result[0], out), result[1]) if return_sign else delivered(result, out)


@_core.with_shortcut
def entropy(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    keepdims: Flag = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """The entropy, in nats, of the probabilities that `softmax` gives, accurate also where one class dominates.

    Parameters
    ----------
    x, axis, temperature
        As for `softmax`.
    where : array_like of bool, optional
        Mask that broadcasts to the shape of `x`. Entries where it is False take no part, whatever `x` holds there.
    keepdims : bool, default False
        Keep the axes of a slice, with extent 1.
    dtype : dtype, optional
        As for `softmax`.
    out : ndarray, optional
        Array to write the entropy to, of the result's shape and dtype, with any strides. May be `x` itself if the
        shapes agree.

    Returns
    -------
    ndarray or scalar
        The entropy of each slice, in the shape of `x` without `axis`; `out`, if it is given. A 0-d result is a scalar.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`; a TypeError also if `keepdims` has no truth value.

    See Also
    --------
    softmax, logsumexp, scipy.stats.entropy

    Notes
    -----
    With p = softmax(x / T), T for the temperature, and the sum over a slice::

        entropy(x) = -sum_c p_c log p_c

    (C. E. Shannon, "A mathematical theory of communication", 1948), where an entry of probability 0 contributes 0. The
    entropy lies between 0 and the logarithm of the number of classes; divide it by log(2) for bits. Half precision is
    computed in float32 and rounded once.

    The probabilities are not stored. The entropy is computed as a sum of non-negative terms::

        log(S) + sum_c e_c (max - x_c) / (T S)        with e_c = exp((x_c - max) / T) and S = sum_c e_c

    so it has all its digits where one class dominates, however small it is.

    A slice that holds NaN or +inf, or nothing but -inf, gives NaN. Otherwise -inf contributes 0. A slice with no True
    entry in `where`, or without entries, gives 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.entropy([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]]).round(4)
    array([1.3863, 0.0037])
    >>> print(f"{fs.entropy([0.0, 60.0]):.4e}")
    5.3415e-25
    >>> scores = np.array([[2.0, 1.0, 0.5], [3.0, 2.5, -1.0]], np.float32)
    >>> fs.entropy(scores, temperature=2.0, keepdims=True).round(4)
    array([[1.0481],
           [0.8924]], dtype=float32)
    """
    array, axes, temperature, mask, dtype = transform_arguments(x, axis, temperature, where, dtype)
    keepdims = keepdims is not False and to_flag(keepdims, "keepdims")
    work = None
    if out is not None:
        work = work_array(out, reduced_shape(array.shape, axes, keepdims), dtype, (), (array, mask))
    result = _core.entropy(array, work, dtype, axes, temperature, mask, keepdims)
    return result if work is out else delivered(result, out)


def softmax_grad(
    y: ArrayLike,
    dy: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient with respect to `x` from the one with respect to ``y = softmax(x)``: a vector-Jacobian product.

    Parameters
    ----------
    y : array_like
        The result of ``softmax(x, axis, temperature=temperature, where=where)``.
    dy : array_like
        The gradient with respect to `y`, in its shape.
    axis : int, tuple of ints or None, default -1
        As given to `softmax`.
    temperature : float, default 1.0
        As given to `softmax`. The gradient is with respect to `x`, not to ``x / temperature``.
    where : array_like of bool, optional
        As given to `softmax`. Entries where it is False have gradient 0, whatever `y` and `dy` hold there.
    out : ndarray, optional
        Array to write the gradient to, of its shape and dtype, with any strides. May be `y` or `dy`.

    Returns
    -------
    ndarray
        The gradient with respect to `x`, in the dtype of `dy` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        As for `softmax`, with `y` and `dy` in place of `x`.
    ValueError
        As for `softmax`; or if `y` and `dy` differ in shape.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    softmax, log_softmax_grad

    Notes
    -----
    With T for the temperature and sums over a slice::

        dx_c = y_c (dy_c - sum_k y_k dy_k) / T

    from the Jacobian d y_c / d x_k = y_c ((c == k) - y_k) / T. NaN in `y` or `dy` makes the whole slice NaN. Empty
    input gives an empty result.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> y = fs.softmax([1.0, 2.0, 3.0])
    >>> fs.softmax_grad(y, [0.0, 0.0, 1.0]).round(4)
    array([-0.0599, -0.1628,  0.2227])
    """
    y, dy, axes, temperature, mask, dtype = transform_grad_arguments(y, "y", dy, axis, temperature, where)
    work = None if out is None else work_array(out, y.shape, dtype, (y, dy), (mask,))
    result = _core.softmax_grad(y, dy, work, dtype, axes, temperature, mask)
    return result if work is out else delivered(result, out)


def log_softmax_grad(
    logp: ArrayLike,
    dy: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient with respect to `x` from the one with respect to ``log_softmax(x)``: a vector-Jacobian product.

    Parameters
    ----------
    logp : array_like
        The result of ``log_softmax(x, axis, temperature=temperature, where=where)``.
    dy : array_like
        The gradient with respect to `logp`, in its shape.
    axis : int, tuple of ints or None, default -1
        As given to `log_softmax`.
    temperature : float, default 1.0
        As given to `log_softmax`. The gradient is with respect to `x`, not to ``x / temperature``.
    where : array_like of bool, optional
        As given to `log_softmax`. Entries where it is False have gradient 0, whatever `logp` and `dy` hold there.
    out : ndarray, optional
        Array to write the gradient to, of its shape and dtype, with any strides. May be `logp` or `dy`.

    Returns
    -------
    ndarray
        The gradient with respect to `x`, in the dtype of `dy` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax_grad`.

    See Also
    --------
    log_softmax, softmax_grad

    Notes
    -----
    With T for the temperature and sums over a slice::

        dx_c = (dy_c - exp(logp_c) sum_k dy_k) / T

    from the Jacobian d logp_c / d x_k = ((c == k) - exp(logp_k)) / T. NaN in `dy` makes the whole slice NaN, NaN in
    `logp` only its own entry. Empty input gives an empty result.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> logp = fs.log_softmax([1.0, 2.0, 3.0])
    >>> fs.log_softmax_grad(logp, [0.0, 0.0, 1.0]).round(4)
    array([-0.09  , -0.2447,  0.3348])
    """
    logp, dy, axes, temperature, mask, dtype = transform_grad_arguments(logp, "logp", dy, axis, temperature, where)
    work = None if out is None else work_array(out, logp.shape, dtype, (logp, dy), (mask,))
    result = _core.log_softmax_grad(logp, dy, work, dtype, axes, temperature, mask)
    return result if work is out else delivered(result, out)
