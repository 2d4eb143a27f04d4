"""The files of the report of voxel captions; tests/browser looks at it as a reader does."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import output_folder
from neuroenc.captions import CaptionStudy
from neuroenc.data import Stimuli
from neuroenc.report import figure_svg, plot_region, write_caption_report, write_region_figure
from neuroenc.report._page import _put
from neuroenc.report.explorer._cards import Pictures, segments
from neuroenc.report.explorer._data import label_of_voxels, utf16, voxel_table
from neuroenc.report.explorer._hypotheses import hypotheses_section
from neuroenc.report.explorer._subjects import subjects_section

_spec = importlib.util.spec_from_file_location("caption_studies", Path(__file__).parents[1] / "browser" / "studies.py")
studies = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = studies
_spec.loader.exec_module(studies)


def unpack(file: Path):
    name, packed = re.fullmatch(r'neuroencData\("(\w+)","([A-Za-z0-9+/=]+)"\);\n', file.read_text()).groups()
    assert file.stem == name
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def meta(folder: Path):
    text = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="meta">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    study = studies.made_up(60, "volume", n_stimuli=12)
    folder = tmp_path_factory.mktemp("volume")
    rng = np.random.default_rng(0)
    stimuli = Stimuli(
        [f"scene-{k}" for k in range(12)],
        rng.integers(0, 255, (12, 40, 40, 3), dtype=np.uint8),
        captions=[[f"told {k}"] for k in range(12)],
        source="drawn",
        licence="CC0",
    )
    write_caption_report(study, folder, stimuli=stimuli, progress=False)
    return study, folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    study = studies.made_up(24, "volume", evil=True)
    folder = tmp_path_factory.mktemp("hostile")
    write_caption_report(study, folder, progress=False)
    return study, folder


def test_data_hold_what_the_study_holds(volume):
    study, folder = volume
    about = meta(folder)
    (subject,) = about["subjects"]
    core = unpack(folder / "assets" / subject["core"])
    assert core["voxel"] == study.scores.voxel.values.tolist()
    np.testing.assert_allclose(core["numbers"]["r"], study.scores.r.values, rtol=1e-3)
    detail = unpack(folder / "assets" / subject["chunks"][0])
    by_voxel = study.captions.groupby("voxel")
    for i, voxel in enumerate(core["voxel"]):
        mine = by_voxel.get_group(voxel) if voxel in by_voxel.groups else study.captions.iloc[:0]
        assert [core["texts"][k] for k in core["captions"][i]] == mine.caption.tolist()
        shown = [detail["stimuli"][k]["id"] for k, _ in detail["evidence"][i]]
        assert shown == study.evidence[study.evidence.voxel == voxel].stimulus.tolist()[:8]
        told = study.phrases[study.phrases.voxel == voxel]
        texts = dict(zip(core["ranks"][i], (core["texts"][k] for k in core["captions"][i])))
        assert [texts[p[0]][p[1] : p[2]] for p in detail["phrases"][i]] == told.phrase.tolist()
    assert {s["caption"] for s in detail["stimuli"]} <= {f"told {k}" for k in range(12)}
    assert all((folder / s["src"]).is_file() for s in detail["stimuli"])


def test_captions_that_fail_a_control_are_marked_everywhere(volume):
    study, folder = volume
    failed = study.failed_controls()
    assert 0 < (failed != "").sum() < len(failed)
    table = pd.read_csv(folder / "captions.csv", keep_default_na=False).query("rank == 1").set_index("voxel")["fails"]
    listed = json.loads((folder / "captions.json").read_text())
    told = {row["voxel"]: row["fails"] for row in listed if row["rank"] == 1}
    core = unpack(folder / "assets" / meta(folder)["subjects"][0]["core"])
    for voxel, fails in failed.items():
        assert table[voxel] == told[voxel] == fails
        assert core["fails"][core["fail"][core["voxel"].index(voxel)]] == fails
    text = (folder / "index.html").read_text()
    best = voxel_table(study).frame.sort_values("r", ascending=False).head(8)
    assert text.count("The best caption is not above its control") == 1 + (best["fails"] != "").sum()


def test_dots_lie_where_voxels_lie(volume):
    study, folder = volume
    core = unpack(folder / "assets" / meta(folder)["subjects"][0]["core"])
    (slices,) = core["maps"]
    assert slices["voxel"] == list(range(60))
    x, y = np.array(slices["x"]), np.array(slices["y"])
    # i runs from right to left in this image: the page shows left on the left.
    for k in np.unique(study.scores.k.values):
        at = study.scores.k.values == k
        if at.sum() > 2:
            assert np.corrcoef(x[at], -study.scores.i.values[at])[0, 1] == pytest.approx(1)
            assert np.corrcoef(y[at], -study.scores.j.values[at])[0, 1] == pytest.approx(1)
    frames = np.array(slices["frames"])
    number = np.searchsorted(np.unique(study.scores.k.values), study.scores.k.values)
    fx, fy, fw, fh = frames[number].T
    assert ((x > fx) & (x < fx + fw) & (y > fy) & (y < fy + fh)).all()
    assert [label["text"] for label in slices["labels"]][:2] == ["z = 0 mm", "z = 2 mm"]


def test_label_maps_name_the_voxels(volume):
    study, folder = volume
    kind, names = label_of_voxels(study)
    assert kind == "noun"
    image = nib.load(folder / "maps" / "noun.nii.gz")
    assert image.get_data_dtype().kind == "i"
    table = pd.read_csv(folder / "maps" / "noun.tsv", sep="\t").set_index("index")["name"]
    lookup = json.loads((folder / "maps" / "noun.json").read_text())
    values = np.asarray(image.dataobj)[tuple(study.scores[a].values for a in "ijk")]
    for voxel, value in zip(study.scores.voxel.values, values):
        assert table.get(value, "") == names.get(voxel, "")
        assert lookup[str(value)] == names.get(voxel, "no label")
    assert (np.asarray(image.dataobj) != 0).sum() == len(names)
    for name in ("r", "unsupported_share", "stability_folds"):
        assert (folder / "maps" / f"{name}.nii.gz").is_file()


def test_a_voxel_is_about_the_noun_that_most_of_its_captions_name():
    study = studies.made_up(20)
    words = pd.DataFrame({"roi": "all", "part": "noun", "word": ["dog", "house"], "count": 1, "share": 0.1})
    texts = study.captions.caption.copy()
    first = study.captions.voxel == study.captions.voxel.iloc[0]
    texts[first] = ["a house", "two dogs", "a dog by a house, a dog"]
    study = dataclasses.replace(study, captions=study.captions.assign(caption=texts), words=words, phrases=None)
    assert label_of_voxels(study)[1][study.captions.voxel.iloc[0]] in ("dog", "house")
    texts[first] = ["a house", "two dogs", "a dog"]
    study = dataclasses.replace(study, captions=study.captions.assign(caption=texts))
    assert label_of_voxels(study)[1][study.captions.voxel.iloc[0]] == "dog"
    own = pd.DataFrame({"voxel": study.captions.voxel.unique(), "category": "face"})
    assert label_of_voxels(dataclasses.replace(study, categories=own))[0] == "category"


def test_surface_gets_label_files_that_programs_read(tmp_path):
    pytest.importorskip("nilearn")
    study = studies.made_up(40, "surface")
    write_caption_report(study, tmp_path, progress=False)
    _, names = label_of_voxels(study)
    for hemi, structure in (("L", "CortexLeft"), ("R", "CortexRight")):
        mesh = nib.load(tmp_path / "maps" / f"noun_hemi-{hemi}.label.gii")
        assert mesh.meta["AnatomicalStructurePrimary"] == structure
        data = mesh.darrays[0].data
        assert data.shape == (10242,)
        assert data.dtype.kind == "i"
        table = mesh.labeltable.get_labels_as_dict()
        for vertex, side, voxel in zip(study.scores.vertex.values, study.scores.hemi.values, study.scores.voxel.values):
            if side == hemi:
                assert table[data[vertex]] == names.get(voxel, "no label")
    core = unpack(tmp_path / "assets" / meta(tmp_path)["subjects"][0]["core"])
    assert [m["kind"] for m in core["maps"]] == ["flat", "inflated"]
    assert len(set(core["maps"][0]["voxel"])) == len(core["maps"][0]["voxel"]) > 30
    assert set(core["maps"][1]["voxel"]) == set(range(40))
    left = study.scores.hemi.values[core["maps"][0]["voxel"]] == "L"
    x = np.array(core["maps"][0]["x"])
    assert x[left].max() < x[~left].min()


def test_several_subjects_have_own_pages_data_and_maps(tmp_path):
    study = studies.made_up(50, "volume", subjects=2)
    write_caption_report(study, tmp_path, progress=False)
    assert [s["name"] for s in meta(tmp_path)["subjects"]] == ["sub-0", "sub-1"]
    for name in ("sub-0", "sub-1"):
        assert (tmp_path / "subjects" / f"{name}.html").is_file()
        assert (tmp_path / "subjects" / name / "maps" / "r.nii.gz").is_file()
    assert not (tmp_path / "maps").exists()
    cores = [unpack(tmp_path / "assets" / s["core"]) for s in meta(tmp_path)["subjects"]]
    assert cores[0]["voxel"] + cores[1]["voxel"] == study.scores.voxel.values.tolist()


def test_nothing_from_data_is_markup(hostile):
    study, folder = hostile
    pages = [folder / "index.html", *(folder / "rois").iterdir(), *(folder / "subjects").glob("*.html")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script>window" not in text
        assert "<img src=x" not in text
        assert text.count("<script") == (2 if page.name == "index.html" else 1)
        assert "{{ 7*7 }}" in text
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
    assert all(re.fullmatch(r"[\w-]+\.html", p.name) for p in pages)
    assert meta(folder)["title"] == study.title == studies.EVIL
    for file in (folder / "assets").glob("*.js"):
        assert re.fullmatch(r'neuroencData\("\w{16}","[A-Za-z0-9+/=]+"\);\n', file.read_text())


def test_tables_survive_their_files(hostile):
    study, folder = hostile
    read = {"keep_default_na": False, "encoding": "utf-8"}
    assert pd.read_csv(folder / "captions.csv", **read).caption.tolist() == study.captions.caption.tolist()
    assert pd.read_csv(folder / "phrases.csv", **read).end.tolist() == study.phrases.end.tolist()
    assert len(pd.read_csv(folder / "evidence.csv", **read)) == len(study.evidence)
    records = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    assert records[0]["caption"] == study.captions.caption.iloc[0]
    pytest.importorskip("pyarrow")
    assert pd.read_parquet(folder / "captions.parquet").caption.tolist() == study.captions.caption.tolist()
    assert (folder / "methods.txt").read_text(encoding="utf-8") == study.methods()
    assert json.loads((folder / "settings.json").read_text()) == dict(study.settings)


def test_equal_inputs_give_equal_bytes_and_old_data_go(tmp_path):
    study = studies.made_up(30, "volume")
    folders = [tmp_path / "one", tmp_path / "two"]
    write_caption_report(studies.made_up(25, "volume", seed=9), folders[0], progress=False)
    (folders[0] / "assets" / "mine.js").write_text("kept")
    for folder in folders:
        write_caption_report(study, folder, progress=False)
    (folders[0] / "assets" / "mine.js").unlink()
    one, two = (
        {p.relative_to(f): p for p in sorted(f.rglob("*")) if p.is_file() and "rois" not in p.parts} for f in folders
    )
    assert one.keys() == two.keys()
    assert all(one[k].read_bytes() == two[k].read_bytes() for k in one)


def test_a_report_that_fails_leaves_the_old_page(volume, monkeypatch, tmp_path):
    study, _ = volume
    page = write_caption_report(study, tmp_path, progress=False)
    before = page.read_bytes()
    monkeypatch.setattr("neuroenc.report._page._render", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_caption_report(dataclasses.replace(study, title="new"), tmp_path, progress=False)
    assert page.read_bytes() == before


def test_images_come_from_where_the_caller_says(tmp_path):
    study = studies.made_up(12, n_stimuli=4)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = {
        "scene-0": tmp_path / "a.png",
        "scene-1": tmp_path / "broken.png",
        "scene-2": np.full((8, 8, 3), 99, np.uint8),
    }
    folder = tmp_path / "out"
    page = write_caption_report(study, folder, images=images, progress=False)
    sizes = sorted(Image.open(p).size for p in (folder / "images").iterdir())
    assert sizes == [(8, 8), (96, 64)]
    assert "1 evidence images could not be read: scene-1." in page.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="legal: a mapping"):
        write_caption_report(study, folder, images=[1], progress=False)


def test_images_past_the_budget_are_not_opened_and_every_voxel_gets_its_best_first(tmp_path, monkeypatch):
    n, k = 30, 10
    voxels = np.arange(n)
    study = CaptionStudy(
        "many",
        xr.Dataset({"r": ("voxel", np.linspace(0.9, 0.1, n))}, coords={"voxel": voxels}),
        captions=pd.DataFrame({"voxel": voxels, "rank": 1, "caption": "a dog", "score": 0.5}),
        evidence=pd.DataFrame(
            {
                "voxel": np.repeat(voxels, k),
                "rank": np.tile(np.arange(1, k + 1), n),
                "stimulus": [f"s{v}-{r}" for v in voxels for r in range(1, k + 1)],
                "predicted": 1.0,
            }
        ),
        gate=pd.DataFrame({"voxel": voxels, "captioned": True, "reason": ""}),
    )
    opened = []

    def picture(name):
        opened.append(name)
        return np.random.default_rng(len(opened)).integers(0, 255, (96, 96, 3)).astype(np.uint8)

    one = Pictures(images=picture, budget=10**6)
    size = len(one.files[one.src("s")]) * 4 // 3
    opened.clear()
    monkeypatch.setattr("neuroenc.report.explorer._sections.BUDGET", 100 * size)
    page = write_caption_report(study, tmp_path / "out", images=picture, progress=False)
    written = list((tmp_path / "out" / "images").iterdir())
    assert 80 < len(written) < 110
    assert len(opened) == len(written) + 1
    # Eight images of the eight best voxels, then one of each of the others, then a second.
    assert opened[:64] == [f"s{v}-{r}" for v in range(8) for r in range(1, 9)]
    assert opened[64:86] == [f"s{v}-1" for v in range(8, 30)]
    assert "evidence images are named but not shown" in page.read_text(encoding="utf-8")
    # Equal images are not written again.
    before = {p.name: p.stat().st_mtime_ns for p in written}
    opened.clear()
    write_caption_report(study, tmp_path / "out", images=picture, progress=False)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "images").iterdir()} == before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_kill_leaves_of_a_picture_is_removed(tmp_path):
    child = os.fork()
    if not child:
        os.replace = lambda *names: os._exit(9)
        _put(tmp_path / "out" / "images" / "a.jpg", b"whole")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list((tmp_path / "out" / "images").iterdir())
    output_folder(tmp_path / "out")
    assert not list((tmp_path / "out" / "images").iterdir())


def test_a_sample_of_stability_is_told(tmp_path):
    study = studies.made_up(12, n_stimuli=4)
    captioned = study.captions["voxel"].unique()
    some = pd.DataFrame({"voxel": captioned[:3], "folds": 0.5, "folds_null": 0.1})
    for table, told in ((some, True), (study.stability, False)):
        one = dataclasses.replace(study, stability=table)
        page = write_caption_report(one, tmp_path / str(told), progress=False).read_text(encoding="utf-8")
        words = f"3 of {len(captioned)} captioned voxels"
        assert (f"Stability measured on {words}" in page) == told
        assert (f"measured on {words} (a random sample, stratified by region)" in one.methods()) == told


def test_marks_and_positions():
    assert [s["verdict"] for s in segments("ab cd", [(0, 2, "supported"), (1, 4, "unsupported")])] == [
        "supported",
        "unsupported",
        "",
    ]
    assert utf16("𝒳a😀b", 3) == 5
    assert "".join(s["text"] for s in segments("a red dog", [(2, 5, "uncertain")])) == "a red dog"


def test_regions_say_who_was_held_back_and_why(volume):
    study, folder = volume
    held = study.gate[~study.gate.captioned]
    text = " ".join((folder / "index.html").read_text(encoding="utf-8").split())
    assert f"{len(held)} of 60 voxels were held back" in text
    assert "not predicted above chance</td>" in text
    region = (folder / "rois" / "FFA.html").read_text(encoding="utf-8")
    inside = study.scores.voxel.values[study.scores.roi.values == "FFA"]
    assert f"{int(held.voxel.isin(inside).sum())} of {len(inside)} voxels were held back" in region
    rate = voxel_table(study).frame.set_index("voxel").unsupported
    wanted = study.phrases.groupby("voxel").verdict.apply(lambda v: (v == "unsupported").mean())
    pd.testing.assert_series_equal(rate.dropna(), wanted, check_names=False)


def test_analyses_stand_on_the_pages_of_their_regions(tmp_path):
    study = studies.made_up(40)
    voxel = study.captions.voxel.iloc[0]
    study = dataclasses.replace(
        study,
        words=pd.DataFrame(
            {
                "roi": ["FFA", "none"],
                "part": ["verb", "noun"],
                "word": ["gallop", "lantern"],
                "count": 3,
                "share": 0.3,
                "lift": 2.5,
            }
        ),
        concepts=pd.DataFrame({"roi": ["FFA", "PPA"], "concept": ["people", "places"], "percent": [40.0, 50.0]}),
        clusters=pd.DataFrame({"roi": ["FFA"], "cluster": [1], "voxel": [voxel], "caption": ["a typical one"]}),
        contrasts=pd.DataFrame({"roi": ["PPA"], "phrase": ["red kitchen"], "z": [3.0]}),
        categories=pd.DataFrame({"voxel": [voxel], "category": ["vehicle"]}),
    )
    write_caption_report(study, tmp_path, progress=False)
    pages = {p.stem: p.read_text(encoding="utf-8") for p in (tmp_path / "rois").iterdir()}
    for word, there in {
        "gallop": {"FFA"},
        "people": {"FFA"},
        "a typical one": {"FFA"},
        "red kitchen": {"PPA"},
        "lantern": {"no-ROI"},
    }.items():
        assert {name for name, text in pages.items() if word in text} == there, word
    regions = [x or "no ROI" for x in str(study.scores.roi.sel(voxel=voxel).item()).split(";")]
    assert {name for name, text in pages.items() if "vehicle" in text} == {x.replace(" ", "-") for x in regions}
    assert json.loads((tmp_path / "index.html").read_text().split('id="meta">')[1].split("</script>")[0])["labels"] == [
        "vehicle"
    ]


def test_what_carries_the_ngrams_of_voxels_stands_on_cards_and_pages_beside_bm25(tmp_path):
    study = studies.made_up(40)
    best = study.captions.voxel.iloc[0]
    columns = ["voxel", "level", "rank", "id", "text", "score", "ngrams", "bm25_rank", "bm25_id", "bm25_text"]
    rows = [
        (best, "image", 1, "s7", "a gallop", 3.0, "gallop (3.00)", 2, "s8", "a <b>lantern</b>"),
        (best, "image", 2, "s8", "a <b>lantern</b>", 1.0, "lantern (1.00)", 1, "s7", "a gallop"),
        (best, "category", 1, "", "", np.nan, "", 0, "horse", "horse"),
    ]
    study = dataclasses.replace(study, retrieved=pd.DataFrame(rows, columns=columns))
    write_caption_report(study, tmp_path, progress=False)
    assert pd.read_csv(tmp_path / "retrieved.csv")["bm25_id"].tolist() == ["horse", "s8", "s7"]
    regions = [x or "no ROI" for x in str(study.scores.roi.sel(voxel=best).item()).split(";")]
    for page in (tmp_path / "rois").iterdir():
        text = page.read_text(encoding="utf-8")
        assert ("Stimuli that carry its n-grams" in text) == (page.stem in [x.replace(" ", "-") for x in regions])
        if "carry its n-grams" in text:
            for told in ("a gallop (s7)", "gallop (3.00)", ">horse<"):
                assert told in text
            assert "<b>lantern" not in text
    again = CaptionStudy.load(study.save(tmp_path / "study"))
    pd.testing.assert_frame_equal(again.retrieved, study.retrieved)
    assert "n-grams of its captions" in study.methods()


def test_a_study_without_captions_still_reports(tmp_path):
    study = studies.made_up(6)
    empty = {name: getattr(study, name).iloc[:0] for name in ("captions", "evidence")}
    study = dataclasses.replace(
        study, **empty, phrases=None, stability=None, gate=study.gate.assign(captioned=False, reason="weak")
    )
    page = write_caption_report(study, tmp_path, progress=False)
    assert "6 of 6 voxels were held back" in " ".join(page.read_text().split())
    with pytest.raises(DataError, match="a CaptionStudy is needed"):
        write_caption_report({}, tmp_path)


def test_the_figure_of_a_region_is_made_for_print(tmp_path):
    study = studies.made_up(60, "volume")
    ids = study.evidence.stimulus.unique()
    images = {s: np.full((30, 20, 3), 7 * k % 255, np.uint8) for k, s in enumerate(ids)}
    study.save(tmp_path / "study")
    only = dataclasses.replace(
        study, scores=study.scores.assign_coords(roi=("voxel", np.where(study.scores.roi == "FFA", "FFA", "")))
    )
    write_caption_report(only, tmp_path / "report", images=images, figures=True, progress=False)
    page = (tmp_path / "report" / "rois" / "FFA.html").read_text(encoding="utf-8")
    assert '<img class="printed" src="../figures/FFA.svg"' in page
    svg = (tmp_path / "report" / "figures" / "FFA.svg").read_text(encoding="utf-8")
    hostile = figure_svg(plot_region(studies.made_up(24, evil=True), "FFA", width="single"))
    assert b"<script" not in hostile
    assert b"&lt;script&gt;" in hostile
    assert re.search(r'width="518\.7\d+pt"', svg)  # 183 mm
    inside = study.scores.voxel.values[only.scores.roi.values == "FFA"]
    own = study.captions[(study.captions["rank"] == 1) & study.captions.voxel.isin(inside)]
    told = study.phrases[study.phrases.voxel.isin(own.voxel)]
    text = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    counts = {word: sum(word in caption.split() for caption in own.caption) for word in studies.NOUNS}
    assert max(counts, key=counts.get) in text
    for verdict in ("supported", "unsupported"):
        assert verdict in text
        share = (told.verdict == verdict).mean()
        assert f"{100 * share:.0f} %" in text
    assert f"d  Phrases, checked (n = {len(told)})" in [t.replace("\xa0", " ") for t in text]
    # The same from the folder of a run, for one column, with the thumbnails of its report.
    made = write_region_figure(tmp_path, "FFA", tmp_path / "ffa.svg", width="single").read_text(encoding="utf-8")
    assert re.search(r'width="252\.28\d*pt"', made)  # 89 mm
    assert made.count("<image") >= 8
    assert write_region_figure(tmp_path, "FFA", tmp_path / "ffa.pdf").read_bytes().startswith(b"%PDF-")
    with pytest.raises(ConfigError, match="FFA"):
        write_region_figure(tmp_path, "FFa", tmp_path / "x.svg")
    with pytest.raises(ConfigError, match=r"\.svg"):
        write_region_figure(tmp_path, "FFA", tmp_path / "x.tiff")


def test_hypotheses_stand_with_what_supports_them_and_what_failed(tmp_path):
    study = studies.made_up(40)
    roi = study.scores.roi.to_series().str.replace("EBA;FBA", "EBA")
    first = study.captions[study.captions["rank"] == 1].assign(roi=lambda f: roi.values[f.voxel - 100])
    first = first[first.roi != ""]
    a, b = first.iloc[0], first[first.roi != first.roi.iloc[0]].iloc[0]
    tested = pd.DataFrame({"roi": [a.roi, b.roi], "caption": [a.caption, b.caption], "n_voxels": [1, 1]})
    tested = tested.assign(rho_predicted=0.3, rho_measured=[0.31, 0.02], top_minus_rest=0.1, p=0.01, q=[0.002, 0.6])
    found = hypotheses_section(dataclasses.replace(study, quality={"hypotheses": tested})).blocks[0].table
    found = found.set_index("claim")
    assert found.loc[a.caption, "supported by"].startswith("held-out responses (ρ 0.31, q 0.002)")
    assert found.loc[b.caption, "failed"].startswith("held-out responses (ρ 0.02, q 0.600)")
    for one in (a, b):
        own = study.phrases[(study.phrases.voxel == one.voxel) & (study.phrases["rank"] == 1)]
        for phrase, verdict in zip(own.phrase, own.verdict):
            assert (f"“{phrase}”" in found.loc[one.caption, "supported by"]) == (verdict == "supported")
            assert (f"“{phrase}”" in found.loc[one.caption, "failed"]) == (verdict == "unsupported")
    # Without a test, the phrases that voxels share; without phrases, nothing.
    shared = hypotheses_section(study, "FFA").blocks[0].table.iloc[0]
    own = study.phrases[study.phrases.voxel.isin(study.scores.voxel.values[study.scores.roi.values == "FFA"])]
    own = own[own.phrase == shared.claim].drop_duplicates("voxel")
    assert shared.n_voxels == len(own) >= 2
    assert shared["supported by"].startswith(f"{(own.verdict == 'supported').sum()} of {len(own)} voxels")
    assert shared["failed"] == f"{(own.verdict == 'unsupported').sum()} of {len(own)} voxels"
    assert hypotheses_section(dataclasses.replace(study, phrases=None)) is None


def test_subjects_of_a_region_stand_side_by_side(tmp_path):
    study = studies.made_up(60, "volume", subjects=3)
    table = voxel_table(study)
    rows = np.flatnonzero(study.scores.roi.values == "PPA")
    shown = subjects_section(study, table, rows, {}).context["columns"]
    subject = study.scores.subject.values
    first = study.captions[study.captions["rank"] == 1].set_index("voxel").caption
    assert len({tuple(x["name"] for x in column["words"]) for column in shown}) == 1
    for column in shown:
        own = study.scores.voxel.values[rows[subject[rows] == column["name"]]]
        told = first[first.index.isin(own)]
        assert (column["n_voxels"], column["n_captioned"]) == (len(own), len(told))
        for word in column["words"]:
            assert word["share"] == pytest.approx(told.str.contains(rf"\b{word['name']}s?\b").mean())
            assert word["low"] <= word["share"] <= word["high"]
        assert set(column["captions"]) <= set(told.items())
    assert len(shown) >= 2
    write_caption_report(study, tmp_path, progress=False)
    page = (tmp_path / "rois" / "PPA.html").read_text(encoding="utf-8")
    assert page.count('<div class="side">') == len(shown)
    assert len(re.findall(r"<circle ", page)) == len(rows)
    alone = dataclasses.replace(study, scores=study.scores.drop_vars("subject"))
    assert subjects_section(alone, voxel_table(alone), rows, {}) is None
