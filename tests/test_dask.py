"""fastsoftmax.dask gives the plain functions' values, lazily and for any chunks, and refuses as early as possible."""

import math
import pickle
import re
import subprocess
import sys
import threading

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import FLOATING, assert_same_bits
from fastsoftmax._runtime import num_threads_here

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
fsd = pytest.importorskip("fastsoftmax.dask")

SHAPE = (7, 5, 11)
X = np.random.default_rng(0).normal(0, 3, SHAPE)
MASK = np.random.default_rng(1).random(SHAPE[1:]) < 0.7
# One chunk; several along the batch; several along the classes; several of which one is empty.
CHUNKS = [SHAPE, (3, 5, 11), (7, 2, 4), (7, 5, (4, 0, 6, 1))]
AXES = [-1, 1, (1, 2), None, ()]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(array, chunks):
    """A dask array whose blocks are read as slices of the array."""
    return da.from_array(np.asarray(array), chunks=chunks)


def in_one_chunk(x, axis):
    axes = range(x.ndim) if axis is None else (axis if isinstance(axis, tuple) else (axis,))
    return all(x.numblocks[k] == 1 for k in axes)


def check(got, wanted, whole, ulp=4):
    """Asserts the bits of the plain function if `whole`, else its bounds, doubled because both sides have errors."""
    assert isinstance(got, da.Array)
    assert (got.shape, got.dtype) == (np.shape(wanted), np.asarray(wanted).dtype)
    computed = np.asarray(got.compute())
    assert (computed.shape, computed.dtype) == (np.shape(wanted), got.dtype)
    if whole:
        assert_same_bits(computed, np.asarray(wanted))
    else:
        close(computed, wanted, ulp)


def close(got, wanted, ulp):
    got, wanted = (np.asarray(array) for array in (got, wanted))
    unit = float(np.finfo(wanted.dtype).eps) if wanted.dtype.kind == "f" else 2.0 ** (-8)
    got, wanted = got.astype(float), wanted.astype(float)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        near = np.abs(got - wanted) <= ulp * unit * np.abs(wanted)
    assert (same | near).all(), (got[~same & ~near], wanted[~same & ~near])


# Values


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "entropy", "logsumexp"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_any_chunks_give_the_values_of_the_plain_function(name, chunks, axis):
    x = lazy(X, chunks)
    options = {} if name == "logsumexp" else {"temperature": 0.7}
    for where in (None, MASK, lazy(MASK, 3)):
        got = getattr(fsd, name)(x, axis, where=where, **options)
        check(got, getattr(fs, name)(X, axis, where=None if where is None else MASK, **options), in_one_chunk(x, axis))
        if name.endswith("softmax"):
            assert got.chunks == x.chunks
        else:
            kept = getattr(fsd, name)(x, axis, where=where, keepdims=True, **options)
            assert kept.ndim == x.ndim
            assert_same_bits(np.squeeze(kept.compute()), np.squeeze(got.compute()))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "entropy", "logsumexp"])
def test_every_dtype_gives_the_values_of_the_plain_function(name, dtype):
    x = X.astype(dtype)
    for asked in (None, np.float64):
        check(getattr(fsd, name)(lazy(x, (7, 5, 4)), -1, dtype=asked), getattr(fs, name)(x, -1, dtype=asked), False)
    integers = np.arange(24).reshape(4, 6)
    check(getattr(fsd, name)(lazy(integers, 2), -1), getattr(fs, name)(integers, -1), False)


SPECIAL = np.array([[np.nan, 1, 2, 3], [np.inf, 1, 2, 3], [-np.inf] * 4, [-np.inf, 1, -np.inf, 2], [0, 0, 0, 0]])
SPECIAL_MASK = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]], bool)


