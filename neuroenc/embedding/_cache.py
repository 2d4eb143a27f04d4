"""Feature cache: keyed by everything that determines the values, written in blocks, verified when read.

An entry is a folder ``NEUROENC_CACHE/features/KEY`` with ``values.npy`` and ``meta.json``. While an
extraction runs, its finished blocks lie in ``KEY.part``; a run that was killed continues from them. Several
processes may share a cache: they use each other's blocks, and who comes second takes what the first has finished.
Where the disk has no room, features are computed and not kept.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import (
    atomic_path,
    hash_array,
    hash_json,
    read_json,
    read_sealed_json,
    remove_leftovers,
    sha256_file,
    write_json,
    write_sealed_json,
)

# Features up to this size are read into memory; larger ones stay on disk, memory-mapped.
_IN_MEMORY = 2**30
_COLUMNS = (
    "key",
    "kind",
    "backbone",
    "weights",
    "layer",
    "pooling",
    "normalised",
    "n",
    "shape",
    "bytes",
    "created",
    "complete",
    "path",
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BLOCK = re.compile(r"\d{9}-\d{9}\.[0-9a-f]{16}\.npy")
# Left free on the disk, for everything else that is written there.
_SPARE = 2**24


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


def _read_block(part: Path, start: int, stop: int) -> np.ndarray | None:
    """Rows of a block that is on disk; its name holds the hash of its values."""
    for path in part.glob(f"{start:09d}-{stop:09d}.*.npy"):
        try:
            block = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if block.dtype == np.float32 and len(block) == stop - start and hash_array(block)[:16] == path.name[20:36]:
            return block
    return None


def _write_block(part: Path, start: int, block: np.ndarray) -> None:
    name = f"{start:09d}-{start + len(block):09d}.{hash_array(block)[:16]}.npy"
    with atomic_path(part / name) as temporary, open(temporary, "wb") as handle:
        np.save(handle, block, allow_pickle=False)


def _size(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


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
            meta = read_sealed_json(entry / "meta.json", needed=("shape", "sha256", "provenance"), unsealed=True)
            values = np.load(entry / "values.npy", mmap_mode="r", allow_pickle=False)
            digest = sha256_file(entry / "values.npy")
            sound = list(values.shape) == meta["shape"] and digest == meta["sha256"] and bool(meta["provenance"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            sound = False
        if not sound and not entry.is_dir():  # cleared by another process
            return None
        if not sound:
            warnings.warn(f"cached features {entry} are damaged and are computed again.", UserWarning, stacklevel=4)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        with suppress(OSError):  # a cache that may only be read
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

        Raises
        ------
        DataError
            The disk has no room for features that are too large to be kept in memory.
        """
        entry = self.folder / self.key(settings)
        part = entry.with_name(f"{entry.name}.part")
        spans = [(start, min(start + rows, n)) for start in range(0, n, rows)]
        held: dict[int, np.ndarray] = {}  # blocks that the disk did not take
        keeping = True
        for start, stop in spans:
            if start and entry.is_dir() and (found := self.load(settings)) is not None:
                # Another process put it together; a block written since then would be left over.
                shutil.rmtree(part, ignore_errors=True)
                return found[0]
            if _read_block(part, start, stop) is not None:
                continue
            block = extract(start, stop)
            if keeping:
                try:
                    self._keep(part, start, block, n, settings)
                    continue
                except DataError as error:
                    self._go_on(error, n * block[0].nbytes)
                    keeping = False
                except FileNotFoundError:  # another process is done and has cleared the blocks
                    pass
            held[start] = block

        def blocks() -> Iterator[np.ndarray]:
            for start, stop in spans:
                block = held.get(start)
                block = _read_block(part, start, stop) if block is None else block
                yield extract(start, stop) if block is None else block

        if keeping:
            try:
                self._join(entry, n, blocks(), settings, provenance)
            except DataError as error:
                first = _read_block(part, *spans[0])
                self._go_on(error, 0 if first is None else n * first[0].nbytes)
            except OSError as error:  # two processes put the same entry in its place at once
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
            if (found := self.load(settings)) is not None:
                shutil.rmtree(part, ignore_errors=True)
                return found[0]
        return np.concatenate(list(blocks()))

    def _keep(self, part: Path, start: int, block: np.ndarray, n: int, settings: Mapping[str, Any]) -> None:
        """Write a block, if there is room for all of them and for the whole that is put together in the end."""
        part.mkdir(parents=True, exist_ok=True)
        total = n * block[0].nbytes
        needed = 2 * total - sum(p.stat().st_size for p in part.glob("*.npy")) + _SPARE
        free = shutil.disk_usage(part).free
        if free < needed:
            raise DataError(f"features of {_size(total)} need {_size(needed)}, and {_size(free)} are free")
        if not (part / "settings.json").is_file():
            write_json(part / "settings.json", dict(settings))
        _write_block(part, start, block)

    def _go_on(self, error: DataError, size: int) -> None:
        """Without the disk, where memory is enough."""
        step = f"`neuroenc cache clear`, free room in {self.folder}, or set NEUROENC_CACHE to another disk"
        if size > _IN_MEMORY:
            raise DataError(f"the feature cache {self.folder} has no room: {error}. Next step: {step}.") from error
        warnings.warn(
            f"the feature cache {self.folder} has no room: {error}; features are computed and not kept. "
            f"Next step: {step}.",
            UserWarning,
            stacklevel=5,
        )

    @staticmethod
    def _join(entry: Path, n: int, blocks: Iterator[np.ndarray], settings: Mapping[str, Any], provenance: str) -> None:
        with atomic_path(entry, directory=True) as folder:
            # Not memory-mapped: a full disk would end the process with SIGBUS.
            with open(folder / "values.npy", "wb") as handle:
                shape: tuple[int, ...] = ()
                for block in blocks:
                    if not shape:
                        shape = (n, *block.shape[1:])
                        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(handle, header)
                    handle.write(np.ascontiguousarray(block, dtype="<f4").data)
                handle.flush()
                os.fsync(handle.fileno())
            write_sealed_json(
                folder / "meta.json",
                {
                    "settings": dict(settings),
                    "shape": list(shape),
                    "sha256": sha256_file(folder / "values.npy"),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
                    "provenance": provenance,
                },
            )


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed by another process
            total += path.stat().st_size if path.is_file() else 0
    return total


