"""Stores on disk: two processes, kills, full disks, replaced and damaged files."""

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
from neuroenc.data.datasets._nsd import _load

LOAD = """
import sys, numpy as np
from neuroenc import data
found = data.nsd(sys.argv[1], 1, voxels="V1", rois=False, sessions=[1, 2], repeats="average", cache=sys.argv[2],
                 progress=False)
np.save(sys.argv[3], found.responses.values)
"""


def nsd(root, **options):
    return data.nsd(root, 1, **{"progress": False, "voxels": "V1", "rois": False, "sessions": [1, 2], **options})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.slow
def test_two_processes_load_averages_into_one_cache(tree, tmp_path):
    cache = tmp_path / "cache"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, tree[0], cache, tmp_path / f"{n}.npy"], text=True, stderr=subprocess.PIPE
        )
        for n in range(2)
    ]
    for process in running:
        error = process.communicate()[1]
        assert process.returncode == 0, error
    expected = nsd(tree[0], repeats="average", cache=False).responses.values
    for n in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{n}.npy"), expected, atol=1e-5)
    assert len(names(cache)) == 3  # two sessions and their means
    assert all(n.startswith("responses-") for n in names(cache))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_kill_in_any_session_leaves_the_others(tree, tmp_path, monkeypatch, block):
    read, calls = _load.read_session, []

    def killing(*args):
        calls.append(1)
        if len(calls) == block:
            raise KeyboardInterrupt
        return read(*args)

    options = {"cache": tmp_path, "sessions": [1, 2, 3], "file_format": "hdf5"}
    with monkeypatch.context() as patch:
        patch.setattr(_load, "read_session", killing)
        with pytest.raises(KeyboardInterrupt):
            nsd(tree[0], **options)
        assert len(names(tmp_path)) == block - 1
        values = nsd(tree[0], **options).responses.values
    assert len(calls) == 1 + 3
    np.testing.assert_allclose(values, nsd(tree[0], **{**options, "cache": False}).responses.values, atol=1e-6)
    assert all(n.startswith("responses-") and n[-5:] != ".part" for n in names(tmp_path))


def test_betas_replaced_by_others_of_size_and_time_are_noticed(own, tmp_path):
    cache = tmp_path / "cache"
    before = nsd(own, sessions=1, file_format="hdf5", cache=cache).responses.values
    path = next(own.glob("nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLM*/betas_session01.hdf5"))
    stat = path.stat()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    with h5py.File(path, "r+") as handle:
        handle["betas"][:] = handle["betas"][:][::-1]
    os.truncate(path, len(content)) if path.stat().st_size > len(content) else None
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    after = nsd(own, sessions=1, file_format="hdf5", cache=cache).responses.values
    np.testing.assert_allclose(after, before[::-1], atol=1e-5)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[:-1] + b"x", lambda b: b""])
def test_a_damaged_session_is_made_again(tree, tmp_path, damage):
    first = nsd(tree[0], cache=tmp_path).responses.values
    values = sorted(tmp_path.glob("*/values.npy"))[0]
    values.write_bytes(damage(values.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged; computed again"):
        again = nsd(tree[0], cache=tmp_path).responses.values
    np.testing.assert_array_equal(again, first)
    assert len(names(tmp_path)) == 2


def test_constant_voxels_are_told_of_what_is_kept_too(own, tmp_path):
    path = next(own.glob("nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLM*/betas_session01.hdf5"))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    with h5py.File(path, "r+") as handle:
        handle["betas"][:] = 7
    for _ in range(2):
        with pytest.warns(UserWarning, match="constant within at least one session"):
            nsd(own, file_format="hdf5", cache=tmp_path)


FULL = """
import resource, sys
from neuroenc import data
from neuroenc._core.errors import DataError
for file_format in ("hdf5", "nii.gz"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        data.nsd(sys.argv[1], 1, voxels="V1", rois=False, sessions=[1], cache=sys.argv[2], max_memory=20_000,
                 file_format=file_format, progress=False)
    except DataError as error:
        print(error)
"""


def test_a_disk_that_takes_no_more_is_told_as_such(tree, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tree[0], tmp_path / "cache", "3000"], text=True, capture_output=True, check=True
    )
    assert done.stdout.count("cannot write") == 2
    assert "download" not in done.stdout


def test_a_cache_that_cannot_be_written_is_told(tree, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"cannot write .*Next step: choose another folder"):
            nsd(tree[0], cache=folder)


def test_packed_betas_that_fail_their_checksum_are_refused(own):
    path = next(own.glob("nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLM*/betas_session01.nii.gz"))
    content = bytearray(path.read_bytes())
    # The checksum stands in the last eight bytes.
    content[-8] ^= 255
    path.unlink()
    path.write_bytes(content)
    assert nib.load(path).dataobj[0, 0, 0, 0] is not None
    with pytest.raises(DataError, match=r"betas_session01\.nii\.gz.*(CRC|damaged)"):
        nsd(own, sessions=1, file_format="nii.gz", cache=False)
