"""Identification over the number of candidates: correlation against likelihood, with shared and with white noise."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc.encoders import NoiseCovariance, RidgeEncoder, identify, ridge_residuals

rng = np.random.default_rng(0)
n, fitted, voxels = 600, 400, 120
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.2), sharey=True)
for axis, shared in zip(axes, (2.0, 0.0)):
    X, W = rng.standard_normal((n, 20)), rng.standard_normal((20, voxels)) / np.sqrt(20)
    noise = rng.standard_normal((n, 4)) @ (shared * rng.standard_normal((4, voxels)) / 2)
    Y = X @ W + 4 * (noise + rng.standard_normal((n, voxels))) / np.sqrt(1 + shared**2)
    encoder = RidgeEncoder().fit(X[:fitted], Y[:fitted])
    covariance = NoiseCovariance.fit(ridge_residuals(X[:fitted], Y[:fitted], encoder.alpha_))
    predicted, measured = encoder.predict(X[fitted:]), Y[fitted:]
    for metric, own in (("correlation", None), ("likelihood", covariance)):
        found = identify(predicted, measured, metric=metric, noise=own, n_permutations=0)
        curve = found.sel(group="all")
        axis.fill_between(curve["size"], curve["accuracy_low"], curve["accuracy_high"], alpha=0.2)
        axis.plot(curve["size"], curve["accuracy"], "o-", ms=4, label=metric)
    axis.plot(curve["size"], curve["accuracy_chance"], "k--", lw=1, label="chance")
    axis.set(xscale="log", xlabel="candidates", title="noise shared by voxels" if shared else "independent noise")
axes[0].set(ylabel="share identified", ylim=(0, 1))
axes[0].legend(frameon=False)
figure.tight_layout()
