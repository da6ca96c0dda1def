"""fastsoftmax.xarray: the plain functions' values by names of dimensions; and the plain functions on xarray objects."""

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import assert_same_bits

xr = pytest.importorskip("xarray")
fsx = pytest.importorskip("fastsoftmax.xarray")

X = np.random.default_rng(0).normal(0, 3, (3, 5, 7)).astype(np.float32)
SCORES = xr.DataArray(
    X, dims=("a", "c", "b"), coords={"a": [1, 2, 3], "c": list("vwxyz")}, name="logits", attrs={"units": "nats"}
)
MASK = xr.DataArray(np.random.default_rng(1).random((7, 5)) < 0.7, dims=("b", "c"), coords={"c": list("vwxyz")})
PLAIN_MASK = MASK.values.T[None]
TARGETS = xr.DataArray(np.random.default_rng(2).integers(0, 5, (7, 3)), dims=("b", "a"))
PLAIN_TARGETS = TARGETS.values.T


@pytest.fixture(params=["numpy", "whole", "chunked"])
def scores(request):
    if request.param == "numpy":
        return SCORES
    pytest.importorskip("dask.array")
    return SCORES.chunk(a=2) if request.param == "whole" else SCORES.chunk(a=2, c=2)


def check(got, wanted, like, dims):
    """Assert that `got` is lazy and close if `like` is lazy, else has the same bits; it keeps dims, coords and name."""
    assert (got.dims, got.shape, got.dtype, got.name) == (dims, np.shape(wanted), wanted.dtype, like.name)
    for name in {"a", "c"} & set(dims):
        if got.sizes[name] == like.sizes[name]:
            assert got.coords[name].equals(like.coords[name])
    assert (got.chunks is None) == (like.chunks is None)
    if like.chunks is None:
        assert_same_bits(got.values, np.asarray(wanted))
    else:
        np.testing.assert_allclose(got.values, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dim", "axis"), [("c", 1), (("c", "a"), (0, 1)), (["b"], 2)], ids=str)
def test_dimensions_stand_for_axes(scores, dim, axis):
    axes = axis if isinstance(axis, tuple) else (axis,)
    left = tuple(name for k, name in enumerate(SCORES.dims) if k not in axes)
    for name in ("softmax", "log_softmax"):
        got = getattr(fsx, name)(scores, dim, temperature=0.7, where=MASK)
        check(got, getattr(fs, name)(X, axis, temperature=0.7, where=PLAIN_MASK), scores, SCORES.dims)
    check(fsx.entropy(scores, dim, where=MASK), fs.entropy(X, axis, where=PLAIN_MASK), scores, left)
    check(fsx.logsumexp(scores, dim, dtype=float), fs.logsumexp(X, axis, dtype=float), scores, left)


def test_weights_of_logsumexp_are_broadcast_by_name(scores):
    weights = xr.DataArray([-1.0, 2.0, 0.5, 1.0], dims="new").astype(np.float32)
    got, sign = fsx.logsumexp(scores, "c", b=weights, return_sign=True)
    wanted, wanted_sign = fs.logsumexp(X[..., None], 1, b=weights.values, return_sign=True)
    check(got, wanted, scores, ("a", "b", "new"))
    check(sign, wanted_sign, scores, ("a", "b", "new"))
    got = fsx.logsumexp(scores, ("c", "new"), b=weights)
    check(got, fs.logsumexp(X[..., None], (1, 3), b=weights.values), scores, ("a", "b"))
    check(fsx.logsumexp(scores, "c", b=2.0), fs.logsumexp(X, 1, b=2.0), scores, ("a", "b"))


def test_picks_give_the_values_of_the_plain_functions(scores):
    check(fsx.log_softmax_at(scores, TARGETS, "c"), fs.log_softmax_at(X, PLAIN_TARGETS, 1), scores, ("a", "b"))
    best = fs.log_softmax_top_k(X, 2, 1, where=PLAIN_MASK)
    for got, wanted in zip(fsx.log_softmax_top_k(scores, 2, "c", where=MASK), best, strict=True):
        check(got, wanted, scores, SCORES.dims)
        assert "c" not in got.coords
    for dim in ("c", "picks"):
        indices = xr.DataArray(best[1], dims=("a", dim, "b"))
        got = fsx.log_softmax_at(scores, indices, "c", where=MASK)
        check(got, fs.log_softmax_at(X, best[1], 1, where=PLAIN_MASK), scores, ("a", dim, "b"))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses_give_the_values_of_the_plain_functions(scores, reduction):
    left = ("a", "b") if reduction == "none" else ()
    soft = xr.DataArray(fs.softmax(X[::-1], 1), dims=SCORES.dims).transpose("b", "c", "a")
    weight = np.arange(5.0)
    for targets, plain in ((TARGETS, PLAIN_TARGETS), (soft, fs.softmax(X[::-1], 1))):
        for given in (weight, xr.DataArray(weight, dims="c")):
            options = {"label_smoothing": 0.1, "reduction": reduction}
            loss, grad = fs.cross_entropy_with_grad(X, plain, 1, weight=weight, upstream=0.5, **options)
            check(fsx.cross_entropy(scores, targets, "c", weight=given, **options), loss, scores, left)
            both = fsx.cross_entropy_with_grad(scores, targets, "c", weight=given, upstream=0.5, **options)
            check(both[0], loss, scores, left)
            alone = fsx.cross_entropy_grad(scores, targets, "c", weight=given, upstream=0.5, **options)
            for got in (both[1], alone):
                check(got, grad, scores, SCORES.dims)
    upstream = TARGETS / 7
    got = fsx.cross_entropy_grad(scores, TARGETS, "c", reduction="none", upstream=upstream)
    wanted = fs.cross_entropy_grad(X, PLAIN_TARGETS, 1, reduction="none", upstream=upstream.values.T)
    check(got, wanted, scores, SCORES.dims)
    got = fsx.kl_divergence(scores, 1.1 * SCORES.transpose("b", "c", "a"), "c", reduction=reduction)
    check(got, fs.kl_divergence(X, 1.1 * X, 1, reduction=reduction), scores, left)


def test_attributes_are_kept_by_xarrays_own_option():
    with xr.set_options(keep_attrs=False):
        assert fsx.softmax(SCORES, "c").attrs == {}
    with xr.set_options(keep_attrs=True):
        assert fsx.softmax(SCORES, "c").attrs == SCORES.attrs


def test_a_mask_on_dask_makes_the_result_lazy():
    pytest.importorskip("dask.array")
    got = fsx.softmax(SCORES, "c", where=MASK.chunk(b=2))
    assert got.chunks is not None
    np.testing.assert_allclose(got.values, fs.softmax(X, 1, where=PLAIN_MASK))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: fsx.softmax(SCORES.to_dataset(), "c"),
            TypeError,
            r"x is a Dataset.*dataset\.map\(fastsoftmax\.xarray",
        ),
        (lambda: fsx.softmax(X, "c"), TypeError, "x is a ndarray; expected an xarray.DataArray"),
        (lambda: fsx.softmax(SCORES, "c", where=PLAIN_MASK), TypeError, "where is a ndarray"),
        (lambda: fsx.softmax(SCORES, "q"), ValueError, "dim is 'q'"),
        (lambda: fsx.softmax(SCORES), TypeError, "dim"),
        (lambda: fsx.cross_entropy(SCORES, TARGETS, ("c", "a")), ValueError, "dim"),
        (lambda: fsx.cross_entropy(SCORES, TARGETS.rename(b="z"), "c"), ValueError, "targets has dimensions"),
        (lambda: fsx.cross_entropy(SCORES, TARGETS[0], "c"), ValueError, "targets has dimensions"),
        (lambda: fsx.softmax(SCORES, "c", where=MASK.rename(b="z")), ValueError, "where has dimensions"),
        (lambda: fsx.cross_entropy(SCORES, TARGETS + 5, "c"), ValueError, r"targets\[0, 0\] is"),
        (lambda: fsx.softmax(SCORES, "c", where=MASK[:, :3]), xr.AlignmentError, "exact"),
        (lambda: fsx.softmax(SCORES, "c", where=MASK.assign_coords(c=list("abcde"))), xr.AlignmentError, "exact"),
        (lambda: fsx.log_softmax_top_k(SCORES, 1, "c", where=MASK[:, ::-1]), xr.AlignmentError, "exact"),
    ],
)
def test_refusals_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()


