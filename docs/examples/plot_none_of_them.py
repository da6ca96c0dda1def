"""
Human, dog and "none of them"
=============================

Softmax shares all of the probability among the classes that it is given. A classifier
of humans and dogs that sees a bear must call it one of the two. The remedy is a third
class, "none of them", with a score of its own.

Here, two measurements of an animal stand for an image: its height and how long its
fur is. The score of a class is the logarithm of how common such measurements are in
that class, so softmax gives the probability of each class (Bayes' theorem).
"""

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np

names = ("human", "dog")
means = np.array([[1.7, 0.3], [0.55, 4.0]])
spreads = np.array([[0.12, 0.25], [0.15, 1.5]])


def two_scores(measured):
    """The log-densities of two normal distributions."""
    z = (measured[..., np.newaxis, :] - means) / spreads
    return -0.5 * (z**2).sum(axis=-1) - np.log(2 * np.pi * spreads.prod(axis=-1))


# %%
# "None of them" may be anything, so its density is the same everywhere. Its score is
# a low constant. Where the score of another class is higher, that class wins. Far
# from both classes their scores are lower still, and "none of them" wins.


def three_scores(measured):
    scores = two_scores(measured)
    none = np.full((*scores.shape[:-1], 1), -np.log(2.4 * 10))
    return np.concatenate([scores, none], axis=-1)


# %%
# The picture mixes a colour for each class by its probability: red for human, blue
# for dog, light grey for none of them. The left panel, with two classes, has no grey:
# an animal of 2.2 metres with fur of 9 centimetres is almost certainly a dog there.

heights, furs = np.linspace(0, 2.4, 400), np.linspace(0, 10, 300)
measured = np.stack(np.meshgrid(heights, furs), axis=-1)
size = {"figsize": (8, 3.8), "layout": "constrained"}
plane = {"extent": (0, 2.4, 0, 10), "origin": "lower", "aspect": "auto"}
colors = np.array([[0.84, 0.15, 0.16], [0.12, 0.40, 0.71], [0.88, 0.88, 0.88]])

figure, panels = plt.subplots(1, 2, sharey=True, **size)
for panel, scores in zip(
    panels, (two_scores(measured), three_scores(measured)), strict=True
):
    classes = scores.shape[-1]
    panel.imshow(fs.softmax(scores) @ colors[:classes], **plane)
    panel.set(title=f"{classes} classes", xlabel="height (m)")
    for name, mean in zip(names, means, strict=True):
        panel.text(*mean, name, color="white", ha="center", va="center")
panels[0].set_ylabel("fur (cm)")

# %%
# The probabilities that the two classifiers give to three animals:

animals = np.array([[1.9, 0.2], [0.4, 4.0], [2.2, 9.0]])
two, three = fs.softmax(two_scores(animals)), fs.softmax(three_scores(animals))
for name, *probabilities in zip(
    ("a tall human", "a poodle", "a bear"), two, three, strict=True
):
    print(f"{name:<13}", *(row.round(3) for row in probabilities))

# %%
# If something is known beforehand, such as "there are no humans here", ``where``
# takes a class out. The probabilities of the others then sum to 1.

print(fs.softmax(three_scores(animals), where=[False, True, True]).round(3))

# %%
# The entropy shows where the classifier hesitates: along the borders between the
# classes. With a temperature above 1 the borders get wider.

figure, panels = plt.subplots(1, 2, sharey=True, **size)
for panel, temperature in zip(panels, (1.0, 3.0), strict=True):
    entropy = fs.entropy(three_scores(measured), temperature=temperature) / np.log(2)
    image = panel.imshow(entropy, **plane, vmin=0, vmax=np.log2(3))
    panel.set(title=f"temperature {temperature:g}", xlabel="height (m)")
panels[0].set_ylabel("fur (cm)")
figure.colorbar(image, ax=panels, label="entropy (bits)")
plt.show()
