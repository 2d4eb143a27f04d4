"""``neuroenc contrast``: two saved studies, or two regions of one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from neuroenc.captions import CaptionStudy
from neuroenc.cli._main import app


def saved(folder, seed, share, n_subjects=3):
    rng, n = np.random.default_rng(seed), 20 * n_subjects
    roi = np.where(np.arange(n) % 2, "FFA", "PPA")
    dogs = rng.random(n) < np.where(roi == "FFA", share, 0.1)
    coords = {"voxel": np.arange(n), "roi": ("voxel", roi)}
    coords["subject"] = ("voxel", np.repeat([f"sub-{k}" for k in range(n_subjects)], 20))
    said = {"voxel": np.arange(n), "rank": 1, "caption": np.where(dogs, "a dog", "a house on a hill"), "score": 0.0}
    return CaptionStudy(
        f"study {seed}",
        xr.Dataset({"r": ("voxel", rng.random(n))}, coords=coords),
        captions=pd.DataFrame(said),
        evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
        gate=pd.DataFrame({"voxel": np.arange(n), "captioned": True, "reason": ""}),
        settings={"decoder": {"seed": seed}},
    ).save(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return saved(root / "here" / "study", 0, 0.9).parent, saved(root / "there", 1, 0.1)


def test_two_studies_are_contrasted_over_subjects(runs, tmp_path):
    result = CliRunner().invoke(app, ["contrast", *map(str, runs), "--out", str(tmp_path), "--roi", "FFA"])
    assert result.exit_code == 0, result.output
    assert "here FFA (3 subjects) against there FFA (3 subjects)" in result.output
    table = pd.read_csv(tmp_path / "phrases.csv").set_index("term")
    assert table.loc["dog", "low"] > 0 > table.loc["house", "high"]
    assert (table["unit"] == "subject").all()
    assert pd.read_csv(tmp_path / "concepts.csv").set_index("term").loc["animal", "difference"] > 0.5
    page = (tmp_path / "index.html").read_text()
    assert "how captions were made (decoder)" in page
    assert "Separating phrases" in page


def test_regions_of_one_study_are_contrasted_within_subjects(runs, tmp_path):
    arguments = ["contrast", str(runs[0]), str(runs[0]), "--roi", "FFA", "--out", str(tmp_path)]
    same = CliRunner().invoke(app, arguments)
    assert (same.exit_code, "both sides are the same" in same.stderr) == (2, True)
    unknown = CliRunner().invoke(app, [*arguments, "--roi-b", "PPAs"])
    assert "did you mean 'PPA'" in unknown.stderr
    assert CliRunner().invoke(app, [*arguments, "--roi-b", "PPA"]).exit_code == 0
    table = pd.read_csv(tmp_path / "phrases.csv").set_index("term")
    assert table.loc["dog", ["n_FFA", "n_PPA"]].tolist() == [3, 3]
    assert table.loc["dog", "share_FFA"] > table.loc["dog", "share_PPA"]
