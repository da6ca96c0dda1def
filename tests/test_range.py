"""Nothing overflows, vanishes or cancels on the way to a result in range: compared with mpmath, in every loop."""

import fastsoftmax as fs
import mpmath
import numpy as np
import pytest
from arrays import assert_all_same_bits, bfloat16
from mpmath import mpf
from precision import SUFFICES, assert_within

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not SUFFICES, reason="longdouble has fewer than 64 bits here"),
]

# The classes of the case only, some more of them, and more than a block.
CLASSES = [None, 40, 40_000]
SAMPLES = 17  # more than a tile has lanes

float16, float32, float64 = (np.dtype(name) for name in ("float16", "float32", "float64"))

each_number_of_classes = pytest.mark.parametrize("classes", CLASSES)


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workprec(1500):
        yield


def exactly(values):
    return [mpf(float(v)) for v in np.ravel(values)]


def to_longdouble(values):
    """Rounded to longdouble; numbers beyond its range become 0 or infinity."""

    def one(v):
        if v == 0 or abs(v) < mpf(10) ** -4900:
            return np.longdouble(0)
        return np.longdouble(mpmath.nstr(v, 25)) if abs(v) < mpf(10) ** 4900 else np.longdouble(mpmath.sign(v)) * np.inf

    return np.array([one(v) for v in values], np.longdouble)


def layouts(*arrays):
    """Yield the class axis and arrays of (samples, classes): with the class axis last, then with it first."""
    yield 1, *arrays
    yield 0, *(np.ascontiguousarray(a.T) for a in arrays)


def padded(values, classes, by, dtype):
    """Equal slices that begin with `values` and go on with `by`."""
    slices = np.full((SAMPLES, classes or len(values)), by, dtype)
    slices[:, : len(values)] = np.asarray(values, dtype)
    return slices


def assert_along_both_axes(call, arrays, wanted, unit=None):
    """`call(axis, *arrays)` gives `wanted` for the first classes of each slice and 0 for all others."""
    bound = 0.52 if arrays[0].dtype.itemsize == 2 else 3
    first = None
    for axis, *moved in layouts(*arrays):
        got = np.moveaxis(call(axis, *moved), axis, 1)
        known = got[:, : len(wanted)]
        assert_within(bound, known, *(np.broadcast_to(w, known.shape) for w in (wanted, unit) if w is not None))
        assert (got[:, len(wanted) :] == 0).all()
        first = got if first is None else first
        assert_all_same_bits(np.ascontiguousarray(got), np.ascontiguousarray(first))


# The gradient of the loss.


def loss_gradient(x, share, temperature, scale):
    """softmax * sum(share) - share, times scale over temperature; and the larger of both terms, times the same."""
    x = [v / mpf(temperature) for v in exactly(x)]
    e = [mpmath.exp(v - max(x)) for v in x]
    total, all_shares = sum(e), sum(share)
    factor = scale / mpf(temperature)
    terms = [(p / total * all_shares, a) for p, a in zip(e, share, strict=True)]
    return to_longdouble([factor * (p - a) for p, a in terms]), to_longdouble([factor * max(p, a) for p, a in terms])


def one_hot(target, classes, weight=1):
    return [mpf(weight) if c == target else mpf(0) for c in range(classes)]


LN = float(np.log(10))

# dtype, logits over the temperature, temperature, upstream
FACTORS = {
    "temperature 1e-310": (float64, [0, -700, -740], 1e-310, 1.0),
    "float32, upstream 1e300": (float32, [0, -1, -2], 1e-10, 1e300),
    "float32, far apart": (float32, [1e10, 2e10, 3e10], 1e-10, 1e300),
    "half precision": (float16, [0, -1, -1e5], 1e-3, 1e307),
    "bfloat16": (bfloat16, [0, -60, -1e5], 1e-3, 1e307),
    "product 1e310, results in range": (float64, [0, -5 * LN, -300 * LN], 1e-10, 1e300),
    "product 1e600": (float64, [0, -295 * LN, -320 * LN], 1e-300, 1e300),
    "product 1e-310": (float64, [0, -1, -2], 1e10, 1e-300),
    "negative": (float64, [0, -5 * LN, -300 * LN], 1e-10, -1e300),
}


