"""Results for NaN, infinities, empty arrays and subnormal numbers, of every function and in every loop."""

import fastsoftmax as fs
import numpy as np
import precision
import pytest
from arrays import FLOATING, assert_all_same_bits, assert_same_bits
from ml_dtypes import finfo
from precision import assert_within

pytestmark = pytest.mark.core

SHAPES = [(1, 1), (1, 2), (40, 3), (3, 10), (50, 33), (3, 300), (2, 5000), (1, 70_001)]

each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def along_both_axes(x):
    """The array and its class axis: with the slices along the last axis, and along the first."""
    return (x, 1), (np.ascontiguousarray(x.T), 0)


def places(classes):
    return {0, classes // 2, classes - 1}


@pytest.fixture
def logits(dtype, shape, rng):
    return rng.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@each_shape
@each_dtype
def test_nan_and_inf_fill_their_slice_with_nan_and_no_other(logits, dtype, shape, value):
    clean = fs.softmax(logits), fs.log_softmax(logits), fs.logsumexp(logits, 1), fs.entropy(logits)
    for place in places(shape[1]):
        x = logits.copy()
        x[-1, place] = value
        for a, axis in along_both_axes(x):
            p, logp = (np.moveaxis(f(a, axis), axis, 1) for f in (fs.softmax, fs.log_softmax))
            lse, entropy = fs.logsumexp(a, axis), fs.entropy(a, axis)
            assert np.isnan(p[-1]).all()
            assert np.isnan(logp[-1]).all()
            assert np.isnan(entropy[-1])
            assert lse[-1] == np.inf if value == np.inf else np.isnan(lse[-1])
            assert_all_same_bits((p[:-1], logp[:-1], lse[:-1], entropy[:-1]), tuple(c[:-1] for c in clean))


@pytest.mark.parametrize("rest", ["normal", "largest", "-inf"])
@pytest.mark.parametrize("infinite", [(0,), (0, 20_000), (5, 6, 16_384), (16_383, 39_999)], ids=str)
@each_dtype
def test_logsumexp_is_infinite_wherever_in_a_long_slice_infinities_are(dtype, infinite, rest, rng):
    x = rng.normal(size=(2, 40_000)).astype(dtype)
    x[1] = {"normal": x[1], "largest": finfo(dtype).max, "-inf": -np.inf}[rest]
    x[1, list(infinite)] = np.inf
    clean = fs.logsumexp(x[0])
    for a, axis in along_both_axes(x):
        for options in ({}, {"where": True}, {"b": np.ones((), dtype)}):
            assert fs.logsumexp(a, axis, **options)[1] == np.inf
        assert_all_same_bits(fs.logsumexp(a, axis)[0], clean)
        assert np.isnan(np.moveaxis(fs.softmax(a, axis), axis, 1)[1]).all()
        assert np.isnan(np.moveaxis(fs.log_softmax(a, axis), axis, 1)[1]).all()
        assert np.isnan(fs.entropy(a, axis)).tolist() == [False, True]
    for place in (1, 19_999, 30_000):
        x[1, place] = np.nan
        for a, axis in along_both_axes(x):
            assert np.isnan(fs.logsumexp(a, axis)[1])
            assert np.isnan(fs.logsumexp(a, axis, b=np.ones((), dtype))[1])
        x[1, place] = 0


def test_infinity_outweighs_the_largest_numbers_of_other_blocks():
    for values in ([np.inf, 1e300], [1e300, np.inf], [np.inf, np.inf]):
        x = np.zeros(40_000)
        x[[0, 20_000]] = values
        assert fs.logsumexp(x) == np.inf
        x[-1] = np.nan
        assert np.isnan(fs.logsumexp(x))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_shape
@each_dtype
def test_nan_and_inf_make_loss_and_gradient_of_their_slice_nan(logits, dtype, shape, value):
    targets = np.zeros(shape[0], int)
    for place in places(shape[1]):
        x = logits.copy()
        x[-1, place] = value
        for a, axis in along_both_axes(x):
            for t in (targets, np.moveaxis(np.full(shape, 1 / shape[1], np.float32), 1, axis)):
                loss, grad = fs.cross_entropy_with_grad(a, t, axis, reduction="none")
                assert np.isnan(loss).tolist() == [False] * (shape[0] - 1) + [True]
                nans = np.isnan(np.moveaxis(grad, axis, 1))
                assert nans[-1].all()
                assert not nans[:-1].any()


def partly_hidden(dtype, shape, rng):
    """Logits of which about half are -inf, but none of the first class; and where the -inf are."""
    x = rng.normal(size=shape).astype(dtype)
    hidden = rng.uniform(size=shape) < 0.5
    hidden[:, 0] = False
    x[hidden] = -np.inf
    return x, hidden


@each_shape
@each_dtype
def test_minus_infinity_has_probability_exactly_zero(dtype, shape, rng):
    x, hidden = partly_hidden(dtype, shape, rng)
    for a, axis in along_both_axes(x):
        p, logp = (np.moveaxis(f(a, axis), axis, 1) for f in (fs.softmax, fs.log_softmax))
        assert (p[hidden] == 0).all()
        assert not np.signbit(p).any()
        assert (logp[hidden] == -np.inf).all()
        assert (p[~hidden] > 0).all()
        assert np.isfinite(logp[~hidden]).all()
        assert np.isfinite(fs.logsumexp(a, axis)).all()
        assert_same_bits(fs.entropy(a, axis), fs.entropy(a, axis, where=a > -np.inf))


@each_shape
@each_dtype
def test_minus_infinity_has_probability_exactly_zero_whatever_the_arguments(dtype, shape, rng):
    x, hidden = partly_hidden(dtype, shape, rng)
    targets = np.zeros(shape[0], int)
    for a, axis in along_both_axes(x):
        for options in ({"temperature": 0.5}, {"temperature": 1e30}, {"where": np.True_}):
            p, logp = (np.moveaxis(f(a, axis, **options), axis, 1) for f in (fs.softmax, fs.log_softmax))
            assert (p[hidden] == 0).all()
            assert (logp[hidden] == -np.inf).all()
        for options in ({}, {"temperature": 0.5}, {"ignore_index": 1}, {"weight": np.ones(shape[1])}):
            grad = np.moveaxis(fs.cross_entropy_grad(a, targets, axis, **options), axis, 1)
            assert (grad[hidden] == 0).all()
        place = a.copy()
        assert (np.moveaxis(fs.softmax(place, axis, out=place), axis, 1)[hidden] == 0).all()


@each_shape
@each_dtype
def test_a_slice_of_minus_infinity_has_no_distribution(dtype, shape):
    for a, axis in along_both_axes(np.full(shape, -np.inf, dtype)):
        assert np.isnan(fs.softmax(a, axis)).all()
        assert np.isnan(fs.log_softmax(a, axis)).all()
        assert (fs.logsumexp(a, axis) == -np.inf).all()
        assert np.isnan(fs.entropy(a, axis)).all()
        shown = np.zeros(a.shape, bool)
        np.moveaxis(shown, axis, 1)[::2, -1] = True
        for temperature in (1, 1e-300):
            # In the other slices nothing takes part.
            got = fs.entropy(a, axis, where=shown, temperature=temperature)
            assert np.isnan(got[::2]).all()
            assert (got[1::2] == 0).all()


@each_shape
@each_dtype
def test_a_masked_slice_keeps_nan_to_the_entries_that_take_part(dtype, shape, rng):
    x = rng.normal(size=shape).astype(dtype)
    shown = rng.uniform(size=shape) < 0.5
    shown[:, 0] = True
    x[:, 0] = np.nan
    for (a, axis), (mask, _) in zip(along_both_axes(x), along_both_axes(shown), strict=True):
        p, logp = fs.softmax(a, axis, where=mask), fs.log_softmax(a, axis, where=mask)
        assert (np.isnan(p) == mask).all()
        assert (p[~mask] == 0).all()
        assert (np.isnan(logp) == mask).all()
        assert (logp[~mask] == -np.inf).all()
        assert np.isnan(fs.logsumexp(a, axis, where=mask)).all()
        assert np.isnan(fs.entropy(a, axis, where=mask)).all()


@each_shape
@each_dtype
def test_a_gradient_is_nan_where_its_slice_holds_nan_and_nowhere_else(dtype, shape, rng):
    y = fs.softmax(rng.normal(size=shape)).astype(dtype)
    dy = rng.normal(size=shape).astype(dtype)
    dy[-1, shape[1] // 2] = np.nan
    for (a, axis), (b, _) in zip(along_both_axes(y), along_both_axes(dy), strict=True):
        for function in (fs.softmax_grad, fs.log_softmax_grad):
            nans = np.isnan(np.moveaxis(function(a, b, axis), axis, 1))
            assert nans[-1].all()
            assert not nans[:-1].any()


@each_dtype
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 4), (0,)], ids=str)
def test_empty_input_gives_an_empty_result(dtype, shape):
    x = np.empty(shape, dtype)
    for axis in (*range(x.ndim), None, ()):
        for got in (fs.softmax(x, axis), fs.log_softmax(x, axis), fs.softmax_grad(x, x, axis)):
            assert (got.shape, got.dtype) == (shape, dtype)
        got = np.asarray(fs.logsumexp(x, axis))
        assert got.shape == np.sum(np.empty(shape), axis).shape
        assert (got == -np.inf).all()
        assert_same_bits(np.asarray(fs.entropy(x, axis)), np.zeros_like(got))


