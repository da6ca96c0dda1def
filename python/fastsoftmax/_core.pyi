"""The compiled core. Its callers have checked and converted every argument, with `_arguments`.

All arrays with the class axis in a call (`x`, `out`, `where`, `y`, `dy`, `b`, ...) have the same shape; arrays that are
broadcast have strides of 0. Any strides, alignment and byte order are allowed, and no array is copied. Inputs may be
bool, any integer, float16, bfloat16, float32 or float64; outputs may be any of the four floating types. `axes` are
sorted and not negative. A call computes in float64 if an input or the output asks for it (float64, integers), else in
float32. `out` may be exactly the same view as an input of the same type; the caller must resolve any other overlap.
Without `out`, the result is a new array of the given dtype, or a scalar if it is 0-d.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_DType = np.dtype[Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

__version__: str

def softmax(
    x: _Array, out: _Array | None, dtype: _DType, axes: tuple[int, ...], temperature: float, where: _Array | None, /
) -> _Array: ...
def log_softmax(
    x: _Array, out: _Array | None, dtype: _DType, axes: tuple[int, ...], temperature: float, where: _Array | None, /
) -> _Array: ...
def logsumexp(
    x: _Array,
    out: _Array | None,  # shape of the batch (x's axes without `axes`, or with extent 1 there)
    dtype: _DType,
    axes: tuple[int, ...],
    b: _Array | None,  # broadcast to x's shape
    where: _Array | None,
    keepdims: bool,
    return_sign: bool,
    /,
) -> Any:
    """The logarithms; with `return_sign` a tuple of them and the signs, -1, 0, 1 or NaN."""

def entropy(
    x: _Array,
    out: _Array | None,  # as for logsumexp
    dtype: _DType,
    axes: tuple[int, ...],
    temperature: float,
    where: _Array | None,
    keepdims: bool,
    /,
) -> Any: ...
def log_softmax_at(
    x: _Array,
    indices: _Array,  # integers: x's shape with any extent along `axis`, or without that axis
    out: _Array | None,  # the shape of `indices`
    dtype: _DType,
    axis: int,
    temperature: float,
    where: _Array | None,
    /,
) -> Any:
    """The log-probabilities; None if an index is outside [0, C), and then `out` may hold anything."""

def log_softmax_top_k(
    x: _Array,
    k: int,  # from 1 to the number of classes
    dtype: _DType,
    axis: int,
    temperature: float,
    where: _Array | None,
    /,
) -> tuple[_Array, _Array]:
    """Log-probabilities and their classes (intp): x's shape with extent k along `axis`."""

def sample(
    x: _Array,
    axes: tuple[int, ...],
    size: int | None,  # None: one draw of each slice, without an axis
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    where: _Array | None,
    rng: np.random.Generator,  # called once, after every slice is known to have probabilities
    /,
) -> Any:
    """The classes drawn; or an int, the C-order position of the first slice that has no probabilities."""

def softmax_grad(
    y: _Array,
    dy: _Array,
    out: _Array | None,
    dtype: _DType,
    axes: tuple[int, ...],
    temperature: float,
    where: _Array | None,
    /,
) -> _Array: ...
def log_softmax_grad(
    logp: _Array,
    dy: _Array,
    out: _Array | None,
    dtype: _DType,
    axes: tuple[int, ...],
    temperature: float,
    where: _Array | None,
    /,
) -> _Array: ...
def cross_entropy(
    logits: _Array,
    targets: _Array,  # integers of the batch's shape, all in range or ignored; or probabilities of logits' shape
    axis: int,
    weight: _Array | None,  # float64, contiguous, shape (C,)
    ignore_index: int | None,  # as int64: a uint64 beyond its range is wrapped, like the targets
    label_smoothing: float,
    temperature: float,
    reduction: str,
    dtype: _DType,  # of the gradient; the loss is float32 where this is half precision
    upstream: float | _Array,  # an array (any real element type, loss's shape) only with reduction "none"
    with_loss: bool,
    with_grad: bool,
    out: _Array | None,  # for the gradient
    /,
) -> tuple[Any, Any]:
    """The loss and the gradient; None for one that is not asked for."""

