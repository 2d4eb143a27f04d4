import json
import os
import subprocess
import sys

import numpy as np
import pytest

from neuroenc._core import files
from neuroenc._core.errors import DataError
from neuroenc._core.files import (
    atomic_path,
    check_readable_file,
    hash_path,
    output_folder,
    paired_file,
    read_json,
    read_npy,
    read_sealed_json,
    recover,
    remove_leftovers,
    write_json,
    write_pair,
    write_sealed_json,
)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_directory_is_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with atomic_path(tmp_path / "store", directory=True) as temporary:
            (temporary / "x").write_text(text)
    assert (tmp_path / "store" / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_nan_becomes_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.0, float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.0, None]}


def test_a_folder_is_swapped_in_one_step_where_the_system_can(tmp_path, monkeypatch):
    target = tmp_path / "store"
    with atomic_path(target, directory=True) as temporary:
        (temporary / "x").write_text("one")
    moved = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append((a, b)), real(a, b)))
    with atomic_path(target, directory=True) as temporary:
        (temporary / "x").write_text("two")
    assert (target / "x").read_text() == "two"
    if sys.platform == "linux":
        assert not moved, "the old folder was moved away before the new one stood in its place"


@pytest.mark.skipif(os.geteuid() != 0 and sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_path(tmp_path):
    with pytest.raises(DataError, match=r"maps\.bin.*full"), atomic_path(tmp_path / "maps.bin") as temporary:  # noqa: PT012
        temporary.touch()
        with open("/dev/full", "wb", buffering=0) as handle:
            handle.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_needed_is_told(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="out"):
        write_json(tmp_path / "out" / "summary.json", {})


def test_damaged_json_is_named(tmp_path):
    for name, content in {"cut.json": b'{"a": ', "bytes.json": b"\xff\xfe\x00{", "deep.json": b"[" * 100_000}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_json(tmp_path / name)


def test_fifos_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "FIFO"), ("/dev/zero", "device"), (tmp_path, "folder")):
        with pytest.raises(DataError, match=kind):
            check_readable_file(path)


def test_a_sealed_record_that_was_edited_is_refused(tmp_path):
    path = tmp_path / "encoder.json"
    write_sealed_json(path, {"roi": ["V1", "FFA"], "alpha": float("nan"), "n": np.int64(3)})
    assert read_sealed_json(path) == {"roi": ["V1", "FFA"], "alpha": None, "n": 3}
    path.write_text(path.read_text().replace("FFA", "PPA"))
    with pytest.raises(DataError, match=r"encoder\.json was changed"):
        read_sealed_json(path)
    write_json(path, {"roi": []})
    with pytest.raises(DataError, match="seal"):
        read_sealed_json(path)
    write_sealed_json(path, {"roi": []})
    with pytest.raises(DataError, match="alpha"):
        read_sealed_json(path, needed=("alpha",))


def test_the_hash_of_a_folder_follows_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w").write_text("1")
    first = hash_path(tmp_path / "a")
    (tmp_path / "a" / ".leftover").write_text("x")
    assert hash_path(tmp_path / "a") == first
    (tmp_path / "a" / "w").write_text("2")
    assert hash_path(tmp_path / "a") != first


def test_leftovers_of_dead_processes_are_removed_and_those_of_others_stay(tmp_path):
    script = (
        "import os, sys\nfrom neuroenc._core.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n    temporary.write_text('half')\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a" / "x.nc")], check=False)
    assert len(list((tmp_path / "a").iterdir())) == 1
    with atomic_path(tmp_path / "a" / "y.nc") as mine:
        mine.write_text("whole")
        foreign = tmp_path / "a" / ".z.nc.k3j.00000000-1.tmp"
        foreign.mkdir()
        assert remove_leftovers(tmp_path) == 1
        assert mine.exists()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [foreign.name, "y.nc"]


