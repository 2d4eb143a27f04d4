"""The report's files for other programs: captions, scores, volumes and surfaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, write_json
from neuroenc._core.tables import write_table

__all__ = ["numeric_scores", "places", "write_captions", "write_maps", "write_scores"]

# Vertices of a hemisphere.
MESHES = {"fsaverage5": 10242, "fsaverage6": 40962, "fsaverage7": 163842, "fsaverage": 163842}


def numeric_scores(scores: xr.Dataset) -> list[str]:
    """Names of the numeric variables with one value per voxel."""
    return [
        str(name)
        for name, values in scores.data_vars.items()
        if values.dims == ("voxel",) and (values.dtype.kind in "fiu" or values.dtype == bool)
    ]


def places(scores: xr.Dataset) -> tuple[bool, bool, str]:
    """Whether voxels have places in a volume, and on a surface, and why maps are left out if they are.

    Several subjects in one data set share places: no single map can hold them.
    """
    volume = all(axis in scores.coords for axis in "ijk") and {"affine", "volume_shape"} <= set(scores.attrs)
    surface = "vertex" in scores.coords and "hemi" in scores.coords
    for kind in ([["i", "j", "k"]] if volume else []) + ([["hemi", "vertex"]] if surface else []):
        shared = int(pd.DataFrame({x: scores[x].values for x in kind}).duplicated().sum())
        if shared:
            return (
                False,
                False,
                (
                    f"{shared} voxels share their {' and '.join(kind) if len(kind) == 2 else 'i, j, k'} with another "
                    "(several subjects?), so no maps were made; write one report per subject for maps."
                ),
            )
    return volume, surface, ""


def _file_part(name: str) -> str:
    """A score's name as part of a file's name: it cannot lead out of the folder."""
    if not name.isprintable() or not name.strip() or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise DataError(f"score {name!r} cannot be part of a file's name. Next step: rename it.")
    return name


def _n_vertices(scores: xr.Dataset) -> int:
    """Vertices per hemisphere of the smallest fsaverage mesh that holds all; the highest vertex if none does."""
    highest = int(scores["vertex"].values.max()) + 1
    named = MESHES.get(str(scores.attrs.get("space", "")), 0)
    fitting = [n for n in (10242, 40962, 163842) if n >= highest]
    return named if named >= highest else (fitting[0] if fitting else highest)


def _record(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): None if value is pd.NA or value is pd.NaT else value for key, value in row.items()}


def write_captions(folder: Path, captions: pd.DataFrame) -> list[Path]:
    """``captions.csv`` and ``captions.json`` (a list of records; a missing number is null)."""
    write_table(captions, folder / "captions.csv")
    write_json(folder / "captions.json", [_record(row) for row in captions.to_dict("records")])
    return [folder / "captions.csv", folder / "captions.json"]


def write_scores(folder: Path, scores: xr.Dataset) -> Path:
    """``scores.nc``: every variable, coordinate and attribute."""
    from neuroenc.data import save

    save(scores, folder / "scores.nc")
    return folder / "scores.nc"


def write_maps(folder: Path, scores: xr.Dataset, names: Iterable[str]) -> list[Path]:
    """One NIfTI per score where voxels have i, j, k; one GIFTI per score and hemisphere where vertices.

    Values outside are NaN in both: a voxel that was not measured is not a voxel predicted at zero.
    """
    import nibabel as nib

    from neuroenc.data import to_gifti, unmask

    volume, surface, _ = places(scores)
    written: list[Path] = []
    for name in names:
        values = np.asarray(scores[name].values, dtype=np.float32)
        if volume:
            image = unmask(scores[name].astype(np.float32).assign_attrs(scores.attrs))
            written.append(_save(image, folder / "maps" / f"{_file_part(name)}.nii.gz", nib))
        if surface:
            vertex, hemis = scores["vertex"].values, scores["hemi"].values
            meshes = to_gifti(values, vertex, hemis, n_vertices=_n_vertices(scores), name=name)
            for hemi, mesh in meshes.items():
                written.append(_save(mesh, folder / "maps" / f"{_file_part(name)}_hemi-{hemi}.func.gii", nib))
    return written


def _save(image: Any, path: Path, nib: Any) -> Path:
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return path
