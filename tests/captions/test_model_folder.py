"""Folders of models: written whole, and refused where a file was changed, cut short or is foreign."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.weights import whole_folder
from neuroenc.captions import PrefixDecoder, SyntacticDistanceParser, make_language_model

TEXTS = ["a face", "a house", "a dog", "two dogs near a house"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    lm, tokenizer = make_language_model(TEXTS, width=16, layers=1)
    options = {"device": "cpu", "batch_size": 7, "free_words": ["a"]}
    decoder = PrefixDecoder(lm, tokenizer, 4, prefix_length=2, stop="<end>", **options)
    decoder.save(root / "decoder")
    small = {"dim": 8, "layers": 1, "heads": 1, "parser_layers": 1, "parser_width": 3, "min_count": 1}
    parser = SyntacticDistanceParser(**small, device="cpu")
    parser.fit(TEXTS * 4, steps=2, progress=False).save(root / "parser")
    return root


LOADERS = {
    "decoder": (PrefixDecoder.load, "decoder.json", "prefix.safetensors"),
    "parser": (SyntacticDistanceParser.load, "parser.json", "parser.safetensors"),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_changed_files_are_one_error(folders, kind):
    load, record, weights = LOADERS[kind]
    load(folders / kind, device="cpu")
    for name in (record, weights):
        path = folders / kind / name
        content = path.read_bytes()
        at = len(content) // 2
        others = [content[:at], b"", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], b"[1, 2]", b"{}"]
        if name == record:
            about = json.loads(content)
            settings = "search" if kind == "decoder" else "settings"
            about[settings] = {**about[settings], next(iter(about[settings])): 3}
            others.append(json.dumps(about).encode())
            # Without a seal and a part.
            others.append(json.dumps({k: v for k, v in about.items() if k not in ("seal", settings)}).encode())
        for changed in others:
            path.write_bytes(changed)
            with pytest.raises(DataError, match="Next step"):
                load(folders / kind, device="cpu")
        path.unlink()
        with pytest.raises(DataError, match="Next step"):
            load(folders / kind, device="cpu")
        path.write_bytes(content)
    load(folders / kind, device="cpu")


def test_options_of_a_decoder_are_kept_or_refused(folders, tmp_path):
    read = PrefixDecoder.load(folders / "decoder", device="cpu")
    assert (read.batch_size, read.free_words) == (7, frozenset(["a"]))
    again = read.with_options(rerank=2.0, embed_text=lambda texts: np.ones((len(texts), 4)))
    again.save(tmp_path / "d")
    assert PrefixDecoder.load(tmp_path / "d", device="cpu").rerank == 2.0
    with pytest.raises(ConfigError, match="constraint, which is not saved"):
        read.with_options(without=["dog"]).save(tmp_path / "d")


def test_a_folder_with_other_things_is_not_replaced(folders, tmp_path):
    decoder = PrefixDecoder.load(folders / "decoder", device="cpu")
    (tmp_path / "thesis.docx").write_text("years")
    with pytest.raises(DataError, match=r"holds other things \(thesis.docx\)"):
        decoder.save(tmp_path)
    assert (tmp_path / "thesis.docx").read_text() == "years"


def test_a_failed_save_leaves_the_model_of_before(tmp_path):
    with whole_folder(tmp_path / "m", ("*.json",)) as folder:
        (folder / "a.json").write_text("1")

    def fail():
        with whole_folder(tmp_path / "m", ("*.json",)) as folder:
            (folder / "a.json").write_text("2")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "a.json").read_text() == "1"


@pytest.mark.slow
def test_a_new_process_captions_alike(folders):
    x = np.random.default_rng(1).standard_normal((3, 4))
    here = [c[0].text for c in PrefixDecoder.load(folders / "decoder", device="cpu").generate(x)]
    code = (
        "import sys, json, numpy as np; from neuroenc.captions import PrefixDecoder;"
        "d = PrefixDecoder.load(sys.argv[1], device='cpu');"
        "print(json.dumps([c[0].text for c in d.generate(np.random.default_rng(1).standard_normal((3, 4)))]))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folders / "decoder")], capture_output=True, text=True)
    assert json.loads(run.stdout.splitlines()[-1]) == here, run.stderr
