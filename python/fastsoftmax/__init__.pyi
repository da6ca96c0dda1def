"""The types of the public functions, as type checkers and editors see them; `reference` has the same.

They are in a stub because the overloads are longer than the code they describe. Type checkers take the first overload
that fits. The one that keeps the dtype comes first, because an array of unknown dtype fits all. Three things cannot be
expressed: that a 0-d array gives a scalar, since an overload for it would fit all arrays of unknown shape; bfloat16,
which ml_dtypes types as a np.generic; float32 in an array.array or a memoryview, typed as sequences of numbers.
"""

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import boosting as boosting
from . import calibration as calibration
from . import reference as reference
from ._arguments import Axis, Flag
from ._pieces import LogSumExp as LogSumExp
from ._runtime import get_num_threads as get_num_threads
from ._runtime import num_threads as num_threads
from ._runtime import set_num_threads as set_num_threads
from ._runtime import show_config as show_config

__all__ = [
    "LogSumExp",
    "__version__",
    "boosting",
    "calibration",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "entropy",
    "get_num_threads",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "log_softmax_at",
    "log_softmax_grad",
    "log_softmax_top_k",
    "logsumexp",
    "num_threads",
    "reference",
    "sample",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_grad",
]

__version__: str

_F = TypeVar("_F", bound=np.floating[Any])
_Wide = TypeVar("_Wide", bound=np.float32 | np.float64)
_Out = TypeVar("_Out", bound=NDArray[Any])

# Not recursive, because a str, a sequence of str, would fit.
_Numbers: TypeAlias = Sequence[float | Sequence[float | Sequence[float | Sequence[float]]]]
_Float64Arrays: TypeAlias = NDArray[np.integer[Any] | np.bool] | _Numbers
_Float64Scalar: TypeAlias = float | np.integer[Any] | np.bool
_Scalar: TypeAlias = float | np.generic
_Indices: TypeAlias = NDArray[np.integer[Any]] | Sequence[int | Sequence[int | Sequence[int | Sequence[int]]]]
_Index: TypeAlias = int | np.integer[Any]
_DType: TypeAlias = type[_F] | np.dtype[_F]

# The formatter would give each parameter a line; this way the overloads of a function can be seen together.
# fmt: off
@overload
def softmax(
    x: NDArray[_F], axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def softmax(
    x: _Float64Arrays, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def softmax(
    x: _F, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, dtype: None = None,
    out: None = None,
) -> _F: ...
@overload
def softmax(
    x: _Float64Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: None = None, out: None = None,
) -> np.float64: ...
@overload
def softmax(
    x: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, dtype: _DType[_F],
    out: None = None,
) -> _F: ...
@overload
def softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: _DType[_F], out: None = None,
) -> NDArray[_F]: ...
@overload
def softmax(
    x: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: DTypeLike | None = None, out: None = None,
) -> Any: ...
@overload
def softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: DTypeLike | None = None, out: None = None,
) -> NDArray[Any]: ...
@overload
def softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: DTypeLike | None = None, out: _Out,
) -> _Out: ...

@overload
def log_softmax(
    x: NDArray[_F], axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax(
    x: _Float64Arrays, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def log_softmax(
    x: _F, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, dtype: None = None,
    out: None = None,
) -> _F: ...
@overload
def log_softmax(
    x: _Float64Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: None = None, out: None = None,
) -> np.float64: ...
@overload
def log_softmax(
    x: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, dtype: _DType[_F],
    out: None = None,
) -> _F: ...
@overload
def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: _DType[_F], out: None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax(
    x: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: DTypeLike | None = None, out: None = None,
) -> Any: ...
@overload
def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: DTypeLike | None = None, out: None = None,
) -> NDArray[Any]: ...
@overload
def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    dtype: DTypeLike | None = None, out: _Out,
) -> _Out: ...

