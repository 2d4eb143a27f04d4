"""Labels decide which numbers belong together, in every encoder."""

import json

import numpy as np
import pytest
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder, load_encoder
from neuroenc.report import export_bids

N, V, P = 90, 6, 8
IDS = [f"s{k:03d}" for k in range(N)]
NAMES = [f"unit{k}" for k in range(P)]
PLACE = {"affine": np.diag([2.0, 2, 2, 1]), "volume_shape": (6, 6, 6), "space": "T1w"}


def planted(seed=0, **labels):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, P))
    y = x @ rng.standard_normal((P, V)) + 0.3 * rng.standard_normal((N, V))
    features = data.make_features(x, stimulus=IDS, backbone="net", layer="conv1", feature=NAMES)
    settings = {
        "voxel": np.arange(10, 10 + V),
        "ijk": np.c_[np.arange(V), np.zeros((V, 2), int)],
        "subject": "01",
        **PLACE,
    }
    return features, data.make_responses(y, stimulus=IDS, dim="stimulus", **{**settings, **labels})


def readout():
    pytest.importorskip("torch")
    from neuroenc.encoders import ReadoutEncoder

    return ReadoutEncoder("linear", alphas=[1.0])


ENCODERS = {"ridge": lambda: RidgeEncoder([1.0]), "banded": lambda: BandedRidgeEncoder([1.0]), "readout": readout}


@pytest.fixture(params=ENCODERS)
def fitted(request):
    X, Y = planted()
    return ENCODERS[request.param]().fit(X[:60], Y[:60]), X[60:], Y[60:]


def test_voxels_in_another_order_get_the_same_scores(fitted):
    encoder, X, Y = fitted
    order = [3, 0, 5, 1, 4, 2]
    for metric in ("r", "r2"):
        xr.testing.assert_identical(encoder.score_voxels(X, Y[:, order], metric), encoder.score_voxels(X, Y, metric))
    assert encoder.score(X, Y[:, order]) == pytest.approx(encoder.score(X, Y))
    assert float(encoder.score_voxels(X, Y).min()) > 0.9


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"voxel": np.arange(V)}, "of 6 expected 6 are missing .first voxel: 10"),
        ({"ijk": np.c_[np.arange(V)[::-1], np.zeros((V, 2), int)]}, "another i "),
        ({"affine": np.diag([3.0, 3, 3, 1])}, "affines of the expected voxels and the responses differ"),
        ({"volume_shape": (7, 6, 6)}, "volume_shape"),
        ({"space": "MNI152NLin6Asym"}, "T1w"),
        ({"subject": "02"}, "expected subject '01'"),
    ],
)
def test_other_voxels_subjects_and_spaces_are_refused(fitted, labels, message):
    encoder, X, _ = fitted
    other = planted(**labels)[1][60:]
    with pytest.raises(DataError, match=message):
        encoder.score_voxels(X, other)
    with pytest.raises(DataError, match=message):
        encoder.score(X, other)


def test_ids_of_two_subjects_are_told_apart_by_subject():
    X, Y = planted()
    both = xr.concat([Y, -Y], "voxel").drop_vars("subject")
    both = both.assign_coords(subject=("voxel", np.repeat(["01", "02"], V)))
    encoder = RidgeEncoder([1.0]).fit(X, both)
    turned = both[:, ::-1]
    np.testing.assert_allclose(encoder.score_voxels(X, turned), encoder.score_voxels(X, both))


def test_one_voxel_keeps_its_name():
    X, Y = planted()
    encoder = RidgeEncoder([1.0]).fit(X, Y[:, 2])
    assert encoder.score_voxels(X, Y[:, 2]).voxel.values.tolist() == [12]
    with pytest.raises(DataError, match="missing"):
        encoder.score_voxels(X, Y[:, 3])


def test_features_are_matched_by_label_and_origin(fitted):
    encoder, X, _ = fitted
    np.testing.assert_allclose(encoder.predict(X[:, ::-1]).values, encoder.predict(X).values, rtol=1e-5)
    with pytest.raises(DataError, match=r"1 of 8 are missing \(first unit7\), 1 are unknown \(first other\)"):
        encoder.predict(X.assign_coords(feature=[*NAMES[:-1], "other"]))
    for name, value in (("layer", "conv2"), ("backbone", "other-net")):
        with pytest.raises(DataError, match=value):
            encoder.predict(X.assign_attrs({name: value}))
    np.testing.assert_allclose(encoder.predict(X.assign_attrs(backbone="unknown", layer="")), encoder.predict(X))
    np.testing.assert_allclose(encoder.predict(X.values), encoder.predict(X).values)


def test_dimensions_of_maps_are_matched_by_name():
    rng = np.random.default_rng(0)
    maps = data.make_features(rng.standard_normal((N, 3, 2, 2)), stimulus=IDS)
    y = maps.values.reshape(N, -1) @ rng.standard_normal((12, 2))
    encoder = RidgeEncoder([1.0]).fit(maps, y)
    np.testing.assert_allclose(encoder.predict(maps.transpose("stimulus", "y", "x", "channel")), encoder.predict(maps))
    with pytest.raises(DataError, match="rows must come first"):
        encoder.predict(maps.transpose("channel", "stimulus", "y", "x"))


