"""LogSumExp gives the whole call's bits for pieces of whole blocks, and keeps its bounds for any other pieces."""

import copy
import multiprocessing
import pickle
import re
import threading
from itertools import product

import contract
import fastsoftmax as fs
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import precision
import pytest
from arrays import (
    FAMILIES,
    FLOATING,
    INTEGERS,
    LAYOUTS,
    PICKS,
    REDUCTIONS,
    TRANSFORMS,
    Inputs,
    assert_same_bits,
    bfloat16,
    family,
    results,
    zoo,
)
from fastsoftmax import reference
from hypothesis import given, settings
from pieces import InPieces, as_tree, by_state, from_the_end, in_turn

BLOCK = 16384
LONG = 2 * BLOCK + 1000
each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
whole_calls = {
    name: call
    for name, call in (TRANSFORMS | REDUCTIONS | PICKS).items()
    if not re.search(r"_grad|top_k|, b$|, all|entropy", name)
}
each_call = pytest.mark.parametrize("name", whole_calls)


def in_blocks(classes):
    return list(range(BLOCK, classes, BLOCK))


def after_two(classes):
    return [2 * BLOCK] if classes > 2 * BLOCK else []


def with_empty(classes):
    return [0, BLOCK, BLOCK]


def assert_same(name, inputs, axis, cut):
    call = whole_calls[name]
    for got, wanted in zip(results(call(InPieces(cut), inputs, axis)), results(call(fs, inputs, axis)), strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.core
@each_dtype
@each_call
@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_of_whole_blocks_give_the_bits_of_the_whole_call(name, dtype, axis):
    for scale in (3, 40):
        inputs = Inputs.normal((3, LONG), dtype, scale).move(axis)
        for cut in (in_blocks, after_two, with_empty):
            assert_same(name, inputs, axis, cut)


@pytest.mark.core
@each_dtype
@each_call
def test_one_piece_gives_the_bits_of_the_whole_call(name, dtype):
    for shape in ((17, 57), (3, 333), (2, BLOCK)):
        for axis in (0, 1):
            assert_same(name, Inputs.normal(shape, dtype).move(axis), axis, lambda classes: [])
    assert_same(name, Inputs.normal((2, 4, LONG), dtype).move(1), 1, lambda classes: [])


@each_layout
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pieces_in_every_layout_give_the_bits_of_the_whole_call(layout, dtype):
    inputs = Inputs.normal((5, BLOCK + 77), dtype)
    for name in ("softmax", "log_softmax, where", "logsumexp", "log_softmax_at"):
        call = whole_calls[name]
        got = call(InPieces(in_blocks), inputs.map(layout), 1)
        assert_same_bits(got, call(fs, inputs, 1))


@pytest.mark.parametrize(
    "family_name", ["total at an end", "common offset", "ahead by 50", "-inf between", "near ties"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_at_the_ends_of_the_range_give_the_bits_of_the_whole_call(family_name, dtype):
    x = family(family_name, (12, BLOCK + 500), np.dtype(dtype))
    if np.max(x) >= (512 if dtype == np.float32 else 2048):
        return
    for temperature in (1.0, 0.8):
        for name in ("softmax", "log_softmax"):
            got = getattr(InPieces(in_blocks), name)(x, temperature=temperature)
            assert_same_bits(got, getattr(fs, name)(x, temperature=temperature))


@pytest.mark.core
@pytest.mark.parametrize(("dtype", "lowest", "highest"), [(np.float32, 100, 140), (np.float64, 650, 900)])
def test_pieces_give_the_bits_of_the_whole_call_where_one_class_is_far_ahead(dtype, lowest, highest, rng):
    """Up to distances at which the other exponentials become 0, by the one reference or the other."""
    for largest in rng.uniform(-20, 35, 20):
        others = rng.uniform(lowest, highest, (8, 1)) + rng.uniform(0, 3, (8, BLOCK + 3000))
        x = (largest - others).astype(dtype)
        x[np.arange(8), rng.integers(0, x.shape[1], 8)] = largest
        assert_same_bits(InPieces(in_blocks).softmax(x), fs.softmax(x))
        assert_same_bits(InPieces(in_blocks).log_softmax(x), fs.log_softmax(x))


@each_dtype
def test_slices_of_several_axes_are_cut_along_any_of_them(dtype):
    x = np.random.default_rng(3).normal(0, 4, (4, 3, 128, 256)).astype(dtype)
    for axes, cut_axis, cut in [((2, 3), 2, [64]), ((-1, -2), 2, [64, 64]), (None, 0, [1, 2]), ((1, 2, 3), 1, [1])]:
        pieces = InPieces(lambda classes, cut=cut: cut)
        assert_same_bits(pieces.softmax(x, axes, cut_axis=cut_axis), fs.softmax(x, axes))
        assert_same_bits(pieces.logsumexp(x, axes, cut_axis=cut_axis), fs.logsumexp(x, axes))
        kept = pieces.logsumexp(x, axes, cut_axis=cut_axis, keepdims=True)
        assert_same_bits(kept, fs.logsumexp(x, axes, keepdims=True))
    # Along the last axis, each piece is a part of every row.
    got = InPieces(lambda classes: [100]).logsumexp(x, (2, 3), cut_axis=3)
    precision.assert_within(1, got, precision.Slices(x.reshape(4, 3, -1)).logsumexp)


CUTS = {
    "in halves": lambda classes: [classes // 2],
    "one by one": lambda classes: list(range(1, classes)),
    "by 7": lambda classes: list(range(7, classes, 7)),
    "first and last": lambda classes: [1, classes - 1],
    "uneven": lambda classes: [c for c in (2, 3, 20, 90, 91, 250) if c < classes],
}
MERGES = {"none": None, "in turn": in_turn, "tree": as_tree, "from the end": from_the_end, "by state": by_state}
needs_longdouble = pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")


def assert_kept(dtype, checks):
    for function, errors in checks:
        error, bound = np.max(errors, initial=0), contract.BOUNDS[function].of(dtype)
        assert error <= bound, f"{function}: {error:.4g} ULP, {bound} allowed"


@needs_longdouble
@pytest.mark.core
@each_dtype
@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_keep_the_bounds_wherever_slices_are_cut(name, dtype):
    for (cut, merge), (shape, axis) in zip(
        product(("in halves", "by 7", "uneven", "first and last"), ("none", "tree")),
        [((16, 333), 1), ((333, 5), 0)] * 4,
        strict=True,
    ):
        x = family(name, shape, dtype, axis)
        pieces = InPieces(CUTS[cut], MERGES[merge])
        assert_kept(dtype, contract.plain(pieces, x, axis, precision.Slices(x, axis)))
        assert_kept(dtype, contract.temperature(pieces, x, axis, 0.7))


@needs_longdouble
@each_dtype
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", ["normal 10", "normal 10000", "ahead by any", "sorted", "sorted down", "near ties"])
def test_single_entries_merged_in_any_order_keep_the_bounds(name, merge, dtype):
    x = family(name, (6, 130), dtype)
    pieces = InPieces(CUTS["one by one"], MERGES[merge])
    assert_kept(dtype, contract.plain(pieces, x, 1, precision.Slices(x, 1)))


@needs_longdouble
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "base"), [(np.float32, 30), (np.float32, 600), (np.float64, 3000), (np.float64, -5000)]
)
def test_errors_do_not_add_up_where_each_entry_is_the_largest_so_far(dtype, base, temperature):
    """Sums are rescaled a thousand times; beyond 512 (float64: 2048) the factors are no powers of two."""
    for step in (0.01, 0.3, 1.1):
        x = (base + step * np.arange(1000.0)).astype(dtype).reshape(1, -1)
        pieces = InPieces(CUTS["one by one"], in_turn)
        exact = precision.Slices(x, 1, temperature)
        for name in ("softmax", "log_softmax", "entropy"):
            got = getattr(pieces, name)(x, temperature=temperature)
            precision.assert_within(contract.BOUNDS[name].of(np.dtype(dtype)), got, getattr(exact, name))


@settings(max_examples=150)
@given(st.data())
def test_any_pieces_in_any_tree_agree_with_the_whole(data):
    """Values of any kind, NaN and infinities among them; masks, empty pieces and pieces that are entirely masked."""
    classes = data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16]))
    special = st.sampled_from([np.inf, -np.inf, np.nan, 0.0, -0.0, 700.0, -700.0, 3e4])
    number = st.floats(-60000, 60000, width=16) | st.floats(-20, 20, width=16)
    element = number | special if data.draw(st.booleans()) else number
    scores = data.draw(st.lists(element, min_size=classes, max_size=classes))
    x = np.array(scores, dtype)
    where = None
    if data.draw(st.booleans()):
        where = np.array(data.draw(st.lists(st.booleans(), min_size=classes, max_size=classes)))
    cuts = sorted(data.draw(st.lists(st.integers(0, classes), max_size=6)))
    temperature = data.draw(st.sampled_from([1.0, 0.5, 7.0]))
    pieces = InPieces(lambda _: cuts, MERGES[data.draw(st.sampled_from(list(MERGES)))])
    for name in ("softmax", "log_softmax", "entropy"):
        got = getattr(pieces, name)(x, where=where, temperature=temperature)
        wanted = getattr(fs, name)(x, where=where, temperature=temperature)
        eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
        np.testing.assert_allclose(got, wanted, rtol=8 * eps, atol=tiny, err_msg=name)
    got, wanted = pieces.logsumexp(x, -1, where=where), fs.logsumexp(x, where=where)
    largest = np.max(np.abs(x), initial=0, where=np.isfinite(x))
    np.testing.assert_allclose(got, wanted, rtol=4 * eps, atol=4 * eps * float(largest))


