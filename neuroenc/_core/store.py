"""One store for results that are kept: found by the content of what they were made from, whole or not there at all."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import (
    _alive,
    atomic_path,
    hash_array,
    hash_json,
    hash_path,
    plain_json,
    read_json,
    read_npy,
    read_sealed_folder,
    recover,
    seal_folder,
    write_json,
)
from neuroenc._version import __version__

__all__ = ["Codec", "Store", "content_key", "register"]

_RECORD = "record.json"
#: Seconds without a sign of life after which another machine's claim on a result counts no more.
_STALE = 60.0


@dataclasses.dataclass(frozen=True)
class Codec:
    """How values of one type are written to and read from a file or folder of their own."""

    kind: str
    of: type
    ending: str
    write: Callable[[Path, Any], Any]
    read: Callable[[Path], Any]


def _number(value: Any) -> Any:
    """JSON has no infinity, and a missing number is null."""
    return str(value) if isinstance(value, (float, np.floating)) and np.isinf(value) else value


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    record = {
        "columns": {str(c): [_number(x) for x in frame[c].tolist()] for c in frame.columns},
        "dtypes": {str(c): "str" if frame[c].dtype.kind not in "fiub" else str(frame[c].dtype) for c in frame},
    }
    write_json(path, plain_json(record))


def _read_frame(path: Path) -> pd.DataFrame:
    record, columns = read_json(path), {}
    for column, kind in record["dtypes"].items():
        filled = [np.nan if v is None else v for v in record["columns"][column]]
        columns[column] = np.array(filled, dtype=object if kind == "str" else kind)
    return pd.DataFrame(columns)


def _write_plain(path: Path, value: Any) -> None:
    write_json(path, {"value": value})


_CODECS: list[Codec] = [
    Codec("table", pd.DataFrame, ".json", _write_frame, _read_frame),
    Codec("array", np.ndarray, ".npy", lambda p, a: np.save(p, a, allow_pickle=False), lambda p: np.array(read_npy(p))),
]
_PLAIN = Codec("plain", object, ".json", _write_plain, lambda p: read_json(p)["value"])


def register(codec: Codec) -> None:
    """Let the store keep values of another type; a later codec of the same kind replaces the earlier one."""
    _CODECS[:] = [codec, *(c for c in _CODECS if c.kind != codec.kind)]


def _codec(value: Any) -> Codec:
    return next((c for c in _CODECS if isinstance(value, c.of)), _PLAIN)


def content_key(*things: Any) -> str:
    """SHA-256 of all that a result is made from: values, labels and attributes, never names of files.

    Takes labelled arrays and tables, arrays, settings, what JSON can hold, and objects with a method
    ``content_hash()`` (stimuli, banks); a ``Path`` counts by the content of the file or folder. Provenance does not
    count, because it names versions and places that results do not depend on.

    >>> a = xr.DataArray([1.0, 2.0], dims="voxel", coords={"roi": ("voxel", ["V1", "V4"])})
    >>> content_key(a) == content_key(a.copy()) != content_key(a.assign_coords(roi=("voxel", ["V1", "V2"])))
    True
    """
    return hash_json([_content(thing) for thing in things])


def _content(thing: Any) -> Any:
    if isinstance(thing, xr.Dataset):
        parts = {str(name): _content(array) for name, array in thing.data_vars.items()}
        return ["dataset", parts, _content(dict(thing.attrs)), {str(k): _content(c) for k, c in thing.coords.items()}]
    if isinstance(thing, xr.DataArray):
        coords = {str(k): [list(map(str, c.dims)), hash_array(c.values)] for k, c in thing.coords.items()}
        return ["array", list(map(str, thing.dims)), hash_array(thing.values), coords, _content(dict(thing.attrs))]
    if isinstance(thing, np.ndarray):
        return hash_array(thing)
    if isinstance(thing, pd.DataFrame):
        return [[str(c), hash_array(thing[c].to_numpy())] for c in thing.columns]
    if isinstance(thing, Path):
        return hash_path(thing)
    if hasattr(thing, "content_hash") and not isinstance(thing, type):
        # Stimuli hash their pictures; captions are content too.
        return [type(thing).__name__, thing.content_hash(), getattr(thing, "captions", None)]
    if hasattr(thing, "model_dump") and not isinstance(thing, type):  # settings
        return _content(thing.model_dump())
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: _content(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, Mapping):
        return {str(k): _content(v) for k, v in thing.items() if k != "provenance"}
    if isinstance(thing, (list, tuple)):
        return [_content(x) for x in thing]
    return thing


def _silent(_: str) -> None:
    pass


class Store:
    """Results by name and content, each a sealed folder of files in one folder.

    What `keep` returns is always what was read back, so a run that goes on gives the same output as one that was
    never stopped. Several processes, also of several machines, may share the folder: every result is moved into place
    whole, and who finds one in the making waits for it while its maker shows signs of life. Making a result twice is
    harmless.

    Parameters
    ----------
    folder : path
    say : callable
        Callback for progress messages.

    Examples
    --------
    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> store.keep("double", [21], lambda: {"answer": 42})
    {'answer': 42}
    >>> store.keep("double", [21], lambda: {"answer": 0})  # made before
    {'answer': 42}
    """

    def __init__(self, folder: str | os.PathLike[str], say: Callable[[str], None] = _silent) -> None:
        self.folder = Path(folder)
        self.say = say
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, inputs: Any, ending: str = "") -> Path:
        """Where the result of these inputs (see `content_key`) lies."""
        key = hash_json({"name": name, "inputs": _content(inputs), "version": __version__})
        return self.folder / f"{name}-{key[:16]}{ending}"

    def has(self, name: str, inputs: Any) -> bool:
        """Whether a result is there (it may turn out to be damaged when it is read)."""
        return recover(self.path(name, inputs))

    def keep(self, name: str, inputs: Any, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The parts that ``compute()`` gives for these inputs, computed once.

        Parameters
        ----------
        name : str
        inputs : anything that `content_key` takes
            All that the result depends on.
        compute : callable
            Gives labelled arrays, tables, arrays or plain values by name.
        """
        path = self.path(name, inputs)
        found = self._found(name, path)
        if found is None:
            with _claim(path) as mine:
                # Another process may have made it while this one waited for its claim.
                found = None if mine else self._found(name, path)
                if found is None:
                    start = time.perf_counter()
                    self._write(path, name, compute())
                    found = self._read(path)
                    self.say(f"  {name}: {time.perf_counter() - start:.1f} s")
        return found

    def _found(self, name: str, path: Path) -> dict[str, Any] | None:
        if not recover(path):
            return None
        try:
            found = self._read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Whatever is wrong with it, what it is made from is still there.
            self.say(f"  {name}: {path.parent.name}/{path.name} is damaged; computed again")
            shutil.rmtree(path, ignore_errors=True)
            return None
        self.say(f"  {name}: done before, taken from {path.parent.name}/")
        claim = _claim_of(path)
        # Left by a process that was killed between its result and the end of its claim.
        if claim.exists() and _stale(claim):
            claim.unlink(missing_ok=True)
        return found

    @staticmethod
    def _write(path: Path, name: str, parts: Mapping[str, Any]) -> None:
        with atomic_path(path, directory=True) as folder:
            kinds = {}
            for part, value in parts.items():
                codec = _codec(value)
                codec.write(folder / f"{part}{codec.ending}", value)
                kinds[part] = codec.kind
            seal_folder(folder, _RECORD, {"kind": "result", "version": 1, "name": name, "parts": kinds})

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        record = read_sealed_folder(path, _RECORD, "result", "result", 1)
        codecs = {c.kind: c for c in (*_CODECS, _PLAIN)}
        found = {}
        for part, kind in record["parts"].items():
            if kind not in codecs:
                raise DataError(f"{path} holds a {kind}, which nothing here reads.")
            found[part] = codecs[kind].read(path / f"{part}{codecs[kind].ending}")
        return found


def _claim_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.claim")


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Tell other processes that a result is being made, after waiting for one that makes it; False if it came.

    A claim is a hint: it names machine and process, is touched every few seconds, and counts no more when the process
    is gone or, on another machine, has been silent for a minute.
    """
    claim = _claim_of(path)
    while not path.exists():
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _stale(claim):
                claim.unlink(missing_ok=True)
            else:
                time.sleep(0.2)
            continue
        os.write(handle, json.dumps([platform.node(), os.getpid()]).encode())
        os.close(handle)
        break
    else:
        yield False  # made by the other process meanwhile
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_STALE / 6):
            with suppress(OSError):
                os.utime(claim)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        claim.unlink(missing_ok=True)


def _stale(claim: Path) -> bool:
    try:
        silent = time.time() - claim.stat().st_mtime
        host, process = json.loads(claim.read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError):
        return silent > 5  # cut short while it was written
    if host == platform.node():
        return not _alive(int(process)) or int(process) == os.getpid()
    return silent > _STALE
