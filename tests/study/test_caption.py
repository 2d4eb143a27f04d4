"""``neuroenc caption``: the whole path in small, killed and gone on, its settings, its errors."""

import dataclasses
import json
import shutil
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.metrics import silhouette_score
from typer.testing import CliRunner

pytest.importorskip("torch")

from neuroenc import Captioner
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import CaptionStudy, RetrievalDecoder
from neuroenc.cli._main import app
from neuroenc.data import Stimuli
from neuroenc.data.simulate import families_in_caption
from neuroenc.report.explorer._colours import word_places
from neuroenc.retrieval import EmbeddingBank, as_bank
from neuroenc.study import Study, caption, example_config, read_config
from neuroenc.study.stages import bank as stages
from neuroenc.study.stages.bank import Bank
from neuroenc.study.stages.check import diversity_table, round_trip_table, with_places
from neuroenc.study.truth import judge_planted, planted_summary

SMALL = [
    "data.options.n_subjects=2",
    "data.options.n_train=300",
    "data.options.n_test=40",
    "data.options.n_bank=300",
    "data.options.n_voxels=60",
    "captions.decoder.beams=2",
    "captions.decoder.groups=2",
    "captions.decoder.top=2",
    "captions.stability.folds=2",
    "captions.stability.bootstraps=0",
    "captions.stability.null_voxels=20",
    "captions.stability.max_voxels=40",
    "evaluation.permutations=200",
]
SUBJECTS = 'analysis.contrast=["sub-01", "sub-02"]'


def small(*overrides):
    """The world in small; settings of captions without their prefix."""
    whole = [x if x.startswith(("data", "evaluation")) else f"captions.{x}" for x in overrides]
    return example_config("world", [*SMALL, *whole], "caption")


class Counted(EmbeddingBank):
    """A bank that counts the rows that are read of it."""

    read: ClassVar[list[int]] = []

    def chunks(self, rows, width=None):
        for chunk in super().chunks(rows, width):
            self.read.append(len(chunk.rows))
            yield chunk

    def take(self, positions, rows=16384):
        for chunk in super().take(positions, rows):
            self.read.append(len(chunk.rows))
            yield chunk


read_bank = stages._bank


def counted(*args):
    bank = read_bank(*args)
    return dataclasses.replace(bank, embeddings=Counted(bank.embeddings))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("caption")
    lines = []
    Counted.read.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroenc.study.stages.bank._bank", counted)
        summary = caption(small(SUBJECTS), out, progress=False, say=lines.append)
    summary["rows read"] = sum(Counted.read)
    return out, summary, lines


def test_the_bank_is_read_once_for_all_stages(done):
    _, summary, lines = done
    # Captions, evidence, phrases, folds, halves, shuffled weights, round trip, categories, clusters: 300 images.
    assert summary["rows read"] == 300
    assert any(line == "  bank: read once" for line in lines)


def test_captions_of_regions_are_tested_on_stimuli_that_were_held_out(done):
    table = CaptionStudy.load(done[0] / "study").quality["hypotheses"]
    columns = ["roi", "caption", "n_voxels", "rho_predicted", "rho_measured", "top_minus_rest", "p", "q"]
    assert [c for c in table if c != "subject"] == columns
    assert table.groupby(["subject", "roi"]).size().between(1, 3).all()
    assert table["p"].between(0, 1).all()
    assert table["rho_measured"].median() > 0.1


@pytest.mark.slow
def test_a_bank_without_captions_is_read_once_and_gives_its_images_to_the_checker(tmp_path, monkeypatch):
    Counted.read.clear()
    monkeypatch.setattr("neuroenc.study.stages.bank._bank", untold)
    less = [
        "stability.folds=0",
        "stability.halves=0",
        "analysis.words=none",
        "decoder.kind=retrieval",
    ]
    more = ["decoder.caption_bank=stimuli", "data.options.n_subjects=1"]
    summary = caption(small(*less, *more), tmp_path, progress=False, say=print)
    assert sum(Counted.read) == 300
    study = CaptionStudy.load(tmp_path / "study")
    assert study.phrases["in_images"].notna().all()
    assert 0 < summary["hallucination_rate"] < 1


