"""Empirical Bayes ridge against plain Gaussian algebra, on planted truth, and against itself."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder, load_encoder
from neuroenc.encoders.incontext import (
    EmpiricalBayesRidge,
    InContextEncoder,
    PlacePrior,
    WeightPrior,
    _empirical_bayes as module,
    make_model,
    support_curve,
)
from neuroenc.encoders.incontext._trial_noise import gain_drift


def some_prior(p=12, seed=0, steep=2.0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
    cov = basis * np.logspace(0, -steep, p) @ basis.T
    return WeightPrior(0.3 * rng.standard_normal(p), (cov + cov.T) / 2, 1.0, 2.0)


def trial(n, prior, v=6, noise=0.7, seed=1):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, prior.n_features)) + 1
    W, b = prior.sample(v, seed=seed)
    return X, X @ W + b + noise * rng.standard_normal((n, v)), W, b


@parametrize_with_checks([EmpiricalBayesRidge(), EmpiricalBayesRidge(estimate="max", intercept="none")])
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("intercept", ["flat", "prior", "none"])
@pytest.mark.parametrize("estimate", ["average", "max"])
def test_evidence_is_the_gaussian_density(n, intercept, estimate):
    prior = some_prior()
    X, Y, _, _ = trial(n, prior)
    encoder = EmpiricalBayesRidge(prior, estimate=estimate, adapt="none", intercept=intercept).fit(X, Y)
    for v in range(Y.shape[1]):
        s, noise = encoder.prior_scale_[v], encoder.noise_variance_[v]
        cov, mean, y = s * X @ prior.cov @ X.T + noise * np.eye(n), X @ prior.mean, Y[:, v]
        if intercept == "prior":
            cov, mean = cov + s * prior.intercept_var, mean + prior.intercept_mean
        if intercept == "flat":  # contrasts that do not know the intercept
            H = np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, 1:]]))[0][:, 1:].T
            cov, mean, y = H @ cov @ H.T, H @ mean, H @ y
        np.testing.assert_allclose(encoder.evidence_[v], multivariate_normal.logpdf(y, mean, cov), rtol=1e-8)


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("intercept", ["flat", "prior", "none"])
def test_posterior_is_that_of_gaussian_algebra(n, intercept):
    prior = some_prior()
    X, Y, _, _ = trial(n, prior)
    Q = np.random.default_rng(5).standard_normal((9, 12))
    encoder = EmpiricalBayesRidge(prior, estimate="max", adapt="none", intercept=intercept).fit(X, Y)
    mean, std = encoder.predict(Q, return_std=True)
    wide = {"flat": 1e9, "prior": prior.intercept_var, "none": 0.0}[intercept]
    centre = {"flat": 0.0, "prior": prior.intercept_mean, "none": 0.0}[intercept]
    for v in range(Y.shape[1]):
        s, noise = encoder.prior_scale_[v], encoder.noise_variance_[v]
        wide_s = wide if intercept == "flat" else s * wide
        K = s * X @ prior.cov @ X.T + wide_s + noise * np.eye(n)
        cross = s * Q @ prior.cov @ X.T + wide_s
        gain = np.linalg.solve(K, cross.T).T
        expected = Q @ prior.mean + centre + gain @ (Y[:, v] - X @ prior.mean - centre)
        variance = s * np.einsum("qi,ij,qj->q", Q, prior.cov, Q) + wide_s - (gain * cross).sum(1) + noise
        rtol = 1e-5 if intercept == "flat" else 1e-8
        np.testing.assert_allclose(mean[:, v], expected, rtol=rtol, atol=1e-5)
        np.testing.assert_allclose(std[:, v], np.sqrt(variance), rtol=1e-5)


def test_average_is_the_mean_over_the_grid():
    """Against a loop over grid points with plain formulas."""
    from neuroenc.encoders.incontext import _evidence as E

    prior = some_prior(p=5)
    X, Y, _, _ = trial(12, prior, v=1)
    Q = np.random.default_rng(2).standard_normal((4, 5))
    encoder = EmpiricalBayesRidge(prior, adapt="none", intercept="none").fit(X, Y)
    mean, std = encoder.predict(Q, return_std=True)
    unit = np.trace(prior.cov @ X.T @ X) / 12
    rest = Y[:, 0] - X @ prior.mean
    weights, means, seconds = [], [], []
    for ratio in E.RATIOS / unit:
        for share in E._NOISE_SHARES:
            noise = share * (rest**2).mean()
            K = ratio * noise * X @ prior.cov @ X.T + noise * np.eye(12)
            cross = ratio * noise * Q @ prior.cov @ X.T
            weights.append(multivariate_normal.logpdf(rest, cov=K))
            means.append(Q @ prior.mean + cross @ np.linalg.solve(K, rest))
            prior_var = ratio * noise * np.einsum("qi,ij,qj->q", Q, prior.cov, Q)
            seconds.append(prior_var - np.einsum("qn,nq->q", cross, np.linalg.solve(K, cross.T)) + noise)
    weights = np.exp(np.array(weights) - max(weights))
    weights /= weights.sum()
    expected = weights @ np.array(means)
    variance = weights @ (np.array(seconds) + (np.array(means) - expected) ** 2)
    np.testing.assert_allclose(mean[:, 0], expected, rtol=1e-7)
    np.testing.assert_allclose(std[:, 0], np.sqrt(variance), rtol=1e-6)


@pytest.mark.parametrize("estimate", ["average", "max"])
def test_units_of_features_and_responses_do_not_matter(estimate):
    prior = some_prior()
    X, Y, _, _ = trial(25, prior)
    Q = X[:5] + 0.1
    plain = EmpiricalBayesRidge(prior, estimate=estimate).fit(X, Y).predict(Q)
    inches = WeightPrior(prior.mean / 10, prior.cov / 100)
    np.testing.assert_allclose(EmpiricalBayesRidge(inches, estimate=estimate).fit(X * 10, Y).predict(Q * 10), plain)
    loud = WeightPrior(prior.mean * 7, prior.cov)  # the scale of the covariance is fitted
    np.testing.assert_allclose(EmpiricalBayesRidge(loud, estimate=estimate).fit(X, 7 * Y + 3).predict(Q), 7 * plain + 3)
    shifted = EmpiricalBayesRidge(prior, estimate=estimate).fit(X + 4, Y).predict(Q + 4)
    np.testing.assert_allclose(shifted, plain, rtol=1e-6)


def test_matched_prior_beats_ridge_and_is_calibrated():
    prior = some_prior(p=60, steep=4.0)
    prior = WeightPrior(np.zeros(60), prior.cov)
    X, Y, W, b = trial(100, prior, v=300, noise=1.0)
    Q, truth, _, _ = trial(200, prior, v=300, noise=0.0)
    truth = Q @ W + b
    noisy = truth + np.random.default_rng(9).standard_normal(truth.shape)
    for n in (20, 50, 100):
        bayes = EmpiricalBayesRidge(prior).fit(X[:n], Y[:n])
        ridge = RidgeEncoder(n_jobs=1).fit(X[:n], Y[:n])
        ours = stats.explained_variance(truth, bayes.predict(Q)).mean()
        assert ours > stats.explained_variance(truth, ridge.predict(Q)).mean() + 0.05
        mean, std = bayes.predict(Q, return_std=True)
        z = (noisy - mean) / std
        assert abs(z.mean()) < 0.05
        # Scale and noise variance are learned from n stimuli, under a flat prior: a little wide at 20, never narrow.
        assert 0.85 < z.std() < 1.08


def test_fitted_prior_beats_ridge_on_new_voxels():
    planted = WeightPrior(np.zeros(40), some_prior(p=40, steep=4.0).cov)
    X, Y, _, _ = trial(150, planted, v=200, noise=1.5, seed=1)
    learned = WeightPrior.from_responses(X, Y)
    X, Y, W, b = trial(50, planted, v=200, noise=1.5, seed=2)
    Q = np.random.default_rng(3).standard_normal((200, 40))
    scores = {
        name: stats.explained_variance(Q @ W + b, e.fit(X, Y).predict(Q)).mean()
        for name, e in {
            "em": EmpiricalBayesRidge(learned),
            "oracle": EmpiricalBayesRidge(planted),
            "flat": EmpiricalBayesRidge(),
            "ridge": RidgeEncoder(n_jobs=1),
        }.items()
    }
    assert scores["em"] > scores["ridge"] + 0.05
    assert scores["em"] > scores["oracle"] - 0.03
    assert scores["flat"] > scores["ridge"] - 0.02


def test_a_prior_that_does_not_fit_is_given_up():
    """Steep prior in one basis, weights from another: the support says so, and little is lost against no prior."""
    wrong = WeightPrior(np.zeros(40), some_prior(p=40, seed=5, steep=5.0).cov)
    X, Y, W, b = trial(60, WeightPrior.isotropic(40, 0.05), v=150)
    Q = np.random.default_rng(3).standard_normal((200, 40))

    def score(encoder, n):
        return stats.explained_variance(Q @ W + b, encoder.fit(X[:n], Y[:n]).predict(Q)).mean()

    for n in (30, 60):
        adaptive = EmpiricalBayesRidge(wrong)
        assert score(adaptive, n) > score(EmpiricalBayesRidge(), n) - 0.03
        assert adaptive.isotropic_share_ == 1.0
    assert score(EmpiricalBayesRidge(wrong, adapt="none"), 60) < score(adaptive, 60) - 0.05
    right = WeightPrior(np.zeros(40), some_prior(p=40, steep=5.0).cov)
    X, Y, _, _ = trial(60, right, v=150)
    assert EmpiricalBayesRidge(right).fit(X, Y).isotropic_share_ == 0.0


def test_isotropic_prior_is_ridge_at_the_chosen_ratio():
    X, Y, _, _ = trial(30, some_prior())
    encoder = EmpiricalBayesRidge(estimate="max").fit(X, Y)
    alpha = encoder.noise_variance_ / encoder.prior_scale_
    for v in range(Y.shape[1]):
        same = RidgeEncoder([alpha[v]], n_jobs=1).fit(X, Y[:, v])
        np.testing.assert_allclose(encoder.coef_[:, v], same.coef_[:, 0], rtol=1e-7, atol=1e-10)


def test_missing_responses_are_as_if_they_had_not_been_given():
    prior = some_prior()
    X, Y, _, _ = trial(40, prior, v=7)
    rng = np.random.default_rng(0)
    holes = Y.copy()
    holes[rng.random(Y.shape) < 0.3] = np.nan
    holes[:, 5] = holes[:, 6]
    encoder = EmpiricalBayesRidge(prior, adapt="none").fit(X, holes)
    mean, std = encoder.predict(X, return_std=True)
    for v in range(7):
        seen = ~np.isnan(holes[:, v])
        alone = EmpiricalBayesRidge(prior, adapt="none").fit(X[seen], holes[seen, v])
        m, s = alone.predict(X, return_std=True)
        np.testing.assert_allclose(mean[:, v], m, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(std[:, v], s, rtol=1e-9)
        assert encoder.n_seen_[v] == seen.sum()


def test_voxels_do_not_depend_on_their_neighbours():
    prior = some_prior()
    X, Y, _, _ = trial(20, prior, v=1100)
    whole = EmpiricalBayesRidge(prior, adapt="none").fit(X, Y)
    part = EmpiricalBayesRidge(prior, adapt="none").fit(X, Y[:, 500:520])
    np.testing.assert_allclose(whole.coef_[:, 500:520], part.coef_, rtol=1e-8, atol=1e-12)


def test_blocks_of_voxels_do_not_show(monkeypatch):
    prior = some_prior()
    X, Y, _, _ = trial(20, prior, v=50)
    whole = EmpiricalBayesRidge(prior).fit(X, Y)
    monkeypatch.setattr(module, "_BLOCK", 7)
    blocks = EmpiricalBayesRidge(prior).fit(X, Y)
    np.testing.assert_allclose(blocks.coef_, whole.coef_, rtol=1e-8, atol=1e-12)
    for a, b in zip(blocks.predict(X, return_std=True), whole.predict(X, return_std=True)):
        np.testing.assert_allclose(a, b, rtol=1e-8)


def test_scales_and_noise_are_learned_from_enough_voxels():
    prior = WeightPrior(np.zeros(12), some_prior().cov)
    X, Y, _, _ = trial(20, prior, v=300, noise=0.5)
    learned = EmpiricalBayesRidge(prior).fit(X, Y)
    assert learned.hyper_.shape == (3, 2)
    assert abs(learned.hyper_[0, 1] - np.log(0.25)) < 0.4
    alone = EmpiricalBayesRidge(prior, adapt="none").fit(X, Y)
    assert alone.hyper_.shape == EmpiricalBayesRidge(prior).fit(X, Y[:, :5]).hyper_.shape == (0, 2)
    # Pooling brings every voxel's noise variance nearer to the truth.
    error = [np.abs(np.log(e.noise_variance_ / 0.25)).mean() for e in (learned, alone)]
    assert error[0] < 0.7 * error[1]


def test_labels_torch_single_voxel_and_clone():
    prior = some_prior()
    X, Y, _, _ = trial(20, prior)
    ids = [f"s{k}" for k in range(20)]
    features = make_features(X, stimulus=ids)
    responses = make_responses(Y, stimulus=ids, dim="stimulus", roi=["V4"] * 6)
    encoder = clone(EmpiricalBayesRidge(prior)).fit(features, responses)
    mean, std = encoder.predict(features, return_std=True)
    assert isinstance(std, xr.DataArray)
    assert std["roi"].values.tolist() == mean["roi"].values.tolist() == ["V4"] * 6
    assert encoder.to_linear()[0]["roi"].values.tolist() == ["V4"] * 6
    single, sd = EmpiricalBayesRidge(prior).fit(X, Y[:, 0]).predict(X, return_std=True)
    assert single.shape == sd.shape == (20,)
    tensor = EmpiricalBayesRidge(prior).fit(torch.as_tensor(X), torch.as_tensor(Y)).predict(torch.as_tensor(X))
    assert torch.is_tensor(tensor)
    np.testing.assert_allclose(tensor.numpy(), mean.values, rtol=1e-4, atol=1e-4)
    assert EmpiricalBayesRidge(prior).fit(X.astype(np.float32), Y.astype(np.float32)).coef_.dtype == np.float32


def test_saved_and_loaded(tmp_path):
    prior = some_prior()
    X, Y, _, _ = trial(20, prior)
    Y[3, 2] = np.nan
    encoder = EmpiricalBayesRidge(prior, estimate="max").fit(X, Y)
    back = load_encoder(encoder.save(tmp_path / "encoder"))
    assert isinstance(back, EmpiricalBayesRidge)
    assert back.estimate == "max"
    for a, b in zip(encoder.predict(X, return_std=True), back.predict(X, return_std=True)):
        assert np.array_equal(a, b)
    plain = load_encoder(EmpiricalBayesRidge().fit(X, Y).save(tmp_path / "plain"))
    assert plain.prior is None


def test_errors():
    prior = some_prior()
    X, Y, _, _ = trial(20, prior)
    with pytest.raises(DataError, match="prior was made for 12"):
        EmpiricalBayesRidge(prior).fit(X[:, :5], Y)
    with pytest.raises(ConfigError, match="not a WeightPrior"):
        EmpiricalBayesRidge("flat").fit(X, Y)
    with pytest.raises(ConfigError, match="estimate"):
        EmpiricalBayesRidge(estimate="mean").fit(X, Y)
    few = np.where(np.arange(20)[:, None] < 18, np.nan, Y)
    with pytest.raises(DataError, match="fewer than 3"):
        EmpiricalBayesRidge(prior).fit(X, few)


# ---------------------------------------------------------------- outliers


def outlying(kind, n=40, v=200, p=8, seed=0):
    """Support, noiseless queries, and which responses are outliers: 15 % with sd 3 beside noise of 0.6."""
    rng = np.random.default_rng(seed)
    W, X, Q = rng.standard_normal((p, v)) / np.sqrt(p), rng.standard_normal((n, p)), rng.standard_normal((300, p))
    odd = rng.random((n, 1 if kind == "shared" else v)) < (0.0 if kind == "none" else 0.15)
    noise = 0.6 * rng.standard_normal((n, v)) + 3 * rng.standard_normal((n, v)) * odd
    return X, X @ W + noise, Q, Q @ W, odd


def accuracy(robust, X, Y, Q, truth):
    encoder = EmpiricalBayesRidge(WeightPrior.isotropic(X.shape[1], 1 / X.shape[1]), robust=robust).fit(X, Y)
    return float(np.mean(stats.r2_score(truth, encoder.predict(Q)))), encoder


def test_outlying_trials_of_all_voxels_are_found_and_count_less():
    X, Y, Q, truth, odd = outlying("shared")
    plain, robust = accuracy("none", X, Y, Q, truth)[0], accuracy("shared", X, Y, Q, truth)
    assert robust[0] > plain + 0.2
    precision = robust[1].trial_precision_
    assert precision[odd[:, 0]].max() < 0.5 * precision[~odd[:, 0]].min()
    assert np.median(precision) == pytest.approx(1.0)


def test_outliers_of_single_responses_are_found():
    X, Y, Q, truth, odd = outlying("private")
    plain, robust = accuracy("none", X, Y, Q, truth)[0], accuracy("private", X, Y, Q, truth)
    assert robust[0] > plain + 0.1
    assert robust[1].outlier_share_ == pytest.approx(odd.mean(), abs=0.05)
    assert robust[1].outlier_variance_ == pytest.approx((9 + 0.36) / 0.36, rel=0.4)


def gain_drifting(sd, n=120, v=150, p=8, seed=4):
    """Support in the order of time, its gain e^(d (u - 1/2)), and noiseless queries at the gain of the last trial."""
    rng = np.random.default_rng(seed)
    W, X, Q = rng.standard_normal((p, v)) / np.sqrt(p), rng.standard_normal((n, p)), rng.standard_normal((300, p))
    d, baseline = sd * rng.standard_normal(v), rng.standard_normal(v)
    gain = np.exp(d * np.linspace(-0.5, 0.5, n)[:, None])
    Y = baseline + gain * (X @ W) + 0.6 * rng.standard_normal((n, v))
    return X, Y, Q, baseline + gain[-1] * (Q @ W), d


def test_a_gain_that_drifts_is_followed_to_the_last_trial():
    X, Y, Q, truth, d = gain_drifting(0.8)
    prior = WeightPrior.isotropic(8, 1 / 8)
    still, found = (EmpiricalBayesRidge(prior, drift=kind).fit(X, Y) for kind in ("none", "gain"))
    assert np.corrcoef(found.gain_drift_, d)[0, 1] > 0.8
    assert found.gain_drift_sd_ == pytest.approx(0.8, rel=0.25)
    scores = [np.mean(stats.r2_score(truth, e.predict(Q))) for e in (still, found)]
    assert scores[1] > scores[0] + 0.05
    rng = np.random.default_rng(1)
    mean, sd = found.predict(Q, return_std=True)
    inside = np.abs(truth + 0.6 * rng.standard_normal(truth.shape) - mean) < 1.645 * sd
    assert 0.87 < inside.mean() < 0.93
    # Backwards, the last trial is the first: another answer.
    assert np.corrcoef(EmpiricalBayesRidge(prior, drift="gain").fit(X[::-1], Y[::-1]).gain_drift_, d)[0, 1] < -0.8


@pytest.mark.parametrize("n", [20, 120])
def test_without_a_drift_nothing_changes(n):
    X, Y, Q, truth, _ = gain_drifting(0.0, n=n)
    prior = WeightPrior.isotropic(8, 1 / 8)
    plain, found = (EmpiricalBayesRidge(prior, drift=kind).fit(X, Y) for kind in ("none", "gain"))
    assert found.gain_drift_sd_ < 0.25
    scores = [np.mean(stats.r2_score(truth, e.predict(Q))) for e in (plain, found)]
    assert scores[1] > scores[0] - 0.005


def test_the_drift_of_one_voxel_is_the_most_probable_one():
    """Against a search over the exact likelihood, where the noiseless response is known."""
    rng = np.random.default_rng(2)
    f, when = rng.standard_normal((400, 30)), np.linspace(-0.5, 0.5, 400)[:, None]
    d = 0.3 * rng.standard_normal(30)
    y = np.exp(d * when) * f + 0.4 * rng.standard_normal(f.shape)
    found, variance, tau = gain_drift(y, f, np.zeros_like(f), np.full_like(f, 1 / 0.16))

    def loss(value, v):
        return ((y[:, v] - np.exp(value * when[:, 0]) * f[:, v]) ** 2).sum() / 0.32 + value**2 / (2 * tau**2)

    best = [minimize_scalar(loss, args=(v,), bounds=(-3, 3), method="bounded").x for v in range(30)]
    np.testing.assert_allclose(found, best, atol=0.05)
    np.testing.assert_allclose(variance, 1 / (np.sum(when**2 * f**2, axis=0) / 0.16 + 1 / tau**2), rtol=1e-6)


@pytest.mark.parametrize("robust", ["shared", "private", "both"])
@pytest.mark.parametrize("drift", ["none", "gain"])
def test_a_trial_without_responses_and_a_voxel_without_variance_leave_the_others(robust, drift):
    X, Y, Q, *_ = outlying("shared", v=60)
    options = {"robust": robust, "drift": drift}
    prior = WeightPrior.isotropic(X.shape[1], 1 / X.shape[1])
    Y[7] = np.nan
    rows = np.arange(len(X)) != 7
    found, alone = EmpiricalBayesRidge(prior, **options).fit(X, Y), EmpiricalBayesRidge(prior, **options)
    alone.fit(X[rows], Y[rows])
    if drift == "none":
        np.testing.assert_allclose(found.coef_, alone.coef_, atol=1e-6)
        np.testing.assert_allclose(found.trial_precision_[rows], alone.trial_precision_, rtol=1e-6)
    Y[:, 3] = 2.0
    constant = EmpiricalBayesRidge(prior, **options).fit(X, Y)
    mean, sd = constant.predict(Q, return_std=True)
    assert np.isfinite(mean).all()
    assert np.isfinite(sd).all()
    np.testing.assert_allclose(np.delete(constant.coef_, 3, 1), np.delete(found.coef_, 3, 1), atol=0.05)


@pytest.mark.parametrize("robust", ["shared", "private", "both"])
@pytest.mark.parametrize("n", [20, 100])
def test_without_outliers_robust_noise_costs_nothing(robust, n):
    X, Y, Q, truth, _ = outlying("none", n=n)
    assert accuracy(robust, X, Y, Q, truth)[0] > accuracy("none", X, Y, Q, truth)[0] - 0.005


def test_fixed_point_is_ridge_with_weights_of_each_voxels_own():
    X, Y, *_ = outlying("private", v=12)
    encoder = EmpiricalBayesRidge(
        WeightPrior.isotropic(8, 1 / 8), robust="both", estimate="max", use_hyper=False, adapt="none"
    ).fit(X, Y)
    # Precisions of single responses from what stands in their place: y* = f + w (y - f).
    fitted = X @ encoder.coef_ + encoder.intercept_
    weight = encoder.trial_precision_[:, None] * (encoder.completed_ - fitted) / (Y - fitted)
    for v in range(12):
        penalty = encoder.noise_variance_[v] / (encoder.prior_scale_[v] / 8)
        A, D = np.column_stack([X, np.ones(len(X))]), np.diag(weight[:, v])
        wanted = np.linalg.solve(A.T @ D @ A + penalty * np.diag([1.0] * 8 + [0.0]), A.T @ D @ Y[:, v])
        np.testing.assert_allclose(encoder.coef_[:, v], wanted[:-1], atol=0.02)


def test_shared_precisions_are_weighted_least_squares():
    X, Y, *_ = outlying("shared", v=12)
    encoder = EmpiricalBayesRidge(
        WeightPrior.isotropic(8, 1 / 8), robust="shared", estimate="max", use_hyper=False, adapt="none"
    ).fit(X, Y)
    for v in range(12):
        penalty = encoder.noise_variance_[v] / (encoder.prior_scale_[v] / 8)
        A, D = np.column_stack([X, np.ones(len(X))]), np.diag(encoder.trial_precision_)
        wanted = np.linalg.solve(A.T @ D @ A + penalty * np.diag([1.0] * 8 + [0.0]), A.T @ D @ Y[:, v])
        np.testing.assert_allclose(encoder.coef_[:, v], wanted[:-1], rtol=1e-6, atol=1e-9)
        assert encoder.intercept_[v] == pytest.approx(wanted[-1], abs=1e-9)


# ---------------------------------------------------------------- places


@cache
def people(alike, n=3, p=10, v=120, seed=0):
    """Subjects whose weights are a smooth map of place, as far as they are alike, and their own draws."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((3, p)) / 15
    made = []
    for _ in range(n):
        places = 15 * rng.standard_normal((v, 3))
        W = alike * (places @ maps).T + np.sqrt(1 - alike**2) * rng.standard_normal((p, v))
        X, Q = rng.standard_normal((150, p)), rng.standard_normal((300, p))
        made.append((X, X @ W + 2 * rng.standard_normal((150, v)), places, Q, Q @ W))
    return made


