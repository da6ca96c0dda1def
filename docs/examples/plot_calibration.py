"""
Calibration, before and after
=============================

A classifier that was trained for long on few images is right less often than its
probabilities say. One number, the temperature, corrects most of it.
"""

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np
from fastsoftmax import calibration
from sklearn.datasets import load_digits

images, digits = load_digits(return_X_y=True)
images = images.astype(np.float32)  # not scaled: that makes the scores large
shuffled = np.random.default_rng(0).permutation(len(digits))
training, fitting, testing = np.split(shuffled, [80, 900])

# %%
# The classifier sees 80 images again and again. It gets all of them right, and its
# scores grow further than other images justify.

weights = np.zeros((64, 10), np.float32)
for _ in range(300):
    scores = images[training] @ weights
    _, grad = fs.cross_entropy_with_grad(scores, digits[training], out=scores)
    weights -= 0.1 * images[training].T @ grad

scores = images @ weights

# %%
# ``fit_temperature`` looks for the temperature with the least loss, on images that
# were not trained on. The order of the classes stays, and so does the accuracy. The
# loss on the remaining images falls.

temperature = calibration.fit_temperature(scores[fitting], digits[fitting])
print(f"temperature {temperature:.2f}")
for T in (1.0, temperature):
    loss = fs.cross_entropy(scores[testing], digits[testing], temperature=T)
    brier = calibration.brier_score(scores[testing], digits[testing], temperature=T)
    print(f"loss {loss:.3f}, Brier score {brier:.3f} at temperature {T:.2f}")

# %%
# A reliability diagram has a bar for each range of the probability of the most
# probable class. The bar shows how often this class is right. In a calibrated
# classifier the bars end at the diagonal. The histogram below shows how many images
# are in each range.

figure, panels = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
for panel, T in zip(panels, (1.0, temperature), strict=True):
    found = calibration.reliability(
        scores[testing], digits[testing], temperature=T, bins=10
    )
    found.plot(panel)
plt.show()
