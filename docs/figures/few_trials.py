"""Support curves on a new simulated subject."""

import matplotlib.pyplot as plt

import neuroenc
from neuroenc import data
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import support_curve

scenes = simulate_world(260, seed=31)
subject = simulate_cortex(scenes, test_ids=scenes.ids[-80:], n_voxels=120, seed=31)[0]
train, test = data.shared_test(data.zscore(subject.responses, by="session"), scenes.ids[-80:])
Y, Y_test = data.average_repeats(train), data.average_repeats(test)
features = neuroenc.ImageEmbedder("world", normalise=True).embed(scenes)
methods = {
    "in context": InContextEncoder("world"),
    "ridge, one penalty": neuroenc.RidgeEncoder(alpha_per_voxel=False),
    "ridge, a penalty per voxel": neuroenc.RidgeEncoder(),
}
X, X_test = data.match(features, Y), data.match(features, Y_test)
selective = subject.truth.family.values != ""
curve = support_curve(
    methods, X, Y[:, selective], X_test, Y_test[:, selective], sizes=(20, 40, 80, 160), n_draws=3, progress=False
)
mean = curve.explained_variance.mean(("voxel", "draw"))

figure, axis = plt.subplots(figsize=(6, 3.2))
for name in methods:
    axis.plot(curve.coords["size"], mean.sel({"method": name}), "o-", label=name)
axis.axhline(0, color="black", lw=0.8)
axis.set_xscale("log")
axis.set_xticks(curve.coords["size"].values, curve.coords["size"].values.astype(str))
axis.minorticks_off()
axis.set(xlabel="trials of the new subject (support)", ylabel="explained variance", ylim=(-0.05, None))
axis.legend()
