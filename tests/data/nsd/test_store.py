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
from neuroenc.data.datasets._nsd import _store

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
    assert len(names(cache)) == 2
    assert all(n.endswith(".zarr") for n in names(cache))


@pytest.mark.parametrize("step", ["create", "session", "rename", "notes"])
def test_a_kill_at_any_step_leaves_the_same_store(tree, tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    left = [{"create": 1, "session": 2, "rename": 1, "notes": 1}[step]]
    target = {
        "create": (_store, "_create"),
        "session": (_store, "write_json"),
        "rename": (_store.os, "replace"),
        "notes": (_store.Path, "unlink"),
    }[step]
    original = getattr(*target)

    def killing(*args, **kwargs):
        if step == "create":
            original(*args, **kwargs)
        if step != "notes" or (args[0].suffix == ".json" and args[0].with_suffix(".zarr").is_dir()):
            left[0] -= 1
            if not left[0]:
                raise Killed
        return original(*args, **kwargs) if step != "create" else None

    monkeypatch.setattr(*target, killing)
    with pytest.raises(Killed):
        nsd(tree[0], cache=tmp_path)
    monkeypatch.undo()
    values = nsd(tree[0], cache=tmp_path).responses.values
    np.testing.assert_allclose(values, nsd(tree[0], cache=False).responses.values, atol=1e-6)
    assert [n for n in names(tmp_path) if not n.startswith(".")] == [p for p in names(tmp_path) if p.endswith(".zarr")]


def test_notes_of_a_store_that_is_gone_count_for_nothing(tree, tmp_path):
    first = nsd(tree[0], cache=tmp_path).responses.values
    store = next(tmp_path.glob("*.zarr"))
    # What a kill between taking the old store away and writing the new one's notes would leave.
    store.with_suffix(".json").write_text('{"done": [0, 1, 2, 3, 4, 5]}')
    for path in sorted(store.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    store.rmdir()
    np.testing.assert_array_equal(nsd(tree[0], cache=tmp_path).responses.values, first)


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


def test_a_damaged_store_is_named(tree, tmp_path):
    nsd(tree[0], cache=tmp_path)
    store = next(tmp_path.glob("*.zarr"))
    chunk = max((p for p in (store / "responses").rglob("*") if p.is_file() and p.name[0] != "."), key=os.path.getsize)
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=rf"stored responses .*{store.name} cannot be read.*remove that folder"):
        nsd(tree[0], cache=tmp_path)


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
