"""The everyday call goes straight to the core, and differs from the Python function only in time."""

import copy
import doctest
import gc
import inspect
import pickle
import pydoc
import sys
import threading
import traceback
import types
import typing
import weakref
from functools import partial

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import (
    FLOATING,
    INTEGERS,
    LAYOUTS,
    as_c,
    as_negative,
    as_read_only,
    as_strided,
    as_swapped,
    as_unaligned,
    results,
    zoo,
)
from fastsoftmax import _core

TRANSFORMS = ["softmax", "log_softmax"]
REDUCTIONS = ["logsumexp", "entropy"]
LOSSES = ["cross_entropy", "cross_entropy_with_grad"]
INTO = [*TRANSFORMS, "cross_entropy_with_grad"]
NAMES = [*TRANSFORMS, *REDUCTIONS, *LOSSES]

# Shapes around the most rows and elements that are computed without a plan, and around the number of classes above
# which rows computed in place keep their exponentials elsewhere.
AROUND_FEW = [
    *[(rows, 16) for rows in (1, 2, 255, 256, 257)],
    (2048, 2),
    *[(1, classes) for classes in (1, 2, 3, 10, 56, 57, 104, 105, 208, 209, 4095, 4096, 4097)],
    *[(3, classes) for classes in (1, 2, 56, 57, 104, 105, 208, 209, 1000, 1365, 1366)],
]

each_function = pytest.mark.parametrize("name", NAMES)


class Reached(Exception):
    """The Python function was called."""


def guarded(name):
    """The function's shortcut, around a Python function that raises its arguments in Reached."""

    def function(*args, **kwargs):
        raise Reached(args, kwargs)

    function.__name__ = name
    return _core.with_shortcut(function)


def is_taken(name, *args, **kwargs):
    """Whether the shortcut takes the call; if not, asserts that the Python function receives the same arguments."""
    try:
        guarded(name)(*args, **kwargs)
    except Reached as reached:
        given, named = reached.args
        assert list(named) == list(kwargs)
        assert all(a is b for a, b in zip((*given, *named.values()), (*args, *kwargs.values()), strict=True))
        return False
    return True


def outcome(function, *args, **kwargs):
    """Everything a caller can observe: the results or the refusal."""
    try:
        result = function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    told = [(type(r), r.dtype, r.shape, r.strides, str(r.flags), r.tobytes()) for r in pieces(result)]
    return type(result), told, [r is kwargs.get("out") for r in pieces(result)]


def pieces(result):
    return result if isinstance(result, tuple) else (result,)


def arrays_of(name, x):
    """Arrays to call the function with, for scores x."""
    if name not in LOSSES:
        return (x,)
    classes = x.shape[-1] if x.ndim else 1
    return x, np.resize(np.arange(max(classes, 1)), x.shape[:-1])


def by_name(name, given):
    return dict(zip(("logits", "targets") if name in LOSSES else ("x",), given, strict=True))


def all_scores(dtypes):
    for dtype in dtypes:
        for _, x in zoo(dtype) if dtype in FLOATING else [("counted", np.arange(6).reshape(2, 3).astype(dtype))]:
            for layout in layouts(x.ndim):
                yield layout(x)


def layouts(ndim):
    return LAYOUTS.values() if ndim else [as_c, as_read_only]


# Results


@each_function
def test_every_array_gives_the_same_result_with_and_without_the_shortcut(name):
    function = getattr(fs, name)
    for x in all_scores([*FLOATING, *INTEGERS]):
        given = arrays_of(name, x)
        axes = [-1, 0, x.ndim - 1, x.ndim, -x.ndim - 1, None, (), (0,), True, np.int64(-1), 2**70, -(2**70), 0.0]
        calls = [{}, *({"axis": axis} for axis in axes)]
        if name in LOSSES:
            calls += [{"reduction": reduction} for reduction in ("none", "mean", "sum", "all", None, np.str_("sum"))]
        for options in calls:
            assert outcome(function, *given, **options) == outcome(function.__wrapped__, *given, **options)
            named = by_name(name, given) | options
            assert outcome(function, **named) == outcome(function.__wrapped__, **named)
        for axis in axes:
            assert outcome(function, *given, axis) == outcome(function.__wrapped__, *given, axis)


