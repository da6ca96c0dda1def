import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import fastsoftmax as fs
import hypothesis
import numpy as np
import pytest
from fastsoftmax import _core

hypothesis.settings.register_profile("suite", deadline=None, database=None, print_blob=True)
hypothesis.settings.register_profile("fuzz", hypothesis.settings.get_profile("suite"), max_examples=12_500)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: runs once more for every SIMD target, from test_targets.py")
    config.addinivalue_line("markers", "huge: takes minutes and 10 GB of memory; runs only with -m huge")


def pytest_report_header() -> str:
    core = _core.describe()
    return f"fastsoftmax target {core['target']} of {', '.join(core['targets_usable'])}; OpenMP {core['openmp']}"


@contextmanager
def _threads(n: int) -> Iterator[None]:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(n, user_api="openmp"), fs.num_threads(n):
        if fs.get_num_threads() < n:
            pytest.skip(f"a CPU quota, or a build without OpenMP, allows fewer threads: {fs.get_num_threads()}")
        assert fs.get_num_threads() == n
        yield


@pytest.fixture
def threads() -> Callable[[int], AbstractContextManager[None]]:
    """A context with n threads; with OpenMP, n may exceed the number of processors."""
    return _threads


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of this process, for a subprocess that must import the same package."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}


@pytest.fixture(scope="session")
def emulator() -> list[str]:
    """The command that runs a compiled test program in an emulator; empty without one (see noxfile.py)."""
    return os.environ.get("EMULATOR", "").split()


@pytest.fixture(scope="session")
def shared_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that compiles a C file of the tests into a shared library, with the given compiler options."""

    def compiled(name: str, *options: str) -> Path:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip("needs a C compiler")
        source, library = Path(__file__).parent / name, tmp_path_factory.mktemp("library") / f"{Path(name).stem}.so"
        command = [compiler, "-O1", "-fPIC", "-shared", source, "-o", library, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{compiler} {' '.join(options)} does not compile {name}: {done.stderr.splitlines()[:1]}")
        return library

    return compiled
