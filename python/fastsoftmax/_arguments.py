"""Checks and conversions of all arguments. The core takes the results without checking them again.

All refusals are here, and all of them come before anything is written. No input of full size is copied, except one that
is not an array yet (a list) and the rare longdouble. In a call with few numbers most of the time goes to these checks.
So each looks first for the plain case (an exact ndarray, an int, None), inline: a function call would double its time.
"""

import reprlib
from collections.abc import Callable
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
_SUPPORTED = "float16, bfloat16, float32, float64, an integer dtype or bool"

_INDICES_OR_PROBABILITIES = "class indices (integers) or class probabilities (floating)"

# Types, besides NumPy's scalars, that NumPy converts without losing anything.
_PLAIN = frozenset({*_PYTHON_NUMBERS, complex, str, bytes, ndarray})
_MOST_AXES = 64  # of a NumPy array
# Types of arrays that may not be in memory, and the modules that accept them. Names, so that nothing is imported.
_LAZY = {
    "dask.array.core.Array": "fastsoftmax.dask",
    "xarray.core.dataarray.DataArray": "fastsoftmax.xarray",
}
_ARRAY_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__")
# A type with one of these computes or gives access to its memory.
_MEMORY_PROTOCOLS = ("__add__", "__array_interface__", "__array_struct__", "__arrow_c_array__", "__arrow_c_stream__")

# Whether two arrays overlap can take exponential time to find out. Past this effort they count as overlapping, which
# costs only a copy.
_OVERLAP_EFFORT: Any = 1000  # Any, because NumPy's stubs know only 0 and -1

# Dtypes of results by those of inputs, for the dtypes seen so far: looking up is much faster than deciding.
_result_dtypes: dict[DType, DType] = {}

_ALL_AXES = tuple(tuple(range(ndim)) for ndim in range(_MOST_AXES + 1))


# --- dtypes -----------------------------------------------------------------------------------------------------------


def _is_bfloat16(dtype: DType) -> bool:
    """Whether it is the bfloat16 of ml_dtypes, told by name, without an import. A void of that name is another one."""
    return (
        dtype.kind == "V"
        and dtype.itemsize == 2
        and dtype.type.__name__ == "bfloat16"
        and not issubclass(dtype.type, np.void)
    )


def result_dtype(dtype: DType, name: str, expected: str = _SUPPORTED) -> DType:
    """The dtype of the result for an argument `name` of this dtype; TypeError if the dtype is not supported."""
    known = _result_dtypes.get(dtype)
    if known is not None:
        return known
    if dtype.kind in "iub" or (dtype.kind == "f" and dtype.itemsize == 8):  # also a longdouble of 8 bytes
        result = FLOAT64
    elif dtype.type in _FLOATS or _is_bfloat16(dtype):  # by type: a float8 is of kind f, too
        result = np.dtype(dtype.type)  # in native byte order, and the one object that NumPy itself uses for it
    else:
        raise TypeError(f"{name} has dtype {dtype}; expected {expected}")
    _result_dtypes[dtype] = result
    return result


def to_dtype(dtype: DTypeLike, own: DType, *inputs: DType) -> DType:
    """The dtype asked for, if it is allowed; `own` is the default for inputs of these dtypes."""
    try:
        asked = np.dtype(dtype).newbyteorder("=")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"dtype is {shown(dtype)}; expected {_allowed(own, inputs)}") from error
    wider = asked.itemsize > own.itemsize  # first, because it is the usual case
    if asked == own or (asked in (FLOAT32, FLOAT64) and (wider or not _narrows(asked, inputs))):
        return np.dtype(asked.type)
    raise TypeError(f"dtype is {asked}; expected {_allowed(own, inputs)}")


def _narrows(asked: DType, inputs: tuple[DType, ...]) -> bool:
    """Whether a floating input is wider than the dtype asked for. Integer inputs may be wider."""
    return any(given.kind not in "iub" and given.itemsize > asked.itemsize for given in inputs)


def _allowed(own: DType, inputs: tuple[DType, ...]) -> str:
    wider = [str(dtype) for dtype in (FLOAT32, FLOAT64) if dtype != own and not _narrows(dtype, inputs)]
    return " or ".join([str(own), *wider]) + ", as the input's dtype allows"


