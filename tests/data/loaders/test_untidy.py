"""Published folders that came through other hands: read as they are meant, or refused by file, row and value."""

from __future__ import annotations

import os

import h5py
import nibabel as nib
import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import DataError
from trees import algonauts2023_tree, bold5000_tree, god_tree, things_fmri_tree


def damage(path, new):
    """Other content under a name."""
    content = path.read_bytes()
    path.write_bytes(new(content))


# ---------------------------------------------------------------- THINGS-fMRI


@pytest.mark.parametrize(
    "change",
    [
        lambda c: b"\xef\xbb\xbf" + c,
        lambda c: c.decode().encode("utf-16"),
        lambda c: c.replace(b"\n", b"\r\n").replace(b",", b" , "),
        lambda c: c.replace(b"session", b"Session", 1),
    ],
)
def test_things_tables_of_spreadsheets(tmp_path, load, change):
    truth = things_fmri_tree(tmp_path)
    expected = load("things-fmri", tmp_path).responses
    damage(tmp_path / "betas_csv/sub-01_StimulusMetadata.csv", change)
    np.testing.assert_array_equal(load("things-fmri", tmp_path).responses.values, expected.values)
    assert expected.sizes["presentation"] == len(truth["table"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "StimulusMetadata.csv",
            lambda c: c.replace(b"train,1,", b"train,1.5,", 1),
            r"sub-01_StimulusMetadata\.csv, row \d+: session = '1\.5' is no whole number",
        ),
        (
            "StimulusMetadata.csv",
            lambda c: c.replace(b"train,1,", b"catch,1,", 1),
            r"sub-01_StimulusMetadata\.csv, row \d+: .*trial_type 'catch'",
        ),
        (
            "StimulusMetadata.csv",
            lambda c: c.replace(b"mango_00s.jpg", b"m\xe4ngo.jpg", 1),
            r"sub-01_StimulusMetadata\.csv is not UTF-8 text: line \d+",
        ),
        ("VoxelMetadata.csv", lambda c: c.replace(b"nc_singletrial", b"nc", 1), "nc_singletrial"),
        (
            "VoxelMetadata.csv",
            lambda c: b"\n".join(x.replace(b"0,1,", b"0,one,", 1) for x in c.split(b"\n")),
            r"sub-01_VoxelMetadata\.csv, row \d+: voxel_y = 'one' is not a number",
        ),
        ("ResponseData.h5", lambda c: c[: len(c) // 2], r"sub-01_ResponseData\.h5 .* cannot be read"),
    ],
)
def test_things_files_that_cannot_be_meant(tmp_path, load, file, change, message):
    things_fmri_tree(tmp_path)
    path = tmp_path / f"betas_csv/sub-01_{file}"
    damage(path, change)
    with pytest.raises(DataError, match=message):
        load("things-fmri", tmp_path)


# ---------------------------------------------------------------- Generic Object Decoding


def test_picture_numbers_in_single_precision(tmp_path, load):
    god_tree(tmp_path)
    with h5py.File(tmp_path / "Subject1.h5", "r+") as handle:
        values = handle["dataset"][:].astype("f4")
        del handle["dataset"]
        handle["dataset"] = values
    with pytest.raises(DataError, match=r"Subject1\.h5 holds its picture numbers in float32"):
        load("god", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.replace(b".", b",", 1), r"image_training_id\.csv, line"),
        (lambda c: b"x" + c, r"image_training_id\.csv, row 1: 0 = .* is not a number"),
        (lambda c: c + c.replace(b".JPEG", b".jpeg"), r"image_training_id\.csv, row \d+: n\d+_\d+ is .* before"),
    ],
)
def test_lists_of_pictures_that_cannot_be_meant(tmp_path, load, change, message):
    god_tree(tmp_path)
    damage(tmp_path / "image_training_id.csv", change)
    with pytest.raises(DataError, match=message):
        load("god", tmp_path)


def test_two_pictures_of_one_name(tmp_path, load):
    god_tree(tmp_path)
    first = sorted((tmp_path / "images/training").iterdir())[0]
    other = sorted((tmp_path / "images/training").iterdir())[1]
    (tmp_path / "images/test" / first.name).write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=r"n\d+_\d+' has 2 pictures"):
        load("god", tmp_path)


# ---------------------------------------------------------------- Algonauts 2023


def test_arrays_that_are_cut_or_pickled_are_named(tmp_path, load):
    algonauts2023_tree(tmp_path)
    folder = tmp_path / "subj01/training_split/training_fmri"
    path = folder / "lh_training_fmri.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"lh_training_fmri\.npy is cut short"):
        load("algonauts2023", tmp_path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"lh_training_fmri\.npy holds pickled"):
        load("algonauts2023", tmp_path)
    path.write_bytes(content)
    labels = tmp_path / "subj01/roi_masks/lh.streams_challenge_space.npy"
    np.save(labels, np.load(labels) + 0.5)
    with pytest.raises(DataError, match=r"lh\.streams_challenge_space\.npy .*whole numbers"):
        load("algonauts2023", tmp_path)


# ---------------------------------------------------------------- BOLD5000


def test_masks_of_bold5000_lie_where_the_betas_lie(tmp_path, load):
    bold5000_tree(tmp_path)
    path = next(tmp_path.rglob("CSI4_brainmask.nii.gz"))
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 3
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), path)
    with pytest.raises(DataError, match="affines of brain mask and betas differ"):
        load("bold5000", tmp_path, subject=4)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"CSI4_brainmask\.nii\.gz"):
        load("bold5000", tmp_path, subject=4)


# ---------------------------------------------------------------- what holds for all


def test_sessions_joined_by_hand_must_not_count_repeats_twice(tmp_path, load):
    import xarray as xr

    things_fmri_tree(tmp_path)
    whole = load("things-fmri", tmp_path).responses
    assert data.validate_responses(whole) is whole
    part = whole[whole.session.values == 1]
    joined = xr.concat([part, part.assign_coords(session=("presentation", part.session.values + 1))], "presentation")
    with pytest.raises(DataError, match=r"8 presentations have a repeat that their stimulus had before"):
        data.validate_responses(joined)
    counted = data.make_responses(joined, stimulus=joined.stimulus.values, session=joined.session.values)
    assert data.validate_responses(counted).repeat.values.tolist() == [0] * 8 + [1] * 8
