"""The functions of the package in longdouble, and the distance of results to them in units in the last place (ULP).

A longdouble with a 64-bit significand (x86) or more leaves 11 bits below float64. The steps that would lose them, the
difference to the maximum and the quotient by the temperature, are carried in two parts; `test_precision.py` compares
all of it with mpmath.
"""

from functools import cached_property

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

SUFFICES = np.finfo(np.longdouble).nmant >= 63

Exact = NDArray[np.longdouble]


def ulp_error(got: NDArray, wanted: Exact, unit: Exact | None = None) -> Exact:
    """The distance of each entry of `got` to `wanted`, in ULP of `got`'s dtype at `unit` (by default `wanted`).

    Where the result is subnormal, the last rounding may cost 0.51 smallest subnormals, which are subtracted first; the
    unit itself keeps shrinking, so that a flush to zero is an error of many ULP.
    """
    info = ml_dtypes.finfo(got.dtype)
    got = got.astype(np.longdouble)
    unit = np.abs(wanted if unit is None else unit)
    with np.errstate(invalid="ignore"):
        distance = np.abs(got - wanted)
    slack = np.longdouble(0.51) * np.longdouble(info.smallest_subnormal)
    distance = np.where(np.abs(wanted) < np.longdouble(info.smallest_normal), np.maximum(distance - slack, 0), distance)
    exponent = np.frexp(unit)[1] - 1
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        error = np.where(unit == 0, np.inf, distance / np.ldexp(np.longdouble(1), exponent - info.nmant))
    overflowed = np.abs(wanted) >= np.longdouble(info.max) * (1 + np.longdouble(info.eps) / 4)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted)) | (overflowed & (got == np.copysign(np.inf, wanted)))
    return np.where(same | (distance == 0), 0, np.where(np.isnan(error), np.inf, error))


def worst(got: NDArray, wanted: Exact, unit: Exact | None = None) -> float:
    return float(np.max(ulp_error(np.asarray(got), wanted, unit), initial=0))


def assert_within(bound: float, got: NDArray, wanted: Exact, unit: Exact | None = None) -> None:
    error = worst(got, wanted, unit)
    assert error <= bound, f"{error:.4g} ULP"


