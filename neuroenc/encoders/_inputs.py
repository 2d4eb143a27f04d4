"""Checks of responses, and where the arithmetic runs."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numpy, is_dask, refuse_sparse
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.optional import require
from neuroenc.data import align
from neuroenc.encoders._labels import column_block

__all__ = ["check_responses", "count_workers", "pick_device", "raise_nan", "to_device"]


def check_responses(X: Any, y: Any, values: np.ndarray) -> tuple[Any, np.dtype]:
    """Responses as a two-dimensional array-like, and the precision of the fit.

    float64 if either side is float64, else float32.
    """
    if y is None:
        raise ValueError(
            "This encoder requires y to be passed, but the target y is None. "
            "Next step: encoder.fit(features, responses)."
        )
    if isinstance(X, xr.DataArray) and isinstance(y, xr.DataArray):
        align(X, y)
    refuse_sparse(y, "responses")
    # Data frames have a shape but other indexing rules.
    if not hasattr(y, "shape") or not hasattr(y, "ndim") or type(y).__module__.startswith("pandas"):
        y = as_numpy(y, "responses")
    if isinstance(y, np.ndarray) and y.dtype.kind in "OUS":
        try:
            y = np.asarray(y, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"responses have dtype {y.dtype}, and not all of them are numbers: {error}.") from error
    if y.ndim == 1:
        y = y[:, None] if is_dask(y) and not isinstance(y, xr.DataArray) else as_numpy(y, "responses")[:, None]
    if y.ndim != 2:
        raise DataError(f"responses have {y.ndim} dimensions, shape {tuple(y.shape)}; expected (n_samples, n_voxels).")
    if y.shape[0] != len(values):
        raise DataError(
            f"features have {len(values)} samples and responses {y.shape[0]}: inconsistent numbers of samples. "
            "Next step: neuroenc.data.match(features, responses) repeats feature rows for presentations."
        )
    if y.shape[1] == 0:
        raise DataError("responses hold 0 voxels.")
    kind = str(y.dtype).removeprefix("torch.")
    if not any(kind.startswith(known) for known in ("float", "bfloat16", "int", "uint", "bool")):
        raise DataError(f"responses have dtype {kind}; expected numbers. Next step: convert them to float32.")
    single = values.dtype == np.float32 and (kind in ("float32", "float16", "bfloat16") or "int" in kind)
    return y, np.dtype(np.float32 if single else np.float64)


def raise_nan(Y: Any, voxels: dict[str, Any] | None) -> NoReturn:
    """Count the voxels that are not finite, name the first, and stop."""
    bad: list[int] = []
    for start in range(0, Y.shape[1], 1024):
        block = column_block(Y, slice(start, start + 1024))
        bad.extend(start + np.flatnonzero(~np.isfinite(block).all(axis=0)))
    names = voxels["voxel"][1][bad[:5]].tolist() if voxels and "voxel" in voxels else [int(b) for b in bad[:5]]
    raise DataError(
        f"{len(bad)} of {Y.shape[1]} voxels hold NaN or infinity (inf) in their responses (first: {names}). "
        "Next step: drop them, or RidgeEncoder(nan_voxels='skip') to leave their weights NaN."
    )


def count_workers(n_jobs: Any) -> int:
    """Threads of ``n_jobs``: all cores for None, all but ``k - 1`` for ``-k``, as in joblib.

    >>> count_workers(2)
    2
    """
    cores = os.cpu_count() or 1
    if n_jobs is None:
        return cores
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, (int, np.integer)) or n_jobs == 0:
        raise ConfigError(f"n_jobs={n_jobs!r} is not legal; it is a number of threads, -1 or None for all cores.")
    return int(n_jobs) if n_jobs > 0 else max(1, cores + 1 + int(n_jobs))


def pick_device(device: str) -> tuple[Any, Any]:
    """Array module and torch device; (numpy, None) on the CPU, where numpy is as fast as torch or faster."""
    if device == "cpu":
        return np, None
    if device == "auto":
        try:
            import torch
        except ModuleNotFoundError:
            return np, None
        return (torch, torch.device("cuda")) if torch.cuda.is_available() else (np, None)
    torch = require("torch", "clip")
    if device == "torch":  # the same torch code on the CPU: to check the GPU path where there is no GPU
        return torch, torch.device("cpu")
    from neuroenc.embedding._device import resolve_device

    return torch, torch.device(resolve_device(device))


def to_device(array: np.ndarray, device: Any, xp: Any) -> Any:
    """The array itself on the CPU, else a tensor."""
    if device is None:
        return array
    return xp.as_tensor(array, device=device)