def test_an_empty_class_axis_has_no_loss():
    for targets in (np.empty(2, int), np.empty((2, 0))):
        for function in (fs.cross_entropy, fs.cross_entropy_grad, fs.cross_entropy_with_grad):
            with pytest.raises(ValueError, match="class"):
                function(np.empty((2, 0)), targets)


@each_shape
@each_dtype
def test_probabilities_below_the_smallest_normal_number_are_not_flushed(dtype, shape):
    info = finfo(dtype)
    x = np.full(shape, np.log(np.longdouble(info.smallest_normal)) - 2).astype(dtype)
    x[:, 0] = 0
    if shape[1] > 1:
        for a, axis in along_both_axes(x):
            p = np.moveaxis(fs.softmax(a, axis), axis, 1)[:, 1:].astype(np.longdouble)
            assert (p > 0).all()
            assert (p < np.longdouble(info.smallest_normal)).all()


@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@each_shape
@each_dtype
def test_probabilities_go_through_the_subnormal_numbers_to_zero(dtype, shape):
    """Logits around those where exp(x - max) becomes subnormal, and where it rounds to 0."""
    info = finfo(dtype)
    cuts = [np.log(np.longdouble(tiny)) for tiny in (info.smallest_normal, info.smallest_subnormal)]
    cuts.append(cuts[1] - np.log(np.longdouble(2)))  # half of the smallest number
    steps = np.arange(-40, 41) * np.longdouble(info.eps)
    for cut in cuts:
        about = (cut * (1 + steps)).astype(dtype)
        x = np.resize(about, shape)
        x[:, 0] = 0
        x[:, 1::3] = np.resize(about[:7] * dtype.type(1.25), x[:, 1::3].shape)  # all of these are 0 at the last cut
        for a, axis in along_both_axes(x):
            exact = precision.Slices(a, axis)
            got = fs.softmax(a, axis)
            assert_within(0.51 if dtype.itemsize == 2 else 2, got, exact.softmax)
            zero = exact.softmax < np.longdouble(info.smallest_subnormal) / 4
            assert (got[zero] == 0).all()