@each_dtype
def test_the_zoo_gives_the_values_of_the_whole_call(dtype):
    for label, x in zoo(dtype):
        total = fs.LogSumExp().update(x)
        for got, wanted in [
            (total.softmax(x), fs.softmax(x)),
            (total.log_softmax(x), fs.log_softmax(x)),
            (total.value(), fs.logsumexp(x, -1)),
            (total._entropy(), fs.entropy(x)),
        ]:
            assert (type(got), got.dtype, got.shape) == (type(wanted), wanted.dtype, wanted.shape), label
            got, wanted = got.astype(np.float64), wanted.astype(np.float64)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted), err_msg=label)
            eps = float(ml_dtypes.finfo(dtype).eps)
            np.testing.assert_allclose(got, wanted, rtol=2 * eps, atol=float(ml_dtypes.finfo(dtype).tiny))


def test_a_single_entry_that_takes_part_has_probability_exactly_1():
    for dtype, alone in product((np.float32, np.float64), (3.25, -1000.0, 1e30)):
        x = np.full((2, 30), -np.inf, dtype)
        x[0, 3], x[1, 29] = alone, alone
        for merge in MERGES.values():
            pieces = InPieces(CUTS["by 7"], merge)
            np.testing.assert_array_equal(pieces.softmax(x), np.isfinite(x))
            np.testing.assert_array_equal(pieces.log_softmax(x).max(-1), 0)
            where = np.isfinite(x)
            np.testing.assert_array_equal(pieces.softmax(np.where(where, x, np.nan), where=where), where)


