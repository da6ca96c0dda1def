"""`python -m bench`: race fastsoftmax against its reference in NumPy, SciPy and, with --peers, other libraries."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import fastsoftmax
from rich.console import Console

from . import busy, busy_report, cases, compare, marks, report
from .contenders import Build, contenders
from .measure import console_of, measure
from .race import OURS
from .workers import Disagreement

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = console_of(sys.stdout)
    if options.compare:
        console.print(compare.table(*options.compare))
        return 0
    if options.scale:
        return _scale(options, console)
    groups, quick_ones = (cases.BUSY | cases.GAINS, cases.BUSY_QUICK) if options.busy else (cases.GROUPS, cases.QUICK)
    selected = list(cases.select(options.case, options.quick, groups, quick_ones))
    if options.list:
        for _, case in selected:
            console.print(case.name, highlight=False)
        return 0
    if not selected:
        console.print(f"no case matches {options.case!r}; --list shows them", style="red")
        return 2
    names = [contender.name for contender in contenders(options.peers, options.build)]
    if len(set(names)) < len(names):  # results are kept by name
        console.print(f"two contenders have the same name: {', '.join(names)}", style="red", highlight=False)
        return 2

    try:
        written = (_busy if options.busy else _race)(options, selected, console)
    except Disagreement as reason:
        console.print(f"wrong result: {reason}", style="bold red", highlight=False)
        return 1
    console.print("written:", ", ".join(map(str, written)), style="dim", highlight=False, soft_wrap=True)
    return 0


def _race(options: argparse.Namespace, selected: Sequence[tuple[str, cases.Case]], console: Console) -> list[Path]:
    """Race the cases, print the tables and write the files. Returns the paths written."""
    from . import chart

    seconds = options.seconds or (0.6 if options.quick else 3.0)
    runs = []
    for threads in options.threads:
        run = measure(selected, threads, options.peers, seconds, options.build)
        console.print(report.table(run))
        console.print(report.LEGEND, style="dim", highlight=False)
        for line in [*report.remarks(run), *report.summary(run)]:
            console.print(line, highlight=False)
        runs.append(run)
    if options.peers:
        console.print(marks.table(runs))

    written = chart.draw(options.chart or RESULTS / "bench", runs)
    if options.json:
        report.write_json(options.json, runs)
        written.append(options.json)
    if options.markdown:
        report.write_markdown(options.markdown, runs)
        written.append(options.markdown)
    return written


def _busy(options: argparse.Namespace, selected: Sequence[tuple[str, cases.Case]], console: Console) -> list[Path]:
    """Like `_race`, for the cases beside other work."""
    from . import chart

    run = busy.measure(selected, max(options.threads), options.seconds or (2.0 if options.quick else 20.0))
    for heading, what, table in busy_report.tables(run):
        table.title = heading
        console.print(table)
        console.print(what, style="dim", highlight=False)
    for line in busy_report.absences(run):
        console.print(line, highlight=False)

    picture = options.chart or RESULTS / "busy"
    written = chart.draw_busy(picture, run) if run.beside else []
    if options.json:
        busy_report.write_json(options.json, run)
        written.append(options.json)
    if options.markdown:
        busy_report.write_markdown(options.markdown, run, picture)
        written.append(options.markdown)
    return written


def _scale(options: argparse.Namespace, console: Console) -> int:
    from . import scale

    sizes = [0.125] if options.quick else options.gigabytes
    try:
        results = scale.measure(sizes, scale.default_workers(), console)
    except Disagreement as reason:
        console.print(f"wrong result: {reason}", style="bold red", highlight=False)
        return 1
    for table in scale.tables(results):
        console.print(table)
    console.print(scale.WHAT, style="dim", highlight=False)
    if options.markdown:
        scale.write_markdown(options.markdown, results)
        console.print("written:", options.markdown, style="dim", highlight=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case of each kind; ends within a minute")
    parser.add_argument(
        "--threads",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[fastsoftmax.get_num_threads()],
        metavar="N[,N]",
        help="number of threads of every library; one table for each number (default: that of fastsoftmax)",
    )
    parser.add_argument(
        "--case", metavar="PATTERN", help="only cases whose name contains PATTERN, or matches it if it has * or ?"
    )
    parser.add_argument("--peers", action="store_true", help="race the other libraries that are installed, too")
    parser.add_argument(
        "--build",
        type=_build,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="race another build of fastsoftmax, too, as `pip install --no-deps --target FOLDER .` makes it; "
        "may be given several times, to race variants of a kernel",
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="no race: one thread against as many as --threads says, alone and beside processes that want the cores",
    )
    parser.add_argument(
        "--scale",
        action="store_true",
        help="no race: logits on disk through dask.distributed, with one worker and two; needs distributed and zarr",
    )
    parser.add_argument(
        "--gigabytes",
        type=lambda text: [float(number) for number in text.split(",")],
        default=[1.0, 2.0, 4.0, 8.0],
        metavar="N[,N]",
        help="with --scale: sizes of the logits; other libraries get only the smallest (default 1,2,4,8; quick: 0.125)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time for each case (default 3; quick: 0.6); with --busy, time for each number of threads and load, a "
        "tenth of it for other libraries (default 20; quick: 2)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the machine to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to FILE")
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        help="pictures, as PNG and SVG: all cases (FILE, FILE_2_threads, ...) and everyday calls (FILE_everyday); "
        f"default {RESULTS / 'bench'}, with --busy {RESULTS / 'busy'}",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("OLD", "NEW"),
        help="only print what got faster or slower between two files that --json wrote",
    )
    parser.add_argument("--list", action="store_true", help="only print the names of the cases")
    return parser


def _build(text: str) -> Build:
    name, _, folder = text.partition("=")
    if name in ("", OURS) or not Path(folder, "fastsoftmax").is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a new name, '=' and a folder that holds fastsoftmax")
    return Build(name, Path(folder))


if __name__ == "__main__":
    # SIGTERM ends the processes that were started, too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
