"""Identification of stimuli, and the noise covariance that likelihoods need."""

import numpy as np
import pytest
import xarray as xr
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

from neuroenc import data, stats
from neuroenc._core.errors import DataError
from neuroenc.encoders import (
    NoiseCovariance,
    RidgeEncoder,
    _decode,
    _invert,
    decode_features,
    identify,
    retrieve,
    ridge_residuals,
    ridge_weights,
)

FAST = {"n_permutations": 0, "n_bootstraps": 10}


def labelled(values, ids, **more):
    return data.make_responses(values, stimulus=ids, dim="stimulus", subject="s1", **more)


@pytest.fixture
def planted(rng):
    """30 candidates, 2 trials of each of 20 of them, 12 voxels of two regions."""
    f = rng.standard_normal((30, 12))
    ids = np.array([f"s{n:02d}" for n in range(30)])
    shown = np.repeat(rng.permutation(30)[:20], 2)
    y = f[shown] + 1.5 * rng.standard_normal((40, 12))
    roi = ["V1"] * 6 + ["V4"] * 6
    session = np.repeat([1, 2], 20)
    measured = data.make_responses(
        y, stimulus=ids[shown], session=session, run=np.arange(40) % 2, subject="s1", roi=roi
    )
    return labelled(f, ids, roi=roi), measured, shown


@pytest.mark.parametrize("n", [2, 3, 10])
def test_n_way_accuracy_is_the_share_of_all_choices(n):
    """Against every set of distractors, ties broken at random."""
    from itertools import combinations

    scores = np.array([3, 3, 1, 0, 2, 3, 5, 1, 0, 4])
    for true in range(10):
        others = np.delete(scores, true)
        right = []
        for some in combinations(range(9), n - 1):
            rival = others[list(some)]
            right.append(0.0 if rival.max() > scores[true] else 1 / (1 + (rival == scores[true]).sum()))
        rank, tied = 1 + (others > scores[true]).sum(), (others == scores[true]).sum()
        assert np.isclose(stats.n_way_accuracy(rank, 10, n, tied=tied), np.mean(right)), true


def test_many_candidates_stay_exact():
    ranks = np.arange(1, 100_001)
    found = stats.n_way_accuracy(ranks, 100_000, 50_000)
    assert np.isclose(found.mean(), 1 / 50_000, rtol=1e-6)
    assert np.isclose(found[1], 0.5, rtol=1e-4)


def test_ranks_are_those_of_a_plain_loop(planted):
    predicted, measured, shown = planted
    found = identify(predicted, measured, **FAST, sizes=[2, 30])
    for t in range(40):
        r = [np.corrcoef(measured.values[t], f)[0, 1] for f in predicted.values]
        assert found["rank"].values[0, t] == 1 + (np.array(r) > r[shown[t]]).sum()
    pairs = 1 - (found["rank"].values - 1) / 29
    assert np.isclose(found["accuracy"].sel(size=2).item(), pairs.mean())
    assert found["accuracy"].sel(size=30).item() == found["top_k"].sel(k=1).item()
    assert found["session"].dims == ("trial",)


def test_the_short_form_is_pairwise_identification(rng):
    f = rng.standard_normal((25, 6))
    y = f + 2 * rng.standard_normal((25, 6))
    f[3] = f[9]  # a tie
    found = identify(f, y, sizes=[2], **FAST)["accuracy"].item()
    assert np.isclose(_decode.pairwise_accuracy(np.c_[f, f[:, :2]], np.c_[y, np.zeros(25), np.full(25, np.nan)]), found)
    assert np.isnan(_decode.pairwise_accuracy(f, np.full((25, 6), np.nan)))


def test_labels_decide(planted):
    predicted, measured, _ = planted
    one = identify(predicted, measured, **FAST)
    other = identify(predicted[::-1, ::-1], measured[:, ::-1], **FAST)
    assert np.array_equal(one["rank"], other["rank"])
    assert np.array_equal(one["predicted_stimulus"], other["predicted_stimulus"])


def test_groups(planted):
    predicted, measured, _ = planted
    found = identify(predicted, measured, groups="roi", **FAST)
    assert found["group"].values.tolist() == ["all", "V1", "V4"]
    assert found["n_voxels"].values.tolist() == [12, 6, 6]
    part = identify(predicted[:, :6], measured[:, :6], **FAST)
    assert np.array_equal(found["rank"].sel(group="V1"), part["rank"][0])
    named = identify(predicted, measured, groups={"first": np.arange(6)}, **FAST)
    assert np.array_equal(named["rank"], part["rank"])


