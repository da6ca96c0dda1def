"""One session for each thing that a developer does: `nox -l` lists them, `nox -s tests` runs one."""

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"

C = ["bench/limits.c", *sorted(str(path) for path in Path("tests").glob("*.c"))]
CPP = [*sorted(str(path) for path in Path("cpp").rglob("*") if path.suffix in (".cpp", ".hpp")), *C]

THREADED_TESTS = ["tests/test_threads.py"]

SCHEMAS = [
    *(("github-workflows", str(path)) for path in Path(".github/workflows").iterdir()),
    ("dependabot", ".github/dependabot.yml"),
    ("citation-file-format", "CITATION.cff"),
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
    """Formatting and lint of Python, C++ and what other tools read; with `-- fix`, put right what can be."""
    install_groups(session, "lint")
    fix = "fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check"]))
    session.run("clang-format", *(["-i"] if fix else ["--dry-run", "-Werror"]), *CPP)
    session.run("validate-pyproject", "pyproject.toml")
    for schema, file in SCHEMAS:
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", file)
    session.run("zizmor", "--offline", "--quiet", ".github")


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
    """All tests under AddressSanitizer and UndefinedBehaviorSanitizer, those of threads under ThreadSanitizer."""
    session.install(".[test]", f"--config-settings=cmake.args=--preset={preset}")
    # The runtime has to be there before the interpreter, which is built without.
    name = f"lib{preset}.so"
    runtime = subprocess.check_output([os.environ.get("CXX", "c++"), f"-print-file-name={name}"], text=True).strip()
    env = {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself keeps memory until it ends
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    tests = {"asan": ["tests"], "tsan": THREADED_TESTS}[preset]
    session.run("python", "-m", "pytest", *(session.posargs or tests), env=env)


@nox.session
def tidy(session: nox.Session) -> None:
    """clang-tidy over all of cpp/."""
    install_groups(session, "tidy")
    cmakedir = session.run("python", "-m", "pybind11", "--cmakedir", silent=True)
    session.run("cmake", "--preset", "tidy", f"-Dpybind11_DIR={str(cmakedir).strip()}")
    session.run("cmake", "--build", "--preset", "tidy")


@nox.session
def dist(session: nox.Session) -> None:
    """What a release holds, by default in a temporary folder; and that the tree gives the same wheel, bit for bit."""
    install_groups(session, "dist")
    folder = session.posargs[0] if session.posargs else session.create_tmp()
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("python", ".ci/check_dist.py", folder)
    session.run("twine", "check", "--strict", f"{folder}/*")
    session.run("check-wheel-contents", folder)
    session.install(".")
    session.run("python", ".ci/check_reproducible.py", folder)


@nox.session
@nox.parametrize("machine", ["Nehalem", "Haswell", "arm64"])
def emulate(session: nox.Session, machine: str) -> None:
    """The tests on a CPU without AVX, on one without AVX-512, on arm64; arguments after `--` are pytest's.

    Needs qemu-user; arm64 also g++-aarch64-linux-gnu, and debootstrap and root's rights for it.
    """
    env = {"OMP_WAIT_POLICY": "passive"}  # an emulated thread that spins keeps others from their work
    python = Path(session.bin, "python")
    if machine == "arm64":
        root = debian(session, "arm64")
        emulator = [find(session, "qemu-aarch64", "qemu-aarch64-static"), "-L", str(root)]
        python = root / "usr/bin/python3"
        target = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64", "SYSROOT": str(root)}
        env["CMAKE_ARGS"] = " ".join(f"-DCMAKE_{name}={value}" for name, value in target.items())
        env["CXX"] = find(session, "aarch64-linux-gnu-g++")
        session.install("cmake>=3.20", "ninja")  # which are not emulated, nor is the compiler
    else:
        emulator = [find(session, "qemu-x86_64", "qemu-x86_64-static"), "-cpu", machine]
    # Named as what is run, so that it is sys.executable, and what the tests start is emulated, too.
    emulated = python.with_name("emulated")
    emulated.write_text(f'#!/bin/sh\nexec {" ".join(emulator)} -0 "$0" {python.resolve()} "$@"\n')
    emulated.chmod(0o755)
    install = ["-m", "pip", "--python", str(emulated), "install", "--break-system-packages", ".[test]"]
    session.run("python", *install, env=env)
    session.run(str(emulated), "-m", "pytest", *session.posargs, env=env, external=True)


def find(session: nox.Session, *names: str) -> str:
    """The path of a program, by any of its names."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or session.skip(f"needs {names[0]}")


def debian(session: nox.Session, architecture: str) -> Path:
    """A folder with Debian's Python and C++ library for another architecture."""
    root = Path(session.create_tmp(), architecture)
    if not (root / "usr/bin/python3").exists():
        options = ["--foreign", f"--arch={architecture}", "--variant=minbase"]
        packages = "--include=python3,libpython3-dev,libgomp1"
        session.run(find(session, "debootstrap"), *options, packages, "trixie", str(root), external=True)
        for package in (root / "var/cache/apt/archives").glob("*.deb"):
            session.run("dpkg-deb", "--extract", str(package), str(root), silent=True, external=True)
    return root
