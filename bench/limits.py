"""Limits that no contender can beat: the time to move the bytes of a case, and to exponentiate its numbers."""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np

from .cases import Array, Workload
from .contenders import Call, Contender, Unsupported

# With fewer, waking another thread costs more than it gains.
ELEMENTS_PER_THREAD = 2**15


@cache
def loops() -> ctypes.CDLL | None:
    """Compile limits.c for this machine; None if there is no compiler that can."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    flags = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-mprefer-vector-width=512")  # the compilers' default is half as wide
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        source = Path(__file__).with_name("limits.c")
        if subprocess.run([compiler, *flags, "-o", library, source], capture_output=True).returncode:
            return None
        return ctypes.CDLL(str(library))


class Limit(Contender):
    """A loop of limits.c over arrays of its own."""

    package = "numpy"

    def available(self) -> bool:
        return loops() is not None

    def call(self, function: str, work: Workload, arrays: list[Array]) -> Call:
        """A call with converted arguments, because ctypes takes as long to convert them as to call."""
        threads = max(1, min(self.threads, work.case.elements // ELEMENTS_PER_THREAD))
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        loop = partial(getattr(loops(), function), *pointers, ctypes.c_ssize_t(arrays[0].size), ctypes.c_int(threads))
        self._arrays = arrays  # keeps the memory that the pointers of the latest case point to
        return loop


class Move(Limit):
    """Reads and writes the bytes that the case must read and write."""

    name = "move"

    def prepare(self, work: Workload) -> Call:
        case = work.case
        if case.is_call or case.operation == "vocabulary_step":
            raise Unsupported("not about memory")
        words = -(-case.elements * work.dtype.itemsize // 4)
        read = [np.ones(words, np.uint32) for _ in range(case.arrays_read)]
        written = [] if case.reduces else read[:1] if case.in_place else [np.ones(words, np.uint32)]
        if case.has_hess:
            written.append(np.ones(words, np.uint32))
        return self.call(f"move_{len(read)}_to_{len(written)}", work, [*read, *written])


class Exp(Limit):
    """Reads every number once, exponentiates it and writes it or, where nothing is written, adds it up."""

    def __init__(self, name: str = "exp") -> None:
        self.name = name

    def prepare(self, work: Workload) -> Call:
        case = work.case
        if case.operation in ("softmax_grad", "log_softmax_grad", "vocabulary_step"):
            raise Unsupported(f"{case.operation} is not about its exponentials")
        # In place, numbers are soon NaN. The loop takes the same time for these.
        x = work.x.copy() if case.in_place else work.x
        y = x if case.in_place else np.zeros_like(x)
        if case.is_call:
            return partial(np.exp, x, out=y)
        if not hasattr(loops(), f"exp_{case.dtype}"):
            raise Unsupported(f"no loop for {case.dtype} on this machine")
        if case.reduces:
            return self.call(f"exp_sum_{case.dtype}", work, [x])
        return self.call(f"exp_{case.dtype}", work, [x, y])


LIMITS: list[type[Limit]] = [Move, Exp]
