"""The page of a study: a tab for each part that it has, files written once, addresses that are unique."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc.data import load
from neuroenc.report import Block, Page, Section, study_page

_spec = importlib.util.spec_from_file_location("study_studies", Path(__file__).parents[1] / "browser" / "studies.py")
studies = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = studies
_spec.loader.exec_module(studies)

CURVE = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 50], "explained_variance": [0.1, 0.2]})


@pytest.fixture(scope="module")
def parts():
    study = dataclasses.replace(studies.made_up(20, "volume", n_stimuli=6), caveats=("made up",))
    r = np.stack([study.scores.r.values, study.scores.r.values + 0.1])
    cells = xr.Dataset({"r": (("cell", "voxel"), r)}, coords={"cell": ["a/linear", "a/semantic"]})
    rows = {"cell": ["a/linear", "a/semantic"], "kind": "all", "group": "all", "n_voxels": 20, "median_r": [0.4, 0.5]}
    table = pd.DataFrame({**rows, "low": 0.3, "high": 0.6, "features": "a", "core": "", "n_parameters": [9, 90]})
    compared = {"scores": cells, "table": table.assign(readout=["linear", "semantic"])}
    return {"accuracy": study.scores, "comparison": compared, "captions": study, "support": CURVE}


def ids(text):
    return re.findall(r' id="([^"]+)"', text)


def test_every_part_has_a_tab_and_files_are_written_once(parts, tmp_path):
    page = study_page("all", **parts, settings={"seed": 0}, notes=["a note"])
    assert list(page.tabs) == ["Accuracy", "Comparison", "Captions", "Few trials"]
    text = page.write(tmp_path).read_text(encoding="utf-8")
    assert len(ids(text)) == len(set(ids(text)))
    links = re.findall(r'href="#([^"]+)"', text)
    assert set(links) <= set(ids(text))
    assert {"accuracy", "comparison", "captions", "few-trials", "notes", "origin"} <= set(links)
    notes = text[text.index('<section id="notes">') :]
    assert notes.index("a note") < notes.index("made up")
    xr.testing.assert_identical(load(tmp_path / "scores.nc"), parts["accuracy"])
    names = {p.name for p in (tmp_path / "maps").iterdir()}
    assert {"r.nii.gz", "noun.nii.gz", "stability_folds.nii.gz"} <= names
    again = study_page("all", **parts, settings={"seed": 0}, notes=["a note"]).write(tmp_path / "again")
    assert again.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["accuracy", "comparison", "captions", "support"])
def test_one_part_has_no_tabs(parts, name):
    text = study_page("one", **{name: parts[name]}).html()
    assert 'class="tab"' not in text
    assert 'class="tabs"' not in text


def test_sections_of_the_reader_join_the_page(parts):
    page = study_page("one", support=CURVE).add(
        Section("mine", "Mine", "First.\n\nSecond <b>.", [Block(table=pd.DataFrame({"a": [1]}))]), tab="Few trials"
    )
    text = page.html()
    assert "<p>Second &lt;b&gt;.</p>" in text
    assert '<a href="#mine">Mine</a>' in text
    with pytest.raises(ConfigError, match="needs a part"):
        study_page("none")
    with pytest.raises(ConfigError, match="found a dict"):
        Page("x").add({"id": "x"})


def test_words_that_need_a_meaning_have_one(parts):
    text = " ".join(study_page("all", **parts).html().split())
    for word in ("cell", "noise ceiling", "score", "support"):
        assert f"<dt>{word}</dt>" in text


def test_regions_begin_with_a_summary_of_verbatim_captions(tmp_path):
    study = studies.made_up(40)
    study_page("one", captions=study).write(tmp_path)
    pages = {p.stem: p.read_text(encoding="utf-8") for p in (tmp_path / "rois").iterdir()}
    known = set(study.captions.caption)
    for name, text in pages.items():
        if "In short" not in text:
            continue
        assert re.findall(r'<section id="(\w+)"', text)[0] == "structure"
        part = text[text.index('id="structure"') : text.index("</section>", text.index('id="structure"'))]
        lines = [x.strip() for x in re.findall(r'<li>(.*?)<span class="muted">', part)]
        assert lines, name
        assert set(lines) <= known
        linked = re.findall(r"#voxel=(\d+)", part)
        told = study.captions[study.captions["rank"] == 1].set_index("voxel").caption
        assert set(told.loc[[int(v) for v in linked]]) <= set(lines)
    assert sum("In short" in text for text in pages.values()) >= 3
