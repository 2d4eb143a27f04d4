"""P-values of cross-validated accuracy are honest where shuffling against fixed predictions is not."""

import itertools

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuroenc import stats
from neuroenc._core.errors import ConfigError
from neuroenc.encoders import cross_validated_p
from neuroenc.encoders.linear._null import _Folds


def leave_out(groups):
    return [(np.flatnonzero(groups != g), np.flatnonzero(groups == g)) for g in np.unique(groups)]


def null_data(v=400, seed=0):
    """Eight categories in twelve runs, responses of noise: the design of a block experiment."""
    rng = np.random.default_rng(seed)
    X = np.tile(rng.standard_normal((8, 20)), (12, 1))
    runs = np.repeat(np.arange(12), 8)
    return X, rng.standard_normal((96, v)), runs, leave_out(runs)


def by_scikit_learn(X, y, folds, alphas, scale):
    predicted = np.empty_like(y)
    for (train, test), row in zip(folds, alphas):
        for alpha in np.unique(row):
            v = np.flatnonzero(row == alpha)
            model = make_pipeline(StandardScaler(), Ridge(alpha)) if scale else Ridge(alpha)
            fitted = model.fit(X[train], y[np.ix_(train, v)]).predict(X[test])
            predicted[np.ix_(test, v)] = fitted.reshape(len(test), -1)
    return stats.pearson_r(y, predicted)


def test_false_positives_stay_at_their_rate_and_fixed_predictions_do_not():
    X, y, runs, folds = null_data(v=1500)
    p, facts = cross_validated_p(X, y, folds, np.full((12, 1500), 10.0), groups=runs, n_permutations=200)
    assert facts == {"null": "refit", "n_permutations": 200, "n_refitted": 1500}
    assert 0.005 < (p <= 0.01).mean() < 0.016
    predicted = np.empty_like(y)
    for train, test in folds:
        predicted[test] = Ridge(10.0).fit(X[train], y[train]).predict(X[test])
    naive = stats.permutation_test(y, predicted, mode="within", blocks=runs, n_permutations=200).p
    assert (naive <= 0.01).mean() > 0.02


def test_accuracy_behind_the_p_values_is_that_of_ridge():
    X, y, runs, folds = null_data(v=3)
    y[:, 0] += 2 * X[:, 0]
    p, _ = cross_validated_p(X, y, folds, np.full((12, 3), 10.0), groups=runs, n_permutations=99)
    assert p[0] == 0.01
    order = np.random.default_rng(1).permutation(3)
    again, _ = cross_validated_p(X, y[:, order], folds, np.full((12, 3), 10.0), groups=runs, n_permutations=99)
    np.testing.assert_array_equal(again, p[order])


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(("n", "p", "partition"), [(40, 7, True), (30, 60, True), (41, 7, False)])
def test_sums_give_the_correlation_of_an_encoder_fitted_by_scikit_learn(n, p, partition, scale):
    """Primal and dual, folds of unequal size, training rows that leave some out, a feature that never varies."""
    rng = np.random.default_rng(n)
    X = 3 + rng.uniform(0.5, 4, p) * rng.standard_normal((n, p))
    X[:, 2] = 5.0
    y = rng.standard_normal((n, 4))
    y -= y.mean(axis=0)
    folds = leave_out(rng.permutation(n) % 4)
    if not partition:
        folds = [(train[1:], test) for train, test in folds]
    alphas = rng.uniform(0.1, 300, (4, 4))
    found = _Folds(X, folds, scale).accuracy(y, alphas)
    np.testing.assert_allclose(found, by_scikit_learn(X, y, folds, alphas, scale), rtol=1e-10)


def test_permutations_of_few_rows_are_all_permutations():
    """720 orders of six rows, each fitted by scikit-learn."""
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((6, 2)), rng.standard_normal((6, 2))
    folds, alphas = leave_out(np.repeat([0, 1], 3)), np.full((2, 2), 0.5)
    observed = by_scikit_learn(X, y, folds, alphas, False)
    orders = np.array(list(itertools.permutations(range(6))))
    moved = np.concatenate([y[order] for order in orders], axis=1)
    each = by_scikit_learn(X, moved, folds, np.full((2, 1440), 0.5), False)
    at_least = (each.reshape(-1, 2) >= observed - 1e-12).sum(axis=0)
    p, _ = cross_validated_p(X, y, folds, alphas, n_permutations=4000, null="refit")
    np.testing.assert_allclose(p, at_least / 720, atol=3 * np.sqrt(0.25 / 4000))


