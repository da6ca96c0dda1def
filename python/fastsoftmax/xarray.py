"""The functions of fastsoftmax on DataArrays: class axes by name, on NumPy arrays and, lazily, on dask arrays.

`dim`, the name of a dimension or several names, takes the place of `axis`, and there is no `out`. For the rest see the
docstrings of the plain functions, and for dask arrays that of `fastsoftmax.dask`.

Dimensions, coordinates and the name of the scores are kept, and attributes if xarray's option ``keep_attrs`` says so.
Other arrays, except `weight`, must be DataArrays, so that their axes have names, too. Their dimensions may be in any
order; coordinates that differ from those of the scores are an error (``join="exact"``).

For a Dataset use its method `map`: ``dataset.map(fastsoftmax.xarray.softmax, dim="class")``.
"""

from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, DTypeLike

import fastsoftmax as fs

from ._arguments import Flag

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

Dims = Hashable | Iterable[Hashable]


def softmax(
    x: xr.DataArray,
    dim: Dims,
    *,
    temperature: SupportsFloat = 1.0,
    where: xr.DataArray | None = None,
    dtype: DTypeLike | None = None,
) -> xr.DataArray:
    """The probabilities that `fastsoftmax.softmax` gives, for a DataArray.

    Parameters
    ----------
    x : xarray.DataArray
        Scores.
    dim : hashable or iterable of hashables
        The dimensions of a slice.
    temperature, dtype
        As for `fastsoftmax.softmax`.
    where : xarray.DataArray, optional
        Mask with some or all of the dimensions of `x`. Entries where it is False take no part.

    Returns
    -------
    xarray.DataArray
        In the dimensions of `x`.

    Raises
    ------
    TypeError
        As for `fastsoftmax.softmax`; or if `x` or `where` is not a DataArray.
    ValueError
        As for `fastsoftmax.softmax`; or if `x` lacks a dimension of `dim` or `where`.
    xarray.AlignmentError
        If coordinates differ.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> fsx.softmax(xr.DataArray([1.0, 2.0, 3.0], dims="class"), "class").round(4).values
    array([0.09  , 0.2447, 0.6652])
    """
    call = _Call("softmax", dim, x=x, where=where)
    return call.compute([call.full], temperature=temperature, dtype=dtype)


def log_softmax(
    x: xr.DataArray,
    dim: Dims,
    *,
    temperature: SupportsFloat = 1.0,
    where: xr.DataArray | None = None,
    dtype: DTypeLike | None = None,
) -> xr.DataArray:
    """The log-probabilities that `fastsoftmax.log_softmax` gives, for a DataArray.

    Parameters
    ----------
    x, dim, temperature, where, dtype
        As for `softmax`.

    Returns
    -------
    xarray.DataArray
        In the dimensions of `x`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> fsx.log_softmax(xr.DataArray([1.0, 2.0, 3.0], dims="class"), "class").round(4).values
    array([-2.4076, -1.4076, -0.4076])
    """
    call = _Call("log_softmax", dim, x=x, where=where)
    return call.compute([call.full], temperature=temperature, dtype=dtype)


def logsumexp(
    x: xr.DataArray,
    dim: Dims,
    *,
    b: SupportsFloat | xr.DataArray | None = None,
    where: xr.DataArray | None = None,
    return_sign: Flag = False,
    dtype: DTypeLike | None = None,
) -> Any:
    """The logarithm that `fastsoftmax.logsumexp` gives, for a DataArray.

    Parameters
    ----------
    x, dim, where
        As for `softmax`.
    b : number or xarray.DataArray, optional
        Weights of the terms. `b` and `x` are broadcast against each other by the names of their dimensions.
    return_sign, dtype
        As for `fastsoftmax.logsumexp`.

    Returns
    -------
    xarray.DataArray, or two of them with `return_sign`
        Without the dimensions `dim`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`; or as for `fastsoftmax.logsumexp`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> print(f"{fsx.logsumexp(xr.DataArray([1000.0, 1000.0], dims='class'), 'class').item():.4f}")
    1000.6931
    """
    call = _Call("logsumexp", dim, x=x, b=b, where=where)
    return call.compute([call.batch] * (2 if return_sign else 1), return_sign=return_sign, dtype=dtype)


def entropy(
    x: xr.DataArray,
    dim: Dims,
    *,
    temperature: SupportsFloat = 1.0,
    where: xr.DataArray | None = None,
    dtype: DTypeLike | None = None,
) -> xr.DataArray:
    """The entropy that `fastsoftmax.entropy` gives, for a DataArray.

    Parameters
    ----------
    x, dim, temperature, where, dtype
        As for `softmax`.

    Returns
    -------
    xarray.DataArray
        Without the dimensions `dim`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> print(f"{fsx.entropy(xr.DataArray([1.0] * 8, dims='class'), 'class').item():.4f}")
    2.0794
    """
    call = _Call("entropy", dim, x=x, where=where)
    return call.compute([call.batch], temperature=temperature, dtype=dtype)


