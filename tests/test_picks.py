"""log_softmax_at and log_softmax_top_k give the bits of log_softmax, in the promised order, and in little time."""

import fastsoftmax as fs
import ml_dtypes
import numpy as np
import pytest
from arrays import FAMILIES, FLOATING, INTEGERS, LAYOUTS, assert_same_bits, family, zoo
from fastsoftmax import reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
SHAPES = [(3, 1), (20, 2), (37, 10), (19, 56), (17, 57), (5, 300), (3, 1025), (2, 40_000)]


def some_indices(rng: np.random.Generator, shape: tuple[int, ...], axis: int, n: int) -> NDArray:
    wanted = list(shape)
    wanted[axis] = n
    return rng.integers(0, shape[axis], wanted)


def options_for(rng: np.random.Generator, x: NDArray) -> list[dict]:
    where = rng.uniform(size=x.shape) < 0.6
    return [{}, {"temperature": 0.7}, {"where": where}, {"where": where, "temperature": 3, "dtype": np.float64}]


def by_definition(x: NDArray, k: int, where: NDArray | None = None, **options) -> tuple[NDArray, NDArray]:
    """Picks along the last axis from the whole of log_softmax, by Python's own sort."""
    logp = fs.log_softmax(x, where=where, **options)
    present = np.broadcast_to(True if where is None else where, x.shape)
    scores = x.astype(np.float64)
    order = np.empty((*x.shape[:-1], k), np.intp)
    for i in np.ndindex(x.shape[:-1]):
        spoilt = np.isnan(logp[i][present[i]]).any()

        def key(c, i=i, spoilt=spoilt):
            return not present[i][c], -scores[i][c] if present[i][c] and not spoilt else 0, c

        order[i] = sorted(range(x.shape[-1]), key=key)[:k]
    return np.take_along_axis(logp, order, -1), order


# log_softmax_at


@each_dtype
@pytest.mark.parametrize("name", FAMILIES)
def test_log_softmax_at_gives_the_bits_of_log_softmax(name, dtype, rng):
    for shape in SHAPES:
        x = family(name, shape, dtype)
        for options in options_for(rng, x):
            whole = fs.log_softmax(x, **options)
            for n in (1, 3, 20):
                indices = some_indices(rng, shape, 1, n)
                assert_same_bits(fs.log_softmax_at(x, indices, **options), np.take_along_axis(whole, indices, 1))
            one = some_indices(rng, shape, 1, 1)[:, 0]
            assert_same_bits(fs.log_softmax_at(x, one, **options), whole[np.arange(len(x)), one])


@each_dtype
def test_log_softmax_at_gives_the_bits_of_log_softmax_for_special_scores(dtype, rng):
    for _, x in zoo(dtype):
        if x.ndim == 0:
            continue
        for axis in range(-x.ndim, x.ndim):
            if x.shape[axis] == 0:
                continue
            indices = some_indices(rng, x.shape, axis, 4)
            wanted = np.take_along_axis(fs.log_softmax(x, axis), indices, axis)
            assert_same_bits(fs.log_softmax_at(x, indices, axis), wanted)


@pytest.mark.parametrize("dtype", INTEGERS[1:], ids=str)
def test_indices_may_have_any_integer_dtype_and_layout(dtype, rng):
    x = rng.normal(size=(5, 7, 100)).astype(np.float32)
    indices = some_indices(rng, x.shape, 1, 3).astype(dtype)
    wanted = np.take_along_axis(fs.log_softmax(x, 1), indices.astype(int), 1)
    for layout in LAYOUTS.values():
        assert_same_bits(fs.log_softmax_at(x, layout(indices), 1), wanted)
        assert_same_bits(fs.log_softmax_at(x, layout(indices[:, 0]), 1), wanted[:, 0])
    assert_same_bits(fs.log_softmax_at(x, indices.tolist(), 1), wanted)
    assert_same_bits(fs.log_softmax_at(x, np.broadcast_to(indices[:1, :1], (5, 9, 100)), 1)[0, 0], wanted[0, 0])


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 1025, 5000])
def test_there_may_be_no_indices_or_more_than_classes(n, rng):
    for x in (rng.normal(size=(3, 10)), rng.normal(size=(3, 10, 2)).astype(np.float32)):
        indices = some_indices(rng, x.shape, 1, n)
        wanted = np.take_along_axis(fs.log_softmax(x, 1), indices, 1)
        assert_same_bits(fs.log_softmax_at(x, indices, 1), wanted)
        assert_same_bits(fs.log_softmax_at(x, np.asfortranarray(indices), 1), wanted)