@overload
def logsumexp(
    x: NDArray[_F] | _F, axis: None = None, *, b: None = None, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, return_sign: Literal[False] = False, dtype: None = None, out: None = None,
) -> _F: ...
@overload
def logsumexp(
    x: _Float64Arrays | _Float64Scalar, axis: None = None, *, b: None = None, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, return_sign: Literal[False] = False, dtype: None = None, out: None = None,
) -> np.float64: ...
@overload
def logsumexp(
    x: ArrayLike, axis: None = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, return_sign: Literal[False] = False, dtype: _DType[_F], out: None = None,
) -> _F: ...
@overload
def logsumexp(
    x: NDArray[_F], axis: Axis = None, *, b: None = None, where: ArrayLike | None = None, keepdims: Literal[True],
    return_sign: Literal[False] = False, dtype: None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def logsumexp(
    x: _Float64Arrays, axis: Axis = None, *, b: None = None, where: ArrayLike | None = None, keepdims: Literal[True],
    return_sign: Literal[False] = False, dtype: None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def logsumexp(
    x: NDArray[Any] | _Numbers, axis: Axis = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Literal[True], return_sign: Literal[False] = False, dtype: _DType[_F], out: None = None,
) -> NDArray[_F]: ...
@overload
def logsumexp(
    x: NDArray[_F] | _F, axis: None = None, *, b: None = None, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, return_sign: Literal[True], dtype: None = None, out: None = None,
) -> tuple[_F, _F]: ...
@overload
def logsumexp(
    x: _Float64Arrays | _Float64Scalar, axis: None = None, *, b: None = None, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, return_sign: Literal[True], dtype: None = None, out: None = None,
) -> tuple[np.float64, np.float64]: ...
@overload
def logsumexp(
    x: ArrayLike, axis: None = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, return_sign: Literal[True], dtype: _DType[_F], out: None = None,
) -> tuple[_F, _F]: ...
@overload
def logsumexp(
    x: NDArray[_F], axis: Axis = None, *, b: None = None, where: ArrayLike | None = None, keepdims: Literal[True],
    return_sign: Literal[True], dtype: None = None, out: None = None,
) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def logsumexp(
    x: _Float64Arrays, axis: Axis = None, *, b: None = None, where: ArrayLike | None = None, keepdims: Literal[True],
    return_sign: Literal[True], dtype: None = None, out: None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def logsumexp(
    x: NDArray[Any] | _Numbers, axis: Axis = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Literal[True], return_sign: Literal[True], dtype: _DType[_F], out: None = None,
) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Flag = False, return_sign: Literal[False] = False, dtype: DTypeLike | None = None, out: _Out,
) -> _Out: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Flag = False, return_sign: Literal[True], dtype: DTypeLike | None = None, out: None = None,
) -> tuple[Any, Any]: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Flag = False, return_sign: Literal[True], dtype: DTypeLike | None = None, out: _Out,
) -> tuple[_Out, Any]: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = None, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: Flag = False, return_sign: Flag = False, dtype: DTypeLike | None = None, out: NDArray[Any] | None = None,
) -> Any: ...

