"""Check the installed package, with only NumPy: every function against its definition, on every SIMD target.

python .ci/smoke.py
"""

import os
import subprocess
import sys
from copy import deepcopy

import fastsoftmax as fs
import numpy as np
from fastsoftmax import reference


def check(dtype: type, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(0, 3, (2, 2000, 300)).astype(dtype)  # enough for a second thread
    targets = rng.integers(0, 300, 2000)
    calls = {
        "softmax": (x,),
        "log_softmax": (x,),
        "logsumexp": (x, -1),
        "entropy": (x,),
        "log_softmax_at": (x, targets),
        "log_softmax_top_k": (x, 5),
        "sample": (x, np.random.default_rng(1)),
        "softmax_grad": (reference.softmax(x), dy),
        "log_softmax_grad": (reference.log_softmax(x), dy),
        "cross_entropy": (x, targets),
        "cross_entropy_grad": (x, targets),
        "cross_entropy_with_grad": (x, targets),
        "cross_entropy_with_grad_hess": (x, targets),
        "kl_divergence": (x, dy),
        "kl_divergence_with_grad": (x, dy),
    }
    assert {*calls, "LogSumExp"} == set(reference.__all__)
    totals = (module.LogSumExp().update(x[:, :100]).update(x[:, 100:]) for module in (fs, reference))
    a, b = ((total.value(), total.softmax(x)) for total in totals)
    for got, wanted in zip(a, b, strict=True):
        np.testing.assert_allclose(got, wanted, tolerance, tolerance, err_msg="LogSumExp")
    for name, arguments in calls.items():
        # Copies, so that both draw from a generator in the same state.
        got, wanted = (getattr(module, name)(*deepcopy(arguments)) for module in (fs, reference))
        pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
        for a, b in pairs:
            assert a.dtype == b.dtype, name
            assert a.dtype in (dtype, np.intp), name
            np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=name)


if "FASTSOFTMAX_TARGET" in os.environ:
    check(np.float32, 1e-5)
    check(np.float64, 1e-13)
else:
    fs.show_config()
    targets = fs.show_config(mode="dicts")["targets"]["usable"]
    for target in targets:
        again = [sys.executable, *sys.orig_argv[1:]]
        subprocess.run(again, env=os.environ | {"FASTSOFTMAX_TARGET": target}, check=True)
    print(f"every function is as defined on {', '.join(targets)}")
