"""Checks that many calls of every public function, also calls that raise, do not let the memory grow.

`python soak.py --calls 1000000` prints for each function how long its calls took, and the resident memory and the
number of Python's memory blocks before and after. It fails if they grew.
"""

import argparse
import gc
import mmap
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import fastsoftmax as fs
import numpy as np
from arrays import FLOATING, LAYOUTS, Inputs
from fastsoftmax import _core

Calls = list[Callable[[], Any]]

# Python's own caches of small objects fill once, by some 250 blocks, in any call; a leak recurs in each round.
ROUNDS = 4

# Resident memory may grow by this many bytes, because the allocator's free memory is never scattered in quite the same
# way. A kind of call that leaks an array of a few numbers each time leaks as much in a million calls.
SLACK = 2**20

HUGE = np.broadcast_to(np.float32(1), (2**50, 4))  # no memory for a result
LARGE = Inputs.normal((200, 200), np.float32)  # wakes threads


def some_inputs() -> list[Inputs]:
    plain = [Inputs.normal(shape, np.float32) for shape in [(10,), (2, 3, 4), (0, 3)]]
    plain += [Inputs.normal((3, 5), dtype) for dtype in FLOATING]
    return plain + [Inputs.normal((20, 40), np.float32).map(LAYOUTS[name]) for name in ("strided", "swapped", "field")]


def transforms(f: Any) -> Calls:
    calls: Calls = []
    for a in some_inputs():
        out = np.empty(a.x.shape, a.dy.dtype.newbyteorder("="))
        calls += [
            lambda x=a.x: f(x),
            lambda x=a.x: f(x, None, temperature=2),
            lambda a=a: f(a.x, 0, where=a.where),
            lambda x=a.x, out=out: f(x, out=out),
            lambda out=out: f(out, out=out),
            lambda out=out: f(out, out=out[..., ::-1]),
            lambda x=a.x: f(x, x.ndim),
            lambda a=a: f(a.x, where=a.x),
            lambda x=a.x: f(x, temperature=-1),
            lambda x=a.x: f(x, out=x[..., :1]),
        ]
    x = np.ones(3)
    calls += [lambda: f([1.0, 2.0]), lambda: f(x + 0j), lambda: f(x, dtype=np.float32)]
    return [*calls, lambda: f(LARGE.x), lambda: f(HUGE)]


def gradients(f: Any) -> Calls:
    calls: Calls = []
    for a in some_inputs():
        out = np.empty(a.x.shape, a.dy.dtype.newbyteorder("="))
        calls += [
            lambda a=a: f(a.probabilities, a.dy),
            lambda a=a: f(a.probabilities, a.dy, 0, temperature=2, where=a.where),
            lambda a=a, out=out: f(a.probabilities, a.dy, out=out),
            lambda a=a: f(a.probabilities, a.dy[..., :1]),
            lambda a=a: f(a.probabilities, a.dy, a.x.ndim),
            lambda a=a: f(a.probabilities, a.dy, out=a.where),
        ]
    return [*calls, lambda: f(LARGE.probabilities, LARGE.dy), lambda: f(HUGE, HUGE)]


def reductions() -> Calls:
    f = fs.logsumexp
    calls: Calls = []
    for a in some_inputs():
        out = np.empty(a.x.shape[:-1], a.dy.dtype.newbyteorder("="))
        calls += [
            lambda x=a.x: f(x),
            lambda x=a.x: f(x, 0, keepdims=True),
            lambda a=a: f(a.x, -1, b=a.b, return_sign=True),
            lambda a=a: f(a.x, -1, where=a.where, return_sign=True),
            lambda x=a.x, out=out: f(x, -1, out=out),
            lambda x=a.x: f(x, x.ndim),
            lambda x=a.x: f(x, b=np.ones(17)),
            lambda x=a.x: f(x, -1, out=x),
        ]
    return [*calls, lambda: f(LARGE.x), lambda: f(HUGE, -1)]


def entropies() -> Calls:
    f = fs.entropy
    calls: Calls = []
    for a in some_inputs():
        out = np.empty(a.x.shape[:-1], a.dy.dtype.newbyteorder("="))
        calls += [
            lambda x=a.x: f(x),
            lambda x=a.x: f(x, None, temperature=2),
            lambda a=a: f(a.x, 0, where=a.where, keepdims=True),
            lambda x=a.x, out=out: f(x, out=out),
            lambda x=a.x: f(x, x.ndim),
            lambda a=a: f(a.x, where=a.x),
            lambda x=a.x: f(x, temperature=-1),
            lambda x=a.x: f(x, out=x),
        ]
    return [*calls, lambda: f(LARGE.x), lambda: f(HUGE)]


