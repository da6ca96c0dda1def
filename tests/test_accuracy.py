"""How far results are from the exact ones: the bounds of the contract in ULP, in every loop shape and family of input.

A bound that depends on the input says on what, in the test that checks it.
"""

from functools import lru_cache

import fastsoftmax as fs
import ml_dtypes
import numpy as np
import precision
import pytest
from arrays import FAMILIES, FLOATING, LONG_SIZES, SIZES, Inputs, family
from fastsoftmax import _core
from precision import assert_within

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here"),
]

SOFTMAX = {2: 0.51, 4: 2, 8: 2}  # by the bytes of an element: half precision is rounded once
LOG_SOFTMAX = {2: 0.51, 4: 2, 8: 2}
LOGSUMEXP = {2: 0.51, 4: 1, 8: 1}  # of max(|result|, |largest logit|)
LOGSUMEXP_OF_MAX_0 = {2: 0.51, 4: 2, 8: 2}
CROSS_ENTROPY = {2: 2, 4: 2, 8: 2}  # float32 for half precision
CROSS_ENTROPY_GRAD = {2: 0.52, 4: 3, 8: 3}

ROWS, TILES = ((24, 333), 1), ((333, 24), 0)
FEW = [((50, classes), axis) for classes in (2, 3, 4, 5, 8, 10, 16, 17, 31, 32) for axis in (0, 1)]
SHAPES = {
    "rows": [ROWS, ((3, 4097), 1)],
    "tiles": [TILES, ((4, 130, 5), 1)],
    "few classes": [(shape[:: 1 if axis else -1], axis) for shape, axis in FEW],
    "long slice": [((1, 70_001), 1), ((70_001, 2), 0)],
}

# References of long slices take long, and what is special about them is the sum: fewer families, and no half precision.
LONG_FAMILIES = ["normal 10", "ahead by 20", "all equal", "sorted", "random bits"]
LOOPS = [(loop, dtype) for loop in SHAPES for dtype in FLOATING if loop != "long slice" or dtype.itemsize > 2]
CASES = [(name, *loop) for name in FAMILIES for loop in LOOPS if loop[0] != "long slice" or name in LONG_FAMILIES]

each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
each_loop = pytest.mark.parametrize(("loop", "dtype"), LOOPS, ids=str)
each_case = pytest.mark.parametrize(("name", "loop", "dtype"), CASES, ids=str)


@lru_cache(maxsize=8)
def slices(name, shape, axis, dtype):
    """Logits, and their exact results."""
    x = family(name, shape, dtype, axis)
    return x, precision.Slices(x, axis)


def some_families(loop, *names):
    return names[:1] if loop == "long slice" else names


def indices_of(exact):
    """A class for each slice: the largest, and others."""
    classes = exact.x.shape[exact.axis]
    targets = np.argmax(exact.x, axis=exact.axis)
    flat = targets.reshape(-1)
    flat[1::3] = np.arange(len(flat))[1::3] % classes
    return targets


@each_case
def test_transforms_and_losses_keep_their_bounds(name, dtype, loop):
    size = dtype.itemsize
    for shape, axis in SHAPES[loop]:
        x, exact = slices(name, shape, axis, dtype)
        assert_within(SOFTMAX[size], fs.softmax(x, axis), exact.softmax)
        assert_within(LOG_SOFTMAX[size], fs.log_softmax(x, axis), exact.log_softmax)
        largest = np.maximum(np.abs(exact.logsumexp), np.abs(np.squeeze(exact.peak, axis)))
        assert_within(LOGSUMEXP[size], fs.logsumexp(x, axis), exact.logsumexp, largest)
        targets = indices_of(exact)
        share = precision.shares(shape, axis, targets)
        loss, grad = fs.cross_entropy_with_grad(x, targets, axis, reduction="none")
        assert_within(CROSS_ENTROPY[size], loss, exact.cross_entropy(share))
        assert_within(CROSS_ENTROPY_GRAD[size], grad, exact.cross_entropy_grad(share))


@each_dtype
def test_transforms_and_losses_keep_their_bounds_for_every_size(dtype):
    size = dtype.itemsize
    for classes in SIZES:
        for shape, axis in [((5, classes), 1), ((classes, 5), 0)]:
            x, exact = slices("normal 10", shape, axis, dtype)
            targets = indices_of(exact)
            share = precision.shares(shape, axis, targets)
            loss, grad = fs.cross_entropy_with_grad(x, targets, axis, reduction="none")
            assert_within(SOFTMAX[size], fs.softmax(x, axis), exact.softmax)
            assert_within(LOG_SOFTMAX[size], fs.log_softmax(x, axis), exact.log_softmax)
            assert_within(CROSS_ENTROPY[size], loss, exact.cross_entropy(share))
            assert_within(CROSS_ENTROPY_GRAD[size], grad, exact.cross_entropy_grad(share))