def test_an_empty_piece_changes_nothing():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    total = fs.LogSumExp().update(x)
    before = total.state
    for empty in (x[:, :0], np.empty((3, 0), np.float16)):
        total.update(empty)
    np.testing.assert_array_equal(total.state, before)
    total.merge(fs.LogSumExp()).merge(fs.LogSumExp().update(x[:, :0]))
    np.testing.assert_array_equal(total.state, before)
    first = fs.LogSumExp().update(x[:, :0])
    np.testing.assert_array_equal(first.value(), np.full(3, -np.inf, np.float32))
    np.testing.assert_array_equal(first.update(x).state, before)
    assert fs.LogSumExp().update(np.empty((0, 5))).value().shape == (0,)
    assert fs.LogSumExp().update(np.empty((0, 5), np.float32)).softmax(np.empty((0, 7), np.float32)).shape == (0, 7)


def test_where_nothing_takes_part_softmax_is_0():
    x = np.full((2, 5), np.nan, np.float32)
    total = fs.LogSumExp().update(x, where=False).update(x, where=np.zeros((2, 1), bool))
    np.testing.assert_array_equal(total.value(), -np.inf)
    np.testing.assert_array_equal(total._entropy(), 0)
    np.testing.assert_array_equal(total.softmax(x, where=False), 0)
    np.testing.assert_array_equal(total.log_softmax(x, where=False), -np.inf)
    total.update(np.full((2, 1), -np.inf, np.float32))
    np.testing.assert_array_equal(total.value(), -np.inf)
    np.testing.assert_array_equal(total._entropy(), np.nan)
    total.update([[1.0], [2.0]])
    np.testing.assert_array_equal(total.value(), [1, 2])


