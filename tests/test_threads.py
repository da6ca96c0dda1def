"""Threads: their number, the work that they share, callers in parallel, and the GIL."""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import CALLS, Inputs, assert_all_same_bits, every_result
from fastsoftmax import _core

TIME_LIMIT = 30
WITH_OPENMP = _core.describe()["openmp"] is not None
needs_openmp = pytest.mark.skipif(not WITH_OPENMP, reason="needs OpenMP")
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")


@pytest.fixture(scope="module")
def large():
    """Enough work to wake every thread."""
    return Inputs.normal((2000, 500), np.float32)


def run(code, environment, **variables):
    """Run a program, with only the given variables of OpenMP; return the words that it prints."""
    environment = {k: v for k, v in environment.items() if not k.startswith("OMP_")} | variables
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10 * TIME_LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


NUMBER = "import fastsoftmax; print(fastsoftmax.get_num_threads())\n"


# The number of threads


def test_num_threads_limits_its_block_and_restores_the_limit(threads):
    with threads(2):
        with fs.num_threads(1):
            assert fs.get_num_threads() == 1
            with fs.num_threads(2):
                assert fs.get_num_threads() == 2
            assert fs.get_num_threads() == 1
        assert fs.get_num_threads() == 2


def test_num_threads_restores_the_limit_after_an_error(threads):
    with threads(2):
        with pytest.raises(KeyError), fs.num_threads(1):
            raise KeyError
        assert fs.get_num_threads() == 2


def test_one_thread_is_always_possible():
    with fs.num_threads(1):
        assert fs.get_num_threads() == 1


@needs_openmp
def test_the_smaller_limit_of_openmp_and_num_threads_counts():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(3, user_api="openmp"):
        for asked, given in [(2, 2), (3, 3), (5, 3), (np.int64(1), 1), (2**40, 3)]:
            with fs.num_threads(asked):
                assert fs.get_num_threads() == given


@needs_openmp
@pytest.mark.parametrize("n", [1, 3])
def test_omp_num_threads_is_honoured(n, environment):
    assert run(NUMBER, environment, OMP_NUM_THREADS=str(n)) == [str(n)]


@needs_openmp
def test_omp_thread_limit_is_honoured(environment):
    assert run(NUMBER, environment, OMP_NUM_THREADS="3", OMP_THREAD_LIMIT="2") == ["2"]


@needs_affinity
def test_a_process_that_may_use_one_processor_has_one_thread(environment):
    processor = min(os.sched_getaffinity(0))
    assert run(f"import os; os.sched_setaffinity(0, {{{processor}}})\n" + NUMBER, environment) == ["1"]


@contextmanager
def processors_limited_to(quota):
    """Yield code with which a process enters a cgroup limited to `quota` processors; skip where that is impossible."""
    version2 = Path("/sys/fs/cgroup/cgroup.controllers")
    mount_point = version2.parent if version2.exists() else Path("/sys/fs/cgroup/cpu")
    group = mount_point / f"fastsoftmax-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    try:
        period = 100_000
        try:
            if version2.exists():
                (group / "cpu.max").write_text(f"{round(quota * period)} {period}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(period))
                (group / "cpu.cfs_quota_us").write_text(str(round(quota * period)))
        except OSError as error:
            pytest.skip(f"cannot limit the processors of a cgroup: {error}")
        yield f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
    finally:
        group.rmdir()


@pytest.mark.parametrize(("quota", "most"), [(0.5, 1), (1.7, 1), (2, 2), (1000, 1000)])
def test_a_cpu_quota_limits_threads_to_whole_processors(quota, most, environment):
    [free] = run(NUMBER, environment)
    with processors_limited_to(quota) as enter:
        assert run(enter + NUMBER, environment) == [str(min(most, int(free)))]


@needs_openmp
def test_omp_num_threads_overrides_a_cpu_quota(environment):
    with processors_limited_to(0.5) as enter:
        assert run(enter + NUMBER, environment, OMP_NUM_THREADS="2") == ["2"]


def test_the_limit_is_that_of_the_process():
    with fs.num_threads(1), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fs.get_num_threads).result() == 1


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to look at threads")


@needs_openmp
@needs_proc
def test_no_thread_starts_before_the_first_large_call(environment):
    code = """
        import os, numpy as np

        def threads():
            return len(os.listdir("/proc/self/task"))

        before = threads()
        import fastsoftmax as fs
        fs.softmax(np.ones((10, 10))), fs.cross_entropy(np.ones((100, 10)), np.zeros(100, int)), fs.get_num_threads()
        small = threads()
        fs.softmax(np.ones((1000, 1000)))
        print(small - before, threads() - before)
    """
    assert run(code, environment, OMP_NUM_THREADS="3") == ["0", "2"]


@needs_openmp
@needs_proc
def test_threads_leave_every_signal_to_the_program(environment):
    code = """
        import os, re, signal, numpy as np

        def blocked(task):
            with open(f"/proc/self/task/{task}/status") as file:
                return int(re.search("SigBlk:(.*)", file.read())[1], 16)

        import fastsoftmax as fs
        before = set(os.listdir("/proc/self/task"))
        held = blocked(os.getpid())
        fs.softmax(np.ones((1000, 1000)))
        every = sum(1 << n - 1 for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
        started = set(os.listdir("/proc/self/task")) - before
        print(len(started), all(blocked(s) & every == every for s in started), blocked(os.getpid()) == held)
    """
    assert run(code, environment, OMP_NUM_THREADS="3") == ["2", "True", "True"]


def test_threads_without_work_use_no_processor(threads):
    x = np.ones((600, 500), np.float32)
    with threads(2):
        for _ in range(50):
            fs.softmax(x)
        time.sleep(0.1)
        used = []
        for _ in range(3):  # the least, because other threads of this process may be busy
            start = time.process_time()
            time.sleep(0.5)
            used.append(time.process_time() - start)
    assert min(used) < 0.005


