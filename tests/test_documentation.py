"""Every example in a docstring and every Python block of the README runs, and gives what it says."""

import doctest
import inspect
import re
from pathlib import Path

import fastsoftmax as fs
import pytest

README = Path(__file__).parents[1] / "README.md"
FUNCTIONS = sorted(n for n in fs.__all__ if callable(getattr(fs, n)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_examples_of_a_docstring_give_what_they_say(name):
    function = inspect.unwrap(getattr(fs, name))
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples, "no example"
    failures = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_the_sections_of_numpydoc(name):
    function = inspect.unwrap(getattr(fs, name))
    sections = re.findall(r"^ *([A-Z][A-Za-z ]+)\n *-{4,}$", inspect.getdoc(function), re.MULTILINE)
    parameters = inspect.signature(function).parameters
    underlines = re.findall("-{4,}", inspect.getdoc(function))
    assert len(underlines) == len(sections), "a heading that is none"
    needed = {"Examples"} | ({"Parameters", "Raises"} if parameters else {"Returns"})
    assert needed <= set(sections)
    for parameter in parameters:
        assert re.search(rf"^[\w, ]*\b{parameter}\b", inspect.getdoc(function), re.MULTILINE)


def test_the_python_blocks_of_the_readme_run_in_order(capsys, monkeypatch, tmp_path):
    if not README.exists():
        pytest.skip("no README.md beside the tests")
    text = README.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = block.group(1)
        if ">>>" in code:
            failures = []
            test = doctest.DocTestParser().get_doctest(code, namespace, "README.md", str(README), line)
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append, clear_globs=False)
            assert not failures, "".join(failures)
            namespace.update(test.globs)
        else:
            exec(compile("\n" * line + code, str(README), "exec"), namespace)