@each_shape
def test_a_bool_is_true_whatever_nonzero_byte_it_holds(shape, rng):
    bytes_ = rng.choice(np.array([0, 1, 2, 128, 255], np.uint8), shape)
    for (a, axis), (plain, _) in zip(along_both_axes(bytes_.view(bool)), along_both_axes(bytes_ != 0), strict=True):
        for function in (fs.softmax, fs.log_softmax, fs.logsumexp, fs.entropy):
            assert_all_same_bits(function(a, axis), function(plain, axis))
        assert_all_same_bits(fs.logsumexp(a, axis, b=a, where=a), fs.logsumexp(plain, axis, b=plain, where=plain))


@each_shape
@each_dtype
def test_subnormal_inputs_count(dtype, shape):
    tiny = finfo(dtype).smallest_subnormal
    y, dy = np.full(shape, tiny, dtype), np.ones(shape, dtype)
    dy[:, 0] = -3
    for (a, axis), (b, _) in zip(along_both_axes(y), along_both_axes(dy), strict=True):
        got = np.moveaxis(fs.softmax_grad(a, b, axis), axis, 1)
        assert (got[:, 1:] == tiny).all()


@each_dtype
def test_probabilities_lie_between_zero_and_one(dtype, rng):
    for shape in SHAPES:
        for scale in (1e-3, 1, 30, 1e4):
            p = fs.softmax(rng.normal(0, scale, shape).astype(dtype))
            assert ((p >= 0) & (p <= 1)).all()
            assert not np.signbit(p).any()
            logp = fs.log_softmax(rng.normal(0, scale, shape).astype(dtype))
            assert (logp <= 0).all()