@each_number_of_classes
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_out_of_range_is_applied_after_the_difference(factor, target, classes):
    dtype, quotients, temperature, upstream = FACTORS[factor]
    logits = np.array(quotients) * temperature
    x = padded(logits, classes, -np.inf, dtype)
    wanted, _ = loss_gradient(x[0, : len(logits)], one_hot(target, len(logits)), temperature, mpf(upstream))
    targets = np.full(SAMPLES, target)
    options = {"temperature": temperature}

    def call(axis, x):
        alone = {"axis": axis, "reduction": "none", "upstream": np.full(SAMPLES, upstream), **options}
        summed = {"axis": axis, "reduction": "sum", "upstream": upstream, **options}
        grad = fs.cross_entropy_grad(x, targets, **alone)
        assert_all_same_bits(fs.cross_entropy_grad(x, targets, **summed), grad)
        assert_all_same_bits(fs.cross_entropy_with_grad(x, targets, **alone)[1], grad)
        assert_all_same_bits(fs.cross_entropy_grad(x, targets, weight=np.ones(x.shape[axis]), **alone), grad)
        in_place = x.copy()
        assert_all_same_bits(fs.cross_entropy_grad(in_place, targets, out=in_place, **alone), grad)
        return grad

    assert_along_both_axes(call, [x], wanted)


@pytest.mark.parametrize(
    ("logits", "options"),
    [
        (np.array([[1.0, 2, 3]]), {"temperature": 1e-310}),
        (np.array([[1.0, 2, 3]], np.float32), {"temperature": 1e-10, "upstream": 1e300}),
        (np.array([[1.0, 2, 3]]), {"temperature": 5e-324}),
        (np.array([[1.0, 2, 3]]), {"temperature": 1e-310, "label_smoothing": 1e-320}),
    ],
)
def test_the_gradient_is_zero_whatever_the_factor_if_the_target_has_probability_1(logits, options):
    grad = fs.cross_entropy_grad(logits, [2], **options)
    if "label_smoothing" not in options:
        assert (grad == 0).all()
    assert not np.isnan(grad).any()


TERMS = {
    "smoothing": ([0, -5 * LN, -20 * LN], 1e-10, 1e300, {"label_smoothing": 1e-20}),
    "smoothing, weight": ([0, -5 * LN, -20 * LN], 1e-10, 1e300, {"label_smoothing": 1e-20, "weight": [1e9, 2e9, 3e9]}),
    "weight": ([0, -20 * LN, -300 * LN], 1.0, 1e300, {"weight": [1e9, 2e9, 3e9]}),
    "large weight": ([0, -20 * LN, -300 * LN], 1e-5, 1e10, {"weight": [1e300, 1e299, 1e298]}),
    "probabilities": ([0, -5 * LN, -20 * LN], 1e-10, 1e300, {"q": [1 - 2.0**-20, 2.0**-20, 0]}),
    "large probabilities, subnormal upstream": ([0, -5 * LN, -20 * LN], 1.7, 1.2345e-311, {"q": [1e38, 1e37, 0]}),
    "large probabilities": ([0, -5 * LN, -20 * LN], 1.0, 1e300, {"q": [1e20, 1e15, 0]}),
    "probabilities, weight": ([0, -5 * LN, -20 * LN], 1e-5, 1e10, {"q": [0.5, 0.5, 0], "weight": [1e300, 1, 1e290]}),
}