def log_softmax_at(
    x: xr.DataArray,
    indices: xr.DataArray,
    dim: Hashable,
    *,
    temperature: SupportsFloat = 1.0,
    where: xr.DataArray | None = None,
    dtype: DTypeLike | None = None,
) -> xr.DataArray:
    """The log-probabilities that `fastsoftmax.log_softmax_at` gives, for a DataArray.

    Parameters
    ----------
    x, temperature, where, dtype
        As for `softmax`.
    indices : xarray.DataArray
        Positions along `dim`, not labels. In the dimensions of `x` without `dim`, for one class of each slice; for
        several, also with `dim` or a dimension that `x` lacks.
    dim : hashable
        The dimension of the classes.

    Returns
    -------
    xarray.DataArray
        In the dimensions of `indices`, ordered as in `x`. The dimension `dim`, if any, has no coordinates.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`; or as for `fastsoftmax.log_softmax_at`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> logits = xr.DataArray([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], dims=("token", "class"))
    >>> fsx.log_softmax_at(logits, xr.DataArray([0, 1], dims="token"), "class").round(4).values
    array([-0.4076, -0.0949])
    """
    call = _Call("log_softmax_at", dim, x=x, indices=indices, where=where)
    return call.compute([call.picks], temperature=temperature, dtype=dtype)


def log_softmax_top_k(
    x: xr.DataArray,
    k: SupportsIndex,
    dim: Hashable,
    *,
    temperature: SupportsFloat = 1.0,
    where: xr.DataArray | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """The log-probabilities and classes that `fastsoftmax.log_softmax_top_k` gives, for a DataArray.

    Parameters
    ----------
    x, temperature, where, dtype
        As for `softmax`.
    k
        As for `fastsoftmax.log_softmax_top_k`.
    dim : hashable
        The dimension of the classes.

    Returns
    -------
    log_probabilities, indices : xarray.DataArray
        In the dimensions of `x`, without coordinates along `dim`. The indices are positions.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`; or as for `fastsoftmax.log_softmax_top_k`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> _, indices = fsx.log_softmax_top_k(xr.DataArray([1.0, 3.0, 0.0, 3.0], dims="class"), 3, "class")
    >>> indices.values
    array([1, 3, 0])
    """
    call = _Call("log_softmax_top_k", dim, x=x, where=where)
    best: tuple[xr.DataArray, xr.DataArray] = call.compute(
        [call.full, call.full], k=k, temperature=temperature, dtype=dtype
    )
    return best


def cross_entropy(
    logits: xr.DataArray,
    targets: xr.DataArray,
    dim: Hashable,
    *,
    weight: ArrayLike | xr.DataArray | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> xr.DataArray:
    """The loss that `fastsoftmax.cross_entropy` gives, for a DataArray.

    Parameters
    ----------
    logits : xarray.DataArray
        Scores.
    targets : xarray.DataArray
        Class indices, which are positions along `dim`, in the dimensions of `logits` without `dim`; or class
        probabilities, in the dimensions of `logits`.
    dim : hashable
        The dimension of the classes.
    weight : array_like or xarray.DataArray, optional
        One factor for each class.
    ignore_index, label_smoothing, temperature, reduction
        As for `fastsoftmax.cross_entropy`.

    Returns
    -------
    xarray.DataArray
        Without dimensions; with ``reduction="none"``, in those of `logits` without `dim`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`; or as for `fastsoftmax.cross_entropy`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> logits = xr.DataArray([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dims=("sample", "class"))
    >>> print(f"{fsx.cross_entropy(logits, xr.DataArray([0, 1], dims='sample'), 'class').item():.4f}")
    0.3606
    """
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "temperature": temperature}
    call = _Call("cross_entropy", dim, logits=logits, targets=targets, weight=weight)
    return call.compute([call.losses(reduction)], reduction=reduction, **options)


def cross_entropy_grad(
    logits: xr.DataArray,
    targets: xr.DataArray,
    dim: Hashable,
    *,
    weight: ArrayLike | xr.DataArray | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: SupportsFloat | xr.DataArray | None = None,
) -> xr.DataArray:
    """The gradient that `fastsoftmax.cross_entropy_grad` gives, for a DataArray.

    Parameters
    ----------
    logits, targets, dim, weight, ignore_index, label_smoothing, temperature, reduction
        As for `cross_entropy`.
    upstream : number or xarray.DataArray, optional
        As for `fastsoftmax.cross_entropy_grad`.

    Returns
    -------
    xarray.DataArray
        The gradient, in the dimensions of `logits`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `cross_entropy`; or as for `fastsoftmax.cross_entropy_grad`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> logits = xr.DataArray([2.0, 0.0, -1.0], dims="class")
    >>> fsx.cross_entropy_grad(logits, xr.DataArray(0), "class").round(4).values
    array([-0.1562,  0.1142,  0.042 ])
    """
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "temperature": temperature}
    call = _Call("cross_entropy_grad", dim, logits=logits, targets=targets, weight=weight, upstream=upstream)
    return call.compute([call.full], reduction=reduction, **options)


