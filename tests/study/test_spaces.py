"""Joined feature spaces of a config: dense captions beside single ones, or beside an image layer, on one grid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import aspect_bands
from neuroenc.data import simulate_world
from neuroenc.embedding import train_space
from neuroenc.encoders.comparison import compare as compare_cells, make_folds
from neuroenc.study import Study
from neuroenc.study.preflight import preflight
from neuroenc.study.read import check_config, parse_config, read_config
from neuroenc.study.stages.compare import cells_of, scale_voxels
from neuroenc.study.stages.load import join_features, make_spaces, with_joined

FEATURES = {
    "clip": {"model": "world", "layers": ["layer2", "layer3"]},
    "dense": {"kind": "dense", "model": "world", "grid": 4},
    "single": {"kind": "captions", "model": "world"},
    "both": {"spaces": ["dense", "single"], "grid": 4},
    "seen": {"spaces": ["dense", "clip.layer3"], "grid": 6},
}


def array(values):
    dims = ("stimulus", "feature") if values.ndim == 2 else ("stimulus", "channel", "y", "x")
    return xr.DataArray(values, dims=dims, coords={"stimulus": [f"s{k}" for k in range(len(values))]})


def test_maps_and_vectors_stand_side_by_side():
    rng = np.random.default_rng(0)
    fine, coarse, vector = rng.random((3, 2, 8, 8)), rng.random((3, 5, 2, 2)), rng.random((3, 4))
    found = join_features({"fine": array(fine), "coarse": array(coarse), "vector": array(vector)[::-1]}, 4)
    assert found.shape == (3, 11, 4, 4)
    assert found["space"].values.tolist() == ["fine"] * 2 + ["coarse"] * 5 + ["vector"] * 4
    np.testing.assert_allclose(found[:, :2], fine.reshape(3, 2, 4, 2, 4, 2).mean((3, 5)), atol=1e-6)
    np.testing.assert_allclose(found[:, 7:, 1, 2], vector, atol=1e-6)  # matched by label, the same in every cell
    assert float(np.ptp(found[:, 7:].values, axis=(2, 3)).max()) == 0
    plain = join_features({"a": array(vector), "b": array(vector)}, 4)
    assert plain.dims == ("stimulus", "feature")
    with pytest.raises(DataError, match="tokens"):
        join_features({"t": xr.DataArray(rng.random((3, 2, 2)), dims=("stimulus", "token", "feature"))}, 4)


def test_a_config_joins_spaces_into_cells():
    config = parse_config(
        {"data": {"name": "world"}, "features": FEATURES, "compare": {"readouts": {"factorized": {}}}}
    )
    assert config.features["both"].kind == "join"
    wanted = with_joined(config.features, {"both", "seen"})
    assert set(wanted) == {"both", "seen", "dense", "single", "clip.layer3"}
    spaces = make_spaces(wanted, simulate_world(3), False)
    assert spaces["both"].shape == (3, 256, 4, 4)
    assert spaces["seen"].shape[2:] == (6, 6)
    assert "both/factorized" in [cell.name for cell in cells_of(config.compare, config.features)]
    with pytest.raises(ConfigError, match="dense"):
        parse_config({"data": {"name": "world"}, "features": {**FEATURES, "both": {"spaces": ["dens", "single"]}}})
    with pytest.raises(ConfigError, match="two spaces"):
        parse_config({"data": {"name": "world"}, "features": {**FEATURES, "both": {"spaces": ["dense"]}}})


def test_aspects_of_captions_are_spaces_of_their_own():
    pytest.importorskip("spacy")
    table = {"kind": "aspects", "model": "world"}
    config = parse_config({"data": {"name": "world"}, "features": {"said": table}, "compare": {}})
    names = [f"said.{a}" for a in ("scene", "objects", "actions", "attributes")]
    assert list(config.features) == names
    scenes = simulate_world(6, seed=1)
    found = make_spaces(config.features, scenes, False)
    whole = aspect_bands(scenes, "world")
    for name in names:
        wanted = whole[:, whole["band"].values == name.split(".")[1]]
        np.testing.assert_array_equal(found[name].values, wanted.values)
    one = {"said": {**table, "aspects": ["actions"]}}
    alone = parse_config({"data": {"name": "world"}, "features": one, "compare": {}}).features
    assert list(alone) == ["said"]
    # Other words in the same batch change the last bit.
    np.testing.assert_allclose(make_spaces(alone, scenes, False)["said"], found["said.actions"], atol=1e-6)
    with pytest.raises(ConfigError, match="action"):
        parse_config({"data": {"name": "world"}, "features": {"said": {**table, "aspects": ["action"]}}, "compare": {}})


CAPTIONS = """
title = "Words"
[data]
responses = "Y.nc"
captions = "captions.csv"
[features.words]
train = "ppmi"
settings = { dims = 4, pooling = "mean" }
[features.every]
train = "bow"
settings = { dims = 0, min_count = 1 }
[features.other]
file = "other.nc"
[compare]
cv = 3
n_bootstraps = 50
"""


@pytest.fixture
def own(tmp_path):
    """A folder of captions of four topics, and responses to the topics and to each stimulus' own word."""
    rng = np.random.default_rng(0)
    ids, topic = [f"s{n:03d}" for n in range(120)], np.arange(120) % 4
    words = [[f"word{t}x{k}" for k in rng.choice(8, 4, replace=False)] for t in topic]
    rows = [(i, " ".join(rng.permutation(several))) for i, several in zip(ids, words) for _ in range(2)]
    pd.DataFrame([(i, f"own{i} {c}") for i, c in rows], columns=["stimulus", "caption"]).to_csv(
        tmp_path / "captions.csv", index=False
    )
    Y = np.eye(4)[topic] @ rng.standard_normal((4, 6)) + 0.3 * rng.standard_normal((120, 6))
    data.save(data.make_responses(Y, stimulus=ids, dim="stimulus"), tmp_path / "Y.nc")
    data.save(data.make_features(rng.standard_normal((120, 5)), stimulus=ids), tmp_path / "other.nc")
    (tmp_path / "my.toml").write_text(CAPTIONS)
    return tmp_path


