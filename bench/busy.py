"""Measures whether threads ever hurt: beside processes that want the same cores, beside other processes of fastsoftmax,
and in calls that are hardly worth sharing. Two processes, with one thread and with several, take turns of about a
second, so that both meet the same moods of the system's scheduler."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain
from multiprocessing import Pool, get_start_method
from statistics import median
from typing import Any

import fastsoftmax
import numpy as np

from . import machine
from .cases import BUSY, GAINS, Array, Case
from .contenders import Contender, Unsupported, ours
from .measure import bar, console_of
from .peers import Jax, LiteRt, Numba, OnnxRuntime, Torch
from .race import OURS
from .workers import Disagreement, Station, Worker, started

TURN_SECONDS = 1.0
OTHERS_SHARE = 0.1  # what other libraries get of fastsoftmax's time

# Two processes of fastsoftmax: how often they are timed, and for how long.
ROUNDS = 5
TASK_SECONDS = 0.4

GAIN_SECONDS = 0.4
PAUSE_SECONDS = 4e-3

SPIN = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


@dataclass
class Figures:
    """The times of all calls of one process, in seconds."""

    calls: int
    median: float
    mean: float
    percentile: float  # the 99th
    worst: float  # the mean of the slowest turn, of about a second

    @classmethod
    def of(cls, turns: Sequence[Array]) -> "Figures":
        every = np.concatenate(turns)
        worst = max(float(turn.mean()) for turn in turns)
        return cls(every.size, float(np.median(every)), float(every.mean()), float(np.percentile(every, 99)), worst)


@dataclass
class Beside:
    """A contender in one case, while `spinning` other processes never rest."""

    group: str
    case: Case
    spinning: int
    name: str
    one: Figures
    several: Figures

    def ratio(self, figure: str) -> float:
        """How many times as long it takes with several threads."""
        several, one = (float(getattr(figures, figure)) for figures in (self.several, self.one))
        return several / one


@dataclass
class Together:
    """Two processes that compute the same side by side, compared with one that does the work of both."""

    case: Case
    calls: int  # of each of them
    seconds: float  # of the one process
    ratios: dict[str, float]  # of their time to that of the one, by how the two were started


@dataclass
class Gain:
    """How many times as long one thread takes as several, in calls that follow each other and in calls after pauses."""

    case: Case
    following: float
    paused: float


@dataclass
class BusyRun:
    threads: int
    seconds: float
    about: dict[str, Any]
    beside: list[Beside]
    absent: dict[str, dict[str, str]]  # reasons, by the names of contender and case
    together: list[Together]
    gains: list[Gain]


def measure(asked: Sequence[tuple[str, Case]], threads: int, seconds: float) -> BusyRun:
    selected = [(group, case) for group, case in asked if group in BUSY]
    sizes = [case for group, case in asked if group in GAINS]
    others: list[Contender] = [Torch(), OnnxRuntime(), LiteRt(), Jax(), Numba()]
    racers = [ours(), *(other for other in others if other.available())]
    with fastsoftmax.num_threads(threads):
        about = machine.describe(racers)
    console = console_of(sys.stdout)
    console.print(machine.sentence(about), machine.versions(about), sep="\n", style="dim", highlight=False)
    run = BusyRun(threads, seconds, about, [], {racer.name: {} for racer in racers}, [], [])
    with bar(console) as progress:
        task = progress.add_task("", total=len(selected) * (len(racers) + 2) + len(sizes))

        def begin(what: str) -> None:
            progress.update(task, description=what, refresh=True)
            progress.advance(task)

        for racer in racers:
            # Only these two processes run, so that no other one wants a core.
            with started((racer, 1), (racer, threads)) as pair:
                for group, case in selected:
                    begin(f"{racer.name}: {case.name}")
                    try:
                        for worker in pair:
                            worker.do(Station.prepare, case, True)
                    except Unsupported as reason:
                        run.absent[racer.name][case.name] = str(reason)
                        continue
                    except Disagreement as reason:
                        if racer.name == OURS:
                            raise
                        run.absent[racer.name][case.name] = str(reason)
                        continue
                    run.beside += beside(group, case, pair, seconds * (1 if racer.name == OURS else OTHERS_SHARE))
        with started((ours(), threads), (ours(), threads)) as pair:
            for _, case in selected:
                begin(f"two processes: {case.name}")
                run.together.append(together(case, pair))
        for each in run.together:
            begin(f"two processes of a pool: {each.case.name}")
            each.ratios |= of_pools(each)
        with started((ours(), 1), (ours(), threads)) as pair:
            for case in sizes:
                begin(f"gain: {case.name}")
                run.gains.append(gain(case, pair))
    order = [case for _, case in selected]
    run.beside.sort(key=lambda each: order.index(each.case))
    return run


def loads() -> list[int]:
    """The numbers of processes that spin: none, one fewer than there are cores, as many as there are."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return sorted({0, cores - 1, cores})


