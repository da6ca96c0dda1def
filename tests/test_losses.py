"""The losses agree with the twin in `reference`, and each of their arguments keeps its promise."""

from itertools import product

import fastsoftmax as fs
import numpy as np
import precision
import pytest
from arrays import (
    FLOATING,
    LAYOUTS,
    LOSSES,
    SIZES,
    Inputs,
    as_strided,
    as_swapped,
    as_unaligned,
    assert_all_same_bits,
    assert_same_bits,
    bfloat16,
    results,
    zoo,
)
from precision import assert_within
from twin import assert_agrees

each_call = pytest.mark.parametrize("call", LOSSES.values(), ids=LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


@pytest.fixture
def case():
    """Logits of shape (2, 7, 3), whose class axis is 1, and indices."""
    rng = np.random.default_rng(1)
    return rng.normal(0, 3, (2, 7, 3)), rng.integers(0, 7, (2, 3))


@pytest.mark.core
@each_dtype
@each_call
def test_losses_agree_with_the_reference_on_the_zoo_along_every_axis(call, dtype):
    for _, x in zoo(dtype):
        for axis in range(-x.ndim - 1, x.ndim + 1):
            inside = x.ndim and -x.ndim <= axis < x.ndim
            assert_agrees(call, Inputs.of(np.moveaxis(x, axis, -1)).move(axis) if inside else Inputs.of(x), axis)


@pytest.mark.core
@each_dtype
@each_call
def test_losses_agree_with_the_reference_for_every_size(call, dtype):
    for size in SIZES:
        for shape in [(3, size), (size, 3)]:
            inputs = Inputs.normal(shape, dtype)
            for axis in (0, 1):
                assert_agrees(call, inputs.move(axis), axis)


OPTIONS = {
    "weight": [None, "weight"],
    "ignore_index": [None, 1, -100],
    "label_smoothing": [0.0, 0.3, 1.0],
    "temperature": [1.0, 2.5],
}


@pytest.mark.core
@pytest.mark.parametrize("shape", [(40, 7), (3, 300), (2, 5, 4)], ids=str)
@each_reduction
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@each_dtype
def test_losses_agree_with_the_reference_for_every_combination_of_arguments(dtype, targets, reduction, shape):
    for chosen in product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, chosen, strict=True))
        upstream = "upstream" if reduction == "none" else -1.5

        def call(module, a, axis, options=options, upstream=upstream):
            given = options | {"weight": options["weight"] and a.weight, "reduction": reduction}
            behind = a.upstream if upstream == "upstream" else upstream
            t = getattr(a, targets)
            return (
                *module.cross_entropy_with_grad(a.x, t, axis, **given, upstream=behind),
                module.cross_entropy(a.x, t, axis, **given),
                module.cross_entropy_grad(a.x, t, axis, **given),
            )

        inputs = Inputs.normal(shape, dtype)
        if options["ignore_index"] == -100:
            inputs.indices.flat[::3] = -100
        for axis in range(len(shape)):
            assert_agrees(call, inputs.move(axis), axis)


# All three functions


@each_reduction
@each_dtype
def test_the_three_functions_agree_bit_for_bit(dtype, reduction):
    for shape in [(30, 4), (4, 300), (2, 5000)]:
        a = Inputs.normal(shape, dtype)
        for axis, options in product((0, 1), ({}, {"weight": a.weight, "label_smoothing": 0.1})):
            b, given = a.move(axis), options | {"reduction": reduction}
            loss, grad = fs.cross_entropy_with_grad(b.x, b.indices, axis, **given)
            assert_all_same_bits(loss, fs.cross_entropy(b.x, b.indices, axis, **given))
            assert_same_bits(grad, fs.cross_entropy_grad(b.x, b.indices, axis, **given))


def test_the_loss_is_minus_the_log_probability_of_the_chosen_class(case):
    logits, targets = case
    logp = np.take_along_axis(fs.log_softmax(logits, 1), targets[:, None], 1)[:, 0]
    np.testing.assert_allclose(fs.cross_entropy(logits, targets, 1, reduction="none"), -logp, 1e-15)


