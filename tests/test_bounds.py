"""No call touches memory outside its arrays: pages before and behind them would end the process."""

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


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_an_array_is_touched(kind, environment):
    done = subprocess.run([sys.executable, PROGRAM, kind], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"in {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
