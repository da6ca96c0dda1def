"""The bits that every function gives for fixed inputs, kept in `golden_bits.json`.

`python tests/golden_bits.py` writes the file anew, on a machine with the targets of `COLUMNS`. All targets with fused
multiply-add give the bits of the column "fma". The x86 baseline, which lacks it, rounds some results differently, but
always in the same way, and has a column of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fastsoftmax as fs
import numpy as np
from arrays import CALLS, FLOATING, INTEGERS, Inputs, bfloat16, results
from ml_dtypes import finfo
from numpy.random import RandomState
from numpy.typing import NDArray

FILE = Path(__file__).with_suffix(".json")
COLUMNS = {"fma": "avx2", "baseline": "baseline"}  # column: the target that writes it


# Inputs are integers times powers of two, so they are exact in their dtype and equal on every machine. They come from
# RandomState because NumPy promises never to change its numbers.


def numbers(random: RandomState, shape: tuple[int, ...], dtype: np.dtype, exponent: int, least: float = -1) -> NDArray:
    """Random numbers with full significands, from `least` (0 or -1) times 2^exponent up to 2^exponent."""
    one = 2 ** (finfo(dtype).nmant + 1)
    integers = random.randint(int(least * one), one, shape, np.int64)
    return np.ldexp(integers.astype(np.float64), exponent - finfo(dtype).nmant - 1).astype(dtype)


def plain(random: RandomState, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    return numbers(random, shape, dtype, 3)


def far_apart(random: RandomState, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """One class is ahead of all others: many of these have a subnormal probability, and many have probability 0."""
    x = -numbers(random, shape, dtype, {2: 5, 4: 7, 8: 10}[dtype.itemsize if dtype != bfloat16 else 4], least=0)
    x[..., random.randint(0, shape[-1])] = 0
    return x


def huge(random: RandomState, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    return numbers(random, shape, dtype, int(finfo(dtype).maxexp) - 1)


def near_ties(random: RandomState, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    steps = random.randint(0, 4, shape, np.int64)
    return (8 * (1 + steps.astype(np.float64) * float(finfo(dtype).eps))).astype(dtype)


def special(random: RandomState, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """Every second slice has only special values (in the batch's first row no NaN or +inf), the others a few."""
    info = finfo(dtype)
    values = [np.inf, np.nan, -np.inf, 0, -0.0, 1, float(info.max), -float(info.max), float(info.smallest_subnormal)]
    which = random.randint(0, len(values), shape, np.int64)
    which[0, ::2] = np.maximum(which[0, ::2], 2)
    chosen = np.array(values).astype(dtype)[which]
    x = np.where(random.randint(0, shape[-1], shape, np.int64) == 0, chosen, plain(random, shape, dtype))
    x[:, ::2] = chosen[:, ::2]
    return x


# Numbers of classes that loops treat differently: few, around the widths of packs and groups of packs, and a few
# more than one block (16384) or four.
SHORT = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 1000]
FAMILIES: dict[Callable[..., NDArray], list[int]] = {
    plain: [*SHORT, 16_400, 65_600],
    far_apart: [2, 10, 70, 1000, 16_400],
    huge: [2, 10, 70, 16_400],
    near_ties: [10, 1000],
    special: [5, 40, 1000, 16_400],
}


def batch_of(classes: int) -> tuple[int, int]:
    """More slices than a tile has lanes, where that is cheap."""
    return (3, 11) if classes <= 130 else (1, 2)


def inputs_of(family: Callable[..., NDArray], dtype: np.dtype, shape: tuple[int, ...]) -> Inputs:
    random = RandomState([*shape, *dtype.name.encode()])
    batch, classes = shape[:-1], shape[-1]
    floating = dtype if dtype in FLOATING else np.dtype(np.float64)
    x = family(random, shape, floating)
    if floating != dtype:
        x = random.randint(0, 2 if dtype.kind == "b" else 100, shape, np.int64).astype(dtype)
    return Inputs(
        x=x,
        dy=numbers(random, shape, floating, 1),
        where=random.randint(0, 10, shape, np.int64) < 7,
        b=numbers(random, shape, floating, 1),
        indices=random.randint(0, classes, batch, np.int64),
        probabilities=numbers(random, shape, floating, 0, least=0),
        log_probabilities=-numbers(random, shape, floating, 3, least=0),
        weight=numbers(random, (classes,), np.dtype(np.float64), 1, least=0),
        upstream=numbers(random, batch, np.dtype(np.float64), 1),
        picks=random.randint(0, classes, shape, np.int64),
    )


