"""Results are whole or not there: pieces, kills, full disks, processes that share a folder, and shared arrays."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from neuroenc._core import store as module
from neuroenc._core.cache import cache_list
from neuroenc._core.errors import StorageError
from neuroenc._core.executor import Executor
from neuroenc._core.store import Blocks, Store, Tensors


def test_pieces_are_one_array(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((10, 2, 3)).astype(np.float32)
    store = Store(tmp_path)

    def make():
        return {"values": Blocks(10, (rows[k : k + 4] for k in range(0, 10, 4)))}

    found = store.keep("rows", [1], make)["values"]
    np.testing.assert_array_equal(found, rows)
    assert found.flags.writeable
    assert isinstance(Store(tmp_path, mapped=True).read("rows", [1])["values"], np.memmap)
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    assert isinstance(store.read("rows", [1])["values"], np.memmap)


@pytest.mark.parametrize("tensors", [{"a": np.arange(3), "b": np.zeros((0, 2))}, {}, "torch"])
def test_tensors_come_back_in_their_framework(tmp_path, tensors):
    if tensors == "torch":
        torch = pytest.importorskip("torch")
        tensors = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.arange(3)}
    found = Store(tmp_path).keep("model", [1], lambda: {"weights": Tensors(tensors)})["weights"]
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert type(found[name]) is type(value)
        assert found[name].tolist() == value.tolist()


def test_a_later_state_takes_the_place_of_an_earlier(tmp_path):
    store = Store(tmp_path)
    for step in range(3):
        store.write("training", "key", {"step": step})
    assert store.read("training", "key") == {"step": 2}
    assert store.read("training", "other") is None
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_done_of_a_result_goes_when_it_is_there(tmp_path):
    store, calls = Store(tmp_path), []
    part = store.part("whole", [1])

    def make(stop):
        for number in range(3):
            if number == stop:
                raise KeyboardInterrupt
            part.keep("piece", number, lambda: calls.append(1) or {})
        return {"n": 3}

    with pytest.raises(KeyboardInterrupt):
        store.keep("whole", [1], lambda: make(2))
    assert part.folder.is_dir()
    assert store.keep("whole", [1], lambda: make(None)) == {"n": 3}
    assert len(calls) == 3
    assert [p.name for p in tmp_path.iterdir()] == [store.path("whole", [1]).name]


FULL = """
import resource, sys
import numpy as np
from neuroenc._core.errors import StorageError
from neuroenc._core.store import Blocks, Store, Tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
rows = np.ones((10, 1000))
for value in (rows, Blocks(10, iter([rows])), Tensors(a=rows), rows.tolist()):
    try:
        Store(sys.argv[1]).keep("a", [type(value).__name__], lambda: {"values": value})
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "x")], text=True, capture_output=True)
    assert done.stderr == ""
    assert done.stdout.count("cannot write") == 4
    assert list((tmp_path / "x").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        Store(tmp_path / "file" / "x").keep("a", [1], dict)


KILLED = """
import sys, time
from neuroenc._core.store import Store
store = Store(sys.argv[1])
def make():
    for number in range(6):
        store.part("whole", 1).keep("piece", number, lambda: {"n": (time.sleep(0.1), number)[1]})
    return {"n": 6}
print("begun", flush=True)
print(store.keep("whole", 1, make)["n"])
"""


def test_who_waits_for_a_process_that_is_killed_goes_on_from_its_pieces(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    first, second = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    for process in (first, second):
        assert process.stdout.readline() == "begun\n"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert second.communicate()[0].strip() == "6"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_claim_of_a_process_that_is_silent_counts_no_more(tmp_path):
    store = Store(tmp_path)
    claim = tmp_path / f".{store.path('a', 1).name}.claim"
    # Alive (the first process of all), but without a sign of life: its number was given to another.
    claim.write_text(json.dumps([platform.node(), 1]))
    os.utime(claim, (0, 0))
    assert store.keep("a", 1, lambda: {"n": 1}) == {"n": 1}


def test_two_threads_may_put_one_result_in_its_place_at_once(tmp_path):
    both = threading.Barrier(2, timeout=20)

    def make():
        both.wait()
        return {"n": np.ones(2)}

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: Store(tmp_path).keep("a", 1, make), range(2)):
            assert found["n"].tolist() == [1.0, 1.0]
    assert len(list(tmp_path.iterdir())) == 1


def test_who_waits_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 1)
    said = []
    store = Store(tmp_path, said.append)
    claim = tmp_path / f".{store.path('a', 1).name}.claim"
    claim.write_text(json.dumps([platform.node(), 1]))
    threading.Timer(0.6, lambda: claim.unlink()).start()
    store.keep("a", 1, lambda: {"n": 1})
    assert "made by another process" in said[0]
    assert len(said) == 2


def test_what_a_study_keeps_is_listed(tmp_path):
    Store(tmp_path / "out" / ".steps").keep("scores", 1, lambda: {"n": np.zeros(1000)})
    Store(tmp_path / "out" / "deep" / ".training").write("training", 1, {"n": 1})
    Store(tmp_path / "out" / ".steps").part("fit", 2).keep("block", 1, dict)
    table = cache_list(tmp_path / "out").set_index("kind")
    assert table["complete"].to_dict() == {"scores": True, "training": True, "fit": False}
    assert table.loc["scores", "bytes"] > 8000


def square(shared):
    return float((shared.load() ** 2).sum())


def test_shared_arrays_go_with_the_executor_and_are_its_own(tmp_path):
    one, two = Executor(workers=2, show=False), Executor(workers=2, show=False)
    array = np.arange(5.0)
    shared = [executor.share(array, tmp_path) for executor in (one, two, two)]
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    one.close()
    assert two.map(square, [(s,) for s in shared[1:]]) == [30.0, 30.0]
    two.close()
    assert list(tmp_path.iterdir()) == []
