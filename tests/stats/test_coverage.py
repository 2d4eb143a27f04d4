"""Every interval holds the truth in 93 to 97 % of 2,000 repeats, and from 30 units on has the width that it should.

The width is compared with 3.92 standard deviations of the estimate over repeats, to within 15 %. Both margins were
fixed before any result was seen. Repeats are independent voxels (or groups of voxels) where that is quicker.
"""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.encoders.comparison._profiles import layer_table
from neuroenc.encoders.comparison._statistics import Group, draw_samples, group_medians, pair_table
from neuroenc.stats import Resampler, compare_rdms, crossed_interval, partition_variance, rdm, sample_interval, score

REPEATS = 2000
# Where single entries alone scatter, the variance is the larger of two that both overcount them, with the degrees of
# freedom of the few units of one kind.
ENTRIES = pytest.mark.xfail(reason="crossed: entries that alone scatter hold the truth in 98 to 99 %")


def judge(low, high, estimate, truth, n_units, measured=None):
    """``measured``: the range of a width that is known to be other than 3.92 standard deviations."""
    low, high, estimate = (np.concatenate([np.ravel(x) for x in part]) for part in (low, high, estimate))
    assert len(low) >= REPEATS
    held = np.mean((low <= truth) & (truth <= high))
    width = np.mean(high - low) / (3.92 * estimate.std())
    assert 0.93 <= held <= 0.97, (held, width)
    if n_units >= 30:
        least, most = measured or (0.85, 1.15)
        assert least <= width <= most, (held, width)


def test_means_of_percentiles():
    """Of 30 voxels, that heap up at one end or at both."""
    for a, b in ((5, 1), (0.5, 0.5)):
        x = np.random.default_rng(30).beta(a, b, (30, REPEATS))
        low, high, _ = sample_interval(draws_of(30, 499, 0) @ x / 30, x.mean(axis=0), n_units=30, bounds=(0, 1))
        judge([low], [high], [x.mean(axis=0)], a / (a + b), 30)


# Ratios of 30 stimuli are skewed: what holds the truth in 95 % is wider than 3.92 standard deviations.
RATIO = (1.1, 1.45)


@pytest.mark.parametrize("n", [30, 100])
def test_shares_of_variance(n):
    """Two spaces that each hold a third, and nothing together."""
    a, b, e = np.random.default_rng(n).standard_normal((3, n, REPEATS))
    drawn = {
        k: Resampler(199).samples(a + b + e, v, metric="r2") for k, v in {"a": a, "b": b, ("a", "b"): a + b}.items()
    }
    estimate, samples = (partition_variance({k: v[i] for k, v in drawn.items()}).parts for i in (0, 1))
    for part, truth in zip(estimate, (1 / 3, 1 / 3, 0.0)):
        low, high, _ = sample_interval(samples[part], estimate[part], n_units=n)
        judge([low], [high], [estimate[part]], truth, n, RATIO if n == 30 else None)


def draws_of(n, count, seed):
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), count).astype(np.float64)


@pytest.mark.parametrize("n", [3, 5, 8, 12, 30, 100])
def test_means(n):
    x = np.random.default_rng(n).standard_normal((n, REPEATS))
    low, high, _ = sample_interval(draws_of(n, 999, 0) @ x / n, x.mean(axis=0), n_units=n)
    judge([low], [high], [x.mean(axis=0)], 0.0, n)


@pytest.mark.slow
def test_medians_over_voxels():
    """30 stimuli, 51 independent voxels: quick, and the plain median of a resample is the negative control."""
    plain = []
    low, high, estimate = [], [], []
    for seed in range(10):
        y, yhat, members = regions(30, 51, 200, seed)
        found = Resampler(199, seed=seed).regions(y, yhat, members)
        low.append([f.low for f in found.values()])
        high.append([f.high for f in found.values()])
        estimate.append([f.estimate for f in found.values()])
        plain.append([f.standard_error for f in found.values()])
    judge(low, high, estimate, 0.0, 30)
    assert np.mean(plain) < 1.15 * np.std(estimate)


