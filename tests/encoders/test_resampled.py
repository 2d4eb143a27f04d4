"""Ridge with given penalties, on resampled rows."""

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import Ridge

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder, resampled_rows, ridge_weights


@pytest.mark.parametrize("shape", [(60, 8), (20, 50)])
def test_weights_are_those_of_scikit_learn_for_each_voxels_own_penalty(shape):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal(shape) + 2, rng.standard_normal((shape[0], 7)) - 3
    alpha = np.geomspace(0.1, 1e3, 7)
    coef, intercept = ridge_weights(X, Y, alpha)
    peer = Ridge(alpha).fit(X, Y)
    np.testing.assert_allclose(coef, peer.coef_.T, atol=1e-9)
    np.testing.assert_allclose(intercept, peer.intercept_, atol=1e-9)


def test_the_penalties_of_a_fit_give_its_weights_again():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((80, 6))
    Y = X @ rng.standard_normal((6, 4)) + rng.standard_normal((80, 4))
    encoder = RidgeEncoder().fit(X, Y)
    coef, intercept = ridge_weights(X, Y, encoder.alpha_)
    np.testing.assert_allclose(coef, encoder.coef_, atol=1e-5)
    np.testing.assert_allclose(intercept, encoder.intercept_, atol=1e-5)


def test_groups_stay_together():
    groups = np.repeat(np.arange(10), 3)
    halves = list(resampled_rows(groups, "halves", 4, seed=3))
    assert len(halves) == 8
    for a, b in zip(halves[::2], halves[1::2]):
        assert not set(groups[a]) & set(groups[b])
        assert sorted([*a, *b]) == list(range(30))
    drawn = list(resampled_rows(groups, "bootstrap", 50, seed=3))
    counts = np.array([np.bincount(groups[d], minlength=10) for d in drawn])
    assert (counts % 3 == 0).all()
    assert (counts.sum(axis=1) == 30).all()
    # A group is left out of a bootstrap with probability .9 ** 10 = .35.
    assert 0.25 < (counts == 0).mean() < 0.45
    again = list(resampled_rows(groups, "bootstrap", 50, seed=3))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again))


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ConfigError, match="bootstrap"):
        next(resampled_rows([1, 2], "bootstraps"))
    with pytest.raises(DataError, match="1 group"):
        next(resampled_rows([1, 1]))
    with pytest.raises(DataError, match="do not fit"):
        ridge_weights(np.zeros((3, 2)), np.zeros((4, 1)), 1)
    with pytest.raises(DataError, match="finite"):
        ridge_weights(np.full((3, 2), np.nan), np.zeros((3, 1)), 1)


def test_penalties_are_matched_by_voxel():
    rng = np.random.default_rng(0)
    ids = [f"s{k}" for k in range(20)]
    X = make_features(rng.standard_normal((20, 3)), stimulus=ids)
    Y = make_responses(rng.standard_normal((20, 3)), stimulus=ids, dim="stimulus", voxel=[4, 5, 6])
    alpha = xr.DataArray([0.1, 1.0, 10.0], dims="voxel", coords={"voxel": [4, 5, 6]})
    np.testing.assert_array_equal(ridge_weights(X, Y, alpha[::-1])[0], ridge_weights(X, Y, alpha)[0])
    with pytest.raises(DataError, match="order"):
        ridge_weights(X[::-1], Y, alpha)
