"""Steps of a run, each kept on disk when done: a run that was killed goes on after the last one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._util.files import hash_json, read_json, write_json
from neuroenc._version import __version__
from neuroenc.data import load, save

__all__ = ["Steps"]


def _write_frames(path: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    record = {
        name: {
            "columns": {str(c): frame[c].tolist() for c in frame.columns},
            "dtypes": {str(c): "str" if frame[c].dtype.kind not in "fiub" else str(frame[c].dtype) for c in frame},
        }
        for name, frame in frames.items()
    }
    write_json(path, record)


def _read_frames(path: Path) -> dict[str, pd.DataFrame]:
    frames = {}
    for name, record in read_json(path).items():
        columns = {}
        for column, values in record["columns"].items():
            kind = record["dtypes"][column]
            filled = [np.nan if v is None else v for v in values]
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
        """Where the result of a step with these inputs lies."""
        key = hash_json({"name": name, "inputs": inputs, "version": __version__})
        return self.folder / f"{name}-{key[:16]}{ending}"

    def arrays(self, name: str, inputs: Any, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """A step whose result is a Dataset, kept as netCDF."""
        path = self.path(name, inputs, ".nc")
        self._do(name, path, lambda: save(compute(), path))
        found = load(path)
        assert isinstance(found, xr.Dataset)
        return found

    def frames(
        self, name: str, inputs: Any, compute: Callable[[], Mapping[str, pd.DataFrame]]
    ) -> dict[str, pd.DataFrame]:
        """A step whose result is some tables, kept as JSON."""
        path = self.path(name, inputs, ".json")
        self._do(name, path, lambda: _write_frames(path, compute()))
        return _read_frames(path)

    def _do(self, name: str, path: Path, work: Callable[[], Any]) -> None:
        if path.exists():
            self.say(f"  {name}: done before, taken from {path.parent.name}/")
            return
        start = time.perf_counter()
        work()
        self.say(f"  {name}: {time.perf_counter() - start:.1f} s")