@pytest.mark.parametrize("name", [*INTO, *REDUCTIONS])
def test_every_out_receives_the_same_result_with_and_without_the_shortcut(name):
    function = getattr(fs, name)
    for x in all_scores(FLOATING):
        shape = x.shape if name in INTO else x.shape[:-1] if name == "entropy" else ()
        for make in layouts(len(shape)):
            told = []
            for f in (function, function.__wrapped__):
                out = make(np.full(shape, 7, x.dtype.newbyteorder("=")))
                told.append((outcome(f, *arrays_of(name, x), out=out), out.tobytes()))
            assert told[0] == told[1]
        told = []
        for f in (function, function.__wrapped__):
            in_place = as_c(x)
            told.append((outcome(f, *arrays_of(name, in_place), out=in_place), in_place.tobytes()))
        assert told[0] == told[1]


@each_function
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", AROUND_FEW, ids=str)
def test_few_rows_have_the_bits_of_rows_that_are_planned(name, dtype, shape):
    """Also in place, and with a slice beyond the range of the fixed reference."""
    function = getattr(fs, name)
    x = np.random.default_rng(0).normal(0, 3, shape).astype(dtype)
    x[..., -1, :] += 1000
    given = arrays_of(name, x)
    calls = [{"reduction": reduction} for reduction in ("none", "mean", "sum")] if name in LOSSES else [{}]
    if name == "logsumexp":
        calls.append({"axis": -1})
    for options in calls:
        planned = outcome(function.__wrapped__, *given, **options)
        assert outcome(function, *given, **options) == planned
        if name in INTO:
            own = x.copy()
            for scores, out in [(x, np.empty_like(x)), (own, own)]:
                assert outcome(function, scores, *given[1:], **options, out=out)[1] == planned[1]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", [as_c, as_strided, as_negative, as_unaligned, as_swapped], ids=lambda f: f.__name__)
def test_few_targets_of_every_type_and_layout_are_read_as_they_are(name, make):
    function = getattr(fs, name)
    x = np.random.default_rng(0).normal(0, 3, (5, 2, 100)).astype(np.float32)
    for dtype in INTEGERS[1:]:
        targets = make(np.arange(10).reshape(5, 2).astype(dtype) * 11)
        for reduction in ("none", "mean", "sum"):
            wanted = outcome(function.__wrapped__, x, targets, reduction=reduction)
            assert outcome(function, x, targets, reduction=reduction) == wanted
        targets[-1, -1] = 100
        assert outcome(function, x, targets) == outcome(function.__wrapped__, x, targets)


@pytest.mark.parametrize("rows", [1, 3, 256, 257])
def test_a_target_that_is_refused_leaves_out_as_it_was(rows):
    x = np.zeros((rows, 4), np.float32)
    targets = np.zeros(rows, int)
    targets[-1] = 4
    for out in (np.full_like(x, 7), x):
        before = out.copy()
        with pytest.raises(ValueError, match="4"):
            fs.cross_entropy_with_grad(x, targets, out=out)
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("shift", [-3, -1, 0, 1, 3, 12])
def test_an_out_that_overlaps_the_scores_receives_the_result_of_a_new_array(name, shift):
    room = np.random.default_rng(0).normal(0, 3, 36)
    x, out = room[12:24].reshape(3, 4), room[12 + shift : 24 + shift].reshape(3, 4)
    targets = arrays_of(name, x)[1:]
    wanted = results(getattr(fs, name)(x.copy(), *targets))[-1]
    assert results(getattr(fs, name)(x, *targets, out=out))[-1] is out
    np.testing.assert_array_equal(out, wanted)


def test_an_out_that_overlaps_the_targets_receives_the_result_of_a_new_array():
    room = np.zeros(12)
    targets = room.view(np.int64)[:3]
    targets[...] = [2, 0, 3]
    logits = np.random.default_rng(0).normal(0, 3, (3, 4))
    loss, grad = fs.cross_entropy_with_grad(logits, targets.copy())
    got = fs.cross_entropy_with_grad(logits, targets, out=room.reshape(3, 4))
    assert got[0] == loss
    np.testing.assert_array_equal(got[1], grad)


