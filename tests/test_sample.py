"""`sample` draws the classes that its definition draws, from those that are left, as often as probabilities say."""

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import FLOATING, LAYOUTS, GivenNumbers, bfloat16, zoo
from fastsoftmax import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, default_rng
from scipy.stats import chisquare

ROUNDING = 1e-5  # of a cumulated probability in float32, in which halves are also computed
ALMOST_ONE = 1 - 2.0**-53

TRUNCATIONS = {
    "none": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "top_k and top_p": {"top_k": 9, "top_p": 0.7},
    "all": {"temperature": 1.7, "top_k": 30, "top_p": 0.95, "min_p": 0.03},
}
each_truncation = pytest.mark.parametrize("options", TRUNCATIONS.values(), ids=TRUNCATIONS)
each_dtype = pytest.mark.parametrize("dtype", [*FLOATING, np.dtype(np.int8)], ids=str)


def left_and_probabilities(scores, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """The classes of a slice that are left, by rising index, and their probabilities, by the definition."""
    d = scores.astype(np.float64)
    e = np.exp((d - d.max()) / temperature)
    order = np.argsort(-d, kind="stable")[:top_k]
    if top_p < 1:
        sums = np.cumsum(e[order]) / e[order].sum()
        order = order[: np.searchsorted(sums, top_p * (1 - 1e-12)) + 1]
    left = np.sort(order[(e[order] >= min_p) & (e[order] > 0)])
    return left, e[left] / e[left].sum()


def inner_numbers(p):
    """The middle of each class's part of [0, 1), if that is wider than rounding; and which classes have such a part."""
    sums = np.cumsum(p)
    wide = p > 10 * ROUNDING
    return (sums - p / 2)[wide], wide


@each_dtype
@each_truncation
@pytest.mark.parametrize("classes", [1, 2, 10, 60, 500, 4096, 4097, 20_000, 40_000])
def test_each_class_that_is_left_is_drawn_and_no_other(classes, options, dtype, rng):
    for scale in (0.3, 2, 12):
        x = (rng.normal(0, scale, classes)).astype(dtype)
        left, p = left_and_probabilities(x, **options)
        numbers, wide = inner_numbers(p)
        np.testing.assert_array_equal(fs.sample(x, GivenNumbers(numbers), size=numbers.size, **options), left[wide])
        anywhere = fs.sample(x, rng, size=3000, **options)
        borders = fs.sample(x, GivenNumbers([0, ALMOST_ONE]), size=2, **options)
        assert np.isin([*anywhere, *borders], left).all()


@st.composite
def calls(draw):
    shape = draw(st.sampled_from([(7,), (3, 1), (4, 3), (2, 50), (3, 4, 70), (2, 5000), (1, 33_000)]))
    dtype = draw(st.sampled_from([*FLOATING, np.dtype(np.int16)]))
    random = default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0, 100.0]))
    x = (random.normal(0, scale, shape) + draw(st.sampled_from([0, -300, 500]))).astype(dtype)
    if draw(st.booleans()):
        x = np.round(x.astype(np.float64)).astype(dtype)  # equal scores
    if dtype.kind != "i" and draw(st.booleans()):
        x[random.random(shape) < 0.3] = -np.inf
    classes = shape[-1]
    options = {
        "size": draw(st.sampled_from([None, 0, 1, 40])),
        "temperature": draw(st.sampled_from([1.0, 0.5, 3.0])),
        "top_k": draw(st.none() | st.integers(1, 60) | st.integers(1, classes + 2)),
        "top_p": draw(st.none() | st.floats(0, 1, exclude_min=True)),
        "min_p": draw(st.none() | st.floats(0, 1)),
        "where": random.random(shape) < 0.7 if draw(st.booleans()) else None,
    }
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    moved = {k: np.moveaxis(v, -1, axis) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    return np.moveaxis(x, -1, axis), axis, moved


def drawn_or_refusal(module, *arguments, **options):
    try:
        return module.sample(*arguments, **options)
    except ValueError as error:
        return str(error)


@given(calls(), st.integers(0, 2**32 - 1))
def test_draws_are_those_of_the_definition_except_for_rounding(call, seed):
    x, axis, options = call
    told = [drawn_or_refusal(module, x, default_rng(seed), axis, **options) for module in (fs, reference)]
    if any(isinstance(one, str) for one in told):
        assert told[0] == told[1]
        return
    got, wanted = told
    assert (type(got), got.dtype, got.shape) == (type(wanted), wanted.dtype, wanted.shape)
    if (np.asarray(got) != wanted).any():
        assert_other_side_of_a_border(x, axis, options, seed, np.asarray(got), np.asarray(wanted))


def assert_other_side_of_a_border(x, axis, options, seed, got, wanted):
    """Assert that the draws differ only where numbers, top_p or min_p lie within rounding of a border."""
    spread = {k: options[k] for k in ("temperature", "where", "top_k")}
    for change in (-ROUNDING, ROUNDING):
        near = dict(options)
        if options["top_p"] is not None:
            near["top_p"] = float(np.clip(options["top_p"] + change, 1e-300, 1))
        if options["min_p"] is not None:
            near["min_p"] = float(np.clip(options["min_p"] * (1 + change), 0, 1))
        for shift in (0, -ROUNDING, ROUNDING):
            numbers = np.clip(default_rng(seed).random(wanted.size) + shift, 0, ALMOST_ONE)
            other = np.asarray(reference.sample(x, GivenNumbers(numbers), axis, **near))
            wanted = np.where(got == other, other, wanted)
    assert (got == wanted).all(), spread


@each_dtype
@each_truncation
def test_frequencies_are_the_probabilities(options, dtype):
    random = default_rng(18)
    x = (random.normal(0, 2, (3, 40)) - 1).astype(dtype)
    draws = 200_000
    drawn = fs.sample(x, random, size=draws, **options)
    for scores, of_slice in zip(x, drawn, strict=True):
        left, p = left_and_probabilities(scores, **options)
        counts = np.bincount(of_slice, minlength=scores.size)
        assert counts.sum() == counts[left].sum() == draws
        often = p * draws >= 5
        if often.sum() > 1:
            rare = [np.sum(a[~often]) for a in (counts[left], p * draws)] if not often.all() else []
            seen, wanted = counts[left][often], (p * draws)[often]
            if rare and rare[1] >= 5:
                seen, wanted = np.append(seen, rare[0]), np.append(wanted, rare[1])
            assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-4


def test_frequencies_over_many_blocks_are_the_probabilities():
    random = default_rng(3)
    x = random.normal(0, 1, (1, 100_000)).astype(np.float32)
    drawn = fs.sample(x, random, size=1_000_000)[0]
    p = reference.softmax(x[0].astype(np.float64)).reshape(100, -1).sum(axis=1)
    counts = np.bincount(drawn // 1000, minlength=100)
    assert chisquare(counts, p * counts.sum()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("classes", [9, 70, 5000, 50_000])
def test_the_first_of_equal_scores_are_left(classes, dtype, rng):
    x = rng.integers(0, 5, classes).astype(dtype)
    x[x == 0] = rng.choice([0.0, -0.0], np.sum(x == 0))
    order = np.argsort(-x.astype(np.float64), kind="stable")
    for k in (1, 2, classes // 3, classes - 1):
        drawn = fs.sample(x, rng, size=4000, top_k=k, temperature=50)
        assert np.isin(drawn, order[:k]).all()
        if k <= 30:
            assert np.unique(drawn).size == k
    even = np.full(classes, -3, dtype)
    drawn = fs.sample(even, GivenNumbers(np.linspace(0, ALMOST_ONE, 3000)), size=3000, top_p=1 / 3)
    assert drawn.max() == -(classes // -3) - 1


def test_top_p_and_min_p_keep_exactly_as_many_equal_scores_as_needed():
    for dtype in FLOATING:
        for classes in (10, 100, 1000):
            x = np.zeros(classes, dtype)
            numbers = GivenNumbers((np.arange(classes) + 0.5) / classes)
            for tenths in range(1, 11):
                left = fs.sample(x, numbers, size=classes, top_p=tenths / 10)
                assert left.max() == classes * tenths // 10 - 1
            assert (fs.sample(x, numbers, size=classes, min_p=1) == np.arange(classes)).all()


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_class_of_probability_0_is_never_drawn(dtype):
    x = np.full((4, 9000), -np.inf, dtype)
    x[0, 0] = x[1, 8999] = x[2, 4321] = 0
    x[3, [17, 5000, 8000]] = [-1, 0, -1]
    x[3, 8500] = -3000
    numbers = GivenNumbers([0, 2.0**-53, 0.5, ALMOST_ONE])
    got = fs.sample(x, numbers, size=4)
    np.testing.assert_array_equal(got[:3], np.repeat([[0], [8999], [4321]], 4, axis=1))
    np.testing.assert_array_equal(got[3], [17, 17, 5000, 8000])
    where = np.ones(x.shape, bool)
    where[3, [17, 8000]] = False
    np.testing.assert_array_equal(fs.sample(x, numbers, size=4, where=where)[3], [5000] * 4)


class Counting(Generator):
    """A generator that records how it is used."""

    def __init__(self):
        super().__init__(PCG64(5))
        self.asked = []

    def random(self, *arguments, **options):
        self.asked.append((arguments, options))
        return super().random(*arguments, **options)


@pytest.mark.parametrize("size", [None, 0, 1, 7])
def test_each_draw_uses_one_random_number_in_c_order(size, rng):
    x = rng.normal(size=(3, 50, 4))
    numbers = Counting()
    got = fs.sample(x, numbers, 1, size=size)
    draws = 12 * (1 if size is None else size)
    assert numbers.asked == [((draws,), {})]
    u = default_rng(PCG64(5)).random(draws).reshape(3, 4, -1)
    sums = np.cumsum(reference.softmax(x, 1), axis=1)
    wanted = (sums[..., None] <= u[:, None]).sum(axis=1)
    np.testing.assert_array_equal(got, wanted[..., 0] if size is None else wanted)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x.__setitem__((1, 3, 2), np.nan), r"x\[1, :, 2\] has a NaN"),
        (lambda x: x.__setitem__((1, 3, 2), np.inf), r"x\[1, :, 2\] has \+inf"),
        (lambda x: x.__setitem__((2, slice(None), 0), -np.inf), r"x\[2, :, 0\] has nothing but -inf"),
        (lambda x: x.__setitem__((2, 0, 3), np.nan) or x.__setitem__((0, 0, 1), np.inf), r"x\[0, :, 1\] has \+inf"),
    ],
)
@pytest.mark.parametrize("classes", [5, 3000, 20_000])
@each_truncation
def test_a_slice_without_probabilities_is_refused_before_rng_is_used(change, found, classes, options, rng):
    x = rng.normal(size=(3, classes, 4))
    change(x)
    for given_x in (x, x.astype(np.float16)):
        numbers = Counting()
        with pytest.raises(ValueError, match=found + "; expected scores that are finite or -inf, not all -inf"):
            fs.sample(given_x, numbers, 1, **options)
        assert numbers.asked == []


def test_nothing_to_draw_from_is_refused():
    masked = np.ones((2, 3), bool)
    masked[1] = False
    for module in (fs, reference):
        with pytest.raises(ValueError, match=r"x\[1, :\] has no class for which where is True"):
            module.sample(np.where(masked, 0, np.nan), default_rng(0), where=masked)
        with pytest.raises(ValueError, match=r"x\[0, :\] has no classes"):
            module.sample(np.zeros((2, 0)), default_rng(0))
        with pytest.raises(ValueError, match=r"x has a NaN"):
            module.sample(np.nan, default_rng(0))
        assert module.sample(np.zeros((0, 0)), default_rng(0)).shape == (0,)
        assert module.sample(np.zeros((0, 3)), default_rng(0), size=2).shape == (0, 2)
        assert module.sample(np.zeros((2, 3)), default_rng(0), size=0).shape == (2, 0)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_the_zoo_gives_draws_or_the_definitions_error(dtype):
    for name, x in zoo(dtype):
        for axis in range(-max(x.ndim, 1), max(x.ndim, 1)):
            for options in TRUNCATIONS.values():
                options = {"size": 2} | options
                told = [drawn_or_refusal(m, x, GivenNumbers([0.3, 0.9]), axis, **options) for m in (fs, reference)]
                if isinstance(told[1], str):
                    assert told[0] == told[1]
                else:
                    np.testing.assert_array_equal(*told, err_msg=f"{name}, {axis}, {options}")


def test_anything_but_a_generator_is_refused():
    for rng in (None, 0, np.random, np.random.RandomState(0), PCG64(0), Generator):
        with pytest.raises(TypeError, match=r"rng is .*; expected a numpy.random.Generator"):
            fs.sample([0.0, 1.0], rng)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"size": -1}, ValueError, "size is -1; expected an integer of at least 0"),
        ({"size": (2, 3)}, TypeError, r"size is \(2, 3\); expected an integer"),
        ({"size": 1.0}, TypeError, "size is 1.0; expected an integer"),
        ({"size": True}, TypeError, "size is True; expected an integer"),
        ({"top_k": 0}, ValueError, "top_k is 0; expected an integer of at least 1"),
        ({"top_k": -3}, ValueError, "top_k is -3; expected an integer of at least 1"),
        ({"top_k": 2.5}, TypeError, "top_k is 2.5; expected an integer"),
        ({"top_k": False}, TypeError, "top_k is False; expected an integer"),
        ({"top_p": 0}, ValueError, r"top_p is 0; expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, ValueError, r"top_p is 1.5; expected a number in \(0, 1\]"),
        ({"top_p": np.nan}, ValueError, r"top_p is nan; expected a number in \(0, 1\]"),
        ({"top_p": "0.9"}, TypeError, "top_p is '0.9'; expected a real number"),
        ({"min_p": -0.1}, ValueError, r"min_p is -0.1; expected a number in \[0, 1\]"),
        ({"min_p": np.inf}, ValueError, r"min_p is inf; expected a number in \[0, 1\]"),
        ({"min_p": [0.1]}, TypeError, r"min_p is \[0.1\]; expected a real number"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"axis": None}, TypeError, "axis is None; expected an integer"),
        ({"axis": (0, 1)}, TypeError, r"axis is \(0, 1\); expected an integer"),
        ({"axis": 2}, np.exceptions.AxisError, "axis 2 is out of bounds"),
        ({"where": [1, 0, 1]}, TypeError, "where has dtype int64; expected bool"),
        ({"x": np.zeros(3, complex)}, TypeError, "x has dtype complex128"),
        ({"x": np.ma.zeros(3)}, TypeError, "masked"),
    ],
)
def test_arguments_out_of_range_are_refused_before_rng_is_used(options, error, match):
    for module in (fs, reference):
        numbers = Counting()
        with pytest.raises(error, match=match):
            module.sample(**{"x": np.zeros((2, 3)), "rng": numbers} | options)
        assert numbers.asked == []


