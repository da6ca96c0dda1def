"""Measures all cases with one number of threads."""

import sys
from collections.abc import Sequence
from typing import TextIO

import fastsoftmax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import machine
from .cases import Case
from .contenders import ONE_THREAD, Contender, contenders, ours
from .limits import LIMITS, Exp
from .race import CaseResult, Run, race
from .workers import started


def measure(
    selected: Sequence[tuple[str, Case]], threads: int, peers: bool, seconds: float, builds: Sequence[Contender] = ()
) -> Run:
    racers = contenders(peers, builds)
    limits: list[Contender] = [limit() for limit in LIMITS]
    one: list[Contender] = [ours("fastsoftmax" + ONE_THREAD), Exp("exp" + ONE_THREAD)] if threads > 1 else []
    limits, one = ([each for each in some if each.available()] for some in (limits, one))
    with fastsoftmax.num_threads(threads):
        about = machine.describe(racers)
    console = console_of(sys.stdout)
    console.print(machine.sentence(about), machine.versions(about), sep="\n", style="dim", highlight=False)

    results: list[CaseResult] = []
    racing = started(*((each, threads) for each in [*racers, *limits]), *((each, 1) for each in one))
    with racing as workers, bar(console) as progress:
        task = progress.add_task("", total=len(selected))
        for group, case in selected:
            progress.update(task, description=case.name, refresh=True)
            results.append(race(group, case, workers[: len(racers)], workers[len(racers) :], seconds))
            progress.advance(task)
    return Run(threads, about, results)


def console_of(stream: TextIO) -> Console:
    """A console that folds wide tables only on a terminal."""
    return Console(file=stream) if stream.isatty() else Console(file=stream, width=250)


def bar(console: Console) -> Progress:
    """A progress bar that is redrawn only on request, so that no thread of it wakes up while something is timed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, auto_refresh=False)
