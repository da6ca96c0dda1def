"""Calls, also those that raise, leave memory as it was; `python tests/soak.py` makes a million of every function.

Each test measures a process of its own: memory that other tests have freed would hide a leak, and memory that they
still hold may change.
"""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from soak import FUNCTIONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to measure")

TESTS = Path(__file__).parent


def run(arguments, environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=TESTS, env=environment, capture_output=True, text=True, timeout=600
    )


def test_eighty_thousand_calls_of_every_function_leave_memory_as_it_was(environment):
    done = run(["soak.py", "--calls", "80000"], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    raised = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) raised", done.stdout)]
    assert len(raised) == len(FUNCTIONS)
    assert min(raised) > 8000  # errors are among the calls


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        ("fs.softmax(x)", "blocks"),  # an object
        ("np.ones(65_536, np.uint8)", "resident"),  # memory that is not Python's, as scratch is
    ],
)
def test_a_leak_in_one_call_of_a_hundred_is_seen(loss, seen, environment):
    code = dedent(
        f"""
        import fastsoftmax as fs
        import numpy as np
        from soak import growth
        x, lost = np.ones(3), []
        g = growth([lambda: fs.softmax(x)] * 99 + [lambda: lost.append({loss})], 10_000)
        print(g.is_flat, g.{seen}[-1] - g.{seen}[0])
        """
    )
    done = run(["-c", code], environment)
    assert done.stdout, done.stderr
    flat, grown = done.stdout.split()
    assert flat == "False"
    assert int(grown) >= {"blocks": 100, "resident": 2**20}[seen]