def test_nan_and_infinity_in_a_later_piece_reach_every_piece():
    x = np.array([1.0, 2.0])
    for last, value in ((np.inf, np.inf), (np.nan, np.nan)):
        total = fs.LogSumExp().update(x).update([last])
        np.testing.assert_array_equal(total.value(), value)
        assert np.isnan(total.softmax(x)).all()
        assert np.isnan(total.log_softmax(x)).all()
        assert np.isnan(total._entropy())


def test_results_have_the_common_dtype_of_all_pieces():
    for a, b in product([*FLOATING, *INTEGERS], repeat=2):
        pieces = np.ones((2, 3), a), np.ones((2, 4), b)
        total = fs.LogSumExp().update(pieces[0]).update(pieces[1])
        alone = [fs.logsumexp(piece, -1).dtype for piece in pieces]
        halves = set(alone) == {np.dtype(np.float16), bfloat16}  # which NumPy has no common dtype for
        wanted = np.dtype(np.float32) if halves else np.result_type(*alone)
        assert total.value().dtype == wanted
        assert total.softmax(pieces[0]).dtype == total.log_softmax(pieces[1]).dtype == wanted
        assert fs.LogSumExp.from_state(total.state).value().dtype == wanted
        eps = max(2.0**-24 if dtype.itemsize < 8 else 0 for dtype in alone) + float(ml_dtypes.finfo(wanted).eps)
        np.testing.assert_allclose(total.value().astype(float), 1 + np.log(7), rtol=eps)
        merged = fs.LogSumExp().update(pieces[1]).merge(fs.LogSumExp().update(pieces[0]))
        assert merged.value().dtype == wanted
    half = fs.LogSumExp().update(np.ones((2, 3), np.float16))
    assert half.value(dtype=np.float64).dtype == half.softmax(np.ones((2, 3), np.float16), dtype=np.float64).dtype
    with pytest.raises(TypeError, match="float64"):
        fs.LogSumExp().update(np.ones(3)).value(dtype=np.float32)


@needs_longdouble
@pytest.mark.parametrize("name", ["normal 1", "normal 300", "normal 10000", "ahead by 50", "common offset"])
def test_narrow_pieces_beside_wide_ones_keep_the_bound_of_the_narrow(name):
    narrow, wide = family(name, (9, 200), np.dtype(np.float32)), family(name, (9, 100), np.dtype(np.float64), seed=1)
    exact = precision.Slices(np.concatenate([narrow, wide], 1))
    for first, second in ((narrow, wide), (wide, narrow)):
        total = fs.LogSumExp().update(first).update(second)
        got = np.concatenate([total.log_softmax(narrow), total.log_softmax(wide)], 1)
        assert got.dtype == np.float64
        precision.assert_within(2, got.astype(np.float32), exact.log_softmax)