def test_labels_survive_saving(fitted, tmp_path):
    encoder, X, Y = fitted
    again = load_encoder(encoder.save(tmp_path / "encoder"))
    xr.testing.assert_identical(again.score_voxels(X, Y[:, ::-1]), encoder.score_voxels(X, Y))
    with pytest.raises(DataError, match="conv2"):
        again.predict(X.assign_attrs(layer="conv2"))
    with pytest.raises(DataError, match="subject"):
        again.score_voxels(X, planted(subject="02")[1][60:])


def test_scores_and_weights_go_back_into_the_brain(fitted, tmp_path):
    encoder, X, Y = fitted
    scores = encoder.score_voxels(X, Y)
    image = data.unmask(scores)
    assert image.shape == (6, 6, 6)
    np.testing.assert_array_equal(image.affine, PLACE["affine"])
    i, j, k = (int(scores[a][0]) for a in "ijk")
    assert image.get_fdata()[i, j, k] == pytest.approx(float(scores[0]))
    written = export_bids(scores.to_dataset(name="r").assign_attrs(scores.attrs), tmp_path / "derivatives")
    assert any("sub-01" in str(f) and "space-T1w" in str(f) for f in written)
    coef, intercept = encoder.to_linear()
    assert data.unmask(coef).shape == (6, 6, 6, P)
    assert data.unmask(intercept).shape == (6, 6, 6)


def bands(seed=0):
    rng = np.random.default_rng(seed)
    X = {"vision": rng.standard_normal((N, 5)), "words": rng.standard_normal((N, 5))}
    return X, X["vision"] @ rng.standard_normal((5, 3)) + 0.1 * rng.standard_normal((N, 3))


def test_bands_are_matched_by_name():
    X, y = bands()
    encoder = BandedRidgeEncoder([1.0], n_candidates=3).fit(X, y)
    turned = dict(reversed(X.items()))
    np.testing.assert_array_equal(encoder.predict(turned), encoder.predict(X))
    assert encoder.score(turned, y) == encoder.score(X, y) > 0.9
    xr.testing.assert_identical(encoder.explained_by_band(turned, y), encoder.explained_by_band(X, y))
    # Without names it is the order of the fit that counts.
    np.testing.assert_array_equal(encoder.predict(list(X.values())), encoder.predict(X))
    np.testing.assert_array_equal(encoder.predict(np.hstack(list(X.values()))), encoder.predict(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: {"vision": a, "sound": b}, "no 'words', unknown 'sound'"),
        (lambda a, b: {"vision": a}, "no 'words'"),
        (lambda a, b: {"vision": a, "words": b, "sound": a}, "unknown 'sound'"),
        (lambda a, b: {"vision": np.hstack([a, b[:, :1]]), "words": b[:, 1:]}, "'vision' has 6 features"),
        (lambda a, b: [a, b, a], "unknown '2'"),
        (lambda a, b: {}, "one at least"),
    ],
)
def test_other_bands_are_refused(change, message):
    X, y = bands()
    encoder = BandedRidgeEncoder([1.0], n_candidates=3).fit(X, y)
    other = change(*X.values())
    for call in (encoder.predict, lambda x: encoder.score_voxels(x, y), lambda x: encoder.explained_by_band(x, y)):
        with pytest.raises(DataError, match=message):
            call(other)


def test_columns_of_a_band_need_not_stand_together():
    X, y = bands()
    mixed = np.empty((N, 10))
    mixed[:, ::2], mixed[:, 1::2] = X["vision"], X["words"]
    encoder = BandedRidgeEncoder([1.0], bands=["vision", "words"] * 5, n_candidates=3).fit(mixed, y)
    np.testing.assert_allclose(encoder.predict(dict(reversed(X.items()))), encoder.predict(mixed))
    with pytest.raises(ConfigError, match="bands="):
        BandedRidgeEncoder(bands=["vision"] * 10).fit(X, y)
    with pytest.raises(DataError, match="distinct"):
        BandedRidgeEncoder().fit({1: X["vision"], "1": X["words"]}, y)


def test_bands_keep_the_labels_of_their_features(tmp_path):
    X, y = bands()
    labelled = {k: data.make_features(v, stimulus=IDS, backbone=k, feature=NAMES[:5]) for k, v in X.items()}
    responses = data.make_responses(y, stimulus=IDS, dim="stimulus")
    # The first band has no labels; those of the second are compared with the responses all the same.
    with pytest.raises(DataError, match="order"):
        BandedRidgeEncoder([1.0]).fit({"vision": X["vision"], "words": labelled["words"][::-1]}, responses)
    encoder = BandedRidgeEncoder([1.0], n_candidates=3, standardise=True).fit(labelled, responses)
    again = load_encoder(encoder.save(tmp_path / "encoder"))
    turned = {k: v[:, ::-1] for k, v in labelled.items()}
    np.testing.assert_allclose(again.predict(turned), encoder.predict(labelled))
    with pytest.raises(DataError, match="band 'words' of backbone 'words'; found backbone 'vision'"):
        again.predict({"vision": labelled["vision"], "words": labelled["vision"]})
    assert json.loads((tmp_path / "encoder" / "encoder.json").read_text())["params"]["standardise"]
