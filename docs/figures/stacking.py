"""Weights of stacked layers for voxels that read one of them, and R2 of stacks that grow from either end."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc.encoders import StackedEncoder

rng = np.random.default_rng(0)
n, p, per_layer, names = 600, 25, 20, ["conv1", "conv2", "conv3", "conv4", "fc"]
layers = [rng.standard_normal((n, p))]
for _ in names[1:]:
    layers.append(np.sqrt(0.7) * layers[-1] + np.sqrt(0.3) * rng.standard_normal((n, p)))
reads = np.repeat(np.arange(len(names)), per_layer)
Y = np.stack([layers[k] @ rng.standard_normal(p) / np.sqrt(p) for k in reads], axis=1)
Y += 0.7 * rng.standard_normal(Y.shape)
X = dict(zip(names, layers))
encoder = StackedEncoder().fit({k: x[:400] for k, x in X.items()}, Y[:400])
found = encoder.structured_partition({k: x[400:] for k, x in X.items()}, Y[400:])

weights = np.stack([encoder.weights_[:, reads == k].mean(axis=1) for k in range(len(names))], axis=1)
figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.2), layout="constrained")
image = axes[0].imshow(weights, vmin=0, vmax=1, cmap="viridis")
axes[0].set_xticks(range(len(names)), names)
axes[0].set_yticks(range(len(names)), names)
axes[0].set_xlabel("layer that a voxel reads")
axes[0].set_ylabel("weight in the stack")
figure.colorbar(image, ax=axes[0], label="mean weight")
own, at = reads == 2, np.arange(len(names))
for end, label, marker in (("early", "layers up to this one", "o"), ("late", "layers from this one on", "s")):
    axes[1].plot(at, found[end].values[:, own].mean(axis=1), marker=marker, label=label)
axes[1].axhline(0.95 * found["early"].values[-1, own].mean(), color="0.6", linestyle=":", label="95 % of all layers")
axes[1].set_xticks(at, names)
axes[1].set_ylim(0)
axes[1].set_ylabel("R2, mean over voxels of conv3")
axes[1].legend(frameon=False, fontsize=8)
for side in ("top", "right"):
    axes[1].spines[side].set_visible(False)
