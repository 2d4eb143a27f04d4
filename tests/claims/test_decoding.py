"""Claims about decoding by encoders.

Kay et al. (2008): a seen picture is identified among many by the response that an encoder predicts. Where noise is
Gaussian with a known covariance, the accuracy of a choice between two by likelihood is known: for predicted responses
that lie d apart in whitened space, it is Phi(|d| / 2). Güçlü & van Gerven (2014) and others: the likelihood under the
noise's covariance beats correlation where noise is shared by voxels; the control is white noise, where it does not.
BrainCoDec (Yu et al. 2026): a new subject is decoded from a few trials by inverting its in-context encoder.

Seeds and margins were fixed before any of this was run.
"""

import numpy as np
import pytest
from scipy.stats import binom, norm

from neuroenc import data
from neuroenc.encoders import NoiseCovariance, RidgeEncoder, identify, ridge_residuals

SEED = 23
pytestmark = pytest.mark.slow
FAST = {"n_permutations": 0, "n_bootstraps": 10}


def world(rng, n_candidates=40, v=30, shared=2.0, signal=0.5):
    """Predicted responses, and a noise covariance of a few shared sources beside private noise."""
    f = signal * rng.standard_normal((n_candidates, v))
    sources = shared * rng.standard_normal((3, v)) / np.sqrt(3)
    return (
        f,
        lambda n: rng.standard_normal((n, 3)) @ sources + rng.standard_normal((n, v)),
        sources.T @ sources + np.eye(v),
    )


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_pairwise_accuracy_is_the_closed_form(shared):
    """Within four standard errors of 8,000 trials (clustered by stimulus)."""
    rng = np.random.default_rng(SEED)
    f, noise, sigma = world(rng, shared=shared)
    ids = np.array([f"s{n}" for n in range(40)])
    known = NoiseCovariance.fit(noise(100_000), shrinkage=0.0)
    shown = np.repeat(np.arange(40), 200)
    y = data.make_responses(f[shown] + noise(len(shown)), stimulus=ids[shown], subject="s")
    predicted = data.make_responses(f, stimulus=ids, dim="stimulus", subject="s")
    found = identify(predicted, y, metric="likelihood", noise=known, sizes=[2], **FAST)
    white = f @ np.linalg.inv(np.linalg.cholesky(sigma)).T
    apart = np.linalg.norm(white[:, None] - white, axis=2)
    expected = norm.cdf(apart[~np.eye(40, dtype=bool)] / 2).mean()
    each = (1 - (found["rank"].values[0] - 1) / 39).reshape(40, 200)
    error = np.sqrt((each.var(axis=1, ddof=1) / 200).sum()) / 40
    assert abs(found["accuracy"].item() - expected) < 4 * error, (found["accuracy"].item(), expected, error)


def test_top_1_is_that_of_a_simulation_of_whitened_noise():
    """Independent code: nearest whitened candidate of 20,000 draws, against 4,000 trials, at four standard errors."""
    rng = np.random.default_rng(SEED + 1)
    f, noise, sigma = world(rng)
    white = f @ np.linalg.inv(np.linalg.cholesky(sigma)).T
    shown = rng.integers(0, 40, 20_000)
    drawn = white[shown] + rng.standard_normal((20_000, 30))
    expected = ((drawn[:, None] - white) ** 2).sum(axis=2).argmin(axis=1) == shown
    true = rng.integers(0, 40, 4000)
    ids = np.array([f"s{n}" for n in range(40)])
    y = data.make_responses(f[true] + noise(4000), stimulus=ids[true], subject="s")
    predicted = data.make_responses(f, stimulus=ids, dim="stimulus", subject="s")
    known = NoiseCovariance.fit(noise(100_000), shrinkage=0.0)
    found = identify(predicted, y, metric="likelihood", noise=known, top=[1], sizes=[2], **FAST)["top_k"].item()
    p = expected.mean()
    assert abs(found - p) < 4 * np.sqrt(p * (1 - p) * (1 / 20_000 + 1 / 4000)), (found, p)


def accuracies(shared, rng):
    """Top-1 by correlation and by likelihood of a ridge encoder fitted on 200 trials, among 100 others."""
    X, W = rng.standard_normal((300, 20)), rng.standard_normal((20, 80)) / np.sqrt(20)
    sources = shared * rng.standard_normal((4, 80)) / 2
    Y = X @ W + 3 * (rng.standard_normal((300, 4)) @ sources + rng.standard_normal((300, 80))) / np.sqrt(1 + shared**2)
    encoder = RidgeEncoder().fit(X[:200], Y[:200])
    noise = NoiseCovariance.fit(ridge_residuals(X[:200], Y[:200], encoder.alpha_))
    predicted, measured = encoder.predict(X[200:]), Y[200:]
    one = identify(predicted, measured, **FAST)
    other = identify(predicted, measured, metric="likelihood", noise=noise, **FAST)
    return [x["top_k"].sel(k=1).item() for x in (one, other)]


