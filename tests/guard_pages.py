"""Calls on arrays that fill their memory to its ends, between two pages that cannot be touched.

A program of its own, because a touch ends the process: `python guard_pages.py KIND`. The last line that it prints names
the call.
"""

import ctypes
import faulthandler
import mmap
import sys
from dataclasses import fields
from itertools import product

import fastsoftmax as fs
import numpy as np
from arrays import FLOATING, INTEGERS, LOSSES, REDUCTIONS, TRANSFORMS, Inputs
from numpy.typing import NDArray

SIZES = [*range(201), 20_000]
FIELDS = [field.name for field in fields(Inputs)]

INTO = {
    "softmax": lambda a, axis, out: fs.softmax(a.x, axis, out=out),
    "log_softmax, temperature": lambda a, axis, out: fs.log_softmax(a.x, axis, temperature=0.7, out=out),
    "softmax_grad": lambda a, axis, out: fs.softmax_grad(a.probabilities, a.x, axis, out=out),
    "log_softmax_grad, where": lambda a, axis, out: fs.log_softmax_grad(
        a.log_probabilities, a.x, axis, where=a.where, out=out
    ),
    "cross_entropy_with_grad": lambda a, axis, out: fs.cross_entropy_with_grad(a.x, a.indices, axis, out=out),
    "cross_entropy_with_grad, all": lambda a, axis, out: fs.cross_entropy_with_grad(
        a.x, a.indices, axis, weight=a.weight, ignore_index=0, label_smoothing=0.1, out=out
    ),
}


def without_out(calls):
    return {name: lambda a, axis, out, call=call: call(fs, a, axis) for name, call in calls.items()}


def ignored(**options):
    """All samples but the middle one are ignored, or all."""

    def call(a, axis, out):
        given = {k: getattr(a, v) if isinstance(v, str) else v for k, v in options.items()}
        last = min(a.x.shape[axis] - 1, np.iinfo(a.indices.dtype).max)
        for middle in (last, 0):
            a.indices[...] = 0
            a.indices[1] = middle
            fs.cross_entropy(a.x, a.indices, axis, ignore_index=0, **given)
            fs.cross_entropy_grad(a.x, a.indices, axis, ignore_index=0, out=out, **given)

    return call


IGNORED = {
    "ignored": ignored(),
    "ignored, weight": ignored(weight="weight"),
    "ignored, smoothing": ignored(label_smoothing=0.1),
    "ignored, temperature": ignored(temperature=1e200),
}

KINDS = {
    "transforms": without_out(TRANSFORMS),
    "reductions": without_out(REDUCTIONS),
    "losses": without_out(LOSSES),
    "into out": INTO,
    "ignored samples": IGNORED,
}


# Of a loss there has to be a class.
NEEDS_CLASSES = ("losses", "into out", "ignored samples")


class Guarded:
    """Memory between two pages that cannot be touched."""

    def __init__(self, nbytes: int) -> None:
        pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = np.frombuffer(mmap.mmap(-1, pages + 2 * mmap.PAGESIZE), np.uint8)
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        for guard in (memory[:1], memory[-mmap.PAGESIZE :]):
            if mprotect(ctypes.c_void_p(guard.ctypes.data), ctypes.c_size_t(mmap.PAGESIZE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.inside = memory[mmap.PAGESIZE : -mmap.PAGESIZE]

    def hold(self, a: NDArray, at_end: bool, gap: int) -> NDArray:
        """A copy of `a`, its elements so many bytes apart, that begins with the first byte or ends with the last."""
        element = np.dtype(
            {
                "names": ["value"],
                "formats": [a.dtype],
                "offsets": [gap if at_end else 0],
                "itemsize": a.itemsize + gap,
            }
        )
        nbytes = a.size * element.itemsize
        start = self.inside.size - nbytes if at_end else 0
        copy = self.inside[start : start + nbytes].view(element)["value"].reshape(a.shape)
        copy[...] = a
        return copy


def inputs_of(size: int, dtype: np.dtype) -> Inputs:
    """Three slices; the targets of integers have their dtype."""
    inputs = Inputs.normal((3, size), dtype)
    if dtype in INTEGERS and dtype != np.bool:
        inputs.indices = (inputs.indices % 128).astype(dtype)
    return inputs


def main(kind: str) -> None:
    faulthandler.enable()
    memory = {name: Guarded(3 * SIZES[-1] * 9) for name in (*FIELDS, "out")}
    for dtype in FLOATING + INTEGERS:
        for size in SIZES[1:] if kind in NEEDS_CLASSES else SIZES:
            inputs = inputs_of(size, dtype)
            for axis, at_end, gap in product((0, 1), (False, True), (0, 1)):
                moved = inputs.move(axis)
                a = Inputs(**{name: memory[name].hold(getattr(moved, name), at_end, gap) for name in FIELDS})
                out = memory["out"].hold(moved.dy, at_end, gap)
                for name, call in KINDS[kind].items():
                    where = f"{'end' if at_end else 'start'}, elements {gap} apart"
                    print(f"{name}, {size} classes of {dtype}, axis {axis}, {where}", flush=True)
                    call(a, axis, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
