"""The transforms, logsumexp, entropy and two gradients agree with `reference`, and each argument keeps its promise."""

from itertools import combinations

import fastsoftmax as fs
import numpy as np
import precision
import pytest
from arrays import (
    FLOATING,
    INTEGERS,
    REDUCTIONS,
    SIZES,
    TRANSFORMS,
    Inputs,
    as_strided,
    assert_all_same_bits,
    assert_same_bits,
    bfloat16,
    results,
    zoo,
)
from fastsoftmax import reference
from precision import assert_within
from twin import assert_agrees, widened

CALLS = TRANSFORMS | REDUCTIONS

each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)


def axes_of(a):
    axes = range(a.ndim)
    yield None
    yield from range(-a.ndim - 1, a.ndim + 1)
    for n in range(a.ndim + 1):
        yield from combinations(axes, n)
        yield tuple(i - a.ndim for i in reversed(axes[:n]))


@pytest.mark.core
@each_dtype
@each_call
def test_functions_agree_with_the_reference_on_the_zoo_along_every_axis_and_tuple_of_axes(call, dtype):
    for _, x in zoo(dtype):
        inputs = Inputs.of(x)
        for axis in axes_of(x):
            assert_agrees(call, inputs, axis)


@pytest.mark.core
@each_dtype
@each_call
def test_functions_agree_with_the_reference_for_every_size(call, dtype):
    for size in SIZES:
        for shape in [(3, size), (size, 3)]:
            inputs = Inputs.normal(shape, dtype)
            for axis in (0, 1):
                assert_agrees(call, inputs, axis)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@each_call
def test_integers_give_float64(call, dtype, rng):
    limits = (0, 2) if dtype.kind == "b" else (max(np.iinfo(dtype).min, -100), 101)
    inputs = Inputs.of(rng.integers(*limits, (4, 9)).astype(dtype))
    assert_agrees(call, inputs, -1)
    assert_all_same_bits(call(fs, inputs, -1), call(fs, widened(Inputs.of(inputs.x.astype(np.float64))), -1))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_beyond_float64_are_rounded_as_by_astype(dtype):
    x = np.array([np.iinfo(dtype).max, np.iinfo(dtype).max - 700, np.iinfo(dtype).max // 3], dtype)
    assert_same_bits(fs.log_softmax(x), fs.log_softmax(x.astype(np.float64)))


@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.logsumexp, fs.entropy])
def test_lists_and_scalars_are_taken_as_arrays(function):
    assert_same_bits(np.asarray(function([[1.0, 2.0], [3.0, 4.0]])), np.asarray(function(np.array([[1.0, 2], [3, 4]]))))
    assert_same_bits(np.asarray(function([1, 2])), np.asarray(function(np.array([1, 2]))))
    assert type(function(2.5)) is np.float64
    assert type(function(np.float32(2.5))) is np.float32


@pytest.mark.parametrize("axis", [-1, 0, None, ()])
def test_a_0d_array_gives_a_numpy_scalar(axis):
    x = np.asarray(2.5, np.float32)
    for function, wanted in [(fs.softmax, 1), (fs.log_softmax, 0), (fs.logsumexp, 2.5), (fs.entropy, 0)]:
        got = function(x, axis)
        assert type(got) is np.float32
        assert got == wanted
    for function in (fs.softmax_grad, fs.log_softmax_grad):
        assert type(function(x, x, axis)) is np.float32


