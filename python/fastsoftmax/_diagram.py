"""Reliability diagrams, drawn with matplotlib. Imported only when one is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from .calibration import Reliability

# Safe for the colour-blind: after Okabe and Ito.
_ACCURACY, _OVER, _COUNT = "#0072B2", "#D55E00", "#999999"


def draw(found: "Reliability", ax: Axes | None) -> Axes:
    """Draw bars of the accuracy, the gaps to the confidence and the diagonal; below, a histogram of the counts."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(5, 6), layout="constrained")
    _draw(found, ax)
    # A constrained layout makes room for the histogram only after it has been drawn once.
    ax.figure.canvas.figure.draw_without_rendering()
    return ax


def _draw(found: "Reliability", ax: Axes) -> None:
    below = ax.inset_axes((0, -0.34, 1, 0.3), sharex=ax)
    filled = found.count > 0
    left, width = found.edges[:-1][filled], np.diff(found.edges)[filled]
    accuracy, gap = found.accuracy[filled], found.gap[filled]
    bars: dict[str, Any] = {"align": "edge", "linewidth": 0.8}
    ax.bar(left, accuracy, width, color=_ACCURACY, edgecolor="white", label="accuracy", **bars)
    # From the accuracy to the mean confidence: a calibrated model would have no gap.
    shown: dict[str, Any] = {"color": (_OVER, 0.25), "edgecolor": _OVER, "hatch": "///", "label": "gap to confidence"}
    ax.bar(left, gap, width, accuracy, **shown, **bars)
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    ax.set_title(f"expected calibration error {100 * found.expected_error:.1f} %")
    ax.tick_params(labelbottom=False)
    ax.legend(loc="upper left", framealpha=0.9)
    share = 100 * found.count[filled] / found.count.sum()
    below.bar(left, share, width, color=_COUNT, edgecolor="white", **bars)
    below.set(xlabel="confidence", ylabel="samples (%)", ylim=(0, None))
    for each in (ax, below):
        each.spines[["top", "right"]].set_visible(False)
