"""A split by rows leaks the response to each picture; a split by stimulus does not."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc import data
from neuroenc.encoders import RidgeEncoder

rng = np.random.default_rng(0)
n, voxels = 100, 300
ids = np.tile([f"img{i:03d}" for i in range(n)], 3)
own = rng.standard_normal((n, voxels))
responses = data.make_responses(np.tile(own, (3, 1)) + rng.standard_normal((3 * n, voxels)), stimulus=ids)
features = np.tile(rng.standard_normal((n, 60)), (3, 1))
order = rng.permutation(3 * n)
scores = {}
for name, (train, test) in {
    "by rows": (order[: 2 * n], order[2 * n :]),
    "by stimulus": next(iter(data.folds(responses, "stimulus", 3))),
}.items():
    encoder = RidgeEncoder().fit(features[train], responses.values[train])
    scores[name] = encoder.score_voxels(features[test], responses.values[test])

figure, axis = plt.subplots(figsize=(6, 3))
for name, values in scores.items():
    axis.hist(values, np.linspace(-0.5, 0.8, 53), alpha=0.7, label=f"split {name}: median r {np.median(values):.2f}")
axis.axvline(0, color="black", lw=0.8)
axis.set(xlabel="r on rows left out", ylabel="voxels")
axis.legend()
