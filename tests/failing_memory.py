"""Calls that get no memory raise MemoryError and leave their inputs and `out` unchanged.

A program of its own, because its memory runs out: `python failing_memory.py KIND THREADS`. With KIND `blocks`, each
allocation of at least 512 bytes fails in turn, those for results and for kernels; with `objects`, each of any size.
Both need `failing_malloc.c` preloaded. With `exhausted`, the address space is limited, and all memory in it is taken.
"""

import ctypes
import mmap
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import count, product
from pathlib import Path
from typing import Any

import fastsoftmax as fs
import numpy as np
from arrays import (
    CALLS,
    DRAWS,
    FLOATING,
    IN_PLACE,
    INTO,
    LAYOUTS,
    REDUCED_INTO,
    TRANSFORMS,
    WIDER_INTO,
    Inputs,
    assert_all_same_bits,
    bfloat16,
    results,
)
from numpy.typing import DTypeLike, NDArray

Call = Callable[[Inputs, NDArray], Any]


def calls(a: Inputs, axis: int) -> Iterator[tuple[str, Call, NDArray]]:
    """Yield names, calls, and the array that each call gets as `out`."""
    out = np.full(a.x.shape, 7, a.dy.dtype)
    wider = out.astype(np.float64)
    reduced = np.full(a.upstream.shape, 7, a.dy.dtype)
    for name, call in CALLS.items():
        yield name, lambda a, out, call=call: call(fs, a, axis), reduced  # not taken
    for name, call in IN_PLACE.items():
        yield f"{name}, in place", lambda a, out, call=call: call(fs, a, axis), reduced  # not taken
    for intos, taken in ((INTO, out), (WIDER_INTO, wider), (REDUCED_INTO, reduced)):
        for name, into in intos.items():
            yield f"{name}, {taken.dtype} out", lambda a, out, into=into: into(fs, a, axis, out), taken


def content(a: Inputs, out: NDArray) -> list[bytes]:
    return [getattr(a, f.name).tobytes() for f in fields(a)] + [out.tobytes()]


# Allocations that fail in turn


class Malloc:
    """The preloaded library."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.least, self.spared, self.failures = (
            ctypes.c_long.in_dll(library, name) for name in ("least", "spared", "failures")
        )

    def call(self, call: Call, a: Inputs, out: NDArray, spared: int, failures: int) -> tuple[Any, int]:
        """Return the call's result, None if it raises MemoryError, and how many allocations failed."""
        result = None
        self.spared.value = spared
        try:
            self.failures.value = failures
            result = call(a, out)
        except MemoryError:
            pass
        except SystemError as error:  # NumPy's, where it returns NULL without an error
            if "numpy" not in str(error) + traceback.extract_tb(error.__traceback__)[-1].filename:
                raise
        finally:
            left, self.failures.value = self.failures.value, 0
        return result, failures - left


def fail_each(malloc: Malloc, call: Call, inputs: Callable[[], tuple[Inputs, NDArray]], failures: int) -> int:
    """Fail `failures` allocations of a call, beginning with each in turn; return how many allocations it makes."""
    a, out = inputs()
    before = content(a, out)
    wanted = call(a, out)
    after = content(a, out)
    for spared in count():
        a, out = inputs()
        result, failed = malloc.call(call, a, out, spared, failures)
        if failed == 0:
            return spared
        if result is not None:
            assert_all_same_bits(result, wanted)
            assert content(a, out) == after
        elif malloc.least.value:
            assert content(a, out) == before
        else:  # everything may be computed before a Python object fails
            assert content(a, out) in (before, after)
    raise AssertionError


# Few classes, packs, gathered rows, long slices in blocks, and more slices than a reduction holds losses of at a time.
CASES = [
    ((200, 20), np.float16, "c"),
    ((40, 300), bfloat16, "strided"),
    ((40, 300), np.float32, "swapped"),
    ((2, 40_000), np.float32, "c"),
    ((2, 40_000), np.float64, "field"),
    ((66_000, 20), np.float32, "strided"),
]
# Dense, native byte order: for others NumPy hashes the dtype or tests for overlap, which fails without a MemoryError.
SMALL_CASES = [((3, 5), dtype, "c") for dtype in FLOATING] + [((40, 300), np.float32, "c")]
REDUCED_IN_STEPS = ("cross_entropy_with_grad, float32 out", "cross_entropy_grad, probabilities, float32 out")


