"""What pictures are expected to give, and what they gave on a new simulated subject."""

import matplotlib.pyplot as plt
import numpy as np

import neuroenc
from neuroenc import data, stats
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.encoders.incontext import (
    EmpiricalBayesRidge,
    ExpectedAccuracy,
    PriorSelector,
    load_model,
    random_lists,
)

scenes = simulate_world(300, seed=31)
subject = simulate_cortex(scenes, test_ids=scenes.ids[-80:], n_voxels=150, seed=31)[0]
train, test = data.shared_test(data.zscore(subject.responses, by="session"), scenes.ids[-80:])
Y, Y_test = data.average_repeats(train), data.average_repeats(test)
features = neuroenc.ImageEmbedder("world", normalise=True).embed(scenes)
X, X_test = data.match(features, Y), data.match(features, Y_test)

prior = load_model("world").weight_prior()  # of the subjects that the model was trained on
expected = ExpectedAccuracy(prior, X.values)
chosen = PriorSelector(prior).select(X, 60)
drawn = random_lists(np.arange(len(X)), 60, 4, seed=0)
sizes = [10, 30, 60]


def measured(rows):
    """Explained variance of new pictures after the first of these, a mean over voxels."""
    fits = [EmpiricalBayesRidge(prior).fit(X[rows[:n]], Y[rows[:n]]) for n in sizes]
    return [stats.explained_variance(Y_test.values, fit.predict(X_test).values).mean() for fit in fits]


figure, axis = plt.subplots(figsize=(6, 3.4))
for name, rows, colour in (("chosen", chosen, "#2b6ca3"), ("random", drawn, "#b8480b")):
    curve = expected.after(rows)
    axis.plot(curve.place, curve.explained_variance, color=colour, label=f"{name}, expected")
    if name == "chosen":
        axis.fill_between(curve.place, curve.low, curve.high, color=colour, alpha=0.12, lw=0)
    found = np.mean([measured(row) for row in np.atleast_2d(rows)], axis=0)
    axis.plot(sizes, found, "o", color=colour, label=f"{name}, measured")
axis.axhline(expected.ceiling, color="black", lw=0.8, ls=":", label="ceiling, expected")
axis.set(xlabel="pictures shown", ylabel="explained variance", xlim=(1, 60), ylim=(-0.02, 1.3 * expected.ceiling))
axis.legend(fontsize=8)