def responses(kind, shape, rng):
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "counts":
        return rng.poisson(0.7, shape).astype(float)
    return rng.exponential(size=shape)


@pytest.mark.parametrize("kind", ["normal", "counts", "skewed"])
def test_a_shared_null_agrees_with_the_refitted_one(kind):
    """P-values of the same voxels, the tail included, whatever penalties their folds chose."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((240, 12)), responses(kind, (240, 60), rng)
    y[:, :30] += np.linspace(0, 0.5, 30) * X[:, :1]
    folds, alphas = leave_out(np.arange(240) % 4), rng.choice([1.0, 30.0, 1000.0], (4, 60))
    refit, _ = cross_validated_p(X, y, folds, alphas, n_permutations=2000, null="refit", scale=True)
    shared, facts = cross_validated_p(X, y, folds, alphas, n_permutations=2000, null="shared", scale=True)
    assert facts == {"null": "shared", "n_permutations": 10_000, "n_refitted": 0}
    # Three standard errors of both, and a sixth of p for what tails of 240 responses do.
    error = 3 * np.sqrt(refit * (1 - refit) * (1 / 2000 + 1 / 10_000)) + 2e-3
    assert (np.abs(shared - refit) < error + refit / 6).all()
    assert (refit < 0.01).sum() >= 8


def test_a_shared_null_keeps_its_rate_within_autocorrelated_runs():
    """Noise that is correlated in time and has an offset in each run; only the order within runs is exchanged."""
    rng = np.random.default_rng(1)
    runs, v = np.repeat(np.arange(40), 30), 2000
    y = rng.standard_normal((1200, v))
    for row in np.flatnonzero(np.diff(runs, prepend=-1) == 0):
        y[row] = 0.8 * y[row - 1] + 0.6 * y[row]
    y += rng.standard_normal((40, v))[runs]
    X = rng.standard_normal((1200, 10))
    p, facts = cross_validated_p(X, y, leave_out(runs % 4), np.full((4, v), 10.0), groups=runs)
    assert facts["null"] == "shared"
    assert 0.04 < (p <= 0.05).mean() < 0.06
    assert 0.006 < (p <= 0.01).mean() < 0.014


def test_voxels_with_heavy_tails_are_refitted_and_the_others_shared():
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((1000, 3)), rng.standard_normal((1000, 3))
    y[7, 1] = 500.0
    folds, alphas = leave_out(np.arange(1000) % 3), np.ones((3, 3))
    p, facts = cross_validated_p(X, y, folds, alphas, n_permutations=200)
    assert facts["n_refitted"] == 1
    alone, _ = cross_validated_p(X, y[:, 1:2], folds, alphas[:, :1], n_permutations=200, null="refit")
    assert p[1] == alone[0]


def test_predictions_that_are_constant_are_no_evidence():
    X, y, _, folds = null_data(v=2)
    y[:, 0] = 4.0
    for null in ("refit", "shared"):
        p, _ = cross_validated_p(0 * X, y, folds, np.full((12, 2), 1.0), n_permutations=50, null=null)
        assert p[0] == 1.0
    with pytest.raises(ConfigError, match="every row once"):
        cross_validated_p(X, y, folds[1:], np.full((11, 2), 1.0))
    with pytest.raises(ConfigError, match="did you mean 'shared'"):
        cross_validated_p(X, y, folds, np.full((12, 2), 1.0), null="shard")


def test_rotated_series_keep_their_autocorrelation():
    """Shuffled volumes inflate false positives of a series without any effect; rotated runs do not."""
    rng = np.random.default_rng(0)
    n, v = 240, 60
    noise = lfilter([1.0], [1, -0.9], rng.standard_normal((n + 100, v + 4)), axis=0)[100:]
    x, y, run = noise[:, :4], noise[:, 4:], np.repeat(np.arange(4), n // 4)
    folds = [(np.flatnonzero(run != k), np.flatnonzero(run == k)) for k in range(4)]
    how = {"groups": run, "n_permutations": 199, "seed": 1}
    rates = {}
    for shift in (False, True):
        p, facts = cross_validated_p(x, y, folds, np.full((4, v), 50.0), shift=shift, **how)
        rates[shift], null = float((p < 0.05).mean()), facts["null"]
    assert rates[False] > 0.15
    assert rates[True] < 0.12
    assert null == "refit"
    with pytest.raises(ConfigError, match="autocorrelation"):
        cross_validated_p(x, y, folds, np.ones((4, v)), shift=True, null="shared")
