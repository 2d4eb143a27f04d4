"""Baselines against plain loops: mean response, nearest stimuli, anatomical transfer."""

import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import AnatomicalTransfer, MeanResponse, NearestStimuli, surface_positions


def data(n=30, p=5, v=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, p)), rng.standard_normal((n, v)), rng.standard_normal((11, p))


def test_mean_response():
    X, Y, Q = data()
    Y[3, 1] = np.nan
    predicted = MeanResponse().fit(X, Y).predict(Q)
    np.testing.assert_allclose(predicted, np.tile(np.nanmean(Y, axis=0), (11, 1)))
    assert MeanResponse().fit(X, Y[:, 0]).predict(Q).shape == (11,)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_nearest_stimuli_equal_a_loop(k):
    X, Y, Q = data()
    Y[np.random.default_rng(1).random(Y.shape) < 0.3] = np.nan
    predicted = NearestStimuli(k).fit(X, Y).predict(Q)
    for q in range(len(Q)):
        cosine = np.array([x @ Q[q] / np.linalg.norm(x) / np.linalg.norm(Q[q]) for x in X])
        near = np.argsort(-cosine)[:k]
        for v in range(4):
            seen = ~np.isnan(Y[near, v])
            expected = Y[near, v][seen].mean() if seen.any() else np.nanmean(Y[:, v])
            np.testing.assert_allclose(predicted[q, v], expected)


def test_nearest_stimuli_do_not_depend_on_the_length_of_features():
    X, Y, Q = data()
    np.testing.assert_allclose(NearestStimuli().fit(9 * X, Y).predict(Q), NearestStimuli().fit(X, Y).predict(3 * Q))


def people(n_subjects=2, v=40, p=6, seed=0):
    """Subjects whose weights are smooth functions of the place, in two hemispheres with opposite weights."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((3, p))
    out = []
    for _ in range(n_subjects):
        place = rng.uniform(0, 10, (v, 3))
        hemi = np.where(rng.random(v) < 0.5, "L", "R")
        W = (np.sin(place / 5) @ field).T * np.where(hemi == "L", 1, -1)
        X = rng.standard_normal((300, p))
        out.append((X, X @ W + 0.1 * rng.standard_normal((300, v)), place, hemi, W))
    return out


def test_transfer_is_the_kernel_average_of_the_neighbours():
    *others, (X, Y, place, hemi, _) = people(3)
    fits = [RidgeEncoder(n_jobs=1).fit(x, y) for x, y, *_ in others]
    places, sides = [o[2] for o in others], [o[3] for o in others]
    transfer = AnatomicalTransfer(
        fits, places, place, hemispheres=sides, target_hemisphere=hemi, k=4, bandwidth=2.0, max_distance=6.0
    ).fit(X[:1], Y[:1])
    for v in range(len(place)):
        parts = []
        for fit, where, side in zip(fits, places, sides):
            same = np.flatnonzero(side == hemi[v])
            distance = np.linalg.norm(where[same] - place[v], axis=1)
            near = np.argsort(distance)[:4]
            near = near[distance[near] < 6]
            if len(near):
                kernel = np.exp(-(distance[near] ** 2) / 8)
                parts.append(fit.coef_[:, same[near]] @ kernel / kernel.sum())
        expected = np.mean(parts, axis=0) if parts else np.zeros(6)
        np.testing.assert_allclose(transfer.coef_[:, v], expected, rtol=1e-8, atol=1e-12)


def test_transfer_predicts_and_hemispheres_matter():
    *others, (X, Y, place, hemi, W) = people(3, v=150)
    fits = [RidgeEncoder(n_jobs=1).fit(x, y) for x, y, *_ in others]
    settings = {"k": 5, "bandwidth": 1.0}
    right = AnatomicalTransfer(
        fits, [o[2] for o in others], place, hemispheres=[o[3] for o in others], target_hemisphere=hemi, **settings
    ).fit(X[:1], Y[:1])
    mixed = AnatomicalTransfer(fits, [o[2] for o in others], place, **settings).fit(X[:1], Y[:1])

    def agreement(model):
        return np.corrcoef(model.predict(X).ravel(), (X @ W).ravel())[0, 1]

    assert agreement(right) > 0.9
    assert agreement(mixed) < 0.6


def test_far_voxels_have_no_neighbours():
    X, Y, Q = data(v=2)
    other = RidgeEncoder(n_jobs=1).fit(X, Y)
    transfer = AnatomicalTransfer(other, np.zeros((2, 3)), [[0, 0, 1.0], [0, 0, 99.0]], max_distance=50).fit(X, Y)
    assert transfer.n_neighbours_.tolist() == [2, 0]
    assert not transfer.predict(Q)[:, 1].any()


def test_surface_positions():
    responses = make_responses(np.zeros((2, 3)), stimulus=["a", "b"], vertex=[1, 0, 1], hemi=["L", "R", "R"])
    vertices = {"L": np.arange(6.0).reshape(2, 3), "R": -np.arange(6.0).reshape(2, 3)}
    places, hemi = surface_positions(responses, vertices)
    assert places.tolist() == [[3.0, 4.0, 5.0], [0.0, -1.0, -2.0], [-3.0, -4.0, -5.0]]
    assert hemi.tolist() == ["L", "R", "R"]
    with pytest.raises(DataError, match="vertex 1 of hemisphere L"):
        surface_positions(responses, {"L": np.zeros((1, 3)), "R": np.zeros((9, 3))})
    with pytest.raises(DataError, match="hemi"):
        surface_positions(responses.drop_vars("hemi"))


def test_labels_travel():
    X, Y, _ = data()
    ids = [f"s{k}" for k in range(30)]
    features = make_features(X, stimulus=ids)
    responses = make_responses(Y, stimulus=ids, dim="stimulus", roi=["V1"] * 4)
    other = RidgeEncoder(n_jobs=1).fit(X, Y)
    where = np.random.default_rng(0).standard_normal((4, 3))
    for model in (MeanResponse(), NearestStimuli(3), AnatomicalTransfer(other, where, where)):
        predicted = clone(model).fit(features, responses).predict(features)
        assert isinstance(predicted, xr.DataArray)
        assert predicted["roi"].values.tolist() == ["V1"] * 4
        assert predicted["stimulus"].values.tolist() == ids


def test_errors():
    X, Y, _ = data()
    other = RidgeEncoder(n_jobs=1).fit(X, Y)
    with pytest.raises(ConfigError, match="k=0"):
        NearestStimuli(0).fit(X, Y)
    with pytest.raises(DataError, match=r"expected \(4, 3\)"):
        AnatomicalTransfer(other, np.zeros((5, 3)), np.zeros((4, 3))).fit(X, Y)
    with pytest.raises(ConfigError, match="together"):
        AnatomicalTransfer(other, np.zeros((4, 3)), np.zeros((4, 3)), target_hemisphere=["L"] * 4).fit(X, Y)
    with pytest.raises(ConfigError, match="needs fitted encoders"):
        AnatomicalTransfer().fit(X, Y)
    with pytest.raises(DataError, match="NaN only"):
        MeanResponse().fit(X, np.full((30, 1), np.nan))