@pytest.mark.parametrize("metric", ["correlation", "likelihood"])
def test_batches_do_not_matter(planted, metric, rng, monkeypatch):
    predicted, measured, _ = planted
    noise = NoiseCovariance.fit(labelled(rng.standard_normal((50, 12)), [f"t{n}" for n in range(50)]))
    whole = identify(predicted, measured, metric=metric, noise=noise, **FAST)
    monkeypatch.setattr(_decode, "_PAIRS", 70)
    assert whole.identical(identify(predicted, measured, metric=metric, noise=noise, **FAST))


def test_folds_rank_among_their_own(planted):
    predicted, measured, _ = planted
    own = [measured.isel(presentation=np.arange(0, 20)), measured.isel(presentation=np.arange(20, 40))]
    found = identify([predicted, predicted[:, ::-1]], own, **FAST)
    assert np.array_equal(found["rank"], identify(predicted, measured, **FAST)["rank"])
    assert found["fold"].values.tolist() == [0] * 20 + [1] * 20


def test_a_prior_decides_where_responses_say_nothing(rng):
    f = np.zeros((4, 3))
    found = identify(f, rng.standard_normal((4, 3)), metric="likelihood", prior=[1, 2, 3, 4], **FAST)
    assert found["rank"].values.tolist() == [[4, 3, 2, 1]]
    tied = identify(f, rng.standard_normal((4, 3)), metric="likelihood", **FAST)
    assert (tied["rank"] == 2.5).all()
    assert tied["accuracy"].sel(size=2).item() == 0.5


def test_uncertain_candidates_are_weighed(rng):
    """Against the density of scipy, whose covariance each candidate has its own."""
    from scipy.stats import multivariate_normal

    f, residuals, y = rng.standard_normal((5, 4)), rng.standard_normal((60, 4)), rng.standard_normal((5, 4))
    noise, std = NoiseCovariance.fit(residuals), rng.uniform(0.5, 2, (5, 4))
    scores = next(_decode.candidate_scores(f, y, "likelihood", noise, std))
    correlation = np.cov((noise.residuals).T, bias=True) * (1 - noise.shrinkage) + noise.shrinkage * np.eye(4)
    for k in range(5):
        density = multivariate_normal(f[k], correlation * np.outer(std[k], std[k])).logpdf(y)
        assert np.allclose(np.diff(density - scores[:, k]), 0)


@pytest.mark.parametrize("shape", [(30, 8), (12, 40)])
def test_covariance_is_that_of_scikit_learn(rng, shape):
    values = rng.standard_normal(shape) @ rng.standard_normal((shape[1], shape[1]))
    z = (values - values.mean(0)) / values.std(0)
    noise = NoiseCovariance.fit(values)
    assert np.isclose(noise.shrinkage, ledoit_wolf_shrinkage(z, assume_centered=True))
    sigma = ledoit_wolf(z, assume_centered=True)[0] * np.outer(values.std(0), values.std(0))
    root = noise.whiten(np.eye(shape[1]))
    assert np.allclose(root @ root.T, np.linalg.inv(sigma))
    assert np.allclose(noise.colour(np.eye(shape[1])).T @ noise.colour(np.eye(shape[1])), sigma)


def test_matches_permute_within_blocks(rng):
    """Where sessions alone tell stimuli apart, labels permuted within a session tell nothing."""
    session = np.repeat([0, 1], 10)
    right = (session[:, None] == session) + 0.01 * rng.standard_normal((20, 20))
    assert float(stats.matching_test(right, n_permutations=199).p) == 0.005
    assert float(stats.matching_test(right, blocks=session, n_permutations=199).p) > 0.05
    few = stats.matching_test(np.eye(3), n_permutations=999)
    assert few.exhaustive
    assert np.isclose(float(few.p), 1 / 6)


def refused(predicted, measured, match, **options):
    with pytest.raises(ValueError, match=match):
        identify(predicted, measured, **{**FAST, **options})


def test_what_is_refused(planted):
    predicted, measured, _ = planted
    refused(predicted.isel(stimulus=[0, 0, 1]), measured, "have the id of another.*Next step")
    refused(predicted[3:], measured, "unknown stimulus among the candidates")
    dead = measured.copy()
    dead[:, 4] = 1.0
    refused(predicted, dead, r"1 of 12 voxels .* constant or not finite \(first: 4\)")
    refused(predicted, measured.assign_coords(voxel=np.arange(12) + 1), "voxels")
    refused(predicted.values, measured, "no labels")
    refused(predicted, measured, "prior is of metric", prior=np.ones(30))
    refused(predicted, measured, "sizes", sizes=[50])
    refused(predicted, measured, "more than one block", blocks="run", n_permutations=9)
    refused(predicted, measured, "unknown blocks", blocks="sessions")
    refused(predicted, measured, "is a ndarray", noise=np.eye(12))
    refused(predicted[:, :1], measured[:, :1], "patterns are the same")
    with pytest.raises(ValueError, match="2 of 3 voxels"):
        NoiseCovariance.fit(np.c_[np.arange(9.0), np.ones((9, 2))])


