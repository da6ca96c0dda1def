"""Properties that hold for every input, on inputs from hypothesis: with NaN, infinities and subnormal numbers."""

import fastsoftmax as fs
import ml_dtypes
import numpy as np
from arrays import FLOATING, GivenNumbers, assert_same_bits
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=20)


@st.composite
def logits(draw, dtype=None, shape=SHAPES, **floats):
    """An array of one of the floating dtypes, of any finite numbers unless `floats` says otherwise."""
    dtype = draw(st.sampled_from(FLOATING)) if dtype is None else np.dtype(dtype)
    drawn = np.dtype(np.float32) if dtype not in (np.float16, np.float32, np.float64) else dtype
    options = {"allow_nan": False, "allow_infinity": False} | floats
    x = draw(hnp.arrays(drawn, shape, elements=options))
    limit = float(ml_dtypes.finfo(dtype).max)
    return x.astype(dtype) if dtype == drawn else np.clip(x, -limit, limit).astype(dtype)


def axes(x):
    return st.one_of(
        st.none(),
        st.integers(-x.ndim, x.ndim - 1),
        st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1, max_size=x.ndim).map(tuple),
    )


def epsilon(dtype):
    return float(ml_dtypes.finfo(dtype).eps)


@given(st.data())
def test_probabilities_lie_in_zero_to_one_and_sum_to_one(data):
    x = data.draw(logits())
    axis = data.draw(axes(x))
    p = fs.softmax(x, axis)
    assert ((p >= 0) & (p <= 1)).all()
    count = x.size / max(1, np.asarray(fs.logsumexp(x, axis)).size)
    slack = count * float(ml_dtypes.finfo(x.dtype).smallest_subnormal)
    total = p.astype(np.longdouble).sum(axis)
    assert (np.abs(total - 1) <= (4 if count <= 1000 else np.sqrt(count)) * epsilon(x.dtype) + slack).all()


@given(st.data())
def test_log_probabilities_are_at_most_zero_and_the_logarithms_of_probabilities(data):
    x = data.draw(logits(np.float64, min_value=-300, max_value=300))
    axis = data.draw(axes(x))
    logp = fs.log_softmax(x, axis)
    assert (logp <= 0).all()
    np.testing.assert_allclose(np.exp(logp), fs.softmax(x, axis), 1e-12, 1e-300)


@given(st.data())
def test_logsumexp_exceeds_the_maximum_by_at_most_the_logarithm_of_the_number_of_classes(data):
    x = data.draw(logits())
    axis = data.draw(axes(x))
    top = x.max(axis).astype(np.float64)
    count = x.size / max(1, top.size)
    got = np.asarray(fs.logsumexp(x, axis)).astype(np.float64)
    margin = 2 * epsilon(x.dtype) * (np.abs(top) + np.log(count)) + float(ml_dtypes.finfo(x.dtype).smallest_subnormal)
    with np.errstate(over="ignore"):
        assert (got >= top).all()
        assert ((got <= top + np.log(count) + margin) | (got == np.inf)).all()


@given(st.data())
def test_an_entropy_lies_between_zero_and_the_logarithm_of_the_number_of_classes(data):
    x = data.draw(logits())
    axis = data.draw(axes(x))
    got = np.asarray(fs.entropy(x, axis)).astype(np.float64)
    count = x.size / max(1, got.size)
    assert (got >= 0).all()
    assert not np.signbit(got).any()
    assert (got <= np.log(count) * (1 + 2 * epsilon(x.dtype))).all()


@given(logits(np.float64, min_value=-(2**20), max_value=2**20), st.integers(-(2**20), 2**20))
def test_an_exact_shift_of_all_logits_shifts_logsumexp_and_changes_nothing_else(x, shift):
    x = np.round(x * 1024) / 1024  # so that the sum is exact
    np.testing.assert_allclose(fs.softmax(x + shift), fs.softmax(x), 1e-14, 1e-320)
    np.testing.assert_allclose(fs.log_softmax(x + shift), fs.log_softmax(x), 1e-14, 1e-320)
    np.testing.assert_allclose(fs.logsumexp(x + shift), fs.logsumexp(x) + shift, 1e-14, 1e-9)
    np.testing.assert_allclose(fs.entropy(x + shift), fs.entropy(x), 1e-14, 1e-320)


