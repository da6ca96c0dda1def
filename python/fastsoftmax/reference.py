"""The definition of every public function, in plain NumPy.

Names, signatures, checks and errors are those of the package. Half and single precision without a temperature are
computed in float32, everything else in float64. The formulas are those of textbooks: subtract the maximum,
exponentiate, sum.
"""

from types import SimpleNamespace
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
from numpy import inf, nan
from numpy.typing import ArrayLike, DTypeLike

from ._arguments import (
    FLOAT32,
    FLOAT64,
    Array,
    Axis,
    DType,
    Flag,
    check_indices,
    check_out,
    delivered,
    divergence_arguments,
    hess_outs,
    logsumexp_arguments,
    loss_arguments,
    one_pass_arguments,
    reduced_shape,
    refuse_slice,
    result_dtype,
    sample_arguments,
    to_flag,
    to_indices,
    to_k,
    to_upstream,
    transform_arguments,
    transform_grad_arguments,
)
from ._pieces import LogSumExp as _LogSumExp

__all__ = [
    "LogSumExp",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "entropy",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "log_softmax_at",
    "log_softmax_grad",
    "log_softmax_top_k",
    "logsumexp",
    "sample",
    "softmax",
    "softmax_grad",
]

_quiet = np.errstate(all="ignore")


def _working_dtype(temperature: float, *dtypes: DType) -> DType:
    single = temperature == 1.0 and all(result_dtype(dtype, "x").itemsize <= 4 for dtype in dtypes)
    return FLOAT32 if single else FLOAT64


def _shifted(x: Array, axes: tuple[int, ...], temperature: float, mask: Array | None, dtype: DType) -> Array:
    """`x` minus its maximum in each slice, divided by `temperature`; -inf where masked."""
    x = x.astype(_working_dtype(temperature, x.dtype, dtype), copy=False)
    if mask is not None:
        x = np.where(mask, x, -inf)
    top: Array = x.max(axis=axes, keepdims=True, initial=-inf)
    d: Array = x - top
    return d if temperature == 1.0 else d / temperature


def _unmasked(result: Array, mask: Array | None, masked: float) -> Array:
    if mask is not None:
        result = np.where(mask, result, masked)
    return result


def _delivered(result: Array, dtype: DType, out: Array | None) -> Array:
    result = np.asarray(result, dtype)
    if out is None:
        return result if result.ndim else result[()]
    check_out(out, result.shape, dtype)
    return delivered(result, out)


@_quiet
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """exp(x_c) / sum_k exp(x_k), where x is divided by the temperature."""
    x, axes, temperature, mask, dtype = transform_arguments(x, axis, temperature, where, dtype)
    e = np.exp(_shifted(x, axes, temperature, mask, dtype))
    p = e / e.sum(axis=axes, keepdims=True)
    return _delivered(_unmasked(p, mask, 0.0), dtype, out)


@_quiet
def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """x_c - log(sum_k exp(x_k)), where x is divided by the temperature."""
    x, axes, temperature, mask, dtype = transform_arguments(x, axis, temperature, where, dtype)
    d = _shifted(x, axes, temperature, mask, dtype)
    logp = d - np.log(np.exp(d).sum(axis=axes, keepdims=True))
    return _delivered(_unmasked(logp, mask, -inf), dtype, out)


