"""`python -m fastsoftmax report`: files in, a table, JSON or a picture out."""

import json
import math
import re
import subprocess
import sys
from os import close, openpty, read

import fastsoftmax as fs
import ml_dtypes
import numpy as np
import pytest
from fastsoftmax.calibration import brier_score, fit_temperature, reliability


@pytest.fixture
def saved(tmp_path, rng):
    """Scores and targets, which are also in files, and a function that saves further arrays."""

    def save(name, array):
        np.save(tmp_path / name, array)
        return array

    targets = save("targets.npy", rng.integers(0, 10, 600))
    logits = save("logits.npy", (3 * (rng.normal(size=(600, 10)) + np.eye(10)[targets])).astype(np.float32))
    return logits, targets, save


@pytest.fixture
def report(tmp_path, environment):
    def run(*arguments, **options):
        command = [sys.executable, "-W", "error", "-m", "fastsoftmax", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)

    return run


def values(done):
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def wanted(logits, targets, temperature=1.0, bins=15, **options):
    x = np.asarray(logits, np.float64)
    loss = fs.cross_entropy(x, targets, temperature=temperature, **options)
    kept = targets != options.get("ignore_index")
    order = np.argsort(-x[kept], axis=-1, kind="stable")
    found = reliability(x, targets, temperature=temperature, bins=bins, **options)
    return {
        "samples": np.count_nonzero(kept),
        "ignored": np.count_nonzero(~kept),
        "classes": x.shape[-1],
        "temperature": temperature,
        "loss": loss,
        "perplexity": np.exp(loss),
        "accuracy": np.mean(order[:, 0] == targets[kept]),
        "top5_accuracy": np.mean((order[:, :5] == targets[kept, np.newaxis]).any(-1)),
        "entropy": fs.entropy(x[kept], temperature=temperature).mean(),
        "expected_calibration_error": found.expected_error,
        "maximum_calibration_error": found.maximum_error,
        "brier_score": brier_score(x, targets, temperature=temperature, **options),
        "fitted_temperature": fit_temperature(x, targets, **options),
    }


def agree(found, expected):
    assert found.keys() == {*expected, "reliability"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-9, err_msg=name)


@pytest.mark.parametrize("temperature", [None, "2.5", "fit"])
def test_json_has_every_measure(report, saved, temperature):
    logits, targets, _ = saved
    options = [] if temperature is None else ["--temperature", temperature]
    found = values(report("report", "logits.npy", "targets.npy", "--json", "--bins", "10", *options))
    number = fit_temperature(logits, targets) if temperature == "fit" else float(temperature or 1)
    agree(found, wanted(logits, targets, number, 10))
    bins = reliability(logits, targets, temperature=number, bins=10)
    assert found["reliability"].keys() == {"edges", "count", "confidence", "accuracy"}
    for name, array in found["reliability"].items():
        np.testing.assert_allclose(np.array(array, float), getattr(bins, name), 1e-9)


def test_ignored_samples_leave_every_measure(report, saved):
    logits, targets, save = saved
    targets[::3] = -100
    logits[::3] = np.nan
    save("logits.npy", logits)
    save("targets.npy", targets)
    found = values(report("report", "logits.npy", "targets.npy", "--ignore-index", "-100", "--json"))
    logits[::3] = 0
    agree(found, wanted(logits, targets, ignore_index=-100))
    assert (found["samples"], found["ignored"]) == (400, 200)


def test_any_axis_may_be_the_class_axis_and_few_classes_are_all_among_the_top_five(report, saved):
    *_, save = saved
    rng = np.random.default_rng(1)
    targets = save("t.npy", rng.integers(0, 3, (4, 5)))
    logits = save(
        "x.npy", np.asfortranarray(rng.normal(size=(4, 3, 5)) + np.eye(3)[targets].swapaxes(1, 2)).astype(">f8")
    )
    found = values(report("report", "x.npy", "t.npy", "--axis", "1", "--json"))
    agree(found, wanted(np.moveaxis(logits, 1, -1).reshape(-1, 3), targets.ravel()))
    assert found["top5_accuracy"] == 1


def test_bfloat16_is_read_if_it_is_named_as_the_dtype(report, saved):
    logits, targets, save = saved
    stored = save("b.npy", logits.astype(ml_dtypes.bfloat16))
    found = values(report("report", "b.npy", "targets.npy", "--dtype", "bfloat16", "--json"))
    agree(found, wanted(stored.astype(np.float64), targets))


