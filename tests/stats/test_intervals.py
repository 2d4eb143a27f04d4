"""Expanded intervals: against formulas, p-values that invert them, few units. Coverage stands in test_coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from neuroenc.stats import Resampler, compare_rdms, median_samples, rdm, sample_interval
from neuroenc.stats._intervals import pooled_expansion


def noisy(n=30, v=5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, v)) + 2.0
    return y, y + rng.standard_normal((n, v)), y + rng.standard_normal((n, v))


def test_of_a_mean_is_hesterbergs():
    """With a bootstrap distribution that is nearly normal, the interval of a mean is Student's."""
    x = scipy.stats.norm.ppf((np.arange(25) + 0.5) / 25) - 0.1
    drawn = np.random.default_rng(1).choice(x, (200_000, 25)).mean(axis=1)
    low, high, p = sample_interval(drawn, x.mean(), n_units=25)
    student = scipy.stats.t.interval(0.95, 24, x.mean(), x.std(ddof=1) / 5)
    np.testing.assert_allclose([low, high], student, atol=0.01)
    assert p == pytest.approx(scipy.stats.ttest_1samp(x, 0).pvalue, abs=0.01)


def test_units_that_a_voxel_has_not_seen():
    """Half of the stimuli missing: the interval is that of the other half."""
    y, a, _ = noisy(60)
    y[30:] = np.nan
    found = Resampler(3000).score(y, a)
    alone = Resampler(3000).score(y[:30], a[:30])
    ratio = (found.high - found.low) / (alone.high - alone.low)
    assert 0.95 < ratio.mean() < 1.1


@pytest.mark.parametrize("n_units", [3, 5, 8, 15, 60])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_p_inverts_the_interval(n_units, confidence):
    """p <= 1 - confidence exactly where the interval leaves out 0: also with few resamples, and with few units."""
    rng = np.random.default_rng(n_units)
    x = rng.standard_normal((n_units, 3000)) + rng.uniform(-1.5, 1.5, 3000)
    for n_bootstraps in (49, 399):
        weights = rng.multinomial(n_units, np.full(n_units, 1 / n_units), n_bootstraps) / n_units
        low, high, p = sample_interval(weights @ x, x.mean(axis=0), n_units=n_units, confidence=confidence)
        outside = (low > 0) | (high < 0)
        assert 0.02 < outside.mean() < 0.98
        np.testing.assert_array_equal(p <= 1 - confidence, outside)


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_few_units_are_at_least_students(n):
    """All resamples enumerated, 2000 voxels of noise: percentiles leave out 0 far too often, expanded ones do not."""
    draws = (
        np.array(list(itertools.product(range(n), repeat=n)))
        if n < 6
        else np.random.default_rng(0).integers(0, n, (2000, n))
    )
    weights = np.stack([(draws == k).sum(axis=1) for k in range(n)], axis=1) / n
    x = np.random.default_rng(n).standard_normal((n, 2000))
    samples = weights @ x
    out = {}
    if len(draws) < 39:
        with pytest.raises(ValueError, match="27 resamples cannot show"):
            sample_interval(samples, x.mean(axis=0), n_units=n, interval="percentile")
    for interval in ("expanded", "percentile")[: 1 if len(draws) < 39 else 2]:
        low, high, _ = sample_interval(samples, x.mean(axis=0), n_units=n, interval=interval)
        out[interval] = np.mean((low > 0) | (high < 0))
    assert out["expanded"] <= scipy.stats.binom.ppf(0.999, 2000, 0.05) / 2000
    assert out.get("percentile", 1.0) > 0.09


def test_degrees_of_freedom_of_two_kinds_of_units():
    one = pooled_expansion([(np.array([1.0]), 5)], np.array([1.0]), np.array([1.0]))
    assert one.degrees[0] == pytest.approx(4)
    assert one.factor[0] == pytest.approx(np.sqrt(5 / 4))
    parts = [(np.array([0.8, 0.8, 0.0]), 5), (np.array([0.0, 100 / 101, 100 / 101]), 101)]
    drawn = parts[0][0] + parts[1][0]
    both = pooled_expansion(parts, drawn, drawn)
    np.testing.assert_allclose(both.degrees, [4, 4 / (1 / 4 + 1 / 100), 100])
    np.testing.assert_allclose(both.factor**2, [5 / 4, 2 / (4 / 5 + 100 / 101), 101 / 100])
    # Resamples that vary more than they should are brought back.
    np.testing.assert_allclose(pooled_expansion(parts, 3 * drawn, 2 * drawn).factor ** 2, both.factor**2 * 2 / 3)


def test_subjects_are_students_where_only_they_differ():
    """Three subjects with many stimuli: their interval is the t interval of their own values."""
    rng = np.random.default_rng(3)
    data = {}
    for name, gain in zip("abc", (1.0, 1.2, 1.5), strict=True):
        y = rng.standard_normal((2000, 3))
        data[name] = y, gain * y + rng.standard_normal((2000, 3))
    for over, slack in (("subjects", 0.03), ("both", 0.15)):
        found = Resampler(4000).subjects(data, over=over, statistic="mean")
        t = scipy.stats.t.interval(0.95, 2, found.subjects.mean(), scipy.stats.sem(found.subjects))
        assert float(found.high - found.low) == pytest.approx(t[1] - t[0], rel=slack)
    narrow = Resampler(interval="percentile").subjects(data, over="subjects", statistic="mean")
    assert float(narrow.low) >= found.subjects.min()


