"""Maps as a file that pycortex opens (``cortex.load``)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import atomic_path
from neuroenc.report.export._files import MESHES, numeric_scores, places


def export_pycortex(
    scores: xr.Dataset | xr.DataArray,
    file: str | os.PathLike[str],
    *,
    subject: str,
    transform: str | None = None,
    n_vertices: int | tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write maps as a pycortex data set: an HDF5 file of views that ``cortex.load`` opens and ``cortex.webshow`` draws.

    Each score is one view of that name, ``Vertex`` (left hemisphere before the right one) or, with a ``transform``,
    ``Volume`` (axes z, y, x). Values are float32, NaN where nothing was measured, which pycortex leaves transparent.
    Surfaces, transforms and cuts are those of the subject in pycortex's own database; none are written.

    Parameters
    ----------
    scores : Dataset or DataArray over ``voxel``
        Coordinates ``vertex`` and ``hemi``, or ``i, j, k`` with the attributes ``affine`` and ``volume_shape``.
    file : path
        Ends in ``.hdf``, ``.h5`` or ``.hdf5``.
    subject : str
        As pycortex's database names it, such as "fsaverage" or "S1".
    transform : str, optional
        Name in that database of the alignment of the volume; needed for ``i, j, k``, and asks for them where voxels
        have vertices as well.
    n_vertices : int or (int, int), optional
        Vertices of the left and the right hemisphere of the subject's surfaces; by default those of the space of the
        scores. 163842 places the vertices of fsaverage5 on pycortex's "fsaverage", whose first ones they are.
    names : sequence of str, optional
        Scores to write; by default every numeric one.
    overwrite : bool
        Replace the file.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        The file exists or has another ending; voxels have no place, or one that does not fit.
    ConfigError
        A score is unknown, ``n_vertices`` cannot be known, or a volume has no transform.

    References
    ----------
    Gao et al. 2015, Frontiers in Neuroinformatics 9:23 (pycortex).

    Examples
    --------
    >>> import tempfile, h5py
    >>> scores = xr.Dataset(
    ...     {"r": ("voxel", [0.5, 0.6])},
    ...     coords={"vertex": ("voxel", [3, 9]), "hemi": ("voxel", ["L", "R"])}, attrs={"space": "fsaverage5"},
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(export_pycortex(scores, folder + "/maps.hdf", subject="fsaverage5")) as held:
    ...         print([(name, json.loads(view[6].decode())) for name, view in held["views"].items()])
    [('r', {'priority': 1})]
    """
    import h5py

    table = scores.to_dataset(name=str(scores.name or "score")) if isinstance(scores, xr.DataArray) else scores
    table = table.assign_attrs(scores.attrs)
    path = Path(file)
    if path.suffix not in (".hdf", ".h5", ".hdf5"):
        raise DataError(f"{path} ends in {path.suffix!r}; legal: '.hdf', '.h5', '.hdf5'.")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists. Next step: overwrite=True (--overwrite), or another name.")
    legal = numeric_scores(table)
    chosen = [one_of("score", name, legal) for name in names] if names is not None else legal
    if not chosen:
        raise DataError("scores holds no numeric value for each voxel, so there is no map to write.")
    if broken := [name for name in chosen if "/" in name or name.startswith(".")]:
        raise DataError(f"score {broken[0]!r} cannot be the name of a view. Next step: rename it.")
    volume, surface, remark = places(table)
    if transform is not None and not volume:
        raise DataError(remark or "voxels have no i, j, k with affine and volume_shape. Next step: no transform.")
    if transform is None and not surface:
        if volume:
            raise ConfigError("voxels of a volume need the transform (--transform) that pycortex's database has of it.")
        raise DataError(remark or "voxels have neither vertex and hemi nor i, j, k: there is no place to draw them.")
    shape, at = _grid(table) if transform is not None else _cortex(table, n_vertices)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as held:
        for name in chosen:
            values = np.full(shape, np.nan, np.float32)
            values[at] = table[name].values
            # pycortex names arrays by their content.
            key = "__" + hashlib.sha1(values.tobytes(), usedforsecurity=False).hexdigest()[:16]
            if f"data/{key}" not in held:
                held.create_dataset(f"data/{key}", data=values).attrs["subject"] = subject
            known = values[np.isfinite(values)]
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
            view = held.create_dataset(f"views/{name}", (8,), h5py.string_dtype())
            about = [json.dumps([key]), str(table[name].attrs.get("long_name", name)), json.dumps(["viridis"])]
            about += [json.dumps([min(low, 0.0)]), json.dumps([high]), "null", json.dumps({"priority": 1})]
            about.append("null" if transform is None else json.dumps([transform]))
            view[:] = about
    return path


def _grid(scores: xr.Dataset) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """Shape of the volume, axes z, y, x, and the place of every voxel in it."""
    shape = tuple(int(n) for n in scores.attrs["volume_shape"])
    ijk = np.stack([scores[axis].values for axis in "ijk"], axis=1).astype(int)
    if (ijk < 0).any() or (ijk >= shape).any():
        raise DataError(f"i, j, k reach from {ijk.min(0).tolist()} to {ijk.max(0).tolist()}, the volume is {shape}.")
    return shape[::-1], tuple(ijk.T[::-1])


def _cortex(
    scores: xr.Dataset, n_vertices: int | tuple[int, int] | None
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """Number of vertices of both hemispheres, and the place of every voxel among them."""
    space = str(scores.attrs.get("space", "unknown"))
    if n_vertices is None and space not in MESHES:
        raise ConfigError(
            f"vertices of the space {space!r} have no known number. Next step: n_vertices=(left, right) "
            "(--vertices), as many as the subject's surfaces have in pycortex's database."
        )
    given = MESHES[space] if n_vertices is None else n_vertices
    left, right = (given, given) if isinstance(given, int) else given
    vertex, hemi = scores["vertex"].values.astype(int), scores["hemi"].values.astype(str)
    for side, n in (("L", left), ("R", right)):
        own = vertex[hemi == side]
        if own.size and (own.min() < 0 or own.max() >= n):
            raise DataError(f"vertices {own.min()}..{own.max()} of hemisphere {side} do not fit its {n} (0..{n - 1}).")
    if strange := sorted(set(hemi.tolist()) - {"L", "R"}):
        raise DataError(f"hemi holds {strange[:3]}; legal are 'L' and 'R'.")
    return (left + right,), (vertex + np.where(hemi == "R", left, 0),)
