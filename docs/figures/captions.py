"""Captions of three voxels with the images that drive their encoders most."""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np

import neuroenc
from neuroenc import Captioner, data
from neuroenc.captions import load_captioner
from neuroenc.data.simulate import simulate_cortex, simulate_world

scenes = simulate_world(400, seed=41)
subject = simulate_cortex(scenes, n_voxels=150, own=0.0, seed=41)[0]
Y = data.average_repeats(data.zscore(subject.responses, by="session"))
bank = neuroenc.ImageEmbedder("world").embed(scenes)
unit = bank / (bank**2).sum("feature") ** 0.5
encoder = neuroenc.RidgeEncoder().fit(data.match(unit, Y), Y)
chosen = []
for region in ("FFA", "PPA", "food"):
    inside = np.flatnonzero(Y.roi.values == region)
    chosen.append(inside[np.argmax(encoder.best_score_[inside])])
coef, intercept = encoder.to_linear()
captioner = Captioner(bank, load_captioner("world"), stimuli=scenes, top=1, n_evidence=5)
study = captioner.caption((coef[:, chosen], intercept[chosen]))

figure, axes = plt.subplots(3, 6, figsize=(7.4, 4.1), width_ratios=(1.7, 1, 1, 1, 1, 1))
for row, voxel in zip(axes, Y.voxel.values[chosen], strict=True):
    said = study.captions.query("voxel == @voxel")["caption"].iloc[0]
    planted = str(subject.truth.family.sel(voxel=voxel).values)
    row[0].text(0, 0.5, fill(f'"{said}"', 22) + f"\n\nplanted: {planted}", va="center", fontsize=8)
    for axis, stimulus in zip(row[1:], study.evidence.query("voxel == @voxel")["stimulus"], strict=True):
        axis.imshow(scenes.image(stimulus))
    for axis in row:
        axis.axis("off")
