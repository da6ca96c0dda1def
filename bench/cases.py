"""The named cases: an operation, a shape, an axis and a dtype each, and the arrays that it works on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Operation = Literal[
    "softmax",
    "log_softmax",
    "logsumexp",
    "softmax_grad",
    "log_softmax_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
    "vocabulary_step",
]

# Results of this size or more go to an array that exists before the clock starts, for every contender that offers it:
# beyond a few MB an allocation costs page faults that would hide the computation.
PREALLOCATE_BYTES = 4 * 2**20

# Of the vocabulary step: the width of a token's features, and the tokens whose logits exist at one time.
FEATURES = 64
CHUNK = 256


@dataclass(frozen=True)
class Case:
    operation: Operation
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    reduction: Literal["mean", "none"] = "mean"  # of a loss

    @property
    def name(self) -> str:
        operation = self.operation.replace("_with_grad", " + gradient").replace("_grad", " gradient")
        words = [operation.replace("_step", " step")]
        if self.dtype != "float32":
            words.append(self.dtype)
        if self.axis % len(self.shape) != len(self.shape) - 1:
            words.append(f"axis {self.axis} of")
        words.append(str(self.shape))
        return " ".join(words)

    def matches(self, pattern: str) -> bool:
        """Whether the name holds `pattern`; with * or ? in it, whether it is one."""
        if any(sign in pattern for sign in "*?"):
            return fnmatch(self.name, pattern)
        return pattern.lower() in self.name.lower()

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape without the class axis."""
        axis = self.axis % len(self.shape)
        return self.shape[:axis] + self.shape[axis + 1 :]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def has_loss(self) -> bool:
        return self.operation in ("cross_entropy", "cross_entropy_with_grad", "vocabulary_step")

    @property
    def reduces(self) -> bool:
        """Whether nothing with the class axis is written."""
        return self.operation in ("logsumexp", "cross_entropy")

    @property
    def bytes_moved(self) -> int:
        """What must be read and written when memory sees every array once."""
        arrays = 1 if self.reduces else 3 if self.operation in ("softmax_grad", "log_softmax_grad") else 2
        return arrays * self.elements * dtype_of(self.dtype).itemsize