def test_a_subclass_comes_back_as_a_plain_array():
    class Marked(np.ndarray):
        pass

    x = np.ones((2, 3)).view(Marked)
    y = fs.softmax(x)
    values = fs.logsumexp(x, -1), fs.entropy(x)
    for got in (y, fs.log_softmax(x), *values, fs.softmax_grad(x, x), fs.log_softmax_grad(x, x)):
        assert type(got) is np.ndarray


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("kind", [np.matrix, np.recarray, np.memmap])
def test_out_of_a_subclass_is_written_as_a_plain_array_and_returned(kind, axis, rng):
    x = rng.normal(size=(40, 3))
    if axis == 0:
        x = x.T.copy().T
    wanted = fs.logsumexp(x, axis, keepdims=True, return_sign=True)
    room = np.full((wanted[0].shape[0] + 2, wanted[0].shape[1] + 2), 77.0)
    out = room[1:-1, 1:-1].view(kind)
    got = fs.logsumexp(x, axis, keepdims=True, return_sign=True, out=out)
    assert got[0] is out
    assert_all_same_bits(got, wanted)
    room[1:-1, 1:-1] = 77
    assert (room == 77).all()
    for function in (fs.softmax, fs.log_softmax):
        wanted = function(x, axis)
        place = x.copy().view(kind)
        assert function(place, axis, out=place) is place
        assert_same_bits(np.asarray(place), wanted)
    logits = x.copy().view(kind)
    wanted = fs.cross_entropy_grad(x, np.zeros(40, int))
    assert fs.cross_entropy_grad(logits, np.zeros(40, int), out=logits) is logits
    assert_same_bits(np.asarray(logits), wanted)


# axis


@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.entropy])
def test_the_default_axis_is_the_last(function, rng):
    x = rng.normal(size=(2, 3, 4))
    assert_same_bits(function(x), function(x, -1))
    assert_same_bits(function(x), function(x, axis=2))


def test_logsumexp_reduces_all_axes_by_default(rng):
    x = rng.normal(size=(2, 3, 4))
    assert fs.logsumexp(x) == fs.logsumexp(x, (0, 1, 2)) == fs.logsumexp(x.ravel())


@pytest.mark.parametrize("axes", [a for n in (2, 3, 4) for a in combinations(range(4), n)], ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_several_axes_are_one_slice(call, axes):
    kept = tuple(i for i in range(4) if i not in axes)

    def flatten(a):
        return a.transpose(*kept, *axes).reshape(*(a.shape[i] for i in kept), -1)

    inputs = Inputs.normal((3, 4, 5, 6), np.float32)
    flat = inputs.map(lambda a: flatten(a) if a.ndim == 4 else a)
    for got, wanted in zip(results(call(fs, inputs, axes)), results(call(fs, flat, -1)), strict=True):
        assert_same_bits(flatten(got) if got.ndim == 4 else got, wanted)


def test_no_axes_make_every_element_a_slice(rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    assert_same_bits(fs.softmax(x, ()), np.ones_like(x))
    assert (fs.log_softmax(x, ()) == 0).all()
    assert_same_bits(fs.logsumexp(x, ()), x)
    assert_same_bits(fs.entropy(x, ()), np.zeros_like(x))


# temperature


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 3, np.float32(0.7), np.int8(2), np.asarray(5.0)])
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.entropy])
def test_any_real_number_is_a_temperature(function, temperature, rng):
    x = rng.normal(size=(3, 7))
    np.testing.assert_allclose(function(x, temperature=temperature), function(x / float(temperature)), 1e-12)


@pytest.mark.parametrize("dtype", FLOATING[:2], ids=str)
def test_temperature_does_not_round_the_quotient_to_half_precision(dtype, rng):
    x = rng.normal(0, 30, (50, 100)).astype(dtype)
    exact = precision.Slices(x, temperature=3)
    assert_within(0.51, fs.softmax(x, temperature=3), exact.softmax)
    assert_within(0.51, fs.log_softmax(x, temperature=3), exact.log_softmax)
    assert_within(0.51, fs.entropy(x, temperature=3), exact.entropy)


def test_the_gradient_is_by_the_unscaled_logits(rng):
    y, dy = fs.softmax(rng.normal(size=(3, 7))), rng.normal(size=(3, 7))
    np.testing.assert_allclose(fs.softmax_grad(y, dy, temperature=4), fs.softmax_grad(y, dy) / 4, 1e-14)
    logp = np.log(y)
    np.testing.assert_allclose(fs.log_softmax_grad(logp, dy, temperature=4), fs.log_softmax_grad(logp, dy) / 4, 1e-14)


