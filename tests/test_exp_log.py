"""The kernels' own exp and log1p keep the bounds that their comments state, on every target."""

import numpy as np
import precision
import pytest
from arrays import FLOATING
from fastsoftmax import _core
from precision import assert_within

pytestmark = pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")

each_target = pytest.mark.parametrize("target", _core.describe()["targets_usable"])
each_wide_dtype = pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)


def kernel_exp(x, target):
    """The kernels' exponentials, and the constant factor in them."""
    out = np.empty_like(x)
    factor = _core.exp(x, out, target)
    return out, factor


def kernel_log1p(x, dtype, target):
    out = np.empty(x.shape, dtype)
    _core.log1p(x, out, target)
    return out


def worst_of_every_float32(target, low, high):
    """The largest relative error of exp over all float32 of [low, high] and of [-high, -low], in units of 2^-24."""
    first, last = map(int, np.array([low, high], np.float32).view(np.uint32))
    chunk = 1 << 16
    worst = 0.0
    for start in range(first, last + 1, chunk):
        r = np.arange(start, min(start + chunk, last + 1), dtype=np.uint32).view(np.float32)
        for x in (r, -r):
            got, factor = kernel_exp(x, target)
            wanted = factor * np.exp(x.astype(np.float64))  # its own error is 2^-28 of an ULP here
            worst = max(worst, np.max(np.abs(got - wanted) / wanted))
    return worst * 2.0**24


@each_target
def test_exp_of_every_float32_is_right_to_little_more_than_its_rounding(target):
    """The relative error counts, because it becomes that of softmax."""
    assert worst_of_every_float32(target, 2.0**-24, 83.0) <= 1.09
    r = np.concatenate([2.0 ** np.arange(-149, -24), [0]]).astype(np.float32)
    one, _ = kernel_exp(np.zeros(1, np.float32), target)
    assert (kernel_exp(r, target)[0] == one).all()
    assert (kernel_exp(-np.nextafter(r[:-1], np.float32(0)), target)[0] == one).all()


@each_target
def test_exp_of_float64_is_right_to_little_more_than_its_rounding(target, rng):
    info = np.finfo(np.float64)
    low, high = np.log(info.smallest_normal) + 4, np.log(info.max) - 0.5
    eighths = np.arange(low / np.log(2), high / np.log(2), 0.125) * np.log(2)
    changes = eighths + np.log(2) / 16  # where the reduction changes
    x = np.concatenate(
        [
            rng.uniform(low, high, 200_000),
            rng.uniform(-8, 8, 200_000),
            rng.uniform(-0.35, 0.35, 100_000),
            np.sign(rng.normal(size=50_000)) * 2.0 ** rng.uniform(-60, 0, 50_000),
            (changes[:, np.newaxis] * (1 + rng.uniform(-1e-3, 1e-3, (len(changes), 10)))).ravel(),
            *(where * (1 + k * info.eps) for k in range(-3, 4) for where in (eighths, changes)),
        ]
    )
    x = x[(x > low) & (x < high)]
    got, factor = kernel_exp(x, target)
    wanted = factor * np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(got - wanted) / wanted) <= 1.15 * 2.0**-53


@each_target
@each_wide_dtype
def test_exp_below_the_smallest_normal_number_is_off_by_less_than_that(target, dtype):
    """Kernels scale their exponentials, so that errors of this size are far below the smallest result."""
    info = np.finfo(dtype)
    low = np.log(info.smallest_normal)
    x = np.linspace(2 * low, low + 0.5, 100_001).astype(dtype)
    got, factor = kernel_exp(x, target)
    wanted = factor * np.exp(x.astype(np.longdouble))
    assert (np.abs(got - wanted) <= info.smallest_normal * 0.55).all()
    assert (got[x < low - 1] == 0).all()
    assert (kernel_exp(np.array([-np.inf, info.min, -1e30], dtype), target)[0] == 0).all()


@each_target
@each_wide_dtype
def test_log1p_is_right_to_little_more_than_its_rounding(target, dtype, rng):
    x = np.concatenate(
        [
            2.0 ** rng.uniform(-1000, 30, 100_000),
            2.0 ** rng.uniform(-3, 3, 200_000),
            rng.uniform(0, 4, 200_000),
            np.sqrt(2) - 1 + np.arange(-1000, 1000) * 2.0**-54,  # where the reduction changes
            2.0 ** np.arange(1, 40) * np.sqrt(2) - 1,
            [0, 2.0**-1022, 1, 2.0**40],
        ]
    )
    bound = 0.55 if dtype.itemsize == 4 else 0.54
    assert_within(bound, kernel_log1p(x, dtype, target), np.log1p(x.astype(np.longdouble)))
