"""Store of a comparison: inputs and results of its fits, on disk or in memory."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, hash_array, hash_json, write_json
from neuroenc._core.weights import read_tensors, write_tensors
from neuroenc._version import __version__
from neuroenc.encoders.comparison._grid import Cell, Job


@dataclass
class Fitted:
    """Result of one job.

    ``predicted`` (test row, voxel) and ``validation_r`` (voxel,); ``arrays`` are further values per voxel
    (receptive fields, spread of warps), ``record`` is plain data, ``curves`` one dict an epoch.
    """

    predicted: np.ndarray
    validation_r: np.ndarray
    record: dict[str, Any]
    curves: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Source:
    """Feature spaces and responses for workers: arrays, or the folder where they lie as .npy.

    ``index[name]`` gives, for every row of the responses, the row of the feature space.
    """

    kinds: dict[str, str]
    hashes: dict[str, str]
    subjects: list[str]
    folder: str = ""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def array(self, name: str) -> np.ndarray:
        """An array by name: ``responses``, ``features-NAME`` or ``index-NAME``."""
        if self.folder:
            return np.load(Path(self.folder) / f"{self.hashes[name]}.npy", mmap_mode="r", allow_pickle=False)
        return self.arrays[name]

    def features(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Features of some rows of the responses."""
        return np.asarray(self.array(f"features-{name}")[self.array(f"index-{name}")[rows]])

    def responses(self, rows: np.ndarray, voxels: np.ndarray) -> xr.DataArray:
        """Responses of some rows and voxels, with the voxels' subjects where they have them."""
        values = np.asarray(self.array("responses")[:, voxels][rows], dtype=np.float32)
        coords: dict[str, Any] = {"voxel": voxels}
        if self.subjects:
            coords["subject"] = ("voxel", np.array(self.subjects)[voxels])
        return xr.DataArray(values, dims=("stimulus", "voxel"), coords=coords)

    def shared(self, folder: Path) -> Source:
        """The same, in files that other processes map into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in self.arrays.items():
            path = folder / f"{self.hashes[name]}.npy"
            if not _holds(path, self.hashes[name]):
                with atomic_path(path) as temporary:
                    np.save(temporary, values, allow_pickle=False)
        return Source(self.kinds, self.hashes, self.subjects, os.fspath(folder.resolve()))


def _holds(path: Path, digest: str) -> bool:
    """Whether a file is there and whole."""
    try:
        return path.exists() and hash_array(np.load(path, mmap_mode="r", allow_pickle=False)) == digest
    except (ValueError, OSError, EOFError):
        return False


def make_source(features: dict[str, xr.DataArray], indices: dict[str, np.ndarray], responses: xr.DataArray) -> Source:
    """Arrays of a comparison and their hashes."""
    arrays = {"responses": np.asarray(responses.values)}
    for name, space in features.items():
        arrays[f"features-{name}"] = np.asarray(space.values)
        arrays[f"index-{name}"] = indices[name]
    hashes = {name: hash_array(values) for name, values in arrays.items()}
    kinds = {name: ",".join(map(str, space.dims)) for name, space in features.items()}
    subjects: list[str] = []
    if "subject" in responses.coords and responses["subject"].dims == ("voxel",):
        subjects = [str(s) for s in responses["subject"].values]
    return Source(kinds, hashes, subjects, arrays=arrays)


class Store:
    """Results of jobs in a folder, one file each, written whole or not at all."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder = folder
        self.hashes = source.hashes
        # Which axis holds channels, and which voxels share a readout, decide as much as the numbers do.
        self.forms = {**source.kinds, "subjects": hash_array(source.subjects)}
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, job: Job) -> str:
        """Hash of all that decides what a job gives."""
        cell = job.cell
        used = [f"{part}-{name}" for name in (cell.features, cell.context) if name for part in ("features", "index")]
        content = {name: self.hashes[name] for name in ("responses", *used)}
        forms = {name: self.forms.get(name, "") for name in (cell.features, cell.context, "subjects")}
        rows = hash_array(job.rows.train, job.rows.validation, job.rows.test, job.voxels)
        # Labels name results and do not change them.
        settings = {k: v for k, v in cell.settings().items() if k not in ("readout", "core", "features")}
        return hash_json([content, forms, rows, settings, job.candidates, job.seed, __version__])

    def path(self, job: Job) -> Path:
        """File of a job's result."""
        return self.folder / _slug(job.cell) / f"fold{job.fold}-group{job.group}-{self.key(job)[:16]}.safetensors"

    def work(self, job: Job) -> Path:
        """Folder for what a fit in progress keeps."""
        return self.path(job).with_suffix(".work")

    def write(self, job: Job, fitted: Fitted) -> None:
        """Keep a result."""
        tensors = {f"voxel-{k}": np.ascontiguousarray(v) for k, v in fitted.arrays.items()}
        tensors["predicted"] = np.ascontiguousarray(fitted.predicted, dtype=np.float32)
        tensors["validation_r"] = np.ascontiguousarray(fitted.validation_r, dtype=np.float64)
        write_tensors(self.path(job), tensors, {"record": fitted.record, "curves": fitted.curves})

    def read(self, job: Job) -> Fitted:
        """A result that was kept."""
        tensors, notes = read_tensors(self.path(job))
        arrays = {k.removeprefix("voxel-"): v for k, v in tensors.items() if k.startswith("voxel-")}
        return Fitted(tensors["predicted"], tensors["validation_r"], notes["record"], notes["curves"], arrays)

    def has(self, job: Job) -> bool:
        """Whether a whole result is kept; one that is damaged is computed anew."""
        if not self.path(job).exists():
            return False
        try:
            read_tensors(self.path(job))
        except DataError:
            return False
        return True

    def describe(self, cells: list[Cell]) -> None:
        """The settings of every cell beside its results, for people."""
        for cell in cells:
            write_json(self.folder / _slug(cell) / "cell.json", {"name": cell.name, **cell.settings()})


def _slug(cell: Cell) -> str:
    keep = "".join(c if c.isalnum() or c in "-_." else "-" for c in cell.name)
    return f"{keep}-{hash_json(cell.name)[:6]}"


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Folder of a comparison that is not kept; gone with the last reference to it."""
    return tempfile.TemporaryDirectory(prefix="neuroenc-compare-")
