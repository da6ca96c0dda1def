"""One session for each thing that a developer does: `nox -l` lists them, `nox -s tests` runs one."""

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"

# The versions in the classifiers; those that a machine lacks are skipped.
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))

FOLDERS = ("bench", "cpp", "tests")
CPP = sorted(
    str(path) for folder in FOLDERS for path in Path(folder).rglob("*") if path.suffix in (".c", ".cpp", ".hpp")
)

THREADED_TESTS = ["tests/test_threads.py"]


def all_but(*names: str) -> list[str]:
    return ["tests", *(f"--ignore=tests/test_{name}.py" for name in names)]


# Tests of the build, and tests of memory, which a sanitizer or an emulator uses for itself, too.
ELSEWHERE = ("build", "memory", "out_of_memory", "soak")
ASAN_TESTS = all_but(*ELSEWHERE)
# Emulated, the sweeps over every float32 never finish.
EMULATED_TESTS = all_but(*ELSEWHERE, "exp_log")

# The Debian release that provides Python for an emulated arm64, and its Python.
DEBIAN, DEBIANS_PYTHON = "trixie", "3.13"

SCHEMAS = [
    *(("github-workflows", str(path)) for path in Path(".github/workflows").iterdir()),
    ("dependabot", ".github/dependabot.yml"),
    ("citation-file-format", "CITATION.cff"),
]


def install_groups(session: nox.Session, *names: str) -> None:
    session.install("--upgrade", "pip>=25.1")  # the first that knows dependency groups
    session.install(*(word for name in names for word in ("--group", name)))


