"""The pictures of accuracy: python -m bench.accuracy_chart

`scale` shows how the worst error of softmax and log_softmax in float32 changes with the scale of the logits.
`dominating` shows how 1 - p, and its error, change as the score of one class grows.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")

from matplotlib import pyplot as plt

from . import machine
from .cases import Array, Case, Operation, Workload
from .contenders import Contender, Unsupported, contenders

# Exact results come from the tests, as in accuracy.py.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from precision import SUFFICES, Slices, ulp_error

# Colours that can be told apart, and read, on a white background and on a dark one.
INK = "#75808d"
STYLES: dict[str, dict[str, Any]] = {
    "reference": {"color": "#8a949f", "marker": "^", "label": "NumPy"},
    "SciPy": {"color": "#e0872b", "marker": "s"},
    "torch": {"color": "#d9534f", "marker": "D"},
    "JAX": {"color": "#9a63c9", "marker": "v"},
    "fastsoftmax": {"color": "#2f86e0", "marker": "o", "linewidth": 2.5},
}

SCALES = np.logspace(-1, 4, 31)
SCALED: tuple[Operation, ...] = ("softmax", "log_softmax")
LEADS = np.linspace(0, 100, 51)
CLASSES = 100
LEAST = 1e-45  # the height at which a 0 is drawn

RC: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "font.size": 9.5,
    "svg.hashsalt": "fastsoftmax",
}

# The curve of each contender: a value for each number on the horizontal axis.
Curves = dict[str, Array]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy_chart", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few points only")
    parser.add_argument("--no-peers", action="store_true", help="fastsoftmax, NumPy and SciPy only")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="the folder (%(default)s)")
    options = parser.parse_args(arguments)
    if not SUFFICES:
        print("long double has fewer than 64 bits on this machine: nothing to compare with")
        return 2
    racers = [racer for racer in contenders(peers=not options.no_peers) if racer.name in STYLES]
    for racer in racers:
        racer.start(threads=1)
    step = 10 if options.quick else 1
    libraries = [racer for racer in racers if racer.name != "reference"]  # computes softmax as SciPy does
    options.output.mkdir(parents=True, exist_ok=True)
    about = machine.describe(racers)
    with mpl.rc_context(RC):
        for name, figure in {
            "scale": draw_scales(SCALES[::step], {name: errors(name, libraries, SCALES[::step]) for name in SCALED}),
            "dominating": draw_dominating(LEADS[::step], *one_less_p(racers, LEADS[::step])),
        }.items():
            figure.supxlabel(f"float32; {machine.sentence(about)}\n{machine.versions(about)}; {about['date']}", size=7)
            path = options.output / f"{name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
            plt.close(figure)
            print(f"written: {path}")
    return 0


def errors(operation: Operation, racers: Iterable[Contender], scales: Array) -> Curves:
    """Return the worst error in ULP for normally distributed logits of each scale."""
    normal = np.random.default_rng(0).standard_normal((400, CLASSES))
    curves: dict[str, list[float]] = {}
    for scale in scales:
        work = Workload(Case(operation, normal.shape), (normal * scale).astype(np.float32))
        right = getattr(Slices(work.x), operation)
        for name, (got,) in computed(work, racers):
            curves.setdefault(name, []).append(float(np.max(ulp_error(got, right))))
    return {name: np.array(values) for name, values in curves.items()}


def one_less_p(racers: Iterable[Contender], leads: Array) -> tuple[Array, Curves]:
    """Return 1 - p of a class that leads by each of `leads`: the exact ones, and those in each contender's gradient."""
    x = np.zeros((len(leads), CLASSES), np.float32)
    x[:, 0] = leads
    work = Workload(Case("cross_entropy_with_grad", x.shape, reduction="none"), x)
    work.targets = np.zeros(len(leads), np.intp)
    right = Slices(x).others[:, 0].astype(np.float64)
    return right, {name: -grad[:, 0].astype(np.float64) for name, (_, grad) in computed(work, racers)}


def computed(work: Workload, racers: Iterable[Contender]) -> Iterable[tuple[str, tuple[Array, ...]]]:
    for racer in racers:
        try:
            with np.errstate(all="ignore"):
                call = racer.prepare(work)  # keeps the arrays that it fills alive
                yield racer.name, racer.arrays(call())
        except Unsupported:
            continue


def draw_scales(scales: Array, found: dict[Operation, Curves]) -> Any:
    figure, panels = panels_of("worst error in ULP", list(found))
    for axes, curves in zip(panels, found.values(), strict=True):
        for name, worst in curves.items():
            axes.plot(scales, np.maximum(worst, 0.1), **styled(name))
        axes.set(xscale="log", yscale="log", ylim=(0.1, 1e8), xlabel="standard deviation of the logits")
    return labelled(figure, panels)


def draw_dominating(leads: Array, right: Array, curves: Curves) -> Any:
    figure, panels = panels_of("", ["1 - p of the leading class", "relative error"])
    for name, got in curves.items():
        panels[0].plot(leads, np.maximum(got, LEAST), **styled(name))
        panels[1].plot(leads, np.maximum(np.abs(got - right) / right, 1e-9), **styled(name))
    panels[0].plot(leads, right, color=INK, linewidth=1, linestyle=":", label="exact")
    panels[1].axhline(1, color=INK, linewidth=1, linestyle=":")
    for axes in panels:
        axes.set(yscale="log", xlabel="by how much its score leads")
    panels[0].set_ylim(LEAST, 10)
    panels[1].set_ylim(1e-9, 10)
    return labelled(figure, panels)


def panels_of(label: str, titles: Sequence[str]) -> tuple[Any, Any]:
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(label)
    return figure, panels


def styled(name: str) -> dict[str, Any]:
    return {"label": name, "markersize": 3.5, "zorder": 3 if name == "fastsoftmax" else 2, **STYLES[name]}


def labelled(figure: Any, panels: Any) -> Any:
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
