"""The benchmark: its races, its runs beside other work, its tables and pictures. The times it finds are not tested."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich", reason="the benchmark needs rich")
pytest.importorskip("matplotlib", reason="the benchmark needs matplotlib")
pytest.importorskip("threadpoolctl", reason="the benchmark needs threadpoolctl")

import contract
import fastsoftmax
from precision import SUFFICES

from bench import __main__ as bench_command
from bench import accuracy_chart, busy, busy_report, chart, compare, machine, marks, report
from bench.busy import Beside, BusyRun, Figures, Gain, Together
from bench.cases import EVERYDAY, Case
from bench.contenders import Contender, Unsupported, definition, ours
from bench.race import CaseResult, Run, race
from bench.workers import Disagreement, Station, Timing, started

TIME_LIMIT = 30
SMALL = Case("softmax", (50, 30))


class Wrong(Contender):
    name = "wrong"
    package = "numpy"

    def prepare(self, work):
        return lambda: work.x


class Ending(Contender):
    name = "ending"
    package = "numpy"

    def prepare(self, work):
        os._exit(3)


class Lacking(Contender):
    name = "lacking"
    package = "numpy"

    def prepare(self, work):
        raise Unsupported("no such operation")


# The race


def test_each_contender_computes_in_a_process_of_its_own_with_its_number_of_threads():
    with started((ours(), 1), (ours(), 2), (definition(), 2)) as workers:
        pids = {worker._process.submit(os.getpid).result() for worker in workers}
        assert len(pids | {os.getpid()}) == 4
        assert [worker.do(_threads) for worker in workers[:2]] == [1, min(2, fastsoftmax.get_num_threads())]


def _threads(station):
    return fastsoftmax.get_num_threads()


def test_a_contender_that_is_wrong_or_ends_or_lacks_the_operation_is_absent_with_the_reason():
    racers = [ours(), definition(), Wrong(), Ending(), Lacking()]
    with started(*((racer, 1) for racer in racers)) as workers:
        for _ in range(2):  # in the second race, the process of Ending has ended
            result = race("group", SMALL, workers, [], 0.01)
            assert set(result.timings) == {"fastsoftmax", "reference"}
            assert "disagrees" in result.absent["wrong"]
            assert "fails" in result.absent["ending"]
            assert result.absent["lacking"] == "no such operation"


def test_another_build_is_raced_as_it_lies_in_its_folder(tmp_path):
    for name in ("same", "wrong"):
        shutil.copytree(Path(fastsoftmax.__file__).parent, tmp_path / name / "fastsoftmax")
    with Path(tmp_path, "wrong", "fastsoftmax", "__init__.py").open("a") as module:
        module.write("\ndef softmax(x, axis=-1, out=None):\n    return x\n")
    builds = [bench_command._build(f"{name}={tmp_path / name}") for name in ("same", "wrong")]
    with started(*((each, 1) for each in [ours(), *builds, definition()])) as workers:
        result = race("group", SMALL, workers, [], 0.01)
    assert set(result.timings) == {"fastsoftmax", "same", "reference"}
    assert "wrong disagrees" in result.absent["wrong"]


@pytest.mark.parametrize("text", ["", "variant", "variant=", "variant=nowhere", "fastsoftmax=."])
def test_a_build_needs_a_name_of_its_own_and_a_folder_with_the_package(text, tmp_path, monkeypatch, capsys):
    (tmp_path / "fastsoftmax").mkdir()
    monkeypatch.chdir(tmp_path if text == "fastsoftmax=." else Path(__file__).parent)
    with pytest.raises(SystemExit):
        bench_command.main(["--build", text])
    assert f"{text!r} is not a new name" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("variant", "variant"), ("SciPy",), ("reference",)], ids=str)
def test_a_build_needs_a_name_that_no_other_contender_has(names, tmp_path, capsys):
    (tmp_path / "fastsoftmax").mkdir()
    builds = [word for name in names for word in ("--build", f"{name}={tmp_path}")]
    assert bench_command.main(["--quick", *builds]) == 2
    assert "two contenders have the same name" in capsys.readouterr().out


def test_a_wrong_result_of_our_own_ends_the_race():
    wrong = Wrong()
    wrong.name = "fastsoftmax"
    with started((wrong, 1)) as workers, pytest.raises(Disagreement, match="fastsoftmax disagrees"):
        race("group", SMALL, workers, [], 0.01)


@pytest.mark.parametrize("most_bytes", [0, 2**30])
def test_contenders_whose_arrays_would_fill_the_memory_are_timed_in_sequence(most_bytes, monkeypatch):
    monkeypatch.setattr("bench.race.MOST_BYTES", most_bytes)
    with started((ours(), 1), (definition(), 1)) as workers:
        result = race("group", SMALL, workers, [], 0.01)
    assert all(timing.median > 0 for timing in result.timings.values())
    assert result.rivals == ["reference"]


def test_an_entropy_too_slow_compared_with_logsumexp_is_found():
    def raced(operation, ours, shape=(5000, 30)):
        timings = {"fastsoftmax": Timing(1, [ours]), "reference": Timing(1, [100.0])}
        return CaseResult("g", Case(operation, shape), False, timings, {}, ())

    slow, fast, alone = raced("entropy", 3.2), raced("entropy", 2.8, (9, 9000)), raced("entropy", 9.0, (7, 7000))
    run = Run(1, {}, [raced("logsumexp", 2.0), slow, raced("logsumexp", 2.0, (9, 9000)), fast, alone])
    rows = list(zip(*(column.cells for column in marks.table([run], plain=True).columns), strict=True))
    assert rows == [(slow.case.name, "1", "/ logsumexp", "1.50", "1.60")]


def test_pictures_show_all_cases_for_each_number_of_threads_and_everyday_calls(tmp_path):
    def run(threads):
        times = {"fastsoftmax": 1e-3, "reference": 12e-3, "SciPy": 8e-3, "move": 1e-4}
        timings = {name: Timing(1, [seconds]) for name, seconds in times.items()}
        results = [CaseResult("g", case, False, timings, {}, ("move",)) for case in (SMALL, EVERYDAY[0], EVERYDAY[2])]
        return Run(threads, {**machine.describe([ours()]), "threads": threads}, results)

    written = chart.draw(tmp_path / "race.png", [run(1), run(2)])
    assert written == [
        tmp_path / f"race{name}.{kind}" for name in ("", "_2_threads", "_everyday") for kind in ("png", "svg")
    ]
    drawn = (tmp_path / "race_everyday.svg").read_text(encoding="utf-8")
    for label in ("12.0×", "8.0×", "1 ms", "softmax, axis=1", "Time of a call, 1 thread"):
        assert f"<!-- {label}" in drawn
    assert SMALL.name not in drawn


def test_runs_are_compared_case_by_case_and_changes_beyond_the_noise_are_reported(tmp_path):
    def write(name, **samples):
        results = [
            CaseResult(
                "g", Case("softmax", (int(length), 10)), False, {"fastsoftmax": Timing(1, times, 1.0, 1.0)}, {}, ()
            )
            for length, times in ((key.strip("_"), times) for key, times in samples.items())
        ]
        report.write_json(tmp_path / name, [Run(1, {}, results)])
        return tmp_path / name

    steady = [1.0, 1.01, 1.02]
    old = write("old.json", _1=steady, _2=steady, _3=[1.0, 1.2, 1.3], _4=steady, _5=steady)
    new = write(
        "new.json", _1=[1.1, 1.11, 1.12], _2=[0.8, 0.81, 0.82], _3=[1.1, 1.3, 1.4], _4=[1.0, 1.03, 1.04], _6=steady
    )
    verdicts = {change.name: change.verdict for change in compare.changes(old, new)}
    names = [f"softmax ({length}, 10)" for length in (1, 2, 3, 4)]
    assert verdicts == dict(zip(names, ["slower", "faster", "", ""], strict=True))
    rows = list(zip(*(column.cells for column in compare.table(old, new).columns), strict=True))
    assert rows[0] == (names[0], "1", "1.01e+06", "1.11e+06", "1.10", "1.03", "slower")
    assert rows[-1][-1] == "faster"


# Beside other work


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_spinning_processes_end_with_their_block(error):
    try:
        with busy.spinning(2) as processes:
            assert [process.poll() for process in processes] == [None, None]
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process runs")
def test_spinning_processes_end_when_their_parent_is_killed():
    code = (
        "import time\nfrom bench.busy import spinning\n"
        "with spinning(1) as [process]: print(process.pid, flush=True); time.sleep(60)"
    )
    folder = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=folder) as parent:
        pid = int(parent.stdout.readline())
        assert _runs(pid)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + TIME_LIMIT
    while _runs(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_figures_are_those_of_all_calls_and_of_the_worst_turn():
    figures = Figures.of([np.full(98, 1.0), np.array([5.0, 9.0])])
    assert figures == Figures(100, 1.0, 1.12, pytest.approx(5.04), 7.0)


def test_calls_are_timed_one_by_one_each_after_its_pause():
    with started((ours(), 1)) as [worker]:
        worker.do(Station.prepare, SMALL, True)
        durations = worker.do(Station.calls, 0.1, 0.02)
    assert 1 <= len(durations) <= 5
    assert (durations < 0.02).all()


def test_marks_missed_beside_other_work_are_found():
    def figures(median, mean, percentile):
        return Figures(1, median, mean, percentile, mean)

    one = figures(1.0, 1.0, 1.0)
    run = BusyRun(
        2,
        1.0,
        {},
        [
            Beside("g", SMALL, 0, "fastsoftmax", one, figures(1.05, 9, 9)),
            Beside("g", SMALL, 1, "fastsoftmax", one, figures(1.05, 1.3, 1.4)),
            Beside("g", SMALL, 2, "fastsoftmax", one, figures(1.2, 1.1, 1.6)),
            Beside("g", SMALL, 2, "torch", one, figures(2, 2, 2)),
        ],
        {},
        [Together(SMALL, 10, 1.0, {"two processes": 1.2, "joblib": 0.6})],
        [Gain(SMALL, 0.9, 1.0), Gain(Case("softmax", (10**6,)), 1.7, 1.9)],
    )
    assert [(mark, wanted, found) for _, mark, wanted, found in marks.missed_when_busy(run)] == [
        ("median beside 0 spinning", 1.03, 1.05),
        ("mean beside 1 spinning", 1.2, 1.3),
        ("median beside 2 spinning", 1.1, 1.2),
        ("percentile beside 2 spinning", 1.5, 1.6),
        ("two processes: side by side", 1.0, 1.2),
        ("gain of calls that follow each other", pytest.approx(1 / 1.03), 0.9),
        ("gain of calls that follow each other", 1.8, 1.7),
    ]


# Threads that other tests started sleep in this process; forked processes do not use them.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_beside_other_work_is_written_as_table_picture_and_json(tmp_path, monkeypatch):
    monkeypatch.setattr(busy, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(busy, "TASK_SECONDS", 0.02)
    monkeypatch.setattr(busy, "GAIN_SECONDS", 0.02)
    for other in ("Torch", "OnnxRuntime", "LiteRt", "Jax"):
        monkeypatch.setattr(getattr(busy, other), "available", lambda self: False)
    monkeypatch.setattr(busy, "Numba", Lacking)
    cases = [("Rows", SMALL), ("Gain", Case("softmax", (20_000,)))]
    run = busy.measure(cases, 2, 0.04)
    assert [(each.name, each.spinning) for each in run.beside] == [("fastsoftmax", load) for load in busy.loads()]
    assert run.absent == {"fastsoftmax": {}, "lacking": {SMALL.name: "no such operation"}}
    assert {"two processes", "joblib"} <= set(run.together[0].ratios)
    assert [gain.case.elements for gain in run.gains] == [20_000]

    busy_report.write_markdown(tmp_path / "r.md", run, tmp_path / "picture")
    text = (tmp_path / "r.md").read_text()
    assert f"| {SMALL.name}" in text
    assert "](picture.png)" in text
    assert "lacking is absent from" in text
    assert [path.name for path in chart.draw_busy(tmp_path / "picture", run)] == ["picture.png", "picture.svg"]
    busy_report.write_json(tmp_path / "r.json", run)
    assert json.loads((tmp_path / "r.json").read_text())["busy"]["beside"][0]["name"] == "fastsoftmax"


def test_writing_one_part_of_the_results_leaves_the_other_unchanged(tmp_path):
    path = tmp_path / "results.md"
    report.write_part(path, report.BUSY, "## Old\n\ntext")
    report.write_part(path, report.RACE, "a\n\n## 1 thread\n\n| b |")
    race_first = path.read_text()
    assert race_first.index("| b |") < race_first.index("## Old")
    report.write_part(path, report.BUSY, "new")
    assert path.read_text() == race_first.replace("## Old\n\ntext", "new")
    report.write_part(path, report.RACE, "a\n\n## 1 thread\n\n| b |")
    assert path.read_text() == race_first.replace("## Old\n\ntext", "new")


# Pictures of accuracy


@pytest.mark.skipif(not SUFFICES, reason="longdouble has fewer than 64 bits here")
def test_the_curves_of_accuracy_keep_the_bounds_and_become_pictures(tmp_path, threads):
    racers = [ours()]
    for operation in accuracy_chart.SCALED:
        worst = accuracy_chart.errors(operation, racers, accuracy_chart.SCALES[::10])["fastsoftmax"]
        assert (worst <= contract.BOUNDS[operation].float32).all()
    right, curves = accuracy_chart.one_less_p(racers, accuracy_chart.LEADS[:40:10])
    np.testing.assert_allclose(curves["fastsoftmax"], right, rtol=1e-6)
    with threads(1):  # the command sets the limit of its process
        assert accuracy_chart.main(["--quick", "--no-peers", "--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dominating.svg", "scale.svg"]