def configure(session: nox.Session, *options: str) -> None:
    """Run CMake without pip; the dependency group `cmake` has what pip would bring."""
    cmakedir = session.run("python", "-m", "pybind11", "--cmakedir", silent=True)
    session.run("cmake", *options, f"-Dpybind11_DIR={str(cmakedir).strip()}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite, on every Python and target that the machine has."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """The tests that need other libraries: of their arrays, tables and files, and of the modules made for them."""
    session.install(".[test]")
    install_groups(session, "interop")
    of = ("boosting", "calibration", "dask", "distributed", "documentation", "other_libraries", "report", "xarray")
    session.run("python", "-m", "pytest", *(f"tests/test_{name}.py" for name in of), *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """The test with more logits than fit into the memory of two dask worker processes, from disk to disk."""
    session.install(".[test]")
    install_groups(session, "interop")
    session.run("python", "-m", "pytest", "-m", "huge", "tests/test_distributed.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint of Python, C++ and what other tools read; with `-- fix`, correct what can be corrected."""
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
    """Types of the package, the benchmark and tests/hints.py, and the stubs against what they describe."""
    session.install(".[bench,dask,xarray]")
    install_groups(session, "types")
    session.run("mypy")
    # mypy reads a stub in place of its module, unless the module is named.
    hidden = [stub.with_suffix(".py") for stub in sorted(Path("python").rglob("*.pyi"))]
    session.run("mypy", *(str(module) for module in hidden if module.exists()))
    session.run("basedpyright")
    session.run("stubtest", "fastsoftmax", env={"MYPYPATH": ""})


@nox.session
def docs(session: nox.Session) -> None:
    """The site, built in build/docs without warnings; a test then opens it in Chromium, where that is installed."""
    session.install(".[test]")
    install_groups(session, "docs")
    # Delete what an earlier build left, so that no page survives its source.
    for folder in ("build/docs", "docs/api", "docs/gallery"):
        shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-n", "docs", "build/docs")
    session.run("python", "-m", "pytest", "tests/test_site.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmark; arguments after `--` are its own, for example `-- --quick`."""
    session.install(".[bench]")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
@nox.parametrize("preset", ["asan", "tsan"])
def sanitize(session: nox.Session, preset: str) -> None:
    """Tests under AddressSanitizer and UndefinedBehaviorSanitizer, those of threads under ThreadSanitizer."""
    # GCC never finishes compiling the kernels with both sanitizers. Clang takes an hour if both check every pointer, so
    # the preset leaves that to AddressSanitizer.
    compiler = os.environ.get("CXX", {"asan": "clang++", "tsan": "g++"}[preset])
    session.install(".[test]", f"--config-settings=cmake.args=--preset={preset}", env={"CXX": compiler})
    # The sanitizer's runtime has to be loaded before the interpreter, which is built without it.
    name = {"asan": f"libclang_rt.asan-{platform.machine()}.so", "tsan": "libtsan.so"}[preset]
    runtime = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
    env = {
        "LD_PRELOAD": runtime,
        # The interpreter itself keeps memory until it ends; some tests ask for more memory than there is.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    tests = {"asan": ASAN_TESTS, "tsan": THREADED_TESTS}[preset]
    session.run("python", "-m", "pytest", *(session.posargs or tests), env=env)


@nox.session
def tidy(session: nox.Session) -> None:
    """clang-tidy over all of cpp/."""
    install_groups(session, "tidy")
    configure(session, "--preset", "tidy")
    session.run("cmake", "--build", "--preset", "tidy")


@nox.session
def dist(session: nox.Session) -> None:
    """Build and check sdist and wheel; the tree must give the same. `-- FOLDER` keeps them, `once` skips the tree."""
    install_groups(session, "dist")
    with tempfile.TemporaryDirectory() as scratch:
        folder = session.posargs[0] if session.posargs else f"{scratch}/dist"
        session.run("python", "-m", "build", "--outdir", folder, silent=True)
        session.run("python", ".ci/check_dist.py", folder)
        session.run("twine", "check", "--strict", f"{folder}/*")
        session.run("check-wheel-contents", folder)
        if "once" not in session.posargs:  # as .ci/run says: it compares with the build that its tests use
            session.run("python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", f"{scratch}/tree", ".", silent=True)
            session.run("python", ".ci/check_reproducible.py", folder, f"{scratch}/tree")


@nox.session
@nox.parametrize("machine", ["Nehalem", "Haswell", "arm64"])
def emulate(session: nox.Session, machine: str) -> None:
    """The tests on a CPU without AVX, on one without AVX-512, on arm64; arguments after `--` are pytest's.

    Needs qemu-user, for arm64 a recent one: qemu 7.2 runs Python there twenty times slower than 11.1. arm64 also needs
    g++-aarch64-linux-gnu and debootstrap, and root's rights for the latter.
    """
    env = {"OMP_WAIT_POLICY": "passive"}  # an emulated thread that spins keeps others from their work
    python = Path(session.bin, "python")
    install = ["install", "--break-system-packages"]
    if machine == "arm64":
        root = debian(session, "arm64")
        emulator = [find(session, "qemu-aarch64", "qemu-aarch64-static"), "-L", str(root)]
        python = root / "usr/bin/python3"
        # CMake, Ninja and the compiler are not emulated. The compiler has all headers except Python's.
        target = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64", "CXX_FLAGS": f"-idirafter{root}/usr/include"}
        env["CMAKE_ARGS"] = " ".join(f"-DCMAKE_{name}={value}" for name, value in target.items())
        env["CXX"] = find(session, "aarch64-linux-gnu-g++")
        env["CC"] = find(session, "aarch64-linux-gnu-gcc")  # for the libraries that tests compile
        session.install("cmake>=3.20", "ninja")
        # The machine's own pip installs what need not be compiled; emulated, it would take an hour.
        needed = nox.project.load_toml("pyproject.toml")
        wheels = [*needed["build-system"]["requires"], *needed["project"]["optional-dependencies"]["test"]]
        folder = f"{root}/usr/lib/python3/dist-packages"
        into = [f"--target={folder}", f"--python-version={DEBIANS_PYTHON}", "--only-binary=:all:"]
        tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
        session.run("python", "-m", "pip", "install", *into, *tags, *needed["project"]["dependencies"], *wheels)
        install += ["--no-build-isolation", "--no-deps", "."]
    else:
        emulator = [find(session, "qemu-x86_64", "qemu-x86_64-static"), "-cpu", machine]
        install += [".[test]"]
    # Python gets this script's path as its own, so that sys.executable is the script, and what the tests start is
    # emulated, too.
    emulated = python.with_name("emulated")
    emulated.write_text(f'#!/bin/sh\nexec {" ".join(emulator)} -0 "$0" {python.resolve()} "$@"\n')
    emulated.chmod(0o755)
    env["EMULATOR"] = " ".join(emulator)  # for programs that the tests compile
    session.run("python", "-m", "pip", "--python", str(emulated), *install, env=env)
    session.run(str(emulated), "-m", "pytest", *(session.posargs or EMULATED_TESTS), env=env, external=True)


def find(session: nox.Session, *names: str) -> str:
    """Return the path of a program, found by any of its names; without it, skip the session."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or session.skip(f"needs {names[0]}")


def debian(session: nox.Session, architecture: str) -> Path:
    """Return a folder with Debian's Python and C++ library for another architecture."""
    root = Path(session.create_tmp(), architecture).resolve()
    if not root.exists():
        unfinished = root.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        options = ["--foreign", f"--arch={architecture}", "--variant=minbase"]
        packages = "--include=python3,libpython3-dev,libgomp1"
        session.run(find(session, "debootstrap"), *options, packages, DEBIAN, str(unfinished), external=True)
        for package in (unfinished / "var/cache/apt/archives").glob("*.deb"):
            session.run("dpkg-deb", "--extract", str(package), str(unfinished), silent=True, external=True)
        # qemu looks for files here first, then on the machine: without this empty /tmp, tests find the machine's.
        Path(unfinished, "tmp").rmdir()
        unfinished.rename(root)
    return root


@nox.session(python=["3.13t", "3.14t", "3.15t"])
def free_threading(session: nox.Session) -> None:
    """The tests of results, each in four threads at once, on a Python without the GIL."""
    session.install(".[test]", "pytest-run-parallel>=0.10")
    files = ("arguments", "calls", "end_to_end", "losses", "properties", "races", "same_bits", "transforms", "values")
    session.run(
        *("python", "-W", "error", "-m", "pytest", "--parallel-threads=4", "--iterations=2"),
        *("--skip-thread-unsafe=True", "-o", "thread_unsafe_fixtures=threads"),
        # Hypothesis sets the recursion limit for each example, and that stops all threads.
        "--mark-hypothesis-as-unsafe",
        *(f"tests/test_{name}.py" for name in files),
        *session.posargs,
    )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the core with Clang's libFuzzer; arguments after `--` are its own, for example `-- -runs=10000000`."""
    install_groups(session, "cmake")
    clang = os.environ.get("CXX", "clang++")
    build = Path("build/fuzz")
    configure(session, "-S", "tests/fuzz", "-B", str(build), "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={clang}")
    session.run("cmake", "--build", str(build))
    (build / "corpus").mkdir(exist_ok=True)
    # Inputs have full length from the start, and are not weighed, which would cost more than to run them.
    how = ["-max_len=128", "-len_control=0", "-entropic=0", "-reduce_inputs=0"]
    limits = ["-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={build}/"]
    runs = session.posargs or ["-runs=1000000"]
    session.run(str(build / "fuzz_core"), *how, *limits, *runs, str(build / "corpus"), external=True)
