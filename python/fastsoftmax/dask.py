"""The functions of fastsoftmax on dask arrays: lazy, for arrays larger than memory, on one machine or a cluster.

Names, arguments, checks and values are those of the plain functions, whose docstrings describe them; only `out` is
missing. Shapes, dtypes, options and NumPy arrays are checked at once. Values in dask arrays are checked when tasks
compute them; positions in the messages are those in the whole array.

Chunks. The scores are never rechunked, and no slice is gathered; other arrays are brought into the chunks of the
scores. If each slice is in one chunk, a task for each block calls the plain function, so the bits are those of the
plain function. Otherwise each block is first summed to a `LogSumExp`, and these are merged as a tree, `split_every` at
a time, as in dask's own reductions; the results keep the plain function's error bounds. logsumexp, entropy,
log_softmax_at, log_softmax_top_k and losses by class indices without label smoothing visit the scores only once.
Everything else visits each block a second time, when the sums of its slices are known. dask keeps the blocks until
then, and `dask.distributed` spills them to disk where they exceed a worker's memory limit.

Unknown chunk sizes, as after a selection by a mask, are refused along the class axis, and for a mean also in the batch.
Messages name positions within the block if those in the whole array are unknown.

Threads. A task uses one thread, because dask runs as many tasks at once as there are processors. To let tasks use n
threads, make the calls within ``with dask.config.set({"fastsoftmax.num-threads": n})``.
"""

from functools import partial
from typing import Any, Literal, SupportsFloat, SupportsIndex

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastsoftmax as fs

from ._arguments import (
    FLOAT64,
    Axis,
    Flag,
    check_indices,
    divergence_arguments,
    logsumexp_arguments,
    one_pass_arguments,
    to_axes,
    to_axis,
    to_flag,
    to_indices,
    to_k,
    transform_arguments,
)
from ._dask_calls import PICKS, Call, SplitEvery, cast, reduced_losses, to_given, to_scores, unpacked
from ._dask_losses import Loss
from ._dask_sums import Best, Picks, SignedSum, divergence_terms, entropy_of, logarithm, part_of_whole, picked, summed

__all__ = [
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "entropy",
    "kl_divergence",
    "log_softmax",
    "log_softmax_at",
    "log_softmax_top_k",
    "logsumexp",
    "softmax",
]


