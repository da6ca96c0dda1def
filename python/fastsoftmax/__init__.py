"""softmax, logsumexp, their gradients and cross-entropy losses for NumPy arrays, at the speed of memory."""

from . import reference
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

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, when it is asked for: importlib.metadata takes longer to import than all of this package."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("fastsoftmax")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
