"""Every check and conversion of an argument: what leaves here, the core takes as it is.

All refusals are here, and all of them come before anything is written. Nothing here copies an input of full size,
except what is not an array yet (a list) and the rare longdouble. On a few numbers the checks are most of the call: each
looks first for the plain case (an exact ndarray, an int, None), where even calling a function would double its time.
"""

import reprlib
from collections.abc import Sequence
from itertools import zip_longest
from math import inf
from numbers import Real
from operator import index
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from numpy import ndarray
from numpy.exceptions import AxisError, DTypePromotionError, TooHardError
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core

Array = NDArray[Any]
DType = np.dtype[Any]
Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
Flag = bool | np.bool

FLOAT32: DType = np.dtype(np.float32)
FLOAT64: DType = np.dtype(np.float64)
_BOOL: DType = np.dtype(np.bool)
_FLOATS: tuple[type, ...] = (np.float16, np.float32, np.float64)
_PYTHON_NUMBERS = (bool, int, float)

# An exact answer can take exponential time: past this effort, "perhaps" counts as an overlap, which costs a copy only.
_OVERLAP_EFFORT: Any = 1000  # Any, because NumPy's stubs know of 0 and -1 alone

# The dtype of a result by the dtype of its input, for those met so far: looking up is much faster than deciding.
_result_dtypes: dict[DType, DType] = {}

_ALL_AXES = tuple(tuple(range(ndim)) for ndim in range(65))  # NumPy's arrays have 64 at most


# --- dtypes -----------------------------------------------------------------------------------------------------------


def _is_bfloat16(dtype: DType) -> bool:
    """Told by its name, so that ml_dtypes is never imported; a void of that name is something else."""
    return (
        dtype.kind == "V"
        and dtype.itemsize == 2
        and dtype.type.__name__ == "bfloat16"
        and not issubclass(dtype.type, np.void)
    )


def result_dtype(dtype: DType, name: str) -> DType:
    """The dtype that the argument `name`, of this dtype, gives a result; TypeError if it is not supported."""
    known = _result_dtypes.get(dtype)
    if known is not None:
        return known
    if dtype.kind in "iub" or (dtype.kind == "f" and dtype.itemsize == 8):  # longdouble, too, where it is no longer
        result = FLOAT64
    elif dtype.type in _FLOATS or _is_bfloat16(dtype):  # by type: a float8 is of kind f, too
        result = np.dtype(dtype.type)  # in native byte order, and the one object that NumPy itself uses for it
    else:
        raise TypeError(
            f"{name} has dtype {dtype}; expected float16, bfloat16, float32, float64, an integer dtype or bool"
        )
    _result_dtypes[dtype] = result
    return result


def to_dtype(dtype: DTypeLike, own: DType) -> DType:
    """The dtype asked for; `own` is what the input gives by itself."""
    try:
        asked = np.dtype(dtype).newbyteorder("=")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"dtype is {shown(dtype)}; expected {own}, float32 or float64") from error
    if asked == own or (asked in (FLOAT32, FLOAT64) and asked.itemsize > own.itemsize):
        return np.dtype(asked.type)
    raise TypeError(f"dtype is {asked}; expected {own}, as the input gives, or a wider one of float32 and float64")


def joint_dtype(x: Array, x_given: ArrayLike, b: Array, b_given: ArrayLike) -> DType:
    """That of `numpy.result_type(x, b)`, where a Python number leaves the dtype to the other argument."""
    if isinstance(b_given, _PYTHON_NUMBERS) and not isinstance(b_given, np.generic):
        return result_dtype(x.dtype, "x")
    if isinstance(x_given, _PYTHON_NUMBERS) and not isinstance(x_given, np.generic):
        return result_dtype(b.dtype, "b")
    try:
        joint = np.result_type(x.dtype, b.dtype)
    except DTypePromotionError:  # bfloat16 has no common dtype with float16 and with most integers
        joint = FLOAT64 if x.dtype.kind in "iu" or b.dtype.kind in "iu" else FLOAT32
    return result_dtype(joint, "x and b")


