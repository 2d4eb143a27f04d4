"""Patch maps of a voxel that prefers faces, over scenes that it never saw."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from neuroenc import ImageEmbedder
from neuroenc.data.simulate import simulate_world
from neuroenc.embedding import embed_windows
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.readout import patch_map

scenes = simulate_world(400, seed=4242)
embedder = ImageEmbedder("world", normalise=True, progress=False)
encoder = RidgeEncoder().fit(embedder.embed(scenes.sel(scenes.ids[:360])), scenes.table[["face"]].to_numpy()[:360])
faces = scenes.table.iloc[360:].query("face > 0 and n_objects > 1").head(4)
shown = scenes.sel(faces.index)
maps = patch_map(encoder, embed_windows(embedder, shown, grid=8)).values[:, 0]

figure, axes = plt.subplots(1, 4, figsize=(7.2, 2))
for n, (axis, (_, scene)) in enumerate(zip(axes, faces.iterrows(), strict=True)):
    axis.imshow(shown.images[n], extent=(-0.5, 0.5, -0.5, 0.5))
    axis.imshow(maps[n], extent=(-0.5, 0.5, -0.5, 0.5), cmap="inferno", alpha=0.55, interpolation="bilinear")
    x, y, size = scene["face_x"], scene["face_y"], scene["face_size"]
    axis.add_patch(Rectangle((x - size / 2, y - size / 2), size, size, fill=False, ec="white", lw=1.2))
    axis.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), xticks=[], yticks=[])
