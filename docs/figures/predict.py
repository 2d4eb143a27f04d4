"""Predicted responses of regions to six scenes, beside how well each region is predicted."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc.data import in_roi, roi_names, simulate_world
from neuroenc.study import load_predictor

predictor = load_predictor("world-s1", cache=False)
pool = simulate_world(60, seed=1)
families = ["face", "body", "place", "word", "food", "none"]
scenes = pool.sel([pool.table.index[pool.table["family"] == name][0] for name in families])
predicted, voxels = predictor.predict(scenes), predictor.voxels
order = ["V1", "V2", "V3", "hV4", "OFA", "FFA", "EBA", "FBA", "OPA", "PPA", "RSC", "VWFA", "food"]
assert set(order) == set(roi_names(voxels))
means = np.array([predicted[:, in_roi(predicted, name)].mean("voxel").values for name in order])

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.6), width_ratios=(6, 4), sharey=True, layout="constrained")
top = np.abs(means).max()
image = left.imshow(means, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
left.set_xticks(range(6), [])
left.set_yticks(range(len(order)), order)
for n, name in enumerate(families):
    inset = left.inset_axes((n / 6 + 0.01, -0.22, 1 / 6 - 0.02, 0.2))
    inset.imshow(scenes.image(n))
    inset.set(xticks=[], yticks=[])
    inset.set_xlabel(name if name != "none" else "other", fontsize=8)
figure.colorbar(image, ax=left, location="top", label="predicted mean response (SD of a voxel)", shrink=0.8)
rng = np.random.default_rng(0)
for n, name in enumerate(order):
    mask = in_roi(voxels, name)
    r, ceiling = voxels["r"].values[mask], np.median(voxels["noise_ceiling_r"].values[mask])
    right.plot(r, n + rng.uniform(-0.25, 0.25, len(r)), ".", ms=2, alpha=0.5, color="0.5")
    right.plot([np.median(r)] * 2, [n - 0.4, n + 0.4], color="C0", lw=2)
    right.plot([ceiling] * 2, [n - 0.4, n + 0.4], color="black", lw=1)
right.axvline(0, color="black", lw=0.6)
right.set(xlabel="held-out r (blue: median; black: ceiling)", xlim=(-0.2, 1))
