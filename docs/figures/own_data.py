"""Responses of three sessions, raw and z-scored within session."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc import data

rng = np.random.default_rng(0)
session = np.repeat([1, 2, 3], 40)
gain, offset = np.array([1.0, 1.8, 0.6])[session - 1, None], np.array([0.0, 3.0, -2.0])[session - 1, None]
raw = offset + gain * (rng.standard_normal((120, 1)) * rng.uniform(0, 1, 60) + rng.standard_normal((120, 60)))
responses = data.make_responses(raw, stimulus=[f"img{i}" for i in range(120)], session=session)

figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
for axis, values, name in zip(
    axes, (responses, data.zscore(responses, by="session")), ("as they come", "z-scored within session"), strict=True
):
    image = axis.imshow(values.values, aspect="auto", cmap="RdBu_r", vmin=-5, vmax=5)
    axis.hlines([39.5, 79.5], -0.5, 59.5, color="black", lw=1)
    axis.set(title=name, xlabel="voxel")
axes[0].set_yticks([20, 60, 100], ["session 1", "session 2", "session 3"])
figure.colorbar(image, ax=axes, label="response")
