"""Any object in any argument gives the result of the twin in `reference`, or a documented error with nothing written.

The suite calls each function 100 times, `pytest tests/test_any_argument.py --hypothesis-profile=fuzz` 12,500 times.
"""

import collections
import datetime
import decimal
import faulthandler
import fractions
import inspect
import io
from collections.abc import Callable
from itertools import product
from typing import Any

import fastsoftmax as fs
import ml_dtypes
import numpy as np
import pytest
from arrays import FLOATING, INTEGERS, LAYOUTS, results
from fastsoftmax import reference
from hypothesis import given
from hypothesis import strategies as st

NAMES = [name for name in reference.__all__ if name != "LogSumExp"]
SHAPES = [(3, 4), (3, 4), (3, 4), (2, 3, 4), (4,), (1, 1), (3, 40), (0, 4), (3, 0), ()]
SECONDS = 120  # for one call: only a call that hangs takes this long


class Own(Exception):
    """Raised by the objects below: the only undocumented error that may reach the caller."""


DOCUMENTED = (TypeError, ValueError, MemoryError, Own)


# Objects that nobody would pass, and some that people do pass. Every call gets new ones.


def raising(*names: str) -> type:
    def method(self, *args, **kwargs):
        raise Own

    return type("Raises" + "".join(names).replace("_", ""), (), dict.fromkeys(names, method))


def saying(**answers: Any) -> type:
    methods = {f"__{name}__": lambda self, *args, answer=answer, **kwargs: answer for name, answer in answers.items()}
    return type("Says" + "".join(answers), (), methods)


def saying_interface(**entries: Any) -> Any:
    array = normal()
    return type("Interface", (), {"array": array, "__array_interface__": array.__array_interface__ | entries})()


class Subclass(np.ndarray):
    """Its hooks raise: none of them may be called."""

    def __array_ufunc__(self, *args, **kwargs):
        raise Own

    def __array_function__(self, *args, **kwargs):
        raise Own


class Liar(np.ndarray):
    """Its attributes do not describe its memory."""

    shape = property(lambda self: (3, 4))
    dtype = property(lambda self: np.dtype(np.float64))
    ndim = property(lambda self: 2)
    strides = property(lambda self: (32, 8))
    size = property(lambda self: 12)
    flags = property(lambda self: np.empty(1).flags)
    __repr__ = __str__ = lambda self: "a liar"


class Pretender:
    """An array only by its `__class__`."""

    __class__ = property(lambda self: np.ndarray)
    shape, dtype, ndim = (3, 4), np.dtype(float), 2


class OneThird(fractions.Fraction):
    def __float__(self):
        raise Own


class bfloat16(np.void):  # noqa: N801 - has the name of the supported dtype
    pass


def cyclic(kind: type = list) -> list:
    items = kind([1.0])
    items += [items, items]
    return items


def nested(depth: int) -> list:
    items: Any = 1.0
    for _ in range(depth):
        items = [items]
    return items


def normal(shape=(3, 4), dtype=np.float64) -> np.ndarray:
    values = np.random.default_rng(3).normal(0, 3, shape)
    return np.asarray(values).astype(dtype)


def strided(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.linspace(0, 1, 64)[32:], shape, strides)


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


DTYPES = [
    *FLOATING,
    *INTEGERS,
    *(np.dtype(code) for code in ("g", "F", "D", "G", "O", "S3", "U3", "M8[s]", "m8[ns]", "V2", "V8", "c8", "c16")),
    *(np.dtype(code) for code in (">f4", ">f2", ">f8", ">i4", ">u2", "S", "U", "V0", np.dtypes.StringDType())),
    *(np.dtype(t) for t in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4)),
    np.dtype([("a", "f4"), ("b", "i2")]),
    np.dtype([("a", "u2")]),
    np.dtype((bfloat16, [("a", "u2")])),
    np.dtype("f8", metadata={"unit": "m"}),
]