# where


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 7), (5, 1), (5, 7), (3, 1, 1), (1, 5, 7), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("call", [c for n, c in CALLS.items() if "where" in n or "all" in n])
def test_where_broadcasts_to_x(call, shape, rng):
    inputs = Inputs.normal((3, 5, 7), np.float64)
    inputs.where = rng.uniform(size=shape) < 0.6
    wanted = inputs.map(lambda a: np.broadcast_to(a, (3, 5, 7)).copy() if a.dtype == bool else a)
    for axis in (0, 1, 2, (0, 2)):
        assert_all_same_bits(call(fs, inputs, axis), call(fs, wanted, axis))


@pytest.mark.core
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("shape", [(40, 5), (6, 100), (100, 6), (2, 5000)], ids=str)
@pytest.mark.parametrize("call", [c for n, c in CALLS.items() if "where" in n or "all" in n])
def test_the_content_of_a_masked_entry_never_reaches_the_result(call, shape, hidden):
    inputs = Inputs.normal(shape, np.float32)
    inputs.where[0] = False
    shown = inputs.where
    poisoned = inputs.map(
        lambda a: np.where(shown, a, a.dtype.type(hidden)) if a.shape == shape and a.dtype == np.float32 else a
    )
    for axis in (0, 1):
        assert_all_same_bits(call(fs, poisoned, axis), call(fs, inputs, axis))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_masked_entries_are_as_if_absent(dtype, rng):
    x, dy = rng.normal(size=(2, 9)).astype(dtype)
    shown = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool)
    y, logp = fs.softmax(x, where=shown), fs.log_softmax(x, where=shown)
    np.testing.assert_allclose(*(a.astype(float) for a in (y[shown], fs.softmax(x[shown]))), 0.01)
    assert (y[~shown] == 0).all()
    assert (logp[~shown] == -np.inf).all()
    assert (fs.softmax_grad(y, dy, where=shown)[~shown] == 0).all()
    assert (fs.log_softmax_grad(logp, dy, where=shown)[~shown] == 0).all()
    exact = precision.Slices(x[shown])
    assert_within(4, fs.entropy(x, where=shown), exact.entropy)
    assert_within(1, fs.logsumexp(x, where=shown), exact.logsumexp, max(abs(exact.logsumexp), abs(exact.peak[0])))


def test_a_slice_without_a_true_entry_has_no_probability_anywhere_and_entropy_0():
    x = np.array([[1, 2, 3], [np.nan, np.inf, 1]])
    assert (fs.softmax(x, where=False) == 0).all()
    assert (fs.log_softmax(x, where=False) == -np.inf).all()
    assert (fs.logsumexp(x, -1, where=False) == -np.inf).all()
    assert_same_bits(fs.entropy(x, where=False), np.zeros(2))
    assert (fs.softmax_grad(x, x, where=False) == 0).all()
    assert (fs.log_softmax_grad(x, x, where=False) == 0).all()


# dtype


@pytest.mark.parametrize("wanted", [np.float32, np.float64, "float32", np.dtype("float64")])
@pytest.mark.parametrize("dtype", FLOATING[:3], ids=str)
def test_dtype_widens_without_rounding_to_the_input_first(dtype, wanted, rng):
    x = rng.normal(0, 10, (20, 33)).astype(dtype)
    exact = precision.Slices(x)
    for function, result in [(fs.softmax, exact.softmax), (fs.log_softmax, exact.log_softmax)]:
        got = function(x, dtype=wanted)
        assert got.dtype == wanted
        assert_within(2, got, result)
    got = fs.entropy(x, dtype=wanted)
    assert got.dtype == wanted
    assert_within(4, got, exact.entropy)
    got = fs.logsumexp(x, -1, dtype=wanted)
    assert got.dtype == wanted
    assert_within(1, got, exact.logsumexp, np.maximum(abs(exact.logsumexp), abs(exact.peak[:, 0])))


