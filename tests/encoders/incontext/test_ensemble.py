"""Intervals of noiseless responses on voxels whose weights are known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc.data import make_features
from neuroenc.encoders import InContextEncoder, RidgeEncoder
from neuroenc.encoders.incontext import SyntheticEpisodes, make_model, support_ensemble, train_stage

E = 12


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    return SyntheticEpisodes((rng.standard_normal((1500, E)) * np.linspace(1.5, 0.3, E)).astype(np.float32))


@pytest.fixture(scope="module")
def anchored(source):
    model = make_model("small", n_features=E, dim=24, depth=2, hidden=48)
    train_stage(
        model,
        source,
        "extend",
        support=(10, 60),
        voxels=32,
        query=50,
        max_steps=120,
        evaluate_every=60,
        loss="likelihood",
        device="cpu",
    )
    return model


def planted(source, support, n=160, seed=7):
    e = source.draw(np.random.default_rng(seed), n, support, 60)
    w = e.weights.numpy()
    x, q = e.x.numpy(), e.xq.numpy()
    return x, e.y.numpy().T, q, q @ w[:, :-1].T + w[:, -1], w[:, :-1].T


def coverage(found, truth):
    return float(((found["low"].values <= truth) & (truth <= found["high"].values)).mean())


@pytest.mark.parametrize("support", [25, 80])
def test_anchored_intervals_cover_the_truth(anchored, source, support):
    x, y, q, clean, w = planted(source, support)
    ensemble = support_ensemble(InContextEncoder(anchored, device="cpu", response_scale="as-is"), x, y, n_subsets=10)
    assert 0.82 < coverage(ensemble.predict(q), clean) < 0.96
    assert 0.82 < coverage(ensemble.weights(), w) < 0.97
    assert coverage(ensemble.predict(q, 0.5), clean) < 0.65
    narrow, wide = ensemble.predict(q, 0.5), ensemble.predict(q, 0.99)
    assert (wide["high"] - wide["low"] > narrow["high"] - narrow["low"]).all()


@pytest.mark.slow
def test_spread_is_the_jackknife_of_least_squares():
    # For ordinary least squares the corrected variance must agree with sigma^2 x'(X'X)^-1 x.
    rng = np.random.default_rng(3)
    x, q = rng.standard_normal((400, 4)), rng.standard_normal((20, 4))
    y = x @ rng.standard_normal((4, 300)) + rng.standard_normal((400, 300))
    for fraction in (0.5, 0.9):
        found = support_ensemble(RidgeEncoder(alphas=[1e-6]), x, y, fraction=fraction, n_subsets=40)
        wide = np.column_stack([q, np.ones(20)])
        gram = np.column_stack([x, np.ones(400)])
        theory = np.einsum("qe,ef,qf->q", wide, np.linalg.inv(gram.T @ gram), wide)
        measured = (found.predict(q)["sd"].values ** 2).mean(axis=1)
        np.testing.assert_allclose(measured / theory, 1, atol=0.15)


def test_centre_is_the_whole_fit_and_seed_decides(anchored, source):
    x, y, q, _, _ = planted(source, 30, n=6)
    whole = InContextEncoder(anchored, device="cpu", response_scale="as-is").fit(x, y)
    a, b = (support_ensemble(whole, x, y, n_subsets=3, seed=2).predict(q) for _ in range(2))
    np.testing.assert_allclose(a["mean"], whole.predict(q), atol=1e-6)
    xr.testing.assert_identical(a, b)
    assert not np.allclose(a["sd"], support_ensemble(whole, x, y, n_subsets=3, seed=3).predict(q)["sd"])


def test_scaled_support_scales_intervals(anchored, source):
    x, y, q, _, _ = planted(source, 40, n=5)
    encoder = InContextEncoder(anchored, device="cpu", response_scale="support")
    small, large = (support_ensemble(encoder, x, k * y, n_subsets=3).predict(q) for k in (1.0, 100.0))
    np.testing.assert_allclose(100 * small["sd"], large["sd"], rtol=2e-3)


def test_labels_and_errors(anchored, source):
    x, y, _, _, _ = planted(source, 20, n=4)
    X = make_features(x, stimulus=[f"s{k}" for k in range(20)])
    Y = xr.DataArray(
        y, dims=("stimulus", "voxel"), coords={"stimulus": X["stimulus"].values, "roi": ("voxel", list("abab"))}
    )
    found = support_ensemble(anchored, X, Y, n_subsets=2)
    assert found.predict(X)["low"]["roi"].values.tolist() == list("abab")
    assert found.predict(X)["stimulus"].values.tolist() == X["stimulus"].values.tolist()
    with pytest.raises(ConfigError, match=r"fraction=1\.5"):
        support_ensemble(anchored, x, y, fraction=1.5)
    with pytest.raises(ConfigError, match="confidence"):
        found.predict(X, confidence=1.0)
