"""More than 2^31 and 2^32 elements, classes and slices, which 32 bits cannot count.

Only `python -m pytest -m huge` runs these tests. Their results are known without another computation of that size.
"""

from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import GivenNumbers

pytestmark = pytest.mark.huge

SIGNED, UNSIGNED = 2**31, 2**32  # the first numbers that 32 bits do not hold
N = SIGNED + 17
BOTH = [N, UNSIGNED + 17]


def needs(gibibytes):
    """Skips the test if this much memory is not available."""
    info = Path("/proc/meminfo")
    if not info.exists():
        pytest.skip("needs /proc/meminfo to know whether there is enough memory")
    (line,) = (line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    available = int(line.split()[1]) / 2**20
    if available < gibibytes + 1:
        pytest.skip(f"needs {gibibytes + 1:.1f} GiB of memory, {available:.1f} are available")


def places(n):
    """The first and last of n elements, and those on both sides of the limits of 32 bits."""
    return [p for p in (0, SIGNED - 1, SIGNED, UNSIGNED - 1, UNSIGNED, n - 1) if p < n]


def within_an_ulp(got, wanted):
    return abs(float(got) - float(wanted)) <= np.spacing(got.dtype.type(wanted))


# Classes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_logsumexp_of_n_equal_numbers_is_log_n_more(dtype):
    got = fs.logsumexp(np.broadcast_to(dtype(3), N))
    assert within_an_ulp(got, 3 + np.log(N))
    assert within_an_ulp(fs.entropy(np.broadcast_to(dtype(3), N)), np.log(N))


def test_the_last_class_beyond_32_bits_is_picked():
    x = np.broadcast_to(np.float32(3), N)
    wanted = np.float32(-np.log(N))
    assert fs.log_softmax_at(x, N - 1) == wanted
    values, indices = fs.log_softmax_top_k(x, 2)
    assert indices.tolist() == [0, 1]
    assert values.tolist() == [wanted] * 2
    assert fs.log_softmax_top_k(x, 1, where=np.arange(N) == N - 1)[1] == N - 1


def test_the_last_class_beyond_32_bits_is_drawn():
    x = np.broadcast_to(np.float32(3), N)
    assert fs.sample(x, GivenNumbers([1 - 2.0**-53])) == N - 1
    assert fs.sample(x, GivenNumbers([0.0]), where=np.arange(N) == N - 1) == N - 1


@pytest.mark.parametrize("n", BOTH)
def test_every_class_of_a_long_slice_counts(n):
    needs(n / 2**30)
    x = np.zeros(n, np.uint8)
    assert within_an_ulp(fs.logsumexp(x), np.log(n))
    x[places(n)] = 200
    assert within_an_ulp(fs.logsumexp(x), 200 + np.log(len(places(n))))
    for place in places(n):
        x[places(n)] = 0
        x[place] = 200
        assert fs.logsumexp(x) == 200
    # The last class is ahead: its loss is what all others add to the sum.
    np.testing.assert_allclose(fs.cross_entropy(x, np.array(n - 1)), (n - 1) * np.exp(-200.0), 1e-15)


def test_every_class_of_a_long_slice_has_its_probability():
    needs(2 * N / 2**30)
    x = np.full(N, -np.inf, np.float16)
    chosen = places(N)
    for function, present, absent in ((fs.softmax, 0.25, 0), (fs.log_softmax, np.log(0.25), -np.inf)):
        x[...] = -np.inf
        x[chosen] = 1
        function(x, out=x)
        assert (x[chosen] == np.float16(present)).all()
        x[chosen] = absent
        assert all_equal(x, absent)


def all_equal(x, value):
    """Whether all elements have the value; needs no temporary array of that size."""
    value = np.asarray(value, x.dtype)
    flat = x.reshape(-1)
    return all((flat[i : i + 2**26] == value).all() for i in range(0, flat.size, 2**26))


def test_the_class_of_a_target_may_be_beyond_32_bits():
    needs(4 * N / 2**30)
    logits = np.full(N, -np.inf, np.float16)
    chosen = places(N)
    for target in (SIGNED, N - 1):
        logits[...] = -np.inf
        logits[chosen] = 1
        loss, grad = fs.cross_entropy_with_grad(logits, np.array(target), out=logits)
        assert within_an_ulp(loss, np.log(4))
        assert [float(grad[c]) for c in chosen] == [-0.75 if c == target else 0.25 for c in chosen]
        grad[chosen] = 0
        assert all_equal(grad, 0)
        logits[chosen] = 1
        hess = fs.cross_entropy_with_grad_hess(logits, np.array(target), out=(logits, None))[2]
        assert [float(hess[c]) for c in chosen] == [0.1875] * 4
        hess[chosen] = 0
        assert all_equal(hess, 0)
    with pytest.raises(ValueError, match=str(N)):
        fs.cross_entropy(logits, np.array(N))


def test_classes_along_the_first_axis_may_lie_beyond_32_bits():
    classes, slices = 2**27 + 5, 17
    needs(2 * classes * slices / 2**30)
    x = np.full((classes, slices), -np.inf, np.float16)
    rows = [0, SIGNED // slices, SIGNED // slices + 1, classes - 1]
    x[rows] = 1
    fs.softmax(x, 0, out=x)
    assert (x[rows] == 0.25).all()
    x[rows] = 0
    assert all_equal(x, 0)


# Slices


def test_rows_beyond_32_bits_of_elements_are_right():
    slices, classes = SIGNED // 1000 + 8, 1000
    needs(4 * slices * classes / 2**30)
    x = np.zeros((slices, classes), np.float32)
    row = SIGNED // classes  # has elements on both sides of SIGNED
    x[[0, row, row + 1, -1], 648] = 1000
    x[row, SIGNED % classes - 1] = 1000
    fs.softmax(x, out=x)
    for r in (0, row + 1, slices - 1):
        assert x[r, 648] == 1
        assert np.count_nonzero(x[r]) == 1
    assert (x[row, [SIGNED % classes - 1, 648]] == 0.5).all()
    one = fs.softmax(np.zeros(classes, np.float32))[0]
    x[[0, row, row + 1, -1]] = one
    assert all_equal(x, one)


def test_slices_beyond_32_bits_are_right():
    needs(4 * N / 2**30)
    x = np.zeros((N, 2), np.float16)
    x[places(N), 1] = 60
    fs.softmax(x, out=x)
    assert x[places(N)].tolist() == [[float(np.float16(np.exp(-60.0))), 1]] * len(places(N))
    x[places(N)] = 0.5
    assert all_equal(x, 0.5)


def test_slices_of_one_class_beyond_32_bits_have_probability_1():
    needs(2 * N / 2**30)
    x = np.full((N, 1), 7, np.float16)
    fs.softmax(x, out=x)
    assert all_equal(x, 1)
    fs.log_softmax(x, out=x)
    assert all_equal(x, 0)
    logsums = x[:, 0]
    logsums[...] = 5
    fs.logsumexp(np.broadcast_to(np.float16(3), (N, 1)), 1, out=logsums)
    assert all_equal(logsums, 3)
    fs.entropy(np.broadcast_to(np.float16(3), (N, 1)), 1, out=logsums)
    assert all_equal(logsums, 0)


def test_slices_beyond_32_bits_have_their_divergence():
    x = np.broadcast_to([0.0, 1.0], (N, 2))
    y = np.broadcast_to([1.0, 0.0], (N, 2))
    one = fs.kl_divergence(x[0], y[0])
    np.testing.assert_allclose(fs.kl_divergence(x, y), one, 1e-15)
    np.testing.assert_allclose(fs.kl_divergence(x, y, reduction="sum"), one * N, 1e-15)


def test_samples_beyond_32_bits_count_in_the_sum_and_mean_of_losses():
    needs(N / 2**30)
    logits = np.broadcast_to([0.0, 1.0], (N, 2))
    targets = np.ones(N, np.int8)
    targets[places(N)] = 0
    likely = np.log1p(np.exp(-1))
    total = likely * N + len(places(N))
    for reduction, wanted in (("sum", total), ("mean", total / N)):
        np.testing.assert_allclose(fs.cross_entropy(logits, targets, reduction=reduction), wanted, 1e-15)
    few = fs.cross_entropy(logits, targets, ignore_index=1)
    np.testing.assert_allclose(few, likely + 1, 1e-15)
    targets[-1] = 2
    with pytest.raises(ValueError, match=str(N - 1)):
        fs.cross_entropy(logits, targets)
