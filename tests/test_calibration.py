"""Temperature scaling, reliability and Brier score agree with their definitions and with other libraries."""

import math
import tracemalloc
import warnings

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import LAYOUTS, bfloat16
from fastsoftmax import _scores, reference
from fastsoftmax.calibration import brier_score, fit_temperature, fitted, reliability
from hypothesis import given
from hypothesis import strategies as st

NAN, INF = math.nan, math.inf


def samples(rng, shape=(500, 10), scale=2.0, knows=1.5, dtype=np.float64):
    """Random scores and targets; the larger `knows`, the better the scores predict the targets."""
    targets = rng.integers(0, shape[-1], shape[:-1])
    logits = rng.normal(size=shape) + knows * np.eye(shape[-1])[targets]
    return (scale * logits).astype(dtype), targets


def mean_loss(logits, targets, temperature, weight=None):
    """The mean loss by its definition, in float64."""
    logp = reference.log_softmax(np.asarray(logits, np.float64) / temperature)
    return np.average(-np.take_along_axis(logp, targets[..., np.newaxis], -1)[..., 0], weights=weight)


def dense_fit(logits, targets, weight=None):
    """The temperature at which the derivative of the mean loss by 1 / T is 0."""
    optimize = pytest.importorskip("scipy.optimize")
    x = np.asarray(logits, np.float64)
    label = np.take_along_axis(x, targets[..., np.newaxis], -1)[..., 0]

    def slope(log_beta):
        p = reference.softmax(x * np.exp(log_beta))
        return np.average((p * x).sum(-1) - label, weights=weight)

    return float(np.exp(-optimize.brentq(slope, -math.log(999), math.log(999), xtol=1e-13, rtol=1e-14)))


# fit_temperature


SHAPES = [
    *((500, classes, scale, knows) for classes in (2, 3, 10) for scale in (0.02, 1, 30) for knows in (0.4, 1.5)),
    (200, 1000, 3, 4),
    (100, 2000, 1, 4),
]


@pytest.mark.parametrize(("n", "classes", "scale", "knows"), SHAPES, ids=str)
def test_the_temperature_minimises_the_mean_loss_to_a_millionth(rng, n, classes, scale, knows):
    optimize = pytest.importorskip("scipy.optimize")
    logits, targets = samples(rng, (n, classes), scale, knows)
    found = fit_temperature(logits, targets)
    np.testing.assert_allclose(found, dense_fit(logits, targets), 1e-6)
    by_values = optimize.minimize_scalar(
        lambda t: mean_loss(logits, targets, math.exp(t)), bounds=np.log([1e-3, 1e3]), options={"xatol": 1e-9}
    )
    np.testing.assert_allclose(mean_loss(logits, targets, found), by_values.fun, 1e-13)
    assert by_values.fun > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.filterwarnings("ignore:Since FrozenEstimator")  # it does not learn, so it needs no weights
def test_the_temperature_is_that_of_scikit_learn(rng, dtype, weighted):
    pytest.importorskip("sklearn", "1.8")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class GivenScores(ClassifierMixin, BaseEstimator):
        """A classifier whose scores are its features."""

        def fit(self, x, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, x):
            return x

        def predict(self, x):
            return self.classes_[x.argmax(-1)]

    logits, targets = samples(rng, (2000, 10), dtype=dtype)
    weight = rng.uniform(0.1, 3, 2000) if weighted else None
    theirs = CalibratedClassifierCV(FrozenEstimator(GivenScores().fit(logits, targets)), method="temperature")
    theirs.fit(logits, targets, sample_weight=weight)
    (calibrated,) = theirs.calibrated_classifiers_
    found = fit_temperature(logits, targets, sample_weight=weight)
    # scikit-learn minimises by values of the loss, which is exact only to the square root of their rounding.
    tolerance = 1e-6 if dtype is np.float64 else 2e-3
    np.testing.assert_allclose(found, 1 / calibrated.calibrators[0].beta_, tolerance)
    probabilities = fs.softmax(logits, temperature=found)
    np.testing.assert_allclose(probabilities, theirs.predict_proba(logits), rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(("n", "classes", "scale", "knows"), [*SHAPES, (300, 5, 1e-3, 0.1), (300, 5, 500, 2)], ids=str)
def test_at_most_fifteen_visits_find_the_temperature(rng, n, classes, scale, knows):
    logits, targets = samples(rng, (n, classes), scale, knows)

    class Counted(_scores.Scores):
        visits = 0

        def __iter__(self):
            type(self).visits += 1
            return super().__iter__()

    found = fitted(Counted(logits, targets, 1, None, None), classes)
    assert 2 <= Counted.visits <= 15
    with warnings.catch_warnings(action="ignore"):
        assert found == fit_temperature(logits, targets)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32, np.int8])