@cache
def prior_by_place(alike):
    return PlacePrior.from_responses(*([m[k] for m in people(alike)[:-1]] for k in (0, 1, 2)), bandwidth=8.0)


def place_scores(alike, size):
    """Explained variance of the last subject, with and without places, and the encoder."""
    made, prior = people(alike), prior_by_place(alike)
    X, Y, places, Q, truth = made[-1]
    by_place = EmpiricalBayesRidge(prior, positions=places).fit(X[:size], Y[:size])
    whole = EmpiricalBayesRidge(prior.priors[0.0]).fit(X[:size], Y[:size])
    scores = [float(np.mean(stats.explained_variance(truth, e.predict(Q)))) for e in (by_place, whole)]
    return *scores, by_place


@pytest.mark.parametrize(("size", "gain"), [(0, 0.1), (8, 0.1), (20, 0.01)])
def test_places_help_where_subjects_are_alike(size, gain):
    by_place, whole, encoder = place_scores(0.8, size)
    assert by_place > whole + gain
    assert encoder.gain_ >= 0.5


@pytest.mark.parametrize("size", [8, 20, 100])
def test_places_that_say_nothing_are_not_trusted(size):
    by_place, whole, encoder = place_scores(0.0, size)
    assert by_place > whole - 0.01
    assert encoder.gain_ <= 0.25


