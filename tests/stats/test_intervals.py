"""Expanded intervals: against formulas, jackknife by a loop, p-values that invert them, few units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from neuroenc.stats import (
    bootstrap,
    bootstrap_ceiling,
    bootstrap_difference,
    bootstrap_normalised,
    bootstrap_rdms,
    bootstrap_rois,
    bootstrap_samples,
    bootstrap_subjects,
    ceiling_from_repeats,
    compare_rdms,
    leave_one_out,
    rdm,
    sample_interval,
    score,
    square_rdm,
)
from neuroenc.stats._intervals import pooled_expansion


def noisy(n=30, v=5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, v)) + 2.0
    return y, y + rng.standard_normal((n, v)), y + rng.standard_normal((n, v))


def expected(samples, estimate, left, n, confidence=0.95):
    """The definition, written out for one column."""
    se = samples.std(ddof=1)
    jackknife = np.sqrt((n - 1) / n * np.sum((left - estimate) ** 2))
    factor = max(jackknife / se, np.sqrt(n / (n - 1)))
    a = scipy.stats.norm.cdf(factor * scipy.stats.t.ppf((1 - confidence) / 2, n - 1))
    ordered = np.sort(samples)
    k = int((len(samples) + 1) * a)
    assert k >= 1
    return ordered[k - 1], ordered[-k]


def test_of_a_mean_is_hesterbergs():
    """With the whole bootstrap distribution nearly normal, the interval of a mean is Student's."""
    x = np.random.default_rng(0).standard_normal(25)
    drawn = np.random.default_rng(1).choice(x, (200_000, 25)).mean(axis=1)
    low, high, p = sample_interval(drawn, x.mean(), n_units=25)
    student = scipy.stats.t.interval(0.95, 24, x.mean(), x.std(ddof=1) / 5)
    np.testing.assert_allclose([low, high], student, atol=0.01)
    assert p == pytest.approx(scipy.stats.ttest_1samp(x, 0).pvalue, abs=0.01)
    left = (x.sum() - x) / 24
    np.testing.assert_allclose(sample_interval(drawn, x.mean(), n_units=25, left_out=left), (low, high, p), rtol=0.02)


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(15), 2)])
def test_leaving_out_by_a_loop(metric, groups):
    y, a, _ = noisy()
    y[3, 0] = a[[5, 6], 1] = y[0, 2] = y[1, 2] = np.nan
    seen, left = leave_one_out(y, a, metric=metric, groups=groups)
    unit = np.arange(30) if groups is None else groups
    for k in range(len(left)):
        np.testing.assert_allclose(left[k], score(y[unit != k], a[unit != k], metric), rtol=1e-9)
    assert seen.tolist() == ([29, 28, 28, 30, 30] if groups is None else [15, 15, 14, 15, 15])
    np.testing.assert_allclose(leave_one_out(y, a, metric=metric, groups=groups, max_memory=1)[1], left, rtol=1e-9)


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
def test_bootstrap_is_the_definition(metric):
    y, a, b = noisy()
    e, x = bootstrap_samples(y, a, metric=metric, n_bootstraps=600, seed=4)
    other, drawn = bootstrap_samples(y, b, metric=metric, n_bootstraps=600, seed=4)
    found = bootstrap(y, a, metric=metric, n_bootstraps=600, seed=4)
    slow = bootstrap(y, a, metric=lambda p, q: score(p, q, metric), n_bootstraps=600, seed=4)
    pair = bootstrap_difference(y, a, b, metric=metric, n_bootstraps=600, seed=4)
    left, right = (leave_one_out(y, z, metric=metric)[1] for z in (a, b))
    for v in range(5):
        want = expected(x[:, v], e[v], left[:, v], 30)
        np.testing.assert_allclose([found.low[v], found.high[v]], want, rtol=1e-9)
        np.testing.assert_allclose([slow.low[v], slow.high[v]], want, rtol=1e-9)
        want = expected(x[:, v] - drawn[:, v], e[v] - other[v], left[:, v] - right[:, v], 30)
        np.testing.assert_allclose([pair.low[v], pair.high[v]], want, rtol=1e-9)
    assert found.interval == "expanded"