@pytest.mark.parametrize("where", [None, SPECIAL_MASK], ids=["all", "masked"])
@pytest.mark.parametrize("chunks", [(5, 1), (2, 2), (5, 4)], ids=str)
def test_nan_infinities_and_masks_are_as_in_the_plain_function(chunks, where):
    x = lazy(SPECIAL, chunks)
    for name in ("softmax", "log_softmax", "entropy", "logsumexp"):
        check(getattr(fsd, name)(x, -1, where=where), getattr(fs, name)(SPECIAL, -1, where=where), False)
    for indices in (np.array([1, 0, 3, 2, 3]), np.argsort(SPECIAL, -1)[:, :2]):
        got = fsd.log_softmax_at(x, indices, where=where)
        check(got, fs.log_softmax_at(SPECIAL, indices, where=where), False)
    for k in (1, 3, 4):
        for got, wanted in zip(
            fsd.log_softmax_top_k(x, k, where=where), fs.log_softmax_top_k(SPECIAL, k, where=where), strict=True
        ):
            check(got, wanted, False)
    check(fsd.kl_divergence(x, SPECIAL[::-1].copy(), where=where, reduction="none"),
          fs.kl_divergence(SPECIAL, SPECIAL[::-1], where=where, reduction="none"), False)  # fmt: skip
    for targets in (np.array([0, 1, 2, 3, 0]), fs.softmax(SPECIAL[::-1])):
        for smoothing in (0.0, 0.1):
            for got, wanted in zip(
                fsd.cross_entropy_with_grad(x, targets, reduction="none", label_smoothing=smoothing),
                fs.cross_entropy_with_grad(SPECIAL, targets, reduction="none", label_smoothing=smoothing),
                strict=True,
            ):
                np.testing.assert_allclose(got.compute(), wanted, rtol=1e-13, atol=1e-15)


def test_one_class_that_dominates_keeps_the_digits_of_the_others():
    x = np.zeros((1, 12), np.float32)
    x[0, 7] = 30
    for chunks in ((1, 5), (1, 1)):
        lazily = lazy(x, chunks)
        check(fsd.log_softmax(lazily), fs.log_softmax(x), False)
        check(fsd.entropy(lazily), fs.entropy(x), False)
        for name in ("cross_entropy", "cross_entropy_grad"):
            check(getattr(fsd, name)(lazily, [7]), getattr(fs, name)(x, [7]), False, ulp=6)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_logsumexp_takes_weights_that_broadcast_and_gives_the_sign(chunks):
    x = lazy(X, chunks)
    for b in (2, np.float64(-1.5), MASK - 0.4, lazy(MASK - 0.4, 3), lazy(X[:, :1], 2)):
        plain = b.compute() if isinstance(b, da.Array) else b
        for axis in (-1, (0, 2), None):
            got, sign = fsd.logsumexp(x, axis, b=b, return_sign=True)
            wanted, wanted_sign = fs.logsumexp(X, axis, b=plain, return_sign=True)
            np.testing.assert_allclose(got.compute(), wanted, rtol=1e-12)
            np.testing.assert_array_equal(sign.compute(), wanted_sign)
            assert (got.dtype, sign.dtype) == (wanted.dtype, wanted_sign.dtype)
    thin = lazy(X[:, :1], chunks=(2, 1, 4))
    got = fsd.logsumexp(thin, 1, b=lazy(MASK + 0.5, 2))
    np.testing.assert_allclose(got.compute(), fs.logsumexp(X[:, :1], 1, b=MASK + 0.5), rtol=1e-12)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_picks_in_any_chunks_are_those_of_the_plain_functions(chunks, axis):
    x = lazy(X, chunks)
    whole = in_one_chunk(x, axis)
    one = np.argmax(X, axis)
    several = np.argsort(X, axis).take([0, 3, 3], axis).astype(np.uint8)
    for indices in (one, several):
        for given in (indices, lazy(indices, 2)):
            check(
                fsd.log_softmax_at(x, given, axis, where=MASK), fs.log_softmax_at(X, indices, axis, where=MASK), whole
            )
    ties = np.round(X)
    for k in (1, 4):
        for scores in (X, ties):
            pairs = fsd.log_softmax_top_k(lazy(scores, chunks), k, axis, where=MASK)
            for got, wanted in zip(pairs, fs.log_softmax_top_k(scores, k, axis, where=MASK), strict=True):
                assert got.numblocks[axis] == 1
                check(got, wanted, whole)


