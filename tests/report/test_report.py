"""The report as a reader and as another program meets it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli, load
from neuroenc.report import Page as ReportPage, Section, write_report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Tags with attributes, and whether every tag that opens also closes in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, **vars(analysis))
    return folder


@pytest.fixture(scope="module")
def alone(analysis, tmp_path_factory):
    """The report of one hemisphere without captions, which is one file."""
    folder = tmp_path_factory.mktemp("alone")
    kept = {k: v for k, v in vars(analysis).items() if k not in ("captions", "evidence", "stimuli")}
    write_report(folder, **{**kept, "scores": analysis.scores.isel(voxel=analysis.scores.hemi.values == "L")})
    return folder


@pytest.fixture(scope="module")
def plain():
    """Three voxels with r alone."""
    return xr.Dataset({"r": ("voxel", np.array([0.1, 0.3, 0.6]))}, coords={"voxel": [4, 7, 9]})


def read(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_page_stands_alone_and_is_well_formed(alone):
    text = read(alone)
    page = Page(text)
    assert page.open == []
    assert len(page.all("script")) == 1
    assert "src" not in page.all("script")[0]
    assert page.all("link") == []
    images = [a["src"] for a in page.all("img")]
    assert len(images) in range(1 + 4, 1 + 3 * 2 + 1)
    assert all(src.startswith("data:image/") for src in images)
    assert all(a["href"].startswith("#") for a in page.all("a"))
    targets = {a.get("id") for _, a in page.tags}
    assert {a["href"][1:] for a in page.all("a")} <= targets
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"]+", "", text))
    assert all(a.get("alt") for a in page.all("img"))
    assert (alone / "index.html").stat().st_size < 6e6


def test_page_says_what_was_found(written, analysis):
    text = " ".join(Page(read(written)).words)
    flat = " ".join(text.split())
    assert "300 voxels" in flat.replace("voxels 300", "300 voxels")
    assert f"{float(np.median(analysis.scores.r)):.2f}" in flat
    n_captioned = analysis.captions.voxel.nunique()
    assert f"{300 - n_captioned} of 300 voxels were held back" in flat
    assert "weights shuffled over voxels" in flat
    assert "ridge.alphas" in flat
    assert "91 %" in flat
    for roi in ("V1", "FFA", "VWFA"):
        assert f"{roi} " in flat
    assert analysis.notes[0] in flat


def test_best_voxel_comes_first_with_its_own_captions_and_images(written, analysis):
    text = (written / "rois" / "FFA.html").read_text(encoding="utf-8")
    card = text[text.index('id="best"') :]
    scores = analysis.scores
    ffa = scores.voxel.values[[("FFA" in x.split(";")) for x in scores.roi.values]]
    known = scores.sel(voxel=[v for v in ffa if v in set(analysis.captions.voxel)])
    best = int(known.voxel.values[np.argmax(known.r.values)])
    assert re.findall(r"Voxel (\d+)", card)[0] == str(best)
    first = analysis.captions[analysis.captions.voxel == best].caption.tolist()
    assert re.findall(r'class="text">([^<]+)<', card)[:3] == first
    shown = re.findall(r'title="(scene-\d+)', card)[:6]
    assert shown == analysis.evidence[analysis.evidence.voxel == best].stimulus.tolist()


def test_everything_from_data_is_escaped(analysis, tmp_path):
    scores = analysis.scores.isel(voxel=slice(0, 40)).drop_vars(["vertex", "hemi"])
    scores = scores.assign_coords(roi=("voxel", np.array([EVIL.replace(";", "")] * 20 + ["V1"] * 20)))
    scores["r"].attrs["metric"] = EVIL
    captions = analysis.captions[analysis.captions.voxel.isin(scores.voxel.values)].assign(caption=EVIL)
    evidence = pd.DataFrame({"voxel": captions.voxel.iloc[0], "rank": [0, 1], "stimulus": [EVIL, "lost"]})
    stimuli = Stimuli([EVIL], analysis.stimuli.images[:1])
    frame = pd.DataFrame({EVIL: [EVIL], "n": [1]})
    page = write_report(
        tmp_path,
        title=EVIL,
        subject=EVIL,
        scores=scores,
        captions=captions,
        evidence=evidence,
        stimuli=stimuli,
        roi_table=frame,
        controls=frame,
        summary={EVIL: EVIL},
        settings={EVIL: {EVIL: EVIL}},
        notes=[EVIL],
        provenance=json.dumps({"versions": {EVIL: EVIL}, "x": EVIL}),
        progress=False,
    )
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.open == []
    assert len(parsed.all("script")) == 2
    assert not any("onerror" in a for _, a in parsed.tags)
    assert all(re.match(r"data:|images/[0-9a-f]{16}\.jpg$", a["src"]) for a in parsed.all("img"))
    assert sum(EVIL in w for w in parsed.words) > 10
    assert not any("alert(1)</script>" in w and "49" in w for w in parsed.words)
    for svg in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page.read_text()):
        assert b"<script>" not in base64.b64decode(svg)


@pytest.mark.slow
def test_equal_input_gives_equal_bytes(analysis, tmp_path):
    few = vars(analysis) | {"scores": analysis.scores.isel(voxel=slice(0, None, 5)), "maps": ["roi"]}
    for table in ("captions", "evidence"):
        few[table] = few[table][few[table].voxel.isin(few["scores"].voxel.values)]
    for name in ("one", "two"):
        write_report(tmp_path / name, **few)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) > 4 + 12
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_captions_and_scores_survive_their_files(written, analysis):
    table = pd.read_csv(written / "captions.csv")
    told = analysis.captions.assign(rank=analysis.captions["rank"] + 1)  # ranks are counted from 1
    pd.testing.assert_frame_equal(table, told, check_dtype=False)
    records = json.loads((written / "captions.json").read_text())
    assert records[0] == told.iloc[0].to_dict()
    xr.testing.assert_identical(load(written / "scores.nc"), analysis.scores)


def test_gifti_maps_hold_each_score_at_its_vertex(written, analysis):
    scores = analysis.scores
    left = scores.hemi.values == "L"
    data = nib.load(written / "maps" / "r_hemi-L.func.gii").darrays[0].data
    assert data.shape == (10242,)
    np.testing.assert_array_equal(data[scores.vertex.values[left]], scores.r.values[left])
    assert np.isnan(data).sum() == 10242 - left.sum()
    names = {p.name.split("_hemi")[0] for p in (written / "maps").glob("*.func.gii")}
    assert names == {"r", "noise_ceiling_r", "r_normalised", "p_value", "q_value", "alpha"}


def volume_scores(n=60, seed=0):
    rng = np.random.default_rng(seed)
    place = rng.permutation(8 * 9 * 3)[:n]
    i, j, k = np.unravel_index(place, (8, 9, 3))
    affine = np.array([[-3, 0, 0, 10], [0, 3, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1.0]])
    return xr.Dataset(
        {"r": ("voxel", rng.random(n).astype("float32")), "p_value": ("voxel", rng.random(n))},
        coords={"voxel": np.arange(n), "i": ("voxel", i), "j": ("voxel", j), "k": ("voxel", k)},
        attrs={"affine": affine.ravel().tolist(), "volume_shape": [8, 9, 3], "space": "T1w"},
    )


def test_volume_gets_a_mosaic_and_nifti_maps(tmp_path):
    scores = volume_scores()
    page = write_report(tmp_path, title="volume", scores=scores, maps=["r", "p_value"], progress=False)
    image = nib.load(tmp_path / "maps" / "r.nii.gz")
    np.testing.assert_array_equal(image.affine.ravel(), scores.attrs["affine"])
    data = np.asarray(image.dataobj)
    np.testing.assert_array_equal(data[scores.i.values, scores.j.values, scores.k.values], scores.r.values)
    assert np.isnan(data).sum() == 8 * 9 * 3 - 60
    assert [a["alt"][:3] for a in Page(page.read_text()).all("img") if "image/png" in a["src"][:20]] == ["Pre", "−lo"]


def test_least_that_a_report_needs(plain, tmp_path):
    page = Page(write_report(tmp_path, title="plain", scores=plain, progress=False).read_text())
    text = " ".join(" ".join(page.words).split())
    assert "No noise ceiling was given" in text
    assert "Captions" not in text
    assert "voxels were held back" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "scores.nc"]
    # A page of other results in this folder takes the files of this one with it, and leaves what is not ours.
    (tmp_path / "notes.csv").write_text("mine")
    ReportPage("decoding").add(Section("decoding", "Decoding", files=["decoding.csv"])).write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "notes.csv"]


def test_voxels_without_score_or_caption_are_counted(plain, tmp_path):
    scores = plain.assign(r=("voxel", [np.nan, 0.3, 0.6]))
    captions = pd.DataFrame({"voxel": [9, 7], "rank": [0, 0], "caption": ["a dog", ""], "score": [0.1, np.nan]})
    page = Page(write_report(tmp_path, title="x", scores=scores, captions=captions, progress=False).read_text())
    text = " ".join(" ".join(page.words).split())
    assert "1 of 3 voxels have no score" in text
    assert "2 of 3 voxels were held back" in text
    records = json.loads((tmp_path / "captions.json").read_text())
    assert [(r["voxel"], r["score"]) for r in records] == [(9, 0.1)]


@pytest.mark.parametrize(("r", "placed"), [([np.nan] * 3, True), ([0.0] * 3, False), ([-0.2, -0.1, -0.3], False)])
def test_scores_without_signal_still_report(plain, tmp_path, r, placed):
    scores = plain.assign(r=("voxel", r), noise_ceiling_r=("voxel", [0.0, np.nan, 0.0]))
    if placed:
        scores = scores.assign_coords(vertex=("voxel", [1, 2, 3]), hemi=("voxel", ["L", "L", "R"]))
    captions = pd.DataFrame(columns=["voxel", "rank", "caption", "score"])
    page = write_report(tmp_path, title="none", scores=scores, captions=captions, progress=False)
    assert "3 of 3 voxels were held back" in " ".join(page.read_text().split())


def test_lost_images_do_not_cost_the_report(plain, tmp_path):
    stimuli = Stimuli(["a"], [tmp_path / "gone.png"])
    captions = pd.DataFrame({"voxel": [9], "rank": [0], "caption": ["a dog"], "evidence": ["a;unknown"]})
    page = write_report(tmp_path / "out", title="x", scores=plain, captions=captions, stimuli=stimuli, progress=False)
    assert "1 evidence images could not be read: a." in " ".join(page.read_text().split())
    assert '<span class="id">unknown</span>' in page.read_text()


def test_several_subjects_share_vertices_so_no_map_pretends_otherwise(plain, tmp_path):
    scores = plain.assign_coords(vertex=("voxel", [1, 1, 3]), hemi=("voxel", ["L", "L", "R"]))
    page = write_report(tmp_path, title="two", scores=scores, progress=False)
    assert "1 voxels share their hemi and vertex" in page.read_text()
    assert not (tmp_path / "maps").exists()


def test_dense_fsaverage_is_drawn_on_fsaverage5_and_said(plain, tmp_path):
    scores = plain.assign_coords(vertex=("voxel", [5, 20000, 3]), hemi=("voxel", ["L", "L", "R"]))
    scores.attrs["space"] = "fsaverage6"
    page = write_report(tmp_path, title="dense", scores=scores, progress=False)
    assert "2 of 3 vertices of fsaverage6" in page.read_text()
    assert nib.load(tmp_path / "maps" / "r_hemi-L.func.gii").darrays[0].data.shape == (40962,)
    scores.attrs["space"] = "fsnative"
    page = write_report(tmp_path / "native", title="native", scores=scores, progress=False)
    assert "for which no mesh is at hand" in page.read_text()


def test_bad_input_is_named(plain, tmp_path):
    with pytest.raises(DataError, match=r"'r' over .* found: q"):
        write_report(tmp_path, title="x", scores=plain.rename(r="q"))
    with pytest.raises(ConfigError, match="unknown map 'r_normalized'"):
        write_report(tmp_path, title="x", scores=plain.assign(r_normalised=plain.r), maps=["r_normalized"])
    with pytest.raises(DataError, match=r"no column 'caption'; nearest is 'captions'"):
        write_report(tmp_path, title="x", scores=plain, captions=pd.DataFrame({"voxel": [4], "captions": ["a"]}))
    with pytest.raises(DataError, match=r"1 voxels that scores does not hold \(first: 5\)"):
        write_report(tmp_path, title="x", scores=plain, captions=pd.DataFrame({"voxel": [5], "caption": ["a"]}))
    with pytest.raises(DataError, match="3 voxels but only 2 distinct"):
        write_report(tmp_path, title="x", scores=plain.assign_coords(voxel=[1, 1, 2]))
    with pytest.raises(DataError, match="0 voxels"):
        write_report(tmp_path, title="x", scores=plain.isel(voxel=[]))
    assert list(tmp_path.iterdir()) == []


def test_import_loads_no_plotting_library_and_nilearn_is_optional(tmp_path):
    code = f"""
import sys
sys.modules["nilearn"] = None
import xarray as xr
from neuroenc.report import Page as ReportPage
from neuroenc.report import Section, write_report
assert not [m for m in sys.modules if m.split(".")[0] in ("matplotlib", "torch", "nibabel")]
coords = {{"vertex": ("voxel", [1, 2]), "hemi": ("voxel", ["L", "R"])}}
scores = xr.Dataset({{"r": ("voxel", [0.2, 0.4])}}, coords=coords)
page = write_report({str(tmp_path)!r}, title="x", scores=scores, progress=False)
assert "nilearn is not installed" in page.read_text()
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
