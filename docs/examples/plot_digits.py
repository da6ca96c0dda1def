"""
A classifier of digits
======================

A linear classifier of scanned digits, trained with nothing but a loss and its
gradient.

Each image of scikit-learn's digits has 64 pixels. The classifier computes ten scores
from them, one for each digit, and ``softmax`` turns these into probabilities.
"""

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
shuffled = np.random.default_rng(0).permutation(len(digits))
training, held_out = shuffled[:1400], shuffled[1400:]

# %%
# Training is gradient descent. ``cross_entropy_with_grad`` gives the mean loss and
# its gradient with respect to the scores; the gradient of the weights is a matrix
# product. With ``out=scores``, the gradient overwrites the scores, so no further
# array is needed.

weights = np.zeros((64, 10), np.float32)
bias = np.zeros(10, np.float32)
losses = []
for _ in range(150):
    scores = images[training] @ weights + bias
    loss, grad = fs.cross_entropy_with_grad(scores, digits[training], out=scores)
    weights -= images[training].T @ grad
    bias -= grad.sum(axis=0)
    losses.append(
        (loss, fs.cross_entropy(images[held_out] @ weights + bias, digits[held_out]))
    )

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(losses, label=["training", "held out"])
axes.set(xlabel="step", ylabel="cross-entropy (nats)", yscale="log")
axes.grid(alpha=0.3)
axes.legend()

# %%
# How often is the classifier right on images that it has not seen?

scores = images[held_out] @ weights + bias
probabilities = fs.softmax(scores)
predicted = probabilities.argmax(axis=-1)
right = np.mean(predicted == digits[held_out])
print(f"{right:.1%} of {len(held_out)} images")

# %%
# The entropy of the probabilities says how uncertain the classifier is about an
# image. These are the eight least certain ones, with the two most probable digits of
# each.

log_probabilities, best = fs.log_softmax_top_k(scores, 2)
figure, panels = plt.subplots(2, 4, figsize=(6.4, 4), layout="constrained")
for panel, i in zip(panels.flat, fs.entropy(scores).argsort()[::-1], strict=False):
    panel.imshow(images[held_out[i]].reshape(8, 8), cmap="gray_r")
    (first, second), p = best[i], np.exp(log_probabilities[i])
    color = "tab:blue" if first == digits[held_out[i]] else "tab:red"
    guesses = f"{first}: {p[0]:.0%}  {second}: {p[1]:.0%}"
    panel.set_title(guesses, fontsize=9, color=color)
    panel.set_axis_off()
figure.suptitle("least certain (red: the first guess is wrong)", fontsize=10)
plt.show()
# sphinx_gallery_thumbnail_number = 2