def test_the_table_has_every_measure(report, saved):
    logits, targets, _ = saved
    done = report("report", "logits.npy", "targets.npy")
    assert (done.returncode, done.stderr) == (0, "")
    head, blank, *rows = done.stdout.splitlines()
    assert (head, blank) == ("logits.npy: 600 samples, 10 classes, float32", "")
    found = dict(re.fullmatch(r"(.*?) {2,}(\S+)( %)?", row).group(1, 2) for row in rows)
    expected = wanted(logits, targets)
    for name, key, factor in (
        ("loss", "loss", 1),
        ("perplexity", "perplexity", 1),
        ("accuracy", "accuracy", 100),
        ("top-5 accuracy", "top5_accuracy", 100),
        ("entropy", "entropy", 1),
        ("expected calibration error", "expected_calibration_error", 100),
        ("maximum calibration error", "maximum_calibration_error", 100),
        ("Brier score", "brier_score", 1),
        ("fitted temperature", "fitted_temperature", 1),
    ):
        np.testing.assert_allclose(float(found[name]), factor * expected[key], 1e-5, 0.006 if factor > 1 else 0)


@pytest.mark.parametrize("name", ["picture.png", "picture.svg", "picture.PDF"])
def test_a_picture_is_written_whole(report, saved, tmp_path, name):
    pytest.importorskip("matplotlib")
    before = set(tmp_path.iterdir())
    done = report("report", "logits.npy", "targets.npy", "--plot", name)
    assert (done.returncode, done.stderr) == (0, "")
    (picture,) = set(tmp_path.iterdir()) - before
    start = {"png": b"\x89PNG", "svg": b"<?xml", "PDF": b"%PDF"}[name.split(".")[1]]
    assert picture.name == name
    assert picture.read_bytes().startswith(start)
    if name.endswith("svg"):
        assert (
            picture.read_text().count("expected calibration error") >= 2
        )  # as stored, and with the fitted temperature


def test_nan_and_infinity_are_null(report, saved):
    *_, save = saved
    for logits, null in (
        (np.zeros((0, 4)), {"loss", "accuracy", "entropy", "brier_score", "fitted_temperature"}),
        (np.full((2, 4), np.nan), {"loss", "accuracy", "top5_accuracy", "entropy", "expected_calibration_error"}),
        (np.array([[-np.inf, 0.0, 1.0]]), {"loss", "perplexity", "fitted_temperature"}),
    ):
        save("x.npy", logits)
        save("t.npy", np.zeros(len(logits), int))
        found = values(report("report", "x.npy", "t.npy", "--json"))
        assert null <= {key for key, value in found.items() if value is None}
        assert report("report", "x.npy", "t.npy", "--temperature", "fit").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["missing.npy", "targets.npy"], "missing.npy: No such file or directory"),
        (["logits.npy", "missing.npy"], "missing.npy: No such file"),
        ([".", "targets.npy"], "directory|Permission"),
        (["truncated.npy", "targets.npy"], "truncated.npy: .*greater than file size"),
        (["header.npy", "targets.npy"], "header.npy: EOF: reading array header"),
        (["empty.npy", "targets.npy"], "empty.npy: EOF"),
        (["text.npy", "targets.npy"], "text.npy: the magic string is not correct"),
        (["several.npz", "targets.npy"], "several.npz: the magic string is not correct"),
        (["pickled.npy", "targets.npy"], "pickled.npy: .*Python objects"),
        (["complex.npy", "targets.npy"], "logits has dtype complex128"),
        (["bfloat16.npy", "targets.npy"], r"bfloat16.npy: dtype \|V2; if that is bfloat16, pass --dtype bfloat16"),
        (["logits.npy", "targets.npy", "--dtype", "bfloat16"], "logits.npy: dtype float32"),
        (["logits.npy", "short.npy"], r"targets, class indices, has shape \(3,\); expected \(600,\)"),
        (["logits.npy", "floats.npy"], "targets has dtype float64; expected class indices"),
        (["logits.npy", "large.npy"], r"targets\[0\] is 10; expected a class index in \[0, 10\)"),
        (["classless.npy", "short.npy"], "no classes"),
        (["logits.npy", "targets.npy", "--axis", "7"], "axis 7 is out of bounds"),
        (["logits.npy", "targets.npy", "--bins", "0"], "bins is 0"),
        (
            ["logits.npy", "targets.npy", "--temperature", "0"],
            "--temperature is '0'; expected a positive",
        ),
        (["logits.npy", "targets.npy", "--temperature", "warm"], "--temperature is 'warm'"),
        (["logits.npy", "targets.npy", "--plot", "nowhere/x.png"], "no such folder"),
        (["logits.npy", "targets.npy", "--plot", "x.xyz"], "x.xyz: expected a name that ends in one of .*png"),
    ],
    ids=str,
)
def test_bad_input_gives_one_line_and_status_2(report, saved, tmp_path, arguments, match):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    logits, targets, save = saved
    whole = (tmp_path / "logits.npy").read_bytes()
    for name, content in (
        ("truncated", whole[:1000]),
        ("header", whole[:40]),
        ("empty", b""),
        ("text", b"hello there"),
    ):
        (tmp_path / f"{name}.npy").write_bytes(content)
    np.savez(tmp_path / "several.npz", logits)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    save("complex.npy", logits.astype(complex))
    save("bfloat16.npy", logits.astype(ml_dtypes.bfloat16))
    save("short.npy", targets[:3])
    save("floats.npy", targets.astype(float))
    save("large.npy", np.full(600, 10))
    save("classless.npy", np.zeros((3, 0)))
    before = set(tmp_path.iterdir())
    done = report("report", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"fastsoftmax report: .*({match}).*\n", done.stderr)
    assert set(tmp_path.iterdir()) == before


