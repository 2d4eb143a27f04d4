"""Scaling of features inside the encoder: the saved encoder takes features as they come."""

import numpy as np
import pytest
import xarray as xr
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder, load_encoder
from neuroenc.encoders._labels import feature_scaling


def planted(n=120, p=12, v=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * np.logspace(-3, 3, p) + 10 * rng.standard_normal(p)
    Y = (X - X.mean(0)) / X.std(0) @ rng.standard_normal((p, v)) + rng.standard_normal((n, v))
    return X, Y


@pytest.mark.parametrize("shape", [(120, 12), (40, 90)], ids=["primal", "dual"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("make", [RidgeEncoder, BandedRidgeEncoder])
def test_equals_a_pipeline_with_a_scaler_and_takes_raw_features(tmp_path, shape, intercept, make):
    X, Y = planted(*shape)
    T = planted(*shape, seed=1)[0]
    pipeline = make_pipeline(StandardScaler(), make(fit_intercept=intercept)).fit(X, Y)
    encoder = make(standardise=True, fit_intercept=intercept).fit(X, Y)
    np.testing.assert_allclose(encoder.predict(T), pipeline.predict(T), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(encoder.alpha_, pipeline[-1].alpha_, rtol=1e-10)
    np.testing.assert_allclose(encoder.predict(T), T @ encoder.coef_ + encoder.intercept_)
    again = load_encoder(encoder.save(tmp_path / "encoder"))
    assert again.standardise
    np.testing.assert_array_equal(again.predict(T), encoder.predict(T))


def test_units_and_offsets_of_features_change_nothing():
    X, Y = planted()
    plain = RidgeEncoder(standardise=True).fit(X, Y)
    moved = RidgeEncoder(standardise=True).fit(7 * X - 3, Y)
    np.testing.assert_allclose(moved.predict(7 * X - 3), plain.predict(X), rtol=1e-6, atol=1e-8)


def test_what_never_varies_is_left_out():
    X, Y = planted()
    X[:, 3] = 0.1  # its mean over 120 rows is another number
    assert X.std(axis=0)[3] > 0
    alphas = np.logspace(-2, 3, 6)
    encoder = RidgeEncoder(alphas, standardise=True).fit(X, Y)
    assert (encoder.coef_[3] == 0).all()
    rest = np.delete(X, 3, axis=1)
    without = RidgeEncoder(alphas, standardise=True).fit(rest, Y)
    np.testing.assert_allclose(encoder.predict(X), without.predict(rest), rtol=1e-6, atol=1e-8)


def test_channels_of_labelled_maps_keep_the_ratio_of_their_places():
    maps = np.random.default_rng(0).standard_normal((2500, 2, 3, 3)).astype("float32") + 2
    maps[:, 1] = 4.0
    maps[:, 0, 0, 0] *= 10
    labelled = xr.DataArray(maps, dims=("stimulus", "channel", "y", "x"))
    mean, scale = (x.reshape(2, 9) for x in feature_scaling(maps.reshape(2500, 18), labelled))
    np.testing.assert_allclose(mean, np.repeat([[maps[:, 0].mean(dtype=float)], [4.0]], 9, axis=1))
    np.testing.assert_allclose(scale[0], maps[:, 0].std(dtype=float))
    assert np.isinf(scale[1]).all()
    tokens = xr.DataArray(maps.reshape(2500, 2, 9).transpose(0, 2, 1), dims=("stimulus", "token", "feature"))
    again = feature_scaling(tokens.values.reshape(2500, 18), tokens)
    np.testing.assert_allclose([x.reshape(9, 2).T for x in again], [mean, scale])
