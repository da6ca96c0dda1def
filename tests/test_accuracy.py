"""Results keep the error bounds of `contract.py`, in ULP of the exact results, in every loop and family of inputs."""

from itertools import product

import contract
import fastsoftmax as fs
import ml_dtypes
import mpmath
import numpy as np
import precision
import pytest
from arrays import END_SIZES, END_SLICES, ENDS, FAMILIES, FLOATING, LONG_SIZES, SIZES, family
from precision import assert_within, ulp_error

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here"),
]

FEW = [((50, classes), axis) for classes in (2, 3, 4, 5, 8, 10, 16, 17, 31, 32, 50, 55, 56) for axis in (0, 1)]
LOOPS = {
    "rows": [((24, 333), 1), ((3, 4097), 1)],
    "lines": [((333, 24), 0), ((4, 130, 5), 1), ((4, 30, 333), 1)],
    "few classes": [(shape[:: 1 if axis else -1], axis) for shape, axis in FEW],
    "ends": [case for slices, classes in ENDS for case in (((slices, classes), 1), ((classes, slices), 0))],
}
ARGUMENT_SHAPES = [((8, 333), 1), ((333, 20), 0), ((40, 2), 1), ((40, 10), 1), ((3, 40), 0)]
LONG = [((1, 70_001), 1), ((70_001, 2), 0)]

each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
each_wide_dtype = pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
each_family = pytest.mark.parametrize("name", FAMILIES)
each_loop = pytest.mark.parametrize("loop", LOOPS)


def assert_kept(dtype, checks):
    for function, errors in checks:
        error, bound = np.max(errors, initial=0), contract.BOUNDS[function].of(dtype)
        assert error <= bound, f"{function}: {error:.4g} ULP, {bound} allowed"


@each_family
@each_loop
@each_dtype
def test_transforms_and_losses_keep_their_bounds(name, dtype, loop):
    for shape, axis in LOOPS[loop]:
        x = family(name, shape, dtype, axis)
        assert_kept(dtype, contract.plain(fs, x, axis, precision.Slices(x, axis)))
        assert_kept(dtype, contract.largest_zero(fs, x, axis))


@each_dtype
def test_transforms_and_losses_keep_their_bounds_for_every_size(dtype):
    shapes = [*((5, classes) for classes in SIZES), *product(END_SLICES, END_SIZES)]
    for slices, classes in shapes:
        for shape, axis in [((slices, classes), 1), ((classes, slices), 0)]:
            x = family("normal 10", shape, dtype, axis)
            assert_kept(dtype, contract.plain(fs, x, axis, precision.Slices(x, axis)))


@each_wide_dtype
@pytest.mark.parametrize("others", [4, 16, 128, 3000])
def test_softmax_keeps_its_bound_beside_many_equal_logits(dtype, others):
    """The equal exponentials are all rounded in one direction, and that of the other class in the opposite one."""
    eps = float(np.finfo(dtype).eps)
    for tie in (0.499 * eps, 0.501 * eps):
        for power in (-1, 1, 3, 10):
            near = power * np.log(2) * (1 + eps * np.arange(-40, 40))
            x = np.full((len(near), others + 1), tie, dtype)
            x[:, 0] = near
            assert_kept(dtype, contract.plain(fs, x, 1, precision.Slices(x, 1)))


# Long slices are special only in their sums, and exact results take long: every 61st class is checked.


class InColumns:
    """Calls the functions of the package on two equal columns, and returns the second column of each result."""

    def __getattr__(self, name):
        def call(*arguments, **options):
            columns = [np.stack([a, a], axis=-1) if isinstance(a, np.ndarray) else a for a in arguments]
            result = getattr(fs, name)(*columns, **options)
            return tuple(r[..., 1] for r in result) if isinstance(result, tuple) else result[..., 1]

        return call


def assert_long_slice_keeps_its_bounds(name, dtype, classes):
    x = family(name, (classes,), dtype)
    exact = precision.Slices(x, 0, every=61)
    assert_kept(dtype, contract.plain(fs, x, 0, exact))
    assert_kept(dtype, contract.plain(InColumns(), x, 0, exact))
    assert_kept(dtype, contract.plain(fs, np.repeat(x, 2)[::2], 0, exact))


@each_family
@each_dtype
def test_long_slices_keep_their_bounds(name, dtype):
    assert_long_slice_keeps_its_bounds(name, dtype, 70_001)


@each_family
@each_wide_dtype
def test_a_million_classes_keep_their_bounds(name, dtype):
    assert_long_slice_keeps_its_bounds(name, dtype, 1_000_000)


@pytest.mark.parametrize("classes", LONG_SIZES)
@each_dtype
def test_long_slices_of_every_size_keep_their_bounds(dtype, classes):
    x = family("ahead by 20", (1, classes), dtype)
    assert_kept(dtype, contract.plain(fs, x, 1, precision.Slices(x, 1, every=61)))


@each_dtype
def test_far_blocks_of_a_long_slice_count_in_its_sums(dtype):
    x = family("subnormal results", (3, 40_000), dtype)
    for a, axis in [(x, 1), (np.ascontiguousarray(x.T), 0)]:
        assert_kept(dtype, contract.plain(fs, a, axis, precision.Slices(a, axis)))
        assert_kept(dtype, contract.largest_zero(fs, a, axis))


