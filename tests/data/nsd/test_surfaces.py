"""Surfaces: betas on vertices, the data set's transforms, and files of GIFTI and FreeSurfer."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*constant within at least one session")


def nsd(root, subject, **options):
    return data.nsd(root, subject, **{"progress": False, "cache": False, **options})


def planted_vertices(truth, to):
    """Flat number of the voxel that each vertex shows, left before right; -1 for none."""
    parts = [truth.extra["vertices"][h] for h in ("lh", "rh")]
    if to == "fsaverage":
        parts = [p[truth.extra["to_fsaverage"][h]] for p, h in zip(parts, ("lh", "rh"))]
    return np.concatenate(parts), len(parts[0])


@pytest.mark.parametrize("space", ["nativesurface", "fsaverage"])
@pytest.mark.parametrize("subject", [1, 3])
def test_vertices_have_the_responses_of_their_voxels(tree, space, subject):
    root, planted = tree
    truth = planted[subject - 1]
    shown, n_left = planted_vertices(truth, space)
    found = nsd(root, subject, space=space, voxels="brain").responses
    assert found.sizes["voxel"] == len(shown)
    assert int((found.hemi == "L").sum()) == n_left
    valid = np.flatnonzero(shown >= 0)
    expected = data.zscore(truth.responses.sel(voxel=shown[valid]).assign_coords(voxel=valid))
    assert float(np.abs(found.values[:, valid] - expected.values).max()) < 0.02
    assert (found.values[:, shown < 0] == 0).all()
    ncsnr = truth.truth["ncsnr"].sel(voxel=shown[valid]).values
    np.testing.assert_allclose(found.ncsnr.values[valid], ncsnr, rtol=1e-6)


def test_regions_on_surfaces(tree):
    root, planted = tree
    for space in ("nativesurface", "fsaverage"):
        shown, _ = planted_vertices(planted[1], space)
        # Localiser regions exist on each person's own surface only; the nearest-vertex table carries them over.
        labels = planted[1].extra["labels"]["floc-places"].reshape(-1)
        expected = np.where(shown >= 0, labels[np.maximum(shown, 0)], 0)
        np.testing.assert_array_equal(data.nsd_mask(root, 2, "PPA", space=space), expected == 2)
    atlas = nib.load(root / "nsddata/freesurfer/fsaverage/label/lh.nsdgeneral.mgz").get_fdata().ravel()
    np.testing.assert_array_equal(data.nsd_mask(root, 2, "nsdgeneral", space="fsaverage")[: len(atlas)], atlas > 0)


@pytest.mark.parametrize("to", ["nativesurface", "fsaverage"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_voxels_go_to_the_vertices_that_show_them(tree, to, interpolation):
    root, planted = tree
    r = nsd(root, 1, voxels="cortex").responses
    maps = xr.concat([r.ncsnr.drop_vars("ncsnr"), 2 * r.ncsnr.drop_vars("ncsnr")], dim="map")
    surface = data.nsd_to_surface(maps, root, 1, to=to, interpolation=interpolation, like=r)
    shown, n_left = planted_vertices(planted[0], to)
    lookup = dict(zip(r.voxel.values.tolist(), r.ncsnr.values.tolist()))
    expected = np.array([lookup.get(int(v), np.nan) for v in shown])
    np.testing.assert_allclose(surface.values[0], expected, rtol=1e-5)
    np.testing.assert_allclose(surface.values[1], 2 * expected, rtol=1e-5)
    assert np.isnan(expected).any() == (shown < 0).any()
    np.testing.assert_array_equal(surface.hemi.values == "R", np.arange(len(shown)) >= n_left)


def test_transforms_refuse_what_does_not_fit(tree, own):
    r1, r2 = (nsd(tree[0], s, voxels="V1").responses for s in (1, 2))
    with pytest.raises(DataError, match="subj01 has"):
        data.nsd_to_surface(r2[0], tree[0], 1)
    (own / "nsddata/ppdata/subj01/transforms/rh.func1pt8-to-layerB3.mgz").unlink()
    with pytest.raises(DataError, match=r"rh.func1pt8-to-layerB3.mgz does not exist"):
        data.nsd_to_surface(r1[0], own, 1)
    with pytest.raises(DataError, match="the tables start from"):
        data.nsd_to_surface(nsd(tree[0], 1, space="fsaverage").responses[0], tree[0], 1)


def save(values, path, hemi):
    """Write one hemisphere's values (map, vertex) as programs of the field do."""
    if path.suffix == ".gii":
        kind = {"intent": "NIFTI_INTENT_NONE", "datatype": "NIFTI_TYPE_FLOAT32"}
        arrays = [
            nib.gifti.GiftiDataArray(v, meta=nib.gifti.GiftiMetaData({"Name": n}), **kind)
            for v, n in zip(values, ("a", "b"))
        ]
        nib.save(
            nib.gifti.GiftiImage(
                meta=nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": f"Cortex{hemi}"}), darrays=arrays
            ),
            path,
        )
    else:
        frames = values.T.reshape(-1, 1, 1, *[len(values)][: len(values) > 1])
        nib.save(nib.freesurfer.MGHImage(frames, np.eye(4)), path)


