"""Steps of a run are found by the content of what they read, and made again where a file was damaged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc.data import Stimuli
from neuroenc.retrieval import as_bank
from neuroenc.workflows import example_caption_config
from neuroenc.workflows._caption_contents import captioner_content
from neuroenc.workflows._steps import Steps, content_key

ROWS = np.arange(12.0).reshape(4, 3)


def test_banks_of_one_size_and_name_differ_by_rows_ids_and_order(tmp_path):
    np.save(tmp_path / "one.npy", ROWS)
    np.save(tmp_path / "two.npy", ROWS[::-1])
    ids = list("abcd")
    found = [
        content_key(as_bank(ROWS)),
        content_key(as_bank(ROWS, ids)),
        content_key(as_bank(ROWS, ids[::-1])),
        content_key(as_bank(ROWS + 1)),
        content_key(as_bank(tmp_path / "two.npy")),
    ]
    assert len(set(found)) == 5
    assert content_key(as_bank(tmp_path / "one.npy")) == found[0] == content_key(as_bank([ROWS[:1], ROWS[1:]]))


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
    config = example_caption_config("world")
    for name in ("seed", "title"):
        other = dataclasses.replace(config, **{name: 7 if name == "seed" else "x"})
        assert content_key(other) != content_key(config)
    assert content_key(dataclasses.replace(config, notes=["x"])) != content_key(config)


@pytest.mark.parametrize("harm", ["cut", "edited", "emptied"])
def test_damaged_files_are_made_again(tmp_path, harm):
    said: list[str] = []
    steps = Steps(tmp_path, said.append)
    table = pd.DataFrame({"voxel": [1, 2], "lift": [np.inf, np.nan], "word": ["a", "b"], "told": [True, False]})
    array = xr.Dataset({"x": ("voxel", np.arange(50.0))}, coords={"voxel": np.arange(50)})
    calls: list[str] = []

    def frames():
        return steps.frames("t", {"a": 1}, lambda: calls.append("t") or {"one": table})["one"]

    def arrays():
        return steps.arrays("x", {"a": 1}, lambda: calls.append("x") or array)

    pd.testing.assert_frame_equal(frames(), table, check_dtype=False)
    assert arrays().identical(array)
    frames(), arrays()
    assert calls == ["t", "x"]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        at = len(content) // 2
        changed = {"cut": content[:at], "edited": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]}
        path.write_bytes(changed.get(harm, b""))
    pd.testing.assert_frame_equal(frames(), table, check_dtype=False)
    assert arrays().identical(array)
    assert calls == ["t", "x", "t", "x"]
    assert sum("is damaged; computed again" in line for line in said) == 2
    frames(), arrays()
    assert len(calls) == 4
