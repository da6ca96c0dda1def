"""The layers of the core by themselves, and which other layers each of them knows."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastsoftmax import _core

TESTS = Path(__file__).parent
CPP = TESTS.parent / "cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
PROMISES = re.findall(r"^ +PROMISE\((\w+)\),", (TESTS / "plan.cpp").read_text(), re.MULTILINE)

needs_sources = pytest.mark.skipif(not CPP.exists(), reason="needs the sources")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile a program of this folder with layers of the core."""

    def compiled(name, *layers):
        if COMPILER is None or not CPP.exists():
            pytest.skip("needs a C++ compiler and the sources")
        built = tmp_path_factory.mktemp(name) / name
        sources = [TESTS / f"{name}.cpp", *(CPP / layer for layer in layers)]
        subprocess.run([COMPILER, "-std=c++20", "-O1", "-I", CPP, *sources, "-o", built], check=True)
        return built

    return compiled


@pytest.fixture
def run(environment, emulator):
    environment.pop("LD_PRELOAD", None)  # it holds the sanitizer of this process

    def runs(program, *arguments):
        done = subprocess.run([*emulator, program, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return runs


@pytest.fixture(scope="module")
def plan(program):
    return program("plan", "plan.cpp")


@pytest.mark.parametrize("promise", PROMISES)
def test_a_plan_keeps_its_promise(promise, plan, run):
    run(plan, promise)


def test_transport_moves_the_numbers_of_a_slice_along_their_own_axis_and_nowhere_else(program, run):
    run(program("transport", "transport.cpp", "plan.cpp"))


def code_of(file):
    """The text of a file without comments and strings."""
    return re.sub(r'//[^\n]*|"(?:\\.|[^"\\])*"', "", file.read_text())


@needs_sources
def test_no_layer_above_the_kernels_names_an_operation():
    """Only the bindings do; the list of operations is the kernels' own."""
    names = "|".join(_core.signatures())
    naming = [file.name for file in sorted(CPP.glob("*.?pp")) if re.search(rf"\b({names})\b", code_of(file))]
    assert naming == ["bindings.cpp"]


@needs_sources
@pytest.mark.parametrize(
    ("layer", "known"),
    [
        ("slices.hpp", {"kernels/kernels.hpp"}),
        ("plan.hpp", {"slices.hpp"}),
        ("transport.hpp", {"plan.hpp"}),
        ("batch.hpp", {"plan.hpp", "threads.hpp", "transport.hpp"}),
        ("operations.hpp", {"slices.hpp"}),
        ("shortcut.hpp", set()),
        ("threads.hpp", set()),
        ("targets.hpp", {"kernels/kernels.hpp"}),
    ],
)
def test_a_layer_knows_only_those_below(layer, known):
    assert set(re.findall(r'#include "(.*)"', (CPP / layer).read_text())) == known


@needs_sources
def test_layers_above_the_kernels_include_only_their_table():
    included = {name for file in CPP.glob("*.?pp") for name in re.findall(r'#include "(kernels/.*)"', file.read_text())}
    assert included == {"kernels/kernels.hpp"}


@needs_sources
def test_no_loop_names_an_operation():
    """Only the operations themselves do, and the lists that they join."""
    kernels = CPP / "kernels"
    lists = {kernels / name for name in ("kernels.hpp", "signatures.hpp", "target.cpp")}
    others = {file for file in kernels.rglob("*.?pp") if file.parent.name != "operations"} - lists
    assert len(others) > 20
    assert [file.name for file in sorted(others) if "Operation::" in code_of(file)] == []