@pytest.mark.slow
def test_a_captioner_is_taught_before_it_captions_and_can_be_taken_elsewhere(tmp_path):
    less = ["stability.folds=0", "stability.halves=0", "analysis.words=none", "data.options.n_subjects=1"]
    more = ["preferences.rounds=1", "preferences.voxels=24", "preferences.epochs=2", "preferences.lr=1e-5"]
    caption(small(*less, *more), tmp_path / "a", progress=False)
    found = CaptionStudy.load(tmp_path / "a" / "study")
    rounds = found.quality["preference training"]
    assert rounds["round"].tolist() == [0, 1]
    assert rounds["kept"].sum() == 1
    caption(small(*less, f"decoder.captioner={tmp_path / 'a' / 'captioner'}"), tmp_path / "b", progress=False)
    again = CaptionStudy.load(tmp_path / "b" / "study")
    assert again.captions["caption"].tolist() == found.captions["caption"].tolist()
    assert "preference training" not in again.quality


def test_only_language_models_are_taught():
    with pytest.raises(ConfigError, match="rounds needs decoder"):
        small("decoder.kind=retrieval", "preferences.rounds=1")


@pytest.mark.slow
def test_places_are_drawn_and_asked_where_the_config_says_so(tmp_path):
    """Windows of the best images: a patch map each on the page, and a third witness of phrases."""
    less = ["stability.folds=0", "stability.halves=0", "analysis.words=none", "decoder.kind=retrieval"]
    more = ["data.options.n_subjects=1", "grounding.places=witness", "grounding.grid=3"]
    lines = []
    caption(small(*less, *more), tmp_path, progress=False, say=lines.append)
    assert any("places: 9 windows" in line for line in lines)
    study = CaptionStudy.load(tmp_path / "study")
    shown = study.evidence["rank"] <= 8
    assert study.evidence.loc[shown, "places"].str.fullmatch(r"(\d{3}/){2}\d{3}").all()
    assert study.evidence[shown].groupby("voxel")["places"].apply(lambda x: "9" in "".join(x)).all()
    assert study.phrases["place_percentile"].between(0, 1).all()
    voxel_pages = "".join(p.read_text() for p in (tmp_path / "report").rglob("*.html"))
    assert 'class="heat" src="data:image/png;base64,' in voxel_pages


def test_places_are_digits_of_the_images_that_are_shown():
    """9 where a voxel's shown images drive it most, 0 at the mean of an image; the ninth image is not shown."""
    tokens = np.zeros((9, 2, 2, 2))
    tokens[:, 0, 0, 1] = [2, *[1] * 7, 50]
    tokens = xr.DataArray(
        tokens, dims=("stimulus", "channel", "y", "x"), coords={"stimulus": [f"s{k}" for k in range(9)]}
    )
    coef = xr.DataArray(np.eye(2)[:, :1], dims=("feature", "voxel"), coords={"voxel": [7]})
    evidence = pd.DataFrame({"voxel": 7, "rank": range(1, 10), "stimulus": tokens["stimulus"].values, "predicted": 0.0})
    assert with_places(evidence, coef, tokens)["places"].tolist() == ["09/00", *["04/00"] * 7, ""]


def untold(*args):
    """A bank of which nobody told captions: images are compared with phrases by their embeddings."""
    bank = read_bank(*args)
    return Bank(Counted(bank.embeddings), None, bank.name)


def test_stability_is_measured_on_a_sample_that_is_told(done):
    out, summary, lines = done
    study = CaptionStudy.load(out / "study")
    of = summary["n_captioned"]
    assert (summary["stability_n_voxels"], summary["stability_of_voxels"]) == (40, of)
    sampled = study.stability["voxel"].to_numpy()
    assert len(sampled) == 40
    assert set(sampled) <= set(study.captions["voxel"])
    shares = study.scores["subject"].sel(voxel=sampled).to_series().value_counts(normalize=True)
    every = study.scores["subject"].sel(voxel=study.captions["voxel"].unique()).to_series().value_counts(normalize=True)
    assert (shares - every).abs().max() < 0.1
    assert f"measured on 40 of {of} captioned voxels (a random sample" in study.methods()
    assert f"Stability measured on 40 of {of} captioned voxels" in (out / "report" / "index.html").read_text()
    assert any(line.endswith(f"measured on 40 of {of} captioned voxels") for line in lines)
    for kind in ("folds", "halves"):
        low, mean, high = (summary[f"agreement{name}:{kind}"] for name in ("_low", "", "_high"))
        assert low < mean < high


