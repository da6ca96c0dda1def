"""The Kullback-Leibler divergence: its values at the ends of the range, its gradient, a student that learns from it."""

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import DIVERGENCES, FLOATING, Inputs, assert_all_same_bits, assert_same_bits
from twin import assert_agrees

each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
LAYERS = [((37, 10), 1), ((10, 37), 0), ((5, 300), 1), ((300, 20), 0), ((2, 20_000), 1)]


@each_dtype
@pytest.mark.parametrize("call", DIVERGENCES.values(), ids=DIVERGENCES)
def test_a_divergence_agrees_with_the_reference(call, dtype):
    for shape, axis in LAYERS:
        a = Inputs.normal([shape[0], shape[1]] if axis else [shape[1], shape[0]], dtype)
        assert_agrees(call, a.move(axis), axis)


@each_dtype
def test_a_divergence_is_0_for_equal_logits_and_never_negative(dtype, rng):
    for classes in (1, 2, 10, 57, 300):
        x = rng.normal(0, 3, (50, classes)).astype(dtype)
        divergence, grad = fs.kl_divergence_with_grad(x, x, reduction="none")
        assert (divergence == 0).all()
        assert (grad == 0).all()
        for offset in (0.25, 1, 8, 100):
            y = (x + np.asarray(offset, dtype)).astype(dtype)
            assert (fs.kl_divergence(x, y, reduction="none") >= 0).all()


