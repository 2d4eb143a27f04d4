"""A new backbone's vector that still serves what was fitted on the old one (BT2), beside least squares."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.embedding import BasisTransform
from neuroenc.encoders import RidgeEncoder, carry_over

TRAIN, TEST = slice(0, 700), slice(700, 1100)


def backbones(seed=0, n=1100, classes=60, old=48, new=96):
    """Classes, and vectors of two backbones; the new one sees more of what a picture shows, with less noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    scene = rng.standard_normal((classes, 64))[label] + 0.6 * rng.standard_normal((n, 64))
    first, second = rng.standard_normal((32, old)) / np.sqrt(32), rng.standard_normal((64, new)) / 8
    z_old = np.tanh(1.5 * scene[:, :32] @ first) + 0.8 * rng.standard_normal((n, old))
    return label, z_old, np.tanh(1.5 * scene @ second) + 0.4 * rng.standard_normal((n, new))


def retrieved(query, gallery, label):
    """Share of stimuli whose nearest other one is of their class."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    near = unit[0] @ unit[1].T
    np.fill_diagonal(near, -np.inf)
    return float((label[near.argmax(1)] == label).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_new_finds_old_and_loses_nothing_of_the_new(seed):
    label, old, new = backbones(seed)
    basis = BasisTransform(32).fit(new[TRAIN], old[TRAIN])
    label, kept = label[TEST], basis.from_old(old[TEST])
    found = basis.transform(new[TEST])
    assert found.shape[1] == 96 + 32
    native = retrieved(new[TEST] - new[TRAIN].mean(0), new[TEST] - new[TRAIN].mean(0), label)
    assert retrieved(found[:, :48], kept, label) > retrieved(kept, kept, label) + 0.02
    assert retrieved(found, found, label) > native - 0.01
    # Least squares serves the old alone.
    line = basis.to_old(new[TEST], "least_squares") - old[TRAIN].mean(0)
    assert retrieved(line, line, label) < native - 0.02
    # Without the basis (the guess permuted over stimuli) nothing old is found.
    order = np.random.default_rng(0).permutation(400)
    assert retrieved(found[order, :48], kept, label) < 0.1


def test_every_turn_lowers_the_error_and_new_geometry_is_kept():
    _, old, new = backbones()
    basis = BasisTransform(0, n_hidden=0).fit(new[TRAIN], old[TRAIN])
    assert (np.diff(basis.errors_) <= 1e-9).all()
    z = basis.transform(new[TEST])
    gram = (new[TEST] - new[TRAIN].mean(0)) / basis.new_scale_
    np.testing.assert_allclose(z @ z.T, gram @ gram.T, atol=1e-4)
    np.testing.assert_allclose(basis.order_ @ basis.order_.T, np.eye(96), atol=1e-9)
    np.testing.assert_allclose(basis.rotation_ @ basis.rotation_.T, np.eye(48), atol=1e-9)


def labelled(values, start, name):
    ids = [f"s{i}" for i in range(start, start + len(values))]
    return make_features(values.astype("float32"), stimulus=ids, backbone=name, layer="", pooling="", normalised=False)


def test_encoders_are_carried_over_with_their_labels(tmp_path):
    _, old, new = backbones()
    rng = np.random.default_rng(3)
    Y = old @ rng.standard_normal((48, 12)) / 7
    ids = [f"s{i}" for i in range(len(Y))]
    Y = make_responses(Y.astype("float32"), stimulus=ids, dim="stimulus", roi=["V4"] * 12)
    z_old, z_new = (labelled(x, 0, name) for x, name in ((old, "old"), (new, "new")))
    encoder = RidgeEncoder().fit(z_old[TRAIN], Y[TRAIN])
    basis = BasisTransform(32).fit(z_new[TRAIN], z_old[TRAIN])
    assert basis.to_old(z_new[TEST]).attrs["backbone"] == "old"
    refitted = RidgeEncoder().fit(z_new[TRAIN], Y[TRAIN]).score_voxels(z_new[TEST], Y[TEST]).mean()
    scores = {}
    for way in ("basis", "least_squares"):
        carried = carry_over(encoder, basis, way)
        predicted = carried.predict(z_new[TEST])
        assert predicted["roi"].values.tolist() == ["V4"] * 12
        scores[way] = float(carried.score_voxels(z_new[TEST], Y[TEST]).mean())
        assert scores[way] > 0.85 * float(refitted)
    coef, intercept = carry_over(encoder, basis, "least_squares").to_linear()
    np.testing.assert_allclose(
        z_new[TEST].values @ coef.values + intercept.values,
        carry_over(encoder, basis, "least_squares").predict(z_new[TEST]),
        atol=1e-3,
    )
    with pytest.raises(ConfigError, match="least_squares"):
        carry_over(encoder, basis).to_linear()
    basis.save(tmp_path / "basis")
    again = BasisTransform.load(tmp_path / "basis")
    xr.testing.assert_identical(again.to_old(z_new[TEST]), basis.to_old(z_new[TEST]))
    np.testing.assert_array_equal(again.transform(new), basis.transform(new))


def test_what_does_not_fit_is_told():
    _, old, new = backbones(n=200)
    with pytest.raises(ConfigError, match="extra=38"):
        BasisTransform(4).fit(new[:, :10], old)
    with pytest.raises(DataError, match="200 new and 199"):
        BasisTransform().fit(new, old[:-1])
    with pytest.raises(DataError, match="dimensions"):
        BasisTransform().fit(new, old).transform(old)
    with pytest.raises(DataError, match="stimul"):
        BasisTransform().fit(labelled(new, 0, "new"), labelled(old, 5, "old"))
