"""Are the probabilities right? Temperature scaling, reliability and Brier score, from logits and class indices.

If a network gives its top class a probability of 0.9, it may be right in 90 % of these cases, or in 60 %. Its scores do
not tell, but held-out samples do. All functions visit the logits a chunk at a time, whatever their size and layout,
`numpy.memmap` included, and compute in float64.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import Array, calibration_arguments, to_bins
from ._scores import Chunk, Scores, dot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Reliability", "brier_score", "fit_temperature", "reliability"]

# The bounds of the temperature.
_COLDEST, _HOTTEST = 1e-3, 1e3
# The temperatures tried on the way from 1 to a bound; the relative error of the result.
_TRIED = (5.0, 40.0)
_TOLERANCE = 2.5e-7
# A relative difference between loss and entropy of up to this is rounding.
_EQUAL = 2.0**-46
# A confidence above an edge by up to this, relative to the edge, counts as on the edge, because both are rounded.
_ON_EDGE = 2.0**-50


def fit_temperature(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    ignore_index: SupportsIndex | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The temperature at which softmax(logits / temperature) fits the targets best: temperature scaling.

    Parameters
    ----------
    logits : array_like
        Scores of samples that were not trained on: float16, bfloat16, float32, float64, integers or bool.
    targets : array_like
        Class indices of any integer dtype, in the shape of `logits` without `axis`.
    axis : int, default -1
        The class axis of `logits`.
    ignore_index : int, optional
        Samples with this target take no part, whatever their logits hold. It need not be a valid class index.
    sample_weight : array_like, optional
        A factor for each sample, in the shape of `targets`, finite and not negative. Samples of weight 0 take no part.

    Returns
    -------
    float
        The temperature in [0.001, 1000] that minimises the mean cross-entropy, to a relative 1e-6.

    Raises
    ------
    TypeError
        If `logits`, `targets` or `sample_weight` has an unsupported dtype, is a masked array or is not in memory,
        `targets` does not have an integer dtype, or `axis` or `ignore_index` is not an integer.
    ValueError
        If `targets` or `sample_weight` has a wrong shape, an index is outside [0, C) and is not `ignore_index`, a
        weight is negative or not finite, or there are no classes.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    Warns
    -----
    RuntimeWarning
        If the result is one of the bounds. At 0.001, the largest score of every sample is that of its target (or scores
        are tiny); at 1000, the scores predict the targets no better than chance (or are huge).

    See Also
    --------
    reliability, brier_score

    Notes
    -----
    The mean loss is convex in 1 / T, and its derivative with respect to log(1 / T) is the mean loss minus the mean
    entropy. The root of this derivative is bracketed and found in about ten visits of the logits (T. R. Chandrupatla,
    "A new hybrid quadratic/bisection algorithm", 1997).

    The order of the classes, and so the accuracy, does not change (C. Guo et al., "On Calibration of Modern Neural
    Networks", 2017). Pass the result as `temperature` to `softmax` and the other functions.

    If there is only one class, or all scores of each sample are equal, all temperatures fit equally well and the result
    is 1. It is NaN if no sample takes part; if the logits of a sample hold NaN or +inf, or nothing but -inf; or if a
    target has the logit -inf, since the loss is then infinite at every temperature.

    Examples
    --------
    A model that is equally sure in each of four cases, and wrong in one:

    >>> import fastsoftmax as fs
    >>> from fastsoftmax.calibration import fit_temperature
    >>> logits, targets = [[6.0, 0.0], [6.0, 0.0], [0.0, 6.0], [0.0, 6.0]], [0, 0, 1, 0]
    >>> temperature = fit_temperature(logits, targets)
    >>> round(temperature, 3)
    5.461
    >>> fs.softmax(logits[0], temperature=temperature).round(3)
    array([0.75, 0.25])
    """
    array, labels, axis, _, ignored, weight = calibration_arguments(
        logits, targets, axis, 1.0, ignore_index, sample_weight
    )
    temperature = fitted(Scores(array, labels, axis, ignored, weight), array.shape[axis])
    if temperature in (_COLDEST, _HOTTEST):
        why = {
            _COLDEST: "every sample's largest score is that of its target, or scores are tiny",
            _HOTTEST: "the scores predict the targets no better than chance, or are huge",
        }
        warnings.warn(f"the temperature is at its bound, {temperature:g}: {why[temperature]}", RuntimeWarning, 2)
    return temperature