def test_likelihood_beats_correlation_where_noise_is_shared():
    """By at least .1 in the mean of 20 simulations; with white noise it gains less than .05."""
    rng = np.random.default_rng(SEED + 2)
    shared = np.mean([accuracies(2.0, rng) for _ in range(20)], axis=0)
    white = np.mean([accuracies(0.0, rng) for _ in range(20)], axis=0)
    assert shared[1] - shared[0] > 0.1, shared
    assert white[1] - white[0] < 0.05, white


@pytest.mark.parametrize("folds", [1, 2, 4])
def test_p_holds_its_level_where_responses_say_nothing(folds):
    """300 data sets of responses without signal, encoders cross-validated: no more p <= .05 than chance allows."""
    rng, hits = np.random.default_rng(SEED + 3), 0
    for n in range(300):
        X, Y = rng.standard_normal((80, 10)), rng.standard_normal((80, 30)) + rng.standard_normal((80, 1))
        parts = np.array_split(rng.permutation(80), max(folds, 2))
        predicted, measured = [], []
        for test in parts[:folds]:
            train = np.setdiff1d(np.arange(80), test)
            encoder = RidgeEncoder([10.0], cv=2).fit(X[train], Y[train])
            predicted.append(encoder.predict(X[test]))
            measured.append(Y[test])
        how = {"sizes": [2], "top": [1], "n_permutations": 199, "n_bootstraps": 2, "seed": n}
        hits += identify(predicted, measured, **how)["accuracy_p"].item() <= 0.05
    assert hits <= binom.ppf(0.999, 300, 0.05), hits


NEW, TRIALS = 29, 50


@pytest.fixture(scope="module")
def new_subject():
    """Shares of 100 pictures that a new simulated subject's encoders of 50 trials identify, by encoder and decoder."""
    from neuroenc.encoders import InContextEncoder, decode_features
    from neuroenc.study.incontext.tasks import world_tasks

    subject = world_tasks(NEW, n_train_subjects=1, n_voxels=300).test[0]
    clear = np.asarray(subject.noise_ceiling) > 0.1
    X, Y, queries, measured = (np.asarray(a) for a in (subject.X, subject.Y, subject.X_query, subject.Y_query))
    Y, measured = Y[:TRIALS, clear], measured[:, clear]
    rng, how, found = np.random.default_rng(NEW), {"sizes": [100], **FAST}, {}
    for name, encoder, y in (
        ("in-context", InContextEncoder("world"), Y),
        ("permuted", InContextEncoder("world"), Y[rng.permutation(TRIALS)]),
        ("ridge", RidgeEncoder(), Y),
    ):
        encoder.fit(X[:TRIALS], y)
        predicted = np.asarray(encoder.predict(queries))
        noise = NoiseCovariance.fit(y - np.asarray(encoder.predict(X[:TRIALS])))
        noise = noise.with_sd(noise.sd / np.sqrt(3))  # queries are means of three
        found[name, "correlation"] = identify(predicted, measured, **how)
        found[name, "certain"] = identify(predicted, measured, metric="likelihood", noise=noise, **how)
        decoded = decode_features(encoder, measured, queries, noise=noise)
        middle = decoded["prior_mean"].values
        found[name, "features"] = identify(queries - middle, decoded["features"].values - middle, **how)
        if name == "in-context":
            variance = encoder.predict(queries, return_std=True)[1] ** 2 - 2 / 3 * encoder.noise_variance_
            std = np.sqrt(np.maximum(variance, 1e-6))
            found[name, "uncertain"] = identify(predicted, measured, metric="likelihood", noise=noise, std=std, **how)
    return {k: v["accuracy"].item() for k, v in found.items()}


@pytest.mark.parametrize("decoder", ["correlation", "features"])
def test_a_new_subject_is_decoded_from_few_trials(new_subject, decoder):
    """At least 1.2 times ridge of the same 50 trials, and ten times chance; with a permuted support, under .05."""
    ours = new_subject["in-context", decoder]
    assert ours >= 1.2 * new_subject["ridge", decoder], new_subject
    assert ours >= 0.1, new_subject
    assert new_subject["permuted", decoder] < 0.05, new_subject


@pytest.mark.xfail(strict=True, reason=".450 against .472 with weights taken as certain: voxels may share their errors")
def test_the_uncertainty_of_weights_helps(new_subject):
    assert new_subject["in-context", "uncertain"] >= new_subject["in-context", "certain"], new_subject