def test_logits_of_any_dtype_are_taken_as_they_are(rng, dtype):
    logits, targets = samples(rng, scale=4, dtype=dtype)
    exact = logits.astype(np.float64)
    np.testing.assert_allclose(fit_temperature(logits, targets), dense_fit(exact, targets), 1e-6)
    np.testing.assert_allclose(brier_score(logits, targets), dense_brier(exact, targets), 1e-13)
    np.testing.assert_allclose(reliability(logits, targets).confidence, reliability(exact, targets).confidence, 1e-13)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_changes_nothing_but_the_order_of_sums(rng, layout, monkeypatch):
    monkeypatch.setattr(_scores, "CHUNK", 200)
    logits, targets = samples(rng, (4, 5, 30, 6))
    weight = rng.uniform(0, 2, targets.shape)
    weight[0, 0, 0] = 0
    there = layout(np.moveaxis(logits, -1, 1).copy())
    for function in (fit_temperature, brier_score):
        wanted = function(logits, targets, sample_weight=weight)
        np.testing.assert_allclose(function(there, layout(targets), 1, sample_weight=layout(weight)), wanted, 1e-12)
    for strategy in ("uniform", "quantile"):
        options = {"strategy": strategy, "sample_weight": weight}
        wanted, found = reliability(logits, targets, **options), reliability(there, targets, 1, **options)
        for name in ("edges", "count", "confidence", "accuracy"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), 1e-12)


