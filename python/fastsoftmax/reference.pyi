"""The functions of the reference have the types of the package's functions of the same name."""

from . import LogSumExp as LogSumExp
from . import cross_entropy as cross_entropy
from . import cross_entropy_grad as cross_entropy_grad
from . import cross_entropy_with_grad as cross_entropy_with_grad
from . import cross_entropy_with_grad_hess as cross_entropy_with_grad_hess
from . import entropy as entropy
from . import kl_divergence as kl_divergence
from . import kl_divergence_with_grad as kl_divergence_with_grad
from . import log_softmax as log_softmax
from . import log_softmax_at as log_softmax_at
from . import log_softmax_grad as log_softmax_grad
from . import log_softmax_top_k as log_softmax_top_k
from . import logsumexp as logsumexp
from . import sample as sample
from . import softmax as softmax
from . import softmax_grad as softmax_grad

__all__ = [
    "LogSumExp",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "entropy",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "log_softmax_at",
    "log_softmax_grad",
    "log_softmax_top_k",
    "logsumexp",
    "sample",
    "softmax",
    "softmax_grad",
]