def test_one_index_of_one_slice_gives_a_scalar():
    got = fs.log_softmax_at(np.float32([1, 2, 3]), 1)
    assert type(got) is np.float32
    assert got == fs.log_softmax(np.float32([1, 2, 3]))[1]
    assert fs.log_softmax_at([1.0, 2.0, 3.0], [1]).shape == (1,)


def test_an_empty_array_gives_an_empty_result():
    assert_same_bits(fs.log_softmax_at(np.zeros((0, 3)), np.zeros(0, int)), np.zeros(0))
    assert_same_bits(fs.log_softmax_at(np.zeros((0, 3)), []), np.zeros(0))
    assert_same_bits(fs.log_softmax_at(np.zeros((2, 0)), np.zeros((2, 0), int)), np.zeros((2, 0)))
    assert_same_bits(fs.log_softmax_at(np.zeros((0, 0)), np.zeros((0, 5), int)), np.zeros((0, 5)))
    for got in fs.log_softmax_top_k(np.zeros((0, 3), np.float32), 2):
        assert got.shape == (0, 2)


@each_dtype
def test_a_masked_index_gives_minus_infinity_whatever_its_score_is(dtype):
    x = np.array([[np.nan, 1, 2], [np.inf, np.nan, np.nan]], dtype)
    where = np.array([[False, True, True], [False, False, False]])
    got = fs.log_softmax_at(x, [[0, 1], [0, 2]], where=where)
    assert_same_bits(got, np.array([[-np.inf, fs.log_softmax(x[0, 1:])[0]], [-np.inf, -np.inf]], dtype))


@each_dtype
def test_out_of_log_softmax_at_may_have_any_layout_and_overlap_an_input(dtype, rng):
    for axis in (0, 1):
        x = rng.normal(0, 4, (30, 40)).astype(dtype)
        indices = some_indices(rng, x.shape, axis, 6)
        wanted = fs.log_softmax_at(x, indices, axis)
        for layout in LAYOUTS.values():
            out = layout(np.ones(wanted.shape, dtype))
            if out.flags.writeable and out.dtype.isnative:
                assert fs.log_softmax_at(x, indices, axis, out=out) is out
                assert_same_bits(np.asarray(out), wanted)
        place = x[:6] if axis == 0 else x[:, 3:9]
        fs.log_softmax_at(x, indices, axis, out=place)
        assert_same_bits(np.array(place), wanted)
    both = np.array([[2, 0], [1, 1]])  # their memory is also `out`
    wanted = fs.log_softmax_at(np.eye(2, 3), both)
    fs.log_softmax_at(np.eye(2, 3), both, out=both.view(np.float64))
    assert_same_bits(both.view(np.float64), wanted)


# log_softmax_top_k


@each_dtype
@pytest.mark.parametrize("name", FAMILIES)
def test_top_k_comes_by_falling_score_and_rising_index(name, dtype, rng):
    for shape in SHAPES[:-1]:
        x = family(name, shape, dtype)
        for options in options_for(rng, x):
            for k in {1, min(4, shape[1]), min(40, shape[1]), shape[1]}:
                got, wanted = fs.log_softmax_top_k(x, k, **options), by_definition(x, k, **options)
                assert got[1].dtype == np.intp
                np.testing.assert_array_equal(got[1], wanted[1])
                assert_same_bits(got[0], wanted[0])


@each_dtype
def test_top_k_of_special_scores_follows_the_definition(dtype, rng):
    for _, x in zoo(dtype):
        if x.ndim == 0 or x.shape[-1] == 0:
            continue
        for options in options_for(rng, x):
            for k in range(1, x.shape[-1] + 1):
                got, wanted = fs.log_softmax_top_k(x, k, **options), by_definition(x, k, **options)
                np.testing.assert_array_equal(got[1], wanted[1])
                assert_same_bits(got[0], wanted[0])


@each_dtype
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_top_k_along_any_axis_in_any_layout_follows_the_definition(axis, dtype, rng):
    x = rng.normal(0, 4, (9, 70, 33)).astype(dtype)
    wanted = by_definition(np.moveaxis(x, axis, -1), 5)
    for layout in LAYOUTS.values():
        got = fs.log_softmax_top_k(layout(x), 5, axis)
        np.testing.assert_array_equal(np.moveaxis(got[1], axis, -1), wanted[1])
        assert_same_bits(np.moveaxis(got[0], axis, -1), wanted[0])


