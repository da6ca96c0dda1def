"""All cases with one number of threads, in a process that has not yet set those of any library."""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import machine
from .cases import Case
from .contenders import ONE_THREAD, Contender, contenders, ours
from .limits import LIMITS, Exp
from .race import CaseResult, Run, race


def measure(selected: Sequence[tuple[str, Case]], threads: int, peers: bool, seconds: float) -> Run:
    limit_blas(threads)
    racers = contenders(peers)
    limits: list[Contender] = [limit() for limit in LIMITS]
    one: list[Contender] = [ours("fastsoftmax" + ONE_THREAD), Exp("exp" + ONE_THREAD)] if threads > 1 else []
    limits, one = ([each for each in some if each.available()] for some in (limits, one))
    for contender in one:
        contender.start(1)
    for contender in [*limits, *reversed(racers)]:  # fastsoftmax last: what is described has its number of threads
        contender.start(threads)
    about = machine.describe(racers)
    console = console_of(sys.stdout)
    console.print(machine.sentence(about), machine.versions(about), sep="\n", style="dim", highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[CaseResult] = []
    # Redrawn between the cases only, so that no thread of the bar wakes up while one is timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(selected))
        for group, case in selected:
            progress.update(task, description=case.name, refresh=True)
            results.append(race(group, case, racers, [*limits, *one], seconds))
            progress.advance(task)
    return Run(threads, about, results)


def limit_blas(threads: int) -> None:
    """The matrix products of the vocabulary step use as many threads as everything else."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, user_api="blas")


def console_of(stream: TextIO) -> Console:
    """A table is as wide as it is: no terminal, no reason to fold it."""
    return Console(file=stream) if stream.isatty() else Console(file=stream, width=250)