@pytest.mark.parametrize("classes", LONG_SIZES)
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_long_slices_keep_their_bounds(dtype, classes):
    for name in ("normal 1", "ahead by 20"):
        x = family(name, (classes,), dtype)
        exact = precision.Slices(x, 0)
        assert_within(SOFTMAX[dtype.itemsize], fs.softmax(x), exact.softmax)
        assert_within(LOG_SOFTMAX[dtype.itemsize], fs.log_softmax(x), exact.log_softmax)
        share = np.zeros(classes, np.longdouble)
        share[np.argmax(x)] = 1
        loss, grad = fs.cross_entropy_with_grad(x, np.argmax(x), reduction="none")
        assert_within(CROSS_ENTROPY[dtype.itemsize], loss, exact.cross_entropy(share))
        assert_within(CROSS_ENTROPY_GRAD[dtype.itemsize], grad, exact.cross_entropy_grad(share))


@each_case
def test_logsumexp_keeps_what_it_adds_to_a_maximum_of_zero(name, dtype, loop):
    for shape, axis in SHAPES[loop]:
        x = family(name, shape, dtype, axis).astype(np.longdouble)
        x = np.maximum(x - x.max(axis, keepdims=True), float(ml_dtypes.finfo(dtype).min)).astype(dtype)
        exact = precision.Slices(x, axis)
        assert_within(LOGSUMEXP_OF_MAX_0[dtype.itemsize], fs.logsumexp(x, axis), exact.logsumexp)


@each_dtype
def test_what_far_blocks_of_a_long_slice_add_is_not_lost(dtype):
    x = family("subnormal results", (3, 40_000), dtype)
    for a, axis in [(x, 1), (np.ascontiguousarray(x.T), 0)]:
        exact = precision.Slices(a, axis)
        assert_within(LOG_SOFTMAX[dtype.itemsize], fs.log_softmax(a, axis), exact.log_softmax)
        assert_within(LOGSUMEXP_OF_MAX_0[dtype.itemsize], fs.logsumexp(a, axis), exact.logsumexp)


