"""Calls of `fastsoftmax.dask`: the arguments in the chunks of the scores, and the graphs over their blocks."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.sizeof import sizeof

import fastsoftmax as fs

from ._arguments import FLOAT64, DType, to_any_array
from ._dask_sums import Index, combined, finished, itself, summed, unchanged
from ._runtime import num_threads_here

SplitEvery = int | dict[int, int] | None

# Labels of axes for `blockwise`. The axes of the scores have their numbers as labels; these are for further axes.
PICKS, ALL_CLASSES = -1, -2


def to_scores(x: Any, name: str, function: str) -> da.Array:
    if not isinstance(x, da.Array):
        raise TypeError(
            f"{name} is a {type(x).__module__}.{type(x).__qualname__}; expected a dask.array.Array. "
            f"fastsoftmax.{function} takes arrays in memory"
        )
    return to_given(x, name)


def to_given(value: Any, name: str) -> Any:
    """`value` as a dask or NumPy array; None and Python numbers, which do not decide dtypes, stay as they are."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, da.Array):
        to_any_array(value._meta, name)  # refuses masks, and memory that is not NumPy's
        return value
    return to_any_array(value, name)


class Call:
    """The arguments of a call: the scores, whose chunks decide, and others, whose axes are matched to theirs."""

    def __init__(self, given: dict[str, Any], axes: Index) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}
        self.scores = next(iter(given))
        arrays = [self.given[name] for name in (self.scores, "b") if hasattr(self.given.get(name), "ndim")]
        self.full = tuple(range(max(array.ndim for array in arrays)))
        self.axes = axes
        self.batch = tuple(label for label in self.full if label not in axes)
        self.chunks = {label: self._chunks(arrays, label) for label in self.full}
        self.whole = all(len(self.chunks[label]) == 1 for label in axes)
        for label in axes:
            if math.isnan(sum(self.chunks[label])):
                raise ValueError(
                    f"{self.scores} has chunks of unknown sizes in axis {label}, a class axis; expected known ones, as "
                    "its method compute_chunk_sizes() makes them"
                )

    def _chunks(self, arrays: Sequence[Any], label: int) -> tuple[int, ...]:
        """The chunks, along this axis, of the first array that is not broadcast there."""
        chunks: tuple[int, ...] = (1,)
        for array in arrays:
            at = label - len(self.full) + array.ndim
            if at >= 0 and chunks == (1,):
                chunks = array.chunks[at] if isinstance(array, da.Array) else (array.shape[at],)
        return chunks

    def reduced_index(self, keepdims: bool) -> Index:
        return self.full if keepdims else self.batch

    def with_picks(self) -> Index:
        """The labels of the axes of picks: those of the scores, with `PICKS` for the class axis."""
        return tuple(PICKS if label in self.axes else label for label in self.full)

    def index(self, name: str) -> Index:
        """The labels of an argument's axes."""
        array = self.given[name]
        if array.ndim == 0:
            return ()
        if name == "upstream" or (name == "targets" and array.dtype.kind in "iu"):
            return self.batch
        if name == "indices":
            return self.with_picks() if array.ndim == len(self.full) else self.batch
        if name == "weight":
            return (ALL_CLASSES,)
        if name == "weight_of_class":
            return self.axes
        return self.full[len(self.full) - array.ndim :]

    def stand_in(self, name: str) -> Any:
        """For checks without computing: an array of the argument's dtype and shape, with 1 for unknown extents."""
        array: Any = self.given.get(name)
        known = not any(math.isnan(sum(chunks)) for chunks in self.chunks.values())
        if not hasattr(array, "ndim") or (isinstance(array, np.ndarray) and known):
            return array
        labels = self.index(name)
        shape = list(array.shape)
        for at, label in enumerate(labels if len(labels) == len(shape) else ()):
            extent = sum(self.chunks.get(label, (shape[at],)))
            if math.isnan(extent):
                shape[at] = 1
            elif math.isnan(shape[at]):
                shape[at] = extent
        return np.broadcast_to(np.zeros((), array.dtype), [1 if math.isnan(n) else n for n in shape])

    def aligned(self, name: str) -> da.Array:
        """An argument in the chunks of the scores; one chunk along axes where it is broadcast or that are its own."""
        array = self.given[name]
        if name == self.scores:
            return array
        chunks = []
        for at, label in enumerate(self.index(name)):
            extent = array.shape[at]
            wanted = self.chunks.get(label, (extent,))
            if isinstance(array, da.Array) and len(array.chunks[at]) == len(wanted):
                own = array.chunks[at]
                wanted = own if math.isnan(sum(wanted)) or math.isnan(sum(own)) else wanted
            elif extent == 1:
                wanted = (1,)
            elif math.isnan(sum(wanted)) or math.isnan(extent):
                raise ValueError(
                    f"{self.scores} and {name} have different numbers of chunks, of unknown sizes, in axis {at} of "
                    f"{name}; expected known ones, as the method compute_chunk_sizes() makes them"
                )
            chunks.append((1,) if extent == 1 else wanted)
        if isinstance(array, da.Array):
            return array if array.chunks == tuple(chunks) else array.rechunk(tuple(chunks))
        return da.from_array(array, chunks=tuple(chunks))

    def starts(self, label: int) -> da.Array | None:
        """The positions where the chunks of an axis begin, one in each chunk; None if they are unknown."""
        chunks = self.chunks[label]
        if math.isnan(sum(chunks)):
            return None
        return da.from_array(np.array(list(accumulate(chunks[:-1], initial=0))), chunks=1)

    def map(
        self,
        function: Callable[..., Any],
        index: Index,
        dtype: DType | type,
        *,
        names: Sequence[str] | None = None,
        more: dict[str, da.Array] | None = None,
        at: Index | None = None,
        new: dict[int, int] | None = None,
        summed: bool = False,
    ) -> da.Array:
        """Apply the function to the blocks of the arguments `names`, by default of all, and of the arrays in `more`.

        The function learns where its block begins along the axes `at`, in the argument `origin`. In the result, class
        axes have the chunks of the scores; or, if `summed`, extent 1 for each of these.
        """
        pairs: list[Any] = []
        keywords = []
        constants = {}
        for name in self.given if names is None else names:
            if name not in self.given:
                continue
            if hasattr(self.given[name], "ndim"):
                pairs += [self.aligned(name), self.index(name)]
                keywords.append(name)
            else:
                constants[name] = self.given[name]
        for name, value in (more or {}).items():
            if isinstance(value, da.Array):
                pairs += [value, self.batch if value.ndim else ()]
                keywords.append(name)
            else:
                constants[name] = value
        starts = [(self.starts(label), (label,)) for label in at or ()]
        if at is not None:
            pairs += [part for start in starts if start[0] is not None for part in start]
            constants["origin"] = tuple(start is not None for start, _ in starts)
        chunks = {
            label: (1,) * len(own) if summed and label in self.axes else own for label, own in self.chunks.items()
        }
        return da.blockwise(
            partial(_run, function, tuple(keywords), constants, dask.config.get("fastsoftmax.num-threads", 1)),
            index,
            *pairs,
            token=_name_of(function),
            new_axes=new,
            adjust_chunks={label: chunks[label] for label in index if label in chunks},
            align_arrays=False,
            dtype=dtype,
            meta=np.empty((0,) * len(index), dtype),
        )

    def sums(self, temperature: float, dtype: DType, name: str | None = None) -> da.Array:
        """A `LogSumExp` of each block of the scores, or of the argument `name` in their place."""
        names = [name or self.scores, "where"]
        chunk = partial(summed, axis=self.axes, temperature=temperature, dtype=dtype)
        return self.map(chunk, self.full, object, names=names, summed=True)

    def total(self, temperature: float, dtype: DType, split_every: SplitEvery, name: str | None = None) -> da.Array:
        """A `LogSumExp` of whole slices for each block of the batch."""
        return self.merged(self.sums(temperature, dtype, name), itself, object, split_every)

    def merged(
        self,
        sums: da.Array,
        finish: Callable[..., Any],
        dtype: DType | type,
        split_every: SplitEvery,
        keepdims: bool = False,
        extent: int = 1,
    ) -> da.Array:
        """Merge the sums of all blocks of a slice, and apply `finish`. `extent`: of the class axis, if it is kept."""
        return da.reduction(
            sums,
            chunk=unchanged,
            combine=combined,
            aggregate=partial(finished, finish),
            axis=self.axes,
            keepdims=keepdims,
            concatenate=False,
            output_size=extent,
            dtype=dtype,
            split_every=split_every,
            meta=np.empty((0,) * len(self.reduced_index(keepdims)), dtype),
        )

    def count(self, reduction: str) -> float:
        """The number of slices, for a mean; otherwise 1."""
        if reduction != "mean":
            return 1.0
        count = math.prod(sum(self.chunks[label]) for label in self.batch)
        if math.isnan(count):
            raise ValueError(
                f"{self.scores} has chunks of unknown sizes, so it has no mean; expected known ones, as its method "
                "compute_chunk_sizes() makes them, or reduction='sum'"
            )
        return float(count)


