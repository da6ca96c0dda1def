"""Every documented error has its type, names what is wrong, and comes before anything is written."""

import collections
import decimal
import inspect
import operator
import re
import subprocess
import sys

import fastsoftmax as fs
import ml_dtypes
import numpy as np
import pytest
from arrays import INTEGERS, GivenNumbers, assert_all_same_bits, assert_same_bits, bfloat16
from fastsoftmax import reference
from numpy.exceptions import AxisError

X = np.arange(12.0).reshape(3, 4)
P = np.full((3, 4), 0.25)
INDICES = np.array([0, 1, 3])
SENTINEL = 77.0

TRANSFORMS = {
    "softmax": lambda **o: fs.softmax(**{"x": X} | o),
    "log_softmax": lambda **o: fs.log_softmax(**{"x": X} | o),
    "logsumexp": lambda **o: fs.logsumexp(**{"x": X, "axis": 1} | o),
    "entropy": lambda **o: fs.entropy(**{"x": X} | o),
    "softmax_grad": lambda **o: fs.softmax_grad(**{"y": P, "dy": X} | o),
    "log_softmax_grad": lambda **o: fs.log_softmax_grad(**{"logp": P, "dy": X} | o),
}
LOSSES = {
    "cross_entropy": lambda **o: fs.cross_entropy(**{"logits": X, "targets": INDICES} | o),
    "cross_entropy_grad": lambda **o: fs.cross_entropy_grad(**{"logits": X, "targets": INDICES} | o),
    "cross_entropy_with_grad": lambda **o: fs.cross_entropy_with_grad(**{"logits": X, "targets": INDICES} | o),
}
PICKS = {
    "log_softmax_at": lambda **o: fs.log_softmax_at(**{"x": X, "indices": INDICES} | o),
    "log_softmax_top_k": lambda **o: fs.log_softmax_top_k(**{"x": X, "k": 2} | o),
}
DRAWS = {"sample": lambda **o: fs.sample(**{"x": X, "rng": GivenNumbers([0.5])} | o)}
DIVERGENCES = {
    "kl_divergence": lambda **o: fs.kl_divergence(**{"p_logits": P, "q_logits": X} | o),
    "kl_divergence_with_grad": lambda **o: fs.kl_divergence_with_grad(**{"p_logits": P, "q_logits": X} | o),
}


def with_hess(**options):
    """Calls cross_entropy_with_grad_hess; an `out` receives the gradient."""
    if "out" in options:
        options["out"] = (options["out"], None)
    return fs.cross_entropy_with_grad_hess(**{"logits": X, "targets": INDICES} | options)


LOSSES["cross_entropy_with_grad_hess"] = with_hess
FUNCTIONS = TRANSFORMS | PICKS | LOSSES | DIVERGENCES | DRAWS
INPUTS = {
    "softmax": ["x"],
    "log_softmax": ["x"],
    "logsumexp": ["x", "b"],
    "entropy": ["x"],
    "softmax_grad": ["y", "dy"],
    "log_softmax_grad": ["logp", "dy"],
    "log_softmax_at": ["x"],
    "log_softmax_top_k": ["x"],
    "cross_entropy": ["logits"],
    "cross_entropy_grad": ["logits"],
    "cross_entropy_with_grad": ["logits"],
    "cross_entropy_with_grad_hess": ["logits"],
    "kl_divergence": ["p_logits", "q_logits"],
    "kl_divergence_with_grad": ["p_logits", "q_logits"],
    "sample": ["x"],
}
GRADIENTS = ["cross_entropy_grad", "cross_entropy_with_grad", "cross_entropy_with_grad_hess"]
REDUCED = ["logsumexp", "entropy", "log_softmax_at"]  # one number a slice
WITHOUT_OUT = ["cross_entropy", "kl_divergence", "log_softmax_top_k", "sample"]
WITH_OUT = [name for name in FUNCTIONS if name not in WITHOUT_OUT]
each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_transform = pytest.mark.parametrize("name", TRANSFORMS)
each_with_where = pytest.mark.parametrize("name", [*TRANSFORMS, *PICKS])
each_loss = pytest.mark.parametrize("name", LOSSES)


def refuses(name, error, match=None, /, **options):
    """Asserts that the call raises exactly this error, with and without a good `out`, and leaves `out` unchanged."""
    with pytest.raises(error, match=match) as raised:
        FUNCTIONS[name](**options)
    assert type(raised.value) is error
    if name in WITH_OUT and "out" not in options:
        out = np.full(3 if name in REDUCED else (3, 4), SENTINEL)
        with pytest.raises(error, match=match):
            FUNCTIONS[name](**options, out=out)
        assert (out == SENTINEL).all()


# Signatures