# In float32 a probability below 2^-190 is 0.
@each_number_of_classes
@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("terms", TERMS)
def test_a_factor_out_of_range_is_applied_after_the_difference_with_any_coefficients(terms, dtype, classes):
    quotients, temperature, upstream, options = TERMS[terms]
    classes = classes or 3
    if dtype == float32:
        quotients = [v if v > -100 else -1e6 for v in quotients]
    x = padded(np.array(quotients) * temperature, classes, -np.inf, dtype)
    smoothing = options.get("label_smoothing", 0.0)
    weight = padded(options.get("weight", [1, 1, 1]), classes, 1, float64)[0]
    q = padded(options.get("q", [1, 0, 0]), classes, 0, dtype)
    share = [
        mpf(w) * ((1 - mpf(smoothing)) * mpf(float(p)) + mpf(smoothing) / classes)
        for w, p in zip(weight[:4], q[0, :4], strict=True)
    ]
    share[3:] = [a * (classes - 3) for a in share[3:]]  # all others
    wanted, unit = loss_gradient([*x[0, :3], *x[0, 3:4]], share, temperature, mpf(upstream))
    given = {"temperature": temperature, "reduction": "sum", "upstream": upstream, "label_smoothing": smoothing}
    if "weight" in options:
        given["weight"] = weight
    for axis, a, b in layouts(x, q):
        targets = b if "q" in options else np.zeros(SAMPLES, int)
        grad = np.moveaxis(fs.cross_entropy_grad(a, targets, axis, **given), axis, 1)
        assert not np.isnan(grad).any()
        assert_within(4, grad[:, :3], *(np.broadcast_to(w[:3], (SAMPLES, 3)) for w in (wanted, unit)))


@each_number_of_classes
def test_the_product_of_large_probabilities_and_the_factor_may_be_out_of_range(classes):
    x, q = padded([3e9, 0], classes, -np.inf, float64), padded([1e270, 1e170], classes, 0, float64)
    for axis, a, b in layouts(x, q):
        grad = np.moveaxis(fs.cross_entropy_grad(a, b, axis, temperature=1e-60, reduction="sum"), axis, 1)
        np.testing.assert_allclose(grad[:, 1], -1e230, 1e-15)
        assert (np.delete(grad, 1, axis=1) == 0).all()


# Weights: only those that samples use count, and in a mean only their ratios.

USED = {
    "one class, another is huge": ([1e-30, 1e300, 1.0], [0, 0, 0]),
    "one class, subnormal": ([3e-320, 1.0, 1e300], [0, 0, 0]),
    "two, of any ratio": ([1e-30, 2e-30, 1e300], [0, 1, 0]),
    "two, at both ends": ([1e-300, 1e300, 1.0], [0, 1, 0]),
    "the smallest number": ([5e-324, 1.0, 1e308], [0, 0, 0]),
    "sum beyond the largest": ([1.7e308, 1.6e308, 1.0], [0, 1, 0]),
}


@each_number_of_classes
@pytest.mark.parametrize("dtype", [float16, float32, float64], ids=str)
@pytest.mark.parametrize("used", USED)
def test_a_mean_depends_on_the_ratios_of_the_weights_that_samples_use(used, dtype, classes, rng):
    weight, chosen = USED[used]
    weight = padded(weight, classes, 1e300, float64)[0]
    targets = np.resize(chosen, SAMPLES)
    x = rng.normal(size=(SAMPLES, len(weight))).astype(dtype)
    exact = [mpf(w) for w in weight[targets]]
    losses = exactly(-fs.log_softmax(x.astype(np.float64))[np.arange(SAMPLES), targets])
    losses = [w * loss for w, loss in zip(exact, losses, strict=True)]
    total, mean = to_longdouble([sum(losses), sum(losses) / sum(exact)])
    share = to_longdouble([w / sum(exact) for w in exact])[:, None]
    p = fs.softmax(x.astype(np.float64)).astype(np.longdouble)
    wanted = share * (p - (np.arange(len(weight)) == targets[:, None]))
    for axis, a in layouts(x):
        loss, grad = fs.cross_entropy_with_grad(a, targets, axis, weight=weight)
        assert_within(4, np.asarray(loss), mean)
        assert_within(6, np.moveaxis(grad, axis, 1), wanted, np.maximum(np.abs(wanted), share * p.max()))
        # Each loss by itself, and the sum of all.
        none = fs.cross_entropy(a, targets, axis, weight=weight, reduction="none")
        assert_within(4, none, to_longdouble(losses))
        assert_within(4, np.asarray(fs.cross_entropy(a, targets, axis, weight=weight, reduction="sum")), total)