def joint_dtypes(x: Array, x_given: ArrayLike, b: Array, b_given: ArrayLike) -> tuple[DType, ...]:
    """The dtype `numpy.result_type(x, b)`, and the dtypes that decide it: not that of a Python number."""
    if isinstance(b_given, _PYTHON_NUMBERS) and not isinstance(b_given, np.generic):
        return result_dtype(x.dtype, "x"), x.dtype
    if isinstance(x_given, _PYTHON_NUMBERS) and not isinstance(x_given, np.generic):
        return result_dtype(b.dtype, "b"), b.dtype
    try:
        joint = np.result_type(x.dtype, b.dtype)
    except DTypePromotionError:  # bfloat16 has no common dtype with float16 and with most integers
        joint = FLOAT64 if x.dtype.kind in "iu" or b.dtype.kind in "iu" else FLOAT32
    return result_dtype(joint, "x and b"), x.dtype, b.dtype


# --- arrays -----------------------------------------------------------------------------------------------------------


def to_array(value: ArrayLike, name: str) -> Array:
    """`value` as a plain array of a supported dtype; an array is never copied or cast."""
    array = value if type(value) is ndarray else _from_other(value, name)
    if array.dtype not in _result_dtypes:
        result_dtype(array.dtype, name)
    return array


def to_real_array(value: ArrayLike, name: str, expected: str = _SUPPORTED) -> Array:
    """Like `to_array`, but longdouble is accepted and becomes float64."""
    array = value if type(value) is ndarray else _from_other(value, name)
    if array.dtype not in _result_dtypes:
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            with np.errstate(all="ignore"):
                return array.astype(FLOAT64)
        result_dtype(array.dtype, name, expected)
    return array


def _from_other(value: Any, name: str, columns: DType = FLOAT64, outer: tuple[int, ...] = ()) -> Array:
    """`value` as NumPy converts it to a plain array; refused if that loses a mask, reads a file or computes a graph.

    Columns of numbers or bools that have no common dtype in NumPy are converted to the dtype `columns`.
    """
    if type(value) not in (list, tuple) and not _is_plain(type(value)):
        _check_memory(value, name)
        _check_mask(value, name)
    given = _arrays_of(value, name, outer) if _is_sequence(value) else value
    array = _converted(np.asanyarray, given, name)
    _check_mask(array, name)
    if array.dtype.kind == "O" and not isinstance(value, ndarray):
        if array.ndim == 0 or not _has_columns_of(value, "b" if columns is _BOOL else "iufb"):
            _refuse_objects(value, name)
        array = _converted(value.to_numpy, columns, name)
    return np.asarray(array)


def _converted(convert: Callable[[Any], Any], value: Any, name: str) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} does not make an array: {error}") from error


def _arrays_of(values: Any, name: str, outer: tuple[int, ...]) -> Any:
    """The elements of a sequence, converted to arrays if not plain; `outer` are the ids of the sequences around it."""
    if id(values) in outer:
        raise ValueError(f"{name} holds a {_type_of(values)} that holds itself")
    if len(outer) == _MOST_AXES:  # NumPy itself refuses deeper ones
        return values
    elements = values if type(values) in (list, tuple) else _converted(list, values, name)
    others = {kind for kind in set(map(type, elements)) if not _is_plain(kind)}
    if not others:
        return elements
    outer += (id(values),)
    arrays = []
    for element in elements:
        if type(element) in (list, tuple):
            element = _arrays_of(element, name, outer)
        elif type(element) in others:
            element = _from_other(element, name, outer=outer)
        arrays.append(element)
    return arrays


def _is_plain(kind: type) -> bool:
    return kind in _PLAIN or issubclass(kind, np.generic)


