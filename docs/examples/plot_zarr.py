"""
Logits in zarr, larger than memory
==================================

Logits of 2,000 tokens over 8,192 classes lie in a zarr store, in chunks that cut both
axes. ``fastsoftmax.dask`` computes on them without reading more than a few chunks at
a time, and without changing the chunks. The same lines work for terabytes and on a
cluster.
"""

import tempfile
from pathlib import Path

import dask.array as da
import fastsoftmax.dask as fsd
import matplotlib.pyplot as plt
import numpy as np
import zarr

folder = tempfile.TemporaryDirectory()
store = Path(folder.name, "logits.zarr")

rng = np.random.default_rng(0)
stored = zarr.create_array(store, shape=(2000, 8192), chunks=(500, 2048), dtype="f4")
for begin in range(0, 2000, 500):
    sharpness = np.linspace(0.5, 4, 500, dtype=np.float32)[:, np.newaxis]
    stored[begin : begin + 500] = sharpness * rng.standard_normal((500, 8192), "f4")

# %%
# Opening the store reads no logits, and neither do the functions: they return dask
# arrays. Only ``compute`` and ``store`` read.

logits = da.from_zarr(store)
probabilities = fsd.softmax(logits, axis=1)
entropy = fsd.entropy(logits, axis=1)
print(probabilities)

# %%
# A slice, the scores of one token, lies in four chunks here. Each chunk is summed on
# its own, and the sums are merged. For the probabilities, dask then needs the chunks
# a second time.

target = zarr.create_array(
    Path(folder.name, "probabilities.zarr"),
    shape=logits.shape,
    chunks=(500, 2048),
    dtype="f4",
)
da.store(probabilities, target, lock=False)
print(np.abs(target[:].sum(axis=1) - 1).max() < 1e-5)

# %%
# The entropy has no class axis, so it needs each chunk once. The logits were made
# sharper and sharper within each 500 tokens, so the entropy falls.

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(entropy.compute() / np.log(2))
axes.set(xlabel="token", ylabel="entropy (bits)")
axes.grid(alpha=0.3)
plt.show()
folder.cleanup()
