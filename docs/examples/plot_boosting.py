"""
Boosted trees that learn from probabilities
===========================================

LightGBM's labels are class indices. With a custom objective, trees can learn from
class probabilities instead. Here they come from a linear classifier, the teacher,
which averages out wrong labels better than the trees do.
"""

import fastsoftmax as fs
import lightgbm
import matplotlib.pyplot as plt
import numpy as np
from fastsoftmax import boosting
from sklearn.datasets import load_digits

images, digits = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
shuffled = rng.permutation(len(digits))
training, testing = shuffled[:900], shuffled[900:]

# %%
# A fifth of the training labels are replaced by random ones.

labels = digits[training].copy()
wrong = rng.random(len(labels)) < 0.2
labels[wrong] = rng.integers(0, 10, wrong.sum())

# %%
# The teacher is trained on these labels. A temperature below 1 makes its
# probabilities sharper, so that they trust its first guess more than the label.

pixels = (images[training] / 16).astype(np.float32)
weights = np.zeros((64, 10), np.float32)
for _ in range(300):
    scores = pixels @ weights
    _, grad = fs.cross_entropy_with_grad(scores, labels, out=scores)
    weights -= pixels.T @ grad

taught = fs.softmax(pixels @ weights, temperature=0.25)

# %%
# An objective returns the gradient and the diagonal of the Hessian.
# ``cross_entropy_with_grad_hess`` computes both in one call.
# ``fastsoftmax.boosting.lightgbm`` is an objective that computes the same as the
# built-in one.


def from_teacher(scores, _):
    _, grad, hess = fs.cross_entropy_with_grad_hess(scores, taught, reduction="none")
    return grad, hess


def train(objective, rounds):
    parameters = {
        "objective": objective,
        "num_class": 10,
        "max_depth": 3,
        "verbose": -1,
        "deterministic": True,
        "num_threads": 1,
    }
    data = lightgbm.Dataset(images[training], labels)
    return lightgbm.train(parameters, data, rounds)


# %%
# The picture shows the loss on images that were not trained on, with their true
# labels. Trees that learn only from the labels learn the wrong ones, too.

rounds = np.arange(5, 101, 5)
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for name, objective in (("labels", boosting.lightgbm), ("teacher", from_teacher)):
    model = train(objective, rounds[-1])
    losses = []
    for used in rounds:
        scores = model.predict(images[testing], raw_score=True, num_iteration=used)
        losses.append(fs.cross_entropy(scores, digits[testing]))
    axes.plot(rounds, losses, marker=".", label=f"from the {name}")
    right = np.mean(scores.argmax(axis=-1) == digits[testing])
    print(f"from the {name}: loss {losses[-1]:.3f}, {right:.1%} right")

axes.set(xlabel="round", ylabel="held-out cross-entropy (nats)", yscale="log")
axes.grid(alpha=0.3)
axes.legend()
plt.show()