@pytest.mark.parametrize("size", [0, 20])
def test_priors_by_place_are_saved_with_their_encoder(tmp_path, size):
    made = people(0.8)
    encoder = place_scores(0.8, size)[2].set_params(robust="both")
    X, Y, *_, Q, _ = made[-1]
    mean, std = encoder.fit(X[:size], Y[:size]).predict(Q, return_std=True)
    encoder.save(tmp_path / "e")
    again = load_encoder(tmp_path / "e").predict(Q, return_std=True)
    np.testing.assert_array_equal(again[0], mean)
    np.testing.assert_array_equal(again[1], std)
    encoder.prior.save(tmp_path / "p")
    np.testing.assert_array_equal(PlacePrior.load(tmp_path / "p").at(made[0][2]), encoder.prior.at(made[0][2]))


def test_curves_begin_without_trials():
    made = people(0.8)
    X, Y, places, Q, truth = made[-1]
    methods = {
        "place": EmpiricalBayesRidge(prior_by_place(0.8), positions=places),
        "ridge": RidgeEncoder(progress=False),
    }
    curve = support_curve(methods, X, Y, Q, truth, sizes=(0, 20), n_draws=1, progress=False)
    scores = curve["explained_variance"].mean("voxel").isel(draw=0)
    assert scores.sel({"method": "place", "size": 0}) > 0.2
    assert np.isnan(scores.sel({"method": "ridge", "size": 0}))


