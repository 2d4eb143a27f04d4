"""Receptive fields that a Gaussian readout recovers."""

import matplotlib.pyplot as plt

from neuroenc.data.simulate import simulate_readout_population
from neuroenc.encoders import ReadoutEncoder

voxels = simulate_readout_population("gaussian", n_voxels=40, n_stimuli=800, seed=1)
encoder = ReadoutEncoder("gaussian", readout_options={"read": "integrate"}, lr=0.02, max_epochs=30)
field = encoder.fit(voxels.maps, voxels.responses).receptive_field()

figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.6))
for axis, name, label in zip(axes, ("x", "y", "size"), ("centre, x", "centre, y", "size (s.d.)"), strict=True):
    axis.plot(voxels.truth[f"rf_{name}"], field[name], ".", ms=5)
    axis.axline((0, 0), slope=1, color="grey", lw=0.8)
    axis.set(xlabel=f"planted {label}", ylabel=f"recovered {label}")