def softmax(
    x: da.Array,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | da.Array | None = None,
    dtype: DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> da.Array:
    """The probabilities that `fastsoftmax.softmax` gives, for a dask array.

    Parameters
    ----------
    x : dask.array.Array
        Scores.
    axis, temperature, where, dtype
        As for `fastsoftmax.softmax`.
    split_every : int or dict, optional
        The number of sums to merge at a time if a slice is in several chunks, as for `dask.array.reduction`.

    Returns
    -------
    dask.array.Array
        In the chunks of `x`.

    Raises
    ------
    TypeError
        As for `fastsoftmax.softmax`; or if `x` is not a dask array.
    ValueError
        As for `fastsoftmax.softmax`; or if chunk sizes along `axis` are unknown.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> fsd.softmax(da.from_array([1.0, 2.0, 3.0], chunks=2)).compute().round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    return _transformed("softmax", x, axis, temperature, where, dtype, split_every)


def log_softmax(
    x: da.Array,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | da.Array | None = None,
    dtype: DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> da.Array:
    """The log-probabilities that `fastsoftmax.log_softmax` gives, for a dask array.

    Parameters
    ----------
    x, axis, temperature, where, dtype, split_every
        As for `softmax`.

    Returns
    -------
    dask.array.Array
        In the chunks of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> fsd.log_softmax(da.from_array([1.0, 2.0, 3.0], chunks=2)).compute().round(4)
    array([-2.4076, -1.4076, -0.4076])
    """
    return _transformed("log_softmax", x, axis, temperature, where, dtype, split_every)


def logsumexp(
    x: da.Array,
    axis: Axis = None,
    *,
    b: ArrayLike | da.Array | None = None,
    where: ArrayLike | da.Array | None = None,
    keepdims: Flag = False,
    return_sign: Flag = False,
    dtype: DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> Any:
    """The logarithm that `fastsoftmax.logsumexp` gives, for a dask array.

    Parameters
    ----------
    x, split_every
        As for `softmax`.
    axis, b, where, keepdims, return_sign, dtype
        As for `fastsoftmax.logsumexp`.

    Returns
    -------
    dask.array.Array, or two of them with `return_sign`
        The logarithm, and the sign of the sum.

    Raises
    ------
    TypeError, ValueError
        As for `fastsoftmax.logsumexp`; or as for `softmax`.

    Notes
    -----
    With `b` and a slice in several chunks, the sums of the chunks are merged as logarithms and signs in float64. Where
    chunks cancel each other, this loses more digits than one call with the whole slice.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> print(f"{fsd.logsumexp(da.from_array([1000.0, 1000.0], chunks=1)).compute():.4f}")
    1000.6931
    """
    x = to_scores(x, "x", "logsumexp")
    weights = to_given(b, "b")
    axes = to_axes(axis, max(x.ndim, getattr(weights, "ndim", 0)))
    call = Call({"x": x, "b": weights, "where": to_given(where, "where")}, axes)
    *_, dtype = logsumexp_arguments(call.stand_in("x"), axis, call.stand_in("b"), call.stand_in("where"), dtype)
    keepdims, return_sign = to_flag(keepdims, "keepdims"), to_flag(return_sign, "return_sign")
    returned = object if return_sign else dtype
    if call.whole:
        options = {"axis": axes, "keepdims": keepdims, "return_sign": return_sign, "dtype": dtype}
        result = call.map(partial(fs.logsumexp, **options), call.reduced_index(keepdims), returned, summed=True)
    else:
        chunk = (
            partial(summed, axis=axes, temperature=1.0, dtype=dtype)
            if weights is None
            else partial(SignedSum.of, axis=axes)
        )
        sums = call.map(chunk, call.full, object, summed=True)
        result = call.merged(
            sums, partial(logarithm, return_sign=return_sign, dtype=dtype), returned, split_every, keepdims
        )
    return unpacked(result, dtype, dtype) if return_sign else result


def entropy(
    x: da.Array,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | da.Array | None = None,
    keepdims: Flag = False,
    dtype: DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> da.Array:
    """The entropy that `fastsoftmax.entropy` gives, for a dask array.

    Parameters
    ----------
    x, axis, temperature, where, dtype, split_every
        As for `softmax`.
    keepdims
        As for `fastsoftmax.entropy`.

    Returns
    -------
    dask.array.Array
        The entropy of each slice.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> print(f"{fsd.entropy(da.zeros(8, chunks=3)).compute():.4f}")
    2.0794
    """
    x = to_scores(x, "x", "entropy")
    call = Call({"x": x, "where": to_given(where, "where")}, to_axes(axis, x.ndim))
    _, axes, temperature, _, dtype = transform_arguments(
        call.stand_in("x"), axis, temperature, call.stand_in("where"), dtype
    )
    keepdims = to_flag(keepdims, "keepdims")
    if call.whole:
        options = {"axis": axes, "temperature": temperature, "keepdims": keepdims, "dtype": dtype}
        return call.map(partial(fs.entropy, **options), call.reduced_index(keepdims), dtype, summed=True)
    return call.merged(call.sums(temperature, dtype), partial(entropy_of, dtype=dtype), dtype, split_every, keepdims)


def log_softmax_at(
    x: da.Array,
    indices: ArrayLike | da.Array,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | da.Array | None = None,
    dtype: DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> da.Array:
    """The log-probabilities that `fastsoftmax.log_softmax_at` gives, for a dask array.

    Parameters
    ----------
    x, split_every
        As for `softmax`.
    indices : array_like or dask.array.Array
        As for `fastsoftmax.log_softmax_at`.
    axis, temperature, where, dtype
        As for `fastsoftmax.log_softmax_at`.

    Returns
    -------
    dask.array.Array
        In the shape of `indices`; one chunk along `axis`, if `indices` has that axis.

    Raises
    ------
    TypeError, ValueError
        As for `fastsoftmax.log_softmax_at`; or as for `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> fsd.log_softmax_at(da.from_array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], chunks=2), [0, 1]).compute().round(4)
    array([-0.4076, -0.0949])
    """
    x = to_scores(x, "x", "log_softmax_at")
    axis = to_axis(axis, x.ndim)
    call = Call({"x": x, "indices": to_given(indices, "indices"), "where": to_given(where, "where")}, (axis,))
    array, _, temperature, _, dtype = one_pass_arguments(
        call.stand_in("x"), axis, temperature, call.stand_in("where"), dtype
    )
    positions = to_indices(call.stand_in("indices"), array.shape, axis)
    if positions.size and not isinstance(indices, da.Array):
        check_indices(positions, array.shape[axis])
    kept = positions.ndim == array.ndim
    index = call.with_picks() if kept else call.batch
    options = {"axis": axis, "temperature": temperature, "classes": array.shape[axis]}
    if call.whole:
        return call.map(partial(picked, dtype=dtype, **options), index, dtype, at=call.batch)
    picks = call.map(partial(Picks.of, dtype=dtype, **options), call.full, object, at=(axis, *call.batch), summed=True)
    finish = partial(Picks.log_probabilities, dtype=dtype)
    return call.merged(picks, finish, dtype, split_every, kept, positions.shape[axis] if kept else 1)


def log_softmax_top_k(
    x: da.Array,
    k: SupportsIndex,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | da.Array | None = None,
    dtype: DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> tuple[da.Array, da.Array]:
    """The log-probabilities and classes that `fastsoftmax.log_softmax_top_k` gives, for a dask array.

    Parameters
    ----------
    x, split_every
        As for `softmax`.
    k, axis, temperature, where, dtype
        As for `fastsoftmax.log_softmax_top_k`.

    Returns
    -------
    log_probabilities, indices : dask.array.Array
        One chunk along `axis`.

    Raises
    ------
    TypeError, ValueError
        As for `fastsoftmax.log_softmax_top_k`; or as for `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> _, indices = fsd.log_softmax_top_k(da.from_array([1.0, 3.0, 0.0, 3.0], chunks=2), 3)
    >>> indices.compute()
    array([1, 3, 0])
    """
    x = to_scores(x, "x", "log_softmax_top_k")
    axis = to_axis(axis, x.ndim)
    call = Call({"x": x, "where": to_given(where, "where")}, (axis,))
    array, _, temperature, _, dtype = one_pass_arguments(
        call.stand_in("x"), axis, temperature, call.stand_in("where"), dtype
    )
    k = to_k(k, array.shape[axis])
    options: dict[str, Any] = {"axis": axis, "temperature": temperature, "k": k}
    if call.whole:
        index = call.with_picks()
        best = call.map(partial(fs.log_softmax_top_k, dtype=dtype, **options), index, object, new={PICKS: k})
    else:
        best = call.map(partial(Best.of, dtype=dtype, **options), call.full, object, at=(axis,), summed=True)
        best = call.merged(best, partial(Best.log_probabilities, dtype=dtype), object, split_every, True, k)
    values, indices = unpacked(best, dtype, np.dtype(np.intp))
    return values, indices


def cross_entropy(
    logits: da.Array,
    targets: ArrayLike | da.Array,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | da.Array | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    split_every: SplitEvery = None,
) -> da.Array:
    """The loss that `fastsoftmax.cross_entropy` gives, for a dask array.

    Parameters
    ----------
    logits : dask.array.Array
        Scores.
    targets, axis, weight, ignore_index, label_smoothing, temperature, reduction
        As for `fastsoftmax.cross_entropy`.
    split_every
        As for `softmax`.

    Returns
    -------
    dask.array.Array
        The loss; 0-d if it is reduced.

    Raises
    ------
    TypeError, ValueError
        As for `fastsoftmax.cross_entropy`; or as for `softmax`. A ValueError also for a mean over chunks of unknown
        sizes.

    Notes
    -----
    Sums and means of the samples' losses are computed by dask, in float64.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> logits = da.from_array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], chunks=2)
    >>> print(f"{fsd.cross_entropy(logits, [0, 1]).compute():.4f}")
    0.3606
    """
    loss = Loss(
        "cross_entropy", logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, None
    )
    return loss.value(split_every)


def cross_entropy_grad(
    logits: da.Array,
    targets: ArrayLike | da.Array,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | da.Array | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | da.Array | None = None,
    split_every: SplitEvery = None,
) -> da.Array:
    """The gradient that `fastsoftmax.cross_entropy_grad` gives, for a dask array.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, split_every
        As for `cross_entropy`.
    upstream
        As for `fastsoftmax.cross_entropy_grad`.

    Returns
    -------
    dask.array.Array
        The gradient, in the chunks of `logits`.

    Raises
    ------
    TypeError, ValueError
        As for `fastsoftmax.cross_entropy_grad`; or as for `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> logits = da.from_array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], chunks=2)
    >>> fsd.cross_entropy_grad(logits, [0, 1]).compute().round(4)
    array([[-0.0781,  0.0571,  0.021 ],
           [ 0.106 , -0.2119,  0.106 ]])
    """
    loss = Loss(
        "cross_entropy_grad",
        *(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, upstream),
    )
    return loss.grad(split_every)


def cross_entropy_with_grad(
    logits: da.Array,
    targets: ArrayLike | da.Array,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | da.Array | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | da.Array | None = None,
    split_every: SplitEvery = None,
) -> tuple[da.Array, da.Array]:
    """The loss and gradient that `fastsoftmax.cross_entropy_with_grad` gives, for a dask array.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, upstream, split_every
        As for `cross_entropy_grad`.

    Returns
    -------
    loss, grad : dask.array.Array
        As from `cross_entropy` and `cross_entropy_grad`. Compute them together, so that blocks are read once for both.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy_grad`.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> logits = da.from_array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], chunks=2)
    >>> loss, grad = dask.compute(*fsd.cross_entropy_with_grad(logits, [0, 1]))
    >>> print(f"{loss:.4f}")
    0.3606
    """
    loss = Loss(
        "cross_entropy_with_grad",
        *(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, upstream),
    )
    return loss.with_grad(split_every)


def kl_divergence(
    p_logits: da.Array,
    q_logits: ArrayLike | da.Array,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | da.Array | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    split_every: SplitEvery = None,
) -> da.Array:
    """The divergence that `fastsoftmax.kl_divergence` gives, for dask arrays.

    Parameters
    ----------
    p_logits : dask.array.Array
        Scores of the distribution p.
    q_logits, axis, temperature, where, reduction
        As for `fastsoftmax.kl_divergence`.
    split_every
        As for `softmax`.

    Returns
    -------
    dask.array.Array
        The divergence; 0-d if it is reduced.

    Raises
    ------
    TypeError, ValueError
        As for `fastsoftmax.kl_divergence`; or as for `cross_entropy`.

    Notes
    -----
    If a slice is in several chunks, log-probabilities are rounded to float64 before their differences are taken. For
    float64 logits this loses digits of a divergence near 0: each difference has an error of about 1e-15.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastsoftmax.dask as fsd
    >>> teacher, student = da.from_array([2.0, 0.0, -1.0], chunks=2), da.from_array([1.5, 0.5, -1.0], chunks=2)
    >>> print(f"{fsd.kl_divergence(teacher, student).compute():.4f}")
    0.0665
    """
    p = to_scores(p_logits, "p_logits", "kl_divergence")
    axis = to_axis(axis, p.ndim)
    given = {"p_logits": p, "q_logits": to_given(q_logits, "q_logits"), "where": to_given(where, "where")}
    call = Call(given, (axis,))
    *_, temperature, _, _, dtype, _ = divergence_arguments(
        *(call.stand_in("p_logits"), call.stand_in("q_logits"), axis, temperature, call.stand_in("where"), reduction)
    )
    if call.whole:
        options = {"axis": axis, "temperature": temperature, "reduction": "none"}
        divergences = call.map(partial(fs.kl_divergence, **options), call.batch, dtype)
    else:
        totals = {
            f"{name[0]}_total": call.total(temperature, FLOAT64, split_every, name) for name in ("p_logits", "q_logits")
        }
        terms = call.map(partial(divergence_terms, axis=axis), call.full, FLOAT64, more=totals, summed=True)
        divergences = cast(terms.sum(axis), dtype)
    return reduced_losses(divergences, reduction, call.count(reduction), dtype)


def _transformed(
    name: str,
    x: da.Array,
    axis: Axis,
    temperature: SupportsFloat,
    where: ArrayLike | da.Array | None,
    dtype: DTypeLike | None,
    split_every: SplitEvery,
) -> da.Array:
    x = to_scores(x, "x", name)
    call = Call({"x": x, "where": to_given(where, "where")}, to_axes(axis, x.ndim))
    _, axes, temperature, _, dtype = transform_arguments(
        call.stand_in("x"), axis, temperature, call.stand_in("where"), dtype
    )
    if call.whole:
        function = partial(getattr(fs, name), axis=axes, temperature=temperature, dtype=dtype)
        return call.map(function, call.full, dtype)
    total = call.total(temperature, dtype, split_every)
    return call.map(partial(part_of_whole, name=name, dtype=dtype), call.full, dtype, more={"total": total})
