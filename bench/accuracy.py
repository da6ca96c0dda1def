"""`python -m bench.accuracy`: the errors of fastsoftmax and of other libraries in ULP, and whether every bound is kept.

The bounds are in `tests/contract.py`. The exact results are computed in long double by `tests/precision.py`, which the
tests compare with mpmath. The families of logits are in `tests/arrays.py`.

`log_softmax_top_k` has no rows because it returns bits of log_softmax. `sample` has none because a class is right or
wrong, and rounding may decide between two neighbouring classes. `tests/test_picks.py` and `tests/test_sample.py` check
both. Divergences and Hessians are not compared with other libraries, which are raced for means only.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fastsoftmax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import machine
from .cases import Array, Case, Operation, Workload, dtype_of
from .contenders import Contender, NumpyApi, Unsupported, contenders
from .report import markdown

# The tests' modules import each other by their bare names.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
import contract
from arrays import ENDS, FAMILIES, family
from precision import SUFFICES, Slices, ulp_error

OPERATIONS: tuple[Operation, ...] = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "entropy",
    "log_softmax_at",
    "cross_entropy",
    "cross_entropy_with_grad",
)
# Measured for all contenders.
FUNCTIONS = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "entropy",
    "log_softmax_at",
    "cross_entropy",
    "cross_entropy_grad",
)
PLAIN = (*FUNCTIONS[:3], "logsumexp, largest 0", *FUNCTIONS[3:])  # without optional arguments
WITH_ARGUMENTS = tuple(function for function in contract.BOUNDS if function not in PLAIN)
DTYPES = ("float32", "float64", "float16", "bfloat16")

Slicing = tuple[tuple[int, ...], int]  # shape, and the class axis
SHAPES: tuple[Slicing, ...] = (
    ((400, 2), 1),
    ((200, 10), 1),
    ((40, 100), 1),
    ((20, 1000), 1),
    ((2, 32_000), 1),
    ((3, 400), 0),
    ((200, 40), 0),
    *((shape, 1) for shape in ENDS),
)
LONG_SHAPES: tuple[Slicing, ...] = (((1, 1_000_000), 1), ((70_001, 2), 0))
LONG_FAMILIES = ("normal 1", "ahead by 20", "sorted")  # of the long shapes, which take long
QUICK_SHAPES: tuple[Slicing, ...] = (((200, 10), 1), ((4, 1000), 1), ((100, 20), 0))
ARGUMENT_SHAPES: tuple[Slicing, ...] = (((8, 333), 1), ((40, 2), 1), ((40, 10), 1), ((3, 40), 0), ((333, 20), 0))
QUICK_ARGUMENT_SHAPES: tuple[Slicing, ...] = (((40, 10), 1),)
TEMPERATURES = (0.7, 3.0, 1000.0, 1e-3)
ARGUMENT_CHECKS: tuple[Callable[..., contract.Checks], ...] = (
    contract.largest_zero,
    contract.hessian,
    *(partial(contract.temperature, t=t) for t in TEMPERATURES),
    contract.where,
    contract.targets,
    contract.gradients,
    contract.divergences,
    contract.signed_sum,
)

# numba's loops are this benchmark's own, torch.compile uses torch's functions, scikit-learn is raced for means only.
LEFT_OUT = ("numba", "torch.compile", "scikit-learn")

LEGEND = (
    "Errors are in ULP: the spacing of the dtype's numbers at the exact result. In subnormal results, a rounding error "
    "of half the smallest subnormal is not counted; a flush to zero is. logsumexp is counted in ULP of the result or "
    "of the maximum, whichever is larger. A loss of half-precision logits is counted in ULP of the dtype in which it "
    "is returned. inf: NaN or infinity instead of a number, or a number instead of 0."
)


@dataclass
class Errors:
    """The errors of one contender, function, dtype and family over all shapes, in ULP."""

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
Found = dict[tuple[str, str, str, str], Errors]


class OnTarget:
    """The functions of the package, called in a process that was started with one SIMD target."""

    def __init__(self, target: str) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        with patch.dict(os.environ, FASTSOFTMAX_TARGET=target):
            self._pool.submit(fastsoftmax.set_num_threads, 1).result()

    def __getattr__(self, function: str) -> Callable[..., Any]:
        return lambda *arguments, **options: self._pool.submit(
            getattr(fastsoftmax, function), *arguments, **options
        ).result()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few small shapes only")
    parser.add_argument("--no-peers", action="store_true", help="only fastsoftmax, its reference and SciPy")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this dtype (may be repeated)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "ACCURACY.md", help="(%(default)s)")
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    if not SUFFICES:
        console.print("long double has fewer than 64 bits on this machine: nothing to compare with", style="red")
        return 2

    left_out = ("fastsoftmax", *LEFT_OUT)
    others = [racer for racer in contenders(peers=not options.no_peers) if racer.name not in left_out]
    for racer in others:
        racer.start(threads=1)
    config = fastsoftmax.show_config(mode="dicts")
    assert config is not None
    targets: dict[str, Any] = {f"fastsoftmax {name}": OnTarget(name) for name in config["targets"]["usable"]}
    racers = [*(NumpyApi(name, functions) for name, functions in targets.items()), *others]

    dtypes = tuple(options.dtype or DTYPES)
    found: Found = {}
    jobs = [(dtype, name) for dtype in dtypes for name in FAMILIES]
    for dtype, name in track(jobs, "counting", console=console, transient=True):

        def add(function: str, contender: str, errors: Array, dtype: str = dtype, name: str = name) -> None:
            found.setdefault((dtype, function, name, contender), Errors()).add(errors)

        shapes = QUICK_SHAPES if options.quick else SHAPES + (LONG_SHAPES if name in LONG_FAMILIES else ())
        for shape, axis in shapes:
            for function, contender, errors in measure(dtype, name, shape, axis, racers):
                add(function, contender, errors)
        for shape, axis in QUICK_ARGUMENT_SHAPES if options.quick else ARGUMENT_SHAPES:
            x = family(name, shape, dtype_of(dtype), axis)
            for contender, functions in targets.items():
                for check in ARGUMENT_CHECKS:
                    with np.errstate(over="ignore"):
                        for function, errors in check(functions, x, axis):
                            add(function, contender, errors)

    names = [racer.name for racer in racers]
    console.print(bounds_table(found, (*PLAIN, *WITH_ARGUMENTS), dtypes, list(targets)))
    console.print(summary(found, dtypes, names))
    for dtype in dtypes:
        console.print(details(found, dtype, names))
    about = machine.describe([NumpyApi("fastsoftmax", fastsoftmax), *others])
    about |= {"target": ", ".join(config["targets"]["usable"]), "threads": 1}
    _write(options.output, about, found, dtypes, names, list(targets))
    console.print(f"written: {options.output}", style="dim", highlight=False, soft_wrap=True)
    broken = [
        f"{function} of {dtype}: {errors.worst:.4g} ULP on {contender}, family {name!r}"
        for (dtype, function, name, contender), errors in found.items()
        if contender in targets and errors.worst > contract.BOUNDS[function].of(dtype_of(dtype))
    ]
    for line in broken:
        console.print(f"bound broken: {line}", style="red", highlight=False, soft_wrap=True)
    return 1 if broken else 0


def measure(
    dtype: str, name: str, shape: tuple[int, ...], axis: int, racers: Sequence[Contender]
) -> Iterator[tuple[str, str, Array]]:
    """Yield (function, contender, error of every entry) for all operations on one array."""
    with np.errstate(all="ignore"):
        x = family(name, shape, dtype_of(dtype), axis)
        exact = Slices(x, axis)
    for operation in OPERATIONS:
        work = Workload(Case(operation, shape, axis, dtype, reduction="none"), x)
        work.targets = contract.some_targets(exact)
        wanted = _right(operation, work, exact)
        for racer in racers:
            try:
                with np.errstate(all="ignore"):
                    call = racer.prepare(work)  # keeps the arrays that it fills alive
                    got = racer.arrays(call())
            except Unsupported:
                continue
            for part, (function, right, unit) in zip(got, wanted, strict=True):
                yield function, racer.name, ulp_error(part, right, unit)


def _right(operation: Operation, work: Workload, exact: Slices) -> tuple[tuple[str, Any, Any], ...]:
    """Return (function, exact result, numbers whose ULP are counted) for each array that the operation returns."""
    with np.errstate(all="ignore"):
        match operation:
            case "softmax":
                return ((operation, exact.softmax, None),)
            case "log_softmax":
                return ((operation, exact.log_softmax, None),)
            case "entropy":
                return ((operation, exact.entropy, None),)
            case "log_softmax_at":
                return ((operation, -exact.cross_entropy(exact.one_hot(work.targets)), None),)
            case "logsumexp":
                # The result may be near 0, but its error is relative to the maximum.
                largest = np.abs(np.squeeze(exact.peak, exact.axis))
                return ((operation, exact.logsumexp, np.maximum(np.abs(exact.logsumexp), largest)),)
            case _:
                share = exact.one_hot(work.targets)
                loss = ("cross_entropy", exact.cross_entropy(share), None)
                if operation == "cross_entropy":
                    return (loss,)
                return (loss, ("cross_entropy_grad", exact.cross_entropy_grad(share), None))


def over_families(found: Found, dtype: str, function: str, contender: str) -> Errors:
    errors = Errors()
    for name in FAMILIES:
        errors.merge(found.get((dtype, function, name, contender), Errors()))
    return errors


def bounds_table(
    found: Found, functions: Sequence[str], dtypes: Sequence[str], targets: Sequence[str], plain: bool = False
) -> Table:
    grid = _grid("bound and worst ULP over all families", ["function", "dtype", "bound"], [*targets, "kept"], plain)
    for function in functions:
        for dtype in dtypes:
            bound = contract.BOUNDS[function].of(dtype_of(dtype))
            worst = [over_families(found, dtype, function, target).worst for target in targets]
            grid.add_row(function, dtype, f"{bound:g}", *map(_short, worst), "yes" if max(worst) <= bound else "no")
    return grid


def summary(found: Found, dtypes: Sequence[str], names: Sequence[str], plain: bool = False) -> Table:
    grid = _grid("worst / mean ULP over all families", ["function", "dtype"], names, plain)
    for function in FUNCTIONS:
        for dtype in dtypes:
            grid.add_row(function, dtype, *(str(over_families(found, dtype, function, name)) for name in names))
    return grid


def details(found: Found, dtype: str, names: Sequence[str], plain: bool = False) -> Table:
    grid = _grid(f"{dtype}: worst / mean ULP", ["function", "family"], names, plain)
    for function in FUNCTIONS:
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
    path: Path,
    about: dict[str, Any],
    found: Found,
    dtypes: Sequence[str],
    names: Sequence[str],
    targets: Sequence[str],
) -> None:
    units = [f"- {name}: of {bound.unit}" for name, bound in contract.BOUNDS.items() if bound.unit != "the result"]
    arguments = (
        "`temperature` from 0.001 to 1000; losses of class indices with `weight`, or with `label_smoothing` (also "
        "weighted); losses of class probabilities (also weighted and smoothed); divergences of scores that differ and "
        "of scores that nearly agree. Errors are counted in ULP of the result, except for:"
    )
    parts = [
        "# Accuracy",
        "",
        f"{machine.paragraph(about)} Written by `python -m bench.accuracy`, which fails if a bound is broken.",
        "",
        LEGEND,
        "",
        "## Bounds and worst errors",
        "",
        markdown(bounds_table(found, PLAIN, dtypes, targets, plain=True)),
        "",
        "## Arguments and gradients of the transforms",
        "",
        arguments,
        "",
        *units,
        "",
        markdown(bounds_table(found, WITH_ARGUMENTS, dtypes, targets, plain=True)),
        "",
        "## Beside others: worst / mean over all families",
        "",
        markdown(summary(found, dtypes, names, plain=True)),
    ]
    for dtype in dtypes:
        parts += ["", f"## {dtype}: worst / mean", "", markdown(details(found, dtype, names, plain=True))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e")


if __name__ == "__main__":
    sys.exit(main())
