"""Panels: scores against independent implementations, what models take, resuming, joining, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ChecksumError, ConfigError, DataError
from neuroenc.study import list_panels, panel_run, panel_select, panel_table, read_panel
from neuroenc.study.panels import cells as scoring, run as panels
from neuroenc.study.panels.cells import held_out, score_source
from neuroenc.study.panels.material import Loader
from neuroenc.study.panels.models import embed_together, open_models, split_name

TINY = """
name = "tiny"
version = "1"
title = "A small world"
citation = "none"
n_bootstraps = 20
gallery = 5
[data.world]
licence = "BSD-3-Clause"
citation = "none"
[data.objects92]
licence = "MIT"
citation = "none"
[[sources]]
name = "world"
data = "world"
options = { n = 60, seed = 7, cortex_seed = 1, n_subjects = 1, n_voxels = 40, n_repeats = 2 }
regions = { early = ["V1", "V2", "V3", "hV4"], all = [] }
metrics = ["r", "rsa", "retrieval"]
stimuli = ["images", "words"]
n_stimuli = 50
n_folds = 3
n_rsa = 20
[[sources]]
name = "objects"
data = "objects92"
subject = "BE"
regions = { IT = [] }
metrics = ["rsa"]
stimuli = ["images"]
"""


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    path = tmp_path_factory.mktemp("panel") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory):
    """A mirror without any data set."""
    return tmp_path_factory.mktemp("mirror")


@pytest.fixture(scope="module")
def material(panel):
    config = read_panel(panel)
    return Loader(config).load(config.sources[0])


@pytest.fixture
def apart(monkeypatch, tmp_path):
    for name in ("NEUROENC_DATA", "NEUROENC_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("NEUROENC_MIRROR", raising=False)


@pytest.fixture(scope="module")
def made(panel, nowhere, tmp_path_factory):
    """A run of two image models, one of which reads words too, and a file of features."""
    folder = tmp_path_factory.mktemp("run")
    config = read_panel(panel)
    stimuli = Loader(config).load(config.sources[0]).stimuli
    rng = np.random.default_rng(0)
    X = data.make_features(rng.standard_normal((len(stimuli), 6)), stimulus=stimuli.ids)
    data.save(X, folder / "noise.nc")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NEUROENC_DATA", "NEUROENC_CACHE"):
            patch.setenv(name, str(folder / name))
        patch.delenv("NEUROENC_MIRROR", raising=False)
        how = {"mirror": nowhere, "progress": False, "say": said.append}
        summary = panel_run(panel, ["world", "gabor", str(folder / "noise.nc")], folder / "out", **how)
    return folder, summary, said


def test_shipped_panels_are_read():
    assert list_panels() == ["offline-1"]
    for name in list_panels():
        found = read_panel(name)
        assert found.name == name
        assert found.tasks()["task"].is_unique
        assert all(record.hash and record.licence and record.citation for record in found.data.values())
        assert all(source.splits for source in found.sources)


def test_predictions_are_those_of_ridge_on_the_training_rows(material):
    X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    Y = material.responses.values
    alphas = np.geomspace(1e-2, 1e6, 300)
    for train, test in material.folds:
        ridge = make_pipeline(StandardScaler(), RidgeCV(alphas, alpha_per_target=True))  # generalised cross-validation
        expected = ridge.fit(X[train], Y[train]).predict(X[test])
        found = held_out(X, material.responses, [(train, test)])[test]
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(expected.T, found.T)]
        assert np.median(r) > 0.9
    assert sorted(np.concatenate([test for _, test in material.folds])) == list(range(50))


def test_scores_are_what_they_are_said_to_be(material, panel):
    config = read_panel(panel)
    X = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    X[:, :4] += material.responses.values[:, :4]
    table = score_source(X, material, config).set_index(["region", "metric"])
    Y, predicted = material.responses.values, held_out(X, material.responses, material.folds)
    for region, voxels in material.regions.items():
        known = voxels[material.ceilings[voxels] >= 0.1]
        r = np.array([np.corrcoef(Y[:, v], predicted[:, v])[0, 1] for v in known]) / material.ceilings[known]
        assert table.loc[(region, "r"), "score"] == pytest.approx(np.median(r), 1e-4)
        at = material.rsa
        expected = spearmanr(pdist(Y[np.ix_(at, voxels)], "correlation"), pdist(X[at], "correlation"))[0]
        assert table.loc[(region, "rsa"), "score"] == pytest.approx(expected, abs=1e-6)
        z = [(x[:, voxels] - x[:, voxels].mean(0)) / x[:, voxels].std(0) for x in (Y, predicted)]
        ids, hits = [str(i) for i in material.stimuli.ids], []
        for n, gallery in enumerate(material.galleries.ids):
            scores = [np.corrcoef(z[0][n], z[1][ids.index(i)])[0, 1] for i in gallery]
            hits.append(int(np.argmax(scores)) == 0)
        assert table.loc[(region, "retrieval"), "score"] == pytest.approx(np.mean(hits))
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()
    assert table["n"].tolist() == [50, 20, 50] * 2


def test_halves_are_of_half_the_stimuli(material, panel):
    X = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    table = score_source(X, material, read_panel(panel)).set_index(["region", "metric"])
    Y, at = material.responses.values, material.rsa
    for k in (0, 1):
        rows = at[material.half[at] == k]
        expected = spearmanr(pdist(Y[rows], "correlation"), pdist(X[rows], "correlation"))[0]
        assert table.loc[("all", "rsa"), f"half_{k + 1}"] == pytest.approx(expected, abs=1e-6)


def test_galleries_hold_the_stimulus_first_and_do_not_look_at_responses(material, panel):
    assert (material.galleries.ids[:, 0] == material.stimuli.ids).all()
    assert material.galleries.ids.shape == (50, 5)
    loader = Loader(read_panel(panel))
    assert (loader._galleries(material.stimuli, material.folds).ids == material.galleries.ids).all()
    fold = {str(material.stimuli.ids[n]): k for k, (_, test) in enumerate(material.folds) for n in test}
    assert all(len({fold[i] for i in row}) == 1 for row in material.galleries.ids)


def test_features_of_nothing_find_as_much_as_chance(panel, tmp_path):
    """Predictions must know nothing of the pattern that asks: with neighbours of other folds this is below chance."""
    path = tmp_path / "more.toml"
    path.write_text(TINY.replace("n = 60", "n = 300").replace("n_stimuli = 50", "n_stimuli = 300"))
    config = read_panel(path)
    material = Loader(config).load(config.sources[0])
    hits = []
    for seed in range(2):
        X = np.random.default_rng(seed).standard_normal((300, 20)).astype(np.float32)
        table = score_source(X, material, config).set_index(["region", "metric"])
        hits.append(table.loc[("all", "retrieval"), "score"])
    assert 0.15 < np.mean(hits) < 0.25  # five candidates each; 600 patterns, s.d. about .016


def test_a_model_is_listed_where_it_has_no_score(made):
    folder, summary, _ = made
    cells = pd.read_csv(folder / "out" / "panel.csv")
    assert cells.groupby("model").size().tolist() == [12, 12, 12]
    gabor = cells[cells["model"] == "gabor"]
    assert gabor[gabor["track"] == "words"]["score"].isna().all()
    assert set(gabor[gabor["track"] == "words"]["note"]) == {"takes images, not words"}
    assert gabor[gabor["track"] == "images"]["score"].notna().all()
    assert cells[cells["model"] == "world"]["score"].notna().all()
    ranks = pd.read_csv(folder / "out" / "ranks.csv")
    assert set(ranks["track"]) == {"images"}  # one model of words has no rank
    assert len(ranks) == 3
    assert ranks["n_tasks"].eq(6).all()
    assert ranks["model"].iloc[-1].endswith("noise.nc")
    assert summary["n_tasks"] == 12


def test_absent_data_are_said_and_nothing_is_downloaded(made):
    folder, summary, said = made
    assert summary["skipped"] == {
        "objects": "objects92 is not on this machine. Next step: neuroenc data fetch objects92"
    }
    assert any("objects: left out" in line for line in said)
    kept = json.loads((folder / "out" / "summary.json").read_text())
    assert kept["panel_hash"] == summary["panel_hash"]
    assert "Panel tiny, version 1" in kept["cite"]
    assert "world (own; BSD-3-Clause)" in kept["cite"]
    page = (folder / "out" / "report" / "index.html").read_text()
    for text in ("Ranks: images", "Scores: words", "objects: left out", "takes images, not words"):
        assert text in page


def test_a_run_goes_on(made, panel, nowhere, apart, monkeypatch):
    folder, _, _ = made
    before = (folder / "out" / "panel.csv").read_text()

    def computed(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(panels, "score_source", computed)
    monkeypatch.setattr(Loader, "load", computed)
    models = ["world", "gabor", str(folder / "noise.nc")]
    panel_run(panel, models, folder / "out", mirror=nowhere, progress=False, say=lambda _: None)
    assert (folder / "out" / "panel.csv").read_text() == before
    with pytest.raises(AssertionError, match="computed again"):
        panel_run(panel, ["colour"], folder / "out", mirror=nowhere, progress=False, say=lambda _: None)


def test_features_that_are_not_of_these_stimuli_have_no_score(panel, nowhere, apart, tmp_path, monkeypatch):
    monkeypatch.setattr(panels, "score_source", scoring.score_source)
    X = data.make_features(np.ones((2, 3)), stimulus=["a", "b"])
    data.save(X.assign_attrs(stimuli="words"), tmp_path / "x.nc")
    said: list[str] = []
    how = {"mirror": nowhere, "progress": False, "say": said.append}
    summary = panel_run(panel, [str(tmp_path / "x.nc")], tmp_path / "out", **how)
    assert summary["n_tasks"] == 0
    cells = pd.read_csv(tmp_path / "out" / "panel.csv")
    assert cells[cells["track"] == "words"]["note"].str.contains("50 of 50 stimuli have no features").all()
    data.save(X.assign_attrs(stimuli="sounds"), tmp_path / "y.nc")
    with pytest.raises(DataError, match="legal are 'images' and 'words'"):
        panel_run(panel, [str(tmp_path / "y.nc")], tmp_path / "out", **how)


def test_other_data_or_splits_are_refused(panel, tmp_path):
    for old, new in (
        ("[data.world]\n", '[data.world]\nhash = "0123"\n'),
        ("n_rsa = 20", 'n_rsa = 20\nsplits = "0123"'),
    ):
        path = tmp_path / "other.toml"
        path.write_text(TINY.replace(old, new))
        config = read_panel(path)
        with pytest.raises(ChecksumError, match="was frozen with 0123"):
            Loader(config).load(config.sources[0])


def test_models_are_named_as_they_are():
    assert split_name("hf-dir:/models/gpt2:block3") == ("hf-dir:/models/gpt2", None, "block3")
    found = open_models(["world", "minilm:block0", "efficientnet-lite0:block2"], 4)
    assert [(m.name, m.track) for m in found] == [
        ("world", "images"),
        ("world", "words"),
        ("minilm:block0", "words"),
        ("efficientnet-lite0:block2", "images"),
    ]
    assert len({m.identity for m in found}) == 4
    with pytest.raises(ConfigError, match="did you mean 'block2'"):
        open_models(["efficientnet-lite0:blok2"], 4)
    with pytest.raises(ConfigError, match="named twice"):
        open_models(["world", "world"], 4)
    with pytest.raises(ConfigError, match="no model is named"):
        open_models([], 4)


def test_layers_are_read_in_cells(material):
    model = open_models(["world:layer2"], 4)[0]
    model.embedder.cache = False
    X = model.features(material.stimuli.sel(material.stimuli.ids[:3]))
    assert model.embedder.pooling == 4
    assert X.ndim == 2
    assert X.shape[1] % 16 == 0


def test_runs_are_joined(made, tmp_path):
    folder, _, _ = made
    out = folder / "out"
    cells = pd.read_csv(out / "panel.csv")
    for name, rows in (("one", cells["model"] == "world"), ("two", cells["model"] != "world")):
        (tmp_path / name).mkdir()
        cells[rows].to_csv(tmp_path / name / "panel.csv", index=False)
        (tmp_path / name / "summary.json").write_text((out / "summary.json").read_text())
    comparison = pd.DataFrame(
        {
            "cell": ["conv/linear", "conv/gaussian"],
            "kind": "roi",
            "group": "V1",
            "median_r": [0.1, 0.2],
            "low": 0,
            "high": 1,
        }
    )
    (tmp_path / "mine").mkdir()
    comparison.to_csv(tmp_path / "mine" / "comparison.csv", index=False)
    folders = [tmp_path / n for n in ("one", "two", "mine")]
    found = panel_table(folders, tmp_path / "all", say=lambda _: None)
    assert set(found["model"]) == {*cells["model"], "conv/linear", "conv/gaussian"}
    assert found[found["track"] == "compare"]["task"].tolist() == ["mine/V1/r"] * 2
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "all" / "ranks.csv").query("track == 'images'").reset_index(drop=True),
        pd.read_csv(out / "ranks.csv"),
    )
    cells["score"] += 0.1
    cells.to_csv(tmp_path / "one" / "panel.csv", index=False)
    with pytest.raises(DataError, match=r"scores that differ by 0\.1"):
        panel_table(folders, tmp_path / "all", say=lambda _: None)
    (tmp_path / "one" / "summary.json").write_text(json.dumps({"panel_hash": "other", "panel": "p"}))
    with pytest.raises(DataError, match="different panels"):
        panel_table(folders, tmp_path / "all", say=lambda _: None)
    with pytest.raises(DataError, match=r"neither panel\.csv nor comparison\.csv"):
        panel_table([tmp_path], tmp_path / "all", say=lambda _: None)


def wide(n_models=12):
    """Rows of a panel.csv: six tasks of two regions, of which one is noise."""
    rng = np.random.default_rng(0)
    ability = rng.standard_normal((n_models, 2))
    rows = []
    for t in range(6):
        for m in range(n_models):
            halves = ability[m, t % 2] + (3.0 if t == 5 else 0.1) * rng.standard_normal(2)
            rows.append(
                (f"m{m}", f"s{t}/{'ab'[t % 2]}/r/images", halves.mean(), *halves, "images", "d", "ab"[t % 2], "r")
            )
    columns = ["model", "task", "score", "half_1", "half_2", "track", "data", "region", "metric"]
    return pd.DataFrame(rows, columns=columns)


def test_tasks_are_selected(tmp_path):
    wide().to_csv(tmp_path / "panel.csv", index=False)
    said: list[str] = []
    found = panel_select(tmp_path, tmp_path / "few", say=said.append)
    assert found.order["task"][0].startswith("s5/")
    assert {t.split("/")[1] for t in found.tasks} == {"a", "b"}
    tasks = pd.read_csv(tmp_path / "few" / "tasks.csv")
    assert tasks["kept"].sum() == len(found.tasks)
    assert len(tasks) == 6
    record = json.loads((tmp_path / "few" / "selection.json").read_text())
    assert record["statement"] == found.statement == said[0]
    assert pd.read_csv(tmp_path / "few" / "coverage.csv")["factor"].tolist() == ["data", "region", "metric"]


def test_what_cannot_be_selected_is_refused(tmp_path):
    table = wide()
    table.drop(columns=["half_1", "half_2"]).to_csv(tmp_path / "panel.csv", index=False)
    said: list[str] = []
    panel_select(tmp_path / "panel.csv", say=said.append)
    assert "not told apart" in said[0]
    with pytest.raises(ConfigError, match="did you mean 'images'"):
        panel_select(tmp_path, track="image", say=said.append)
    with pytest.raises(ConfigError, match="did you mean 'region'"):
        panel_select(tmp_path, factors=["regions"], say=said.append)
    pd.concat([table, table.assign(track="words")]).to_csv(tmp_path / "panel.csv", index=False)
    with pytest.raises(ConfigError, match="--track images"):
        panel_select(tmp_path, say=said.append)
    lost = table[~((table["model"] == "m0") & table["task"].str.startswith("s1"))]
    lost.to_csv(tmp_path / "panel.csv", index=False)
    panel_select(tmp_path, say=said.append)
    assert "no score in: m0" in said[-1] or any("no score in: m0" in line for line in said)


def test_commands_say_what_is_wrong(tmp_path, panel):
    from neuroenc.cli._main import app

    def error(*arguments):
        found = CliRunner().invoke(app, ["panel", *map(str, arguments)])
        assert found.exit_code == 2
        return found.output + (found.stderr if found.stderr_bytes else "")

    assert "did you mean 'offline-1'" in error("run", "--panel", "ofline-1", "--model", "world")
    assert "did you mean 'gabor'" in error("run", "--model", "gabo", "--panel", panel, "--out", tmp_path / "o")
    assert "no model is named" in error("run", "--panel", panel)
    assert "no such folder" in error("table", tmp_path / "none", "--out", tmp_path / "o")
    shown = CliRunner().invoke(app, ["panel", "show"])
    assert shown.exit_code == 0
    assert "V4-PE-201025/V4/retrieval/images" in shown.output


def test_layers_of_one_network_are_computed_together(material, apart, monkeypatch, tmp_path):
    stimuli = material.stimuli.sel(material.stimuli.ids[:3])
    models = open_models(["world:layer1", "world:layer2"], 4)
    alone = [m.features(stimuli).values for m in models]
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path / "other"))
    again = open_models(["world:layer1", "world:layer2"], 4)
    embed_together(again, stimuli)

    def computed(*args):
        raise AssertionError("not in the cache")

    monkeypatch.setattr(type(again[0].embedder), "_encode", computed)
    for model, values in zip(again, alone):
        np.testing.assert_allclose(model.features(stimuli).values, values, atol=1e-5)


def test_shipped_backbones_are_recorded(tmp_path):
    found = panel_table(["offline-1"], tmp_path / "all", say=lambda _: None)
    tasks = read_panel("offline-1").tasks()
    assert set(found["task"]) == set(tasks["task"])
    assert {"world", "efficientnet-lite0", "minilm"} <= set(found["model"])
    ranks = pd.read_csv(tmp_path / "all" / "ranks.csv")
    assert set(ranks["track"]) == {"images", "words"}
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["panel"] == "offline-1"
