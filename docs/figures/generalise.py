"""Left: what near duplicates add to accuracy. Right: a learning curve, and the power law that foretells it."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc import data, stats
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import summarise_curve, support_curve

rng = np.random.default_rng(0)
n, p, voxels = 240, 150, 60


def accuracy(X, Y, ids, groups=None):
    responses = data.make_responses(Y, stimulus=ids)
    predicted = np.empty_like(Y)
    for train, test in data.folds(responses, n_splits=5, groups=groups):
        predicted[test] = RidgeEncoder().fit(X[train], Y[train]).predict(X[test])
    return np.median(stats.pearson_r(Y, predicted))


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
X = rng.standard_normal((n, p))
own = 1.2 * rng.standard_normal((n, voxels)) + X @ rng.standard_normal((p, voxels)) / np.sqrt(p)
shares, lines = np.array([0, 20, 40, 60, 80]), {"by stimulus": [], "near duplicates together": []}
for k in shares:
    rows = np.r_[:n, :k]
    Y = own[rows] + 0.5 * rng.standard_normal((len(rows), voxels))
    features = X[rows] + 0.05 * rng.standard_normal((len(rows), p))
    ids = [f"p{i:03d}" for i in range(len(rows))]
    groups = data.near_duplicates(data.make_features(features, stimulus=ids))
    lines["by stimulus"].append(accuracy(features, Y, ids))
    lines["near duplicates together"].append(accuracy(features, Y, ids, groups))
for name, values in lines.items():
    left.plot(shares / n, values, "o-", label=name)
left.set(xlabel="share of pictures under a second name", ylabel="median r", ylim=(0, None))
left.legend(frameon=False)

X, Q, W = rng.standard_normal((1600, 40)), rng.standard_normal((300, 40)), rng.standard_normal((40, voxels))
Y, M = X @ W / 6 + rng.standard_normal((1600, voxels)), Q @ W / 6 + rng.standard_normal((300, voxels))
sizes = (50, 100, 200, 400, 800, 1600)
table = summarise_curve(support_curve({"ridge": RidgeEncoder(cv=3)}, X, Y, Q, M, sizes=sizes, n_draws=2))
seen = table[table["size"] <= 800]
law = stats.fit_power_law(seen["size"], seen["explained_variance"])
right.plot(seen["size"], seen["explained_variance"], "o-", label="ridge")
right.plot(1600, table["explained_variance"].iloc[-1], "o", mfc="white", color="C0", label="measured later")
grid = np.geomspace(60, 3200)
right.plot(grid, law(grid), "--", color="C1", label="power law of the first five")
right.set(xscale="log", xlabel="training stimuli", ylabel="explained variance", ylim=(0, None))
right.legend(frameon=False)
