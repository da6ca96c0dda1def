"""The longdouble results that the accuracy tests rely on, compared with mpmath at 400 digits."""

import mpmath
import numpy as np
import precision
import pytest
from arrays import FAMILIES, family

pytestmark = pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")

FLOAT64 = np.dtype("float64")
TARGET = 3


def by_mpmath(x, temperature=1.0, repeats=1):
    """softmax, log_softmax, logsumexp, the entropy, and the gradient of cross_entropy, of one slice.

    All except the gradient are those of a slice that holds each number of `x` `repeats` times.
    """
    with mpmath.workdps(400):
        logits = [mpmath.mpf(float(v)) / mpmath.mpf(temperature) for v in x]
        peak = max(logits)
        total = repeats * mpmath.fsum(mpmath.exp(v - peak) for v in logits)
        softmax = [mpmath.exp(v - peak) / total for v in logits]
        log_softmax = [v - peak - mpmath.log(total) for v in logits]
        entropy = repeats * mpmath.fsum(-p * logp for p, logp in zip(softmax, log_softmax, strict=True) if p > 0)
        grad = [p / temperature for p in softmax]
        grad[TARGET] = -mpmath.fsum(p for i, p in enumerate(softmax) if i != TARGET) / temperature
        return tuple(
            np.array([_longdouble(v) for v in values])
            for values in (softmax, log_softmax, [temperature * (peak + mpmath.log(total))], [entropy], grad)
        )


def _longdouble(value):
    if not mpmath.isfinite(value):
        return np.longdouble(float(value))
    mantissa, exponent = mpmath.frexp(value)
    high = float(mantissa)
    return np.ldexp(np.longdouble(high) + np.longdouble(float(mantissa - high)), max(int(exponent), -99_999))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", FAMILIES)
def test_longdouble_results_are_right_to_a_fiftieth_of_a_float64_ulp(name, temperature):
    for x in family(name, (2, 40), FLOAT64):
        slices = precision.Slices(x, temperature=temperature)
        softmax, log_softmax, logsumexp, entropy, grad = by_mpmath(x, temperature)
        share = precision.shares(x.shape, 0, np.asarray(TARGET))
        largest = abs(x[np.isfinite(x)]).max()
        assert error(slices.softmax, softmax) <= 0.02
        assert error(slices.log_softmax, log_softmax) <= 0.02
        assert error(slices.logsumexp, logsumexp[0], np.maximum(abs(logsumexp[0]), largest)) <= 0.02
        assert error(slices.entropy, entropy[0]) <= 0.02
        assert error(slices.cross_entropy(share), -log_softmax[TARGET]) <= 0.02
        assert error(slices.cross_entropy_grad(share), grad) <= 0.02


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["normal 0.1", "normal 40", "ahead by 50", "near ties"])
def test_longdouble_results_of_a_million_classes_are_equally_right(name, axis):
    """mpmath is too slow for a million numbers, so they are 40 numbers, each repeated 25,000 times."""
    x = family(name, (40,), FLOAT64)
    order = np.random.default_rng(0).permutation(1_000_000)
    many = np.tile(x, 25_000)[order]
    slices = precision.Slices(np.stack([many, many], axis=1 - axis), axis, every=99_991)
    softmax, log_softmax, logsumexp, entropy, _ = by_mpmath(x, repeats=25_000)
    for got, wanted in [(slices.softmax, softmax), (slices.log_softmax, log_softmax)]:
        for one in np.moveaxis(got, axis, -1):
            assert error(one, wanted[order[slices.entries] % 40]) <= 0.02
    assert error(slices.logsumexp, logsumexp[0], np.maximum(abs(logsumexp[0]), abs(x).max())) <= 0.02
    assert error(slices.entropy, entropy[0]) <= 0.02


def error(got, wanted, unit=None):
    """The largest error relative to `unit`, in units of float64's roundoff, wherever float64 reaches."""
    unit = np.abs(wanted if unit is None else unit)
    reaches = unit >= np.finfo(np.float64).smallest_subnormal
    scale = np.where(reaches, unit, 1) * np.finfo(np.float64).eps / 2
    with np.errstate(invalid="ignore"):  # equal infinities
        distance = np.abs(got - wanted)
    return float(np.max(np.where(reaches & (got != wanted), distance / scale, 0)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_ulp_is_the_spacing_of_the_numbers(dtype):
    one = np.ones(1, dtype)
    assert precision.worst(np.nextafter(one, one * 2), one.astype(np.longdouble)) == 1
    assert precision.worst(np.nextafter(one, one * 0), one.astype(np.longdouble)) == 0.5
    assert precision.worst(one, one.astype(np.longdouble)) == 0


def test_a_flush_to_zero_is_an_error_of_many_ulp():
    smallest = np.finfo(np.float32).smallest_subnormal
    assert precision.worst(np.zeros(1, np.float32), np.full(1, smallest, np.longdouble)) > 1e6
    assert precision.worst(np.zeros(1, np.float32), np.full(1, 0.4 * smallest, np.longdouble)) == 0
    assert precision.worst(np.ones(1, np.float32), np.zeros(1, np.longdouble)) == np.inf
    assert precision.worst(np.full(1, np.nan, np.float32), np.zeros(1, np.longdouble)) == np.inf