OBJECTS: dict[str, Callable[[], Any]] = {
    **{f"array of {d!r}": lambda d=d: np.zeros((3, 4), d) for d in DTYPES},
    **{f"0-d {d!r}": lambda d=d: np.zeros((), d) for d in DTYPES},
    **{f"scalar {d!r}": lambda d=d: np.zeros((), d)[()] for d in DTYPES},
    **{f"array {s}": lambda s=s: normal(s) for s in SHAPES},
    **{
        repr(v): lambda v=v: v
        for v in (
            *(None, True, False, 0, 1, -1, 2, 3, -3, 2**31, 2**63, -(2**63), 2**64, 10**400, -(10**400)),
            *(0.0, -0.0, 1.0, 0.5, -1.5, float("nan"), float("inf"), 1e-300, 1e308, 1j, "", "mean", "sum", "none", "1"),
            *("float32", "float64", "\ud800", "\0", b"", b"mean", (), (0,), (0, 1), (0, 0), (1, -1), (None,), (2**70,)),
            *(Ellipsis, slice(None), range(4), 2**1000, np.newaxis, np.float32, np.float64, int, float),
            *(bool, str, complex, object, type, np.ndarray, np.generic, np.dtype("f4"), np.dtype("f8"), np, len),
            *(np.float32(0.5), np.float64(2), np.int8(1), np.uint64(2**63), np.bool(True), np.str_("mean"), np.nan),
        )
    },
    "10**5000": lambda: 10**5000,
    "list": lambda: normal().tolist(),
    "tuple": lambda: tuple(map(tuple, normal().tolist())),
    "list of arrays": lambda: list(normal()),
    "list of an array and None": lambda: [normal((4,)), None],
    "list of masked": lambda: [np.ma.masked_greater(normal((4,)), 0)],
    "list of str": lambda: ["a", "b"],
    "list of lies": lambda: [Pretender(), 1.0],
    "ragged": lambda: [[1.0, 2.0], [3.0]],
    "empty list": list,
    "empty lists": lambda: [[], []],
    "cyclic": cyclic,
    "cyclic deque": lambda: cyclic(collections.deque),
    "nested 64": lambda: nested(64),
    "nested 65": lambda: nested(65),
    "nested 5000": lambda: nested(5000),
    "set": lambda: {1.0, 2.0},
    "dict": lambda: {"names": ["a"], "formats": ["f4"]},
    "bad dict": lambda: {"names": 1},
    "generator": lambda: (i for i in range(3)),
    "iterator": lambda: iter([1.0, 2.0]),
    "deque": lambda: collections.deque([1.0, 2.0]),
    "file": lambda: io.BytesIO(b"12"),
    "bytearray": lambda: bytearray(12),
    "memoryview": lambda: memoryview(normal().data),
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction": lambda: fractions.Fraction(1, 3),
    "large fraction": lambda: fractions.Fraction(10**400),
    "raising fraction": lambda: OneThird(1, 3),
    "date": lambda: datetime.date(2000, 1, 1),
    "exception": lambda: ValueError("mean"),
    "function": lambda: lambda: 1.0,
    "object": object,
    **{
        f"raising {names}": lambda names=names: raising(*names)()
        for names in (
            *(("__index__",), ("__float__",), ("__array__",), ("__bool__",), ("__eq__",), ("__hash__",), ("__repr__",)),
            *(("__len__", "__getitem__"), ("__getattr__",), ("__index__", "__repr__"), ("__array_interface__",)),
            *(("__int__",), ("__iter__",), ("__buffer__",), ("__format__", "__str__")),
        )
    },
    **{
        f"saying {answers}": lambda answers=answers: saying(**answers)()
        for answers in (
            *(
                {"index": 1},
                {"index": 2**70},
                {"index": "1"},
                {"float": 0.5},
                {"float": "1"},
                {"bool": 3},
                {"bool": True},
            ),
            *({"len": 2**62, "getitem": 1.0}, {"len": -1, "getitem": 1.0}, {"len": 3}, {"eq": True}, {"eq": None}),
            *({"array": 1}, {"array": [1.0]}, {"array": None}, {"repr": 1}, {"array": np.ones((3, 4), complex)}),
            *({"array": np.ones((3, 4), np.float32)}, {"array": np.arange(3)}, {"str": "mean"}),
            *({"array": np.ma.array(np.ones((3, 4)))}, {"getitem": 1.0, "array": np.ones((3, 4))}),
        )
    },
    "class with chunks": lambda: type("Chunked", (), {"chunks": 1})(),
    "handle on a file": lambda: type("Handle", (), {"shape": (3, 4), "__getitem__": lambda self, k: 1.0})(),
    "object of rows": lambda: collections.UserList(normal()),
    "object of masked rows": lambda: collections.UserList(np.ma.array(normal())),
    "interface with a mask": lambda: saying_interface(mask=normal() > 0),
    "interface": lambda: saying_interface(mask=None),
    "matrix": lambda: normal().view(np.matrix),
    "masked": lambda: np.ma.masked_greater(normal(), 0),
    "masked constant": lambda: np.ma.masked,
    "recarray": lambda: np.zeros((3, 4), [("a", "f8")]).view(np.recarray),
    "plain recarray": lambda: normal().view(np.recarray),
    "subclass": lambda: normal().view(Subclass),
    "subclass of indices": lambda: np.array([0, 1, 3]).view(Subclass),
    "liar of 0-d": lambda: np.zeros(()).view(Liar),
    "liar of few": lambda: np.zeros((2, 3)).view(Liar),
    "liar of bytes": lambda: np.zeros((3, 4), np.int8).view(Liar),
    "liar read-only": lambda: read_only(np.zeros((3, 4))).view(Liar),
    "array of strings": lambda: np.array([["a"]]),
    "pretender": Pretender,
    "read-only": lambda: read_only(normal()),
    "object array": lambda: normal().astype(object),
    "object array of arrays": lambda: np.array([normal(), None], object),
    "huge strides of one": lambda: strided((1, 4), (2**62, 8)),
    "stride 0": lambda: strided((3, 4), (0, 0)),
    "backwards": lambda: strided((3, 4), (-32, -8)),
    "overlapping": lambda: strided((3, 4), (8, 8)),
    "broadcast": lambda: np.broadcast_to(np.float32(1.5), (3, 400)),
    "64 axes": lambda: np.ones((1,) * 64),
    "no elements": lambda: np.broadcast_to(np.float16(1), (2**16, 0, 4)),
}