def test_products_of_bfloat16_below_the_least_float_count():
    least = 2.0**-133
    y = np.full(16_001, 2.0**-20)
    y[0] = 256
    dy = np.full_like(y, 8 * least)
    dy[0] = 0
    # y[0] * sum is 256 * 16000 * 2^-20 * 8 = 31.25 times the least number of bfloat16.
    gradient = fs.softmax_grad(y.astype(bfloat16), dy.astype(bfloat16))
    assert gradient[0] == -31 * least


@pytest.mark.parametrize(("y", "dy"), [(np.float32, np.float64), (np.float64, np.float32), (bfloat16, np.float32)])
def test_a_gradient_has_the_dtype_of_dy(y, dy, rng):
    y, dy = fs.softmax(rng.normal(size=(4, 6))).astype(y), rng.normal(size=(4, 6)).astype(dy)
    for got, twin in [
        (fs.softmax_grad(y, dy), reference.softmax_grad),
        (fs.log_softmax_grad(-y, dy), lambda y, dy: reference.log_softmax_grad(-y, dy)),
    ]:
        assert got.dtype == dy.dtype
        np.testing.assert_allclose(got, twin(y.astype(float), dy.astype(float)), 1e-5, 1e-6)


# out


def outputs(inputs, axis):
    """Yield a call of each function that takes an `out`, and an array to pass as that."""
    x, dy, y, logp = inputs.x, inputs.dy, inputs.probabilities, inputs.log_probabilities
    reduced = np.empty(np.delete(x.shape, axis), x.dtype)
    yield lambda out: fs.softmax(x, axis, out=out), np.empty_like(x)
    yield lambda out: fs.log_softmax(x, axis, out=out), np.empty_like(x)
    yield lambda out: fs.softmax(x, axis, where=inputs.where, temperature=0.7, out=out), np.empty_like(x)
    yield lambda out: fs.logsumexp(x, axis, out=out), reduced
    yield lambda out: fs.logsumexp(x, axis, b=inputs.b, out=out), reduced
    yield lambda out: fs.entropy(x, axis, where=inputs.where, temperature=0.7, out=out), reduced
    yield lambda out: fs.softmax_grad(y, dy, axis, out=out), np.empty_like(dy)
    yield lambda out: fs.log_softmax_grad(logp, dy, axis, out=out), np.empty_like(dy)


@each_dtype
@pytest.mark.parametrize("axis", [0, 1])
def test_out_of_any_strides_is_written_and_returned(dtype, axis):
    for call, empty in outputs(Inputs.normal((5, 8), dtype), axis):
        wanted = call(None)
        for layout in (lambda a: a, as_strided, np.asfortranarray, lambda a: as_strided(a)[..., ::-1]):
            out = layout(empty)
            assert call(out) is out
            assert_same_bits(out, wanted)


def test_out_for_a_0d_result_is_returned():
    out = np.empty((), np.float32)
    for function in (fs.logsumexp, fs.entropy):
        assert function(np.ones((2, 3), np.float32), None, out=out) is out
        assert_same_bits(out, np.asarray(function(np.ones((2, 3), np.float32), None)))


def test_out_with_keepdims_and_sign_keeps_the_dimension(rng):
    x, b = rng.normal(size=(2, 3, 4))[:, None]
    out = np.empty((1, 1, 4))
    result, sign = fs.logsumexp(x, 1, b=b, keepdims=True, return_sign=True, out=out)
    assert result is out
    assert sign.shape == out.shape
    assert_all_same_bits((result, sign), fs.logsumexp(x, 1, b=b, keepdims=True, return_sign=True))


