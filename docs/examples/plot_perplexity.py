"""
Token log-probabilities and perplexity
======================================

How probable is a text to a language model? At each position, the model gives a score
to every token that could come next: a row of scores. From each row, only the
log-probability of the token that did come is needed. ``log_softmax_at`` computes
these, and no others.

The scores are often stored first and studied later. Here they are in a file, in half
precision.

The model of this example is a small one: it counts which character follows which
three others in four of scikit-learn's descriptions of data sets. The text to rate is
a fifth one.
"""

import tempfile
from pathlib import Path

import fastsoftmax as fs
import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets

names = ("iris", "wine", "breast_cancer", "diabetes")
known = "".join(getattr(datasets, f"load_{name}")().DESCR for name in names)
text = datasets.load_digits().DESCR[:1500]
vocabulary = sorted(set(known + text))
number = {character: i for i, character in enumerate(vocabulary)}

# %%
# The model's scores are the logarithms of what it counted, after three, two, one and
# no characters before. Longer contexts weigh more.

counts = {}
for length in range(4):
    for i in range(length, len(known)):
        row = counts.setdefault(known[i - length : i], np.zeros(len(vocabulary)))
        row[number[known[i]]] += 1


def scores_after(context):
    """Scores of all characters."""
    mixed = np.full(len(vocabulary), 1e-2)
    for length in range(len(context) + 1):
        row = counts.get(context[len(context) - length :])
        if row is not None:
            mixed += 8**length * row / row.sum()
    return np.log(mixed)


folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "scores.npy")
contexts = [text[max(0, i - 3) : i] for i in range(len(text))]
np.save(path, np.array([scores_after(context) for context in contexts], np.float16))

# %%
# The scores are a memory map: the file is read while the log-probabilities are
# computed. These are float32, because the sum of many needs more digits than float16
# has.

scores = np.load(path, mmap_mode="r")
tokens = np.array([number[character] for character in text])
log_probabilities = fs.log_softmax_at(scores, tokens, dtype=np.float32)

print("tokens and vocabulary:", scores.shape, scores.dtype)
print(f"perplexity {np.exp(-log_probabilities.mean()):.2f}")
print(f"{-log_probabilities.mean() / np.log(2):.2f} bits a character")

# %%
# A perplexity of n says that the model is as uncertain as if it chose among n equally
# probable characters. Which characters surprised it? The darker the background, the
# less probable was the character.

width, lines = 72, []
for line in text[:900].splitlines():
    lines += [line[i : i + width] for i in range(0, len(line) + 1, width)]

figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
style = {"family": "monospace", "fontsize": 10, "ha": "center", "va": "center"}
position = 0
for row, line in enumerate(lines):
    for column, character in enumerate(line):
        surprise = min(-log_probabilities[position + column] / 8, 1.0)
        cell = plt.Rectangle((column, row), 1, 1, color=plt.cm.OrRd(surprise))
        axes.add_patch(cell)
        color = "white" if surprise > 0.6 else "black"
        axes.text(column + 0.5, row + 0.5, character, color=color, **style)
    position += len(line)
    position += text[position : position + 1] == "\n"
axes.set(xlim=(0, width), ylim=(len(lines), 0))
axes.set_axis_off()

# %%
# The entropy says how uncertain the model was before it saw the next character. On
# average, the surprise (the negative log-probability of the character that came)
# should be as large. Here it is larger: the model is too sure of itself on a text
# that it does not know. A temperature above 1 helps.

print(f"mean entropy {fs.entropy(scores, dtype=np.float32).mean():.2f} nats")
print(f"mean surprise {-log_probabilities.mean():.2f} nats")

temperatures = np.linspace(0.6, 2.4, 60)
losses = [fs.cross_entropy(scores, tokens, temperature=t) for t in temperatures]
best, perplexity = temperatures[np.argmin(losses)], np.exp(min(losses))

figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
axes.plot(temperatures, np.exp(losses))
axes.plot(best, perplexity, "o", color="tab:red")
axes.annotate(
    f"{perplexity:.2f} at T = {best:.2f}",
    (best, perplexity),
    (0, 8),
    textcoords="offset points",
)
axes.set(xlabel="temperature", ylabel="perplexity")
axes.grid(alpha=0.3)
plt.show()

# %%
del scores  # a file that is mapped cannot be removed on Windows
folder.cleanup()
