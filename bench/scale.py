"""`--scale`: dask calls on logits on disk that exceed the workers' memory: their time, memory and bytes read."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fastsoftmax as fs
import fastsoftmax.dask as fsd
import numpy as np
import scipy.special
import zarr
from dask.distributed import Client, KilledWorker, LocalCluster
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .report import SCALE, markdown, short, write_part
from .workers import Disagreement

CLASSES, CLASSES_IN_CHUNK, ROWS_IN_CHUNK = 1 << 17, 1 << 14, 512
GIGABYTE = 1 << 30
MEMORY_OF_WORKER = 2 << 30

WHAT = (
    f"The logits are float32, in uncompressed zarr: {CLASSES} classes in chunks of {CLASSES_IN_CHUNK}, rows in chunks "
    f"of {ROWS_IN_CHUNK}. GB: 2^30 bytes. softmax is stored as zarr, cross_entropy is one number. Each run has new "
    f"worker processes with one thread and {MEMORY_OF_WORKER >> 30} GB. memory: the largest resident set of a worker, "
    "libraries included; read: bytes that the workers read from files, from the disk or the system's cache. NumPy: its "
    "expression on dask arrays; SciPy: its function on blocks that are rechunked to whole slices; plain: fastsoftmax "
    "without dask on memory-mapped files, with as many threads as there are workers. killed: workers exceeded their "
    "memory, four times."
)


@dataclass(frozen=True)
class Result:
    operation: str
    contender: str
    gigabytes: float
    workers: int
    seconds: float  # NaN: workers were killed at their limit of memory, until dask gave up
    memory: int  # bytes
    read: int


def _numpy_softmax(x: da.Array, targets: Any) -> da.Array:
    e = da.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _scipy_softmax(x: da.Array, targets: Any) -> da.Array:
    return x.rechunk({1: -1}).map_blocks(scipy.special.softmax, axis=1, dtype=x.dtype, meta=x._meta)


def _at_targets(x: da.Array, targets: Any) -> da.Array:
    return x.vindex[np.arange(len(targets)), targets]


def _numpy_cross_entropy(x: da.Array, targets: Any) -> da.Array:
    largest = x.max(axis=1, keepdims=True)
    return (da.log(da.exp(x - largest).sum(axis=1)) + largest[:, 0] - _at_targets(x, targets)).mean()


def _scipy_cross_entropy(x: da.Array, targets: Any) -> da.Array:
    whole = x.rechunk({1: -1})
    total = whole.map_blocks(scipy.special.logsumexp, axis=1, drop_axis=1, dtype=x.dtype, meta=np.empty(0, x.dtype))
    return (total - _at_targets(x, targets)).mean()


OPERATIONS: dict[str, dict[str, Callable[[da.Array, Any], da.Array]]] = {
    "softmax": {
        "fastsoftmax": lambda x, targets: fsd.softmax(x, 1),
        "NumPy": _numpy_softmax,
        "SciPy": _scipy_softmax,
    },
    "cross_entropy": {
        "fastsoftmax": lambda x, targets: fsd.cross_entropy(x, targets, 1),
        "NumPy": _numpy_cross_entropy,
        "SciPy": _scipy_cross_entropy,
    },
}


def measure(gigabytes: Sequence[float], workers: Sequence[int], console: Console) -> list[Result]:
    """Measure all contenders on the smallest size; on others only fastsoftmax and plain calls, with most workers."""
    results = []
    for size in sorted(gigabytes):
        with tempfile.TemporaryDirectory() as name, dask.config.set({"distributed.logging.distributed": "error"}):
            folder = Path(name)
            rows, targets = _write(folder, size)
            runs = [
                (operation, contender, count)
                for operation in OPERATIONS
                for count in workers
                for contender in [*OPERATIONS[operation], "plain"]
                if size == min(gigabytes) or (contender in ("fastsoftmax", "plain") and count == max(workers))
            ]
            wanted = float(fs.cross_entropy(_mapped(folder, rows), targets, 1))
            for operation, contender, count in track(runs, f"{size:g} GB", console=console, transient=True):
                run = _plain if contender == "plain" else _on_cluster
                try:
                    seconds, memory, read, loss = run(folder, rows, targets, operation, contender, count)
                except KilledWorker:
                    results.append(Result(operation, contender, size, count, nan, 0, 0))
                    continue
                if loss is None:
                    _check(folder, rows, contender)
                elif not np.isclose(loss, wanted, rtol=1e-5):
                    raise Disagreement(f"{contender} gives {loss}; expected {wanted}")
                results.append(Result(operation, contender, size, count, seconds, memory, read))
    return results


def _write(folder: Path, gigabytes: float) -> tuple[int, Any]:
    """Write the logits as zarr and as one file. Returns the number of rows and the targets."""
    rows = max(1, round(gigabytes * GIGABYTE / (4 * CLASSES)))
    chunks = (min(ROWS_IN_CHUNK, rows), CLASSES_IN_CHUNK)
    shape = (rows, CLASSES)
    stored = zarr.create_array(str(folder / "logits"), shape=shape, chunks=chunks, dtype="f4", compressors=None)
    mapped = np.memmap(folder / "logits.raw", np.float32, "w+", shape=shape)
    rng = np.random.default_rng(0)
    for row in range(0, rows, chunks[0]):
        band = 3 * rng.standard_normal((min(chunks[0], rows - row), CLASSES), np.float32)
        stored[row : row + len(band)] = mapped[row : row + len(band)] = band
    return rows, rng.integers(0, CLASSES, rows)


def _mapped(folder: Path, rows: int, name: str = "logits", mode: Any = "r") -> Any:
    return np.memmap(folder / f"{name}.raw", np.float32, mode, shape=(rows, CLASSES))


def _on_cluster(
    folder: Path, rows: int, targets: Any, operation: str, contender: str, workers: int
) -> tuple[float, int, int, float | None]:
    shutil.rmtree(folder / "result", ignore_errors=True)
    with _cluster(folder, workers) as client:
        before = _sum(client.run(_bytes_read))
        begin = time.perf_counter()
        x = da.from_zarr(str(folder / "logits"))
        result = OPERATIONS[operation][contender](x, targets)
        loss = None
        if operation == "softmax":
            target = zarr.create_array(
                *(str(folder / "result"),), shape=x.shape, chunks=x.chunksize, dtype="f4", compressors=None
            )
            # No lock: a block may span several chunks of the file, but no two blocks share one.
            da.store(result.rechunk(x.chunks), target, lock=False)
        else:
            loss = float(result.compute())
        seconds = time.perf_counter() - begin
        return seconds, max(client.run(_peak).values()), _sum(client.run(_bytes_read)) - before, loss


@contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=MEMORY_OF_WORKER,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(folder / "spilled"),
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _sum(numbers: dict[str, int]) -> int:
    return sum(numbers.values())


def _peak() -> int:
    # Not getrusage: its maximum also covers the program that ran in this process before Python was started in it.
    return int(_fields("status")["VmHWM"].split()[0]) << 10


def _bytes_read() -> int:
    return int(_fields("io")["rchar"])


def _fields(name: str) -> dict[str, str]:
    """The fields of a file in which Linux describes this process."""
    return dict(line.split(":", 1) for line in Path("/proc/self", name).read_text().splitlines())


def _plain(
    folder: Path, rows: int, targets: Any, operation: str, contender: str, workers: int
) -> tuple[float, int, int, float | None]:
    """Time a plain call on mapped files. Its memory is the system's cache of the files, and is not counted."""
    x, out = _mapped(folder, rows), _mapped(folder, rows, "result", "w+")
    begin = time.perf_counter()
    loss = None
    with fs.num_threads(workers):
        if operation == "softmax":
            fs.softmax(x, 1, out=out)
            out.flush()
        else:
            loss = float(fs.cross_entropy(x, targets, 1))
    return time.perf_counter() - begin, 0, x.nbytes, loss


