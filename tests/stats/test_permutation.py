"""Permutation tests: scipy, exact enumeration, uniform p-values, blocks, missing values."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.stats

from neuroenc.stats import permutation_test, score

METRICS = ("r", "r2", "ev")


def noisy(n, v, seed=0, strength=0.0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, v))
    return y, strength * y + rng.standard_normal((n, v))


@pytest.mark.parametrize("metric", METRICS)
def test_all_arrangements_by_hand(metric):
    y, yhat = noisy(6, 4, strength=0.5)
    result = permutation_test(y, yhat, metric=metric, n_permutations=719)
    assert result.exhaustive
    assert result.n_permutations == 719
    null = np.array([score(y[list(i)], yhat, metric) for i in itertools.permutations(range(6))])
    np.testing.assert_allclose(result.p, (null >= null[0] - 1e-9).mean(axis=0))
    np.testing.assert_allclose(result.p_fwe, (null.max(1)[:, None] >= null[0] - 1e-9).mean(axis=0))
    np.testing.assert_allclose(np.sort(result.null_max), np.sort(null[1:].max(axis=1)), rtol=1e-9)
    np.testing.assert_allclose(result.statistic, null[0])


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_equal_to_scipy_exhaustive(alternative):
    y, yhat = noisy(6, 3, seed=4, strength=-0.7)
    found = permutation_test(y, yhat, n_permutations=10**4, alternative=alternative)
    for v in range(3):
        expected = scipy.stats.permutation_test(
            (y[:, v],),
            lambda a, v=v: (
                abs(np.corrcoef(a, yhat[:, v])[0, 1])
                if alternative == "two-sided"
                else np.corrcoef(a, yhat[:, v])[0, 1]
            ),
            permutation_type="pairings",
            n_resamples=np.inf,
            alternative="greater",
        )
        assert found.p[v] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("metric", METRICS)
def test_close_to_scipy_random(metric):
    y, yhat = noisy(40, 3, seed=1, strength=0.2)
    found = permutation_test(y, yhat, metric=metric, n_permutations=4999)
    for v in range(3):
        expected = scipy.stats.permutation_test(
            (y[:, v],),
            lambda a, v=v: float(score(a, yhat[:, v], metric)),
            permutation_type="pairings",
            n_resamples=999,
            rng=np.random.default_rng(0),
            alternative="greater",
        ).pvalue
        assert found.p[v] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 999) + 0.002)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["samples", "within", "whole", "shift"])
def test_p_is_uniform_under_the_null(mode, metric):
    y, yhat = noisy(60, 1500, seed=11)
    blocks = None if mode == "samples" else np.repeat(np.arange(10), 6)
    result = permutation_test(y, yhat, metric=metric, mode=mode, blocks=blocks, n_permutations=499)
    assert scipy.stats.kstest(result.p, "uniform").pvalue > 0.01
    assert result.p.min() >= 1 / 500


def test_planted_effect_is_found_and_nothing_else():
    y, yhat = noisy(200, 50, strength=0.0)
    yhat[:, :10] += y[:, :10]
    result = permutation_test(y, yhat, n_permutations=499, mode="within", blocks=np.repeat(np.arange(8), 25))
    assert (result.p_fwe[:10] == 1 / 500).all()
    assert (result.p_fwe[10:] > 0.05).sum() >= 38
    assert (result.p_fwe >= result.p).all()


def test_family_wise_error_over_correlated_voxels():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shared = rng.standard_normal((30, 1))
        y = shared + rng.standard_normal((30, 20))
        result = permutation_test(y, rng.standard_normal((30, 20)), n_permutations=99, seed=seed)
        hits += (result.p_fwe <= 0.05).any()
    assert hits <= scipy.stats.binom.ppf(0.999, 200, 0.05)
    assert hits >= scipy.stats.binom.ppf(0.001, 200, 0.05)


def runs_with_drift(seed, n_runs=20, length=25, v=400):
    """Autocorrelated measured and predicted series, unrelated to each other, new in each run."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal((2, n_runs, length, v)).cumsum(axis=2)
    return walk[0].reshape(-1, v), walk[1].reshape(-1, v), np.repeat(np.arange(n_runs), length)