def test_a_picture_that_cannot_be_written_leaves_no_file_and_the_table_is_printed(report, saved, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "taken.png.part").mkdir()
    before = set(tmp_path.iterdir())
    done = report("report", "logits.npy", "targets.npy", "--plot", "taken.png")
    assert done.returncode == 2
    assert "fitted temperature" in done.stdout
    assert re.fullmatch("fastsoftmax report: taken.png: Is a directory\n", done.stderr)
    assert set(tmp_path.iterdir()) == before


def test_without_a_command_the_configuration_is_printed(report):
    done = report()
    assert done.returncode == 0
    assert done.stdout.startswith(f"fastsoftmax: {fs.__version__}\n")
    assert report("rapport").returncode == 2


@pytest.mark.parametrize("rich", [False, True])
def test_a_terminal_shows_progress_and_is_clean_afterwards(saved, tmp_path, environment, rich):
    if rich:
        pytest.importorskip("rich")
    hidden = "" if rich else "sys.modules['rich'] = None; importlib.util.find_spec = lambda name: None;"
    code = f"import sys, importlib.util; {hidden} from fastsoftmax.__main__ import main; sys.exit(main())"
    ours, theirs = openpty()
    arguments = ["report", "logits.npy", "targets.npy", "--json"]
    environment |= {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        close(theirs)
        shown = b""
        while True:
            try:
                part = read(ours, 4096)
            except OSError:  # how Linux reports the end of a terminal
                break
            if not part:
                break
            shown += part
        assert json.loads(process.stdout.read())["samples"] == 600
    close(ours)
    assert process.returncode == 0
    assert b"measuring" in shown
    assert shown.rstrip().endswith((b"\x1b[K", b"\x1b[2K", b"\x1b[?25h"))


def test_peak_memory_is_a_few_chunks_whatever_the_size_of_the_file(report, saved, tmp_path, environment):
    """Limits what Python and NumPy allocate for a report on 128 MB of scores."""
    classes, rows = 500, 64_000
    logits = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (rows, classes))
    logits[...] = np.random.default_rng(0).standard_normal((rows, classes), np.float32)
    logits[:, 0] += 2
    np.save(tmp_path / "zeros.npy", np.zeros(rows, np.int8))
    del logits
    code = """if True:
        import sys, tracemalloc
        from fastsoftmax.__main__ import main
        tracemalloc.start()
        status = main()
        print(tracemalloc.get_traced_memory()[1], file=sys.stderr)
        sys.exit(status)
        """
    command = [sys.executable, "-c", code, "report", "large.npy", "zeros.npy", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert math.isfinite(json.loads(done.stdout)["fitted_temperature"])
    assert int(done.stderr) < 3e6
