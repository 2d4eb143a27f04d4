"""GLMsingle's output: axes of both languages, tables of voxels, missing voxels, memory."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from neuroenc import data
from neuroenc._util.errors import DataError
from neuroenc.data.simulate import glmsingle_tree


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
    small = read(tmp_path, repeats="average", max_memory=600, cache=tmp_path / "store").responses
    assert len(list((tmp_path / "store").glob("*.zarr"))) == 2  # trials, and their means
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
    with pytest.raises(DataError, match="different spaces"):
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
