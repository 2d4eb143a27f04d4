"""Scores of a study, and their share of the noise ceiling by region."""

import matplotlib.pyplot as plt

import neuroenc
from neuroenc.data.simulate import simulate_cortex, simulate_world

scenes = simulate_world(260, seed=31)
cortex = simulate_cortex(scenes, n_voxels=120, n_repeats=2, seed=31)[0]
X = neuroenc.ImageEmbedder("world", normalise=True).embed(scenes)
study = neuroenc.Study(features=X, responses=cortex.responses, progress=False).until("score")
scores = study.scores
share = scores["r_normalised"].to_dataframe().groupby("roi")["r_normalised"].median().sort_values()

figure, axes = plt.subplots(1, 2, figsize=(7.2, 3))
axes[0].plot(scores["noise_ceiling_r"], scores["r"], ".", ms=4)
axes[0].axline((0, 0), slope=1, color="grey", lw=0.8)
axes[0].set(xlabel="noise ceiling (r)", ylabel="r on pictures left out")
axes[1].barh(share.index, share)
axes[1].axvline(1, color="grey", lw=0.8)
axes[1].set(xlabel="median share of the ceiling")
axes[1].tick_params(axis="y", labelsize=8)