def test_the_default_reduction_is_the_mean(case):
    logits, targets = case
    losses = fs.cross_entropy(logits, targets, 1, reduction="none")
    assert fs.cross_entropy(logits, targets, 1) == fs.cross_entropy(logits, targets, 1, reduction="mean")
    np.testing.assert_allclose(fs.cross_entropy(logits, targets, 1), losses.mean(), 1e-15)
    np.testing.assert_allclose(fs.cross_entropy(logits, targets, 1, reduction="sum"), losses.sum(), 1e-15)


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        (np.float16, np.float32),
        (bfloat16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int16, np.float64),
        (bool, np.float64),
    ],
)
@each_reduction
def test_the_loss_of_half_precision_is_float32_and_the_gradient_has_the_logits_dtype(given, loss, reduction, case):
    logits, targets = case[0].astype(given), case[1]
    got, grad = fs.cross_entropy_with_grad(logits, targets, 1, reduction=reduction)
    assert got.dtype == loss
    assert grad.dtype == (given if np.dtype(given) in FLOATING else np.float64)
    assert type(got) is (np.ndarray if reduction == "none" else np.dtype(loss).type)


def test_one_sample_gives_a_numpy_scalar():
    for reduction in ("none", "mean", "sum"):
        loss, grad = fs.cross_entropy_with_grad(np.ones(4, np.float32), 2, reduction=reduction)
        assert type(loss) is np.float32
        np.testing.assert_allclose(loss, np.log(4), 1e-6)
        np.testing.assert_allclose(grad, [0.25, 0.25, -0.75, 0.25])


# targets


@pytest.mark.parametrize("dtype", "bBhHiIlLqQ")
def test_indices_of_every_integer_dtype_and_layout_are_compared_by_value(dtype, case):
    logits, targets = case
    wanted = fs.cross_entropy_with_grad(logits, targets, 1, ignore_index=2, reduction="none")
    for layout in (np.copy, as_strided, as_swapped, as_unaligned, np.ndarray.tolist):
        given = layout(targets.astype(dtype))
        assert_all_same_bits(fs.cross_entropy_with_grad(logits, given, 1, ignore_index=2, reduction="none"), wanted)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.uint64, 2**64 - 1), (np.uint64, 2**63), (np.int64, -(2**63)), (np.uint8, 255), (np.int8, -128), (np.int64, 9)],
)
def test_an_ignored_index_may_be_any_value_of_any_dtype(dtype, value, case):
    logits, targets = case
    marked = targets.astype(dtype)
    marked[0, 1] = value
    loss, grad = fs.cross_entropy_with_grad(logits, marked, 1, ignore_index=value, reduction="none")
    wanted, wanted_grad = fs.cross_entropy_with_grad(logits, targets, 1, reduction="none")
    wanted[0, 1] = wanted_grad[0, :, 1] = 0
    assert_all_same_bits((loss, grad), (wanted, wanted_grad))


@pytest.mark.parametrize("value", [-1, 2**64 - 1])
def test_an_ignored_index_does_not_wrap_round_the_dtype(value, case):
    logits, targets = case
    marked = targets.astype(np.uint64 if value < 0 else np.int64)
    marked[1, 2] = 2**64 - 1 if value < 0 else -1
    with pytest.raises(ValueError, match=str(marked[1, 2])):
        fs.cross_entropy(logits, marked, 1, ignore_index=value)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_probabilities_may_have_another_floating_dtype_than_the_logits(dtype, case):
    logits = case[0]
    probabilities = fs.softmax(logits[::-1], 1).astype(dtype)
    wanted = fs.cross_entropy_with_grad(logits, probabilities.astype(np.float64), 1)
    assert_all_same_bits(fs.cross_entropy_with_grad(logits, probabilities, 1), wanted)
    for given in FLOATING:
        assert fs.cross_entropy_grad(logits.astype(given), probabilities, 1).dtype == given


def test_one_hot_probabilities_give_the_result_of_the_index(case):
    logits, targets = case
    one_hot = np.moveaxis(np.eye(7)[targets], -1, 1)
    by_index = fs.cross_entropy_with_grad(logits, targets, 1)
    by_probability = fs.cross_entropy_with_grad(logits, one_hot, 1)
    for got, wanted in zip(by_probability, by_index, strict=True):
        np.testing.assert_allclose(got, wanted, 1e-13, 1e-16)


