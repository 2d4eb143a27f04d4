"""Outlines of a whole atlas around the few vertices that were measured."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from neuroenc import data, report

scenes = data.simulate_world(4, seed=0)
responses = data.simulate_cortex(scenes, n_subjects=1, seed=0)[0].responses
places = responses[0].drop_vars([name for name in responses.coords if responses[name].dims != ("voxel",)])
names = np.array([str(roi).split(";")[0] for roi in places["roi"].values])
atlas = xr.DataArray(names, dims="voxel", coords={"vertex": places["vertex"], "hemi": places["hemi"]})
atlas.attrs["space"] = "fsaverage5"
# An atlas has every vertex of its mesh.
every = {"vertex": ("voxel", np.tile(np.arange(10242), 2)), "hemi": ("voxel", np.repeat(["L", "R"], 10242))}
whole = xr.DataArray(np.zeros(20484, dtype="U8"), dims="voxel", coords=every, attrs=atlas.attrs)
known = dict(zip(zip(atlas["hemi"].values.tolist(), atlas["vertex"].values.tolist()), names.tolist()))
whole.values[:] = [known.get(key, "") for key in zip(whole["hemi"].values.tolist(), whole["vertex"].values.tolist())]
few = places[::3]
r = np.random.default_rng(0).uniform(0, 0.8, len(few))
drawn = report.plot_surface(
    r, few["vertex"].values, few["hemi"].values, outlines=whole, mesh="flat", label="r"
)  # fmt: skip
canvas = FigureCanvasAgg(drawn)
canvas.draw()
axes = plt.figure(figsize=drawn.get_size_inches(), dpi=drawn.dpi).add_axes((0, 0, 1, 1))
axes.imshow(canvas.buffer_rgba(), aspect="auto")
axes.axis("off")
