"""Encoders come out of a library as they went in, or not at all."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ChecksumError, ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.encoders import RidgeEncoder, encoder_table, list_encoders, load_encoder, pull_encoder, push_encoder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def library(tmp_path):
    """A library of two encoders, its address on this machine, and the encoder that went in."""
    rng = np.random.default_rng(0)
    X = data.make_features(rng.standard_normal((40, 4)), stimulus=[f"s{n}" for n in range(40)])
    Y = data.make_responses(X.values @ rng.standard_normal((4, 6)), stimulus=X.stimulus.values, dim="stimulus")
    encoder = RidgeEncoder([0.01], progress=False).fit(X, Y)
    encoder.save(tmp_path / "mine", {"title": "Mine", "subject": "s1"})
    push_encoder(tmp_path / "mine", tmp_path / "library")
    push_encoder(tmp_path / "mine", tmp_path / "library", "other")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "library")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield tmp_path / "library", f"http://127.0.0.1:{server.server_address[1]}", encoder
    server.shutdown()
    server.server_close()


def test_pushed_and_pulled(library, tmp_path):
    folder, address, encoder = library
    for source in (str(folder), address):
        table = encoder_table(source).set_index("name")
        assert table["n_voxels"].to_dict() == {"mine": 6, "other": 6}
        assert table.loc["mine", ["title", "subject"]].tolist() == ["Mine", "s1"]
        found = pull_encoder(f"{source}/mine", tmp_path / "here", progress=False)
        for file in ("encoder.json", "arrays.safetensors", "README.md"):
            assert (found / file).read_bytes() == (tmp_path / "mine" / file).read_bytes()
        np.testing.assert_array_equal(load_encoder(found).coef_, encoder.coef_)
    done = CliRunner().invoke(app, ["encoder", "pull", f"{address}/mine"])
    assert done.exit_code == 0, done.output
    # By its name from here on.
    assert "mine" in list_encoders()
    assert load_encoder("mine").card.title == "Mine"
    assert "6 voxels" in CliRunner().invoke(app, ["encoder", "list", address]).output
    assert "# Mine" in CliRunner().invoke(app, ["encoder", "show", "mine"]).output


def test_what_is_not_as_promised_is_not_kept(library, tmp_path):
    folder, address, _ = library
    target, sources = tmp_path / "kept" / "here", (str(folder / "mine"), f"{address}/mine")
    arrays = folder / "mine" / "arrays.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for source in sources:
        with pytest.raises(ChecksumError, match="the index promises"):
            pull_encoder(source, target, progress=False)
    # Whoever makes the index fit the change meets the encoder's own seal.
    with pytest.raises(DataError, match="not the file that was saved"):
        push_encoder(folder / "mine", tmp_path / "again")
    arrays.write_bytes(whole + b"more than the index says")
    with pytest.raises(DataError, match="gives more than"):
        pull_encoder(sources[1], target, progress=False)
    arrays.write_bytes(whole)
    for source in sources:
        with pytest.raises(DataError, match="allowed are 1,000"):
            pull_encoder(source, target, max_size="1kB", progress=False)
    assert not target.exists()
    assert not list((tmp_path / "kept").iterdir())
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="holds other things"):
        pull_encoder(sources[0], target, progress=False)
    assert [p.name for p in target.iterdir()] == ["thesis.tex"]


def test_an_index_that_leads_elsewhere_is_refused(library, tmp_path):
    folder, address, _ = library
    sound = (folder / "index.json").read_text()
    record = json.loads(sound)["encoders"]["mine"]["files"]["encoder.json"]
    for change in (
        lambda e: e["mine"]["files"].update({"../../evil.json": record}),
        lambda e: e["mine"]["files"].update({"/tmp/evil": record}),
        lambda e: e.update({"../evil": e["mine"]}),
        lambda e: e.update({".": e["mine"]}),
        lambda e: e["mine"]["files"].pop("encoder.json"),
        lambda e: e["mine"]["files"]["encoder.json"].update(size=-1),
        lambda e: e["mine"]["files"]["encoder.json"].update(size="1"),
        lambda e: e["mine"]["files"]["encoder.json"].update(sha256="0"),
        lambda e: e.update(mine=[]),
    ):
        index = json.loads(sound)
        change(index["encoders"])
        (folder / "index.json").write_text(json.dumps(index))
        for source in (folder, address):
            with pytest.raises(DataError, match="is not legal; expected a name of letters"):
                pull_encoder(f"{source}/mine", tmp_path / "here", progress=False)
    assert not (tmp_path / "here").exists()


def test_wrong_addresses(library, tmp_path):
    folder, address, _ = library
    options = {"out": tmp_path / "here", "progress": False}
    with pytest.raises(DataError, match=r"unknown encoder of http.*: 'mien'; did you mean 'mine'"):
        pull_encoder(f"{address}/mien", **options)
    with pytest.raises(DataError, match="answers 404"):
        pull_encoder(f"{address}/none/mine", **options)
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:9/index\.json"):
        pull_encoder("http://127.0.0.1:9/mine", **options)
    with pytest.raises(DataError, match="is no library of encoders"):
        pull_encoder(tmp_path / "mine", **options)
    with pytest.raises(ConfigError, match="names no encoder"):
        pull_encoder(f"{folder}/..", **options)
    with pytest.raises(ConfigError, match="is of kind ftp://"):
        pull_encoder("ftp://host/mine", **options)
    with pytest.raises(ConfigError, match="cannot be written to"):
        push_encoder("world-s1", address)
    push_encoder("world-s1", folder)
    with pytest.raises(ConfigError, match="shipped encoder, which would hide it"):
        pull_encoder(folder / "world-s1", progress=False)
    (folder / "index.json").write_text("<html>")
    with pytest.raises(DataError, match="is not JSON"):
        pull_encoder(f"{address}/mine", **options)


def test_a_hub(library, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    kept = {}

    class Api:
        def create_repo(self, name, private, exist_ok):
            kept["made"] = (name, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            kept[repo_id] = folder_path

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: kept[name])
    assert push_encoder(tmp_path / "mine", "hf://lab/v4", private=True) == "hf://lab/v4"
    assert kept["made"] == ("lab/v4", True, True)
    assert load_encoder(pull_encoder("hf://lab/v4", tmp_path / "here")).card.title == "Mine"
    for wrong in ("hf://lab", "hf://lab/v4/file", "hf://../.."):
        with pytest.raises((ConfigError, DataError)):
            pull_encoder(wrong, tmp_path / "not")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'neuroenc\[clip\]'"):
        push_encoder(tmp_path / "mine", "hf://lab/v4")