def _is_sequence(value: Any) -> bool:
    """Whether NumPy would take its elements one by one: it has a length, and is not an array, a buffer or text."""
    kind = type(value)
    if kind in (list, tuple):
        return True
    if not hasattr(kind, "__getitem__") or isinstance(value, (str, bytes, dict)):
        return False
    try:
        len(value)
    except Exception:  # as NumPy does; a sparse matrix has no length, for example
        return False
    return not any(hasattr(kind, protocol) for protocol in _ARRAY_PROTOCOLS) and not _is_buffer(value)


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except (TypeError, ValueError, BufferError):
        return False
    return True


def _inside(value: Any) -> Any:
    """The array in a pint quantity, or in an xarray object whose data may not be in memory; else `value` itself."""
    kind = value.__class__
    if issubclass(kind, ndarray):
        return value
    if hasattr(kind, "magnitude"):
        return _inside(value.magnitude)
    if hasattr(kind, "_in_memory") and not value._in_memory:
        return _inside(getattr(value, "variable", value)._data)
    return value


def _check_mask(value: Any, name: str) -> None:
    if _carries_mask(_inside(value)):
        raise TypeError(
            f"{name} is, holds or becomes a masked array ({_type_of(value)}), whose mask would be lost; "
            "pass its data, and for a transform the inverse of its mask as `where`"
        )


def _carries_mask(value: Any) -> bool:
    """Whether it is a masked array, of NumPy or another library, or its array interface has a mask.

    The elements do not matter: an array in which none is masked counts, too.
    """
    if isinstance(value, ndarray):
        return hasattr(value.__class__, "mask")
    interface = getattr(value, "__array_interface__", None)
    return isinstance(interface, dict) and interface.get("mask") is not None


def _check_memory(value: Any, name: str) -> None:
    if not _is_in_memory(_inside(value)):
        how = "its method compute()" if hasattr(type(value), "compute") else "indexing it with [...]"
        module = _LAZY.get(_type_of(value))
        raise TypeError(
            f"{name} is or holds an object of type {_type_of(value)}, which may not be in memory; "
            f"{f'{module} takes it as it is, or ' if module else ''}convert it to a NumPy array first, by {how}"
        )


def _is_in_memory(value: Any) -> bool:
    """Whether NumPy can convert it without reading a file or computing a graph, as far as one can tell.

    No protocol says so. It is False if `value` has a dask graph; or if it can be indexed like an array, but is in
    chunks, or neither computes nor gives access to its memory, which is true of all handles on files.
    """
    kind = value.__class__
    if issubclass(kind, ndarray):
        return True
    if hasattr(kind, "__dask_graph__") and value.__dask_graph__() is not None:
        return False
    if not hasattr(kind, "__getitem__") or not (hasattr(kind, "shape") or hasattr(value, "shape")):
        return True
    if any(hasattr(kind, protocol) for protocol in _MEMORY_PROTOCOLS) or _is_buffer(value):
        return not isinstance(getattr(value, "chunks", None), tuple)
    return hasattr(kind, "data") and isinstance(value.data, ndarray)


def _has_columns_of(value: Any, kinds: str) -> bool:
    """Whether it is a DataFrame or a column with dtypes, NumPy's or not, of these kinds only."""
    if not hasattr(type(value), "to_numpy"):
        return False
    dtypes = getattr(value, "dtypes", None)
    if dtypes is None or hasattr(dtypes, "kind"):
        dtypes = [getattr(value, "dtype", None)]
    return all(getattr(dtype, "kind", "O") in kinds for dtype in dtypes)


def _refuse_objects(value: Any, name: str) -> NoReturn:
    if _is_sequence(value) or isinstance(value, int):
        raise TypeError(
            f"{name} is or holds an integer beyond 64 bits, or holds elements that have no common dtype but object; "
            "expected numbers"
        )
    if hasattr(type(value), "toarray"):
        raise TypeError(
            f"{name} is or holds a sparse matrix of type {_type_of(value)}; expected a dense array, as its method "
            "toarray() gives"
        )
    raise TypeError(
        f"{name} is or holds an object of type {_type_of(value)}, which NumPy does not convert to numbers; "
        "expected an array or nested lists of numbers"
    )