def cross_entropy_with_grad_hess(
    logits: _Array,
    targets: _Array,
    axis: int,
    weight: _Array | None,
    ignore_index: int | None,
    label_smoothing: float,
    temperature: float,
    reduction: str,
    dtype: _DType,
    upstream: float | _Array,
    out: _Array | None,
    hess_out: _Array | None,  # without overlap with the logits
    /,
) -> tuple[Any, _Array, _Array]: ...
def kl_divergence(
    p_logits: _Array,
    q_logits: _Array,
    axis: int,
    temperature: float,
    where: _Array | None,
    reduction: str,
    dtype: _DType,  # of the divergence
    grad_dtype: _DType,
    upstream: float | _Array,
    with_grad: bool,
    out: _Array | None,  # for the gradient
    /,
) -> tuple[Any, Any]:
    """The divergence, and the gradient with respect to `q_logits` or None."""

# Totals of pieces: C-contiguous arrays of `Total` (cpp/kernels/kernels.hpp). They are never changed, results are new
# arrays. `in_double`: the sums are those of float64, as from widened_totals.
def updated_totals(
    totals: _Array,  # the batch's shape
    in_double: bool,
    x: _Array,
    axes: tuple[int, ...],
    temperature: float,
    where: _Array | None,
    /,
) -> _Array: ...
def merged_totals(totals: _Array, in_double: bool, others: _Array, temperature: float, /) -> _Array: ...
def widened_totals(totals: _Array, temperature: float, /) -> _Array: ...
def logsumexp_of_totals(totals: _Array, in_double: bool, dtype: _DType, temperature: float, /) -> _Array: ...
def entropy_of_totals(totals: _Array, in_double: bool, dtype: _DType, temperature: float, /) -> _Array: ...
def softmax_of_part(
    totals: _Array,
    in_double: bool,  # the input or the output is float64
    x: _Array,
    out: _Array | None,
    dtype: _DType,
    axes: tuple[int, ...],
    temperature: float,
    where: _Array | None,
    /,
) -> _Array: ...
def log_softmax_of_part(
    totals: _Array,
    in_double: bool,
    x: _Array,
    out: _Array | None,
    dtype: _DType,
    axes: tuple[int, ...],
    temperature: float,
    where: _Array | None,
    /,
) -> _Array: ...
def same_shape(a: _Array, b: _Array, /) -> bool: ...
def find_invalid_target(targets: _Array, logits: _Array, axis: int, ignore_index: int | None, /) -> int | None:
    """The C-order position of the first index that is neither that of a class nor `ignore_index`, None if there is
    none; -1 if the shape is not that of the logits without the axis.
    """

def find_invalid_index(indices: _Array, classes: int, ignore_index: int | None, /) -> int | None:
    """The C-order position of the first index that is neither in [0, classes) nor `ignore_index`, None if there is
    none.
    """

def is_plain_out(
    out: object,
    shape: tuple[int, ...],
    dtype: _DType,
    in_place: tuple[object, ...],
    inputs: tuple[object, ...],
    /,
) -> bool:
    """Whether the core can certainly write to `out`: an exact ndarray of this shape and dtype, writeable, contiguous,
    and without overlap with the arrays in `inputs` and `in_place`, unless it is itself one of `in_place`.
    """

def with_shortcut(function: _Function, /) -> _Function:
    """Wrap the function so that its everyday call goes straight to the core."""

def set_num_threads(n: int, /) -> int: ...
def set_num_threads_here(n: int, /) -> int: ...
def get_num_threads() -> int: ...
def describe() -> dict[str, Any]:
    """compiler: str, openmp: str | None, targets_built, targets_usable: tuple[str, ...], target: str."""

def signatures() -> dict[str, dict[str, bool]]:
    """For the benchmark: whether each operation reads a second array with the class axis ("second"), reads labels
    ("labels"), writes an array with the class axis ("output").
    """

def exp(x: _Array, out: _Array, target: str, /) -> float:
    """For tests: compute the kernels' own exponential of contiguous float32 or float64, with the named target.

    Returns the factor by which the results are too large.
    """

def log1p(x: _Array, out: _Array, target: str, /) -> None:
    """For tests: compute the kernels' own log(1 + x) of float64 x >= 0: float64, or float32 by the short series."""
