"""The picture: a line per case, a dot per contender, nanoseconds per element from left (fast) to right."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import machine, marks
from .busy import BusyRun
from .cases import QUICK
from .race import OURS, CaseResult, Run
from .report import names

INK, FAINT, GRID, LOST = "#1f2933", "#7b8794", "#e4e7eb", "#c5383f"
SELF: dict[str, Any] = {"color": "#0b69c7", "marker": "o", "markersize": 8.5, "markeredgecolor": "white"}
LIMITS: dict[str, dict[str, Any]] = {
    name: {"color": color, "marker": "|", "markersize": 9, "markeredgewidth": 1.4}
    for name, color in {"move": FAINT, "exp": INK}.items()
}
MOST_NAMED = 4  # rivals, in the title
OTHERS: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
    for color, marker in zip(
        ("#9aa5b1", "#e0872b", "#c5383f", "#7b3fa0", "#2f9e6e", "#b5a300", "#d65db1", "#5d6d7e", "#00a3c4", "#8d6e3f"),
        "oDs^vPXhd<",
        strict=True,
    )
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "svg.hashsalt": "fastsoftmax",
    "text.color": INK,
}


def draw(path: Path, run: Run) -> list[Path]:
    """Write it as PNG and SVG beside each other; the suffix of `path` does not matter."""
    about = run.about
    # All cases would be more than one sees at a glance.
    results = [result for result in run.results if result.case in QUICK] or run.results
    rivals = names(results)
    heights, headings = _layout([result.group for result in results])
    with mpl.rc_context():
        mpl.rcParams.update(STYLE)
        figure, axes = plt.subplots(figsize=(10.5, 2.1 + 0.235 * max(heights)), layout="constrained")
        margin: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        for result, height in zip(results, heights, strict=True):
            _draw_case(axes, result, height, rivals, margin)
        axes.text(1.01, -0.9, "times as fast as\nthe fastest other", color=FAINT, fontsize=8, **margin)
        _dress(axes, [result.case.name for result in results], heights, headings)
        axes.set_xlabel("nanoseconds per element (log scale): left is faster", color=FAINT)
        _label_contenders(axes, rivals)
        others = ["NumPy" if name == "reference" else name for name in rivals]
        return _finish(figure, path, "fastsoftmax beside " + _enumerate(others), about)


def draw_busy(path: Path, run: BusyRun) -> list[Path]:
    """Likewise, how many times as long several threads take as one: their medians, means and 99th percentiles."""
    loads = sorted({each.spinning for each in run.beside})
    cases = list(dict.fromkeys(each.case for each in run.beside))
    rows = [(load, case) for load in loads for case in cases]
    heights, headings = _layout([_load(load) for load, _ in rows])
    rivals = list(dict.fromkeys(each.name for each in run.beside if each.name != OURS))
    styles = {OURS: SELF, **dict(zip(rivals, OTHERS, strict=False))}
    figures = {"median": "median", "mean": "mean", "percentile": "99th percentile"}
    with mpl.rc_context():
        mpl.rcParams.update(STYLE)
        size = (10.5, 2.1 + 0.235 * max(heights))
        figure, panels = plt.subplots(1, 3, figsize=size, layout="constrained", sharey=True)
        for axes, (field, label) in zip(panels, figures.items(), strict=True):
            for each in run.beside:
                height = heights[rows.index((each.spinning, each.case))]
                axes.plot(each.ratio(field), height, zorder=4 if each.name == OURS else 3, **styles[each.name])
            axes.axvline(1, color=INK, linewidth=0.8, zorder=1)
            axes.axvline(marks.BESIDE[field], color=LOST, linewidth=0.8, zorder=1)
            axes.text(marks.BESIDE[field], -0.9, f" {marks.BESIDE[field]:g}", color=LOST, fontsize=8, va="center")
            _dress(axes, [case.name for _, case in rows], heights, headings if axes is panels[0] else {})
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f"{label}, {run.threads} threads over 1", color=FAINT)
        for name in (OURS, *rivals):
            panels[0].plot([], [], linestyle="none", label=name, **styles[name])
        title = "Threads beside other work: how many times as long as one (log scale)"
        return _finish(figure, path, title, run.about)


def _load(spinning: int) -> str:
    return "alone" if spinning == 0 else f"beside {spinning} spinning"


def _finish(figure: Any, path: Path, title: str, about: dict[str, Any]) -> list[Path]:
    figure.legend(
        loc="outside upper left",
        ncols=4,
        frameon=False,
        handletextpad=0.3,
        title=title,
        title_fontproperties={"size": 14, "weight": "bold"},
        alignment="left",
    )
    origin = f"{machine.sentence(about)}\n{fill(machine.versions(about), 150)}; {about['date']}"
    figure.supxlabel(origin, x=0.01, ha="left", fontsize=7.5, color=FAINT)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(written[0], dpi=150, facecolor="white")
    figure.savefig(written[1], facecolor="white", metadata={"Date": None})
    plt.close(figure)
    return written


def _layout(groups: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """The heights of the rows, each with its group, and of the headings between them."""
    heights: list[float] = []
    headings: dict[str, float] = {}
    height = 0.0
    for group in groups:
        if group not in headings:
            height += 0.35 if headings else 0
            headings[group] = height
            height += 1
        heights.append(height)
        height += 1
    return heights, headings


def _draw_case(axes: Any, result: CaseResult, height: float, rivals: list[str], margin: dict[str, Any]) -> None:
    ours = result.ns(OURS)
    others = {name: result.ns(name) for name in rivals if name in result.timings}
    for limit, style in LIMITS.items():
        if limit in result.timings:
            axes.plot(result.ns(limit), height, **style)
    if others:
        ends = (min(ours, *others.values()), max(ours, *others.values()))
        axes.plot(ends, (height, height), color=GRID, linewidth=2.5, zorder=1)
        ratio = min(others.values()) / ours
        text = f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"
        axes.text(1.01, height, text, weight="bold", color=SELF["color"] if ratio > 1 else LOST, **margin)
    for name, style in reversed(list(zip(rivals, OTHERS, strict=False))):
        if name in others:
            axes.plot(others[name], height, zorder=3, **style)
    axes.plot(ours, height, zorder=4, **SELF)


def _dress(axes: Any, labels: list[str], heights: list[float], headings: dict[str, float]) -> None:
    for heading, height in headings.items():
        at = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
        axes.text(-0.005, height, heading, weight="bold", **at)
    axes.set_yticks(heights, labels)
    axes.set_ylim(max(heights) + 0.8, -1.2)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low * 0.8, high * 1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_contenders(axes: Any, rivals: list[str]) -> None:
    for label, limit in {"the bytes moved": "move", "and exponentiated": "exp"}.items():
        axes.plot([], [], linestyle="none", label=label, **LIMITS[limit])
    axes.plot([], [], linestyle="none", label=OURS, **SELF)
    for name, style in zip(rivals, OTHERS, strict=False):
        label = "NumPy (fastsoftmax.reference)" if name == "reference" else name
        axes.plot([], [], linestyle="none", label=label, **style)


def _enumerate(words: list[str]) -> str:
    if len(words) > MOST_NAMED:
        words = [*words[: MOST_NAMED - 1], f"{len(words) - MOST_NAMED + 1} others"]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