def picks_at() -> Calls:
    f = fs.log_softmax_at
    calls: Calls = []
    for a in some_inputs():
        out = np.empty(a.x.shape[:-1], a.dy.dtype.newbyteorder("="))
        calls += [
            lambda a=a: f(a.x, a.indices),
            lambda a=a: f(a.x, a.picks, temperature=2),
            lambda a=a: f(a.x, a.picks, 0, where=a.where),
            lambda a=a, out=out: f(a.x, a.indices, out=out),
            lambda a=a: f(a.x, a.indices + 1000),
            lambda a=a: f(a.x, a.picks[..., None]),
            lambda a=a: f(a.x, a.x),
            lambda a=a: f(a.x, a.indices, a.x.ndim),
            lambda a=a: f(a.x, a.indices, out=a.where),
        ]
    return [*calls, lambda: f(LARGE.x, LARGE.picks), lambda: f(HUGE, np.broadcast_to(0, HUGE.shape[:1]))]


def pieces() -> Calls:
    calls: Calls = []
    for a in some_inputs():
        total = fs.LogSumExp().update(a.x)
        out = np.empty(a.x.shape, a.dy.dtype.newbyteorder("="))
        calls += [
            lambda a=a: fs.LogSumExp().update(a.x).update(a.x, where=a.where).value(),
            lambda total=total: fs.LogSumExp.from_state(total.state).merge(total).value(keepdims=True),
            lambda total=total, x=a.x, out=out: total.softmax(x, out=out),
            lambda total=total, a=a: total.log_softmax(a.x, where=a.where, dtype=np.float64),
            lambda total=total, a=a: total.log_softmax_at(a.x, a.indices),
            lambda total=total, x=a.x: total.update(x[..., None]),
            lambda total=total, a=a: total.softmax(a.x, where=a.x),
            lambda total=total: total.merge(fs.LogSumExp(temperature=2)),
            lambda x=a.x: fs.LogSumExp.from_state(x),
        ]
    return [*calls, lambda: fs.LogSumExp().update(LARGE.x), lambda: fs.LogSumExp().update(HUGE)]


def largest() -> Calls:
    f = fs.log_softmax_top_k
    calls: Calls = []
    for a in some_inputs():
        calls += [
            lambda x=a.x: f(x, 1),
            lambda a=a: f(a.x, 2, where=a.where, temperature=2),
            lambda x=a.x: f(x, x.shape[0], 0),
            lambda x=a.x: f(x, 1000),
            lambda x=a.x: f(x, 1.5),
            lambda x=a.x: f(x, 1, x.ndim),
            lambda a=a: f(a.x, 1, where=a.x),
        ]
    return [*calls, lambda: f(LARGE.x, 100), lambda: f(HUGE, 2)]


def draws() -> Calls:
    f, rng = fs.sample, np.random.default_rng(0)
    calls: Calls = []
    for a in some_inputs():
        calls += [
            lambda x=a.x: f(x, rng),
            lambda x=a.x: f(x, rng, 0, size=3, temperature=2, top_k=5, top_p=0.9, min_p=0.01),
            lambda a=a: f(a.x, rng, where=a.where, top_p=0.5),
            lambda x=a.x: f(x, rng, x.ndim),
            lambda x=a.x: f(x, None),
            lambda x=a.x: f(x * np.nan, rng),
            lambda x=a.x: f(x, rng, top_k=0),
            lambda x=a.x: f(x, rng, size=-1),
        ]
    return [*calls, lambda: f(LARGE.x, rng), lambda: f(HUGE, rng, top_k=50)]


def losses(f: Any, into: bool = False) -> Calls:
    calls: Calls = []
    for a in some_inputs():
        upstream = {"upstream": a.upstream} if into else {}
        calls += [
            lambda a=a: f(a.x, a.indices),
            lambda a=a: f(a.x, a.indices, weight=a.weight, ignore_index=0, label_smoothing=0.1),
            lambda a=a, u=upstream: f(a.x, a.indices, reduction="none", temperature=2, **u),
            lambda a=a: f(a.x, a.probabilities, weight=a.weight),
            lambda a=a: f(a.x, a.indices + 1000),
            lambda a=a: f(a.x, a.indices, weight=-a.weight),
            lambda a=a: f(a.x, a.where),
            lambda a=a: f(a.x, a.indices, reduction="all"),
            lambda a=a: f(a.x, a.indices, a.x.ndim),
            lambda a=a: f(a.x, a.probabilities, ignore_index=0),
        ]
        if into:
            out = np.empty(a.x.shape, a.dy.dtype.newbyteorder("="))
            calls += [
                lambda a=a, out=out: f(a.x, a.indices, out=out),
                lambda a=a, out=out: f(out, a.indices, out=out),
                lambda a=a, out=out: f(a.x, a.indices, out=out[:0]),
            ]
    return [*calls, lambda: f(LARGE.x, LARGE.indices), lambda: f(HUGE, HUGE, reduction="none")]