@pytest.mark.parametrize("chunks", [(7, 5, 11), (7, 2, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["indices", "ignored", "probabilities"])
def test_losses_and_gradients_in_any_chunks_are_those_of_the_plain_functions(chunks, reduction, smoothing, kind):
    rng = np.random.default_rng(2)
    x = lazy(X, chunks)
    for axis in (-1, 1):
        batch = fs.logsumexp(X, axis).shape
        targets = fs.softmax(rng.normal(size=SHAPE), axis) if kind == "probabilities" else rng.integers(0, 5, batch)
        options = {"label_smoothing": smoothing, "reduction": reduction, "temperature": 1.3}
        if kind == "ignored":
            targets[::2] = -100
            options["ignore_index"] = -100
        weight = rng.random(SHAPE[axis])
        upstream = rng.normal(size=batch) if reduction == "none" else 0.7
        for weights, given, lazily in (
            (None, None, targets),
            (weight, weight, lazy(targets, 3)),
            (weight, lazy(weight, 2), lazy(targets, 3)),
        ):
            loss = fs.cross_entropy(X, targets, axis, weight=weights, **options)
            grad = fs.cross_entropy_grad(X, targets, axis, weight=weights, upstream=upstream, **options)
            alone = fsd.cross_entropy(x, lazily, axis, weight=given, **options)
            gradient = fsd.cross_entropy_grad(x, lazily, axis, weight=given, upstream=upstream, **options)
            both = fsd.cross_entropy_with_grad(x, lazily, axis, weight=given, upstream=upstream, **options)
            assert gradient.chunks == x.chunks
            for got in (alone, both[0]):
                assert (got.shape, got.dtype) == (np.shape(loss), loss.dtype)
                np.testing.assert_allclose(got.compute(), loss, rtol=1e-14)
            for got in (gradient, both[1]):
                np.testing.assert_allclose(got.compute(), grad, rtol=1e-13, atol=1e-16)


def test_a_mean_over_no_samples_that_count_is_nan():
    x = lazy(X[0], (5, 4))
    for targets, options in (
        (np.full(5, 9), {"ignore_index": 9}),
        (np.zeros(5, int), {"weight": np.eye(11)[1]}),
    ):
        loss, grad = fsd.cross_entropy_with_grad(x, targets, **options)
        assert np.isnan(loss.compute())
        wanted = fs.cross_entropy_grad(X[0], targets, **options)
        np.testing.assert_array_equal(grad.compute(), wanted)
    empty = lazy(np.empty((0, 3)), (1, 2))
    assert np.isnan(fsd.cross_entropy(empty, np.empty(0, int)).compute())
    assert fsd.cross_entropy(empty, np.empty(0, int), reduction="sum").compute() == 0


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_divergences_in_any_chunks_are_those_of_the_plain_function(chunks):
    other = X + np.random.default_rng(3).normal(0, 0.1, SHAPE)
    for reduction in ("none", "sum", "mean"):
        for given in (other, lazy(other, 3)):
            got = fsd.kl_divergence(lazy(X, chunks), given, where=MASK, reduction=reduction)
            wanted = fs.kl_divergence(X, other, where=MASK, reduction=reduction)
            assert (got.shape, got.dtype) == (np.shape(wanted), wanted.dtype)
            np.testing.assert_allclose(got.compute(), wanted, rtol=1e-12)
            assert (np.asarray(fsd.kl_divergence(lazy(X, chunks), X, reduction=reduction)) == 0).all()


def test_0d_and_empty_arrays_are_taken():
    assert fsd.softmax(lazy(3.0, ())).compute() == 1
    for shape, chunks in (((0, 3), (1, 2)), ((3, 0), (2, 1))):
        x = np.empty(shape)
        for name in ("softmax", "logsumexp", "entropy"):
            check(getattr(fsd, name)(lazy(x, chunks), -1), getattr(fs, name)(x, -1), True)


# Laziness


def unread():
    def block():
        raise AssertionError("a block was computed")

    return da.from_delayed(dask.delayed(block)(), (2, 4), np.float32)


def test_nothing_is_computed_before_it_is_asked_for():
    x = da.concatenate([da.concatenate([unread(), unread()], axis=1), da.concatenate([unread(), unread()], axis=1)])
    targets = da.zeros(4, dtype=int, chunks=2)
    for got, shape, dtype in [
        (fsd.softmax(x), (4, 8), np.float32),
        (fsd.log_softmax(x, dtype=float), (4, 8), float),
        (fsd.logsumexp(x, 1, keepdims=True), (4, 1), np.float32),
        (fsd.entropy(x), (4,), np.float32),
        (fsd.log_softmax_at(x, targets), (4,), np.float32),
        *(
            (part, (4, 3), dtype)
            for part, dtype in zip(fsd.log_softmax_top_k(x, 3), (np.float32, np.intp), strict=True)
        ),
        (fsd.cross_entropy(x, targets), (), np.float32),
        (fsd.cross_entropy_grad(x, targets), (4, 8), np.float32),
        (fsd.kl_divergence(x, x), (), np.float32),
    ]:
        assert (got.shape, got.dtype, got._meta.dtype, got._meta.ndim) == (shape, dtype, dtype, len(shape))
        with pytest.raises(AssertionError, match="computed"):
            got.compute()


def test_the_scores_are_not_rechunked_and_no_slice_is_gathered():
    x = lazy(np.random.default_rng(0).normal(size=(40, 600)).astype(np.float32), (20, 50))
    targets = np.zeros(40, int)
    most = []

    class Sizes(dask.callbacks.Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            most.append(getattr(result, "nbytes", 0))

    for got in (
        fsd.softmax(x),
        fsd.logsumexp(x, -1),
        fsd.cross_entropy_grad(x, targets),
        fsd.cross_entropy(x, targets, label_smoothing=0.1),
        *fsd.log_softmax_top_k(x, 5),
    ):
        assert not [name for name in got.dask.layers if "rechunk" in name or "concatenate" in name]
        most.clear()
        # Not compute(), which would join all blocks.
        with Sizes():
            dask.get(got.dask.cull(got.__dask_keys__()), list(dask.core.flatten(got.__dask_keys__())))
        assert 0 < max(most) <= 20 * 50 * 8


def test_weights_are_in_the_graph_once():
    x = da.zeros((64, 100_000), chunks=(4, 10_000))
    weight = np.ones(100_000)
    for got in (
        fsd.cross_entropy(x, np.zeros(64, int), weight=weight),
        fsd.cross_entropy(x.rechunk((4, -1)), np.zeros(64, int), weight=weight),
        fsd.logsumexp(x, 1, b=weight),
    ):
        assert len(pickle.dumps(dict(got.dask.to_dict()))) < 3 * weight.nbytes


def test_equal_calls_have_equal_names():
    assert fsd.softmax(lazy(X, CHUNKS[2])).name == fsd.softmax(lazy(X, CHUNKS[2])).name
    assert fsd.softmax(lazy(X, CHUNKS[2])).name != fsd.softmax(lazy(X, CHUNKS[2]), temperature=2).name


def test_split_every_limits_the_sums_that_are_merged_at_a_time():
    x = lazy(X[0], (5, 1))
    sizes = {every: len(dict(fsd.logsumexp(x, -1, split_every=every).dask)) for every in (2, 11)}
    assert sizes[2] > sizes[11]
    for every in (2, 3, 11):
        check(fsd.softmax(x, split_every=every), fs.softmax(X[0]), False)


# Refusals


def test_only_a_dask_array_is_taken():
    for name, others in (
        ("softmax", ()),
        ("cross_entropy", ([0],)),
        ("kl_divergence", (X,)),
        ("log_softmax_top_k", (1,)),
    ):
        with pytest.raises(TypeError, match=rf"numpy\.ndarray; expected a dask.*fastsoftmax\.{name} takes"):
            getattr(fsd, name)(X, *others)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: fsd.softmax(x, 3), np.exceptions.AxisError, "axis 3"),
        (lambda x: fsd.softmax(x, temperature=0), ValueError, "temperature"),
        (lambda x: fsd.softmax(x, where=MASK[:, :3]), ValueError, "where has shape"),
        (lambda x: fsd.softmax(x, where=x), TypeError, "where has dtype"),
        (lambda x: fsd.softmax(x, dtype=np.float16), TypeError, "dtype is float16"),
        (lambda x: fsd.softmax(x.astype(complex)), TypeError, "complex128"),
        (lambda x: fsd.softmax(da.ma.masked_greater(x, 1)), TypeError, "masked"),
        (lambda x: fsd.logsumexp(x, b=np.ones(3)), ValueError, "b has shape"),
        (lambda x: fsd.log_softmax_at(x, np.zeros((7, 4), int)), ValueError, "indices has shape"),
        (lambda x: fsd.log_softmax_at(x, np.full((7, 5), 11)), ValueError, r"indices\[0, 0\] is 11"),
        (lambda x: fsd.log_softmax_top_k(x, 12), ValueError, "k is 12"),
        (lambda x: fsd.cross_entropy(x, np.full((7, 5), 11)), ValueError, r"targets\[0, 0\] is 11"),
        (lambda x: fsd.cross_entropy(x, da.zeros((7, 6), dtype=int)), ValueError, "targets, class indices, has shape"),
        (lambda x: fsd.cross_entropy(x, np.zeros((7, 5), int), weight=np.ones(3)), ValueError, "weight has shape"),
        (lambda x: fsd.cross_entropy(x, np.zeros((7, 5), int), reduction="max"), ValueError, "reduction"),
        (lambda x: fsd.cross_entropy_grad(x, np.zeros((7, 5), int), upstream=np.ones(3)), ValueError, "upstream"),
        (lambda x: fsd.kl_divergence(x, x[:, :2]), ValueError, "q_logits has shape"),
    ],
)
@pytest.mark.parametrize("chunks", [SHAPE, (2, 2, 2)], ids=str)
def test_errors_that_need_no_computation_are_raised_at_once(call, error, match, chunks):
    with pytest.raises(error, match=match):
        call(lazy(X, chunks))


