"""SHA-256 of files, remembered in the cache folder so that a large file is read once."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path

from neuroenc._core.paths import cache_dir

#: Smaller files are read as fast as they are looked up.
_SMALL = 2**16
#: Seconds that a file must have been left alone: a clock that ticks slowly does not tell two edits apart.
_SETTLED = 2.0


def table_path() -> Path:
    """The table: one line of JSON a file, only ever appended to, so that processes need no lock."""
    return cache_dir() / "hashes.jsonl"


def file_sha256(path: str | os.PathLike[str], anew: bool = False) -> str:
    """SHA-256 of a file's content, from the table where path, size, inode and times are as they were.

    The time of the last change of the inode counts too, so that an edit whose modification time was set back is
    noticed; what is missed is a file system that gives both times back. ``anew``, or the environment variable
    NEUROENC_VERIFY (``--verify``), reads the file in any case.
    """
    name, before = os.path.abspath(path), os.stat(path)
    known = {} if before.st_size < _SMALL else _table(table_path())
    marks = [before.st_size, before.st_ino, before.st_mtime_ns, before.st_ctime_ns]
    found = known.get(name)
    if found and found[:-1] == marks and not anew and not os.environ.get("NEUROENC_VERIFY"):
        return str(found[-1])
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        after = os.fstat(handle.fileno())
    same = marks == [after.st_size, after.st_ino, after.st_mtime_ns, after.st_ctime_ns]
    settled = time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED
    if before.st_size >= _SMALL and same and settled and found != [*marks, digest]:
        known[name] = [*marks, digest]
        line = json.dumps([name, *marks, digest])
        with suppress(OSError):  # a cache that takes nothing more forgets
            table_path().parent.mkdir(parents=True, exist_ok=True)
            # In one piece, behind a line that a full disk may have cut short.
            with open(table_path(), "ab", buffering=0) as table:
                table.write(f"\n{zlib.crc32(line.encode()):08x} {line}\n".encode())
    return digest


@functools.lru_cache(maxsize=4)
def _table(path: Path) -> dict[str, list]:
    known: dict[str, list] = {}
    with suppress(OSError):
        for line in path.read_bytes().splitlines():
            mark, _, text = line.partition(b" ")
            if mark == b"%08x" % zlib.crc32(text) and text:
                name, *entry = json.loads(text)
                known[name] = entry
    return known
