"""The start page's figure: macaque V4 through EfficientNet-Lite0. Needs the data set; writes v4.png beside this file.

python docs/figures/v4.py MIRROR
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from neuroenc import ImageEmbedder, RidgeEncoder, data, stats

found = data.load_dataset("v4-cowley2023", mirror=sys.argv[1])
Y = found.responses
X = ImageEmbedder("efficientnet-lite0", layer="block8", pooling=4, preprocessing={"size": 112}).embed(found.stimuli)
X = data.match((X - X.mean("stimulus")) / (X.std("stimulus") + 1e-9), Y)
predicted = np.zeros(Y.shape)
for train, test in data.folds(Y, "stimulus", 4):
    predicted[test] = RidgeEncoder().fit(X[train], Y[train]).predict(X[test])
measured = Y.values
r = stats.pearson_r(measured, predicted)
interval = stats.Resampler(seed=0).score(measured, predicted)
rng = np.random.default_rng(0)
null = [stats.pearson_r(measured[rng.permutation(len(measured))], predicted) for _ in range(100)]
best, order = int(np.argmax(r)), np.argsort(-r)

figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), width_ratios=(1, 1.9), layout="constrained")
axes[0].plot(predicted[:, best], measured[:, best], ".", ms=2, alpha=0.6)
axes[0].set(xlabel="predicted spike count", ylabel="measured", title=f"best site, r = {r[best]:.2f}")
place = np.arange(len(r))
axes[1].vlines(place, interval.low[order], interval.high[order], color="C0", lw=1.2, alpha=0.5)
axes[1].plot(place, r[order], ".", ms=5)
axes[1].axhspan(*np.quantile(null, [0.025, 0.975]), color="0.85", zorder=0)
axes[1].text(len(r) - 1, 0.02, "permuted responses", ha="right", fontsize=8)
axes[1].set(xlabel="sites of macaque V4, by r", ylabel="r on pictures left out", ylim=(-0.1, 0.95))
axes[1].set_title(f"median r = {np.median(r):.2f}")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)
print(f"median r {np.median(r):.4f}")
