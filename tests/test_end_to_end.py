"""A network of two layers in plain NumPy learns to read scanned digits, with nothing but `cross_entropy_with_grad`."""

import fastsoftmax as fs
import numpy as np
import pytest

HIDDEN, EPOCHS, SAMPLES, RATE, MOMENTUM = 64, 40, 32, 0.1, 0.9


@pytest.fixture(scope="module")
def digits():
    """Images with pixels in [0, 1], and what they show."""
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
    """A network trained on three quarters of the images, and which are left; the loss must have fallen on the way."""
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


def test_two_digits_and_none_of_them_are_told_apart(digits):
    images, labels = digits
    three = np.select([labels == 3, labels == 8], [0, 1], 2)
    assert held_out_accuracy(images, three, 3) >= 0.96


def test_digits_whose_stored_scores_have_little_entropy_are_read_better(digits, tmp_path):
    """Scores wait in a file in half precision and are visited in chunks."""
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
    """Perplexity and entropy of a chain of tokens, whose logits are a file in half precision."""
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
