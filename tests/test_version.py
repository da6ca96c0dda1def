"""The version is defined in one place and known without metadata, as in a slimmed or vendored package."""

import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest
from fastsoftmax import _core

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_the_version_is_that_of_the_metadata_and_of_the_project():
    assert fs.__version__ == version("fastsoftmax")
    if not PROJECT.exists():
        pytest.skip("no pyproject.toml beside the tests")
    assert fs.__version__ == tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture
def run_without_metadata(tmp_path, environment):
    """A function that runs code where the package is only a folder, also a vendored one, and returns the output."""
    for folder in (tmp_path / "fastsoftmax", tmp_path / "vendor" / "fastsoftmax"):
        folder.mkdir(parents=True)
        for file in (*Path(fs.__file__).parent.glob("*.py"), _core.__file__):
            shutil.copy(file, folder)

    def run(code):
        start = """\
            import importlib.metadata, sys
            sys.path.insert(0, sys.argv[2])
            import numpy
            sys.path[0] = sys.argv[1]  # the folder with NumPy is the one that has the metadata
            try:
                importlib.metadata.version("fastsoftmax")
            except importlib.metadata.PackageNotFoundError:
                pass
            else:
                sys.exit("there is metadata")
            """
        command = [sys.executable, "-I", "-S", "-W", "error", "-c", textwrap.dedent(start) + textwrap.dedent(code)]
        folders = [tmp_path, Path(np.__file__).parents[1]]
        done = subprocess.run([*command, *folders], env=environment, capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.mark.parametrize(
    "code",
    [
        "import fastsoftmax as fs; print(hasattr(fs, '__version__'), fs.__version__)",
        "from fastsoftmax import *; print(softmax(0.0), reference.softmax(0.0), __version__)",
        "import fastsoftmax as fs, inspect; print(dict(inspect.getmembers(fs))['__version__'])",
        "import fastsoftmax as fs, pydoc; print(pydoc.render_doc(fs))",
        "import fastsoftmax as fs, pydoc; pydoc.help(fs)",
        "import fastsoftmax as fs, unittest.mock as m; m.create_autospec(fs); print(fs.__version__)",
        "import fastsoftmax as fs; fs.show_config()",
        "import fastsoftmax as fs; print(fs.show_config('dicts')['fastsoftmax'])",
        "import runpy; del sys.argv[1:]; runpy.run_module('fastsoftmax', run_name='__main__')",
        "import runpy; del sys.argv[1:]; runpy.run_module('vendor.fastsoftmax', run_name='__main__')",
        "import vendor.fastsoftmax as fs; print(fs.softmax(0.0), fs.reference.softmax(0.0), fs.__version__)",
        "import fastsoftmax as fs, importlib; print(importlib.reload(fs).__version__)",
        "import fastsoftmax as fs; print(vars(fs)['__version__'])",
    ],
)
def test_without_metadata_everything_works_and_knows_the_version(code, run_without_metadata):
    assert fs.__version__ in run_without_metadata(code)
