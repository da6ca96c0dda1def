"""The number of threads, and facts about this build and this machine."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, SupportsIndex, overload

import numpy as np

from . import _core
from ._arguments import shown, to_integer


def set_num_threads(n: SupportsIndex) -> None:
    """Limit every call of this process to at most `n` threads.

    Parameters
    ----------
    n : int
        At least 1. The limit of OpenMP for the calling thread (``OMP_NUM_THREADS``, threadpoolctl) still applies; in a
        build without OpenMP, the number of processors does.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    Notes
    -----
    Results do not depend on the number of threads, bit for bit. Small calls never wake a second thread.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> with fs.num_threads(2):
    ...     fs.set_num_threads(1)
    ...     fs.get_num_threads()
    1
    """
    _exchange_limit(n)


def _exchange_limit(n: SupportsIndex) -> int:
    """Set the limit and return the earlier one, which may be more than OpenMP allows at the moment."""
    n = min(to_integer(n, "n"), 2**31 - 1)
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1")
    return _core.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads that a call may use.

    It is the least of the limit of `set_num_threads`, that of OpenMP (in a build without it, the number of processors)
    and, unless ``OMP_NUM_THREADS`` is set, the CPU quota of the container.

    Returns
    -------
    int
        At least 1; exactly 1 in a forked child.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


@contextmanager
def num_threads(n: SupportsIndex) -> Iterator[None]:
    """A context manager that sets the limit of `set_num_threads` to `n`, and restores the earlier limit at the end.

    The limit is that of the process: it also applies to calls in other Python threads.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        As for `set_num_threads`, on entering the context.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> with fs.num_threads(1):
    ...     fs.get_num_threads()
    1
    """
    earlier = _exchange_limit(n)
    try:
        yield
    finally:
        set_num_threads(earlier)


@contextmanager
def num_threads_here(n: int) -> Iterator[None]:
    """A context in which no call from this Python thread uses more than `n` threads; other threads' calls may.

    For the workers of a thread pool, which enter and leave such contexts concurrently. The limit of `num_threads`
    belongs to the process, so it could be left at the value of another worker.
    """
    earlier = _core.set_num_threads_here(n)
    try:
        yield
    finally:
        _core.set_num_threads_here(earlier)


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Print or return version, compiler, SIMD targets, OpenMP and threads, as `numpy.show_config` does for NumPy.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print the configuration, or return it as a dict.

    Returns
    -------
    dict or None
        The configuration; None if it is printed.

    Raises
    ------
    ValueError
        If `mode` is neither of these.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> sorted(fs.show_config(mode="dicts"))
    ['compiler', 'fastsoftmax', 'numpy', 'openmp', 'python', 'targets', 'threads']
    """
    # Comparing an object other than a str may fail.
    if not isinstance(mode, str) or mode not in ("stdout", "dicts"):  # type: ignore[redundant-expr]
        raise ValueError(f"mode is {shown(mode)}; expected 'stdout' or 'dicts'")
    core = _core.describe()
    config = {
        "fastsoftmax": _core.__version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "compiler": core["compiler"],
        "targets": {
            "built": list(core["targets_built"]),
            "usable": list(core["targets_usable"]),
            "in use": core["target"],
        },
        "openmp": core["openmp"],
        "threads": get_num_threads(),
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name + ':':<11}{', '.join(entry) if isinstance(entry, list) else entry}")
        else:
            print(f"{key + ':':<13}{'none' if value is None else value}")
    return None