def test_a_class_of_probability_or_weight_zero_contributes_zero_where_its_logit_is_minus_infinity():
    logits = np.array([[1.0, -np.inf, 2.0]])
    two = np.array([[1.0, 2.0]])
    loss, grad = fs.cross_entropy_with_grad(logits, np.array([[0.25, 0, 0.75]]))
    wanted, wanted_grad = fs.cross_entropy_with_grad(two, np.array([[0.25, 0.75]]))
    np.testing.assert_allclose(loss, wanted, 1e-15)
    np.testing.assert_allclose(grad, [[wanted_grad[0, 0], 0, wanted_grad[0, 1]]], 1e-13)
    loss, grad = fs.cross_entropy_with_grad(logits, [0], weight=[1, 0, 1], label_smoothing=0.3, reduction="sum")
    logp = fs.log_softmax(two)[0]
    np.testing.assert_allclose(loss, -0.7 * logp[0] - 0.1 * logp.sum(), 1e-14)
    assert np.isfinite(grad).all()


def test_a_chosen_class_of_logit_minus_infinity_has_infinite_loss():
    loss, grad = fs.cross_entropy_with_grad([[1.0, -np.inf, 1.0]], [1])
    assert loss == np.inf
    np.testing.assert_array_equal(grad, [[0.5, -1, 0.5]])


# weight