def test_what_comes_out(done):
    out, summary, lines = done
    assert json.loads((out / "summary.json").read_text())["n_captioned"] == summary["n_captioned"]
    assert summary["n_captioned"] + summary["n_gated"] == summary["n_voxels"]
    study = CaptionStudy.load(out / "study")
    captioned = study.gate["captioned"].to_numpy(dtype=bool)
    assert summary["median_r"] == pytest.approx(np.nanmedian(study.scores["r"].values))
    assert summary["captioned_median_r"] == pytest.approx(np.nanmedian(study.scores["r"].values[captioned]))
    assert (out / "report" / "index.html").is_file()
    assert (out / "report" / "captions.csv").is_file()
    near = pd.read_csv(out / "caption_leakage.csv")
    assert set(near["subject"]) == {"sub-01", "sub-02"}
    assert summary["share_near_duplicates"] == near["near"].mean()
    assert set(study.scores["subject"].values) == {"sub-01", "sub-02"}
    # Categories are apart in the map of colours, and a word stands with the voxels of its category.
    colours = study.colours.set_index("voxel")
    assert set(colours.index) == set(study.captions["voxel"])
    category = study.categories.set_index("voxel")["category"].loc[lambda c: c.isin(["face", "place", "body"])]
    middles = colours.loc[category.index].groupby(category.to_numpy()).mean()
    words = word_places(study).set_index("word")[["x", "y", "z"]]
    for word, name in (("house", "place"), ("portrait", "face")):
        assert (middles - words.loc[word]).pow(2).sum(axis=1).idxmin() == name
    assert silhouette_score(colours.loc[category.index], category) > 0.1
    assert "What voxels prefer, as colours" in (out / "report" / "index.html").read_text()
    held = study.gate[~study.gate["captioned"]]
    assert not set(held["voxel"]) & set(study.captions["voxel"])
    assert (held["reason"] != "").all()
    assert study.captions.groupby("voxel")["rank"].max().max() == 2
    assert {"n_phrases", "n_supported", "n_unsupported"} <= set(study.captions.columns)
    for name in ("phrases", "stability", "sentence", "words", "concepts", "categories"):
        assert len(getattr(study, name)), name
    assert {"stability", "sentence-level scores", "round trip", "diversity", "hallucination rate"} <= set(study.quality)
    people = study.quality["persons"]
    assert set(people["subject"]) == {"sub-01", "sub-02"}
    assert (people["percent_supported"] <= 100).all()
    assert len(study.quality["person clusters"]) >= 2
    # Two subjects are no sample of subjects.
    apart = study.contrasts
    assert (apart["unit"] == "voxel").all()
    assert ((apart["low"] <= apart["difference"]) & (apart["difference"] <= apart["high"])).all()
    assert (np.sign(apart["difference"]) >= 0).mean() > 0.5
    assert "softmax temperature 1/150" in study.methods()
    assert any("planted family" in line for line in lines)


WRITTEN = """
import json, sys
from pathlib import Path
import nibabel as nib, numpy as np, pandas as pd
from neuroenc import data
from neuroenc.captions import CaptionStudy
out = Path(sys.argv[1])
study, scores = CaptionStudy.load(out / "study"), data.load(out / "report" / "scores.nc")
exact = {"keep_default_na": False, "na_values": [""]}
tables = {"csv": pd.read_csv(out / "report" / "captions.csv", **exact),
          "json": pd.DataFrame(json.loads((out / "report" / "captions.json").read_text())),
          "study": study.captions}
if (out / "report" / "captions.parquet").exists():
    tables["parquet"] = pd.read_parquet(out / "report" / "captions.parquet")
maps = {}
for folder in sorted(p for p in (out / "report" / "subjects").iterdir() if p.is_dir()):
    (table,) = (folder / "maps").glob("*.json")
    names, labels = json.loads(table.read_text()), nib.load(table.with_suffix(".nii.gz")).get_fdata()
    r = nib.load(folder / "maps" / "r.nii.gz").get_fdata()
    here = scores.isel(voxel=scores["subject"].values == folder.name)
    at = tuple(here[k].values for k in "ijk")
    maps[folder.name] = [float(np.abs(r[at] - here["r"].values).max()), int(np.isfinite(r).sum()), here.sizes["voxel"],
                         int((labels[at] > 0).sum()), int((labels > 0).sum()), len(names) - 1]
print(json.dumps({
    "tables": {k: t[["voxel", "rank", "caption", "score", "predicted"]].values.tolist() for k, t in tables.items()},
    "evidence": pd.read_csv(out / "report" / "evidence.csv")["stimulus"].tolist(),
    "r": [study.scores["r"].values.tolist(), scores["r"].values.tolist()], "maps": maps,
    "lengths": {name: len(pd.read_csv(out / "report" / f"{name}.csv")) for name in sys.argv[2:]},
}))
"""


