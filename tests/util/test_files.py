import json

import pytest

from neuroenc._util.files import atomic_path, write_json


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
