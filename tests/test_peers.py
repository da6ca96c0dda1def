"""SciPy and PyTorch agree where they define the same. They compute in float64, so their rounding is negligible."""

from itertools import product

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import FLOATING, Inputs, bfloat16

RTOL, ATOL = 1e-12, 1e-14


# SciPy


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (0, 2), None], ids=str)
def test_scipy_defines_the_same_transforms(axis, rng):
    special = pytest.importorskip("scipy.special")
    x = rng.normal(0, 4, (4, 5, 6))
    np.testing.assert_allclose(fs.softmax(x, axis), special.softmax(x, axis), RTOL)
    np.testing.assert_allclose(fs.log_softmax(x, axis), special.log_softmax(x, axis), RTOL)


@pytest.mark.parametrize("return_sign", [False, True])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("b", [None, 2.0, (5, 6), (4, 1, 6), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), None], ids=str)
def test_scipy_defines_the_same_logsumexp(axis, b, keepdims, return_sign, rng):
    special = pytest.importorskip("scipy.special")
    x = rng.normal(0, 4, (4, 5, 6))
    b = rng.normal(size=b) if isinstance(b, tuple) else b
    options = {"b": b, "keepdims": keepdims, "return_sign": return_sign}
    got, wanted = fs.logsumexp(x, axis, **options), special.logsumexp(x, axis, **options)
    for g, w in zip(got, wanted, strict=True) if return_sign else [(got, wanted)]:
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, w, RTOL, 1e-10)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, None], ids=str)
def test_scipy_defines_the_same_entropy(axis, rng):
    special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    x = rng.normal(0, 4, (4, 5, 6))
    for keepdims in (False, True):
        wanted = stats.entropy(special.softmax(x, axis), axis=axis, keepdims=keepdims)
        got = fs.entropy(x, axis, keepdims=keepdims)
        assert np.shape(got) == np.shape(wanted)
        np.testing.assert_allclose(got, wanted, RTOL, ATOL)
        wanted = special.entr(special.softmax(x / 0.3, axis)).sum(axis, keepdims=keepdims)
        np.testing.assert_allclose(fs.entropy(x, axis, temperature=0.3, keepdims=keepdims), wanted, RTOL, ATOL)


def test_scipy_defines_the_same_values_of_infinities():
    special = pytest.importorskip("scipy.special")
    inf, nan = np.inf, np.nan
    for x in ([-inf, -inf], [inf, 1.0], [inf, inf], [nan, 1.0], [-inf, 3.0], [inf, nan]):
        np.testing.assert_array_equal(fs.logsumexp(x), special.logsumexp(x))


# PyTorch


def to_torch(torch, a):
    if a.dtype == bfloat16:
        return torch.from_numpy(a.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(a))


def to_numpy(t):
    return t.detach().double().numpy()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_torch_defines_the_same_transforms_and_gradients(dtype, axis):
    torch = pytest.importorskip("torch")
    a = Inputs.normal((4, 5, 6), dtype, scale=2)
    for name, function, grad in [
        ("softmax", fs.softmax, fs.softmax_grad),
        ("log_softmax", fs.log_softmax, fs.log_softmax_grad),
    ]:
        x = to_torch(torch, a.x).double().requires_grad_()
        wanted = getattr(torch.nn.functional, name)(x, axis)
        wanted.backward(to_torch(torch, a.dy).double())
        got = function(a.x, axis, dtype=np.float64)
        np.testing.assert_allclose(got, to_numpy(wanted), RTOL)
        np.testing.assert_allclose(grad(got, a.dy.astype(float), axis), to_numpy(x.grad), RTOL, ATOL)