def fitted(scores: Iterable[Chunk], classes: int) -> float:
    """The temperature that fits the scores, which are visited anew for every temperature tried."""

    def visit(log_beta: float) -> tuple[float, float, float]:
        """The sum of the losses, that sum minus the sum of the entropies, and the sum of the weights."""
        temperature, losses, entropies, weights = math.exp(-log_beta), 0.0, 0.0, 0.0
        for chunk in scores:
            losses += dot(chunk.losses(temperature), chunk.weight)
            entropies += dot(chunk.entropies(temperature), chunk.weight)
            weights += float(chunk.weight.sum())
        return losses, losses - entropies, weights

    def excess(log_beta: float) -> float:
        """A positive multiple of the derivative of the loss with respect to log(1 / T); inf if scores overflow."""
        _, difference, _ = visit(log_beta)
        return math.inf if math.isnan(difference) else difference

    with np.errstate(all="ignore"):
        losses, start, weights = visit(0.0)
        if not weights or not math.isfinite(losses):
            return math.nan
        if classes == 1 or (abs(start) <= _EQUAL * losses and losses > 0):
            return 1.0
        # Towards colder temperatures as long as the loss falls there, else towards hotter ones.
        bound, sign = (_COLDEST, 1) if start <= 0 else (_HOTTEST, -1)
        near = (0.0, start)
        for log_beta in (*(sign * math.log(tried) for tried in _TRIED), -math.log(bound)):
            far = (log_beta, excess(log_beta))
            if (far[1] > 0) != (start > 0):
                return math.exp(-_root(excess, near, far))
            near = far
        return bound


def _root(function: Callable[[float], float], near: tuple[float, float], far: tuple[float, float]) -> float:
    """The root of a function between two places, given with their values, by Chandrupatla's method."""
    (a, fa), (b, fb) = far, near  # a is the newest place; the root is between a and b; c is the place before
    share = 0.5
    while True:
        x = a + share * (b - a)
        fx = function(x)
        if (fx > 0) == (fa > 0):
            (c, fc), (a, fa) = (a, fa), (x, fx)
        else:
            (c, fc), (b, fb), (a, fa) = (b, fb), (a, fa), (x, fx)
        best, value = (a, fa) if abs(fa) < abs(fb) else (b, fb)
        least = _TOLERANCE / abs(b - a)
        if value == 0 or least > 0.5:
            return best
        # Inverse quadratic interpolation, where it is safe.
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb) if fc != fb else math.inf
        if phi * phi < xi and (1 - phi) ** 2 < 1 - xi:
            share = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        else:
            share = 0.5
        share = min(1 - least, max(least, share))


@dataclass(frozen=True, eq=False)
class Reliability:
    """The calibration of the top label's probability, its *confidence*: see `reliability`.

    Attributes
    ----------
    edges : ndarray
        The edges of the bins of the confidence, one more than there are bins.
    count : ndarray
        The sum of the weights of the samples in each bin; without weights their number.
    confidence : ndarray
        The mean confidence in each bin; NaN where it is empty.
    accuracy : ndarray
        The share of the samples in each bin whose top label is the target; NaN where it is empty.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def gap(self) -> NDArray[np.float64]:
        """Confidence minus accuracy, in each bin."""
        return np.asarray(self.confidence - self.accuracy)

    @property
    def expected_error(self) -> float:
        """The expected calibration error: the mean size of the gaps, weighted by `count`. NaN if all bins are empty."""
        filled = self.count > 0
        if not filled.any():
            return math.nan
        return float(np.abs(self.gap[filled]) @ (self.count[filled] / self.count.sum()))

    @property
    def maximum_error(self) -> float:
        """The maximum calibration error: the size of the largest gap. NaN if all bins are empty."""
        return float(np.abs(self.gap).max(initial=0.0, where=self.count > 0)) if self.count.any() else math.nan

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw a reliability diagram. Needs matplotlib, the extra `plot`.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw the diagram; a histogram of the counts goes below it. By default in a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The diagram; the histogram is ``ax.child_axes[0]``.
        """
        from ._diagram import draw

        return draw(self, ax)