@pytest.mark.parametrize(
    ("name", "parameters"),
    {
        "softmax": "(x, axis=-1, *, temperature=1.0, where=None, dtype=None, out=None)",
        "log_softmax": "(x, axis=-1, *, temperature=1.0, where=None, dtype=None, out=None)",
        "logsumexp": "(x, axis=None, *, b=None, where=None, keepdims=False, return_sign=False, dtype=None, out=None)",
        "entropy": "(x, axis=-1, *, temperature=1.0, where=None, keepdims=False, dtype=None, out=None)",
        "softmax_grad": "(y, dy, axis=-1, *, temperature=1.0, where=None, out=None)",
        "log_softmax_grad": "(logp, dy, axis=-1, *, temperature=1.0, where=None, out=None)",
        "log_softmax_at": "(x, indices, axis=-1, *, temperature=1.0, where=None, dtype=None, out=None)",
        "log_softmax_top_k": "(x, k, axis=-1, *, temperature=1.0, where=None, dtype=None)",
        "cross_entropy": "(logits, targets, axis=-1, *, weight=None, ignore_index=None, label_smoothing=0.0, "
        "temperature=1.0, reduction='mean')",
        "cross_entropy_grad": "(logits, targets, axis=-1, *, weight=None, ignore_index=None, label_smoothing=0.0, "
        "temperature=1.0, reduction='mean', upstream=None, out=None)",
        "cross_entropy_with_grad": "(logits, targets, axis=-1, *, weight=None, ignore_index=None, label_smoothing=0.0, "
        "temperature=1.0, reduction='mean', upstream=None, out=None)",
        "LogSumExp": "(axis=-1, *, temperature=1.0)",
        "LogSumExp.update": "(self, x, *, where=None)",
        "LogSumExp.merge": "(self, other)",
        "LogSumExp.value": "(self, *, keepdims=False, dtype=None)",
        "LogSumExp.softmax": "(self, x, *, where=None, dtype=None, out=None)",
        "LogSumExp.log_softmax": "(self, x, *, where=None, dtype=None, out=None)",
        "LogSumExp.log_softmax_at": "(self, x, indices, *, where=None, dtype=None)",
        "LogSumExp.from_state": "(state, axis=-1, *, temperature=1.0)",
        "sample": "(x, rng, axis=-1, *, size=None, temperature=1.0, top_k=None, top_p=None, min_p=None, where=None)",
        "cross_entropy_with_grad_hess": "(logits, targets, axis=-1, *, weight=None, ignore_index=None, "
        "label_smoothing=0.0, temperature=1.0, reduction='mean', upstream=None, out=None)",
        "kl_divergence": "(p_logits, q_logits, axis=-1, *, temperature=1.0, where=None, reduction='mean')",
        "kl_divergence_with_grad": "(p_logits, q_logits, axis=-1, *, temperature=1.0, where=None, reduction='mean', "
        "upstream=None, out=None)",
    }.items(),
)
def test_the_package_and_the_reference_have_the_signatures_of_the_contract(name, parameters):
    for module in (fs, reference):
        signature = inspect.signature(operator.attrgetter(name)(module))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(bare)) == parameters


def test_the_package_exports_exactly_the_names_of_the_contract():
    runtime = {"set_num_threads", "get_num_threads", "num_threads", "show_config", "__version__"}
    modules = {"boosting", "calibration", "reference"}
    assert set(fs.__all__) == {*FUNCTIONS, "LogSumExp", *runtime, *modules}
    assert set(fs.__all__) <= set(dir(fs))


def test_the_reference_is_imported_only_when_it_is_used(environment):
    code = """if True:
        import sys, fastsoftmax
        late = "fastsoftmax.reference" not in sys.modules
        print(late, fastsoftmax.reference.softmax(0.0), "fastsoftmax.reference" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout == "True 1.0 True\n", done.stderr


# dtypes and kinds of array

# On some platforms, long double is only another name for float64.
WIDE_LONGDOUBLE = np.dtype(np.longdouble).itemsize > 8

Impostor = type("bfloat16", (np.void,), {})

UNSUPPORTED = {
    "complex64": np.ones((3, 4), np.complex64),
    "complex128": np.ones((3, 4), complex),
    **({"longdouble": np.ones((3, 4), np.longdouble)} if WIDE_LONGDOUBLE else {}),
    "object": np.ones((3, 4), object),
    "str": np.full((3, 4), "1"),
    "bytes": np.full((3, 4), b"1"),
    "datetime64": np.zeros((3, 4), "M8[s]"),
    "timedelta64": np.zeros((3, 4), "m8[s]"),
    "void": np.zeros((3, 4), "V4"),
    "record": np.zeros((3, 4), [("a", float)]),
    "float8_e4m3fn": np.ones((3, 4), ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.ones((3, 4), ml_dtypes.float8_e5m2),  # its kind is that of NumPy's floats
    "void named bfloat16": np.zeros((3, 4), np.dtype((Impostor, [("a", np.uint16)]))),
    "int4": np.ones((3, 4), ml_dtypes.int4),
}


@pytest.mark.parametrize("given", UNSUPPORTED.values(), ids=UNSUPPORTED)
@each_function
def test_an_unsupported_dtype_is_named(name, given):
    for argument in INPUTS[name]:
        refuses(name, TypeError, re.escape(str(given.dtype)), **{argument: given})


# Masks

ARRAYS = {
    **{(name, argument): X for name in FUNCTIONS for argument in INPUTS[name]},
    **{(name, "where"): X > 2 for name in (*TRANSFORMS, *PICKS)},
    ("log_softmax_at", "indices"): INDICES,
    **{(name, "targets"): INDICES for name in LOSSES},
    **{(name, "weight"): np.ones(4) for name in LOSSES},
    **{(name, "upstream"): np.ones(3) for name in GRADIENTS},
}
each_array = pytest.mark.parametrize(("name", "argument"), ARRAYS, ids=map(", ".join, ARRAYS))


class Variable:
    """Like a variable of netCDF4: NumPy asks it for an array and may get a masked one."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class OwnMask(np.ndarray):
    """A subclass with a mask of its own, as in other libraries."""

    mask = property(lambda self: np.zeros(self.shape, bool))


class Proxy(Variable):
    """Like a proxy of weakref: its `__class__` is that of another object."""

    __class__ = property(lambda self: type(self.array))

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array)


class Interface:
    """An array by the array interface, whose optional `mask` NumPy ignores."""

    def __init__(self, array, mask):
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "mask": mask}


def unread(*args, **kwargs):
    raise AssertionError("read or computed silently")


def array_like(*without, **attributes):
    """An object that NumPy can convert, with these attributes and the default ones, except those in `without`."""
    attributes = {
        "__array__": lambda self, dtype=None, copy=None: X,
        "__getitem__": unread,
        "shape": (3, 4),
    } | attributes
    return type("ArrayLike", (), {name: value for name, value in attributes.items() if name not in without})()