def test_units_that_a_voxel_has_not_seen():
    """Half of the stimuli missing: the interval is that of the other half."""
    y, a, _ = noisy(60)
    y[30:] = np.nan
    found = bootstrap(y, a, n_bootstraps=3000)
    alone = bootstrap(y[:30], a[:30], n_bootstraps=3000)
    ratio = (found.high - found.low) / (alone.high - alone.low)
    assert 0.95 < ratio.mean() < 1.1


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_rois_by_a_loop_and_threads(statistic):
    y, a, _ = noisy(v=6)
    roi = [0, 2, 3, 5]
    summary = np.mean if statistic == "mean" else np.median
    drawn = summary(bootstrap_samples(y, a, n_bootstraps=400)[1][:, roi], axis=1)
    left = summary(leave_one_out(y, a)[1][:, roi], axis=1)
    want = expected(drawn, summary(score(y, a)[roi]), left, 30)
    for settings in ({}, {"max_memory": 1}, {"n_jobs": 2}):
        found = bootstrap_rois(y, a, {"x": roi}, statistic=statistic, n_bootstraps=400, **settings)["x"]
        np.testing.assert_allclose([found.low, found.high], want, rtol=1e-9)


def shown(n=40, v=2, seed=0):
    rng = np.random.default_rng(seed)
    signal, stimulus = rng.standard_normal((n, v)), np.repeat(np.arange(n), 3)
    single = signal[stimulus] + rng.standard_normal((3 * n, v))
    return signal, single, stimulus


@pytest.mark.parametrize("method", ["ncsnr", "split_half"])
def test_ceilings_by_a_loop(method):
    _, single, stimulus = shown()
    settings = {"unit": "r", "total": "empirical", "method": method, "n_splits": 3, "n_repeats": 3}
    found = bootstrap_ceiling(single, stimulus, **settings, n_bootstraps=500)
    narrow = bootstrap_ceiling(single, stimulus, **settings, n_bootstraps=500, interval="percentile")
    assert (found.low <= narrow.low).all()
    assert (found.high >= narrow.high).all()
    if method == "ncsnr":
        whole = ceiling_from_repeats(single, stimulus, **settings)
        left = [ceiling_from_repeats(single[stimulus != k], stimulus[stimulus != k], **settings) for k in range(40)]
        jackknife = np.sqrt(39 / 40 * np.sum((np.array(left) - whole) ** 2, axis=0))
        factor = np.maximum(jackknife / found.standard_error, np.sqrt(40 / 39))
        tail = scipy.stats.norm.cdf(factor * scipy.stats.t.ppf(0.025, 39))
        draws = np.random.default_rng(0)
        samples = []
        for _ in range(500):
            picked = draws.integers(0, 40, 40)
            rows = (3 * picked[:, None] + np.arange(3)).ravel()
            samples.append(ceiling_from_repeats(single[rows], np.repeat(np.arange(40), 3), **settings))
        ordered = np.sort(samples, axis=0)
        np.testing.assert_allclose(found.low, [ordered[int(501 * t) - 1, v] for v, t in enumerate(tail)])


@pytest.mark.parametrize("joint", [True, False])
def test_normalised_scores_by_a_loop(joint):
    signal, single, stimulus = shown()
    y = single.reshape(40, 3, 2).mean(axis=1)
    ids = np.arange(40) if joint else None
    settings = {"y_stimulus": ids, "total": "empirical", "n_repeats": 3, "n_bootstraps": 400}
    found = bootstrap_normalised(y, signal, single, stimulus, **settings)
    narrow = bootstrap_normalised(y, signal, single, stimulus, **settings, interval="percentile")
    whole_r, whole_c = score(y, signal), ceiling_from_repeats(
        single, stimulus, unit="r", total="empirical", n_repeats=3
    )  # fmt: skip
    r, c = [], []
    for k in range(40):
        keep, rows = np.arange(40) != k, stimulus != k
        r.append(score(y[keep], signal[keep]))
        c.append(ceiling_from_repeats(single[rows], stimulus[rows], unit="r", total="empirical", n_repeats=3))
    r, c, share = np.array(r), np.array(c), whole_r / whole_c
    kinds = [r / c] if joint else [r / whole_c, whole_r / c]
    variance = sum(39 / 40 * np.sum((x - share) ** 2, axis=0) for x in kinds)
    factor = np.maximum(np.sqrt(variance) / found.standard_error, np.sqrt(40 / 39))
    wider = (found.high - found.low) / (narrow.high - narrow.low)
    # Quantiles of 400 resamples are coarse: the widths agree with the factor and Student's t up to that.
    np.testing.assert_allclose(wider, factor * scipy.stats.t.ppf(0.975, 39) / 1.96, rtol=0.2)
    assert (wider > 1).all()


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
    draws = np.array(list(itertools.product(range(n), repeat=n))) if n < 6 else np.random.default_rng(0).integers(
        0, n, (2000, n)
    )  # fmt: skip
    weights = np.stack([(draws == k).sum(axis=1) for k in range(n)], axis=1) / n
    x = np.random.default_rng(n).standard_normal((n, 2000))
    samples = weights @ x
    out = {}
    for interval in ("expanded", "percentile"):
        low, high, _ = sample_interval(samples, x.mean(axis=0), n_units=n, interval=interval)
        out[interval] = np.mean((low > 0) | (high < 0))
    assert out["expanded"] <= scipy.stats.binom.ppf(0.999, 2000, 0.05) / 2000
    assert out["percentile"] > 0.09


