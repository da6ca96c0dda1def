"""The functions of the package, computed in pieces."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import fastsoftmax as fs
import numpy as np
from numpy.typing import NDArray

Cut = Callable[[int], list[int]]  # from the number of classes to the places where slices are cut


class InPieces:
    """The package, with slices cut into pieces. `merge` combines their totals; without it, one total takes them all."""

    def __init__(self, cut: Cut, merge: Callable[[list[fs.LogSumExp]], fs.LogSumExp] | None = None) -> None:
        self.cut = cut
        self.merge = merge

    def __getattr__(self, name: str) -> Any:
        return getattr(fs, name)

    def pieces(self, a: Any, axis: Any, like: NDArray) -> list[Any]:
        if a is None:
            return [None] * (len(self.cut(like.shape[axis])) + 1)
        return np.split(np.broadcast_to(a, like.shape), self.cut(like.shape[axis]), axis)

    def total(self, x: NDArray, axis: Any, where: Any = None, temperature: float = 1.0, cut_axis: Any = None):
        along = axis if cut_axis is None else cut_axis
        parts = list(zip(self.pieces(x, along, x), self.pieces(where, along, x), strict=True))
        if self.merge is None:
            total = fs.LogSumExp(axis, temperature=temperature)
            for piece, mask in parts:
                assert total.update(piece, where=mask) is total
        else:
            of_one = lambda: fs.LogSumExp(axis, temperature=temperature)  # noqa: E731
            total = self.merge([of_one().update(piece, where=mask) for piece, mask in parts])
        return total, parts, along

    def softmax(self, x, axis=-1, *, temperature=1.0, where=None, dtype=None, cut_axis=None):
        total, parts, along = self.total(x, axis, where, temperature, cut_axis)
        return np.concatenate([total.softmax(piece, where=mask, dtype=dtype) for piece, mask in parts], along)

    def log_softmax(self, x, axis=-1, *, temperature=1.0, where=None, dtype=None, cut_axis=None):
        total, parts, along = self.total(x, axis, where, temperature, cut_axis)
        return np.concatenate([total.log_softmax(piece, where=mask, dtype=dtype) for piece, mask in parts], along)

    def logsumexp(self, x, axis=None, *, where=None, dtype=None, keepdims=False, cut_axis=None):
        return self.total(x, axis, where, 1.0, cut_axis)[0].value(dtype=dtype, keepdims=keepdims)

    def entropy(self, x, axis=-1, *, temperature=1.0, where=None, dtype=None, keepdims=False, cut_axis=None):
        return self.total(x, axis, where, temperature, cut_axis)[0]._entropy(dtype=dtype, keepdims=keepdims)

    def log_softmax_at(self, x, indices, axis=-1, *, temperature=1.0, where=None, dtype=None):
        total, parts, along = self.total(x, axis, where, temperature)
        indices = np.asarray(indices)
        of_one = indices.ndim < x.ndim
        indices = np.expand_dims(indices, axis) if of_one else indices
        result, begin = None, 0
        for piece, mask in parts:
            count = piece.shape[along]
            if count:
                within = np.clip(indices - begin, 0, count - 1)
                here = total.log_softmax_at(piece, within, where=mask, dtype=dtype)
                result = np.where(indices >= begin, here, result if result is not None else here)
            begin += count
        return np.squeeze(result, axis)[()] if of_one else result


def in_turn(totals: list[fs.LogSumExp]) -> fs.LogSumExp:
    return reduce(lambda a, b: a.merge(b), totals)


def as_tree(totals: list[fs.LogSumExp]) -> fs.LogSumExp:
    while len(totals) > 1:
        totals = [in_turn(totals[i : i + 2]) for i in range(0, len(totals), 2)]
    return totals[0]


def from_the_end(totals: list[fs.LogSumExp]) -> fs.LogSumExp:
    return reduce(lambda b, a: a.merge(b), reversed(totals))


def by_state(totals: list[fs.LogSumExp]) -> fs.LogSumExp:
    """Each total travels as bytes."""
    own = totals[0]
    for other in totals[1:]:
        sent = np.frombuffer(other.state.tobytes(), other.state.dtype).reshape(other.state.shape)
        own.merge(fs.LogSumExp.from_state(sent, own._axis, temperature=own._temperature))
    return own
