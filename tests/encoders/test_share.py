"""Encoders come out of a library as they went in, or not at all."""

import base64
import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

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


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as its client asks of it, for one repository."""

    protocol_version, commit = "HTTP/1.1", "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *args):
        pass

    def say(self, body, status=200, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kept, address = self.server.kept, f"http://{self.headers['Host']}/lab/v4"
        if self.path == "/api/repos/create":
            kept["made"] = json.loads(body)
            return self.say({"url": address, "id": "lab/v4"})
        if self.path == "/api/validate-yaml":
            kept["front"] = json.loads(body)["content"]
            return self.say({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.say({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                kept["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.say({"success": True, "commitOid": self.commit, "commitUrl": f"{address}/commit/{self.commit}"})

    def do_GET(self):
        files = self.server.kept["files"]
        if "/resolve/" in self.path:
            found = files.get(self.path.rpartition("/")[2])
            if found is None:
                return self.say({}, 404, X_Error_Code="EntryNotFound")
            return self.say(found, ETag=f'"{hashlib.sha1(found).hexdigest()}"', X_Repo_Commit=self.commit)
        if "/tree/" in self.path:
            return self.say([{"type": "file", "path": k, "size": len(v), "oid": k} for k, v in files.items()])
        if not self.path.startswith("/api/models/lab/v4"):
            return self.say({}, 404, X_Error_Code="RepoNotFound")
        named = [{"rfilename": name} for name in files]
        return self.say({"id": "lab/v4", "sha": self.commit, "siblings": named, "private": True, "tags": []})

    do_HEAD = do_GET


def test_a_hub(library, tmp_path, monkeypatch):
    """By the hub's own client, to and from a hub on this machine."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.kept = {"files": {}}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    new = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "hub")}
    for name, value in {**new, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    try:
        assert push_encoder(tmp_path / "mine", "hf://lab/v4", private=True) == "hf://lab/v4"
        made = server.kept["made"]
        assert made.get("private") or made.get("visibility") == "private", made
        assert "library_name: neuroenc" in server.kept["front"]
        (tmp_path / "mine" / "notes.txt").write_text("of nobody else")
        push_encoder(tmp_path / "mine", "hf://lab/v4")
        assert sorted(server.kept["files"]) == ["README.md", "arrays.safetensors", "encoder.json"]
        assert load_encoder(pull_encoder("hf://lab/v4", tmp_path / "here")).card.title == "Mine"
        with pytest.raises(DataError, match="lab/none"):
            pull_encoder("hf://lab/none", tmp_path / "not")
    finally:
        server.shutdown()
        server.server_close()
    for wrong in ("hf://lab", "hf://lab/v4/file", "hf://../.."):
        with pytest.raises((ConfigError, DataError)):
            pull_encoder(wrong, tmp_path / "not")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'neuroenc\[clip\]'"):
        push_encoder(tmp_path / "mine", "hf://lab/v4")
