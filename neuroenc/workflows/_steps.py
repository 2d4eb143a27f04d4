"""Steps of a run, each kept on disk when done: a run that was killed goes on after the last one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import (
    hash_array,
    hash_json,
    hash_path,
    read_sealed_json,
    read_text,
    sha256_file,
    write_sealed_json,
    write_text,
)
from neuroenc._version import __version__
from neuroenc.data import Stimuli, load, save
from neuroenc.retrieval import EmbeddingBank

__all__ = ["Steps", "content_key"]

T = TypeVar("T")


def content_key(*things: Any) -> str:
    """SHA-256 of all that a step reads: values, labels and attributes, never names of files.

    Takes labelled arrays and tables, arrays, `Stimuli` (decoded pictures, captions), banks, settings, and what JSON can
    hold; a ``Path`` counts by the content of the file or folder.
    Provenance does not count, because it names versions and places that results do not depend on.

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
    if isinstance(thing, Stimuli):
        return ["stimuli", thing.content_hash(), thing.captions]
    if isinstance(thing, EmbeddingBank):
        from neuroenc.captions.projection._stream import bank_hash

        return ["bank", bank_hash(thing)]
    if isinstance(thing, Path):
        return hash_path(thing)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: _content(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, Mapping):
        return {str(k): _content(v) for k, v in thing.items() if k != "provenance"}
    if isinstance(thing, (list, tuple)):
        return [_content(x) for x in thing]
    return thing


def _number(value: Any) -> Any:
    """JSON has no infinity, and a missing number is null."""
    return str(value) if isinstance(value, (float, np.floating)) and np.isinf(value) else value


def _write_frames(path: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    record = {
        name: {
            "columns": {str(c): [_number(x) for x in frame[c].tolist()] for c in frame.columns},
            "dtypes": {str(c): "str" if frame[c].dtype.kind not in "fiub" else str(frame[c].dtype) for c in frame},
        }
        for name, frame in frames.items()
    }
    write_sealed_json(path, record)


def _read_frames(path: Path) -> dict[str, pd.DataFrame]:
    frames = {}
    for name, record in read_sealed_json(path).items():
        columns = {}
        for column, kind in record["dtypes"].items():
            filled = [np.nan if v is None else v for v in record["columns"][column]]
            columns[column] = np.array(filled, dtype=object if kind == "str" else kind)
        frames[name] = pd.DataFrame(columns)
    return frames


class Steps:
    """Results by name and inputs, in a folder beside the outputs.

    What a step returns is always what was read back from the disk, so a run that goes on gives the same
    output as one that was never stopped.

    Parameters
    ----------
    folder : path
    say : callable
        Gets one line a step.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.say = say
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, inputs: Any, ending: str = "") -> Path:
        """Where the result of a step with these inputs (see `content_key`) lies."""
        key = hash_json({"name": name, "inputs": _content(inputs), "version": __version__})
        return self.folder / f"{name}-{key[:16]}{ending}"

    def arrays(self, name: str, inputs: Any, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """A step whose result is a Dataset, kept as netCDF beside its hash."""
        path = self.path(name, inputs, ".nc")
        seal = path.with_suffix(".sha256")

        def write() -> None:
            seal.unlink(missing_ok=True)
            save(compute(), path)
            write_text(seal, sha256_file(path) + "\n")

        def read() -> xr.Dataset:
            found = load(path)
            if not isinstance(found, xr.Dataset):
                raise DataError(f"{path} holds a {type(found).__name__}; expected a Dataset.")
            if read_text(seal).strip() != sha256_file(path):
                raise DataError(f"{path} was changed after it was written.")
            return found

        return self.done(name, path, write, read)

    def frames(
        self, name: str, inputs: Any, compute: Callable[[], Mapping[str, pd.DataFrame]]
    ) -> dict[str, pd.DataFrame]:
        """A step whose result is some tables, kept as JSON."""
        path = self.path(name, inputs, ".json")
        return self.done(name, path, lambda: _write_frames(path, compute()), lambda: _read_frames(path))

    def done(self, name: str, path: Path, work: Callable[[], Any], read: Callable[[], T]) -> T:
        """What ``read`` finds at ``path``, after ``work`` where nothing is there or it is damaged."""
        if path.exists():
            try:
                found = read()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                # Whatever is wrong with it, what the step reads is still there.
                self.say(f"  {name}: {path.parent.name}/{path.name} is damaged; computed again")
            else:
                self.say(f"  {name}: done before, taken from {path.parent.name}/")
                return found
        start = time.perf_counter()
        work()
        found = read()
        self.say(f"  {name}: {time.perf_counter() - start:.1f} s")
        return found
