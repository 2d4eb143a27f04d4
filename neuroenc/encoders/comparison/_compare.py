"""`compare`: feature spaces, cores and readouts side by side."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import match
from neuroenc.encoders._labels import match_voxels, space_of, voxel_coords
from neuroenc.encoders.comparison._cells import build_cells
from neuroenc.encoders.comparison._execute import execute
from neuroenc.encoders.comparison._grid import check_budget, make_folds, make_jobs
from neuroenc.encoders.comparison._result import Comparison
from neuroenc.encoders.comparison._store import Store, make_source, temporary_folder

__all__ = ["compare"]

_DIMS = {("stimulus", "feature"), ("stimulus", "token", "feature"), ("stimulus", "channel", "y", "x")}


def compare(
    features: Mapping[str, xr.DataArray],
    readouts: Mapping[str, Mapping[str, Any]] | Sequence[str],
    responses: xr.DataArray,
    *,
    cores: Mapping[str, Mapping[str, Any]] | Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
    cv: Any = 5,
    validation: float = 0.2,
    n_candidates: int = 3,
    training: Mapping[str, Any] | None = None,
    noise_ceiling: Any = None,
    n_bootstraps: int = 1000,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    client: Any = None,
    workers: int = 1,
    threads: int = 1,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Fit every feature space through every readout on the same rows with the same budget, and compare.

    Every cell (feature space, core, readout) sees the same outer folds by stimulus, and within each the same
    validation split. ``n_candidates`` settings are drawn from the readout's search space; the one with the highest
    mean validation r is fitted again on all training rows, for as many epochs as it took, and predicts the test
    rows. Ridge chooses its penalty per voxel on the same validation rows (all penalties are one candidate); its
    option ``cv`` chooses by inner folds of the training rows instead.

    Parameters
    ----------
    features : mapping of name to DataArray
        (stimulus, feature), (stimulus, token, feature) or (stimulus, channel, y, x); every stimulus of the responses.
    readouts : mapping of label to settings, or names
        See `neuroenc.encoders.readout`; settings are the readout's options, arguments of `ReadoutEncoder`,
        ``readout`` (which one the label stands for), ``context`` (a feature space) and ``search``.
        "linear" and "pooled" (with ``pool``) are ridge in closed form on frozen features.
    responses : DataArray (presentation or stimulus, voxel)
        NaN where a subject did not see a stimulus; those entries take part in nothing. Subjects side by side along
        voxel carry the coordinate ``subject``.
    cores : mapping of label to settings, or names, optional
        Cores trained together with the readout: ``core`` (which), ``features`` (the spaces, images or grids, that
        it takes; these are then read through cores only), and the core's options.
    cells : sequence of str, optional
        Only these, ``features/readout`` or ``features/core/readout``; ``*`` stands for anything.
    cv : int, str, splitter or iterable
        Outer folds.
    validation : float
        Share of the training stimuli on which settings are chosen.
    n_candidates : int
        Settings tried for each cell.
    training : mapping, optional
        Arguments of `ReadoutEncoder` for all cells that are trained by gradients.
    noise_ceiling : array (voxel,), optional
        As correlations.
    n_bootstraps : int
        Resamples of stimuli.
    seed : int
    out : path, optional
        Folder where finished fits are kept: the same call goes on after a kill and ends with the same numbers.
    client : dask.distributed.Client, optional
        Anything with ``submit`` and ``gather``; its workers must see ``out`` under the same path.
    workers : int
        Processes on this machine.
    threads : int
        Of each fit; a fixed number, so that results do not depend on ``workers``.
    progress : bool
    say : callable, optional
        Gets lines about progress.

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError
        Unknown names of features, readouts, cores or settings; the nearest is named.
    DataError
        Features that lack stimuli or are not finite, voxels without responses, folds that share stimuli.

    References
    ----------
    Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import make_features, make_responses
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"s{i}" for i in range(120)]
    >>> X = rng.standard_normal((120, 8)).astype("float32")
    >>> Y = X @ rng.standard_normal((8, 5)) + rng.standard_normal((120, 5))
    >>> spaces = {"right": make_features(X, stimulus=ids), "wrong": make_features(X[::-1], stimulus=ids)}
    >>> found = compare(spaces, ["linear"], make_responses(Y, stimulus=ids), cv=3, n_bootstraps=200, progress=False)
    >>> found.best_cell(), set(found.winner()["winner"].values.tolist())
    ('right/linear', {'right/linear'})
    """
    check_out(out, client)
    check_budget({"n_candidates": n_candidates, "workers": workers, "threads": threads, "n_bootstraps": n_bootstraps})
    _check_responses(responses)
    spaces = dict(features)
    chosen = build_cells(list(spaces), readouts, cores, cells, training)
    used = {name for cell in chosen for name in (cell.features, cell.context) if name}
    spaces = {name: space for name, space in spaces.items() if name in used}
    indices = {name: _rows_of(name, space, responses) for name, space in spaces.items()}
    ceiling = check_ceiling(noise_ceiling, responses)
    folds = make_folds(responses, cv, validation, seed)
    jobs = make_jobs(chosen, folds, responses, n_candidates, seed)
    kept = temporary_folder() if out is None else None
    folder = Path(kept.name if kept else os.fspath(out or "")) / "cells"
    source = make_source(spaces, indices, responses)
    store = Store(folder, source)
    store.describe(chosen)
    execute(jobs, source, store, client=client, workers=workers, threads=threads, show=progress, say=say or _silent)
    # Copies for other processes; the results are what is kept.
    shutil.rmtree(folder / "inputs", ignore_errors=True)
    return Comparison(
        chosen, jobs, store, responses, noise_ceiling=ceiling, n_bootstraps=n_bootstraps, seed=seed, keep=kept
    )