class Slices:
    """Exact results for `x`, whose slices lie along `axis`: finite, or -inf beside a finite value.

    In a long slice only the sum is special, so with `every` = n > 1 only every n-th class and the largest are kept.
    """

    def __init__(
        self, x: ArrayLike, axis: int = -1, temperature: float = 1.0, where: NDArray | None = None, every: int = 1
    ):
        self.axis = axis
        x = np.asarray(x).astype(np.longdouble)
        if where is not None:
            x = np.where(where, x, -np.inf)
        self.temperature = np.longdouble(temperature)
        self.peak = np.max(x, axis=axis, keepdims=True)
        self.argmax = np.argmax(x, axis=axis)
        self.entries = None if every == 1 else np.union1d(np.arange(0, x.shape[axis], every), self.argmax)
        is_peak = np.zeros(x.shape, bool)
        np.put_along_axis(is_peak, np.expand_dims(self.argmax, axis), True, axis)
        high, low = _two_part_difference(x, self.peak)
        if temperature != 1:
            high, low = _two_part_quotient(high, low, self.temperature)
        # For large negative numbers exp is slow, and its result is 0 in every dtype.
        exp = np.exp(high, where=high > -11_000, out=np.zeros_like(high)) * (1 + low)
        # The sum without the peak's own 1. NumPy sums pairwise, as a million terms need, only along the last axis.
        others = np.ascontiguousarray(np.moveaxis(np.where(is_peak, 0, exp), axis, -1))
        self.rest = np.expand_dims(np.sum(others, axis=-1), axis)
        with np.errstate(invalid="ignore"):
            weighed = np.where(exp == 0, 0, -exp * (high + low))
        self.weighed = np.sum(np.ascontiguousarray(np.moveaxis(weighed, axis, -1)), axis=-1)
        self.x, self.is_peak, self.high, self.low, self.exp = map(self.seen, (x, is_peak, high, low, exp))

    def seen(self, result: NDArray) -> NDArray:
        """The entries of `result` for the classes that are kept."""
        return result if self.entries is None else np.take(result, self.entries, self.axis)

    def one_hot(self, targets: NDArray) -> Exact:
        """The share of each class (see `shares`) if targets are class indices, all of classes that are kept."""
        classes = np.arange(self.x.shape[self.axis]) if self.entries is None else self.entries
        along = np.expand_dims(classes, tuple(range(1, self.x.ndim))).swapaxes(0, self.axis)
        return (np.expand_dims(targets, self.axis) == along).astype(np.longdouble)

    @cached_property
    def softmax(self) -> Exact:
        return self.exp / (1 + self.rest)

    @cached_property
    def others(self) -> Exact:
        """1 - softmax, without cancellation."""
        return np.where(self.is_peak, self.rest, 1 + self.rest - self.exp) / (1 + self.rest)

    @cached_property
    def log_softmax(self) -> Exact:
        return self.high - (np.log1p(self.rest) - self.low)

    @cached_property
    def logsumexp(self) -> Exact:
        return np.squeeze(self.peak + self.temperature * np.log1p(self.rest), self.axis)

    @cached_property
    def entropy(self) -> Exact:
        """The sum of two terms that are not negative."""
        rest = np.squeeze(self.rest, self.axis)
        return np.log1p(rest) + self.weighed / (1 + rest)

    def cross_entropy(self, share: Exact) -> Exact:
        """The loss of each slice; `share` is the coefficient of each class (see `shares`)."""
        with np.errstate(invalid="ignore"):
            return np.sum(np.where(share == 0, 0, -share * self.log_softmax), axis=self.axis)

    def cross_entropy_grad(self, share: Exact) -> Exact:
        """softmax * sum(share) - share, arranged so that nothing cancels unless the result itself does."""
        total = np.sum(share, axis=self.axis, keepdims=True)
        return (self.softmax * (total - share) - share * self.others) / self.temperature

    def kl_divergence(self, q: "Slices") -> Exact:
        """The divergence of this distribution from that of `q`.

        Computed in a form without negative terms, in which errors of the normalisers are of second order.
        """
        d, p = self.log_ratio(q), self.softmax
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            terms = np.where(self.exp == 0, q.softmax, np.where(np.abs(d) < 0.5, p * _bend(d), p * d + (q.softmax - p)))
        return np.sum(terms, axis=self.axis)

    def size_of_divergence(self, q: "Slices") -> Exact:
        """The sum of |p (log p - log q)|."""
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            return np.sum(np.where(self.exp == 0, 0, np.abs(self.softmax * self.log_ratio(q))), axis=self.axis)

    def log_ratio(self, q: "Slices") -> Exact:
        """log p - log q, arranged to keep its digits where scores are nearly equal or have a common offset."""
        high, low = _two_part_difference(self.x, q.x)
        peaks, rest = _two_part_difference(self.peak, q.peak)
        with np.errstate(invalid="ignore"):
            apart = ((high - peaks) + (low - rest)) / self.temperature
            return apart - (np.log1p(self.rest) - np.log1p(q.rest))

    def kl_divergence_grad(self, q: "Slices") -> tuple[Exact, Exact]:
        """The gradient with respect to the scores of `q`, and its unit: the larger probability, times the largest
        difference of log-probabilities if that is below 1.
        """
        d = self.log_ratio(q)
        with np.errstate(invalid="ignore", over="ignore"):
            near = self.softmax * np.expm1(-d)
        grad = np.where(np.abs(d) < 0.5, near, q.softmax - self.softmax)
        apart = np.max(np.where(np.isnan(d), 0, np.abs(d)), axis=self.axis, keepdims=True)
        unit = np.maximum(self.softmax, q.softmax) * np.minimum(1, apart)
        return grad / self.temperature, unit / self.temperature

    def cross_entropy_hess(self, share: Exact) -> Exact:
        total = np.sum(share, axis=self.axis, keepdims=True)
        return total * self.softmax * self.others / self.temperature**2