def _type_of(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def to_any_array(value: ArrayLike, name: str) -> Array:
    """`value` as a plain array of any dtype; refused if converting it loses, reads or computes something."""
    return value if type(value) is ndarray else _from_other(value, name, _BOOL if name == "where" else FLOAT64)


def to_mask(where: ArrayLike, shape: tuple[int, ...]) -> Array:
    """`where` as an array of bools, broadcast to `shape`."""
    mask = where if type(where) is ndarray else _from_other(where, "where", _BOOL)
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
    """`value` for a message, shortened if it is long or deeply nested."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python converts to text
        return f"a number with too many digits, or holds one ({type(value).__name__})"


def _number(value: Any, name: str) -> float:
    """`value` as a float; an integer beyond the range of floats becomes inf."""
    if isinstance(value, (ndarray, np.generic)):
        real = value.ndim == 0 and (value.dtype.kind in "iuf" or _is_bfloat16(value.dtype))
        real = real and not _carries_mask(value)
    else:
        real = isinstance(value, Real) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{name} is {shown(value)}; expected a real number")
    try:
        return float(value)
    except OverflowError:
        return inf


def to_integer(value: Any, name: str, expected: str = "an integer") -> int:
    try:
        if isinstance(value, (bool, np.bool)) or _carries_mask(value):
            raise TypeError
        return index(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}; expected {expected}") from None


def to_flag(value: Any, name: str) -> bool:
    try:
        if _carries_mask(value):
            raise TypeError
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


def to_reduction(reduction: Any) -> str:
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {shown(reduction)}; expected 'none', 'mean' or 'sum'")
    return reduction


# --- axes and shapes --------------------------------------------------------------------------------------------------


def to_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes of a slice, sorted and not negative. Empty for a 0-d array: its element is a slice without axes."""
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return _ALL_AXES[ndim]
    if isinstance(axis, tuple):
        return tuple(sorted(normalize_axis_tuple(tuple(to_axis(a, ndim) for a in axis), ndim)))
    axis = to_integer(axis, "axis", "an integer, a tuple of integers or None")
    if ndim == 0 and axis in (-1, 0):
        return ()
    return (to_axis(axis, ndim),)


def to_axis(axis: SupportsIndex, ndim: int) -> int:
    """One axis, not negative."""
    number = to_integer(axis, "axis")
    # NumPy's own check accepts no integer beyond 32 bits, and its error cannot print one with thousands of digits.
    if not -ndim <= number < ndim:
        small = abs(number) < 1 << 63
        raise AxisError(number, ndim) if small else AxisError(f"axis {shown(number)} is out of bounds; ndim is {ndim}")
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
    """Refuse an `out` that cannot hold the result."""
    if not issubclass(type(out), ndarray) or _carries_mask(out):
        raise TypeError(f"out is a {type(out).__name__}; expected a numpy.ndarray without a mask")
    out = np.asarray(out)  # the attributes of a subclass may not be those of its memory
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
            f"out has elements that overlap each other, or strides for which finding out takes too long (shape "
            f"{out.shape}, strides {out.strides}); expected each element to have its own memory"
        )


def _overlaps_itself(array: Array) -> bool:
    if array.flags.forc or array.size < 2:
        return False
    # No overlap, for certain: in rising order, each stride steps over everything that the smaller ones reach.
    reach = array.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            break
        reach += stride * (extent - 1)
    else:
        return False
    # The exact answer: two elements that overlap differ in some axis, and still overlap if both are shifted along it
    # until one is at 0. For contrived strides this could take nearly forever: after about the time that the result
    # takes, they count as overlapping.
    for k in range(array.ndim):
        along = np.moveaxis(array, k, 0)
        try:
            # NumPy accepts any number for max_work, its stubs only two.
            if np.shares_memory(along[:1], along[1:], max_work=array.size):  # type: ignore[arg-type]
                return True
        except TooHardError:
            return True
    return False


def hess_outs(out: Any) -> tuple[Any, Any]:
    """The two elements of an `out` for gradient and Hessian; refused if they overlap."""
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out is {shown(out)}; expected a tuple of two arrays or None, for gradient and Hessian")
    if isinstance(out[0], ndarray) and _overlap(np.asarray(out[0]), out[1]):
        raise ValueError("out has two arrays that overlap each other; expected each to have its own memory")
    return out


