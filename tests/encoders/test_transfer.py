"""Transfer between data sets: planted correspondence, no stimulus on both sides, surfaces, regions, refusals."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder, transfer_matrix

IDS = [f"s{k:03d}" for k in range(90)]
RUN = {"n_bootstraps": 50, "cv": 3, "encoder": RidgeEncoder(np.logspace(-1, 3, 5), cv=3, standardise=True)}


def world(seed=0, v=6, p=5):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((len(IDS), p))
    return make_features(X.astype("f4"), stimulus=IDS), X, rng.standard_normal((p, v)), rng


def shown(X, W, rng, rows=slice(None), noise=1.0, **labels):
    values = X[rows] @ W + noise * rng.standard_normal((len(X[rows]), W.shape[1]))
    return make_responses(values.astype("f4"), stimulus=np.array(IDS)[rows], **labels)


def test_what_corresponds_transfers_and_the_loss_is_paired():
    features, X, W, rng = world()
    roi = ["V1"] * 3 + ["V4"] * 3
    other = W.copy()
    other[:, 3:] = rng.standard_normal((len(W), 3))  # V4 reads other features in the second task
    sets = {"seen": shown(X, W, rng, roi=roi), "imagined": shown(X, other, rng, roi=roi, noise=2)}
    sets["imagined"] = sets["imagined"][:, ::-1]  # voxels are matched by label
    found = transfer_matrix(features, sets, **RUN)
    assert found.roi.values.tolist() == roi
    assert found.group.values.tolist() == ["all", "V1", "V4"]
    to = found.sel(fit="seen", test="imagined").set_index(group="group")
    assert float(to["loss_median"].sel(group="V1")) < 0.1
    assert float(to["loss_low"].sel(group="V4")) > 0.1
    assert np.isnan(found["loss_median"].sel(fit="seen", test="seen")).all()
    np.testing.assert_allclose(found["loss"].sel(fit="seen", test="seen"), 0)
    assert (found["low"] <= found["median"]).all()
    within = found["score"].sel(test="imagined")
    lost = (within.sel(fit="imagined") - within).transpose("fit", "voxel")
    np.testing.assert_allclose(found["loss"].sel(test="imagined"), lost)


def test_no_encoder_is_tested_on_a_stimulus_that_it_met():
    """Two data sets of the same noise share nothing but the stimuli: memory of them would show as transfer."""
    rng = np.random.default_rng(1)
    # Features that tell every stimulus apart, responses that no feature explains.
    features = make_features(np.eye(len(IDS), dtype="f4"), stimulus=IDS)
    noise = rng.standard_normal((len(IDS), 4)).astype("f4")
    sets = {name: make_responses(noise, stimulus=IDS) for name in ("a", "b")}
    found = transfer_matrix(features, sets, **RUN)
    assert abs(float(found["median"].sel(fit="a", test="b")[0])) < 0.25
    # Beside it, fitted on all of one and tested on the other.
    leaky = RidgeEncoder().fit(features.values, noise).score_voxels(features.values, noise)
    assert np.median(leaky) > 0.5


def test_noise_over_few_stimuli_transfers_nothing_and_does_not_predict_itself():
    rng = np.random.default_rng(7)
    features = make_features(rng.standard_normal((12, 4)).astype("f4"), stimulus=IDS[:12])
    sets = {n: make_responses(rng.standard_normal((12, 300)).astype("f4"), stimulus=IDS[:12]) for n in ("a", "b")}
    found = transfer_matrix(features, sets, cv=3, n_bootstraps=20)
    assert np.abs(found["median"].isel(group=0)).max() < 0.15


def test_data_sets_of_other_stimuli_have_their_share_in_every_fold():
    features, X, W, rng = world(2)
    sets = {"a": shown(X, W, rng, slice(0, 40)), "b": shown(X, W, rng, slice(30, 90))}
    found = transfer_matrix(features, sets, **RUN)
    assert found.attrs["n_stimuli"] == [40, 60]
    assert (found["median"].isel(group=0) > 0.5).all()


def test_vertices_and_regions_of_different_subjects():
    features, X, W, rng = world(3)
    where = {"hemi": ["L"] * 6, "space": "fsaverage"}
    a = shown(X, W, rng, subject="s1", vertex=[1, 2, 3, 4, 5, 6], roi=["V1"] * 2 + ["V4"] * 4, **where)
    b = shown(
        X, W[:, [5, 3, 2, 1, 0, 4]], rng, subject="s2", vertex=[6, 4, 3, 2, 1, 99], roi=["V4"] * 5 + ["IT"], **where
    )
    found = transfer_matrix(features, {"s1": a, "s2": b}, across="vertex", **RUN)
    assert found.vertex.values.tolist() == [1, 2, 3, 4, 6]
    assert (found["median"].isel(group=0) > 0.5).all()
    means = transfer_matrix(features, {"s1": a, "s2": b}, across="roi", **RUN)
    assert means.roi.values.tolist() == ["V4"]
    assert means["score"].sizes == {"fit": 2, "test": 2, "voxel": 1}
    with pytest.raises(DataError, match="expected subject 's1'"):
        transfer_matrix(features, {"s1": a, "s2": b}, **RUN)
    with pytest.raises(DataError, match="different surfaces"):
        transfer_matrix(features, {"s1": a, "s2": b.assign_attrs(space="fsnative")}, across="vertex", **RUN)
    with pytest.raises(DataError, match="share no region"):
        transfer_matrix(features, {"s1": a[:, :2], "s2": b}, across="roi", **RUN)


def test_refusals():
    features, X, W, rng = world(4)
    a = shown(X, W, rng)
    with pytest.raises(ConfigError, match="two data sets"):
        transfer_matrix(features, {"a": a})
    with pytest.raises(ConfigError, match="10 stimuli at least in each data set"):
        transfer_matrix(features, {"a": a, "b": a[:5]})
    with pytest.raises(DataError, match="NaN"):
        transfer_matrix(features, {"a": a, "b": a.where(a > -1)})
    with pytest.raises(DataError, match="of 6 expected 2 are missing"):
        transfer_matrix(features, {"a": a, "b": a[:, :4]})