@pytest.mark.parametrize("chunks", [(2, 11), (2, 3)], ids=str)
def test_positions_in_messages_are_those_in_the_whole_array(chunks):
    x = lazy(X[:, 0], chunks)
    bad = np.zeros(7, int)
    bad[5] = 12
    for got in (
        fsd.cross_entropy(x, lazy(bad, 2)),
        fsd.cross_entropy(x, lazy(bad, 3), weight=np.ones(11)),
        fsd.cross_entropy_grad(x, lazy(bad, 3), reduction="sum"),
        fsd.cross_entropy(x, lazy(bad, 3), label_smoothing=0.1, reduction="sum"),
    ):
        with pytest.raises(ValueError, match=r"targets\[5\] is 12; expected a class index in \[0, 11\)"):
            got.compute()
    with pytest.raises(ValueError, match=r"indices\[5\] is 12; expected a class index in \[0, 11\)"):
        fsd.log_softmax_at(x, lazy(bad, 2)).compute()
    with pytest.raises(ValueError, match=r"indices\[5, 1\] is 12"):
        fsd.log_softmax_at(x, lazy(np.stack([0 * bad, bad], 1), 1)).compute()
    with pytest.raises(ValueError, match=r"weight\[4\] is -1"):
        fsd.cross_entropy(x, 0 * bad, weight=lazy(np.where(np.arange(11) == 4, -1.0, 1), 2)).compute()


