"""Downloads by pooch against a real server on this machine; nothing is replaced but the waiting."""

import functools
import hashlib
import http.server
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from neuroenc._core.errors import ChecksumError, DataError
from neuroenc._core.files import everything_below
from neuroenc.data import fetch, presence, verify
from neuroenc.data._files import Manifest, ManifestFile, resolve

BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SMALL = b"second file"


class Server:
    """Serves BODY and SMALL; ``plan`` says what each of the next GET requests for big.bin gets."""

    def __init__(self):
        self.requests, self.plan, self.default = [], [], "ok"
        self.release = threading.Event()
        handler = functools.partial(Handler, self)
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.release.set()
        self.httpd.shutdown()
        self.httpd.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server, *args):
        self.owner = server
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.owner.requests.append(self.path)
        body = {"/big.bin": BODY, "/small.txt": SMALL, "/empty": b""}.get(self.path)
        if body is None:
            return self.send_error(404)
        how = "ok"
        if self.path == "/big.bin":
            how = self.owner.plan.pop(0) if self.owner.plan else self.owner.default
        if isinstance(how, int):
            return self.send_error(how)
        if how == "wrong":
            body = BODY[:-1] + bytes([BODY[-1] ^ 1])
        if how == "page":
            body = b"<html>please log in</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = how in ("truncate", "stall")
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
        if how == "stall":
            self.owner.release.wait(150)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one = Server()
    yield one
    one.stop()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Retries wait; here the seconds are written down instead."""
    seconds = []
    monkeypatch.setattr("pooch.core.time.sleep", seconds.append)
    return seconds


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROENC_MIRROR", raising=False)
    monkeypatch.delenv("NEUROENC_DATA", raising=False)
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path / "cache"))


def entry(path, body, url=""):
    return ManifestFile(path, url, hashlib.sha256(body).hexdigest(), len(body))


def manifest(url="", files=None):
    files = files or (
        entry("sub/big.bin", BODY, f"{url}/big.bin" if url else ""),
        entry("small.txt", SMALL, f"{url}/small.txt" if url else ""),
    )
    return Manifest("tiny", "t", "d", "CC0", "free", "none", files=tuple(files))


def left(folder):
    """Every file and temporary folder below a folder."""
    found = everything_below(folder)
    return sorted(str(p.relative_to(folder)) for p in found if p.is_file() or p.name.endswith(".tmp"))


def test_download_then_nothing_is_asked_again(server, tmp_path):
    folder = fetch(manifest(server.url), dest=tmp_path / "d")
    assert folder == tmp_path / "d" / "tiny"
    assert (folder / "sub" / "big.bin").read_bytes() == BODY
    assert left(folder) == ["small.txt", "sub/big.bin"]
    before = len(server.requests)
    fetch(manifest(server.url), dest=tmp_path / "d")
    assert len(server.requests) == before == 2


def test_default_places(server, tmp_path, monkeypatch):
    assert fetch(manifest(server.url)) == tmp_path / "cache" / "data" / "tiny"
    monkeypatch.setenv("NEUROENC_DATA", str(tmp_path / "else"))
    assert fetch(manifest(server.url), files="small.txt") == tmp_path / "else" / "tiny"
    assert left(tmp_path / "else") == ["tiny/small.txt"]


def test_empty_file(server, tmp_path):
    folder = fetch(manifest(files=[entry("empty", b"", f"{server.url}/empty")]), dest=tmp_path)
    assert (folder / "empty").read_bytes() == b""


@pytest.mark.parametrize("first", ["truncate", "wrong", 503, 429])
def test_transient_failures_are_retried(server, tmp_path, waits, first):
    server.plan = [first, first]
    fetch(manifest(server.url), dest=tmp_path)
    assert (tmp_path / "tiny" / "sub" / "big.bin").read_bytes() == BODY
    assert server.requests.count("/big.bin") == 3
    assert len(waits) == 2


@pytest.mark.parametrize("how", ["wrong", "page"])
def test_wrong_content_is_refused_and_nothing_is_left(server, tmp_path, how):
    server.default = how
    with pytest.raises(ChecksumError) as caught:
        fetch(manifest(server.url), dest=tmp_path)
    found = BODY[:-1] + bytes([BODY[-1] ^ 1]) if how == "wrong" else b"<html>please log in</html>"
    assert hashlib.sha256(BODY).hexdigest() in str(caught.value)
    assert hashlib.sha256(found).hexdigest() in str(caught.value)
    assert left(tmp_path) == []


@pytest.mark.parametrize("how", ["truncate", 404, 503])
def test_a_server_that_fails_is_named_and_nothing_is_left(server, tmp_path, how):
    server.default = how
    with pytest.raises(DataError) as caught:
        fetch(manifest(server.url), dest=tmp_path)
    assert f"{server.url}/big.bin" in str(caught.value)
    assert str(how) in str(caught.value) or how == "truncate"
    assert left(tmp_path) == []


def test_no_network_names_address_and_mirror_in_seconds(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        fetch(manifest("http://127.0.0.1:9"), dest=tmp_path)
    assert time.monotonic() - start + sum(waits) < 10
    assert "http://127.0.0.1:9/big.bin" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "NEUROENC_MIRROR" in str(caught.value)


def make_mirror(folder, big=BODY):
    (folder / "tiny" / "sub").mkdir(parents=True)
    (folder / "tiny" / "sub" / "big.bin").write_bytes(big)
    (folder / "tiny" / "small.txt").write_bytes(SMALL)
    return folder


def test_mirror_before_network(tmp_path, monkeypatch):
    mirror = make_mirror(tmp_path / "m")
    m = manifest("http://127.0.0.1:9")
    folder = fetch(m, dest=tmp_path / "d", mirror=mirror)
    assert (folder / "sub" / "big.bin").read_bytes() == BODY
    monkeypatch.setenv("NEUROENC_MIRROR", str(mirror))
    assert left(fetch(m, dest=tmp_path / "e")) == ["small.txt", "sub/big.bin"]


def test_mirror_lacks_one_file_then_the_network(server, tmp_path):
    mirror = make_mirror(tmp_path / "m")
    (mirror / "tiny" / "small.txt").unlink()
    fetch(manifest(server.url), dest=tmp_path / "d", mirror=mirror)
    assert server.requests == ["/small.txt"]


def test_wrong_mirror_file_is_an_error_and_nothing_is_left(server, tmp_path):
    mirror = make_mirror(tmp_path / "m", big=BODY[:-1] + b"?")
    with pytest.raises(ChecksumError, match="mirror"):
        fetch(manifest(server.url), dest=tmp_path / "d", mirror=mirror)
    assert left(tmp_path / "d") == []
    with pytest.raises(ChecksumError, match="mirror"):
        resolve(manifest(server.url), mirror=mirror)


def test_mirror_only_files_say_so_before_anything_is_fetched(server, tmp_path):
    m = manifest(files=[entry("big.bin", BODY, f"{server.url}/big.bin"), entry("own.json", SMALL)])
    with pytest.raises(DataError, match=r"own\.json can come from a mirror only.*no mirror is set"):
        fetch(m, dest=tmp_path / "d")
    assert server.requests == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="does not hold them"):
        fetch(m, dest=tmp_path / "d", mirror=tmp_path / "empty")


def test_mirror_that_is_no_folder(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="given as mirror"):
        fetch(manifest(), mirror=tmp_path / "nope")
    monkeypatch.setenv("NEUROENC_MIRROR", str(tmp_path / "nope"))
    with pytest.raises(DataError, match="NEUROENC_MIRROR"):
        fetch(manifest())


def test_a_damaged_file_is_replaced(server, tmp_path):
    folder = fetch(manifest(server.url), dest=tmp_path)
    (folder / "small.txt").write_bytes(b"SECOND file")
    fetch(manifest(server.url), dest=tmp_path)
    assert (folder / "small.txt").read_bytes() == SMALL


def test_resolve_uses_the_mirror_in_place_and_prefers_the_data_folder(tmp_path):
    mirror = make_mirror(tmp_path / "m")
    assert resolve(manifest(), mirror=mirror) == mirror / "tiny"
    assert not (tmp_path / "cache" / "data").exists()
    folder = fetch(manifest(), mirror=mirror)
    assert folder == tmp_path / "cache" / "data" / "tiny"
    assert resolve(manifest(), mirror=mirror) == folder


def test_resolve_root_is_taken_as_it_is(tmp_path):
    mirror = make_mirror(tmp_path / "m")
    assert resolve(manifest(), root=mirror / "tiny") == mirror / "tiny"
    (mirror / "tiny" / "small.txt").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 2 files"):
        resolve(manifest(), root=mirror / "tiny")
    (mirror / "tiny" / "small.txt").write_bytes(b"SECOND file")
    with pytest.raises(ChecksumError, match=r"small\.txt"):
        resolve(manifest(), root=mirror / "tiny")


def test_verify_says_what_is_wrong(tmp_path):
    mirror = make_mirror(tmp_path / "m", big=BODY[:-1] + b"?")
    (mirror / "tiny" / "small.txt").unlink()
    table = verify(manifest(), mirror=mirror).set_index("path")
    assert table.loc["sub/big.bin", "status"] == "checksum differs"
    assert table.loc["small.txt", "status"] == "missing"
    (mirror / "tiny" / "small.txt").write_bytes(b"?")
    assert verify(manifest(), root=mirror / "tiny").set_index("path").loc["small.txt", "status"] == "size differs"
    make_mirror(tmp_path / "n")
    assert set(verify(manifest(), mirror=tmp_path / "n")["status"]) == {"ok"}
    assert len(verify(manifest(), mirror=tmp_path / "n", files="*.txt")) == 1


def test_presence(tmp_path):
    m = manifest()
    assert presence(m) == "no"
    mirror = make_mirror(tmp_path / "m")
    assert presence(m, mirror) == "mirror"
    fetch(m, mirror=mirror, files="small.txt")
    assert presence(m) == "partly"
    fetch(m, mirror=mirror)
    assert presence(m) == "yes"


def test_disk_that_cannot_be_written(server, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DataError, match="cannot write"):
        fetch(manifest(server.url), dest=blocked)


def _fetch_in_process(url, dest, cache):
    os.environ.update(NEUROENC_CACHE=cache, NO_PROXY="127.0.0.1", NEUROENC_PROGRESS="0")
    fetch(manifest(url), dest=dest)


def size(path):
    """Bytes of a file that another process may be moving."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def test_processes_at_once_leave_the_same_files(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    args = (server.url, str(tmp_path / "d"), str(tmp_path / "cache"))
    workers = [context.Process(target=_fetch_in_process, args=args) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(120)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert left(tmp_path / "d") == ["tiny/small.txt", "tiny/sub/big.bin"]


def test_a_killed_download_given_again_leaves_the_same_files(server, tmp_path):
    server.plan = ["stall"]
    context = multiprocessing.get_context("spawn")
    args = (server.url, str(tmp_path / "d"), str(tmp_path / "cache"))
    worker = context.Process(target=_fetch_in_process, args=args)
    worker.start()
    deadline = time.monotonic() + 120
    while not any(size(p) > 80_000 for p in everything_below(tmp_path / "d")):
        assert worker.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.join()
    assert "tiny/sub/big.bin" not in left(tmp_path / "d")
    assert left(tmp_path / "d")
    fetch(manifest(server.url), dest=tmp_path / "d")
    assert left(tmp_path / "d") == ["tiny/small.txt", "tiny/sub/big.bin"]
