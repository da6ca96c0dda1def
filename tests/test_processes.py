"""Processes: forked and spawned children, workers of pools, signals during a call, the end of the process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import Inputs, assert_all_same_bits, every_result

TIME_LIMIT = 300  # of a process that hangs; emulated ones take a minute
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
# Python warns that a fork of a process with threads can hang, which is what these tests are about.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def large():
    """Enough work to wake every thread."""
    return Inputs.normal((600, 450), np.float32)


def run(code, environment, *arguments):
    """Run a program and return its output. It must succeed and write nothing to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Children of a process that has used its threads


def in_a_child(check):
    """The exit code of a child that runs `check`; None if it had to be killed at the time limit."""
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            os._exit(1)
        os._exit(0)
    for _ in range(TIME_LIMIT * 100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@needs_fork
@forks
def test_a_forked_child_and_a_child_of_its_own_compute_on_one_thread_and_end(large, threads):
    with threads(2):
        wanted = every_result(fs, large)

        def check():
            assert fs.get_num_threads() == 1
            assert_all_same_bits(every_result(fs, large), wanted)
            fs.set_num_threads(2)
            assert fs.get_num_threads() == 1
            assert_all_same_bits(every_result(fs, large), wanted)

        def check_twice():
            check()
            assert in_a_child(check) == 0

        assert in_a_child(check_twice) == 0
        assert_all_same_bits(every_result(fs, large), wanted)


@needs_fork
@forks
def test_a_fork_while_another_thread_computes_gives_a_working_child(large, threads):
    with threads(2):
        wanted = fs.softmax(large.x)
        stop = threading.Event()

        def keep_computing():
            while not stop.is_set():
                fs.softmax(large.x)

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(keep_computing)
            try:
                for _ in range(10):
                    assert in_a_child(lambda: assert_all_same_bits(fs.softmax(large.x), wanted)) == 0
            finally:
                stop.set()
            running.result()


@forks
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing_gives_the_same_bits(method, large, threads):
    with threads(2):
        wanted = every_result(fs, large)
        with multiprocessing.get_context(method).Pool(2) as pool:
            for got in pool.starmap_async(every_result_here, [(large,)] * 2).get(TIME_LIMIT):
                assert_all_same_bits(got, wanted)
        assert_all_same_bits(every_result(fs, large), wanted)


def every_result_here(inputs):
    return every_result(fs, inputs)


@forks
@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib_gives_the_same_bits(backend, large, threads):
    joblib = pytest.importorskip("joblib")
    with threads(2):
        wanted = every_result(fs, large)
        jobs = joblib.Parallel(2, backend=backend, timeout=TIME_LIMIT)
        for got in jobs(joblib.delayed(every_result_here)(large) for _ in range(3)):
            assert_all_same_bits(got, wanted)
        assert_all_same_bits(every_result(fs, large), wanted)


def test_tests_that_use_threads_run_under_pytest_xdist(tmp_path, environment):
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(
        "import fastsoftmax as fs, numpy as np, pytest\n"
        "@pytest.mark.parametrize('n', range(8))\n"
        "def test_it(n):\n"
        "    x = np.random.default_rng(n).normal(size=(1000, 300))\n"
        "    with fs.num_threads(1):\n"
        "        wanted = fs.softmax(x)\n"
        "    assert np.array_equal(fs.softmax(x), wanted)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--numprocesses=2", tmp_path]
    variables = environment | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert "8 passed" in done.stdout, done.stdout + done.stderr


# Threads that the system refuses

LIMITED = """
    import os, resource, sys, threading
    import fastsoftmax as fs, numpy as np

    limit, *earlier = sys.argv[1:]
    x = np.random.default_rng(0).normal(size=(600, 450)).astype(np.float32)
    out = np.empty_like(x)
    with fs.num_threads(1):
        wanted = fs.softmax(x)
    for n in map(int, earlier):
        with fs.num_threads(n):
            fs.softmax(x)
    if limit == "processes":
        if os.getuid() == 0:  # exempt from the limit
            os.setuid(65534)
        kind, most = resource.RLIMIT_NPROC, 1
    else:  # less than any stack
        with open("/proc/self/statm") as file:
            kind, most = resource.RLIMIT_AS, int(file.read().split()[0]) * resource.getpagesize() + 2**16
    before = resource.getrlimit(kind)
    tasks = len(os.listdir("/proc/self/task"))
    resource.setrlimit(kind, (most, before[1]))
    fs.softmax(x, out=out)
    started = len(os.listdir("/proc/self/task")) - tasks
    try:
        threading.Thread(target=int).start()
        held = False
    except RuntimeError:
        held = True
    resource.setrlimit(kind, before)
    print(started, held, np.array_equal(out, wanted))
"""


# The numbers of threads of earlier calls: none; fewer than the call wants; as many, and then fewer.
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")
@pytest.mark.parametrize("earlier", [(), ("2",), ("4", "2")])
@pytest.mark.parametrize("limit", ["address space", "processes"])
def test_a_call_computes_with_the_threads_that_it_can_have(limit, earlier, environment):
    printed = run(LIMITED, environment | {"OMP_NUM_THREADS": "4"}, limit, *earlier)
    if limit == "address space" and printed.endswith("False True\n"):
        pytest.skip("the system ignores the limit, as qemu-user does: no thread is refused")
    assert printed == "0 True True\n"


# Signals

INTERRUPTED = """
    import signal, sys, threading, time
    import fastsoftmax as fs, numpy as np

    threads, in_place, with_worker = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
    fs.set_num_threads(threads)
    x = np.random.default_rng(0).normal(size=(2000, 1000)).astype(np.float32)
    complete = fs.softmax(x)
    out = x.copy()
    ends = [(fs.softmax(out, out=out), time.perf_counter())[1] for _ in range(10)]
    duration = min(np.diff(ends))
    stop = threading.Event()
    different = []

    def keep_computing():
        while not stop.is_set():
            if not np.array_equal(fs.softmax(x[:500]), complete[:500]):
                different.append(1)

    worker = threading.Thread(target=keep_computing)
    if with_worker:
        worker.start()

    in_the_call = 0
    for attempt in range(500):
        out[...] = before = x if in_place else 7
        returned = False
        main = threading.main_thread().ident
        timer = threading.Timer((attempt + 3) % 10 / 10 * duration, signal.pthread_kill, (main, signal.SIGINT))
        try:
            timer.start()
            fs.softmax(out if in_place else x, out=out)
            returned = True
            for _ in range(1000):  # a signal right before a sleep does not end it
                time.sleep(0.01)
            raise SystemExit("never interrupted")
        except KeyboardInterrupt:
            done = np.array_equal(out, complete)
            assert done or np.all(out == before), "half written"
            assert done or not returned, "not written"
            in_the_call += done and not returned
        timer.join()
        assert np.array_equal(fs.softmax(x), complete)
        if in_the_call == 3:
            break
    stop.set()
    if with_worker:
        worker.join()
    assert not different
    print(in_the_call)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads on this system")
@pytest.mark.parametrize("with_worker", [0, 1])
@pytest.mark.parametrize("in_place", [0, 1])
@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_during_a_call_is_raised_when_the_result_is_complete(n, in_place, with_worker, environment):
    assert run(INTERRUPTED, environment | {"OMP_NUM_THREADS": "2"}, str(n), str(in_place), str(with_worker)) == "3\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals on this system")
def test_a_signal_handler_may_call_the_package_during_a_call(large, threads):
    with threads(2):
        wanted = every_result(fs, large)
        handled = []

        def handler(number, frame):
            handled.append(every_result(fs, large))

        earlier = signal.signal(signal.SIGALRM, handler)
        try:
            for _ in range(50):
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                assert_all_same_bits(every_result(fs, large), wanted)
                if len(handled) == 3:
                    break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, earlier)
        assert handled
        for got in handled:
            assert_all_same_bits(got, wanted)


# The end of the process


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("rows", [20, 2000])
def test_daemon_threads_may_compute_while_the_process_ends(rows, workers, environment):
    code = """
        import sys, threading, time
        import fastsoftmax as fs, numpy as np

        x = np.ones((int(sys.argv[1]), 500), np.float32)
        ready = threading.Barrier(int(sys.argv[2]) + 1)

        def keep_computing():
            out = np.empty_like(x)
            fs.softmax(x, out=out)
            ready.wait()
            while True:
                fs.softmax(x, out=out)

        for _ in range(int(sys.argv[2])):
            threading.Thread(target=keep_computing, daemon=True).start()
        ready.wait()
        time.sleep(0.05)
    """
    for _ in range(2):
        run(code, environment | {"OMP_NUM_THREADS": "2"}, str(rows), str(workers))


@pytest.mark.parametrize("end", ["os._exit(3)", "sys.exit(3)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_the_process_ends_at_once_while_threads_compute(end, environment):
    code = f"""
        import os, signal, sys, threading
        import fastsoftmax as fs, numpy as np

        x = np.ones((4000, 1000), np.float32)
        ready = threading.Barrier(5)

        def keep_computing():
            ready.wait()
            while True:
                fs.softmax(x)

        for _ in range(4):
            threading.Thread(target=keep_computing, daemon=True).start()
        ready.wait()
        fs.softmax(x)
        {end}
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    variables = environment | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM if "kill" in end else 3, "")


def test_calls_work_while_the_interpreter_ends(environment):
    code = """
        import atexit, fastsoftmax as fs, numpy as np

        class Last:
            def __init__(self):
                self.softmax, self.x = fs.softmax, np.ones((1000, 100), np.float32)

            def __del__(self):
                print(self.softmax(self.x)[0, 0])

        last = Last()
        atexit.register(lambda: print(fs.softmax(last.x)[0, 0]))
    """
    assert run(code, environment | {"OMP_NUM_THREADS": "2"}) == "0.01\n0.01\n"
