"""Voxels above chance, and the interval of a region's median."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc import stats

rng = np.random.default_rng(0)
y = rng.standard_normal((200, 2000))
yhat = rng.standard_normal((200, 2000))
yhat[:, :700] += rng.uniform(0, 0.8, 700) * y[:, :700]
r = stats.pearson_r(y, yhat)
passed = stats.fdr(stats.permutation_test(y, yhat, n_permutations=1000, seed=0).p) < 0.05

# Noise that voxels of a region share, as neighbours do.
common = rng.standard_normal((200, 1))
y = rng.standard_normal((200, 300)) + common
yhat = 0.4 * y + rng.standard_normal((200, 300)) + 0.8 * rng.standard_normal((200, 1))
roi = stats.Resampler(seed=0).regions(y, yhat, {"region": np.arange(300)})["region"]
single = stats.pearson_r(y, yhat)
draws = np.median(rng.choice(single, (1000, 300)), axis=1)

figure, axes = plt.subplots(1, 2, figsize=(7.2, 3), width_ratios=(1.6, 1))
bins = np.linspace(-0.3, 0.75, 64)
axes[0].hist([r[~passed], r[passed]], bins, stacked=True, label=["not above chance", "q < 0.05"], color=["0.75", "C0"])
axes[0].set(xlabel="r on held-out pictures", ylabel="voxels")
axes[0].legend()
for x, (low, high) in enumerate([(roi.low, roi.high), np.quantile(draws, [0.025, 0.975])]):
    axes[1].errorbar(x, np.median(single), [[np.median(single) - low], [high - np.median(single)]], fmt="o", capsize=5)
axes[1].set_xticks([0, 1], ["stimuli\nresampled", "voxels resampled\n(wrong)"])
axes[1].set(ylabel="median r of the region", xlim=(-0.6, 1.6))