@pytest.mark.parametrize("dtype", [*FLOATING, *map(np.dtype, ("longdouble", "int32", "uint8", "bool"))], ids=str)
def test_weights_may_have_any_real_dtype(dtype, case):
    logits, targets = case
    weight = np.array([1, 0, 1, 1, 0, 1, 1]).astype(dtype)
    wanted = fs.cross_entropy_with_grad(logits, targets, 1, weight=weight.astype(float))
    assert_all_same_bits(fs.cross_entropy_with_grad(logits, targets, 1, weight=weight), wanted)
    assert_all_same_bits(fs.cross_entropy_with_grad(logits, targets, 1, weight=weight.tolist()), wanted)
    loss, grad = fs.cross_entropy_with_grad(logits.astype(np.float32), targets, 1, weight=weight)
    assert (loss.dtype, grad.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_may_lie_anywhere_in_memory(layout, case):
    weight = np.linspace(0, 2, 7)
    wanted = fs.cross_entropy_with_grad(*case, 1, weight=weight)
    assert_all_same_bits(fs.cross_entropy_with_grad(*case, 1, weight=layout(weight)), wanted)


@pytest.mark.core
@pytest.mark.parametrize("weight", [1e300, 1e-60, 1e-300])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@each_dtype
def test_a_common_factor_of_the_weights_leaves_the_mean_unchanged_whatever_its_size(dtype, label_smoothing, weight):
    for shape in [(40, 5), (7, 50), (2, 40_000)]:
        a = Inputs.normal(shape, dtype)
        for axis in (0, 1):
            x = a.move(axis).x

            def call(w, x=x, axis=axis, a=a):
                options = {"weight": [w] * x.shape[axis], "label_smoothing": label_smoothing}
                return fs.cross_entropy_with_grad(x, a.indices, axis, **options)

            loss, grad = call(weight)
            wanted, wanted_grad = call(1)
            assert_within(4, loss, wanted.astype(np.longdouble))
            wanted_grad = wanted_grad.astype(np.longdouble)
            assert_within(4, grad, wanted_grad, np.maximum(np.abs(wanted_grad), 1 / np.longdouble(shape[0])))


@pytest.mark.core
@pytest.mark.parametrize("classes", [3, 40, 40_000])
@each_dtype
def test_a_target_probability_too_small_for_the_logits_dtype_is_not_zero(dtype, classes):
    x, q = np.zeros((2, classes), dtype), np.zeros((2, classes))
    x[0, 1] = -np.inf
    q[:, 0], q[:, 1] = 1, 1e-50
    for axis in (0, 1):
        given = np.moveaxis(x, 1, axis).copy(), np.moveaxis(q, 1, axis).copy(), axis
        losses = [fs.cross_entropy(*given, reduction="none")]
        losses.append(fs.cross_entropy_with_grad(*given, reduction="none")[0])
        for loss in losses:
            assert loss[0] == np.inf
            np.testing.assert_allclose(loss[1], np.log(classes), 1e-6)


def test_the_mean_divides_by_the_weights_of_the_samples_that_count(case):
    logits, targets = case
    weight = np.arange(1.0, 8)
    losses = fs.cross_entropy(logits, targets, 1, weight=weight, ignore_index=int(targets[0, 0]), reduction="none")
    counted = targets != targets[0, 0]
    mean = fs.cross_entropy(logits, targets, 1, weight=weight, ignore_index=int(targets[0, 0]))
    np.testing.assert_allclose(mean, losses.sum() / weight[targets[counted]].sum(), 1e-15)


def test_the_mean_over_probabilities_divides_by_the_number_of_samples(case):
    logits = case[0]
    options = {"weight": np.arange(1.0, 8), "label_smoothing": 0.2}
    probabilities = fs.softmax(logits[::-1], 1)
    losses = fs.cross_entropy(logits, probabilities, 1, reduction="none", **options)
    np.testing.assert_allclose(fs.cross_entropy(logits, probabilities, 1, **options), losses.mean(), 1e-15)


def test_weights_that_sum_to_zero_give_a_mean_and_gradient_of_nan(case):
    logits, targets = case
    loss, grad = fs.cross_entropy_with_grad(logits, np.full_like(targets, 3), 1, weight=[1, 1, 1, 0, 1, 1, 1])
    assert np.isnan(loss)
    assert np.isnan(grad).all()
    assert np.isnan(fs.cross_entropy(logits, np.full_like(targets, 3), 1, weight=np.zeros(7)))


# ignore_index


@pytest.mark.core
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
@each_reduction
def test_the_values_of_an_ignored_sample_never_reach_the_result(hidden, reduction):
    for shape in [(40, 5), (4, 300), (3, 5000)]:
        a = Inputs.normal(shape, np.float32)
        a.indices[1::2] = -7
        upstream = a.upstream if reduction == "none" else 2.0
        poisoned = a.map(np.copy)
        poisoned.x[1::2] = poisoned.upstream[1::2] = hidden
        behind = poisoned.upstream if reduction == "none" else 2.0
        for axis, smoothing in product((0, 1), (0.0, 0.1)):
            options = {"ignore_index": -7, "label_smoothing": smoothing, "reduction": reduction, "weight": a.weight}
            b, c = a.move(axis), poisoned.move(axis)
            wanted = fs.cross_entropy_with_grad(b.x, b.indices, axis, upstream=upstream, **options)
            got = fs.cross_entropy_with_grad(c.x, c.indices, axis, upstream=behind, **options)
            assert_all_same_bits(got, wanted)
            assert (np.moveaxis(got[1], axis, -1)[1::2] == 0).all()


def test_if_every_sample_is_ignored_the_mean_is_nan_and_the_gradient_zero(case):
    logits, targets = case
    loss, grad = fs.cross_entropy_with_grad(logits, np.full_like(targets, -1), 1, ignore_index=-1)
    assert np.isnan(loss)
    assert (grad == 0).all()
    assert fs.cross_entropy(logits, np.full_like(targets, -1), 1, ignore_index=-1, reduction="sum") == 0


def test_an_ignored_class_is_still_part_of_the_distribution(case):
    logits, targets = case
    losses = fs.cross_entropy(logits, targets, 1, ignore_index=3, reduction="none")
    wanted = fs.cross_entropy(logits, targets, 1, reduction="none")
    assert_same_bits(losses, np.where(targets == 3, 0, wanted))


# upstream, temperature, out


@each_reduction
def test_upstream_scales_the_gradient_and_not_the_loss(reduction, case):
    logits, targets = case
    options = {"axis": 1, "reduction": reduction, "label_smoothing": 0.1}
    loss, grad = fs.cross_entropy_with_grad(logits, targets, **options)
    got, scaled = fs.cross_entropy_with_grad(logits, targets, upstream=-3.5, **options)
    assert_all_same_bits(got, loss)
    np.testing.assert_allclose(scaled, -3.5 * grad, 1e-13, 1e-16)
    assert_same_bits(fs.cross_entropy_grad(logits, targets, upstream=-3.5, **options), scaled)


@pytest.mark.parametrize("dtype", [*FLOATING, *map(np.dtype, ("longdouble", "int64", "bool"))], ids=str)
def test_upstream_may_be_an_array_of_any_real_dtype_and_layout(dtype, case, rng):
    logits, targets = case[0].astype(np.float32), case[1]
    upstream = rng.integers(0, 2, targets.shape).astype(dtype)
    grad = fs.cross_entropy_grad(logits, targets, 1, reduction="none")
    for layout in (np.copy, as_strided, as_swapped, as_unaligned, np.asfortranarray):
        got = fs.cross_entropy_grad(logits, targets, 1, reduction="none", upstream=layout(upstream))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, grad * upstream[:, None].astype(np.float32))