def test_what_places_need():
    made = people(0.8)
    one = [m[0] for m in made[:1]], [m[1] for m in made[:1]], [m[2] for m in made[:1]]
    with pytest.raises(DataError, match="two subjects"):
        PlacePrior.from_responses(*one)
    prior = PlacePrior.from_responses(*([m[k] for m in made[:2]] for k in (0, 1, 2)), gains=(0.5,))
    X, Y, places, *_ = made[2]
    with pytest.raises(ConfigError, match="positions="):
        EmpiricalBayesRidge(prior).fit(X, Y)
    with pytest.raises(DataError, match=r"\(120, 3\)"):
        EmpiricalBayesRidge(prior, positions=places[:-1]).fit(X, Y)
    with pytest.raises(DataError, match="at least 3"):
        EmpiricalBayesRidge(prior, positions=places).fit(X[:2], Y[:2])
    with pytest.raises(DataError, match="at least 3"):
        EmpiricalBayesRidge().fit(X[:0], Y[:0])


def drifting(rng, turn, n=240, e=6, voxels=40):
    """Trials of voxels whose weights turn by so many radians, and noiseless queries at their end."""
    X = rng.standard_normal((n + 50, e))
    a, b = rng.standard_normal((2, e, voxels))
    angle = turn * np.append(np.linspace(0, 1, n), np.ones(50))[:, None]
    clean = np.cos(angle) * (X @ a) + np.sin(angle) * (X @ b)
    return X[:n], clean[:n] + 1.5 * rng.standard_normal((n, voxels)), X[n:], clean[n:]


