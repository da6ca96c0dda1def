"""`python -m fastsoftmax` prints the configuration, `python -m fastsoftmax report` evaluates stored logits."""

import sys
from argparse import ArgumentParser

from . import _report
from ._runtime import show_config


def main() -> int:
    """Run the command and return the exit status."""
    parser = ArgumentParser(
        prog="python -m fastsoftmax", description="Without a command: version, compiler, SIMD targets, OpenMP, threads."
    )
    commands = parser.add_subparsers(dest="command", metavar="report")
    _report.add_arguments(commands.add_parser("report", help=_report.SUMMARY, description=_report.SUMMARY))
    arguments = parser.parse_args()
    if arguments.command is None:
        show_config()
        return 0
    return _report.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
