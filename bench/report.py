"""The results: a table for the terminal, the same in Markdown, and all figures in JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import machine, marks
from .contenders import ONE_THREAD
from .race import OURS, CaseResult, Run

# The headings of the parts of a file of results.
RACE = "Benchmark results"
BUSY = "Beside other work"
SCALE = "Larger than memory"

LEGEND = (
    "µs: median time of a call of fastsoftmax; ns: the same for one element. rank: the place of fastsoftmax among all "
    "libraries that compute the case. In the column of another library: how many times as long as fastsoftmax it "
    "takes. / exp and / move: how many times as long as a limit fastsoftmax takes; exp is a loop that reads, "
    "exponentiates and writes all elements (np.exp for fewer than 1000), move a loop that only reads and writes them. "
    "gain: how many times as long fastsoftmax takes with one thread; in brackets, the same for exp. ·: every library "
    "allocates its result; in all other cases, libraries that take out= write to an existing array."
)


def names(results: Sequence[CaseResult]) -> list[str]:
    """The contenders that raced in any case, in the order of the race, without fastsoftmax and the limits."""
    seen = dict.fromkeys(name for result in results for name in result.timings if name in result.rivals)
    return list(seen)


def table(run: Run, plain: bool = False) -> Table:
    """The table of all cases: the time of fastsoftmax, and the ratio of every other contender to it."""
    rivals = names(run.results)
    grid = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD, pad_edge=plain, header_style="bold")
    grid.add_column("case", no_wrap=True)
    headings = ["µs", "ns", "rank", "fastest other", "/ exp", "/ move"]
    if run.threads > 1:
        headings.append("gain (exp)")
    for heading in [*headings, *rivals]:
        grid.add_column(heading, justify="right", no_wrap=True)
    group = None
    for result in run.results:
        if not plain and result.group != group:
            grid.add_row(f"[bold cyan]{result.group}[/]")
        group = result.group
        fastest = result.rivals[0]
        ratio = result.ratio(fastest)
        best = f"{fastest} {short(ratio)}×"
        cells = [
            short(result.timings[OURS].median * 1e6),
            short(result.ns(OURS)),
            f"{result.rank}/{len(result.rivals) + 1}",
            best if plain else f"[{'green' if ratio > 1 else 'red'}]{best}[/]",
            *(_times(result, OURS, limit) for limit in ("exp", "move")),
        ]
        if run.threads > 1:
            gains = [_times(result, name + ONE_THREAD, name) for name in (OURS, "exp")]
            cells.append(f"{gains[0]} ({gains[1]})")
        cells += [_times(result, name, OURS) for name in rivals]
        grid.add_row(("" if plain else "  ") + result.case.name + ("" if result.preallocated else " ·"), *cells)
    return grid


def _times(result: CaseResult, name: str, to: str) -> str:
    return short(result.ratio(name, to)) if name in result.timings and to in result.timings else "–"


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def summary(run: Run) -> list[str]:
    """For each rival: in how many cases fastsoftmax is ahead, and by how much."""
    lines = []
    for name in names(run.results):
        met = {result.case.name: result.ratio(name) for result in run.results if name in result.timings}
        closest = min(met, key=lambda case: met[case])
        ahead = sum(ratio > 1 for ratio in met.values())
        lines.append(
            f"fastsoftmax is ahead of {name} in {ahead} of {len(met)} cases: {geometric_mean(met.values()):.1f} times "
            f"as fast in the geometric mean, {met[closest]:.2g} in the closest ({closest})."
        )
    return lines


def remarks(run: Run) -> list[str]:
    """Lines on contenders that were left out because they disagreed or failed, or that used more threads than given."""
    lines = []
    for result in run.results:
        # That a library lacks an operation is not worth a line.
        lines += [
            f"{result.case.name}: {why}" for why in result.absent.values() if "disagrees" in why or "fails" in why
        ]
        for name, timing in result.timings.items():
            if timing.wall > 0.01 and timing.cores > run.threads + 0.2:
                lines.append(f"{result.case.name}: {name} kept {timing.cores:.1f} cores busy")
    return lines


def write_json(path: Path, runs: Sequence[Run]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": [_json(run) for run in runs]}, indent=2) + "\n")


def _json(run: Run) -> dict[str, Any]:
    cases = [
        {
            "group": result.group,
            "name": result.case.name,
            "case": asdict(result.case),
            "elements": result.case.elements,
            "bytes": result.case.bytes_moved,
            "preallocated": result.preallocated,
            "seconds": {
                name: {
                    "median": timing.median,
                    "best": timing.best,
                    "rounds": len(timing.samples),
                    "repeats": timing.repeats,
                    "cores": timing.cores,
                }
                for name, timing in result.timings.items()
            },
            "absent": result.absent,
        }
        for result in run.results
    ]
    return {"threads": run.threads, "machine": run.about, "cases": cases}


def write_markdown(path: Path, runs: Sequence[Run]) -> None:
    parts = [LEGEND]
    for run in runs:
        parts += [
            "",
            f"## {threads(run.threads)}",
            "",
            f"{machine.paragraph(run.about)} Written by `python -m bench`.",
            "",
            markdown(table(run, plain=True)),
            "",
            *(f"- {line}" for line in [*summary(run), *remarks(run)]),
        ]
    missed = marks.table(runs, plain=True)
    parts += ["", "## Marks that are missed", "", marks.LEGEND, "", markdown(missed) if missed.rows else "None."]
    write_part(path, RACE, "\n".join(parts))


def write_part(path: Path, heading: str, text: str) -> None:
    """Write one of the parts of the results; the others stay as they are."""
    parts = {RACE: "", BUSY: "", SCALE: ""}
    if path.exists():
        for kept in re.split("^# ", path.read_text(), flags=re.MULTILINE)[1:]:
            title, _, rest = kept.partition("\n")
            parts[title] = rest.strip()
    parts[heading] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"# {title}\n\n{part}\n" for title, part in parts.items() if part))


def threads(number: int) -> str:
    return f"{number} thread" + ("s" if number > 1 else "")


def markdown(grid: Table) -> str:
    """A table with `box.MARKDOWN` as text, all columns except the first flush right."""
    text = StringIO()
    Console(file=text, width=1000, color_system=None).print(grid)
    lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    first, *others = lines[1].strip("|").split("|")
    lines[1] = f"|{first}|" + "".join(f"{other[:-1]}:|" for other in others)
    return "\n".join(lines)
