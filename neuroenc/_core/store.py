"""One store for results that are kept: found by the content of what they were made from, whole or not there at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError, StorageError
from neuroenc._core.files import (
    _alive,
    atomic_path,
    hash_array,
    hash_json,
    hash_path,
    json_text,
    read_json,
    read_npy,
    read_sealed_folder,
    recover,
    seal_folder,
    storage_errors,
)
from neuroenc._core.weights import load_tensors, save_tensors
from neuroenc._version import __version__

#: Not the name of any part.
RECORD = "_result.json"
#: Ending of the folder in which a result in the making keeps what is done of it.
PART = ".part"
#: Seconds without a sign of life after which a claim on a result counts no more.
_STALE = 60.0
#: Fifths of a second after which it is said that another process is waited for.
_PATIENCE = 50
#: Arrays up to this size are read into memory; larger ones stay on disk, memory-mapped.
IN_MEMORY = 2**30


class Blocks(NamedTuple):
    """An array of ``n`` rows that comes in pieces along its first axis; it is written as it comes, never held whole."""

    n: int
    pieces: Iterable[np.ndarray]


class Tensors(dict):
    """Arrays by name (all numpy, or all torch), kept in one safetensors file."""


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
    path.write_text(json_text(record))


def _read_frame(path: Path) -> pd.DataFrame:
    record, columns = read_json(path), {}
    for column, kind in record["dtypes"].items():
        filled = [np.nan if v is None else v for v in record["columns"][column]]
        columns[column] = np.array(filled, dtype=object if kind == "str" else kind)
    return pd.DataFrame(columns)


def _write_blocks(path: Path, blocks: Blocks) -> None:
    # Not memory-mapped: a full disk would end the process with SIGBUS.
    with open(path, "wb") as handle:
        for number, piece in enumerate(blocks.pieces):
            if number == 0:
                shape = (blocks.n, *piece.shape[1:])
                header = {"descr": np.lib.format.dtype_to_descr(piece.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(handle, header)
            handle.write(np.ascontiguousarray(piece).data)


_CODECS: list[Codec] = [
    Codec("table", pd.DataFrame, ".json", _write_frame, _read_frame),
    Codec("array", Blocks, ".npy", _write_blocks, read_npy),
    Codec("array", np.ndarray, ".npy", lambda p, a: np.save(p, a, allow_pickle=False), read_npy),
    Codec("tensors", Tensors, ".safetensors", save_tensors, lambda p: Tensors(load_tensors(p))),
]
_PLAIN = Codec(
    "plain", object, ".json", lambda p, v: p.write_text(json_text({"value": v})), lambda p: read_json(p)["value"]
)


def register(codec: Codec) -> None:
    """Let the store keep values of another type; a later codec of the same kind replaces the earlier one."""
    _CODECS[:] = [codec, *(c for c in _CODECS if c.kind != codec.kind)]


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
    # Estimators may be dataclasses of their settings; what they learned is in no field.
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type) and not hasattr(thing, "get_params"):
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
    harmless. A result that is damaged is made again, which is said (by `say`, else as a warning).

    Parameters
    ----------
    folder : path
        Made when something is written.
    say : callable, optional
        Callback for progress messages.
    mapped : bool
        Arrays stay on disk, memory-mapped, whatever their size; else those larger than 1 GiB.

    Examples
    --------
    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> store.keep("double", [21], lambda: {"answer": 42})
    {'answer': 42}
    >>> store.keep("double", [21], lambda: {"answer": 0})  # made before
    {'answer': 42}
    """

    def __init__(
        self, folder: str | os.PathLike[str], say: Callable[[str], None] | None = None, mapped: bool = False
    ) -> None:
        self.folder, self.say, self.mapped = Path(folder), say, mapped

    def _warn(self, text: str) -> None:
        if self.say is not None:
            self.say(f"  {text}")
        else:
            warnings.warn(f"{text}.", UserWarning, stacklevel=4)

    def path(self, name: str, inputs: Any) -> Path:
        """Where the result of these inputs (see `content_key`) lies."""
        key = hash_json({"name": name, "inputs": _content(inputs), "version": __version__})
        return self.folder / f"{name}-{key[:16]}"

    def part(self, name: str, inputs: Any) -> Store:
        """Store for what is done of a result in the making; gone when `keep` has put the result in its place."""
        return Store(_part_of(self.path(name, inputs)))

    def has(self, name: str, inputs: Any) -> bool:
        """Whether a result is there (it may turn out to be damaged when it is read)."""
        return recover(self.path(name, inputs))

    def read(self, name: str, inputs: Any) -> dict[str, Any] | None:
        """The parts of a result, or None where there is none, or a damaged one (which is removed)."""
        path = self.path(name, inputs)
        if not recover(path):
            return None
        try:
            found = self._read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if path.exists():  # else another process has removed it
                # Whatever is wrong with it, what it is made from is still there.
                self._warn(f"{name}: {path.parent.name}/{path.name} is damaged; computed again")
                shutil.rmtree(path, ignore_errors=True)
            return None
        with suppress(OSError):  # used now; a folder that may only be read does not remember it
            os.utime(path)
        claim = _claim_of(path)
        # Left by a process that was killed between its result and the end of its claim.
        if claim.exists() and _stale(claim):
            claim.unlink(missing_ok=True)
        return found

    def write(self, name: str, inputs: Any, parts: Mapping[str, Any]) -> None:
        """Put a result in its place, or in that of an earlier state of it."""
        path = self.path(name, inputs)
        try:
            with atomic_path(path, directory=True) as folder:
                kinds = {}
                for part, value in parts.items():
                    codec = next((c for c in _CODECS if isinstance(value, c.of)), _PLAIN)
                    codec.write(folder / f"{part}{codec.ending}", value)
                    kinds[part] = codec.kind
                seal_folder(folder, RECORD, {"kind": "result", "version": 1, "name": name, "parts": kinds})
        except (OSError, StorageError) as error:
            number = getattr(error.__cause__ if isinstance(error, StorageError) else error, "errno", None)
            # Two processes put the same result in its place at once.
            if number not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not path.is_dir():
                raise

    def keep(self, name: str, inputs: Any, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The parts that ``compute()`` gives for these inputs, computed once.

        Parameters
        ----------
        inputs : anything that `content_key` takes
            All that the result depends on.
        compute : callable
            Gives labelled arrays, tables, arrays or plain values by name. What it keeps in `part` outlives a kill.
        """
        path, say = self.path(name, inputs), self.say or _silent
        found = self.read(name, inputs)
        if found is not None:
            say(f"  {name}: done before, taken from {path.parent.name}/")
            return found
        with _claim(path, self._warn) as mine:
            # Another process may have made it while this one waited for its claim.
            found = None if mine else self.read(name, inputs)
            if found is None:
                start = time.perf_counter()
                self.write(name, inputs, compute())
                found = self._read(path)
                shutil.rmtree(_part_of(path), ignore_errors=True)
                say(f"  {name}: {time.perf_counter() - start:.1f} s")
        return found

    def _read(self, path: Path) -> dict[str, Any]:
        record = read_sealed_folder(path, RECORD, "result", "result", 1)
        codecs = {c.kind: c for c in (*_CODECS, _PLAIN)}
        found = {}
        for part, kind in record["parts"].items():
            if kind not in codecs:
                raise DataError(f"{path} holds a {kind}, which nothing here reads.")
            value = codecs[kind].read(path / f"{part}{codecs[kind].ending}")
            small = isinstance(value, np.memmap) and value.nbytes <= IN_MEMORY and not self.mapped
            found[part] = np.array(value) if small else value
        return found


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _claim_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.claim")


@contextmanager
def _claim(path: Path, tell: Callable[[str], None]) -> Iterator[bool]:
    """Tell other processes that a result is being made, after waiting for one that makes it; False if it came.

    A claim is a hint: it names machine and process, is touched every few seconds, and counts no more when the process
    is gone or has been silent for a minute.
    """
    claim = _claim_of(path)
    with storage_errors(claim):
        claim.parent.mkdir(parents=True, exist_ok=True)
    waited = 0
    while not path.exists():
        with storage_errors(claim), suppress(FileExistsError), open(claim, "x") as handle:
            json.dump([platform.node(), os.getpid()], handle)
            break
        if _stale(claim):
            claim.unlink(missing_ok=True)
        else:
            time.sleep(0.2)
            waited += 1
            if waited == _PATIENCE:
                tell(f"{path.parent.name}/{path.name} is being made by another process, which this one waits for")
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
    here = host == platform.node()
    # The number of a process that died may by now be that of another.
    return silent > _STALE or (here and (not _alive(int(process)) or int(process) == os.getpid()))
