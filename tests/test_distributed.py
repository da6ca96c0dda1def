"""fastsoftmax.dask on a real cluster of worker processes, also with arrays larger than their memory."""

import os
import signal
import time

import fastsoftmax as fs
import numpy as np
import pytest

pytest.importorskip("distributed")
zarr = pytest.importorskip("zarr")
da = pytest.importorskip("dask.array")
fsd = pytest.importorskip("fastsoftmax.dask")

from dask.distributed import Client, LocalCluster, progress, wait  # noqa: E402

MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path):
    """A function that starts two worker processes on loopback, each with a limit of memory in bytes."""
    started = []

    def start(memory):
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(tmp_path / "spilled"),
        )
        started.append(cluster)
        client = Client(cluster)
        started.append(client)
        return client

    yield start
    for each in reversed(started):
        each.close()


def logits_on_disk(path, shape, chunks):
    """Random logits, written band by band."""
    stored = zarr.create_array(str(path), shape=shape, chunks=chunks, dtype="f4", compressors=None)
    rng = np.random.default_rng(0)
    for row in range(0, shape[0], chunks[0]):
        stored[row : row + chunks[0]] = 3 * rng.standard_normal((chunks[0], shape[1]), np.float32)
    return stored


def softmax_on_disk(client, folder, shape, chunks, capsys, meanwhile=lambda store: None):
    """Computes softmax from zarr to zarr, with classes in chunks, and compares each band with the plain function's."""
    logits = logits_on_disk(folder / "logits", shape, chunks)
    probabilities = fsd.softmax(da.from_zarr(str(folder / "logits")), axis=1)
    assert probabilities.chunks[1] == (chunks[1],) * (shape[1] // chunks[1])
    target = zarr.create_array(str(folder / "p"), shape=shape, chunks=chunks, dtype="f4", compressors=None)
    done = client.compute(da.store(probabilities, target, lock=False, compute=False))
    meanwhile(target)
    progress(done, notebook=False)
    wait(done)
    assert done.status == "finished", done.exception()
    assert "100% Completed" in capsys.readouterr().out
    for row in range(0, shape[0], chunks[0]):
        rows = slice(row, row + chunks[0])
        wanted = fs.softmax(logits[rows])
        np.testing.assert_allclose(target[rows], wanted, rtol=4 * 2.0**-23, atol=1e-42)


def test_softmax_takes_an_array_larger_than_the_memory_of_a_worker(cluster, tmp_path, capsys):
    memory = 320 * MIB
    shape = (128, 1 << 20)  # 512 MiB
    assert shape[0] * shape[1] * 4 > 1.5 * memory
    softmax_on_disk(cluster(memory), tmp_path, shape, (32, 1 << 17), capsys)


def test_a_worker_that_is_killed_half_way_costs_only_time(cluster, tmp_path, capsys):
    client = cluster(512 * MIB)
    victim = next(iter(client.run(os.getpid).values()))

    def kill_one(target):
        begin = time.monotonic()
        while target.nchunks_initialized < 8:
            assert time.monotonic() - begin < 120
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        assert target.nchunks_initialized < target.nchunks

    softmax_on_disk(client, tmp_path, (256, 1 << 16), (8, 1 << 13), capsys, kill_one)
    assert victim not in client.run(os.getpid).values()


def test_a_loss_by_index_is_computed_on_the_cluster(cluster, tmp_path):
    client = cluster(512 * MIB)
    logits = logits_on_disk(tmp_path / "logits", (64, 1 << 17), (16, 1 << 15))
    targets = np.random.default_rng(1).integers(0, 1 << 17, 64)
    loss = client.compute(fsd.cross_entropy(da.from_zarr(str(tmp_path / "logits")), targets)).result()
    np.testing.assert_allclose(loss, fs.cross_entropy(logits[:], targets), rtol=1e-6)


@pytest.mark.huge
def test_workers_of_half_a_gibibyte_compute_four_gibibytes(cluster, tmp_path, capsys):
    softmax_on_disk(cluster(512 * MIB), tmp_path, (1024, 1 << 20), (64, 1 << 17), capsys)