def reliability(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    bins: SupportsIndex = 15,
    strategy: Literal["uniform", "quantile"] = "uniform",
    ignore_index: SupportsIndex | None = None,
    sample_weight: ArrayLike | None = None,
) -> Reliability:
    """The accuracy of the top label, in bins of its probability: the data of a reliability diagram.

    Parameters
    ----------
    logits, targets, axis, ignore_index, sample_weight
        As for `fit_temperature`.
    temperature : float, default 1.0
        Positive and finite; the probabilities are those of ``logits / temperature``.
    bins : int, default 15
        The number of bins, at least 1.
    strategy : {"uniform", "quantile"}, default "uniform"
        Bins of equal width in [0, 1], or of about equally many samples: the edges are then quantiles of the
        confidences, by `numpy.percentile`, without regard to weights.

    Returns
    -------
    Reliability
        With the `edges` of the bins; `count`, `confidence` and `accuracy` of each bin; `expected_error`,
        `maximum_error` and `plot`.

    Raises
    ------
    TypeError
        As for `fit_temperature`; or if `temperature` is not a real number or `bins` is not an integer.
    ValueError
        As for `fit_temperature`; or if `temperature` or `bins` is out of range, or `strategy` is not one of those
        above.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    fit_temperature, brier_score, sklearn.calibration.calibration_curve

    Notes
    -----
    Bins are closed on the right, the first one also on the left. Among equal scores, the lowest index is the top label.
    A sample whose probabilities are NaN is in no bin, and makes `confidence`, `accuracy` and both errors NaN.

    Quantiles need the confidences of all samples at once, 8 bytes each.

    Examples
    --------
    >>> from fastsoftmax.calibration import reliability
    >>> logits, targets = [[6.0, 0.0], [6.0, 0.0], [0.0, 6.0], [0.0, 6.0]], [0, 0, 1, 0]
    >>> found = reliability(logits, targets, bins=10)
    >>> found.confidence[-1].round(3), found.accuracy[-1]
    (np.float64(0.998), np.float64(0.75))
    >>> round(found.expected_error, 3)
    0.248
    """
    count = to_bins(bins, strategy)
    array, labels, axis, number, ignored, weight = calibration_arguments(
        logits, targets, axis, temperature, ignore_index, sample_weight
    )
    with np.errstate(all="ignore"):
        scores = Scores(array, labels, axis, ignored, weight)
        tops: Iterable[tuple[Array, Array, Array]] = (_top_label(chunk, number) for chunk in scores)
        if strategy == "uniform":
            table = Bins(count)
        else:
            confidence, right, weights = (np.concatenate(parts) for parts in zip(*tops, strict=True))
            tops = [(confidence, right, weights)]
            table = Bins(count, confidence)
        for top in tops:
            table.add(*top)
        return table.reliability()


def _top_label(chunk: Chunk, temperature: float) -> tuple[Array, Array, Array]:
    """For each sample its confidence, whether its top label is right, and its weight."""
    log_probabilities, classes = chunk.top(1, temperature)
    return np.exp(log_probabilities[:, 0]), classes[:, 0] == chunk.targets, chunk.weight


class Bins:
    """Sums of weights, confidences and right labels in bins of equal width, or in quantiles of `confidence`."""

    def __init__(self, bins: int, confidence: Array | None = None) -> None:
        self._edges = np.linspace(0.0, 1.0, bins + 1)
        self._limits = self._edges[1:-1] * (1 + _ON_EDGE)
        if confidence is not None:
            quantiles = np.percentile(confidence, 100 * self._edges) if confidence.size else self._edges * math.nan
            self._edges = np.asarray(quantiles)
            self._limits = self._edges[1:-1]
        self._sums = np.zeros((3, bins))
        self._unknown = False

    def add(self, confidence: Array, right: Array, weight: Array) -> None:
        known = ~np.isnan(confidence)
        self._unknown |= not known.all()
        confidence, right, weight = confidence[known], right[known], weight[known]
        places = np.searchsorted(self._limits, confidence)
        bins = self._sums.shape[1]
        self._sums += [np.bincount(places, w, bins) for w in (weight, weight * confidence, weight * right)]

    def reliability(self) -> Reliability:
        count = self._sums[0]
        divisor = np.where((count > 0) & (not self._unknown), count, math.nan)
        return Reliability(self._edges, count, self._sums[1] / divisor, self._sums[2] / divisor)


def brier_score(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    ignore_index: SupportsIndex | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The Brier score: the mean of sum_c (p_c - y_c)^2, y_c being 1 for the target and 0 for all others.

    Parameters
    ----------
    logits, targets, axis, ignore_index, sample_weight
        As for `fit_temperature`.
    temperature : float, default 1.0
        Positive and finite; the probabilities are those of ``logits / temperature``.

    Returns
    -------
    float
        In [0, 2]. NaN if no sample takes part, or if a probability is NaN.

    Raises
    ------
    TypeError
        As for `fit_temperature`; or if `temperature` is not a real number.
    ValueError
        As for `fit_temperature`; or if `temperature` is not positive and finite.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    reliability, fit_temperature, sklearn.metrics.brier_score_loss

    Notes
    -----
    The sum is over all classes, also if there are only two, where some libraries halve it. The differences p_c - y_c
    are those in the gradient of the cross-entropy, which keep their digits where p_c is near 1.

    Examples
    --------
    >>> from fastsoftmax.calibration import brier_score
    >>> brier_score([[0.0, 0.0], [0.0, 0.0]], [0, 1])
    0.5
    """
    array, labels, axis, number, ignored, weight = calibration_arguments(
        logits, targets, axis, temperature, ignore_index, sample_weight
    )
    errors = weights = 0.0
    with np.errstate(all="ignore"):
        for chunk in Scores(array, labels, axis, ignored, weight):
            errors += chunk.squared_error(number)
            weights += float(chunk.weight.sum())
    return errors / weights if weights else math.nan