@pytest.mark.parametrize("shape", [(7, 6), (3, 4, 5, 6), (300, 2), (2, 300), (2, 3, 1000), (6,), (0, 4)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_chunks_hold_every_sample_once_and_are_small(shape, order, monkeypatch):
    monkeypatch.setattr(_scores, "CHUNK", 40)
    for axis in range(len(shape)):
        logits = np.zeros(shape, order=order)
        targets = np.zeros(shape[:axis] + shape[axis + 1 :], np.intp)
        weight = 1 + np.arange(targets.size, dtype=float).reshape(targets.shape)
        if shape[axis] == 0:
            continue
        chunks = list(_scores.Scores(logits, targets, axis, None, weight))
        assert all(chunk.logits.size <= max(40, shape[axis]) for chunk in chunks)
        assert chunks[0].logits.size >= min(logits.size, 20)
        seen = np.concatenate([chunk.weight for chunk in chunks])
        np.testing.assert_array_equal(np.sort(seen), np.sort(weight, axis=None))


@pytest.mark.parametrize("function", [fit_temperature, brier_score, reliability])
def test_a_file_larger_than_memory_allows_is_visited_in_chunks(function, rng, tmp_path):
    """For 64 MB of float32 scores, in C or Fortran order, less than 2 MB is allocated."""
    rows, classes = 8000, 2000
    for order in "CF":
        path = tmp_path / f"{order}.npy"
        logits = np.lib.format.open_memmap(path, "w+", np.float32, (rows, classes), fortran_order=order == "F")
        logits[...] = rng.standard_normal((rows, classes), np.float32)
        targets = rng.integers(0, classes, rows)
        logits[np.arange(rows), targets] += 3
        stored = np.load(path, mmap_mode="r")
        tracemalloc.start()
        try:
            function(stored, targets)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2e6


@pytest.mark.parametrize(
    ("logits", "targets", "temperature"),
    [
        ([[1.0], [2.0]], [0, 0], 1),
        (np.zeros((0, 3)), np.zeros(0, int), NAN),
        (np.zeros((2, 3)), [-7, -7], NAN),
        ([[1.0, NAN], [2.0, 0.0]], [0, 0], NAN),
        ([[1.0, INF], [2.0, 0.0]], [0, 0], NAN),
        ([[-INF, -INF], [2.0, 0.0]], [0, 0], NAN),
        ([[-INF, 1.0], [2.0, 0.0]], [0, 0], NAN),
        ([[NAN], [2.0]], [0, 0], NAN),
        *((np.full((5, c), v), np.arange(5) % c, 1) for c in (2, 3, 9, 14, 52, 1000) for v in (0.0, -3.0, 1e4)),
    ],
    ids=str,
)
def test_the_temperature_is_1_or_nan_where_none_is_best(logits, targets, temperature):
    np.testing.assert_equal(fit_temperature(logits, targets, ignore_index=-7), temperature)


@pytest.mark.parametrize(
    ("logits", "targets", "bound", "why"),
    [
        ([[5.0, 0.0], [0.0, 1e-2]], [0, 1], 1e-3, "largest score is that of its target"),
        ([[1e5, 0.0]], [0], 1e-3, "largest"),
        ([2.0, 0.0, 1.0], 0, 1e-3, "largest"),
        ([[1e-9, 0.0], [1e-9, 0.0], [0.0, 1e-9]], [0, 0, 0], 1e-3, "tiny"),
        ([[5.0, 0.0]], [1], 1e3, "no better than chance"),
        ([[1e30, 0.0], [1e30, 0.0], [0.0, 1e30]], [0, 0, 0], 1e3, "huge"),
    ],
    ids=str,
)
def test_a_temperature_at_its_bound_gives_a_warning(logits, targets, bound, why):
    with pytest.warns(RuntimeWarning, match=f"at its bound, {bound:g}: .*{why}") as caught:
        assert fit_temperature(logits, targets) == bound
    assert caught[0].filename == __file__


def test_an_impossible_class_is_no_obstacle(rng):
    logits, targets = samples(rng)
    logits[:, 3] = np.where(targets == 3, logits[:, 3], -INF)
    found = fit_temperature(logits, targets)
    finite = np.where(np.isinf(logits), -1e5, logits)
    np.testing.assert_allclose(found, dense_fit(finite, targets), 1e-6)


def all_measures(logits, targets, **options):
    found = reliability(logits, targets, bins=4, **options)
    return [
        fit_temperature(logits, targets, **options),
        brier_score(logits, targets, **options),
        *(found.expected_error, found.maximum_error, *found.count, *found.confidence, *found.accuracy),
    ]


@pytest.mark.parametrize("dtype", [np.int8, np.uint64])
def test_ignored_samples_and_those_of_weight_0_take_no_part_whatever_they_hold(rng, dtype):
    logits, targets = samples(rng, (60, 4))
    wanted = all_measures(logits[20:], targets[20:])
    logits[:10], logits[10:20] = NAN, [INF, -INF, 0, 1]
    beyond = int(np.iinfo(dtype).max)
    ignored = np.where(np.arange(60) < 20, beyond, targets).astype(dtype)
    np.testing.assert_allclose(all_measures(logits, ignored, ignore_index=beyond), wanted, 1e-12)
    weight = np.where(np.arange(60) < 20, 0.0, 1.0)
    np.testing.assert_allclose(all_measures(logits, targets, sample_weight=weight), wanted, 1e-12)


def test_an_integer_weight_counts_as_that_many_samples(rng):
    logits, targets = samples(rng, (60, 4))
    weight = rng.integers(0, 4, 60)
    repeated = all_measures(np.repeat(logits, weight, 0), np.repeat(targets, weight))
    for dtype in (np.int64, np.float32, np.float64):
        np.testing.assert_allclose(all_measures(logits, targets, sample_weight=weight.astype(dtype)), repeated, 1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.integers(2, 12))
def test_scaled_scores_have_a_scaled_temperature_and_no_other_temperature_is_better(seed, factor, classes):
    logits, targets = samples(np.random.default_rng(seed), (80, classes))
    with warnings.catch_warnings(action="ignore"):  # of few samples that are separable
        found = fit_temperature(logits, targets)
        scaled = fit_temperature(factor * logits, targets)
    if 1e-3 < found < 1e3 and 1e-3 < scaled < 1e3:
        np.testing.assert_allclose(scaled, factor * found, 2e-6)
    least = mean_loss(logits, targets, found)
    for other in found * np.array([0.9, 0.999, 1.001, 1.1]):
        if 1e-3 <= other <= 1e3:
            assert mean_loss(logits, targets, other) >= least * (1 - 1e-13)


@pytest.mark.parametrize("function", [fit_temperature, reliability, brier_score])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (([[1.0, 2.0]], [[0.5, 0.5]]), {}, TypeError, "targets has dtype float64; expected class indices"),
        (([[1.0, 2.0]], [True]), {}, TypeError, "targets has dtype bool"),
        (([[1j, 2.0]], [0]), {}, TypeError, "logits has dtype complex128"),
        (([[1.0, 2.0]], np.ma.array([0])), {}, TypeError, "targets .* masked"),
        (([[1.0, 2.0]], [0, 1]), {}, ValueError, r"targets, class indices, has shape \(2,\); expected \(1,\)"),
        (([[1.0, 2.0]], [2]), {}, ValueError, r"targets\[0\] is 2; expected a class index in \[0, 2\)"),
        ((np.zeros((1, 0)), [0]), {}, ValueError, "no classes"),
        (([[1.0, 2.0]], [0], 2), {}, np.exceptions.AxisError, "axis 2"),
        (([[1.0, 2.0]], [0], (0,)), {}, TypeError, "axis is"),
        (([[1.0, 2.0]], [0]), {"ignore_index": 1.5}, TypeError, "ignore_index is 1.5"),
        (
            ([[1.0, 2.0]], [0]),
            {"sample_weight": [1, 2]},
            ValueError,
            r"sample_weight has shape \(2,\); expected \(1,\)",
        ),
        (([[1.0, 2.0]], [0]), {"sample_weight": [-1.0]}, ValueError, r"sample_weight\[0\] is -1.0; expected a finite"),
        (([[1.0, 2.0]], [0]), {"sample_weight": [NAN]}, ValueError, r"sample_weight\[0\] is nan"),
        (([[1.0, 2.0]], [0]), {"sample_weight": [INF]}, ValueError, r"sample_weight\[0\] is inf"),
        (([[1.0, 2.0]], [0]), {"sample_weight": ["1"]}, TypeError, "sample_weight has dtype"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(function, arguments, options, error, match):
    with pytest.raises(error, match=match):
        function(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"bins": 0}, ValueError, "bins is 0; expected an integer of at least 1"),
        ({"bins": 2.0}, TypeError, "bins is 2.0"),
        ({"strategy": "other"}, ValueError, "strategy is 'other'; expected 'uniform' or 'quantile'"),
        ({"strategy": None}, ValueError, "strategy is None"),
        ({"temperature": 0}, ValueError, "temperature is 0"),
        ({"temperature": "1"}, TypeError, "temperature is '1'"),
    ],
    ids=str,
)
def test_bad_options_of_reliability_are_refused_by_name(options, error, match):
    with pytest.raises(error, match=match):
        reliability([[1.0, 2.0]], [0], **options)


