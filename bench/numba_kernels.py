"""The kernels of the contender numba. They leave out what makes fastsoftmax exact, as hand-written ones do."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange

Kernel = Callable[..., Any]

BLOCK = 256  # neighbouring slices at a time where the class axis is not the last: their sums stay in the cache

_jit: Callable[[Kernel], Kernel] = njit(parallel=True, fastmath=True, cache=False, error_model="numpy")


@_jit
def softmax_rows(x: Any, out: Any) -> None:
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            e = math.exp(x[i, c] - largest)
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
            total += math.exp(x[i, c] - largest)
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
            total += math.exp(x[i, c] - largest)
        out[i] = largest + math.log(total)


@_jit
def cross_entropy_rows(x: Any, targets: Any) -> Any:
    loss = 0.0
    for i in prange(x.shape[0]):
        largest = x[i, 0]
        for c in range(1, x.shape[1]):
            largest = max(largest, x[i, c])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            total += math.exp(x[i, c] - largest)
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
            e = math.exp(x[i, c] - largest)
            grad[i, c] = e
            total += e
        scale = x.dtype.type(1) / (total * x.dtype.type(x.shape[0]))
        for c in range(x.shape[1]):
            grad[i, c] *= scale
        grad[i, targets[i]] -= x.dtype.type(1) / x.dtype.type(x.shape[0])
        loss += largest + math.log(total) - x[i, targets[i]]
    return loss / x.shape[0]


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
                e = math.exp(x[o, c, start + i] - largest[i])
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
                total[i] += math.exp(x[o, c, start + i] - largest[i])
        for i in range(width):
            total[i] = largest[i] + math.log(total[i])
        for c in range(classes):
            for i in range(width):
                out[o, c, start + i] = x[o, c, start + i] - total[i]


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
                e = math.exp(x[o, c, start + i] - largest[i])
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
    "cross_entropy": cross_entropy_rows,
    "cross_entropy_with_grad": cross_entropy_with_grad_rows,
}
COLUMNS: dict[str, Kernel] = {
    "softmax": softmax_columns,
    "log_softmax": log_softmax_columns,
    "cross_entropy_with_grad": cross_entropy_with_grad_columns,
}