def test_whole_blocks_hold_where_free_shuffles_fail():
    y, yhat, blocks = runs_with_drift(0)
    free = permutation_test(y, yhat, n_permutations=199)
    whole = permutation_test(y, yhat, n_permutations=199, mode="whole", blocks=blocks)
    assert (free.p <= 0.05).mean() > 0.25  # the negative control: samples are not exchangeable here
    assert (whole.p <= 0.05).mean() < 0.08
    assert scipy.stats.kstest(whole.p, "uniform").pvalue > 0.01


def test_within_blocks_hold_where_blocks_differ_in_mean():
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(5), 20)
    level = 2.0 * rng.standard_normal((5, 1))[blocks]
    y, yhat = level + rng.standard_normal((100, 400)), level + rng.standard_normal((100, 400))
    assert (permutation_test(y, yhat, n_permutations=199).p <= 0.05).mean() > 0.9
    within = permutation_test(y, yhat, n_permutations=199, mode="within", blocks=blocks)
    assert scipy.stats.kstest(within.p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("mode", ["within", "whole", "shift"])
def test_arrangements_respect_blocks(mode):
    """All arrangements of a tiny interleaved design, against an independent listing."""
    blocks = np.array(["b", "a", "b", "a", "c", "c"])
    y, yhat = noisy(6, 3, seed=2)
    rows = [np.flatnonzero(blocks == k) for k in "bac"]
    listed = []
    if mode == "whole":
        for order in itertools.permutations(range(3)):
            index = np.empty(6, int)
            for to, source in enumerate(order):
                index[rows[to]] = rows[source]
            listed.append(index)
    else:  # two samples per block: a shift is a swap
        for swaps in itertools.product([False, True], repeat=3):
            index = np.arange(6)
            for r, swap in zip(rows, swaps):
                index[r] = r[::-1] if swap else r
            listed.append(index)
    null = np.array([score(y[i], yhat, "r") for i in listed])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = permutation_test(y, yhat, mode=mode, blocks=blocks)
    assert result.exhaustive
    assert result.n_permutations == len(listed) - 1
    np.testing.assert_allclose(result.p, (null >= null[0] - 1e-9).mean(axis=0))
    np.testing.assert_allclose(np.sort(result.null_max), np.sort(null[1:].max(1)), rtol=1e-9)


@pytest.mark.parametrize("hole", [False, True])
def test_both_ways_of_computing_see_the_same_arrangement(hole):
    """Complete voxels use products of blocks, those with holes rearrange; one maximum spans both."""
    y, yhat = noisy(48, 1, seed=3)
    if hole:
        y[5] = np.nan
    rows = np.arange(48).reshape(8, 6)
    rng = np.random.default_rng(7)
    null = [float(score(y[rows[rng.permutation(8)].ravel()], yhat, "r")[0]) for _ in range(40)]
    result = permutation_test(y, yhat, mode="whole", blocks=np.repeat(np.arange(8), 6), n_permutations=40, seed=7)
    np.testing.assert_allclose(result.null_max, null, rtol=1e-9)


@pytest.mark.parametrize("mode", ["samples", "within", "whole", "shift"])
@pytest.mark.parametrize("metric", METRICS)
def test_memory_budget_does_not_change_the_result(mode, metric):
    y, yhat = noisy(48, 30, seed=3, strength=0.3)
    blocks = None if mode == "samples" else np.repeat(np.arange(8), 6)
    a, b = (
        permutation_test(y, yhat, metric=metric, mode=mode, blocks=blocks, n_permutations=60, seed=5, max_memory=m)
        for m in (1, 10**8)
    )
    np.testing.assert_array_equal(a.p, b.p)
    np.testing.assert_allclose(a.null_max, b.null_max, rtol=1e-9)
    other = permutation_test(y, yhat, metric=metric, mode=mode, blocks=blocks, n_permutations=60, seed=6)
    assert not np.allclose(a.null_max, other.null_max)


@pytest.mark.parametrize("metric", METRICS)
def test_missing_values_move_with_the_responses(metric):
    y, yhat = noisy(6, 3, seed=8, strength=0.8)
    y[2, 1] = np.nan
    yhat[4, 1] = np.nan
    yhat[0, 2] = np.nan
    result = permutation_test(y, yhat, metric=metric, n_permutations=719)
    null = np.array([score(y[list(i)], yhat, metric) for i in itertools.permutations(range(6))])
    np.testing.assert_allclose(result.p, (null >= null[0] - 1e-9).mean(axis=0))
    clean = permutation_test(y[:, :1], yhat[:, :1], metric=metric, n_permutations=719)
    assert clean.p[0] == result.p[0]


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_voxels_are_nan_and_left_out(metric):
    y, yhat = noisy(30, 5, strength=1.0)
    alone = permutation_test(y[:, 2:], yhat[:, 2:], metric=metric, n_permutations=50)
    y[:, 0] = 1.0
    y[3, 1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = permutation_test(y, yhat, metric=metric, n_permutations=50)
    assert np.isnan(result.p[:2]).all()
    assert np.isnan(result.p_fwe[:2]).all()
    np.testing.assert_array_equal(result.p[2:], alone.p)
    np.testing.assert_allclose(result.null_max, alone.null_max, rtol=1e-9)


def test_invariances():
    y, yhat = noisy(40, 12, strength=0.2)
    base = permutation_test(y, yhat, n_permutations=99)
    v = np.random.default_rng(0).permutation(12)
    moved = permutation_test(5 * y[:, v] - 3, 0.1 * yhat[:, v] + 9, n_permutations=99)
    np.testing.assert_array_equal(moved.p, base.p[v])
    np.testing.assert_array_equal(moved.p_fwe, base.p_fwe[v])
    blocks = np.repeat(np.arange(8), 5)
    a = permutation_test(y, yhat, n_permutations=99, mode="whole", blocks=blocks)
    b = permutation_test(y, yhat, n_permutations=99, mode="whole", blocks=np.array(list("hgfedcba"))[blocks])
    np.testing.assert_array_equal(a.p, b.p)  # names of blocks carry nothing
    assert permutation_test(y[:, 0], yhat[:, 0], n_permutations=99).p.shape == ()


def test_memory_stays_bounded():
    y = np.random.default_rng(0).standard_normal((300, 10000), dtype=np.float32)
    tracemalloc.start()
    permutation_test(y, y, n_permutations=20, max_memory=8 * 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20 < y.nbytes


def test_few_arrangements_are_said():
    y, yhat = noisy(12, 2)
    with pytest.warns(UserWarning, match=r"only 6 arrangements exist: no p can be below 0\.17"):
        permutation_test(y, yhat, mode="whole", blocks=np.repeat([0, 1, 2], 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "whole"}, "needs blocks"),
        ({"mode": "whole", "blocks": [0] * 5 + [1] * 7}, "2 blocks have 5 to 7 samples"),
        ({"mode": "whole", "blocks": [0] * 12}, "only one arrangement"),
        ({"mode": "within", "blocks": range(12)}, "only one arrangement"),
        ({"mode": "within", "blocks": [0, 1]}, "one label for each of the 12"),
        ({"mode": "samples", "blocks": [0] * 12}, "ignores blocks"),
        ({"mode": "block"}, "did you mean 'whole'"),
        ({"mode": "within", "blocks": [np.nan] * 12}, "12 NaN labels"),
        ({"metric": "r2", "alternative": "two-sided"}, "for metric='r' only"),
        ({"n_permutations": 0}, "n_permutations=0"),
        ({"metric": "rho"}, "unknown metric 'rho'"),
    ],
)
def test_errors(settings, message):
    y, yhat = noisy(12, 2)
    if "blocks" in settings:
        settings = {**settings, "blocks": list(settings["blocks"])}
    with pytest.raises(ValueError, match=message):
        permutation_test(y, yhat, **settings)
