"""Stored scores with their labels, visited a chunk at a time, for calibration and the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ._arguments import FLOAT64, Array
from ._losses import cross_entropy_grad
from ._picks import log_softmax_at, log_softmax_top_k
from ._transforms import entropy

# Elements of a chunk. So few that its scores stay in a cache for the second visit, and that its scratch memory, half a
# MB, is reused: pages that are new to the process cost more than the computation.
CHUNK = 1 << 16

# The label of a sample that takes no part.
_NONE = -1


def dot(a: Array, b: Array) -> float:
    """The dot product, without BLAS: its threads would affect the last bits, and wait for each other on busy cores."""
    return float(np.einsum("i,i", a, b))


@dataclass(frozen=True)
class Chunk:
    """Some of the samples. Its methods compute in float64, and only for the samples that take part."""

    logits: Array
    labels: Array
    weight: Array
    axis: int

    @property
    def part(self) -> Array:
        """Which samples take part: a mask. Indexing with it gives an array of one axis."""
        return np.asarray(self.labels != _NONE)

    @property
    def targets(self) -> Array:
        """The labels of the samples that take part."""
        return self.labels[self.part]

    def losses(self, temperature: float) -> Array:
        labels = np.maximum(self.labels, 0)
        logp = log_softmax_at(self.logits, labels, self.axis, temperature=temperature, dtype=FLOAT64)
        return -np.asarray(logp)[self.part]

    def entropies(self, temperature: float) -> Array:
        return np.asarray(entropy(self.logits, self.axis, temperature=temperature, dtype=FLOAT64))[self.part]

    def top(self, k: int, temperature: float) -> tuple[Array, Array]:
        """The k largest log-probabilities and their classes, in the last axis."""
        found = log_softmax_top_k(self.logits, k, self.axis, temperature=temperature, dtype=FLOAT64)
        log_probabilities, classes = (np.moveaxis(array, self.axis, -1)[self.part] for array in found)
        return log_probabilities, classes

    def squared_error(self, temperature: float) -> float:
        """The weighted sum of sum_c (p_c - y_c)^2; p - y is the gradient of the loss, computed without cancellation."""
        work = self.logits.astype(FLOAT64)
        upstream = np.zeros(self.labels.shape)
        upstream[self.part] = temperature * np.sqrt(self.weight)
        options: dict[str, Any] = {"ignore_index": _NONE, "reduction": "none", "temperature": temperature}
        cross_entropy_grad(work, self.labels, self.axis, upstream=upstream, out=work, **options)
        flat = work.ravel(order="K")
        return dot(flat, flat)


@dataclass(frozen=True)
class Scores:
    """Checked scores of any size and layout. Each iteration over them reads them again, a chunk at a time."""

    logits: Array
    targets: Array
    axis: int
    ignored: int | None
    weight: Array | None

    @property
    def classes(self) -> int:
        return int(self.logits.shape[self.axis])

    def __iter__(self) -> Iterator[Chunk]:
        for index in _pieces(self.logits, self.axis):
            batch = index[: self.axis] + index[self.axis + 1 :]
            targets = self.targets[batch]
            part = np.ones(targets.shape, bool)
            if self.ignored is not None:
                part = np.not_equal(targets, np.int64(self.ignored).astype(targets.dtype))
            weight = np.ones(targets.shape)
            if self.weight is not None:
                weight = self.weight[batch].astype(FLOAT64)
                part = part & (weight > 0)
            labels = np.where(part, targets, 0).astype(np.intp)
            labels[~part] = _NONE
            yield Chunk(self.logits[index], labels, weight[part], self.axis)


def _pieces(array: Array, axis: int) -> Iterator[tuple[slice, ...]]:
    """Indices that cut `array` into chunks of whole slices, first along the axis that is outermost in memory."""
    index = [slice(None)] * array.ndim
    axes = sorted((k for k in range(array.ndim) if k != axis), key=lambda k: -abs(array.strides[k]))

    def cut(depth: int) -> Iterator[tuple[slice, ...]]:
        inner = prod(array.shape[k] for k in (axis, *axes[depth + 1 :]))
        if depth == len(axes):
            yield tuple(index)
            return
        step = max(1, CHUNK // max(1, inner))
        for start in range(0, max(1, array.shape[axes[depth]]), step):  # an empty array is one empty chunk
            index[axes[depth]] = slice(start, start + step)
            if inner > CHUNK:
                yield from cut(depth + 1)
            else:
                yield tuple(index)
        index[axes[depth]] = slice(None)

    return cut(0)
