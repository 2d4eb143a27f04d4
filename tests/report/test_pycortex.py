"""Files for pycortex, read back as pycortex reads its own: views of eight JSON texts, arrays named by content."""

from __future__ import annotations

import hashlib
import json

import h5py
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.data import save
from neuroenc.report import export_pycortex


def _views(path):
    """What pycortex makes of each view: class, array, subject, transform, colour map and limits."""
    found = {}
    with h5py.File(path, "r") as held:
        for name, node in held["views"].items():
            texts = [x.decode() for x in node[:]]
            assert node.shape == (8,)
            (key,) = json.loads(texts[0])
            array = held["data"][key]
            assert key == "__" + hashlib.sha1(array[:].tobytes()).hexdigest()[:16]
            transform = json.loads(texts[7])
            found[name] = {
                "kind": "Vertex" if transform is None else "Volume",
                "array": array[:],
                "subject": array.attrs["subject"],
                "transform": transform and transform[0],
                "cmap": json.loads(texts[2])[0],
                "limits": (json.loads(texts[3])[0], json.loads(texts[4])[0]),
                "attrs": json.loads(texts[6]),
            }
            assert json.loads(texts[5]) is None
    return found


@pytest.fixture
def scores():
    where = {"vertex": [3, 9, 3], "hemi": ["L", "L", "R"], "i": [0, 1, 1], "j": [0, 0, 2], "k": [0, 1, 3]}
    r, other = [0.5, np.nan, 0.2], [-1.0, 2.0, 0.0]
    return xr.Dataset(
        {"r": ("voxel", r, {"long_name": "accuracy"}), "alpha": ("voxel", other)},
        {name: ("voxel", values) for name, values in where.items()},
        {"space": "fsaverage5", "affine": np.eye(4).ravel().tolist(), "volume_shape": [2, 3, 4]},
    )


def test_vertices_of_both_hemispheres(scores, tmp_path):
    found = _views(export_pycortex(scores, tmp_path / "maps.hdf", subject="fsaverage5"))
    assert list(found) == ["alpha", "r"]
    r = found["r"]
    assert (r["kind"], r["subject"], r["array"].shape, r["array"].dtype) == ("Vertex", "fsaverage5", (20484,), "f4")
    assert np.flatnonzero(np.isfinite(r["array"])).tolist() == [3, 10242 + 3]
    np.testing.assert_allclose(r["array"][[3, 10245]], [0.5, 0.2])
    assert r["limits"] == pytest.approx((0.0, 0.5))
    assert found["alpha"]["limits"] == (-1.0, 2.0)
    assert found["r"]["attrs"] == {"priority": 1}
    more = export_pycortex(scores["r"], tmp_path / "own.h5", subject="S1", n_vertices=(12, 20))
    assert np.flatnonzero(np.isfinite(_views(more)["r"]["array"])).tolist() == [3, 12 + 3]


def test_volumes_have_the_axes_of_pycortex(scores, tmp_path):
    found = _views(export_pycortex(scores, tmp_path / "maps.hdf", subject="S1", transform="full", names=["alpha"]))
    assert list(found) == ["alpha"]
    assert (found["alpha"]["kind"], found["alpha"]["transform"]) == ("Volume", "full")
    assert found["alpha"]["array"].shape == (4, 3, 2)  # z, y, x
    assert found["alpha"]["array"][3, 2, 1] == 0
    assert found["alpha"]["array"][1, 0, 1] == 2


def test_what_cannot_be_placed_is_refused(scores, tmp_path):
    file = tmp_path / "maps.hdf"
    with pytest.raises(DataError, match=r"ends in '\.npz'"):
        export_pycortex(scores, tmp_path / "maps.npz", subject="S1")
    with pytest.raises(DataError, match=r"vertices 3\.\.9 of hemisphere L do not fit its 5"):
        export_pycortex(scores, file, subject="S1", n_vertices=5)
    with pytest.raises(ConfigError, match="have no known number"):
        export_pycortex(scores.assign_attrs(space="sub-01"), file, subject="S1")
    with pytest.raises(ConfigError, match="unknown score 'rr'"):
        export_pycortex(scores, file, subject="S1", names=["rr"])
    flat = scores.drop_vars(["vertex", "hemi"])
    with pytest.raises(ConfigError, match="need the transform"):
        export_pycortex(flat, file, subject="S1")
    with pytest.raises(DataError, match="the volume is"):
        export_pycortex(flat.assign_attrs(volume_shape=[2, 2, 4]), file, subject="S1", transform="full")
    with pytest.raises(DataError, match="no i, j, k"):
        export_pycortex(scores.drop_vars("i"), file, subject="S1", transform="full")
    assert list(tmp_path.iterdir()) == []
    export_pycortex(scores, file, subject="fsaverage5")
    with pytest.raises(DataError, match="exists"):
        export_pycortex(scores, file, subject="fsaverage5")


def test_the_command_writes_a_data_set(scores, tmp_path):
    run, out = save(scores, tmp_path / "scores.nc"), tmp_path / "maps.hdf"
    arguments = ["export", str(run), "--pycortex", str(out), "--map", "r"]
    assert "--subject" in CliRunner().invoke(app, arguments).stderr
    told = CliRunner().invoke(app, [*arguments, "--subject", "S1", "--vertices", "30", "40"])
    assert told.exit_code == 0, told.output
    assert _views(out)["r"]["array"].shape == (70,)
    again = CliRunner().invoke(app, ["export", str(run), "--bids", str(tmp_path / "b"), "--transform", "full"])
    assert "are of pycortex" in again.stderr
