"""Calls on arrays that begin or end at a page that cannot be accessed.

A program of its own, because an access ends the process: `python guard_pages.py KIND`. The last line that it prints
names the call. `python guard_pages.py touch before` and `touch behind` access such a page on purpose.
"""

import ctypes
import faulthandler
import math
import mmap
import sys
from dataclasses import fields
from itertools import product

import fastsoftmax as fs
import numpy as np
from arrays import (
    FLOATING,
    IN_PLACE,
    INTEGERS,
    INTO,
    LOSSES,
    PICKS,
    REDUCED_INTO,
    REDUCTIONS,
    TRANSFORMS,
    WIDER_INTO,
    Inputs,
    as_c,
    as_swapped,
)
from numpy.typing import NDArray

# A few slices of every length, and of more classes than a block has; of few classes, about as many slices as a pack has
# lanes (16, or 8 for float64). Along axis 0 slices are neighbours, which are taken in packs if they fill half of one.
SHAPES = [
    *product((3,), (*range(201), 16_385)),
    *product((8, 15, 16, 17, 18, 19), (1, 2, 3, 4, 5, 31, 32, 33)),
    (8, 16_385),
]
# One integer dtype of each size and sign; bfloat16 has only one byte order.
NATIVE = FLOATING + [dtype for dtype in INTEGERS if dtype.char not in "lL"]
SWAPPED = [np.dtype(code) for code in ("float16", "float32", "float64", "int32")]
FIELDS = [field.name for field in fields(Inputs)]


def without_out(calls):
    return {name: lambda a, axis, out, call=call: call(fs, a, axis) for name, call in calls.items()}


def with_out(calls):
    return {name: lambda a, axis, out, call=call: call(fs, a, axis, out) for name, call in calls.items()}


def ignored(**options):
    """A call in which all samples except the middle one are ignored, and one in which all are."""

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
    "picks": without_out(PICKS),
    "losses": without_out(LOSSES),
    "into out": with_out(INTO),
    "into a wider out": with_out(WIDER_INTO),
    "into a reduced out": with_out(REDUCED_INTO),
    "in place": without_out(IN_PLACE),
    "ignored samples": IGNORED,
}

# Losses and picks need at least one class.
NEEDS_CLASSES = ("losses", "picks", "into out", "in place", "ignored samples")


class Guarded:
    """Memory between two pages that cannot be accessed."""

    def __init__(self, nbytes: int) -> None:
        pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = np.frombuffer(mmap.mmap(-1, pages + 2 * mmap.PAGESIZE), np.uint8)
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        for guard in (memory[:1], memory[-mmap.PAGESIZE :]):
            if mprotect(ctypes.c_void_p(guard.ctypes.data), ctypes.c_size_t(mmap.PAGESIZE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.inside = memory[mmap.PAGESIZE : -mmap.PAGESIZE]

    def hold(self, a: NDArray, at_end: bool, gap: int) -> NDArray:
        """A copy of `a`, its elements `gap` bytes apart, that begins with the first byte or ends with the last."""
        step = a.itemsize + gap
        strides = [step * math.prod(a.shape[i + 1 :]) for i in range(a.ndim)]
        start = self.inside.size - max(a.size * step - gap, 0) if at_end else 0
        copy = np.ndarray(a.shape, a.dtype, self.inside, start, strides)
        copy[...] = a
        return copy


def inputs_of(shape: tuple[int, int], dtype: np.dtype) -> Inputs:
    """Random inputs; for integer scores, the class indices have the dtype of the scores."""
    inputs = Inputs.normal(shape, dtype)
    if dtype in INTEGERS and dtype != np.bool:
        inputs.indices = (inputs.indices % 128).astype(dtype)
    return inputs


def out_of(kind: str, inputs: Inputs) -> NDArray:
    if kind == "into a wider out":
        return inputs.dy.astype(np.float64)
    return inputs.upstream.astype(inputs.dy.dtype) if kind == "into a reduced out" else inputs.dy


def call_all(kind: str) -> None:
    memory = {name: Guarded(max(map(math.prod, SHAPES)) * 9) for name in (*FIELDS, "out")}
    dtypes = [(dtype, as_c) for dtype in NATIVE] + [(dtype, as_swapped) for dtype in SWAPPED]
    for dtype, order in dtypes:
        if kind == "in place" and (dtype not in FLOATING or order is as_swapped):
            continue  # a result is floating, and in native byte order
        for shape in SHAPES:
            if shape[1] == 0 and kind in NEEDS_CLASSES:
                continue
            inputs = inputs_of(shape, dtype)
            ordered, result = inputs.map(order), out_of(kind, inputs)
            gaps = (0, 1) if shape[0] == 3 else (0,)  # elements with gaps are gathered, whatever the number of slices
            for axis, at_end, gap in product((0, 1), (False, True), gaps):
                moved = ordered.view(axis)
                a = Inputs(**{name: memory[name].hold(getattr(moved, name), at_end, gap) for name in FIELDS})
                shaped = np.moveaxis(result, -1, axis) if result.ndim == a.x.ndim else result
                out = memory["out"].hold(shaped, at_end, gap)
                where = f"{shape} of {a.x.dtype}, axis {axis}, {'end' if at_end else 'start'}, {gap} apart"
                for name, call in KINDS[kind].items():
                    print(f"{name}, {where}", flush=True)
                    call(a, axis, out)


def touch(where: str) -> None:
    a = Guarded(1).hold(np.zeros(1, np.uint8), where == "behind", 0)
    ctypes.string_at(a.ctypes.data + (1 if where == "behind" else -1), 1)


if __name__ == "__main__":
    faulthandler.enable()
    if sys.argv[1] == "touch":
        touch(sys.argv[2])
    else:
        call_all(sys.argv[1])
