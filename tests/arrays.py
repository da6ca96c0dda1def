"""The zoo: awkward arrays, the layouts that one array can have in memory, and every function called on them."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

bfloat16 = np.dtype(ml_dtypes.bfloat16)
FLOATING = [np.dtype("float16"), bfloat16, np.dtype("float32"), np.dtype("float64")]
INTEGERS = [np.dtype(code) for code in "?bBhHiIlLqQ"]
SIZES = [*range(1, 71), 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097]
LONG_SIZES = [65535, 65536, 65537, 200_003, 1_000_003]

# Numbers of classes around multiples of a vector's width, and numbers of slices around the width of a tile.
END_SIZES = [*range(1, 21), *range(31, 35), *range(47, 51), *range(55, 59), *range(63, 67), *range(127, 131)]
END_SLICES = [1, 15, 16, 17]
# Four neighbouring sizes have four different numbers of slices; so do 4, 8, 12 and 16.
ENDS = [(END_SLICES[(i + i // 4) % 4], classes) for i, classes in enumerate(END_SIZES)]


# Layouts: the same values, elsewhere in memory.


def as_c(a: NDArray) -> NDArray:
    return a.copy(order="C")


def as_fortran(a: NDArray) -> NDArray:
    return a.copy(order="F")


def as_offset(a: NDArray) -> NDArray:
    room = np.empty(a.size + 3, a.dtype)
    room[3:] = a.ravel()
    return room[3:].reshape(a.shape)


def as_strided(a: NDArray) -> NDArray:
    """Gaps along every axis."""
    room = np.full([2 * n + 1 for n in a.shape], 1, a.dtype)
    view = room[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def as_padded(a: NDArray) -> NDArray:
    """Contiguous along the last axis, with a gap after each row."""
    room = np.full([*a.shape[:-1], a.shape[-1] + 5], 1, a.dtype) if a.ndim else a.copy()
    view = room[..., : a.shape[-1]] if a.ndim else room
    view[...] = a
    return view


def as_negative(a: NDArray) -> NDArray:
    backwards = tuple(slice(None, None, -1) for _ in a.shape)
    return a[backwards].copy()[backwards]


def as_negative_last(a: NDArray) -> NDArray:
    return a[..., ::-1].copy()[..., ::-1] if a.ndim else a.copy()


def as_axis_first(a: NDArray) -> NDArray:
    """The last axis is the outermost in memory."""
    return np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1) if a.ndim else a.copy()


def as_unaligned(a: NDArray) -> NDArray:
    room = np.empty(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def as_swapped(a: NDArray) -> NDArray:
    return a.copy() if a.dtype == bfloat16 else a.astype(a.dtype.newbyteorder())


def as_read_only(a: NDArray) -> NDArray:
    a = a.copy()
    a.flags.writeable = False
    return a


def as_memmap(a: NDArray) -> NDArray:
    if a.size == 0:
        return a.copy()
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, a.dtype, "w+", shape=a.shape)
    mapped[...] = a
    return mapped


def as_field(a: NDArray) -> NDArray:
    """One field of a packed record: strides that are no multiple of the element's size."""
    records = np.zeros(a.shape, [("flag", np.uint8), ("value", a.dtype), ("tail", np.uint16)])
    records["value"] = a
    return records["value"]


LAYOUTS: dict[str, Callable[[NDArray], NDArray]] = {
    layout.__name__.removeprefix("as_"): layout
    for layout in (
        as_c,
        as_fortran,
        as_offset,
        as_strided,
        as_padded,
        as_negative,
        as_negative_last,
        as_axis_first,
        as_unaligned,
        as_swapped,
        as_read_only,
        as_memmap,
        as_field,
    )
}


# Values.


def subnormal_logits(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Logits with subnormal probabilities, down to below the smallest one; the first class of each slice is 0."""
    info = ml_dtypes.finfo(dtype)
    largest = float(np.log(np.longdouble(info.smallest_normal)))
    smallest = float(np.log(np.longdouble(info.smallest_subnormal)))
    values = rng.uniform(smallest - 2, largest, shape)
    values[..., 0] = 0
    return values


def near_ties(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    return 10 * (1 + float(ml_dtypes.finfo(dtype).eps) * rng.integers(0, 4, shape))


def ahead(rng: np.random.Generator, shape: tuple[int, ...], by: float) -> NDArray:
    """Normal logits; one class of each slice is raised to `by` above the maximum."""
    values = rng.normal(size=shape)
    first = rng.integers(0, shape[-1], (*shape[:-1], 1))
    np.put_along_axis(values, first, np.max(values, axis=-1, keepdims=True) + by, -1)
    return values


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Random bits as numbers, so that every size occurs; 0 in place of NaN and infinities."""
    dtype = np.dtype(dtype)
    values = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values), values, dtype.type(0))


