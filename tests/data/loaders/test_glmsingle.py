"""GLMsingle's output: axes of both languages, tables of voxels, missing voxels, memory."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import DataError
from trees import glmsingle_tree


def read(folder, trials=None, **options):
    trials = folder / "trials.csv" if trials is None else trials
    return data.read_glmsingle(folder, trials, **{"progress": False, "cache": False, **options})


def expected(truth):
    parts = [truth["betas"][truth["mask"]].T[truth["table"]["session"] == s].astype(np.float64) for s in (1, 2)]
    return np.concatenate([(p - p.mean(0)) / p.std(0) for p in parts])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("matlab", [False, True])
def test_axes_of_both_languages(tmp_path, matlab, flat):
    truth = glmsingle_tree(tmp_path, matlab=matlab, flat=flat)
    found = read(tmp_path, mask=tmp_path / "mask.nii.gz", subject="me")
    r = found.responses
    np.testing.assert_allclose(r.values, expected(truth), atol=1e-5)
    np.testing.assert_array_equal(np.stack([r[x] for x in "ijk"], 1), np.argwhere(truth["mask"]))
    np.testing.assert_array_equal(r.voxel, np.flatnonzero(truth["mask"]))
    assert r.stimulus.values.tolist() == truth["table"]["stimulus"].tolist()
    assert found.stimuli.ids.tolist() == ["s0", "s1", "s2", "s3", "s4"]
    data.validate(found)


def test_without_mask_voxels_with_nan_are_left_out(tmp_path):
    truth = glmsingle_tree(tmp_path)
    r = read(tmp_path, reference=tmp_path / "mask.nii.gz", rois={"A": tmp_path / "mask.nii.gz"}).responses
    np.testing.assert_allclose(r.values, expected(truth), atol=1e-5)
    assert set(r.roi.values) == {"A"}
    assert "i" not in read(tmp_path).responses.coords


@pytest.mark.parametrize("matlab", [False, True])
def test_memory_and_repeats(tmp_path, matlab):
    glmsingle_tree(tmp_path, matlab=matlab)
    whole = read(tmp_path, repeats="average").responses
    whole_trials = read(tmp_path).responses
    small = read(tmp_path, repeats="average", max_memory=600, cache=tmp_path / "store").responses
    assert len(list((tmp_path / "store").iterdir())) == len(set(whole_trials.session.values)) + 1  # and their means
    np.testing.assert_allclose(small.values, whole.values, atol=1e-6)
    assert sorted(set(whole.n_repeats.values.tolist())) == [2, 3]


def test_what_does_not_belong_together(tmp_path):
    truth = glmsingle_tree(tmp_path)
    with pytest.raises(DataError, match="holds 12 trials, the table 11 rows"):
        read(tmp_path, truth["table"].iloc[1:])
    with pytest.raises(DataError, match="go back at trial 2"):
        read(tmp_path, truth["table"].iloc[::-1].assign(session=[2, 1] * 6))
    with pytest.raises(DataError, match="expected stimulus"):
        read(tmp_path, truth["table"].drop(columns="stimulus"))
    with pytest.raises(DataError, match=r"mask is bool of shape \(3, 3, 2\).*\(4, 3, 2\)"):
        read(tmp_path, mask=np.ones((3, 3, 2), bool))
    with h5py.File(tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "r+") as handle:
        del handle["betasmd"]
    with pytest.raises(DataError, match="no data set 'betasmd'"):
        read(tmp_path)


def test_pickled_arrays_are_not_opened(tmp_path):
    glmsingle_tree(tmp_path)
    (tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5").rename(tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.npy")
    with pytest.raises(DataError, match="wanthdf5"):
        read(tmp_path)


def test_a_table_needs_the_mask_that_made_it(tmp_path):
    truth = glmsingle_tree(tmp_path, flat=True)
    wrong = truth["mask"].copy()
    wrong[np.argwhere(wrong)[0][0], np.argwhere(wrong)[0][1], np.argwhere(wrong)[0][2]] = False
    with pytest.raises(DataError, match="whose voxels GLMsingle was given"):
        read(tmp_path, mask=wrong)


# ---------------------------------------------------------------- tables and folders as labs have them


def test_one_folder_for_each_session(tmp_path):
    truth = glmsingle_tree(tmp_path / "whole")
    table, betas = truth["table"], truth["betas"]
    for number in (1, 2):
        folder = tmp_path / f"sub-01_ses-{number:02d}"
        folder.mkdir()
        with h5py.File(folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as handle:
            handle["betasmd"] = betas[..., (table["session"] == number).to_numpy()]
    first, second = tmp_path / "sub-01_ses-01", tmp_path / "sub-01_ses-02"
    mask = tmp_path / "whole/mask.nii.gz"
    labelled = table.assign(session=[f"ses-{n:02d}" for n in table["session"]])
    for folders in ([first, second], [second, first]):
        found = read(folders, labelled, mask=mask)
        np.testing.assert_allclose(found.responses.values, expected(truth), atol=1e-5)
        assert found.extra["sessions"] == {1: "ses-01", 2: "ses-02"}
    small = read([first, second], labelled, mask=mask, max_memory=600, cache=tmp_path / "store").responses
    np.testing.assert_allclose(small.values, expected(truth), atol=1e-5)
    with pytest.raises(DataError, match="2 folders for 1 sessions"):
        read([first, second], table.assign(session=1))
    with pytest.raises(DataError, match=r"folders are of sessions \[1, 2\], the table of \[1, 3\]"):
        read([first, second], table.assign(session=table["session"].replace({2: 3})))
    with pytest.raises(DataError, match=r"ses-01.*holds 4 trials, the table 6 rows of it"):
        read([first, second], table.assign(session=[1] * 6 + [2] * 6))


@pytest.mark.parametrize(
    ("session", "numbers"),
    [
        (["ses-03"] * 6 + ["ses-10"] * 6, [3] * 6 + [10] * 6),
        (["scan"] * 6 + ["rescan"] * 6, [1] * 6 + [2] * 6),
        ([1.0] * 6 + [2.0] * 6, [1] * 6 + [2] * 6),
    ],
)
def test_labels_of_sessions_are_numbered(tmp_path, session, numbers):
    truth = glmsingle_tree(tmp_path)
    assert read(tmp_path, truth["table"].assign(session=session)).responses.session.values.tolist() == numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session": ["1"] * 6 + ["01"] * 6}, "'01' and '1' are the same number"),
        ({"session": [1.5] * 12}, r"row 1: session = '1\.5' is no session"),
        ({"session": [np.nan] + [1.0] * 11}, "row 1: session is empty"),
        ({"session": [1, 1, 2, 1] + [2] * 8}, "sessions go back at trial 4"),
        ({"stimulus": [1.5] * 12}, r"row 1: stimulus is 1\.5; picture numbers must be whole"),
        ({"stimulus": np.full(12, 20000001, "f4")}, "cannot tell it from its neighbours"),
        ({"stimulus": ["", *"abcdefghijk"]}, "row 1: stimulus is empty"),
        ({"stimulus": ["b\u00e4r", "ba\u0308r"] * 6}, "look the same and differ in how accents are composed"),
    ],
)
def test_labels_that_cannot_be_meant(tmp_path, change, message):
    truth = glmsingle_tree(tmp_path)
    with pytest.raises(DataError, match=message):
        read(tmp_path, truth["table"].assign(**change))


@pytest.mark.parametrize(("encoding", "sep"), [("utf-8-sig", ","), ("utf-16", "\t")])
def test_tables_of_spreadsheets(tmp_path, encoding, sep):
    truth = glmsingle_tree(tmp_path)
    path = tmp_path / ("t.csv" if sep == "," else "t.tsv")
    names = [" NA ", "None", "b\u00e4r", "nan"] * 3
    rows = [("Stimulus", "Session"), *zip(names, truth["table"]["session"].astype(str), strict=True)]
    text = "".join(sep.join(row) + "\r\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    r = read(tmp_path, path).responses
    assert r.stimulus.values.tolist() == [s.strip() for s in names]
    assert r.session.values.tolist() == truth["table"]["session"].tolist()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{path.name} is not UTF-8 text: line 4"):
        read(tmp_path, path)


def test_the_lines_that_convert_a_pickle_do(tmp_path):
    truth = glmsingle_tree(tmp_path)
    name = "TYPED_FITHRF_GLMDENOISE_RR"
    (tmp_path / f"{name}.hdf5").unlink()
    np.save(tmp_path / f"{name}.npy", {"betasmd": truth["betas"]}, allow_pickle=True)
    with pytest.raises(DataError, match="is a pickle") as caught:
        read(tmp_path)
    code = str(caught.value).split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert read(tmp_path, mask=tmp_path / "mask.nii.gz").responses.shape == (12, truth["mask"].sum())


def test_places_are_compared_and_regions_taken_by_label(tmp_path):
    truth = glmsingle_tree(tmp_path)
    areas = np.arange(truth["mask"].size).reshape(truth["mask"].shape) % 3 - 1
    nib.save(nib.Nifti1Image(areas.astype("i2"), truth["affine"]), tmp_path / "areas.nii.gz")
    moved = truth["affine"].copy()
    moved[0, 3] += 3
    nib.save(nib.Nifti1Image(areas.astype("i2"), moved), tmp_path / "moved.nii.gz")
    options = {"mask": tmp_path / "mask.nii.gz"}
    r = read(tmp_path, **options, rois={"A": f"{tmp_path}/areas.nii.gz:1"}).responses
    np.testing.assert_array_equal(r.roi.values == "A", areas[truth["mask"]] == 1)
    with pytest.raises(DataError, match="affines of roi 'A' and the mask"):
        read(tmp_path, **options, rois={"A": f"{tmp_path}/moved.nii.gz:1"})
    with pytest.raises(DataError, match="affines of mask and reference differ"):
        read(tmp_path, **options, reference=tmp_path / "moved.nii.gz")
    with pytest.raises(DataError, match=r"affines of roi 'B'.* differ"):
        read(tmp_path, rois={"A": f"{tmp_path}/areas.nii.gz:1", "B": f"{tmp_path}/moved.nii.gz:1"})


def test_damaged_betas_are_named(tmp_path):
    glmsingle_tree(tmp_path)
    path = tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=rf"{path.name} .* cannot be read"):
        read(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a FIFO"):
        read(tmp_path)
