"""Probabilities, their logarithms, entropy and gradients: arguments checked, then one call of the core."""

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
    """Probabilities from scores: non-negative, in proportion to ``exp(x / temperature)``, with sum 1 in each slice.

    Parameters
    ----------
    x : array_like
        Scores (logits), float16, bfloat16, float32, float64, integers or bool.
    axis : int, tuple of ints or None, default -1
        The axes of a slice, whose entries are normalised together; None is all of them, () makes every element a slice.
    temperature : float, default 1.0
        Positive and finite. The quotient `x / temperature` is not stored and not rounded to half precision.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Entries that are False take no part, whatever they hold: their probability is 0.
    dtype : dtype, optional
        The result's: that of `x`, or a wider one of float32 and float64; either for integers and bool. By default that
        of `x`; float64 for integers and bool.
    out : ndarray, optional
        Receives the result: its shape and dtype, any strides. It may be `x`.

    Returns
    -------
    ndarray
        The probabilities, in the shape of `x`; `out`, if it is given. A scalar if `x` is 0-d.

    Raises
    ------
    TypeError
        If the dtype of `x` is another one, `x` is a masked array or not in memory, `axis` is a bool or a list,
        `temperature` is no number, `where` is not bool, `dtype` is another than those allowed, or `out` is no array or
        has another dtype.
    ValueError
        If an axis repeats, `temperature` is not positive and finite, `where` does not broadcast to the shape of `x`,
        or `out` has another shape, is read-only or has elements that overlap each other.
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

    A slice that holds NaN or +inf, or nothing but -inf, is NaN in every entry that takes part. Otherwise -inf has
    probability exactly 0. A slice with no True entry in `where` is 0. Empty input gives an empty result.

    For `numpy.random.Generator.multinomial` ask for ``dtype=np.float64``: it refuses probabilities whose sum exceeds 1
    by 1e-12, and sums of float32 miss 1 by more.

    Every array argument of this package may be anything that `numpy.asarray` turns into numbers, provided that nothing
    is lost and that nothing has to be read or computed for it:

    - A masked array is refused, also one of another library, one in a list, and one that an object converts to.
    - An array that is not in memory is refused. It is one if it has a dask graph; or if it can be indexed, but is in
      chunks (zarr, blosc2), or neither computes nor gives access to its memory as a buffer, by the array interface or
      by Arrow (h5py, h5netcdf, netCDF4, PyTables, nibabel's ``dataobj``). For an xarray object or a pint quantity, its
      data decide. Pass ``x[...]``, or ``x.compute()`` where there is such a method. A `numpy.memmap` is taken.
    - A DataFrame of numbers and bools that have no common dtype in NumPy is taken as ``x.to_numpy(float)``, in which
      NA is NaN; as `where`, one of nullable bools as ``where.to_numpy(bool)``.

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
    """Logarithms of the probabilities that `softmax` gives, accurate also where a probability is close to 0 or to 1.

    Parameters
    ----------
    x : array_like
        Scores (logits), float16, bfloat16, float32, float64, integers or bool.
    axis : int, tuple of ints or None, default -1
        The axes of a slice, whose entries are normalised together; None is all of them, () makes every element a slice.
    temperature : float, default 1.0
        Positive and finite. The quotient `x / temperature` is not stored and not rounded to half precision.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Entries that are False take no part, whatever they hold: their result is -inf.
    dtype : dtype, optional
        The result's: that of `x`, or a wider one of float32 and float64; either for integers and bool. By default that
        of `x`; float64 for integers and bool.
    out : ndarray, optional
        Receives the result: its shape and dtype, any strides. It may be `x`.

    Returns
    -------
    ndarray
        The log-probabilities, in the shape of `x`; `out`, if it is given. A scalar if `x` is 0-d.

    Raises
    ------
    TypeError
        If the dtype of `x` is another one, `x` is a masked array or not in memory, `axis` is a bool or a list,
        `temperature` is no number, `where` is not bool, `dtype` is another than those allowed, or `out` is no array or
        has another dtype.
    ValueError
        If an axis repeats, `temperature` is not positive and finite, `where` does not broadcast to the shape of `x`,
        or `out` has another shape, is read-only or has elements that overlap each other.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    softmax, log_softmax_grad, logsumexp

    Notes
    -----
    With T for the temperature and sums over a slice::

        log_softmax(x)_c = x_c / T - log(sum_k exp(x_k / T))

    (P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal
    of Numerical Analysis, 2021). Half precision is computed in float32 and rounded once.

    A slice that holds NaN or +inf, or nothing but -inf, is NaN in every entry that takes part. Otherwise -inf stays
    -inf. A slice with no True entry in `where` is -inf. Empty input gives an empty result.

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
    """The logarithm of a sum of exponentials, with no overflow on the way.

    Parameters
    ----------
    x : array_like
        Float16, bfloat16, float32, float64, integers or bool.
    axis : int, tuple of ints or None, default None
        The axes to sum over, of `x` and `b` broadcast together; None is all of them, () makes every element a slice.
    b : array_like, optional
        Weights of the terms, of any real dtype that `x` may have, broadcast against `x`. They may be negative. A term
        of weight 0 takes no part, whatever its `x` holds. A keyword only: SciPy's third argument is `b`, and
        ``scipy.special.logsumexp(x, axis, b)`` is ``logsumexp(x, axis, b=b)``.
    where : array_like of bool, optional
        Broadcasts to the shape of `x` and `b`. Terms that are False take no part, whatever they hold.
    keepdims : bool, default False
        Keep the axes summed over, with extent 1.
    return_sign : bool, default False
        Return the sign of the sum, too, and the logarithm of its absolute value.
    dtype : dtype, optional
        The result's: that of `x` (with an array `b`, of ``numpy.result_type(x, b)``), or one of float32 and float64
        that is no narrower than a floating `x` or `b`. By default the former; float64 for integers and bool.
    out : ndarray, optional
        Receives the logarithm: the result's shape and dtype, any strides.

    Returns
    -------
    ndarray or scalar
        The logarithm, in the shape of `x` and `b` without `axis`; `out`, if it is given. A 0-d result is a scalar.
    sign : ndarray or scalar
        Only with `return_sign`: 1, -1, 0 or NaN, in the dtype of the result.

    Raises
    ------
    TypeError
        If the dtype of `x` or `b` is another one, one of them is a masked array or not in memory, `axis` is a bool or a
        list, `where` is not bool, `dtype` is another than those allowed, or `out` is no array or has another dtype.
    ValueError
        If an axis repeats, `b` does not broadcast with `x` or `where` to them, or `out` has another shape, is read-only
        or has elements that overlap each other.
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

    Where terms cancel, digits are lost: besides its rounding, the result is off by up to
    ``2^-55 (1 + sum_k |b_k| exp(x_k) / |sum_k b_k exp(x_k)|)``. There, terms of equal `x` count as one term with the
    sum of their `b`. If large terms cancel exactly, the sum of the others is right, down to exp(-22000) times the
    largest.

    A slice that holds NaN gives NaN, else one that holds +inf gives +inf. An empty sum, and one in which all `x` are
    -inf, gives -inf with sign 0. A negative sum gives NaN without `return_sign`.

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
    """The entropy of the probabilities that `softmax` gives, in nats, accurate also where one class dominates.

    Parameters
    ----------
    x, axis, temperature
        As for `softmax`.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Entries that are False take no part, whatever they hold.
    keepdims : bool, default False
        Keep the axes of a slice, with extent 1.
    dtype : dtype, optional
        As for `softmax`.
    out : ndarray, optional
        Receives the entropy: the result's shape and dtype, any strides. It may be `x`, where the shapes allow.

    Returns
    -------
    ndarray or scalar
        The entropy of each slice, in the shape of `x` without `axis`; `out`, if it is given. A 0-d result is a scalar.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`; a TypeError, too, if `keepdims` has no truth value.

    See Also
    --------
    softmax, logsumexp, scipy.stats.entropy

    Notes
    -----
    With p = softmax(x / T), T for the temperature, and the sum over a slice::

        entropy(x) = -sum_c p_c log p_c

    (C. E. Shannon, "A mathematical theory of communication", 1948), where an entry of probability 0 adds 0. It lies
    between 0 and the logarithm of the number of classes. Divided by log(2) it is in bits. Half precision is computed
    in float32 and rounded once.

    The probabilities are not stored. The sum is computed without subtraction::

        log(S) + sum_c e_c (max - x_c) / (T S)        with e_c = exp((x_c - max) / T) and S = sum_c e_c

    so that the entropy of a slice in which one class dominates has all its digits, however small it is.

    A slice that holds NaN or +inf, or nothing but -inf, gives NaN. Otherwise -inf adds 0. A slice with no True entry in
    `where`, and one without entries, gives 0.

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
    """The gradient through `softmax`: its vector-Jacobian product.

    Parameters
    ----------
    y : array_like
        The result of ``softmax(x, axis, temperature=temperature, where=where)``.
    dy : array_like
        The gradient with respect to `y`, in its shape.
    axis : int, tuple of ints or None, default -1
        That of the softmax.
    temperature : float, default 1.0
        That of the softmax. The gradient is the one with respect to the unscaled `x`.
    where : array_like of bool, optional
        That of the softmax. Entries that are False have gradient 0, whatever `y` and `dy` hold there.
    out : ndarray, optional
        Receives the gradient: its shape and dtype, any strides. It may be `y` or `dy`.

    Returns
    -------
    ndarray
        The gradient with respect to `x`, in the dtype of `dy` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        If `y` or `dy` has an unsupported dtype, is a masked array or not in memory, `axis` is a bool or a list,
        `temperature` is no number, `where` is not bool, or `out` is no array or has another dtype.
    ValueError
        If `y` and `dy` differ in shape, an axis repeats, `temperature` is not positive and finite, `where` does not
        broadcast to the shape of `y`, or `out` has another shape, is read-only or has elements that overlap each other.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    softmax, log_softmax_grad

    Notes
    -----
    With T for the temperature and sums over a slice::

        dx_c = y_c (dy_c - sum_k y_k dy_k) / T

    from the Jacobian d y_c / d x_k = y_c ((c == k) - y_k) / T. NaN in `y` or `dy` makes its slice NaN. Empty input
    gives an empty result.

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
    """The gradient through `log_softmax`: its vector-Jacobian product.

    Parameters
    ----------
    logp : array_like
        The result of ``log_softmax(x, axis, temperature=temperature, where=where)``.
    dy : array_like
        The gradient with respect to `logp`, in its shape.
    axis : int, tuple of ints or None, default -1
        That of the log_softmax.
    temperature : float, default 1.0
        That of the log_softmax. The gradient is the one with respect to the unscaled `x`.
    where : array_like of bool, optional
        That of the log_softmax. Entries that are False have gradient 0, whatever `logp` and `dy` hold there.
    out : ndarray, optional
        Receives the gradient: its shape and dtype, any strides. It may be `logp` or `dy`.

    Returns
    -------
    ndarray
        The gradient with respect to `x`, in the dtype of `dy` (float64 for integers); `out`, if it is given.

    Raises
    ------
    TypeError
        If `logp` or `dy` has an unsupported dtype, is a masked array or not in memory, `axis` is a bool or a list,
        `temperature` is no number, `where` is not bool, or `out` is no array or has another dtype.
    ValueError
        If `logp` and `dy` differ in shape, an axis repeats, `temperature` is not positive and finite, `where` does not
        broadcast to the shape of `logp`, or `out` has another shape, is read-only or has elements that overlap each
        other.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    log_softmax, softmax_grad

    Notes
    -----
    With T for the temperature and sums over a slice::

        dx_c = (dy_c - exp(logp_c) sum_k dy_k) / T

    from the Jacobian d logp_c / d x_k = ((c == k) - exp(logp_k)) / T. NaN in `dy` makes its slice NaN, NaN in `logp`
    its entry. Empty input gives an empty result.

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
