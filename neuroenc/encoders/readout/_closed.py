"""Linear readouts solved by ridge regression, and what they are in units of the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc.encoders._ridge import RidgeEncoder
from neuroenc.encoders.readout._linear import LinearReadout, pool_map
from neuroenc.encoders.readout._maps import Maps
from neuroenc.encoders.readout._targets import seen_patterns

__all__ = ["raw_weights", "solve_ridge"]


def solve_ridge(
    readout: LinearReadout, maps: Maps, Y: np.ndarray, coords: dict[str, np.ndarray], cv: Any, **settings: Any
) -> dict[str, np.ndarray]:
    """Put the weights of a ridge regression into ``readout``.

    Voxels that saw the same stimuli are fitted together, on those stimuli.

    Returns
    -------
    dict
        ``alpha`` and ``best_score`` (V,).
    """
    with torch.no_grad():
        parts = [readout.prepare(maps.rows(r), None).cpu() for r in torch.arange(len(maps)).split(256)]
    X = torch.cat(parts).numpy()
    n_voxels = Y.shape[1]
    weight = np.zeros((n_voxels, X.shape[1]), dtype=np.float32)
    found = {"alpha": np.zeros(n_voxels), "best_score": np.zeros(n_voxels)}
    bias = np.zeros(n_voxels, dtype=np.float32)
    folder = settings.pop("checkpoint", None)
    patterns = seen_patterns(Y)
    for number, (rows, columns) in enumerate(patterns):
        here = {k: ("row", v[rows]) for k, v in coords.items()}
        labelled = xr.DataArray(X[rows], dims=("row", "feature"), coords=here)
        keep = None if folder is None else str(Path(folder) / f"pattern{number}")
        ridge = RidgeEncoder(cv=_folds(cv, rows, len(X)), checkpoint=keep, **settings)
        ridge.fit(labelled, Y[np.ix_(rows, columns)])
        coef = ridge.coef_.T
        # A voxel that is constant in training has no best penalty and predicts its mean.
        blank = ~np.isfinite(coef).all(axis=1)
        weight[columns] = np.where(blank[:, None], 0, coef)
        bias[columns] = np.where(blank, Y[np.ix_(rows, columns)].mean(axis=0), ridge.intercept_)
        found["alpha"][columns], found["best_score"][columns] = ridge.alpha_, ridge.best_score_
    with torch.no_grad():
        readout.weight.copy_(torch.as_tensor(weight))
        readout.bias.copy_(torch.as_tensor(bias))
    return found


def _folds(cv: Any, rows: np.ndarray, n: int) -> Any:
    """Splits that name rows of all stimuli, as rows of those that a voxel saw."""
    if len(rows) == n or isinstance(cv, (int, np.integer, str)) or hasattr(cv, "split"):
        return cv
    place = np.full(n, -1)
    place[rows] = np.arange(len(rows))
    splits = [tuple(place[np.asarray(side)] for side in split) for split in cv]
    return [tuple(side[side >= 0] for side in split) for split in splits]


def raw_weights(
    readout: LinearReadout, mean: np.ndarray | None, scale: np.ndarray | None, layout: str, dropped: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (feature, voxel) and intercepts (voxel,) on features as the user passes them, flattened in C order.

    Undoes the pooling (a weight on an average is that weight over the number of places), the standardisation, and
    the order in which tokens became maps.
    """
    if not isinstance(readout, LinearReadout):
        raise ConfigError(
            f"readout {readout.name!r} is not linear with weights of its own for each place and channel. "
            "Next step: readout='linear' or 'pooled', or encoder.weights()."
        )
    channels, height, width = readout.in_shape
    n_voxels = readout.n_voxels
    weight = readout.weight.detach().cpu().double()
    if readout.pool is not None:
        places = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
        share = pool_map(places, readout.pool).flatten(1)
        weight = weight.view(n_voxels, channels, -1) @ share.T
    coef = weight.reshape(n_voxels, channels, height * width).numpy()
    intercept = readout.bias.detach().cpu().double().numpy()
    if scale is not None:
        coef = coef / scale[:, None]
    if mean is not None:
        intercept = intercept - (coef * mean[:, None]).sum(axis=(1, 2))
    if layout == "tokens":
        coef = coef.transpose(0, 2, 1)
        coef = np.pad(coef, ((0, 0), (dropped, 0), (0, 0)))
    return coef.reshape(n_voxels, -1).T.astype(np.float32), intercept.astype(np.float32)