@_quiet
def logsumexp(
    x: ArrayLike,
    axis: Axis = None,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    keepdims: Flag = False,
    return_sign: Flag = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """log(sum_k b_k exp(x_k)); with `return_sign` the logarithm of the sum's absolute value, and its sign."""
    x, axes, b, mask, dtype = logsumexp_arguments(x, axis, b, where, dtype)
    keepdims, return_sign = to_flag(keepdims, "keepdims"), to_flag(return_sign, "return_sign")
    if b is not None:
        working = _working_dtype(1.0, x.dtype, b.dtype, dtype)
        b = b.astype(working, copy=False)
        mask = b != 0 if mask is None else mask & (b != 0)
    else:
        working = _working_dtype(1.0, x.dtype, dtype)
    x = _unmasked(x.astype(working, copy=False), mask, -inf)
    top = x.max(axis=axes, keepdims=True, initial=-inf)
    top = np.where(np.isfinite(top), top, 0.0)
    terms = np.exp(x - top)
    if b is not None:
        terms = _unmasked(b * terms, mask, 0.0)
    total = terms.sum(axis=axes, keepdims=True)
    log = np.log(np.abs(total)) + top
    if not return_sign:
        log = np.where(total < 0, nan, log)
    shape = reduced_shape(x.shape, axes, keepdims)
    result = _delivered(log.reshape(shape), dtype, out)
    return (result, _delivered(np.sign(total).reshape(shape), dtype, None)) if return_sign else result


@_quiet
def entropy(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    keepdims: Flag = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """-sum_c p_c log p_c, with p = softmax(x / temperature) and 0 log 0 = 0."""
    x, axes, temperature, mask, dtype = transform_arguments(x, axis, temperature, where, dtype)
    keepdims = to_flag(keepdims, "keepdims")
    d = _shifted(x, axes, temperature, mask, dtype)
    e = np.exp(d)
    total = e.sum(axis=axes, keepdims=True)
    # log p_c = d_c - log(total)
    result = np.log(total) - np.where(e == 0.0, 0.0, e * d).sum(axis=axes, keepdims=True) / total
    present = np.broadcast_to(True if mask is None else mask, x.shape).any(axis=axes, keepdims=True)
    return _delivered(np.where(present, result, 0.0).reshape(reduced_shape(x.shape, axes, keepdims)), dtype, out)


@_quiet
def log_softmax_at(
    x: ArrayLike,
    indices: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """The entries of log_softmax at `indices`."""
    x, axis, temperature, mask, dtype = one_pass_arguments(x, axis, temperature, where, dtype)
    indices = to_indices(indices, x.shape, axis)
    check_indices(indices, x.shape[axis])
    logp = log_softmax(x, axis, temperature=temperature, where=mask, dtype=dtype)
    along = indices if indices.ndim == x.ndim else np.expand_dims(indices, axis)
    result = np.take_along_axis(logp, along.astype(np.intp), axis)
    return _delivered(result.reshape(indices.shape), dtype, out)


@_quiet
def log_softmax_top_k(
    x: ArrayLike,
    k: SupportsIndex,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Array]:
    """The entries of log_softmax for the k largest scores, largest first, and their class indices."""
    x, axis, temperature, mask, dtype = one_pass_arguments(x, axis, temperature, where, dtype)
    k = to_k(k, x.shape[axis])
    logp = log_softmax(x, axis, temperature=temperature, where=mask, dtype=dtype)
    present = np.broadcast_to(True if mask is None else mask, x.shape)
    undefined = (present & np.isnan(logp)).any(axis=axis, keepdims=True)
    scores = np.where(undefined | ~present, 0.0, x.astype(_working_dtype(1.0, x.dtype, dtype)))
    # lexsort sorts by its last key first; entries that are equal in both keep their order.
    order = np.lexsort((-scores, ~present), axis=axis).take(np.arange(k), axis)
    return np.take_along_axis(logp, order, axis), order


@_quiet
def sample(
    x: ArrayLike,
    rng: np.random.Generator,
    axis: SupportsIndex = -1,
    *,
    size: SupportsIndex | None = None,
    temperature: SupportsFloat = 1.0,
    top_k: SupportsIndex | None = None,
    top_p: SupportsFloat | None = None,
    min_p: SupportsFloat | None = None,
    where: ArrayLike | None = None,
) -> Any:
    """The first class c with p_0 + ... + p_c > u, with p = softmax(x / temperature) of the classes that are kept."""
    x, axes, draws, temperature, k, least_sum, least_ratio, mask = sample_arguments(
        x, rng, axis, size, temperature, top_k, top_p, min_p, where
    )
    batch = reduced_shape(x.shape, axes)
    d = _shifted(x, axes, temperature, mask, FLOAT64)
    rows = np.moveaxis(d, axes[0], -1) if axes else d.reshape(1)
    undefined = ~(rows.max(axis=-1, initial=-inf) == 0.0)  # not 0 with NaN, with +inf or without a finite score
    if undefined.any():
        refuse_slice(x, axes, mask, int(np.argmax(undefined)))
    one = 1 if draws is None else draws
    u = rng.random(undefined.size * one).reshape(*batch, one)
    result = np.empty(u.shape, np.intp)
    for place in np.ndindex(batch):
        e = np.exp(rows[place])
        order = np.argsort(-rows[place], kind="stable")  # by falling probability, equal ones by index
        left = order[:k]
        if least_sum < 1.0:
            sums = np.cumsum(e[left])
            enough = np.searchsorted(sums, least_sum * sums[-1] * (1.0 - 1e-12)) + 1  # allows for rounding
            left = left[:enough]
        left = np.sort(left[e[left] >= least_ratio])
        left = left[e[left] > 0.0]
        sums = np.cumsum(e[left])
        drawn = np.searchsorted(sums, u[place] * sums[-1], side="right")
        result[place] = left[np.minimum(drawn, left.size - 1)]
    return result if draws is not None else result[..., 0][()]


@_quiet
def softmax_grad(
    y: ArrayLike,
    dy: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """y_c (dy_c - sum_k y_k dy_k) / temperature."""
    y, dy, axes, temperature, mask, dtype = transform_grad_arguments(y, "y", dy, axis, temperature, where)
    working = _working_dtype(temperature, y.dtype, dy.dtype)
    y = _unmasked(y.astype(working, copy=False), mask, 0.0)
    dy = _unmasked(dy.astype(working, copy=False), mask, 0.0)
    dx = y * (dy - (y * dy).sum(axis=axes, keepdims=True)) / temperature
    return _delivered(_unmasked(dx, mask, 0.0), dtype, out)


@_quiet
def log_softmax_grad(
    logp: ArrayLike,
    dy: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """(dy_c - exp(logp_c) sum_k dy_k) / temperature."""
    logp, dy, axes, temperature, mask, dtype = transform_grad_arguments(logp, "logp", dy, axis, temperature, where)
    working = _working_dtype(temperature, logp.dtype, dy.dtype)
    p = np.exp(logp.astype(working, copy=False))
    dy = _unmasked(dy.astype(working, copy=False), mask, 0.0)
    dx = (dy - p * dy.sum(axis=axes, keepdims=True)) / temperature
    return _delivered(_unmasked(dx, mask, 0.0), dtype, out)


@_quiet
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Any:
    """-sum_c a_c log p_c, with a_c = w_c ((1 - e) q_c + e / C), reduced over the batch."""
    loss, _, _ = _cross_entropy(
        logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, True, False
    )
    return loss


@_quiet
def cross_entropy_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """`upstream` (p_c sum_k a_k - a_c) / temperature, for a mean divided by its divisor."""
    grad: Array
    _, grad, _ = _cross_entropy(
        logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, False, True, upstream, out
    )
    return grad


@_quiet
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """The results of cross_entropy and cross_entropy_grad."""
    loss, grad, _ = _cross_entropy(
        logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, True, True, upstream, out
    )
    return loss, grad


@_quiet
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: tuple[Array | None, Array | None] | None = None,
) -> tuple[Any, Array, Array]:
    """Loss, gradient and `upstream` p_c (1 - p_c) sum_k a_k / temperature^2, for a mean divided by its divisor."""
    grad_out, hess_out = hess_outs(out)
    options = (logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction, True, True)
    return _cross_entropy(*options, upstream, grad_out, True, hess_out)


def _cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: SupportsIndex,
    weight: ArrayLike | None,
    ignore_index: SupportsIndex | None,
    label_smoothing: SupportsFloat,
    temperature: SupportsFloat,
    reduction: str,
    with_loss: bool,
    with_grad: bool,
    upstream: ArrayLike | None = None,
    out: Array | None = None,
    with_hess: bool = False,
    hess_out: Array | None = None,
) -> tuple[Any, Any, Any]:
    """Loss, gradient and Hessian, or None. Arrays with one number for each slice keep the class axis, with extent 1."""
    x, targets, axis, weight, ignore_index, e, temperature, reduction, dtype = loss_arguments(
        logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction
    )
    batch = reduced_shape(x.shape, (axis,))
    upstream = to_upstream(upstream, reduction, batch)
    if out is not None:
        check_out(out, x.shape, dtype)
    if hess_out is not None:
        check_out(hess_out, x.shape, dtype)

    d = _shifted(x, (axis,), temperature, None, dtype)
    working = d.dtype
    logp = d - np.log(np.exp(d).sum(axis=axis, keepdims=True))
    classes = x.shape[axis]
    w = np.ones(classes, working) if weight is None else weight.astype(working)
    class_shape = tuple(classes if k == axis else 1 for k in range(x.ndim))

    # The coefficients a: only at the target (given by `chosen`), or one for each class.
    chosen = None
    if targets.dtype.kind in "iu":
        t = np.expand_dims(targets.astype(np.int64), axis)
        ignored = np.zeros(t.shape, bool) if ignore_index is None else t == ignore_index
        t = np.where(ignored, 0, t)
        divisor = np.where(ignored, 0.0, w[t]).sum()
        if e == 0.0:
            chosen, a = t, w[t]
        else:
            q = np.arange(classes).reshape(class_shape) == t
            a = w.reshape(class_shape) * ((1.0 - e) * q + e / classes).astype(working)
    else:
        ignored = np.zeros(reduced_shape(x.shape, (axis,), keepdims=True), bool)
        divisor = ignored.size
        a = w.reshape(class_shape) * ((1.0 - e) * targets.astype(working) + e / classes)
    scale = (float(divisor) or nan) if reduction == "mean" else 1.0

    loss = grad = hess = None
    if with_loss:
        logp_a = logp if chosen is None else np.take_along_axis(logp, chosen, axis)
        terms = np.where((a == 0.0) & (logp_a == -inf), 0.0, a * -logp_a)
        losses = np.where(ignored, 0.0, terms.sum(axis=axis, keepdims=True))
        reduced = losses.reshape(batch) if reduction == "none" else losses.sum() / scale
        loss = _delivered(reduced, FLOAT32 if dtype.itemsize == 2 else dtype, None)
    if with_grad:
        p = np.exp(logp)
        g = p * a.sum(axis=axis, keepdims=True)
        # 1 - p, without cancellation where p is near 1
        top = np.arange(classes).reshape(class_shape) == p.argmax(axis=axis, keepdims=True)
        h = g * np.where(top, np.where(top, 0.0, p).sum(axis=axis, keepdims=True), 1 - p) / temperature
        if chosen is None:
            g -= a
        else:
            np.put_along_axis(g, chosen, np.take_along_axis(g, chosen, axis) - a, axis)
        u = np.expand_dims(upstream, axis) if isinstance(upstream, np.ndarray) else upstream
        g = np.asarray(u, FLOAT64) * g / scale / temperature
        grad = _delivered(np.where(ignored, 0.0, g), dtype, out)
        if with_hess:
            h = np.asarray(u, FLOAT64) * h / scale / temperature
            hess = _delivered(np.where(ignored, 0.0, h), dtype, hess_out)
    return loss, grad, hess


@_quiet
def kl_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Any:
    """sum_c p_c (log p_c - log q_c), with p and q the softmax of the logits / temperature, reduced over the batch."""
    divergence, _ = _kl_divergence(p_logits, q_logits, axis, temperature, where, reduction, False, None, None)
    return divergence


@_quiet
def kl_divergence_with_grad(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """kl_divergence and `upstream` (q_c - p_c) / temperature, for a mean divided by the number of slices."""
    return _kl_divergence(p_logits, q_logits, axis, temperature, where, reduction, True, upstream, out)


def _kl_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    axis: SupportsIndex,
    temperature: SupportsFloat,
    where: ArrayLike | None,
    reduction: str,
    with_grad: bool,
    upstream: ArrayLike | None,
    out: Array | None,
) -> tuple[Any, Any]:
    """The divergence, and the gradient or None."""
    x, y, axis, temperature, mask, reduction, dtype, grad_dtype = divergence_arguments(
        p_logits, q_logits, axis, temperature, where, reduction
    )
    batch = reduced_shape(x.shape, (axis,))
    upstream = to_upstream(upstream, reduction, batch)
    d, f = (_shifted(a, (axis,), temperature, mask, dtype) for a in (x, y))
    logp = d - np.log(np.exp(d).sum(axis=axis, keepdims=True))
    logq = f - np.log(np.exp(f).sum(axis=axis, keepdims=True))
    p, q = np.exp(logp), np.exp(logq)
    present = np.broadcast_to(True if mask is None else mask, x.shape)
    terms = np.where(~present | ((logp == -inf) & ~np.isnan(logq)), 0.0, p * (logp - logq))
    divergences = np.maximum(terms.sum(axis=axis), 0.0)
    divisor = (divergences.size or nan) if reduction == "mean" else 1.0
    divergence = _delivered(divergences if reduction == "none" else divergences.sum() / divisor, dtype, None)
    if not with_grad:
        return divergence, None
    u = np.expand_dims(upstream, axis) if isinstance(upstream, np.ndarray) else upstream
    g = np.asarray(u, FLOAT64) * (q - p) / divisor / temperature
    return divergence, _delivered(np.where(present, g, 0.0), grad_dtype, out)


@_quiet
def _updated_totals(
    totals: Array, in_double: bool, x: Array, axes: tuple[int, ...], temperature: float, mask: Array | None
) -> Array:
    x = _unmasked(x.astype(FLOAT64), mask, -inf) / temperature
    piece = np.zeros_like(totals)
    piece["max"] = x.max(axis=axes, initial=-inf)
    piece["sum"] = np.exp(x - np.expand_dims(_finite(piece["max"]), axes)).sum(axis=axes)
    return _merged_totals(totals, in_double, piece, temperature)


@_quiet
def _merged_totals(totals: Array, in_double: bool, others: Array, temperature: float) -> Array:
    result = np.zeros_like(totals)
    result["max"] = np.fmax(totals["max"], others["max"])
    for part in (totals, others):
        result["sum"] += part["sum"] * np.exp(_finite(part["max"]) - _finite(result["max"]))
    return result


@_quiet
def _logsumexp_of_totals(totals: Array, in_double: bool, dtype: DType, temperature: float) -> Array:
    return np.asarray(np.log(totals["sum"]) + _finite(totals["max"]), dtype)


@_quiet
def _log_softmax_of_part(
    totals: Array,
    in_double: bool,
    x: Array,
    out: Array | None,
    dtype: DType,
    axes: tuple[int, ...],
    temperature: float,
    mask: Array | None,
) -> Array:
    total = np.expand_dims(_logsumexp_of_totals(totals, in_double, FLOAT64, temperature), axes)
    logp = np.where(total == inf, nan, x.astype(FLOAT64) / temperature - total)
    return _delivered(_unmasked(logp, mask, -inf), dtype, out)


@_quiet
def _softmax_of_part(totals: Array, in_double: bool, x: Array, out: Array | None, dtype: DType, *others: Any) -> Array:
    return _delivered(np.exp(_log_softmax_of_part(totals, in_double, x, None, FLOAT64, *others)), dtype, out)


def _finite(top: Array) -> Array:
    return np.where(np.isfinite(top), top, 0.0)


class LogSumExp(_LogSumExp):
    """log(sum_k exp(x_k)) of all pieces of x / temperature, kept as the largest and the sum of exp(x_k - largest)."""

    _core = SimpleNamespace(
        updated_totals=_updated_totals,
        merged_totals=_merged_totals,
        widened_totals=lambda totals, temperature: totals,
        logsumexp_of_totals=_logsumexp_of_totals,
        softmax_of_part=_softmax_of_part,
        log_softmax_of_part=_log_softmax_of_part,
    )
