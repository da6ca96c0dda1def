"""A network of two layers in plain NumPy learns to read scanned digits, with nothing but `cross_entropy_with_grad`."""

import fastsoftmax as fs
import numpy as np
import pytest
from fastsoftmax.calibration import brier_score, fit_temperature, reliability

HIDDEN, EPOCHS, SAMPLES, RATE, MOMENTUM = 64, 40, 32, 0.1, 0.9


@pytest.fixture(scope="module")
def digits():
    """Images with pixels in [0, 1], and their labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels


class Network:
    def __init__(self, inputs, classes, rng):
        layers = [(inputs, HIDDEN), (HIDDEN, classes)]
        self.weights = [rng.normal(0, np.sqrt(2 / m), (m, n)).astype(np.float32) for m, n in layers]
        self.biases = [np.zeros(n, np.float32) for _, n in layers]
        self.speeds = [np.zeros_like(p) for p in (*self.weights, *self.biases)]

    def forward(self, images):
        hidden = np.maximum(images @ self.weights[0] + self.biases[0], 0)
        return hidden, hidden @ self.weights[1] + self.biases[1]

    def step(self, images, labels, **options):
        """One step of gradient descent with momentum; returns the loss."""
        hidden, logits = self.forward(images)
        loss, grad = fs.cross_entropy_with_grad(logits, labels, out=logits, **options)
        back = (grad @ self.weights[1].T) * (hidden > 0)
        grads = [images.T @ back, hidden.T @ grad, back.sum(0), grad.sum(0)]
        for parameter, speed, g in zip((*self.weights, *self.biases), self.speeds, grads, strict=True):
            speed *= MOMENTUM
            speed -= RATE * g
            parameter += speed
        return loss

    def predict(self, images):
        return fs.softmax(self.forward(images)[1])


def trained(images, labels, classes, **options):
    """A network trained on three quarters of the images, and the indices of the rest; asserts that the loss fell."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    training, test = order[len(order) // 4 :], order[: len(order) // 4]
    network = Network(images.shape[1], classes, rng)
    means = []
    for _ in range(EPOCHS):
        batches = np.array_split(rng.permutation(training), len(training) // SAMPLES)
        means.append(np.mean([network.step(images[b], labels[b], **options) for b in batches]))
    assert means[-1] < means[0]
    return network, test


def held_out_accuracy(images, labels, classes, **options):
    network, test = trained(images, labels, classes, **options)
    probabilities = network.predict(images[test])
    assert np.allclose(probabilities.sum(-1), 1)
    return np.mean(probabilities.argmax(-1) == labels[test])


def test_ten_digits_are_read(digits):
    assert held_out_accuracy(*digits, 10) >= 0.96


def test_ten_digits_are_read_with_smoothed_labels_and_weights(digits):
    assert held_out_accuracy(*digits, 10, label_smoothing=0.1, weight=np.linspace(0.8, 1.2, 10)) >= 0.96


def test_two_digits_are_told_apart(digits):
    images, labels = digits
    chosen = (labels == 3) | (labels == 8)
    assert held_out_accuracy(images[chosen], (labels[chosen] == 8).astype(np.int64), 2) >= 0.96


def test_two_digits_and_all_others_are_told_apart(digits):
    images, labels = digits
    three = np.select([labels == 3, labels == 8], [0, 1], 2)
    assert held_out_accuracy(images, three, 3) >= 0.96


def test_one_number_calibrates_an_overconfident_network(digits):
    """Trained on few images until its loss is nearly 0, the network is as confident where it is wrong."""
    images, labels = digits
    rng = np.random.default_rng(3)
    training, calibration, test = np.split(rng.permutation(len(images)), [60, 900])
    network = Network(images.shape[1], 10, rng)
    for _ in range(300):
        for batch in np.array_split(rng.permutation(training), 2):
            network.step(images[batch], labels[batch])
    scores = 3 * network.forward(images)[1]  # still more overconfident, on purpose
    temperature = fit_temperature(scores[calibration], labels[calibration])
    assert temperature > 2
    before = reliability(scores[test], labels[test])
    after = reliability(scores[test], labels[test], temperature=temperature)
    assert before.expected_error > 0.06
    assert after.expected_error < before.expected_error / 2
    losses = [fs.cross_entropy(scores[test], labels[test], temperature=t) for t in (1, temperature)]
    assert losses[1] < losses[0] / 2
    briers = [brier_score(scores[test], labels[test], temperature=t) for t in (1, temperature)]
    assert briers[1] < briers[0]
    # The likeliest class of each image stays the same.
    assert before.count @ np.nan_to_num(before.accuracy) == pytest.approx(after.count @ np.nan_to_num(after.accuracy))


def test_a_third_class_tells_what_is_neither_a_human_nor_a_dog(rng):
    """With two classes, even a car is one of them: a network calibrated on humans and dogs is sure that it is a dog."""
    centres = np.array([[-2.0, 0.0], [2.0, 0.0], [6.0, 5.0]])  # humans, dogs, and cars, which are on the dogs' side
    kinds = rng.integers(0, 3, 3000)
    points = centres[kinds] + rng.normal(size=(3000, 2))

    def learned(points, labels, classes):
        """Logistic regression by gradient descent."""
        features = np.c_[points, np.ones(len(points))]
        weights = np.zeros((3, classes))
        for _ in range(500):
            _, grad = fs.cross_entropy_with_grad(features @ weights, labels)
            weights -= 0.5 * features.T @ grad
        return lambda points: np.c_[points, np.ones(len(points))] @ weights

    known = kinds < 2
    half = np.arange(3000) < 1500
    two = learned(points[half & known], kinds[half & known], 2)
    three = learned(points[half], kinds[half], 3)

    unseen = ~half & known
    temperature = fit_temperature(two(points[unseen]), kinds[unseen])
    assert reliability(two(points[unseen]), kinds[unseen], temperature=temperature).expected_error < 0.02
    cars = points[~half & ~known]
    # Calibrated on humans and dogs, it takes cars for dogs, and is almost certain.
    assert np.mean(fs.softmax(two(cars), temperature=temperature)[:, 1] > 0.99) > 0.95
    # The class "none of them" takes the probability, and leaves little for human and dog.
    probabilities = fs.softmax(three(cars), temperature=fit_temperature(three(points[~half]), kinds[~half]))
    assert np.mean(probabilities[:, 2] > 0.9) > 0.95
    assert reliability(three(points[~half]), kinds[~half]).expected_error < 0.02
    # It still tells humans and dogs apart.
    assert np.mean(three(points[unseen]).argmax(-1) == kinds[unseen]) > 0.95


def test_digits_whose_stored_scores_have_little_entropy_are_read_better(digits, tmp_path):
    """Scores are stored in a file in half precision, and read in chunks."""
    images, labels = digits
    network, test = trained(images, labels, 10)
    logits = network.forward(images[test])[1].astype(np.float16)
    np.save(tmp_path / "logits.npy", logits)
    stored = np.load(tmp_path / "logits.npy", mmap_mode="r")
    entropies = np.empty(len(stored), np.float32)
    for start in range(0, len(stored), 100):
        rows = slice(start, start + 100)
        fs.entropy(stored[rows], dtype=np.float32, out=entropies[rows])
    np.testing.assert_array_equal(entropies, fs.entropy(logits, dtype=np.float32))
    right = stored.argmax(-1) == labels[test]
    sure = entropies <= np.median(entropies)
    assert right[sure].mean() > right[~sure].mean()
    assert right[sure].mean() >= 0.99


def test_a_text_is_scored_by_stored_logits_a_chunk_at_a_time(tmp_path):
    """Perplexity and entropy of a chain of tokens, whose logits are stored in a file in half precision."""
    tokens, vocabulary = 2000, 500
    rng = np.random.default_rng(1)
    path = tmp_path / "logits.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float16, (tokens, vocabulary))
    stored[...] = rng.normal(0, 3, stored.shape)
    probabilities = fs.softmax(stored, dtype=np.float64)
    text = np.array([rng.choice(vocabulary, p=p / p.sum()) for p in probabilities])
    del stored

    logits = np.load(path, mmap_mode="r")
    chosen, entropies = np.empty(tokens, np.float32), np.empty(tokens, np.float32)
    likeliest = 0
    for start in range(0, tokens, 300):
        rows = slice(start, start + 300)
        fs.log_softmax_at(logits[rows], text[rows], dtype=np.float32, out=chosen[rows])
        fs.entropy(logits[rows], dtype=np.float32, out=entropies[rows])
        likeliest += np.count_nonzero(fs.log_softmax_top_k(logits[rows], 5)[1] == text[rows, np.newaxis])
    perplexity = np.exp(-chosen.mean(dtype=np.float64))
    whole = fs.log_softmax(logits, dtype=np.float32)
    np.testing.assert_array_equal(chosen, whole[np.arange(tokens), text])
    loss = fs.cross_entropy(np.asarray(logits, np.float64), text)
    np.testing.assert_allclose(perplexity, np.exp(loss), 1e-6)
    # A text that is drawn from the model is as surprising as the model's entropy says.
    np.testing.assert_allclose(np.log(perplexity), entropies.mean(), rtol=0.05)
    five = np.sort(probabilities, axis=-1)[:, -5:].sum(-1).mean()
    np.testing.assert_allclose(likeliest / tokens, five, atol=0.05)
