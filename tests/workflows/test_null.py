"""P-values of cross-validated accuracy are honest where shuffling against fixed predictions is not."""

import numpy as np
from sklearn.linear_model import Ridge

from neuroenc import stats
from neuroenc.workflows._null import cross_validated_p


def null_data(v=400, seed=0):
    """Eight categories in twelve runs, responses of noise: the design of a block experiment."""
    rng = np.random.default_rng(seed)
    X = np.tile(rng.standard_normal((8, 20)), (12, 1))
    runs = np.repeat(np.arange(12), 8)
    y = rng.standard_normal((96, v))
    folds = [(np.flatnonzero(runs != k), np.flatnonzero(runs == k)) for k in range(12)]
    return X, y, runs, folds


def test_false_positives_stay_at_their_rate_and_fixed_predictions_do_not():
    X, y, runs, folds = null_data(v=3000)
    p = cross_validated_p([X] * 12, y, folds, np.full((12, 3000), 10.0), groups=runs, n_permutations=400)
    assert 0.005 < (p <= 0.01).mean() < 0.015
    predicted = np.empty_like(y)
    for train, test in folds:
        predicted[test] = Ridge(10.0).fit(X[train], y[train]).predict(X[test])
    naive = stats.permutation_test(y, predicted, mode="within", blocks=runs, n_permutations=400).p
    assert (naive <= 0.01).mean() > 0.02


def test_accuracy_behind_the_p_values_is_that_of_ridge():
    X, y, runs, folds = null_data(v=3)
    y[:, 0] += 2 * X[:, 0]
    p = cross_validated_p([X] * 12, y, folds, np.full((12, 3), 10.0), groups=runs, n_permutations=99)
    assert p[0] == 0.01
    order = np.random.default_rng(1).permutation(3)
    again = cross_validated_p([X] * 12, y[:, order], folds, np.full((12, 3), 10.0), groups=runs, n_permutations=99)
    np.testing.assert_array_equal(again, p[order])