def test_rdms_of_few_subjects_are_students():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((14, 20))
    model, data = rdm(x), np.stack([rdm(x + rng.standard_normal(x.shape)) for _ in range(4)])
    few = Resampler(400).rdms(model, data, over="subjects")
    own = compare_rdms(model, data)[0]
    t = scipy.stats.t.interval(0.95, 3, own.mean(), scipy.stats.sem(own))
    np.testing.assert_allclose([few.low[0], few.high[0]], t, rtol=0.05)


def test_a_median_over_voxels_by_a_loop():
    """Voxels are drawn together by what resamples spread them apart; noise that all share does not draw them."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal(21)
    drawn = own + 0.5 * rng.standard_normal((300, 21)) + 2 * rng.standard_normal((300, 1))
    scatter = np.mean([np.var(drawn[k] - own, ddof=1) for k in range(100)])
    kept = np.sqrt(1 - scatter / np.var(own, ddof=1))
    m = np.median(own)
    want = [np.median(m + kept * (own - m) + row - own) for row in drawn]
    np.testing.assert_allclose(median_samples(drawn, own), want)
    assert median_samples(drawn.astype(np.float32), own) == pytest.approx(want, abs=1e-5)
    # Voxels that differ by less than resamples add are one voxel; missing ones change nothing.
    same = median_samples(own + drawn, np.zeros(21))
    np.testing.assert_allclose(same, np.median(own + drawn, axis=1))
    holed = np.column_stack([drawn, np.full(300, np.nan)])
    np.testing.assert_allclose(median_samples(holed, np.append(own, np.nan)), want)


def test_rois_memory_and_threads_change_nothing():
    y, a, _ = noisy(v=6)
    roi = [0, 2, 3, 5]
    estimate, drawn = Resampler(400).samples(y, a)
    want = sample_interval(median_samples(drawn[:, roi], estimate[roi]), np.median(estimate[roi]), n_units=30)
    for settings in ({}, {"max_memory": 1}, {"n_jobs": 2}, {"max_memory": "1GB"}):
        found = Resampler(400, **settings).regions(y, a, {"x": roi})["x"]
        np.testing.assert_allclose([found.low, found.high], want[:2], rtol=1e-9)


def test_a_bias_of_the_resamples_is_counted_once():
    drawn = np.random.default_rng(0).standard_normal(9999)
    low, high, p = sample_interval(drawn + 7.0, 0.0, n_units=1000)
    np.testing.assert_allclose([low, high, p], [-1.96, 1.96, 1.0], atol=0.06)


def test_percentiles_of_too_few_resamples_are_refused():
    with pytest.raises(ValueError, match="draw at least 39"):
        sample_interval(np.arange(38.0), 1.0, n_units=9, interval="percentile")
    assert np.isfinite(sample_interval(np.arange(39.0), 1.0, n_units=9, interval="percentile")).all()
    assert np.isfinite(sample_interval(np.arange(5.0), 1.0, n_units=9)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_interval(np.ones((5, 2)), [1.0, 1.0], n_units=5, interval="bca"), "unknown interval 'bca'"),
        (lambda: sample_interval(np.ones((5, 2)), [1.0], n_units=5), "2 columns and estimate 1"),
        (lambda: sample_interval(np.ones((5, 2)), [1.0, 1.0], n_units=5, confidence=0), "confidence=0"),
        (lambda: Resampler(groups=[1] * 5).units(np.ones((5, 2)), np.ones((5, 2))), "got 1 group"),
        (lambda: median_samples(np.ones((5, 2)), [1.0]), r"shape \(5, 2\) and estimate \(1,\)"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shares_of_none_and_all_are_not_certain():
    """Against Wilson's limits by hand, with Student's t; the resamples of 0 of 40 are all 0."""
    none, every = (sample_interval(np.full(99, x), x, n_units=40, bounds=(0, 1)) for x in (0.0, 1.0))
    t2 = scipy.stats.t.ppf(0.975, 39) ** 2
    assert none[0] == 0.0
    assert every[1] == 1.0
    assert none[1] == pytest.approx(t2 / (40 + t2))
    assert every[0] == pytest.approx(40 / (40 + t2))
    assert np.isnan(none[2])
    # A share of independent units is worth as many units as there are.
    x = np.random.default_rng(0).random(400) < 0.2
    drawn = np.random.default_rng(1).multinomial(400, np.full(400, 1 / 400), 4000) @ x / 400
    ours = sample_interval(drawn, x.mean(), n_units=400, bounds=(0, 1))[:2]
    np.testing.assert_allclose(ours, scipy.stats.binomtest(int(x.sum()), 400).proportion_ci(method="wilson"), atol=2e-3)
    in_percent = sample_interval(100 * drawn, 100 * x.mean(), n_units=400, bounds=(0, 100))[:2]
    np.testing.assert_allclose(in_percent, 100 * np.array(ours))
    with pytest.raises(ValueError, match="bounds are 0 and 1"):
        sample_interval(drawn, 1.5, n_units=400, bounds=(0, 1))


@pytest.mark.parametrize("over", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("both", "stimuli")), "subjects"])
def test_standard_errors_agree_with_their_intervals(over):
    rng = np.random.default_rng(0)
    data = {str(k): rng.standard_normal((2, 60, 6)) for k in range(40)}
    found = Resampler(999).subjects(data, over=over, statistic="mean")
    x = rng.standard_normal((40, 12))
    rdms = Resampler(999).rdms(rdm(x), np.stack([rdm(x + rng.standard_normal(x.shape)) for _ in range(40)]), over=over)
    for one in (found, rdms):
        assert np.ravel((one.high - one.low) / one.standard_error) == pytest.approx(3.92, rel=0.12)
    if over == "both":
        assert float(found.standard_error) == pytest.approx(float(found.variance["corrected"]) ** 0.5)