MASKED = {
    "itself": lambda a: np.ma.array(a),
    "without a mask": lambda a: np.ma.array(a, mask=np.ma.nomask),
    "converted": lambda a: Variable(np.ma.array(a, mask=np.ones(a.shape, bool))),
    "its rows": lambda a: [np.ma.array(row) for row in a],
    "converted in a list": lambda a: [Variable(np.ma.array(row)) for row in a],
    "deep in a list": lambda a: [[[Variable(np.ma.array(a))]]],
    "one number": lambda a: [*a.ravel().tolist(), np.ma.masked],
    "in a sequence": lambda a: collections.deque([np.ma.array(a)]),
    "in a sequence in a list": lambda a: [collections.UserList([Variable(np.ma.array(row))]) for row in a],
    "of another library": lambda a: a.view(OwnMask),
    "of another library, converted": lambda a: Variable(a.view(OwnMask)),
    "of another library, in a list": lambda a: [a.view(OwnMask)],
    "behind a proxy": lambda a: Proxy(np.ma.array(a)),
    "with a unit": lambda a: array_like(__add__=unread, magnitude=np.ma.array(a)),
    "with names": lambda a: array_like(__add__=unread, _in_memory=False, _data=np.ma.array(a)),
    "by the array interface": lambda a: Interface(a, np.zeros(a.shape, bool)),
    "by the array interface, in a list": lambda a: [Interface(a, np.zeros(a.shape, bool))],
}


def reduction_for(argument):
    """The options that go with an argument: an array `upstream` needs losses that are not reduced."""
    return {"reduction": "none"} if argument == "upstream" else {}


@pytest.mark.parametrize("make", MASKED.values(), ids=MASKED)
@each_array
def test_a_mask_is_never_lost(name, argument, make):
    given = make(ARRAYS[name, argument])
    refuses(name, TypeError, f"{argument} .*masked", **reduction_for(argument), **{argument: given})


@each_function
def test_an_object_that_converts_to_a_plain_array_is_taken(name):
    for argument in INPUTS[name]:
        wanted = FUNCTIONS[name](**{argument: X})
        for given in (Variable(X), list(map(Variable, X)), Interface(X, None), collections.deque(X), [*map(tuple, X)]):
            assert_all_same_bits(FUNCTIONS[name](**{argument: given}), wanted)


@pytest.mark.parametrize("masked", [np.ma.array(1), np.ma.array(1, mask=True), np.array(1).view(OwnMask)], ids=repr)
def test_a_masked_number_is_refused(masked):
    for call in (
        lambda: fs.softmax(X, masked),
        lambda: fs.cross_entropy(X, INDICES, masked),
        lambda: fs.cross_entropy(X, INDICES, ignore_index=masked),
        lambda: fs.cross_entropy(X, INDICES, label_smoothing=masked),
        lambda: fs.softmax(X, temperature=masked),
        lambda: fs.logsumexp(X, keepdims=masked),
        lambda: fs.entropy(X, keepdims=masked),
        lambda: fs.log_softmax_top_k(X, masked),
        lambda: fs.sample(X, GivenNumbers([0.5]), size=masked),
        lambda: fs.sample(X, GivenNumbers([0.5]), top_p=masked),
        lambda: fs.set_num_threads(masked),
    ):
        with pytest.raises(TypeError):
            call()


# Memory


def lazy(*without, **attributes):
    return array_like(*without, **{"__array__": unread, "__len__": lambda self: 3} | attributes)


NOT_IN_MEMORY = {
    "handle on a file": lazy(),
    "handle that NumPy would take apart": lazy("__array__"),
    "graph": lazy(__dask_graph__=lambda self: {}, __add__=unread),
    "graph of no known shape": lazy("shape", __dask_graph__=lambda self: {}, __add__=unread),
    "chunks to be computed": lazy(chunks=((3,), (2, 2)), __add__=unread),
    "chunks to be decompressed": lazy(chunks=(3, 2), __array_interface__=property(unread)),
    "with a unit": lazy(magnitude=lazy(), __add__=unread),
    "not loaded": lazy(_in_memory=False, _data=lazy(), __add__=unread),
    "not loaded, of a variable": lazy(_in_memory=False, variable=lazy(_data=lazy()), __add__=unread),
}


@pytest.mark.parametrize("given", NOT_IN_MEMORY.values(), ids=NOT_IN_MEMORY)
@each_array
def test_an_array_that_is_not_in_memory_is_never_read_or_computed(name, argument, given):
    refuses(name, TypeError, f"{argument} .*memory", **reduction_for(argument), **{argument: given})
    refuses(name, TypeError, f"{argument} .*memory", **reduction_for(argument), **{argument: [[1.0], (given,)]})


def test_the_refusal_of_a_lazy_array_says_how_to_convert_it():
    refuses("softmax", TypeError, r"of type test_arguments\.ArrayLike, .* by indexing it with \[\.\.\.\]", x=lazy())
    refuses("softmax", TypeError, r"by its method compute\(\)", x=lazy(__dask_graph__=lambda self: {}, compute=unread))


IN_MEMORY = {
    "computes": array_like(__add__=unread),
    "gives its memory": array_like(__arrow_c_stream__=unread),
    "has its memory": array_like(data=X),
    "without a graph": array_like(__add__=unread, __dask_graph__=lambda self: None),
    "without chunks": array_like(__add__=unread, chunks=None),
    "of several arrays": array_like(__arrow_c_stream__=unread, chunks=[X[:1], X[1:]]),
    "loaded": array_like(__add__=unread, _in_memory=True),
    "with a unit": array_like(__add__=unread, magnitude=X),
    "with names": array_like(_in_memory=False, _data=array_like(__add__=unread, magnitude=X)),
    "without a shape": array_like("shape"),
    "without elements": array_like("__getitem__"),
}


@pytest.mark.parametrize("given", IN_MEMORY.values(), ids=IN_MEMORY)
@each_function
def test_an_array_that_is_in_memory_is_taken(name, given):
    for argument in INPUTS[name]:
        assert_all_same_bits(FUNCTIONS[name](**{argument: given}), FUNCTIONS[name](**{argument: X}))


