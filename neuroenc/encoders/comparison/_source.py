"""What the fits of a comparison read, and what each of them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.executor import Shared
from neuroenc._core.files import hash_array
from neuroenc._core.store import Tensors, content_key
from neuroenc.encoders.comparison._grid import Job


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
    arrays: Tensors = field(default_factory=Tensors)


@dataclass
class Source:
    """Feature spaces and responses, wherever the fits run: ``responses``, ``features-NAME`` and ``index-NAME``.

    ``index-NAME`` gives, for every row of the responses, the row of the feature space.
    """

    arrays: dict[str, Shared]
    hashes: dict[str, str]
    kinds: dict[str, str]
    subjects: list[str]

    def features(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Features of some rows of the responses."""
        return np.asarray(self.arrays[f"features-{name}"].load()[self.arrays[f"index-{name}"].load()[rows]])

    def responses(self, rows: np.ndarray, voxels: np.ndarray) -> xr.DataArray:
        """Responses of some rows and voxels, with the voxels' subjects where they have them."""
        values = np.asarray(self.arrays["responses"].load()[:, voxels][rows], dtype=np.float32)
        coords: dict[str, Any] = {"voxel": voxels}
        if self.subjects:
            coords["subject"] = ("voxel", np.array(self.subjects)[voxels])
        return xr.DataArray(values, dims=("stimulus", "voxel"), coords=coords)

    def key(self, job: Job) -> str:
        """Hash of all that decides what a job gives."""
        cell = job.cell
        used = [f"{part}-{name}" for name in (cell.features, cell.context) if name for part in ("features", "index")]
        data = [self.hashes[name] for name in ("responses", *used)]
        # Which axis holds channels, and which voxels share a readout, decide as much as the numbers do.
        forms = [self.kinds.get(cell.features), self.kinds.get(cell.context), self.subjects]
        return content_key(data, forms, job.rows, job.voxels, cell, job.candidates, job.seed)


def make_source(
    features: dict[str, xr.DataArray],
    indices: dict[str, np.ndarray],
    responses: xr.DataArray,
    share: Callable[[np.ndarray], Shared],
) -> Source:
    """Arrays of a comparison as ``share`` hands them to fits, and their hashes."""
    arrays = {"responses": np.asarray(responses.values)}
    for name, space in features.items():
        arrays[f"features-{name}"] = np.asarray(space.values)
        arrays[f"index-{name}"] = indices[name]
    shared = "subject" in responses.coords and responses["subject"].dims == ("voxel",)
    return Source(
        {name: share(values) for name, values in arrays.items()},
        {name: hash_array(values) for name, values in arrays.items()},
        {name: ",".join(map(str, space.dims)) for name, space in features.items()},
        [str(s) for s in responses["subject"].values] if shared else [],
    )