def test_integers_beyond_64_bits_are_taken_where_they_make_sense():
    assert fs.sample([0.0, 9.0], GivenNumbers([0.5]), top_k=2**70) == 1
    with pytest.raises((ValueError, MemoryError)):
        fs.sample([0.0, 9.0], default_rng(0), size=2**70)


@pytest.mark.parametrize("wrong", [[0.5], [0.5, 1.0], [0.5, np.nan], [-0.1, 0.5], "text", np.float32([0.1, 0.2])])
def test_a_generator_that_breaks_its_promise_is_refused(wrong):
    class Wrong(Generator):
        def random(self, *_):
            return np.asarray(wrong)

    with pytest.raises((TypeError, ValueError), match=r"rng.random\(n\) has to return"):
        fs.sample(np.zeros((2, 3)), Wrong(PCG64(0)))


@pytest.mark.parametrize("dtype", [*FLOATING, np.dtype(np.int32)], ids=str)
@each_truncation
def test_a_draw_does_not_depend_on_the_batch_the_layout_or_the_threads(options, dtype):
    for shape in [(37, 10), (5, 3, 70), (2, 5000), (1, 70_000), (9, 40_000)]:
        x = default_rng([*shape]).normal(0, 4, shape).astype(dtype)
        wanted = fs.sample(x, default_rng(1), size=3, **options)
        for threads in (1, 2, 3):
            with fs.num_threads(threads):
                for layout in LAYOUTS.values():
                    assert (fs.sample(layout(x), default_rng(1), size=3, **options) == wanted).all()
                for axis in range(x.ndim):
                    moved = np.ascontiguousarray(np.moveaxis(x, -1, axis))
                    assert (fs.sample(moved, default_rng(1), axis, size=3, **options) == wanted).all()
        alone = fs.sample(x[-1:], GivenNumbers([0.3]), **options)
        assert (fs.sample(x, GivenNumbers([0.3]), **options)[-1:] == alone).all()


