"""The operations of packs, which make up the kernels, give what plain loops give, on every target of the machine."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastsoftmax import _core

SOURCE, ROOT = Path(__file__).with_name("packs.cpp"), Path(__file__).parents[1]
LISTS = ROOT / "CMakeLists.txt"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
NAMES = re.findall(r"^TEST\((\w+)\)", SOURCE.read_text(), re.MULTILINE) if SOURCE.exists() else []

pytestmark = pytest.mark.skipif(not (COMPILER and NAMES and LISTS.exists()), reason="needs the sources and a compiler")


@pytest.fixture(scope="module", params=_core.describe()["targets_usable"])
def library(request, tmp_path_factory):
    """packs.cpp, compiled with a target's flags, as a library because the Python that loads it may be emulated."""
    (flags,) = re.findall(rf"add_target\({request.param}\b([^)]*)\)", LISTS.read_text())
    compiled = tmp_path_factory.mktemp("packs") / f"{request.param}.so"
    options = ["-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", f"-I{ROOT / 'cpp'}", *flags.split()]
    done = subprocess.run([COMPILER, *options, SOURCE, "-o", compiled], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(compiled))


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_of_packs_gives_what_a_plain_loop_gives(name, library):
    test = library[f"test_{name}"]
    test.restype = ctypes.c_char_p
    assert test() == b""