def beside(group: str, case: Case, pair: Sequence[Worker], seconds: float) -> Iterator[Beside]:
    for load in loads():
        with spinning(load):
            one, several = (Figures.of(turns) for turns in take_turns(pair, seconds, TURN_SECONDS))
        yield Beside(group, case, load, pair[0].name, one, several)


def take_turns(pair: Sequence[Worker], seconds: float, turn: float, pause: float = 0.0) -> list[list[Array]]:
    """The seconds of each call, by worker and turn."""
    turns: list[list[Array]] = [[] for _ in pair]
    for _ in range(max(2, round(seconds / turn))):
        for worker, of_worker in zip(pair, turns, strict=True):
            of_worker.append(worker.do(Station.calls, turn, pause))
    return turns


@contextmanager
def spinning(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` other processes that never rest. They end with this block and with this process, however it ends."""
    processes = []
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())], stdout=subprocess.PIPE)
            stack.enter_context(process)  # leaving the stack waits for its end
            stack.callback(process.kill)
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("a spinning process did not start")
            processes.append(process)
        yield processes


def together(case: Case, pair: Sequence[Worker]) -> Together:
    first = pair[0]
    for worker in pair:
        worker.do(Station.prepare, case, False)
    calls = max(1, round(TASK_SECONDS / float(np.median(first.do(Station.calls, TASK_SECONDS / 2, 0.0)))))

    def side_by_side() -> None:
        for running in [worker.submit(Station.repeat, calls) for worker in pair]:
            running.result()

    rounds = [(_clock(lambda: first.do(Station.repeat, 2 * calls)), _clock(side_by_side)) for _ in range(ROUNDS)]
    after, beside = (median(seconds) for seconds in zip(*rounds, strict=True))
    for worker in pair:
        worker.do(Station.release)
    return Together(case, calls, after, {"two processes": beside / after})


def of_pools(alone: Together) -> dict[str, float]:
    """The ratios of `Together` for two processes that multiprocessing or joblib starts."""
    tasks = [(alone.case, alone.calls)] * 2
    with Pool(2) as pool:
        seconds = {f"multiprocessing, {get_start_method()}": _of_tasks(lambda: pool.starmap(_compute, tasks, 1))}
    if find_spec("joblib") is not None:
        import joblib

        with joblib.Parallel(n_jobs=2, batch_size=1) as parallel:
            seconds["joblib"] = _of_tasks(lambda: parallel([joblib.delayed(_compute)(*task) for task in tasks]))
    return {name: lasted / alone.seconds for name, lasted in seconds.items()}


def _of_tasks(run: Callable[[], Any]) -> float:
    """The median seconds of `run`, after a first run in which the processes prepare the case."""
    run()
    return median(_clock(run) for _ in range(ROUNDS))


def _clock(task: Callable[[], Any]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def _compute(case: Case, calls: int) -> None:
    _prepared(case).repeat(calls)


@cache
def _prepared(case: Case) -> Station:
    """The station of a pool's process, with the number of threads that it has from the start."""
    station = Station(ours(), fastsoftmax.get_num_threads())
    station.prepare(case, False)
    return station


def gain(case: Case, pair: Sequence[Worker]) -> Gain:
    for worker in pair:
        worker.do(Station.prepare, case, False)
    gains = []
    for pause in (0.0, PAUSE_SECONDS):
        turns = take_turns(pair, GAIN_SECONDS, GAIN_SECONDS / 4, pause)
        one, several = (float(np.median(list(chain(*of_worker)))) for of_worker in turns)
        gains.append(one / several)
    return Gain(case, *gains)
