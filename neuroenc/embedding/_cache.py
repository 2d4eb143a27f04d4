"""Features on disk: found again by what decides their values, written in blocks, checked when read.

An entry is a folder ``NEUROENC_CACHE/features/KEY`` with ``values.npy`` and ``meta.json``. While an
extraction runs, its finished blocks lie in ``KEY.part``; a run that was killed continues from them.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._util.errors import ConfigError
from neuroenc._util.files import atomic_path, hash_json, read_json, sha256_file, write_json

__all__ = ["FeatureCache", "block_rows", "cache_clear", "cache_dir", "cache_list"]

# Features up to this size are read into memory; larger ones stay on disk, memory-mapped.
_IN_MEMORY = 2**30
_COLUMNS = ("key", "kind", "backbone", "weights", "layer", "pooling", "normalised", "n", "shape", "bytes", "created",
            "complete", "path")  # fmt: skip
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BLOCK = re.compile(r"\d{9}-\d{9}\.npy")


def cache_dir() -> Path:
    """Folder of the cache: environment variable NEUROENC_CACHE, else ``~/.cache/neuroenc``.

    Examples
    --------
    >>> cache_dir().is_absolute()
    True
    """
    return Path(os.environ.get("NEUROENC_CACHE") or "~/.cache/neuroenc").expanduser().absolute()


def block_rows(batch_size: int, at_least: int = 256) -> int:
    """Rows of a block: whole batches, so that resuming gives the same batches as running through.

    >>> block_rows(64), block_rows(100), block_rows(1000)
    (256, 300, 1000)
    """
    return batch_size * max(1, -(-at_least // batch_size))


def _read_block(path: Path, rows: int) -> np.ndarray | None:
    try:
        block = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return block if block.dtype == np.float32 and len(block) == rows else None


class FeatureCache:
    """Features by the settings that decide them.

    Parameters
    ----------
    folder : path, optional
        In place of ``cache_dir() / "features"``.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_dir() / "features"

    def key(self, settings: Mapping[str, Any]) -> str:
        """Name of the entry of ``settings``."""
        return hash_json(dict(settings))[:32]

    def load(self, settings: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Values and provenance of an entry, or None where it is missing or damaged (then it is removed)."""
        entry = self.folder / self.key(settings)
        if not entry.is_dir():
            return None
        try:
            meta = read_json(entry / "meta.json")
            values = np.load(entry / "values.npy", mmap_mode="r", allow_pickle=False)
            digest = sha256_file(entry / "values.npy")
            sound = list(values.shape) == meta["shape"] and digest == meta["sha256"] and bool(meta["provenance"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            sound = False
        if not sound:
            warnings.warn(f"cached features {entry} are damaged and are computed again.", UserWarning, stacklevel=4)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry)
        return (np.array(values) if values.nbytes <= _IN_MEMORY else values), meta

    def compute(
        self,
        settings: Mapping[str, Any],
        n: int,
        rows: int,
        extract: Callable[[int, int], np.ndarray],
        provenance: str,
    ) -> np.ndarray:
        """Extract ``n`` rows in blocks of ``rows``, keep each, and put the entry together at the end.

        Parameters
        ----------
        settings : mapping
        n, rows : int
        extract : callable
            ``extract(start, stop)`` gives float32 rows ``start:stop``.
        provenance : str
            JSON string stored with the entry.

        Returns
        -------
        array (n, ...)
            float32; memory-mapped where it is larger than 1 GiB.
        """
        key = self.key(settings)
        part = self.folder / f"{key}.part"
        part.mkdir(parents=True, exist_ok=True)
        if not (part / "settings.json").is_file():
            write_json(part / "settings.json", dict(settings))
        spans = [(start, min(start + rows, n)) for start in range(0, n, rows)]
        paths = [part / f"{start:09d}-{stop:09d}.npy" for start, stop in spans]
        for (start, stop), path in zip(spans, paths, strict=True):
            if _read_block(path, stop - start) is None:
                self._write_block(path, extract(start, stop))
        first = _read_block(paths[0], spans[0][1])
        assert first is not None
        with atomic_path(self.folder / key, directory=True) as folder:
            values = np.lib.format.open_memmap(
                folder / "values.npy", mode="w+", dtype=np.float32, shape=(n, *first.shape[1:])
            )
            for (start, stop), path in zip(spans, paths, strict=True):
                block = _read_block(path, stop - start)
                values[start:stop] = extract(start, stop) if block is None else block
            values.flush()
            shape = list(values.shape)
            del values
            write_json(
                folder / "meta.json",
                {
                    "settings": dict(settings),
                    "shape": shape,
                    "sha256": sha256_file(folder / "values.npy"),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
                    "provenance": provenance,
                },
            )
        shutil.rmtree(part, ignore_errors=True)
        found = np.load(self.folder / key / "values.npy", mmap_mode="r", allow_pickle=False)
        return np.array(found) if found.nbytes <= _IN_MEMORY else found

    @staticmethod
    def _write_block(path: Path, block: np.ndarray) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.save(handle, block, allow_pickle=False)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _entries() -> list[Path]:
    """Folders in the cache that this module made, and nothing else that may lie there."""
    folder = cache_dir() / "features"
    if not folder.is_dir():
        return []
    made = re.compile(r"[0-9a-f]{32}(\.part)?")
    return sorted(p for p in folder.iterdir() if p.is_dir() and made.fullmatch(p.name))


def cache_list() -> pd.DataFrame:
    """Cached features, one row an entry, the newest first.

    Returns
    -------
    pandas.DataFrame
        Columns ``key, kind, backbone, weights, layer, pooling, normalised, n, shape, bytes, created (UTC),
        complete, path``; an interrupted extraction has ``complete`` False and the rows done so far as ``n``.

    Examples
    --------
    >>> "backbone" in cache_list().columns
    True
    """
    rows = []
    for entry in _entries():
        complete = entry.suffix != ".part"
        try:
            meta = read_json(entry / ("meta.json" if complete else "settings.json"))
        except (OSError, ValueError):
            meta = {}
        settings = meta.get("settings", {}) if complete else meta
        shape = meta.get("shape", []) if complete else []
        done = sum(int(p.name[10:19]) - int(p.name[:9]) for p in entry.iterdir() if _BLOCK.fullmatch(p.name))
        created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(entry.stat().st_mtime))
        rows.append(
            {
                "key": entry.name.removesuffix(".part"),
                **{k: settings.get(k) for k in _COLUMNS[1:7]},
                "n": shape[0] if shape else done,
                "shape": "x".join(map(str, shape)),
                "bytes": _bytes(entry),
                "created": meta.get("created", created) if complete else created,
                "complete": complete,
                "path": str(entry),
            }
        )
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    return table.sort_values("created", ascending=False, kind="stable").reset_index(drop=True)


def _seconds(older_than: str | float | timedelta | None) -> float:
    if older_than is None:
        return float("-inf")
    if isinstance(older_than, timedelta):
        return older_than.total_seconds()
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", str(older_than))
    if not match:
        raise ConfigError(
            f"older_than={older_than!r} is not an age; write days (7), or '12h', '7d', '2w' (s, m, h, d, w)."
        )
    return float(match[1]) * _UNITS[match[2] or "d"]


def cache_clear(older_than: str | float | timedelta | None = None) -> int:
    """Remove cached features.

    Parameters
    ----------
    older_than : float (days), str such as "12h" or "7d", or timedelta, optional
        Only entries not used for that long; everything by default.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    ConfigError
        ``older_than`` is not an age.

    Examples
    --------
    >>> cache_clear(older_than="100w") >= 0
    True
    """
    limit, freed = _seconds(older_than), 0
    for entry in _entries():
        if time.time() - entry.stat().st_mtime >= limit:
            freed += _bytes(entry)
            shutil.rmtree(entry, ignore_errors=True)
    return freed
