"""Scores against scipy, scikit-learn and plain loops; missing values, units, invariances, memory."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import explained_variance_score, r2_score as sklearn_r2

from neuroenc.stats import explained_variance, pearson_r, r2_score, score

METRICS = ("r", "r2", "ev")


def reference(y, yhat, metric):
    """One voxel in float64, by the libraries."""
    keep = ~(np.isnan(y) | np.isnan(yhat))
    y, yhat = y[keep].astype(np.float64), yhat[keep].astype(np.float64)
    if metric == "r":
        return scipy.stats.pearsonr(y, yhat).statistic
    return sklearn_r2(y, yhat) if metric == "r2" else explained_variance_score(y, yhat)


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    y = rng.standard_normal((60, 23)) * rng.uniform(0.1, 20, 23) + rng.uniform(-50, 50, 23)
    return y, 0.7 * y + rng.standard_normal((60, 23)) * rng.uniform(0, 20, 23) + 3.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equal_to_libraries(pair, metric, dtype):
    y, yhat = (x.astype(dtype) for x in pair)
    expected = [reference(y[:, v], yhat[:, v], metric) for v in range(y.shape[1])]
    result = score(y, yhat, metric)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)
    named = {"r": pearson_r, "r2": r2_score, "ev": explained_variance}[metric]
    np.testing.assert_array_equal(named(y, yhat), result)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_in_either_drops_the_sample_for_that_voxel_only(pair, metric):
    y, yhat = (x.copy() for x in pair)
    y[3, 1] = np.nan
    yhat[[5, 6], 1] = np.nan
    yhat[0, 4] = np.nan
    expected = [reference(y[:, v], yhat[:, v], metric) for v in range(y.shape[1])]
    np.testing.assert_allclose(score(y, yhat, metric), expected, rtol=1e-9)
    untouched = np.setdiff1d(np.arange(y.shape[1]), [1, 4])
    np.testing.assert_allclose(score(y, yhat, metric)[untouched], score(*pair, metric)[untouched], rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_scores_are_nan_without_warnings(pair, metric):
    y, yhat = (x.copy() for x in pair)
    y[:, 0] = 0.1
    y[:, 1] = np.nan
    y[1:, 2] = np.nan
    y[4, 3] = np.inf
    yhat[4, 5] = -np.inf
    yhat[:, 6] = 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score(y, yhat, metric)
    assert np.isnan(result[[0, 1, 2, 3, 5]]).all()
    assert np.isnan(result[6]) == (metric == "r")
    assert np.isfinite(result[7:]).all()


def test_rounding_of_a_constant_is_not_signal():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((500, 1)).astype(np.float32)
    jitter = np.full((500, 1), 1000.0, np.float32)
    jitter[:20] = np.nextafter(np.float32(1000), np.float32(2000))
    assert np.isnan(pearson_r(y, jitter)).all()
    assert np.isfinite(pearson_r(y, jitter + rng.standard_normal((500, 1)).astype(np.float32))).all()


def test_float32_with_a_large_mean_keeps_precision():
    rng = np.random.default_rng(0)
    y = (1e4 + rng.standard_normal((4000, 3))).astype(np.float32)
    yhat = (1e4 + rng.standard_normal((4000, 3)) + (y - 1e4)).astype(np.float32)
    for metric in METRICS:
        expected = [reference(y[:, v], yhat[:, v], metric) for v in range(3)]
        np.testing.assert_allclose(score(y, yhat, metric), expected, rtol=1e-8)


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_of_voxels_do_not_matter(pair, metric):
    np.testing.assert_allclose(score(*pair, metric), score(*pair, metric, max_memory=1), rtol=1e-13)


@pytest.mark.parametrize("metric", METRICS)
def test_permuting_voxels_and_samples(pair, metric):
    y, yhat = pair
    rng = np.random.default_rng(1)
    v, i = rng.permutation(y.shape[1]), rng.permutation(len(y))
    np.testing.assert_allclose(score(y[i][:, v], yhat[i][:, v], metric), score(y, yhat, metric)[v], rtol=1e-10)
    np.testing.assert_allclose(score(-4 * y, -4 * yhat, metric), score(y, yhat, metric), rtol=1e-10)


def test_what_each_metric_is_blind_to(pair):
    y, yhat = pair
    np.testing.assert_allclose(pearson_r(y, 3 * yhat + 7), pearson_r(y, yhat), rtol=1e-10)
    np.testing.assert_allclose(explained_variance(y, yhat + 7), explained_variance(y, yhat), rtol=1e-9)
    gap = explained_variance(y, yhat) - r2_score(y, yhat)
    np.testing.assert_allclose(gap, (yhat.mean(0) - y.mean(0)) ** 2 / y.var(0), rtol=1e-8)
    assert (r2_score(y, yhat + 100) < r2_score(y, yhat)).all()
    assert (explained_variance(y, yhat) <= pearson_r(y, yhat) ** 2 + 1e-12).all()


def test_one_dimensional_and_list_input():
    assert float(pearson_r([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])) == pytest.approx(1.0)
    assert pearson_r(np.arange(3.0), np.arange(3.0)).shape == ()
    assert r2_score(np.arange(6).reshape(3, 2), np.arange(6).reshape(3, 2)).tolist() == [1.0, 1.0]


def test_memory_stays_bounded():
    y = np.random.default_rng(0).standard_normal((400, 20000), dtype=np.float32)
    tracemalloc.start()
    score(y, y, "ev", max_memory=8 * 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20 < y.nbytes


@pytest.mark.parametrize(
    ("y", "yhat", "metric", "message"),
    [
        (np.ones((3, 4)), np.ones((4, 3)), "r", r"shape \(3, 4\).*shape \(4, 3\).*transposed"),
        (np.ones((3, 4)), np.ones((3, 5)), "r", r"\(3, 4\).*\(3, 5\)"),
        (np.ones((1, 4)), np.ones((1, 4)), "r", "at least 2"),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), "r", r"shape \(2, 2, 2\)"),
        (np.array([["a"], ["b"]]), np.ones((2, 1)), "r", "dtype"),
        (np.ones((3, 4)), np.ones((3, 4)), "pearson", r"unknown metric 'pearson'; did you mean 'r'"),
        (np.ones((3, 4)), np.ones((3, 4)), "R2", "did you mean 'r2'"),
        (np.ones((3, 4)), np.ones((3, 4)), "zzz", r"unknown metric 'zzz'. Legal: r, r2, ev"),
    ],
)
def test_errors_name_what_was_found(y, yhat, metric, message):
    with pytest.raises(ValueError, match=message):
        score(y, yhat, metric)