@each_dtype
@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 10_000, 300_000])
def test_probabilities_sum_to_one(classes, dtype):
    bound = 4 if classes <= 1000 else np.sqrt(classes)
    info = ml_dtypes.finfo(dtype)
    if dtype.itemsize == 2:
        # Below the smallest normal number each probability is rounded by up to half of the smallest subnormal, and
        # most of 300,000 float16 probabilities are 0.
        bound += classes / 2 * float(info.smallest_subnormal) / float(info.eps)
    for name in ("normal 0.1", "normal 1", "normal 10", "ahead by 5", "near ties", "sorted"):
        x = family(name, (max(1, 2000 // classes), classes), dtype)
        for a, axis in [(x, 1), (np.ascontiguousarray(x.T), 0)]:
            total = fs.softmax(a, axis).astype(np.longdouble).sum(axis)
            assert np.max(np.abs(total - 1)) <= bound * float(info.eps)


# Arguments, and gradients of the transforms.


@each_family
@each_dtype
@pytest.mark.parametrize("temperature", [0.7, 3.0, 1000.0, 1e-3])
def test_transforms_and_losses_keep_their_bounds_with_a_temperature(temperature, dtype, name):
    for shape, axis in ARGUMENT_SHAPES:
        assert_kept(dtype, contract.temperature(fs, family(name, shape, dtype, axis), axis, temperature))


@each_family
@each_dtype
@pytest.mark.parametrize(
    "check", [contract.where, contract.targets, contract.gradients, contract.divergences, contract.signed_sum]
)
def test_arguments_and_gradients_keep_their_bounds(check, dtype, name):
    with np.errstate(over="ignore"):
        for shape, axis in ARGUMENT_SHAPES:
            assert_kept(dtype, check(fs, family(name, shape, dtype, axis), axis))


@each_wide_dtype
def test_arguments_and_gradients_keep_their_bounds_on_long_slices(dtype):
    for shape, axis in LONG:
        x = family("normal 1", shape, dtype, axis)
        assert_kept(dtype, contract.temperature(fs, x, axis, 0.7))
        for check in (contract.where, contract.targets, contract.gradients, contract.divergences, contract.signed_sum):
            assert_kept(dtype, check(fs, x, axis))


@each_wide_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_gradients_keep_their_bounds_on_few_numbers_of_similar_size(dtype, classes):
    """Roundings are largest here relative to the result: fuzzing found larger errors than in any family of logits."""
    shape, rng = (40_000, classes), np.random.default_rng([0, classes])
    y, dy = (np.ldexp(rng.uniform(0.5, 1, shape), rng.integers(-2, high, shape)).astype(dtype) for high in (1, 3))
    dy *= rng.choice(np.array([-1, 1], dtype), shape)
    logp = np.log(y)
    errors = ulp_error(fs.softmax_grad(y, dy), *precision.softmax_grad(y, dy, -1))
    log_errors = ulp_error(fs.log_softmax_grad(logp, dy), *precision.log_softmax_grad(logp, dy, -1))
    assert_kept(dtype, [("softmax_grad", errors), ("log_softmax_grad", log_errors)])


@each_dtype
def test_widening_keeps_the_bounds_of_the_wider_dtype(dtype):
    for name in ("normal 10", "ahead by 20"):
        x = family(name, (24, 333), dtype)
        exact = precision.Slices(x)
        for wide in (w for w in FLOATING[2:] if w.itemsize >= dtype.itemsize):
            assert_within(contract.BOUNDS["softmax"].of(wide), fs.softmax(x, dtype=wide), exact.softmax)
            assert_within(contract.BOUNDS["log_softmax"].of(wide), fs.log_softmax(x, dtype=wide), exact.log_softmax)
            assert_within(contract.BOUNDS["entropy"].of(wide), fs.entropy(x, dtype=wide), exact.entropy)


def exact_divergence(x, y, temperature):
    """Computed with mpmath: only it has enough digits where the two distributions nearly agree."""
    with mpmath.workdps(120):
        logs = []
        for logits in (x, y):
            scaled = [mpmath.mpf(float(v)) / mpmath.mpf(temperature) for v in logits]
            peak = max(scaled)
            total = peak + mpmath.log(mpmath.fsum(mpmath.exp(v - peak) for v in scaled))
            logs.append([v - total for v in scaled])
        return mpmath.fsum(mpmath.exp(p) * (p - q) for p, q in zip(*logs, strict=True))


@each_wide_dtype
@pytest.mark.parametrize("classes", [2, 10, 57, 300])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_divergence_keeps_its_digits_as_it_goes_to_0(temperature, classes, dtype, rng):
    x = rng.normal(size=classes).astype(dtype)
    ahead = x.copy()
    ahead[0] += 30
    for p in (x, ahead):
        for distance in (1, 1e-2, 1e-4, 1e-6):
            for offset in (0, 5):
                q = (p + (offset + distance * rng.normal(size=classes))).astype(dtype)
                got = fs.kl_divergence(p, q, temperature=temperature)
                wanted = exact_divergence(p, q, temperature)
                bound = contract.BOUNDS["kl_divergence, nearly 0"].of(dtype) * float(np.finfo(dtype).eps)
                assert abs(mpmath.mpf(float(got)) - wanted) <= bound * wanted, (distance, offset)