# reliability


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("bins", [1, 2, 7, 10, 15, 100])
@pytest.mark.parametrize("classes", [2, 10])
def test_accuracy_and_confidence_are_those_of_scikit_learns_calibration_curve(rng, strategy, bins, classes):
    calibration = pytest.importorskip("sklearn.calibration")
    logits, targets = samples(rng, (700, classes))
    probabilities = fs.softmax(logits, temperature=1.3)
    found = reliability(logits, targets, temperature=1.3, bins=bins, strategy=strategy)
    right = probabilities.argmax(-1) == targets
    true, predicted = calibration.calibration_curve(right, probabilities.max(-1), n_bins=bins, strategy=strategy)
    filled = found.count > 0
    assert np.isnan(found.accuracy[~filled]).all()
    assert np.isnan(found.confidence[~filled]).all()
    np.testing.assert_allclose(found.accuracy[filled], true, 1e-13)
    np.testing.assert_allclose(found.confidence[filled], predicted, 1e-13)
    assert found.count.sum() == 700
    assert (len(found.edges), len(found.count)) == (bins + 1, bins)


def test_two_classes_have_the_binary_curve_of_scikit_learn(rng):
    """Over the samples in which class 1 has the larger score, its binary curve is that of the top labels."""
    calibration = pytest.importorskip("sklearn.calibration")
    logits, targets = samples(rng, (900, 2))
    top = logits[:, 1] > logits[:, 0]
    found = reliability(logits[top], targets[top], bins=10)
    true, predicted = calibration.calibration_curve(targets[top], fs.softmax(logits[top])[:, 1], n_bins=10)
    np.testing.assert_allclose(found.accuracy[5:], true, 1e-13)
    np.testing.assert_allclose(found.confidence[5:], predicted, 1e-13)
    assert not found.count[:5].any()


