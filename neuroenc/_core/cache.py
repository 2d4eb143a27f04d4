"""What is kept: listed with kind, size and age, cleared, and held below a limit."""

from __future__ import annotations

import os
import re
import shutil
import time
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from neuroenc._core.errors import ConfigError
from neuroenc._core.files import everything_below, read_json, remove_leftovers
from neuroenc._core.hashes import _table, table_path
from neuroenc._core.memory import parse_memory
from neuroenc._core.paths import cache_dir
from neuroenc._core.store import PART, RECORD

_UNITS = {"": 86400, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
#: Folders of the cache with results; only these fall under a limit.
_STORES = ("features", "responses")
_RESULT = re.compile(r"(.+)-[0-9a-f]{16}(\.part)?")
#: Seconds for which what was used is not removed to make room: another process may be about to read it.
_IN_USE = 3600
_COLUMNS = ["kind", "what", "bytes", "created", "used", "complete", "path"]


def _bytes(path: Path) -> int:
    total = 0
    for file in [path, *everything_below(path)]:
        with suppress(OSError):  # removed by another process
            total += file.stat().st_size if file.is_file() else 0
    return total


def _entry(path: Path, kind: str) -> dict[str, Any] | None:
    what, complete, record = "", False, path / RECORD
    try:
        used = created = path.stat().st_mtime
        if path.suffix != PART and record.is_file():
            created, complete = record.stat().st_mtime, True
            about = path / "about.json"
            what = str(read_json(about)["value"]["what"]) if about.is_file() else ""
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or removed by another process
        complete = False
        if not path.exists():
            return None
    size = _bytes(path)
    return dict(zip(_COLUMNS, [kind, what, size, created, used, complete, str(path)]))


def _entries(folders: list[Path]) -> list[dict[str, Any]]:
    found = []
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = _RESULT.fullmatch(path.name)
            if name and path.is_dir():
                found.append(_entry(path, name[1]))
    return [entry for entry in found if entry is not None]


def _of_cache() -> list[dict[str, Any]]:
    root = cache_dir()
    found = _entries([root / name for name in _STORES])
    if table_path().is_file() and (entry := _entry(table_path(), "hashes")):
        found.append({**entry, "what": f"of {len(_table(table_path()))} files", "complete": True})
    return found


def cache_list(out: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """List what the cache holds, or what the folder of a study keeps; what was used last comes first.

    Parameters
    ----------
    out : path, optional
        Output folder of a study, a comparison or a training, in place of the cache.

    Returns
    -------
    pandas.DataFrame
        ``kind`` ("features", "responses", "hashes" of files; of a study the name of the stage),
        ``what``, ``bytes``, ``created`` and ``used`` (UTC), ``complete`` (False: interrupted or damaged), ``path``.

    Examples
    --------
    >>> "kind" in cache_list().columns
    True
    """
    root = Path(out) if out is not None else None
    kept = [p for p in everything_below(root) if p.name in (".steps", ".training")] if root is not None else []
    entries = _of_cache() if root is None else _entries([root, *kept])
    table = pd.DataFrame(entries, columns=_COLUMNS).sort_values("used", ascending=False, kind="stable")
    for name in ("created", "used"):
        table[name] = pd.to_datetime(table[name], unit="s").dt.floor("s")
    return table.reset_index(drop=True)


def _seconds(older_than: str | float | timedelta) -> float:
    if isinstance(older_than, timedelta):
        return older_than.total_seconds()
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", str(older_than))
    if not match:
        raise ConfigError(
            f"older_than={older_than!r} is not an age; write days (7), or '12h', '7d', '2w' (s, m, h, d, w)."
        )
    return float(match[1]) * _UNITS[match[2]]


def _remove(entry: dict[str, Any]) -> int:
    path = Path(entry["path"])
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # an old folder that is empty now
        path.parent.rmdir()
    return int(entry["bytes"]) - _bytes(path)


def cache_clear(older_than: str | float | timedelta | None = None, size: str | int | None = None) -> int:
    """Delete what the cache holds, and leftovers of killed processes; data sets that were fetched stay.

    Parameters
    ----------
    older_than : float (days), str such as "12h" or "7d", or timedelta, optional
        Only what was not used for that long; everything by default.
    size : str or int, optional
        Such as "20GB": only features and responses, the least recently used first, until they are no larger.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    ConfigError
        ``older_than`` is not an age, or ``size`` is no size.

    Examples
    --------
    >>> cache_clear(older_than="100w") >= 0
    True
    """
    age = float("-inf") if older_than is None else _seconds(older_than)
    freed = 0
    if size is None:
        for entry in _of_cache():
            if time.time() - entry["used"] >= age:
                freed += _remove(entry)
        _table.cache_clear()
    else:
        freed = _shrink(parse_memory(size), max(age, 0))
    for name in _STORES:
        before = _bytes(cache_dir() / name)
        remove_leftovers(cache_dir() / name)
        freed += max(0, before - _bytes(cache_dir() / name))
    return freed


def _shrink(limit: int, age: float) -> int:
    entries = sorted(_entries([cache_dir() / name for name in _STORES]), key=lambda entry: entry["used"])
    total, freed = sum(entry["bytes"] for entry in entries), 0
    for entry in entries:
        if total - freed > limit and time.time() - entry["used"] >= age:
            freed += _remove(entry)
    return freed


def trim_cache() -> None:
    """Hold features and responses below NEUROENC_CACHE_SIZE (such as "50GB"; no limit by default).

    The least recently used go first; what was used within the last hour stays.
    """
    limit = os.environ.get("NEUROENC_CACHE_SIZE")
    if limit:
        try:
            _shrink(parse_memory(limit), _IN_USE)
        except ConfigError as error:  # no reason to lose what has been computed
            warnings.warn(f"NEUROENC_CACHE_SIZE limits nothing: {error}", UserWarning, stacklevel=2)