def regions(n, n_voxels, n_regions, seed, spread=0.0, shared=0.0):
    """Groups of voxels whose predictions have a correlation of 0 with them (or around it, by ``spread``)."""
    rng = np.random.default_rng([seed, n, n_voxels])
    v = n_voxels * n_regions
    at = np.linspace(-1, 1, n_voxels) * spread
    truth = np.tile(at, n_regions)
    common = np.repeat(rng.standard_normal((2, n, n_regions)), n_voxels, axis=2)
    p, e = np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal((2, n, v))
    y = truth * p + np.sqrt(1 - truth**2) * e
    return y, p, {str(k): np.arange(k * n_voxels, (k + 1) * n_voxels) for k in range(n_regions)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "rho", "n"),
    [
        *[("r", rho, n) for rho in (0.2, 0.6) for n in (12, 30, 100)],
        *[(metric, 0.6, 100) for metric in ("r2", "ev")],
        *[(metric, 0.6, 30) for metric in ("r2", "ev")],
    ],
)
def test_scores_of_voxels(metric, rho, n):
    rng = np.random.default_rng([n, int(10 * rho)])
    p, e = rng.standard_normal((2, n, REPEATS))
    y = rho * p + np.sqrt(1 - rho**2) * e
    found = Resampler(999).score(y, rho * p, metric=metric)
    truth = rho if metric == "r" else rho**2
    judge([found.low], [found.high], [found.estimate], truth, n, RATIO if metric == "r2" and n == 30 else None)


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 30, 100])
@pytest.mark.parametrize("metric", ["r", "r2"])
def test_differences_of_voxels(metric, n):
    rng = np.random.default_rng(n)
    y, a, b = rng.standard_normal((3, n, REPEATS))
    scale = 0.5 if metric == "r2" else 1.0
    found = Resampler(999).difference(y, scale * (y + a), scale * (y + b), metric=metric)
    np.testing.assert_array_equal(found.p <= 0.05, (found.low > 0) | (found.high < 0))
    judge([found.low], [found.high], [found.estimate], 0.0, n, RATIO if metric == "r2" and n == 30 else None)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["median", "mean"])
@pytest.mark.parametrize(
    ("n", "n_voxels", "spread", "shared"),
    [
        (15, 51, 0.0, 0.0),
        (30, 51, 0.0, 0.0),
        (400, 50, 0.0, 0.0),
        (400, 51, 0.0, 0.0),
        (300, 201, 0.0, 0.0),
        (100, 51, 0.1, 0.0),
        (100, 51, 0.3, 0.0),
        (30, 8, 0.0, 0.0),
        (30, 51, 0.0, 0.3),
        (100, 51, 0.2, 0.5),
    ],
)
def test_regions(statistic, n, n_voxels, spread, shared):
    found = []
    for seed in range(40):
        y, yhat, members = regions(n, n_voxels, 50, seed, spread, shared)
        out = Resampler(399, seed=seed).regions(y, yhat, members, statistic=statistic)
        found.append([(f.low, f.high, f.estimate) for f in out.values()])
    judge(*np.moveaxis(np.array(found, dtype=float), -1, 0), 0.0, n)


@pytest.mark.slow
@pytest.mark.parametrize("n_voxels", [50, 51, 301])
def test_comparison(n_voxels):
    """Medians of two encoders and of their difference, with 400 stimuli."""
    medians, pairs = [], []
    for seed in range(100):
        rng = np.random.default_rng([seed, n_voxels])
        y, a, b = rng.standard_normal((3, 400, 20 * n_voxels))
        groups = [Group("roi", str(k), np.arange(k * n_voxels, (k + 1) * n_voxels)) for k in range(20)]
        drawn = draw_samples(y, [y + a, y + b], n_bootstraps=399, groups=np.arange(400), seed=seed)
        medians.append(group_medians(["a", "b"], drawn, groups, None).query("cell == 'a'"))
        pairs.append(pair_table(["a", "b"], drawn, groups))
    for tables, column, truth in ((medians, "median_r", 0.5**0.5), (pairs, "median_difference", 0.0)):
        judge(*([t[c].to_numpy() for t in tables] for c in ("low", "high", column)), truth, 400)


