"""The build says what is missing and how to install it. It is only configured: CMake compiles only its checks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1]
CMAKE, MAKE = shutil.which("cmake"), shutil.which("ninja") or shutil.which("make")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = [
    pytest.mark.skipif(not (CMAKE and MAKE), reason="needs cmake, and ninja or make"),
    pytest.mark.skipif(not (SOURCE / "CMakeLists.txt").exists(), reason="needs the sources"),
    pytest.mark.skipif(sys.platform == "win32", reason="on Windows, the build uses Visual Studio's generator"),
]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def configure(folder, *definitions, **environment):
    # A stand-in for pybind11, with what the configuration needs of it.
    (folder / "pybind11Config.cmake").write_text(
        "function(pybind11_add_module name kind extras)\n  add_library(${name} ${kind} ${ARGN})\nendfunction()\n"
    )
    command = [CMAKE, "-S", SOURCE, "-B", folder / "build", "-G", "Ninja" if "ninja" in MAKE else "Unix Makefiles"]
    given = {
        "CMAKE_MAKE_PROGRAM": MAKE,
        "Python_EXECUTABLE": sys.executable,
        "SKBUILD_PROJECT_NAME": "fastsoftmax",
        "SKBUILD_PROJECT_VERSION": "0",
        "pybind11_DIR": folder,
    }
    command += [f"-D{name}={value}" for name, value in given.items()]
    run = subprocess.run([*command, *definitions], capture_output=True, text=True, env=os.environ | environment)
    return run.returncode, run.stdout + run.stderr


def compiler_that(folder, line):
    """A script that executes a line of shell, then the compiler."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\n{line}\nexec "{COMPILER}" "$@"\n')
    script.chmod(0o755)
    return script


@needs_compiler
def test_a_build_that_lacks_nothing_gives_no_advice(tmp_path):
    code, said = configure(tmp_path, CXX=COMPILER)
    assert code == 0, said
    assert "install" not in said


def test_a_missing_compiler_is_reported_with_what_to_install(tmp_path):
    code, said = configure(tmp_path, CXX="a-compiler-that-is-not-there")
    assert code != 0
    assert "fastsoftmax needs a C++20 compiler, GCC 12 or Clang 13 or newer, and found none" in said
    assert "apt install g++" in said
    assert "dnf install gcc-c++" in said
    assert "xcode-select --install" in said


@needs_compiler
def test_an_old_compiler_is_named_with_the_version_that_is_needed(tmp_path):
    old = compiler_that(tmp_path, 'set -- "$@" -D__builtin_shufflevector=not_in_GCC_11')
    code, said = configure(tmp_path, CXX=str(old))
    assert code != 0
    assert f"fastsoftmax needs C++20 with vector types, GCC 12 or Clang 13 or newer, and {old}\n" in said
    assert "apt install g++" in said


@needs_compiler
def test_a_processor_without_kernels_is_refused(tmp_path):
    other = compiler_that(tmp_path, 'set -- "$@" -U__x86_64__ -U__aarch64__')
    code, said = configure(tmp_path, CXX=str(other))
    assert code != 0
    assert "fastsoftmax needs a 64-bit x86 or ARM processor" in said


@needs_compiler
def test_missing_python_headers_are_reported_with_what_to_install(tmp_path):
    code, said = configure(tmp_path, "-DPython_INCLUDE_DIR=" + str(tmp_path / "none"), CXX=COMPILER)
    assert code != 0
    assert f"fastsoftmax needs the headers of {sys.executable}" in said
    assert "python3-dev" in said


@needs_compiler
@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS, the build does not look for OpenMP")
def test_a_build_without_openmp_succeeds_and_says_what_it_lacks(tmp_path):
    without = compiler_that(tmp_path, 'case " $* " in *" -fopenmp "*) exit 1;; esac')
    code, said = configure(tmp_path, CXX=str(without))
    assert code == 0, said
    assert "found no OpenMP: OMP_NUM_THREADS and threadpoolctl will not limit" in said
    assert "libomp-dev" in said
    code, said = configure(tmp_path, "-DFASTSOFTMAX_OPENMP=OFF", CXX=str(without))
    assert code == 0, said
    assert "OpenMP" not in said
