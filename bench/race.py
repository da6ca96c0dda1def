"""The measurement: first every result is compared, then all contenders are timed in turn, round after round."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from statistics import median
from typing import Any

import numpy as np

from .cases import Array, Case, Workload
from .contenders import Call, Contender, Unsupported

SAMPLE_SECONDS = 2e-4  # a sample repeats its call until it lasts this long
LEAST_ROUNDS = 3  # unless one call is so slow that nobody waits for another
SLOW_SECONDS = 0.5
MOST_ROUNDS = 51
# Threads of others may spin for a while after their turn, waiting for more work.
PAUSE_SECONDS = 2e-3

# How far two results may lie apart, relative to each and to the largest (or 1): some sum millions of classes in float32
# one after another and lose three digits, and those that sum in half precision several per cent.
TOLERANCES = {"float64": (1e-9, 1e-12), "float32": (2e-3, 2e-5), "float16": (5e-2, 2e-2), "bfloat16": (1e-1, 1e-1)}


OURS = "fastsoftmax"


@dataclass
class Timing:
    """Seconds per call: the samples of one contender in one case."""

    repeats: int
    samples: list[float] = field(default_factory=list)
    wall: float = 0.0  # of all samples
    cpu: float = 0.0  # of all threads, meanwhile

    @property
    def cores(self) -> float:
        """How many were busy on average."""
        return self.cpu / self.wall

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)


@dataclass
class CaseResult:
    group: str
    case: Case
    preallocated: bool
    timings: dict[str, Timing]  # by name, the limits among them
    absent: dict[str, str]  # who did not race, and why
    limits: tuple[str, ...]  # the names in `timings` of those that compute nothing, or another thing

    @property
    def rivals(self) -> list[str]:
        """From the fastest to the slowest."""
        names = [name for name in self.timings if name not in (OURS, *self.limits)]
        return sorted(names, key=lambda name: self.timings[name].median)

    @property
    def rank(self) -> int:
        """Of fastsoftmax, among all."""
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
    """All cases with one number of threads."""

    threads: int
    about: dict[str, Any]  # the machine
    results: list[CaseResult]


class Disagreement(Exception):
    """Results differ by more than rounding explains."""


def race(
    group: str, case: Case, contenders: Sequence[Contender], limits: Sequence[Contender], seconds: float
) -> CaseResult:
    """Compare, then time. `contenders` holds fastsoftmax and the reference, which have to agree."""
    work = Workload(case)
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    wanted: tuple[Array, ...] | None = None
    # The reference comes first, to be compared with; its arrays are copied, as `out` is everybody's.
    for contender in sorted([*contenders, *limits], key=lambda contender: contender.name != "reference"):
        work.renew()
        contender.turn()
        try:
            call = contender.prepare(work)
            if contender not in limits:
                got = contender.arrays(call())
                if wanted is None:
                    wanted = tuple(np.array(part) for part in got)
                else:
                    _compare(contender.name, got, wanted, case.dtype)
        except Unsupported as reason:
            absent[contender.name] = str(reason)
        except Disagreement as reason:
            if contender.name == OURS:
                raise
            absent[contender.name] = str(reason)
        except Exception as reason:
            if contender.name in (OURS, "reference"):
                raise
            absent[contender.name] = f"{contender.name} fails: {type(reason).__name__} {str(reason)[:120]!r}"
        else:
            calls[contender.name] = call
    wanted = None
    turns = {c.name: (c.turn, calls[c.name]) for c in [*contenders, *limits] if c.name in calls}
    names = tuple(limit.name for limit in limits)
    return CaseResult(group, case, work.preallocates, _time(turns, seconds), absent, names)


def _compare(name: str, got: tuple[Array, ...], wanted: tuple[Array, ...], dtype: str) -> None:
    relative, absolute = TOLERANCES[dtype]
    for part, right in zip(got, wanted, strict=False):
        if part.size != right.size:
            raise Disagreement(f"{name} returns shape {part.shape} where the reference has {right.shape}")
        largest = float(np.max(np.abs(right), initial=1))
        for a, b in _blocks(part.reshape(-1), right.reshape(-1)):
            wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
            if not np.allclose(wide_a, wide_b, relative, absolute * largest, equal_nan=True):
                worst = np.max(np.abs(wide_a - wide_b))
                raise Disagreement(f"{name} disagrees with the reference by up to {worst:.2g}")


def _blocks(a: Array, b: Array, size: int = 2**20) -> list[tuple[Array, Array]]:
    return [(a[start : start + size], b[start : start + size]) for start in range(0, a.size, size)]


def _time(turns: Mapping[str, tuple[Callable[[], None], Call]], seconds: float) -> dict[str, Timing]:
    """Rounds in which everyone has one turn, in changing order; who has used up its share sits out."""
    order = list(turns)
    share = seconds / len(order)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        timings = {}
        for name, (prepare, call) in turns.items():
            prepare()
            timings[name] = Timing(_repeats(call))
        for turn in range(MOST_ROUNDS):
            shuffle(order)
            running = [n for n in order if timings[n].wall < (SLOW_SECONDS if turn < LEAST_ROUNDS else share)]
            if OURS not in running:
                break
            for name in running:
                prepare, call = turns[name]
                prepare()
                time.sleep(PAUSE_SECONDS)
                _sample(call, timings[name])
    finally:
        if collecting:
            gc.enable()
    return timings


def _repeats(call: Call) -> int:
    repeats = 1
    while (lasted := _clock(call, repeats)) < SAMPLE_SECONDS:
        repeats = max(repeats + 1, int(repeats * min(10.0, 1.2 * SAMPLE_SECONDS / lasted)))
    return repeats


def _sample(call: Call, timing: Timing) -> None:
    if timing.repeats > 1:
        call()  # short ones find their arrays in the cache and their threads awake, as between one another
    cpu = time.process_time()
    lasted = _clock(call, timing.repeats)
    timing.cpu += time.process_time() - cpu
    timing.wall += lasted
    timing.samples.append(lasted / timing.repeats)


def _clock(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, repeats):
        call()
    return time.perf_counter() - start
