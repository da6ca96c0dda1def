"""`python -m fastsoftmax report`: reads files, a chunk at a time, and gives a table, JSON or a picture."""

import io
import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ._arguments import Array, calibration_arguments, to_bins, to_temperature
from ._scores import Chunk, Scores
from .calibration import Bins, Reliability, fitted

SUMMARY = "Report loss, accuracy and calibration of logits of any size, stored by numpy.save with their class indices."

_FIT = "fit"
_TOP = 5

_Show = Callable[[str, int], None]


class _BadInput(Exception):
    """An error in the input. Its text is one line."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("logits", metavar="LOGITS.npy", type=Path, help="scores")
    parser.add_argument("targets", metavar="TARGETS.npy", type=Path, help="class indices, without the class axis")
    parser.add_argument("--axis", type=int, default=-1, help="the class axis (default: the last)")
    parser.add_argument("--ignore-index", type=int, metavar="N", help="samples with this class index take no part")
    parser.add_argument("--temperature", default="1", metavar="T|fit", help="divides the logits (default: 1)")
    parser.add_argument("--bins", type=int, default=15, metavar="N", help="number of bins of confidence (default: 15)")
    parser.add_argument("--dtype", choices=["bfloat16"], help="dtype of the logits, which numpy.save does not keep")
    parser.add_argument("--json", action="store_true", help="print JSON; NaN and infinity are null")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw reliability diagrams; needs matplotlib")


def run(arguments: Namespace) -> int:
    """Print the report, draw it if asked to, and return the exit status."""
    try:
        for text in _report(arguments):
            print(text)
    except _BadInput as error:
        print(f"fastsoftmax report: {error}", file=sys.stderr)
        return 2
    return 0


def _report(arguments: Namespace) -> Iterator[str]:
    if arguments.plot is not None:
        _check_plot(arguments.plot)
    given = _temperature(arguments.temperature)
    scores = _opened(arguments)
    samples = scores.targets.size
    with np.errstate(all="ignore"), _progress(samples) as show:
        best = fitted(_Watched(scores, show, "fitting the temperature"), scores.classes)
        temperature = given or (1.0 if math.isnan(best) else best)
        measures, found = _measured(_Watched(scores, show, "measuring"), scores.classes, temperature, arguments.bins)
        drawn = [(temperature, found)]
        if arguments.plot is not None and math.isfinite(best) and best != temperature:
            again = _Watched(scores, show, "measuring at the fitted temperature")
            drawn.append((best, _measured(again, scores.classes, best, arguments.bins)[1]))
    counted = measures.pop("samples")
    values: dict[str, Any] = {
        "samples": counted,
        "ignored": samples - counted,
        "classes": scores.classes,
        "temperature": temperature,
        **measures,
        "fitted_temperature": best,
    }
    if arguments.json:
        bins = {name: getattr(found, name) for name in ("edges", "count", "confidence", "accuracy")}
        values["reliability"] = {name: array.tolist() for name, array in bins.items()}
        yield json.dumps(_finite(values), indent=2, allow_nan=False)
    else:
        yield _table(arguments.logits.name, scores.logits.dtype, values)
    if arguments.plot is not None:
        _plot(arguments.plot, drawn)


def _temperature(text: str) -> float | None:
    """The temperature given; None for the fitted one."""
    try:
        return None if text == _FIT else to_temperature(float(text))
    except ValueError as error:
        raise _BadInput(f"--temperature is {text!r}; expected a positive finite number or {_FIT!r}") from error


# --- files ------------------------------------------------------------------------------------------------------------


def _opened(arguments: Namespace) -> Scores:
    logits, targets = _mapped(arguments.logits), _mapped(arguments.targets)
    if logits.dtype.kind == "V" and logits.dtype.itemsize == 2 and logits.dtype.names is None:
        if arguments.dtype is None:
            raise _BadInput(f"{arguments.logits}: dtype {logits.dtype.str}; if that is bfloat16, pass --dtype bfloat16")
        if find_spec("ml_dtypes") is None:
            raise _BadInput("--dtype bfloat16 needs ml_dtypes: pip install ml_dtypes")
        logits = logits.view(import_module("ml_dtypes").bfloat16)
    elif arguments.dtype is not None:
        raise _BadInput(f"{arguments.logits}: dtype {logits.dtype}; expected |V2, as numpy.save stores bfloat16")
    try:
        to_bins(arguments.bins, "uniform")
        array, labels, axis, _, ignored, _ = calibration_arguments(
            logits, targets, arguments.axis, 1.0, arguments.ignore_index, None
        )
    except (TypeError, ValueError) as error:  # an AxisError is a ValueError
        raise _BadInput(_line(error)) from error
    return Scores(array, labels, axis, ignored, None)


def _mapped(path: Path) -> Array:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _line(error)
        raise _BadInput(f"{path}: {reason}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- measures ---------------------------------------------------------------------------------------------------------


def _measured(
    scores: Iterable[Chunk], classes: int, temperature: float, bins: int
) -> tuple[dict[str, Any], Reliability]:
    """All measures, and the reliability, from one visit of the scores."""
    samples, table = 0, Bins(bins)
    sums = dict.fromkeys(("loss", "accuracy", "top5_accuracy", "entropy", "brier_score"), 0.0)
    for chunk in scores:
        log_probabilities, found = chunk.top(min(_TOP, classes), temperature)
        right = (found == chunk.targets[:, np.newaxis]).astype(float)
        right[np.isnan(log_probabilities)] = math.nan
        samples += len(right)
        sums["loss"] += chunk.losses(temperature).sum()
        sums["accuracy"] += right[:, 0].sum()
        sums["top5_accuracy"] += right.sum()
        sums["entropy"] += chunk.entropies(temperature).sum()
        sums["brier_score"] += chunk.squared_error(temperature)
        table.add(np.exp(log_probabilities[:, 0]), right[:, 0], chunk.weight)
    means = {name: float(total) / samples if samples else math.nan for name, total in sums.items()}
    reliability = table.reliability()
    return {
        "samples": samples,
        "loss": means["loss"],
        "perplexity": float(np.exp(means["loss"])),
        "accuracy": means["accuracy"],
        "top5_accuracy": means["top5_accuracy"],
        "entropy": means["entropy"],
        "expected_calibration_error": reliability.expected_error,
        "maximum_calibration_error": reliability.maximum_error,
        "brier_score": means["brier_score"],
    }, reliability


# --- progress ---------------------------------------------------------------------------------------------------------


@dataclass
class _Watched:
    """Scores that show how far each visit of them is."""

    scores: Scores
    show: _Show
    text: str
    visits: int = 0

    def __iter__(self) -> Iterator[Chunk]:
        self.visits += 1
        text = self.text if self.visits == 1 else f"{self.text}, visit {self.visits}"
        done = 0
        self.show(text, done)
        for chunk in self.scores:
            yield chunk
            done += chunk.labels.size
            self.show(text, done)


@contextmanager
def _progress(samples: int) -> Iterator[_Show]:
    """Yield a function that shows, on a terminal, a text and how many samples are done."""
    if not sys.stderr.isatty():
        yield lambda text, done: None
    elif find_spec("rich") is None:
        yield lambda text, done: print(f"\r\033[K{text}: {100 * done // max(1, samples)} %", end="", file=sys.stderr)
        print("\r\033[K", end="", file=sys.stderr)
    else:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=samples)
            yield lambda text, done: bar.update(task, description=text, completed=done)


# --- results ----------------------------------------------------------------------------------------------------------


def _table(name: str, dtype: np.dtype[Any], values: dict[str, Any]) -> str:
    ignored = f", {values['ignored']:,} more ignored" if values["ignored"] else ""
    head = f"{name}: {values['samples']:,} samples{ignored}, {values['classes']:,} classes, {dtype}"
    rows = {
        "temperature": f"{values['temperature']:.6g}",
        "loss": f"{values['loss']:.6g}",
        "perplexity": f"{values['perplexity']:.6g}",
        "accuracy": f"{100 * values['accuracy']:.2f} %",
        "top-5 accuracy": f"{100 * values['top5_accuracy']:.2f} %",
        "entropy": f"{values['entropy']:.6g}",
        "expected calibration error": f"{100 * values['expected_calibration_error']:.2f} %",
        "maximum calibration error": f"{100 * values['maximum_calibration_error']:.2f} %",
        "Brier score": f"{values['brier_score']:.6g}",
        "fitted temperature": f"{values['fitted_temperature']:.6g}",
    }
    return "\n".join([head, "", *(f"{key:<28}{value:>12}" for key, value in rows.items())])


def _finite(value: Any) -> Any:
    """`value` with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_plot(path: Path) -> None:
    """Refuse a picture that could not be written, before any work is done."""
    if find_spec("matplotlib") is None:
        raise _BadInput("--plot needs matplotlib: pip install matplotlib")
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise _BadInput(f"{path}: expected a name that ends in one of {', '.join(sorted(known))}")
    if not path.parent.is_dir():
        raise _BadInput(f"{path}: no such folder")
    if path.is_dir():
        raise _BadInput(f"{path}: is a folder")


def _plot(path: Path, drawn: list[tuple[float, Reliability]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(drawn), 6), layout="constrained")
    for ax, (temperature, found) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        found.plot(ax)
        ax.set_title(f"temperature {temperature:.4g}\n{ax.get_title()}")
    figure.draw_without_rendering()  # makes room for the titles
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(picture.getvalue())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise _BadInput(f"{path}: {error.strerror}") from error
