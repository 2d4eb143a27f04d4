"""Steps of a run are found by the content of what they read, and made again where a file was damaged."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.store import Store, content_key
from neuroenc.captions.projection._stream import bank_hash
from neuroenc.data import Stimuli
from neuroenc.retrieval import as_bank
from neuroenc.study import example_config
from neuroenc.study.stages.bank import captioner_content

ROWS = np.arange(12.0).reshape(4, 3)


def test_banks_of_one_size_and_name_differ_by_rows_ids_and_order(tmp_path):
    np.save(tmp_path / "one.npy", ROWS)
    np.save(tmp_path / "two.npy", ROWS[::-1])
    ids = list("abcd")
    found = [
        bank_hash(as_bank(ROWS)),
        bank_hash(as_bank(ROWS, ids)),
        bank_hash(as_bank(ROWS, ids[::-1])),
        bank_hash(as_bank(ROWS + 1)),
        bank_hash(as_bank(tmp_path / "two.npy")),
    ]
    assert len(set(found)) == 5
    assert bank_hash(as_bank(tmp_path / "one.npy")) == found[0] == bank_hash(as_bank([ROWS[:1], ROWS[1:]]))


def test_labels_attributes_captions_and_files_are_content(tmp_path):
    one = xr.Dataset({"r": ("voxel", [0.1, 0.2])}, coords={"voxel": [3, 4], "roi": ("voxel", ["V1", ""])})
    others = [
        one.assign_coords(voxel=[4, 3]),
        one.assign_coords(roi=("voxel", ["V2", ""])),
        one.assign_attrs(space="MNI"),
        one.assign(r=one["r"] + 1),
    ]
    assert all(content_key(x) != content_key(one) for x in others)
    assert content_key(one) == content_key(one.copy(deep=True))
    told = Stimuli(["a"], captions=[["a dog"]])
    assert content_key(told) != content_key(Stimuli(["a"], captions=[["a cat"]]))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "w").write_text("1")
    before = content_key(tmp_path / "x")
    (tmp_path / "x" / "w").write_text("2")
    assert content_key(tmp_path / "x") != before


def test_a_captioner_that_was_trained_again_in_its_folder_is_another(tmp_path):
    (tmp_path / "prefix.safetensors").write_bytes(b"one")
    before = captioner_content(str(tmp_path))
    (tmp_path / "prefix.safetensors").write_bytes(b"two")
    assert captioner_content(str(tmp_path)) != before
    assert captioner_content("world") != captioner_content("photo") != ""


def test_every_setting_is_part_of_the_key():
    config = example_config("world", command="caption")
    for name in ("seed", "title"):
        other = config.model_copy(update={name: 7 if name == "seed" else "x"})
        assert content_key(other) != content_key(config)
    assert content_key(config.model_copy(update={"notes": ["x"]})) != content_key(config)


@pytest.mark.parametrize("harm", ["cut", "edited", "emptied"])
def test_damaged_files_are_made_again(tmp_path, harm):
    said: list[str] = []
    store = Store(tmp_path, said.append)
    table = pd.DataFrame({"voxel": [1, 2], "lift": [np.inf, np.nan], "word": ["a", "b"], "told": [True, False]})
    array = xr.Dataset({"x": ("voxel", np.arange(50.0))}, coords={"voxel": np.arange(50)})
    calls: list[str] = []

    def kept():
        found = store.keep(
            "t", {"a": 1}, lambda: calls.append("t") or {"one": table, "two": array, "three": [1.5, None]}
        )
        pd.testing.assert_frame_equal(found["one"], table, check_dtype=False)
        assert found["two"].identical(array)
        assert found["three"] == [1.5, None]

    kept()
    kept()
    assert calls == ["t"]
    for path in next(tmp_path.iterdir()).iterdir():
        content = path.read_bytes()
        at = len(content) // 2
        changed = {"cut": content[:at], "edited": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]}
        path.write_bytes(changed.get(harm, b""))
        kept()
    assert calls == ["t"] * 5
    assert sum("is damaged; computed again" in line for line in said) == 4
    kept()
    assert len(calls) == 5


def test_two_processes_make_a_result_once(tmp_path):
    """Who finds a result in the making waits for it; who finds the claim of a dead process takes over."""
    code = (
        "import sys, time, pathlib\n"
        "from neuroenc._core.store import Store\n"
        "def work():\n"
        "    time.sleep(1.5)\n"
        "    with open(sys.argv[2], 'a') as f: f.write('x')\n"
        "    return {'n': 1}\n"
        "print(Store(sys.argv[1]).keep('slow', [1], work))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "made")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in both] == ["{'n': 1}"] * 2
    assert (tmp_path / "made").read_text() == "x"
    store = Store(tmp_path / "store")
    claim = store.path("late", [2])
    claim.with_name(f".{claim.name}.claim").write_text(json.dumps([platform.node(), 2**22 + 1]))
    assert store.keep("late", [2], lambda: {"n": 2}) == {"n": 2}
    claim.with_name(f".{claim.name}.claim").write_text(json.dumps([platform.node(), 2**22 + 1]))
    assert store.keep("late", [2], lambda: {"n": 3}) == {"n": 2}
    assert not list((tmp_path / "store").glob(".*.claim"))
