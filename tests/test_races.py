"""Arrays that another thread changes during a call: results are arbitrary, but no memory outside them is touched."""

import threading
from contextlib import suppress
from dataclasses import fields

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import CALLS, FLOATING, Inputs, as_c, assert_all_same_bits, assert_same_bits, results
from fastsoftmax import _core
from fastsoftmax._arguments import loss_arguments

# One for each loop: few classes; rows; rows in blocks; neighbouring slices, also of more classes than a block.
SHAPES = {
    "few": ((40, 5), -1),
    "rows": ((40, 100), -1),
    "long rows": ((4, 20_000), -1),
    "columns": ((40, 100), 0),
    "long columns": ((16, 20_000), 0),
}
OPTIONS = {
    "plain": {},
    "weight": {"weight": "weight"},
    "ignore_index": {"ignore_index": -100},
    "all": {"weight": "weight", "ignore_index": 0, "label_smoothing": 0.1},
}


@pytest.mark.core
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_target_changed_after_its_check_harms_no_other_slice(shape, axis, options, reduction, dtype):
    """Changes targets between their check and their use, as another thread might."""
    a = Inputs.normal(shape, dtype).move(axis)
    classes = shape[-1]
    options = {k: getattr(a, v) if isinstance(v, str) else v for k, v in options.items()}
    given = {"weight": None, "ignore_index": None, "label_smoothing": 0.0} | options
    arguments = loss_arguments(a.x, a.indices, axis, temperature=1.0, reduction=reduction, **given)
    loss, grad = _core.cross_entropy(*arguments, 1.0, True, True, None)
    for wild in (classes, classes + 1, 2**31, 2**40, 2**62, -1, -(2**40), -(2**63)):
        a.indices[1::2] = wild
        got_loss, got_grad = _core.cross_entropy(*arguments, 1.0, True, True, None)
        if reduction == "none":
            assert_same_bits(got_loss[::2], loss[::2])
        if reduction == "none" or not options:  # else the divisor of a mean depends on every target
            assert_same_bits(others(got_grad, axis), others(grad, axis))


def others(grad, axis):
    return np.moveaxis(grad, axis, -1)[::2]


@pytest.mark.parametrize("name", CALLS)
def test_arrays_changed_during_calls_leave_the_next_call_right(name):
    """The calls have enough work to release the GIL."""
    first, second = (Inputs.normal((60, 1000), np.float64, seed=seed) for seed in (0, 1))
    second.indices[...] = 2**40
    wanted = results(CALLS[name](fs, first, -1))
    a = first.map(as_c)
    a.weight = first.weight.copy()
    stop = threading.Event()

    def keep_changing():
        while not stop.is_set():
            for inputs in (second, first):
                for field in fields(inputs):
                    getattr(a, field.name)[...] = getattr(inputs, field.name)

    writer = threading.Thread(target=keep_changing)
    writer.start()
    try:
        for _ in range(30):
            with suppress(ValueError):  # if a check sees the bad index
                CALLS[name](fs, a, -1)
    finally:
        stop.set()
        writer.join()
    assert_all_same_bits(results(CALLS[name](fs, a, -1)), wanted)
