"""``neuroenc export``: finds scores where the commands leave them, writes a BIDS derivative."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from neuroenc.cli._main import app
from neuroenc.data import save


@pytest.fixture
def scores():
    return xr.Dataset(
        {"r": ("voxel", np.array([0.1, 0.5, 0.3])), "q_value": ("voxel", np.array([0.2, 0.01, 0.03]))},
        coords={
            "voxel": [5, 6, 9],
            "i": ("voxel", [0, 1, 1]),
            "j": ("voxel", [0, 0, 2]),
            "k": ("voxel", [0, 1, 1]),
            "subject": ("voxel", ["sub001"] * 3),
        },
        attrs={"affine": np.diag([2.0, 2, 2, 1]).ravel().tolist(), "volume_shape": [2, 3, 2], "space": "T1w"},
    )


@pytest.mark.parametrize("place", ["study", "report", "."])
def test_export_finds_the_scores_of_each_command(scores, tmp_path, place):
    (tmp_path / "run" / place).mkdir(parents=True, exist_ok=True)
    save(scores, tmp_path / "run" / place / "scores.nc")
    out = tmp_path / "derivative"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--bids", str(out), "--task", "viewing"])
    assert result.exit_code == 0, result.output
    assert "2 maps of sub-001" in result.output
    stem = "sub-001/func/sub-001_task-viewing_space-T1w_stat-qValue_statmap"
    assert (out / f"{stem}.nii.gz").is_file()
    side = json.loads((out / f"{stem}.json").read_text())
    assert side["Sources"] == [f"run/{place}/scores.nc" if place != "." else "run/scores.nc"]
    assert len(side["Provenance"]["scores"]["sha256"]) == 64


def test_export_writes_what_is_asked_and_refuses_the_rest(scores, tmp_path):
    file = save(scores, tmp_path / "scores.nc")
    out = tmp_path / "bids"
    runner = CliRunner()
    arguments = ["export", str(file), "--bids", str(out), "--map", "r", "--subject", "sub-07", "--session", "b"]
    assert runner.invoke(app, arguments).exit_code == 0
    images = [p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz")]
    assert images == ["sub-07/ses-b/func/sub-07_ses-b_space-T1w_stat-r_statmap.nii.gz"]
    again = runner.invoke(app, arguments)
    assert again.exit_code == 2
    assert "overwrite" in again.stderr
    assert runner.invoke(app, [*arguments, "--overwrite"]).exit_code == 0
    assert runner.invoke(app, ["export", str(file)]).exit_code == 2
    unknown = runner.invoke(app, ["export", str(file), "--bids", str(out), "--map", "q_valu"])
    assert "did you mean 'q_value'" in unknown.stderr


def test_export_names_runs_within(scores, tmp_path):
    (tmp_path / "all" / "one" / "report").mkdir(parents=True)
    save(scores, tmp_path / "all" / "one" / "report" / "scores.nc")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "all"), "--bids", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "one/report" in result.stderr
