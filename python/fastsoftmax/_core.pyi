"""The compiled core: every argument is already checked and converted by `_arguments`.

The class-shaped arrays of one call (`x`, `out`, `where`, `y`, `dy`, `b`, ...) all have one shape; broadcasting is done
by zero strides. Any strides, alignment and byte order will do, no array is copied. Element types: bool, every integer,
float16, bfloat16, float32, float64 in; the four floating types out. `axes` are sorted and not negative. A call computes
in float64 if the input or the output asks for it (float64, integers), else in float32. `out` may be the very same view
as an input of the same type; any other overlap is the caller's to resolve.
"""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]

def softmax(x: _Array, out: _Array, axes: tuple[int, ...], temperature: float, where: _Array | None, /) -> None: ...
def log_softmax(x: _Array, out: _Array, axes: tuple[int, ...], temperature: float, where: _Array | None, /) -> None: ...
def logsumexp(
    x: _Array,
    out: _Array,  # shape of the batch (x's axes without `axes`); 0-d for all axes
    sign: _Array | None,  # None, or as out: receives -1, 0, 1 or NaN
    axes: tuple[int, ...],
    b: _Array | None,  # broadcast to x's shape
    where: _Array | None,
    /,
) -> None: ...
def softmax_grad(
    y: _Array, dy: _Array, out: _Array, axes: tuple[int, ...], temperature: float, where: _Array | None, /
) -> None: ...
def log_softmax_grad(
    logp: _Array, dy: _Array, out: _Array, axes: tuple[int, ...], temperature: float, where: _Array | None, /
) -> None: ...
def cross_entropy(
    logits: _Array,
    targets: _Array,  # integers of the batch's shape, all in range or ignored; or probabilities of logits' shape
    axis: int,
    weight: _Array | None,  # float64, contiguous, shape (C,)
    ignore_index: int | None,  # as int64: a uint64 beyond its range is wrapped, as the targets are
    label_smoothing: float,
    temperature: float,
    reduction: str,
    upstream: float | _Array,  # an array (any real element type, loss's shape) only with reduction "none"
    loss: _Array | None,  # float32 or float64; 0-d, or the batch's shape with reduction "none"
    grad: _Array | None,  # logits' shape and dtype
    /,
) -> None: ...
def find_invalid_target(targets: _Array, classes: int, ignore_index: int | None, /) -> int:
    """The C-order position of the first index outside [0, classes) that is not `ignore_index`; -1 if there is none."""

def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def describe() -> dict[str, Any]:
    """compiler: str, openmp: str | None, targets_built, targets_usable: tuple[str, ...], target: str."""

def exp(x: _Array, out: _Array, target: str, /) -> None:
    """For tests: the kernels' own exponential on contiguous float32 or float64, in the named target."""

def log1p(x: _Array, out: _Array, target: str, /) -> None:
    """For tests: the kernels' own log(1 + x), x >= 0, of float64; to float32 by the short series, or to float64."""
