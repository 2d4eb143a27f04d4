"""Variance partitioning of voxels whose parts are planted."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc.encoders import variance_partition

rng = np.random.default_rng(0)
shared, vision, language = rng.standard_normal((3, 600, 8))
groups = {"vision": (0, 0.5, 0), "language": (0, 0, 0.4), "both": (0.5, 0.1, 0.1), "nothing": (0, 0, 0)}
columns = []
for parts in groups.values():
    for _ in range(15):
        y = np.sqrt(1 - sum(parts)) * rng.standard_normal(600)
        for share, space in zip(parts, (shared, vision, language), strict=True):
            signal = space @ rng.standard_normal(8)
            y = y + np.sqrt(share) * signal / signal.std()
        columns.append(y)
spaces = {"vision": np.hstack([shared, vision]), "language": np.hstack([shared, language])}
found = variance_partition(spaces, np.stack(columns, 1), n_bootstraps=0).share.values.reshape(3, 4, 15)

figure, axis = plt.subplots(figsize=(6.4, 3))
order = {"vision alone": (0, 1), "language alone": (1, 2), "shared": (2, 0)}
for k, (label, (part, planted)) in enumerate(order.items()):
    place = np.arange(4) + 0.26 * (k - 1)
    axis.bar(place, found[part].mean(1), 0.24, yerr=found[part].std(1), label=label)
    axis.plot(place, [p[planted] for p in groups.values()], "kx", ms=5)
axis.axhline(0, color="black", lw=0.8)
axis.set_xticks(range(4), [f"{g} voxels" for g in groups])
axis.set_ylabel("share of variance (R²)")
axis.legend()
