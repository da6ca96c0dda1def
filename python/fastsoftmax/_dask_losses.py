"""Cross-entropy of `fastsoftmax.dask`: block by block, or from the sums of slices that are in several chunks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

import fastsoftmax as fs

from ._arguments import (
    FLOAT32,
    FLOAT64,
    Array,
    DType,
    check_targets,
    loss_arguments,
    reduced_shape,
    to_axis,
    to_integer,
    to_upstream,
    to_weight,
)
from ._dask_calls import Call, SplitEvery, cast, element, of_numbers, quotient, reduced_losses, to_given, to_scores
from ._dask_sums import Index, Origin, Picks, counted, known, within


class Loss:
    """A call of cross_entropy or of its gradients."""

    def __init__(
        self,
        name: str,
        logits: da.Array,
        targets: Any,
        axis: Any,
        weight: Any,
        ignore_index: Any,
        label_smoothing: Any,
        temperature: Any,
        reduction: Any,
        upstream: Any,
    ) -> None:
        logits = to_scores(logits, "logits", name)
        self.axis = to_axis(axis, logits.ndim)
        others = {"targets": targets, "weight": weight, "upstream": upstream}
        given = {"logits": logits} | {name: to_given(value, name) for name, value in others.items()}
        call = self.call = Call(given, (self.axis,))
        stand_in = call.stand_in("logits")
        arguments = loss_arguments(
            *(stand_in, call.stand_in("targets"), self.axis, call.stand_in("weight")),
            *(ignore_index, label_smoothing, temperature, reduction),
        )
        self.smoothing, self.temperature, self.reduction, self.grad_dtype = arguments[5:]
        to_upstream(call.stand_in("upstream"), self.reduction, reduced_shape(stand_in.shape, (self.axis,)))
        self.classes = stand_in.shape[self.axis]
        self.dtype = FLOAT32 if self.grad_dtype.itemsize == 2 else self.grad_dtype
        self.by_index = given["targets"].dtype.kind in "iu"
        self.ignore_index = None if ignore_index is None else to_integer(ignore_index, "ignore_index")
        if "weight" in call.given:
            if isinstance(given["weight"], da.Array):
                check = partial(to_weight, classes=self.classes)
                call.given["weight"] = given["weight"].rechunk(-1).map_blocks(check, dtype=FLOAT64, meta=np.empty(0))
            call.given["weight_of_class"] = call.given["weight"]
        self.divisor = self._divisor()

    def value(self, split_every: SplitEvery) -> da.Array:
        if self.call.whole:
            return self._reduced(self._plain(fs.cross_entropy, self.call.batch, self.dtype))
        if self.by_index and not self.smoothing:
            return self._reduced(self._by_index(split_every))
        return self._reduced(self._by_class(self.call.total(self.temperature, self.dtype, split_every)))

    def grad(self, split_every: SplitEvery) -> da.Array:
        if self.call.whole:
            return self._plain(fs.cross_entropy_grad, self.call.full, self.grad_dtype)
        return self._grad(self.call.total(self.temperature, self.dtype, split_every))

    def with_grad(self, split_every: SplitEvery) -> tuple[da.Array, da.Array]:
        if not self.call.whole:
            return self.value(split_every), self.grad(split_every)
        both = self._plain(fs.cross_entropy_with_grad, self.call.full, object)
        losses, grad = (
            da.blockwise(
                *(partial(element, place), labels, both, self.call.full),
                dtype=dtype,
                meta=np.empty((0,) * len(labels), dtype),
            )
            for place, labels, dtype in ((0, self.call.batch, self.dtype), (1, self.call.full, self.grad_dtype))
        )
        return self._reduced(losses), grad

    def _options(self) -> dict[str, Any]:
        return {"axis": self.axis, "ignore_index": self.ignore_index}

    def _plain(self, function: Callable[..., Any], labels: Index, dtype: DType | type) -> da.Array:
        """Apply the plain function to each block, without reduction."""
        options = {"label_smoothing": self.smoothing, "temperature": self.temperature} | self._options()
        names, more = ["logits", "targets", "weight"], {}
        if function is not fs.cross_entropy:
            more = {"upstream": self._upstream()}
        at = self.call.batch
        return self.call.map(partial(_loss_of_block, function, **options), labels, dtype, names=names, more=more, at=at)

    def _divisor(self) -> Any:
        """The divisor of a mean: a number, or a 0-d array if it depends on the targets."""
        call = self.call
        count = call.count(self.reduction)
        if self.reduction != "mean" or not self.by_index or ("weight" not in call.given and self.ignore_index is None):
            return count
        function = partial(_weight_of_targets, ignore_index=self.ignore_index, classes=self.classes)
        return call.map(function, call.batch, FLOAT64, names=["targets", "weight"], at=call.batch).sum(dtype=FLOAT64)

    def _upstream(self) -> Any:
        """The upstream gradient; for a mean, over its divisor."""
        given = self.call.given.get("upstream", 1.0)
        if self.reduction != "mean":
            return self.call.aligned("upstream") if hasattr(given, "ndim") else float(given)
        if isinstance(given, da.Array) or isinstance(self.divisor, da.Array):
            return of_numbers(quotient, given, self.divisor)
        return quotient(given, self.divisor)

    def _reduced(self, losses: da.Array) -> da.Array:
        return reduced_losses(losses, self.reduction, self.divisor, self.dtype)

    def _by_index(self, split_every: SplitEvery) -> da.Array:
        """The losses for class indices if slices are in several chunks."""
        call = self.call
        options = {"axis": self.axis, "temperature": self.temperature, "classes": self.classes, "dtype": self.dtype}
        function = partial(Picks.of_targets, ignore_index=self.ignore_index, **options)
        at, names = (self.axis, *call.batch), ["logits", "targets"]
        picks = call.map(function, call.full, object, names=names, at=at, summed=True)
        logs = call.merged(picks, partial(Picks.log_probabilities, dtype=self.dtype), self.dtype, split_every)
        function = partial(_weighed, dtype=self.dtype, classes=self.classes, ignore_index=self.ignore_index)
        more = {"logs": logs}
        return call.map(function, call.batch, self.dtype, names=["targets", "weight"], more=more, at=call.batch)

    def _by_class(self, total: da.Array) -> da.Array:
        """The losses if slices are in several chunks and every class has a coefficient."""
        terms = self._of_blocks(_loss_terms, FLOAT64, {"total": total}, summed=True)
        return cast(terms.sum(self.axis), self.dtype)

    def _grad(self, total: da.Array) -> da.Array:
        more = {"total": total, "whole": self._sum_of_coefficients(), "upstream": self._upstream()}
        function = partial(_grad_of_block, temperature=self.temperature, dtype=self.grad_dtype)
        return self._of_blocks(function, self.grad_dtype, more)

    def _sum_of_coefficients(self) -> da.Array:
        if not self.by_index:
            return self._of_blocks(_coefficients_of_block, FLOAT64, {}, summed=True).sum(self.axis)
        options = {"ignore_index": self.ignore_index, "classes": self.classes, "label_smoothing": self.smoothing}
        function = partial(_sum_of_coefficients, **options)
        return self.call.map(function, self.call.batch, FLOAT64, names=["targets", "weight"], at=self.call.batch)

    def _of_blocks(
        self, function: Callable[..., Any], dtype: DType, more: dict[str, Any], summed: bool = False
    ) -> da.Array:
        """Apply a function to the blocks, with the arguments that determine the coefficients of their classes."""
        options = self._options() | {"label_smoothing": self.smoothing, "classes": self.classes}
        names, at = ["logits", "targets", "weight_of_class"], (self.axis, *self.call.batch)
        function = partial(function, **options)
        return self.call.map(function, self.call.full, dtype, names=names, more=more, at=at, summed=summed)


def _loss_of_block(
    function: Callable[..., Any],
    logits: Array,
    targets: Array,
    *,
    ignore_index: int | None,
    origin: Origin,
    **options: Any,
) -> Any:
    if targets.dtype.kind in "iu":
        check_targets(targets, logits.shape[options["axis"]], ignore_index, known(origin))
    return function(logits, targets, ignore_index=ignore_index, reduction="none", **options)


def _weight_of_targets(
    targets: Array, weight: Array | None = None, *, classes: int, ignore_index: int | None, origin: Origin
) -> Any:
    counts = counted(targets, classes, ignore_index, origin)
    weights = 1.0 if weight is None else weight[np.where(counts, targets, 0).astype(np.intp)]
    return np.where(counts, weights, 0.0)


def _sum_of_coefficients(
    targets: Array, weight: Array | None = None, *, label_smoothing: float, classes: int, **options: Any
) -> Any:
    own = _weight_of_targets(targets, weight, classes=classes, **options)
    shared = label_smoothing * (1.0 if weight is None else weight.mean())
    return np.where(counted(targets, classes, **options), (1 - label_smoothing) * own + shared, 0.0)


def _weighed(targets: Array, logs: Array, weight: Array | None = None, *, dtype: DType, **options: Any) -> Any:
    """The losses for class indices, from the log-probabilities of these classes."""
    counts = counted(targets, **options)
    with np.errstate(all="ignore"):
        return np.where(counts, _term(_weight_of_targets(targets, weight, **options), logs), 0.0).astype(dtype)


def _term(coefficient: Any, log_probability: Any) -> Any:
    """The product with the negative logarithm. 0 times infinity is 0; NaN stays NaN."""
    nothing = (coefficient == 0) & ~np.isnan(log_probability)
    return np.where(nothing, 0.0, coefficient * -np.asarray(log_probability, FLOAT64))


def _coefficients(
    logits: Array,
    targets: Array,
    weight_of_class: Array | None = None,
    *,
    axis: int,
    label_smoothing: float,
    classes: int,
    ignore_index: int | None,
    origin: Origin,
) -> Array:
    """The coefficient of the negative log-probability of every class of a block."""
    shape = [1] * logits.ndim
    shape[axis] = logits.shape[axis]
    weight = np.ones(shape) if weight_of_class is None else np.asarray(weight_of_class, FLOAT64).reshape(shape)
    if targets.dtype.kind not in "iu":
        return weight * ((1 - label_smoothing) * targets.astype(FLOAT64) + label_smoothing / classes)
    start, *begin = origin
    counts = np.expand_dims(counted(targets, classes, ignore_index, tuple(begin)), axis)
    local, inside = within(np.expand_dims(targets, axis), start, logits.shape[axis])
    result = np.broadcast_to(weight * (label_smoothing / classes), logits.shape).copy()
    if logits.shape[axis]:
        own = np.take_along_axis(result, local, axis)
        chosen = (1 - label_smoothing) * weight.ravel()[local]
        np.put_along_axis(result, local, np.where(inside, own + chosen, own), axis)
    return np.where(counts, result, 0.0)


def _coefficients_of_block(*, axis: int, **arguments: Any) -> Array:
    total: Array = _coefficients(axis=axis, **arguments).sum(axis, keepdims=True)
    return total


def _loss_terms(logits: Array, targets: Array, total: fs.LogSumExp, *, axis: int, **arguments: Any) -> Array:
    coefficients = _coefficients(logits, targets, axis=axis, **arguments)
    logs = total.log_softmax(logits, dtype=FLOAT64)
    with np.errstate(all="ignore"):
        terms = _without_ignored(_term(coefficients, logs), targets, axis, arguments["ignore_index"])
        total_of_terms: Array = terms.sum(axis, keepdims=True)
    return total_of_terms


def _without_ignored(values: Array, targets: Array, axis: int, ignore_index: int | None) -> Array:
    """The values, with 0 for ignored samples, also where they hold NaN."""
    return values if ignore_index is None else np.where(np.expand_dims(targets == ignore_index, axis), 0, values)


def _grad_of_block(
    logits: Array,
    targets: Array,
    total: fs.LogSumExp,
    whole: Array,
    upstream: Any,
    *,
    axis: int,
    label_smoothing: float,
    temperature: float,
    dtype: DType,
    **arguments: Any,
) -> Array:
    """The gradient u (whole p - a) / T: u is `upstream`, a the coefficients of the classes, `whole` their sum."""
    grad = total.softmax(logits, dtype=FLOAT32 if dtype.itemsize == 2 else dtype)
    scale = np.asarray(upstream, FLOAT64) / temperature
    scale = np.expand_dims(scale, axis) if scale.ndim else scale
    whole = np.expand_dims(whole, axis)
    with np.errstate(all="ignore"):
        if targets.dtype.kind in "iu" and not label_smoothing:
            np.multiply(grad, whole * scale, out=grad, casting="same_kind")
            local, inside = within(np.expand_dims(targets, axis), arguments["origin"][0], logits.shape[axis])
            if logits.shape[axis]:
                # p - 1, without cancellation where p is near 1
                chosen = whole * scale * np.expm1(total.log_softmax_at(logits, local, dtype=FLOAT64))
                others = np.take_along_axis(grad, local, axis)
                np.put_along_axis(grad, local, np.where(inside, chosen, others), axis)
        else:
            coefficients = _coefficients(logits, targets, axis=axis, label_smoothing=label_smoothing, **arguments)
            grad = (whole * grad - coefficients) * scale
        return _without_ignored(grad, targets, axis, arguments["ignore_index"]).astype(dtype, copy=False)
