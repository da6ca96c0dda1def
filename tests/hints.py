"""Calls with the result types that mypy and pyright must infer, and calls that both must refuse.

Both report a `type: ignore` that hides no error. `test_hints.py` also runs this file and checks that the calls return
what the types say.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, assert_type, cast

import fastsoftmax as fs
import ml_dtypes
import numpy as np
from fastsoftmax import reference
from numpy.typing import NDArray

half = np.zeros((2, 3), np.float16)
single = np.zeros((2, 3), np.float32)
double = np.zeros((2, 3))
small = np.zeros((2, 3), np.int8)
mask = np.ones((2, 3), np.bool)
brain = np.zeros((2, 3), ml_dtypes.bfloat16)
labels = np.zeros(2, np.intp)
either = cast(NDArray[np.float32 | np.float64], single)
untyped = cast(NDArray[Any], single)
unknown = cast(Any, single)
lists: list[list[float]] = [[1.0, 2], [3, 4]]


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except (TypeError, ValueError):
        return
    raise AssertionError("not refused")


# Integers: whatever has __index__.

assert_type(fs.softmax(single, np.argmax([0, 1])), NDArray[np.float32])
assert_type(fs.softmax(single, axis=np.int64(1)), NDArray[np.float32])
assert_type(fs.log_softmax(single, axis=(np.int64(0), 1)), NDArray[np.float32])
assert_type(fs.softmax_grad(single, single, (np.uint8(0), np.intp(1))), NDArray[np.float32])
assert_type(fs.log_softmax_grad(single, single, axis=np.array(1)), NDArray[np.float32])
assert_type(fs.logsumexp(single, np.argmax([0, 1]), keepdims=True), NDArray[np.float32])
assert_type(fs.cross_entropy(single, labels, np.int64(1)), np.float32)
assert_type(fs.cross_entropy(single, labels, ignore_index=np.int64(-1)), np.float32)
assert_type(fs.cross_entropy_grad(single, labels, ignore_index=np.uint8(255)), NDArray[np.float32])
fs.cross_entropy_with_grad(single, labels, axis=np.int8(-1), ignore_index=np.argmin([0, 1]))
with fs.num_threads(np.max(labels) + 1):
    assert_type(fs.set_num_threads(np.int64(2)), None)
    fs.set_num_threads(np.array(2, np.uint8))

refused(lambda: fs.softmax(single, axis="x"))  # type: ignore[call-overload]
refused(lambda: fs.softmax(single, axis=[0, 1]))  # type: ignore[call-overload]
refused(lambda: fs.log_softmax(single, axis=1.0))  # type: ignore[call-overload]
refused(lambda: fs.logsumexp(single, axis=(0, "1")))  # type: ignore[arg-type]
refused(lambda: fs.entropy(single, axis=[0, 1]))  # type: ignore[call-overload]
refused(lambda: fs.softmax_grad(single, single, np.float32(1)))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single, labels, axis=None))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single, labels, axis=(1,)))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single, labels, ignore_index="-1"))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, ignore_index=-1.0))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, ignore_index=[-1]))  # type: ignore[call-overload]
refused(lambda: fs.set_num_threads(2.0))  # type: ignore[arg-type]
refused(lambda: fs.set_num_threads(np.float64(2)))  # type: ignore[arg-type]
refused(lambda: fs.set_num_threads("2"))  # type: ignore[arg-type]
refused(lambda: fs.num_threads(None).__enter__())  # type: ignore[arg-type]

# Numbers: whatever has __float__.

assert_type(fs.softmax(single, temperature=np.float32(2)), NDArray[np.float32])
assert_type(fs.softmax(single, temperature=2), NDArray[np.float32])
assert_type(fs.log_softmax(single, temperature=np.int64(2)), NDArray[np.float32])
assert_type(fs.softmax_grad(single, single, temperature=np.array(2.0)), NDArray[np.float32])
assert_type(fs.log_softmax_grad(single, single, temperature=Fraction(1, 2)), NDArray[np.float32])
assert_type(fs.cross_entropy(single, labels, temperature=ml_dtypes.bfloat16(2)), np.float32)
assert_type(fs.cross_entropy(single, labels, label_smoothing=np.float32(0.1)), np.float32)
assert_type(fs.cross_entropy(single, labels, label_smoothing=Fraction(1, 10)), np.float32)
assert_type(fs.cross_entropy(single, labels, label_smoothing=np.float16(0.1)), np.float32)
assert_type(fs.cross_entropy_grad(single, labels, label_smoothing=np.int8(1)), NDArray[np.float32])
assert_type(fs.cross_entropy_grad(single, labels, upstream=np.float32(2)), NDArray[np.float32])
assert_type(fs.cross_entropy_grad(single, labels, upstream=np.array(2)), NDArray[np.float32])
assert_type(fs.cross_entropy_grad(single, labels, reduction="none", upstream=[1, 2]), NDArray[np.float32])
fs.cross_entropy_with_grad(single, labels, upstream=ml_dtypes.bfloat16(2))

refused(lambda: fs.softmax(single, temperature="2"))  # type: ignore[call-overload]
refused(lambda: fs.log_softmax(single, temperature=None))  # type: ignore[call-overload]
refused(lambda: fs.softmax_grad(single, single, temperature=2j))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single, labels, temperature=[2.0]))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single, labels, label_smoothing="0.1"))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, label_smoothing=None))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_with_grad(single, labels, label_smoothing=(0.1,)))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, upstream=object()))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, upstream={1.0}))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_with_grad(single, labels, upstream=Fraction(1, 2)))  # type: ignore[call-overload]

# Words and flags.

wanted: Literal["none", "sum"] = "sum" if labels.any() else "none"
assert_type(fs.cross_entropy_grad(single, labels, reduction=wanted), NDArray[np.float32])
fs.cross_entropy(single, labels, reduction=wanted)
assert_type(fs.show_config(mode="dicts"), dict[str, Any])
fs.logsumexp(single, 1, keepdims=np.True_, return_sign=np.False_)
fs.entropy(single, 1, keepdims=np.True_)

refused(lambda: fs.cross_entropy(single, labels, reduction="men"))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single, labels, reduction="Mean"))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, reduction="batchmean"))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_with_grad(single, labels, reduction=None))  # type: ignore[call-overload]
refused(lambda: fs.show_config("json"))  # type: ignore[call-overload]

# The dtype of a typed array; float64 for integers and for lists.

assert_type(fs.softmax(half), NDArray[np.float16])
assert_type(fs.softmax(double), NDArray[np.float64])
assert_type(fs.log_softmax(small), NDArray[np.float64])
assert_type(fs.log_softmax(mask), NDArray[np.float64])
assert_type(fs.softmax(np.asfortranarray(single)), NDArray[np.float32])
assert_type(fs.softmax(either), NDArray[np.float32 | np.float64])
assert_type(fs.softmax([1, 2]), NDArray[np.float64])
assert_type(fs.softmax([[1.0, 2], [3, 4]]), NDArray[np.float64])
assert_type(fs.log_softmax(((True, 2.0), (3, 4))), NDArray[np.float64])
assert_type(fs.softmax(range(3)), NDArray[np.float64])
assert_type(fs.softmax([[[lists]]]), NDArray[Any])
assert_type(fs.softmax([np.float32(1), np.float32(2)]), NDArray[Any])
assert_type(fs.softmax([single, single]), NDArray[Any])
assert_type(fs.softmax(brain), NDArray[Any])
assert_type(fs.softmax(untyped).ndim, int)
assert_type(fs.softmax_grad(double, single), NDArray[np.float32])
assert_type(fs.softmax_grad(single, [[1, 2, 3], [4, 5, 6]]), NDArray[np.float64])
assert_type(fs.log_softmax_grad(single, half), NDArray[np.float16])
assert_type(fs.log_softmax_grad(single, mask), NDArray[np.float64])
assert_type(fs.log_softmax_grad(single, brain), NDArray[Any])
assert_type(fs.cross_entropy_grad(half, labels), NDArray[np.float16])
assert_type(fs.cross_entropy_grad(small, labels), NDArray[np.float64])
assert_type(fs.cross_entropy_grad(lists, [0, 1]), NDArray[np.float64])
assert_type(fs.cross_entropy_grad(brain, labels), NDArray[Any])

# A scalar for a scalar.

assert_type(fs.softmax(1), np.float64)
assert_type(fs.softmax(np.float16(1)), np.float16)
assert_type(fs.softmax(np.float32(1), axis=None), np.float32)
assert_type(fs.log_softmax(True), np.float64)
assert_type(fs.log_softmax(np.int8(1)), np.float64)
assert_type(fs.log_softmax(np.float32(1), dtype=np.float64), np.float64)
assert_type(fs.softmax(ml_dtypes.bfloat16(1)), Any)
assert_type(fs.softmax_grad(1.0, np.float32(1)), np.float32)
assert_type(fs.log_softmax_grad(np.float32(0), 1), np.float64)

# logsumexp: a scalar over all axes, an array with keepdims; along one axis it depends on the array's dimensions.

assert_type(fs.logsumexp(single), np.float32)
assert_type(fs.logsumexp(small), np.float64)
assert_type(fs.logsumexp(np.float16(1)), np.float16)
assert_type(fs.logsumexp([1.0, 2.0]), np.float64)
assert_type(fs.logsumexp(single, -1), Any)
assert_type(fs.logsumexp(untyped), Any)
assert_type(fs.logsumexp(single, keepdims=True), NDArray[np.float32])
assert_type(fs.logsumexp(lists, 1, keepdims=True), NDArray[np.float64])
assert_type(fs.logsumexp(half, dtype=np.float32), np.float32)
assert_type(fs.logsumexp(half, 0, keepdims=True, dtype=np.float64), NDArray[np.float64])
assert_type(fs.logsumexp(single, b=double), Any)
assert_type(fs.logsumexp(single, b=double, dtype=np.float64), np.float64)
assert_type(fs.logsumexp(single, return_sign=True), tuple[np.float32, np.float32])
assert_type(fs.logsumexp(small, 1, keepdims=True, return_sign=True), tuple[NDArray[np.float64], NDArray[np.float64]])
assert_type(fs.logsumexp(half, b=small, return_sign=True, dtype=np.float64), tuple[np.float64, np.float64])
assert_type(fs.logsumexp(single, 1, b=[1, 1, -1], return_sign=True), tuple[Any, Any])

# entropy: as logsumexp, but along the last axis by default.

assert_type(fs.entropy(single), Any)
assert_type(fs.entropy(single, None), np.float32)
assert_type(fs.entropy(small, axis=None, temperature=2), np.float64)
assert_type(fs.entropy(np.float16(1)), np.float16)
assert_type(fs.entropy(1.0), np.float64)
assert_type(fs.entropy(untyped), Any)
assert_type(fs.entropy(single, keepdims=True), NDArray[np.float32])
assert_type(fs.entropy(lists, keepdims=True), NDArray[np.float64])
assert_type(fs.entropy(half, None, dtype=np.float32), np.float32)
assert_type(fs.entropy(half, 0, keepdims=True, where=mask, dtype=np.float64), NDArray[np.float64])

# Picks: a scalar for a scalar index.

assert_type(fs.log_softmax_at(single, labels), NDArray[np.float32])
assert_type(fs.log_softmax_at(single, [[0, 1, 1]], 0), NDArray[np.float32])
assert_type(fs.log_softmax_at(single.reshape(-1), 1), np.float32)
assert_type(fs.log_softmax_at(small, labels, temperature=2), NDArray[np.float64])
assert_type(fs.log_softmax_at(lists, [0, 1]), NDArray[np.float64])
assert_type(fs.log_softmax_at([1.0, 2.0], np.int64(1)), np.float64)
assert_type(fs.log_softmax_at(half, labels, dtype=np.float32, where=mask), NDArray[np.float32])
assert_type(fs.log_softmax_at(half.reshape(-1), 1, dtype=np.float64), np.float64)
assert_type(fs.log_softmax_top_k(single, 2), tuple[NDArray[np.float32], NDArray[np.intp]])
assert_type(fs.log_softmax_top_k(small, np.int64(2), axis=0), tuple[NDArray[np.float64], NDArray[np.intp]])
assert_type(fs.log_softmax_top_k(lists, 1), tuple[NDArray[np.float64], NDArray[np.intp]])
assert_type(fs.log_softmax_top_k(half, 1, dtype=np.float32), tuple[NDArray[np.float32], NDArray[np.intp]])
assert_type(fs.log_softmax_top_k(brain, 1), tuple[NDArray[Any], NDArray[np.intp]])

refused(lambda: fs.log_softmax_at(single, labels, (0, 1)))  # type: ignore[call-overload]
refused(lambda: fs.log_softmax_top_k(single, 1.5))  # type: ignore[call-overload]

# Draws: an array where they certainly have an axis, a scalar for a scalar.

random = np.random.default_rng(0)
assert_type(fs.sample(1.0, random), np.intp)
assert_type(fs.sample(single, random), Any)
assert_type(fs.sample(single, random, size=None, top_k=np.int64(5)), Any)
assert_type(fs.sample(single, random, 0, size=3, temperature=2, top_p=0.9, min_p=np.float32(0.1)), NDArray[np.intp])
assert_type(fs.sample(half, random, size=np.uint8(3), where=mask), NDArray[np.intp])
refused(lambda: fs.sample(single))  # type: ignore[call-overload]
refused(lambda: fs.sample(single, 0))  # type: ignore[call-overload]
refused(lambda: fs.sample(single, random, None))  # type: ignore[call-overload]
refused(lambda: fs.sample(single, random, size=(2, 3)))  # type: ignore[call-overload]
refused(lambda: fs.sample(single, random, top_k=2.5))  # type: ignore[call-overload]
refused(lambda: fs.sample(single, random, top_p="0.9"))  # type: ignore[call-overload]

# Losses: a scalar unless reduction="none"; float32 for half precision.

assert_type(fs.cross_entropy(double, labels), np.float64)
assert_type(fs.cross_entropy(half, labels), np.float32)
assert_type(fs.cross_entropy(small, labels, reduction="sum"), np.float64)
assert_type(fs.cross_entropy(lists, [0, 1], reduction="mean"), np.float64)
assert_type(fs.cross_entropy(single, labels, reduction="none"), NDArray[np.float32])
assert_type(fs.cross_entropy(half, labels, reduction="none"), NDArray[np.float32])
assert_type(fs.cross_entropy(lists, [0, 1], reduction="none"), NDArray[np.float64])
assert_type(fs.cross_entropy(brain, labels), Any)
assert_type(fs.cross_entropy(brain, labels, reduction="none"), NDArray[Any])
assert_type(fs.cross_entropy(untyped, labels), Any)
assert_type(fs.cross_entropy(untyped, labels, reduction="none").ndim, int)
assert_type(fs.cross_entropy(single[0], 1, reduction="none"), Any)
assert_type(fs.cross_entropy_with_grad(single, labels), tuple[np.float32, NDArray[np.float32]])
assert_type(fs.cross_entropy_with_grad(half, labels), tuple[np.float32, NDArray[np.float16]])
assert_type(
    fs.cross_entropy_with_grad_hess(single, labels), tuple[np.float32, NDArray[np.float32], NDArray[np.float32]]
)
assert_type(fs.kl_divergence(single, single), np.float32)
assert_type(fs.kl_divergence(half, half), np.float32)
assert_type(fs.kl_divergence_with_grad(single, single), tuple[np.float32, NDArray[np.float32]])
assert_type(fs.kl_divergence_with_grad(half, half), tuple[np.float32, NDArray[np.float16]])
assert_type(fs.cross_entropy_with_grad(lists, [0, 1]), tuple[np.float64, NDArray[np.float64]])
assert_type(fs.cross_entropy_with_grad(brain, labels), tuple[Any, NDArray[Any]])
assert_type(
    fs.cross_entropy_with_grad(half, labels, reduction="none"),
    tuple[NDArray[np.float32], NDArray[np.float16]],
)

# dtype and out.

assert_type(fs.softmax(half, dtype=np.float32), NDArray[np.float32])
assert_type(fs.softmax(untyped, dtype=np.float64), NDArray[np.float64])
assert_type(fs.softmax(brain, dtype=np.float32), NDArray[np.float32])
assert_type(fs.log_softmax(lists, dtype=np.dtype(np.float64)), NDArray[np.float64])
assert_type(fs.log_softmax(half, dtype=single.dtype), NDArray[np.float32])
assert_type(fs.log_softmax(half, dtype="float32"), NDArray[Any])
assert_type(fs.log_softmax(half, dtype=None), NDArray[np.float16])
given = cast(NDArray[np.float32], np.zeros((2, 3), np.float32))
maybe = cast(NDArray[np.float32] | None, None)
assert_type(fs.softmax(unknown, out=given), NDArray[np.float32])
assert_type(fs.softmax(half, dtype=np.float32, out=given), NDArray[np.float32])
assert_type(fs.log_softmax(untyped, out=given), NDArray[np.float32])
assert_type(fs.log_softmax(single, out=maybe), NDArray[np.float32])
assert_type(fs.softmax_grad(single, single, out=given), NDArray[np.float32])
assert_type(fs.log_softmax_grad(single, untyped, out=given), NDArray[np.float32])
assert_type(fs.logsumexp(double, 0, out=np.zeros(3)).dtype, np.dtype[np.float64])
assert_type(fs.entropy(double, 0, out=np.zeros(3)).dtype, np.dtype[np.float64])
assert_type(fs.log_softmax_at(untyped, [[0], [1]], out=given[:, :1]), NDArray[np.float32])
assert_type(fs.cross_entropy_grad(untyped, labels, out=given), NDArray[np.float32])
assert_type(fs.cross_entropy_with_grad(single, labels, out=given), tuple[Any, NDArray[np.float32]])
assert_type(fs.cross_entropy_with_grad_hess(single, labels, out=(given, None)), tuple[Any, NDArray[Any], NDArray[Any]])
assert_type(fs.cross_entropy_grad(brain, labels, out=brain.copy()).ndim, int)

refused(lambda: fs.softmax(single, out=[0.0]))  # type: ignore[call-overload]
refused(lambda: fs.logsumexp(single, out=np.float32(0)))  # type: ignore[call-overload]
refused(lambda: fs.entropy(single, out=np.float32(0)))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy_grad(single, labels, out=memoryview(b"")))  # type: ignore[call-overload]
refused(lambda: fs.softmax(half, dtype=32))  # type: ignore[call-overload]
refused(lambda: fs.softmax(None))  # type: ignore[call-overload]
refused(lambda: fs.softmax({1.0, 2.0}))  # type: ignore[call-overload]
refused(lambda: fs.cross_entropy(single))  # type: ignore[call-overload]

# In pieces.

total = fs.LogSumExp((0, -1), temperature=np.float32(2))
assert_type(total.update(single, where=[True]), fs.LogSumExp)
assert_type(total.merge(fs.LogSumExp.from_state(total.state, (0, 1), temperature=2)), fs.LogSumExp)
assert_type(total.softmax(half, dtype=np.float32), NDArray[Any])
assert_type(total.log_softmax(single, out=given).ndim, int)
assert_type(total.value(keepdims=True), Any)
assert_type(fs.LogSumExp().update(lists).log_softmax_at(lists, [0, 1]), Any)
refused(lambda: fs.LogSumExp(axis="x"))  # type: ignore[arg-type]
refused(lambda: total.update({1.0, 2.0}))  # type: ignore[arg-type]
refused(lambda: total.merge(total.state))  # type: ignore[arg-type]

# The reference has the same types.

assert_type(reference.softmax(small, np.int64(1), temperature=np.float32(2)), NDArray[np.float64])
assert_type(reference.logsumexp(single, return_sign=True), tuple[np.float32, np.float32])
assert_type(reference.entropy(single, keepdims=True), NDArray[np.float32])
assert_type(fs.reference.cross_entropy(half, labels, reduction="none"), NDArray[np.float32])
refused(lambda: reference.cross_entropy(single, labels, reduction="men"))  # type: ignore[call-overload]

# After the scores

assert_type(fs.calibration.fit_temperature(single, labels), float)
assert_type(fs.calibration.brier_score(lists, [0, 1], temperature=2), float)
found = fs.calibration.reliability(single, labels, 1, bins=np.int8(3), strategy="quantile")
assert_type(found, fs.calibration.Reliability)
assert_type(found.accuracy, NDArray[np.float64])
assert_type(found.expected_error, float)
refused(lambda: fs.calibration.reliability(single, labels, strategy="other"))  # type: ignore[arg-type]
assert_type(fs.boosting.lightgbm_sklearn(labels, single), tuple[NDArray[Any], NDArray[Any]])
