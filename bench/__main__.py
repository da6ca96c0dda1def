"""`python -m bench`: race fastsoftmax against its reference in NumPy, SciPy and, with --peers, other libraries."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import fastsoftmax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import cases, chart, machine, report
from .contenders import Contender, contenders
from .limits import LIMITS
from .race import CaseResult, Disagreement, race

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A table is as wide as it is: no terminal, no reason to fold it.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    selected = list(cases.select(options.case, options.quick))
    if options.list:
        for _, case in selected:
            console.print(case.name, highlight=False)
        return 0
    if not selected:
        console.print(f"no case matches {options.case!r}; --list shows them", style="red")
        return 2

    limit_blas(options.threads)
    racers = contenders(options.peers)
    limits = [limit() for limit in LIMITS]
    for contender in [*racers, *limits]:
        contender.start(options.threads)
    about = machine.describe([*racers, *limits])
    console.print(machine.sentence(about), machine.versions(about), sep="\n", style="dim", highlight=False)

    seconds = options.seconds or (0.8 if options.quick else 6.0)
    try:
        results = run(selected, racers, limits, seconds, console)
    except Disagreement as reason:
        console.print(f"wrong result: {reason}", style="bold red", highlight=False)
        return 1
    console.print(report.table(results))
    console.print(report.LEGEND, style="dim", highlight=False)
    for line in [*report.absences(results), *report.summary(results)]:
        console.print(line, highlight=False)

    written = chart.draw(options.chart, about, results)
    if options.json:
        report.write_json(options.json, about, results)
        written.append(options.json)
    if options.markdown:
        report.write_markdown(options.markdown, about, results)
        written.append(options.markdown)
    console.print("written:", ", ".join(map(str, written)), style="dim", highlight=False, soft_wrap=True)
    return 0


def run(
    selected: Sequence[tuple[str, cases.Case]],
    racers: Sequence[Contender],
    limits: Sequence[Contender],
    seconds: float,
    console: Console,
) -> list[CaseResult]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    # Redrawn between the cases only, so that no thread of the bar wakes up while one is timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(selected))
        for group, case in selected:
            progress.update(task, description=case.name, refresh=True)
            results.append(race(group, case, racers, limits, seconds))
            progress.advance(task)
    return results


def limit_blas(threads: int) -> None:
    """The matrix products of the vocabulary step use as many threads as everything else."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, user_api="blas")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case of each kind; ends within a minute")
    parser.add_argument(
        "--threads",
        type=int,
        default=fastsoftmax.get_num_threads(),
        metavar="N",
        help="threads for each contender that has them (default: as many as fastsoftmax takes, %(default)s)",
    )
    parser.add_argument("--case", metavar="PATTERN", help="only cases whose name holds PATTERN, or is it, with * and ?")
    parser.add_argument("--peers", action="store_true", help="race the other libraries that are installed, too")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each case (default 0.8 if quick, else 6)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the machine to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to FILE")
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        default=RESULTS / "bench",
        help="to FILE.png and FILE.svg (%(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="only print the names of the cases")
    return parser


if __name__ == "__main__":
    sys.exit(main())