@needs_longdouble
@pytest.mark.parametrize("temperature", [0.01, 0.7, 30.0, 1e-300, 1e300])
def test_the_value_is_that_of_the_scores_over_the_temperature(temperature):
    rng = np.random.default_rng(5)
    for dtype in (np.float32, np.float64):
        for scores in (rng.normal(0, 3, (20, 50)), rng.normal(700, 3, (20, 50)), np.full((3, 50), -np.inf)):
            if temperature == 1e-300:
                scores = scores * 1e-301
            x = scores.astype(dtype)
            exact = precision.Slices(np.where(np.isfinite(x), x, -1), temperature=temperature)
            wanted = exact.logsumexp / np.longdouble(temperature)
            wanted = np.where(np.isfinite(x[:, 0]), wanted, -np.inf)
            unit = np.maximum(np.abs(wanted), np.abs(np.squeeze(exact.peak, 1) / np.longdouble(temperature)))
            got = fs.LogSumExp(temperature=temperature).update(x[:, :20]).update(x[:, 20:]).value()
            precision.assert_within(2, got, wanted, unit)


def totals_agree(a, b, x):
    np.testing.assert_array_equal(a.state, b.state)
    assert a.state.dtype == b.state.dtype
    assert_same_bits(a.softmax(x), b.softmax(x))
    assert_same_bits(a.value(keepdims=True), b.value(keepdims=True))


@each_dtype
def test_a_total_can_be_copied_pickled_and_made_from_its_state(dtype, tmp_path):
    x = np.random.default_rng(1).normal(0, 3, (4, 5, 60)).astype(dtype)
    total = fs.LogSumExp((0, -1), temperature=2.0).update(x)
    path = tmp_path / "state.npy"
    np.save(path, total.state)
    for other in (
        copy.copy(total),
        copy.deepcopy(total),
        pickle.loads(pickle.dumps(total)),
        fs.LogSumExp.from_state(total.state, (0, -1), temperature=2.0),
        fs.LogSumExp.from_state(np.load(path), (2, 0), temperature=2.0),
        fs.LogSumExp.from_state(total.state.astype(total.state.dtype.newbyteorder()), (0, 2), temperature=2.0),
    ):
        totals_agree(total, other, x)
        before = total.state
        other.update(x).merge(total)
        assert total.state is before
        assert (other.value() > total.value()).all()
    assert repr(total) == "LogSumExp(axis=(0, -1), temperature=2.0)"


def test_a_total_may_be_unpickled_from_a_buffer_at_any_address():
    """`distributed` hands over such buffers."""
    first, second = (fs.LogSumExp().update(np.full((3, 4), score)) for score in (0.0, 1.0))
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(first, protocol=5, buffer_callback=buffers.append)
    odd = [memoryview(b"x" + bytes(buffer.raw()))[1:] for buffer in buffers]
    assert odd
    sent = pickle.loads(pickled, buffers=odd)
    np.testing.assert_array_equal(sent.merge(second).value(), first.merge(second).value())


