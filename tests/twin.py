"""Compares the package with `fastsoftmax.reference`, its readable twin, on the same inputs."""

import fastsoftmax as fs
import ml_dtypes
import numpy as np
from arrays import FLOATING, Inputs, results
from fastsoftmax import reference
from numpy.typing import NDArray


def outcome(call, module, inputs, axis):
    try:
        return results(call(module, inputs, axis))
    except (TypeError, ValueError) as error:
        return type(error)


def widened(inputs: Inputs) -> Inputs:
    """The same numbers in float64, in which the twin's own error is far below the narrower types' roundings."""
    return inputs.map(lambda a: a.astype(np.float64) if a.dtype in FLOATING else a)


def largest(a: NDArray) -> float:
    a = a.astype(np.float64)
    return np.max(np.abs(a), initial=0, where=np.isfinite(a))


def assert_agrees(call, inputs: Inputs, axis) -> None:
    """Assert that package and twin agree in values, dtypes and shapes, and in whether they raise.

    Relative to the largest entry, the package may be off by four roundings of its dtype, and the twin by 64 of float64;
    the accuracy tests look at small entries.
    """
    got, twin = (outcome(call, module, inputs, axis) for module in (fs, reference))
    if isinstance(twin, type) or isinstance(got, type):
        assert got is twin
        return
    for g, t, w in zip(got, twin, outcome(call, reference, widened(inputs), axis), strict=True):
        assert (g.dtype, g.shape) == (t.dtype, t.shape)
        if g.dtype.kind == "i":  # classes in an order that no rounding decides
            np.testing.assert_array_equal(g, w)
            continue
        info = ml_dtypes.finfo(g.dtype)
        with np.errstate(over="ignore"):
            wanted = w.astype(g.dtype).astype(np.float64)
        size = max(largest(wanted), largest(inputs.x)) if g.ndim < inputs.x.ndim else largest(wanted)
        tolerance = (4 * float(info.eps) + 64 * np.finfo(np.float64).eps) * size + float(info.smallest_normal)
        np.testing.assert_allclose(g.astype(np.float64), wanted, rtol=0, atol=tolerance)
