"""Atomic writes and content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["atomic_path", "hash_array", "hash_json", "read_json", "sha256_file", "write_json", "write_text"]


@contextmanager
def atomic_path(path: str | os.PathLike[str], directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place only if the block succeeds.

    A reader, or a run killed half-way, therefore sees the old file or the whole new one. With
    ``directory=True`` the temporary path is a folder (for zarr stores).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name keeps its endings: writers such as nibabel choose the format by them.
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent))
    temporary = holder / path.name
    try:
        if directory:
            temporary.mkdir()
        yield temporary
        if directory:
            if path.exists():
                os.replace(path, holder / "old")
        else:
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _finite(value: Any) -> Any:
    """JSON has no NaN: a missing number is null."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically; NaN becomes null."""
    return write_text(path, json.dumps(_finite(value), indent=2, default=_plain, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_array(*arrays: Any) -> str:
    """SHA-256 over dtype, shape and content of arrays (strings included); independent of memory layout.

    >>> hash_array([1.0, 2.0]) == hash_array([1.0, 2.0]) != hash_array([1.0, 3.0])
    True
    """
    digest = hashlib.sha256()
    for array in arrays:
        a = np.asarray(array)
        if a.dtype.kind in "OUS":
            digest.update(f"str{a.shape}".encode())
            digest.update("\0".join(str(x) for x in a.ravel()).encode())
        else:
            digest.update(f"{a.dtype.str}{a.shape}".encode())
            digest.update(np.ascontiguousarray(a).data.cast("B") if a.size else b"")
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(_finite(value), sort_keys=True, default=_plain).encode()).hexdigest()