# Sensible values of each argument, for logits of shape `s`; `a` holds the arguments made before it.

SENSIBLE: dict[str, list[Callable[[tuple[int, ...], dict[str, Any]], Any]]] = {
    "axis": [lambda s, a: -1, lambda s, a: 0, lambda s, a: len(s) - 1],
    "temperature": [lambda s, a: 0.7, lambda s, a: 2, lambda s, a: np.float32(3)],
    "where": [
        lambda s, a: normal(s) < 2,
        lambda s, a: np.True_,
        lambda s, a: (normal(s[-1:]) < 2).tolist(),
        lambda s, a: np.zeros(s, bool),
    ],
    "dtype": [lambda s, a: np.float64, lambda s, a: np.float32, lambda s, a: "float64", lambda s, a: ">f8"],
    "out": [
        lambda s, a: np.full(s, 77.0),
        lambda s, a: np.full(s, 77, np.float32),
        lambda s, a: np.full(s[:-1], 77.0),
        lambda s, a: np.full((), 77.0),
        lambda s, a: next(iter(a.values())),
        lambda s, a: next(iter(a.values()))[::-1],
        lambda s, a: a["dy"],
        lambda s, a: np.asfortranarray(np.full(s, 77.0)),
        lambda s, a: np.full(s, 77.0).view(Subclass),
    ],
    "b": [lambda s, a: normal(s), lambda s, a: -2, lambda s, a: normal(s[-1:], np.float32), lambda s, a: normal(s) > 0],
    "indices": [
        lambda s, a: np.zeros(s[:-1], np.int64),
        lambda s, a: np.zeros((*s[:-1], 2), np.uint8),
        lambda s, a: np.zeros(s[:-1], int).tolist(),
        lambda s, a: np.full((1, *s[1:]), s[0] - 1, ">i4"),
    ],
    "k": [lambda s, a: 1, lambda s, a: s[-1], lambda s, a: np.uint8(2)],
    "keepdims": [lambda s, a: True],
    "return_sign": [lambda s, a: True],
    "targets": [
        lambda s, a: np.zeros(s[:-1], np.int64),
        lambda s, a: np.ones(s[:-1], np.uint8),
        lambda s, a: np.zeros(s[:-1], int).tolist(),
        lambda s, a: np.full(s, 0.25),
        lambda s, a: np.full(s, 0.25, np.float16),
        lambda s, a: np.full(s, 0.25, np.longdouble),
    ],
    "weight": [lambda s, a: np.linspace(0, 1, *s[-1:] or (1,)), lambda s, a: np.ones(s[-1:], int)],
    "ignore_index": [lambda s, a: 0, lambda s, a: -100, lambda s, a: np.uint8(1)],
    "label_smoothing": [lambda s, a: 0.1, lambda s, a: 1],
    "reduction": [lambda s, a: "none", lambda s, a: "sum", lambda s, a: "mean"],
    "rng": [lambda s, a: np.random.default_rng(0), lambda s, a: np.random.Generator(np.random.Philox(3))],
    "size": [lambda s, a: 3, lambda s, a: 0, lambda s, a: np.uint8(1)],
    "top_k": [lambda s, a: 2, lambda s, a: 100],
    "top_p": [lambda s, a: 0.7, lambda s, a: 1, lambda s, a: np.float32(0.1)],
    "min_p": [lambda s, a: 0.05, lambda s, a: 0, lambda s, a: 1],
    "upstream": [lambda s, a: -1.5, lambda s, a: normal(s[:-1]), lambda s, a: np.longdouble(2)],
}
NUMBERS = ("x", "y", "logp", "logits", "p_logits", "q_logits", "dy", "b", "targets", "weight", "upstream")
ARRAYS = [
    lambda s, a, dtype=dtype, layout=layout: layout(normal(s, dtype))
    for dtype in [*FLOATING, np.dtype(np.int8), np.dtype(bool)]
    for layout in LAYOUTS.values()
]
for name in ("x", "logits", "p_logits", "q_logits", "logp", "dy"):
    SENSIBLE[name] = ARRAYS
