"""One session for each thing that a developer does: `nox -l` lists them, `nox -s tests` runs one."""

import os
import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"

CPP = [
    *sorted(str(path) for folder in ("cpp", "tests") for path in Path(folder).rglob("*.[ch]pp")),
    "bench/limits.c",
]


def install_groups(session: nox.Session, *names: str) -> None:
    session.install("--upgrade", "pip>=25.1")  # the first that knows dependency groups
    session.install(*(word for name in names for word in ("--group", name)))


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, on every target that the machine has."""
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


@nox.session
def fuzz(session: nox.Session) -> None:
    """libFuzzer over the core, by Clang; arguments after `--` are its own, for example `-- -runs=10000000`."""
    session.install("cmake", "ninja", "pybind11")
    cmakedir = session.run("python", "-m", "pybind11", "--cmakedir", silent=True)
    clang = os.environ.get("CXX", "clang++")
    build = Path("build/fuzz")
    options = [f"-DCMAKE_CXX_COMPILER={clang}", f"-Dpybind11_DIR={str(cmakedir).strip()}"]
    session.run("cmake", "-S", "tests/fuzz", "-B", str(build), "-G", "Ninja", *options)
    session.run("cmake", "--build", str(build))
    (build / "corpus").mkdir(exist_ok=True)
    # Inputs of full length from the start, and none is weighed: that costs more than to run it.
    how = ["-max_len=128", "-len_control=0", "-entropic=0", "-reduce_inputs=0"]
    limits = ["-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={build}/"]
    runs = session.posargs or ["-runs=1000000"]
    session.run(str(build / "fuzz_core"), *how, *limits, *runs, str(build / "corpus"), external=True)