@each_function
@pytest.mark.parametrize("shape", [(10,), (3, 4), (40, 1000)], ids=str)
def test_calls_of_many_threads_give_the_bits_of_one(name, shape):
    given = arrays_of(name, np.random.default_rng(0).normal(0, 3, shape).astype(np.float32))
    function = getattr(fs, name)
    wanted, got = outcome(function, *given), []

    def work():
        got.extend(outcome(function, *given) == wanted for _ in range(300))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == [True] * 1200


@each_function
def test_a_call_leaves_no_reference_behind(name):
    given = arrays_of(name, np.ones((3, 4), np.float32))
    options = {"out": np.empty((3, 4), np.float32)} if name in INTO else {}
    held = [*given, *options.values(), given[0].dtype, getattr(fs, name)]
    before = [sys.getrefcount(each) for each in held]
    for _ in range(1000):
        getattr(fs, name)(*given, **options)
    assert np.abs(np.subtract([sys.getrefcount(each) for each in held], before)).max() < 100


# Which calls the shortcut takes


@each_function
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(10,), (3, 4), (2, 3, 4), (0, 4)], ids=str)
def test_the_everyday_call_does_not_reach_the_python_function(name, dtype, shape):
    x = np.zeros(shape, dtype)
    given = arrays_of(name, x)
    last = len(shape) - 1
    for axes in [(), (-1,), (last,)]:
        assert is_taken(name, *given, *axes)
    for options in [{}, {"axis": -1}, {"axis": last}]:
        assert is_taken(name, *given, **options)
        assert is_taken(name, **options, **by_name(name, given))
    if name in INTO:
        for out in (None, np.empty_like(x), x):
            assert is_taken(name, *given, out=out)
        assert is_taken(name, *given, -1, out=np.empty_like(x))
    if name in LOSSES:
        assert is_taken(name, x, targets=given[1])
        for reduction in ("none", "mean", "sum"):
            assert is_taken(name, *given, reduction=reduction)


class Subclass(np.ndarray):
    pass


@each_function
def test_any_other_call_reaches_the_python_function_unchanged(name):
    x = np.zeros((3, 4))
    given = arrays_of(name, x)
    other = partial(is_taken, name)
    assert not other()
    assert not other(*given, -1, -1)
    assert not other(*given, -1, axis=-1)
    assert not other(axis=-1)
    for named in by_name(name, given):
        assert not other(*given, **{named: x})  # twice
    assert not other(*given[1:], **{"x" if name in LOSSES else "logits": x})
    if name in LOSSES:
        assert not other(x)
        assert not other(targets=given[1])
    for scores in [x.tolist(), x.view(Subclass), np.ma.array(x), x.astype(int), x.astype(">f8"), x + 0j]:
        assert not other(scores, *given[1:])
    assert not other(x.astype(np.dtype("f8", metadata={"unit": "nat"})), *given[1:])
    for axis in [2, -3, (1,), True, 1.0, np.int64(1), 2**70, -(2**70)]:
        assert not other(*given, axis)
        assert not other(*given, axis=axis)
    for option in ["temperature", "where", "dtype", "weight", "nothing"]:
        assert not other(*given, **{option: None})


@pytest.mark.parametrize("name", INTO)
def test_an_out_that_needs_a_check_reaches_the_python_function(name):
    x = np.zeros((3, 4))
    room = np.zeros(24)
    read_only = np.zeros((3, 4))
    read_only.flags.writeable = False
    outs = [np.zeros((4, 3)), np.zeros(12), np.zeros((3, 4), "f4"), np.zeros((3, 4), ">f8"), room.reshape(3, 8)[:, ::2]]
    for out in [*outs, read_only, x.view(Subclass), [0.0]]:
        assert not is_taken(name, *arrays_of(name, x), out=out)
    x = room[:12].reshape(3, 4)
    assert not is_taken(name, *arrays_of(name, x), out=room[1:13].reshape(3, 4))


