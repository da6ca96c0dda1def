"""Calls return the types, and refuse the arguments, that `hints.py` states; type checkers agree."""

import importlib.util
import re
import runpy
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
HINTS = Path(__file__).with_name("hints.py")


def is_what_it_says(value: object, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is None:
        return value is None
    if get_origin(hint) is np.ndarray:
        (dtype,) = get_args(get_args(hint)[1])
        return type(value) is np.ndarray and (dtype is Any or value.dtype.type in (get_args(dtype) or (dtype,)))
    if get_origin(hint) is tuple:
        return type(value) is tuple and all(is_what_it_says(*pair) for pair in zip(value, get_args(hint), strict=True))
    return isinstance(value, get_origin(hint) or hint)


def test_calls_return_and_refuse_as_their_hints_say(monkeypatch):
    checked = []

    def assert_type(value, hint):
        checked.append(hint)
        assert is_what_it_says(value, hint), f"{value!r} is not a {hint}"
        return value

    monkeypatch.setattr(typing, "assert_type", assert_type)
    runpy.run_path(str(HINTS))
    assert len(checked) == len(re.findall(r"^ *assert_type\(", HINTS.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("checker", [["mypy", "--follow-imports=silent"], ["basedpyright"]], ids=lambda words: words[0])
def test_type_checkers_infer_the_types_and_refuse_the_calls(checker):
    if importlib.util.find_spec(checker[0]) is None:
        pytest.skip(f"needs {checker[0]}")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("needs pyproject.toml, which configures the checkers")
    command = [sys.executable, "-m", *checker, HINTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
