"""A process for each contender: in a common one, the threads of the others' pools would spin while they wait."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, TypeVarTuple, Unpack

import numpy as np

from .cases import TOP_K, TOP_P, Array, Case, Workload
from .contenders import Call, Contender, definition

SAMPLE_SECONDS = 2e-4  # a sample repeats its call until it lasts this long

# Calls for this long before a sample bring arrays into the cache and wake the threads, as when many calls follow each
# other. Threads of some libraries, ours among them, stay awake only then.
WARM_SECONDS = 1e-3

# After a call, other threads of the process may spin for a while: `rest` looks this often whether they do.
LOOK_SECONDS = 2e-3
MOST_LOOKS = 50

# How far two results may be apart, relative to each number and to the largest (or 1). Some libraries sum millions of
# classes in float32 one after another and lose three digits; those that sum in half precision lose several per cent.
TOLERANCES = {"float64": (1e-9, 1e-12), "float32": (2e-3, 2e-5), "float16": (5e-2, 2e-2), "bfloat16": (1e-1, 1e-1)}

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Disagreement(Exception):
    """Results differ by more than rounding explains."""


@dataclass
class Timing:
    """Seconds per call: the samples of one contender in one case."""

    repeats: int
    samples: list[float] = field(default_factory=list)
    wall: float = 0.0  # of all turns, with the calls that precede a sample
    cpu: float = 0.0  # of all threads in that time

    @property
    def cores(self) -> float:
        """How many cores were busy on average."""
        return self.cpu / self.wall

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)


class Station:
    """A contender and the case that it computes, in the process of the contender."""

    call: Call
    timing: Timing

    def __init__(self, contender: Contender, threads: int) -> None:
        limit_blas(threads)
        contender.start(threads)
        self.contender = contender

    def prepare(self, case: Case, compare: bool) -> bool:
        """Make the arrays and the call and, if `compare`, compare its result with the reference's. Returns whether
        contenders that can write to a given array do so."""
        self.release()
        self.work = Workload(case)
        self.call = self.contender.prepare(self.work)
        if compare:
            # Copied, because the reference may write to the same array.
            got = tuple(np.array(part) for part in self.contender.arrays(self.call()))
            self.work.renew()
            if case.draws:
                _check_draws(self.contender.name, got[0], self.work)
                return self.work.preallocates
            _compare(self.contender.name, got, _right(self.work), case.dtype)
        return self.work.preallocates

    def calibrate(self) -> None:
        self.timing = Timing(_repeats(self.call))
        rest()

    def turn(self) -> float:
        """Take one sample. Returns the seconds spent so far."""
        timing = self.timing
        with no_collection():
            start, cpu = time.perf_counter(), time.process_time()
            self.warm()
            timing.samples.append(_clock(self.call, timing.repeats) / timing.repeats)
            timing.wall += time.perf_counter() - start
            timing.cpu += time.process_time() - cpu
        rest()
        return timing.wall

    def warm(self) -> None:
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_SECONDS:
            self.call()

    def release(self) -> None:
        """Give back the memory of the case."""
        for name in ("call", "work"):
            self.__dict__.pop(name, None)
        gc.collect()

    def result(self) -> Timing:
        return self.timing

    def calls(self, seconds: float, pause: float) -> Array:
        """Call again and again for `seconds`, after a pause each time. Returns the seconds of each call."""
        durations: list[float] = []
        with no_collection():
            self.warm()
            begin = end = time.perf_counter()
            while not durations or end - begin < seconds:
                if pause:
                    time.sleep(pause)
                start = time.perf_counter()
                self.call()
                end = time.perf_counter()
                durations.append(end - start)
        rest()
        return np.array(durations)

    def repeat(self, count: int) -> None:
        _clock(self.call, count)


class Worker:
    """The process of a contender. It does one thing at a time and sleeps in between."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.name = contender.name
        # A new process, because many libraries accept a number of threads only once.
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _start, (contender, threads))

    def submit(self, task: Callable[[Station, Unpack[Arguments]], Result], *arguments: *Arguments) -> Future[Result]:
        try:
            return self._process.submit(_do, task, *arguments)
        except BrokenProcessPool as reason:  # it ended earlier: the result raises this, as if it ended now
            broken: Future[Result] = Future()
            broken.set_exception(reason)
            return broken

    def do(self, task: Callable[[Station, Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
        return self.submit(task, *arguments).result()

    def stop(self) -> None:
        self._process.shutdown()


@contextmanager
def started(*contenders: tuple[Contender, int]) -> Iterator[list[Worker]]:
    """A worker for each contender, with its number of threads."""
    workers: list[Worker] = []
    try:
        begun = []
        for contender, threads in contenders:
            workers.append(Worker(contender, threads))
            with contender.found():
                begun.append(workers[-1].submit(Station.release))
        for awaited in begun:
            awaited.result()
        yield workers
    finally:
        for worker in workers:
            worker.stop()


_station: Station


def _start(contender: Contender, threads: int) -> None:
    global _station
    _station = Station(contender, threads)


def _do(task: Callable[..., Any], *arguments: Any) -> Any:
    return task(_station, *arguments)


def limit_blas(threads: int) -> None:
    """Let the matrix products of the vocabulary step use as many threads as everything else."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, user_api="blas")


def rest() -> None:
    """Wait until the other threads of this process sleep, so that the next one has the machine to itself."""
    for _ in range(MOST_LOOKS):
        time.sleep(LOOK_SECONDS)
        if not any(map(_runs, Path("/proc/self/task").glob("*/stat"))):  # none without /proc; CPU times would tell late
            return


def _runs(stat: Path) -> bool:
    """Whether the thread runs or waits for a processor, and is not the calling one."""
    if stat.parent.name == str(threading.get_native_id()):
        return False
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "R"
    except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
        return False


@contextmanager
def no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _right(work: Workload) -> tuple[Array, ...]:
    reference = definition()
    return reference.arrays(reference.prepare(work)())


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


def _check_draws(name: str, drawn: Array, work: Workload) -> None:
    """Check that truncation leaves each class drawn. Among equal scores it may leave any."""
    case = work.case
    rows = np.moveaxis(work.x, case.axis, -1).reshape(-1, case.classes).astype(np.float64)
    if drawn.size != len(rows) or drawn.min() < 0 or drawn.max() >= case.classes:
        raise Disagreement(f"{name} does not draw one class of each slice")
    for row, c in zip(rows, drawn.reshape(-1), strict=True):
        larger = row[row > row[c]]
        if case.operation == "sample_top_k" and larger.size >= TOP_K:
            raise Disagreement(f"{name} draws a class of rank {larger.size}")
        if case.operation == "sample_top_p":
            part = np.exp(larger - row.max()).sum() / np.exp(row - row.max()).sum()
            if part > TOP_P + 1e-3:
                raise Disagreement(f"{name} draws a class below {part:.4f} of the probability")


def _blocks(a: Array, b: Array, size: int = 2**20) -> list[tuple[Array, Array]]:
    return [(a[start : start + size], b[start : start + size]) for start in range(0, a.size, size)]


def _repeats(call: Call) -> int:
    repeats = 1
    while (lasted := _clock(call, repeats)) < SAMPLE_SECONDS:
        repeats = max(repeats + 1, int(repeats * min(10.0, 1.2 * SAMPLE_SECONDS / lasted)))
    return repeats


def _clock(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, repeats):
        call()
    return time.perf_counter() - start
