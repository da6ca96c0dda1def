"""No call touches memory outside its arrays: a touch of the pages before and after them would end the process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from guard_pages import KINDS

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="needs mprotect"),
]

PROGRAM = Path(__file__).parent / "guard_pages.py"


def run(environment, *arguments):
    command = [sys.executable, PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_touch_of_one_byte_would_be_noticed(where, environment):
    done = run(environment, "touch", where)
    assert done.returncode != 0
    assert re.match("Fatal Python error: (Segmentation fault|Bus error)", done.stderr)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_an_array_is_touched(kind, environment):
    done = run(environment, kind)
    assert done.returncode == 0, f"in {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