def core() -> Calls:
    """Calls that the core itself refuses, after a valid one. Functions of the package never pass it such arguments."""
    x = np.ones(3)
    given = (x, None, x.dtype, (0,), 1.0, None)
    wrong = [(), (None, *given[1:]), (*given[:2], "f4", *given[3:]), (*given[:3], [0], *given[4:])]
    wrong += [(*given[:3], (0.5,), *given[4:]), (*given[:4], "hot", None), (*given[:5], "all")]
    return [
        lambda: _core.softmax(*given),
        *(lambda arguments=arguments: _core.softmax(*arguments) for arguments in wrong),
    ]


def runtime() -> Calls:
    return [
        fs.get_num_threads,
        lambda: fs.show_config(mode="dicts"),
        lambda: fs.show_config(mode="html"),
        lambda: fs.set_num_threads(2),
        lambda: fs.set_num_threads(0),
        lambda: fs.set_num_threads("many"),
        lambda: fs.num_threads(1).__enter__(),
    ]


def hessians() -> Calls:
    x, targets = np.ones((20, 30)), np.zeros(20, int)
    out = (np.empty_like(x), np.empty_like(x))
    return [
        lambda: fs.cross_entropy_with_grad_hess(x, targets),
        lambda: fs.cross_entropy_with_grad_hess(x, targets, reduction="none", label_smoothing=0.1, out=out),
        lambda: fs.cross_entropy_with_grad_hess(x, targets, out=(out[0], out[0])),
        lambda: fs.cross_entropy_with_grad_hess(x, targets, out=out[0]),  # type: ignore[call-overload]
    ]


def divergences() -> Calls:
    x, y = np.ones((20, 30)), np.zeros((20, 30))
    out = np.empty_like(x)
    return [
        lambda: fs.kl_divergence(x, y),
        lambda: fs.kl_divergence_with_grad(x, y, reduction="none", where=x > 0, out=out),
        lambda: fs.kl_divergence(x, y[0]),
        lambda: fs.kl_divergence_with_grad(x, y, upstream=np.ones(3)),
    ]


FUNCTIONS: dict[str, Callable[[], Calls]] = {
    "softmax": lambda: transforms(fs.softmax),
    "log_softmax": lambda: transforms(fs.log_softmax),
    "logsumexp": reductions,
    "entropy": entropies,
    "log_softmax_at": picks_at,
    "log_softmax_top_k": largest,
    "LogSumExp": pieces,
    "sample": draws,
    "softmax_grad": lambda: gradients(fs.softmax_grad),
    "log_softmax_grad": lambda: gradients(fs.log_softmax_grad),
    "cross_entropy": lambda: losses(fs.cross_entropy),
    "cross_entropy_grad": lambda: losses(fs.cross_entropy_grad, into=True),
    "cross_entropy_with_grad": lambda: losses(fs.cross_entropy_with_grad, into=True),
    "cross_entropy_with_grad_hess": hessians,
    "kl_divergence_with_grad": divergences,
    "the core's own refusals": core,
    "threads and show_config": runtime,
}


def resident() -> int:
    """The resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@dataclass
class Growth:
    kinds: int
    calls: int
    raised: int
    seconds: float
    resident: list[int]  # before the first round and after each
    blocks: list[int]

    @property
    def is_flat(self) -> bool:
        # Half of what one kind of call leaks in a round if it leaks a block each time.
        few = self.calls / ROUNDS / self.kinds / 2
        return self.resident[-1] - self.resident[0] <= SLACK and np.diff(self.blocks).min() <= few


def repeat(calls: Calls, count: int) -> int:
    """Make `count` calls, each kind in its turn; returns how many of them raised."""
    raised = 0
    for call in islice(cycle(calls), count):
        try:
            call()
        except (TypeError, ValueError, MemoryError):  # an AxisError is both a ValueError and an IndexError
            raised += 1
    return raised


def growth(calls: Calls, count: int) -> Growth:
    """Measure what `count` calls leave behind, in rounds, after enough calls to fill most caches."""
    repeat(calls, max(count // 10, 10_000))
    gc.collect()
    memory, blocks = [resident()], [sys.getallocatedblocks()]
    start = time.perf_counter()
    raised = 0
    for _ in range(ROUNDS):
        raised += repeat(calls, count // ROUNDS)
        gc.collect()
        memory.append(resident())
        blocks.append(sys.getallocatedblocks())
    return Growth(len(calls), count, raised, time.perf_counter() - start, memory, blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000_000, help="of each function (default: %(default)s)")
    count = parser.parse_args().calls
    failed = []
    growth(FUNCTIONS["softmax"](), 50_000)  # not counted: some 600 blocks that Python keeps from the first calls
    for name, calls in FUNCTIONS.items():
        g = growth(calls(), count)
        kib = [n / 1024 for n in g.resident]
        print(
            f"{name:<24}{g.calls:>9,} calls, {g.raised:,} raised, {g.seconds:.1f} s, "
            f"resident {kib[0]:,.0f} to {kib[-1]:,.0f} KiB, blocks {', '.join(f'{n:,}' for n in g.blocks)}",
            flush=True,
        )
        if not g.is_flat:
            failed.append(name)
    sys.exit(f"memory grew: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
