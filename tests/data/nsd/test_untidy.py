"""Design, tables and maps of NSD that came through other hands."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import DataError


def nsd(root, **options):
    settings = {"progress": False, "cache": False, "voxels": "V1", "rois": False, "sessions": 1}
    return data.nsd(root, 1, **{**settings, **options})


def own_file(own, pattern):
    """The file, no link to the shared one any more."""
    path = next(own.glob(pattern))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path, content


def test_a_truncated_design_is_named(own):
    path, content = own_file(own, "nsddata/experiments/nsd/nsd_expdesign.mat")
    for new in (content[: len(content) // 2], content[:60], b"", b"\x89HDF\r\n\x1a\n" + bytes(200)):
        path.write_bytes(new)
        with pytest.raises(DataError, match=r"nsd_expdesign\.mat"):
            nsd(own)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(DataError, match=r"nsd_expdesign\.mat is of MATLAB 7\.3"):
        nsd(own)


def test_the_table_of_pictures_is_read_as_meant_or_refused(own):
    path, content = own_file(own, "nsddata/experiments/nsd/nsd_stim_info_merged.csv")
    expected = nsd(own).stimuli.table
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert nsd(own).stimuli.table.equals(expected)
    rows = content.split(b"\n")
    path.write_bytes(b"\n".join([*rows[:3], rows[2], *rows[3:]]))
    with pytest.raises(DataError, match=r"nsd_stim_info_merged\.csv, row 3: nsdId 1 stands there twice"):
        nsd(own)
    path.write_bytes(content.replace(b"nsdId", b"nsd", 1))
    with pytest.raises(DataError, match=r"unknown column of .*nsd_stim_info_merged\.csv: 'nsdId'"):
        nsd(own)


def test_masks_and_regions_lie_where_the_subject_lies(own, tmp_path):
    path, _ = own_file(own, "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz")
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    with pytest.warns(UserWarning, match="voxels holds"):
        taken = nsd(own, voxels=str(path)).responses
    np.testing.assert_array_equal(taken.voxel, np.flatnonzero(values.reshape(-1) > 0))
    np.testing.assert_array_equal(nsd(own, voxels=f"{path}:1").responses.voxel, taken.voxel)
    moved = image.affine.copy()
    moved[2, 3] += 1.8
    nib.save(nib.Nifti1Image(values, moved), tmp_path / "moved.nii.gz")
    with pytest.raises(DataError, match="affines of voxels and subj01 in func1pt8mm differ"):
        nsd(own, voxels=f"{tmp_path}/moved.nii.gz:1")
    nib.save(nib.Nifti1Image(values, moved), path)
    with pytest.raises(DataError, match=r"affines of .*nsdgeneral\.nii\.gz and the other volumes"):
        nsd(own, voxels="nsdgeneral")


def test_values_of_another_place_are_not_carried_to_the_surface(tree):
    r = data.nsd(tree[0], 1, cache=False, progress=False, voxels="V1", rois=False, sessions=1).responses
    moved = r.ncsnr.rename("ncsnr").assign_attrs(r.attrs)
    moved.attrs["affine"] = [*moved.attrs["affine"][:3], moved.attrs["affine"][3] + 9, *moved.attrs["affine"][4:]]
    with pytest.raises(DataError, match="affines of the values and subj01 in func1pt8mm differ by up to 9"):
        data.nsd_to_surface(moved, tree[0], 1)