def work_array(
    out: Array,
    shape: tuple[int, ...],
    dtype: DType,
    in_place: tuple[Array, ...],
    inputs: tuple[object, ...] = (),
) -> Array | None:
    """The array for the core to write to: the checked `out` as a plain array, or None for a new one if `out` overlaps
    one of `inputs`, or one of `in_place` without being exactly the same view.
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
    """`out`, after the result is copied to it unless it is there already."""
    given: Array = out
    plain = np.asarray(given)
    if not _same_view(plain, result):
        plain[...] = result
    return given


# --- whole calls ------------------------------------------------------------------------------------------------------


def transform_arguments(
    x: ArrayLike, axis: Axis, temperature: Any, where: ArrayLike | None, dtype: DTypeLike | None
) -> tuple[Array, tuple[int, ...], float, Array | None, DType]:
    """The arguments of softmax, log_softmax and entropy; `dtype` is the result's."""
    array = x if type(x) is ndarray else to_array(x, "x")
    own = _result_dtypes.get(array.dtype) or result_dtype(array.dtype, "x")
    ndim = array.ndim
    axes = (axis % ndim,) if type(axis) is int and -ndim <= axis < ndim else to_axes(axis, ndim)
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    mask = None if where is None else to_mask(where, array.shape)
    return array, axes, temperature, mask, own if dtype is None else to_dtype(dtype, own, array.dtype)


def transform_grad_arguments(
    result: ArrayLike, name: str, dy: ArrayLike, axis: Axis, temperature: Any, where: ArrayLike | None
) -> tuple[Array, Array, tuple[int, ...], float, Array | None, DType]:
    """The arguments of softmax_grad and log_softmax_grad, and the gradient's dtype; `name` is that of `result`."""
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
    """The arguments of logsumexp: `x`, `b` and `where` in their common shape; `dtype` is the result's."""
    array = x if type(x) is ndarray else to_array(x, "x")
    dtypes: tuple[DType, ...] = (_result_dtypes.get(array.dtype) or result_dtype(array.dtype, "x"), array.dtype)
    weights = None
    if b is not None:
        weights = to_array(b, "b")
        dtypes = joint_dtypes(array, x, weights, b)
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
    return array, axes, weights, mask, dtypes[0] if dtype is None else to_dtype(dtype, *dtypes)


def one_pass_arguments(
    x: ArrayLike, axis: SupportsIndex, temperature: Any, where: ArrayLike | None, dtype: DTypeLike | None
) -> tuple[Array, int, float, Array | None, DType]:
    """Like `transform_arguments`, for functions of one axis."""
    array = x if type(x) is ndarray else to_array(x, "x")
    own = _result_dtypes.get(array.dtype) or result_dtype(array.dtype, "x")
    ndim = array.ndim
    axis = axis % ndim if type(axis) is int and -ndim <= axis < ndim else to_axis(axis, ndim)
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    mask = None if where is None else to_mask(where, array.shape)
    return array, axis, temperature, mask, own if dtype is None else to_dtype(dtype, own, array.dtype)


def to_indices(given: ArrayLike, shape: tuple[int, ...], axis: int) -> Array:
    """Class indices for scores of this shape: any number along `axis`, or one for each slice, without that axis."""
    indices = given if type(given) is ndarray else _to_new_indices(given, "indices")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices has dtype {indices.dtype}; expected an integer dtype")
    batch = reduced_shape(shape, (axis,))
    if indices.shape != batch and (indices.ndim != len(shape) or reduced_shape(indices.shape, (axis,)) != batch):
        raise ValueError(
            f"indices has shape {indices.shape}; expected that of x, {shape}, with any extent in axis {axis} or "
            "without that axis"
        )
    return indices


def check_indices(indices: Array, classes: int, origin: tuple[int, ...] | None = None) -> None:
    """Refuse indices outside [0, classes). If they are a block of a larger array, `origin` is its place there."""
    position = _core.find_invalid_index(indices, classes, None)
    if position is not None:
        raise ValueError(f"{_at(indices, 'indices', position, origin)}; expected a class index in [0, {classes})")