# (dtype, upstream, temperature)
SCALES = [
    (np.float32, 1e-30, 1.0),
    (np.float32, 1e30, 1.0),
    (np.float32, 1e30, 1e25),
    (np.float32, 1e-30, 1e-25),
    (np.float64, 1e-300, 1.0),
    (np.float64, 1e250, 1.0),
    (np.float64, 1e300, 1.0),
    (np.float64, 1.0, 1e290),
    (np.float64, 1e250, 1e290),
    (np.float64, 1e300, 1e290),
    (np.float64, 1e-300, 1e-290),
]


@pytest.mark.core
@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@pytest.mark.parametrize("classes", [8, 40, 40_000])
@pytest.mark.parametrize(("dtype", "upstream", "temperature"), SCALES)
def test_upstream_and_temperature_of_any_size_keep_every_entry_of_the_gradient(dtype, upstream, temperature, classes):
    depth = -float(np.log(np.finfo(dtype).smallest_normal))
    x = np.full((5, classes), -np.inf)
    x[:, :8] = np.array([0, 0.01, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99]) * -depth * temperature
    x = x.astype(dtype)
    targets = np.array([0, 1, 2, 6, 7])
    exact = precision.Slices(x[:, :8], 1, temperature)  # the rest adds nothing
    wanted = exact.cross_entropy_grad(exact.one_hot(targets)) * np.longdouble(upstream)
    for axis in (1, 0):
        a = np.ascontiguousarray(np.moveaxis(x, 1, axis))
        for u, reduction in [(upstream, "sum"), (np.full(5, upstream), "none")]:
            grad = fs.cross_entropy_grad(a, targets, axis, temperature=temperature, upstream=u, reduction=reduction)
            grad = np.moveaxis(grad, axis, 1)
            assert_within(3, grad[:, :8], wanted)
            assert (grad[:, 8:] == 0).all()


@pytest.mark.core
@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@pytest.mark.parametrize("classes", [3, 40, 40_000])
@pytest.mark.parametrize(
    ("dtype", "upstream"), [(np.float32, 1e30), (np.float32, 1e40), (np.float64, 1e250), (np.float64, 1e300)]
)
def test_a_large_upstream_scales_a_subnormal_probability_before_it_is_rounded(dtype, upstream, classes):
    x = np.full((2, classes), -np.inf, dtype)
    x[:, :3] = 0, -1, 0.99 * np.log(np.finfo(dtype).smallest_subnormal)
    for a, axis in [(x, 1), (x.T.copy(), 0)]:
        exact = precision.Slices(a, axis)
        wanted = exact.cross_entropy_grad(precision.shares(a.shape, axis, np.array([0, 1]))) * np.longdouble(upstream)
        grad = fs.cross_entropy_grad(a, [0, 1], axis, upstream=upstream, reduction="sum")
        assert_within(3, grad, wanted)


def test_temperature_divides_the_logits_and_the_gradient(case):
    logits, targets = case
    for probabilities in (False, True):
        given = fs.softmax(logits[::-1], 1) if probabilities else targets
        loss, grad = fs.cross_entropy_with_grad(logits, given, 1, temperature=4)
        wanted, wanted_grad = fs.cross_entropy_with_grad(logits / 4, given, 1)
        np.testing.assert_allclose(loss, wanted, 1e-15)
        np.testing.assert_allclose(grad, wanted_grad / 4, 1e-13, 1e-16)


@each_reduction
@pytest.mark.parametrize("axis", [0, 1, 2])
@each_dtype
def test_out_turns_the_logits_into_their_gradient_in_place(dtype, axis, reduction):
    for shape in [(5, 4, 9), (2, 3, 400)]:
        a = Inputs.normal(shape, dtype).move(axis)
        options = {"reduction": reduction, "weight": a.weight, "label_smoothing": 0.1}
        for targets in (a.indices, a.probabilities):
            wanted = fs.cross_entropy_with_grad(a.x, targets, axis, **options)
            x = a.x.copy()
            got = fs.cross_entropy_with_grad(x, targets, axis, out=x, **options)
            assert got[1] is x
            assert_all_same_bits(got, wanted)
            x = a.x.copy()
            assert fs.cross_entropy_grad(x, targets, axis, out=x, **options) is x
            assert_same_bits(x, wanted[1])