def test_each_outer_fold_trains_a_space_of_its_own(own, tmp_path):
    config = read_config(own / "my.toml", command="compare")
    said = []
    study = Study(config, out=own / "out", progress=False, say=said.append).until("compare")
    found = study.comparison.table().query("kind == 'all'").set_index("cell")
    assert found.loc["words/linear", "median_r"] > 0.8
    assert found.loc["other/linear", "median_r"] < 0.3
    # By hand: the space of the first fold knows none of its test stimuli, nor a word that only they have.
    fold = make_folds(study.subjects[0].responses, 3, config.compare.validation, config.seed)[0]
    tested = study.stimuli.ids[fold.test]
    space = train_space("ppmi", study.stimuli, tmp_path / "s", held_out=tested, dims=4, pooling="mean", progress=False)
    assert not {f"own{i}" for i in tested} & set(space.backbone.record["words"])
    X, Y = space.embed_captions(study.stimuli), scale_voxels(study.subjects[0].responses)
    by_hand = compare_cells({"words": X}, ["linear"], Y, cv=[(fold.train, fold.test)], n_bootstraps=2, progress=False)
    kept = study.comparison.predictions("words/linear")
    theirs = by_hand.predictions("words/linear")
    np.testing.assert_allclose(kept.values[fold.test], theirs.values[fold.test], atol=1e-4)
    assert "every" in study.comparison.unique_variance()[0].attrs["spaces"]
    assert set(study.comparison.similarity().query("of == 'features'")["model"]) == {"other"}
    # The spaces are kept: another comparison takes them.
    said.clear()
    again = parse_config({**config.model_dump(), "compare": {**config.compare.model_dump(), "n_bootstraps": 60}})
    Study(again, out=own / "out", progress=False, say=said.append).until("compare")
    assert sum("space: done before" in line for line in said) == 6


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"train": "pmi"}, "ppmi"),
        ({"train": "ppmi", "settings": {"dim": 4}}, "dims"),
        ({"kind": "trained"}, "needs train"),
        ({"train": "ppmi", "layer": "block3"}, "not read"),
    ],
)
def test_what_a_fold_cannot_train_is_refused(table, match):
    with pytest.raises(ConfigError, match=match):
        parse_config({"data": {"name": "world"}, "features": {"words": table}})


def test_runs_and_joined_spaces_do_not_read_it():
    words = {"words": {"train": "ppmi"}}
    with pytest.raises(ConfigError, match="space train"):
        preflight(parse_config({"data": {"name": "world"}, "features": words}), "run")
    both = {**FEATURES, **words, "both": {"spaces": ["dense", "words"]}}
    with pytest.raises(ConfigError, match="words"):
        check_config(parse_config({"data": {"name": "world"}, "features": both}), "compare")


def test_spaces_of_folds_are_refused_where_they_know_the_test(own):
    Y = data.load(own / "Y.nc")
    ids, rng = Y["stimulus"].values, np.random.default_rng(0)
    folds = make_folds(Y, 3, 0.2, 0)
    seen = np.ones((3, 120), bool)
    for k, fold in enumerate(folds):
        seen[k, fold.test] = False

    def space(seen):
        coords = {"stimulus": ids, "trained_on": (("fold", "stimulus"), seen)}
        return xr.DataArray(
            rng.standard_normal((len(seen), 120, 4)), dims=("fold", "stimulus", "feature"), coords=coords
        )

    compare_cells({"words": space(seen)}, ["linear"], Y, cv=3, n_bootstraps=2, progress=False)
    with pytest.raises(DataError, match="40 of 40 test stimuli"):
        compare_cells({"words": space(seen[[1, 0, 2]])}, ["linear"], Y, cv=3, n_bootstraps=2, progress=False)
    with pytest.raises(DataError, match="2 folds"):
        compare_cells({"words": space(seen[:2])}, ["linear"], Y, cv=3, n_bootstraps=2, progress=False)


def test_grids_of_captions_and_queries_tell_what_a_space_was_trained_on(tmp_path):
    shown = simulate_world(60)
    train_space("bow", shown, tmp_path / "s", dims=4, held_out=shown.ids[:20], progress=False)
    dense = {"dense": {"kind": "dense", "model": f"{tmp_path}/s", "grid": 2}}
    config = parse_config({"data": {"name": "world"}, "features": dense})
    found = make_spaces(config.features, shown, False)
    assert found["dense"]["trained_on"].values.tolist() == [False] * 20 + [True] * 40