def check_targets(targets: Array, classes: int, ignore_index: int | None, origin: tuple[int, ...] | None) -> None:
    """Refuse targets that are neither in [0, classes) nor `ignore_index`; `origin` as for `check_indices`."""
    ignored = None if ignore_index is None else _as_element(ignore_index, targets.dtype)
    position = _core.find_invalid_index(targets, classes, ignored)
    if position is not None:
        _refuse_target(targets, position, classes, ignore_index, origin)


def to_k(k: SupportsIndex, classes: int) -> int:
    number = to_integer(k, "k")
    if not 1 <= number <= classes:
        raise ValueError(f"k is {shown(k)}; expected a number of classes in [1, {classes}]")
    return number


def _at(array: Array, name: str, position: int, origin: tuple[int, ...] | None = None) -> str:
    place = tuple(int(k) for k in np.unravel_index(position, array.shape))
    shown_place = [k + begin for k, begin in zip(place, origin or (0,) * array.ndim, strict=True)]
    return f"{name}{shown_place if place else ''} is {array[place]}"


def divergence_arguments(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: SupportsIndex,
    temperature: Any,
    where: ArrayLike | None,
    reduction: Any,
) -> tuple[Array, Array, int, float, Array | None, str, DType, DType]:
    """The arguments of the divergences, then the dtypes of divergence and gradient, in the core's order."""
    p = p_logits if type(p_logits) is ndarray else to_array(p_logits, "p_logits")
    q = q_logits if type(q_logits) is ndarray else to_array(q_logits, "q_logits")
    result_dtype(p.dtype, "p_logits")
    grad_dtype = result_dtype(q.dtype, "q_logits")
    dtype = joint_dtypes(p, p_logits, q, q_logits)[0]
    if p.shape != q.shape:
        raise ValueError(f"q_logits has shape {q.shape}; expected that of p_logits, {p.shape}")
    axis = to_axis(axis, p.ndim)
    if p.shape[axis] == 0:
        raise ValueError(f"p_logits has shape {p.shape}, no classes in axis {axis}; expected at least one")
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    mask = None if where is None else to_mask(where, p.shape)
    return p, q, axis, temperature, mask, to_reduction(reduction), FLOAT32 if dtype.itemsize == 2 else dtype, grad_dtype


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
    """The arguments that the losses share, and the gradient's dtype, in the order in which the core takes them."""
    logits = logits if type(logits) is ndarray else to_array(logits, "logits")
    dtype = _result_dtypes.get(logits.dtype) or result_dtype(logits.dtype, "logits")
    shape = logits.shape
    ndim = len(shape)
    axis = axis % ndim if type(axis) is int and -ndim <= axis < ndim else to_axis(axis, ndim)
    if shape[axis] == 0:
        raise ValueError(f"logits has shape {shape}, no classes in axis {axis}; expected at least one")
    if type(targets) is not ndarray:
        targets = _to_new_indices(targets, "targets")
    if targets.dtype.kind in "iu":
        ignored = None
        if ignore_index is not None:
            ignored = _as_element(to_integer(ignore_index, "ignore_index"), targets.dtype)
        position = _core.find_invalid_target(targets, logits, axis, ignored)
        if position is not None:
            _refuse_indices(targets, position, shape, axis, ignore_index)
        ignore_index = ignored
    else:
        targets = _to_probabilities(targets, shape, axis, ignore_index)
    if weight is not None:
        weight = to_weight(weight, shape[axis])
    if type(label_smoothing) is not float or not 0.0 <= label_smoothing <= 1.0:
        label_smoothing = to_label_smoothing(label_smoothing)
    if type(temperature) is not float or not 0.0 < temperature < inf:
        temperature = to_temperature(temperature)
    reduction = to_reduction(reduction)
    return logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, dtype


def calibration_arguments(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex,
    temperature: Any,
    ignore_index: Any,
    sample_weight: ArrayLike | None,
) -> tuple[Array, Array, int, float, int | None, Array | None]:
    """The arguments that the measures of calibration share."""
    if type(targets) is not ndarray:
        targets = _to_new_indices(targets, "targets")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets has dtype {targets.dtype}; expected class indices, of an integer dtype")
    checked = loss_arguments(logits, targets, axis, None, ignore_index, 0.0, temperature, "none")
    weight = None if sample_weight is None else _to_sample_weight(sample_weight, targets.shape)
    return checked[0], checked[1], checked[2], checked[6], checked[4], weight


