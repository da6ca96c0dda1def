"""Softmax, logsumexp, entropy, sampling, losses and gradients for NumPy arrays, computed by C++ kernels."""

from typing import TYPE_CHECKING, Any

from ._core import __version__
from ._losses import (
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_with_grad,
    cross_entropy_with_grad_hess,
    kl_divergence,
    kl_divergence_with_grad,
)
from ._picks import log_softmax_at, log_softmax_top_k
from ._pieces import LogSumExp
from ._runtime import get_num_threads, num_threads, set_num_threads, show_config
from ._sample import sample
from ._transforms import entropy, log_softmax, log_softmax_grad, logsumexp, softmax, softmax_grad

__all__ = [
    "LogSumExp",
    "__version__",
    "boosting",
    "calibration",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "entropy",
    "get_num_threads",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "log_softmax_at",
    "log_softmax_grad",
    "log_softmax_top_k",
    "logsumexp",
    "num_threads",
    "reference",
    "sample",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_grad",
]

if TYPE_CHECKING:
    from . import boosting, calibration, reference

# Modules that are imported on first use: `reference` takes as long as the rest of the package.
_MODULES = ("boosting", "calibration", "reference")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
