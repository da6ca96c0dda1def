"""A call without memory raises MemoryError and leaves its inputs and `out` unchanged."""

import platform
import subprocess
import sys
from pathlib import Path
from sysconfig import get_config_var
from textwrap import dedent

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

PROGRAM = Path(__file__).parent / "failing_memory.py"


def run(kind, threads, environment):
    """Run failing_memory.py; return how many allocations, or calls, failed."""
    command = [sys.executable, PROGRAM, kind, str(threads)]
    variables = environment | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"in {done.stdout.splitlines()[-1:]}: {done.stderr[-3000:]}"
    return int(done.stdout.splitlines()[-1])


@pytest.fixture
def failing_malloc(shared_library, environment):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    return environment | {"LD_PRELOAD": str(shared_library("failing_malloc.c"))}


@pytest.mark.parametrize("n", [1, 2])
def test_each_refused_block_of_memory_raises_memory_error(n, failing_malloc):
    assert run("blocks", n, failing_malloc) > 300


# CPython 3.12.1 and 3.13.0 crash where a generator, such as the one in np.broadcast_to, gets no memory.
PYTHON_ALONE = """
    import ctypes
    malloc = ctypes.CDLL(None)
    least, spared, failures = (ctypes.c_long.in_dll(malloc, name) for name in ("least", "spared", "failures"))
    least.value = 0
    for n in range(100):
        try:
            spared.value, failures.value = n, 1
            any(i < 0 for i in (3, 5))
        except MemoryError:
            pass
        finally:
            failures.value = 0
"""


@pytest.mark.skipif(bool(get_config_var("Py_GIL_DISABLED")), reason="its allocator cannot be made to fail")
def test_each_refused_object_raises_memory_error(failing_malloc):
    environment = failing_malloc | {"PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-c", dedent(PYTHON_ALONE)]
    alone = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if alone.returncode < 0:  # a signal
        pytest.skip("this Python itself crashes if memory for an object of a generator is refused")
    assert alone.returncode == 0, alone.stderr
    assert run("objects", 1, environment) > 1000


@pytest.mark.parametrize("n", [1, 2])
def test_exhausted_memory_raises_memory_error(n, environment):
    assert run("exhausted", n, environment) > 50