# Objects that are no arrays


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (lambda: (number for number in range(3)), "generator"),
        (lambda: {1.0, 2.0}, "set"),
        (lambda: {"a": 1.0}, "dict"),
        (lambda: map(float, "123"), "map"),
        (lambda: None, "NoneType"),
        (lambda: Opaque(), "test_arguments.Opaque"),
        (lambda: decimal.Decimal(1), "decimal.Decimal"),
        (lambda: [1.0, None], "NoneType"),
        (lambda: [[1.0], [Opaque()]], "test_arguments.Opaque"),
        (lambda: collections.deque([1.0, {2.0}]), "set"),
        (lambda: {"a": 1.0}.values(), "dict_values"),
    ],
)
@each_array
def test_the_refusal_of_an_object_names_its_type(name, argument, given, kind):
    for value in (given(), [given()]):
        if value is not None or argument not in ("b", "where", "weight", "upstream"):  # None: left out
            told = rf"{argument} .* type {re.escape(kind)}\b"
            refuses(name, TypeError, told, **reduction_for(argument), **{argument: value})


class Opaque:
    """Stands for an object like a DMatrix."""


@each_array
def test_integers_beyond_64_bits_are_refused(name, argument):
    for value in (10**30, [10**30, 1], [[-(10**400)]]):
        refuses(name, TypeError, f"{argument} .*beyond 64 bits", **reduction_for(argument), **{argument: value})


class Sparse:
    """Like a matrix of scipy.sparse: it has elements, but no length."""

    shape = (3, 4)
    __getitem__ = __add__ = unread

    def __len__(self):
        raise TypeError("ambiguous")

    def toarray(self):
        return X


@each_array
def test_the_refusal_of_a_sparse_matrix_says_how_to_convert_it(name, argument):
    for given in (Sparse(), [Sparse()]):
        how = r"sparse matrix of type test_arguments\.Sparse; .*toarray\(\)"
        refuses(name, TypeError, rf"{argument} .* {how}", **reduction_for(argument), **{argument: given})


