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


@pytest.fixture
def surface():
    rng = np.random.default_rng(0)
    hemi = np.array(["L"] * 6 + ["R"] * 5)
    vertex = np.concatenate([rng.permutation(10)[:6], rng.permutation(12)[:5]])
    coords = {
        "voxel": np.arange(11),
        "vertex": ("voxel", vertex),
        "hemi": ("voxel", hemi),
        "map": ["a", "b"],
        "roi": ("voxel", rng.choice(["V1", "FFA", ""], 11)),
    }
    values = rng.standard_normal((2, 11)).astype("float32")
    return xr.DataArray(values, dims=("map", "voxel"), coords=coords)


@pytest.mark.parametrize("name", ["x.mgz", "x.mgh", "x.func.gii", "x.gii"])
def test_maps_come_back(surface, tmp_path, name):
    files = data.write_surface(surface, tmp_path / name, n_vertices=(10, 12))
    back = data.read_surface(files)
    assert dict(back.sizes) == {"map": 2, "voxel": 22}
    flat = surface.vertex.values + 10 * (surface.hemi.values == "R")
    np.testing.assert_array_equal(back.values[:, flat], surface.values)
    rest = np.setdiff1d(np.arange(22), flat)
    assert np.isnan(back.values[:, rest]).all()
    assert data.read_surface(list(files.values())).equals(back)
    one = data.read_surface(data.write_surface(surface[0], tmp_path / f"one-{name}", n_vertices=(10, 12))["R"])
    assert one.dims == ("voxel",)
    assert set(one.hemi.values) == {"R"}
    if name.endswith("gii"):
        assert back["map"].values.tolist() == ["a", "b"]
        image = nib.load(files["L"])
        np.testing.assert_array_equal(image.darrays[1].data[surface.vertex.values[:6]], surface.values[1, :6])
    else:
        np.testing.assert_array_equal(
            nib.load(files["L"]).get_fdata()[surface.vertex.values[:6], 0, 0, 1].astype("float32"),
            surface.values[1, :6],
        )


def test_annotations_and_labels_come_back(surface, tmp_path):
    files = data.write_surface(surface[0], tmp_path / "areas.annot", n_vertices=(10, 12))
    back = data.read_surface(files)
    flat = surface.vertex.values + 10 * (surface.hemi.values == "R")
    assert back.roi.values[flat].tolist() == surface.roi.values.tolist()
    labels, _, names = nib.freesurfer.read_annot(files["R"])
    assert names[labels[surface.vertex.values[6]]].decode() in (surface.roi.values[6], "unknown")
    files = data.write_surface(surface[0], tmp_path / "part.label", n_vertices=(10, 12))
    listed = data.read_surface(files)
    assert listed.vertex.values.tolist() == surface.vertex.values.tolist()
    np.testing.assert_allclose(listed.values, surface.values[0], rtol=1e-6)
    assert nib.freesurfer.read_label(files["L"]).tolist() == surface.vertex.values[:6].tolist()


def test_surface_mistakes(surface, tmp_path):
    with pytest.raises(DataError, match=r"n_vertices as the surface has them"):
        data.write_surface(surface[0], tmp_path / "x.mgz", n_vertices=5)
    with pytest.raises(ConfigError, match=r"did you mean '.mgz' or '.mgh'"):
        data.write_surface(surface[0], tmp_path / "x.mgx")
    with pytest.raises(DataError, match="several regions"):
        data.write_surface(surface[0].assign_coords(roi=("voxel", ["V1;V2"] * 11)), tmp_path / "x.annot")
    (tmp_path / "x.mgz").write_bytes(b"no image")
    with pytest.raises(DataError, match="does not tell its hemisphere"):
        data.read_surface(tmp_path / "x.mgz")
    with pytest.raises(DataError, match=r"not a readable image|cannot be read"):
        data.read_surface({"L": tmp_path / "x.mgz"})
    with pytest.raises(DataError, match="does not exist"):
        data.read_surface(tmp_path / "lh.none.annot")
