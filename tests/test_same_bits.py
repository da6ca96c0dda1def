"""A slice's result depends only on the slice: the same bits in every batch, layout, number of threads and call."""

from functools import lru_cache

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import CALLS, FLOATING, LAYOUTS, LOSSES, Inputs, assert_all_same_bits, assert_same_bits, results
from ml_dtypes import finfo

each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)

SHAPES = [(37, 2), (37, 10), (19, 33), (5, 100), (2, 3, 70), (3, 1025), (2, 5000), (2, 3, 2, 5)]


PARTS = [((23, 40), np.s_[:1]), ((23, 40), np.s_[:, :1]), ((5, 23, 40), np.s_[:]), ((23, 40), np.s_[:1, :1])]


def reduced_losses(module, a, axis):
    """Results that depend on the whole batch, in its order."""
    for reduction in ("mean", "sum"):
        for targets in (a.indices, a.probabilities):
            for options in ({}, {"weight": a.weight, "label_smoothing": 0.1}):
                yield from module.cross_entropy_with_grad(a.x, targets, axis, reduction=reduction, **options)


def reduced(module, a, axis):
    return tuple(reduced_losses(module, a, axis))


WITH_REDUCTIONS = CALLS | {"cross_entropy, mean and sum": reduced}
each_call_and_reduction = pytest.mark.parametrize("call", WITH_REDUCTIONS.values(), ids=WITH_REDUCTIONS)


def moved_back(result, ndim, axis):
    """Move the class axis back to the end, in results that have it."""
    return tuple(np.moveaxis(r, axis, -1) if r.ndim == ndim else r for r in results(result))


@pytest.mark.core
@each_dtype
@each_call_and_reduction
def test_bits_are_the_same_in_every_layout(call, dtype):
    for shape in SHAPES:
        inputs = Inputs.normal(shape, dtype)
        wanted = call(fs, inputs, -1)
        for layout in LAYOUTS.values():
            assert_all_same_bits(call(fs, inputs.map(layout), -1), wanted)


