"""Downloads against a real server on this machine; nothing is replaced but the waiting."""

import fcntl
import functools
import hashlib
import http.server
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from neuroenc._core.errors import ChecksumError, ConfigError, DataError
from neuroenc._core.files import _leftover_mark
from neuroenc.data import _download, _fetch
from neuroenc.data._fetch import fetch, presence, resolve, verify
from neuroenc.data._manifest import Manifest, ManifestFile

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
        wanted = self.headers.get("Range")
        self.owner.requests.append((self.path, wanted))
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
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and "no range" not in how else 0
        if start:
            self.send_response(206)
            shift = 10 if how == "wrong range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if how == "endless":
            self.send_header("Connection", "close")
            body = BODY + BODY
        else:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        if how.startswith("truncate"):
            part = part[: max(len(part) // 2, 1)]
        if how in ("first third", "stall"):
            part = part[:100_000]
        self.wfile.write(part)
        if how.startswith("truncate") or how in ("first third", "stall", "endless"):
            self.wfile.flush()
            self.close_connection = True
        if how == "stall":
            self.owner.release.wait(20)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one = Server()
    yield one
    one.stop()


@pytest.fixture
def waits(monkeypatch):
    """Retries wait; here the seconds are written down instead."""
    seconds = []
    monkeypatch.setattr(_download.time, "sleep", seconds.append)
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
    return Manifest("tiny", "t", "d", "CC0", "free", "none", "neuroenc.data.loaders._v4.load", tuple(files))


def resumed(header):
    return int(header.removeprefix("bytes=").rstrip("-")) if header else 0


def left(folder):
    """Every file below a folder but the lock."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


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


def test_a_part_is_continued(server, tmp_path):
    part = tmp_path / "tiny" / "sub" / "big.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:123_456])
    fetch(manifest(server.url), dest=tmp_path)
    assert ("/big.bin", "bytes=123456-") in server.requests
    assert (tmp_path / "tiny" / "sub" / "big.bin").read_bytes() == BODY
    assert not part.exists()


def test_a_whole_part_needs_no_transfer(server, tmp_path):
    part = tmp_path / "tiny" / "sub" / "big.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    fetch(manifest(server.url), dest=tmp_path)
    assert [p for p, _ in server.requests] == ["/small.txt"]


def test_server_without_ranges_starts_over(server, tmp_path):
    part = tmp_path / "tiny" / "sub" / "big.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    server.default = "no range"
    fetch(manifest(server.url), dest=tmp_path)
    assert (tmp_path / "tiny" / "sub" / "big.bin").read_bytes() == BODY


@pytest.mark.parametrize("first", ["truncate", "first third", 503, 429, "wrong range"])
def test_transient_failures_are_retried_and_resumed(server, tmp_path, waits, first):
    if first == "wrong range":
        part = tmp_path / "tiny" / "sub" / "big.bin.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(BODY[:1000])
    server.plan = [first, first]
    fetch(manifest(server.url), dest=tmp_path)
    assert (tmp_path / "tiny" / "sub" / "big.bin").read_bytes() == BODY
    if first == "truncate":
        starts = [resumed(r) for p, r in server.requests if p == "/big.bin"]
        assert 0 == starts[0] < 130_000 < starts[1] <= 150_000 < 200_000 < starts[2] <= 225_000
    assert waits


def test_a_transfer_that_never_ends_well_keeps_its_part_and_says_so(server, tmp_path, waits):
    server.plan = ["first third"]
    server.default = 503
    with pytest.raises(DataError) as caught:
        fetch(manifest(server.url), dest=tmp_path)
    message = str(caught.value)
    assert f"{server.url}/big.bin" in message
    assert "503" in message
    kept = (tmp_path / "tiny" / "sub" / "big.bin.part").read_bytes()
    assert 80_000 < len(kept) <= 100_000
    assert kept == BODY[: len(kept)]
    assert f"{len(kept)} of 300000 bytes are kept" in message
    assert "--mirror" in message
    assert waits[-3:] == [1.0, 2.0, 4.0]
    server.default = "ok"
    fetch(manifest(server.url), dest=tmp_path)
    assert ("/big.bin", f"bytes={len(kept)}-") in server.requests


def test_truncation_on_a_server_without_ranges_gives_up(server, tmp_path, waits):
    server.default = "truncate, no ranges"
    with pytest.raises(DataError, match=r"tried 4 times"):
        fetch(manifest(server.url), dest=tmp_path)
    assert 4 <= len(server.requests) <= 6
    assert left(tmp_path) == ["tiny/sub/big.bin.part"]


@pytest.mark.parametrize("how", ["wrong", "page", "endless"])
def test_wrong_content_is_refused_and_nothing_is_left(server, tmp_path, how):
    server.default = how
    with pytest.raises(ChecksumError) as caught:
        fetch(manifest(server.url), dest=tmp_path)
    message = str(caught.value)
    assert hashlib.sha256(BODY).hexdigest() in message
    if how == "wrong":
        assert hashlib.sha256(BODY[:-1] + bytes([BODY[-1] ^ 1])).hexdigest() in message
    if how == "page":
        assert "found 26 bytes" in message
    assert left(tmp_path) == []


def test_a_part_of_another_version_is_dropped_and_the_file_fetched_anew(server, tmp_path):
    part = tmp_path / "tiny" / "sub" / "big.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"z" * 5000)
    fetch(manifest(server.url), dest=tmp_path)
    assert [r for p, r in server.requests if p == "/big.bin"] == ["bytes=5000-", None]
    assert left(tmp_path / "tiny") == ["small.txt", "sub/big.bin"]


def test_missing_page_is_not_retried(server, tmp_path, waits):
    with pytest.raises(DataError, match="404"):
        fetch(manifest(files=[entry("x", SMALL, f"{server.url}/gone")]), dest=tmp_path)
    assert len(server.requests) == 1
    assert waits == []


def test_no_network_names_address_and_mirror(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError) as caught:
        fetch(manifest("http://127.0.0.1:9"), dest=tmp_path)
    assert "http://127.0.0.1:9/big.bin" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "NEUROENC_MIRROR" in str(caught.value)
    assert waits == [1.0, 2.0, 4.0]


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
    assert [p for p, _ in server.requests] == ["/small.txt"]


def test_wrong_mirror_file_is_an_error_and_nothing_is_left(server, tmp_path):
    mirror = make_mirror(tmp_path / "m", big=BODY[:-1] + b"?")
    with pytest.raises(ChecksumError, match="mirror"):
        fetch(manifest(server.url), dest=tmp_path / "d", mirror=mirror)
    assert left(tmp_path / "d") == []
    with pytest.raises(ChecksumError, match="repair the mirror"):
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


def test_resolve_uses_the_mirror_in_place_and_hashes_once(tmp_path, monkeypatch):
    mirror = make_mirror(tmp_path / "m")
    hashed = []
    real = _fetch.sha256_file
    monkeypatch.setattr(_fetch, "sha256_file", lambda p: (hashed.append(p), real(p))[1])
    assert resolve(manifest(), mirror=mirror) == mirror / "tiny"
    assert len(hashed) == 2
    assert resolve(manifest(), mirror=mirror) == mirror / "tiny"
    assert len(hashed) == 2
    assert not (tmp_path / "cache" / "data").exists()
    # Same size, other content and time: hashed again, and refused.
    (mirror / "tiny" / "small.txt").write_bytes(SMALL.upper())
    os.utime(mirror / "tiny" / "small.txt", ns=(1, 1))
    with pytest.raises(ChecksumError):
        resolve(manifest(), mirror=mirror)


def test_resolve_copies_when_asked_and_prefers_the_data_folder(tmp_path):
    mirror = make_mirror(tmp_path / "m")
    folder = resolve(manifest(), mirror=mirror, use_mirror_in_place=False)
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


def test_broken_stamps_only_cost_time(tmp_path):
    mirror = make_mirror(tmp_path / "m")
    resolve(manifest(), mirror=mirror)
    (stamp,) = (tmp_path / "cache" / "verified").iterdir()
    for text in ("{", "[1]", '{"small.txt": 3}', '{"sub/big.bin": [1, 2]}'):
        stamp.write_text(text)
        assert resolve(manifest(), mirror=mirror) == mirror / "tiny"


def test_link_in_the_data_folder_that_leads_out_is_refused(server, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "d" / "tiny").mkdir(parents=True)
    (tmp_path / "d" / "tiny" / "sub").symlink_to(outside)
    with pytest.raises(ConfigError, match="symbolic link"):
        fetch(manifest(server.url), dest=tmp_path / "d")
    assert left(outside) == []


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


def test_disk_too_small_is_said_before_downloading(server, tmp_path):
    huge = ManifestFile("huge", f"{server.url}/big.bin", "0" * 64, 2**52)
    with pytest.raises(DataError, match=r"4503599627370496 bytes are needed and \d+ are free"):
        fetch(manifest(files=[huge]), dest=tmp_path)
    assert server.requests == []


def _fetch_in_process(url, dest, cache):
    os.environ.update(NEUROENC_CACHE=cache, NO_PROXY="127.0.0.1", NEUROENC_PROGRESS="0")
    fetch(manifest(url), dest=dest)


def test_two_processes_fetch_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    args = (server.url, str(tmp_path / "d"), str(tmp_path / "cache"))
    workers = [context.Process(target=_fetch_in_process, args=args) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(30)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert len(server.requests) == 2
    assert left(tmp_path / "d") == ["tiny/small.txt", "tiny/sub/big.bin"]


def test_killed_download_leaves_only_its_part_and_resumes(server, tmp_path):
    server.plan = ["stall"]
    context = multiprocessing.get_context("fork")
    args = (server.url, str(tmp_path / "d"), str(tmp_path / "cache"))
    worker = context.Process(target=_fetch_in_process, args=args)
    worker.start()
    part = tmp_path / "d" / "tiny" / "sub" / "big.bin.part"
    deadline = time.time() + 20
    while not (part.exists() and part.stat().st_size > 80_000) and time.time() < deadline:
        time.sleep(0.02)
    worker.kill()
    worker.join(10)
    kept = part.stat().st_size
    assert kept > 80_000
    assert left(tmp_path / "d") == ["tiny/sub/big.bin.part"]
    fetch(manifest(server.url), dest=tmp_path / "d")
    assert left(tmp_path / "d") == ["tiny/small.txt", "tiny/sub/big.bin"]
    assert [r for p, r in server.requests if p == "/big.bin"] == [None, f"bytes={kept}-"]


def test_a_kill_around_the_rename_leaves_the_same_files(server, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    original = _download.Path.replace

    def before(self, target):
        raise Killed

    def behind(self, target):
        original(self, target)
        raise Killed

    for n, kill in enumerate((before, behind)):
        with monkeypatch.context() as patch:
            patch.setattr(_download.Path, "replace", kill)
            with pytest.raises(Killed):
                fetch(manifest(server.url), dest=tmp_path / str(n))
        assert left(tmp_path / str(n)) == [["tiny/sub/big.bin.part"], ["tiny/sub/big.bin"]][n]
        fetch(manifest(server.url), dest=tmp_path / str(n))
        assert left(tmp_path / str(n)) == ["tiny/small.txt", "tiny/sub/big.bin"]
    # What was whole is asked for once.
    assert sum(p == "/big.bin" for p, _ in server.requests) == 2


def test_a_kill_behind_the_last_file_leaves_nothing_behind(server, tmp_path):
    root = tmp_path / "d"
    fetch(manifest(server.url), dest=root)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = _leftover_mark().replace(f"-{os.getpid()}.", f"-{gone.pid}.")
    (root / "tiny" / f".small.txt.abcd{mark}").mkdir()
    lock = root / ".tiny.lock"
    lock.touch()
    with open(lock, "w") as handle:  # one that is held stays
        fcntl.flock(handle, fcntl.LOCK_EX)
        fetch(manifest(server.url), dest=root)
        assert lock.is_file()
    fetch(manifest(server.url), dest=root)
    assert sorted(p.name for p in root.rglob("*")) == ["big.bin", "small.txt", "sub", "tiny"]


def test_a_cache_that_cannot_be_written_only_costs_hashing_again(tmp_path, monkeypatch):
    mirror = tmp_path / "m" / "tiny"
    mirror.mkdir(parents=True)
    (mirror / "small.txt").write_bytes(SMALL)
    (tmp_path / "cache").write_text("a file")
    found = resolve(manifest(files=[entry("small.txt", SMALL)]), mirror=tmp_path / "m")
    assert found == mirror
