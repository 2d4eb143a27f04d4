"""Claims about supports that several nuisances spoil at once: the shipped model, a closed form under robust noise,
beats the plain closed form there, and costs nothing where no trial is spoilt.

Subjects are simulated cortices, not linear in the features; their supports are spoilt by outlying trials and
responses, drifting gain, saturation and repetition suppression, of amounts that no method knows. The truth are
noiseless responses to other scenes at the gain of the last trial. Share of their variance, mean over voxels whose
ratio of signal to noise is above .3; four subjects; 20, 50 and 100 trials. Margins were fixed before looking.

A network of the refined form (`neuroenc icl pretrain --example refined`, 2,000 steps in 34 minutes) was to be .02
above the closed form in 8 of the 12 and is not: .003 above it on held-out training episodes (.2356 against .2321), here
.006 and .005 below it at 50 and 100 trials and level at 20 (-.045/.092/.154 against -.044/.098/.159). None is shipped.
"""

import functools

import numpy as np
import pytest

from neuroenc import stats
from neuroenc.data.simulate import Nuisances, simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders import InContextEncoder

pytestmark = pytest.mark.slow

SIZES, SEEDS = (20, 50, 100), (210, 211, 212, 213)
SEVERAL = Nuisances(outlying_trials=0.1, outlying_responses=0.05, gain_drift=0.7, saturation=0.6, suppression=0.4)
METHODS = {
    "plain": InContextEncoder("world", robust="none", response_scale="as-is"),
    "robust": InContextEncoder("world", response_scale="as-is"),
    "after": InContextEncoder("world", queries="after", response_scale="as-is"),
}


@functools.cache
def subject(seed):
    """Scenes' features, noiseless responses (scene, voxel), and the voxels' ratios of signal to noise above .3."""
    scenes = simulate_world(500, seed=95_000 + seed)
    features = ImageEmbedder("world", normalise=True, progress=False).embed(scenes).values
    truth = simulate_cortex(scenes, n_voxels=120, seed=seed)[0].truth
    clear = truth["ncsnr"].values > 0.3
    return features, truth["signal"].values[:, clear].astype(float), truth["ncsnr"].values[clear].astype(float)


def support(seed, size, nuisances):
    """Features and responses of a support, features of queries, and what they evoke after its last trial."""
    features, signal, ncsnr = subject(seed)
    rng = np.random.default_rng([seed, size])
    order = rng.permutation(len(features))
    rows, queries = order[:size], order[size:]
    alike = np.append(0.0, (features[rows[1:]] * features[rows[:-1]]).sum(axis=1))
    other = signal[:, rng.permutation(len(ncsnr))]
    clean, planted = nuisances.signal(signal[rows], other[rows], alike, np.linspace(0, 1, size), rng)
    # Signal and noise of unit variance together, as responses are z-scored.
    whole = np.sqrt(1 + 1 / ncsnr**2)
    noise, _ = nuisances.noise(1 / ncsnr / whole, size, rng)
    truth = signal[queries] * planted["gain"][-1] / (1 - nuisances.suppression * np.clip(alike[-1], 0, 1)) / whole
    return features[rows], clean / whole + noise, features[queries], truth


def shares(nuisances):
    """Share of the noiseless variance, (subject, size) for each method."""
    found = {name: np.zeros((len(SEEDS), len(SIZES))) for name in METHODS}
    for i, seed in enumerate(SEEDS):
        for j, size in enumerate(SIZES):
            X, Y, Q, truth = support(seed, size, nuisances)
            for name, encoder in METHODS.items():
                found[name][i, j] = np.mean(stats.explained_variance(truth, encoder.fit(X, Y).predict(Q)))
    return found


@pytest.fixture(scope="module")
def several():
    return shares(SEVERAL)


@pytest.mark.parametrize("name", ["robust", "after"])
def test_robust_noise_beats_the_plain_closed_form(several, name):
    assert ((several[name] - several["plain"]) >= 0.05).sum() >= 10, several


def test_following_the_gain_helps(several):
    assert (several["after"] - several["robust"]).mean() > 0, several


@pytest.mark.parametrize("name", ["robust", "after"])
def test_without_nuisances_it_costs_nothing(name):
    clean = shares(Nuisances())
    assert (clean[name].mean(axis=0) >= clean["plain"].mean(axis=0) - 0.005).all(), clean


def test_the_order_of_trials_is_what_gains_are_read_from():
    X, Y, Q, truth = support(SEEDS[0], 100, Nuisances(gain_drift=1.0))
    order = np.random.default_rng(0).permutation(len(X))
    right, wrong = (
        np.mean(stats.explained_variance(truth, METHODS["after"].fit(X[o], Y[o]).predict(Q)))
        for o in (np.arange(len(X)), order)
    )
    assert right > wrong