def test_the_state_cannot_be_changed_by_accident():
    total = fs.LogSumExp().update([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        total.state["max"] = 3
    given = total.state.copy()
    other = fs.LogSumExp.from_state(given)
    given["max"] = 7
    assert other.value() == total.value()


def test_a_total_keeps_only_its_state():
    x = np.zeros((1000, 5000), np.float32)
    total = fs.LogSumExp().update(x).update(x)
    assert total.state.shape == (1000,)
    assert len(pickle.dumps(total)) < 1000 * 80 + 1000


SCORES = np.ones((3, 4))
REFUSED = [
    (TypeError, "axis is True", lambda: fs.LogSumExp(True)),
    (TypeError, r"axis is \[0\]", lambda: fs.LogSumExp([0])),
    (TypeError, "temperature is 'hot'", lambda: fs.LogSumExp(temperature="hot")),
    (ValueError, "temperature is 0", lambda: fs.LogSumExp(temperature=0)),
    (np.exceptions.AxisError, "out of bounds", lambda: fs.LogSumExp(2).update(np.ones((3, 4)))),
    (ValueError, "repeated axis", lambda: fs.LogSumExp((0, -2)).update(np.ones((3, 4)))),
    (ValueError, r"x has shape \(4, 3\).*expected \(3,\)", lambda: total().update(np.ones((4, 3)))),
    (ValueError, r"x has shape \(4, 3\)", lambda: total().softmax(np.ones((4, 3)))),
    (ValueError, r"x has shape \(4, 3\)", lambda: total().log_softmax_at(np.ones((4, 3)), [0, 0, 0, 0])),
    (TypeError, "x has dtype complex128", lambda: total().update(np.ones((3, 1), complex))),
    (TypeError, "where has dtype int64", lambda: total().update(np.ones((3, 1)), where=np.ones(1, int))),
    (ValueError, "where has shape", lambda: total().softmax(np.ones((3, 1)), where=np.ones((3, 2), bool))),
    (TypeError, "masked array", lambda: total().update(np.ma.ones((3, 1)))),
    (ValueError, "no piece yet", lambda: fs.LogSumExp().value()),
    (ValueError, "no piece yet", lambda: fs.LogSumExp().state),
    (ValueError, "no piece yet", lambda: fs.LogSumExp().softmax([1.0])),
    (TypeError, "other is 3", lambda: total().merge(3)),
    (ValueError, "other has temperature 2.0; expected 1.0", lambda: total().merge(fs.LogSumExp(temperature=2))),
    (ValueError, "other has axis 0; expected -1", lambda: total().merge(fs.LogSumExp(0).update(np.ones((4, 3))))),
    (ValueError, "other has axis 0; expected -1", lambda: fs.LogSumExp().merge(fs.LogSumExp(0))),
    (ValueError, r"batch of shape \(2,\)", lambda: total().merge(fs.LogSumExp().update(np.ones((2, 4))))),
    (TypeError, "expected the state of a LogSumExp", lambda: fs.LogSumExp.from_state(np.ones(3))),
    (TypeError, "expected the state of a LogSumExp", lambda: fs.LogSumExp.from_state(total().state[["max"]])),
    (ValueError, r"state has shape \(3,\)", lambda: fs.LogSumExp.from_state(total().state, None)),
    (np.exceptions.AxisError, "out of bounds", lambda: fs.LogSumExp.from_state(total().state, 2)),
    (ValueError, "keepdims", lambda: fs.LogSumExp.from_state(total().state[0], None).value(keepdims=True)),
    (TypeError, "keepdims", lambda: total().value(keepdims=np.ones(2))),
    (ValueError, r"indices\[1\] is 4", lambda: total().log_softmax_at(np.ones((3, 4)), [0, 4, 0])),
    (
        ValueError,
        "expected one for log_softmax_at",
        lambda: fs.LogSumExp(None).update(SCORES).log_softmax_at(SCORES, 0),
    ),
    (ValueError, "out has shape", lambda: total().softmax(np.ones((3, 4)), out=np.ones(3))),
    (TypeError, "out has dtype", lambda: total().softmax(np.ones((3, 4)), out=np.ones((3, 4), np.float32))),
]


def total():
    return fs.LogSumExp().update(np.ones((3, 4)))


@pytest.mark.parametrize(("error", "message", "call"), REFUSED)
def test_bad_arguments_are_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_piece_leaves_the_total_as_it_was():
    own = total()
    before = own.state
    for bad in (np.ones((4, 3)), np.ones((3, 1), complex), "no scores"):
        with pytest.raises((TypeError, ValueError)):
            own.update(bad)
    assert own.state is before


def test_axes_may_be_counted_from_either_end():
    a, b = fs.LogSumExp(-1).update(np.ones((3, 4))), fs.LogSumExp(1).update(np.ones((3, 2)))
    np.testing.assert_allclose(a.merge(b).value(), 1 + np.log(6))
    np.testing.assert_allclose(fs.LogSumExp(1).merge(a).value(), 1 + np.log(6))


def test_results_are_written_to_out():
    x = np.random.default_rng(2).normal(size=(7, 300))
    own = fs.LogSumExp().update(x)
    wanted = own.softmax(x)
    for out in (np.empty((7, 300)), np.empty((300, 7)).T, np.empty((14, 600))[::2, ::2], x.copy()):
        if out.flags.c_contiguous and (out == x).all():
            assert own.softmax(out, out=out) is out
        else:
            assert own.softmax(x, out=out) is out
        assert_same_bits(np.ascontiguousarray(out), wanted)
    shifted = np.concatenate([x.ravel(), [0.0]])
    own.softmax(shifted[:-1].reshape(7, 300), out=shifted[1:].reshape(7, 300))
    assert_same_bits(shifted[1:].reshape(7, 300).copy(), wanted)


@pytest.mark.parametrize("shape", [(1, 40 * BLOCK + 3), (300, 700), (2, 9 * BLOCK)])
def test_the_number_of_threads_changes_no_bits(shape, threads):
    x = np.random.default_rng(2).normal(0, 4, shape).astype(np.float32)
    outcomes = []
    for n in (1, 4):
        with threads(n):
            own = fs.LogSumExp().update(x)
            outcomes.append((own.state, own.softmax(x), own.value()))
    for one, four in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(one, four)


def test_several_threads_may_update_their_own_totals_at_the_same_time():
    x = np.random.default_rng(2).normal(0, 4, (8, 50, 5000)).astype(np.float32)
    totals = [fs.LogSumExp() for _ in x]

    def work(own, rows):
        for piece in np.split(rows, 10, -1):
            own.update(piece)

    workers = [threading.Thread(target=work, args=arguments) for arguments in zip(totals, x, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for own, rows in zip(totals, x, strict=True):
        again = fs.LogSumExp()
        work(again, rows)
        np.testing.assert_array_equal(own.state, again.state)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_reference_agrees(temperature):
    rng = np.random.default_rng(8)
    x = rng.normal(0, 20, (6, 5, 40))
    where = rng.uniform(size=x.shape) < 0.8
    where[0] = False
    x[1, 2, 3], x[2, 1, 0], x[3, 0] = np.nan, np.inf, -np.inf
    own, twin = (module.LogSumExp((0, 2), temperature=temperature) for module in (fs, reference))
    for axes_first in (own, twin):
        axes_first.update(x[..., :7], where=where[..., :7]).update(x[..., 7:])
        axes_first.merge(copy.copy(axes_first))
    np.testing.assert_allclose(own.value(), twin.value(), rtol=1e-13)
    for name in ("softmax", "log_softmax"):
        np.testing.assert_allclose(
            getattr(own, name)(x, where=where), getattr(twin, name)(x, where=where), rtol=1e-12, atol=1e-13
        )


# The recipes of the documentation.


def test_a_loop_over_a_memmap_writes_the_bits_of_the_whole_call(tmp_path):
    rows, columns, width = 16, 3 * BLOCK, BLOCK
    scores = np.memmap(tmp_path / "scores", np.float32, "w+", shape=(rows, columns))
    scores[...] = np.random.default_rng(4).normal(0, 5, scores.shape)
    result = np.memmap(tmp_path / "result", np.float32, "w+", shape=scores.shape)
    whole = fs.LogSumExp()
    for begin in range(0, columns, width):
        whole.update(scores[:, begin : begin + width])
    for begin in range(0, columns, width):
        part = slice(begin, begin + width)
        whole.softmax(scores[:, part], out=result[:, part])
    assert_same_bits(np.asarray(result), fs.softmax(np.asarray(scores)))


def _owner(pipe, seed):
    """One of two processes, each with half of the classes."""
    scores = np.random.default_rng(seed).normal(0, 3, (5, BLOCK))
    own = fs.LogSumExp().update(scores)
    pipe.send(own.state)
    other = fs.LogSumExp.from_state(pipe.recv())
    both = own.merge(other) if seed == 0 else other.merge(own)
    pipe.send(both.softmax(scores))
    pipe.close()


def test_two_processes_that_exchange_states_get_the_bits_of_the_whole_call():
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=_owner, args=(there, seed)) for seed, (_, there) in enumerate(ends)]
    for worker in workers:
        worker.start()
    first, second = (here for here, _ in ends)
    a, b = first.recv(), second.recv()
    first.send(b)
    second.send(a)
    parts = [first.recv(), second.recv()]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    x = np.concatenate([np.random.default_rng(seed).normal(0, 3, (5, BLOCK)) for seed in range(2)], 1)
    assert_same_bits(np.concatenate(parts, 1), fs.softmax(x))