def test_forgetting_follows_weights_that_turn_and_is_left_where_they_do_not():
    found = {}
    for turn in (0.0, 2.5):
        X, Y, queries, clean = drifting(np.random.default_rng(1), turn)
        for forget in (1.0, 0.96, "auto"):
            encoder = EmpiricalBayesRidge(forget=forget).fit(X, Y)
            found[turn, forget] = float(((encoder.predict(queries) - clean) ** 2).mean())
        assert (encoder.forget_ == 1) == (turn == 0)
        assert encoder.trial_precision_[-1] == 1
    assert found[2.5, "auto"] < 0.5 * found[2.5, 1.0]
    assert found[0.0, "auto"] == found[0.0, 1.0] < found[0.0, 0.96]


@pytest.mark.slow
def test_forgetting_and_outlying_trials_meet():
    X, Y, queries, clean = drifting(np.random.default_rng(2), 2.5)
    rng = np.random.default_rng(3)
    spoilt = rng.choice(240, 30, replace=False)
    Y[spoilt] += 8 * rng.standard_normal((30, 40))
    found = {}
    for robust in ("none", "shared"):
        for forget in (1.0, "auto"):
            encoder = EmpiricalBayesRidge(robust=robust, forget=forget).fit(X, Y)
            found[robust, forget] = float(((encoder.predict(queries) - clean) ** 2).mean())
    assert found["shared", "auto"] < 0.8 * min(v for k, v in found.items() if k != ("shared", "auto"))
    recent = encoder.trial_precision_ / encoder.forget_ ** np.arange(239, -1, -1.0)
    assert recent[spoilt].max() < np.median(np.delete(recent, spoilt))