def test_everything_written_is_read_in_a_new_process_and_agrees(done, fresh):
    """Study, tables of three kinds, scores and label maps say the same of the same voxels."""
    out, _, _ = done
    names = ["evidence", "phrases", "gate", "stability", "sentence", "words", "concepts", "categories"]
    found = fresh(WRITTEN, out, *names)
    study = CaptionStudy.load(out / "study")
    for kind, rows in found["tables"].items():
        assert [r[:3] for r in rows] == study.captions[["voxel", "rank", "caption"]].values.tolist(), kind
        for column, values in ((3, study.captions["score"]), (4, study.captions["predicted"])):
            np.testing.assert_allclose([r[column] for r in rows], values, rtol=1e-6, err_msg=kind)
    assert found["evidence"] == study.evidence["stimulus"].tolist()
    assert found["r"][0] == found["r"][1]
    assert found["lengths"] == {name: len(getattr(study, name)) for name in names}
    assert set(found["maps"]) == {"sub-01", "sub-02"}
    for off, inside, n_voxels, labelled, everywhere, n_names in found["maps"].values():
        assert off < 1e-6
        assert inside == n_voxels
        assert 0 < labelled == everywhere
        assert n_names > 1


def test_planted_families_are_named_and_shuffled_weights_name_few(done):
    _, summary, _ = done
    # A tenth of the data of the shipped example, and beams of two.
    assert summary["planted_family_named"] > 0.85
    assert summary["shuffled_planted_family_named"] < 0.6
    assert summary["sentence_mean"] > summary["sentence_mean_shuffled"] + 0.05
    assert summary["round_trip"] > 0.7
    assert summary["agreement:folds"] > summary["agreement_shuffled_weights:folds"] + 0.1


def test_a_second_call_takes_what_is_there_and_gives_the_same(done):
    out, summary, _ = done
    lines = []
    again = dict(Study(small(SUBJECTS), out, progress=False, say=lines.append).until("analyse").summary)
    for name in ("captions", "stability", "grounding", "sentence", "analyses"):
        assert any(line.strip().startswith(f"{name}: done before") for line in lines), name
    assert not any("bank:" in line for line in lines if "taken from" not in line)
    again["rows read"] = summary["rows read"]
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in summary.items() if k != "seconds"}


@pytest.mark.slow
def test_a_run_that_was_killed_after_the_reading_does_not_read_again(done, tmp_path, monkeypatch):
    out, summary, _ = done
    shutil.copytree(out / ".steps", tmp_path / ".steps")
    for name in ("captions", "stability", "shuffled", "grounding", "analyses"):
        found = next((tmp_path / ".steps").glob(f"{name}-*"))
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    Counted.read.clear()
    monkeypatch.setattr("neuroenc.study.stages.bank._bank", counted)
    again = caption(small(SUBJECTS), tmp_path, progress=False, say=lambda _: None)
    assert Counted.read == []
    assert {**again, "seconds": 0, "rows read": 300} == {**summary, "seconds": 0}
    for name in ("captions", "evidence", "phrases", "stability", "categories", "words"):
        one, two = (next((folder / "study").glob(f"{name}.*")).read_bytes() for folder in (out, tmp_path))
        assert one == two, name


LESS = [
    "data.options.n_subjects=1",
    "stability.folds=0",
    "stability.halves=0",
    "grounding.enabled=false",
    "analysis.words=none",
]


