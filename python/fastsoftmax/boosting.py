"""Softmax objectives for gradient boosting with XGBoost and LightGBM, computed in one visit of the scores.

They train the same models as the multi-class objective that is built into the installed version. Start from them to
write one that is not built in, with class weights, label smoothing or a temperature. Neither library is imported before
a function of this module is called with its data.

The models are the same only if both objectives start from the same scores: built-in ones begin with the frequencies of
the classes, others with 0. Pass ``base_score=0`` to XGBoost, ``boost_from_average=False`` to LightGBM; or a
``base_margin`` or an ``init_score``.
"""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arguments import Array, boosting_arguments, result_dtype
from ._losses import cross_entropy_grad, cross_entropy_with_grad_hess

__all__ = ["lightgbm", "lightgbm_sklearn", "xgboost", "xgboost_sklearn"]

# The least second derivative that XGBoost uses. It decides the leaves where p vanishes and lambda is 0.
_FLOOR = np.float32(1e-16)
# Elements whose derivatives in float64 stay in a cache until they are rounded.
_CHUNK = 1 << 17
# The first version of XGBoost in which the second derivative is |p - y|.
_ABSOLUTE = (3, 5)


def xgboost(predt: Array, dtrain: Any) -> tuple[Array, Array]:
    """Gradient and Hessian of the objective ``multi:softprob``, for ``xgboost.train(..., obj=xgboost)``.

    Parameters
    ----------
    predt : ndarray
        Scores, one column for each of the ``num_class`` classes.
    dtrain : xgboost.DMatrix
        With labels and, if wanted, weights. Labels in a matrix, one column for each class, are class probabilities.

    Returns
    -------
    grad, hess : ndarray
        In the shape of `predt`.

    Raises
    ------
    TypeError, ValueError
        As for `xgboost_sklearn`.

    See Also
    --------
    xgboost_sklearn

    Examples
    --------
    >>> import numpy as np
    >>> import xgboost
    >>> from fastsoftmax import boosting
    >>> rng = np.random.default_rng(0)
    >>> points = rng.normal(size=(300, 2))
    >>> labels = (points[:, 0] > 0) + (points[:, 1] > 0)
    >>> data = xgboost.DMatrix(points, labels)
    >>> parameters = {"num_class": 3, "base_score": 0, "disable_default_eval_metric": True}
    >>> model = xgboost.train(parameters, data, 10, obj=boosting.xgboost)
    >>> scores = model.predict(data, output_margin=True)
    >>> bool(np.mean(scores.argmax(axis=1) == labels) > 0.95)
    True
    """
    labels, weight = dtrain.get_label(), dtrain.get_weight()
    return xgboost_sklearn(labels, predt, weight if weight.size else None)


def xgboost_sklearn(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Gradient and Hessian of ``multi:softprob``, for ``xgboost.XGBClassifier(objective=xgboost_sklearn)``.

    Parameters
    ----------
    y_true : array_like
        Class indices, of any real dtype; or class probabilities, in the shape of `y_pred`.
    y_pred : array_like
        Scores, one column for each class, at least two.
    sample_weight : array_like, optional
        A factor for each sample, finite and not negative.

    Returns
    -------
    grad : ndarray
        ``w (p - y)``, with p = softmax(y_pred).
    hess : ndarray
        As in the installed version: ``max(2 w p (1 - p), 1e-16)`` before 3.5, then ``max(|w (p - y)|, 1e-16)``.

    Raises
    ------
    ImportError
        If XGBoost is not installed.
    TypeError
        If an argument has an unsupported dtype, is a masked array or is not in memory.
    ValueError
        If an argument has a wrong shape, a label is not a class index, or a weight is negative or not finite.

    See Also
    --------
    xgboost, fastsoftmax.cross_entropy_with_grad_hess
    """
    scores, labels, weight = boosting_arguments(y_true, y_pred, sample_weight)
    if _xgboost_version() >= _ABSOLUTE:
        grad = cross_entropy_grad(scores, labels, reduction="none", upstream=weight)
        hess = np.abs(grad)
    else:
        _, grad, hess = cross_entropy_with_grad_hess(scores, labels, reduction="none", upstream=weight)
        hess *= 2
    return grad, np.maximum(hess, _FLOOR, out=hess)


def _xgboost_version() -> tuple[int, ...]:
    return tuple(int(part) for part in import_module("xgboost").__version__.split(".")[:2])


def lightgbm(preds: Array, dataset: Any) -> tuple[Array, Array]:
    """Gradient and Hessian of the objective ``multiclass``, for ``lightgbm.train({"objective": lightgbm, ...}, ...)``.

    Parameters
    ----------
    preds : ndarray
        Scores, one column for each of the ``num_class`` classes.
    dataset : lightgbm.Dataset
        With labels and, if wanted, weights.

    Returns
    -------
    grad, hess : ndarray
        In the shape and order of `preds`.

    Raises
    ------
    TypeError, ValueError
        As for `lightgbm_sklearn`.

    See Also
    --------
    lightgbm_sklearn

    Examples
    --------
    >>> import lightgbm
    >>> import numpy as np
    >>> from fastsoftmax import boosting
    >>> rng = np.random.default_rng(0)
    >>> points = rng.normal(size=(300, 2))
    >>> labels = (points[:, 0] > 0) + (points[:, 1] > 0)
    >>> parameters = {"objective": boosting.lightgbm, "num_class": 3, "verbose": -1}
    >>> model = lightgbm.train(parameters, lightgbm.Dataset(points, labels), 10)
    >>> bool(np.mean(model.predict(points).argmax(axis=1) == labels) > 0.95)
    True
    """
    return lightgbm_sklearn(dataset.get_label(), preds, dataset.get_weight())


def lightgbm_sklearn(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Gradient and Hessian of ``multiclass``, for ``lightgbm.LGBMClassifier(objective=lightgbm_sklearn)``.

    Parameters
    ----------
    y_true, y_pred, sample_weight
        As for `xgboost_sklearn`.

    Returns
    -------
    grad : ndarray
        ``w (p - y)``, with p = softmax(y_pred), in float32 and in the order of `y_pred`.
    hess : ndarray
        ``K / (K - 1) w p (1 - p)``, with K classes.

    Raises
    ------
    TypeError, ValueError
        As for `xgboost_sklearn`.

    See Also
    --------
    lightgbm, fastsoftmax.cross_entropy_with_grad_hess

    Notes
    -----
    With a custom objective, ``predict_proba`` of the estimator returns scores. `fastsoftmax.softmax` turns them into
    probabilities.
    """
    scores, labels, weight = boosting_arguments(y_true, y_pred, sample_weight)
    samples, classes = scores.shape
    # LightGBM wants float32, class after class like the scores. Only these arrays go to memory, not those in float64.
    grad, hess = np.empty_like(scores, np.float32), np.empty_like(scores, np.float32)
    step = max(1, _CHUNK // classes)
    dtype = result_dtype(scores.dtype, "y_pred")
    out = np.empty_like(scores[:step], dtype), np.empty_like(scores[:step], dtype)
    for start in range(0, samples, step):
        part = slice(start, start + step)
        scratch = out[0][: samples - start], out[1][: samples - start]
        upstream = None if weight is None else weight[part]
        cross_entropy_with_grad_hess(scores[part], labels[part], reduction="none", upstream=upstream, out=scratch)
        grad[part] = scratch[0]
        np.multiply(scratch[1], classes / (classes - 1), out=hess[part], casting="same_kind")
    return grad, hess
