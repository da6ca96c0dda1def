"""The objectives train the same models as those of XGBoost and LightGBM, from the same starting scores."""

import doctest
import pickle
import subprocess
import sys

import fastsoftmax as fs
import numpy as np
import pytest
from fastsoftmax import boosting

ROUNDS = 10


@pytest.fixture(params=["iris", "wine", "digits"])
def data(request):
    datasets = pytest.importorskip("sklearn.datasets")
    return getattr(datasets, f"load_{request.param}")(return_X_y=True)


def weights(kind, n):
    rng = np.random.default_rng(0)
    if kind == "none":
        return None
    return rng.uniform(0.1, 3, n) if kind == "real" else (rng.random(n) < 0.8).astype(float)


weighted = pytest.mark.parametrize("weight", ["none", "real", "zero or one"])


def close(scores, wanted):
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fs.softmax(scores), fs.softmax(wanted), rtol=1e-4, atol=1e-4)


# XGBoost


@weighted
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("start", ["base_score", "base_margin"])
def test_xgboost_trains_the_model_of_its_own_objective(data, weight, order, start):
    library = pytest.importorskip("xgboost")
    features, labels = data
    classes = labels.max() + 1
    train = library.DMatrix(np.asarray(features, order=order), labels, weight=weights(weight, len(labels)))
    if start == "base_margin":
        train.set_base_margin(np.random.default_rng(1).normal(size=(len(labels), classes)))
    options = {"num_class": classes, "base_score": 0.0, "max_depth": 4, "eta": 0.5, "nthread": 1}
    own = library.train({**options, "objective": "multi:softprob"}, train, ROUNDS)
    ours = library.train(options | {"disable_default_eval_metric": True}, train, ROUNDS, obj=boosting.xgboost)
    close(*(model.predict(train, output_margin=True) for model in (ours, own)))


def test_xgboost_trains_the_same_model_where_the_floor_of_the_hessian_decides(data):
    """Without lambda, the floor of the Hessian decides the leaves where probabilities vanish."""
    library = pytest.importorskip("xgboost")
    features, labels = data
    train = library.DMatrix(features, labels)
    train.set_base_margin(np.where(np.eye(labels.max() + 1)[labels], 0.0, -60.0))
    options = {"num_class": labels.max() + 1, "base_score": 0.0, "lambda": 0, "min_child_weight": 0}
    options["nthread"] = 1
    own = library.train({**options, "objective": "multi:softprob"}, train, 2)
    ours = library.train(options | {"disable_default_eval_metric": True}, train, 2, obj=boosting.xgboost)
    close(*(model.predict(train, output_margin=True) for model in (ours, own)))


@weighted
def test_an_estimator_of_xgboost_trains_the_model_of_its_own_objective(data, weight):
    library = pytest.importorskip("xgboost")
    features, labels = data
    weight = weights(weight, len(labels))
    options = {"n_estimators": ROUNDS, "base_score": 0.0, "max_depth": 4, "n_jobs": 1}
    own = library.XGBClassifier(**options).fit(features, labels, sample_weight=weight)
    ours = library.XGBClassifier(**options, objective=boosting.xgboost_sklearn)
    ours.fit(features, labels, sample_weight=weight)
    close(*(model.predict(features, output_margin=True) for model in (ours, own)))
    assert (ours.predict_proba(features).argmax(-1) == own.predict(features)).all()
    again = pickle.loads(pickle.dumps(ours))
    assert again.objective is boosting.xgboost_sklearn


