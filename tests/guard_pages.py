"""Calls on arrays that fill their memory to its ends, between two pages that cannot be touched.

A program of its own, because a touch ends the process: `python guard_pages.py KIND DTYPE`. The last line that it prints
names the call.
"""

import ctypes
import faulthandler
import mmap
import sys
from dataclasses import fields, replace

import fastsoftmax as fs
import numpy as np
from arrays import LOSSES, REDUCTIONS, TRANSFORMS, Inputs
from numpy.typing import NDArray

SIZES = [*range(1, 71), 20_000]

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
        for middle in (a.x.shape[axis] - 1, 0):
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


def guarded(a: NDArray, at_end: bool) -> NDArray:
    """A copy of `a` that begins with the first byte of its pages, or ends with the last."""
    pages = -(-a.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, pages + 2 * mmap.PAGESIZE), np.uint8)
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (memory[:1], memory[-mmap.PAGESIZE :]):
        if mprotect(ctypes.c_void_p(guard.ctypes.data), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = mmap.PAGESIZE + (pages - a.nbytes if at_end else 0)
    copy = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def main(kind: str, dtype: str) -> None:
    faulthandler.enable()
    for size in SIZES:
        inputs = Inputs.normal((3, size), np.dtype(dtype))
        for axis in (0, 1):
            moved = inputs.move(axis)
            for at_end in (False, True):
                a = replace(moved, **{f.name: guarded(getattr(moved, f.name), at_end) for f in fields(moved)})
                out = guarded(moved.x, at_end)
                for name, call in KINDS[kind].items():
                    print(f"{name}, {size} classes, axis {axis}, {'end' if at_end else 'start'}", flush=True)
                    call(a, axis, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