def _check(folder: Path, rows: int, contender: str) -> None:
    """Check the first and the last row of a stored softmax."""
    path = folder / "result"
    got = _mapped(folder, rows, "result") if contender == "plain" else zarr.open_array(str(path), mode="r")
    for row in (0, rows - 1):
        if not np.allclose(got[row], fs.softmax(_mapped(folder, rows)[row]), rtol=1e-4, atol=1e-30):
            raise Disagreement(f"{contender} gives another softmax in row {row}")


def tables(results: Sequence[Result], plain: bool = False) -> list[Table]:
    smallest = min(result.gigabytes for result in results)
    headings = ["operation", "by", "workers", "GB", "s", "times", "memory, MB", "read, GB"]
    both = []
    for title, chosen in (
        ("contenders", [result for result in results if result.gigabytes == smallest]),
        (
            "growth",
            [r for r in results if r.contender == "fastsoftmax" and r.workers == max(x.workers for x in results)],
        ),
    ):
        grid = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD, title=None if plain else title, pad_edge=plain)
        for heading in headings:
            grid.add_column(heading, justify="left" if heading in ("operation", "by") else "right")
        for result in chosen:
            ours = next(
                other
                for other in chosen
                if (other.operation, other.contender) == (result.operation, "fastsoftmax")
                and (title == "growth" or other.workers == result.workers)
            )
            grid.add_row(
                *(result.operation, result.contender, str(result.workers), f"{result.gigabytes:g}"),
                *(("killed", "–") if isnan(result.seconds) else _times(result, ours)),
                f"{result.memory / 1e6:.0f}" if result.memory else "–",
                short(result.read / 2**30) if result.read else "–",
            )
        both.append(grid)
    return both


def _times(result: Result, ours: Result) -> tuple[str, str]:
    return short(result.seconds), short(result.seconds / ours.seconds)


def write_markdown(path: Path, results: Sequence[Result]) -> None:
    write_part(path, SCALE, "\n\n".join([WHAT, *(markdown(table) for table in tables(results, plain=True))]))


def default_workers() -> list[int]:
    return [1, 2] if (os.cpu_count() or 1) > 1 else [1]
