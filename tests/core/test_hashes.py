"""Hashes of files that have not changed are remembered; those of files that have are not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from neuroenc._core import hashes
from neuroenc._core.files import hash_path, sha256_file

SIZE = 100_000


@pytest.fixture(autouse=True)
def reads(tmp_path, monkeypatch):
    """Names of the files that are read, with a table of their own; files count as settled at once."""
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED", -1e9)
    found, digest = [], hashlib.file_digest

    def counted(handle, name):
        found.append(os.path.basename(handle.name))
        return digest(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


def forget():
    """What another process would know: the table alone."""
    hashes._table.cache_clear()


def true(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_once_and_a_small_one_always(tmp_path, reads):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"x" * SIZE)
    small.write_bytes(b"x" * 100)
    for _ in range(3):
        forget()
        assert sha256_file(large) == true(large)
        assert sha256_file(small) == true(small)
    assert reads.count("large") == 1
    assert reads.count("small") == 3
    assert sha256_file(large, anew=True) == true(large)
    assert reads.count("large") == 2


def test_hashes_anew_when_asked_to_verify(tmp_path, reads, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(b"x" * SIZE)
    sha256_file(path)
    monkeypatch.setenv("NEUROENC_VERIFY", "1")
    sha256_file(path)
    assert reads == ["large"] * 2


@pytest.mark.parametrize("edit", ["in place", "restored time", "replaced", "grown", "another file"])
def test_an_edited_file_is_read_again(tmp_path, edit):
    path = tmp_path / "folder" / "large"
    path.parent.mkdir()
    path.write_bytes(b"x" * SIZE)
    before, stat, folder = sha256_file(path), path.stat(), hash_path(path.parent)
    time.sleep(0.05)
    if edit == "grown":
        path.write_bytes(b"x" * (SIZE + 1))
    elif edit == "replaced":
        other = tmp_path / "other"
        other.write_bytes(b"y" * SIZE)
        os.replace(other, path)
    else:
        path.write_bytes(b"y" * SIZE)
    if edit in ("restored time", "replaced"):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if edit == "another file":
        path = path.rename(path.with_name("elsewhere"))
    forget()
    assert sha256_file(path) == true(path) != before
    assert hash_path(path.parent) != folder


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(hashes, "_SETTLED", 60.0)
    path = tmp_path / "large"
    path.write_bytes(b"x" * SIZE)
    assert sha256_file(path) == sha256_file(path)
    assert reads == ["large"] * 2


TWO = """
import sys
from neuroenc._core import hashes
hashes._SETTLED = -1e9
for n in range(40):
    hashes.file_sha256(f"{sys.argv[1]}/{n}")
"""


def test_two_processes_write_one_table(tmp_path, reads):
    rng = np.random.default_rng(0)
    for n in range(40):
        (tmp_path / str(n)).write_bytes(rng.bytes(SIZE))
    both = [subprocess.Popen([sys.executable, "-c", TWO, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    # A line that a full disk cut short, and one that is not ours.
    with open(hashes.table_path(), "ab") as table:
        table.write(b'1234abcd ["/x", 1')
    for n in range(40):
        assert sha256_file(tmp_path / str(n)) == true(tmp_path / str(n))
    assert reads == []
    path = tmp_path / "0"
    path.write_bytes(b"z" * SIZE)
    sha256_file(path)
    forget()
    sha256_file(path)
    assert reads == ["0"]


FULL = """
import resource, sys
from neuroenc._core import hashes
hashes._SETTLED = -1e9
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
print(hashes.file_sha256(sys.argv[1]))
"""


def test_a_disk_that_takes_no_more_is_no_matter(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"x" * SIZE)
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == true(path)
    assert sha256_file(path) == true(path)