def test_many_draws_of_a_slice_are_those_of_as_many_copies_of_it(rng):
    x = rng.normal(0, 3, (2, 9000)).astype(np.float32)
    for options in TRUNCATIONS.values():
        together = fs.sample(x, default_rng(4), size=500, **options)
        apart = fs.sample(np.repeat(x, 500, axis=0), default_rng(4), **options).reshape(2, 500)
        np.testing.assert_array_equal(together, apart)


def generate(seed, layout, dtype, threads, steps=12, batch=5, classes=3000, width=16):
    """A language model at its smallest: each token's embedding, mixed with what came before, scores the next one."""
    weights = default_rng(7)
    embedding, outputs = weights.normal(0, 1, (2, classes, width)).astype(np.float32)
    state = weights.normal(0, 1, (batch, width)).astype(np.float32)
    rng = default_rng(seed)
    tokens = []
    with fs.num_threads(threads):
        for _ in range(steps):
            # Multiples of 1/8 and 1/16 make scores that do not depend on the order of summation.
            logits = np.round(8 * (np.round(16 * state) / 16) @ (np.round(16 * outputs.T) / 16)) / 8
            scores = layout(logits.astype(dtype))
            tokens.append(fs.sample(scores, rng, temperature=0.8, top_k=200, top_p=0.95, min_p=0.001))
            state = np.float32(0.5) * (state + embedding[tokens[-1]])
    return np.array(tokens)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_sampling_loop_gives_the_same_tokens_for_a_seed_in_every_layout_and_on_any_number_of_threads(dtype):
    wanted = generate(42, LAYOUTS["c"], dtype, 1)
    for layout in LAYOUTS.values():
        for threads in (1, 2):
            np.testing.assert_array_equal(generate(42, layout, dtype, threads), wanted)
    assert (generate(43, LAYOUTS["c"], dtype, 1) != wanted).any()
    assert np.unique(wanted).size > 10


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 10.0]))
def test_sorted_scores_leave_the_classes_of_the_definition(seed, scale):
    random = default_rng(seed)
    x = random.normal(0, scale, 50_000).astype(np.float32)
    for order in (np.sort(x), np.sort(x)[::-1]):
        for options in ({"top_k": 3000}, {"top_p": 0.6}, {"top_k": 20_000, "top_p": 0.6}):
            left, p = left_and_probabilities(order, **options)
            drawn = fs.sample(order, random, size=2000, **options)
            slack = np.sum(p < ROUNDING / 10) if "top_p" in options else 0
            assert np.isin(drawn, left).mean() >= 1 - 1e-3 * (slack > 0)


def test_bfloat16_gives_the_draws_of_the_same_numbers_in_float32(rng):
    x = rng.normal(0, 3, (4, 20_000)).astype(bfloat16)
    for options in TRUNCATIONS.values():
        got = fs.sample(x, default_rng(2), size=50, **options)
        np.testing.assert_array_equal(got, fs.sample(x.astype(np.float32), default_rng(2), size=50, **options))
