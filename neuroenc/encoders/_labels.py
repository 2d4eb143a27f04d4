"""Labelled arrays in, labelled arrays out: numpy, torch, xarray and dask are accepted everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._util.errors import DataError

__all__ = ["column_block", "features_matrix", "is_dask", "is_torch", "sample_coords", "voxel_coords", "wrap"]


def is_torch(x: Any) -> bool:
    """Whether x is a torch tensor, without importing torch."""
    return type(x).__module__.split(".")[0] == "torch" and hasattr(x, "detach")


def is_dask(x: Any) -> bool:
    """Whether x is, or holds, a dask array, without importing dask."""
    data = x.variable._data if isinstance(x, xr.DataArray) else x
    return type(data).__module__.split(".")[0] == "dask" and hasattr(data, "dask")


def features_matrix(X: Any) -> Any:
    """Features as a two-dimensional array-like (n, p).

    Labelled maps (stimulus, channel, y, x) and tokens (stimulus, token, feature) are flattened in C order;
    unlabelled arrays must be two-dimensional already.
    """
    if isinstance(X, xr.DataArray):
        values = X.values
        return values.reshape(len(values), -1) if values.ndim > 2 else values
    if is_torch(X):
        return X.detach().cpu().numpy()
    if is_dask(X):
        return X.compute()
    return X


def sample_coords(*arrays: Any) -> dict[str, np.ndarray]:
    """Coordinates along the first dimension (stimulus, run, session, ...) of the first labelled array that has each."""
    found: dict[str, np.ndarray] = {}
    for array in arrays:
        if isinstance(array, xr.DataArray):
            for name, coord in array.coords.items():
                if coord.dims == (array.dims[0],):
                    found.setdefault(str(name), coord.values)
    return found


def voxel_coords(Y: Any) -> dict[str, Any] | None:
    """Coordinates of the voxels of labelled responses, or None."""
    if not isinstance(Y, xr.DataArray) or Y.ndim != 2:
        return None
    dim = Y.dims[1]
    if dim != "voxel":
        raise DataError(
            f"responses have dims {tuple(map(str, Y.dims))}; the second must be 'voxel'. "
            "Next step: responses.transpose(..., 'voxel') or neuroenc.data.make_responses."
        )
    return {str(k): ("voxel", c.values) for k, c in Y.coords.items() if c.dims == ("voxel",)}


def column_block(Y: Any, columns: slice) -> np.ndarray:
    """Voxels ``columns`` of responses that may be numpy, memmap, h5py, zarr, torch or dask."""
    if isinstance(Y, xr.DataArray):
        return np.asarray(Y[:, columns].values)
    if is_torch(Y):
        return Y[:, columns].detach().cpu().numpy()
    return np.asarray(Y[:, columns])


def wrap(values: np.ndarray, like: Any, voxels: dict[str, Any] | None, name: str = "responses") -> Any:
    """Predictions in the form of the features they came from."""
    if isinstance(like, xr.DataArray):
        dim = str(like.dims[0])
        coords: dict[str, Any] = {str(k): c for k, c in like.coords.items() if c.dims == (dim,)}
        if values.ndim == 1:
            return xr.DataArray(values, dims=(dim,), coords=coords, name=name)
        coords.update(voxels or {"voxel": np.arange(values.shape[1])})
        return xr.DataArray(values, dims=(dim, "voxel"), coords=coords, name=name)
    if is_torch(like):
        import torch

        return torch.as_tensor(values, device=like.device)
    return values