def test_torch_defines_the_same_logsumexp(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(0, 4, (4, 5, 6))
    for axis in (0, 1, 2, (0, 2), (0, 1, 2)):
        np.testing.assert_allclose(fs.logsumexp(x, axis), to_numpy(torch.logsumexp(torch.from_numpy(x), axis)), RTOL)


def test_torch_defines_the_same_entropy(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(0, 4, (4, 5, 6))
    wanted = torch.distributions.Categorical(logits=torch.from_numpy(x)).entropy()
    np.testing.assert_allclose(fs.entropy(x), to_numpy(wanted), RTOL, ATOL)


def test_torch_picks_the_same(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(0, 4, (4, 50, 6))
    given = torch.from_numpy(x)
    indices = rng.integers(0, 50, (4, 3, 6))
    wanted = torch.log_softmax(given, 1)
    np.testing.assert_allclose(
        fs.log_softmax_at(x, indices, 1), to_numpy(wanted.gather(1, torch.from_numpy(indices))), RTOL
    )
    got, labels = fs.log_softmax_top_k(x, 7, 1)
    largest = wanted.topk(7, 1)
    np.testing.assert_allclose(got, to_numpy(largest.values), RTOL)
    np.testing.assert_array_equal(labels, to_numpy(largest.indices))


LOSS_SHAPES = [((7,), 0), ((9, 5), 1), ((3, 5, 2, 4), 1)]  # shapes, and torch's class axis


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(("shape", "torch_axis"), LOSS_SHAPES, ids=str)
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torch_defines_the_same_cross_entropy_in_every_combination(reduction, targets, shape, torch_axis, dtype, rng):
    """Loss and gradient, also through an upstream gradient, with the class axis in every position."""
    torch = pytest.importorskip("torch")
    x = rng.normal(0, 3, shape).astype(dtype)
    a = Inputs.of(np.moveaxis(x, torch_axis, -1)).move(torch_axis)
    chosen = getattr(a, targets)
    upstream = a.upstream if reduction == "none" else -1.7
    ignored = (None, 1, -100) if targets == "indices" else (None,)
    for weight, ignore_index, smoothing in product((None, a.weight), ignored, (0.0, 0.15, 1.0)):
        if targets == "indices":
            chosen = np.asarray(a.indices).copy()
            chosen[...] = np.where(rng.uniform(size=chosen.shape) < 0.3, ignore_index or 0, chosen)
            if ignore_index is not None and (chosen == ignore_index).all():
                chosen[...] = 0
        logits = to_torch(torch, x).double().requires_grad_()
        wanted = torch.nn.functional.cross_entropy(
            logits,
            torch.from_numpy(chosen) if targets == "indices" else to_torch(torch, chosen).double(),
            weight=None if weight is None else torch.from_numpy(weight),
            label_smoothing=smoothing,
            reduction=reduction,
            **({} if ignore_index is None else {"ignore_index": ignore_index}),
        )
        wanted.backward(torch.as_tensor(upstream, dtype=torch.float64))
        options = {
            "weight": weight,
            "ignore_index": ignore_index,
            "label_smoothing": smoothing,
            "reduction": reduction,
            "upstream": upstream,
        }
        wanted, wanted_grad = to_numpy(wanted), to_numpy(logits.grad)
        for axis in range(len(shape)):
            moved = np.moveaxis(x, torch_axis, axis), chosen
            if targets == "probabilities":
                moved = moved[0], np.moveaxis(chosen, torch_axis, axis)
            loss, grad = fs.cross_entropy_with_grad(*moved, axis, **options)
            eps = np.finfo(loss.dtype).eps
            np.testing.assert_allclose(loss, wanted, 8 * eps, 8 * eps)
            # The gradient's bound is relative to the terms that it is the difference of; half precision rounds it once.
            eps = float(np.float64(2) ** -{2: 8 if dtype == bfloat16 else 11, 4: 21, 8: 50}[dtype.itemsize])
            scale = np.abs(wanted_grad).max()
            got = np.moveaxis(grad, axis, torch_axis).astype(float)
            np.testing.assert_allclose(got, wanted_grad, 1.1 * eps, 1.1 * eps * scale if dtype.itemsize > 2 else 1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torch_defines_the_same_loss_if_every_sample_is_ignored(reduction):
    torch = pytest.importorskip("torch")
    x, targets = np.ones((3, 4)), np.full(3, -100)
    for smoothing in (0.0, 0.1):
        wanted = torch.nn.functional.cross_entropy(
            torch.from_numpy(x), torch.from_numpy(targets), reduction=reduction, label_smoothing=smoothing
        )
        got = fs.cross_entropy(x, targets, ignore_index=-100, reduction=reduction, label_smoothing=smoothing)
        np.testing.assert_array_equal(got, to_numpy(wanted))


def test_torch_defines_the_same_mean_over_no_samples():
    torch = pytest.importorskip("torch")
    x, targets = np.empty((0, 4)), np.empty(0, np.int64)
    for reduction in ("none", "mean", "sum"):
        wanted = torch.nn.functional.cross_entropy(torch.from_numpy(x), torch.from_numpy(targets), reduction=reduction)
        np.testing.assert_array_equal(fs.cross_entropy(x, targets, reduction=reduction), to_numpy(wanted))
