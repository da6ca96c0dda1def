"""What came out: a table for the terminal, the same in Markdown, and everything in JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import machine
from .race import CaseResult

LIMITS = ("copy",)


def names(results: Sequence[CaseResult]) -> list[str]:
    """Who raced in any case, in the order of the race, fastsoftmax and the limits left out."""
    seen = dict.fromkeys(name for result in results for name in result.timings)
    return [name for name in seen if name not in ("fastsoftmax", *LIMITS)]


def table(results: Sequence[CaseResult], plain: bool = False) -> Table:
    """ns per element and GB/s of fastsoftmax, then the others: ns per element and how many times as long they take."""
    rivals = names(results)
    grid = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD, pad_edge=plain, header_style="bold")
    grid.add_column("case", no_wrap=True)
    for heading in (
        "fastsoftmax\nns",
        "GB/s",
        "copy\nns",
        "fastsoftmax\n/ copy",
        *(f"{name}\nns (ratio)" for name in rivals),
    ):
        grid.add_column(heading.replace("\n", " ") if plain else heading, justify="right", no_wrap=True)
    group = None
    for result in results:
        if not plain and result.group != group:
            grid.add_row(f"[bold cyan]{result.group}[/]")
        group = result.group
        grid.add_row(
            ("" if plain else "  ") + result.case.name + ("" if result.preallocated else " ·"),
            f"{result.ns('fastsoftmax'):.3g}",
            f"{result.gigabytes('fastsoftmax'):.1f}",
            f"{result.ns('copy'):.2g}",
            f"{1 / result.ratio('copy'):.1f}",
            *(_rival(result, name, plain) for name in rivals),
        )
    return grid


def _rival(result: CaseResult, name: str, plain: bool) -> str:
    if name not in result.timings:
        return "–"
    ratio = result.ratio(name)
    text = f"{_short(ratio)}×"
    if not plain:
        text = f"[{'green' if ratio > 1 else 'red'}]{text}[/]"
    return f"{_short(result.ns(name))} ({text})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


LEGEND = (
    "ns: median nanoseconds per element. GB/s: bytes that must be read and written, over that time. copy: np.copyto of "
    "as many bytes. ratio: how many times as long as fastsoftmax. ·: every contender allocates its result; in other "
    "cases those that take out= write to an array that exists."
)


def summary(results: Sequence[CaseResult]) -> list[str]:
    """For each rival: in how many cases fastsoftmax is ahead, and by how much."""
    lines = []
    for name in names(results):
        met = {result.case.name: result.ratio(name) for result in results if name in result.timings}
        if not met:
            continue
        closest = min(met, key=lambda case: met[case])
        ahead = sum(ratio > 1 for ratio in met.values())
        lines.append(
            f"fastsoftmax is ahead of {name} in {ahead} of {len(met)} cases: {geometric_mean(met.values()):.1f} times "
            f"as fast in the geometric mean, {met[closest]:.2g} in the closest ({closest})."
        )
    return lines


def absences(results: Sequence[CaseResult]) -> list[str]:
    """Who was left out because its results disagreed; what is merely not offered is not worth a line."""
    return [
        f"{result.case.name}: {reason}"
        for result in results
        for reason in result.absent.values()
        if "disagrees" in reason
    ]


def write_json(path: Path, about: dict[str, Any], results: Sequence[CaseResult]) -> None:
    cases = [
        {
            "group": result.group,
            "name": result.case.name,
            "case": asdict(result.case),
            "elements": result.case.elements,
            "bytes": result.case.bytes_moved,
            "preallocated": result.preallocated,
            "seconds": {
                name: {"median": t.median, "best": t.best, "rounds": len(t.samples), "repeats": t.repeats}
                for name, t in result.timings.items()
            },
            "absent": result.absent,
        }
        for result in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "cases": cases}, indent=2) + "\n")


def write_markdown(path: Path, about: dict[str, Any], results: Sequence[CaseResult]) -> None:
    parts = [
        "# Benchmark results",
        "",
        f"{machine.paragraph(about)} Written by `python -m bench`.",
        "",
        markdown(table(results, plain=True)),
        "",
        LEGEND,
        "",
        *(f"- {line}" for line in summary(results)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def markdown(grid: Table) -> str:
    """A table with `box.MARKDOWN` as text, its columns but the first flush right."""
    text = StringIO()
    Console(file=text, width=1000, color_system=None).print(grid)
    lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    first, *others = lines[1].strip("|").split("|")
    lines[1] = f"|{first}|" + "".join(f"{other[:-1]}:|" for other in others)
    return "\n".join(lines)
