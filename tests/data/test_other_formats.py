"""CIFTI, and nilearn's surface images and maskers: what is written comes back, by label."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nibabel.cifti2 import BrainModelAxis, Cifti2Header, Cifti2Image, LabelAxis, ScalarAxis, SeriesAxis

from neuroenc import data
from neuroenc._core.errors import DataError
from neuroenc.report.export._files import map_files, write_maps


@pytest.fixture(scope="module")
def places():
    """Grayordinates: two vertices of each hemisphere and two voxels of the left amygdala."""
    left = BrainModelAxis.from_surface([4, 9], 32492, "CIFTI_STRUCTURE_CORTEX_LEFT")
    right = BrainModelAxis.from_surface([0, 7], 32492, "CIFTI_STRUCTURE_CORTEX_RIGHT")
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, [0, 3]] = True
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return left + right + BrainModelAxis.from_mask(mask, "CIFTI_STRUCTURE_AMYGDALA_LEFT", affine)


def write(path, rows, places, values):
    image = Cifti2Image(np.asarray(values, np.float32), Cifti2Header.from_axes((rows, places)))
    nib.save(image, path)
    return path


def test_cifti_that_nibabel_wrote(tmp_path, places):
    values = np.arange(12.0).reshape(2, 6)
    path = write(tmp_path / "two.dscalar.nii", ScalarAxis(["r", "q"]), places, values)
    cortex = data.read_cifti(path)
    assert cortex.dims == ("map", "voxel")
    assert cortex.sel(map="q").values.tolist() == [6, 7, 8, 9]
    assert (cortex.vertex.values.tolist(), cortex.hemi.values.tolist()) == ([4, 9, 0, 7], ["L", "L", "R", "R"])
    assert cortex.attrs["space"] == "fsLR-32k"
    below = data.read_cifti(path, part="volume")
    assert below.sel(map="r").values.tolist() == [4, 5]
    assert (below.k.values.tolist(), below.structure.values.tolist()) == ([0, 3], ["amygdala_left"] * 2)
    assert below.attrs["volume_shape"] == (3, 4, 5)
    series = write(tmp_path / "bold.dtseries.nii", SeriesAxis(1.0, 0.5, 2), places, values)
    assert data.read_cifti(series).time.values.tolist() == [1.0, 1.5]
    table = [{0: ("???", (0, 0, 0, 0)), 3: ("V1", (1, 0, 0, 1))}]
    labels = write(tmp_path / "a.dlabel.nii", LabelAxis(["a"], table), places, [[3, 0, 3, 3, 0, 0]])
    assert data.read_cifti(labels).roi.values.tolist() == ["V1", "", "V1", "V1"]


def test_cifti_comes_back_and_nibabel_reads_it(tmp_path):
    coords = {"vertex": ("voxel", [9, 4, 7]), "hemi": ("voxel", ["L", "L", "R"])}
    r = xr.DataArray(
        [[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], dims=("map", "voxel"), coords={**coords, "map": ["r", "ceiling"]}
    )
    path = tmp_path / "r.dscalar.nii"
    nib.save(data.to_cifti(r), path)
    back = data.read_cifti(path)
    assert back.vertex.values.tolist() == [4, 9, 7]  # left before right, by vertex
    assert back.sel(map="r").values.tolist() == np.float32([0.2, 0.1, 0.3]).tolist()
    raw = nib.load(path)
    assert raw.header.get_axis(1).nvertices["CIFTI_STRUCTURE_CORTEX_LEFT"] == 32492
    scores = xr.Dataset({"r": ("voxel", [0.1, 0.2, 0.3])}, coords=coords, attrs={"space": "fsLR-32k"})
    written = write_maps(tmp_path, scores, ["r"])
    assert [p.name for p in written] == ["r.dscalar.nii"]
    assert [p for pattern in map_files(scores) for p in tmp_path.glob(pattern)] == written


@pytest.mark.parametrize(("space", "size"), [("fsaverage5", 10242), ("fsaverage6", 40962), ("fsLR-32k", 32492)])
def test_files_have_the_vertices_of_the_mesh_that_values_lie_on(space, size):
    coords = {"vertex": ("voxel", [1]), "hemi": ("voxel", ["L"])}
    r = xr.DataArray([0.5], dims="voxel", coords=coords, attrs={"space": space}, name="r")
    assert set(data.to_cifti(r).header.get_axis(1).nvertices.values()) == {size}
    assert data.to_gifti(r)["L"].darrays[0].data.shape == (size,)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.to_cifti([1.0, 2.0], [3, 3], ["L", "L"]), "1 values share a vertex of hemisphere L"),
        (lambda: data.to_cifti([1.0], [40000], ["L"]), "n_vertices=32492"),
        (lambda: data.to_cifti([1.0, 2.0], [3], ["L"]), "of 1 voxels"),
        (lambda: data.to_cifti([1.0]), "no vertex and hemi"),
        (lambda: data.read_cifti("none.dscalar.nii"), "does not exist"),
    ],
)
def test_what_is_no_dense_map_is_refused(make, said):
    with pytest.raises(DataError, match=said):
        make()


def test_other_kinds_of_files_are_refused(tmp_path, places):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(DataError, match="is Nifti1Image"):
        data.read_cifti(tmp_path / "v.nii")
    dense = Cifti2Image(np.zeros((6, 6), np.float32), Cifti2Header.from_axes((places, places)))
    nib.save(dense, tmp_path / "c.dconn.nii")
    with pytest.raises(DataError, match="BrainModelAxis x BrainModelAxis"):
        data.read_cifti(tmp_path / "c.dconn.nii")
    path = data.to_cifti([1.0], [3], ["R"])
    nib.save(path, tmp_path / "r.dscalar.nii")
    with pytest.raises(DataError, match="holds nothing of part='volume'; it holds cortex_right"):
        data.read_cifti(tmp_path / "r.dscalar.nii", part="volume")
    (tmp_path / "cut.dscalar.nii").write_bytes((tmp_path / "r.dscalar.nii").read_bytes()[:700])
    with pytest.raises(DataError, match="cannot be read"):
        data.read_cifti(tmp_path / "cut.dscalar.nii")


def test_surface_images_and_maskers_of_nilearn():
    maskers = pytest.importorskip("nilearn.maskers")
    coords = {"vertex": ("voxel", [9, 4, 7]), "hemi": ("voxel", ["L", "L", "R"])}
    r = xr.DataArray([0.1, 0.2, 0.3], dims="voxel", coords=coords, name="r")
    image = data.to_surface_image(r, fill=0)
    back = data.from_surface_image(image)
    at = back.sel(voxel=(back != 0).values)
    assert [(int(v), str(h), round(float(x), 6)) for v, h, x in zip(at.vertex.values, at.hemi.values, at.values)] == [
        (4, "L", 0.2), (9, "L", 0.1), (7, "R", 0.3),
    ]  # fmt: skip
    masker = maskers.SurfaceMasker(
        image.__class__(image.mesh, {k: v != 0 for k, v in image.data.parts.items()}), reports=False
    )
    signals = masker.fit().transform(image)
    found = data.from_masker(masker, np.atleast_2d(signals), stimulus=["a"])
    assert found.values.tolist() == np.float32([[0.2, 0.1, 0.3]]).tolist()
    assert (found.vertex.values.tolist(), found.attrs["space"]) == ([4, 9, 7], "fsaverage5")
    volume = np.zeros((3, 4, 5), np.float32)
    volume[2, 1, 0], volume[0, 3, 4] = 5, 6
    brain = nib.Nifti1Image(volume, np.diag([2.0, 2, 2, 1]))
    voxels = maskers.NiftiMasker(nib.Nifti1Image((volume > 0).astype(np.int8), brain.affine), reports=False).fit()
    read = data.from_masker(voxels, np.atleast_2d(voxels.transform(brain)), stimulus=["a"])
    assert [(int(read.i[n]), int(read.j[n]), int(read.k[n]), float(read[0, n])) for n in range(2)] == [
        (0, 3, 4, 6.0), (2, 1, 0, 5.0),
    ]  # fmt: skip
    assert (np.nan_to_num(data.unmask(read).get_fdata()[..., 0]) == volume).all()
    with pytest.raises(DataError, match="the masker has 2 voxels"):
        data.from_masker(voxels, np.zeros((1, 3)), stimulus=["a"])
    with pytest.raises(DataError, match="is not fitted"):
        data.from_masker(maskers.NiftiMasker(), np.zeros((1, 3)), stimulus=["a"])
