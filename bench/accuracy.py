"""`python -m bench.accuracy`: the errors of fastsoftmax and of others in ULP, for every family of logits.

One ULP is the spacing of the dtype's numbers at the right result, and that comes from the tests: `tests/precision.py`
computes it in long double and is itself held against mpmath there. Families of logits are those of `tests/arrays.py`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.arrays import FAMILIES, family
from tests.precision import SUFFICES, Slices, shares, ulp_error

from . import machine
from .cases import Array, Case, Operation, Workload, dtype_of
from .contenders import Contender, Unsupported, contenders
from .report import markdown

OPERATIONS: tuple[Operation, ...] = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy",
    "cross_entropy_with_grad",
)
DTYPES = ("float32", "float64", "float16", "bfloat16")
SHAPES = ((400, 2), (200, 10), (40, 100), (20, 1000), (2, 32_000), (1, 300_000))
QUICK_SHAPES = ((200, 10), (4, 1000))

# Their loops are those of the benchmark, their code that of a contender which counts, or they return means alone.
LEFT_OUT = ("numba", "torch.compile", "scikit-learn")

LEGEND = (
    "Worst and mean error in ULP (the spacing of the dtype's numbers at the right result). Of a subnormal result, half "
    "a smallest subnormal of rounding is not counted, a flush to zero is. logsumexp is counted in ULP of the larger of "
    "the result and the maximum. A loss of half-precision logits is counted in ULP of the dtype in which it is "
    "returned. inf: NaN or infinity instead of a number, or a number instead of 0."
)


@dataclass
class Errors:
    """Of one contender, function, dtype and family, over all shapes: in ULP."""

    worst: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, errors: Array) -> None:
        self.worst = max(self.worst, float(np.max(errors, initial=0)))
        self.total += float(np.sum(errors))
        self.count += errors.size

    def merge(self, other: "Errors") -> None:
        self.worst = max(self.worst, other.worst)
        self.total += other.total
        self.count += other.count

    def __str__(self) -> str:
        return f"{_short(self.worst)} / {_short(self.total / self.count)}" if self.count else "–"


# (dtype, function, family, contender)
Key = tuple[str, str, str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--no-peers", action="store_true", help="fastsoftmax, its reference and SciPy alone")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this dtype (may be repeated)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "ACCURACY.md", help="(%(default)s)")
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    if not SUFFICES:
        console.print("long double has fewer than 64 bits on this machine: nothing to compare with", style="red")
        return 2

    racers = [racer for racer in contenders(peers=not options.no_peers) if racer.name not in LEFT_OUT]
    for racer in racers:
        racer.start(threads=1)
    about = machine.describe(racers)
    dtypes = tuple(options.dtype or DTYPES)
    jobs = [
        (dtype, name, shape)
        for dtype in dtypes
        for name in FAMILIES
        for shape in (QUICK_SHAPES if options.quick else SHAPES)
    ]
    found: dict[Key, Errors] = {}
    for dtype, name, shape in track(jobs, "counting", console=console, transient=True):
        for function, contender, errors in measure(dtype, name, shape, racers):
            found.setdefault((dtype, function, name, contender), Errors()).add(errors)

    names = [racer.name for racer in racers]
    console.print(summary(found, dtypes, names))
    for dtype in dtypes:
        console.print(details(found, dtype, names))
    _write(options.output, about, found, dtypes, names)
    console.print(f"written: {options.output}", style="dim", highlight=False, soft_wrap=True)
    return 0


def measure(
    dtype: str, name: str, shape: tuple[int, int], racers: Sequence[Contender]
) -> Iterator[tuple[str, str, Array]]:
    """(function, contender, error of every entry)."""
    with np.errstate(all="ignore"):
        x = family(name, shape, dtype_of(dtype))
    for operation in OPERATIONS:
        work = Workload(Case(operation, shape, dtype=dtype, reduction="none"), x)
        wanted: tuple[tuple[str, Any, Any], ...] | None = None
        for racer in racers:
            try:
                with np.errstate(all="ignore"):
                    call = racer.prepare(work)  # which holds the arrays that it fills
                    got = racer.arrays(call())
            except Unsupported:
                continue
            if wanted is None:
                wanted = _right(operation, work)
            for part, (function, right, unit) in zip(got, wanted, strict=True):
                yield function, racer.name, ulp_error(part, right, unit)


def _right(operation: Operation, work: Workload) -> tuple[tuple[str, Any, Any], ...]:
    """(function, right results, what they are counted in units of) for each array that the operation returns."""
    slices = Slices(work.x)
    with np.errstate(all="ignore"):
        match operation:
            case "softmax":
                return ((operation, slices.softmax, None),)
            case "log_softmax":
                return ((operation, slices.log_softmax, None),)
            case "logsumexp":
                # The result may pass through 0; the maximum does not get more exact by that.
                unit = np.maximum(np.abs(slices.logsumexp), np.abs(slices.peak[..., 0]))
                return ((operation, slices.logsumexp, unit),)
            case _:
                share = shares(work.case.shape, -1, work.targets)
                loss = ("cross_entropy", slices.cross_entropy(share), None)
                if operation == "cross_entropy":
                    return (loss,)
                return (("loss, with gradient", *loss[1:]), ("gradient", slices.cross_entropy_grad(share), None))


def _functions(found: dict[Key, Errors]) -> list[str]:
    return list(dict.fromkeys(function for _, function, _, _ in found))


def summary(found: dict[Key, Errors], dtypes: Sequence[str], names: Sequence[str], plain: bool = False) -> Table:
    grid = _grid("worst / mean ULP over all families", ["function", "dtype"], names, plain)
    for function in _functions(found):
        for dtype in dtypes:
            cells = []
            for contender in names:
                errors = Errors()
                for (other_dtype, other_function, _, other), part in found.items():
                    if (other_dtype, other_function, other) == (dtype, function, contender):
                        errors.merge(part)
                cells.append(str(errors))
            grid.add_row(function, dtype, *cells)
    return grid


def details(found: dict[Key, Errors], dtype: str, names: Sequence[str], plain: bool = False) -> Table:
    grid = _grid(f"{dtype}: worst / mean ULP", ["function", "family"], names, plain)
    for function in _functions(found):
        for name in FAMILIES:
            cells = [str(found.get((dtype, function, name, contender), Errors())) for contender in names]
            grid.add_row(function, name, *cells)
    return grid


def _grid(title: str, first: Sequence[str], names: Sequence[str], plain: bool) -> Table:
    grid = Table(title=None if plain else title, box=box.MARKDOWN if plain else box.SIMPLE_HEAD, pad_edge=plain)
    for heading in first:
        grid.add_column(heading, no_wrap=True)
    for name in names:
        grid.add_column(name, justify="right", no_wrap=True)
    return grid


def _write(
    path: Path, about: dict[str, Any], found: dict[Key, Errors], dtypes: Sequence[str], names: Sequence[str]
) -> None:
    parts = [
        "# Accuracy",
        "",
        LEGEND,
        "",
        f"{machine.paragraph(about)} Written by `python -m bench.accuracy`.",
        "",
        "## All families",
        "",
        markdown(summary(found, dtypes, names, plain=True)),
    ]
    for dtype in dtypes:
        parts += ["", f"## {dtype}", "", markdown(details(found, dtype, names, plain=True))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e")


if __name__ == "__main__":
    sys.exit(main())
