"""The study of captions: what it refuses, what survives its files, what its methods paragraph says."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.captions import CaptionStudy, _study as files

_spec = importlib.util.spec_from_file_location("caption_studies", Path(__file__).parents[1] / "browser" / "studies.py")
studies = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = studies
_spec.loader.exec_module(studies)

TABLES = ("captions", "evidence", "gate", "phrases", "stability")


@pytest.fixture(scope="module")
def study():
    return studies.made_up(30, "volume", subjects=2)


@pytest.fixture(scope="module")
def hostile():
    return studies.made_up(20, "surface", evil=True)


@pytest.mark.parametrize("pyarrow", [True, False], ids=["parquet", "csv"])
def test_files_give_back_every_table(tmp_path, monkeypatch, hostile, pyarrow):
    if pyarrow:
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(files, "find_spec", lambda name: pyarrow)
    odd = hostile.captions.assign(caption_id=[None, *["NA"] * (len(hostile.captions) - 1)])
    hostile = dataclasses.replace(hostile, captions=odd)
    back = CaptionStudy.load(hostile.save(tmp_path))
    assert (tmp_path / f"captions.{'parquet' if pyarrow else 'csv'}").is_file()
    xr.testing.assert_identical(back.scores, hostile.scores)
    for name in TABLES:
        wanted = getattr(hostile, name).fillna({"caption_id": ""})
        pd.testing.assert_frame_equal(getattr(back, name), wanted, check_dtype=False)
    assert back.quality.keys() == hostile.quality.keys()
    assert (back.title, back.settings, back.caveats) == (hostile.title, hostile.settings, hostile.caveats)


def test_a_file_that_was_changed_or_lost_is_noticed(tmp_path, study):
    study.save(tmp_path)
    (file,) = tmp_path.glob("evidence.*")
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    with pytest.raises(DataError, match="is not the one written with"):
        CaptionStudy.load(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        CaptionStudy.load(tmp_path)
    with pytest.raises(DataError, match="holds no caption study"):
        CaptionStudy.load(tmp_path / "nowhere")


def test_a_record_that_was_edited_is_refused_and_a_save_is_whole(tmp_path, study):
    folder = tmp_path / "study"
    study.save(folder)
    record = folder / "study.json"
    content = record.read_text()
    for changed in (content.replace('"title": "', '"title": "x'), content[: len(content) // 2], "[]", "{}", ""):
        record.write_text(changed)
        with pytest.raises(DataError, match=r"study\.json"):
            CaptionStudy.load(folder)
    # What stands there is replaced; what is not ours is kept, by refusing.
    other = dataclasses.replace(study, title="another", settings={"seed": (1, 2), "x": float("nan")})
    back = CaptionStudy.load(other.save(folder))
    assert (back.title, back.settings) == ("another", other.settings) == ("another", {"seed": [1, 2], "x": None})
    assert [p.name for p in tmp_path.iterdir()] == ["study"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other things \(notes.txt\)"):
        study.save(folder)
    with pytest.raises(DataError, match="settings hold what no file can keep"):
        dataclasses.replace(study, settings={"x": object()})


def test_tables_take_the_order_of_the_scores(study):
    turned = study.scores.isel(voxel=slice(None, None, -1))
    again = dataclasses.replace(study, scores=turned, captions=study.captions.sample(frac=1, random_state=0))
    firsts = again.captions.drop_duplicates("voxel")
    order = [v for v in turned.voxel.values.tolist() if v in set(study.captions.voxel)]
    assert firsts.voxel.tolist() == order
    assert (firsts["rank"] == 1).all()


def _gated(study):
    voxel = study.captions.voxel.iloc[0]
    return study.gate.assign(captioned=study.gate.captioned & (study.gate.voxel != voxel), reason="weak")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"captions": s.captions.rename(columns={"caption": "captions"})}, "nearest is 'captions'"),
        (lambda s: {"captions": s.captions.assign(voxel=1)}, r"1 voxels that scores does not hold \(first: 1\)"),
        (lambda s: {"captions": s.captions.assign(caption="")}, "empty captions"),
        (lambda s: {"captions": pd.concat([s.captions, s.captions])}, "second rows"),
        (lambda s: {"gate": _gated(s)}, "1 voxels that the gate held back have captions"),
        (lambda s: {"gate": s.gate.iloc[1:]}, "29 rows"),
        (lambda s: {"gate": s.gate.assign(captioned=1)}, "legal: bool"),
        (
            lambda s: {"gate": s.gate.assign(captioned=False, reason=""), "captions": s.captions[:0], "phrases": None},
            "held back without a reason",
        ),
        (lambda s: {"phrases": s.phrases.assign(verdict="fine")}, "legal: supported"),
        (lambda s: {"phrases": s.phrases.assign(end=999)}, r"spans characters \d+\.\.999"),
        (lambda s: {"phrases": s.phrases.assign(rank=9)}, "captions that are not there"),
        (lambda s: {"scores": s.scores.drop_vars("voxel")}, "assign_coords"),
        (lambda s: {"quality": {"x": 1}}, "legal: pandas.DataFrame"),
    ],
)
def test_what_does_not_fit_together_is_refused(study, change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(study, **change(study))


def test_methods_say_what_was_set_and_nothing_else(study):
    bare = study.methods()
    assert "projected" not in bare
    assert "Stability" in bare
    assert "neuroenc" in bare
    told = dataclasses.replace(
        study,
        settings={
            "encoder": {"kind": "ridge", "cv": 5},
            "features": {"model": "ViT-B-32/openai"},
            "bank": {"n": 2_000_000, "name": "LAION-A", "hash": "ab" * 32},
            "projection": {"temperature": 1 / 150},
            "decoder": {"kind": "prefix", "beams": 5},
            "gate": {"kind": "q", "q": 0.05},
            "folds": 5,
            "seed": 0,
        },
    ).methods()
    for words in (
        "ViT-B-32/openai",
        "ridge regression (cv 5)",
        "2,000,000 natural-image embeddings (LAION-A, SHA",
        "temperature 1/150",
        "beams 5",
        "false discovery rate of 0.05",
        "5 folds",
        "seed 0",
        "Luo, Henderson",
        "Mokady",
        "Benjamini",
    ):
        assert words in told, words
    n = int(study.gate.captioned.sum())
    assert f"{n} of 30 voxels were captioned" in told


def test_voxels_with_names_instead_of_numbers(tmp_path):
    scores = xr.Dataset({"r": ("voxel", [0.4, 0.1])}, coords={"voxel": np.array(["a b", "ü/1"])})
    study = CaptionStudy(
        "names",
        scores,
        captions=pd.DataFrame({"voxel": ["ü/1"], "rank": [1], "caption": ["a dog"], "score": [0.3]}),
        evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
        gate=pd.DataFrame({"voxel": ["ü/1", "a b"], "captioned": [True, False], "reason": ["", "q = .3"]}),
    )
    assert CaptionStudy.load(study.save(tmp_path)).gate.voxel.tolist() == ["a b", "ü/1"]