LONG = 100_003
ORDERS = {
    "rising": np.sort,
    "falling": lambda x: -np.sort(-x),
    "equal": lambda x: np.full_like(x, 3),
    "of few values": np.round,
    "rising again and again": lambda x: np.sort(x.reshape(-1, 1)[: LONG // 8 * 8].reshape(8, -1)).ravel(),
    "largest last": lambda x: np.where(np.arange(len(x)) < len(x) - 300, x, x + 30),
    "mostly -inf": lambda x: np.where(np.arange(len(x)) % 999 == 5, x, -np.inf),
    "alternating": lambda x: np.abs(x) * (-1) ** np.arange(len(x)),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ORDERS)
def test_top_k_of_a_long_slice_in_any_order_follows_a_stable_sort(order, dtype, rng):
    x = ORDERS[order](rng.normal(0, 4, LONG)).astype(dtype)
    whole = fs.log_softmax(x)
    wanted = np.argsort(-x.astype(np.float64), kind="stable")
    for k in (1, 7, 64, 500, 30_000, len(x)):
        got, indices = fs.log_softmax_top_k(x, k)
        np.testing.assert_array_equal(indices, wanted[:k])
        assert_same_bits(got, whole[wanted[:k]])


def test_scores_whose_log_probabilities_are_equal_keep_the_order_of_scores():
    x = np.float16([[0.001, 0.002, 0.0015, 600, 0.002]])
    got, indices = fs.log_softmax_top_k(x, 5)
    assert indices.tolist() == [[3, 1, 4, 2, 0]]
    assert len(set(got[0, 1:].tolist())) == 1


@each_dtype
def test_a_slice_of_nan_gives_its_first_indices_that_take_part(dtype):
    x = np.zeros((4, 6), dtype)
    x[0, 3], x[1, 2], x[2] = np.nan, np.inf, -np.inf
    for got, indices in (fs.log_softmax_top_k(x, 3), fs.log_softmax_top_k(x.T.copy(), 3, 0)):
        got, indices = (a if a.shape == (4, 3) else a.T for a in (got, indices))
        np.testing.assert_array_equal(indices, [[0, 1, 2]] * 4)
        assert np.isnan(got[:3]).all()
        assert_same_bits(got[3], fs.log_softmax(x[3])[:3])
    where = np.array([False, True, False, True, False, True])
    got, indices = fs.log_softmax_top_k(x, 5, where=where)
    np.testing.assert_array_equal(indices[[0, 2]], [[1, 3, 5, 0, 2]] * 2)
    assert np.isnan(got[[0, 2], :3]).all()
    assert (got[:, 3:] == -np.inf).all()


@each_dtype
def test_masked_classes_come_after_all_others_even_after_minus_infinity(dtype):
    x = np.array([5, -np.inf, 9, 1, -np.inf, 7], dtype)
    where = np.array([True, True, False, True, True, False])
    got, indices = fs.log_softmax_top_k(x, 6, where=where)
    assert indices.tolist() == [0, 3, 1, 4, 2, 5]
    assert got[2:].tolist() == [-np.inf] * 4
    assert fs.log_softmax_top_k(x, 3, where=False)[1].tolist() == [0, 1, 2]


@given(st.data())
def test_top_k_of_any_few_scores_follows_the_definition(data):
    number = st.sampled_from([0.0, -0.0, 1.0, 2.0, -np.inf, np.inf, np.nan, 1e-45, 3e38])
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    classes = data.draw(st.integers(1, 40))
    x = np.array(data.draw(st.lists(number, min_size=classes, max_size=classes))).astype(dtype)
    where = np.array(data.draw(st.lists(st.booleans(), min_size=classes, max_size=classes)))
    k = data.draw(st.integers(1, classes))
    for options in ({}, {"where": where}):
        got, wanted = fs.log_softmax_top_k(x, k, **options), by_definition(x, k, **options)
        assert got[1].tolist() == wanted[1].tolist()
        assert_same_bits(got[0], wanted[0])
        twin = reference.log_softmax_top_k(x, k, **options)
        assert got[1].tolist() == twin[1].tolist()


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_top_k_of_integers_follows_the_definition(dtype, rng):
    x = rng.integers(0, 2 if dtype == np.bool else 50, (9, 200)).astype(dtype)
    got, wanted = fs.log_softmax_top_k(x, 7), by_definition(x, 7)
    np.testing.assert_array_equal(got[1], wanted[1])
    assert_same_bits(got[0], wanted[0])
    assert fs.log_softmax_top_k(x, 7, dtype=np.float32)[0].dtype == np.float32


def test_top_k_gives_what_log_softmax_at_gives_at_its_indices(rng):
    x = rng.normal(0, 4, (3, 500, 4)).astype(ml_dtypes.bfloat16)
    got, indices = fs.log_softmax_top_k(x, 11, 1)
    assert_same_bits(got, fs.log_softmax_at(x, indices, 1))
