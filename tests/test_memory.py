"""No function has a temporary of the size of its input: the peak of the process grows by the result and a few rows."""

import ctypes
import subprocess
import sys
from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import LAYOUTS, GivenNumbers, Inputs, bfloat16

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ROWS, CLASSES = 2048, 2048
# Sixteen float64 rows for each of two threads, one huge page (2 MiB), and 1 MiB for the allocator.
LIMIT = 16 * CLASSES * 8 * 2 + 2**21 + 2**20

LAYOUTS_HERE = ("c", "fortran", "strided", "swapped")


def resident(which):
    for line in STATUS.read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise LookupError(which)


def can_measure():
    try:
        RESET.write_text("5")
        resident("VmHWM")
    except (OSError, LookupError):
        return False
    return hasattr(ctypes.CDLL(None), "malloc_trim")


pytestmark = pytest.mark.skipif(not can_measure(), reason="needs Linux with glibc to measure the peak of a call")


def peak_growth(call):
    """Return by how many bytes resident memory grew during `call`, at its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed would hide what this one takes
    RESET.write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def test_the_measure_sees_a_temporary():
    assert peak_growth(lambda: np.ones(2**24, np.uint8).sum()) >= 2**23


def native(a):
    """The same memory in native byte order, which an `out` must have."""
    return a.view(a.dtype.newbyteorder("="))


CALLS = {
    "softmax": lambda a, out: fs.softmax(a.x, out=out),
    "softmax, in place": lambda a, out: fs.softmax(out, out=out),
    "softmax, temperature": lambda a, out: fs.softmax(a.x, temperature=0.7, out=out),
    "softmax, where": lambda a, out: fs.softmax(a.x, where=a.where, out=out),
    "softmax, first axis": lambda a, out: fs.softmax(a.x, 0, out=out),
    "softmax, first axis, where": lambda a, out: fs.softmax(a.x, 0, where=a.where, out=out),
    "log_softmax": lambda a, out: fs.log_softmax(a.x, out=out),
    "log_softmax, where": lambda a, out: fs.log_softmax(a.x, where=a.where, out=out),
    "log_softmax, first axis": lambda a, out: fs.log_softmax(a.x, 0, out=out),
    "logsumexp": lambda a, out: fs.logsumexp(a.x, -1),
    "logsumexp, all axes": lambda a, out: fs.logsumexp(a.x),
    "logsumexp, first axis": lambda a, out: fs.logsumexp(a.x, 0),
    "logsumexp, where": lambda a, out: fs.logsumexp(a.x, -1, where=a.where),
    "logsumexp, b": lambda a, out: fs.logsumexp(a.x, -1, b=a.b, where=a.where, return_sign=True),
    "logsumexp, b of one row": lambda a, out: fs.logsumexp(a.x, 0, b=a.b[:1]),
    "entropy": lambda a, out: fs.entropy(a.x),
    "entropy, all axes": lambda a, out: fs.entropy(a.x, None, temperature=2),
    "entropy, first axis": lambda a, out: fs.entropy(a.x, 0),
    "entropy, where": lambda a, out: fs.entropy(a.x, where=a.where),
    "log_softmax_at": lambda a, out: fs.log_softmax_at(a.x, a.indices),
    "log_softmax_at, several": lambda a, out: fs.log_softmax_at(a.x, a.picks, out=out),
    "log_softmax_at, first axis": lambda a, out: fs.log_softmax_at(a.x, a.picks[:3], 0, temperature=2),
    "log_softmax_at, where": lambda a, out: fs.log_softmax_at(a.x, a.picks[:, :2], where=a.where),
    "log_softmax_top_k": lambda a, out: fs.log_softmax_top_k(a.x, 1 + a.x.shape[1] // 1000),
    "log_softmax_top_k, first axis": lambda a, out: fs.log_softmax_top_k(a.x, 4, 0),
    "log_softmax_top_k, where": lambda a, out: fs.log_softmax_top_k(a.x, 1, where=a.where),
    "sample": lambda a, out: fs.sample(a.x, GivenNumbers([0.5])),
    "sample, all": lambda a, out: fs.sample(
        a.x, GivenNumbers([0.5]), size=2, temperature=2, top_k=30, top_p=0.9, min_p=0.01, where=a.where
    ),
    "sample, first axis": lambda a, out: fs.sample(a.x, GivenNumbers([0.5]), 0, top_p=0.5),
    "LogSumExp": lambda a, out: fs.LogSumExp().update(a.x).softmax(a.x, out=out),
    "LogSumExp, first axis": lambda a, out: fs.LogSumExp(0).update(a.x).log_softmax(a.x, out=out),
    "LogSumExp, where": lambda a, out: fs.LogSumExp(temperature=2).update(a.x, where=a.where).softmax(a.x, out=out),
    "softmax_grad": lambda a, out: fs.softmax_grad(a.probabilities, a.dy, out=out),
    "softmax_grad, where": lambda a, out: fs.softmax_grad(a.probabilities, a.dy, where=a.where, out=out),
    "softmax_grad, first axis": lambda a, out: fs.softmax_grad(a.probabilities, a.dy, 0, out=out),
    "log_softmax_grad": lambda a, out: fs.log_softmax_grad(a.probabilities, a.dy, temperature=2, out=out),
    "log_softmax_grad, first axis": lambda a, out: fs.log_softmax_grad(a.probabilities, a.dy, 0, out=out),
    "cross_entropy": lambda a, out: fs.cross_entropy(a.x, a.indices),
    "cross_entropy, weight": lambda a, out: fs.cross_entropy(a.x, a.indices, weight=a.weight, label_smoothing=0.1),
    "cross_entropy, probabilities": lambda a, out: fs.cross_entropy(a.x, a.probabilities, label_smoothing=0.1),
    "cross_entropy, first axis": lambda a, out: fs.cross_entropy(a.x, a.indices, 0, reduction="none"),
    "cross_entropy_grad": lambda a, out: fs.cross_entropy_grad(a.x, a.indices, out=out),
    "cross_entropy_grad, in place": lambda a, out: fs.cross_entropy_grad(out, a.indices, out=out),
    "cross_entropy_with_grad": lambda a, out: fs.cross_entropy_with_grad(
        a.x, a.indices, reduction="none", upstream=a.upstream, ignore_index=0, out=out
    ),
    "cross_entropy_with_grad_hess": lambda a, out: fs.cross_entropy_with_grad_hess(
        out, a.indices, reduction="none", out=(out, native(a.dy))
    ),
    "cross_entropy_with_grad_hess, first axis": lambda a, out: fs.cross_entropy_with_grad_hess(
        a.x, a.indices, 0, out=(out, native(a.dy))
    ),
    "kl_divergence": lambda a, out: fs.kl_divergence(a.x, a.dy),
    "kl_divergence, first axis": lambda a, out: fs.kl_divergence(a.x, a.dy, 0, reduction="none"),
    "kl_divergence_with_grad": lambda a, out: fs.kl_divergence_with_grad(a.x, a.dy, where=a.where, out=out),
    "cross_entropy_with_grad, probabilities": lambda a, out: fs.cross_entropy_with_grad(a.x, a.probabilities, out=out),
    "cross_entropy_with_grad, first axis": lambda a, out: fs.cross_entropy_with_grad(a.x, a.indices, 0, out=out),
}


def warm_up(call, dtype, layout):
    """Make everything that is allocated only once: threads and their stacks, imports."""
    call(Inputs.normal((64, 64), dtype).map(layout), np.ones((64, 64), dtype))
    fs.softmax(np.ones((1000, 1000), np.float32))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS_HERE)
def test_peak_memory_grows_by_a_few_rows_whatever_the_layout(name, layout):
    measure(CALLS[name], (ROWS, CLASSES), np.dtype("float32"), LAYOUTS[layout])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [np.dtype("float16"), bfloat16, np.dtype("float64")], ids=str)
def test_peak_memory_grows_by_a_few_rows_whatever_the_dtype(name, dtype):
    measure(CALLS[name], (ROWS, CLASSES), dtype, LAYOUTS["c"])


@pytest.mark.parametrize("name", CALLS)
def test_peak_memory_grows_by_a_few_rows_with_few_classes(name):
    if not any(word in name for word in ("first axis", "sample", "LogSumExp")):  # which keep some numbers of each slice
        measure(CALLS[name], (ROWS * CLASSES // 4, 4), np.dtype("float32"), LAYOUTS["c"])


def test_draws_keep_a_few_numbers_of_each_slice(rng):
    x = np.ones((2**18, 4), np.float32)
    fs.sample(x[:99], rng, top_k=2)
    assert peak_growth(lambda: fs.sample(x, rng)) <= LIMIT + 4 * 8 * len(x)
    assert peak_growth(lambda: fs.sample(x, rng, top_k=2, top_p=0.7)) <= LIMIT + 6 * 8 * len(x)


@pytest.mark.parametrize(
    "name",
    [
        "softmax",
        "log_softmax",
        "logsumexp",
        "entropy",
        "log_softmax_at, several",
        "log_softmax_top_k",
        "sample",
        "LogSumExp",
        "softmax_grad",
        "cross_entropy",
    ],
)
def test_a_long_slice_needs_no_copy_of_itself(name):
    measure(CALLS[name], (1, ROWS * CLASSES), np.dtype("float32"), LAYOUTS["c"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool])
def test_integers_are_not_converted_beforehand(dtype):
    x = np.ones((ROWS, CLASSES), dtype)
    out, targets = np.ones((ROWS, CLASSES)), np.zeros(ROWS, int)
    fs.softmax(x[:100], out=out[:100])
    assert peak_growth(lambda: fs.softmax(x, out=out)) <= LIMIT
    assert peak_growth(lambda: fs.logsumexp(x)) <= LIMIT
    assert peak_growth(lambda: fs.entropy(x)) <= LIMIT
    assert peak_growth(lambda: fs.sample(x, GivenNumbers([0.5]), top_k=9)) <= LIMIT
    assert peak_growth(lambda: fs.cross_entropy(x, targets)) <= LIMIT


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_wider_result_needs_no_wider_copy_of_the_input(dtype):
    x = np.ones((ROWS, CLASSES), dtype)
    out = np.ones((ROWS, CLASSES))
    assert peak_growth(lambda: fs.log_softmax(x, dtype=np.float64, out=out)) <= LIMIT


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16])
def test_targets_are_not_converted_beforehand(dtype):
    x = np.ones((2**21, 2), np.float32)
    targets = np.zeros(x.shape if dtype is np.float16 else len(x), dtype)
    out = np.ones_like(x)
    fs.cross_entropy_grad(x[:99], targets[:99])
    assert peak_growth(lambda: fs.cross_entropy_with_grad(x, targets, out=out)) <= LIMIT


def repeated(shape, dtype):
    """Inputs of this shape, which repeat the values of small ones."""
    few = Inputs.normal((64, shape[1] if shape[1] < 64 else 64), dtype)
    large = few.map(lambda a: np.resize(a, shape if a.ndim == 2 else shape[:1]))
    large.weight = np.ones(shape[1])
    return large


def measure(call, shape, dtype, layout):
    warm_up(call, dtype, layout)
    a = repeated(shape, dtype).map(layout)
    out = np.ones(shape, dtype)
    growth = peak_growth(lambda: call(a, out))
    assert growth <= LIMIT + 2 * 8 * shape[0], f"{growth / 2**20:.1f} MiB"  # sums and signs, or losses, of each slice


FEW_LONG_SLICES = {
    "softmax": lambda x, dy, out, targets: fs.softmax(x, 0, out=out),
    "softmax, where": lambda x, dy, out, targets: fs.softmax(x, 0, where=True, out=out),
    "log_softmax": lambda x, dy, out, targets: fs.log_softmax(x, 0, out=out),
    "logsumexp": lambda x, dy, out, targets: fs.logsumexp(x, 0),
    "entropy": lambda x, dy, out, targets: fs.entropy(x, 0),
    "log_softmax_at": lambda x, dy, out, targets: fs.log_softmax_at(x, targets, 0),
    "log_softmax_top_k": lambda x, dy, out, targets: fs.log_softmax_top_k(x, 50, 0),
    "sample": lambda x, dy, out, targets: fs.sample(x, GivenNumbers([0.5]), 0),
    "sample, top_p": lambda x, dy, out, targets: fs.sample(x, GivenNumbers([0.5]), 0, top_p=0.5),
    "softmax_grad": lambda x, dy, out, targets: fs.softmax_grad(x, dy, 0, out=out),
    "log_softmax_grad": lambda x, dy, out, targets: fs.log_softmax_grad(x, dy, 0, out=out),
    "cross_entropy": lambda x, dy, out, targets: fs.cross_entropy(x, targets, 0),
    "cross_entropy, label_smoothing": lambda x, dy, out, targets: fs.cross_entropy(x, targets, 0, label_smoothing=0.1),
    "cross_entropy, probabilities": lambda x, dy, out, targets: fs.cross_entropy(x, dy, 0),
    "cross_entropy_grad": lambda x, dy, out, targets: fs.cross_entropy_grad(x, targets, 0, out=out),
    "cross_entropy_with_grad_hess": lambda x, dy, out, targets: fs.cross_entropy_with_grad_hess(
        x, targets, 0, out=(out, dy)
    ),
}


@pytest.mark.parametrize("call", FEW_LONG_SLICES.values(), ids=FEW_LONG_SLICES)
def test_a_few_long_slices_side_by_side_need_no_copy_of_themselves(call):
    few, targets = np.ones((1000, 16), np.float32), np.zeros(16, int)
    call(few, few, few.copy(), targets)
    warm_up(lambda a, out: None, np.dtype("float32"), LAYOUTS["c"])
    x = np.ones((1_000_000, 16), np.float32)
    dy, out = x.copy(), x.copy()
    growth = peak_growth(lambda: call(x, dy, out, targets))
    assert growth <= 2**24, f"{growth / 2**20:.1f} MiB"


# Run with a folder and the size of a file. The system refuses every private byte that a call takes beyond the limit.
MAPPED = """
import resource, sys
from pathlib import Path
import fastsoftmax as fs
import numpy as np