@pytest.mark.parametrize("bins", [5, 15])
def test_the_errors_are_those_of_torchmetrics(rng, bins):
    classification = pytest.importorskip("torchmetrics.classification")
    torch = pytest.importorskip("torch")
    logits, targets = samples(rng, (1000, 10))
    found = reliability(logits, targets, bins=bins)
    for norm, wanted in (("l1", found.expected_error), ("max", found.maximum_error)):
        metric = classification.MulticlassCalibrationError(10, n_bins=bins, norm=norm)
        theirs = metric(torch.from_numpy(fs.softmax(logits)), torch.from_numpy(targets))
        np.testing.assert_allclose(wanted, float(theirs), 1e-5)  # they sum in float32


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.filterwarnings("ignore")  # from the modules that it imports
def test_the_errors_are_those_of_netcal(rng, bins):
    metrics = pytest.importorskip("netcal.metrics")
    logits, targets = samples(rng, (1000, 10))
    found = reliability(logits, targets, bins=bins)
    probabilities = fs.softmax(logits)
    np.testing.assert_allclose(found.expected_error, metrics.ECE(bins).measure(probabilities, targets), 1e-10)
    np.testing.assert_allclose(found.maximum_error, metrics.MCE(bins).measure(probabilities, targets), 1e-10)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6, 7, 10, 15, 30])
def test_a_confidence_on_an_edge_is_in_the_bin_that_ends_there(classes):
    """Equal scores have the confidence 1 / C, which is an edge of the 30 bins for most C here."""
    for value in (0.0, -3.0, 0.7):
        found = reliability(np.full((4, classes), value), [0, 0, 1, 1], bins=30)
        assert found.count.argmax() == math.ceil(30 / classes) - 1
        np.testing.assert_allclose(found.confidence[found.count > 0], 1 / classes, 1e-15)
        assert found.accuracy[found.count > 0] == 0.5  # the first of equal scores is the top label


def test_errors_are_the_mean_and_the_largest_gap():
    found = reliability([[math.log(3), 0.0]] * 4 + [[math.log(9), 0.0]] * 2, [0, 0, 1, 1, 0, 0], bins=10)
    np.testing.assert_allclose(found.gap[found.count > 0], [0.25, -0.1], 1e-14)
    np.testing.assert_allclose(found.expected_error, (4 * 0.25 + 2 * 0.1) / 6, 1e-14)
    np.testing.assert_allclose(found.maximum_error, 0.25, 1e-14)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_without_samples_or_with_nan_the_errors_are_nan(strategy):
    nothing = reliability(np.zeros((0, 3)), np.zeros(0, int), strategy=strategy, bins=4)
    ignored = reliability(np.zeros((2, 3)), [5, 5], strategy=strategy, bins=4, ignore_index=5)
    unknown = reliability([[0.0, NAN], [1.0, 0.0]], [0, 0], strategy=strategy, bins=4)
    for found in (nothing, ignored, unknown):
        assert math.isnan(found.expected_error)
        assert math.isnan(found.maximum_error)
        assert np.isnan(found.accuracy).all()
        assert np.isnan(found.confidence).all()
    assert (nothing.count.sum(), ignored.count.sum(), unknown.count.sum()) == (0, 0, 1)


