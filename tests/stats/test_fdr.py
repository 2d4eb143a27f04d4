"""False discovery rate against scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from neuroenc.stats import fdr

NAMES = {"bh": "fdr_bh", "by": "fdr_by"}


def p_values(seed, n=500):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(size=n), rng.beta(0.2, 8, n // 3), [0.0, 1.0, 0.5, 0.5]])


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scipy_and_statsmodels(method, seed):
    p = p_values(seed)
    found = fdr(p, method=method)
    np.testing.assert_allclose(found, scipy.stats.false_discovery_control(p, method=method), rtol=1e-12)
    np.testing.assert_allclose(found, multipletests(p, method=NAMES[method])[1], rtol=1e-12)


@pytest.mark.parametrize("method", ["bh", "by"])
def test_nan_is_kept_and_not_counted(method):
    p = p_values(9)
    holed = np.full(2 * len(p), np.nan)
    holed[::2] = p
    found = fdr(holed.reshape(2, -1), method=method)
    assert found.shape == (2, len(p))
    np.testing.assert_array_equal(found.ravel()[::2], fdr(p, method=method))
    assert np.isnan(found.ravel()[1::2]).all()
    assert np.isnan(fdr([np.nan, np.nan], method=method)).all()
    assert fdr([], method=method).shape == (0,)


def test_order_does_not_matter():
    p = p_values(2)
    order = np.random.default_rng(0).permutation(len(p))
    np.testing.assert_array_equal(fdr(p)[order], fdr(p[order]))


def test_rate_of_false_discoveries_is_controlled():
    rng = np.random.default_rng(0)
    share, power = [], []
    for _ in range(300):
        z = rng.standard_normal(400)
        z[:80] += 3.0
        found = fdr(scipy.stats.norm.sf(z)) <= 0.1
        share.append(found[80:].sum() / max(1, found.sum()))
        power.append(found[:80].mean())
    assert 0.06 < np.mean(share) < 0.1  # the expected rate is 0.1 times the share of true nulls, 0.08
    assert np.mean(power) > 0.5


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([0.1, 1.5, -3.0], "bh", r"2 of 3 p-values lie outside \[0, 1\] \(from -3 to 1.5\)"),
        ([0.1], "bhh", "did you mean 'bh'"),
    ],
)
def test_errors(p, method, message):
    with pytest.raises(ValueError, match=message):
        fdr(p, method=method)