@pytest.mark.parametrize("classes", [4, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_divergence_is_infinite_and_its_gradient_finite_where_q_is_0_and_p_is_not(dtype, classes, rng):
    x, y = rng.normal(size=(2, 3, classes)).astype(dtype)
    y[1, 2] = -np.inf
    x[2, 1] = y[2, 1] = -np.inf
    divergence, grad = fs.kl_divergence_with_grad(x, y, reduction="none")
    np.testing.assert_array_equal(np.isinf(divergence), [False, True, False])
    np.testing.assert_allclose(grad, fs.softmax(y) - fs.softmax(x), rtol=0, atol=1e-6)
    assert grad[2, 1] == 0
    # Also where p is so small that its exponential is 0.
    x[1, 2] = -1000
    assert np.isinf(fs.kl_divergence(x, y, reduction="none")[1])
    x[1, 2] = -np.inf
    assert np.isfinite(fs.kl_divergence(x, y, reduction="none")[1])


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_common_offset_changes_nothing_whatever_its_size(dtype, classes, rng):
    x = rng.integers(-16, 16, (301, classes)) / 8
    y = rng.integers(-16, 16, (301, classes)) / 8
    wanted = fs.kl_divergence_with_grad(x, y, reduction="none")
    at, apart = np.arange(-150, 151)[:, np.newaxis], np.array([-500, -60, -46, 46, 60, 500])
    for offset in apart:
        got = fs.kl_divergence_with_grad((x + at).astype(dtype), (y + at + offset).astype(dtype), reduction="none")
        epsilon = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(got[0], wanted[0], epsilon, epsilon)
        np.testing.assert_allclose(got[1], wanted[1], 0, epsilon)


@pytest.mark.parametrize("classes", [30, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_near_the_largest_number_give_their_divergence(dtype, classes):
    """Distances whose sum over the classes overflows; or a class that p lacks, at least the largest number away."""
    most = float(np.finfo(dtype).max)
    x, y = np.zeros((2, 2, classes), dtype)
    y[0, 0] = most / 8
    x[1, 1] = -most
    for temperature in (1, 0.5):
        got = fs.kl_divergence(x, y, temperature=temperature, reduction="none")
        wanted = [most / 8 / temperature * (1 - 1 / classes), np.log(classes / (classes - 1))]
        np.testing.assert_allclose(got, wanted, 1e-5)


@pytest.mark.parametrize("classes", [4, 100])
def test_a_class_of_probability_0_under_p_contributes_nothing(classes, rng):
    x, y = rng.normal(size=(2, classes))
    x[1] = -np.inf
    p, logq = fs.softmax(x), fs.log_softmax(y)
    present = p > 0
    wanted = np.sum(p[present] * (np.log(p[present]) - logq[present]))
    np.testing.assert_allclose(fs.kl_divergence(x, y), wanted, 1e-13)


@pytest.mark.parametrize("classes", [4, 100])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_dtype
def test_nan_or_inf_in_either_slice_or_nothing_but_minus_inf_gives_nan(dtype, value, classes, rng):
    good = rng.normal(size=(3, classes)).astype(dtype)
    bad = good.copy()
    bad[1, 2] = value
    bad[2] = -np.inf
    for x, y in ((good, bad), (bad, good), (bad, bad)):
        divergence, grad = fs.kl_divergence_with_grad(x, y, reduction="none")
        np.testing.assert_array_equal(np.isnan(divergence), [False, True, True])
        np.testing.assert_array_equal(np.isnan(grad.astype(float)).all(1), [False, True, True])


def test_masked_entries_take_no_part(rng):
    x, y = rng.normal(size=(2, 6, 9))
    where = rng.uniform(size=(6, 9)) < 0.6
    where[0], where[1] = False, True
    where[2:, 0] = True
    x[~where] = np.nan
    y[~where] = np.inf
    divergence, grad = fs.kl_divergence_with_grad(x, y, where=where, reduction="none")
    assert divergence[0] == 0
    assert (grad[~where] == 0).all()
    for i in range(1, 6):
        alone = fs.kl_divergence_with_grad(x[i, where[i]], y[i, where[i]])
        np.testing.assert_allclose(divergence[i], alone[0], 1e-13)
        np.testing.assert_allclose(grad[i, where[i]], alone[1], 1e-13, 1e-16)


def test_the_mean_is_that_of_all_slices_and_upstream_scales_the_gradient(rng):
    x, y = rng.normal(size=(2, 5, 7, 4))
    each, grad = fs.kl_divergence_with_grad(x, y, 1, reduction="none")
    mean, mean_grad = fs.kl_divergence_with_grad(x, y, 1, upstream=-2.5)
    np.testing.assert_allclose(mean, each.mean(), 1e-14)
    np.testing.assert_allclose(mean_grad, -2.5 / 20 * grad, 1e-13)
    np.testing.assert_allclose(fs.kl_divergence(x, y, 1, reduction="sum"), each.sum(), 1e-14)
    upstream = rng.normal(size=each.shape)
    scaled = fs.kl_divergence_with_grad(x, y, 1, reduction="none", upstream=upstream)[1]
    np.testing.assert_allclose(scaled, upstream[:, np.newaxis] * grad, 1e-13)
    empty = fs.kl_divergence_with_grad(np.ones((0, 3)), np.ones((0, 3)))
    assert np.isnan(empty[0])
    assert empty[1].shape == (0, 3)


def test_a_divergence_has_the_dtype_of_both_logits_and_its_gradient_that_of_q():
    x = np.ones((2, 3))
    for p, q, divergence, grad in [
        ("f2", "f2", "f4", "f2"),
        ("f2", "f4", "f4", "f4"),
        ("f8", "f4", "f8", "f4"),
        ("f4", "f8", "f8", "f8"),
        ("i4", "f4", "f8", "f4"),
    ]:
        got = fs.kl_divergence_with_grad(x.astype(p), x.astype(q))
        assert (got[0].dtype, got[1].dtype) == (divergence, grad)


@each_dtype
def test_out_turns_either_logits_into_the_gradient(dtype):
    for shape, axis in LAYERS:
        a = Inputs.normal(shape, dtype)
        wanted = fs.kl_divergence_with_grad(a.x, a.dy, axis)
        for name in ("x", "dy"):
            b = a.map(np.copy)
            place = getattr(b, name)
            got = fs.kl_divergence_with_grad(b.x, b.dy, axis, out=place)
            assert got[1] is place
            assert_all_same_bits(got, wanted)


def test_different_shapes_and_slices_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"q_logits has shape \(3,\); expected that of p_logits, \(2, 3\)"):
        fs.kl_divergence(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match="no classes"):
        fs.kl_divergence(np.ones((2, 0)), np.ones((2, 0)))


def test_a_student_learns_what_its_teacher_says_of_scanned_digits():
    """Distillation at temperature 2: without labels, the student becomes nearly as accurate as its teacher."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    training, test = order[len(order) // 4 :], order[: len(order) // 4]
    teacher = np.zeros((64, 10), np.float32)
    for _ in range(300):
        _, grad = fs.cross_entropy_with_grad(images[training] @ teacher, labels[training])
        teacher -= images[training].T @ grad
    says = images @ teacher
    hidden = rng.normal(0, 0.2, (64, 32)).astype(np.float32)
    student = np.zeros((32, 10), np.float32)
    divergences = []
    for _ in range(30):
        for batch in np.array_split(rng.permutation(training), 40):
            features = np.maximum(images[batch] @ hidden, 0)
            logits = features @ student
            divergence, grad = fs.kl_divergence_with_grad(says[batch], logits, temperature=2, upstream=2**2, out=logits)
            back = (grad @ student.T) * (features > 0)
            student -= 0.3 * features.T @ grad
            hidden -= 0.3 * images[batch].T @ back
            divergences.append(divergence)
    assert np.mean(divergences[-40:]) < np.mean(divergences[:40]) / 10
    read = (np.maximum(images[test] @ hidden, 0) @ student).argmax(1)
    accuracy, of_teacher = (np.mean(a == labels[test]) for a in (read, says[test].argmax(1)))
    assert accuracy >= of_teacher - 0.03


def test_a_slice_has_the_same_bits_whatever_path_its_neighbours_take(rng):
    """Slices that are far, or whose divergence is infinite or nearly 0, in tiles and in rows."""
    for classes in (10, 100):
        x = rng.normal(size=(32, classes)).astype(np.float32)
        y = rng.normal(size=(32, classes)).astype(np.float32)
        y[::5] = x[::5] + np.float32(1e-4) * y[::5]
        x[1::5] += 100
        y[2::5, 3] = -np.inf
        y[3::5, 0] += 500
        divergence, grad = fs.kl_divergence_with_grad(x, y, reduction="none")
        turned = fs.kl_divergence_with_grad(x.T.copy(), y.T.copy(), 0, reduction="none")
        assert_same_bits(turned[0], divergence)
        assert_same_bits(turned[1].T, grad)
        for i in range(32):
            assert_all_same_bits(fs.kl_divergence_with_grad(x[i], y[i]), (divergence[i], grad[i]))
