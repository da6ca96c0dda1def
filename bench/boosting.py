"""`python -m bench.boosting`: how much of a round of gradient boosting the softmax objective takes, in XGBoost and
LightGBM, where they are installed. The objective of fastsoftmax is timed beside the one that users write in NumPy."""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from fastsoftmax import boosting
from rich import box
from rich.table import Table

from .cases import Array
from .measure import console_of

Objective = Callable[[Array, Any], tuple[Array, Array]]

SHAPES = [(150, 3), (10_000, 3), (100_000, 3), (100_000, 10), (20_000, 100)]
FEATURES = 10
ROUNDS = 7


def usual(scores: Array, data: Any) -> tuple[Array, Array]:
    """The objective in NumPy: derivatives as in XGBoost up to 3.4. LightGBM's differ by a factor, at no cost."""
    labels = data.get_label().astype(np.intp)
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    grad = probabilities.copy()
    grad[np.arange(len(grad)), labels] -= 1
    return grad, np.maximum(2 * probabilities * (1 - probabilities), 1e-16)


class Timed:
    """An objective that records how long each call takes, and the time from one call to the next."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.calls: list[float] = []
        self._starts: list[float] = []

    def __call__(self, scores: Array, data: Any) -> tuple[Array, Array]:
        self._starts.append(perf_counter())
        result = self._objective(scores, data)
        self.calls.append(perf_counter() - self._starts[-1])
        return result

    @property
    def rounds(self) -> Sequence[float]:
        return np.diff(self._starts).tolist()


def timed(library: str, shape: tuple[int, int], objective: Objective) -> Timed:
    samples, classes = shape
    rng = np.random.default_rng(0)
    features = rng.standard_normal((samples, FEATURES), np.float32)
    labels = (features[:, 0] + 0.5 * rng.standard_normal(samples)).argsort().argsort() * classes // samples
    called = Timed(objective)
    module = import_module(library)
    options: dict[str, Any] = {"num_class": classes}
    if library == "xgboost":
        options |= {"base_score": 0.0, "max_depth": 6, "disable_default_eval_metric": True}
        module.train(options, module.DMatrix(features, labels), ROUNDS, obj=called)
    else:
        # LightGBM copies its options: it would copy `called`, too, but does not copy a function.
        options |= {"verbose": -1, "objective": lambda scores, data: called(scores, data)}
        module.train(options, module.Dataset(features, labels), ROUNDS)
    return called


def rows() -> Iterator[list[str]]:
    for library in filter(find_spec, ("xgboost", "lightgbm")):
        for shape in SHAPES:
            ours, theirs = (timed(library, shape, each) for each in (getattr(boosting, library), usual))
            # The first call also pays for new memory.
            mine, others = (median(each.calls[1:]) for each in (ours, theirs))
            whole = median(theirs.rounds[1:])
            yield [
                f"{library} {shape}",
                *(f"{1e3 * seconds:.3f}" for seconds in (mine, others)),
                f"{others / mine:.1f}",
                f"{1e3 * whole:.1f}",
                *(f"{100 * share:.1f} %" for share in (others / whole, mine / (whole - others + mine))),
            ]


def main() -> int:
    console = console_of(sys.stdout)
    table = Table(box=box.MARKDOWN)
    table.add_column("samples and classes", no_wrap=True)
    for name in ("fastsoftmax (ms)", "NumPy (ms)", "ratio", "round (ms)", "NumPy's share", "fastsoftmax's share"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows():
        table.add_row(*row)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