def test_a_wider_out_than_the_result_needs_dtype(rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    out = np.empty((3, 4))
    assert_same_bits(fs.softmax(x, dtype=np.float64, out=out), fs.softmax(x, dtype=np.float64))


@each_dtype
@pytest.mark.parametrize("axis", [0, 1, None])
def test_transforms_and_gradients_work_in_place(dtype, axis):
    inputs = Inputs.normal((7, 40), dtype)
    for function in (fs.softmax, fs.log_softmax):
        x = inputs.x.copy()
        assert_same_bits(function(x, axis, out=x), function(inputs.x, axis))
    for function, y in [(fs.softmax_grad, inputs.probabilities), (fs.log_softmax_grad, inputs.log_probabilities)]:
        for place in (0, 1):
            arrays = [y.copy(), inputs.dy.copy()]
            assert_same_bits(function(*arrays, axis, out=arrays[place]), function(y, inputs.dy, axis))


SHIFTS = {
    "ahead": lambda room: (room[:-3], room[3:]),
    "behind": lambda room: (room[3:], room[:-3]),
    "backwards": lambda room: (room, room[::-1]),
    "sideways": lambda room: (room, room[:, ::-1]),
    "transposed": lambda room: (room[:20, :20], room[:20, :20].T),
    "interleaved": lambda room: (room[::2], room[: len(room[::2])]),
}


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("axis", [0, 1, None])
def test_another_overlap_of_out_is_computed_as_if_there_were_none(shift, axis, rng):
    values = rng.normal(size=(43, 21)).astype(np.float32)
    other = rng.normal(size=(43, 21)).astype(np.float32)
    for function in (fs.softmax, fs.log_softmax):
        x, out = shift(values.copy())
        wanted = function(x.copy(), axis)
        assert_same_bits(function(x, axis, out=out), wanted)
    for function in (fs.softmax_grad, fs.log_softmax_grad):
        x, out = shift(values.copy())
        dy = other[: x.shape[0], : x.shape[1]]
        wanted = function(x.copy(), dy, axis), function(dy, x.copy(), axis)
        assert_same_bits(function(x, dy, axis, out=out), wanted[0])
        x, out = shift(values.copy())
        assert_same_bits(function(dy, x, axis, out=out), wanted[1])


def test_out_may_overlap_the_mask(rng):
    x = rng.normal(size=(6, 8))
    room = rng.integers(0, 2, 6 * 8 * 8).astype(np.uint8)
    mask = room.view(bool)[::8].reshape(6, 8)
    wanted = fs.softmax(x, where=mask.copy())
    assert_same_bits(fs.softmax(x, where=mask, out=room.view(np.float64).reshape(6, 8)), wanted)


def test_out_may_overlap_the_weights_of_a_sum(rng):
    x, room = rng.normal(size=(2, 6, 8))
    wanted = fs.logsumexp(x, 1, b=np.abs(room[:, :1]))
    b = np.abs(room, out=room)[:, :1]
    assert_same_bits(fs.logsumexp(x, 1, b=b, out=room[::-1, 0]), wanted)


@pytest.mark.parametrize("axis", [0, 1, (), None], ids=str)
def test_out_of_an_entropy_may_be_its_scores(axis, rng):
    values = rng.normal(size=(7, 40))
    wanted = fs.entropy(values, axis, keepdims=True)
    x = values.copy()
    place = x[tuple(slice(extent) for extent in wanted.shape)]
    assert fs.entropy(x, axis, keepdims=True, out=place) is place
    assert_same_bits(place, wanted)


# logsumexp, entropy


@pytest.mark.parametrize("function", [fs.logsumexp, fs.entropy])
@pytest.mark.parametrize("axis", [0, 2, -2, (0, 2), (1, -1), None, ()], ids=str)
def test_keepdims_keeps_the_reduced_axes_at_length_one(axis, function, rng):
    x = rng.normal(size=(2, 3, 4))
    kept = function(x, axis, keepdims=True)
    assert kept.shape == np.sum(x, axis, keepdims=True).shape
    assert_same_bits(kept.reshape(np.shape(function(x, axis))), np.asarray(function(x, axis)))
    out = np.empty_like(kept)
    assert function(x, axis, keepdims=True, out=out) is out
    assert_same_bits(out, kept)


def test_the_entropy_of_equal_scores_is_the_logarithm_of_their_number():
    for n in (1, 2, 3, 10, 100, 1000, 20_000, 100_000):
        for value in (0.0, -1e4, 3e300):
            np.testing.assert_array_max_ulp(fs.entropy(np.full(n, value)), np.log(float(n)), 1)
            np.testing.assert_array_max_ulp(fs.entropy(np.full((2, n), value), temperature=1e-300)[1], np.log(n), 1)


def test_x_and_b_broadcast_against_each_other(rng):
    x, b = rng.normal(size=(3, 1, 5)), rng.uniform(size=(4, 1))
    full = np.broadcast_to(x, (3, 4, 5)), np.broadcast_to(b, (3, 4, 5))
    for axis in (0, 1, -1, (0, 2), None):
        wanted = fs.logsumexp(full[0].copy(), axis, b=full[1].copy())
        assert_same_bits(np.asarray(fs.logsumexp(x, axis, b=b)), np.asarray(wanted))


def test_b_weighs_the_terms(rng):
    x, b = rng.normal(size=(2, 5, 30))
    total = np.sum(b * np.exp(x), axis=-1)
    result, sign = fs.logsumexp(x, -1, b=b, return_sign=True)
    assert_same_bits(sign, np.sign(total))
    np.testing.assert_allclose(result, np.log(np.abs(total)), 1e-10, 1e-12)


def test_a_number_as_b_keeps_the_dtype_and_an_array_widens_it(rng):
    x = rng.normal(size=7).astype(np.float32)
    assert fs.logsumexp(x, b=2).dtype == fs.logsumexp(x, b=2.0).dtype == np.float32
    assert fs.logsumexp(x, b=np.ones(7, np.float16)).dtype == np.float32
    assert fs.logsumexp(x, b=np.ones(7)).dtype == fs.logsumexp(x, b=np.ones(7, np.int64)).dtype == np.float64
    np.testing.assert_allclose(fs.logsumexp(x, b=2), fs.logsumexp(x.astype(float)) + np.log(2), 1e-6)


def test_a_negative_sum_without_return_sign_is_nan():
    assert np.isnan(fs.logsumexp([1.0, 2.0], b=[1.0, -1.0]))
    assert fs.logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)[1] == -1


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_an_entry_of_weight_zero_takes_no_part(hidden):
    got = fs.logsumexp([1.0, hidden, 2.0], b=[2.0, 0.0, -0.5], return_sign=True)
    assert_all_same_bits(got, fs.logsumexp([1.0, 2.0], b=[2.0, -0.5], return_sign=True))


