"""The measurement: first every result is compared, then all contenders are timed in turn, round after round."""

import gc
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from statistics import median

import numpy as np

from .cases import Array, Case, Workload
from .contenders import Call, Contender, Unsupported

SAMPLE_SECONDS = 2e-4  # a sample repeats its call until it lasts this long
LEAST_ROUNDS = 3
MOST_ROUNDS = 101

# How far two results may lie apart, relative to the larger one and absolutely: contenders lose some 90 ULP in float32,
# and those that sum in half precision several per cent.
TOLERANCES = {"float64": (1e-9, 1e-12), "float32": (2e-4, 2e-5), "float16": (5e-2, 2e-2), "bfloat16": (1e-1, 1e-1)}


@dataclass
class Timing:
    """Seconds per call: the samples of one contender in one case."""

    repeats: int
    samples: list[float] = field(default_factory=list)

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

    def ns(self, name: str) -> float:
        """Median nanoseconds per element."""
        return self.timings[name].median / self.case.elements * 1e9

    def gigabytes(self, name: str) -> float:
        """Bytes that must be moved, over the median, in GB/s."""
        return self.case.bytes_moved / self.timings[name].median / 1e9

    def ratio(self, name: str, to: str = "fastsoftmax") -> float:
        """How many times as long `name` takes as `to`."""
        return self.timings[name].median / self.timings[to].median


class Disagreement(Exception):
    """Results differ by more than rounding explains."""


def race(
    group: str, case: Case, contenders: Sequence[Contender], limits: Sequence[Contender], seconds: float
) -> CaseResult:
    """Compare, then time. `contenders` begins with fastsoftmax and the reference, which have to agree."""
    work = Workload(case)
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    wanted: tuple[Array, ...] | None = None
    # The reference comes first, to be compared with; its arrays are copied, as `out` is everybody's.
    for contender in sorted(contenders, key=lambda contender: contender.name != "reference"):
        try:
            call = contender.prepare(work)
            got = contender.arrays(call())
            if wanted is None:
                wanted = tuple(np.array(part) for part in got)
            else:
                _compare(contender.name, got, wanted, case.dtype)
        except Unsupported as reason:
            absent[contender.name] = str(reason)
        except Disagreement as reason:
            if contender.name == "fastsoftmax":
                raise
            absent[contender.name] = str(reason)
        else:
            calls[contender.name] = call
    wanted = None
    calls = {c.name: calls[c.name] for c in contenders if c.name in calls}
    calls |= {limit.name: limit.prepare(work) for limit in limits}
    return CaseResult(group, case, work.preallocates, _time(calls, seconds), absent)


def _compare(name: str, got: tuple[Array, ...], wanted: tuple[Array, ...], dtype: str) -> None:
    relative, absolute = TOLERANCES[dtype]
    for part, right in zip(got, wanted, strict=False):
        if part.size != right.size:
            raise Disagreement(f"{name} returns shape {part.shape} where the reference has {right.shape}")
        for a, b in _blocks(part.reshape(-1), right.reshape(-1)):
            wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
            if not np.allclose(wide_a, wide_b, relative, absolute, equal_nan=True):
                worst = np.max(np.abs(wide_a - wide_b))
                raise Disagreement(f"{name} disagrees with the reference by up to {worst:.2g}")


def _blocks(a: Array, b: Array, size: int = 2**20) -> list[tuple[Array, Array]]:
    return [(a[start : start + size], b[start : start + size]) for start in range(0, a.size, size)]


def _time(calls: Mapping[str, Call], seconds: float) -> dict[str, Timing]:
    """Rounds in which everyone has one turn, in changing order; who has used up its share sits out."""
    order = list(calls)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        timings = {name: Timing(_repeats(call)) for name, call in calls.items()}
        spent = dict.fromkeys(order, 0.0)
        for turn in range(MOST_ROUNDS):
            shuffle(order)
            running = [n for n in order if turn < LEAST_ROUNDS or spent[n] < seconds / len(order)]
            if not running or "fastsoftmax" not in running:
                break
            for name in running:
                sample = _sample(calls[name], timings[name].repeats)
                timings[name].samples.append(sample)
                spent[name] += sample * timings[name].repeats
    finally:
        if collecting:
            gc.enable()
    return timings


def _repeats(call: Call) -> int:
    repeats = 1
    while (lasted := _sample(call, repeats) * repeats) < SAMPLE_SECONDS:
        repeats = max(repeats + 1, int(repeats * min(10.0, 1.2 * SAMPLE_SECONDS / lasted)))
    return repeats


def _sample(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, repeats):
        call()
    return (time.perf_counter() - start) / repeats