# xarray's own ways to apply a function


def test_dataset_map_and_groupby_take_the_functions_of_both_modules():
    dataset = xr.Dataset({"p": SCORES, "q": 2 * SCORES})
    groups = [fs.softmax(X[k : k + 1], 1) for k in range(3)]
    for function, options in ((fsx.softmax, {"dim": "c"}), (fs.softmax, {"axis": 1})):
        mapped = dataset.map(function, **options)
        assert_same_bits(mapped["q"].values, fs.softmax(2 * X, 1))
        assert mapped["p"].dims == SCORES.dims
        np.testing.assert_array_equal(np.concatenate(groups), mapped["p"].values)
    grouped = SCORES.groupby("a").map(fsx.softmax, dim="c")
    assert_same_bits(grouped.transpose(*SCORES.dims).values, fs.softmax(X, 1))
    grouped = SCORES.groupby("a").map(lambda group: group.copy(data=fs.softmax(group, axis=group.get_axis_num("c"))))
    assert_same_bits(grouped.transpose(*SCORES.dims).values, fs.softmax(X, 1))


@pytest.mark.parametrize("dask", ["forbidden", "parallelized"])
def test_apply_ufunc_takes_the_plain_functions(dask):
    given = SCORES
    if dask == "parallelized":
        pytest.importorskip("dask.array")
        given = SCORES.chunk(a=1)
    got = xr.apply_ufunc(
        fs.softmax, given, input_core_dims=[["c"]], output_core_dims=[["c"]], dask=dask, output_dtypes=[X.dtype]
    )
    assert_same_bits(got.transpose(*SCORES.dims).values, fs.softmax(X, 1))
    got = xr.apply_ufunc(
        fs.logsumexp, given, kwargs={"axis": -1}, input_core_dims=[["c"]], dask=dask, output_dtypes=[X.dtype]
    )
    assert_same_bits(got.values, fs.logsumexp(X, 1))
