"""The results beside other work: tables for the terminal and in Markdown, and all figures in JSON."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table

from . import machine, marks
from .busy import OTHERS_SHARE, PAUSE_SECONDS, BusyRun
from .race import OURS
from .report import BUSY, markdown, short, threads, write_part

FIGURES = ("median", "mean", "percentile")


def legend(run: BusyRun) -> str:
    return (
        f"Each library runs in two processes, one with one thread and one with {run.threads}. The processes take "
        "turns, each one second long: first alone, then beside other programs that never pause. There is one such "
        "program fewer than cores, and then one for each core. Every call is timed, in µs. 99 % is the 99th "
        f"percentile, worst is the mean of the slowest turn, and 1: and {run.threads}: are the numbers of threads. "
        f"fastsoftmax is timed for {run.seconds:g} seconds with each number of threads. Other libraries are timed for "
        f"{run.seconds * OTHERS_SHARE:g} seconds, at least two turns."
    )


def tables(run: BusyRun, plain: bool = False) -> Iterator[tuple[str, str, Table]]:
    """Yield (heading, what the table shows, table)."""
    if run.beside:
        yield "Beside processes that spin", legend(run), beside(run, plain)
    if run.together:
        yield "Two processes side by side", TOGETHER, together(run, plain)
    if run.gains:
        yield f"Gain of {threads(run.threads)}", GAIN, gains(run, plain)
    yield "Marks of threads that are missed", marks.BUSY_LEGEND, missed(run, plain)


TOGETHER = (
    "Two processes of fastsoftmax compute the same at the same time, each with its default number of threads. The "
    "table has how many times as long they take as one process that does the work of both, and the time of that "
    "process. A forked process has one thread, and joblib gives each of its processes a share of the cores."
)
GAIN = (
    "How many times as long a call of fastsoftmax takes with one thread (median, on an idle machine): for calls that "
    f"follow each other, and for calls that each come after {PAUSE_SECONDS * 1e3:g} ms of sleep."
)


def beside(run: BusyRun, plain: bool) -> Table:
    grid = _grid(plain, ["case", "contender", "spinning"])
    for number in (1, run.threads):
        for figure in ("median", "mean", "99 %", "worst"):
            grid.add_column(f"{number}: {figure}", justify="right", no_wrap=True)
    for figure in ("median", "mean", "99 %"):
        grid.add_column(f"{run.threads}/1: {figure}", justify="right", no_wrap=True)
    before = ("", "")
    for each in run.beside:
        this = (each.case.name, each.name)
        if not plain and before[0] and before != this:
            grid.add_section()
        cells = [*((("",) * 2) if not plain and before == this else this), str(each.spinning)]
        for figures in (each.one, each.several):
            cells += [short(getattr(figures, figure) * 1e6) for figure in (*FIGURES, "worst")]
        for figure in FIGURES:
            limit = marks.BESIDE[figure] if each.spinning else marks.ALONE
            ratio = each.ratio(figure)
            color = "red" if ratio > limit and each.name == OURS else ""
            cells.append(f"[{color}]{short(ratio)}[/]" if color and not plain else short(ratio))
        grid.add_row(*cells)
        before = this
    return grid


def together(run: BusyRun, plain: bool) -> Table:
    grid = _grid(plain, ["case"])
    names = list(dict.fromkeys(name for each in run.together for name in each.ratios))
    for heading in ("one process, ms", *names):
        grid.add_column(heading, justify="right", no_wrap=True)
    for each in run.together:
        ratios = (f"{each.ratios[name]:.2f}" if name in each.ratios else "–" for name in names)
        grid.add_row(each.case.name, short(each.seconds * 1e3), *ratios)
    return grid


def gains(run: BusyRun, plain: bool) -> Table:
    grid = _grid(plain, ["case"])
    for heading in ("elements", "gain", f"after {PAUSE_SECONDS * 1e3:g} ms"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for each in run.gains:
        grid.add_row(each.case.name, f"{each.case.elements:,}", f"{each.following:.2f}", f"{each.paused:.2f}")
    return grid


def missed(run: BusyRun, plain: bool) -> Table:
    grid = _grid(plain, ["case", "mark"])
    for heading in ("wanted", "found"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for case, mark, wanted, found in marks.missed_when_busy(run):
        grid.add_row(case, mark, f"{wanted:.2f}", f"{found:.2f}")
    return grid


def absences(run: BusyRun) -> list[str]:
    return [
        f"{name} is absent from {', '.join(cases)}: {reason}."
        for name, reasons in run.absent.items()
        for reason in dict.fromkeys(reasons.values())
        if (cases := [case for case, why in reasons.items() if why == reason])
    ]


def _grid(plain: bool, headings: list[str]) -> Table:
    grid = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD, pad_edge=plain, header_style="bold")
    for heading in headings:
        grid.add_column(heading, no_wrap=True)
    return grid


def write_json(path: Path, run: BusyRun) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"busy": asdict(run)}, indent=2) + "\n")


def write_markdown(path: Path, run: BusyRun, picture: Path) -> None:
    parts = [
        f"{machine.paragraph(run.about)} Written by `python -m bench --busy`.",
    ]
    if run.beside:
        link = Path(os.path.relpath(picture.with_suffix(".png"), path.parent)).as_posix()
        parts.append(f"![how many times as long calls take with several threads, by contender, case and load]({link})")
    for heading, what, grid in tables(run, plain=True):
        parts += [f"## {heading}", what, markdown(grid) if grid.rows else "None."]
        if heading == "Beside processes that spin":
            parts += ["\n".join(f"- {line}" for line in absences(run))]
    write_part(path, BUSY, "\n\n".join(filter(None, parts)))