@pytest.mark.core
@pytest.mark.parametrize("order", [1, -1])
def test_the_sign_of_a_sum_over_blocks_is_that_of_the_larger_weight(order):
    for places in ([0, 20_000], [0, 16_384], [0, 1], [20_000, 39_999]):
        for sign in (1, -1):
            x, b = np.full((2, 40_000), -np.inf), np.ones((2, 40_000))
            x[:, places] = 1e20
            b[:, places[::order]] = sign * 1e-300, -sign * 1e300
            for a, weights, axis in [(x, b, 1), (x.T.copy(), b.T.copy(), 0)]:
                result, signs = fs.logsumexp(a, axis, b=weights, return_sign=True)
                assert (result == 1e20).all()
                assert (signs == -sign).all()


def test_the_sign_of_an_empty_sum_is_zero():
    for x, options in [([], {}), ([-np.inf, -np.inf], {}), ([1.0, 2.0], {"b": 0.0}), ([1.0, 2.0], {"where": False})]:
        result, sign = fs.logsumexp(x, return_sign=True, **options)
        assert (result, sign) == (-np.inf, 0)


def test_terms_that_cancel_give_minus_infinity():
    assert fs.logsumexp([1.0, 1.0], b=[1.0, -1.0], return_sign=True) == (-np.inf, 0)