def fail_allocations(least: int, cases: list[tuple[tuple[int, int], DTypeLike, str]]) -> None:
    """Fail each allocation of at least `least` bytes, in every call."""
    malloc = Malloc()
    malloc.least.value = least
    # Many failures in a row are for results and kernels only: Python itself aborts if it gets no objects at all.
    in_a_row = (1, 1000) if least else (1,)
    failed = 0
    for ((rows, classes), dtype, layout), axis in product(cases, (0, 1)):
        moved = Inputs.normal((rows, classes), dtype).move(axis)
        for name, call, out in calls(moved, axis):
            if "in place" in name and layout == "swapped":
                continue  # a result is in native byte order
            if rows > 1000 and (axis == 0 or name not in REDUCED_IN_STEPS):
                continue
            print(f"{name}, {dtype} {moved.x.shape}, axis {axis}, {layout}", flush=True)

            def inputs(moved=moved, layout=layout, out=out):
                return moved.map(LAYOUTS[layout]), LAYOUTS["c" if layout == "swapped" else layout](out)

            failed += sum(fail_each(malloc, call, inputs, failures) for failures in in_a_row)
    print(failed)


# No address space left


class Exhausted:
    """A context without memory: the system gives none, and no free block of 8192 bytes or more is left."""

    def __enter__(self) -> None:
        self.libc = ctypes.CDLL(None)
        self.libc.malloc.restype, self.libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self.libc.free.argtypes = [ctypes.c_void_p]
        self.taken: list[int] = []
        self.limits = resource.getrlimit(resource.RLIMIT_AS)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (in_use, self.limits[1]))
        size = 2**24
        while size >= 8192:
            block = self.libc.malloc(size)
            if block:
                self.taken.append(block)
            else:
                size //= 2

    def __exit__(self, *exception: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.limits)
        for block in self.taken:
            self.libc.free(block)


def exhaust() -> None:
    """Make every call without memory; smaller calls still work meanwhile, and the call itself works afterwards."""
    few = Inputs.normal((3, 5), np.float32)

    def results_of_few() -> tuple[NDArray[Any], ...]:
        # Without sampling: it allocates what it keeps between its two visits, even for few slices.
        kept = [call for name, call in CALLS.items() if name not in DRAWS]
        return tuple(r for call in kept for r in results(call(fs, few, -1)))

    of_few = results_of_few()
    dense = Inputs.normal((300, 1000), np.float32)
    raised = set()
    for layout in ("c", "strided"):
        a = dense.map(LAYOUTS[layout])
        for name, call, out in calls(a, 1):
            print(f"{name}, {layout}", flush=True)
            out = LAYOUTS[layout](out)
            call(a.map(LAYOUTS[layout]), LAYOUTS[layout](out))  # the first call imports modules and fills caches
            before = content(a, out)
            failed = False
            with Exhausted():
                try:
                    call(a, out)
                except MemoryError:
                    failed = True
                got = results_of_few()
            assert_all_same_bits(got, of_few)
            if failed:
                raised.add((name, layout))
                assert content(a, out) == before
                call(a, out)
    names = [name for name, _, _ in calls(dense, 1)]
    # These fail for certain: results of full size, and all calls that gather rows.
    assert raised >= {(name, "c") for name in TRANSFORMS} | {(name, "strided") for name in names}
    print(len(raised))


def main(kind: str, threads: int) -> None:
    fs.softmax(np.ones((1000, 1000)))  # starts the threads while there is memory
    fs.set_num_threads(threads)
    if kind == "blocks":
        fail_allocations(512, CASES)
    elif kind == "objects":
        fail_allocations(0, SMALL_CASES)
    else:
        exhaust()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
