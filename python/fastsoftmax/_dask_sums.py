"""The functions that run in the tasks of `fastsoftmax.dask`: they sum blocks, merge sums, and compute results."""

import math
from collections.abc import Callable, Iterator
from copy import copy
from functools import reduce
from typing import Any

import numpy as np

import fastsoftmax as fs

from ._arguments import FLOAT64, Array, DType, check_indices, check_targets

Index = tuple[int, ...]
Origin = tuple[int | None, ...]  # where a block begins; None in axes of unknown chunk sizes


# Sums are objects with a method `merge`, like `LogSumExp`.


def unchanged(block: Any, axis: Any, keepdims: bool) -> Any:
    return block


def combined(blocks: Any, axis: Any, keepdims: bool) -> Any:
    # A copy, because a task must not change its arguments.
    return reduce(lambda total, other: copy(total).merge(other), _flat(blocks))


def finished(finish: Callable[..., Any], blocks: Any, axis: Any, keepdims: bool) -> Any:
    return finish(combined(blocks, axis, keepdims), keepdims)


def _flat(blocks: Any) -> Iterator[Any]:
    if isinstance(blocks, list):
        for block in blocks:
            yield from _flat(block)
    else:
        yield blocks


def itself(total: fs.LogSumExp, keepdims: bool) -> fs.LogSumExp:
    return total


def summed(
    *, axis: Index, temperature: float, dtype: DType, where: Array | None = None, **scores: Array
) -> fs.LogSumExp:
    """The total of a block, with the precision that results of this dtype need."""
    (x,) = scores.values()
    if dtype == FLOAT64:
        x = x.astype(FLOAT64, copy=False)
    return fs.LogSumExp(axis, temperature=temperature).update(x, where=where)


def logarithm(total: Any, keepdims: bool, *, return_sign: bool, dtype: DType) -> Any:
    value = total.value(keepdims=keepdims, dtype=dtype)
    if not return_sign:
        return value
    sign = total.sign(keepdims) if isinstance(total, SignedSum) else np.where(np.isnan(value), value, value > -np.inf)
    return value, np.asarray(sign, dtype)


def entropy_of(total: fs.LogSumExp, keepdims: bool, *, dtype: DType) -> Any:
    return total._entropy(keepdims=keepdims, dtype=dtype)


class SignedSum:
    """The logarithm and the sign of a weighted sum of exponentials, in float64."""

    def __init__(self, logarithm: Array, sign: Array, axis: Index) -> None:
        self.logarithm, self.sign_, self.axis = logarithm, sign, axis

    @classmethod
    def of(cls, x: Array, b: Any, where: Array | None = None, *, axis: Index) -> "SignedSum":
        return cls(*fs.logsumexp(x, axis, b=b, where=where, keepdims=True, return_sign=True, dtype=FLOAT64), axis)

    def merge(self, other: "SignedSum") -> "SignedSum":
        logarithms, signs = np.stack([self.logarithm, other.logarithm]), np.stack([self.sign_, other.sign_])
        self.logarithm, self.sign_ = fs.logsumexp(logarithms, 0, b=signs, return_sign=True)
        return self

    def value(self, *, keepdims: bool, dtype: DType) -> Any:
        return self._kept(self.logarithm, keepdims).astype(dtype)

    def sign(self, keepdims: bool) -> Any:
        return self._kept(self.sign_, keepdims)

    def _kept(self, array: Any, keepdims: bool) -> Any:
        return np.asarray(array) if keepdims else np.squeeze(array, self.axis)


def part_of_whole(total: fs.LogSumExp, x: Array, where: Array | None = None, *, name: str, dtype: DType) -> Any:
    return getattr(total, name)(x, where=where, dtype=dtype)


def picked(
    x: Array, indices: Array, where: Array | None = None, *, axis: int, classes: int, origin: Origin, **options: Any
) -> Any:
    _check_picks(indices, axis, x.ndim, classes, origin)
    return fs.log_softmax_at(x, indices, axis, where=where, **options)


def _check_picks(indices: Array, axis: int, ndim: int, classes: int, origin: Origin) -> None:
    """Refuse indices outside [0, classes). `origin` is where the block begins in the batch axes."""
    if indices.ndim == ndim:
        origin = (*origin[:axis], 0, *origin[axis:])
    check_indices(indices, classes, known(origin))


def known(origin: Origin) -> Index | None:
    return None if None in origin else origin  # type: ignore[return-value]