class NeedsGradient:
    """Like a tensor of torch: its conversion raises an error of its own."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("use detach()")


@each_array
def test_an_error_in_the_conversion_names_the_argument(name, argument):
    for given in (NeedsGradient(), [NeedsGradient()]):
        refuses(name, TypeError, rf"{argument} .*use detach\(\)", **reduction_for(argument), **{argument: given})


@each_function
def test_ragged_lists_are_refused(name):
    for argument in INPUTS[name]:
        refuses(name, ValueError, **{argument: [[1.0, 2.0], [3.0]]})


@each_function
def test_lists_nested_too_deeply_for_an_array_are_refused(name):
    deep = 1.0
    for _ in range(70):
        deep = [deep]
    for argument in INPUTS[name]:
        refuses(name, ValueError, **{argument: deep})


@each_function
def test_a_list_that_holds_itself_is_refused_and_never_unfolded(name):
    for cyclic, kind in (([1.0], "list"), (collections.deque([1.0]), "collections.deque")):
        cyclic += [cyclic, cyclic]
        for argument in INPUTS[name]:
            refuses(name, ValueError, f"{argument} holds a {kind} that holds itself", **{argument: cyclic})
            refuses(name, ValueError, f"{argument} holds a {kind} that holds itself", **{argument: [[cyclic]]})


# Views of up to 2^62 bytes. Results may need 2^64 or more, which is 0 modulo 2^64.
@pytest.mark.parametrize("power", [58, 60, 61, 62])
@pytest.mark.parametrize("dtype", [np.int8, bfloat16, np.float16, np.float32, np.float64], ids=str)
def test_views_larger_than_any_memory_are_refused(dtype, power):
    one = np.ones((), dtype)
    if one.itemsize << power > sys.maxsize:
        pytest.skip("NumPy refuses this shape")
    x = np.broadcast_to(one, 2**power)
    calls = [
        lambda: fs.softmax(x),
        lambda: fs.log_softmax(x[None], 1),
        lambda: fs.softmax_grad(x, x),
        lambda: fs.log_softmax_grad(x, x),
        lambda: fs.logsumexp(x),
        lambda: fs.logsumexp(x, b=x, return_sign=True),
        lambda: fs.entropy(x),
        lambda: fs.log_softmax_at(x, 0),
        lambda: fs.log_softmax_top_k(x[None], 2),
        lambda: fs.sample(x, GivenNumbers([0.5])),
        lambda: fs.sample(x, GivenNumbers([0.5]), top_k=3, top_p=0.5),
        lambda: fs.cross_entropy(x, 0),
        lambda: fs.cross_entropy(x[None], [0], label_smoothing=0.1),
        lambda: fs.cross_entropy_grad(x, 0),
    ]
    if dtype != np.int8:
        calls += [lambda: fs.cross_entropy(x, x), lambda: fs.cross_entropy_with_grad(x, x, label_smoothing=0.1)]
    for call in calls:
        with pytest.raises((MemoryError, ValueError)):  # NumPy raises either, for the results
            call()


# axis


@pytest.mark.parametrize("axis", [2, -3, 100, 2**31, -(2**63), 2**64])
@each_function
def test_an_axis_out_of_range_is_an_axis_error(name, axis):
    refuses(name, AxisError, str(axis), axis=axis)


@pytest.mark.parametrize("axis", [(0, 2), (-3,), (0, 1, 5), (2**64,)])
@each_transform
def test_a_tuple_with_an_axis_out_of_range_is_an_axis_error(name, axis):
    refuses(name, AxisError, axis=axis)


@pytest.mark.parametrize("axis", [(0, 0), (0, -2), (1, 0, -1)])
@each_transform
def test_a_repeated_axis_is_a_value_error(name, axis):
    refuses(name, ValueError, axis=axis)


@pytest.mark.parametrize("axis", [True, False, [0], [0, 1], 1.0, "0", np.array([0, 1]), (True,), (0.0,), np.True_])
@each_function
def test_an_axis_that_is_no_integer_is_a_type_error(name, axis):
    refuses(name, TypeError, axis=axis)


@pytest.mark.parametrize("axis", [[0, 1], [0], np.array([0, 1]), range(2), "0", True])
@each_transform
def test_several_axes_are_a_tuple(name, axis):
    refuses(name, TypeError, "axis is .*; expected an integer, a tuple of integers or None", axis=axis)
    if name in ("softmax", "log_softmax", "logsumexp", "entropy"):
        with pytest.raises(TypeError, match="a tuple of integers"):
            getattr(fs, name)(1.0, axis)


@pytest.mark.parametrize("axis", [None, (0,), (), (0, 1)])
@pytest.mark.parametrize("name", [*LOSSES, *PICKS])
def test_losses_and_picks_have_one_axis(name, axis):
    refuses(name, TypeError, axis=axis)


@pytest.mark.parametrize("axis", [1, -2, (0, 0)])
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.logsumexp, fs.entropy])
def test_a_0d_array_refuses_a_second_axis(function, axis):
    with pytest.raises(ValueError):  # noqa: PT011 - AxisError is a ValueError
        function(1.0, axis)


@pytest.mark.parametrize("axis", [np.int64(1), np.uint8(1), np.asarray(1)])
@each_function
def test_a_numpy_integer_is_an_axis(name, axis):
    FUNCTIONS[name](axis=axis)


# temperature

WITH_TEMPERATURE = [n for n in FUNCTIONS if n != "logsumexp"]


@pytest.mark.parametrize(
    "temperature", [0, 0.0, -0.0, -1, -1e-300, np.inf, -np.inf, np.nan, np.float32("nan"), 10**400]
)
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_temperature_is_positive_and_finite(name, temperature):
    refuses(name, ValueError, "temperature", temperature=temperature)


@pytest.mark.parametrize("temperature", [None, "1", 1j, [1.0], np.array([1.0]), np.ones(4), object(), True])
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_temperature_is_a_number(name, temperature):
    refuses(name, TypeError, "temperature", temperature=temperature)


# where


@pytest.mark.parametrize("dtype", [int, np.uint8, float, "U1", complex, ml_dtypes.float8_e5m2, "V4"])
@each_with_where
def test_where_is_boolean(name, dtype):
    where = np.ones((3, 4), dtype)
    refuses(name, TypeError, f"where has dtype {where.dtype}; expected bool$".replace("|", "."), where=where)
    refuses(name, TypeError, "where has dtype .*; expected bool$", where=where.tolist())


@each_with_where
def test_where_refuses_objects(name):
    refuses(name, TypeError, "where has dtype object; expected bool$", where=np.ones((3, 4), object))
    refuses(name, TypeError, "where .*NoneType", where=[[True, None, True, True]])


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 3, 4), (1, 3, 4), (3, 5), (2, 1)], ids=str)
@each_with_where
def test_where_broadcasts_to_x_and_not_beyond(name, shape):
    refuses(name, ValueError, "where", where=np.ones(shape, bool))


@each_with_where
def test_where_refuses_a_masked_array(name):
    refuses(name, TypeError, "where", where=np.ma.masked_greater(X, 5) > 2)


# dtype

WITH_DTYPE = ["softmax", "log_softmax", "logsumexp", "entropy"]


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.float64, np.float32),
        (np.float64, np.float16),
        (np.float32, np.float16),
        (np.float32, bfloat16),
        (np.float16, bfloat16),
        (bfloat16, np.float16),
        (np.int32, np.float16),
        (np.uint8, bfloat16),
        (np.bool, np.int8),
        (np.float32, int),
        (np.float32, complex),
        *([(np.float32, np.longdouble)] if WIDE_LONGDOUBLE else []),
        (np.float32, object),
        (np.float32, bool),
    ],
)
@pytest.mark.parametrize("name", [*WITH_DTYPE, *PICKS])
def test_dtype_is_float32_or_float64_and_not_narrower_than_a_floating_input(name, given, dtype):
    refuses(name, TypeError, "dtype", x=X.astype(given), dtype=dtype)


@pytest.mark.parametrize("given", INTEGERS, ids=str)
@pytest.mark.parametrize("name", WITH_DTYPE)
def test_integers_give_float32_on_request(name, given):
    """They are still computed in float64, and rounded once."""
    x = np.arange(12).reshape(3, 4).astype(given)
    got = FUNCTIONS[name](x=x, dtype=np.float32)
    assert_same_bits(got, FUNCTIONS[name](x=x).astype(np.float32))
    assert_same_bits(FUNCTIONS[name](x=x, dtype=np.float32, out=np.empty_like(got)), got)
    twin = getattr(reference, name)(x, 1, dtype=np.float32)
    assert twin.dtype == np.float32
    np.testing.assert_allclose(got, twin, 1e-6)
    assert_same_bits(FUNCTIONS[name](x=x, dtype=np.float64), FUNCTIONS[name](x=x))
    assert_same_bits(FUNCTIONS[name](x=x.tolist(), dtype="f4"), got)


@pytest.mark.parametrize("b", [2, -1.5, True, np.int8([1, 2, 3, 4]), np.ones(4, np.float16), np.float32(0.5)], ids=str)
def test_logsumexp_of_integers_gives_float32_unless_weights_are_wider(b):
    x = np.arange(12, dtype=np.int64).reshape(3, 4)
    got = fs.logsumexp(x, 1, b=b, dtype=np.float32)
    assert_same_bits(got, np.float32(fs.logsumexp(x, 1, b=b)))
    for wider in (np.ones(4), np.float64(1)):
        refuses("logsumexp", TypeError, "dtype is float32; expected float64", x=x, b=wider, dtype=np.float32)


@pytest.mark.parametrize("name", [*WITH_DTYPE, *PICKS])
def test_an_unknown_dtype_is_a_type_error(name):
    refuses(name, TypeError, dtype="no such dtype")


# out


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_of_a_wrong_shape_is_refused_untouched(name):
    for shape in [(3, 1), (1, 3, 4), (4, 3), (12,), (), (0,)]:
        out = np.full(shape, SENTINEL)
        refuses(name, ValueError, "out", out=out)
        assert (out == SENTINEL).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16, int, complex, object, ">f8", bool])
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_of_a_wrong_dtype_is_refused_untouched(name, dtype):
    out = np.ones(3 if name in REDUCED else (3, 4), dtype)
    refuses(name, TypeError, "out", out=out)
    assert (out == np.ones_like(out)).all()


@pytest.mark.parametrize("out", [[0.0] * 3, 1.0, "out", (np.empty((3, 4)),), np.ma.ones((3, 4)), np.float64(1)])
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_is_an_array(name, out):
    refuses(name, TypeError, "out", out=out)


class Liar(np.ndarray):
    """Claims the expected shape, dtype and flags, whatever its memory is."""

    shape = property(lambda self: X.shape)
    dtype = property(lambda self: X.dtype)
    flags = property(lambda self: X.flags)


@pytest.mark.parametrize("name", [n for n in WITH_OUT if n not in REDUCED])
def test_out_is_judged_by_its_memory(name):
    with pytest.raises(ValueError, match="shape"):
        FUNCTIONS[name](out=np.full((2, 3), SENTINEL).view(Liar))
    with pytest.raises(TypeError, match="dtype"):
        FUNCTIONS[name](out=np.ones((3, 4), np.int8).view(Liar))


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_that_is_read_only_is_refused_untouched(name):
    out = np.full(3 if name in REDUCED else (3, 4), SENTINEL)
    out.flags.writeable = False
    refuses(name, ValueError, "read-only", out=out)
    assert (out == SENTINEL).all()


def overlapping(shape, strides):
    room = np.full(64, SENTINEL)
    return np.lib.stride_tricks.as_strided(room[8:], shape, [8 * s for s in strides])


@pytest.mark.parametrize("strides", [(0, 1), (4, 0), (1, 1), (2, 1), (3, 2), (0, 0), (-1, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("name", [n for n in WITH_OUT if n not in REDUCED])
def test_out_whose_own_elements_overlap_is_refused_untouched(name, strides):
    out = overlapping((3, 4), strides)
    refuses(name, ValueError, "overlap", out=out)
    assert (out == SENTINEL).all()


@pytest.mark.parametrize("name", REDUCED)
def test_reduced_out_whose_own_elements_overlap_is_refused_untouched(name):
    out = overlapping((3,), (0,))
    refuses(name, ValueError, "overlap", out=out)
    assert (out == SENTINEL).all()


@pytest.mark.parametrize("strides", [(5, 1), (1, 3), (4, 1), (1, 5), (3, 10), (4, 3), (7, 2), (-4, 1)], ids=str)
def test_out_whose_elements_interleave_without_overlap_is_taken(strides):
    out = overlapping((3, 4), strides)
    assert_same_bits(fs.softmax(X, out=out), fs.softmax(X))


def test_out_whose_strides_take_too_long_to_check_is_refused():
    """No two of its elements overlap, but proving it could take far longer than computing the result."""
    strides = [419112, 634794, 745228, 2112874, 2174122, 4286694, 5019230, 5208116, 5467048, 5507772, 6379680]
    room = np.empty(2 * sum(strides) + 4, np.uint8)  # reserved, never touched
    out = np.lib.stride_tricks.as_strided(room[:4].view(np.float32), (3,) * 11, strides)
    with pytest.raises(ValueError, match="finding out takes too long"):
        fs.softmax(np.zeros(out.shape, np.float32), out=out)


# logsumexp


def test_b_that_does_not_broadcast_is_a_value_error():
    for shape in [(3,), (2, 4), (4, 3)]:
        refuses("logsumexp", ValueError, b=np.ones(shape))


@pytest.mark.parametrize(
    ("x", "b"), [((0, 3), (0, 3)), ((0, 3), (3,)), ((3, 0), (1, 1)), ((1,), (2, 0)), ((), (0,)), ((2, 1), (3, 2, 4))]
)
def test_b_and_x_broadcast_as_in_numpy_also_when_empty(x, b):
    full, weights = np.broadcast_arrays(np.zeros(x), np.ones(b))
    for axis in (None, -1):
        with np.errstate(divide="ignore"):
            wanted = np.log(np.sum(weights * np.exp(full), axis))
        got = fs.logsumexp(np.zeros(x), axis, b=np.ones(b))
        assert np.shape(got) == np.shape(wanted)
        np.testing.assert_allclose(got, wanted)


def test_b_broadcasts_along_64_axes():
    x, b = np.arange(3.0).reshape(3, *[1] * 63), np.ones((1,) * 63 + (2,))
    np.testing.assert_allclose(fs.logsumexp(x, b=b), fs.logsumexp(x) + np.log(2))


# y, dy


@pytest.mark.parametrize("name", ["softmax_grad", "log_softmax_grad"])
def test_both_arrays_of_a_gradient_have_one_shape(name):
    for shape in [(3,), (4,), (3, 1), (4, 3), (1, 3, 4)]:
        refuses(name, ValueError, dy=np.ones(shape))


# indices, k


@pytest.mark.parametrize(("position", "value"), [((0,), 4), ((2,), -1), ((1,), 2**40), ((2,), -(2**63)), ((1,), 2**63)])
def test_log_softmax_at_refuses_an_index_out_of_range(position, value):
    indices = INDICES.astype(np.uint64 if value >= 2**63 else np.int64)
    indices[position] = value
    told = rf"^indices\[{position[0]}\] is {value}; expected a class index in \[0, 4\)$"
    refuses("log_softmax_at", ValueError, told, indices=indices)


def test_an_error_gives_the_position_of_a_bad_index_in_indices():
    indices = np.zeros((5, 2, 6), np.int8)
    indices[3, 1, 4] = 7
    x = np.zeros((5, 7, 6))
    for layout in (np.asfortranarray, lambda a: a[::-1][::-1], lambda a: np.repeat(a, 2, 2)[:, :, ::2]):
        given = layout(indices)
        refuses("log_softmax_at", ValueError, r"indices\[3, 1, 4\] is 7; .* \[0, 7\)", x=x, indices=given, axis=1)
    refuses("log_softmax_at", ValueError, "^indices is 7;", x=np.zeros(7), indices=7)
    refuses("log_softmax_at", ValueError, r"\[0, 0\)", x=np.zeros((3, 0)), indices=INDICES)


def test_an_index_out_of_range_is_found_before_anything_is_written():
    x, indices, out = np.zeros((100_000, 2)), np.zeros(100_000, int), np.full(100_000, SENTINEL)
    indices[-1] = 2
    refuses("log_softmax_at", ValueError, "99999", x=x, indices=indices, out=out)
    assert (out == SENTINEL).all()


@pytest.mark.parametrize("dtype", [bool, float, np.float16, bfloat16, complex, object, "U1", "M8[s]", ml_dtypes.int4])
def test_indices_are_integers(dtype):
    indices = np.zeros(3, dtype)
    told = f"^indices has dtype {re.escape(str(indices.dtype))}; expected an integer dtype$"
    refuses("log_softmax_at", TypeError, told, indices=indices)


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (1, 4), (1, 3), (3, 1, 1), (0,), (2, 3)], ids=str)
def test_indices_have_the_shape_of_the_scores_except_along_the_axis_or_without_it(shape):
    told = rf"indices has shape {re.escape(str(shape))}; expected that of x, \(3, 4\), with any extent in axis 1 or"
    refuses("log_softmax_at", ValueError, told, indices=np.zeros(shape, int))


@pytest.mark.parametrize("k", [0, -1, 5, 2**70, -(2**70), np.int64(0)])
def test_k_is_a_number_of_classes(k):
    told = rf"^k is {re.escape(repr(k))}; expected a number of classes in \[1, 4\]$"
    refuses("log_softmax_top_k", ValueError, told, k=k)
    refuses("log_softmax_top_k", ValueError, r"in \[1, 0\]", x=np.zeros((3, 0)), k=1)


@pytest.mark.parametrize("k", [True, np.True_, 1.0, np.float32(1), "1", None, [1], np.array([1]), 1j])
def test_k_is_an_integer(k):
    refuses("log_softmax_top_k", TypeError, "^k is ", k=k)


@pytest.mark.parametrize("name", PICKS)
def test_picks_need_a_class_axis(name):
    for axis in (-1, 0):
        refuses(name, AxisError, x=1.0, axis=axis)


# targets


@pytest.mark.parametrize(("position", "value"), [((0,), 4), ((2,), -1), ((1,), 2**40), ((2,), -(2**63)), ((1,), 2**63)])
@each_loss
def test_an_index_out_of_range_names_the_value_and_its_position(name, position, value):
    targets = INDICES.astype(np.uint64 if value >= 2**63 else np.int64)
    targets[position] = value
    refuses(name, ValueError, rf"{value}\D.*{position[0]}|{position[0]}\D.*{value}", targets=targets)


@each_loss
def test_an_error_gives_the_position_of_a_bad_index_in_targets(name):
    targets = np.zeros((5, 3, 6), np.int8)
    targets[3, 1, 4] = 7
    refuses(name, ValueError, r"7.*3, 1, 4|3, 1, 4.*7", logits=np.zeros((5, 7, 3, 6)), targets=targets, axis=1)
    targets[3, 1, 4] = -1
    for layout in (np.asfortranarray, lambda a: a[::-1][::-1], lambda a: np.repeat(a, 2, 1)[:, ::2]):
        given = layout(targets)
        refuses(name, ValueError, r"-1.*3, 1, 4|3, 1, 4.*-1", logits=np.zeros((5, 3, 6, 7)), targets=given, axis=-1)


@each_loss
def test_an_index_out_of_range_is_found_in_a_long_batch_before_anything_is_written(name):
    targets = np.zeros(100_000, int)
    targets[-1] = 2
    logits = np.zeros((100_000, 2))
    place = {} if name == "cross_entropy" else {"out": logits}
    refuses(name, ValueError, "99999", logits=logits, targets=targets, **place)
    assert (logits == 0).all()


@pytest.mark.parametrize("dtype", [bool, complex, object, "U1", "M8[s]"])
@each_loss
def test_targets_are_integers_or_floating(name, dtype):
    for shape in [(3,), (3, 4)]:
        targets = np.zeros(shape, dtype)
        expected = r"class indices \(integers\) or class probabilities \(floating\)$"
        refuses(
            name,
            TypeError,
            rf"targets has dtype {targets.dtype}; expected {expected}".replace("[s]", ".s."),
            targets=targets,
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16, np.longdouble], ids=repr)
@each_loss
def test_floating_labels_are_told_from_class_probabilities(name, dtype):
    """XGBoost's DMatrix.get_label() and LightGBM's Dataset.get_label() return floating labels."""
    targets = INDICES.astype(dtype)
    how = r"integers: numpy\.asarray\(targets, int\); .* shape of logits, \(3, 4\)"
    refuses(
        name,
        ValueError,
        rf"targets has dtype float.* shape of class indices, \(3,\).* {how}".replace("float", ".?float"),
        targets=targets,
    )
    refuses(name, ValueError, "must be integers", targets=targets.tolist())
    refuses(
        name,
        ValueError,
        "must be integers",
        targets=np.zeros((5, 6)),
        logits=np.zeros((5, 2, 6)),
        axis=1,
        **{"out": np.zeros((5, 2, 6))} if name != "cross_entropy" else {},
    )
    assert_all_same_bits(FUNCTIONS[name](targets=np.asarray(targets, int)), FUNCTIONS[name]())


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8, ">i4"])
@each_loss
def test_one_hot_integers_are_told_from_class_indices(name, dtype):
    targets = np.eye(4, dtype=dtype)[INDICES]
    how = r"floating: numpy\.asarray\(targets, float\); class indices have shape \(3,\)"
    refuses(name, ValueError, rf"dtype {targets.dtype} .* that of logits, \(3, 4\).* {how}", targets=targets)
    refuses(name, ValueError, "must be floating", targets=targets.tolist())
    assert_all_same_bits(
        FUNCTIONS[name](targets=np.asarray(targets, float)), FUNCTIONS[name](targets=np.eye(4)[INDICES])
    )


@each_loss
def test_masked_targets_are_refused(name):
    refuses(name, TypeError, "masked", targets=np.ma.masked_equal(INDICES, 1))
    refuses(name, TypeError, "masked", targets=np.ma.masked_equal(P, 1))


@pytest.mark.parametrize("targets", [np.zeros((3, 4), int), np.zeros(4, int), np.zeros((1, 3), int), np.zeros((), int)])
@each_loss
def test_indices_have_the_shape_of_the_logits_without_the_class_axis(name, targets):
    refuses(name, ValueError, "targets", targets=targets)


@pytest.mark.parametrize("shape", [(3,), (4,), (1, 4), (3, 1), (4, 3), (1, 3, 4)], ids=str)
@each_loss
def test_probabilities_have_the_shape_of_the_logits(name, shape):
    refuses(name, ValueError, "targets", targets=np.ones(shape))


@each_loss
def test_losses_need_a_class(name):
    with pytest.raises(ValueError, match="class"):
        FUNCTIONS[name](logits=np.empty((3, 0)), targets=INDICES)


# weight, ignore_index, label_smoothing, reduction, upstream


@pytest.mark.parametrize("weight", [[1, 1, 1], [1, 1, 1, 1, 1], [[1, 1, 1, 1]], 1.0, np.ones((3, 4)), []])
@each_loss
def test_weight_has_one_number_for_each_class(name, weight):
    refuses(name, ValueError, "weight", weight=weight)


@pytest.mark.parametrize("value", [-1, -1e-300, np.nan, np.inf, -np.inf])
@each_loss
def test_weights_are_finite_and_not_negative(name, value):
    refuses(name, ValueError, "weight", weight=[1, 1, value, 1])


@pytest.mark.parametrize("dtype", [complex, object, "U1", "M8[s]"])
@each_loss
def test_weights_are_real(name, dtype):
    refuses(name, TypeError, "weight", weight=np.zeros(4, dtype))


@each_loss
def test_masked_weights_are_refused(name):
    refuses(name, TypeError, "masked", weight=np.ma.ones(4))


@pytest.mark.parametrize("value", [1.0, "1", [1], (1,), np.array([1]), 1j, True])
@each_loss
def test_ignore_index_is_an_integer(name, value):
    refuses(name, TypeError, "ignore_index", ignore_index=value)


@pytest.mark.parametrize(
    ("dtype", "index", "ignore_index"),
    [
        ("u1", 255, -1),
        ("i1", -1, 255),
        ("u4", 2**32 - 1, -1),
        ("u8", 2**64 - 1, -1),
        ("i8", -1, 2**64 - 1),
        ("u2", 9, -(10**30)),
    ],
)
@each_loss
def test_an_error_says_if_the_targets_cannot_hold_ignore_index(name, dtype, index, ignore_index):
    targets = INDICES.astype(dtype)
    targets[1] = index
    told = rf"targets\[1\] is {index};.* {ignore_index}, which cannot occur in {targets.dtype}$"
    refuses(name, ValueError, told, targets=targets, ignore_index=ignore_index)
    assert_all_same_bits(FUNCTIONS[name](targets=INDICES.astype(dtype), ignore_index=ignore_index), FUNCTIONS[name]())
    refuses(name, ValueError, "or ignore_index$", targets=np.array([0, 9, 1], dtype), ignore_index=7)


@each_loss
def test_probabilities_refuse_ignore_index(name):
    refuses(name, ValueError, "ignore_index", targets=P, ignore_index=0)
    refuses(name, ValueError, "ignore_index", targets=P, ignore_index=-100)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf, -np.inf, 2, -1e-300])
@each_loss
def test_label_smoothing_lies_between_zero_and_one(name, value):
    refuses(name, ValueError, "label_smoothing", label_smoothing=value)


@pytest.mark.parametrize("value", [None, "0.1", 1j, [0.1]])
@each_loss
def test_label_smoothing_is_a_number(name, value):
    refuses(name, TypeError, "label_smoothing", label_smoothing=value)


class Everything:
    def __eq__(self, other):
        return True

    __hash__ = None


@pytest.mark.parametrize("reduction", ["", "Mean", "average", "batchmean", None, 1, np.array("mean"), Everything()])
@each_loss
def test_reduction_is_one_of_three(name, reduction):
    refuses(name, ValueError, "reduction", reduction=reduction)


@pytest.mark.parametrize("name", GRADIENTS)
def test_upstream_has_the_shape_of_the_loss(name):
    for reduction in ("mean", "sum"):
        for upstream in (np.ones(3), [1.0], np.ones((3, 4))):
            refuses(name, ValueError, "upstream", upstream=upstream, reduction=reduction)
    for upstream in (np.ones(4), np.ones((3, 1)), np.ones((3, 4)), [1.0]):
        refuses(name, ValueError, "upstream", upstream=upstream, reduction="none")


@pytest.mark.parametrize("upstream", [1j, "1", np.ones(3, complex), np.ones(3, object), np.ma.ones(3)])
@pytest.mark.parametrize("name", GRADIENTS)
def test_upstream_is_real(name, upstream):
    refuses(name, TypeError, "upstream", upstream=upstream, reduction="none")


# threads, configuration


@pytest.mark.parametrize("n", [0, -1, -(2**70)])
def test_the_number_of_threads_is_positive(n):
    before = fs.get_num_threads()
    with pytest.raises(ValueError, match=str(n)):
        fs.set_num_threads(n)
    with pytest.raises(ValueError, match=str(n)), fs.num_threads(n):
        pass
    assert fs.get_num_threads() == before


@pytest.mark.parametrize("n", [1.0, "1", None, [1]])
def test_the_number_of_threads_is_an_integer(n):
    with pytest.raises(TypeError):
        fs.set_num_threads(n)
    with pytest.raises(TypeError), fs.num_threads(n):
        pass


@pytest.mark.parametrize("mode", ["json", None, Everything()])
def test_show_config_has_two_modes(mode):
    with pytest.raises(ValueError, match="mode"):
        fs.show_config(mode=mode)
