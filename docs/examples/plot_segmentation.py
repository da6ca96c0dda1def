"""
A segmentation map
==================

Segmentation gives each pixel of an image a class. Networks return their scores in the
shape (images, classes, rows, columns): the class axis is axis 1, and the classes of a
pixel are far apart in memory. ``axis=1`` is all that is needed.

To keep the example short, scores come from colours: the closer a pixel and its
surroundings are to the colour of a class, the higher the score.
"""

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_sample_image

photograph = load_sample_image("china.jpg").astype(np.float32) / 255
names = ("sky", "roof", "red wood", "trees", "stone")
colors = ("#adc9e0", "#737570", "#80382e", "#30381a", "#b8a899")
colors = np.array([to_rgb(color) for color in colors], np.float32)

# %%
# A batch of one image, in half precision as a network would store it:

surroundings = uniform_filter(photograph, size=(7, 7, 1))
distance = ((surroundings[..., np.newaxis, :] - colors) ** 2).sum(axis=-1)
scores = np.moveaxis(-80 * distance, -1, 0)[np.newaxis].astype(np.float16)
print(scores.shape, scores.dtype)

# %%
# Probabilities of all classes, and the most probable class of each pixel. For a
# training step, ``cross_entropy_with_grad`` would take the same scores with
# ``axis=1``.

probabilities = fs.softmax(scores, axis=1, dtype=np.float32)
labels = probabilities.argmax(axis=1)
for i, name in enumerate(names):
    print(f"{name:<9} {np.mean(labels == i):.0%}")

# %%
# The entropy shows where the map should not be trusted: at the edges of things, and
# where two classes have similar colours. ``entropy`` computes it from the scores,
# without an array of probabilities.

uncertainty = fs.entropy(scores, axis=1, dtype=np.float32) / np.log(2)

figure, panels = plt.subplots(2, 2, figsize=(8, 5.8), layout="constrained")
panels[0, 0].imshow(photograph)
panels[0, 0].set_title("photograph")
panels[0, 1].imshow(colors[labels[0]])
panels[0, 1].set_title("most probable class")
trees = probabilities[0, names.index("trees")]
panels[1, 0].imshow(trees, vmin=0, vmax=1, cmap="Greens")
panels[1, 0].set_title("probability of trees")
image = panels[1, 1].imshow(uncertainty[0], cmap="magma")
panels[1, 1].set_title("entropy (bits)")
figure.colorbar(image, ax=panels[1, 1], location="bottom", shrink=0.6)
for panel in panels.flat:
    panel.set_axis_off()
plt.show()
