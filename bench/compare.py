"""`python -m bench --compare OLD.json NEW.json`: what got faster or slower from one run to the next."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from .race import OURS

LEAST_NOISE = 1.03  # two runs of the same code differ by about this factor in their quietest cases


@dataclass(frozen=True)
class Change:
    """A case in both runs: seconds of the median call and of the fastest one."""

    name: str
    threads: int
    old: tuple[float, float]
    new: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times as long the new run takes, by the medians."""
        return self.new[0] / self.old[0]

    @property
    def noise(self) -> float:
        """How far the median lies above the fastest call, in the noisier of the two runs."""
        return max(LEAST_NOISE, *(median / best for median, best in (self.old, self.new)))

    @property
    def verdict(self) -> str:
        if self.ratio > self.noise:
            return "slower"
        return "faster" if 1 / self.ratio > self.noise else ""


def changes(old: Path, new: Path, contender: str = OURS) -> Iterator[Change]:
    """The cases that both files have, in the order of the new one."""
    before, after = (_timings(path, contender) for path in (old, new))
    for key, timing in after.items():
        if key in before:
            yield Change(*key, before[key], timing)


def _timings(path: Path, contender: str) -> dict[tuple[str, int], tuple[float, float]]:
    """(median, best) by case and number of threads."""
    return {
        (case["name"], run["threads"]): (case["seconds"][contender]["median"], case["seconds"][contender]["best"])
        for run in json.loads(path.read_text())["runs"]
        for case in run["cases"]
        if contender in case["seconds"]
    }


def table(old: Path, new: Path) -> Table:
    """All changes, from the case that got slower most to the one that got faster most."""
    grid = Table("case", box=box.SIMPLE_HEAD, title=f"{new.name} beside {old.name}")
    for heading in ("threads", "old µs", "new µs", "new / old", "noise", ""):
        grid.add_column(heading, justify="right")
    for change in sorted(changes(old, new), key=lambda change: -change.ratio):
        micros = (f"{seconds[0] * 1e6:.4g}" for seconds in (change.old, change.new))
        style = {"slower": "red", "faster": "green"}.get(change.verdict)
        numbers = (f"{change.ratio:.2f}", f"{change.noise:.2f}", change.verdict)
        grid.add_row(change.name, str(change.threads), *micros, *numbers, style=style)
    return grid
