"""One file over HTTP: resumed from ``NAME.part``, retried with growing wait, checked before it takes its place."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ChecksumError, DataError
from neuroenc._core.files import sha256_file
from neuroenc.data._manifest import ManifestFile, safe_join

__all__ = ["disk_error", "download", "mismatch"]

_CHUNK = 1 << 14
_TIMEOUT = (15.0, 60.0)
_LONGEST_WAIT = 30.0
# Statuses after which the same request may succeed a moment later.
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class _Transient(Exception):
    """This attempt failed; the next may not."""


def mismatch(where: str, file: ManifestFile, found: str, then: str) -> ChecksumError:
    """Error for content that is not the manifest's; ``found`` is a SHA-256 or a size in words."""
    return ChecksumError(
        f"checksum mismatch for {file.path} from {where}: expected sha256 {file.sha256} ({file.size} bytes), "
        f"found {found}. {then}"
    )


def disk_error(path: Path, size: int, error: OSError) -> DataError:
    """Error for a disk that is full, read-only or failing."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return DataError(
        f"cannot write {path} ({size} bytes): {reason}. Next step: free space, or choose another folder with --dest "
        "or the environment variable NEUROENC_DATA."
    )


def download(
    file: ManifestFile,
    root: Path,
    *,
    name: str,
    advance: Callable[[int], Any] = lambda n: None,
    tries: int = 4,
    wait: float = 1.0,
) -> Path:
    """Download one file of the data set ``name`` to ``root / file.path``.

    Bytes go to ``file.path + ".part"``, which a later call continues (HTTP Range) after a failure. The file takes its
    place only when size and SHA-256 are right; with wrong content nothing is left behind.

    Parameters
    ----------
    file
        What to fetch; ``file.url`` is not empty.
    root
        The data set's folder.
    name
        The data set, for messages.
    advance
        Called with the number of bytes as they arrive (negative when a transfer starts over).
    tries
        Attempts without progress before giving up.
    wait
        Seconds before the second attempt; doubled for each further one, at most 30.

    Raises
    ------
    ChecksumError
        The server's content is not what the manifest promises.
    DataError
        No network, an HTTP error, an unfinished transfer, or a disk that cannot be written.
    """
    target, part = safe_join(root, file.path), safe_join(root, file.path + ".part")
    hint = (
        f"Next step: check the network and run it again, or copy the file to MIRROR/{name}/{file.path} "
        "and pass --mirror MIRROR (or set NEUROENC_MIRROR)."
    )
    for fresh in (False, True):
        transfer = _Transfer(file, part, advance, tries, wait, hint)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            transfer()
            # The only rename: a kill before it leaves the whole .part, a kill behind it the file.
            part.replace(target)
            return target
        except ChecksumError:
            # A resumed transfer may have continued another version's beginning: once more, from the start.
            if fresh or not transfer.resumed:
                raise
        except DataError:
            raise
        except OSError as error:
            raise disk_error(target, file.size, error) from error
    raise AssertionError("unreachable")


class _Transfer:
    """The bytes of one file brought into its .part, and checked."""

    def __init__(
        self, file: ManifestFile, part: Path, advance: Callable[[int], Any], tries: int, wait: float, hint: str
    ) -> None:
        self.file, self.part, self.advance = file, part, advance
        self.tries, self.wait, self.hint = tries, wait, hint
        self.resumed = False
        self._counted = 0

    def __call__(self) -> None:
        self._run(self.file.url)
        found = sha256_file(self.part)
        if found != self.file.sha256:
            raise self._wrong(self.file.url, f"sha256 {found}")

    def _run(self, url: str) -> None:
        best, failures = self._have(), 0
        while True:
            try:
                return self._attempt(url)
            except _Transient as error:
                failures = 0 if self._have() > best else failures + 1
                best = max(best, self._have())
                if failures >= self.tries:
                    kept = f"; {self._have()} of {self.file.size} bytes are kept in {self.part}" if best else ""
                    raise DataError(
                        f"cannot download {url}: {error} (tried {failures} times){kept}. {self.hint}"
                    ) from error
                time.sleep(min(self.wait * 2 ** max(failures - 1, 0), _LONGEST_WAIT))

    def _attempt(self, url: str) -> None:
        import requests

        have = self._have()
        if have > self.file.size:
            self.part.unlink()
            have = 0
        self._count(have)
        if have == self.file.size and (have or self.part.exists()):
            self.resumed = True
            return
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
                start = self._start(reply, url, have)
                self._receive(reply, url, start)
        except requests.exceptions.RequestException as error:
            if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects)):
                raise DataError(f"cannot download {url}: {error}. {self.hint}") from error
            raise _Transient(_reason(error)) from error
        if self._have() < self.file.size:
            raise _Transient(f"the transfer ended after {self._have()} of {self.file.size} bytes")

    def _start(self, reply: Any, url: str, have: int) -> int:
        """Offset at which the reply's body begins, or an error."""
        status = reply.status_code
        if status == 416 or (status == 206 and have == 0):
            self.part.unlink(missing_ok=True)
            raise _Transient(f"the server answered {status} to a transfer from byte {have}")
        if status in _TRANSIENT:
            raise _Transient(f"the server answered {status} {reply.reason}")
        if status not in (200, 206):
            raise DataError(f"cannot download {url}: the server answered {status} {reply.reason}. {self.hint}")
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
            if not match or int(match[1]) != have:
                self.part.unlink(missing_ok=True)
                raise _Transient("the server continued at another byte than asked")
            total = match[2]
        else:
            have, total = 0, reply.headers.get("Content-Length", "*")
        if total.isdigit() and int(total) != self.file.size and "Content-Encoding" not in reply.headers:
            raise self._wrong(url, f"{total} bytes")
        self.resumed = have > 0
        return have

    def _receive(self, reply: Any, url: str, start: int) -> None:
        have = start
        self._count(have)
        with open(self.part, "ab" if start else "wb") as handle:
            for chunk in reply.iter_content(_CHUNK):
                have += len(chunk)
                if have > self.file.size:
                    break
                handle.write(chunk)
                self._count(have)
        if have > self.file.size:
            raise self._wrong(url, f"more than {self.file.size} bytes")

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _count(self, have: int) -> None:
        self.advance(have - self._counted)
        self._counted = have

    def _wrong(self, url: str, found: str) -> ChecksumError:
        self.part.unlink(missing_ok=True)
        self._count(0)
        return mismatch(url, self.file, found, "Nothing was kept. " + self.hint)


def _reason(error: Exception) -> str:
    """The innermost cause in a few words (requests nests pool, address and cause)."""
    import requests

    if isinstance(error, requests.exceptions.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke during the transfer"
    text = str(error)
    for known in (
        "Name or service not known",
        "Temporary failure in name resolution",
        "Connection refused",
        "Network is unreachable",
        "No route to host",
        "getaddrinfo failed",
        "CERTIFICATE_VERIFY_FAILED",
        "Connection reset",
        "Remote end closed connection",
    ):
        if known.lower() in text.lower():
            return f"no connection ({known})"
    return f"{type(error).__name__}: {text[:200]}"