def reduced(module: Any, a: Inputs, axis: int, **options: Any) -> Any:
    """Results that depend on all slices."""
    return tuple(
        result
        for reduction in ("mean", "sum")
        for targets in (a.indices, a.probabilities)
        for result in module.cross_entropy_with_grad(a.x, targets, axis, reduction=reduction, **options)
    )


GOLDEN_CALLS = CALLS | {
    "reduced": reduced,
    "reduced, weight": lambda fs, a, axis: reduced(fs, a, axis, weight=a.weight),
    "reduced, all": lambda fs, a, axis: reduced(
        fs, a, axis, weight=a.weight, label_smoothing=0.3, temperature=1.7, upstream=0.6
    ),
}
GOLDEN_DTYPES = [*FLOATING, *(np.dtype(name) for name in dict.fromkeys(dtype.name for dtype in INTEGERS))]


def bits(a: NDArray) -> bytes:
    """The bytes of an array in C order, little endian, with one NaN for all; integers, which are classes, as int64."""
    if a.dtype.kind == "i":
        return a.astype("<i8").tobytes()
    a = np.where(np.isnan(a), np.asarray(np.nan, a.dtype), a)
    return a.astype(a.dtype.newbyteorder("<")).tobytes() if a.dtype != bfloat16 else a.view("<u2").tobytes()


def outcome(call: Callable[..., Any], a: Inputs, axis: int) -> list[NDArray]:
    """The results of a call with the class axis at `axis`, which is moved back to the end."""
    moved = results(call(fs, a.move(axis), axis))
    return [np.moveaxis(r, axis, -1) if r.ndim == a.x.ndim else r for r in moved]


@cache
def cases(dtype: np.dtype) -> dict[str, list[Inputs]]:
    """Inputs by family: one slice whose results are kept bit for bit, then others whose results become digests."""
    families = FAMILIES if dtype in FLOATING else {plain: [3, 17, 150]}
    return {
        family.__name__: [
            inputs_of(family, dtype, (1, 1, 4)),
            *(inputs_of(family, dtype, (*batch_of(classes), classes)) for classes in sizes),
        ]
        for family, sizes in families.items()
    }


def summary(call: Callable[..., Any], some: list[Inputs], axis: int = -1) -> str:
    """All bits of the first results, as hexadecimal numbers, then a digest of each of the others."""
    with np.errstate(all="ignore"), fs.num_threads(1):
        first, *others = (outcome(call, a, axis) for a in some)
    words = [" ".join(bits(entry)[::-1].hex() for entry in a.reshape(-1)) for a in first]
    words += [hashlib.blake2b(b"".join(map(bits, arrays)), digest_size=4).hexdigest() for arrays in others]
    return " | ".join(words)


def golden_bits() -> dict[str, dict[str, dict[str, str]]]:
    """Summaries by call, dtype and family, of the target in use."""
    return {
        name: {
            dtype.name: {family: summary(call, some) for family, some in cases(dtype).items()}
            for dtype in GOLDEN_DTYPES
        }
        for name, call in GOLDEN_CALLS.items()
    }


def main() -> None:
    if len(sys.argv) > 1:
        json.dump(golden_bits(), sys.stdout)
        return
    columns = {}
    for column, target in COLUMNS.items():
        environment = os.environ | {"FASTSOFTMAX_TARGET": target}
        columns[column] = json.loads(subprocess.check_output([sys.executable, __file__, column], env=environment))
    FILE.write_text(json.dumps(columns, indent=0) + "\n")


if __name__ == "__main__":
    main()