def test_forgetting_is_weighted_ridge():
    X, Y, *_ = drifting(np.random.default_rng(0), 1.0, voxels=1)
    prior = WeightPrior(np.zeros(6), np.eye(6))
    encoder = EmpiricalBayesRidge(prior, estimate="max", forget=0.97, use_hyper=False, adapt="none").fit(X, Y)
    weight = 0.97 ** np.arange(239, -1, -1.0)
    wide = np.column_stack([X, np.ones(240)])
    penalty = np.diag([1.0] * 6 + [0.0]) * encoder.noise_variance_ / encoder.prior_scale_
    wanted = np.linalg.solve((wide.T * weight) @ wide + penalty, (wide.T * weight) @ Y)
    np.testing.assert_allclose(encoder.coef_, wanted[:-1], atol=1e-6)
    np.testing.assert_allclose(encoder.intercept_, wanted[-1], atol=1e-6)


@pytest.mark.parametrize(("settings", "said"), [({"forget": 0}, "at most 1"), ({"forget": "aut"}, "'auto'")])
def test_rates_of_forgetting_that_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        EmpiricalBayesRidge(**settings).fit(np.eye(5), np.eye(5))


def test_outliers_among_few_trials_do_not_make_the_others_noiseless():
    """More features than trials: but for the prior of noise levels, signal alone would explain all other trials."""
    rng, p, v = np.random.default_rng(5), 64, 200
    X, Q = (rng.standard_normal((n, p)) / np.sqrt(p) for n in (20, 200))
    W = np.sqrt(0.4) * rng.standard_normal((p, v))
    Y = X @ W + np.sqrt(0.6) * rng.standard_normal((20, v))
    Y[:3] += 3 * rng.standard_normal((3, v))
    prior = WeightPrior(
        np.zeros(p), 0.4 * np.eye(p), n_voxels=500, hyper_mean=[0.0, np.log(0.6)], hyper_cov=np.diag([0.3, 0.02])
    )
    fits = {kind: EmpiricalBayesRidge(prior, robust=kind).fit(X, Y) for kind in ("none", "shared")}
    means = {kind: stats.explained_variance(Q @ W, fit.predict(Q)).mean() for kind, fit in fits.items()}
    assert means["shared"] > max(means["none"], 0.0), means
    assert fits["shared"].trial_precision_[:3].max() < 0.2
    assert 0.4 < np.median(fits["shared"].noise_variance_) < 0.9