@each_dtype
def test_one_class_has_probability_one(dtype):
    for value in (-3, 0, 1e4, finfo(dtype).max, finfo(dtype).min, finfo(dtype).smallest_subnormal):
        x = np.full((20, 1), value, dtype)
        assert (fs.softmax(x) == 1).all()
        assert (fs.log_softmax(x) == 0).all()
        assert (fs.logsumexp(x, 1) == x[:, 0]).all()
        assert_same_bits(fs.entropy(x), np.zeros(20, dtype))
        loss, grad = fs.cross_entropy_with_grad(x, np.zeros(20, int), reduction="none")
        assert (loss == 0).all()
        assert (grad == 0).all()


@each_dtype
def test_the_ends_of_the_range_do_not_overflow_on_the_way(dtype):
    info = finfo(dtype)
    x = np.array([info.max, info.min, 0, info.max], dtype)
    np.testing.assert_array_equal(fs.softmax(x).astype(float), [0.5, 0, 0, 0.5])
    assert fs.logsumexp(x) == info.max
    np.testing.assert_array_equal(fs.softmax(np.full(4, info.min, dtype)).astype(float), 0.25)
    assert fs.logsumexp(np.full(4, info.min, dtype)) == info.min
    np.testing.assert_allclose(fs.entropy(x).astype(float), np.log(2), float(info.eps))
    np.testing.assert_allclose(fs.entropy(np.full(4, info.min, dtype)).astype(float), np.log(4), float(info.eps))


CLASSES = [4, 40, 40_000]


def padded(values, classes, dtype, by):
    """Five equal slices that begin with `values` and go on with `by`."""
    x = np.full((5, classes), by, dtype)
    x[:, : len(values)] = values
    return x


@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@pytest.mark.parametrize("temperature", [1e300, 1e306, 1.7e308, 1e-300, 1e-309, 5e-324])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_results_are_right_for_temperatures_at_the_ends_of_the_range(dtype, classes, temperature):
    x = padded([0, 1, -np.inf, -3], classes, dtype, -np.inf)
    exact = precision.Slices(x[:, :4], 1, temperature)  # the rest adds nothing

    def assert_slices_within(bound, got, wanted, rest):
        got = np.moveaxis(got, axis, 1)
        assert_within(bound, got[:, :4], wanted)
        assert (got[:, 4:] == rest).all()

    for a, axis in along_both_axes(x):
        assert_slices_within(2, fs.softmax(a, axis, temperature=temperature), exact.softmax, 0)
        assert_slices_within(4, fs.log_softmax(a, axis, temperature=temperature), exact.log_softmax, -np.inf)
        assert_within(4, fs.entropy(a, axis, temperature=temperature), exact.entropy)
        for target in (0, 1, 3):
            targets = np.full(5, target)
            share = exact.one_hot(targets)
            options = {"temperature": temperature, "reduction": "none"}
            loss, grad = fs.cross_entropy_with_grad(a, targets, axis, **options)
            assert_within(4, loss, exact.cross_entropy(share))
            assert_within(4, fs.cross_entropy(a, targets, axis, **options), exact.cross_entropy(share))
            if temperature < 1 / np.finfo(np.float64).max:
                continue  # the factor of every entry of the gradient is infinite
            assert_slices_within(4, grad, exact.cross_entropy_grad(share), 0)
            grad = fs.cross_entropy_grad(a, targets, axis, **options)
            assert_slices_within(4, grad, exact.cross_entropy_grad(share), 0)