def test_a_diagram_shows_bars_gaps_the_diagonal_and_the_counts(rng):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    logits, targets = samples(rng, (2000, 10), scale=4)
    found = reliability(logits, targets, bins=10)
    ax = found.plot()
    figure, axes = pyplot.subplots(1, 2)
    assert found.plot(axes[1]) is axes[1]
    assert not axes[0].patches
    for each in (ax, axes[1]):
        (below,) = each.child_axes
        filled = found.count > 0
        accuracy, gap = each.containers
        np.testing.assert_allclose([bar.get_height() for bar in accuracy], found.accuracy[filled])
        np.testing.assert_allclose([bar.get_x() for bar in accuracy], found.edges[:-1][filled])
        np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in gap], found.confidence[filled])
        np.testing.assert_allclose([bar.get_height() for bar in below.containers[0]], found.count[filled] / 20)
        (diagonal,) = each.lines
        np.testing.assert_array_equal(diagonal.get_data(), [[0, 1], [0, 1]])
        assert each.get_title() == f"expected calibration error {100 * found.expected_error:.1f} %"
        assert (below.get_xlabel(), each.get_ylabel()) == ("confidence", "accuracy")
        assert {text.get_text() for text in each.get_legend().get_texts()} >= {"accuracy", "gap to confidence"}
    reliability(np.zeros((0, 3)), np.zeros(0, int)).plot(axes[0])
    ax.figure.canvas.draw()
    figure.canvas.draw()
    # Nothing is cut off.
    label = ax.child_axes[0].xaxis.label.get_window_extent()
    assert label.y0 >= 0
    pyplot.close("all")


# brier_score


def dense_brier(logits, targets, temperature=1.0):
    p = reference.softmax(np.asarray(logits, np.float64) / temperature)
    return np.square(p - np.eye(p.shape[-1])[targets]).sum(-1).mean()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_the_brier_score_is_the_mean_squared_difference(rng, temperature):
    logits, targets = samples(rng)
    found = brier_score(logits, targets, temperature=temperature)
    np.testing.assert_allclose(found, dense_brier(logits, targets, temperature), 1e-13)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_brier_score_is_that_of_scikit_learn_without_halving(rng, classes):
    metrics = pytest.importorskip("sklearn.metrics")
    pytest.importorskip("sklearn", "1.7")
    logits, targets = samples(rng, (500, classes))
    weight = rng.uniform(0, 2, 500)
    theirs = metrics.brier_score_loss(targets, fs.softmax(logits), sample_weight=weight, scale_by_half=False)
    np.testing.assert_allclose(brier_score(logits, targets, sample_weight=weight), theirs, 1e-12)


def test_the_brier_score_keeps_its_digits_where_a_class_is_nearly_certain():
    mpmath = pytest.importorskip("mpmath")
    for scores in ([40.0, 0.0, 1.0], [20.0, 0.5, -1.0], [300.0, 0.0, 0.0]):
        with mpmath.workdps(400):
            exponentials = [mpmath.exp(score) for score in scores]
            p = [e / sum(exponentials) for e in exponentials]
            exact = float((1 - p[0]) ** 2 + p[1] ** 2 + p[2] ** 2)
        assert 0 < exact < 1e-16
        np.testing.assert_allclose(brier_score([scores], [0]), exact, 1e-14)


def test_the_brier_score_without_samples_or_with_nan_is_nan():
    assert math.isnan(brier_score(np.zeros((0, 3)), np.zeros(0, int)))
    assert math.isnan(brier_score([[NAN, 0.0]], [0]))
    assert math.isnan(brier_score([[1.0, 0.0]], [0], sample_weight=[0.0]))