def data():
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmData"))
    return int(line.split()[1]) * 1024

shape = 2**10, int(sys.argv[2]) // 2**12
warm = np.zeros((2000, 1000), np.float32)
fs.LogSumExp().update(warm).softmax(fs.softmax(warm), out=warm)
x = np.memmap(Path(sys.argv[1]) / "x", np.float32, "w+", shape=shape)
y = np.memmap(Path(sys.argv[1]) / "y", np.float32, "w+", shape=shape)
x[::97, 5] = 3
resource.setrlimit(resource.RLIMIT_DATA, (data() + 2**22, resource.RLIM_INFINITY))
try:
    np.ones(2**23, np.uint8)
    sys.exit("the limit is not kept")
except MemoryError:
    pass
assert fs.softmax(x, out=y) is y
total = fs.LogSumExp()
for begin in range(0, shape[1], 2**14):
    total.update(x[:, begin : begin + 2**14])
for begin in range(0, shape[1], 2**14):
    part = slice(begin, begin + 2**14)
    total.softmax(x[:, part], out=x[:, part])
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for i in (0, 1, 97, shape[0] - 1):
    wanted = np.exp(3.0) if i % 97 == 0 else 1.0
    np.testing.assert_allclose(y[i, 5], wanted / (wanted + shape[1] - 1), 1e-6)
    np.testing.assert_allclose(x[i, 4:7], y[i, 4:7], 1e-6)
"""


@pytest.mark.parametrize("size", [2**28, pytest.param(2**32, marks=pytest.mark.huge)], ids=["256 MB", "4 GB"])
def test_softmax_from_file_to_file_takes_a_few_megabytes_of_private_memory(size, tmp_path, environment):
    """Softmax from one `numpy.memmap` to another takes at most 4 MiB of private memory, in one call and in pieces."""
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, tmp_path, str(size)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