@pytest.mark.parametrize("api", ["train", "estimator"])
def test_xgboost_learns_class_probabilities(api):
    library = pytest.importorskip("xgboost")
    datasets = pytest.importorskip("sklearn.datasets")
    features, labels = datasets.load_iris(return_X_y=True)
    soft = (np.eye(3)[labels] * 0.7 + 0.1).astype(np.float32)
    options = {"base_score": 0.0, "max_depth": 4, "learning_rate": 0.3, "n_jobs": 1}
    if api == "train":
        train = library.DMatrix(features, soft)
        model = library.train(options | {"disable_default_eval_metric": True}, train, 80, obj=boosting.xgboost)
        scores = model.predict(train, output_margin=True)
    else:
        model = library.XGBRegressor(n_estimators=80, objective=boosting.xgboost_sklearn, **options)
        scores = model.fit(features, soft).predict(features)
    # The loss is nearly its minimum, the entropy of the targets; with scores of 0 it is 0.46 larger.
    assert fs.kl_divergence(np.log(soft), scores) < 0.01 < fs.kl_divergence(np.log(soft), np.zeros_like(scores))


@pytest.mark.parametrize(
    ("version", "absolute"),
    [("2.1.4", False), ("3.2.0", False), ("3.4.1", False), ("3.5.0-dev", True), ("3.5.0rc1", True), ("4.0.0", True)],
)
def test_the_hessian_is_that_of_the_installed_version_of_xgboost(version, absolute, monkeypatch):
    library = type(sys)("xgboost")
    library.__version__ = version
    monkeypatch.setitem(sys.modules, "xgboost", library)
    scores = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [90.0, 0.0, 0.0]], np.float32)
    labels, weight = np.array([0, 2, 0], np.float32), np.array([1, 2, 0.5], np.float32)
    grad, hess = boosting.xgboost_sklearn(labels, scores, weight)
    p = fs.softmax(scores, dtype=np.float64)
    wanted = weight[:, np.newaxis] * (p - np.eye(3)[[0, 2, 0]])
    np.testing.assert_allclose(grad, wanted, 1e-6, 1e-30)
    curvature = np.abs(wanted) if absolute else 2 * weight[:, np.newaxis] * p * (1 - p)
    np.testing.assert_allclose(hess, np.maximum(curvature, 1e-16), 1e-6)
    assert (hess[2] == np.float32(1e-16)).all()


# LightGBM


@weighted
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("start", ["0", "init_score"])
def test_lightgbm_trains_the_model_of_its_own_objective(data, weight, order, start):
    library = pytest.importorskip("lightgbm")
    features, labels = data
    classes = int(labels.max()) + 1
    score = np.random.default_rng(1).normal(size=(len(labels), classes)) if start == "init_score" else None

    def trained(objective):
        given = np.asarray(features, order=order)
        train = library.Dataset(given, labels, weight=weights(weight, len(labels)), init_score=score)
        options = {"objective": objective, "num_class": classes, "boost_from_average": False}
        options |= {"verbose": -1, "num_threads": 1, "deterministic": True}
        return library.train(options, train, ROUNDS).predict(features, raw_score=True)

    close(trained(boosting.lightgbm), trained("multiclass"))


@weighted
def test_an_estimator_of_lightgbm_trains_the_model_of_its_own_objective(data, weight):
    library = pytest.importorskip("lightgbm")
    features, labels = data
    weight = weights(weight, len(labels))
    options = {"n_estimators": ROUNDS, "verbose": -1, "n_jobs": 1}
    own = library.LGBMClassifier(**options, boost_from_average=False).fit(features, labels, sample_weight=weight)
    ours = library.LGBMClassifier(**options, objective=boosting.lightgbm_sklearn)
    ours.fit(features, labels, sample_weight=weight)
    close(*(model.predict(features, raw_score=True) for model in (ours, own)))
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict(features, raw_score=True), ours.predict(features, raw_score=True))


@pytest.mark.parametrize("order", ["C", "F"])
def test_lightgbm_gets_gradients_in_the_order_of_its_scores(order, monkeypatch):
    monkeypatch.setattr(boosting, "_CHUNK", 4 * 7)  # so that the last chunk of the 50 samples is smaller
    scores = np.asarray(np.random.default_rng(0).normal(size=(50, 4)), order=order)
    labels = np.arange(50) % 4
    weight = np.linspace(0, 2, 50)
    grad, hess = boosting.lightgbm_sklearn(labels.astype(np.float32), scores, weight)
    p = fs.softmax(scores)
    np.testing.assert_allclose(grad, weight[:, np.newaxis] * (p - np.eye(4)[labels]), 1e-7)
    np.testing.assert_allclose(hess, weight[:, np.newaxis] * 4 / 3 * p * (1 - p), 1e-7)
    for array in (grad, hess):
        assert array.dtype == np.float32
        assert array.flags[f"{order}_CONTIGUOUS"]


