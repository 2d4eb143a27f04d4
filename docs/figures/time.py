"""Planted and found peaks of response functions, and false positives of two permutation tests of a time series."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.signal import lfilter

from neuroenc import data
from neuroenc.data.simulate import simulate_movie
from neuroenc.encoders import Delayer, RidgeEncoder, cross_validated_p, lag_profile

film = simulate_movie(n_runs=4, n_voxels=240, seed=0)
table = film.stimuli.table
x = data.make_features(table.to_numpy(), stimulus=film.stimuli.ids, feature=list(table.columns))
y = data.zscore(data.clean_timeseries(film.responses), by="run")
x = data.match(Delayer(range(7)).fit_transform(x), y)
encoder = RidgeEncoder(cv="run", standardise=True).fit(x, y)
found = lag_profile(encoder, tr=2.0)["peak_latency"].values
planted = film.truth["peak_latency"].values

rng = np.random.default_rng(0)
run = np.repeat(np.arange(4), 60)
rates = {"volumes shuffled": [], "runs rotated in time": []}
for seed in range(6):  # series of noise: nothing to predict
    noise = lfilter([1.0], [1, -0.9], rng.standard_normal((340, 44)), axis=0)[100:]
    folds = [(np.flatnonzero(run != k), np.flatnonzero(run == k)) for k in range(4)]
    for name, shift in zip(rates, (False, True)):
        how = {"groups": run, "shift": shift, "n_permutations": 99, "seed": seed}
        p, _ = cross_validated_p(noise[:, :4], noise[:, 4:], folds, np.full((4, 40), 50.0), **how)
        rates[name] += list(p)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
profile = lag_profile(encoder, tr=2.0)
regions = film.truth["roi"].values
for name in ("V1", "hV4", "FFA", "PPA"):
    own = (regions == name) & np.isfinite(planted)
    (line,) = left.plot(profile["lag"], np.median(profile["response"].values[:, own], axis=1), "o-", ms=3, label=name)
    middle.plot(planted[own], found[own], ".", ms=4, color=line.get_color())
left.axhline(0, color="black", lw=0.6)
left.set(xlabel="time after the volume, s", ylabel="response (peak 1)", title="Response functions")
left.legend(frameon=False, fontsize=8)
middle.plot([3.5, 8], [3.5, 8], color="black", lw=0.8)
middle.set(xlabel="planted peak, s", ylabel="found peak, s", title="Peaks of voxels", xlim=(3.5, 8), ylim=(3.5, 8))
shares = [float(np.mean(np.array(p) < 0.05)) for p in rates.values()]
right.bar(range(2), shares, color=["#cc6677", "#44aa99"])
right.axhline(0.05, color="black", lw=0.8, ls="--")
right.set_xticks(range(2), ["volumes\nshuffled", "runs\nrotated"])
right.set(ylabel="share with p < .05", title="Noise that passes")