def test_out_that_overlaps_an_input_receives_the_result_of_a_new_array(rng):
    values = rng.normal(size=(12, 12))
    targets, mass = rng.integers(0, 10, 10), fs.softmax(rng.normal(size=(10, 10)))
    wanted = fs.cross_entropy_grad(values[:10, :10].copy(), targets)
    by_mass = fs.cross_entropy_grad(mass, mass)
    for shift in (lambda a: a[2:, 2:], lambda a: a[1:11, :10], lambda a: a[:10, :10].T, lambda a: a[9::-1, :10]):
        room = values.copy()
        assert_same_bits(fs.cross_entropy_grad(room[:10, :10], targets, out=shift(room)), wanted)
        room[:10, :10] = mass
        assert_same_bits(fs.cross_entropy_grad(mass, room[:10, :10], out=shift(room)), by_mass)
    assert_same_bits(fs.cross_entropy_grad(mass, room := mass.copy(), out=room), by_mass)


def test_out_may_overlap_targets_weight_and_upstream(rng):
    logits = rng.normal(size=(6, 6))
    room = rng.uniform(0.5, 1, (6, 6))
    wanted = fs.cross_entropy_grad(logits, np.zeros(6, int), weight=room[2].copy())
    assert_same_bits(fs.cross_entropy_grad(logits, np.zeros(6, int), weight=room[2], out=room), wanted)
    room = rng.uniform(0.5, 1, (6, 6))
    wanted = fs.cross_entropy_grad(logits, np.zeros(6, int), reduction="none", upstream=room[:, 2].copy())
    got = fs.cross_entropy_grad(logits, np.zeros(6, int), reduction="none", upstream=room[:, 2], out=room)
    assert_same_bits(got, wanted)
    room = rng.integers(0, 6, (6, 6))
    wanted = fs.cross_entropy_grad(logits, room[2].copy())
    assert_same_bits(fs.cross_entropy_grad(logits, room[2], out=room.view(np.float64)), wanted)


# Empty


@each_dtype
def test_an_empty_batch_has_mean_nan_and_sum_zero(dtype):
    logits, targets = np.empty((0, 4), dtype), np.empty(0, int)
    for given in (targets, np.empty((0, 4))):
        loss, grad = fs.cross_entropy_with_grad(logits, given)
        assert np.isnan(loss)
        assert_same_bits(grad, logits)
        assert fs.cross_entropy(logits, given, reduction="sum") == 0
        assert fs.cross_entropy(logits, given, reduction="none").shape == (0,)


# Bounds in ULP, which a comparison with the reference is too coarse for.


@pytest.mark.skipif(not precision.SUFFICES, reason="longdouble has fewer than 64 bits here")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_reduced_loss_is_right_to_two_ulp(dtype):
    for shape in [(100_003, 4), (501, 200), (3, 20_000)]:
        a = Inputs.normal(shape, dtype)
        losses = precision.Slices(a.x).cross_entropy(precision.shares(shape, 1, a.indices))
        for reduction, wanted in [("sum", losses.sum()), ("mean", losses.mean())]:
            got = results(fs.cross_entropy(a.x, a.indices, reduction=reduction))[0]
            assert_within(2, got, wanted)


@pytest.mark.core
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_gradient_of_an_unlikely_label_keeps_its_digits_however_small_its_factor(classes, axis):
    for gap, exponent in product((20.0, 30.0, 41.0), (0, -10, -20, -33, -60)):
        x = np.full((20, classes), -200, np.float32)
        x[:, 0], x[:, 1] = 0, -gap
        got = fs.cross_entropy_grad(
            np.ascontiguousarray(np.moveaxis(x, 1, axis)),
            np.ones(20, int),
            axis,
            reduction="none",
            upstream=np.full(20, 2.0**exponent),
        )
        wanted = 2.0**exponent / (1 + np.exp(-np.longdouble(gap)))
        ahead, label = np.moveaxis(got, axis, 1)[:, :2].T
        assert (abs(ahead - wanted) <= 3 * np.spacing(np.float32(wanted))).all(), (gap, exponent)
        assert (abs(label + wanted) <= 3 * np.spacing(np.float32(wanted))).all(), (gap, exponent)


