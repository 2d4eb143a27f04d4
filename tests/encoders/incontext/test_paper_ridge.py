"""The released ridge protocol against a plain loop over voxels, folds and penalties."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroenc._core.errors import DataError
from neuroenc.encoders import load_encoder
from neuroenc.encoders.incontext import PaperRidge

LAMBDAS = [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5]


def plain_loop(X, Y, n_folds=5):
    n, p = X.shape
    size = n // n_folds
    omega, chosen = np.zeros((p + 1, Y.shape[1])), np.zeros(Y.shape[1])
    for v in range(Y.shape[1]):
        weights, scores = np.zeros((n_folds, len(LAMBDAS), p + 1)), np.zeros((n_folds, len(LAMBDAS)))
        for fold in range(n_folds):
            test = list(range(fold * size, (fold + 1) * size))
            train = [i for i in range(n) if i not in test]  # what is left over after the last fold is always here
            A, B = np.column_stack([X[train], np.ones(len(train))]), np.column_stack([X[test], np.ones(size)])
            for k, alpha in enumerate(LAMBDAS):
                w = np.linalg.solve(A.T @ A + alpha * np.eye(p + 1), A.T @ Y[train, v])
                weights[fold, k] = w
                scores[fold, k] = 1 - np.var(Y[test, v] - B @ w) / np.var(Y[test, v])
        best = np.argmax(scores.mean(axis=0))
        omega[:, v], chosen[v] = weights[:, best].mean(axis=0), LAMBDAS[best]
    return omega, chosen


@pytest.mark.parametrize(("n", "p"), [(33, 8), (40, 8), (23, 30)])
def test_equals_a_plain_loop(n, p):
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, p)) + 1
    Y = X @ rng.standard_normal((p, 9)) + rng.standard_normal((n, 9)) * np.logspace(-2, 2, 9) + 5
    omega, chosen = plain_loop(X, Y)
    encoder = PaperRidge().fit(X, Y)
    np.testing.assert_array_equal(encoder.alpha_, chosen)
    assert len(set(chosen)) > 1
    np.testing.assert_allclose(encoder.coef_, omega[:-1], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(encoder.intercept_, omega[-1], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(encoder.alphas_, LAMBDAS)


@parametrize_with_checks([PaperRidge(cv=2)])
def test_sklearn_contract(estimator, check):
    check(estimator)


def test_files_and_errors(tmp_path):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))
    encoder = PaperRidge().fit(X, Y)
    back = load_encoder(encoder.save(tmp_path / "paper"))
    assert np.array_equal(back.predict(X), encoder.predict(X))
    with pytest.raises(DataError, match="folds of 1"):
        PaperRidge().fit(X[:9], Y[:9])
    with pytest.raises(DataError, match="NaN"):
        PaperRidge().fit(X, np.where(np.arange(3) == 1, np.nan, Y))


def test_a_voxel_without_variance_takes_the_strongest_penalty():
    X = np.random.default_rng(0).standard_normal((20, 4))
    assert PaperRidge().fit(X, np.ones((20, 1))).alpha_[0] == 1e5