def _entries() -> list[Path]:
    """Folders in the cache that this module made, and nothing else that may lie there."""
    folder = cache_dir() / "features"
    if not folder.is_dir():
        return []
    made = re.compile(r"[0-9a-f]{32}(\.part)?")
    return sorted(p for p in folder.iterdir() if p.is_dir() and made.fullmatch(p.name))


def cache_list() -> pd.DataFrame:
    """List cached features, newest first.

    Returns
    -------
    pandas.DataFrame
        Columns ``key, kind, backbone, weights, layer, pooling, normalised, n, shape, bytes, created (UTC),
        complete, path``; an interrupted extraction has ``complete`` False and the rows done so far as ``n``, a
        damaged entry ``complete`` False and neither kind nor shape.

    Examples
    --------
    >>> "backbone" in cache_list().columns
    True
    """
    rows = []
    for entry in _entries():
        whole = entry.suffix != ".part"
        try:
            meta = read_json(entry / ("meta.json" if whole else "settings.json"))
            settings = meta["settings"] if whole else meta
            shape = [int(x) for x in meta["shape"]] if whole else []
            known = {k: settings.get(k) for k in _COLUMNS[1:7]}
            time_made = str(meta["created"]) if whole else ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole, shape, known, time_made = False, [], dict.fromkeys(_COLUMNS[1:7]), ""
        try:
            changed = entry.stat().st_mtime
            blocks = [p.name for p in entry.iterdir() if _BLOCK.fullmatch(p.name)]
        except OSError:  # removed by another process
            continue
        rows.append(
            {
                "key": entry.name.removesuffix(".part"),
                **known,
                "n": shape[0] if shape else sum(int(name[10:19]) - int(name[:9]) for name in blocks),
                "shape": "x".join(map(str, shape)),
                "bytes": _bytes(entry),
                "created": time_made or time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(changed)),
                "complete": whole,
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
    """Delete cached features, and leftovers of killed processes.

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
        with suppress(FileNotFoundError):  # another process clears too
            if time.time() - entry.stat().st_mtime >= limit:
                size = _bytes(entry)
                shutil.rmtree(entry, ignore_errors=True)
                freed += size - _bytes(entry)
    features = cache_dir() / "features"
    if features.is_dir():
        before = _bytes(features)
        remove_leftovers(features)
        freed += max(0, before - _bytes(features))
    return freed