@given(st.floats(-700, 700), st.floats(-700, 700))
@example(0.0, 0.0)
@example(40.0, 0.0)
def test_two_classes_give_the_logistic_function(a, b):
    """exp(a) / (exp(a) + exp(b)) is 1 / (1 + exp(b - a))."""
    wanted = np.longdouble(1) / (1 + np.exp(np.longdouble(b) - np.longdouble(a)))
    np.testing.assert_allclose(fs.softmax([a, b])[0], float(wanted), 1e-15, 1e-322)
    loss = np.log1p(np.exp(np.longdouble(b) - np.longdouble(a)))
    np.testing.assert_allclose(fs.cross_entropy([a, b], 0), float(loss), 1e-15, 1e-322)
    distance = abs(np.longdouble(a) - np.longdouble(b))
    entropy = np.log1p(np.exp(-distance)) + distance / (1 + np.exp(distance))
    np.testing.assert_allclose(fs.entropy([a, b]), float(entropy), 1e-15, 1e-322)


@given(st.data())
def test_the_order_of_probabilities_is_that_of_the_logits(data):
    x = data.draw(logits(shape=st.integers(1, 40)))
    p = fs.softmax(x)[np.argsort(x, kind="stable")].astype(np.float64)
    info = ml_dtypes.finfo(x.dtype)
    # Probabilities of nearly equal logits may change places, because each may be off by two ULP.
    assert (p[1:] >= p[:-1] * (1 - 8 * float(info.eps)) - float(info.smallest_subnormal)).all()


@given(st.data())
def test_equal_logits_have_equal_probabilities(data):
    x = data.draw(logits(shape=st.integers(1, 300)))
    x[::2] = x[0]
    for got in (fs.softmax(x), fs.log_softmax(x)):
        assert_same_bits(got[::2], np.full(len(got[::2]), got[0]))


@given(logits(allow_nan=True, allow_infinity=True))
def test_nan_and_infinity_spoil_their_own_slice_and_no_other(x):
    got = fs.softmax(x)
    values = x.astype(np.float64)
    spoilt = np.isnan(values).any(-1) | (values == np.inf).any(-1) | (values == -np.inf).all(-1)
    assert (np.isnan(got).all(-1) == spoilt).all()
    assert (np.isnan(got).any(-1) == spoilt).all()
    assert (np.isnan(fs.entropy(x)) == spoilt).all()
    assert (got[(values == -np.inf) & ~spoilt[..., None]] == 0).all()


@given(st.data())
def test_a_masked_entry_counts_as_a_logit_of_minus_infinity(data):
    x = data.draw(logits())
    shown = data.draw(hnp.arrays(bool, x.shape))
    shown[..., 0] = True
    hidden = np.where(shown, x, np.asarray(-np.inf, x.dtype))
    assert_same_bits(fs.softmax(x, where=shown), fs.softmax(hidden))
    assert_same_bits(fs.log_softmax(x, where=shown), fs.log_softmax(hidden))
    assert_same_bits(np.asarray(fs.logsumexp(x, -1, where=shown)), np.asarray(fs.logsumexp(hidden, -1)))
    assert_same_bits(np.asarray(fs.entropy(x, where=shown)), np.asarray(fs.entropy(hidden)))


@given(st.data())
def test_top_k_is_the_beginning_of_a_stable_sort_with_its_log_probabilities(data):
    x = data.draw(logits())
    k = data.draw(st.integers(1, x.shape[-1]))
    values, indices = fs.log_softmax_top_k(x, k)
    wanted = np.argsort(-x.astype(np.float64), -1, kind="stable")[..., :k]
    np.testing.assert_array_equal(indices, wanted)
    assert_same_bits(values, np.take_along_axis(fs.log_softmax(x), wanted, -1))
    assert_same_bits(fs.log_softmax_at(x, wanted), values)