def test_an_output_folder_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="file"):
            output_folder(path)
    assert list(output_folder(tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("swaps", [True, False])
def test_a_stop_while_a_folder_is_replaced_leaves_one_whole(tmp_path, monkeypatch, swaps):
    """An exception at any rename, on systems that swap names and on those that do not."""
    real = os.replace
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for number in range(3):
        target = tmp_path / f"store{number}"
        target.mkdir()
        (target / "x").write_text("old")
        calls = []

        def stopped(a, b, number=number, calls=calls):
            calls.append(b)
            if len(calls) == number + 1:
                raise KeyboardInterrupt
            real(a, b)

        monkeypatch.setattr(os, "replace", stopped)
        try:
            with atomic_path(target, directory=True) as folder:
                (folder / "x").write_text("new")
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.setattr(os, "replace", real)
        assert (target / "x").read_text() in ("old", "new")
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_leftovers_give_back_what_they_took_away(tmp_path):
    """A process of this machine that has ended had moved a folder away for its replacement."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mark = files._leftover_mark().replace(f"-{os.getpid()}.", f"-{dead.pid}.")
    for name in ("a", "b"):
        (tmp_path / f".{name}.x{mark}" / f"{name}.old").mkdir(parents=True)
    (tmp_path / f".b.x{mark}" / "b").mkdir()
    assert recover(tmp_path / "a")
    assert remove_leftovers(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert not recover(tmp_path / "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\x89HDF", "is not .npy"), (b"\x93NUMPY\x01\x00", "is cut short")],
)
def test_arrays_that_cannot_be_read_are_named(tmp_path, content, message):
    (tmp_path / "y.npy").write_bytes(content)
    with pytest.raises(DataError, match=rf"y\.npy {message}"):
        read_npy(tmp_path / "y.npy")
    np.savez(tmp_path / "z.npy", a=np.zeros(2))
    with pytest.raises(DataError, match=r"z\.npy"):
        read_npy(tmp_path / "z.npy.npz")


def _killed_at(number, behind, work):
    """Do ``work`` in a process that ends at its rename ``number``, before or behind it; whether it ended there."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    done = 0

    def watched(rename):
        def call(*args):
            nonlocal done
            done += 1
            if done == number and not behind:
                os._exit(9)
            result = rename(*args)
            if done == number:
                os._exit(9)
            return result

        return call

    try:
        os.replace, files._exchange = watched(os.replace), watched(files._exchange)
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("beside", [False, True])
def test_a_kill_leaves_the_old_pair_or_the_new_one(tmp_path, monkeypatch, beside):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is cut here

    def save(folder, text):
        write_pair(folder, "arrays.bin", lambda path: path.write_text(text), "record.json", {"text": text})

    def prepared(name):
        (tmp_path / name).mkdir()
        if beside:
            (tmp_path / name / "curves.csv").write_text("x")
        save(tmp_path / name, "old")
        return tmp_path / name

    whole = prepared("whole")
    save(whole, "new")
    seen, number = set(), 0
    while True:
        number += 1
        killed = 0
        for behind in (False, True):
            folder = prepared(f"{number}{behind}")
            if _killed_at(number, behind, lambda folder=folder: save(folder, "new")):
                killed += 1
                record = read_sealed_json(folder / "record.json")
                found = paired_file(folder, "arrays.bin", record["sha256"]).read_text()
                assert found == record["text"]
                seen.add(found)
            # Another model is saved over what the kill left, killed too, and then again.
            _killed_at(number, behind, lambda folder=folder: save(folder, "third"))
            record = read_sealed_json(folder / "record.json")
            assert paired_file(folder, "arrays.bin", record["sha256"]).read_text() == record["text"]
            save(folder, "new")
            remove_leftovers(tmp_path)
            assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole.iterdir())
            assert all(p.read_bytes() == (whole / p.name).read_bytes() for p in folder.iterdir())
        if not killed:
            break
    assert seen == {"old", "new"}
    assert number > 2