def test_unknown_chunk_sizes_in_the_batch_prevent_only_a_mean():
    scores = X[:, 0]
    for chunks in ((2, 11), (2, 4)):
        x, kept = lazy(scores, chunks), lazy(scores[:, 0], 2) > 0
        some, plain = x[kept], scores[scores[:, 0] > 0]
        assert math.isnan(some.shape[0])
        for name in ("softmax", "entropy"):
            close(getattr(fsd, name)(some).compute(), getattr(fs, name)(plain), 4)
        targets = lazy(np.arange(7), 2)[kept]
        wanted = np.arange(7)[scores[:, 0] > 0]
        close(
            fsd.cross_entropy(some, targets, reduction="sum").compute(),
            fs.cross_entropy(plain, wanted, reduction="sum"),
            8,
        )
        close(fsd.cross_entropy_grad(some, targets, reduction="none").compute(),
              fs.cross_entropy_grad(plain, wanted, reduction="none"), 8)  # fmt: skip
        with pytest.raises(ValueError, match=re.escape("no mean; expected known ones, as its method compute_chunk")):
            fsd.cross_entropy(some, targets)
        with pytest.raises(ValueError, match="different numbers of chunks, of unknown sizes"):
            fsd.cross_entropy(some, lazy(wanted, 5), reduction="sum")
        with pytest.raises(ValueError, match="unknown sizes in axis 0, a class axis"):
            fsd.softmax(some, 0)


# Threads


def test_a_task_uses_one_thread_unless_told_otherwise(monkeypatch, threads):
    plain, seen = fs.softmax, set()

    def softmax(x, **options):
        seen.add(fs.get_num_threads())
        return plain(x, **options)

    monkeypatch.setattr(fs, "softmax", softmax)
    with threads(2):
        for number in (1, 2):
            seen.clear()
            with dask.config.set({"fastsoftmax.num-threads": number}):
                x = fsd.softmax(lazy(X, (1, 5, 11)))
            x.compute()
            assert seen == {number}
        assert fs.get_num_threads() == 2


def test_a_limit_for_one_python_thread_holds_for_no_other(threads):
    inside, outside, seen = threading.Event(), threading.Event(), []

    def work():
        with num_threads_here(1):
            inside.set()
            outside.wait(30)
            seen.append(fs.get_num_threads())

    with threads(2):
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait(30)
        seen.append(fs.get_num_threads())
        outside.set()
        thread.join()
        assert seen == [2, 1]
        assert fs.get_num_threads() == 2


# The package


def test_the_package_itself_imports_neither_dask_nor_xarray(environment):
    code = "import sys, fastsoftmax, fastsoftmax.reference; print({'dask', 'xarray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