def dtype_of(name: str) -> np.dtype[Any]:
    """That of NumPy, or of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


class Workload:
    """The arrays of a case. Every contender reads the same ones and, where it can, writes to the same `out`."""

    def __init__(self, case: Case, x: Array | None = None) -> None:
        self.case = case
        self.dtype = dtype_of(case.dtype)
        rng = np.random.default_rng(20)
        classes = case.shape[case.axis]
        self.targets: Array = rng.integers(0, classes, case.batch)
        if case.operation == "vocabulary_step":
            self.features = rng.standard_normal((case.shape[0], FEATURES), np.float32)
            self.weights = rng.standard_normal((classes, FEATURES), np.float32) / np.float32(math.sqrt(FEATURES))
            return
        # As spread as the logits of a trained network.
        logits = rng.standard_normal(case.shape, np.float32) * np.float32(4) if x is None else x
        self.x: Array = logits.astype(self.dtype, copy=False)
        if case.operation in ("softmax_grad", "log_softmax_grad"):
            self.dy: Array = rng.standard_normal(case.shape, np.float32).astype(self.dtype, copy=False)

    @cached_property
    def result_shape(self) -> tuple[int, ...]:
        case = self.case
        if case.operation == "cross_entropy" and case.reduction == "mean":
            return ()
        return case.batch if case.reduces else case.shape

    @cached_property
    def preallocates(self) -> bool:
        """Whether contenders that can write to an array that is given to them do so."""
        fits = self.case.operation not in ("cross_entropy", "vocabulary_step")
        return fits and math.prod(self.result_shape) * self.dtype.itemsize >= PREALLOCATE_BYTES

    @cached_property
    def out(self) -> Array:
        """Zeros written out, so that every page exists."""
        return np.full(self.result_shape, 0, self.dtype)


GROUPS: dict[str, list[Case]] = {
    "Few classes": [
        Case("softmax", (100_000, 2)),
        Case("softmax", (100_000, 10)),
        Case("log_softmax", (100_000, 10)),
        Case("cross_entropy", (100_000, 10)),
        Case("cross_entropy_with_grad", (100_000, 2)),
        Case("cross_entropy_with_grad", (100_000, 10)),
    ],
    "Rows": [
        Case("softmax", (10_000, 100)),
        Case("softmax", (4096, 1000)),
        Case("log_softmax", (4096, 1000)),
        Case("logsumexp", (4096, 1000)),
        Case("softmax_grad", (4096, 1000)),
        Case("softmax", (32_768, 4096)),
    ],
    "Vocabularies": [
        Case("softmax", (64, 32_000)),
        Case("softmax", (512, 32_000)),
        Case("logsumexp", (512, 32_000)),
        Case("softmax", (16, 128_256)),
        Case("softmax", (64, 128_256)),
        Case("log_softmax", (64, 128_256)),
        Case("vocabulary_step", (1024, 32_000)),
    ],
    "One row": [
        Case("softmax", (10,)),
        Case("softmax", (1000,)),
        Case("softmax", (1_000_000,)),
        Case("softmax", (1, 16_777_216)),
        Case("logsumexp", (1_000_000,)),
    ],
    "Class axis first or in the middle": [
        Case("softmax", (1000, 4096), axis=0),
        Case("softmax", (4, 19, 128, 128), axis=1),
        Case("softmax", (64, 19, 128, 128), axis=1),
        Case("log_softmax", (4, 19, 128, 128), axis=1),
        Case("cross_entropy_with_grad", (4, 19, 128, 128), axis=1),
        Case("cross_entropy_with_grad", (16, 19, 128, 128), axis=1),
    ],
    "Losses": [
        Case("cross_entropy", (4096, 1000)),
        Case("cross_entropy_with_grad", (4096, 1000)),
        Case("cross_entropy_with_grad", (64, 32_000)),
        Case("cross_entropy_with_grad", (512, 32_000)),
        Case("cross_entropy", (16, 128_256)),
        Case("cross_entropy", (64, 128_256)),
        Case("cross_entropy_with_grad", (16, 128_256)),
    ],
    "Other dtypes": [
        Case("softmax", (100_000, 10), dtype="float64"),
        Case("softmax", (1024, 1000), dtype="float64"),
        Case("softmax", (4096, 1000), dtype="float64"),
        Case("cross_entropy_with_grad", (1024, 1000), dtype="float64"),
        Case("softmax", (1024, 1000), dtype="float16"),
        Case("softmax", (512, 32_000), dtype="float16"),
        Case("log_softmax", (1024, 1000), dtype="float16"),
        Case("cross_entropy_with_grad", (64, 32_000), dtype="float16"),
        Case("softmax", (1024, 1000), dtype="bfloat16"),
    ],
}

# One of each kind, small enough that all of them are raced within a minute.
QUICK = frozenset(
    {
        Case("softmax", (100_000, 2)),
        Case("softmax", (100_000, 10)),
        Case("softmax", (4096, 1000)),
        Case("softmax", (64, 32_000)),
        Case("softmax", (16, 128_256)),
        Case("softmax", (10,)),
        Case("softmax", (1_000_000,)),
        Case("softmax", (1000, 4096), axis=0),
        Case("softmax", (4, 19, 128, 128), axis=1),
        Case("softmax", (1024, 1000), dtype="float64"),
        Case("softmax", (1024, 1000), dtype="float16"),
        Case("log_softmax", (4096, 1000)),
        Case("logsumexp", (4096, 1000)),
        Case("cross_entropy", (16, 128_256)),
        Case("cross_entropy_with_grad", (100_000, 10)),
        Case("cross_entropy_with_grad", (4096, 1000)),
        Case("cross_entropy_with_grad", (64, 32_000)),
        Case("cross_entropy_with_grad", (4, 19, 128, 128), axis=1),
    }
)


def select(pattern: str | None = None, quick: bool = False) -> Iterator[tuple[str, Case]]:
    """(group, case) of every case asked for, in the order of the table."""
    for group, cases in GROUPS.items():
        for case in cases:
            if (case in QUICK or not quick) and (pattern is None or case.matches(pattern)):
                yield group, case