@pytest.mark.parametrize("shape", [(30, 5), (12, 40)])
@pytest.mark.parametrize("standardise", [False, True])
def test_leave_one_out_residuals_are_those_of_fits_without_the_row(rng, shape, standardise):
    X, Y, alpha = rng.standard_normal(shape), rng.standard_normal((shape[0], 3)), np.array([0.1, 10.0, 0.1])
    scaled = (X - X.mean(0)) / X.std(0) if standardise else X
    found = ridge_residuals(X, Y, alpha, standardise=standardise)
    for i in range(shape[0]):
        rest = np.delete(np.arange(shape[0]), i)
        coef, intercept = ridge_weights(scaled[rest], Y[rest], alpha)
        assert np.allclose(found[i], Y[i] - scaled[i] @ coef - intercept)


@pytest.mark.parametrize("n_features", [4, 30])
def test_decoded_features_are_the_posterior_mean(rng, n_features):
    """Against the joint Gaussian of features and responses, conditioned; more voxels than features, and fewer."""
    bank = rng.standard_normal((200, n_features)) @ rng.standard_normal((n_features, n_features)) + 1
    W, b = rng.standard_normal((n_features, 12)), rng.standard_normal(12)
    bank[:, 0] = 3.0  # a dead unit
    Y = bank @ W + b + rng.standard_normal((200, 12))
    noise = NoiseCovariance.fit(rng.standard_normal((50, 12)) @ rng.standard_normal((12, 12)))
    encoder = RidgeEncoder([1e-6]).fit(bank, Y)
    found = decode_features(encoder, Y[:7], bank, noise=noise)
    prior = NoiseCovariance.fit(bank[:, 1:])
    C, m = np.zeros((n_features, n_features)), bank.mean(0)
    C[1:, 1:] = prior.colour(np.eye(n_features - 1)).T @ prior.colour(np.eye(n_features - 1))
    S = noise.colour(np.eye(12)).T @ noise.colour(np.eye(12))
    w = encoder.coef_
    gain = C @ w @ np.linalg.inv(w.T @ C @ w + S)
    assert np.allclose(found["features"], m + (Y[:7] - m @ w - encoder.intercept_) @ gain.T, atol=1e-6)
    assert np.allclose(found["sd"] ** 2, np.diag(C - gain @ w.T @ C), atol=1e-6)
    assert found["resolved"][0] == 0
    assert found["features"][0, 0] == 3


def test_retrieval_from_a_bank(rng, monkeypatch):
    """As identification where the stimuli shown are in the bank; others like them where they are not."""
    X, W = rng.standard_normal((400, 5)), rng.standard_normal((5, 40))
    ids = np.array([f"s{n:03d}" for n in range(400)])
    features = data.make_features(X, stimulus=ids)
    Y = labelled(X @ W + rng.standard_normal((400, 40)), ids)
    encoder = RidgeEncoder([1.0]).fit(features[:200], Y[:200])
    noise = NoiseCovariance.fit(Y[:200] - encoder.predict(features[:200]))
    for metric in ("correlation", "likelihood"):
        found = retrieve(encoder, Y[200:220], features[100:], k=3, metric=metric, noise=noise, shown=features)
        whole = identify(encoder.predict(features[100:]), Y[200:220], metric=metric, noise=noise, **FAST)
        assert np.array_equal(whole["predicted_stimulus"][0], found["retrieved"][:, 0])
        monkeypatch.setattr(_invert, "_ROWS", 37)
        again = retrieve(encoder, Y[200:220], features[100:], k=3, metric=metric, noise=noise, shown=features)
        xr.testing.assert_allclose(found, again)
        absent = retrieve(encoder, Y[200:220], features[300:], k=3, metric=metric, noise=noise, shown=features)
        assert absent["percentile"].mean() > 0.8
    with pytest.raises(ValueError, match="width 4"):
        retrieve(encoder, Y[:2], rng.standard_normal((9, 4)))
    with pytest.raises(ValueError, match="width 4"):
        decode_features(encoder, Y[:2], rng.standard_normal((9, 4)), noise=noise)


def test_what_gives_no_prior_or_noise_is_named(rng):
    encoder = RidgeEncoder().fit(rng.standard_normal((20, 3)), rng.standard_normal((20, 4)))
    y, noise = rng.standard_normal((20, 4)), NoiseCovariance.fit(rng.standard_normal((20, 4)))
    for prior in (np.ones((20, 3)), rng.standard_normal((1, 3))):
        with pytest.raises(DataError, match=r"rows of features, 0 of 3 of them vary, give no prior"):
            decode_features(encoder, y, prior, noise=noise)
    y[2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 voxels have residuals .* \(first: 1\)"):
        NoiseCovariance.fit(y)