@each_number_of_classes
@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("used", USED)
def test_probabilities_use_only_the_weights_of_their_classes(used, dtype, classes, rng):
    weight, chosen = USED[used]
    weight = padded(weight, classes, 1e300, float64)[0]
    targets = np.resize(chosen, SAMPLES)
    x = rng.normal(size=(SAMPLES, len(weight))).astype(dtype)
    q = np.zeros(x.shape, dtype)
    q[np.arange(SAMPLES), targets] = 0.75
    losses = exactly(-fs.log_softmax(x.astype(np.float64))[np.arange(SAMPLES), targets])
    products = [mpf(0.75) * mpf(w) * loss for w, loss in zip(weight[targets], losses, strict=True)]
    for axis, a, b in layouts(x, q):
        given = {"axis": axis, "weight": weight}
        assert_within(5, fs.cross_entropy(a, b, reduction="none", **given), to_longdouble(products))
        assert_within(5, np.asarray(fs.cross_entropy(a, b, **given)), to_longdouble([sum(products) / SAMPLES])[0])


# Logits, probabilities, temperature.
FAR_APART = {
    "tiny probabilities of the largest losses": (float64, [1.79e308, *[0] * 9], [0, *[1e-239] * 9], 1),
    "a tiny one beside a large one without loss": (float64, [50886, -1099511627777], [9e228, 1.8e-109], 6.09),
    "the same in float32": (float32, [0, -1e20, -1e30], [3e25, 1e-19, 1e-30], 1),
    "tiny ones in float32": (float32, [0, -1, -2], [0, 1e-37, 3e-36], 0.5),
}


@each_number_of_classes
@pytest.mark.parametrize("power", [-35, 35, 502, 929, -600])
@pytest.mark.parametrize("case", FAR_APART)
def test_extreme_weights_cost_no_digits_of_probabilities_that_are_far_apart(case, power, classes):
    dtype, logits, probabilities, temperature = FAR_APART[case]
    x, q = padded(logits, classes, -np.inf, dtype), padded(probabilities, classes, 0, dtype)
    used, unit = len(logits), mpf(2) ** power
    weight = np.resize([1.0, 2.0], x.shape[1]) * 2.0**power
    scores = [v / mpf(temperature) for v in exactly(x[0, :used])]
    total = mpmath.log(sum(mpmath.exp(v - max(scores)) for v in scores)) + max(scores)
    share = [a * w for a, w in zip(exactly(q[0, :used]), exactly(weight), strict=False)]
    loss = sum(a * (total - v) for a, v in zip(share, scores, strict=True))
    grad, size = loss_gradient(x[0, :used], share, temperature, 1 / unit)
    given = {"weight": weight, "temperature": temperature, "reduction": "none"}
    for axis, a, b in layouts(x, q):
        # A loss outside the range of float32 would only be infinite or 0.
        if dtype == float64 or abs(power) < 100:
            got = fs.cross_entropy(a, b, axis, **given)
            assert_within(4, got, np.full(SAMPLES, to_longdouble([loss])))
        if power > -600:
            got = fs.cross_entropy_grad(a, b, axis, upstream=np.full(SAMPLES, 2.0**-power), **given)
            got = np.moveaxis(got, axis, 1)[:, :used]
            assert_within(4, got, *(np.broadcast_to(w, got.shape) for w in (grad, size)))


def test_an_upstream_that_undoes_a_weight_restores_the_gradient():
    x = np.array([[0.5, -1, 2], [1, 0, 3]])
    weight, upstream = np.array([1e-300, 1e300, 1]), np.array([1e300, 1e-300])
    wanted = fs.cross_entropy_grad(x, [0, 1], reduction="none")
    for axis, a in layouts(x):
        grad = fs.cross_entropy_grad(a, [0, 1], axis, weight=weight, reduction="none", upstream=upstream)
        np.testing.assert_allclose(np.moveaxis(grad, axis, 1), wanted, 1e-15)


# Gradients of the transforms.


def softmax_gradient(y, dy, temperature):
    y, dy = exactly(y), exactly(dy)
    total, size = sum(a * b for a, b in zip(y, dy, strict=True)), sum(abs(a * b) for a, b in zip(y, dy, strict=True))
    pairs = list(zip(y, dy, strict=True))
    return (
        to_longdouble([a * (b - total) / mpf(temperature) for a, b in pairs]),
        to_longdouble([a * (abs(b) + size) / mpf(temperature) for a, b in pairs]),
    )