@overload
def entropy(
    x: _F, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, keepdims: Flag = False,
    dtype: None = None, out: None = None,
) -> _F: ...
@overload
def entropy(
    x: _Float64Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Flag = False, dtype: None = None, out: None = None,
) -> np.float64: ...
@overload
def entropy(
    x: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Flag = False, dtype: _DType[_F], out: None = None,
) -> _F: ...
@overload
def entropy(
    x: NDArray[_F], axis: None, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, dtype: None = None, out: None = None,
) -> _F: ...
@overload
def entropy(
    x: _Float64Arrays, axis: None, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, dtype: None = None, out: None = None,
) -> np.float64: ...
@overload
def entropy(
    x: ArrayLike, axis: None, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Literal[False] = False, dtype: _DType[_F], out: None = None,
) -> _F: ...
@overload
def entropy(
    x: NDArray[_F], axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Literal[True], dtype: None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def entropy(
    x: _Float64Arrays, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Literal[True], dtype: None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def entropy(
    x: NDArray[Any] | _Numbers, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Literal[True], dtype: _DType[_F], out: None = None,
) -> NDArray[_F]: ...
@overload
def entropy(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Flag = False, dtype: DTypeLike | None = None, out: _Out,
) -> _Out: ...
@overload
def entropy(
    x: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    keepdims: Flag = False, dtype: DTypeLike | None = None, out: None = None,
) -> Any: ...

@overload
def log_softmax_at(
    x: NDArray[_F], indices: _Indices, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax_at(
    x: _Float64Arrays, indices: _Indices, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def log_softmax_at(
    x: NDArray[Any] | _Numbers, indices: _Indices, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: _DType[_F], out: None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax_at(
    x: NDArray[_F], indices: _Index, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: None = None, out: None = None,
) -> _F: ...
@overload
def log_softmax_at(
    x: _Float64Arrays, indices: _Index, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: None = None, out: None = None,
) -> np.float64: ...
@overload
def log_softmax_at(
    x: NDArray[Any] | _Numbers, indices: _Index, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: _DType[_F], out: None = None,
) -> _F: ...
@overload
def log_softmax_at(
    x: ArrayLike, indices: ArrayLike, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: DTypeLike | None = None, out: _Out,
) -> _Out: ...
@overload
def log_softmax_at(
    x: ArrayLike, indices: ArrayLike, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: DTypeLike | None = None, out: None = None,
) -> Any: ...

@overload
def log_softmax_top_k(
    x: NDArray[_F], k: SupportsIndex, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: None = None,
) -> tuple[NDArray[_F], NDArray[np.intp]]: ...
@overload
def log_softmax_top_k(
    x: _Float64Arrays, k: SupportsIndex, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: None = None,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]: ...
@overload
def log_softmax_top_k(
    x: NDArray[Any] | _Numbers, k: SupportsIndex, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: _DType[_F],
) -> tuple[NDArray[_F], NDArray[np.intp]]: ...
@overload
def log_softmax_top_k(
    x: ArrayLike, k: SupportsIndex, axis: SupportsIndex = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, dtype: DTypeLike | None = None,
) -> tuple[NDArray[Any], NDArray[np.intp]]: ...

@overload
def sample(
    x: _Scalar, rng: np.random.Generator, axis: SupportsIndex = -1, *, size: None = None,
    temperature: SupportsFloat = 1.0, top_k: SupportsIndex | None = None, top_p: SupportsFloat | None = None,
    min_p: SupportsFloat | None = None, where: ArrayLike | None = None,
) -> np.intp: ...
@overload
def sample(
    x: ArrayLike, rng: np.random.Generator, axis: SupportsIndex = -1, *, size: SupportsIndex,
    temperature: SupportsFloat = 1.0, top_k: SupportsIndex | None = None, top_p: SupportsFloat | None = None,
    min_p: SupportsFloat | None = None, where: ArrayLike | None = None,
) -> NDArray[np.intp]: ...
@overload
def sample(
    x: ArrayLike, rng: np.random.Generator, axis: SupportsIndex = -1, *, size: SupportsIndex | None = None,
    temperature: SupportsFloat = 1.0, top_k: SupportsIndex | None = None, top_p: SupportsFloat | None = None,
    min_p: SupportsFloat | None = None, where: ArrayLike | None = None,
) -> Any: ...

@overload
def softmax_grad(
    y: ArrayLike, dy: NDArray[_F], axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: None = None,
) -> NDArray[_F]: ...
@overload
def softmax_grad(
    y: ArrayLike, dy: _Float64Arrays, axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def softmax_grad(
    y: ArrayLike, dy: _F, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: None = None,
) -> _F: ...
@overload
def softmax_grad(
    y: ArrayLike, dy: _Float64Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: None = None,
) -> np.float64: ...
@overload
def softmax_grad(
    y: ArrayLike, dy: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: None = None,
) -> Any: ...
@overload
def softmax_grad(
    y: ArrayLike, dy: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: None = None,
) -> NDArray[Any]: ...
@overload
def softmax_grad(
    y: ArrayLike, dy: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: _Out,
) -> _Out: ...

@overload
def log_softmax_grad(
    logp: ArrayLike, dy: NDArray[_F], axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax_grad(
    logp: ArrayLike, dy: _Float64Arrays, axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def log_softmax_grad(
    logp: ArrayLike, dy: _F, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: None = None,
) -> _F: ...
@overload
def log_softmax_grad(
    logp: ArrayLike, dy: _Float64Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: None = None,
) -> np.float64: ...
@overload
def log_softmax_grad(
    logp: ArrayLike, dy: _Scalar, axis: Axis = -1, *, temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    out: None = None,
) -> Any: ...
@overload
def log_softmax_grad(
    logp: ArrayLike, dy: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: None = None,
) -> NDArray[Any]: ...
@overload
def log_softmax_grad(
    logp: ArrayLike, dy: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None, out: _Out,
) -> _Out: ...

@overload
def cross_entropy(
    logits: NDArray[_Wide], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> _Wide: ...
@overload
def cross_entropy(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.float64: ...
@overload
def cross_entropy(
    logits: NDArray[np.float16], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.float32: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Any: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: int | np.integer[Any], axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"],
) -> Any: ...
@overload
def cross_entropy(
    logits: NDArray[_Wide], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"],
) -> NDArray[_Wide]: ...
@overload
def cross_entropy(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"],
) -> NDArray[np.float64]: ...
@overload
def cross_entropy(
    logits: NDArray[np.float16], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"],
) -> NDArray[np.float32]: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"],
) -> NDArray[Any]: ...

@overload
def cross_entropy_grad(
    logits: NDArray[_F], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> NDArray[_F]: ...
@overload
def cross_entropy_grad(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> NDArray[np.float64]: ...
@overload
def cross_entropy_grad(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> NDArray[Any]: ...
@overload
def cross_entropy_grad(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: _Out,
) -> _Out: ...

@overload
def cross_entropy_with_grad(
    logits: NDArray[_Wide], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[_Wide, NDArray[_Wide]]: ...
@overload
def cross_entropy_with_grad(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[np.float64, NDArray[np.float64]]: ...
@overload
def cross_entropy_with_grad(
    logits: NDArray[np.float16], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[np.float32, NDArray[np.float16]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[Any, NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: int | np.integer[Any], axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[Any, NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: NDArray[_Wide], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[_Wide], NDArray[_Wide]]: ...
@overload
def cross_entropy_with_grad(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def cross_entropy_with_grad(
    logits: NDArray[np.float16], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float16]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: _Out,
) -> tuple[Any, _Out]: ...

@overload
def cross_entropy_with_grad_hess(
    logits: NDArray[_Wide], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[_Wide, NDArray[_Wide], NDArray[_Wide]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[np.float64, NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: NDArray[np.float16], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[np.float32, NDArray[np.float16], NDArray[np.float16]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["mean", "sum"] = "mean", upstream: ArrayLike | None = None, out: None = None,
) -> tuple[Any, NDArray[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: int | np.integer[Any], axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[Any, NDArray[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: NDArray[_Wide], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[_Wide], NDArray[_Wide], NDArray[_Wide]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: _Float64Arrays, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: NDArray[np.float16], targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float16], NDArray[np.float16]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none"], upstream: ArrayLike | None = None, out: None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None, label_smoothing: SupportsFloat = 0.0, temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean", upstream: ArrayLike | None = None,
    out: tuple[NDArray[Any] | None, NDArray[Any] | None],
) -> tuple[Any, NDArray[Any], NDArray[Any]]: ...


@overload
def kl_divergence(
    p_logits: NDArray[_Wide], q_logits: NDArray[_Wide], axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> _Wide: ...
@overload
def kl_divergence(
    p_logits: _Float64Arrays, q_logits: _Float64Arrays, axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> np.float64: ...
@overload
def kl_divergence(
    p_logits: NDArray[np.float16], q_logits: NDArray[np.float16], axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> np.float32: ...
@overload
def kl_divergence(
    p_logits: ArrayLike, q_logits: ArrayLike, axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Any: ...

@overload
def kl_divergence_with_grad(
    p_logits: NDArray[_Wide], q_logits: NDArray[_Wide], axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    upstream: ArrayLike | None = None, out: None = None,
) -> tuple[_Wide, NDArray[_Wide]]: ...
@overload
def kl_divergence_with_grad(
    p_logits: _Float64Arrays, q_logits: _Float64Arrays, axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    upstream: ArrayLike | None = None, out: None = None,
) -> tuple[np.float64, NDArray[np.float64]]: ...
@overload
def kl_divergence_with_grad(
    p_logits: NDArray[np.float16], q_logits: NDArray[np.float16], axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    upstream: ArrayLike | None = None, out: None = None,
) -> tuple[np.float32, NDArray[np.float16]]: ...
@overload
def kl_divergence_with_grad(
    p_logits: ArrayLike, q_logits: ArrayLike, axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None, out: None = None,
) -> tuple[Any, NDArray[Any]]: ...
@overload
def kl_divergence_with_grad(
    p_logits: ArrayLike, q_logits: ArrayLike, axis: SupportsIndex = -1, *,
    temperature: SupportsFloat = 1.0, where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None, out: _Out,
) -> tuple[Any, _Out]: ...