@each_dtype
@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 10_000, 300_000])
def test_probabilities_sum_to_one(classes, dtype):
    bound = 4 if classes <= 1000 else np.sqrt(classes)
    for name in ("normal 0.1", "normal 1", "normal 10", "ahead by 5"):
        x = family(name, (max(1, 2000 // classes), classes), dtype)
        for a, axis in [(x, 1), (np.ascontiguousarray(x.T), 0)]:
            total = fs.softmax(a, axis).astype(np.longdouble).sum(axis)
            error = np.abs(total - 1) / float(ml_dtypes.finfo(dtype).eps)
            # Half precision rounds each probability, below its smallest normal by up to half of the smallest subnormal.
            slack = classes / 2 * float(ml_dtypes.finfo(dtype).smallest_subnormal) / float(ml_dtypes.finfo(dtype).eps)
            assert error.max() <= bound + slack


# Arguments. `temperature` may round x / T once, which is felt relative to |x / T|.


@each_loop
@pytest.mark.parametrize("temperature", [0.3, 0.7, 3.0, 1000.0, 1e-3])
def test_temperature_costs_one_rounding_of_the_quotient(temperature, dtype, loop):
    for name in some_families(loop, "normal 10", "normal 0.1", "normal 1", "common offset"):
        for shape, axis in SHAPES[loop]:
            x = family(name, shape, dtype, axis)
            exact = precision.Slices(x, axis, temperature)
            computed = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
            shift = quotient_rounding(x, axis, temperature, computed)
            softmax, log_softmax = (f(x, axis, temperature=temperature) for f in (fs.softmax, fs.log_softmax))
            ulp = float(ml_dtypes.finfo(dtype).eps) / 2
            assert_within_each(SOFTMAX[dtype.itemsize] + shift / ulp, softmax, exact.softmax)
            change = shift / np.maximum(np.abs(exact.log_softmax), np.finfo(np.float64).tiny)
            assert_within_each(LOG_SOFTMAX[dtype.itemsize] + change / ulp, log_softmax, exact.log_softmax)


def quotient_rounding(x, axis, temperature, computed):
    """How much a slice's log-probabilities move if each x / T is rounded once, to the nearest."""
    largest = np.max(np.abs(x.astype(np.longdouble)), axis=axis, keepdims=True)
    return 2 * largest / temperature * precision.unit_roundoff(computed)


def assert_within_each(bounds, got, wanted):
    excess = precision.ulp_error(got, wanted) / bounds
    assert excess.max(initial=0) <= 1, f"{float(excess.max()):.4g} of the bound"


@each_loop
def test_where_keeps_the_bounds_of_the_entries_that_take_part(dtype, loop, rng):
    for name in some_families(loop, "normal 1", "normal 40", "ahead by 20", "subnormal results"):
        for shape, axis in SHAPES[loop]:
            x = family(name, shape, dtype, axis)
            shown = rng.uniform(size=shape) < 0.7
            np.moveaxis(shown, axis, -1)[..., 0] = True
            exact = precision.Slices(x, axis, where=shown)
            softmax, log_softmax = fs.softmax(x, axis, where=shown), fs.log_softmax(x, axis, where=shown)
            assert_within(SOFTMAX[dtype.itemsize], softmax, exact.softmax)
            assert_within(LOG_SOFTMAX[dtype.itemsize], log_softmax, exact.log_softmax)
            largest = np.maximum(np.abs(exact.logsumexp), np.abs(np.squeeze(exact.peak, axis)))
            assert_within(LOGSUMEXP[dtype.itemsize], fs.logsumexp(x, axis, where=shown), exact.logsumexp, largest)


@each_dtype
def test_widening_keeps_the_bounds_of_the_wider_dtype(dtype):
    for name in ("normal 10", "ahead by 20"):
        x, exact = slices(name, *ROWS, dtype)
        for wide in (w for w in FLOATING[2:] if w.itemsize >= dtype.itemsize):
            assert_within(SOFTMAX[wide.itemsize], fs.softmax(x, dtype=wide), exact.softmax)
            assert_within(LOG_SOFTMAX[wide.itemsize], fs.log_softmax(x, dtype=wide), exact.log_softmax)


SOFT_OPTIONS = {
    "weight": {"weight": "weight"},
    "smoothing": {"label_smoothing": 0.1},
    "weight and smoothing": {"weight": "weight", "label_smoothing": 0.1},
}


@each_loop
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("options", SOFT_OPTIONS.values(), ids=SOFT_OPTIONS)
def test_weighted_and_smoothed_losses_are_right_to_four_ulp(dtype, options, targets, loop):
    """The gradient is a difference: four ULP of the two terms that it is the difference of."""
    for name in some_families(loop, "normal 10", "normal 1", "ahead by 20"):
        for shape, axis in SHAPES[loop]:
            x = family(name, shape, dtype, axis)
            a = Inputs.of(np.moveaxis(x, axis, -1)).move(axis)
            given = {k: a.weight if v == "weight" else v for k, v in options.items()}
            chosen = getattr(a, targets)
            exact = precision.Slices(x, axis)
            share = precision.shares(shape, axis, chosen, **given)
            loss, grad = fs.cross_entropy_with_grad(x, chosen, axis, reduction="none", **given)
            assert_within(4, loss, exact.cross_entropy(share))
            terms = np.maximum(exact.softmax * share.sum(axis, keepdims=True), share)
            assert_within(4 if dtype.itemsize > 2 else 1, grad, exact.cross_entropy_grad(share), terms)


@each_loop
@pytest.mark.parametrize("name", ["normal 1", "normal 40", "ahead by 50", "all equal", "subnormal results"])
def test_gradients_of_transforms_are_right_to_the_condition_of_their_sum(name, dtype, loop):
    """Four ULP of the magnitude of both terms, where the second is the sum of magnitudes."""
    for shape, axis in SHAPES[loop]:
        x = family(name, shape, dtype, axis)
        a = Inputs.of(np.moveaxis(x, axis, -1)).move(axis)
        y, logp, dy = fs.softmax(x, axis), fs.log_softmax(x, axis), a.dy.astype(np.longdouble)
        exact_y, exact_exp = y.astype(np.longdouble), np.exp(logp.astype(np.longdouble))
        size = np.sum(np.abs(exact_y * dy), axis, keepdims=True)
        wanted = exact_y * (dy - np.sum(exact_y * dy, axis, keepdims=True))
        got = fs.softmax_grad(y, a.dy, axis)
        assert_within(4, got, wanted, exact_y * (np.abs(dy) + size))
        size = np.sum(np.abs(dy), axis, keepdims=True)
        wanted = dy - exact_exp * np.sum(dy, axis, keepdims=True)
        got = fs.log_softmax_grad(logp, a.dy, axis)
        assert_within(4, got, wanted, np.abs(dy) + exact_exp * size)


@each_loop
def test_a_signed_sum_is_right_to_the_condition_of_the_sum(dtype, loop, rng):
    """An ULP of the largest logit, and two roundings relative to the sum of the magnitudes."""
    for name in some_families(loop, "normal 1", "normal 10", "common offset"):
        for shape, axis in SHAPES[loop]:
            x = family(name, shape, dtype, axis)
            b = rng.normal(size=shape).astype(dtype)
            exact = precision.Slices(x, axis)
            terms = exact.exp * b.astype(np.longdouble)
            total, size = terms.sum(axis), np.abs(terms).sum(axis)
            result, sign = fs.logsumexp(x, axis, b=b, return_sign=True)
            wanted = np.squeeze(exact.peak, axis) + np.log(np.abs(total))
            computed = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
            condition = 2 * precision.unit_roundoff(computed) * size / np.abs(total)
            one = np.maximum(np.abs(wanted), np.abs(np.squeeze(exact.peak, axis)))
            distance = np.abs(result.astype(np.longdouble) - wanted)
            assert (distance <= condition + one * float(ml_dtypes.finfo(dtype).eps)).all()
            assert (sign == np.sign(total)).all()


# The kernels' own exp and log1p.

TARGETS = _core.describe()["targets_usable"]
each_target = pytest.mark.parametrize("target", TARGETS)


def kernel_exp(x, target):
    out = np.empty_like(x)
    _core.exp(x, out, target)
    return out


@each_target
def test_exp_of_every_float32_of_the_outer_reduced_range_is_right_to_an_ulp(target):
    """|r| in [ln2 / 8, ln2 / 2], both signs: below it, the polynomial has less to do."""
    low, high = np.array([np.log(2) / 8, np.log(2) / 2], np.float32).view(np.uint32)
    for start in range(low, high, 1 << 20):
        r = np.arange(start, min(start + (1 << 20), high), dtype=np.uint32).view(np.float32)
        for x in (r, -r):
            wanted = np.exp(x.astype(np.float64))  # its own error is 2^-29 of an ULP here
            error = np.abs(kernel_exp(x, target) - wanted) / np.where(wanted < 1, 2.0**-24, 2.0**-23)
            assert error.max() <= 1


@each_target
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_exp_is_right_to_an_ulp_over_its_range(target, dtype, rng):
    info = np.finfo(dtype)
    low, high = np.log(info.smallest_normal) + 0.5, np.log(info.max) - 0.5
    x = np.concatenate(
        [
            rng.uniform(low, high, 300_000),
            rng.uniform(-1, 1, 100_000),
            np.sign(rng.normal(size=100_000)) * 2.0 ** rng.uniform(-60, 0, 100_000),
            (np.arange(low / np.log(2), high / np.log(2), 0.5) * np.log(2)),  # where the reduction changes
        ]
    ).astype(dtype)
    x = np.unique(np.concatenate([x, np.nextafter(x, dtype.type(np.inf)), np.nextafter(x, dtype.type(-np.inf))]))
    x = x[(x > low) & (x < high)]
    wanted = np.exp(x.astype(np.longdouble))
    assert_within(1, kernel_exp(x, target), wanted)


@each_target
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_exp_is_right_or_zero_below_the_smallest_normal_number(target, dtype):
    """Kernels scale their exponentials, so that what is lost here is far below the smallest result."""
    low = np.log(np.finfo(dtype).smallest_normal)
    x = np.linspace(2 * low, low + 0.5, 100_001).astype(dtype)
    got = kernel_exp(x, target)
    assert_within(1, got[got > 0], np.exp(x[got > 0].astype(np.longdouble)))
    assert (got[x < low - 1] == 0).all()
    assert (kernel_exp(np.array([-np.inf, np.finfo(dtype).min, -1e30], dtype), target) == 0).all()


@each_target
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_log1p_is_right_to_an_ulp(target, dtype, rng):
    x = np.concatenate(
        [2.0 ** rng.uniform(-1000, 30, 200_000), rng.uniform(0, 4, 200_000), [0, 2.0**-1022, 1, 2.0**40]]
    )
    out = np.empty(x.shape, dtype)
    _core.log1p(x, out, target)
    assert_within(1, out, np.log1p(x.astype(np.longdouble)))
