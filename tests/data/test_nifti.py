"""Volumes and surfaces: in and out again, in the right place."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nibabel.nifti1 import Nifti1Image

from neuroenc._core.errors import DataError
from neuroenc.data import check_affine, label_rois, load_masked, region_mask, to_gifti, unmask
from neuroenc.data._volumes import seconds

SHAPE = (3, 4, 2)
# Oblique: no axis of the volume is parallel to one of the scanner.
TURN = np.array([[0.96, -0.2, 0.19], [0.24, 0.94, -0.24], [-0.13, 0.28, 0.95]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * [1.8, 2.0, 3.5]
AFFINE[:3, 3] = [-31.4, 22.7, -8.1]


def image(values, affine=AFFINE):
    return Nifti1Image(np.asarray(values), affine)


@pytest.fixture
def bold():
    return np.random.default_rng(0).standard_normal((*SHAPE, 5)).astype(np.float32)


@pytest.fixture
def inside():
    return np.random.default_rng(1).random(SHAPE) < 0.5


# ---------------------------------------------------------------- in


def test_voxels_are_taken_in_c_order(bold, inside):
    part = load_masked(image(bold), image(inside.astype(np.uint8)))
    expected = [(i, j, k) for i in range(3) for j in range(4) for k in range(2) if inside[i, j, k]]
    assert [tuple(x) for x in part.ijk] == expected
    for v, (i, j, k) in enumerate(expected):
        np.testing.assert_array_equal(part.values[:, v], bold[i, j, k])
    assert part.values.dtype == np.float32
    assert part.volume_shape == SHAPE
    np.testing.assert_allclose(part.affine, AFFINE, atol=1e-6)


def test_files_of_several_runs_are_joined(bold, inside, tmp_path):
    nib.save(image(bold), tmp_path / "run.nii.gz")
    part = load_masked([tmp_path / "run.nii.gz", image(bold[..., :2]), image(bold[..., 0])], image(inside * 1.0))
    np.testing.assert_array_equal(part.values, np.concatenate([bold[inside].T, bold[inside].T[[0, 1, 0]]]))


def test_scaled_integers_are_read_as_their_values(inside, tmp_path):
    volume = image(np.arange(24, dtype=np.int16).reshape(SHAPE))
    volume.header.set_slope_inter(0.5, 10)
    nib.save(volume, tmp_path / "scaled.nii")
    stored = nib.load(tmp_path / "scaled.nii").get_fdata()
    part = load_masked(tmp_path / "scaled.nii", image(inside.astype(np.uint8)))
    np.testing.assert_allclose(part.values[0], stored[inside])


def test_rois_are_named_and_those_outside_the_mask_are_cut(bold, inside):
    first, second = inside.copy(), ~inside
    second[tuple(np.argwhere(inside)[0])] = True
    rois = {"V1": image(first.astype("u1")), "FFA": image(second.astype("u1"))}
    part = load_masked(image(bold), image(inside.astype("u1")), rois)
    assert part.roi.tolist() == ["V1;FFA"] + ["V1"] * (inside.sum() - 1)


def test_wrong_affine_shows_both_and_their_difference(bold, inside):
    moved = AFFINE.copy()
    moved[0, 3] += 2.5
    with pytest.raises(DataError) as caught:
        load_masked(image(bold, moved), image(inside.astype("u1")))
    message = str(caught.value)
    assert "affines of mask and data differ by up to 2.5 (legal 0.001)" in message
    assert "-31.4" in message
    assert "-28.9" in message
    assert "Next step: resample" in message
    with pytest.raises(DataError, match="affines of roi 'V1' and mask differ"):
        load_masked(image(bold), image(inside.astype("u1")), {"V1": image(inside.astype("u1"), moved)})


def test_affines_agree_within_rounding_only():
    near, far = AFFINE.copy(), AFFINE.copy()
    near[1, 1] += 5e-4
    far[1, 1] += 2e-3
    check_affine(AFFINE, near)
    check_affine(AFFINE, far, atol=0.01)
    with pytest.raises(DataError, match=r"differ by up to 0\.002"):
        check_affine(AFFINE, far)
    with pytest.raises(DataError, match="affine of second holds values that are not finite"):
        check_affine(AFFINE, AFFINE * np.nan)


def test_a_second_image_with_another_affine_is_named(bold, inside):
    with pytest.raises(DataError, match="affines of mask and image 1 differ"):
        load_masked([image(bold), image(bold, np.eye(4))], image(inside.astype("u1")))


@pytest.mark.parametrize(
    ("data", "mask", "rois", "message"),
    [
        (np.ones((3, 4, 3)), np.ones(SHAPE), {}, r"volume shapes differ: mask \(3, 4, 2\), data \(3, 4, 3\)"),
        (np.ones((3, 4)), np.ones(SHAPE), {}, r"data has shape \(3, 4\) \(expected \(x, y, z\)"),
        (np.ones(SHAPE), np.zeros(SHAPE), {}, "the mask is empty: 0 of 24 voxels"),
        (np.ones(SHAPE), np.arange(24).reshape(SHAPE) / 24, {}, r"mask is not a mask: 24 distinct values.*label_rois"),
        (np.ones(SHAPE), -np.ones(SHAPE), {}, "mask is not a mask"),
        (np.ones(SHAPE), np.full(SHAPE, np.nan), {}, "mask is not a mask"),
        (np.ones(SHAPE), np.ones((*SHAPE, 2)), {}, r"mask has shape \(3, 4, 2, 2\) \(expected three dimensions\)"),
        (
            np.ones(SHAPE),
            np.eye(3, 4)[..., None] * [1, 0],
            {"V1": np.eye(3, 4)[..., None] * [0, 1]},
            "roi 'V1' has 3 voxels, none of them in the mask of 3",
        ),
        (np.ones(SHAPE), np.ones(SHAPE), {"V1;V2": np.ones(SHAPE)}, "roi name 'V1;V2' is not legal"),
    ],
)
def test_load_masked_refuses(data, mask, rois, message):
    with pytest.raises(DataError, match=message):
        load_masked(image(data * 1.0), image(mask * 1.0), {k: image(v * 1.0) for k, v in rois.items()})


def test_files_that_cannot_be_read(bold, inside, tmp_path):
    mask = image(inside.astype("u1"))
    with pytest.raises(DataError, match=r"data: .*gone\.nii does not exist"):
        load_masked(tmp_path / "gone.nii", mask)
    (tmp_path / "page.nii").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"page\.nii \(6 bytes\) is not a readable image"):
        load_masked(tmp_path / "page.nii", mask)
    noise = np.random.default_rng(2).standard_normal((*SHAPE, 900))
    for name in ("short.nii", "short.nii.gz"):
        nib.save(image(noise), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 3 // 4])
        with pytest.raises(DataError, match=rf"(?s)voxel values of .*{name} cannot be read .*cut short or damaged"):
            load_masked(tmp_path / name, mask)
    with pytest.raises(DataError, match="mask is ndarray; expected a path or a nibabel image"):
        load_masked(image(bold), inside)
    with pytest.raises(DataError, match="no images were given"):
        load_masked([], mask)


# ---------------------------------------------------------------- label images

LABELS = np.arange(24).reshape(SHAPE) % 4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ctab", "# colours\n  0 Unknown 0 0 0 0\n 1 V1 255 0 0 0\n\n 2 V2 0 1 0 0\n 3 V1 9 9 9 0\n"),
        ("a_dseg.tsv", "name\tindex\tcolor\nV1\t1\t#ff\nV2\t2\t#ff\nV1\t3\t#00\n"),
    ],
)
def test_label_images_with_tables(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    rois = label_rois(image(LABELS.astype(np.int16)), tmp_path / name)
    assert list(rois) == ["V1", "V2"]
    np.testing.assert_array_equal(np.asarray(rois["V1"].dataobj), np.isin(LABELS, [1, 3]))
    np.testing.assert_array_equal(np.asarray(rois["V2"].dataobj), LABELS == 2)
    check_affine(rois["V1"], AFFINE)
    part = load_masked(image(np.ones(SHAPE, "f4")), image((LABELS > 1).astype("u1")), rois)
    assert set(zip(LABELS[LABELS > 1], part.roi)) == {(2, "V2"), (3, "V1")}


def test_background_never_joins_a_region():
    rois = label_rois(image(LABELS.astype(np.int16)), {0: "V1", 1: "V1", 2: "V2", 3: "V2"})
    np.testing.assert_array_equal(np.asarray(rois["V1"].dataobj), LABELS == 1)


def test_a_region_whose_name_has_spaces_keeps_it(tmp_path):
    (tmp_path / "a_dseg.tsv").write_text("index\tname\tcolor\n1\tLeft V1\t#ff\n2\tLeft V2\t#0f\n3\tLeft V3\t#0f\n")
    rois = label_rois(image(LABELS.astype(np.int16)), tmp_path / "a_dseg.tsv")
    assert list(rois) == ["Left V1", "Left V2", "Left V3"]


def test_label_images_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"2 labels have no name, first \[2, 3\]; the table names \[1\]"):
        label_rois(image(LABELS.astype(np.int16)), {1: "V1"})
    with pytest.raises(DataError, match="nearest-neighbour"):
        label_rois(image(LABELS / 2), {1: "V1"})
    (tmp_path / "t.txt").write_text("V1 1\n")
    with pytest.raises(DataError, match=r"t\.txt is not a table of labels"):
        label_rois(image(LABELS.astype(np.int16)), tmp_path / "t.txt")


# ---------------------------------------------------------------- out


def test_mask_and_unmask_are_inverse(bold, inside, tmp_path):
    part = load_masked(image(bold), image(inside.astype("u1")))
    responses = part.responses(stimulus=list("abcde"))
    for values, like in ((responses, None), (part.values, responses), (responses.drop_vars([*"ijk"]), responses)):
        nib.save(unmask(values, like=like), tmp_path / "back.nii.gz")
        back = nib.load(tmp_path / "back.nii.gz")
        np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
        assert back.shape == (*SHAPE, 5)
        data = np.asarray(back.dataobj)
        np.testing.assert_array_equal(data[inside], bold[inside])
        assert np.isnan(data[~inside]).all()
        np.testing.assert_array_equal(load_masked(back, image(inside.astype("u1"))).values, part.values)
    assert back.header.get_xyzt_units()[0] == "mm"
    single = unmask(responses[2])
    assert single.shape == SHAPE
    np.testing.assert_array_equal(single.get_fdata(), np.where(inside, bold[..., 2], np.nan))


def test_like_must_have_the_same_voxels(bold, inside):
    responses = load_masked(image(bold), image(inside.astype("u1"))).responses(stimulus=list("abcde"))
    scores = xr.DataArray(np.arange(3.0), dims="voxel", coords={"voxel": [2, 0, 1]})
    with pytest.raises(DataError, match=r"values have 3 voxels and 'like' has \d+, with other ids"):
        unmask(scores, like=responses)
    placed = unmask(scores, like=responses.sel(voxel=scores.voxel)).get_fdata()
    assert [placed[tuple(x)] for x in np.argwhere(inside)[[2, 0, 1]]] == [0, 1, 2]


def at(*ijk):
    """Voxels at these indices of the volume."""
    coords = {name: ("voxel", [x[n] for x in ijk]) for n, name in enumerate("ijk")}
    attrs = {"affine": AFFINE.ravel().tolist(), "volume_shape": SHAPE}
    return xr.DataArray(np.zeros(len(ijk)), dims="voxel", coords=coords, attrs=attrs)


ONE = at((0, 0, 0))


@pytest.mark.parametrize(
    ("values", "like", "dtype", "message"),
    [
        ([1.0] * 3, at((0, 0, 0), (1, 1, 1), (0, 0, 0)), "f4", "1 voxels share a place.*one subject at a time"),
        ([1.0], at((0, 4, 0)), "f4", r"\[0, 4, 0\], outside a volume of \(3, 4, 2\)"),
        ([1.0], at((0, -1, 0)), "f4", "outside a volume"),
        ([1.0, 2.0], ONE, "f4", r"shape \(2,\) but there are 1 voxel places"),
        ([1.0], ONE.drop_vars("i"), "f4", "cannot place the voxels: no i, j, k"),
        ([1.0], ONE.drop_attrs(), "f4", "cannot place the voxels: no affine"),
        ([1.0], None, "f4", "cannot place the voxels: no i, j, k"),
        ([0.5], ONE, "int16", "not whole numbers, so int16"),
        ([np.nan], ONE, "int16", "not whole numbers"),
        ([256], ONE, "uint8", r"256\.\.256 do not fit uint8 \(0\.\.255\)"),
        ([-1], ONE, "uint8", "do not fit uint8"),
        ([-(2.0**63) * 1.5], ONE, "int64", "do not fit int64"),
        (np.float32([2**31]), ONE, "int32", "do not fit int32"),
    ],
)
def test_unmask_refuses(values, like, dtype, message):
    with pytest.raises(DataError, match=message):
        unmask(values, like, dtype=dtype)


def test_integer_maps_keep_their_limits_and_fill_with_zero():
    made = unmask([0, 255], at((0, 0, 0), (2, 3, 1)), dtype="uint8")
    assert made.get_data_dtype() == np.uint8
    values = np.asarray(made.dataobj)
    assert values[2, 3, 1] == 255
    assert values.sum() == 255


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16", "float64"])
def test_every_number_type_is_stored_as_asked(dtype, tmp_path):
    nib.save(unmask([3, 7], at((0, 0, 0), (2, 3, 1)), dtype=dtype), tmp_path / "x.nii")
    back = nib.load(tmp_path / "x.nii")
    assert back.get_data_dtype() == np.dtype(dtype)
    assert np.asarray(back.dataobj)[2, 3, 1] == 7


def test_unmask_needs_a_voxel_dimension():
    with pytest.raises(DataError, match=r"dims \('x',\) \(expected \('voxel',\)"):
        unmask(xr.DataArray([1.0], dims="x"), ONE)


# ---------------------------------------------------------------- surfaces


def test_gifti_round_trip_through_files(responses, tmp_path):
    made = to_gifti(responses[0].rename("r"), n_vertices=20, fill=-9)
    assert list(made) == ["L", "R"]
    for side, structure in (("L", "CortexLeft"), ("R", "CortexRight")):
        nib.save(made[side], tmp_path / f"{side}.func.gii")
        back = nib.load(tmp_path / f"{side}.func.gii")
        assert back.meta["AnatomicalStructurePrimary"] == structure
        (array,) = back.darrays
        assert array.meta["Name"] == "r"
        assert array.data.dtype == np.float32
        here = responses.hemi.values == side
        expected = np.full(20, -9, np.float32)
        expected[responses.vertex.values[here]] = responses.values[0, here]
        np.testing.assert_array_equal(array.data, expected)


@pytest.mark.parametrize(
    ("vertex", "hemi", "message"),
    [
        ([0, 0], ["L", "L"], "1 values share a vertex of hemisphere L"),
        ([0, 10300], ["L", "R"], r"0\.\.10300, but a hemisphere has n_vertices=10242.*n_vertices=40962 \(fsaverage6\)"),
        ([0, -1], ["L", "R"], r"-1\.\.0"),
        ([0, 1], ["L", "lh"], r"hemi holds \['lh'\] \(legal: 'L', 'R'\)"),
        ([0.0, 1.0], ["L", "R"], "must be integers and text"),
        ([0, 1], None, "carry no vertex and hemi"),
        ([0, 1, 2], ["L"] * 3, r"values have shape \(2,\) \(expected \(3,\)"),
    ],
)
def test_to_gifti_refuses(vertex, hemi, message):
    with pytest.raises(DataError, match=message):
        to_gifti([1.0, 2.0], vertex, hemi)


# ---------------------------------------------------------------- masks, regions and headers as data sets publish them


def test_values_below_zero_and_nan_are_outside_of_a_mask_and_told(bold, inside):
    values = np.where(inside, 1.0, 0.0)
    values[~inside] = np.resize([0, -1, np.nan], (~inside).sum())
    with pytest.warns(UserWarning, match=rf"mask holds .*the {inside.sum()} voxels above 0 are taken"):
        part = load_masked(image(bold), image(values))
    np.testing.assert_array_equal(part.ijk, np.argwhere(inside))


@pytest.mark.parametrize("spelling", ["path", "several"])
def test_a_region_is_one_label_of_an_image(tmp_path, bold, spelling):
    path = tmp_path / "floc.nii.gz"
    nib.save(image((LABELS - 1).astype("i2")), path)
    item = {"path": f"{path}:1", "several": f"{path}:1,2"}[spelling]
    part = load_masked(image(bold), image(np.ones(SHAPE, "u1")), {"FFA": item})
    wanted = LABELS - 1 >= 1 if spelling == "several" else LABELS - 1 == 1
    np.testing.assert_array_equal(part.roi.reshape(SHAPE) == "FFA", wanted)
    assert len(load_masked(image(bold), f"{path}:2").ijk) == 6
    with pytest.raises(DataError, match=r"unknown label of roi 'FFA' '7'.*Legal: -1, 0, 1, 2"):
        load_masked(image(bold), image(np.ones(SHAPE, "u1")), {"FFA": f"{path}:7"})


def test_labels_are_not_taken_from_an_interpolated_image():
    with pytest.raises(DataError, match=r"between whole numbers, first 0\.5"):
        region_mask(image(LABELS / 2), 1)
    scaled = image(np.round(LABELS * 10).astype("i2"))
    scaled.header.set_slope_inter(0.1, 0)
    stored = nib.Nifti1Image.from_bytes(scaled.to_bytes())
    np.testing.assert_array_equal(np.asarray(region_mask(stored, 3).dataobj), LABELS == 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a_dseg.tsv", "\ufeffIndex\tName \r\n1.0\t V1\r\n2\tNone\r\n3\tV1\r\n"),
        ("a.csv", "name,label\nV1,3\nNone,2\nV1,1\n"),
        ("a.tsv", "1\tV1\n2\tNone\n3\tV1\n"),
    ],
)
def test_label_tables_as_others_write_them(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    rois = label_rois(image(LABELS.astype("i2")), tmp_path / name)
    assert {k: int(np.asarray(v.dataobj).sum()) for k, v in rois.items()} == {"V1": 12, "None": 6}


def test_label_tables_that_contradict_themselves(tmp_path):
    turned = label_rois(image(LABELS.astype("i2")), {"V1": 1, "V2": 2, "V3": 3})
    np.testing.assert_array_equal(np.asarray(turned["V2"].dataobj), LABELS == 2)
    for text, message in (
        ("index\tname\n1\tV1\n1\tV2\n", r"a\.tsv, row 2: label 1 is 'V2' here and 'V1' before"),
        ("index\tname\n1.5\tV1\n", r"a\.tsv, row 1: '1\.5' -> 'V1' is no label"),
        ("index\tname\n1\t\n", r"a\.tsv, row 1: '1' -> '' is no label"),
        ("", r"a\.tsv is not a table of labels"),
    ):
        (tmp_path / "a.tsv").write_text(text)
        with pytest.raises(DataError, match=message):
            label_rois(image(LABELS.astype("i2")), tmp_path / "a.tsv")


def test_images_without_a_usable_place_are_refused(bold, inside, tmp_path):
    with pytest.raises(DataError, match="mask has no affine"):
        load_masked(image(bold), Nifti1Image(inside.astype("u1"), None))
    for value in (0.0, np.nan):
        content = bytearray(image(inside.astype("u1")).to_bytes())
        for row in range(3):
            # Third number of srow_x, srow_y, srow_z in the header.
            content[288 + 16 * row : 292 + 16 * row] = np.float32(value).tobytes()
        with pytest.raises(DataError, match="no place in space"):
            load_masked(image(bold), Nifti1Image.from_bytes(bytes(content)))
    grey = nib.cifti2.ScalarAxis(["a"]), nib.cifti2.BrainModelAxis.from_mask(inside, affine=AFFINE)
    nib.save(nib.Cifti2Image(np.ones((1, int(inside.sum())), "f4"), grey), tmp_path / "a.dscalar.nii")
    with pytest.raises(DataError, match=r"a\.dscalar\.nii holds Cifti2Image"):
        load_masked(image(bold), tmp_path / "a.dscalar.nii")
    nib.save(nib.gifti.GiftiImage(), tmp_path / "a.gii")
    with pytest.raises(DataError, match="holds GiftiImage"):
        load_masked(image(bold), tmp_path / "a.gii")
    with pytest.raises(DataError, match="holds complex64 values"):
        load_masked(image(bold.astype("c8")), image(inside.astype("u1")))


def test_headers_that_make_up_or_contradict_the_place_are_told(inside, tmp_path):
    bare = image(inside.astype("u1"), np.diag([2.0, 2, 2, 1]))
    bare.set_sform(None, 0)
    bare.set_qform(None, 0)
    nib.save(bare, tmp_path / "bare.nii")
    with pytest.warns(UserWarning, match=r"bare\.nii has neither sform nor qform"):
        load_masked(tmp_path / "bare.nii", tmp_path / "bare.nii")
    two = image(inside.astype("u1"))
    moved = AFFINE.copy()
    moved[1, 3] += 7
    two.set_sform(AFFINE, 1)
    two.set_qform(moved, 1)
    nib.save(two, tmp_path / "two.nii")
    with pytest.warns(UserWarning, match="sform and qform place its corners up to 7"):
        load_masked(tmp_path / "two.nii", tmp_path / "two.nii")


@pytest.mark.parametrize(
    ("zoom", "unit", "found"),
    [
        (2.0, "sec", 2.0),
        (1500, "msec", 1.5),
        (2.0, "unknown", None),
        (2000, "unknown", None),
        (2000, "sec", None),
        (0.0, "sec", None),
        (2.0, "hz", None),
    ],
)
def test_repetition_time_is_the_headers_or_unknown(bold, zoom, unit, found):
    run = image(bold)
    run.header.set_zooms((1.8, 2, 3.5, zoom))
    run.header.set_xyzt_units("mm", unit)
    assert seconds(run) == found


def test_a_file_damaged_inside_is_named(bold, inside, tmp_path):
    nib.save(image(np.random.default_rng(0).standard_normal((*SHAPE, 500))), tmp_path / "a.nii.gz")
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[3000:3400] = bytes(400)
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz"):
        load_masked(tmp_path / "a.nii.gz", image(inside.astype("u1")))
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(DataError, match="is a FIFO"):
        load_masked(tmp_path / "pipe.nii", image(inside.astype("u1")))


def test_unmask_compares_what_values_and_like_say(bold, inside):
    part = load_masked(image(bold), image(inside.astype("u1")))
    responses = part.responses(stimulus=list("abcde"))
    moved = AFFINE.copy()
    moved[0, 3] += 4
    with pytest.raises(DataError, match="affines of the values and 'like' differ by up to 4"):
        unmask(responses, like=responses.assign_attrs(affine=moved.ravel().tolist()))
    with pytest.raises(DataError, match="other volume_shape"):
        unmask(responses, like=responses.assign_attrs(volume_shape=[3, 4, 3]))
    other = responses.assign_coords(i=("voxel", responses.i.values[::-1]))
    with pytest.raises(DataError, match="other i, j, k"):
        unmask(responses, like=other)