# --- arrays -----------------------------------------------------------------------------------------------------------


def to_array(value: ArrayLike, name: str) -> Array:
    """`value` as a plain array of a supported dtype; an array is never copied or cast."""
    array = value if type(value) is ndarray else _from_other(value, name)
    if array.dtype not in _result_dtypes:
        result_dtype(array.dtype, name)
    return array


def to_real_array(value: ArrayLike, name: str) -> Array:
    """Like `to_array`, but a longdouble is welcome: it becomes a float64."""
    array = value if type(value) is ndarray else _from_other(value, name)
    if array.dtype not in _result_dtypes:
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            with np.errstate(all="ignore"):
                return array.astype(FLOAT64)
        result_dtype(array.dtype, name)
    return array


def _from_other(value: ArrayLike, name: str) -> Array:
    if isinstance(value, (list, tuple)):
        _check_elements(value, name)
    else:
        _check_type(type(value), name)
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} does not make an array: {error}") from error


def _check_elements(values: Sequence[Any], name: str, depth: int = 64) -> None:
    """Of elements nested deeper than NumPy's arrays have axes it is NumPy that complains."""
    for kind in set(map(type, values)) if depth else ():
        if issubclass(kind, (list, tuple)):
            for value in values:
                if type(value) is kind:
                    _check_elements(value, name, depth - 1)
        else:
            _check_type(kind, name)


def _check_type(kind: type, name: str) -> None:
    """Refuse what NumPy would convert without a word: a mask would be lost, a lazy array computed or read from disk."""
    if issubclass(kind, np.ma.MaskedArray):
        raise TypeError(f"{name} is or holds a masked array; pass its data, and for a transform its mask as `where`")
    if hasattr(kind, "__dask_graph__") or hasattr(kind, "chunks"):  # dask, xarray; zarr, h5py
        raise TypeError(
            f"{name} is or holds a {kind.__module__}.{kind.__qualname__}, which may not be in memory; "
            "convert it to a NumPy array first"
        )


def to_mask(where: ArrayLike, shape: tuple[int, ...]) -> Array:
    """`where` as a view of `shape`."""
    mask = to_array(where, "where")
    if mask.dtype != _BOOL:
        raise TypeError(f"where has dtype {mask.dtype}; expected bool")
    return mask if mask.shape == shape else _broadcast(mask, shape, "where")


