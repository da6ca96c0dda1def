"""The contenders, which compute cases: fastsoftmax, its reference in NumPy, and SciPy. The others are in peers.py."""

import copyreg
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .cases import CHUNK, PIECE, TOP_K, TOP_P, Array, Workload

Call = Callable[[], Any]

# Ends the names of contenders that also run with one thread, to see what more threads gain.
ONE_THREAD = ", 1 thread"

# Contenders are sent to processes of their own; a module is sent by its name.
copyreg.pickle(ModuleType, lambda module: (import_module, (module.__name__,)))


class Unsupported(Exception):
    """The contender has no such operation, or not for this dtype; the message says which."""


class Contender(ABC):
    """A library. Only its call is timed, not what it prepares: tensors, compiled graphs, output arrays."""

    name: str
    package: str

    def available(self) -> bool:
        return find_spec(self.package) is not None

    def version(self) -> str:
        return version(self.package)

    @contextmanager
    def found(self) -> Iterator[None]:
        """While the process of the contender starts: lets it find the library, if that is not the installed one."""
        yield

    def start(self, threads: int) -> None:
        """Import the library and set its number of threads."""
        self.threads = threads

    @abstractmethod
    def prepare(self, work: Workload) -> Call:
        """Return a call without arguments that computes the case once, or raise `Unsupported`."""

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Convert what the call returned to arrays: one, or several for a loss with its gradient."""
        return tuple(np.asarray(part) for part in result) if isinstance(result, tuple) else (np.asarray(result),)


class NumpyApi(Contender):
    """fastsoftmax and its reference: the same functions with the same arguments."""

    package = "fastsoftmax"

    def __init__(self, name: str, module: ModuleType, set_threads: Callable[[int], None] | None = None) -> None:
        self.name = name
        self._module = module
        self._set_threads = set_threads

    def start(self, threads: int) -> None:
        super().start(threads)
        if self._set_threads is not None:
            self._set_threads(threads)

    def prepare(self, work: Workload) -> Call:
        case = work.case
        if case.operation == "vocabulary_step":
            return partial(self._vocabulary_step, work.features, work.weights, work.targets)
        if case.operation == "softmax_in_pieces":
            return partial(self._in_pieces, work.x, work.out)
        if case.draws:
            options: dict[str, Any] = {"sample_top_k": {"top_k": TOP_K}, "sample_top_p": {"top_p": TOP_P}}
            rng = np.random.default_rng(20)
            return partial(self._module.sample, work.x, rng, case.axis, **options.get(case.operation, {}))
        function = getattr(self._module, case.operation)
        out: dict[str, Any] = {"out": work.out} if work.preallocates else {}
        if case.keywords:
            return partial(function, x=work.x, axis=case.axis, **out)
        if case.operation == "log_softmax_at":
            return partial(function, work.x, work.targets, case.axis, **out)
        if case.operation == "log_softmax_top_k":
            return partial(function, work.x, case.k, case.axis)
        if case.has_loss or case.diverges:
            reduction = {} if case.reduction == "mean" else {"reduction": case.reduction}
            if case.has_hess and out:
                out = {"out": (work.out, work.hess)}
            return partial(function, work.x, work.dy if case.diverges else work.targets, case.axis, **reduction, **out)
        if case.operation in ("softmax_grad", "log_softmax_grad"):
            forward = getattr(self._module, case.operation.removesuffix("_grad"))
            return partial(function, forward(work.x, case.axis), work.dy, case.axis, **out)
        return partial(function, work.x, case.axis, **out)

    def _in_pieces(self, x: Array, out: Array) -> Array:
        total = self._module.LogSumExp()
        pieces = [slice(begin, begin + PIECE) for begin in range(0, x.shape[-1], PIECE)]
        for piece in pieces:
            total.update(x[:, piece])
        for piece in pieces:
            total.softmax(x[:, piece], out=out[:, piece])
        return out

    def _vocabulary_step(self, features: Array, weights: Array, targets: Array) -> tuple[Array, Array, Array]:
        """The loss of `features @ weights.T` and its gradients, a chunk of rows at a time, as the guide shows."""
        loss = np.zeros((), np.float64)
        features_grad = np.empty_like(features)
        weights_grad = np.zeros_like(weights)
        logits = np.empty((CHUNK, len(weights)), features.dtype)
        for start in range(0, len(features), CHUNK):
            rows = slice(start, start + CHUNK)
            chunk = logits[: len(features[rows])]
            np.matmul(features[rows], weights.T, out=chunk)
            part, grad = self._module.cross_entropy_with_grad(
                chunk, targets[rows], reduction="sum", upstream=1 / len(features), out=chunk
            )
            loss += part / len(features)
            np.matmul(grad, weights, out=features_grad[rows])
            weights_grad += grad.T @ features[rows]
        return loss, features_grad, weights_grad


class Build(NumpyApi):
    """Another build of fastsoftmax, in a folder as `pip install --target` makes it."""

    def __init__(self, name: str, folder: Path) -> None:
        import fastsoftmax

        super().__init__(name, fastsoftmax)
        self._folder = folder.resolve()

    def version(self) -> str:
        return self._folder.name

    @contextmanager
    def found(self) -> Iterator[None]:
        # A process that is spawned takes over this path.
        sys.path.insert(0, str(self._folder))
        try:
            yield
        finally:
            sys.path.remove(str(self._folder))

    def start(self, threads: int) -> None:
        super().start(threads)
        imported = Path(str(self._module.__file__))
        if not imported.is_relative_to(self._folder):
            raise ImportError(f"{self._folder} has no fastsoftmax; imported is {imported}")
        self._module.set_num_threads(threads)


class Scipy(Contender):
    name = "SciPy"
    package = "scipy"

    def prepare(self, work: Workload) -> Call:
        from scipy import special

        case = work.case
        if case.dtype == "bfloat16":
            raise Unsupported("scipy.special takes no bfloat16")
        if case.operation == "log_softmax_at":
            return partial(self._at, work.x, np.expand_dims(work.targets, case.axis), case.axis)
        if case.operation == "log_softmax_top_k":
            return partial(self._top, np.moveaxis(work.x, case.axis, -1), case.k)
        if case.operation == "kl_divergence":
            return partial(self._divergence, work.x, work.dy, case.axis)
        if case.operation == "softmax_in_pieces":
            return partial(self._in_pieces, work.x, work.out)
        if case.operation not in ("softmax", "log_softmax", "logsumexp", "entropy"):
            raise Unsupported(f"scipy.special has no {case.operation}")
        if case.operation == "entropy":
            return lambda: special.entr(special.softmax(work.x, case.axis)).sum(case.axis)
        return partial(getattr(special, case.operation), work.x, axis=case.axis)

    @staticmethod
    def _in_pieces(x: Array, out: Array) -> Array:
        """The usual code in NumPy: it keeps the largest score so far, and the sum of exponentials relative to it."""
        largest, total = np.full((len(x), 1), -np.inf, x.dtype), np.zeros((len(x), 1), x.dtype)
        pieces = [slice(begin, begin + PIECE) for begin in range(0, x.shape[-1], PIECE)]
        for piece in pieces:
            larger = np.maximum(largest, x[:, piece].max(-1, keepdims=True))
            terms = np.exp(x[:, piece] - larger).sum(-1, keepdims=True)
            largest, total = larger, total * np.exp(largest - larger) + terms
        for piece in pieces:
            np.divide(np.exp(x[:, piece] - largest), total, out=out[:, piece])
        return out

    @staticmethod
    def _divergence(x: Array, y: Array, axis: int) -> Any:
        from scipy import special

        return special.rel_entr(special.softmax(x, axis), special.softmax(y, axis)).sum(axis).mean()

    @staticmethod
    def _at(x: Array, targets: Array, axis: int) -> Array:
        from scipy import special

        at: Array = np.take_along_axis(x, targets, axis) - special.logsumexp(x, axis, keepdims=True)
        return np.squeeze(at, axis)

    @staticmethod
    def _top(x: Array, k: int) -> Array:
        """The k largest along the last axis. Their indices are computed but not returned: ties may have any order."""
        from scipy import special

        largest = np.argpartition(x, -k)[..., -k:]
        values = np.take_along_axis(x, largest, -1)
        order = np.argsort(-values)
        top: Array = np.take_along_axis(values, order, -1) - special.logsumexp(x, -1, keepdims=True)
        np.take_along_axis(largest, order, -1)
        return top


def ours(name: str = "fastsoftmax") -> Contender:
    import fastsoftmax

    return NumpyApi(name, fastsoftmax, fastsoftmax.set_num_threads)


def definition() -> Contender:
    from fastsoftmax import reference

    return NumpyApi("reference", reference)


def contenders(peers: bool, builds: Sequence[Contender] = ()) -> list[Contender]:
    """fastsoftmax, other builds of it, and the libraries that are installed."""
    racers: list[Contender] = [ours(), *builds, definition(), Scipy()]
    if peers:
        from .peers import PEERS

        racers += [peer() for peer in PEERS]
    return [racer for racer in racers if racer.available()]