def _run(
    function: Callable[..., Any], names: Sequence[str], constants: dict[str, Any], threads: int, *blocks: Any
) -> Any:
    """Run the task of a block."""
    given = [only_block(block) for block in blocks]
    arguments = dict(zip(names, given, strict=False))
    if "origin" in constants:
        starts = iter(given[len(names) :])
        origin = tuple(int(next(starts)[0]) if known else None for known in constants["origin"])
        constants = constants | {"origin": origin}
    with num_threads_here(threads):
        return function(**arguments, **constants)


def only_block(block: Any) -> Any:
    """A block that dask hands over as nested lists, one for each axis that the result lacks."""
    while isinstance(block, list):
        (block,) = block
    return block


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return f"fastsoftmax-{function.__name__.strip('_')}"


def unpacked(results: da.Array, *dtypes: DType) -> tuple[da.Array, ...]:
    """An array for each element of the tuples that are the blocks of `results`."""
    index = tuple(range(results.ndim))
    return tuple(
        da.blockwise(
            partial(element, place),
            index,
            results,
            index,
            dtype=dtype,
            meta=np.empty((0,) * results.ndim, dtype),
        )
        for place, dtype in enumerate(dtypes)
    )


def element(place: int, block: Any) -> Any:
    return only_block(block)[place]


def reduced_losses(losses: da.Array, reduction: str, divisor: Any, dtype: DType) -> da.Array:
    if reduction == "none":
        return losses
    total = losses.sum(dtype=FLOAT64)
    return cast(of_numbers(quotient, total, divisor) if reduction == "mean" else total, dtype)


def of_numbers(function: Callable[..., Any], *numbers: Any) -> da.Array:
    """Apply the function to numbers, some of which are 0-d arrays."""
    pairs = [part for number in numbers for part in (number, () if isinstance(number, da.Array) else None)]
    return da.blockwise(function, (), *pairs, dtype=FLOAT64, meta=np.empty((), FLOAT64))


def quotient(dividend: Any, divisor: Any) -> Any:
    return np.float64(dividend) / np.float64(divisor) if divisor else np.float64(np.nan)


def cast(array: da.Array, dtype: DType) -> da.Array:
    return da.map_blocks(partial(_as_dtype, dtype), array, dtype=dtype, meta=np.empty((0,) * array.ndim, dtype))


def _as_dtype(dtype: DType, block: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.asarray(block).astype(dtype, copy=False)


# So that dask.distributed knows how much memory it takes.
sizeof.register(fs.LogSumExp, lambda total: int(total.state.nbytes))