def to_bins(bins: Any, strategy: Any) -> int:
    if not isinstance(strategy, str) or strategy not in ("uniform", "quantile"):
        raise ValueError(f"strategy is {shown(strategy)}; expected 'uniform' or 'quantile'")
    return _to_count(bins, "bins", 1)


def boosting_arguments(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
    """The scores, the class indices or probabilities, and the weights of the samples or None."""
    scores = to_array(y_pred, "y_pred")
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"y_pred has shape {scores.shape}; expected (samples, classes) with at least 2 classes; set num_class"
        )
    labels = to_real_array(y_true, "y_true")
    if labels.ndim == 1 and labels.dtype.kind not in "iu":  # both libraries keep labels as floats
        with np.errstate(all="ignore"):
            indices = labels.astype(np.intp)
            if not np.array_equal(indices, labels):
                place = int(np.argmax(indices != labels))
                raise ValueError(f"{_at(labels, 'y_true', place)}; expected a class index")
        labels = indices
    if labels.shape not in (scores.shape[:1], scores.shape):
        raise ValueError(
            f"y_true has shape {labels.shape}; expected {scores.shape[:1]} for class indices, or {scores.shape}, the "
            "shape of y_pred, for class probabilities"
        )
    if labels.ndim == 1:
        position = _core.find_invalid_index(labels, scores.shape[1], None)
        if position is not None:
            raise ValueError(f"{_at(labels, 'y_true', position)}; expected a class index in [0, {scores.shape[1]})")
    elif labels.dtype.kind in "iub":
        labels = labels.astype(FLOAT32)  # one-hot
    return scores, labels, None if sample_weight is None else _to_sample_weight(sample_weight, scores.shape[:1])


def _to_sample_weight(given: ArrayLike, batch: tuple[int, ...]) -> Array:
    weight = to_real_array(given, "sample_weight")
    if weight.shape != batch:
        raise ValueError(f"sample_weight has shape {weight.shape}; expected {batch}, one for each sample")
    with np.errstate(all="ignore"):
        good = weight.size == 0 or (weight.min() >= 0 and weight.max() < inf)
    if not good:
        position = int(np.argmin((weight >= 0) & (weight < inf)))
        raise ValueError(f"{_at(weight, 'sample_weight', position)}; expected a finite number that is not negative")
    return weight


def _to_new_indices(given: ArrayLike, name: str) -> Array:
    indices = _from_other(given, name)
    if indices.size == 0 and isinstance(given, (list, tuple)):
        indices = indices.astype(np.intp)  # NumPy makes an empty list float64; here it is an empty batch
    return indices


def _to_probabilities(targets: Array, shape: tuple[int, ...], axis: int, ignore_index: int | None) -> Array:
    targets = to_real_array(targets, "targets", _INDICES_OR_PROBABILITIES)
    if targets.dtype.kind == "b":
        raise TypeError(f"targets has dtype bool; expected {_INDICES_OR_PROBABILITIES}")
    if targets.shape != shape:
        if targets.shape == reduced_shape(shape, (axis,)):
            raise ValueError(
                f"targets has dtype {targets.dtype} and the shape of class indices, {targets.shape}, but class indices "
                f"must be integers: numpy.asarray(targets, int); class probabilities have the shape of logits, {shape}"
            )
        raise ValueError(f"targets, class probabilities, has shape {targets.shape}; expected {shape}, as logits")
    if ignore_index is not None:
        raise ValueError(f"ignore_index is {shown(ignore_index)}; expected None with class probabilities as targets")
    return targets