SENSIBLE["y"] = [lambda s, a, make=make: abs(make(s, a)) for make in ARRAYS]


def made(shape: tuple[int, ...], chosen: dict[str, Callable]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, make in chosen.items():
        try:
            arguments[name] = make(shape, arguments) if make in SENSIBLE[name] else make()
        except (KeyError, TypeError, ValueError, IndexError, Own):  # an `out` that earlier arguments cannot provide
            arguments[name] = None
    return arguments


def memory(value: Any) -> np.ndarray:
    """The whole memory that an array is a view of, as a plain array."""
    while isinstance(value.base, np.ndarray):
        value = value.base
    return np.ndarray.view(value, np.ndarray)


def held(arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    return {k: memory(v) for k, v in arguments.items() if type(v) is not Pretender and isinstance(v, np.ndarray)}


def outcome(function: Callable, arguments: dict[str, Any]) -> Any:
    """The results, or the type of a documented error. Asserts that only `out` was written, and nothing on an error."""
    before = {name: a.tobytes() for name, a in held(arguments).items()}
    out = arguments.get("out")
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        result = function(**arguments)
    except DOCUMENTED as error:
        result = type(error)
        out = None
    finally:
        faulthandler.cancel_dump_traceback_later()
    written = memory(out) if out is not None else np.empty(0)
    for name, a in held(arguments).items():
        if not np.shares_memory(a, written):
            assert a.tobytes() == before[name], f"{name} was written to"
    if isinstance(result, type):
        return result
    if out is not None:
        assert any(r is out for r in (result if isinstance(result, tuple) else (result,)))
    return results(result)


def numbers(arguments: dict[str, Any], *names: str) -> np.ndarray:
    """All numbers in the named arguments."""
    values = [np.asarray(arguments[name], np.float64) for name in names if name in arguments]
    return np.concatenate([[], *map(np.ravel, values)])


def condition(arguments: dict[str, Any]) -> float:
    """The size of the terms whose difference a gradient is: that of `dy` or `upstream`, over the temperature."""
    sizes = np.abs(numbers(arguments, "dy", "upstream"))
    size = np.max(sizes, initial=1, where=np.isfinite(sizes))
    return float(size) / float(np.min(numbers(arguments, "temperature"), initial=1))


def assert_agree(name: str, got: Any, twin: Any, arguments: dict[str, Any]) -> None:
    if isinstance(got, type) or isinstance(twin, type):
        assert isinstance(got, type)
        assert isinstance(twin, type)  # if several arguments are wrong, either error may come first
        return
    # The twin's formula may give NaN for infinities, and for a `logp` whose exponential overflows.
    comparable = np.isfinite(numbers(arguments, *NUMBERS)).all() and np.max(numbers(arguments, "logp"), initial=0) < 88
    for i, (g, t) in enumerate(zip(got, twin, strict=True)):
        assert (g.dtype, g.shape) == (t.dtype, t.shape)
        finite = np.isfinite(t)
        # 1 ULP of bfloat16, 8 of float32, 16 of float64.
        precision = {2: 2.0**-7, 4: 2.0**-20, 8: 2.0**-48}[g.dtype.itemsize]
        g, t = g.astype(np.float64), t.astype(np.float64)
        of_loss = len(got) > 1 and i == 0
        size = condition(arguments) if "_grad" in name and not of_loss else 1.0
        atol = np.max(np.abs(t), initial=size, where=finite) * precision
        np.testing.assert_allclose(g[finite], t[finite], rtol=0, atol=atol)
        if comparable:
            np.testing.assert_array_equal(g[~finite], t[~finite])


PARAMETERS = {name: inspect.signature(getattr(fs, name)).parameters for name in NAMES}
ANYTHING = st.sampled_from(list(OBJECTS.values()))


def chosen_for(parameter: inspect.Parameter) -> st.SearchStrategy:
    """Mostly sensible values; None means that the argument is left out."""
    sensible = st.sampled_from(SENSIBLE[parameter.name])
    some = st.one_of(sensible, sensible, sensible, ANYTHING)
    return some if parameter.default is parameter.empty else st.one_of(st.none(), st.none(), some)


CHOICES = {
    name: st.fixed_dictionaries({k: chosen_for(p) for k, p in parameters.items()})
    for name, parameters in PARAMETERS.items()
}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_object_in_any_argument_gives_the_twins_result_or_a_documented_error(name, data):
    shape, choice = data.draw(st.sampled_from(SHAPES)), data.draw(CHOICES[name])
    chosen = {k: choice[k] for k in PARAMETERS[name] if choice[k] is not None}
    got, twin = (outcome(getattr(module, name), made(shape, chosen)) for module in (fs, reference))
    assert_agree(name, got, twin, made(shape, chosen))


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_names_the_argument(name):
    parameters = PARAMETERS[name]
    required = {k: SENSIBLE[k][0] for k, p in parameters.items() if p.default is p.empty}
    unclear = []
    for parameter, make in product(parameters, OBJECTS.values()):
        chosen = required | {parameter: make}
        try:
            getattr(fs, name)(**made((3, 4), {k: chosen[k] for k in parameters if k in chosen}))
        except (TypeError, ValueError) as error:
            no_axis = parameter in ("logits", "x") and isinstance(error, np.exceptions.AxisError)  # a scalar has none
            if parameter not in str(error) and not no_axis:
                unclear.append((parameter, error))
        except (MemoryError, Own):
            pass
    assert not unclear


@given(ANYTHING)
def test_any_object_as_a_number_of_threads_is_refused_or_taken(make):
    before = fs.get_num_threads()
    try:
        with fs.num_threads(make()):
            assert 1 <= fs.get_num_threads() <= before
        fs.set_num_threads(make())
    except DOCUMENTED:
        pass
    finally:
        fs.set_num_threads(2**31)
    assert fs.get_num_threads() == before


@given(ANYTHING)
def test_any_object_as_a_mode_is_refused(make):
    with pytest.raises(DOCUMENTED):
        fs.show_config(make())
