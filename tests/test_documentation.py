"""Every example in a docstring, and every Python block of the README and the site, runs and gives what it shows."""

import doctest
import importlib.util
import inspect
import re
from operator import attrgetter
from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [page for page in DOCUMENTS if "```python" in page.read_text(encoding="utf-8")]
FUNCTIONS = sorted(n for n in fs.__all__ if callable(getattr(fs, n)))
FUNCTIONS += [f"calibration.{name}" for name in ("brier_score", "fit_temperature", "reliability")]
# Modules that need another library; both have the same functions.
OTHERS = [(library, name) for library in ("dask", "xarray") for name in (
    "cross_entropy", "cross_entropy_grad", "cross_entropy_with_grad", "entropy", "kl_divergence", "log_softmax",
    "log_softmax_at", "log_softmax_top_k", "logsumexp", "softmax",
)]  # fmt: skip


def found(name):
    return inspect.unwrap(attrgetter(name)(fs))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_examples_of_a_docstring_give_the_results_they_show(name):
    run_examples(found(name), name)


def run_examples(function, name):
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples, "no example"
    failures = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_the_sections_of_numpydoc(name):
    check_sections(found(name))


@pytest.mark.parametrize(("library", "name"), OTHERS)
def test_docstrings_for_dask_and_xarray_have_sections_and_examples_that_run(library, name):
    pytest.importorskip("dask.array")
    module = pytest.importorskip(f"fastsoftmax.{library}")
    assert sorted(module.__all__) == [name for where, name in OTHERS if where == library]
    check_sections(getattr(module, name))
    run_examples(getattr(module, name), name)


def check_sections(function):
    sections = re.findall(r"^ *([A-Z][A-Za-z ]+)\n *-{4,}$", inspect.getdoc(function), re.MULTILINE)
    parameters = inspect.signature(function).parameters
    underlines = re.findall("-{4,}", inspect.getdoc(function))
    assert len(underlines) == len(sections), "an underline without a heading"
    needed = {"Examples"} | ({"Parameters", "Raises"} if parameters else {"Returns"})
    assert needed <= set(sections)
    for parameter in parameters:
        assert re.search(rf"^[\w, ]*\b{parameter}\b", inspect.getdoc(function), re.MULTILINE)


def test_the_reference_has_a_page_for_each_function():
    page = ROOT / "docs" / "api.rst"
    if not page.exists():
        pytest.skip("needs docs/")
    modules = [f"{name}.{part}" for name in ("boosting", "calibration") for part in getattr(fs, name).__all__]
    public = {name for name in fs.__all__ if callable(getattr(fs, name))}
    assert sorted(re.findall(r"^   ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)) == sorted(
        {*public, *modules}
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_blocks_of_a_page_run_in_order(page, monkeypatch, tmp_path):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        if "import dask" in block.group(1) and not all(map(importlib.util.find_spec, ("dask", "zarr"))):
            continue
        line = text.count("\n", 0, block.start(1))
        code = block.group(1)
        if ">>>" in code:
            failures = []
            test = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append, clear_globs=False)
            assert not failures, "".join(failures)
            namespace.update(test.globs)
        else:
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_blocks_of_pages_are_python_shell_or_directives():
    """Python blocks run in the test above; shell commands do not. Names in braces are directives, not code."""
    for page in DOCUMENTS:
        kinds = re.findall(r"^```(\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(kinds) <= {"python", "sh", "{image}", "{include}", "{toctree}"}, page


def test_the_figures_of_the_readme_are_those_of_the_results():
    readme, results = ROOT / "README.md", ROOT / "bench" / "RESULTS.md"
    if not (readme.exists() and results.exists()):
        pytest.skip("needs README.md and bench/")
    one_thread = results.read_text(encoding="utf-8").partition("## 2 threads")[0]
    measured = dict(re.findall(r"ahead of (\w+) in .* cases: (\S+) times", one_thread))
    figures = re.findall(r"\*\*(\S+) times as\s+fast as (\w+)\*\*", readme.read_text(encoding="utf-8"))
    assert {name: figure for figure, name in figures} == {"SciPy": measured["SciPy"], "NumPy": measured["reference"]}


# Advice of the docstrings


def test_probabilities_in_float64_are_good_for_multinomial(rng):
    scores = rng.normal(0, 3, (2000, 50)).astype(np.float32)
    scores[:, -1] = -40
    with pytest.raises(ValueError, match="> 1"):
        rng.multinomial(1, fs.softmax(scores))
    assert rng.multinomial(3, fs.softmax(scores, dtype=np.float64)).sum() == 3 * len(scores)


def test_a_sum_divided_by_the_count_is_the_mean_or_0_if_all_are_ignored(rng):
    logits, targets = rng.normal(0, 3, (5, 4)), np.array([0, 3, 2, 3, 1])
    total = fs.cross_entropy(logits, targets, ignore_index=3, reduction="sum")
    np.testing.assert_allclose(total / 3, fs.cross_entropy(logits, targets, ignore_index=3), 1e-14)
    ignored = np.full(5, 3)
    assert np.isnan(fs.cross_entropy(logits, ignored, ignore_index=3))
    assert fs.cross_entropy(logits, ignored, ignore_index=3, reduction="sum") / 1 == 0


def test_upstream_takes_weights_of_samples(rng):
    """The gradient is that of the weighted sum, by central differences."""
    logits, targets, weights = rng.normal(0, 3, (3, 4)), np.array([0, 3, 2]), np.array([0.5, 0.0, 2.0])
    grad = fs.cross_entropy_grad(logits, targets, reduction="none", upstream=weights)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        above, below = (weights @ fs.cross_entropy(logits + s, targets, reduction="none") for s in (step, -step))
        np.testing.assert_allclose(grad[place], (above - below) / 2e-5, rtol=0, atol=1e-9)


def test_the_weights_of_logsumexp_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        fs.logsumexp([1.0, 2.0], None, [1.0, -1.0])
