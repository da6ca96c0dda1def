"""The cases, each an operation with a shape, an axis and a dtype, and the arrays that they work on."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import Any, Literal

import numpy as np
from fastsoftmax import _core
from numpy.typing import NDArray

Array = NDArray[Any]
Operation = Literal[
    "softmax",
    "softmax_in_pieces",
    "log_softmax",
    "logsumexp",
    "entropy",
    "log_softmax_at",
    "log_softmax_top_k",
    "sample",
    "sample_top_k",
    "sample_top_p",
    "softmax_grad",
    "log_softmax_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "kl_divergence",
    "kl_divergence_with_grad",
    "vocabulary_step",
]

# The arrays that each operation of the core reads and writes.
SIGNATURES = _core.signatures()

# Results of this size or more go to an array that exists before the clock starts, for every contender that offers it:
# beyond a few MB an allocation costs page faults that would hide the computation.
PREALLOCATE_BYTES = 4 * 2**20

# Smaller cases are limited by the call, not by a loop.
CALL_ELEMENTS = 1000

# How many classes a piece has.
PIECE = 16_384

# How draws are truncated.
TOP_K = 50
TOP_P = 0.9

# The vocabulary step: the width of a token's features, and how many tokens' logits exist at one time.
FEATURES = 64
CHUNK = 256


@dataclass(frozen=True)
class Case:
    operation: Operation
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    reduction: Literal["mean", "none"] = "mean"  # of a loss
    k: int = 0  # how many of the largest
    rising: bool = False  # whether the scores of a slice rise, so that each is the largest so far
    # Where the result goes: a new array, an existing one, or that of the logits; if empty, its size decides.
    result: Literal["", "new", "out=", "in place"] = ""
    keywords: bool = False  # whether fastsoftmax is called with all arguments by name

    @property
    def name(self) -> str:
        operation = self.operation.replace("_hess", " + Hessian")
        operation = operation.replace("_with_grad", " + gradient").replace("_grad", " gradient")
        words = [operation.replace("_step", " step").replace("sample_", "sample ").replace("_in_", " in ")]
        if self.dtype != "float32":
            words.append(self.dtype)
        if self.strided:
            words.append(f"axis {self.axis} of")
        words.append(str(self.shape))
        if self.k:
            words.append(f"k = {self.k}")
        if self.rising:
            words.append("rising")
        if self.result:
            words.append(self.result)
        if self.keywords:
            words.append("by keywords")
        return " ".join(words)

    def matches(self, pattern: str) -> bool:
        """Whether the name contains `pattern`, or matches it if it has * or ?."""
        if any(sign in pattern for sign in "*?"):
            return fnmatch(self.name, pattern)
        return pattern.lower() in self.name.lower()

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape without the class axis."""
        axis = self.axis % len(self.shape)
        return self.shape[:axis] + self.shape[axis + 1 :]

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def strided(self) -> bool:
        """Whether the classes of a slice are apart in memory."""
        return self.axis % len(self.shape) != len(self.shape) - 1

    @property
    def in_place(self) -> bool:
        return self.result == "in place"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_call(self) -> bool:
        """Whether its time is that of a call rather than of its elements."""
        return self.elements < CALL_ELEMENTS

    @property
    def signature(self) -> dict[str, bool]:
        """The signature of the core's operation that computes it."""
        if self.draws:
            return {"second": False, "labels": False, "output": False}
        computed = {"vocabulary_step": "cross_entropy_with_grad", "softmax_in_pieces": "softmax"}
        name = computed.get(self.operation, self.operation)
        return SIGNATURES[name.removesuffix("_hess").replace("_with_grad", "_grad")]

    @property
    def draws(self) -> bool:
        """Whether the result is random: a class of each slice."""
        return self.operation.startswith("sample")

    @property
    def has_loss(self) -> bool:
        return self.operation.startswith("cross_entropy")

    @property
    def diverges(self) -> bool:
        """Whether it compares two arrays of scores."""
        return self.operation.startswith("kl_divergence")

    @property
    def has_hess(self) -> bool:
        """Whether a second array with the class axis is written."""
        return self.operation.endswith("_hess")

    @property
    def reduces(self) -> bool:
        """Whether nothing with the class axis is written."""
        return not self.signature["output"]

    @property
    def arrays_read(self) -> int:
        """How many arrays of the size of the logits are read."""
        return 1 + self.signature["second"]

    @property
    def bytes_moved(self) -> int:
        """The bytes that must be read and written if memory sees every array once."""
        arrays = self.arrays_read + (not self.reduces) + self.has_hess
        return arrays * self.elements * dtype_of(self.dtype).itemsize


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of this name, from NumPy or ml_dtypes."""
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
        self.targets: Array = rng.integers(0, case.classes, case.batch)
        if case.operation == "vocabulary_step":
            self.features = rng.standard_normal((case.shape[0], FEATURES), np.float32)
            self.weights = rng.standard_normal((case.classes, FEATURES), np.float32) / np.float32(math.sqrt(FEATURES))
            return
        # Their spread is that of a trained network's logits.
        logits = rng.standard_normal(case.shape, np.float32) * np.float32(4) if x is None else x
        if case.rising:
            logits.sort(case.axis)
        self.x: Array = logits.astype(self.dtype, copy=False)
        self._logits = self.x.copy() if case.in_place else self.x
        if case.signature["second"]:
            # The gradient of a result, or scores that resemble the logits, as a student's resemble its teacher's.
            dy = rng.standard_normal(case.shape, np.float32)
            self.dy: Array = (logits + dy if case.diverges else dy).astype(self.dtype, copy=False)

    def renew(self) -> None:
        """Restore the logits that a contender overwrote."""
        if self.case.in_place:
            np.copyto(self.x, self._logits)

    @cached_property
    def result_shape(self) -> tuple[int, ...]:
        case = self.case
        if case.operation in ("cross_entropy", "kl_divergence") and case.reduction == "mean":
            return ()
        return case.batch if case.reduces else case.shape

    @cached_property
    def preallocates(self) -> bool:
        """Whether contenders that can write to a given array do so."""
        if self.case.result:
            return self.case.result != "new"
        fits = self.case.operation not in ("cross_entropy", "kl_divergence", "vocabulary_step", "log_softmax_top_k")
        fits = fits and not self.case.draws
        return fits and math.prod(self.result_shape) * self.dtype.itemsize >= PREALLOCATE_BYTES

    @cached_property
    def out(self) -> Array:
        """The logits, or an array into which zeros were written, so that every page exists."""
        return self.x if self.case.in_place else np.full(self.result_shape, 0, self.dtype)

    @cached_property
    def hess(self) -> Array:
        return np.full(self.result_shape, 0, self.dtype)


GROUPS: dict[str, list[Case]] = {
    "Few classes": [
        *(Case("softmax", (100_000, classes)) for classes in (2, 3, 4, 5, 8, 10, 16, 20, 32)),
        Case("softmax", (1_000_000, 2)),
        Case("softmax", (1_000_000, 10)),
        Case("softmax", (100_000, 10), result="out="),
        Case("softmax", (100_000, 10), result="in place"),
        Case("log_softmax", (100_000, 2)),
        Case("log_softmax", (100_000, 10)),
        Case("logsumexp", (100_000, 10)),
        Case("entropy", (100_000, 10)),
        Case("log_softmax_at", (100_000, 10)),
        Case("log_softmax_top_k", (100_000, 10), k=3),
        Case("softmax_grad", (100_000, 10)),
        Case("log_softmax_grad", (100_000, 10)),
        Case("cross_entropy", (100_000, 10)),
        Case("cross_entropy_with_grad", (100_000, 2)),
        Case("cross_entropy_with_grad", (100_000, 10)),
        Case("cross_entropy_with_grad", (1_000_000, 10)),
        Case("cross_entropy_with_grad_hess", (100_000, 2)),
        Case("cross_entropy_with_grad_hess", (100_000, 10)),
        Case("kl_divergence", (100_000, 10)),
    ],
    "Rows": [
        Case("softmax", (10_000, 50)),
        *(Case("softmax", (batch, 100)) for batch in (100, 1000, 10_000, 1_000_000)),
        Case("softmax", (10_000, 300)),
        *(Case("softmax", (batch, 1000)) for batch in (10, 100, 4096)),
        Case("softmax", (4096, 1000), result="new"),
        Case("softmax", (4096, 1000), result="in place"),
        Case("softmax", (1000, 3000)),
        Case("softmax", (32_768, 4096)),
        Case("log_softmax", (10_000, 100)),
        Case("log_softmax", (4096, 1000)),
        Case("logsumexp", (10_000, 100)),
        Case("logsumexp", (4096, 1000)),
        Case("entropy", (10_000, 100)),
        Case("entropy", (4096, 1000)),
        Case("log_softmax_at", (4096, 1000)),
        *(Case("log_softmax_top_k", (4096, 1000), k=k) for k in (5, 64)),
        Case("softmax_grad", (4096, 1000)),
        Case("log_softmax_grad", (4096, 1000)),
    ],
    "Vocabularies": [
        Case("softmax", (64, 32_000)),
        Case("softmax", (512, 32_000)),
        Case("softmax", (64, 50_000)),
        Case("softmax", (16, 128_256)),
        Case("softmax", (64, 128_256)),
        Case("softmax", (64, 128_256), result="in place"),
        Case("softmax", (16, 250_000)),
        Case("softmax_in_pieces", (64, 131_072)),
        Case("log_softmax", (64, 128_256)),
        Case("logsumexp", (512, 32_000)),
        Case("entropy", (512, 32_000)),
        Case("logsumexp", (64, 128_256)),
        Case("log_softmax_at", (64, 128_256)),
        *(Case("log_softmax_top_k", (64, 128_256), k=k) for k in (5, 64)),
        Case("log_softmax_top_k", (64, 128_256), k=64, rising=True),
        Case("softmax_grad", (64, 32_000)),
        Case("log_softmax_grad", (64, 32_000)),
        Case("vocabulary_step", (1024, 32_000)),
    ],
    "One row": [
        Case("softmax", (10,)),
        Case("softmax", (10,), keywords=True),
        Case("softmax", (10,), result="out="),
        *(Case("softmax", (classes,)) for classes in (100, 1000, 10_000, 100_000, 1_000_000)),
        Case("softmax", (1, 16_777_216)),
        Case("log_softmax", (1000,)),
        Case("logsumexp", (1000,)),
        Case("logsumexp", (1_000_000,)),
        Case("entropy", (1000,)),
        Case("entropy", (1_000_000,)),
        Case("cross_entropy", (1, 50_000)),
    ],
    "Class axis first or in the middle": [
        Case("softmax", (10, 100_000), axis=0),
        Case("softmax", (100, 10_000), axis=0),
        Case("softmax", (1000, 4096), axis=0),
        Case("softmax", (4, 19, 128, 128), axis=1),
        Case("softmax", (64, 19, 128, 128), axis=1),
        Case("softmax", (4, 19, 128, 128), axis=1, result="in place"),
        Case("log_softmax", (4, 19, 128, 128), axis=1),
        Case("logsumexp", (4, 19, 128, 128), axis=1),
        Case("entropy", (4, 19, 128, 128), axis=1),
        Case("softmax_grad", (4, 19, 128, 128), axis=1),
        Case("cross_entropy", (4, 19, 128, 128), axis=1),
        Case("cross_entropy_with_grad", (4, 19, 128, 128), axis=1),
        Case("cross_entropy_with_grad", (16, 19, 128, 128), axis=1),
        Case("kl_divergence", (4, 19, 128, 128), axis=1),
    ],
    "Losses": [
        Case("cross_entropy", (10_000, 100)),
        Case("cross_entropy", (4096, 1000)),
        Case("cross_entropy", (16, 128_256)),
        Case("cross_entropy", (64, 128_256)),
        Case("cross_entropy_with_grad", (10_000, 100)),
        Case("cross_entropy_with_grad", (4096, 1000)),
        Case("cross_entropy_with_grad", (4096, 1000), result="in place"),
        Case("cross_entropy_with_grad", (1000, 3000)),
        Case("cross_entropy_with_grad", (64, 32_000)),
        Case("cross_entropy_with_grad", (512, 32_000)),
        Case("cross_entropy_with_grad", (16, 128_256)),
        Case("cross_entropy_with_grad_hess", (10_000, 100)),
        Case("cross_entropy_with_grad_hess", (4096, 1000)),
        Case("kl_divergence", (10_000, 100)),
        Case("kl_divergence", (4096, 1000)),
        Case("kl_divergence", (64, 128_256)),
        Case("kl_divergence_with_grad", (4096, 1000)),
    ],
    "Draws": [
        *(
            Case(operation, shape, dtype=dtype)
            for shape in ((1, 128_256), (64, 128_256))
            for dtype in ("float32", "float16", "bfloat16")
            for operation in ("logsumexp", "sample", "sample_top_k", "sample_top_p")
        ),
        Case("sample", (100_000, 10)),
        Case("sample", (4096, 1000)),
        Case("sample", (4, 19, 128, 128), axis=1),
    ],
    "Other dtypes": [
        *(
            case
            for dtype in ("float64", "float16", "bfloat16")
            for case in (
                Case("softmax", (100_000, 10), dtype=dtype),
                Case("softmax", (1024, 1000), dtype=dtype),
                Case("softmax", (64, 32_000), dtype=dtype),
                Case("softmax", (4, 19, 128, 128), axis=1, dtype=dtype),
                Case("log_softmax", (1024, 1000), dtype=dtype),
                Case("logsumexp", (1024, 1000), dtype=dtype),
                Case("entropy", (1024, 1000), dtype=dtype),
                Case("log_softmax_at", (1024, 1000), dtype=dtype),
                Case("log_softmax_top_k", (1024, 1000), dtype=dtype, k=5),
                Case("softmax_grad", (1024, 1000), dtype=dtype),
                Case("cross_entropy", (1024, 1000), dtype=dtype),
                Case("cross_entropy_with_grad", (1024, 1000), dtype=dtype),
                Case("kl_divergence", (1024, 1000), dtype=dtype),
            )
        ),
        Case("softmax", (4096, 1000), dtype="float64"),
        Case("softmax", (512, 32_000), dtype="float16"),
        Case("cross_entropy_with_grad", (64, 32_000), dtype="float16"),
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
        Case("softmax", (10,), keywords=True),
        Case("softmax", (1_000_000,)),
        Case("softmax", (1000, 4096), axis=0),
        Case("softmax", (4, 19, 128, 128), axis=1),
        Case("softmax", (1024, 1000), dtype="float64"),
        Case("softmax", (1024, 1000), dtype="float16"),
        Case("log_softmax", (4096, 1000)),
        Case("logsumexp", (4096, 1000)),
        Case("entropy", (4096, 1000)),
        Case("log_softmax_at", (4096, 1000)),
        Case("log_softmax_top_k", (4096, 1000), k=5),
        Case("sample_top_p", (1, 128_256)),
        Case("cross_entropy", (16, 128_256)),
        Case("cross_entropy_with_grad", (100_000, 10)),
        Case("cross_entropy_with_grad", (4096, 1000)),
        Case("cross_entropy_with_grad", (64, 32_000)),
        Case("cross_entropy_with_grad", (4, 19, 128, 128), axis=1),
        Case("cross_entropy_with_grad_hess", (100_000, 10)),
        Case("kl_divergence", (4096, 1000)),
    }
)

# The cases in the picture of everyday calls.
EVERYDAY = (
    Case("softmax", (100_000, 10)),
    Case("softmax", (4096, 1000)),
    Case("softmax", (4, 19, 128, 128), axis=1),
    Case("log_softmax", (4096, 1000)),
    Case("logsumexp", (4096, 1000)),
    Case("cross_entropy_with_grad", (4096, 1000)),
)

# The cases that are timed beside other work: from 10 µs to 100 ms with one thread.
BUSY: dict[str, list[Case]] = {
    "Rows": [
        Case("softmax", (400, 100)),
        Case("softmax", (10_000, 100)),
        Case("softmax", (32_768, 4096)),
    ],
    "Losses": [
        Case("cross_entropy_with_grad", (10_000, 100)),
        Case("cross_entropy_with_grad", (1_000_000, 10)),
    ],
    "One row": [
        Case("softmax", (100_000,)),
        Case("softmax", (1, 16_777_216)),
    ],
}
# Sizes around the one from which several threads are faster than one, to show how much they gain.
SIZES = (10_000, 20_000, 40_000, 60_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000)
GAINS: dict[str, list[Case]] = {
    "Gain": [
        *(Case("softmax", (size // 100, 100)) for size in SIZES),
        *(Case("cross_entropy_with_grad", (size // 100, 100)) for size in SIZES),
        *(Case("softmax", (size,)) for size in SIZES),
    ]
}
BUSY_QUICK = frozenset({Case("softmax", (10_000, 100)), Case("cross_entropy_with_grad", (10_000, 100))})


def select(
    pattern: str | None = None,
    quick: bool = False,
    groups: Mapping[str, Sequence[Case]] = GROUPS,
    quick_ones: Container[Case] = QUICK,
) -> Iterator[tuple[str, Case]]:
    """Yield (group, case) for every case asked for, in the order of the table."""
    for group, cases in groups.items():
        for case in cases:
            if (case in quick_ones or not quick) and (pattern is None or case.matches(pattern)):
                yield group, case