def cross_entropy_with_grad(
    logits: xr.DataArray,
    targets: xr.DataArray,
    dim: Hashable,
    *,
    weight: ArrayLike | xr.DataArray | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    temperature: SupportsFloat = 1.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    upstream: SupportsFloat | xr.DataArray | None = None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """The loss and gradient that `fastsoftmax.cross_entropy_with_grad` gives, for a DataArray.

    Parameters
    ----------
    logits, targets, dim, weight, ignore_index, label_smoothing, temperature, reduction, upstream
        As for `cross_entropy_grad`.

    Returns
    -------
    loss, grad : xarray.DataArray
        As from `cross_entropy` and `cross_entropy_grad`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `cross_entropy_grad`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> loss, grad = fsx.cross_entropy_with_grad(xr.DataArray([2.0, 0.0, -1.0], dims="class"), xr.DataArray(0), "class")
    >>> print(f"{loss.item():.4f}")
    0.1698
    """
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "temperature": temperature}
    call = _Call("cross_entropy_with_grad", dim, logits=logits, targets=targets, weight=weight, upstream=upstream)
    both: tuple[xr.DataArray, xr.DataArray] = call.compute(
        [call.losses(reduction), call.full], reduction=reduction, **options
    )
    return both


def kl_divergence(
    p_logits: xr.DataArray,
    q_logits: xr.DataArray,
    dim: Hashable,
    *,
    temperature: SupportsFloat = 1.0,
    where: xr.DataArray | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> xr.DataArray:
    """The divergence that `fastsoftmax.kl_divergence` gives, for two DataArrays.

    Parameters
    ----------
    p_logits, q_logits : xarray.DataArray
        Scores of the distributions p and q, in the same dimensions.
    dim : hashable
        The dimension of the classes.
    temperature, where, reduction
        As for `fastsoftmax.kl_divergence`; `where` is a DataArray.

    Returns
    -------
    xarray.DataArray
        Without dimensions; with ``reduction="none"``, in those of `p_logits` without `dim`.

    Raises
    ------
    TypeError, ValueError, xarray.AlignmentError
        As for `softmax`; or as for `fastsoftmax.kl_divergence`.

    Examples
    --------
    >>> import xarray as xr
    >>> import fastsoftmax.xarray as fsx
    >>> teacher, student = (xr.DataArray(x, dims="class") for x in ([2.0, 0.0, -1.0], [1.5, 0.5, -1.0]))
    >>> print(f"{fsx.kl_divergence(teacher, student, 'class').item():.4f}")
    0.0665
    """
    call = _Call("kl_divergence", dim, p_logits=p_logits, q_logits=q_logits, where=where)
    return call.compute([call.losses(reduction)], temperature=temperature, reduction=reduction)


# The dimensions that an argument must have, for messages.
_EXPECTED = {
    "where": "some or all of those of the scores",
    "indices": "those of the scores without that of the classes, and at most one other",
    "targets": "those of the scores, without that of the classes for class indices",
    "upstream": "those of the scores without that of the classes, or none",
    "weight": "that of the classes",
    "q_logits": "those of the scores",
}


class _Call:
    """The arrays of a call. xarray gets the dimensions of each in the order that they have in the scores."""

    def __init__(self, function: str, dim: Any, **given: Any) -> None:
        name, *others = given
        if isinstance(given[name], xr.Dataset):
            raise TypeError(
                f"{name} is a Dataset; expected a DataArray. For each variable of a Dataset, use "
                f"dataset.map(fastsoftmax.xarray.{function}, ...)"
            )
        self.function = function
        scores = self.scores = _data_array(given[name], name)
        self.others = {name: given[name] for name in others if given[name] is not None}
        for name, value in self.others.items():
            number = name in ("b", "upstream") and not isinstance(value, xr.DataArray) and np.ndim(value) == 0
            if name != "weight" and not number:
                _data_array(value, name)
        arrays = self.arrays = {k: value for k, value in self.others.items() if isinstance(value, xr.DataArray)}
        self.full = tuple(dict.fromkeys((*scores.dims, *(arrays["b"].dims if "b" in arrays else ()))))
        self.dims = (dim,) if isinstance(dim, Hashable) and dim in self.full else self._several(dim)
        self.batch = tuple(name for name in self.full if name not in self.dims)
        own = [name for name in arrays["indices"].dims if name not in self.batch] if "indices" in arrays else []
        self.picks = tuple(own[0] if name in self.dims else name for name in self.full) if own else self.batch
        for name, array in arrays.items():
            self._check_dims(name, array)

    def _several(self, dim: Any) -> tuple[Hashable, ...]:
        dims = tuple(dim) if isinstance(dim, Iterable) and not isinstance(dim, str) else (dim,)
        for name in dims:
            if name not in self.full:
                raise ValueError(f"dim is {dim!r}; expected dimensions of the scores, {self.full}")
        return dims

    def _check_dims(self, name: str, array: xr.DataArray) -> None:
        """Refuse dimensions other than those expected, even where extents agree."""
        expected = {
            "where": (set(self.full) & set(array.dims),),
            "b": (set(array.dims),),
            "indices": ({*self.picks},),
            "targets": ({*self.batch}, {*self.full}),
            "upstream": ({*self.batch}, set()),
            "weight": ({*self.dims},),
            "q_logits": ({*self.full},),
        }[name]
        if {*array.dims} not in expected:
            raise ValueError(
                f"{name} has dimensions {array.dims}; expected {_EXPECTED[name]}; those of the scores are {self.full}, "
                f"of which those of the classes are {self.dims}"
            )

    def losses(self, reduction: Any) -> tuple[Hashable, ...]:
        """The dimensions of a loss."""
        return self.batch if isinstance(reduction, str) and reduction == "none" else ()

    def compute(self, results: list[tuple[Hashable, ...]], **options: Any) -> Any:
        """Compute the results, which have the given dimensions."""
        scores, arrays = self.scores, self.arrays
        # xarray does not check coordinates along dimensions whose extent changes in the results.
        resized = {*self.dims} & {*self.picks} if self.function == "log_softmax_at" else set()
        if self.function == "log_softmax_top_k":
            resized = {*self.dims}
        if resized and "where" in arrays:
            xr.align(scores, arrays["where"], join="exact")
        lazy = any(array.chunks is not None for array in (scores, *arrays.values()))
        axes = tuple(self.full.index(name) for name in self.dims)
        one = self.function not in ("softmax", "log_softmax", "logsumexp", "entropy")
        if one and len(axes) != 1:
            raise ValueError(f"dim is {self.dims!r}; expected one dimension")
        options["axis"] = axes[0] if one else axes
        options |= {name: value for name, value in self.others.items() if name not in arrays}
        orders = [self._in_order(array.dims) for array in (scores, *arrays.values())]
        computed = xr.apply_ufunc(
            partial(_compute, self.function, lazy, self.full, list(arrays), orders, options),
            scores,
            *arrays.values(),
            input_core_dims=orders,
            output_core_dims=results,
            exclude_dims=resized,
            join="exact",
            dask="allowed",
        )
        several = computed if isinstance(computed, tuple) else (computed,)
        named = tuple(result.rename(scores.name) for result in several)
        return named if isinstance(computed, tuple) else named[0]

    def _in_order(self, dims: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
        order = self.picks if {*dims} == {*self.picks} else self.full
        return tuple(name for name in order if name in dims)


def _data_array(value: Any, name: str) -> xr.DataArray:
    if not isinstance(value, xr.DataArray):
        raise TypeError(f"{name} is a {type(value).__qualname__}; expected an xarray.DataArray")
    return value


def _compute(
    function: str,
    lazy: bool,
    full: tuple[Hashable, ...],
    names: list[str],
    orders: list[tuple[Hashable, ...]],
    options: dict[str, Any],
    *arrays: Any,
) -> Any:
    """Call the plain function, or if `lazy` that of fastsoftmax.dask, with arrays without names."""
    broadcasts = [True, *(name in ("b", "where") for name in names)]
    scores, *others = (
        # Arrays that are broadcast may lack some dimensions.
        array[tuple(slice(None) if name in order else None for name in full)] if broadcast else array
        for array, order, broadcast in zip(arrays, orders, broadcasts, strict=True)
    )
    if not lazy:
        return getattr(fs, function)(scores, **dict(zip(names, others, strict=True)), **options)
    import dask.array as da

    from . import dask as lazily

    return getattr(lazily, function)(da.asarray(scores), **dict(zip(names, others, strict=True)), **options)