def analysed(out, *overrides, say=lambda _: None):
    """The study without its page."""
    return Study(small(*LESS, *overrides), out, progress=False, say=say).until("analyse")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Captions of one subject that are retrieved."""
    out = tmp_path_factory.mktemp("told")
    return out, analysed(out, "decoder.kind=retrieval")


def test_other_decoders_and_projections(told, tmp_path):
    # Data, fits and scores are those of the first.
    shutil.copytree(told[0] / ".steps", tmp_path / ".steps")
    for study in (told[1], analysed(tmp_path, "decoder.kind=corpus", "projection.method=nearest")):
        assert study.summary["planted_family_named"] > 0.7
        assert (study.captions.captions["caption_id"] != "").all()
        assert study.captions.stability is None
        assert study.captions.phrases is None


@pytest.mark.slow
def test_weights_by_gradient_descent_are_those_of_the_training_pictures(told, tmp_path):
    """Voxels keep their names; augmented copies are made of what the encoder is fitted on alone."""
    shutil.copytree(told[0] / ".steps", tmp_path / ".steps")
    sets = [f"encoder.{x}" for x in ("kind=adamw", "augment=1", "epochs=20", "lr=0.02", "final_lr=0.01")]
    lines = []
    config = small(*LESS, *sets, "decoder.kind=retrieval")
    study = Study(config, tmp_path, progress=False, say=lines.append).until("weights")
    assert any("1 augmented copies of 300 pictures" in line for line in lines)
    ridge = told[1].fitted
    xr.testing.assert_equal(study.fitted.coef["voxel"], ridge.coef["voxel"])
    assert study.fitted.coef.dims == ridge.coef.dims
    r, wanted = (np.nanmedian(x.scores["r"].values) for x in (study.fitted, ridge))
    assert wanted - 0.15 < r < wanted + 0.1
    with pytest.raises(ConfigError, match="augment = 0"):
        small("encoder.kind=adamw", "space.stimuli=captions", "bank.source=captions", "decoder.caption_bank=unseen")


@pytest.fixture(scope="module")
def published(told, tmp_path_factory):
    """The same, of a bank whose one part shows faces and the other none, with images of the bank for each caption."""
    out = tmp_path_factory.mktemp("published")
    shutil.copytree(told[0] / ".steps", out / ".steps")
    shown = told[1].captioner.stimuli.captions
    faces = np.array(["face" in set().union(*(families_in_caption(t) for t in several)) for several in shown])
    sets = ["decoder.kind=retrieval", "decoder.per_fold=true", "stability.folds=2", "analysis.words=auto"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroenc.study.stages.caption.bank_folds", lambda *_, **__: np.stack([faces, ~faces]))
        return analysed(out, *sets, "analysis.max_rois=0", "analysis.images=retrieve")


def test_images_of_the_bank_say_what_captions_are_worth(published):
    """A row for each kind of images and each region with a category; beside sentences, images on held-out stimuli."""
    study = published.captions
    table = study.quality["five-way accuracy"].set_index(["kind", "roi"])
    assert set(table.index.levels[0]) == {"evidence", "caption", "shuffled weights"}
    assert "V1" not in table.index.levels[1]
    mean = table.xs("all", level="roi")["accuracy"]
    assert min(mean["evidence"], mean["caption"]) > mean["shuffled weights"] + 0.2
    assert table.loc[("caption", "all"), "verdict"].startswith("above other voxels' images (p = 0.001")
    assert (table["low"] <= table["accuracy"]).all()
    rows = study.quality["sentence-level scores"].set_index("kind")
    assert rows.index.tolist() == ["sentence", "image"]
    assert (rows["low"] > rows["mean_shuffled"]).all()
    assert study.sentence["image_rho"].mean() == pytest.approx(rows.loc["image", "mean"])
    summary = published.summary
    assert summary["five_way_accuracy:caption"] == pytest.approx(mean["caption"])
    assert summary["verdict:five-way accuracy, caption"].startswith("above")
    assert summary["image_mean"] == pytest.approx(rows.loc["image", "mean"])
    assert "The 5 images of the bank nearest to each caption" in study.methods()
    with pytest.raises(ConfigError, match=r"analysis\.images needs"):
        small("analysis.images=retrieve", "bank.source=captions", "decoder.caption_bank=unseen")


def test_every_voxel_is_captioned_from_each_part_of_the_bank(published, tmp_path):
    """Captions name what their part of the bank shows, and words count both."""
    study = published.captions
    folds = study.folds
    assert (folds.groupby("voxel")["fold"].agg(list).map(tuple) == (1, 2)).all()
    assert set(folds["voxel"]) == set(study.captions["voxel"])
    named = folds["caption"].map(families_in_caption).map(lambda found: "face" in found)
    share = named.groupby(folds["fold"]).mean()
    assert share[1] > share[2] + 0.3
    # Stability is that of these captions, on its sample.
    both = folds[folds["voxel"].isin(study.stability["voxel"])].pivot(index="voxel", columns="fold", values="caption")
    same = (both[1] == both[2]).astype(float)
    assert study.stability.set_index("voxel")["folds_same"].to_dict() == same.to_dict()
    # A region's share of a word is the mean over its voxels and folds.
    word = study.words.query("part == 'noun'").iloc[0]
    inside = folds.merge(study.scores["roi"].to_series().rename("roi"), left_on="voxel", right_index=True)
    inside = inside[inside["roi"] == word["roi"]]
    said = inside["caption"].str.lower().str.contains(rf"\b{word['word']}")
    assert word["share"] == pytest.approx(said.mean())
    assert word["share_sd"] == pytest.approx(said.groupby(inside["fold"]).mean().std())
    assert "captioned from 2 disjoint parts" in study.methods()
    assert CaptionStudy.load(study.save(tmp_path / "again")).folds.equals(folds)
    with pytest.raises(ConfigError, match=r"needs stability\.folds"):
        small("decoder.per_fold=true", "stability.folds=0")


def test_stimuli_that_carry_the_captions_ngrams(told, tmp_path):
    shutil.copytree(told[0] / ".steps", tmp_path / ".steps")
    few = ["retrieval.enabled=true", "retrieval.voxels_per_region=1", "retrieval.top=2"]
    study = analysed(tmp_path, "decoder.kind=retrieval", *few)
    found, captions = study.captions.retrieved, study.captions
    assert set(found["level"]) == {"image", "caption", "category"}
    # One voxel a region, the best predicted.
    r = captions.scores["r"].to_series()[captions.captions["voxel"].unique()]
    regions = captions.scores["roi"].to_series().str.split(";").str[0]
    assert set(found["voxel"]) == set(r.groupby(regions).idxmax())
    # Captions that were retrieved stand in the corpus: their image answers first.
    first = found[(found["rank"] == 1) & (found["level"] == "image")].set_index("voxel")["id"]
    best = captions.captions[captions.captions["voxel"].isin(first.index)].groupby("voxel")["caption_id"].agg(set)
    assert np.mean([first[v] in names for v, names in best.items()]) > 0.7
    assert captions.settings["retrieval"]["source"] == "its captions"


@pytest.mark.slow
def test_stimuli_that_carry_what_the_captioner_writes(tmp_path):
    few = ["retrieval.enabled=true", "retrieval.voxels_per_region=2"]
    found = analysed(tmp_path, *few).captions.retrieved
    # Category-selective regions find their own category by n-grams.
    mine = found[(found["level"] == "category") & (found["rank"] == 1)]
    assert (mine.loc[mine["roi"].str.contains("food"), "id"] == "food").all()


@pytest.mark.slow
def test_captions_that_are_written_under_the_checkers_eyes_have_fewer_unsupported_phrases(done, tmp_path):
    _, summary, _ = done
    less = [
        "stability.folds=0",
        "stability.halves=0",
        "analysis.words=none",
        "grounding.intervene=true",
    ]
    found = caption(small(*less), tmp_path, progress=False, say=lambda _: None)
    assert found["hallucination_rate"] < 0.7 * summary["hallucination_rate"]


def test_another_bank_of_the_same_name_and_size_is_noticed(told, tmp_path, monkeypatch):
    def turned(*args):
        bank = read_bank(*args)
        raw = np.random.default_rng(0).permuted(np.asarray(bank.embeddings), axis=1)
        return Bank(as_bank(raw, ids=bank.stimuli.ids), bank.stimuli, bank.name)

    one = told[1].captions
    shutil.copytree(told[0], tmp_path / "out")
    monkeypatch.setattr("neuroenc.study.stages.bank._bank", turned)
    lines = []
    two = analysed(tmp_path / "out", "decoder.kind=retrieval", say=lines.append).captions
    assert one.settings["bank"]["name"] == two.settings["bank"]["name"]
    assert one.provenance["bank"] != two.provenance["bank"]
    assert (one.captions["score"] != two.captions["score"]).all()
    # The encoder does not read the bank.
    assert any(line.startswith("  fit: done before") for line in lines)


def test_nobody_passes_the_gate(tmp_path):
    config = small(*LESS, "gate.min_ceiling_r=0.999")
    summary = caption(config, tmp_path, progress=False, say=lambda _: None)
    assert summary["n_captioned"] == 0
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_captioner_of_another_space_is_refused(tmp_path):
    config = small("decoder.captioner=photo", "data.options.n_subjects=1")
    with pytest.raises(ConfigError, match="reads embeddings of"):
        caption(config, tmp_path, progress=False, say=lambda _: None)


def test_the_command(tmp_path):
    runner = CliRunner()
    assert runner.invoke(app, ["caption"]).exit_code != 0
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nname = "world"\n[captions.space]\nmodel = "world"\n[captions.decoder]\nkind = "magic"\n')
    result = runner.invoke(app, ["caption", str(path)])
    assert result.exit_code != 0
    assert "magic" in result.output
    with pytest.raises(ConfigError, match="no file"):
        read_config(tmp_path / "none.toml")


def test_captioner_without_scores_says_that_nothing_was_gated():
    bank = np.eye(3) + 0.1
    decoder = RetrievalDecoder(["a", "b", "c"], np.eye(3), centre=False)
    captioner = Captioner(bank, decoder, progress=False, n_evidence=2)
    coef = xr.DataArray(np.eye(3)[:, :2] * 2, dims=("feature", "voxel"), coords={"voxel": [5, 9]})
    study = captioner.caption(coef)
    assert study.captions.query("rank == 1")["caption"].tolist() == ["a", "b"]
    assert any("not predicted above chance" in c for c in study.caveats)
    scores = xr.Dataset({"r": ("voxel", [0.5, 0.1]), "q_value": ("voxel", [0.01, 0.5])}, coords={"voxel": [5, 9]})
    gated = captioner.caption(coef, scores)
    assert gated.captions["voxel"].unique().tolist() == [5]
    assert "q = 0.50" in gated.gate["reason"].iloc[1]
    assert captioner.best(coef) == ["a", "b"]
    # Labels decide: another order, some of the voxels, a gate in another order.
    turned = captioner.caption(coef, scores.isel(voxel=[1, 0]), gate=gated.gate)
    assert turned.captions[["voxel", "caption"]].values.tolist() == gated.captions[["voxel", "caption"]].values.tolist()
    assert captioner.caption(coef, scores.isel(voxel=[0])).captions["caption"].iloc[0] == "a"
    with pytest.raises(DataError, match=r"1 of 2 voxels that the encoder does not have \(first: 6"):
        captioner.caption(coef, scores.assign_coords(voxel=[5, 6]))
    with pytest.raises(DataError, match="no row of its own for 1 of 2"):
        captioner.caption(coef, scores, gate=gated.gate.iloc[:1])
    # A bank of another backbone, and a decoder whose repr holds an address.
    labelled = xr.DataArray(bank, dims=("stimulus", "feature"), attrs={"backbone": "other"})
    with pytest.raises(DataError, match="backbone 'world', and the bank holds embeddings of backbone 'other'"):
        Captioner(labelled, decoder, progress=False).caption(coef.assign_attrs(backbone="world"), scores)
    assert " at 0x" not in study.provenance["captioner"]
    # A voxel without weights passes the gate and is still not captioned.
    mute = captioner.caption(coef * [0.0, 1.0])
    assert mute.gate["reason"].tolist() == ["its weights are zero or not finite", ""]


def test_a_captioner_refuses_before_it_reads():
    rng = np.random.default_rng(0)
    bank, decoder = rng.standard_normal((5, 3)), RetrievalDecoder(["a", "b"], np.eye(3)[:2])
    for settings in (
        {"temperature": 0},
        {"temperature": np.nan},
        {"temperature": True},
        {"top": 0},
        {"top": 1.5},
        {"n_evidence": -1},
        {"n_evidence": "x"},
        {"method": "softmaxx"},
    ):
        with pytest.raises(ConfigError, match=r"legal|did you mean"):
            Captioner(bank, decoder, **settings)
    with pytest.raises(DataError, match="one image"):
        Captioner(bank[:1], decoder)
    with pytest.raises(DataError, match="name of another"):
        Captioner((bank, list("abcda")), decoder)
    pictures = Stimuli(list("vwxyz"), np.zeros((5, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="have no names"):
        Captioner(bank, decoder, stimuli=pictures)
    with pytest.raises(DataError, match="none of the bank's names"):
        Captioner((bank, list("abcde")), decoder, stimuli=pictures)
    captioner = Captioner((bank, list("vwxyz")), decoder, stimuli=pictures, progress=False)
    for weights in (np.full((3, 2), 1j), np.full((3, 2), "x"), np.full((3, 2), None)):
        with pytest.raises(DataError, match="weights"):
            captioner.caption(weights)
    # What is masked is no weight, and lengths of which a square is 0 are none.
    odd = np.ma.masked_array(rng.standard_normal((3, 2)), [[True, False], [False, False], [False, False]])
    assert captioner.caption(odd).captions["voxel"].unique().tolist() == [1]
    assert captioner.caption(np.array([[1e-200, 1.0]] * 3)).captions["voxel"].unique().tolist() == [1]


def test_parts_of_a_bank_are_what_is_projected_on():
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((40, 3))
    decoder = RetrievalDecoder(["a", "b", "c"], np.eye(3), centre=False)
    coef = rng.standard_normal((3, 4))
    part = np.arange(40) % 2 == 0
    for method in ("softmax", "nearest"):
        captioner = Captioner(bank, decoder, method=method, progress=False)
        alone = Captioner(bank[part], decoder, method=method, progress=False)
        np.testing.assert_allclose(
            captioner.project(coef, part)["embedding"], alone.project(coef)["embedding"], rtol=1e-5
        )
        assert captioner.best(coef, part) == alone.best(coef)
        unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        np.testing.assert_allclose(captioner.image_direction(), unit.mean(axis=0), atol=1e-6)


def test_tables_have_intervals_that_hold_their_value():
    rng = np.random.default_rng(0)
    vectors = {f"t{k}": v for k, v in enumerate(rng.standard_normal((30, 6)))}
    captions = pd.DataFrame({"voxel": range(30), "rank": 1, "caption": list(vectors)})

    def embed(texts):
        return np.array([vectors[t] for t in texts])

    coef = xr.DataArray(embed(list(vectors)).T, dims=("feature", "voxel"), coords={"voxel": np.arange(30)})
    row = round_trip_table(captions, coef, rng.standard_normal((200, 6)), embed, None, None, 0)[0].iloc[0]
    # All 30 at the top: Wilson's lower limit with t(29) of 30 of 30, which resamples of ones would put at 1.
    assert row["mean percentile"] == row["high"] == 1.0
    assert row["low"] == pytest.approx(30 / (30 + 2.0452**2), abs=1e-4)
    table = diversity_table({"x": captions}, embed, 0)
    assert table.loc[0, "semantic_variance_high"] > table.loc[0, "semantic_variance_low"]


def test_judging_planted_voxels():
    truth = xr.Dataset(
        {
            "family": ("voxel", ["face", "face", "", "place"]),
            "second_family": ("voxel", ["", "food", "", ""]),
            "members": ("voxel", ["man", "woman", "", "house"]),
            "mixed": ("voxel", [False, True, False, False]),
        },
        coords={"voxel": [0, 1, 2, 3]},
    )
    captions = pd.DataFrame(
        {
            "voxel": [0, 1, 1, 2, 3],
            "rank": [1, 1, 2, 1, 1],
            "caption": ["a man", "a pizza", "a woman", "a dog", "a dog"],
        }
    )
    judged = judge_planted(captions, truth).set_index("voxel")
    assert judged["named_family"].to_dict() == {0: True, 1: True, 3: False}
    assert judged["named_member"].to_dict() == {0: True, 1: False, 3: False}
    assert judged.loc[1, "both"]
    assert not judged.loc[1, "both_best"]
    found = planted_summary(judged)
    assert found["planted_both_named"] == 1.0
    assert found["planted_family_named"] == pytest.approx(2 / 3)
