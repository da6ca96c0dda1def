"""softmax, logsumexp, their gradients and cross-entropy losses for NumPy arrays, at the speed of memory."""

from typing import TYPE_CHECKING, Any

from ._losses import cross_entropy, cross_entropy_grad, cross_entropy_with_grad
from ._runtime import get_num_threads, num_threads, set_num_threads, show_config
from ._transforms import log_softmax, log_softmax_grad, logsumexp, softmax, softmax_grad

__all__ = [
    "__version__",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "get_num_threads",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "num_threads",
    "reference",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_grad",
]

if TYPE_CHECKING:
    from . import reference

__version__: str


def __getattr__(name: str) -> Any:
    """What takes as long to import as all the rest of this package: `__version__` and `reference`, when asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fastsoftmax")
    if name == "reference":
        from importlib import import_module

        return import_module(".reference", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
