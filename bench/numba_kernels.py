"""The kernels of the contender numba. Like most hand-written kernels, they lack the steps that make fastsoftmax exact.

Each is written out in full: with common parts in functions, kernels with a logarithm took up to a fifth longer.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, njit, prange
from numba.extending import overload

Kernel = Callable[..., Any]

BLOCK = 256  # neighbouring slices at a time where the class axis is not the last: their sums stay in the cache

_jit: Callable[[Kernel], Kernel] = njit(parallel=True, fastmath=True, cache=False, error_model="numpy")
# For functions that the kernels call.
_jit_part: Callable[[Kernel], Kernel] = njit(fastmath=True, error_model="numpy")


def exp(x: Any) -> Any:
    """exp(x) for x <= 0. LLVM vectorises a loop over this function; a loop over math.exp becomes calls of libm."""


@_jit_part
def _exp32(x: Any) -> Any:
    t = max(x, np.float32(-87)) * np.float32(1.44269504)
    n = np.floor(t + np.float32(0.5))
    f = t - n
    p = np.float32(0.00132764726) * f + np.float32(0.00967554134)
    p = p * f + np.float32(0.0555071327)
    p = p * f + np.float32(0.240221197)
    p = p * f + np.float32(0.693146967)
    bits = np.float32(p * f + np.float32(1)).view(np.int32)
    return np.int32(bits + (np.int32(n) << np.int32(23))).view(np.float32)


@_jit_part
def _exp64(x: Any) -> Any:
    t = max(x, -708.0) * 1.4426950408889634
    n = np.floor(t + 0.5)
    f = t - n
    p = 7.03727953058280352e-9 * f + 1.02085379045521639e-7
    p = p * f + 1.32156628318461028e-6
    p = p * f + 0.0000152526581165613843
    p = p * f + 0.000154035299611359555
    p = p * f + 0.00133335582285614755
    p = p * f + 0.00961812910803458869
    p = p * f + 0.0555041086644588332
    p = p * f + 0.240226506959087678
    p = p * f + 0.693147180559949775
    bits = np.float64(p * f + 1.0).view(np.int64)
    return np.int64(bits + (np.int64(n) << np.int64(52))).view(np.float64)


_overload_exp: Callable[[Kernel], Kernel] = overload(exp)


@_overload_exp
def _exp(x: Any) -> Kernel:
    part = _exp32 if x == float32 else _exp64

    def typed(x: Any) -> Any:
        return part(x)

    return typed


@_jit
def softmax_rows(x: Any, out: Any) -> None:
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            e = exp(x[i, c] - largest)
            out[i, c] = e
            total += e
        scale = x.dtype.type(1) / total
        for c in range(x.shape[1]):
            out[i, c] *= scale


@_jit
def log_softmax_rows(x: Any, out: Any) -> None:
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            total += exp(x[i, c] - largest)
        shift = largest + math.log(total)
        for c in range(x.shape[1]):
            out[i, c] = x[i, c] - shift


@_jit
def logsumexp_rows(x: Any, out: Any) -> None:
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            total += exp(x[i, c] - largest)
        out[i] = largest + math.log(total)


@_jit
def entropy_rows(x: Any, out: Any) -> None:
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = weighed = x.dtype.type(0)
        for c in range(x.shape[1]):
            d = x[i, c] - largest
            e = exp(d)
            total += e
            weighed += e * d
        out[i] = math.log(total) - weighed / total


@_jit
def log_softmax_at_rows(x: Any, targets: Any) -> Any:
    out = np.empty(x.shape[0], x.dtype)
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            total += exp(x[i, c] - largest)
        out[i] = x[i, targets[i]] - largest - math.log(total)
    return out


@_jit
def softmax_grad_rows(y: Any, dy: Any, out: Any) -> None:
    for i in prange(y.shape[0]):
        dot = y.dtype.type(0)
        for c in range(y.shape[1]):
            dot += y[i, c] * dy[i, c]
        for c in range(y.shape[1]):
            out[i, c] = y[i, c] * (dy[i, c] - dot)


@_jit
def log_softmax_grad_rows(y: Any, dy: Any, out: Any) -> None:
    for i in prange(y.shape[0]):
        total = y.dtype.type(0)
        for c in range(y.shape[1]):
            total += dy[i, c]
        for c in range(y.shape[1]):
            out[i, c] = dy[i, c] - exp(y[i, c]) * total


@_jit
def cross_entropy_rows(x: Any, targets: Any) -> Any:
    loss = 0.0
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            total += exp(x[i, c] - largest)
        loss += largest + math.log(total) - x[i, targets[i]]
    return loss / x.shape[0]


@_jit
def cross_entropy_with_grad_rows(x: Any, targets: Any, grad: Any) -> Any:
    loss = 0.0
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            e = exp(x[i, c] - largest)
            grad[i, c] = e
            total += e
        scale = x.dtype.type(1) / (total * x.dtype.type(x.shape[0]))
        for c in range(x.shape[1]):
            grad[i, c] *= scale
        grad[i, targets[i]] -= x.dtype.type(1) / x.dtype.type(x.shape[0])
        loss += largest + math.log(total) - x[i, targets[i]]
    return loss / x.shape[0]


@_jit
def cross_entropy_with_grad_hess_rows(x: Any, targets: Any, grad: Any, hess: Any) -> Any:
    loss = 0.0
    share = x.dtype.type(1) / x.dtype.type(x.shape[0])
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        total = x.dtype.type(0)
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        for c in range(x.shape[1]):
            e = exp(x[i, c] - largest)
            grad[i, c] = e
            total += e
        scale = x.dtype.type(1) / total
        for c in range(x.shape[1]):
            p = grad[i, c] * scale
            grad[i, c] = p * share
            hess[i, c] = p * (x.dtype.type(1) - p) * share
        grad[i, targets[i]] -= share
        loss += largest + math.log(total) - x[i, targets[i]]
    return loss / x.shape[0]


@_jit
def kl_divergence_rows(x: Any, y: Any) -> Any:
    divergence = 0.0
    for i in prange(x.shape[0]):
        largest, largest_y = x[i, 0], y[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
            largest_y = max(largest_y, y[i, c])
        total, total_y, weighed = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
        for c in range(x.shape[1]):
            d, d_y = x[i, c] - largest, y[i, c] - largest_y
            e = exp(d)
            total += e
            total_y += exp(d_y)
            weighed += e * (d - d_y)
        divergence += weighed / total - math.log(total) + math.log(total_y)
    return divergence / x.shape[0]


@_jit
def softmax_columns(x: Any, out: Any) -> None:
    outer, classes, inner = x.shape
    blocks = (inner + BLOCK - 1) // BLOCK
    for task in prange(outer * blocks):
        o, start = task // blocks, task % blocks * BLOCK
        width = min(BLOCK, inner - start)
        largest = x[o, 0, start : start + width].copy()
        total = np.zeros(width, x.dtype)
        for c in range(1, classes):
            for i in range(width):
                largest[i] = max(largest[i], x[o, c, start + i])
        for c in range(classes):
            for i in range(width):
                e = exp(x[o, c, start + i] - largest[i])
                out[o, c, start + i] = e
                total[i] += e
        for i in range(width):
            total[i] = x.dtype.type(1) / total[i]
        for c in range(classes):
            for i in range(width):
                out[o, c, start + i] *= total[i]


@_jit
def log_softmax_columns(x: Any, out: Any) -> None:
    outer, classes, inner = x.shape
    blocks = (inner + BLOCK - 1) // BLOCK
    for task in prange(outer * blocks):
        o, start = task // blocks, task % blocks * BLOCK
        width = min(BLOCK, inner - start)
        largest = x[o, 0, start : start + width].copy()
        total = np.zeros(width, x.dtype)
        for c in range(1, classes):
            for i in range(width):
                largest[i] = max(largest[i], x[o, c, start + i])
        for c in range(classes):
            for i in range(width):
                total[i] += exp(x[o, c, start + i] - largest[i])
        for i in range(width):
            total[i] = largest[i] + math.log(total[i])
        for c in range(classes):
            for i in range(width):
                out[o, c, start + i] = x[o, c, start + i] - total[i]


@_jit
def logsumexp_columns(x: Any, out: Any) -> None:
    outer, classes, inner = x.shape
    blocks = (inner + BLOCK - 1) // BLOCK
    for task in prange(outer * blocks):
        o, start = task // blocks, task % blocks * BLOCK
        width = min(BLOCK, inner - start)
        largest = x[o, 0, start : start + width].copy()
        total = np.zeros(width, x.dtype)
        for c in range(1, classes):
            for i in range(width):
                largest[i] = max(largest[i], x[o, c, start + i])
        for c in range(classes):
            for i in range(width):
                total[i] += exp(x[o, c, start + i] - largest[i])
        for i in range(width):
            out[o, start + i] = largest[i] + math.log(total[i])


@_jit
def entropy_columns(x: Any, out: Any) -> None:
    outer, classes, inner = x.shape
    blocks = (inner + BLOCK - 1) // BLOCK
    for task in prange(outer * blocks):
        o, start = task // blocks, task % blocks * BLOCK
        width = min(BLOCK, inner - start)
        largest = x[o, 0, start : start + width].copy()
        total = np.zeros(width, x.dtype)
        weighed = np.zeros(width, x.dtype)
        for c in range(1, classes):
            for i in range(width):
                largest[i] = max(largest[i], x[o, c, start + i])
        for c in range(classes):
            for i in range(width):
                d = x[o, c, start + i] - largest[i]
                e = exp(d)
                total[i] += e
                weighed[i] += e * d
        for i in range(width):
            out[o, start + i] = math.log(total[i]) - weighed[i] / total[i]


@_jit
def cross_entropy_with_grad_columns(x: Any, targets: Any, grad: Any) -> Any:
    outer, classes, inner = x.shape
    blocks = (inner + BLOCK - 1) // BLOCK
    share = x.dtype.type(1) / x.dtype.type(outer * inner)
    loss = 0.0
    for task in prange(outer * blocks):
        o, start = task // blocks, task % blocks * BLOCK
        width = min(BLOCK, inner - start)
        largest = x[o, 0, start : start + width].copy()
        total = np.zeros(width, x.dtype)
        for c in range(1, classes):
            for i in range(width):
                largest[i] = max(largest[i], x[o, c, start + i])
        for c in range(classes):
            for i in range(width):
                e = exp(x[o, c, start + i] - largest[i])
                grad[o, c, start + i] = e
                total[i] += e
        part = 0.0
        for i in range(width):
            part += largest[i] + math.log(total[i]) - x[o, targets[o, start + i], start + i]
            total[i] = share / total[i]
        loss += part
        for c in range(classes):
            for i in range(width):
                grad[o, c, start + i] *= total[i]
        for i in range(width):
            grad[o, targets[o, start + i], start + i] -= share
    return loss / (outer * inner)


ROWS: dict[str, Kernel] = {
    "softmax": softmax_rows,
    "log_softmax": log_softmax_rows,
    "logsumexp": logsumexp_rows,
    "entropy": entropy_rows,
    "log_softmax_at": log_softmax_at_rows,
    "softmax_grad": softmax_grad_rows,
    "log_softmax_grad": log_softmax_grad_rows,
    "cross_entropy": cross_entropy_rows,
    "cross_entropy_with_grad": cross_entropy_with_grad_rows,
    "cross_entropy_with_grad_hess": cross_entropy_with_grad_hess_rows,
    "kl_divergence": kl_divergence_rows,
}
COLUMNS: dict[str, Kernel] = {
    "softmax": softmax_columns,
    "log_softmax": log_softmax_columns,
    "logsumexp": logsumexp_columns,
    "entropy": entropy_columns,
    "cross_entropy_with_grad": cross_entropy_with_grad_columns,
}
