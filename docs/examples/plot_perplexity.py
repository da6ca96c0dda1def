"""
Token log-probabilities and perplexity
======================================

How probable is a text to a language model? The model gives, for each token, scores of all tokens that could come next.
The log-probability of the token that did come is one number of each row. `log_softmax_at` computes these, and no
others.

The scores are often stored first and studied later. Here they are in a file that stays on disk, in half precision.

The model of this example is a small one: it counts which character follows which three others in four of
scikit-learn's descriptions of data sets. The text to rate is a fifth one.
"""

import tempfile
from pathlib import Path

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets

loaders = (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes)
known = "".join(load().DESCR for load in loaders)
text = datasets.load_digits().DESCR[:1500]
vocabulary = sorted(set(known + text))
number = {character: i for i, character in enumerate(vocabulary)}

# %%
# The model's scores are the logarithms of what it counted, after three, two, one and no characters before. Longer
# contexts weigh more.

counts = {}
for length in range(4):
    for i in range(length, len(known)):
        row = counts.setdefault(known[i - length : i], np.zeros(len(vocabulary)))
        row[number[known[i]]] += 1


def scores_after(context):
    """Scores of all characters."""
    mixed = np.full(len(vocabulary), 1e-2)
    for length in range(4):
        row = counts.get(context[len(context) - length :])
        if row is not None:
            mixed += 8**length * row / row.sum()
    return np.log(mixed)


folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "scores.npy")
np.save(path, np.array([scores_after(text[max(0, i - 3) : i]) for i in range(len(text))], np.float16))

# %%
# A memory map: the file is read while the log-probabilities are computed. These are float32, as the sum of many needs
# more digits than float16 has.

scores = np.load(path, mmap_mode="r")
tokens = np.array([number[character] for character in text])
log_probabilities = fs.log_softmax_at(scores, tokens, dtype=np.float32)

print(f"{scores.shape[0]} tokens, {scores.shape[1]} in the vocabulary, {scores.dtype}")
print(f"perplexity {np.exp(-log_probabilities.mean()):.2f}")
print(f"{-log_probabilities.mean() / np.log(2):.2f} bits a character")

# %%
# A perplexity of n says that the model is as uncertain as if it chose among n equally probable characters. Which
# characters surprised it? The darker the background, the less probable was the character.

width, lines = 64, []
for line in text[:900].splitlines():
    lines += [line[i : i + width] for i in range(0, len(line) + 1, width)]

figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
position = 0
for row, line in enumerate(lines):
    for column, character in enumerate(line):
        surprise = -log_probabilities[position + column] / 8
        axes.add_patch(plt.Rectangle((column, row), 1, 1, color=plt.cm.OrRd(min(surprise, 1))))
        dark = surprise > 0.6
        at = (column + 0.5, row + 0.5)
        axes.text(*at, character, family="monospace", fontsize=8, ha="center", va="center", color="w" if dark else "k")
    position += len(line)
    position += text[position : position + 1] == "\n"
axes.set(xlim=(0, width), ylim=(len(lines), 0))
axes.set_axis_off()

# %%
# The entropy says how uncertain the model was before it saw the next character. On average, the surprise should be as
# large. Here it is larger: the model is too sure of itself on a text that it does not know. A temperature above 1
# helps.

print(f"mean entropy {fs.entropy(scores, dtype=np.float32).mean():.2f}, loss {-log_probabilities.mean():.2f} nats")

temperatures = np.linspace(0.6, 2.4, 60)
losses = [fs.cross_entropy(scores, tokens, temperature=t) for t in temperatures]
best = temperatures[np.argmin(losses)]

figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
axes.plot(temperatures, np.exp(losses))
axes.plot(best, np.exp(min(losses)), "o", color="tab:red")
axes.annotate(f"  {np.exp(min(losses)):.2f} at T = {best:.2f}", (best, np.exp(min(losses))), va="bottom")
axes.set(xlabel="temperature", ylabel="perplexity")
axes.grid(alpha=0.3)
plt.show()

# %%
del scores  # a file that is mapped cannot be removed on Windows
folder.cleanup()
