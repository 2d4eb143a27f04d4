"""Polar angle that Benson's template predicts, beside fields planted at its centres with noise."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from neuroenc import data, report
from neuroenc.encoders.readout import retinotopy, template_retinotopy

where = {"vertex": ("voxel", np.tile(np.arange(10242), 2)), "hemi": ("voxel", np.repeat(["L", "R"], 10242))}
mesh = xr.DataArray(np.zeros(20484), dims="voxel", coords=where, attrs={"space": "fsaverage5"})
if data.list_atlases().loc["benson14", "found"]:
    told = template_retinotopy(mesh, "benson14", width=16)
else:
    # Made up: angles turn with the height above the back of the brain, eccentricity grows forwards.
    xyz = np.concatenate([data.load_mesh("fsaverage5", "inflated")[h][0] for h in "LR"])
    back = xyz[:, 1] - xyz[:, 1].min()
    inside = back < 40
    angles = {
        "polar_angle": np.clip(90 + 2 * (xyz[:, 2] - np.median(xyz[inside, 2])), 0, 180),
        "eccentricity": back / 5,
    }
    angles["size"] = 0.3 + 0.2 * angles["eccentricity"]
    coords = {k: ("voxel", np.where(inside, v, np.nan)) for k, v in angles.items()} | where
    atlas = xr.DataArray(np.where(inside, "early", ""), dims="voxel", coords=coords, attrs={"space": "fsaverage5"})
    told = template_retinotopy(mesh, atlas, width=16)
kept = told.isel(voxel=np.flatnonzero(np.isfinite(told["polar_angle"].values)))
radians = np.radians(kept["polar_angle"].values)
noise = 0.4 * np.random.default_rng(0).standard_normal((2, len(radians)))  # degrees
x, y = (kept["eccentricity"].values * f(radians) for f in (np.cos, np.sin))
places = {k: ("voxel", v) for k, v in {"x": (x + noise[0]) / 8, "y": -(y + noise[1]) / 8}.items()}
seen = retinotopy(xr.Dataset(places | {"size": ("voxel", kept["size"].values / 8)}), 16)

pictures = []
for values in (kept, seen):
    drawn = report.plot_surface(
        values["polar_angle"].values, kept["vertex"].values, kept["hemi"].values, mesh="flat", surface="fsaverage5",
        cmap="twilight", vmin=-180, vmax=180, label="polar angle, degrees",
    )  # fmt: skip
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    pictures.append(np.asarray(canvas.buffer_rgba()))
tall, wide = pictures[0].shape[:2]
crop = slice(int(0.16 * wide), int(0.84 * wide))
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.6 * tall / (0.68 * wide) + 0.3))
figure.subplots_adjust(0, 0, 1, 0.93, 0.01)
for axis, title, picture in zip(axes, ("template", "fields with noise"), pictures, strict=True):
    axis.imshow(picture[:, crop])
    axis.set_title(title, fontsize=9)
    axis.axis("off")