def test_lightgbm_takes_integers_lists_and_class_probabilities():
    wanted = boosting.lightgbm_sklearn([0, 1], [[1, 0], [2, 0]])
    for y_true in ([0, 1], [[1, 0], [0, 1]]):
        for dtype in (np.float16, np.float32, np.float64):
            found = boosting.lightgbm_sklearn(y_true, np.array([[1, 0], [2, 0]], dtype))
            np.testing.assert_allclose(found, wanted, 1e-3 if dtype is np.float16 else 1e-6)


# Both


@pytest.mark.parametrize("name", boosting.__all__)
def test_the_examples_of_a_docstring_give_the_results_they_show(name):
    pytest.importorskip(name.removesuffix("_sklearn"))
    test = doctest.DocTestFinder(recurse=False).find(getattr(boosting, name), name, globs={})[0]
    assert test.examples or name.endswith("_sklearn")
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            ([0, 1], [1.0, 2.0]),
            ValueError,
            r"y_pred has shape \(2,\); expected \(samples, classes\) .*; set num_class",
        ),
        (([0, 0], [[1.0], [2.0]]), ValueError, r"y_pred has shape \(2, 1\)"),
        (([0], [[1j, 0]]), TypeError, "y_pred has dtype complex128"),
        (([0, 1.5], [[1.0, 0], [0, 0]]), ValueError, r"y_true\[1\] is 1.5; expected a class index"),
        (([0, np.nan], [[1.0, 0], [0, 0]]), ValueError, r"y_true\[1\] is nan; expected a class index"),
        (([0, 1e30], [[1.0, 0], [0, 0]]), ValueError, r"y_true\[1\] is 1e\+30; expected a class index"),
        (([0, 2.0], [[1.0, 0], [0, 0]]), ValueError, r"y_true\[1\] is 2; expected a class index in \[0, 2\)"),
        (([0, -1], [[1.0, 0], [0, 0]]), ValueError, r"y_true\[1\] is -1; expected a class index in \[0, 2\)"),
        (
            ([0], [[1.0, 0], [0, 0]]),
            ValueError,
            r"y_true has shape \(1,\); expected \(2,\) for class indices, or \(2, 2\)",
        ),
        ((["a", "b"], [[1.0, 0], [0, 0]]), TypeError, "y_true has dtype"),
        (([0, 1], [[1.0, 0], [0, 0]], [1.0]), ValueError, r"sample_weight has shape \(1,\); expected \(2,\)"),
        (([0, 1], [[1.0, 0], [0, 0]], [1.0, -2]), ValueError, r"sample_weight\[1\] is -2.0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", [boosting.xgboost_sklearn, boosting.lightgbm_sklearn])
def test_bad_arguments_are_refused_by_name(objective, arguments, error, match):
    with pytest.raises(error, match=match):
        objective(*arguments)


def test_neither_library_is_imported_before_it_is_used(environment):
    code = """if True:
        import sys
        import fastsoftmax as fs
        heavy = {"argparse", "dataclasses", "fastsoftmax.boosting", "fastsoftmax.calibration", "matplotlib", "rich"}
        print(sorted(heavy & set(sys.modules)))
        fs.calibration.fit_temperature([[1.0, 0.0], [1.0, 0.0]], [0, 1], sample_weight=[3, 1])
        fs.boosting.lightgbm_sklearn([0.0, 1.0], [[1.0, 0.0], [2.0, 0.0]])
        import fastsoftmax.calibration, fastsoftmax.boosting
        print(sorted({"xgboost", "lightgbm", "sklearn", "scipy", "matplotlib", "rich"} & set(sys.modules)))
        """
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
