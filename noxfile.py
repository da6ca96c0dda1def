"""One session for each thing that a developer does: `nox -l` lists them, `nox -s tests` runs one."""

import os
import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"

# As the classifiers say; those that a machine lacks are skipped.
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))

CPP = [*sorted(str(path) for path in Path("cpp").rglob("*") if path.suffix in (".cpp", ".hpp")), "bench/limits.c"]


def install_groups(session: nox.Session, *names: str) -> None:
    session.install("--upgrade", "pip>=25.1")  # the first that knows dependency groups
    session.install(*(word for name in names for word in ("--group", name)))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite, on every Python and target that the machine has."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint of Python and C++; with `-- fix`, put right what can be."""
    install_groups(session, "lint")
    fix = "fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check"]))
    session.run("clang-format", *(["-i"] if fix else ["--dry-run", "-Werror"]), *CPP)


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package and the benchmark, and the stub against the compiled module."""
    session.install(".[bench]")
    install_groups(session, "types")
    session.run("mypy")
    session.run("stubtest", "fastsoftmax._core", env={"MYPYPATH": ""})


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmark; arguments after `--` are its own, for example `-- --quick`."""
    session.install(".[bench]")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
@nox.parametrize("preset", ["asan", "tsan"])
def sanitize(session: nox.Session, preset: str) -> None:
    """The tests under a sanitizer, whose runtime has to be loaded before Python."""
    session.install(".[test]", "--config-settings=cmake.args=--preset=" + preset)
    name = f"lib{preset}.so"
    runtime = subprocess.check_output([os.environ.get("CXX", "c++"), f"-print-file-name={name}"], text=True).strip()
    env = {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself keeps memory until it ends
        "TSAN_OPTIONS": "report_bugs=1 halt_on_error=1",
    }
    session.run("python", "-m", "pytest", *session.posargs, env=env)


@nox.session
def tidy(session: nox.Session) -> None:
    """clang-tidy over all of cpp/."""
    install_groups(session, "tidy")
    cmakedir = session.run("python", "-m", "pybind11", "--cmakedir", silent=True)
    session.run("cmake", "--preset", "tidy", f"-Dpybind11_DIR={str(cmakedir).strip()}")
    session.run("cmake", "--build", "--preset", "tidy")


@nox.session
def dist(session: nox.Session) -> None:
    """An sdist, the wheel that it builds, and what is in them."""
    install_groups(session, "dist")
    target = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", target)
    session.run("python", ".ci/check_dist.py", target)


@nox.session(python=["3.13t", "3.14t", "3.15t"])
def free_threading(session: nox.Session) -> None:
    """Each test of what the functions give in four threads at once, on a Python without the GIL."""
    session.install(".[test]", "pytest-run-parallel>=0.10")
    functions = ("arguments", "end_to_end", "losses", "properties", "races", "same_bits", "transforms", "values")
    session.run(
        *("python", "-W", "error", "-m", "pytest", "--parallel-threads=4", "--iterations=2"),
        *("--skip-thread-unsafe=True", "-o", "thread_unsafe_fixtures=threads"),
        *(f"tests/test_{name}.py" for name in functions),
        *session.posargs,
    )
