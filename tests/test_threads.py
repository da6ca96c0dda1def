"""Threads: their number, callers in parallel, and the GIL."""

import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import CALLS, Inputs, assert_all_same_bits, every_result
from fastsoftmax import _core

TIME_LIMIT = 30
needs_openmp = pytest.mark.skipif(_core.describe()["openmp"] is None, reason="needs OpenMP")


@pytest.fixture(scope="module")
def large():
    """Enough work to wake every thread."""
    return Inputs.normal((2000, 500), np.float32)


# Their number


def test_num_threads_limits_for_its_block_and_puts_back(threads):
    with threads(2):
        with fs.num_threads(1):
            assert fs.get_num_threads() == 1
            with fs.num_threads(2):
                assert fs.get_num_threads() == 2
            assert fs.get_num_threads() == 1
        assert fs.get_num_threads() == 2


def test_num_threads_puts_back_after_an_error(threads):
    with threads(2):
        with pytest.raises(KeyError), fs.num_threads(1):
            raise KeyError
        assert fs.get_num_threads() == 2


def test_one_thread_is_always_possible():
    with fs.num_threads(1):
        assert fs.get_num_threads() == 1


@needs_openmp
def test_the_smaller_of_both_limits_counts():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(3, user_api="openmp"):
        for asked, given in [(2, 2), (3, 3), (5, 3), (np.int64(1), 1), (2**40, 3)]:
            with fs.num_threads(asked):
                assert fs.get_num_threads() == given


@needs_openmp
@pytest.mark.parametrize("n", [1, 3])
def test_omp_num_threads_is_honoured(n, environment):
    code = "import fastsoftmax; print(fastsoftmax.get_num_threads())"
    got = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"OMP_NUM_THREADS": str(n)}, capture_output=True, check=True
    )
    assert int(got.stdout) == n


def test_the_limit_is_that_of_the_process():
    with fs.num_threads(1), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fs.get_num_threads).result() == 1


@needs_openmp
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to count threads")
def test_small_work_wakes_no_thread(environment):
    code = (
        "import os, numpy as np, fastsoftmax as fs\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "fs.softmax(np.ones((10, 10))); fs.cross_entropy(np.ones((100, 10)), np.zeros(100, int))\n"
        "small = len(os.listdir('/proc/self/task'))\n"
        "fs.softmax(np.ones((1000, 1000)))\n"
        "print(small - before, len(os.listdir('/proc/self/task')) - before)"
    )
    got = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"OMP_NUM_THREADS": "3"}, capture_output=True, check=True
    )
    assert got.stdout.split() == [b"0", b"2"]


# Work that they share


# Rows, gathered rows and tiles; slices in blocks, alone and side by side.
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(600, 500), (2, 150_000), (16, 20_000)])
def test_two_threads_give_the_bits_of_one_in_every_call(shape, axis, threads):
    a = Inputs.normal(shape, np.float32).move(axis)
    with threads(1):
        wanted = every_result(fs, a, axis)
    with threads(2):
        assert_all_same_bits(every_result(fs, a, axis), wanted)


# Callers in parallel


@pytest.mark.parametrize("n", [1, 2])
def test_sixty_four_python_threads_at_once_get_the_same_bits(n, threads):
    a = Inputs.normal((600, 450), np.float32)
    with threads(n):
        wanted = every_result(fs, a)
        start = threading.Barrier(64)

        def after_all_are_ready(_):
            start.wait(TIME_LIMIT)
            return every_result(fs, a)

        with ThreadPoolExecutor(64) as pool:
            for got in pool.map(after_all_are_ready, range(64)):
                assert_all_same_bits(got, wanted)


def test_the_limit_may_change_while_others_compute(large):
    wanted = fs.softmax(large.x)
    before = fs.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(fs.softmax, large.x) for _ in range(40)]
        for n in range(40):
            fs.set_num_threads(1 + n % 4)
        for r in running:
            assert_all_same_bits(r.result(), wanted)
    fs.set_num_threads(2**31 - 1)
    assert fs.get_num_threads() == before


def test_another_openmp_user_in_the_process_is_no_trouble(large, threads):
    """scikit-learn's loops are OpenMP regions, of the same or of another runtime."""
    cluster = pytest.importorskip("sklearn.cluster")
    with threads(2):
        wanted = fs.softmax(large.x)
        with ThreadPoolExecutor(2) as pool:
            fit = pool.submit(cluster.KMeans(3, n_init=1, max_iter=5, random_state=0).fit, large.x[:, :20])
            for _ in range(10):
                assert_all_same_bits(fs.softmax(large.x), wanted)
            fit.result()
        assert_all_same_bits(fs.softmax(large.x), wanted)


# The GIL


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has its GIL")
def test_the_gil_stays_off(environment):
    """Python turns it on, with a warning, for a module that does not say that it needs none."""
    code = (
        "import sys, numpy as np, fastsoftmax as fs\n"
        "fs.softmax(np.ones((200, 100))), fs.reference.softmax([1.0])\n"
        "print(sys._is_gil_enabled())"
    )
    unforced = {k: v for k, v in environment.items() if k != "PYTHON_GIL"}
    got = subprocess.run([sys.executable, "-W", "error", "-c", code], env=unforced, capture_output=True, text=True)
    assert got.stdout.split() == ["False"], got.stderr


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "softmax_grad", "indices"])
def test_other_python_threads_run_while_a_kernel_does(name):
    inputs = Inputs.normal((12_000, 1000), np.float64)
    ticks, stop = [], threading.Event()

    def keep_ticking():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    with fs.num_threads(1):
        other = threading.Thread(target=keep_ticking)
        other.start()
        start = time.perf_counter()
        CALLS[name](fs, inputs, -1)
        end = time.perf_counter()
        stop.set()
        other.join()
    margin = (end - start) / 4
    assert any(start + margin < tick < end - margin for tick in ticks)