def test_degrees_of_freedom_of_two_kinds_of_units():
    one = pooled_expansion([(np.array([1.0]), 5)])
    assert one.degrees[0] == pytest.approx(4)
    assert one.factor[0] == pytest.approx(np.sqrt(5 / 4))
    both = pooled_expansion([(np.array([1.0, 1.0, 0.0]), 5), (np.array([0.0, 1.0, 1.0]), 101)])
    np.testing.assert_allclose(both.degrees, [4, 4 / (1 / 4 + 1 / 100), 100])
    np.testing.assert_allclose(both.factor**2, [5 / 4, 2 / (4 / 5 + 100 / 101), 101 / 100])


def test_subjects_are_students_where_only_they_differ():
    """Three subjects with many stimuli: their interval is the t interval of their own values."""
    rng = np.random.default_rng(3)
    data = {}
    for name, gain in zip("abc", (1.0, 1.2, 1.5), strict=True):
        y = rng.standard_normal((2000, 3))
        data[name] = y, gain * y + rng.standard_normal((2000, 3))
    for over, slack in (("subjects", 0.03), ("both", 0.15)):
        found = bootstrap_subjects(data, over=over, statistic="mean", n_bootstraps=4000)
        t = scipy.stats.t.interval(0.95, 2, found.subjects.mean(), scipy.stats.sem(found.subjects))
        assert float(found.high - found.low) == pytest.approx(t[1] - t[0], rel=slack)
    narrow = bootstrap_subjects(data, over="subjects", statistic="mean", interval="percentile")
    assert float(narrow.low) >= found.subjects.min()


def test_rdms_by_a_loop():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((14, 20))
    model, data = rdm(x), np.stack([rdm(x + rng.standard_normal(x.shape)) for _ in range(4)])
    found, samples = bootstrap_rdms(model, data, over="stimuli", n_bootstraps=400)
    squares, left = square_rdm(data), []
    for k in range(14):
        keep = np.delete(np.arange(14), k)
        pick = np.ix_(keep, keep)
        left.append(compare_rdms(square_rdm(model)[pick], np.stack([s[pick] for s in squares])).mean())
    want = expected(samples[:, 0], found.estimate[0], np.array(left), 14)
    np.testing.assert_allclose([found.low[0], found.high[0]], want)
    few = bootstrap_rdms(model, data, over="subjects", n_bootstraps=400)[0]
    own = compare_rdms(model, data)[0]
    t = scipy.stats.t.interval(0.95, 3, own.mean(), scipy.stats.sem(own))
    np.testing.assert_allclose([few.low[0], few.high[0]], t, rtol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_interval(np.ones((5, 2)), [1.0, 1.0], n_units=5, interval="bca"), "unknown interval 'bca'"),
        (lambda: sample_interval(np.ones((5, 2)), [1.0], n_units=5), "2 columns and estimate 1"),
        (lambda: sample_interval(np.ones((5, 2)), [1.0, 1.0], n_units=5, confidence=0), "confidence=0"),
        (lambda: leave_one_out(np.ones((5, 2)), np.ones((5, 2)), groups=[1] * 5), "got 1 group"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