def log_softmax_gradient(logp, dy, temperature, others=0, other_size=0):
    """`others`: the sum of further gradients, of classes whose probability is 0."""
    p, dy = [mpmath.exp(v) if v > -mpmath.inf else mpf(0) for v in exactly(logp)], exactly(dy)
    total, size = sum(dy) + others, sum(map(abs, dy)) + other_size
    pairs = list(zip(p, dy, strict=True))
    return (
        to_longdouble([(b - a * total) / mpf(temperature) for a, b in pairs]),
        to_longdouble([(abs(b) + a * size) / mpf(temperature) for a, b in pairs]),
    )


tiny = float(np.finfo(np.float32).smallest_subnormal)
largest = {dtype: float(np.finfo(dtype).max) for dtype in (float32, float64)} | {bfloat16: 3.38e38}

# dtype, logp, dy, temperature
LOG_GRADIENTS = {
    "float32, dy 1e30": (float32, [0, -133], [1e30, 0], 1),
    "float64, dy 1e300": (float64, [0, -1000], [1e300, 0], 1),
    "float32, largest": (float32, [0, -180, -150, -131], [3e38, 0, 1, 1e-30], 1),
    "float64, largest": (float64, [0, -1450, -800, -850], [1.7e308, 0, 0, 1e-200], 1),
    "bfloat16": (bfloat16, [0, -133], [1e30, 0], 1),
    "float16 of large sums": (float16, [0, -12], [6e4, 0], 1),
    "float32, small temperature": (float32, [0, -150], [1.0, 0], 1e-28),
    "float64, small temperature": (float64, [0, -1300, -900], [1.0, 0, 1e-300], 1e-300),
    "float64, smallest temperature": (float64, [0, -1440, -1000], [1.0, 0, 0], 5e-324),
    "float64, large temperature": (float64, [0, -1000, -900], [1e300, 0, 1e-310], 1e100),
    "sum beyond the largest": (float64, np.log([0.5, 0.5]), [1e308, 1e308], 1),
    "parts beyond the largest": (float64, np.log([0.25] * 4), [1.7e308, 1.7e308, -1.7e308, -1.6e308], 1),
    "sum beyond the largest, small dy": (float64, [-0.7, -0.7, -np.inf, -800], [1.5e308, 1.5e308, 1e-310, 0], 1),
    "sum beyond the largest, temperature": (float64, np.log([0.9, 0.1]), [-1.7e308, -1.7e308], 8),
    "difference beyond the largest, temperature": (float64, np.log([0.9, 0.1]), [-1.5e308, 1.7e308], 0.5),
}


@each_number_of_classes
@pytest.mark.parametrize("case", LOG_GRADIENTS)
def test_log_softmax_grad_neither_overflows_nor_vanishes_on_the_way(case, classes):
    dtype, logp, dy, temperature = LOG_GRADIENTS[case]
    arrays = padded(logp, classes, -np.inf, dtype), padded(dy, classes, 0, dtype)
    wanted, unit = log_softmax_gradient(*(a[0, : len(dy)] for a in arrays), temperature)

    def call(axis, logp, dy):
        given = {"axis": axis, "temperature": temperature}
        grad = fs.log_softmax_grad(logp, dy, **given)
        assert_all_same_bits(fs.log_softmax_grad(logp, dy, where=np.True_, **given), grad)
        assert_all_same_bits(fs.log_softmax_grad(of := logp.copy(), dy, out=of, **given), grad)
        assert_all_same_bits(fs.log_softmax_grad(logp, of := dy.copy(), out=of, **given), grad)
        return grad

    assert_along_both_axes(call, arrays, wanted, unit)