@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_need_a_check_reach_the_python_function(name):
    x = np.zeros((3, 4))
    for targets in [[0, 1, 2], np.zeros(2, int), np.zeros((3, 4)), np.array([0, 4, 1]), np.array([0, -1, 1]), x > 0]:
        assert not is_taken(name, x, targets)
    assert not is_taken(name, np.zeros((3, 0)), np.zeros(3, int))
    for reduction in [None, "all", "means", "", "\ud800", 0]:
        assert not is_taken(name, x, np.zeros(3, int), reduction=reduction)


def test_only_listed_functions_get_a_shortcut():
    with pytest.raises(ValueError, match="len"):
        guarded("len")
    with pytest.raises(TypeError):
        _core.with_shortcut("softmax")


# How a function looks to its users


@each_function
def test_a_function_describes_itself_as_the_python_function_does(name):
    function = getattr(fs, name)
    python = function.__wrapped__
    assert type(python) is types.FunctionType
    assert python.__name__ == name
    of_type = {*dir(object), "__call__", "__get__", "__dict__"}
    for attribute in ("__doc__", *(a for a in dir(python) if a not in of_type)):
        assert getattr(function, attribute) == getattr(python, attribute)
    assert inspect.signature(function) == inspect.signature(python)
    assert inspect.signature(function, follow_wrapped=False) == inspect.signature(python)
    assert typing.get_type_hints(function) == typing.get_type_hints(python)
    assert inspect.getsource(function) == inspect.getsource(python)
    assert inspect.getdoc(function) == inspect.getdoc(python)
    assert inspect.getmodule(function) is inspect.getmodule(python)
    assert inspect.unwrap(function) is python
    assert inspect.isfunction(function)
    assert repr(function) == repr(python)
    assert type(function).__name__ == "function"


@each_function
def test_help_is_that_of_the_python_function(name):
    function = getattr(fs, name)
    assert pydoc.render_doc(function) == pydoc.render_doc(function.__wrapped__)


@each_function
def test_doctest_finds_its_examples(name):
    module = sys.modules[getattr(fs, name).__module__]
    found = {test.name: test for test in doctest.DocTestFinder().find(module)}
    assert found[f"{module.__name__}.{name}"].examples


@each_function
def test_a_function_is_pickled_and_copied_as_itself(name):
    function = getattr(fs, name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function
        assert pickle.dumps(function, protocol) == pickle.dumps(function, protocol)
    assert copy.copy(function) is function
    assert copy.deepcopy([function]) == [function]


@each_function
def test_attributes_and_weak_references_are_those_of_a_function(name):
    function = getattr(fs, name)
    function.note = "a note"
    assert function.note == function.__dict__["note"] == "a note"
    del function.note
    with pytest.raises(AttributeError, match="'function' object has no attribute 'note'"):
        _ = function.note
    assert weakref.ref(function)() is function
    assert len({function, function}) == 1
    with pytest.raises(TypeError):
        type(function)()
    with pytest.raises(TypeError):
        object.__new__(type(function))
    with pytest.raises(TypeError):
        type("Derived", (type(function),), {})


def test_a_function_in_a_class_is_a_method():
    class Scores:
        log_probabilities = fs.log_softmax
        probabilities = staticmethod(fs.softmax)

        def __array__(self, dtype=None, copy=None):
            return np.zeros(2)

    scores = Scores()
    assert Scores.log_probabilities is fs.log_softmax
    assert scores.log_probabilities.__self__ is scores
    np.testing.assert_allclose(scores.log_probabilities(), np.log(0.5))
    np.testing.assert_array_equal(scores.log_probabilities(0), scores.log_probabilities())
    np.testing.assert_array_equal(scores.probabilities(np.zeros(2)), 0.5)


@each_function
def test_the_traceback_of_a_refusal_leads_through_the_function(name):
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match="axis 7 is out of bounds") as refused:
        getattr(fs, name)(*arrays_of(name, x), 7)
    frames = [frame.name for frame in traceback.extract_tb(refused.value.__traceback__)]
    assert frames[1] == name


def test_a_function_that_nobody_holds_is_collected():
    made = guarded("softmax")
    made.itself = made
    gone = weakref.ref(made)
    python = weakref.ref(made.__wrapped__)
    del made
    gc.collect()
    assert gone() is None
    assert python() is None
