"""Bootstrap: explicit resampling, theory, coverage, groups, pairing, ROIs."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.stats

from neuroenc.stats import Resampler, median_samples, score

METRICS = ("r", "r2", "ev")
FIELDS = ("estimate", "standard_error", "low", "high")


def noisy(n, v, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, v)) + 5.0
    return y, y + noise * rng.standard_normal((n, v)) + 0.3


def drawn_by_hand(y, yhat, groups, n_bootstraps, seed, metric):
    """Scores of resamples whose rows are really copied."""
    rng, n = np.random.default_rng(seed), groups.max() + 1
    members = [np.flatnonzero(groups == g) for g in range(n)]
    rows = (np.concatenate([members[g] for g in rng.integers(0, n, n)]) for _ in range(n_bootstraps))
    return np.array([score(y[i], yhat[i], metric) for i in rows])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("holes", [False, True])
def test_weighted_sums_equal_explicit_resampling(metric, holes):
    y, yhat = noisy(50, 6)
    if holes:
        y[4, 0] = yhat[[7, 8], 1] = np.nan
    found = Resampler(200, seed=3).score(y, yhat, metric=metric)
    samples = drawn_by_hand(y, yhat, np.arange(50), 200, 3, metric)
    np.testing.assert_allclose(found.standard_error, samples.std(axis=0, ddof=1), rtol=1e-8)
    np.testing.assert_allclose(Resampler(200, seed=3).samples(y, yhat, metric=metric)[1], samples, rtol=1e-8)
    np.testing.assert_allclose(found.estimate, score(y, yhat, metric))


def test_equal_to_a_plain_loop():
    y, yhat = noisy(30, 4)
    rng = np.random.default_rng(9)
    draws = [rng.integers(0, 30, 30) for _ in range(150)]
    samples = np.array([[np.corrcoef(y[i, v], yhat[i, v])[0, 1] for v in range(4)] for i in draws])
    found = Resampler(150, seed=9, confidence=0.9, interval="percentile").score(y, yhat)
    np.testing.assert_allclose(found.standard_error, samples.std(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(found.low, np.quantile(samples, 0.05, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.high, np.quantile(samples, 0.95, axis=0), rtol=1e-9)


def test_standard_error_agrees_with_theory_and_scipy():
    y, yhat = noisy(400, 60)
    found = Resampler(500, interval="percentile").score(y, yhat)
    theory = (1 - 0.5) / np.sqrt(400)  # r squared is one half
    assert found.standard_error.mean() == pytest.approx(theory, rel=0.05)
    other = scipy.stats.bootstrap(
        (y[:, 0], yhat[:, 0]),
        lambda a, b: np.corrcoef(a, b)[0, 1],
        paired=True,
        vectorized=False,
        n_resamples=500,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    assert found.standard_error[0] == pytest.approx(other.standard_error, rel=0.15)
    assert found.low[0] == pytest.approx(other.confidence_interval.low, abs=0.01)


def test_interval_covers_the_truth():
    y, yhat = noisy(200, 600, seed=1)
    found = Resampler(300).score(y, yhat)
    covered = ((found.low <= 0.5**0.5) & (found.high >= 0.5**0.5)).mean()
    assert 0.92 < covered < 0.97


def test_groups_are_resampled_whole():
    """Presentations of one stimulus share most of their noise: rows alone look too certain."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    truth = rng.standard_normal((60, 200))
    shared = rng.standard_normal((60, 200))
    y = (truth + shared)[groups] + 0.1 * rng.standard_normal((300, 200))
    yhat = truth[groups]
    rows, whole = Resampler(200).score(y, yhat), Resampler(200, groups=groups).score(y, yhat)
    assert whole.n_units == 60
    assert whole.standard_error.mean() == pytest.approx(0.5 / np.sqrt(60), rel=0.15)
    assert rows.standard_error.mean() < 0.6 * whole.standard_error.mean()
    names = np.array([f"s{i:03d}" for i in groups])
    np.testing.assert_array_equal(Resampler(200, groups=names).score(y, yhat).low, whole.low)


def test_groups_of_unequal_size():
    y, yhat = noisy(40, 3)
    groups = np.repeat(np.arange(6), [1, 2, 5, 10, 10, 12])
    found = Resampler(300, groups=groups, seed=1).score(y, yhat, metric="r2")
    samples = drawn_by_hand(y, yhat, groups, 300, 1, "r2")
    np.testing.assert_allclose(found.standard_error, samples.std(axis=0, ddof=1), rtol=1e-8)


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_and_budget_do_not_matter(metric):
    y, yhat = noisy(40, 25)
    a, b = (Resampler(64, seed=2, max_memory=m).score(y, yhat, metric=metric) for m in (1, 10**8))
    for field in FIELDS:
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), rtol=1e-9)
    other = Resampler(64, seed=3).score(y, yhat, metric=metric)
    assert (other.low != b.low).all()


def test_invariances():
    y, yhat = noisy(50, 10)
    base = Resampler(50).score(y, yhat)
    v = np.random.default_rng(0).permutation(10)
    moved = Resampler(50).score(3 * y[:, v] - 100, 8 * yhat[:, v] + 1)
    np.testing.assert_allclose(moved.low, base.low[v], rtol=1e-9)
    assert Resampler(50).score(y[:, 0], yhat[:, 0]).low.shape == ()


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_voxels_are_nan_without_warnings(metric):
    y, yhat = noisy(20, 4)
    y[:, 0] = 2.0
    y[:, 1] = np.nan
    y[0, 2] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Resampler(40).score(y, yhat, metric=metric)
        both = Resampler(40).difference(y, yhat, yhat + 1, metric=metric)
    for field in FIELDS:
        assert np.isnan(getattr(found, field)[:3]).all()
        assert np.isfinite(getattr(found, field)[3])
    assert np.isnan(both.p[:3]).all()


