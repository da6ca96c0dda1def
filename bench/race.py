"""The measurement: first every result is compared, then all contenders are timed in turn, round after round."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .contenders import Unsupported
from .workers import Disagreement, Station, Timing, Worker

LEAST_ROUNDS = 3  # unless a contender has used up SLOW_SECONDS before
SLOW_SECONDS = 0.5
MOST_ROUNDS = 51

# Each contender has arrays of its own. If all of them together exceed this, one contender is timed after the other.
MOST_BYTES = 2 * 2**30

OURS = "fastsoftmax"


@dataclass
class CaseResult:
    group: str
    case: Case
    preallocated: bool
    timings: dict[str, Timing]  # by name, the limits among them
    absent: dict[str, str]  # contenders that did not race, and why
    limits: tuple[str, ...]  # the names in `timings` that are no rivals: limits, and runs with one thread

    @property
    def rivals(self) -> list[str]:
        """The other contenders, from the fastest to the slowest."""
        names = [name for name in self.timings if name not in (OURS, *self.limits)]
        return sorted(names, key=lambda name: self.timings[name].median)

    @property
    def rank(self) -> int:
        """The place of fastsoftmax among all contenders."""
        return 1 + sum(self.ratio(name) < 1 for name in self.rivals)

    def ns(self, name: str) -> float:
        """Median nanoseconds per element."""
        return self.timings[name].median / self.case.elements * 1e9

    def gigabytes(self, name: str) -> float:
        """Bytes that must be moved, over the median, in GB/s."""
        return self.case.bytes_moved / self.timings[name].median / 1e9

    def ratio(self, name: str, to: str = OURS) -> float:
        """How many times as long `name` takes as `to`."""
        return self.timings[name].median / self.timings[to].median


@dataclass
class Run:
    """The results of all cases with one number of threads."""

    threads: int
    about: dict[str, Any]  # the machine
    results: list[CaseResult]


def race(group: str, case: Case, racers: Sequence[Worker], limits: Sequence[Worker], seconds: float) -> CaseResult:
    """Compare the results, then time the calls. `racers` has fastsoftmax and the reference, which have to agree."""
    workers = [*racers, *limits]
    together = case.bytes_moved * len(workers) <= MOST_BYTES
    timings: dict[str, Timing] = {}
    absent: dict[str, str] = {}
    preallocated = False
    for some in [workers] if together else [[worker] for worker in workers]:
        ready = []
        for worker, prepared in [(each, each.submit(Station.prepare, case, each in racers)) for each in some]:
            try:
                preallocated = prepared.result()
            except Unsupported as reason:
                absent[worker.name] = str(reason)
            except Disagreement as reason:
                if worker.name == OURS:
                    raise
                absent[worker.name] = str(reason)
            except Exception as reason:
                if worker.name in (OURS, "reference"):
                    raise
                absent[worker.name] = f"{worker.name} fails: {type(reason).__name__} {str(reason)[:120]!r}"
            else:
                ready.append(worker)
        _time(ready, seconds / len(workers))
        for worker in ready:
            timings[worker.name] = worker.do(Station.result)
            worker.do(Station.release)
    return CaseResult(group, case, preallocated, timings, absent, tuple(limit.name for limit in limits))


def _time(workers: Sequence[Worker], share: float) -> None:
    """Sample in rounds, in which every worker has a turn in random order until it has used up its share of seconds."""
    order = list(workers)
    shuffle = random.Random(0).shuffle
    for worker in order:
        worker.do(Station.calibrate)
    spent = dict.fromkeys(order, 0.0)
    for turn in range(MOST_ROUNDS):
        shuffle(order)
        for worker in order:
            if spent[worker] < (SLOW_SECONDS if turn < LEAST_ROUNDS else share):
                spent[worker] = worker.do(Station.turn)
