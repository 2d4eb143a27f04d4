"""Voxels and stimuli are matched by their labels wherever two labelled arrays meet, or refused."""

import numpy as np
import pytest
import torch
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import (
    ResponseEpisodes,
    StreamingSession,
    confusion,
    head_importance,
    make_model,
    support_attention,
    support_curve,
    top_support,
    weight_components,
)

E, VOXELS = 8, 12


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, E))
    Y = X @ rng.standard_normal((E, VOXELS)) + 0.3 * rng.standard_normal((60, VOXELS))
    ids = [f"s{n:02d}" for n in range(60)]
    roi = ["a"] * 6 + ["b"] * 6
    return make_features(X, stimulus=ids), make_responses(
        Y, stimulus=ids, dim="stimulus", voxel=100 + np.arange(VOXELS), roi=roi
    )


@pytest.fixture(scope="module")
def model():
    return make_model("small", n_features=E, dim=16, depth=1, hidden=32, form="published").eval()


ORDER = np.random.default_rng(1).permutation(VOXELS)


def test_curves_score_voxels_by_their_ids(arrays):
    X, Y = arrays
    pool, query = slice(0, 40), slice(40, 60)
    ceiling = xr.DataArray(np.linspace(0.1, 0.9, VOXELS), dims="voxel", coords={"voxel": Y["voxel"].values})
    settings = {"sizes": (30,), "n_draws": 1, "progress": False}
    plain = support_curve(
        {"ridge": RidgeEncoder(cv=3)}, X[pool], Y[pool], X[query], Y[query], **settings, noise_ceiling=ceiling
    )
    mixed = support_curve(
        {"ridge": RidgeEncoder(cv=3)},
        X[pool],
        Y[pool],
        X[query],
        Y[query][:, ORDER],
        **settings,
        noise_ceiling=ceiling[ORDER],
    )
    assert float(plain["explained_variance"].min()) > 0.8
    xr.testing.assert_allclose(plain.drop_attrs(), mixed.drop_attrs())
    with pytest.raises(DataError, match="of 12 expected 1 are missing"):
        support_curve(
            {"ridge": RidgeEncoder()},
            X[pool],
            Y[pool],
            X[query],
            Y[query].assign_coords(voxel=99 + np.arange(VOXELS)),
            **settings,
        )
    other = X[query].assign_attrs(backbone="dino")
    with pytest.raises(DataError, match="backbone"):
        support_curve(
            {"ridge": RidgeEncoder()}, X[pool].assign_attrs(backbone="clip"), Y[pool], other, Y[query], **settings
        )


def test_curves_know_masked_and_half_precision_responses(arrays):
    X, Y = arrays
    measured = np.ma.array(Y.values[40:].copy(), mask=np.zeros((20, VOXELS), dtype=bool))
    measured[3, 2] = 1e6
    measured.mask[3, 2] = True
    found = support_curve(
        {"ridge": RidgeEncoder(cv=3)},
        X.values[:40],
        Y.values[:40],
        X.values[40:],
        measured,
        sizes=(30,),
        n_draws=1,
        progress=False,
    )
    assert float(found["explained_variance"].min()) > 0.8
    half = torch.as_tensor(Y.values[40:]).bfloat16()
    again = support_curve(
        {"ridge": RidgeEncoder(cv=3)},
        X.values[:40],
        Y.values[:40],
        X.values[40:],
        half,
        sizes=(30,),
        n_draws=1,
        progress=False,
    )
    np.testing.assert_allclose(again["explained_variance"], found["explained_variance"], atol=0.01)


def test_sessions_take_trials_by_voxel(arrays, model):
    X, Y = arrays
    one = StreamingSession(model, keep=64).update(X[:30], Y[:30]).update(X[30:], Y[30:])
    two = StreamingSession(model, keep=64).update(X[:30], Y[:30]).update(X[30:], Y[30:][:, ORDER])
    np.testing.assert_allclose(one.encoder().coef_, two.encoder().coef_, atol=1e-5)
    with pytest.raises(DataError, match="different stimulus orders"):
        one.update(X[:30], Y[:30][::-1])
    with pytest.raises(DataError, match="another voxel"):
        one.merge(StreamingSession(model, keep=64).update(X[:30], Y[:30][:, ORDER]))


def test_analyses_of_heads_and_supports(arrays, model):
    X, Y = arrays
    support, query = slice(0, 40), slice(40, 60)
    with pytest.raises(DataError, match="different stimulus orders"):
        support_attention(model, X[support], Y[support][::-1])
    plain = head_importance(model, X[support], Y[support], X[query], Y[query])
    mixed = head_importance(model, X[support], Y[support], X[query], Y[query][:, ORDER])
    np.testing.assert_allclose(plain.values, mixed.values, rtol=1e-5)
    with pytest.raises(DataError, match="different stimulus orders"):
        head_importance(model, X[support], Y[support], X[query], Y[query][::-1])
    attention = support_attention(model, X[support], Y[support])
    table = top_support(attention, Y[support], k=3)
    again = top_support(attention, Y[support][:, ORDER], k=3)
    np.testing.assert_allclose(table["response"], again["response"], rtol=1e-5)
    with pytest.raises(DataError, match="of other stimuli"):
        top_support(attention, Y[query].isel(stimulus=np.arange(40) % 20), k=3)


def test_weights_and_labels_of_voxels(arrays):
    X, Y = arrays
    encoder = RidgeEncoder(cv=3).fit(X, Y)
    heavy = xr.DataArray(np.linspace(0, 1, VOXELS) ** 3, dims="voxel", coords={"voxel": Y["voxel"].values})
    a, b = weight_components(encoder, weight=heavy), weight_components(encoder, weight=heavy[ORDER])
    np.testing.assert_allclose(a.components, b.components, atol=1e-8)
    values = xr.DataArray(
        np.eye(2)[:, [0] * 6 + [1] * 6],
        dims=("category", "voxel"),
        coords={"category": ["a", "b"], "voxel": Y["voxel"].values},
    )
    labels = Y["roi"].reset_coords(drop=True).assign_coords(voxel=Y["voxel"].values)[ORDER]
    assert confusion(values, labels, n_permutations=2).loc["all", "accuracy"] == 1


def test_episodes_are_of_matching_rows(arrays):
    X, Y = arrays
    with pytest.raises(DataError, match="different stimulus orders"):
        ResponseEpisodes([(X, Y[::-1])])
    clip = X.assign_attrs(backbone="clip")
    with pytest.raises(DataError, match="backbone='dino', those of another subject 'clip'"):
        ResponseEpisodes([(clip, Y), (X.assign_attrs(backbone="dino"), Y)])