@pytest.mark.parametrize("name", ["x.mgz", "x.mgh", "x.func.gii", "x.gii"])
def test_maps_come_back(tmp_path, name):
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((2, n)).astype("float32") for n in (10, 12))
    files = [tmp_path / f"{side}.{name}" for side in ("rh", "lh")]
    save(right, files[0], "Right")
    save(left, files[1], "Left")
    back = data.read_surface(files)
    np.testing.assert_array_equal(back.values, np.concatenate([left, right], axis=1))
    assert back.hemi.values.tolist() == ["L"] * 10 + ["R"] * 12
    np.testing.assert_array_equal(back.vertex.values, [*range(10), *range(12)])
    assert data.read_surface({"R": files[0], "L": files[1]}).equals(back)
    save(right[:1], files[0], "Right")
    one = data.read_surface(files[0])
    assert one.dims == ("voxel",)
    assert set(one.hemi.values) == {"R"}
    with pytest.raises(DataError, match="both need the same"):
        data.read_surface(files)
    if name.endswith("gii"):
        assert back["map"].values.tolist() == ["a", "b"]


def test_annotations_and_labels_come_back(tmp_path):
    names, colours = ["unknown", "FFA", "V1"], np.array([[25, 5, 25, 0, 0], [9, 8, 7, 0, 0], [1, 2, 3, 0, 0]])
    labels = np.array([0, 1, 1, 2, 0, 2])
    nib.freesurfer.write_annot(tmp_path / "lh.areas.annot", labels, colours, names, fill_ctab=True)
    back = data.read_surface(tmp_path / "lh.areas.annot")
    assert back.roi.values.tolist() == ["", "FFA", "FFA", "V1", "", "V1"]
    (tmp_path / "rh.part.label").write_text("#!ascii label\n2\n4 0.0 0.0 0.0 1.5\n1 0.0 0.0 0.0 -2\n")
    listed = data.read_surface(tmp_path / "rh.part.label")
    assert listed.vertex.values.tolist() == [4, 1]
    assert listed.values.tolist() == [1.5, -2.0]
    assert set(listed.hemi.values) == {"R"}


def test_surface_mistakes(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean '.mgz' or '.mgh'"):
        data.read_surface(tmp_path / "lh.x.mgx")
    (tmp_path / "x.mgz").write_bytes(b"no image")
    with pytest.raises(DataError, match="does not tell its hemisphere"):
        data.read_surface(tmp_path / "x.mgz")
    with pytest.raises(DataError, match=r"not a readable image|cannot be read"):
        data.read_surface({"L": tmp_path / "x.mgz"})
    with pytest.raises(DataError, match="does not exist"):
        data.read_surface(tmp_path / "lh.none.annot")