def of_every_size(rng, shape, dtype):
    """Numbers of which some products overflow and some underflow; one in the last row is NaN or infinite."""
    info = finfo(dtype)
    scale = np.exp2(rng.integers(int(info.minexp), int(info.maxexp), shape) // rng.choice([1, 2, 9], (shape[0], 1)))
    with np.errstate(over="ignore"):
        x = (rng.normal(size=shape) * scale).astype(dtype)
    x[-1, rng.integers(shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
    return x


@pytest.mark.core
@each_dtype
@pytest.mark.parametrize("function", [fs.softmax_grad, fs.log_softmax_grad])
def test_gradients_of_rows_of_every_length_have_the_bits_of_strided_slices(function, dtype, rng):
    for classes in [*range(1, 200), 1000, 1001, 16_384, 16_385]:
        rows = 6 if classes < 1000 else 3
        y, dy = (of_every_size(rng, (rows, classes), dtype) for _ in range(2))
        apart = [np.repeat(a, 2, axis=1)[:, ::2] for a in (y, dy)]
        with np.errstate(all="ignore"):
            wanted = function(*apart)
            assert_same_bits(function(y, dy), wanted)
            for gap in (1, 3):  # between rows, which then begin anywhere in a cache line
                room = np.zeros((3, rows, classes + gap), dtype)
                y_rows, dy_rows, out = room[:, :, gap:]
                y_rows[...], dy_rows[...] = y, dy
                assert_same_bits(function(y_rows, dy_rows, out=out), wanted)
                assert not room[:, :, :gap].any()
                assert_same_bits(function(y_rows, dy, out=y_rows), wanted)
                assert_same_bits(function(y, dy_rows, out=dy_rows), wanted)
                assert not room[:, :, :gap].any()


@pytest.mark.core
@each_dtype
@each_call_and_reduction
def test_bits_are_the_same_wherever_the_class_axis_is(call, dtype):
    for shape in SHAPES:
        inputs = Inputs.normal(shape, dtype)
        wanted = call(fs, inputs, -1)
        for axis in range(-len(shape), len(shape)):
            moved = inputs.move(axis)
            assert_all_same_bits(moved_back(call(fs, moved, axis), len(shape), axis), wanted)
            reverse = moved.map(np.asfortranarray)
            assert_all_same_bits(moved_back(call(fs, reverse, axis), len(shape), axis), wanted)


@each_dtype
@each_call_and_reduction
def test_bits_of_a_long_slice_are_the_same_in_every_layout(call, dtype):
    inputs = Inputs.normal((2, 70_001), dtype)
    wanted = call(fs, inputs, -1)
    for name in ("strided", "axis_first", "unaligned", "swapped"):
        assert_all_same_bits(call(fs, inputs.map(LAYOUTS[name]), -1), wanted)


@lru_cache(maxsize=1)
def long_slices(n, dtype):
    """`n` slices, each too long to be gathered at once, and their other layouts: (name, inputs, class axis)."""
    a = Inputs.normal((n, 70_001), dtype)
    first = a.move(0)
    return a, [
        ("Fortran", a.map(np.asfortranarray), 1),
        ("first axis", first, 0),
        ("first axis, Fortran", first.map(np.asfortranarray), 0),
        ("first axis, strided", first.map(LAYOUTS["strided"]), 0),
        ("first axis, swapped", first.map(LAYOUTS["swapped"]), 0),
    ]


@each_call_and_reduction
@pytest.mark.parametrize("dtype", FLOATING[1:], ids=str)
@pytest.mark.parametrize("n", [3, 16])
def test_bits_of_a_few_long_slices_are_the_same_in_every_layout(n, dtype, call):
    a, others = long_slices(n, dtype)
    wanted = call(fs, a, -1)
    for _, other, axis in others:
        assert_all_same_bits(moved_back(call(fs, other, axis), 2, axis), wanted)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_mask_of_ones_changes_no_bits_of_long_slices(dtype):
    a, others = long_slices(3, dtype)
    for function in (fs.softmax, fs.log_softmax, fs.logsumexp, fs.entropy):
        wanted = function(a.x, 1)
        for _, other, axis in [("C", a, 1), *others]:
            got = moved_back(function(other.x, axis, where=True), 2, axis)
            assert_all_same_bits(got, wanted)
    for gradient, y in [(fs.softmax_grad, "probabilities"), (fs.log_softmax_grad, "log_probabilities")]:
        wanted = gradient(getattr(a, y), a.dy, 1)
        for _, other, axis in [("C", a, 1), *others]:
            got = moved_back(gradient(getattr(other, y), other.dy, axis, where=True), 2, axis)
            assert_all_same_bits(got, wanted)


@pytest.mark.core
@each_dtype
@each_call
def test_bits_of_a_slice_are_the_same_alone_and_in_its_batch(call, dtype):
    for shape in [(37, 2), (37, 10), (35, 33), (5, 300), (2, 5000)]:
        inputs = Inputs.normal(shape, dtype)
        wanted = results(call(fs, inputs, -1))
        for i in range(shape[0]):
            assert_all_same_bits(call(fs, inputs.take(i), -1), tuple(w[i] for w in wanted))


@pytest.mark.core
@each_dtype
@each_call
def test_bits_of_a_batch_are_the_same_in_chunks(call, dtype):
    for shape in [(131, 2), (131, 7), (67, 40), (20, 1025)]:
        inputs = Inputs.normal(shape, dtype)
        wanted = results(call(fs, inputs, -1))
        for size in (5, 16, 17, 64):
            for axis in (0, 1):
                for start in range(0, shape[0], size):
                    chunk = slice(start, start + size)
                    got = call(fs, inputs.take(chunk).move(axis), axis)
                    assert_all_same_bits(moved_back(got, 2, axis), tuple(w[chunk] for w in wanted))


@pytest.mark.core
@each_dtype
@each_call
def test_bits_of_a_slice_do_not_depend_on_its_neighbours(call, dtype):
    """A neighbour that is computed in another way must not change the results of others."""
    for shape in [(37, 2), (37, 10), (35, 33), (5, 300), (2, 5000)]:
        inputs = Inputs.normal(shape, dtype)
        wanted = results(call(fs, inputs, -1))
        for value in (np.nan, -np.inf, 6e4, -6e4):
            others = inputs.map(np.copy)
            others.x[::2] = others.dy[::2] = value
            for axis in (0, 1):
                got = moved_back(call(fs, others.move(axis), axis), 2, axis)
                assert_all_same_bits(tuple(g[1::2] for g in got), tuple(w[1::2] for w in wanted))


@each_dtype
@each_call
def test_broadcast_arrays_give_the_bits_of_their_copies(call, dtype):
    inputs = Inputs.normal((23, 40), dtype)
    for shape, part in PARTS:

        def broadcast(a, shape=shape, part=part):
            return np.broadcast_to(a[part], shape) if a.ndim == 2 else np.broadcast_to(a, shape[:-1])

        given = inputs.map(broadcast)
        for axis in range(len(shape)):
            assert_all_same_bits(call(fs, given.view(axis), axis), call(fs, given.move(axis), axis))


@each_dtype
@each_call_and_reduction
def test_bits_are_the_same_for_every_number_of_threads(call, dtype, threads):
    shapes = [(17_001, 3), (1_501, 33), (13, 5000), (2, 70_001)]
    if dtype == np.float32:
        shapes.append((3, 140_001))  # enough for three threads without OpenMP, too
    for shape in shapes:
        inputs = Inputs.normal(shape, dtype)
        with threads(1):
            wanted = call(fs, inputs, -1)
        with threads(3):
            assert_all_same_bits(call(fs, inputs, -1), wanted)
            assert_all_same_bits(moved_back(call(fs, inputs.move(0), 0), 2, 0), wanted)


@pytest.mark.parametrize("call", WITH_REDUCTIONS.values(), ids=WITH_REDUCTIONS)
def test_bits_of_a_very_long_slice_are_the_same_for_every_number_of_threads(call, threads):
    inputs = Inputs.normal((1, 1_000_003), np.float32)
    with threads(1):
        wanted = call(fs, inputs, -1)
    for n in (2, 3, 8):
        with threads(n):
            assert_all_same_bits(call(fs, inputs, -1), wanted)


@each_call_and_reduction
def test_bits_are_the_same_after_every_other_call(call):
    inputs = Inputs.normal((33, 100), np.float32)
    wanted = call(fs, inputs, -1)
    for other in WITH_REDUCTIONS.values():
        other(fs, Inputs.normal((7, 1000), np.float64), -1)
        assert_all_same_bits(call(fs, inputs, -1), wanted)


@each_dtype
def test_bits_are_the_same_with_out_and_in_place(dtype):
    for shape in SHAPES:
        a = Inputs.normal(shape, dtype)
        for function in (fs.softmax, fs.log_softmax):
            wanted = function(a.x)
            assert_same_bits(function(a.x, out=LAYOUTS["strided"](a.x)), wanted)
            place = a.x.copy()
            assert_same_bits(function(place, out=place), wanted)
            place = LAYOUTS["negative"](a.x)
            assert_same_bits(function(place, out=place), wanted)


@pytest.mark.core
@pytest.mark.parametrize("dtype", FLOATING[2:], ids=str)
@pytest.mark.parametrize(
    "levels",
    [
        (0, 1, -3, 0.5),
        (0, -30, -95, -200),
        (-95, 0, -720, -2000),
        (-4000, 700, 650, 560),
        (-np.inf, -600, 0, -np.inf),
        (0, 1e30, 9e29, -1e30),
        (-520, -519, -np.inf, -521),
        (0, np.inf, -np.inf, 3),
        (0, 5, np.nan, -5),
    ],
)
def test_bits_of_a_long_slice_with_parts_far_apart_are_the_same_in_place_and_strided(levels, dtype, rng):
    """Exponentials may wait in the place of the results or be computed again: the bits are the same."""
    x = (rng.normal(size=(4, 15_000)) + np.array(levels)[:, np.newaxis]).reshape(1, -1).astype(dtype)
    targets = np.array([33_333])
    place = x.copy()
    assert_same_bits(fs.softmax(place, out=place), fs.softmax(x))
    assert_same_bits(fs.softmax(LAYOUTS["strided"](x)), fs.softmax(x))
    for upstream in (1, -1, 2.0**29, 2.0**40, -1e38, 1e38):
        wanted = fs.cross_entropy_grad(x, targets, upstream=upstream)
        place = x.copy()
        assert_same_bits(fs.cross_entropy_grad(place, targets, upstream=upstream, out=place), wanted)
        assert_same_bits(fs.cross_entropy_grad(LAYOUTS["strided"](x), targets, upstream=upstream), wanted)


@each_dtype
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.logsumexp, fs.entropy])
def test_a_mask_of_ones_changes_no_bits(function, dtype):
    for shape in SHAPES:
        a = Inputs.normal(shape, dtype)
        for axis in range(len(shape)):
            assert_same_bits(function(a.x, axis, where=True), function(a.x, axis))


@pytest.mark.parametrize("call", LOSSES.values(), ids=LOSSES)
def test_bits_of_a_loss_do_not_depend_on_the_dtype_of_its_targets(call):
    a = Inputs.normal((67, 10), np.float32)
    wanted = call(fs, a, -1)
    for dtype in (np.int8, np.uint16, np.uint64):
        a.indices = a.indices.astype(dtype)
        assert_all_same_bits(call(fs, a, -1), wanted)


@pytest.mark.core
@each_dtype
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.logsumexp, fs.entropy])
def test_bits_of_a_slice_do_not_depend_on_masked_classes_after_it(function, dtype):
    """The last classes of a slice, which do not fill a pack, are computed as if masked classes filled it."""
    few = 56  # up to here, sums have an order of their own
    for classes in (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 300, 16_383, 16_385):
        x = Inputs.normal((3, classes), dtype).x
        for more in (1, 7, 15, 33):
            if (classes <= few) != (classes + more <= few):
                continue
            filled = np.concatenate([x, np.full((3, more), np.nan, dtype)], 1)
            got = function(filled, 1, where=np.arange(classes + more) < classes)
            assert_same_bits(got if got.ndim == 1 else got[:, :classes], function(x, 1))
