"""Eight simulated subjects as maps of a group, and what smoothness alone feigns in a comparison of maps."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse import coo_array
from scipy.stats import norm

from neuroenc import data, stats

flat, faces = data.load_mesh("fsaverage5", "flat")["R"]
white = data.load_mesh("fsaverage5", "white")["R"][0]
vertex = np.intersect1d(np.flatnonzero(white[:, 1] < -30), faces)
edges = stats.mesh_edges(faces, keep=vertex)
n = len(vertex)
i, j = np.concatenate([edges, edges[:, ::-1], np.tile(np.arange(n)[:, None], 2)]).T
step = coo_array((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
step = step.multiply(1 / step.sum(axis=1)[:, None]).tocsr()


def smooth(maps, times):
    for _ in range(times):
        maps = step @ maps
    return maps.T / maps.std(axis=0)[:, None]


rng = np.random.default_rng(0)
xyz = white[vertex]
lateral, ventral = (np.linalg.norm(xyz - centre, axis=1) < 13 for centre in ([44, -76, 0], [38, -50, -18]))
noise = smooth(rng.standard_normal((n, 8)), 3)
has = np.arange(8)[:, None] < 6  # six of eight have the ventral region
r = 0.06 * noise + 0.25 * lateral + 0.25 * ventral * has
maps = stats.group_map(r, p=norm.sf(r / 0.06), edges=edges, n_permutations=255)

# Pairs of smooth maps of a hemisphere that know nothing of each other, on the 642 vertices of fsaverage3.
sphere = data.load_mesh("fsaverage5", "sphere")["R"][0][:642]
kernel = np.exp(sphere @ sphere.T / 100**2 / 0.15**2)
a, b = rng.standard_normal((2, 300, 642)) @ kernel
p = {k: stats.compare_maps(a, b, sphere, null=k, n=199).p for k in ("permutation", "spin")}

figure, axes = plt.subplots(1, 5, figsize=(12, 3), width_ratios=(1, 1, 1, 1, 1.1), layout="constrained")
position = np.full(len(flat), -1)
position[vertex] = np.arange(n)
triangles = position[faces]
triangles = triangles[(triangles >= 0).all(axis=1)]
shown = {"mean": "mean r, family-wise p < .05", "t": "t over 8 subjects", "prevalence": "prevalence"}
shown["overlap"] = "subjects with q < .05"
for axis, (name, label) in zip(axes, shown.items(), strict=False):
    values = np.where((maps.p_tfce <= 0.05) | (name != "mean"), maps[name], 0.0)
    drawn = axis.tripcolor(*flat[vertex, :2].T, triangles, facecolors=values[triangles].mean(axis=1), cmap="viridis")
    figure.colorbar(drawn, ax=axis, location="bottom", shrink=0.8, label=label)
    axis.set_aspect("equal")
    axis.axis("off")
for k, colour in (("permutation", "0.75"), ("spin", "C0")):
    axes[-1].hist(p[k], np.linspace(0, 1, 21), color=colour, alpha=0.8, label=k)
axes[-1].set(xlabel="p of unrelated smooth maps", ylabel="pairs of maps")
axes[-1].legend()