@given(logits(np.float64, min_value=-300, max_value=300), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_class_whose_part_of_the_cumulated_probabilities_holds_its_number(x, number):
    p = fs.softmax(x).astype(np.longdouble)
    drawn = fs.sample(x, GivenNumbers([number]))[..., np.newaxis]
    share = np.take_along_axis(p, drawn, -1)
    end = np.take_along_axis(np.cumsum(p, -1), drawn, -1)
    assert (share > 0).all()
    assert (end >= number - 1e-14).all()
    assert (end - share <= number + 1e-14).all()


@given(st.data())
def test_a_divergence_is_the_cross_entropy_minus_the_entropy(data):
    x = data.draw(logits(np.float64, min_value=-300, max_value=300))
    y = data.draw(logits(np.float64, x.shape, min_value=-300, max_value=300))
    got = fs.kl_divergence(x, y, reduction="none")
    entropy, cross = fs.entropy(x), fs.cross_entropy(y, fs.softmax(x), reduction="none")
    assert (got >= 0).all()
    assert (np.abs(got - (cross - entropy)) <= 1e-14 * (cross + entropy + 1)).all()
    assert (fs.kl_divergence(x, x, reduction="none") == 0).all()


# Gradients against finite differences, in float64.

SMALL = {"min_value": -4, "max_value": 4}


def central_difference(function, x, step=1e-5):
    """The gradient of a function from an array to a number."""
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[i] = step
        grad[i] = (function(x + move) - function(x - move)) / (2 * step)
    return grad


@given(st.data())
def test_gradients_of_transforms_are_those_of_finite_differences(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=5))
    x, dy = (data.draw(logits(np.float64, shape, **SMALL)) for _ in range(2))
    axis = data.draw(axes(x))
    temperature = data.draw(st.floats(0.5, 3))
    shown = data.draw(hnp.arrays(bool, shape)) if data.draw(st.booleans()) else None
    options = {"temperature": temperature, "where": shown}
    wanted = central_difference(lambda x: np.sum(dy * fs.softmax(x, axis, **options)), x)
    got = fs.softmax_grad(fs.softmax(x, axis, **options), dy, axis, **options)
    np.testing.assert_allclose(got, wanted, 1e-6, 1e-8)
    dy = dy if shown is None else np.where(shown, dy, 0)
    wanted = central_difference(lambda x: dy.ravel() @ np.maximum(fs.log_softmax(x, axis, **options), -99).ravel(), x)
    got = fs.log_softmax_grad(fs.log_softmax(x, axis, **options), dy, axis, **options)
    np.testing.assert_allclose(got, wanted, 1e-6, 1e-8)


@given(st.data())
def test_the_gradient_of_the_loss_is_that_of_finite_differences(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=5))
    x = data.draw(logits(np.float64, shape, **SMALL))
    axis = data.draw(st.integers(0, x.ndim - 1))
    batch, classes = (*shape[:axis], *shape[axis + 1 :]), shape[axis]
    options = {
        "axis": axis,
        "reduction": data.draw(st.sampled_from(["mean", "sum"])),
        "temperature": data.draw(st.floats(0.5, 3)),
        "label_smoothing": data.draw(st.floats(0, 1)),
        "weight": data.draw(st.none() | hnp.arrays(float, classes, elements=st.floats(0.1, 2))),
    }
    if data.draw(st.booleans()):
        targets = data.draw(hnp.arrays(np.int64, batch, elements=st.integers(0, classes - 1)))
        options["ignore_index"] = data.draw(st.none() | st.integers(0, classes))
        assume(not (np.asarray(targets) == options["ignore_index"]).all())
    else:
        targets = fs.softmax(data.draw(logits(np.float64, shape, **SMALL)), axis)
    wanted = central_difference(lambda x: fs.cross_entropy(x, targets, **options), x)
    _, grad, hess = fs.cross_entropy_with_grad_hess(x, targets, **options)
    np.testing.assert_allclose(grad, wanted, 1e-5, 1e-8)
    for i in np.ndindex(shape):
        wanted = central_difference(lambda x, i=i: fs.cross_entropy_grad(x, targets, **options)[i], x)[i]
        np.testing.assert_allclose(hess[i], wanted, 1e-5, 1e-8)


@given(st.data())
def test_the_gradient_of_a_divergence_is_that_of_finite_differences(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=5))
    x, y = (data.draw(logits(np.float64, shape, **SMALL)) for _ in range(2))
    options = {"axis": data.draw(st.integers(0, x.ndim - 1)), "temperature": data.draw(st.floats(0.5, 3))}
    options["where"] = data.draw(hnp.arrays(bool, shape)) if data.draw(st.booleans()) else None
    wanted = central_difference(lambda y: fs.kl_divergence(x, y, **options), y)
    np.testing.assert_allclose(fs.kl_divergence_with_grad(x, y, **options)[1], wanted, 1e-5, 1e-8)
