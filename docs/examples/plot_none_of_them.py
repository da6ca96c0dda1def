"""
Human, dog and "none of them"
=============================

Softmax shares all of the probability among the classes that it is given. A classifier of humans and dogs that sees a
bird must call it one of the two. The remedy is a third class, "none of them", with a score of its own.

Here, two measurements of an animal stand for an image: its height and how long its fur is. The score of a class is the
logarithm of how common such measurements are in that class, so softmax gives the probability of each class (Bayes'
theorem).
"""

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np

rng = np.random.default_rng(0)
centres = {"human": ([1.7, 0.3], [0.12, 0.25]), "dog": ([0.55, 4.0], [0.15, 1.5])}  # mean and spread


def score(measured, mean, spread):
    """The log-density of a normal distribution."""
    z = (measured - np.array(mean)) / spread
    return -0.5 * (z**2).sum(axis=-1) - np.log(spread).sum() - np.log(2 * np.pi)


height, fur = np.meshgrid(np.linspace(0, 2.4, 400), np.linspace(0, 10, 300))
measured = np.stack([height, fur], axis=-1)
scores = np.stack([score(measured, *each) for each in centres.values()], axis=-1)
print(scores.shape)

# %%
# "None of them" may be anything, so its density is the same everywhere: a constant score. It is low. Where the score
# of a class is higher, that class wins; far from both classes, their scores fall without end, and "none of them" is
# left.

none = np.full((*scores.shape[:-1], 1), np.log(1 / (2.4 * 10)))
with_none = np.concatenate([scores, none], axis=-1)

# %%
# The picture mixes a colour for each class by its probability: red for human, blue for dog, light grey for none of
# them. On the left there is no grey. An animal of 2.2 metres with fur of 9 centimetres is a dog to it, and quite
# certainly so.

colors = np.array([[0.84, 0.15, 0.16], [0.12, 0.40, 0.71], [0.88, 0.88, 0.88]])
figure, panels = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained", sharey=True)
titles = ("two classes", "with “none of them”")
for panel, title, each in zip(panels, titles, (scores, with_none), strict=True):
    probabilities = fs.softmax(each)
    panel.imshow(probabilities @ colors[: each.shape[-1]], extent=(0, 2.4, 0, 10), origin="lower", aspect="auto")
    for name, (mean, _) in centres.items():
        panel.text(*mean, name, color="white", ha="center", va="center", weight="bold")
    panel.set(title=title, xlabel="height (m)")
panels[0].set_ylabel("fur (cm)")

# %%
# Three animals, and what the two classifiers say of them:

animals = {"a tall human": (1.9, 0.2), "a poodle": (0.4, 4.0), "a bear": (2.2, 9.0)}
for name, animal in animals.items():
    two = np.array([score(animal, *each) for each in centres.values()])
    three = np.append(two, np.log(1 / (2.4 * 10)))
    if name == "a poodle":
        poodle = three
    print(f"{name:<13} two classes: {fs.softmax(two).round(3)}   three: {fs.softmax(three).round(3)}")

# %%
# If something is known beforehand, such as "no dogs are allowed in here", `where` takes a class out. The probabilities
# of the others then sum to 1.

print("a poodle where no dogs are:", fs.softmax(poodle, where=[True, False, True]).round(3))

# %%
# The entropy shows where the classifier hesitates: along the borders between the classes. With a temperature above 1
# the borders get wider.

figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for panel, temperature in zip(panels, (1.0, 3.0), strict=True):
    entropy = fs.entropy(with_none, temperature=temperature) / np.log(2)
    image = panel.imshow(entropy, extent=(0, 2.4, 0, 10), origin="lower", aspect="auto", vmin=0, vmax=np.log2(3))
    panel.set(title=f"temperature {temperature:g}", xlabel="height (m)")
panels[0].set_ylabel("fur (cm)")
figure.colorbar(image, ax=panels, label="entropy (bits)")
plt.show()