@pytest.mark.parametrize("kind", ["empirical Bayes", "in context"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_spike_is_brought_in_to_five_robust_deviations(kind, missing):
    """The rule by hand, and what the spike does without it."""
    rng, p, v = np.random.default_rng(0), 16, 60
    X, Q = (rng.standard_normal((n, p)) / 4 for n in (25, 200))
    W = rng.standard_normal((p, v))
    Y = X @ W + 0.7 * rng.standard_normal((25, v))
    if missing:
        Y[rng.random(Y.shape) < 0.1] = np.nan
    spoilt = Y.copy()
    spoilt[3, 7], spoilt[9, 11] = 40.0, -60.0
    spoilt[~(np.arange(25) < 9), 20] = np.nan  # nine responses say too little of what is usual
    spoilt[:9, 20], spoilt[0, 20] = 0.1 * np.arange(9), 30.0
    middle = np.nanmedian(spoilt, axis=0)
    reach = 5 * 1.4826 * np.nanmedian(np.abs(spoilt - middle), axis=0)
    reach[20] = np.inf

    def fit(Y, **clip):
        if kind == "empirical Bayes":
            return EmpiricalBayesRidge(WeightPrior.isotropic(p), **clip).fit(X, Y)
        torch.manual_seed(0)
        model = make_model("small", n_features=p, dim=16, depth=1)
        return InContextEncoder(model, response_scale="as-is", **clip).fit(X, Y)

    found, by_hand = fit(spoilt), fit(np.clip(spoilt, middle - reach, middle + reach), clip=None)
    np.testing.assert_allclose(found.coef_, by_hand.coef_, rtol=1e-5, atol=1e-6)
    assert (found.n_clipped_[[7, 11, 20]] == [1, 1, 0]).all()
    assert found.n_clipped_.sum() <= 5
    left = fit(spoilt, clip=None)
    assert left.n_clipped_.sum() == 0
    error = [float((((e.predict(Q) - Q @ W) ** 2)[:, [7, 11]]).mean()) for e in (found, left)]
    assert error[0] < 0.5 * error[1]
    for clip in (0, -1, "x"):
        with pytest.raises(ConfigError, match="clip"):
            fit(Y, clip=clip)


def test_heavy_tails_cost_less_and_gaussian_noise_nothing():
    """Noise of Student's t with 2.5 degrees of freedom; a gain of .05 was expected, it is .025 (.092 to .116)."""
    rng, p, v = np.random.default_rng(3), 32, 300
    X, Q = (rng.standard_normal((n, p)) / np.sqrt(p) for n in (30, 300))
    W = np.sqrt(0.5) * rng.standard_normal((p, v))
    prior = WeightPrior(np.zeros(p), 0.5 * np.eye(p))
    found = {}
    for noise, drawn in (("t", rng.standard_t(2.5, (30, v))), ("normal", rng.standard_normal((30, v)))):
        Y = X @ W + np.sqrt(0.5) * drawn
        for clip in (5.0, None):
            predicted = EmpiricalBayesRidge(prior, clip=clip).fit(X, Y).predict(Q)
            found[noise, clip] = float(stats.explained_variance(Q @ W, predicted).mean())
    assert found["t", 5.0] > found["t", None] + 0.01, found
    assert abs(found["normal", 5.0] - found["normal", None]) < 0.003, found