def _bend(d: Exact) -> Exact:
    """exp(-d) - 1 + d for |d| < 1/2."""
    series, term = np.zeros_like(d), np.ones_like(d)
    for k in range(1, 26):
        term = -term * d / k
        if k > 1:
            series = series + term
    return series


def softmax_grad(y: NDArray, dy: NDArray, axis: int, temperature: float = 1) -> tuple[Exact, Exact]:
    """The gradient, and its condition: the sizes of the terms that it is a difference of."""
    u, v, t = y.astype(np.longdouble), dy.astype(np.longdouble), np.longdouble(temperature)
    condition = np.abs(u) * (np.abs(v) + np.sum(np.abs(u * v), axis, keepdims=True))
    return u * (v - np.sum(u * v, axis, keepdims=True)) / t, condition / t


def log_softmax_grad(logp: NDArray, dy: NDArray, axis: int, temperature: float = 1) -> tuple[Exact, Exact]:
    """The gradient, and its condition: the sizes of the terms that it is a difference of."""
    u, v, t = np.exp(logp.astype(np.longdouble)), dy.astype(np.longdouble), np.longdouble(temperature)
    condition = np.abs(v) + u * np.sum(np.abs(v), axis, keepdims=True)
    return (v - u * np.sum(v, axis, keepdims=True)) / t, condition / t


def shares(
    shape: tuple[int, ...],
    axis: int,
    targets: NDArray,
    weight: NDArray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Exact:
    """The coefficient of each class in the loss of its slice: smoothed target probability times weight."""
    classes = shape[axis]
    weights = np.ones(classes) if weight is None else weight
    weights = np.expand_dims(weights, tuple(range(1, len(shape)))).swapaxes(0, axis).astype(np.longdouble)
    smooth = np.longdouble(label_smoothing)
    if targets.shape == shape and targets.dtype.kind not in "iu":
        return (targets.astype(np.longdouble) * (1 - smooth) + smooth / classes) * weights
    numbers = np.expand_dims(np.arange(classes), tuple(range(1, len(shape)))).swapaxes(0, axis)
    chosen = np.expand_dims(targets, axis) == numbers
    share = np.where(chosen, weights, 0) * (1 - smooth) * np.ones(shape, np.longdouble) + smooth / classes * weights
    return share if ignore_index is None else np.where(np.expand_dims(targets == ignore_index, axis), 0, share)


def _two_part_difference(a: Exact, b: Exact) -> tuple[Exact, Exact]:
    """a - b, rounded, and the error of the rounding (Knuth's TwoSum)."""
    with np.errstate(invalid="ignore"):
        high = a - b
        part = high - a
        low = (a - (high - part)) - (b + part)
    return high, np.where(np.isfinite(high), low, 0)


def _two_part_quotient(high: Exact, low: Exact, divisor: np.longdouble) -> tuple[Exact, Exact]:
    quotient = high / divisor
    a, b = _halves(quotient)
    c, d = _halves(divisor)
    with np.errstate(invalid="ignore"):
        remainder = ((high - a * c) - a * d) - b * c - b * d
    return quotient, np.where(np.isfinite(quotient), (remainder + low) / divisor, 0)


def _halves(a: Exact) -> tuple[Exact, Exact]:
    """Two parts with half as many bits each (Dekker)."""
    with np.errstate(invalid="ignore"):
        scaled = a * np.longdouble(2**32 + 1)
        upper = scaled - (scaled - a)
        return upper, a - upper


def unit_roundoff(dtype: DTypeLike) -> float:
    return float(ml_dtypes.finfo(dtype).eps) / 2