@pytest.mark.slow
@pytest.mark.parametrize(("lead", "shared"), [(0.0, 0.0), (0.2, 0.0), (0.2, 0.3), (1.0, 0.0)])
def test_layer_positions(lead, shared):
    """Groups of 50 voxels: half are best predicted by the first of three layers, half by the last, by ``lead``."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng([seed, 50])
        y = rng.standard_normal((100, 2500))
        common = np.repeat(rng.standard_normal((3, 100, 50)), 50, axis=2)
        error = np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal((3, 100, 2500))
        size = np.repeat([[1 + lead], [1 + lead / 2], [1 + lead]], 2500, axis=1)
        size[0, ::2] = size[2, 1::2] = 1.0
        drawn = draw_samples(y, y + size[:, None] * error, n_bootstraps=399, groups=np.arange(100), seed=seed)
        groups = [Group("roi", str(k), np.arange(50 * k, 50 * k + 50)) for k in range(50)]
        found.append(layer_table(["a", "b", "c"], drawn, groups)[["low", "high", "mean_position"]].to_numpy())
    low, high, estimate = np.concatenate(found).T
    held, width = np.mean((low <= 0.5) & (high >= 0.5)), np.mean(high - low) / (3.92 * estimate.std())
    if lead < 1:
        assert 0.93 <= held <= (0.98 if shared else 0.97), (held, width)
        assert 0.85 <= width <= 1.15, (held, width)
    else:
        # Where nearly every voxel has a layer that is clearly best, resamples move more of them than new data would.
        assert held >= 0.99, (held, width)
        assert 1.5 < width < 2.1, (held, width)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["median", "mean"])
@pytest.mark.parametrize(
    ("over", "n_subjects", "between"),
    [
        ("stimuli", 4, 0.0),
        ("subjects", 4, 0.1),
        ("subjects", 12, 0.1),
        ("both", 4, 0.1),
        ("both", 12, 0.1),
        pytest.param("both", 8, 0.0, marks=ENTRIES),
    ],
)
def test_subjects(statistic, over, n_subjects, between):
    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        data = {}
        for k in range(n_subjects):
            p, e = rng.standard_normal((2, 60, 15))
            r = np.tanh(between * rng.standard_normal())
            data[str(k)] = r * p + np.sqrt(1 - r**2) * e, p
        out = Resampler(299, seed=seed).subjects(data, over=over, statistic=statistic)
        found.append((out.low, out.high, out.estimate))
    # Where subjects and stimuli are few there are fewer than 30 units of one of them.
    judge(*np.array(found, dtype=float).T[:, None], 0.0, 60 if over == "stimuli" else n_subjects)


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 100])
def test_ceilings(n):
    rng = np.random.default_rng(n)
    stimulus = np.repeat(np.arange(n), 3)
    single = rng.standard_normal((n, REPEATS))[stimulus] + rng.standard_normal((3 * n, REPEATS))
    found = Resampler(499).ceiling(single, stimulus, unit="r2", total="empirical")
    judge([found.low], [found.high], [found.estimate], 0.75, n)


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("joint", [True, False])
def test_normalised_scores(joint, n):
    rng = np.random.default_rng(n)
    stimulus = np.repeat(np.arange(n), 3)
    signal = rng.standard_normal((n, REPEATS))
    single = signal[stimulus] + rng.standard_normal((3 * n, REPEATS))
    y = single.reshape(n, 3, REPEATS).mean(axis=1)
    yhat = signal + rng.standard_normal((n, REPEATS))
    ids = np.arange(n) if joint else None
    found = Resampler(499).normalised(y, yhat, single, stimulus, y_stimulus=ids, total="empirical")
    # A score of 30 stimuli over a ceiling of 30 stimuli, which sometimes is near 0.
    judge([found.low], [found.high], [found.estimate], 0.5**0.5, n, (1.4, 1.9) if n == 30 else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "n", "m"), [("stimuli", 30, 3), ("subjects", 30, 6), pytest.param("both", 30, 8, marks=ENTRIES)]
)
def test_dissimilarities(over, n, m):
    """Conditions from a population: the truth is the comparison of two very large matrices.

    Subjects differ by noise alone, so that of what is crossed only entries and conditions scatter.
    """

    def world(rng, n, m):
        x = rng.standard_normal((n, 20))
        own = [x + 2.0 * rng.standard_normal((n, 20)) for _ in range(m)]
        return rdm(x, "euclidean"), np.stack([rdm(y, "euclidean") for y in own])

    truth = np.mean([compare_rdms(*world(np.random.default_rng(k), 300, 4), "pearson").mean() for k in range(10)])
    found = []
    for seed in range(REPEATS):
        out = Resampler(199, seed=seed).rdms(
            *world(np.random.default_rng([seed, n]), n, m), over=over, method="pearson"
        )
        found.append((out.low[0], out.high[0], out.estimate[0]))
    low, high, estimate = np.array(found).T
    judge([low], [high], [estimate], estimate.mean() if over == "subjects" else truth, n if over == "stimuli" else m)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [pytest.param(0.0, 0.0, marks=ENTRIES), (1.0, 0.0), (0.3, 0.1)])
def test_crossed_units(a, b):
    """Means over 5 draws and 60 voxels, of which draws (a), voxels (b) and single entries scatter."""
    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        x = a * rng.standard_normal((5, 1)) + b * rng.standard_normal((1, 60)) + rng.standard_normal((5, 60))
        u, w = (draws_of(k, 399, [seed, k]) / k for k in (5, 60))
        kinds = [(u @ x.mean(axis=1), 5), (w @ x.mean(axis=0), 60)]
        low, high, _ = crossed_interval(((u @ x) * w).sum(axis=1), x.mean(), kinds)
        found.append((low, high, x.mean()))
    judge(*np.array(found, dtype=float).T[:, None], 0.0, 5)


def test_scores_are_what_is_resampled():
    y, yhat, members = regions(40, 5, 2, 0)
    found = Resampler(39).regions(y, yhat, members)
    assert float(found["0"].estimate) == np.median(score(y, yhat)[:5])