def _silent(line: str) -> None:
    return


def _check_responses(responses: xr.DataArray) -> None:
    if not isinstance(responses, xr.DataArray) or responses.ndim != 2 or responses.dims[1] != "voxel":
        found = tuple(map(str, responses.dims)) if isinstance(responses, xr.DataArray) else type(responses).__name__
        raise DataError(
            f"responses are {found}; expected a DataArray (stimulus or presentation, voxel). Next step: "
            "neuroenc.data.make_responses."
        )
    values = responses.values
    if np.isinf(values).any():
        raise DataError(f"responses hold {int(np.isinf(values).sum())} infinite values; NaN stands for not seen.")
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if len(empty):
        names = responses["voxel"].values[empty[:5]].tolist() if "voxel" in responses.coords else empty[:5].tolist()
        raise DataError(f"{len(empty)} voxels have no response at all (first: {names}). Next step: drop them.")


def _rows_of(name: str, space: xr.DataArray, responses: xr.DataArray) -> np.ndarray:
    """Row of the feature space for every row of the responses."""
    if not isinstance(space, xr.DataArray) or tuple(map(str, space.dims)) not in _DIMS:
        found = tuple(map(str, space.dims)) if isinstance(space, xr.DataArray) else type(space).__name__
        raise DataError(
            f"feature space {name!r} is {found}; legal are (stimulus, feature), (stimulus, token, feature) and "
            "(stimulus, channel, y, x). Next step: neuroenc.data.make_features."
        )
    if space.dtype.kind == "f" and not np.isfinite(space.values).all():
        raise DataError(f"feature space {name!r} holds NaN or infinite values.")
    if space.dtype.kind not in "fiu":
        raise DataError(f"feature space {name!r} has dtype {space.dtype}; expected numbers.")
    number = xr.DataArray(np.arange(len(space)), dims="stimulus", coords={"stimulus": space["stimulus"].values})
    try:
        return np.asarray(match(number, responses).values)
    except DataError as error:
        raise DataError(f"feature space {name!r}: {error}") from None


def check_out(out: str | os.PathLike[str] | None, client: Any) -> None:
    """A cluster needs a folder that its workers see."""
    if client is not None and out is None:
        raise ConfigError("a client's workers write into out; give out= a folder that all of them see.")


def check_ceiling(noise_ceiling: Any, responses: xr.DataArray) -> np.ndarray | None:
    """Ceilings as correlations (voxel,), labelled ones in the order of the responses' voxels."""
    if noise_ceiling is None:
        return None
    n_voxels = responses.shape[1]
    if isinstance(noise_ceiling, xr.DataArray) and noise_ceiling.dims == ("voxel",):
        row = noise_ceiling.expand_dims("row")
        noise_ceiling = match_voxels(voxel_coords(responses), space_of(responses), row, "noise ceilings")[0]
    values = as_numpy(noise_ceiling, "noise ceilings").astype(np.float64)
    if values.shape != (n_voxels,) or np.nanmax(values, initial=0.0) > 1 + 1e-6:
        raise DataError(
            f"noise_ceiling has shape {values.shape} and maximum {np.nanmax(values, initial=np.nan):g}; expected one "
            f"correlation of at most 1 for each of the {n_voxels} voxels. Next step: stats.noise_ceiling(unit='r')."
        )
    return values
