"""Folders of models: one format, changed ones refused, shipped ones whole."""

import json
import stat

import numpy as np
import pytest

from neuroenc._core.errors import DataError
from neuroenc._core.weights import Kind, read_folder, write_folder

KIND = Kind("toy", "toy.json", "toy.safetensors", ("settings",))


def test_a_folder_comes_back_and_vouches_for_itself(tmp_path):
    path = write_folder(tmp_path / "m", KIND, {"settings": {"a": (1, 2)}}, {"x": np.arange(3.0)})
    record, tensors = read_folder(path, KIND, "numpy")
    assert record["settings"] == {"a": [1, 2]}
    assert (record["kind"], record["format"]) == ("toy", 3)
    assert tensors["x"].tolist() == [0, 1, 2]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()}
    assert len(modes) == 1
    for change in (
        lambda r: {**r, "format": 4},
        lambda r: {**r, "kind": "other"},
        lambda r: {**r, "settings": {}},
        lambda r: {k: v for k, v in r.items() if k != "sha256"},
        lambda r: {k: v for k, v in r.items() if k != "seal"},
    ):
        (tmp_path / "n").mkdir(exist_ok=True)
        for file in path.iterdir():
            (tmp_path / "n" / file.name).write_bytes(file.read_bytes())
        about = json.loads((path / "toy.json").read_text())
        (tmp_path / "n" / "toy.json").write_text(json.dumps(change(about)))
        with pytest.raises(DataError, match="Next step"):
            read_folder(tmp_path / "n", KIND)


def test_further_files_are_sealed_too(tmp_path):
    kind = KIND._replace(others=("*.txt",))
    path = write_folder(
        tmp_path / "m", kind, {"settings": {}}, {"x": np.ones(2)}, lambda f: (f / "words.txt").write_text("a b")
    )
    assert read_folder(path, kind)[0]["files"].keys() == {"words.txt"}
    (path / "words.txt").write_text("a c")
    with pytest.raises(DataError, match=r"words\.txt is not the file"):
        read_folder(path, kind)
    (path / "words.txt").unlink()
    with pytest.raises(DataError, match=r"words\.txt is missing"):
        read_folder(path, kind)


def test_shipped_models_load():
    pytest.importorskip("transformers")
    from neuroenc.captions import load_captioner
    from neuroenc.encoders.incontext import load_model

    assert load_model("world").config.n_features
    assert load_captioner("photo", device="cpu").embedding_dim
