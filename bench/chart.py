"""The pictures. The main one has a line per case and a dot per contender; nanoseconds per element grow to the right."""

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
from .cases import EVERYDAY, QUICK, Case
from .race import OURS, CaseResult, Run
from .report import names, threads
from .workers import Timing

INK, FAINT, GRID, LOST = "#1f2933", "#7b8794", "#e4e7eb", "#c5383f"
NEUTRAL = "#808a94"  # readable on a light ground and on a dark one
SELF: dict[str, Any] = {"color": "#0b69c7", "marker": "o", "markersize": 8.5, "markeredgecolor": "white"}
LIMITS: dict[str, dict[str, Any]] = {
    name: {"color": color, "marker": "|", "markersize": 9, "markeredgewidth": 1.4}
    for name, color in {"move": FAINT, "exp": INK}.items()
}
MOST_NAMED = 4  # rivals in the title, by name
OTHERS: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
    for color, marker in zip(
        ("#9aa5b1", "#e0872b", "#c5383f", "#7b3fa0", "#2f9e6e", "#b5a300", "#d65db1", "#5d6d7e", "#00a3c4", "#8d6e3f"),
        "oDs^vPXhd<",
        strict=True,
    )
)
# The bars in the picture of everyday calls: label and colour.
BARS = {
    OURS: (OURS, "#2f81e0"),
    "reference": ("NumPy", "#8a94a0"),
    "SciPy": ("SciPy", "#d08770"),
    "torch": ("torch", "#b48ead"),
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "svg.hashsalt": "fastsoftmax",
    "text.color": INK,
}


def draw(path: Path, runs: Sequence[Run]) -> list[Path]:
    """Write the pictures as PNG and SVG beside each other; the suffix of `path` does not matter."""
    written = _draw_all(path, runs[0])
    for run in runs[1:]:
        written += _draw_all(path.with_name(f"{path.stem}_{run.threads}_threads"), run)
    return written + _draw_everyday(path.with_name(f"{path.stem}_everyday"), runs[0])


def _draw_all(path: Path, run: Run) -> list[Path]:
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
    """Write the picture of how many times as long several threads take as one: medians, means and 99th percentiles."""
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


def _draw_everyday(path: Path, run: Run) -> list[Path]:
    """Write the picture of some calls beside NumPy, SciPy and torch, readable on a light ground and on a dark one."""
    by_case = {result.case: result for result in run.results}
    results = [by_case[case] for case in EVERYDAY if case in by_case]
    if not results:
        return []
    names = [name for name in BARS if any(name in result.timings for result in results)]
    thickness = 0.8 / len(names)
    with mpl.rc_context():
        mpl.rcParams.update({**STYLE, "text.color": NEUTRAL})
        figure, axes = plt.subplots(figsize=(9, 1.2 + 0.22 * len(results) * len(names)), layout="constrained")
        for k, name in enumerate(names):
            label, color = BARS[name]
            here = [(i, result) for i, result in enumerate(results) if name in result.timings]
            heights = [i + (k - (len(names) - 1) / 2) * thickness for i, _ in here]
            bars = axes.barh(heights, [r.ratio(name) for _, r in here], thickness * 0.9, label=label, color=color)
            texts = [_duration(r.timings[name]) if name == OURS else f"{r.ratio(name):.1f}×" for _, r in here]
            axes.bar_label(bars, texts, padding=4, color=color if name == OURS else NEUTRAL, fontsize=8.5)
        axes.set_yticks(range(len(results)), [_everyday_name(result.case) for result in results])
        axes.invert_yaxis()
        axes.set_facecolor("none")
        axes.set_xticks([])
        axes.tick_params(length=0, colors=NEUTRAL)
        for spine in axes.spines.values():
            spine.set_visible(False)
        title = f"Time of a call, {threads(run.threads)}: how many times as long as fastsoftmax"
        return _finish(figure, path, title, run.about, ground="none")


def _duration(timing: Timing) -> str:
    return f"{timing.median * 1e3:.2g} ms" if timing.median >= 1e-3 else f"{timing.median * 1e6:.3g} µs"


def _everyday_name(case: Case) -> str:
    """The call, and the shape below it."""
    axis = "" if case.axis == -1 else f", axis={case.axis}"
    call = case.operation.replace("cross_entropy_with_grad", "cross-entropy + gradient")
    return f"{call}{axis}\n{case.dtype} {case.shape}"


def _load(spinning: int) -> str:
    return "alone" if spinning == 0 else f"beside {spinning} spinning"


def _finish(figure: Any, path: Path, title: str, about: dict[str, Any], ground: str = "white") -> list[Path]:
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
    figure.savefig(written[0], dpi=150, facecolor=ground)
    figure.savefig(written[1], facecolor=ground, metadata={"Date": None})
    plt.close(figure)
    return written


def _layout(groups: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """The heights of the rows, one for each entry of `groups`, and of the heading above each group."""
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