@pytest.mark.parametrize("classes", [40, 1000, 40_000])
def test_log_softmax_grad_is_right_where_partial_sums_overflow(classes):
    dy = np.full((3, classes), 1.7e308)
    dy[:, classes // 2 :] *= -1
    dy[:, 0] = 1.0
    logp = np.full(dy.shape, -np.log(classes))
    rest = sum(exactly(dy[0, 1:]), mpf(0))
    wanted, unit = log_softmax_gradient(logp[0, :1], dy[0, :1], 1, rest, mpf(1.7e308) * classes)
    for axis, a, b in layouts(logp, dy):
        grad = np.moveaxis(fs.log_softmax_grad(a, b, axis), axis, 1)
        assert_within(3, grad[:, 0], np.full(3, wanted[0]), np.full(3, unit[0]))
        assert np.isfinite(grad).all()


# dtype, y, dy, temperature
GRADIENTS = {
    "six of the smallest": (float32, [0.1, 0.9], [6 * tiny] * 2, 1),
    "six and minus six": (float32, [0.5, 0.5], [6 * tiny, -6 * tiny], 1),
    "two, four and seven": (float32, [0.25, 0.25, 0.5], [2 * tiny, 4 * tiny, 7 * tiny], 1),
    "of float64": (float64, [0.1, 0.9], [6 * 5e-324] * 2, 1),
    "of bfloat16": (bfloat16, [0.125, 0.875], [6 * 2.0**-133] * 2, 1),
    "of float16": (float16, [0.125, 0.875], [6 * 2.0**-24] * 2, 1),
    "six of the smallest, temperature": (float32, [0.1, 0.9], [6 * tiny] * 2, 1.5),
    "largest, float32": (float32, [0.01, 0.99], [largest[float32], -largest[float32]], 1),
    "largest, bfloat16": (bfloat16, [0.125, 0.875], [largest[bfloat16], -largest[bfloat16]], 1),
    "largest, float64": (float64, [0.01, 0.99], [largest[float64], -largest[float64]], 1),
    "largest, float64, temperature": (float64, [0.01, 0.99], [largest[float64], -largest[float64]], 3),
    "largest, float64, large temperature": (float64, [0.01, 0.99], [largest[float64], -largest[float64]], 1e100),
    "all the largest": (float64, [0.5, 0.5 + 2.0**-52], [largest[float64]] * 2, 1),
}


@each_number_of_classes
@pytest.mark.parametrize("case", GRADIENTS)
def test_softmax_grad_neither_overflows_nor_vanishes_on_the_way(case, classes):
    dtype, y, dy, temperature = GRADIENTS[case]
    arrays = padded(y, classes, 0, dtype), padded(dy, classes, 0, dtype)
    wanted, unit = softmax_gradient(*(a[0, : len(dy)] for a in arrays), temperature)

    def call(axis, y, dy):
        grad = fs.softmax_grad(y, dy, axis, temperature=temperature)
        assert_all_same_bits(fs.softmax_grad(y, dy, axis, temperature=temperature, where=np.True_), grad)
        return grad

    assert_along_both_axes(call, arrays, wanted, unit)


def test_slices_beside_one_with_a_large_sum_keep_their_bits(rng):
    for dtype in (float32, float64):
        for classes in (4, 40):
            p = fs.softmax(rng.normal(size=(40, classes)).astype(dtype))
            dy = rng.normal(size=p.shape).astype(dtype)
            large = dy.copy()
            large[::3] = float(np.finfo(dtype).max)
            for gradient, of in ((fs.softmax_grad, p), (fs.log_softmax_grad, np.log(p))):
                for temperature in (1, 0.7, 9):
                    for axis, a, b, c in layouts(of, dy, large):
                        wanted = np.moveaxis(gradient(a, b, axis, temperature=temperature), axis, 1)
                        got = np.moveaxis(gradient(a, c, axis, temperature=temperature), axis, 1)
                        for first in (1, 2):
                            assert_all_same_bits(got[first::3].copy(), wanted[first::3].copy())


# Weighed sums that cancel.

CANCELLING = {
    "equal and apart": ([100, 100, 0], [1, -1, 1]),
    "in another order": ([100, 0, 100], [1, 1, -1]),
    "down to exp(-60)": ([10, 10, -60], [1, -1, 1]),
    "of three": ([100, 100, 100, 0], [1, 2, -3, 1]),
    "out of range": ([1000, 1000, 0, -2000], [1, -1, 0, 3]),
    "beyond the shift": ([20_000, 20_000, 5000], [1.5, -1.5, -2]),
    "negative": ([100, 100, 0], [1, -1, -1]),
    "all": ([100, 100, 0, 0], [1, -1, 2, -2]),
    "weights at the ends": ([0, 0, 60], [1e38, -1e38, 1e-30]),
    "not equal": ([50, 50 + 2.0**-40, -3], [1, -1, 1]),
}


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("classes", [0, 40, 20_000, 40_000])
@pytest.mark.parametrize("case", CANCELLING)
def test_terms_of_equal_scores_cancel_and_leave_the_others_right(case, classes, dtype):
    x, b = (np.array(a, float64).astype(dtype) for a in CANCELLING[case])
    sums = {}
    for score, weight in zip(exactly(x), exactly(b), strict=True):
        sums[score] = sums.get(score, mpf(0)) + weight
    terms = [w * mpmath.exp(s) for s, w in sums.items()]
    total, size = sum(terms), sum(map(abs, terms))
    # All other entries are absent: -inf, or of weight 0. Spread terms lie in different blocks.
    for filler, spread in [((-np.inf, 1.0), False), ((3.0, 0.0), True)]:
        scores, weights = (np.full(max(classes, len(x)), f, dtype) for f in filler)
        places = np.linspace(0, len(scores) - 1, len(x)).astype(int) if spread else np.arange(len(x))
        scores[places], weights[places] = x, b
        for first in (0, 1):
            log, sign = fs.logsumexp(np.roll(scores, first), b=np.roll(weights, first), return_sign=True)
            assert sign == mpmath.sign(total)
            if total == 0:
                assert log == -np.inf
                continue
            wanted = to_longdouble([mpmath.log(abs(total))])[0]
            one = np.spacing(np.maximum(abs(wanted.astype(dtype)), abs(x[np.isfinite(x)]).max()))
            assert abs(log - wanted) <= one + 2.0**-55 * float(size / abs(total))


# Undefined samples.


@pytest.mark.parametrize("undefined", [[np.nan, 1, 2], [1, 2, np.inf], [-np.inf] * 3, [np.inf, -np.inf, 0]], ids=str)
@each_number_of_classes
@pytest.mark.parametrize("dtype", [float16, bfloat16, float32, float64], ids=str)
def test_an_undefined_sample_has_an_undefined_loss_whatever_its_coefficients(dtype, classes, undefined, rng):
    x = rng.normal(size=(SAMPLES, classes or 3)).astype(dtype)
    x[5] = -np.inf
    x[5, :3] = undefined
    targets, q = np.zeros(SAMPLES, int), np.zeros(x.shape, float32)
    weight = np.ones(x.shape[1])
    weight[0] = 0
    q[:, 0] = 1
    alone = np.arange(SAMPLES) == 5
    for axis, a, probabilities in layouts(x, q):
        none = {"axis": axis, "reduction": "none"}
        for given, options in (
            (targets, {"weight": weight}),
            (targets, {"weight": 0 * weight}),
            (targets, {"weight": 0 * weight, "label_smoothing": 0.5}),
            (targets, {"label_smoothing": 1.0, "weight": 0 * weight}),
            (probabilities, {"weight": weight}),
            (0 * probabilities, {}),
            (targets, {"weight": weight, "temperature": 0.3}),
        ):
            loss, grad = fs.cross_entropy_with_grad(a, given, **none, **options)
            assert (np.isnan(loss) == alone).all()
            assert (loss[~alone] == 0).all()
            assert (np.isnan(np.moveaxis(grad, axis, 1)) == alone[:, None]).all()
            assert_all_same_bits(fs.cross_entropy(a, given, **none, **options), loss)
            assert np.isnan(fs.cross_entropy(a, given, axis, reduction="sum", **options))
            assert np.isnan(fs.cross_entropy(a, given, axis, **options))
        # Unless that sample is ignored.
        ignored = np.where(alone, -1, targets)
        loss, grad = fs.cross_entropy_with_grad(a, ignored, ignore_index=-1, weight=weight, **none)
        assert (loss == 0).all()
        assert (np.moveaxis(grad, axis, 1)[alone] == 0).all()


def test_the_logarithm_of_zero_times_a_zero_weight_is_zero():
    x = np.array([[0, -np.inf, 1], [0, -1, 1]])
    loss, grad = fs.cross_entropy_with_grad(x, [1, 1], weight=[1, 0, 1], reduction="none")
    assert (loss == 0).all()
    assert (grad == 0).all()