def _broadcast(array: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to {shape}") from None


# --- numbers and words ------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """`value` for a message, shortened, however long or deep it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a number with too many digits, or holds one ({type(value).__name__})"


def _number(value: Any, name: str) -> float:
    """`value` as a float; an integer beyond the floats is inf."""
    if isinstance(value, (ndarray, np.generic)):
        real = value.ndim == 0 and (value.dtype.kind in "iuf" or _is_bfloat16(value.dtype))
        real = real and not isinstance(value, np.ma.MaskedArray)
    else:
        real = isinstance(value, Real) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{name} is {shown(value)}; expected a real number")
    try:
        return float(value)
    except OverflowError:
        return inf


def to_integer(value: Any, name: str) -> int:
    try:
        if isinstance(value, (bool, np.bool)):
            raise TypeError
        return index(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}; expected an integer") from None


def to_flag(value: Any, name: str) -> bool:
    try:
        return bool(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {shown(value)}; expected True or False") from error


def to_temperature(temperature: Any) -> float:
    number = temperature if type(temperature) is float else _number(temperature, "temperature")
    if 0.0 < number < inf:
        return number
    raise ValueError(f"temperature is {shown(temperature)}; expected a positive finite number")


def to_label_smoothing(label_smoothing: Any) -> float:
    number = label_smoothing if type(label_smoothing) is float else _number(label_smoothing, "label_smoothing")
    if 0.0 <= number <= 1.0:
        return number
    raise ValueError(f"label_smoothing is {shown(label_smoothing)}; expected a number in [0, 1]")


# --- axes and shapes --------------------------------------------------------------------------------------------------


def to_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes of a slice, sorted and not negative. The one element of a 0-d array is a slice of no axes."""
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return _ALL_AXES[ndim]
    if isinstance(axis, tuple):
        return tuple(sorted(normalize_axis_tuple(tuple(to_axis(a, ndim) for a in axis), ndim)))
    if ndim == 0 and to_integer(axis, "axis") in (-1, 0):
        return ()
    return (to_axis(axis, ndim),)


def to_axis(axis: SupportsIndex, ndim: int) -> int:
    """One axis, not negative."""
    number = to_integer(axis, "axis")
    # NumPy's own check takes no integer beyond 32 bits, and its error has no text for one with thousands of digits.
    if not -ndim <= number < ndim:
        small = abs(number) < 1 << 63
        raise AxisError(number, ndim) if small else AxisError(f"axis is {shown(number)}; there are {ndim}")
    return number % ndim


def reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: Flag = False) -> tuple[int, ...]:
    """`shape` without `axes`, or with extent 1 there."""
    if len(axes) == len(shape) and not keepdims:
        return ()
    kept = (1,) if keepdims else ()
    for k in reversed(axes):
        shape = shape[:k] + kept + shape[k + 1 :]
    return shape


# --- results ----------------------------------------------------------------------------------------------------------


def check_out(out: Any, shape: tuple[int, ...], dtype: DType) -> None:
    """Refuse an `out` that cannot take the result."""
    if not issubclass(type(out), ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out is a {type(out).__name__}; expected a numpy.ndarray")
    out = np.asarray(out)  # the attributes of a subclass may be others than those of its memory
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; expected {shape}")
    if out.dtype != dtype:
        raise TypeError(
            f"out has dtype {out.dtype.name!r}, byte order {out.dtype.byteorder!r}; "
            f"expected {dtype.name!r} in native byte order"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; expected a writeable array")
    if _overlaps_itself(out):
        raise ValueError(
            f"out has elements that overlap each other, or too many ways in which they could (shape {out.shape}, "
            f"strides {out.strides}); expected each element to have its own memory"
        )


def _overlaps_itself(array: Array) -> bool:
    if array.flags.forc or array.size < 2:
        return False
    # Sufficient: with the strides in rising order, each steps over all that the earlier ones reach.
    reach = array.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            break
        reach += stride * (extent - 1)
    else:
        return False
    # Exact: two elements that overlap differ in some axis, and shifted along that axis one of the two comes to lie at
    # 0. For strides made to be hard it could take as good as forever: "perhaps" after a time like that of the result.
    for k in range(array.ndim):
        along = np.moveaxis(array, k, 0)
        try:
            # NumPy takes any number, its stubs two.
            if np.shares_memory(along[:1], along[1:], max_work=array.size):  # type: ignore[arg-type]
                return True
        except TooHardError:
            return True
    return False


def work_array(
    out: Array,
    shape: tuple[int, ...],
    dtype: DType,
    in_place: tuple[Array, ...],
    inputs: tuple[object, ...] = (),
) -> Array | None:
    """Where the core is to compute: in a checked `out`, as a plain array; None, for a new array, if `out` overlaps one
    of `inputs`, or one of `in_place` without being the very same view.
    """
    if _core.is_plain_out(out, shape, dtype, in_place, inputs):
        return out
    check_out(out, shape, dtype)
    work = np.asarray(out)
    for given in in_place:
        if _overlap(work, given) and not _same_view(work, given):
            return None
    return None if any(_overlap(work, given) for given in inputs) else work


def _overlap(out: Array, given: object) -> bool:
    return isinstance(given, ndarray) and np.may_share_memory(out, given, max_work=_OVERLAP_EFFORT)


def _same_view(out: Array, given: Array) -> bool:
    return out is given or (
        out.dtype == given.dtype
        and out.shape == given.shape
        and out.strides == given.strides
        and out.__array_interface__["data"][0] == given.__array_interface__["data"][0]
    )


def delivered(result: Array, out: Any) -> Array:
    """`out`, holding the result."""
    given: Array = out
    plain = np.asarray(given)
    if not _same_view(plain, result):
        plain[...] = result
    return given


# --- whole calls ------------------------------------------------------------------------------------------------------


def transform_arguments(
    x: ArrayLike, axis: Axis, temperature: Any, where: ArrayLike | None, dtype: DTypeLike | None
) -> tuple[Array, tuple[int, ...], float, Array | None, DType]:
    """Those of softmax and log_softmax, `dtype` being the result's."""
    array = x if type(x) is ndarray else to_array(x, "x")
    own = _result_dtypes.get(array.dtype) or result_dtype(array.dtype, "x")
    ndim = array.ndim
    axes = (axis % ndim,) if type(axis) is int and -ndim <= axis < ndim else to_axes(axis, ndim)
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    mask = None if where is None else to_mask(where, array.shape)
    return array, axes, temperature, mask, own if dtype is None else to_dtype(dtype, own)


def transform_grad_arguments(
    result: ArrayLike, name: str, dy: ArrayLike, axis: Axis, temperature: Any, where: ArrayLike | None
) -> tuple[Array, Array, tuple[int, ...], float, Array | None, DType]:
    """Those of softmax_grad and log_softmax_grad, with the gradient's dtype; `name` is that of the result argument."""
    y = result if type(result) is ndarray else to_array(result, name)
    if y.dtype not in _result_dtypes:
        result_dtype(y.dtype, name)
    dy = dy if type(dy) is ndarray else to_array(dy, "dy")
    dtype = _result_dtypes.get(dy.dtype) or result_dtype(dy.dtype, "dy")
    if not _core.same_shape(y, dy):
        raise ValueError(f"dy has shape {dy.shape}; expected that of {name}, {y.shape}")
    ndim = y.ndim
    axes = (axis % ndim,) if type(axis) is int and -ndim <= axis < ndim else to_axes(axis, ndim)
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    mask = None if where is None else to_mask(where, y.shape)
    return y, dy, axes, temperature, mask, dtype


def logsumexp_arguments(
    x: ArrayLike, axis: Axis, b: ArrayLike | None, where: ArrayLike | None, dtype: DTypeLike | None
) -> tuple[Array, tuple[int, ...], Array | None, Array | None, DType]:
    """Those of logsumexp: `x`, `b` and `where` in their common shape, `dtype` being the result's."""
    array = x if type(x) is ndarray else to_array(x, "x")
    own = _result_dtypes.get(array.dtype) or result_dtype(array.dtype, "x")
    weights = None
    if b is not None:
        weights = to_array(b, "b")
        own = joint_dtype(array, x, weights, b)
        # Not by broadcast_shapes, which takes 32 axes at most.
        lengths = zip_longest(reversed(array.shape), reversed(weights.shape), fillvalue=1)
        shape = tuple(n if m == 1 else m for m, n in lengths)[::-1]
        try:
            array, weights = np.broadcast_to(array, shape), np.broadcast_to(weights, shape)
        except ValueError:
            raise ValueError(f"b has shape {weights.shape}, which does not broadcast with x's, {array.shape}") from None
    ndim = array.ndim
    axes = _ALL_AXES[ndim] if axis is None else to_axes(axis, ndim)
    mask = None if where is None else to_mask(where, array.shape)
    return array, axes, weights, mask, own if dtype is None else to_dtype(dtype, own)


def loss_arguments(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex,
    weight: ArrayLike | None,
    ignore_index: Any,
    label_smoothing: Any,
    temperature: Any,
    reduction: Any,
) -> tuple[Array, Array, int, Array | None, int | None, float, float, str, DType]:
    """Those that the three losses share, and the gradient's dtype, in the order in which the core takes them."""
    logits = logits if type(logits) is ndarray else to_array(logits, "logits")
    dtype = _result_dtypes.get(logits.dtype) or result_dtype(logits.dtype, "logits")
    shape = logits.shape
    ndim = len(shape)
    axis = axis % ndim if type(axis) is int and -ndim <= axis < ndim else to_axis(axis, ndim)
    if shape[axis] == 0:
        raise ValueError(f"logits has shape {shape}, no classes in axis {axis}; expected at least one")
    if type(targets) is not ndarray:
        targets = _to_new_targets(targets)
    if targets.dtype.kind in "iu":
        if ignore_index is not None:
            ignore_index = _as_element(to_integer(ignore_index, "ignore_index"), targets.dtype)
        position = _core.find_invalid_target(targets, logits, axis, ignore_index)
        if position is not None:
            _refuse_indices(targets, position, shape, axis, ignore_index)
    else:
        targets = _to_probabilities(targets, shape, ignore_index)
    if weight is not None:
        weight = _to_weight(weight, shape[axis])
    if type(label_smoothing) is not float or not 0.0 <= label_smoothing <= 1.0:
        label_smoothing = to_label_smoothing(label_smoothing)
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {shown(reduction)}; expected 'none', 'mean' or 'sum'")
    return logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, dtype


def _to_new_targets(given: ArrayLike) -> Array:
    targets = _from_other(given, "targets")
    if targets.size == 0 and isinstance(given, (list, tuple)):
        targets = targets.astype(np.intp)  # NumPy reads an empty list as float64; for an empty batch it is indices
    return targets


def _to_probabilities(targets: Array, shape: tuple[int, ...], ignore_index: int | None) -> Array:
    targets = to_real_array(targets, "targets")
    if targets.dtype.kind == "b":
        raise TypeError("targets has dtype bool; expected class indices (integers) or class probabilities (floating)")
    if targets.shape != shape:
        raise ValueError(f"targets, class probabilities, has shape {targets.shape}; expected {shape}, as logits")
    if ignore_index is not None:
        raise ValueError(f"ignore_index is {shown(ignore_index)}; expected None with class probabilities as targets")
    return targets


def _refuse_indices(
    targets: Array, position: int, shape: tuple[int, ...], axis: int, ignore_index: int | None
) -> NoReturn:
    batch = reduced_shape(shape, (axis,))
    if position < 0:
        raise ValueError(
            f"targets, class indices, has shape {targets.shape}; expected {batch}, that of logits without axis {axis}"
        )
    place = tuple(int(k) for k in np.unravel_index(position, batch))
    raise ValueError(
        f"targets{list(place) if place else ''} is {targets[place]}; expected a class index in [0, {shape[axis]})"
        + (" or ignore_index" if ignore_index is not None else "")
    )


def _as_element(value: int, dtype: DType) -> int | None:
    """An integer as an element of `dtype`, None if it holds no such value; beyond int64 it wraps."""
    bits = 8 * dtype.itemsize
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if dtype.kind == "i" else (0, 1 << bits)
    if not low <= value < high:
        return None
    return value - (1 << 64) if value >= 1 << 63 else value


def _to_weight(given: ArrayLike, classes: int) -> Array:
    weight = to_real_array(given, "weight")
    if weight.shape != (classes,):
        raise ValueError(f"weight has shape {weight.shape}; expected ({classes},), one for each class")
    with np.errstate(all="ignore"):
        weight = np.require(weight, FLOAT64, ["C", "A"])
        good = weight.min() >= 0.0 and weight.max() < inf
    if not good:
        place = int(np.argmin((weight >= 0.0) & (weight < inf)))
        raise ValueError(f"weight[{place}] is {weight[place]}; expected a finite number that is not negative")
    return weight


def to_upstream(upstream: ArrayLike | None, reduction: str, batch: tuple[int, ...]) -> float | Array:
    """A float, or an array of the loss's shape where nothing is reduced."""
    if upstream is None:
        return 1.0
    if type(upstream) is float:
        return upstream
    array = to_real_array(upstream, "upstream")
    if array.ndim == 0:
        return float(array)
    if reduction != "none" or array.shape != batch:
        expected = f", or shape {batch}" if reduction == "none" else f", as reduction is {reduction!r}"
        raise ValueError(f"upstream has shape {array.shape}; expected one number" + expected)
    return array
