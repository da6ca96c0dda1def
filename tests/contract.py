"""The accuracy contract: the bounds that the functions promise, and checks that measure errors; for tests and bench.

A check yields names from `BOUNDS`, each with the errors that it bounds. `fs` is the package or has its functions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from arrays import Inputs
from numpy.typing import NDArray
from precision import Slices, log_softmax_grad, shares, softmax_grad, ulp_error, unit_roundoff


@dataclass(frozen=True)
class Bound:
    """A bound in ULP of the result, or of the number that `unit` describes."""

    float32: float
    float64: float
    half: float
    unit: str = "the result"

    def of(self, dtype: np.dtype) -> float:
        return {2: self.half, 4: self.float32, 8: self.float64}[dtype.itemsize]


_TERMS = "the larger of the two terms that it is the difference of"

# Losses of half precision are float32, and their bounds are in ULP of float32.
BOUNDS = {
    "softmax": Bound(2, 2, 0.51),
    "log_softmax": Bound(2, 2, 0.51),
    "logsumexp": Bound(1, 1, 0.51, "the larger of the result and the largest logit"),
    "logsumexp, largest 0": Bound(2, 2, 0.51),
    "entropy": Bound(4, 4, 0.51),
    "log_softmax_at": Bound(2, 2, 0.51),
    "cross_entropy": Bound(2, 2, 2),
    "cross_entropy_grad": Bound(3, 3, 0.52),
    "cross_entropy_hess": Bound(3, 3, 0.52),
    "softmax, temperature": Bound(2, 2, 0.51),
    "log_softmax, temperature": Bound(2, 2, 0.51),
    "entropy, temperature": Bound(4, 4, 0.51),
    "cross_entropy, temperature": Bound(2, 2, 2),
    "cross_entropy_grad, temperature": Bound(3, 3, 0.52),
    "cross_entropy_hess, temperature": Bound(3, 3, 0.52),
    "softmax, where": Bound(2, 2, 0.51),
    "log_softmax, where": Bound(2, 2, 0.51),
    "logsumexp, where": Bound(1, 1, 0.51, "the larger of the result and the largest logit"),
    "entropy, where": Bound(4, 4, 0.51),
    "cross_entropy, weight": Bound(2, 2, 2),
    "cross_entropy_grad, weight": Bound(4, 4, 0.52, _TERMS),
    "cross_entropy_hess, weight": Bound(3, 3, 0.52),
    "cross_entropy, label_smoothing": Bound(4, 4, 4),
    "cross_entropy_grad, label_smoothing": Bound(4, 4, 0.52, _TERMS),
    "cross_entropy_hess, label_smoothing": Bound(3, 3, 0.52),
    "cross_entropy, probabilities": Bound(4, 4, 4),
    "cross_entropy_grad, probabilities": Bound(4, 4, 0.52, _TERMS),
    "cross_entropy_hess, probabilities": Bound(3, 3, 0.52),
    "softmax_grad": Bound(2, 3, 0.51, "|y| (|dy| + sum |y dy|)"),
    "log_softmax_grad": Bound(2, 2, 0.51, "|dy| + exp(logp) sum |dy|"),
    "softmax_grad, temperature": Bound(3, 3, 0.51, "|y| (|dy| + sum |y dy|) / temperature"),
    "log_softmax_grad, temperature": Bound(3, 3, 0.51, "(|dy| + exp(logp) sum |dy|) / temperature"),
    "kl_divergence": Bound(4, 4, 4, "sum |p (log p - log q)|"),
    "kl_divergence, nearly 0": Bound(8, 8, 8),
    "kl_divergence_grad": Bound(12, 12, 0.52, "max(p, q), times the largest |log p - log q| if that is below 1"),
    "kl_divergence, temperature": Bound(4, 4, 4, "likewise"),
    "kl_divergence, temperature, nearly 0": Bound(8, 8, 8),
    "kl_divergence_grad, temperature": Bound(12, 12, 0.52, "likewise, over the temperature"),
    "logsumexp, b": Bound(1, 1, 0.51, "the largest logit or the result, and sum |b exp x| / |sum b exp x|"),
}

Checks = Iterator[tuple[str, NDArray]]


def plain(fs: Any, x: NDArray, axis: int, exact: Slices) -> Checks:
    """Calls with logits and class indices only."""
    yield "softmax", ulp_error(exact.seen(fs.softmax(x, axis)), exact.softmax)
    yield "log_softmax", ulp_error(exact.seen(fs.log_softmax(x, axis)), exact.log_softmax)
    yield "logsumexp", ulp_error(fs.logsumexp(x, axis), exact.logsumexp, _larger(exact))
    yield "entropy", ulp_error(fs.entropy(x, axis), exact.entropy)
    targets = some_targets(exact)
    loss, grad = fs.cross_entropy_with_grad(x, targets, axis, reduction="none")
    share = exact.one_hot(targets)
    yield "cross_entropy", ulp_error(loss, exact.cross_entropy(share))
    yield "cross_entropy_grad", ulp_error(exact.seen(grad), exact.cross_entropy_grad(share))
    yield "log_softmax_at", ulp_error(fs.log_softmax_at(x, targets, axis), -exact.cross_entropy(share))
    yield from hessian(fs, x, axis, exact)


def hessian(fs: Any, x: NDArray, axis: int, exact: Slices | None = None) -> Checks:
    exact = exact or Slices(x, axis)
    hess = fs.cross_entropy_with_grad_hess(x, some_targets(exact), axis, reduction="none")[2]
    # The coefficients add up to 1, even if the target is not among the classes that `exact` keeps.
    yield "cross_entropy_hess", ulp_error(exact.seen(hess), exact.softmax * exact.others)


def largest_zero(fs: Any, x: NDArray, axis: int) -> Checks:
    """logsumexp where the largest logit is 0, so that the result is only what the others add."""
    wide = x.astype(np.longdouble)
    wide = np.maximum(wide - wide.max(axis, keepdims=True), float(ml_dtypes.finfo(x.dtype).min))
    x = wide.astype(x.dtype)
    yield "logsumexp, largest 0", ulp_error(fs.logsumexp(x, axis), Slices(x, axis).logsumexp)


def temperature(fs: Any, x: NDArray, axis: int, t: float) -> Checks:
    exact = Slices(x, axis, t)
    yield "softmax, temperature", ulp_error(fs.softmax(x, axis, temperature=t), exact.softmax)
    yield "log_softmax, temperature", ulp_error(fs.log_softmax(x, axis, temperature=t), exact.log_softmax)
    yield "entropy, temperature", ulp_error(fs.entropy(x, axis, temperature=t), exact.entropy)
    targets = some_targets(exact)
    loss, grad, hess = fs.cross_entropy_with_grad_hess(x, targets, axis, temperature=t, reduction="none")
    share = exact.one_hot(targets)
    yield "cross_entropy, temperature", ulp_error(loss, exact.cross_entropy(share))
    yield "cross_entropy_grad, temperature", ulp_error(grad, exact.cross_entropy_grad(share))
    yield "cross_entropy_hess, temperature", ulp_error(hess, exact.cross_entropy_hess(share))


def where(fs: Any, x: NDArray, axis: int) -> Checks:
    shown = np.random.default_rng(x.shape).uniform(size=x.shape) < 0.7
    first_finite = np.expand_dims(np.argmax(np.isfinite(x), axis), axis)
    np.put_along_axis(shown, first_finite, True, axis)
    exact = Slices(x, axis, where=shown)
    yield "softmax, where", ulp_error(fs.softmax(x, axis, where=shown), exact.softmax)
    yield "log_softmax, where", ulp_error(fs.log_softmax(x, axis, where=shown), exact.log_softmax)
    yield "logsumexp, where", ulp_error(fs.logsumexp(x, axis, where=shown), exact.logsumexp, _larger(exact))
    yield "entropy, where", ulp_error(fs.entropy(x, axis, where=shown), exact.entropy)


def targets(fs: Any, x: NDArray, axis: int) -> Checks:
    """Losses whose gradient is a difference in every entry."""
    a = Inputs.of(np.moveaxis(x, axis, -1)).move(axis)
    exact = Slices(x, axis)
    weight, smoothing = {"weight": a.weight}, {"label_smoothing": 0.1}
    for name, chosen, options in (
        ("weight", a.indices, weight),
        ("label_smoothing", a.indices, smoothing),
        ("label_smoothing", a.indices, weight | smoothing),
        ("probabilities", a.probabilities, {}),
        ("probabilities", a.probabilities, weight | smoothing),
    ):
        share = shares(x.shape, axis, chosen, **options)
        loss, grad, hess = fs.cross_entropy_with_grad_hess(x, chosen, axis, reduction="none", **options)
        error = ulp_error(loss, exact.cross_entropy(share))
        # -log p is rounded before it is weighed, so digits are lost where it overflows or is subnormal.
        minus_log = np.where(share == 0, 1, -exact.log_softmax)
        lost = (minus_log > ml_dtypes.finfo(loss.dtype).max) | (minus_log < np.finfo(np.float64).smallest_normal)
        yield f"cross_entropy, {name}", np.where(np.any(lost & (minus_log != 0), axis), 0, error)
        terms = np.maximum(exact.softmax * share.sum(axis, keepdims=True), share)
        yield f"cross_entropy_grad, {name}", ulp_error(grad, exact.cross_entropy_grad(share), terms)
        yield f"cross_entropy_hess, {name}", ulp_error(hess, exact.cross_entropy_hess(share))


def gradients(fs: Any, x: NDArray, axis: int) -> Checks:
    """Gradients are sums of signed numbers, so their bounds are relative to the condition."""
    dy = Inputs.of(np.moveaxis(x, axis, -1)).move(axis).dy
    y, logp = fs.softmax(x, axis), fs.log_softmax(x, axis)
    least = float(ml_dtypes.finfo(dy.dtype).smallest_normal)
    for name, of, exact in (("softmax_grad", y, softmax_grad), ("log_softmax_grad", logp, log_softmax_grad)):
        gradient = getattr(fs, name)
        yield name, ulp_error(gradient(of, dy, axis), *exact(of, dy, axis))
        wanted, condition = exact(of, dy, axis, 0.7)
        # Subnormal numbers are rounded before the division.
        condition = np.maximum(condition, least)
        yield f"{name}, temperature", ulp_error(gradient(of, dy, axis, temperature=0.7), wanted, condition)


def divergences(fs: Any, x: NDArray, axis: int) -> Checks:
    """Divergences from unrelated logits, and from nearly equal ones with or without a common offset."""
    rng = np.random.default_rng(x.shape)
    noise = rng.normal(size=x.shape)
    # No difference overflows.
    limit = float(ml_dtypes.finfo(x.dtype).max) / 4
    x = np.where(np.isfinite(x), np.clip(x, -limit, limit), x).astype(x.dtype)
    for name, t in (("", 1.0), (", temperature", 0.7)):
        for y in (np.flip(x, axis) * 0.9, noise * 3, x + 0.1 * noise, x + 1e-3 * noise, x + (5 + 1e-3 * noise)):
            y = np.where(np.isfinite(x), y, noise).astype(x.dtype)
            y = np.where(np.isfinite(y), y, x).astype(x.dtype)
            p, q = Slices(x, axis, t), Slices(y, axis, t)
            divergence, grad = fs.kl_divergence_with_grad(x, y, axis, temperature=t, reduction="none")
            wanted = p.kl_divergence(q)
            # Only where longdouble has enough digits of the difference of both slices.
            single = divergence.dtype.itemsize == 4
            least = 2.0**-60 if single else 2.0**-12
            seen = (wanted > least) | (divergence > 2 * least)
            size = np.maximum(p.size_of_divergence(q), wanted)
            yield f"kl_divergence{name}", np.where(seen, ulp_error(divergence, wanted, size), 0)
            yield f"kl_divergence{name}, nearly 0", np.where(seen, ulp_error(divergence, wanted), 0)
            wanted, unit = p.kl_divergence_grad(q)
            digits = np.maximum(p.softmax, q.softmax) * (2.0**-30 if single else 1e-2)
            seen = unit > np.maximum(digits, float(ml_dtypes.finfo(x.dtype).smallest_normal))
            yield f"kl_divergence_grad{name}", np.where(seen, ulp_error(grad, wanted, unit), 0)


def signed_sum(fs: Any, x: NDArray, axis: int) -> Checks:
    b = np.random.default_rng(x.shape).normal(size=x.shape).astype(x.dtype)
    exact = Slices(x, axis)
    terms = exact.exp * b.astype(np.longdouble)
    # Tied largest terms may cancel exactly. Long double would lose the others if it added them before that.
    is_largest = exact.x == exact.peak
    total = np.where(is_largest, terms, 0).sum(axis) + np.where(is_largest, 0, terms).sum(axis)
    size = np.abs(terms).sum(axis)
    wanted = np.squeeze(exact.peak, axis) + np.log(np.abs(total))
    result, sign = fs.logsumexp(x, axis, b=b, return_sign=True)
    distance = np.abs(result.astype(np.longdouble) - wanted)
    computed = np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype
    condition = 2 * unit_roundoff(computed) * size / np.abs(total)
    one = 2 * unit_roundoff(x.dtype) * np.maximum(np.abs(wanted), np.abs(np.squeeze(exact.peak, axis)))
    yield "logsumexp, b", np.where(sign == np.sign(total), distance / (condition + one), np.inf)


def some_targets(exact: Slices) -> NDArray:
    """The class with the largest score of each slice, except for every third slice, where it is the first class."""
    chosen = np.array(exact.argmax)  # 0-d for one slice
    chosen.reshape(-1)[1::3] = 0
    return chosen


def _larger(exact: Slices) -> NDArray:
    return np.maximum(np.abs(exact.logsumexp), np.abs(np.squeeze(exact.peak, exact.axis)))