@pytest.mark.core
@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("offset", [0, -24])
def test_a_loss_that_vanishes_in_float_counts_with_a_large_weight_and_in_a_sum(classes, offset):
    x = np.full((1 << 12, classes), -np.inf, np.float32)
    x[:, 0], x[:, 1] = offset, offset - 109
    labels, weight = np.zeros(len(x), int), np.ones(classes)
    loss = len(x) * np.exp(-np.longdouble(109))
    for factor in (1e9, 1e30):
        weight[0] = factor
        got = fs.cross_entropy(x, labels, weight=weight, reduction="sum")
        assert abs(got - factor * loss) <= 3 * np.spacing(np.float32(factor * loss)), factor


# the Hessian


@each_reduction
@each_dtype
def test_the_hessian_leaves_loss_and_gradient_unchanged(dtype, reduction):
    for shape in [(40, 2), (37, 10), (20, 300), (2, 20_000)]:
        a = Inputs.normal(shape, dtype)
        for axis in (1, 0):
            b = a.move(axis)
            options = {"reduction": reduction, "weight": a.weight, "ignore_index": 1, "temperature": 0.7}
            for given in ({}, options, options | {"label_smoothing": 0.1}):
                wanted = fs.cross_entropy_with_grad(b.x, b.indices, axis, **given)
                loss, grad, hess = fs.cross_entropy_with_grad_hess(b.x, b.indices, axis, **given)
                assert_all_same_bits((loss, grad), wanted)
                assert (hess.dtype, hess.shape) == (grad.dtype, grad.shape)


def test_the_hessian_is_the_derivative_of_the_gradient(rng):
    x, targets, h = rng.normal(0, 2, (5, 4)), [0, 1, 2, 3, 0], 1e-5
    for options in ({}, {"temperature": 0.6, "weight": [1, 2, 0.5, 3], "label_smoothing": 0.2, "upstream": -3.0}):
        hess = fs.cross_entropy_with_grad_hess(x, targets, **options)[2]
        for c in range(4):
            step = h * (np.arange(4) == c)
            up, down = (fs.cross_entropy_grad(x + s, targets, **options)[:, c] for s in (step, -step))
            np.testing.assert_allclose(hess[:, c], (up - down) / (2 * h), 1e-7, 1e-9)


@each_dtype
def test_an_ignored_sample_has_hessian_0_whatever_its_logits_hold(dtype):
    x = np.ones((4, 70), dtype)
    x[1] = np.nan
    x[2, 0] = np.inf
    hess = fs.cross_entropy_with_grad_hess(x, [0, 9, 9, 1], ignore_index=9)[2]
    assert (hess[1:3] == 0).all()
    assert (hess[[0, 3]] > 0).all()
    assert np.isnan(fs.cross_entropy_with_grad_hess(x, [0, 1, 2, 1])[2][1:3].astype(float)).all()


def test_two_outs_that_overlap_are_refused():
    x, targets = np.ones((3, 4)), [0, 1, 2]
    place = np.zeros((4, 4))
    for out in [(place[:3], place[:3]), (place[:3], place[1:])]:
        with pytest.raises(ValueError, match="overlap"):
            fs.cross_entropy_with_grad_hess(x, targets, out=out)
    assert (place == 0).all()
    for out in (place[:3], [None, None], (None,)):
        with pytest.raises(TypeError, match="out is"):
            fs.cross_entropy_with_grad_hess(x, targets, out=out)
    wanted = fs.cross_entropy_with_grad_hess(x, targets)
    got = fs.cross_entropy_with_grad_hess(x.copy(), targets, out=(None, place[:3]))
    assert got[2].base is place
    assert_all_same_bits(got, wanted)
    # The Hessian may replace the logits, or overlap them.
    for k in (0, 1):
        room = np.ones((4, 4))
        assert_all_same_bits(fs.cross_entropy_with_grad_hess(room[:3], targets, out=(None, room[k : k + 3])), wanted)


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_classes_of_probability_half_have_the_right_hessian_whatever_the_label(dtype, classes):
    at = np.linspace(-800, 800, 201)
    x = np.repeat(at[:, np.newaxis] - 1000, classes, 1).astype(dtype)
    x[:, :2] = at[:, np.newaxis]
    hess = fs.cross_entropy_with_grad_hess(x, np.full(len(x), classes - 1), reduction="none")[2]
    np.testing.assert_allclose(hess[:, :2], 0.25, 1e-6)
    assert (hess[:, 2:] == 0).all()