class Picks:
    """A `LogSumExp`, and the scores of the picked classes that are among its pieces."""

    def __init__(self, total: fs.LogSumExp, scores: Array, found: Array, axis: int, kept: bool) -> None:
        self.total, self.scores, self.found, self.axis, self.kept = total, scores, found, axis, kept

    @classmethod
    def of(
        cls,
        x: Array,
        indices: Array,
        where: Array | None = None,
        *,
        axis: int,
        classes: int,
        origin: Origin,
        **options: Any,
    ) -> "Picks":
        start, *begin = origin
        kept = indices.ndim == x.ndim
        _check_picks(indices, axis, x.ndim, classes, tuple(begin))
        return cls._of(x, indices if kept else np.expand_dims(indices, axis), where, start, kept, axis=axis, **options)

    @classmethod
    def _of(
        cls, x: Array, labels: Array, where: Array | None, start: Any, kept: bool, *, axis: int, **options: Any
    ) -> "Picks":
        local, inside = within(labels, start, x.shape[axis])
        if x.shape[axis]:
            scores = np.take_along_axis(x, local, axis)
            if where is not None:
                inside &= np.take_along_axis(np.broadcast_to(where, x.shape), local, axis)
        else:
            scores = np.zeros(local.shape, x.dtype)
        return cls(summed(axis=(axis,), where=where, x=x, **options), scores, inside, axis, kept)

    def merge(self, other: "Picks") -> "Picks":
        self.total = copy(self.total).merge(other.total)
        self.scores = np.where(other.found, other.scores, self.scores)
        self.found = self.found | other.found
        return self

    @classmethod
    def of_targets(cls, logits: Array, targets: Array, *, ignore_index: int | None, **options: Any) -> "Picks":
        start, *begin = options.pop("origin")
        counts = counted(targets, options.pop("classes"), ignore_index, tuple(begin))
        labels = np.expand_dims(np.where(counts, targets.astype(np.intp), -1), options["axis"])
        return cls._of(logits, labels, None, start, False, **options)

    def log_probabilities(self, keepdims: bool, *, dtype: DType) -> Any:
        result = self.total.log_softmax(self.scores, where=self.found, dtype=dtype)
        return result if self.kept else np.squeeze(result, self.axis)


def within(labels: Array, start: Any, extent: int) -> tuple[Array, Array]:
    """Class indices relative to the first class of a block, `start`, 0 if outside; and whether they are inside."""
    local = labels.astype(np.intp) - start
    inside = (local >= 0) & (local < extent)
    return np.where(inside, local, 0), inside


def counted(targets: Array, classes: int, ignore_index: int | None, origin: Origin) -> Any:
    """Check the class indices; return which are not ignored."""
    check_targets(targets, classes, ignore_index, known(origin))
    return np.broadcast_to(True, targets.shape) if ignore_index is None else targets != ignore_index


class Best:
    """A `LogSumExp`, and the k best of its classes: their scores and indices, and whether `where` lets them take part.

    `first` are the first k classes that take part, followed by others: the answer if the log-probabilities are NaN.
    """

    def __init__(self, total: fs.LogSumExp, best: "_Candidates", first: "_Candidates") -> None:
        self.total, self.best, self.first = total, best, first

    @classmethod
    def of(cls, x: Array, where: Array | None = None, *, axis: int, k: int, origin: Origin, **options: Any) -> "Best":
        start: Any = origin[0]
        classes = np.expand_dims(np.arange(start, start + x.shape[axis]), [a for a in range(x.ndim) if a != axis])
        indices = np.broadcast_to(classes, x.shape)
        part = np.broadcast_to(True if where is None else where, x.shape)
        equal = np.broadcast_to(np.zeros((), x.dtype), x.shape)
        best, first = (_Candidates(scores, indices, part, axis, k).fewest() for scores in (x, equal))
        return cls(summed(axis=(axis,), where=where, x=x, **options), best, first)

    def merge(self, other: "Best") -> "Best":
        self.total = copy(self.total).merge(other.total)
        self.best = self.best.joined(other.best)
        self.first = self.first.joined(other.first)
        return self

    def log_probabilities(self, keepdims: bool, *, dtype: DType) -> tuple[Array, Array]:
        values = self.total.log_softmax(self.best.scores, where=self.best.part, dtype=dtype)
        undefined = ~np.isfinite(self.total.value(keepdims=True, dtype=FLOAT64))
        nothing = np.where(self.first.part, np.nan, -np.inf).astype(dtype)
        return np.where(undefined, nothing, values), np.where(undefined, self.first.indices, self.best.indices)


class _Candidates:
    """Candidates for the k best classes of each slice. Among equal scores, the first class is better."""

    def __init__(self, scores: Array, indices: Array, part: Array, axis: int, k: int) -> None:
        self.scores, self.indices, self.part, self.axis, self.k = scores, indices, part, axis, k

    def fewest(self) -> "_Candidates":
        """The k best, in order."""
        k = min(self.k, self.scores.shape[self.axis])
        if k == 0:
            return self
        _, order = fs.log_softmax_top_k(self.scores, k, self.axis, where=self.part)
        scores, indices, part = (np.take_along_axis(array, order, self.axis) for array in self._arrays())
        return _Candidates(scores, indices, part, self.axis, self.k)

    def joined(self, other: "_Candidates") -> "_Candidates":
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        scores, indices, part = (np.concatenate(pair, self.axis) for pair in pairs)
        return _Candidates(scores, indices, part, self.axis, self.k).fewest()

    def _arrays(self) -> tuple[Array, Array, Array]:
        return self.scores, self.indices, self.part


def divergence_terms(
    p_logits: Array,
    q_logits: Array,
    p_total: fs.LogSumExp,
    q_total: fs.LogSumExp,
    where: Array | None = None,
    *,
    axis: int,
) -> Array:
    """The sum over a block of p (exp(-d) - 1 + d), d = log p - log q."""
    totals = ((p_total, p_logits), (q_total, q_logits))
    p, q = (total.softmax(x, where=where, dtype=FLOAT64) for total, x in totals)
    log_p, log_q = (total.log_softmax(x, where=where, dtype=FLOAT64) for total, x in totals)
    with np.errstate(all="ignore"):
        d = log_p - log_q
        series = np.zeros_like(d)
        for n in range(18, 1, -1):  # d^2 times `series` is the sum of (-d)^n / n!
            series = 1.0 / math.factorial(n) - series * d
        terms = np.where(np.abs(d) < 1, p * d * d * series, p * d + (q - p))
        total: Array = np.where(p == 0, q, terms).sum(axis, keepdims=True)
    return total