def test_tiny_samples_with_constant_resamples():
    y, yhat = noisy(3, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Resampler(100).score(y, yhat)
    assert np.isfinite(found.low).all()
    assert (found.low >= -1).all()
    assert (found.high <= 1).all()


def test_difference_is_paired():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((150, 80))
    common = y + 2 * rng.standard_normal((150, 80))
    a, b = common, common + 0.1 * rng.standard_normal((150, 80))
    pair = Resampler(200).difference(y, a, b)
    np.testing.assert_allclose(pair.estimate, score(y, a, "r") - score(y, b, "r"))
    alone = Resampler(200).score(y, a).standard_error
    assert (pair.standard_error < 0.4 * alone).all()
    swapped = Resampler(200).difference(y, b, a)
    np.testing.assert_allclose(swapped.low, -pair.high, atol=1e-12)
    np.testing.assert_allclose(swapped.p, pair.p)
    same = Resampler(50).difference(y, a, a)
    np.testing.assert_array_equal(same.p, 1.0)


def test_difference_p_under_null_and_effect():
    rng = np.random.default_rng(5)
    y = rng.standard_normal((300, 500))
    a, b = (y + 2 * rng.standard_normal((300, 500)) for _ in range(2))
    null = Resampler(300).difference(y, a, b)
    assert 0.02 < (null.p <= 0.05).mean() < 0.08
    effect = Resampler(300).difference(y, y + 0.5 * rng.standard_normal((300, 500)), b)
    assert (effect.p < 0.02).mean() > 0.99


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_rois_equal_a_plain_loop(statistic):
    y, yhat = noisy(40, 9)
    y[:, 8] = 1.0
    mask = np.arange(9) >= 4
    rng = np.random.default_rng(2)
    draws = [rng.integers(0, 40, 40) for _ in range(80)]
    summary = np.nanmean if statistic == "mean" else np.nanmedian
    samples = np.array([score(y[i], yhat[i], "ev")[mask] for i in draws])
    own = score(y, yhat, "ev")[mask]
    samples = np.nanmean(samples, axis=1) if statistic == "mean" else median_samples(samples, own)
    for memory in (1, 10**8):
        found = Resampler(80, interval="percentile", seed=2, max_memory=memory).regions(
            y, yhat, {"a": mask, "b": [0, 2]}, metric="ev", statistic=statistic
        )
        assert list(found) == ["a", "b"]
        assert float(found["a"].estimate) == pytest.approx(summary(score(y, yhat, "ev")[mask]))
        assert float(found["a"].standard_error) == pytest.approx(samples.std(ddof=1))
        assert float(found["a"].low) == pytest.approx(np.quantile(samples, 0.025))


def test_roi_mean_keeps_noise_shared_by_voxels():
    """Voxels with common noise: the ROI mean is hardly more certain than one voxel."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((200, 1))
    y = signal + rng.standard_normal((200, 1)) + 0.2 * rng.standard_normal((200, 50))
    yhat = np.repeat(signal, 50, axis=1)
    one = Resampler(200).score(y, yhat).standard_error.mean()
    roi = Resampler(200).regions(y, yhat, {"all": np.ones(50, bool)}, statistic="mean")["all"]
    assert 0.8 * one < float(roi.standard_error) < 1.05 * one


def test_memory_stays_bounded():
    y = np.random.default_rng(0).standard_normal((300, 10000), dtype=np.float32)
    tracemalloc.start()
    Resampler(50, max_memory=8 * 2**20).score(y, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20 < y.nbytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_bootstraps": 1}, "n_bootstraps=1"),
        ({"confidence": 95}, "confidence=95"),
        ({"interval": "percentiles"}, "did you mean 'percentile'"),
        ({"groups": [0, 1]}, "one label for each of the 10"),
        ({"groups": [0] * 10}, "got 1 group"),
    ],
)
def test_errors(settings, message):
    y, yhat = noisy(10, 2)
    with pytest.raises(ValueError, match=message):
        Resampler(**settings).score(y, yhat)


def test_metrics_are_known():
    y, yhat = noisy(10, 2)
    with pytest.raises(ValueError, match="unknown metric 'corr'"):
        Resampler().score(y, yhat, metric="corr")


def test_groups_are_read_or_refused():
    y, yhat = noisy(10, 2)
    resampler = Resampler(groups=np.repeat(np.arange(5), 2))
    for call in (
        lambda: resampler.ceiling(y, np.arange(10), unit="r"),
        lambda: resampler.normalised(y, yhat, y, np.arange(10)),
        lambda: resampler.subjects({"a": (y, yhat), "b": (y, yhat)}),
        lambda: resampler.rdms(np.arange(6.0), np.arange(6.0), over="stimuli"),
    ):
        with pytest.raises(ValueError, match="groups is given"):
            call()


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        ({}, "rois is empty"),
        ({"V1": np.zeros(2, bool)}, "ROI 'V1' has no voxel"),
        ({"V1": np.ones(3, bool)}, r"shape \(3,\); there are 2 voxels"),
        ({"V1": [0, 2]}, "positions 0 to 2; legal: 0 to 1"),
        ({"V1": [0.5]}, "boolean mask or a list"),
    ],
)
def test_roi_errors(rois, message):
    y, yhat = noisy(10, 2)
    with pytest.raises(ValueError, match=message):
        Resampler(5).regions(y, yhat, rois)
