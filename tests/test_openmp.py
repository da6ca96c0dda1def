"""Other users of OpenMP in the process: callers in their parallel regions, several runtimes, and threadpoolctl."""

import itertools
import json
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pytest
from fastsoftmax import _core

TIME_LIMIT = 120

pytestmark = pytest.mark.skipif(_core.describe()["openmp"] is None, reason="built without OpenMP")

# Every program prints as JSON what it found; a hang is an error.
BEGINNING = """
    import json, os, re, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np

    def compute(fs):
        a = np.random.default_rng(0).normal(size=(2000, 300)).astype(np.float32)
        targets = np.arange(2000) % 300
        return [fs.softmax(a), fs.log_softmax(a.T, 0), fs.logsumexp(a, 1), fs.cross_entropy_grad(a, targets)]

    def computed_right(fs):
        return all(np.array_equal(got, wanted) for got, wanted in zip(compute(fs), right, strict=True))

    def right_of(fs):
        with fs.num_threads(1):
            return compute(fs)

    def subnormals_live():
        tiny = np.finfo(np.float64).smallest_normal, np.finfo(np.float32).smallest_normal
        halves = [np.full(99, t) * t.dtype.type(0.5) for t in tiny]
        return bool(all((h > 0).all() and (h + h == t).all() for h, t in zip(halves, tiny)))

    def tasks():
        return len(os.listdir("/proc/self/task"))
"""


def run(code, environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BEGINNING) + textwrap.dedent(code), *map(str, arguments)],
        env=environment | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Callers in a parallel region


# GCC's runtime and, if the linker has them, LLVM's and Intel's, which also serve GCC's calls and are found first.
@pytest.mark.parametrize("runtime", ["libgomp.so.1", "libomp.so.5", "libiomp5.so"])
def test_calls_from_another_parallel_region_give_the_same_bits(runtime, shared_library, environment):
    library = shared_library("openmp_region.c", "-fopenmp", f"-l:{runtime}")
    results, threads, after, loaded = run(
        """
        import ctypes, fastsoftmax as fs

        right = right_of(fs)
        assert computed_right(fs)
        library = ctypes.CDLL(sys.argv[1])
        results, threads = [], set()

        def call():
            threads.add(threading.get_native_id())
            results.append((computed_right(fs), subnormals_live(), fs.get_num_threads()))

        for _ in range(5):
            library.in_region(3, ctypes.CFUNCTYPE(None)(call))
        with open("/proc/self/maps") as maps:
            loaded = re.findall("lib(?:omp|iomp5)[.]so", maps.read())
        print(json.dumps([results, len(threads), computed_right(fs), bool(loaded)]))
        """,
        environment,
        library,
    )
    assert len(results) == 15
    assert threads >= 3
    assert all(right and live and 1 <= n <= 2 for right, live, n in results)
    assert after
    assert loaded == (runtime != "libgomp.so.1")


def test_no_thread_is_woken_inside_a_region_of_the_same_runtime(shared_library, environment):
    runtimes, seen, woken = run(
        """
        import ctypes, fastsoftmax as fs

        right = right_of(fs)
        library = ctypes.CDLL(sys.argv[1])
        with open("/proc/self/maps") as maps:
            runtimes = set(re.findall("/.*libgomp.*", maps.read()))
        seen = []
        library.in_region(1, ctypes.CFUNCTYPE(None)(lambda: None))
        before = tasks()

        def call():
            seen.append((fs.get_num_threads(), computed_right(fs)))

        library.in_region(2, ctypes.CFUNCTYPE(None)(call))
        print(json.dumps([sorted(runtimes), seen, tasks() - before]))
        """,
        environment,
        shared_library("openmp_region.c", "-fopenmp", "-l:libgomp.so.1"),
    )
    if len(runtimes) > 1:
        pytest.skip(f"the package has a libgomp of its own, as a repaired wheel has: {', '.join(runtimes)}")
    assert seen == [[1, True], [1, True]]
    assert woken == 1


# Several runtimes, in every order

USES = {
    "fastsoftmax": """
        import fastsoftmax
    """,
    "sklearn": """
        from sklearn.cluster import KMeans
        def use_sklearn():
            points = np.random.default_rng(0).normal(size=(2000, 10))
            return len(KMeans(3, n_init=1, max_iter=5, random_state=0).fit(points).cluster_centers_) == 3
    """,
    "torch": """
        import torch
        def use_torch():
            x = torch.linspace(-5, 5, 600_000).reshape(2000, 300)
            p = torch.softmax(x, 1)
            return torch.get_num_threads() == 2 and bool(torch.allclose(p.sum(1), torch.ones(2000)))
    """,
}


def all_right(order, environment):
    """Whether each library computes right results, one after another and at the same time."""
    uses = "".join(USES[name] for name in order)
    others = ", ".join(f"use_{name}" for name in order if name != "fastsoftmax")
    return run(
        f"""
        {uses}
        others = [{others}]
        right = right_of(fastsoftmax)
        found = [computed_right(fastsoftmax)]
        found += [use() for use in others] + [computed_right(fastsoftmax)]
        with ThreadPoolExecutor(len(others) + 1) as pool:
            running = [pool.submit(use) for use in others for _ in range(5)]
            running += [pool.submit(computed_right, fastsoftmax) for _ in range(5)]
            found += [r.result() for r in running]
        found += [use() for use in others] + [computed_right(fastsoftmax), subnormals_live()]
        print(json.dumps(found))
        """,
        environment,
    )


@pytest.mark.parametrize("order", list(itertools.permutations(["fastsoftmax", "sklearn"])), ids=", ".join)
def test_results_are_right_beside_scikit_learn_in_any_order_of_import(order, environment):
    if not find_spec("sklearn"):
        pytest.skip("needs scikit-learn")
    assert all(all_right(order, environment))


@pytest.mark.parametrize("order", list(itertools.permutations(["fastsoftmax", "sklearn", "torch"])), ids=", ".join)
def test_results_are_right_beside_torch_and_scikit_learn_in_any_order_of_import(order, environment):
    if not find_spec("sklearn") or not find_spec("torch"):
        pytest.skip("needs torch and scikit-learn")
    assert all(all_right(order, environment))


# threadpoolctl


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to count threads")
def test_threadpoolctl_sees_and_limits_the_package(environment):
    pytest.importorskip("threadpoolctl")
    before, there, limited, woken, free = run(
        """
        from threadpoolctl import threadpool_info, threadpool_limits

        def openmp():
            return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"]

        before = openmp()
        import fastsoftmax as fs
        there = openmp()
        started = tasks()
        with threadpool_limits(1):
            limited = fs.get_num_threads()
            compute(fs)
            woken = tasks() - started
        right = right_of(fs)
        compute(fs)
        print(json.dumps([before, there, limited, woken, tasks() - started]))
        """,
        environment,
    )
    assert before == []
    assert there == [2]
    assert (limited, woken) == (1, 0)
    assert free == 1


# State after a call


def test_subnormal_numbers_survive_in_threads_that_have_computed(environment):
    found = run(
        """
        import fastsoftmax as fs

        def used(_):
            compute(fs)
            return subnormals_live()

        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(used, range(4))) + [pool.submit(subnormals_live).result()]
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(subnormals_live).result())
        print(json.dumps(found))
        """,
        environment,
    )
    assert all(found)