def _refuse_indices(
    targets: Array, position: int, shape: tuple[int, ...], axis: int, ignore_index: int | None
) -> NoReturn:
    batch = reduced_shape(shape, (axis,))
    if position < 0:
        if targets.shape == shape:
            raise ValueError(
                f"targets has dtype {targets.dtype} and the shape of class probabilities, that of logits, {shape}, but "
                f"those must be floating: numpy.asarray(targets, float); class indices have shape {batch}"
            )
        raise ValueError(
            f"targets, class indices, has shape {targets.shape}; expected {batch}, that of logits without axis {axis}"
        )
    _refuse_target(targets, position, shape[axis], ignore_index)


def _refuse_target(
    targets: Array, position: int, classes: int, ignore_index: int | None, origin: tuple[int, ...] | None = None
) -> NoReturn:
    message = f"{_at(targets, 'targets', position, origin)}; expected a class index in [0, {classes})"
    if ignore_index is not None:
        message += " or ignore_index"
        if _as_element(index(ignore_index), targets.dtype) is None:
            message += f", {shown(ignore_index)}, which cannot occur in {targets.dtype}"
    raise ValueError(message)


def _as_element(value: int, dtype: DType) -> int | None:
    """An integer as an element of `dtype`, wrapped if beyond int64; None if `dtype` cannot hold it."""
    bits = 8 * dtype.itemsize
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if dtype.kind == "i" else (0, 1 << bits)
    if not low <= value < high:
        return None
    return value - (1 << 64) if value >= 1 << 63 else value


def to_weight(given: ArrayLike, classes: int) -> Array:
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
    """`upstream` as a float, or without reduction as an array of the loss's shape."""
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


def sample_arguments(
    x: ArrayLike,
    rng: Any,
    axis: SupportsIndex,
    size: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    where: ArrayLike | None,
) -> tuple[Array, tuple[int, ...], int | None, float, int | None, float, float, Array | None]:
    """The arguments of sample except `rng`, in the order in which the core takes them."""
    array = x if type(x) is ndarray else to_array(x, "x")
    if array.dtype not in _result_dtypes:
        result_dtype(array.dtype, "x")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is {shown(rng)}; expected a numpy.random.Generator, as numpy.random.default_rng() makes")
    number = to_integer(axis, "axis")
    axes = () if array.ndim == 0 and number in (-1, 0) else (to_axis(number, array.ndim),)
    draws = None if size is None else _to_count(size, "size", 0)
    k = None if top_k is None else _to_count(top_k, "top_k", 1)
    p = 1.0 if top_p is None else _number(top_p, "top_p")
    if not 0.0 < p <= 1.0:
        raise ValueError(f"top_p is {shown(top_p)}; expected a number in (0, 1]")
    m = 0.0 if min_p is None else _number(min_p, "min_p")
    if not 0.0 <= m <= 1.0:
        raise ValueError(f"min_p is {shown(min_p)}; expected a number in [0, 1]")
    mask = None if where is None else to_mask(where, array.shape)
    return array, axes, draws, to_temperature(temperature), k, p, m, mask


def _to_count(value: Any, name: str, least: int) -> int:
    """`value` as an integer, at least `least`; one beyond 63 bits becomes the largest of 63 bits."""
    count = to_integer(value, name)
    if count < least:
        raise ValueError(f"{name} is {shown(value)}; expected an integer of at least {least}")
    return min(count, (1 << 63) - 1)


def refuse_slice(x: Array, axes: tuple[int, ...], mask: Array | None, position: int) -> NoReturn:
    """Raise an error that says why nothing can be drawn from the slice at `position` of the batch."""
    place = iter(np.unravel_index(position, reduced_shape(x.shape, axes)))
    index = tuple(slice(None) if k in axes else int(next(place)) for k in range(x.ndim))
    scores = x[index] if mask is None else x[index][mask[index]]
    with np.errstate(all="ignore"):
        if scores.size == 0:
            found = "no classes" if mask is None or mask[index].size == 0 else "no class for which where is True"
        elif np.isnan(scores).any():
            found = "a NaN"
        elif (scores == inf).any():
            found = "+inf"
        else:
            found = "nothing but -inf"
    shown_index = ", ".join(":" if k in axes else str(i) for k, i in enumerate(index))
    raise ValueError(
        f"x{f'[{shown_index}]' if index else ''} has {found}; expected scores that are finite or -inf, not all -inf"
    )