# Shared work


# Rows, gathered rows and tiles; slices in blocks, alone and side by side.
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(600, 500), (2, 150_000), (16, 20_000)])
def test_two_threads_give_the_bits_of_one_in_every_call(shape, axis, threads):
    a = Inputs.normal(shape, np.float32).move(axis)
    with threads(1):
        wanted = every_result(fs, a, axis)
    with threads(2):
        assert_all_same_bits(every_result(fs, a, axis), wanted)


@pytest.mark.parametrize("mode", ["flush_subnormals", "round_upward"])
def test_two_threads_give_the_bits_of_one_however_the_caller_rounds(mode, threads, shared_library):
    switch = getattr(ctypes.CDLL(str(shared_library("floating_point_mode.c", "-lm"))), mode)
    a = Inputs.normal((600, 500), np.float32)
    a.x *= 20  # some probabilities are subnormal
    with threads(1):
        usual = every_result(fs, a)
    try:
        if mode == "flush_subnormals" and not switch(1):
            pytest.skip("not implemented for this processor")
        switch(1)
        with threads(1):
            wanted = every_result(fs, a)
        with threads(2):
            got = [every_result(fs, a) for _ in range(5)]
    finally:
        switch(0)
    assert any(not np.array_equal(w, u, equal_nan=True) for w, u in zip(wanted, usual, strict=True))
    for g in got:
        assert_all_same_bits(g, wanted)


@pytest.mark.parametrize("sanitizer", ["none", "thread"])
def test_each_chunk_is_computed_once_by_no_more_threads_than_asked_for(sanitizer, tmp_path, environment, emulator):
    """Calls parallel_for itself, from 12 threads at once, for more threads than there are processors."""
    cpp, program = Path(__file__).parent.parent / "cpp", tmp_path / "parallel_for"
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or not cpp.exists():
        pytest.skip("needs a C++ compiler and the sources")
    if emulator and sanitizer != "none":
        pytest.skip("ThreadSanitizer cannot be emulated")
    sources = [Path(__file__).with_name("parallel_for.cpp"), cpp / "threads.cpp", cpp / "processors.cpp"]
    options = ["-std=c++20", "-O1", "-pthread", "-I", cpp]
    environment.pop("LD_PRELOAD", None)  # this process's sanitizer
    if sanitizer != "none":
        options.append(f"-fsanitize={sanitizer}")
    command = [compiler, *options, *sources, "-o", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode and sanitizer != "none":
        pytest.skip(f"{compiler} has no sanitizer: {done.stderr.splitlines()[:1]}")
    assert done.returncode == 0, done.stderr
    command = [*emulator, program, "12", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=4 * TIME_LIMIT)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not get along with this kernel's address space")
    assert done.returncode == 0, done.stdout + done.stderr
    calls, shared = map(int, done.stdout.split())
    assert calls > 100
    assert shared > 0 or os.cpu_count() == 1


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


def test_python_threads_with_work_of_every_size_get_the_same_bits(threads):
    """There are more Python threads than calls that can share their work at the same time."""
    shapes = [(20, 100), (400, 100), (1000, 300), (3000, 700), (3, 150_000), (40, 40_000), (100_000, 5), (90_000, 12)]
    inputs = [np.random.default_rng(n).normal(size=shape).astype(np.float32) for n, shape in enumerate(shapes)]
    with threads(1):
        wanted = [fs.softmax(x, axis) for x in inputs for axis in (0, 1)]
    start = threading.Barrier(32)

    def compute(first):
        start.wait(TIME_LIMIT)
        order = np.roll(np.arange(len(wanted)), first)
        return [(i, fs.softmax(inputs[i // 2], i % 2)) for i in order]

    with threads(3), ThreadPoolExecutor(32) as pool:
        for results in pool.map(compute, range(32)):
            for i, got in results:
                assert_all_same_bits(got, wanted[i])


@needs_affinity
def test_callers_bound_to_one_processor_and_free_ones_get_the_same_bits(large, threads):
    processors = sorted(os.sched_getaffinity(0))
    with threads(2):
        wanted = fs.softmax(large.x)

        def compute(n):
            if n < 4:
                os.sched_setaffinity(0, {processors[n % len(processors)]})  # only of this thread
            for _ in range(50):
                assert_all_same_bits(fs.softmax(large.x), wanted)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(compute, range(6)))
        assert sorted(os.sched_getaffinity(0)) == processors


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


def test_results_are_right_beside_another_openmp_user_in_the_process(large, threads):
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


# Beside other processes

BESIDE_OTHERS = """
    import os, statistics, time
    import fastsoftmax as fs, numpy as np

    os.nice(9)  # so that two of its threads rarely run at the same time
    x = np.random.default_rng(0).normal(size=(330, 100)).astype(np.float32)
    times = {1: [], 2: []}
    end = time.perf_counter() + 4
    while time.perf_counter() < end:
        for n in times:
            with fs.num_threads(n):
                for _ in range(200):
                    start = time.perf_counter()
                    fs.softmax(x)
                    times[n].append(time.perf_counter() - start)
    print(statistics.median(times[2]) / statistics.median(times[1]))
"""


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "nice"), reason="no niceness on this system")
def test_threads_do_no_harm_on_a_busy_machine(environment):
    """If each call waited for all of its threads, most would take a time slice: hundreds of times as long."""
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        [ratio] = run(BESIDE_OTHERS, environment, OMP_NUM_THREADS="2")
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert float(ratio) < 3


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


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "entropy", "softmax_grad", "indices", "sample"])
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
