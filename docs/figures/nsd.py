"""A map of accuracy of a miniature of NSD, on slices."""

import tempfile

import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from neuroenc import ImageEmbedder, RidgeEncoder, data, stats
from neuroenc.data import simulate
from neuroenc.report import plot_mosaic

with tempfile.TemporaryDirectory() as folder:
    simulate.nsd_tree(
        folder, n_subjects=2, n_shared=40, n_unique=120, n_voxels=220, n_sessions=[8] * 8, formats=("nii.gz",), seed=3
    )
    subject = data.nsd(folder, 1, voxels="nsdgeneral", cache=False, progress=False)
    split = data.nsd_split(subject, "shared1000")
    Y, Y_test = data.average_repeats(split.train), data.average_repeats(split.test)
    X = ImageEmbedder("world", normalise=True).embed(subject.stimuli)
    r = RidgeEncoder().fit(data.match(X, Y), Y).score_voxels(data.match(X, Y_test), Y_test)
    ceiling = stats.noise_ceiling(subject.responses.ncsnr.values, 3, unit="r")
    plt.rcParams["figure.constrained_layout.use"] = False  # the mosaic has a layout of its own
    mosaic = plot_mosaic(r, alpha=ceiling, alpha_label="noise ceiling, r", rois=["early", "ventral", "parietal"])

# The mosaic is a figure of its own; pyplot, which the site collects figures from, gets its picture.
canvas = FigureCanvasAgg(mosaic)
canvas.draw()
axis = plt.figure(figsize=mosaic.get_size_inches(), dpi=110).add_axes((0, 0, 1, 1))
axis.imshow(canvas.buffer_rgba(), aspect="auto")
axis.axis("off")
