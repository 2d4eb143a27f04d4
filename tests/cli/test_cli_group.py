"""``neuroenc group``: runs of eight subjects on fsaverage5, with a region that six of them have."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.spatial import ConvexHull
from typer.testing import CliRunner

from neuroenc import data
from neuroenc.cli._main import app
from neuroenc.report.sections import _group


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Scores of occipital vertices; V1 is predicted in all subjects, FFA in the first six."""
    root = tmp_path_factory.mktemp("group")
    mesh = data.load_mesh()
    at = [(h, v) for h, (places, _) in mesh.items() for v in np.flatnonzero(places[:, 1] < -90)]
    hemi, vertex = (np.array(x) for x in zip(*at))
    xyz = np.stack([mesh[h][0][v] for h, v in at])
    folders = []
    for subject in range(8):
        rng = np.random.default_rng(subject)
        roi = np.where(xyz[:, 2] > 15, "V1", np.where(xyz[:, 2] < -15, "FFA", ""))
        effect = np.where(roi == "V1", 0.5, np.where((roi == "FFA") & (subject < 6), 0.5, 0.0))
        r = effect + 0.1 * rng.standard_normal(len(at))
        coords = {"vertex": ("voxel", vertex), "hemi": ("voxel", hemi), "roi": ("voxel", roi)}
        coords |= {"subject": f"sub-{subject + 1}"}
        scores = xr.Dataset(
            {"r": ("voxel", r), "p_value": ("voxel", np.where(r > 0.165, 0.01, 0.5))}, coords, {"space": "fsaverage5"}
        )
        # Each subject lacks a vertex of its own, and lists them in an order of its own.
        scores = scores.isel(voxel=np.delete(rng.permutation(len(at)), 0))
        folders.append(root / f"run{subject}")
        folders[-1].mkdir()
        data.save(scores, folders[-1] / "scores.nc")
    return folders


def test_runs_become_maps_of_a_group(runs, tmp_path, monkeypatch):
    # What is drawn is the canvas's own matter, and takes seconds.
    drawn = []
    monkeypatch.setattr(_group.Canvas, "draw", lambda canvas, values, label, **_: drawn.append(label) or [])
    options = ["--against", "thickness", "--permutations", "60", "--min-subjects", "7"]
    result = CliRunner().invoke(app, ["group", *map(str, runs), "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert "8 subjects on fsaverage5" in result.output
    assert "with thickness: r = " in result.output
    maps = data.load(tmp_path / "scores.nc")
    v1, ffa = (maps["roi"].values == name for name in ("V1", "FFA"))
    assert (maps["overlap"].values[v1] >= 6).all()
    assert maps["prevalence"].values[v1].mean() > 0.9
    assert abs(maps["prevalence"].values[ffa].mean() - 0.75) < 0.08
    assert (maps["p_tfce"].values[v1] <= 0.05).all()
    assert (maps["p_tfce"].values[maps["roi"].values == ""] <= 0.05).mean() < 0.5
    regions = pd.read_csv(tmp_path / "regions.csv").set_index("roi")
    assert regions.loc["V1", "low"] > 0.45
    assert regions.loc["FFA", "mean"] == pytest.approx(0.375, abs=0.03)
    assert regions.loc["FFA", "sub-8"] == pytest.approx(0, abs=0.03)
    assert abs(regions.loc["FFA", "prevalence"] - 0.75) < 0.08
    assert pd.read_csv(tmp_path / "comparison.csv")["null"].tolist() == ["spin", "permutation"]
    assert (tmp_path / "maps" / "prevalence_hemi-L.func.gii").is_file()
    page = (tmp_path / "index.html").read_text()
    assert drawn[0] == "Mean r over subjects"
    assert "Prevalence, lower limit" in drawn
    assert "Beside another map" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop_vars(["vertex", "hemi"]), "nsd_to_surface"),
        (lambda s: s.assign_attrs(space="fsLR"), "vertices of different meshes"),
        (lambda s: s.assign_coords(subject="sub-1"), "second run of subject sub-1"),
    ],
)
def test_what_cannot_be_a_group_is_refused(runs, tmp_path, change, message):
    data.save(change(data.load(runs[1] / "scores.nc")), tmp_path / "scores.nc")
    result = CliRunner().invoke(app, ["group", str(runs[0]), str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_maps_to_compare_with_are_named(runs, tmp_path):
    result = CliRunner().invoke(app, ["group", *map(str, runs[:2]), "--against", "thicknes", "--out", str(tmp_path)])
    assert "did you mean 'thickness'" in " ".join(result.stderr.split())


def test_finer_meshes_keep_their_first_vertices():
    def one(space, vertex):
        coords = {"vertex": ("voxel", vertex), "hemi": ("voxel", ["R"] * len(vertex))}
        return xr.Dataset({"r": ("voxel", np.array(vertex, float))}, coords, {"space": space})

    stacked = data.stack_subjects({"a": one("fsaverage", [20000, 5]), "b": one("fsaverage5", [5, 7])})
    assert (stacked.attrs["space"], stacked["vertex"].values.tolist()) == ("fsaverage5", [5, 7])
    np.testing.assert_array_equal(stacked["r"], [[5, np.nan], [5, 7]])
    kept = data.stack_subjects({"a": one("fsLR", [20000]), "b": one("fsLR", [20000])})
    assert kept.sizes["voxel"] == 1


def test_another_mesh_by_its_spheres(tmp_path, monkeypatch):
    monkeypatch.setattr(_group.Canvas, "draw", lambda *_, **__: [])
    places = data.load_mesh()["L"][0][:162]
    faces = ConvexHull(places).simplices
    for hemi in "LR":
        arrays = [
            nib.gifti.GiftiDataArray(places.astype(np.float32), intent="NIFTI_INTENT_POINTSET"),
            nib.gifti.GiftiDataArray(faces.astype(np.int32), intent="NIFTI_INTENT_TRIANGLE"),
        ]
        nib.save(nib.gifti.GiftiImage(darrays=arrays), tmp_path / f"{hemi}.surf.gii")
    coords = {"vertex": ("voxel", np.tile(np.arange(162), 2)), "hemi": ("voxel", np.repeat(["L", "R"], 162))}
    folders = []
    for subject in range(6):
        rng = np.random.default_rng(subject)
        values = {"r": ("voxel", 0.2 + 0.1 * rng.standard_normal(324)), "r2": ("voxel", rng.standard_normal(324))}
        folders.append(tmp_path / f"sub-{subject}" / "scores.nc")
        folders[-1].parent.mkdir()
        data.save(xr.Dataset(values, coords, {"space": "icosahedron"}), folders[-1])
    spheres = ["--sphere", str(tmp_path / "L.surf.gii"), "--sphere", str(tmp_path / "R.surf.gii")]
    arguments = ["group", *map(str, folders), "--out", str(tmp_path / "out"), "--permutations", "63", "--against", "r2"]
    without = CliRunner().invoke(app, arguments)
    assert "sphere of icosahedron" in without.stderr
    result = CliRunner().invoke(app, [*arguments, *spheres])
    assert result.exit_code == 0, result.output
    assert "324 vertices tested" in result.output
    assert (data.load(tmp_path / "out" / "scores.nc")["p_tfce"].values <= 0.05).mean() > 0.95
    assert "with r2: r = " in result.output
    short = CliRunner().invoke(app, [*arguments, *spheres[:2]])
    assert "legal are two" in short.stderr