@pytest.mark.parametrize("where", [False, True])
@pytest.mark.parametrize("temperature", [1, 1e-30, 1e-100, 1e-300])
@pytest.mark.parametrize("largest", [-1, -3e18, 3e18])
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_masked_and_minus_infinite_entries_count_as_nothing_at_any_temperature(dtype, largest, temperature, where):
    x = np.full((2, 80_000), largest, dtype)
    counts = np.broadcast_to(np.arange(80_000) % 40_000 >= 20_000, x.shape)  # none in some blocks
    if not where:
        x[~counts] = -np.inf
    options = {"temperature": temperature} | ({"where": counts} if where else {})
    np.testing.assert_allclose(fs.softmax(x, **options), counts / 40_000, 1e-6)
    np.testing.assert_allclose(fs.log_softmax(x, **options)[counts], -np.log(40_000), 1e-6)
    np.testing.assert_allclose(fs.entropy(x, **options), np.log(40_000), 1e-6)
    if not where:
        loss = fs.cross_entropy(x, [79_999, 79_999], temperature=temperature)
        np.testing.assert_allclose(loss, np.log(40_000), 1e-6)


@pytest.mark.parametrize("temperature", [1e-20, 3e-20, 1e-29, 1e-200])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_a_quotient_that_overflows_adds_nothing_to_the_entropy(dtype, classes, temperature):
    x = padded([0, np.finfo(dtype).min / 8, 0], classes, dtype, -np.inf)
    for a, axis in along_both_axes(x):
        np.testing.assert_allclose(fs.entropy(a, axis, temperature=temperature), np.log(2), 1e-6)


@pytest.mark.parametrize("temperature", [1, 1e-30, 1e-100, 1e-300, 1e-310])
@pytest.mark.parametrize("largest", [-3e18, -1, 1, 3e18])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_a_loss_of_probabilities_depends_on_differences_of_logits_only(dtype, classes, largest, temperature):
    x = np.full((5, classes), largest, dtype)
    for a, axis in along_both_axes(x):
        targets = np.full(a.shape, 1 / classes)
        loss = fs.cross_entropy(a, targets, axis, temperature=temperature, reduction="none")
        np.testing.assert_allclose(loss, np.log(classes), 1e-6)


@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@pytest.mark.parametrize("temperature", [1e300, 1.7e308, 1e-300, 1e-309, 5e-324])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
def test_gradients_are_divided_by_temperatures_at_the_ends_of_the_range(dtype, classes, temperature):
    info = np.finfo(dtype)
    size = np.clip(temperature, 1e10 * float(info.smallest_normal), float(info.max) / 8)
    for dy, axis in along_both_axes(padded([size, -0.7 * size, 0, 0.1 * size], classes, dtype, 0)):
        y = np.moveaxis(padded([0.25, 0.5, 0, 0.25], classes, dtype, 0), -1, axis)
        exact = precision.softmax_grad(y, dy, axis, temperature)
        assert_within(3, fs.softmax_grad(y, dy, axis, temperature=temperature), *exact)
        logp = np.moveaxis(padded([-1.5, -0.5, -np.inf, -2], classes, dtype, -np.inf), -1, axis)
        exact = precision.log_softmax_grad(logp, dy, axis, temperature)
        assert_within(3, fs.log_softmax_grad(logp, dy, axis, temperature=temperature), *exact)