def all_equal_but_one(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Equal logits, except that one class of each slice is above or below them, by anything from about an ULP to 8."""
    values = np.broadcast_to(rng.normal(0, 10, (*shape[:-1], 1)), shape).copy()
    one = rng.integers(0, shape[-1], (*shape[:-1], 1))
    by = rng.choice([-1, 1], one.shape) * 2 ** rng.uniform(3 - ml_dtypes.finfo(dtype).nmant, 3, one.shape)
    np.put_along_axis(values, one, np.take_along_axis(values, one, -1) + by, -1)
    return values


def of_any_scale(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
    """Normal logits; each slice has its own scale."""
    return rng.normal(size=shape) * 10 ** rng.uniform(-2, 1, (*shape[:-1], 1))


def repeated_pattern(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """2 to 64 logits, repeated, so that equal rounding errors add up; each slice has its own period."""
    period = rng.integers(2, 65, (*shape[:-1], 1))
    return np.take_along_axis(of_any_scale(rng, (*shape[:-1], 64)), np.arange(shape[-1]) % period, -1)


def ahead_by_any(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Normal logits; one class of each slice is ahead, by a distance of the slice's own, up to where the others vanish.

    In about a quarter of the slices, up to four classes tie for the top. Logits are moved so that 0 is anywhere between
    the top and the others.
    """
    values = rng.normal(size=shape)
    batch = (*shape[:-1], 1)
    first = rng.integers(0, shape[-1], (*shape[:-1], 4))
    first = np.where(rng.uniform(size=batch) < 0.25, first, first[..., :1])
    by = rng.uniform(0, 760 if np.dtype(dtype) == np.float64 else 110, batch)
    np.put_along_axis(values, first, np.max(values, axis=-1, keepdims=True) + by, -1)
    return values - rng.uniform(size=batch) * by


def minus_infinity_between(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """-inf among normal logits. Each slice keeps its own share of finite classes, and about a quarter keep only one."""
    left = rng.uniform(size=shape) < rng.uniform(-0.3, 1, (*shape[:-1], 1))
    np.put_along_axis(left, rng.integers(0, shape[-1], (*shape[:-1], 1)), True, -1)
    return np.where(left, rng.normal(0, 10, shape), -np.inf)


def ends_of_range(dtype: DTypeLike) -> tuple[float, float, float]:
    """The ends of the range of near slices: their least and largest logsumexp, and the least logit that counts.

    Between the first two, the sum of the exponentials by the fixed reference, and its reciprocal, are normal numbers
    with room for rounding errors. In such a slice, a class below the third has a probability that rounds to 0. Half
    precision is computed in float32.
    """
    powers = (-146, 700, -1222) if np.dtype(dtype) == np.float64 else (-39, 50, -190)
    lowest, highest, least = (power * float(np.log(2)) for power in powers)
    return lowest, highest, least


def beside(rng: np.random.Generator, shape: tuple[int, ...], *values: float) -> NDArray:
    """Numbers above or below one of `values`, by 2^-20 to 2^4."""
    return rng.choice(values, shape) + rng.choice([-1, 1], shape) * 2 ** rng.uniform(-20, 4, shape)


def total_at_an_end(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Normal logits, moved so that logsumexp is just below or above one end of the range of near slices."""
    values = of_any_scale(rng, shape)
    lowest, highest, _ = ends_of_range(dtype)
    total = np.logaddexp.reduce(values, axis=-1, keepdims=True)
    return values - total + beside(rng, total.shape, lowest, highest)


def terms_at_an_end(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Logits around the least that counts in a near slice, and one class of each slice above them.

    In half of the slices that class is close to the least logsumexp. There the others' probabilities are subnormal or
    round to 0, but all of them together still count in the loss.
    """
    lowest, _, least = ends_of_range(dtype)
    values = beside(rng, shape, least)
    one = (*shape[:-1], 1)
    first = np.where(rng.uniform(size=one) < 0.5, beside(rng, one, lowest), rng.uniform(least, lowest, one))
    np.put_along_axis(values, rng.integers(0, shape[-1], one), first, -1)
    return values


FAMILIES: dict[str, Callable[[np.random.Generator, tuple[int, ...], np.dtype], NDArray]] = {
    **{
        f"normal {scale:g}": lambda rng, shape, dtype, scale=scale: rng.normal(0, scale, shape)
        for scale in (0.1, 1, 10, 40, 300, 1e4, 1e6, 1e30)
    },
    **{f"ahead by {by}": lambda rng, shape, dtype, by=by: ahead(rng, shape, by) for by in (5, 20, 50, 90)},
    "near ties": near_ties,
    "all equal": lambda rng, shape, dtype: np.broadcast_to(rng.normal(0, 10, (*shape[:-1], 1)), shape),
    "sorted": lambda rng, shape, dtype: np.sort(rng.normal(0, 10, shape), axis=-1),
    "sorted down": lambda rng, shape, dtype: -np.sort(rng.normal(0, 10, shape), axis=-1),
    "subnormal results": subnormal_logits,
    "common offset": lambda rng, shape, dtype: rng.normal(size=shape) + 2.0 ** (ml_dtypes.finfo(dtype).nmant - 2),
    "negative offset": lambda rng, shape, dtype: rng.normal(size=shape) - 2.0 ** (ml_dtypes.finfo(dtype).nmant - 2),
    "random bits": random_bits,
    "all equal but one": all_equal_but_one,
    "repeated pattern": repeated_pattern,
    "ahead by any": ahead_by_any,
    "-inf between": minus_infinity_between,
    "total at an end": total_at_an_end,
    "terms at an end": terms_at_an_end,
}


def family(name: str, shape: tuple[int, ...], dtype: np.dtype, axis: int = -1, seed: int = 0) -> NDArray:
    """Logits of one family; their slices lie along `axis`, and each has at least one finite entry."""
    rng = np.random.default_rng([seed, *name.encode(), *shape])
    moved = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    values = FAMILIES[name](rng, (*moved, shape[axis]), dtype)
    limit = float(ml_dtypes.finfo(dtype).max)
    values = np.where(np.isinf(values), values, np.clip(values, -limit, limit))
    return np.ascontiguousarray(np.moveaxis(values.astype(dtype), -1, axis))


def zoo(dtype: DTypeLike) -> Iterator[tuple[str, NDArray]]:
    """Small arrays with the values and shapes that are easily forgotten."""
    rng = np.random.default_rng(7)
    info = ml_dtypes.finfo(dtype)
    inf, nan, huge = np.inf, np.nan, float(info.max) / 8
    yield "0-d", np.asarray(1.5, dtype)
    yield "0-d nan", np.asarray(nan, dtype)
    for shape in [(0,), (1,), (0, 3), (3, 0), (2, 0, 4), (1, 1, 1), (5,), (2, 3), (3, 1, 4), (2, 3, 4), (2, 1, 3, 5)]:
        yield f"normal {shape}", rng.normal(0, 3, shape).astype(dtype)
    yield "zeros", np.zeros((3, 4), dtype)
    yield "minus zeros", np.full((3, 4), -0.0, dtype)
    yield "huge", np.array([[huge, huge, -huge], [-huge, -huge, -huge]], dtype)
    yield "subnormal", np.array([[info.smallest_subnormal, 0, -info.smallest_subnormal]], dtype)
    yield "nan", np.array([[nan, 1, 2], [1, 2, 3], [-nan, nan, nan], [nan, inf, -inf]], dtype)
    yield "inf", np.array([[inf, 1, 2], [inf, inf, 1], [-inf, 1, 2], [-inf, -inf, -inf], [inf, -inf, 0]], dtype)
    special = np.array([nan, inf, -inf, 0, -0.0, 1, huge, -huge, info.smallest_subnormal], dtype)
    yield "special", rng.choice(special, (20, 5))
    wide = rng.normal(0, 5, (6, 37)).astype(dtype)
    wide[1, 36], wide[2, 0], wide[3, 17], wide[4, :] = nan, inf, -inf, -inf
    yield "special among many", wide


# Functions.


@dataclass
class Inputs:
    """The arguments of the functions; the slices lie along the last axis of `x`."""

    x: NDArray
    dy: NDArray
    where: NDArray
    b: NDArray  # of one sign, so that sums do not cancel
    indices: NDArray
    probabilities: NDArray
    log_probabilities: NDArray
    weight: NDArray
    upstream: NDArray
    picks: NDArray  # class indices

    @classmethod
    def of(cls, x: NDArray, seed: int = 0) -> "Inputs":
        rng = np.random.default_rng([seed, *x.shape])
        batch, classes = x.shape[:-1], x.shape[-1] if x.ndim else 1
        probabilities = rng.uniform(0.1, 1, x.shape)
        probabilities = probabilities / probabilities.sum(axis=-1, keepdims=True)
        floating = x.dtype if x.dtype in FLOATING else np.dtype(np.float64)
        return cls(
            x=x,
            dy=np.asarray(rng.normal(size=x.shape)).astype(floating),
            where=np.asarray(rng.uniform(size=x.shape) < 0.7),
            b=np.asarray(rng.choice([-1, 1]) * rng.uniform(0.5, 2, x.shape)).astype(floating),
            indices=rng.integers(0, max(classes, 1), batch),
            probabilities=np.asarray(probabilities).astype(floating),
            log_probabilities=np.asarray(np.log(probabilities)).astype(floating),
            weight=rng.uniform(0.5, 2, classes),
            upstream=rng.normal(size=batch),
            picks=np.asarray(rng.integers(0, max(classes, 1), x.shape)),
        )

    @classmethod
    def normal(cls, shape: tuple[int, ...], dtype: DTypeLike, scale: float = 5, seed: int = 0) -> "Inputs":
        return cls.of(np.random.default_rng([seed, *shape]).normal(0, scale, shape).astype(dtype), seed)

    def map(self, change: Callable[[NDArray], NDArray]) -> "Inputs":
        """Apply `change` to every array except `weight`, whose only axis is the classes."""
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "weight"})

    def take(self, batch: Any) -> "Inputs":
        """Some slices, or one, of the batch."""
        return self.map(lambda a: a[batch])

    def view(self, axis: int) -> "Inputs":
        """The class axis moved to `axis`, without a copy."""
        return self.map(lambda a: np.moveaxis(a, -1, axis) if a.ndim == self.x.ndim else a)

    def move(self, axis: int) -> "Inputs":
        """The class axis moved to `axis`, and all in C order."""
        return self.view(axis).map(as_c)


Call = Callable[[ModuleType, Inputs, int], Any]


_UNUSED = np.random.PCG64(0)  # made once: a new one needs a lock, which fails where memory is exhausted


class GivenNumbers(np.random.Generator):
    """A generator that returns the given numbers, over and over: with a single one, every slice gets that number."""

    def __init__(self, numbers: ArrayLike) -> None:
        super().__init__(_UNUSED)
        self._numbers = np.asarray(numbers, np.float64)

    def random(self, size: int) -> NDArray:  # type: ignore[override]
        return np.resize(self._numbers, size)


TRANSFORMS: dict[str, Call] = {
    "softmax": lambda fs, a, axis: fs.softmax(a.x, axis),
    "softmax, temperature": lambda fs, a, axis: fs.softmax(a.x, axis, temperature=0.7),
    "softmax, where": lambda fs, a, axis: fs.softmax(a.x, axis, where=a.where),
    "softmax, all": lambda fs, a, axis: fs.softmax(a.x, axis, temperature=3, where=a.where, dtype=np.float64),
    "log_softmax": lambda fs, a, axis: fs.log_softmax(a.x, axis),
    "log_softmax, temperature": lambda fs, a, axis: fs.log_softmax(a.x, axis, temperature=0.7),
    "log_softmax, where": lambda fs, a, axis: fs.log_softmax(a.x, axis, where=a.where),
    "log_softmax, all": lambda fs, a, axis: fs.log_softmax(a.x, axis, temperature=3, where=a.where, dtype=np.float64),
    "softmax_grad": lambda fs, a, axis: fs.softmax_grad(a.probabilities, a.dy, axis),
    "softmax_grad, all": lambda fs, a, axis: fs.softmax_grad(
        a.probabilities, a.dy, axis, temperature=0.7, where=a.where
    ),
    "log_softmax_grad": lambda fs, a, axis: fs.log_softmax_grad(a.log_probabilities, a.dy, axis),
    "log_softmax_grad, all": lambda fs, a, axis: fs.log_softmax_grad(
        a.log_probabilities, a.dy, axis, temperature=0.7, where=a.where
    ),
}

REDUCTIONS: dict[str, Call] = {
    "logsumexp": lambda fs, a, axis: fs.logsumexp(a.x, axis),
    "logsumexp, where": lambda fs, a, axis: fs.logsumexp(a.x, axis, where=a.where),
    "logsumexp, b": lambda fs, a, axis: fs.logsumexp(a.x, axis, b=a.b, return_sign=True),
    "logsumexp, all": lambda fs, a, axis: fs.logsumexp(
        a.x, axis, b=a.b, where=a.where, return_sign=True, dtype=np.float64
    ),
    "entropy": lambda fs, a, axis: fs.entropy(a.x, axis),
    "entropy, temperature": lambda fs, a, axis: fs.entropy(a.x, axis, temperature=0.7),
    "entropy, where": lambda fs, a, axis: fs.entropy(a.x, axis, where=a.where),
    "entropy, all": lambda fs, a, axis: fs.entropy(a.x, axis, temperature=3, where=a.where, dtype=np.float64),
}


def first(a: NDArray, n: int, axis: int) -> NDArray:
    """The first n entries along `axis`, or all if there are fewer."""
    return np.moveaxis(np.moveaxis(a, axis, 0)[:n], 0, axis)


def _top(fs: ModuleType, a: Inputs, axis: int, k: int, **options: Any) -> Any:
    """The k largest, or all if there are fewer; without classes, k is 1 and the call is refused."""
    return fs.log_softmax_top_k(a.x, max(min(k, a.x.shape[axis] if a.x.ndim else 1), 1), axis, **options)


PICKS: dict[str, Call] = {
    "log_softmax_at": lambda fs, a, axis: fs.log_softmax_at(a.x, a.indices, axis),
    "log_softmax_at, several": lambda fs, a, axis: fs.log_softmax_at(a.x, first(a.picks, 3, axis), axis),
    "log_softmax_at, temperature": lambda fs, a, axis: fs.log_softmax_at(a.x, a.indices, axis, temperature=0.7),
    "log_softmax_at, where": lambda fs, a, axis: fs.log_softmax_at(a.x, first(a.picks, 2, axis), axis, where=a.where),
    "log_softmax_at, all": lambda fs, a, axis: fs.log_softmax_at(
        a.x, a.picks, axis, temperature=3, where=a.where, dtype=np.float64
    ),
    "log_softmax_top_k": lambda fs, a, axis: _top(fs, a, axis, 3),
    "log_softmax_top_k, temperature": lambda fs, a, axis: _top(fs, a, axis, 20, temperature=0.7),
    "log_softmax_top_k, where": lambda fs, a, axis: _top(fs, a, axis, 9, where=a.where),
    "log_softmax_top_k, all": lambda fs, a, axis: _top(
        fs, a, axis, 10**6, temperature=3, where=a.where, dtype=np.float64
    ),
}


def _loss(**options: Any) -> Call:
    """A call for loss and gradient; a string in `options` names the field of the inputs that holds the value."""

    def call(fs: ModuleType, a: Inputs, axis: int) -> Any:
        chosen = {k: getattr(a, v) if isinstance(v, str) else v for k, v in options.items()}
        targets = chosen.pop("targets")
        return fs.cross_entropy_with_grad(a.x, targets, axis, reduction="none", **chosen)

    return call


LOSSES: dict[str, Call] = {
    "cross_entropy": lambda fs, a, axis: fs.cross_entropy(a.x, a.indices, axis, reduction="none"),
    "cross_entropy_grad": lambda fs, a, axis: fs.cross_entropy_grad(a.x, a.indices, axis, reduction="none"),
    "indices": _loss(targets="indices"),
    "indices, weight, ignore_index": _loss(targets="indices", weight="weight", ignore_index=0),
    "indices, all": _loss(
        targets="indices", weight="weight", ignore_index=0, label_smoothing=0.1, temperature=0.7, upstream="upstream"
    ),
    "probabilities": _loss(targets="probabilities"),
    "probabilities, all": _loss(
        targets="probabilities", weight="weight", label_smoothing=0.1, temperature=0.7, upstream="upstream"
    ),
}


def _draws(**options: Any) -> Call:
    """A call that draws twice from each slice; -1 where a slice has no probabilities."""
    masked = options.pop("masked", False)

    def of_slices(fs: ModuleType, x: NDArray, axis: int, where: NDArray | None) -> NDArray:
        try:
            drawn: NDArray = fs.sample(x, GivenNumbers([0.3, 0.8]), axis, size=2, where=where, **options)
        except ValueError:
            if x.ndim < 2:
                return np.array([-1, -1])
            # Some slice has no probabilities: cut the batch along an axis and draw from the parts.
            axis %= x.ndim
            k = 1 if axis == 0 else 0
            n = x.shape[k]
            masks = [None] * n if where is None else np.moveaxis(where, k, 0)
            apart = zip(np.moveaxis(x, k, 0), masks, strict=True)
            drawn = np.stack([of_slices(fs, some, max(axis - 1, 0), mask) for some, mask in apart])
        return drawn

    def call(fs: ModuleType, a: Inputs, axis: int) -> Any:
        drawn = of_slices(fs, a.x, axis, a.where if masked else None)
        return drawn[..., 0], drawn[..., 1]

    return call


def _hess(**options: Any) -> Call:
    """As `_loss`, for loss, gradient and Hessian."""

    def call(fs: ModuleType, a: Inputs, axis: int) -> Any:
        chosen = {k: getattr(a, v) if isinstance(v, str) else v for k, v in options.items()}
        targets = chosen.pop("targets")
        return fs.cross_entropy_with_grad_hess(a.x, targets, axis, reduction="none", **chosen)

    return call


LOSSES |= {
    "hess": _hess(targets="indices"),
    "hess, all": _hess(
        targets="indices", weight="weight", ignore_index=0, label_smoothing=0.1, temperature=0.7, upstream="upstream"
    ),
    "hess, probabilities": _hess(targets="probabilities"),
}

DIVERGENCES: dict[str, Call] = {
    "kl": lambda fs, a, axis: fs.kl_divergence(a.x, a.dy, axis, reduction="none"),
    "kl_with_grad": lambda fs, a, axis: fs.kl_divergence_with_grad(a.x, a.dy, axis, reduction="none"),
    "kl_with_grad, all": lambda fs, a, axis: fs.kl_divergence_with_grad(
        a.x, a.dy, axis, temperature=0.7, where=a.where, reduction="none", upstream=a.upstream
    ),
}

DRAWS: dict[str, Call] = {
    "sample": _draws(),
    "sample, top_k": _draws(top_k=3),
    "sample, all": _draws(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, masked=True),
}


def along(a: NDArray, part: Any, axis: int) -> NDArray:
    return np.moveaxis(np.moveaxis(a, axis, 0)[part], 0, axis) if a.ndim else a


def _pieces(masked: bool = False, temperature: float = 1.0, **options: Any) -> Call:
    """A call for value and probabilities of slices in two pieces, whose totals are merged."""

    def call(fs: ModuleType, a: Inputs, axis: int) -> Any:
        half = a.x.shape[axis] // 2 if a.x.ndim else 0
        parts = [slice(half), slice(half, None)] if a.x.ndim else [...]
        pieces = [(along(a.x, part, axis), along(a.where, part, axis) if masked else None) for part in parts]
        total = fs.LogSumExp(axis, temperature=temperature)
        for x, where in pieces:
            total.merge(fs.LogSumExp(axis, temperature=temperature).update(x, where=where))
        functions = (total.softmax, total.log_softmax)
        return total.value(**options), *(f(x, where=where, **options) for f in functions for x, where in pieces)

    return call


PIECES: dict[str, Call] = {
    "LogSumExp": _pieces(),
    "LogSumExp, all": _pieces(True, 0.7, dtype=np.float64),
}

CALLS = TRANSFORMS | REDUCTIONS | PICKS | LOSSES | DIVERGENCES | DRAWS | PIECES

# Calls with an `out`: one of the result's dtype, of a wider dtype or of the reduced shape, or an argument itself.

Into = Callable[[ModuleType, Inputs, int, NDArray], Any]

INTO: dict[str, Into] = {
    "softmax": lambda fs, a, axis, out: fs.softmax(a.x, axis, out=out),
    "softmax, where": lambda fs, a, axis, out: fs.softmax(a.x, axis, where=a.where, out=out),
    "log_softmax, temperature": lambda fs, a, axis, out: fs.log_softmax(a.x, axis, temperature=0.7, out=out),
    "softmax_grad": lambda fs, a, axis, out: fs.softmax_grad(a.probabilities, a.x, axis, out=out),
    "log_softmax_grad, where": lambda fs, a, axis, out: fs.log_softmax_grad(
        a.log_probabilities, a.x, axis, where=a.where, out=out
    ),
    "cross_entropy_with_grad": lambda fs, a, axis, out: fs.cross_entropy_with_grad(a.x, a.indices, axis, out=out),
    "cross_entropy_with_grad, all": lambda fs, a, axis, out: fs.cross_entropy_with_grad(
        a.x, a.indices, axis, weight=a.weight, ignore_index=0, label_smoothing=0.1, out=out
    ),
    "cross_entropy_with_grad_hess": lambda fs, a, axis, out: fs.cross_entropy_with_grad_hess(
        a.x, a.indices, axis, out=(None, out)
    ),
    "kl_divergence_with_grad": lambda fs, a, axis, out: fs.kl_divergence_with_grad(
        a.probabilities, a.x, axis, where=a.where, out=out
    ),
    "cross_entropy_grad, probabilities": lambda fs, a, axis, out: fs.cross_entropy_grad(
        a.x, a.probabilities, axis, weight=a.weight, out=out
    ),
}

WIDER_INTO: dict[str, Into] = {
    "softmax": lambda fs, a, axis, out: fs.softmax(a.x, axis, dtype=np.float64, out=out),
    "log_softmax, where": lambda fs, a, axis, out: fs.log_softmax(a.x, axis, where=a.where, dtype=np.float64, out=out),
}

REDUCED_INTO: dict[str, Into] = {
    "logsumexp": lambda fs, a, axis, out: fs.logsumexp(a.x, axis, out=out),
    "logsumexp, all": lambda fs, a, axis, out: fs.logsumexp(a.x, axis, b=a.b, where=a.where, return_sign=True, out=out),
    "entropy": lambda fs, a, axis, out: fs.entropy(a.x, axis, out=out),
    "entropy, all": lambda fs, a, axis, out: fs.entropy(a.x, axis, temperature=0.7, where=a.where, out=out),
}

IN_PLACE: dict[str, Call] = {
    "softmax": lambda fs, a, axis: fs.softmax(a.x, axis, out=a.x),
    "softmax_grad": lambda fs, a, axis: fs.softmax_grad(a.probabilities, a.dy, axis, out=a.dy),
    "cross_entropy_grad": lambda fs, a, axis: fs.cross_entropy_grad(a.x, a.indices, axis, out=a.x),
    "cross_entropy_with_grad_hess": lambda fs, a, axis: fs.cross_entropy_with_grad_hess(
        a.x, a.indices, axis, out=(a.x, None)
    ),
    "kl_divergence_with_grad": lambda fs, a, axis: fs.kl_divergence_with_grad(a.dy, a.x, axis, out=a.x),
}


def results(result: Any) -> tuple[NDArray, ...]:
    """One call's results as arrays."""
    return tuple(np.asarray(r) for r in (result if isinstance(result, tuple) else (result,)))


def every_result(fs: ModuleType, a: Inputs, axis: int = -1) -> tuple[NDArray, ...]:
    """The results of every call, one after another."""
    return tuple(r for call in CALLS.values() for r in results(call(fs, a, axis)))


def assert_same_bits(got: NDArray, wanted: NDArray) -> None:
    """Assert that all bits are equal, also the sign of a zero; any NaN equals any other."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    unsigned = f"u{got.dtype.itemsize}"
    got, wanted = np.ascontiguousarray(got), np.ascontiguousarray(wanted)
    same = (got.view(unsigned) == wanted.view(unsigned)) | (np.isnan(got) & np.isnan(wanted))
    different = f"{np.count_nonzero(~same)} of {same.size} entries differ, the first is"
    assert same.all(), f"{different} {got[~same][0]} instead of {wanted[~same][0]}"


def assert_all_same_bits(got: Any, wanted: Any) -> None:
    for g, w in zip(results(got), results(wanted), strict=True):
        assert_same_bits(g, w)
