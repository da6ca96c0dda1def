import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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


def pytest_report_header() -> str:
    core = _core.describe()
    return f"fastsoftmax target {core['target']} of {', '.join(core['targets_usable'])}; OpenMP {core['openmp']}"


@contextmanager
def _threads(n: int) -> Iterator[None]:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if _core.describe()["openmp"] is None and n > 1:
        pytest.skip("built without OpenMP: one thread")
    with threadpoolctl.threadpool_limits(n, user_api="openmp"), fs.num_threads(n):
        assert fs.get_num_threads() == n
        yield


@pytest.fixture
def threads() -> Callable[[int], AbstractContextManager[None]]:
    """A context with so many threads, on machines with fewer processors too."""
    return _threads


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def environment() -> dict[str, str]:
    """That of this process, for a subprocess that must import the same package."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