@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, *CLASSES])
@pytest.mark.parametrize("temperature", [1.9, 10])
@pytest.mark.parametrize(("dtype", "large"), [(FLOATING[2], 3e38), (FLOATING[3], 1.5e308)], ids=str)
def test_a_difference_of_logits_beyond_the_range_does_not_overflow_before_it_is_divided(
    dtype, large, temperature, classes, label_smoothing
):
    for a, axis in along_both_axes(padded([large, -large], classes, dtype, -large)):
        exact = precision.Slices(a, axis, temperature)
        logp = fs.log_softmax(a, axis, temperature=temperature)
        assert np.isfinite(logp).all()
        assert_within(4, logp, exact.log_softmax)
        assert_within(4, fs.entropy(a, axis, temperature=temperature), exact.entropy)
        for target in (0, 1):
            targets = np.full(5, target)
            share = precision.shares(a.shape, axis, targets, label_smoothing=label_smoothing)
            options = {"temperature": temperature, "label_smoothing": label_smoothing, "reduction": "none"}
            loss, grad = fs.cross_entropy_with_grad(a, targets, axis, **options)
            assert np.isfinite(loss).all()
            assert_within(4, loss, exact.cross_entropy(share))
            assert_within(4, fs.cross_entropy(a, targets, axis, **options), exact.cross_entropy(share))
            terms = np.maximum(exact.softmax * share.sum(axis, keepdims=True), share) / temperature
            assert_within(4, grad, exact.cross_entropy_grad(share), terms)


@pytest.mark.parametrize("scale", [2.0**-800, 2.0**-900, 2.0**-960])
@each_shape
def test_a_gradient_of_small_numbers_is_as_accurate_as_one_of_large_numbers(shape, scale, rng):
    logp = fs.log_softmax(rng.normal(size=shape))
    dy = rng.normal(size=shape)
    for (a, axis), (b, _) in zip(along_both_axes(logp), along_both_axes(dy), strict=True):
        wanted = fs.log_softmax_grad(a, b, axis)
        got = fs.log_softmax_grad(a, b * scale, axis)
        atol = 8 * np.finfo(float).eps * np.abs(dy).sum()
        np.testing.assert_allclose(got / scale, wanted, 0, atol)


@each_dtype
def test_small_losses_are_not_lost_beside_a_dominant_class(dtype):
    x = np.zeros((1, 3), dtype)
    x[0, 0] = 80
    loss, grad = fs.cross_entropy_with_grad(x, [0])
    rest = 2 * np.exp(-80.0)
    np.testing.assert_allclose(float(loss), rest, 1e-6)
    np.testing.assert_allclose(float(grad[0, 0]), float(np.float64(-rest).astype(dtype)), 1e-6)
    np.testing.assert_allclose(float(fs.log_softmax(x.astype(np.float32))[0, 0]), -rest, 1e-6)


def test_no_value_raises_a_warning_whatever_numpy_is_told():
    special = np.array([[np.nan, np.inf, -np.inf, 0], [1e308, -1e308, 5e-324, 1], [-np.inf] * 4])
    with np.errstate(all="raise"):
        for x in (special, special.T):
            fs.softmax(x)
            fs.log_softmax(x, temperature=1e-300)
            fs.logsumexp(x, -1, b=x, return_sign=True)
            fs.logsumexp(x)
            fs.entropy(x, temperature=1e-300)
            fs.entropy(x, where=x > 0)
            fs.softmax_grad(x, x)
            fs.log_softmax_grad(x, x)
            fs.cross_entropy_with_grad(x, np.zeros(len(x), int))
            fs.cross_entropy_with_grad(x, x, label_smoothing=0.5)
            fs.cross_entropy_with_grad(x, np.full(len(x), -1), ignore_index=-1)
        fs.cross_entropy_with_grad(np.empty((0, 3)), np.empty(0, int))
