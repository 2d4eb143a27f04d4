"""Weights and intercepts of an encoder with their voxel labels."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import as_numpy, unit_rows
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import EmbeddingBank

VOXEL_LABELS = ("i", "j", "k", "vertex", "hemi", "roi")


@runtime_checkable
class LinearEncoder(Protocol):
    """Protocol of an encoder that is linear in its features."""

    def to_linear(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Weights ``coef (feature, voxel)`` and ``intercept (voxel)``."""


class Weights(NamedTuple):
    """Weights and intercept of all voxels.

    Attributes
    ----------
    coef : DataArray (feature, voxel)
    intercept : ndarray (voxel,) float64
        0 where none was given.
    """

    coef: xr.DataArray
    intercept: np.ndarray
    has_intercept: bool

    @property
    def bias(self) -> np.ndarray | None:
        """The intercept, if one was given."""
        return self.intercept if self.has_intercept else None

    def matrix(self) -> np.ndarray:
        """Weights (voxel, feature) in float64."""
        return np.ascontiguousarray(self.coef.values.T, dtype=np.float64)

    def valid(self) -> np.ndarray:
        """Voxels (bool) whose weights are finite and not all zero and whose intercept is finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.linalg.norm(self.coef.values.astype(np.float64), axis=0)
        return np.isfinite(length) & (length > 0) & np.isfinite(self.intercept)

    def directions(self) -> np.ndarray:
        """Unit-norm weights (voxel, feature), NaN where there are none."""
        valid = self.valid()
        return spread(unit_rows(self.matrix()[valid]), valid)


def spread(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Values of the ``valid`` voxels (bool) among all of them, NaN for the others."""
    out = np.full((len(valid), *values.shape[1:]), np.nan, values.dtype)
    out[valid] = values
    return out


def as_weights(encoder: Any, intercept: Any = None) -> Weights:
    """Weights from an encoder with ``to_linear()``, a pair (coef, intercept), or coef itself."""
    if isinstance(encoder, Weights):
        return encoder
    if hasattr(encoder, "to_linear") or (isinstance(encoder, tuple) and len(encoder) == 2):
        if intercept is not None:
            raise ConfigError("intercept was given and the encoder has its own; pass the coef array or drop it.")
        encoder, intercept = encoder.to_linear() if hasattr(encoder, "to_linear") else encoder
    elif not isinstance(encoder, xr.DataArray) and not hasattr(encoder, "__array__"):
        raise DataError(
            f"{type(encoder).__name__} is neither weights (feature, voxel) nor an encoder with to_linear(). "
            "Next step: an encoder that is linear in its features, such as RidgeEncoder."
        )
    if isinstance(encoder, xr.DataArray):
        coef = encoder
        if coef.ndim != 2 or "voxel" not in coef.dims:
            raise DataError(f"weights have dims {coef.dims}; legal are ('feature', 'voxel').")
        other = next(str(x) for x in coef.dims if x != "voxel")
        coef = coef.transpose(other, "voxel")
        if other != "feature":
            coef = coef.rename({other: "feature"})
    else:
        array = as_numpy(encoder, "weights")
        if array.ndim != 2:
            raise DataError(f"weights have shape {array.shape}; legal is (feature, voxel).")
        coef = xr.DataArray(array, dims=("feature", "voxel"))
    if coef.dtype.kind not in "fiub":
        raise DataError(f"weights have dtype {coef.dtype}; legal are real numbers.")
    if "voxel" not in coef.coords:
        coef = coef.assign_coords(voxel=np.arange(coef.sizes["voxel"], dtype=np.int64))
    n = coef.sizes["voxel"]
    different = len(np.unique(coef["voxel"].values))
    if different < n:
        raise DataError(
            f"weights have {n} voxels and {different} different ids, and captions go by id. "
            "Next step: coef.assign_coords(voxel=...) with a number for each."
        )
    if intercept is None:
        return Weights(coef, np.zeros(n), False)
    b = as_numpy(intercept, "intercepts").astype(np.float64).reshape(-1)
    if b.shape != (n,):
        raise DataError(f"{b.size} intercepts for {n} voxels; legal is one a voxel.")
    if (
        isinstance(intercept, xr.DataArray)
        and "voxel" in intercept.coords
        and not np.array_equal(intercept["voxel"].values, coef["voxel"].values)
    ):
        raise DataError("intercept and coef name different voxels or another order. Next step: align them by voxel.")
    return Weights(coef, b, True)


def check_space(coef: xr.DataArray, bank: EmbeddingBank) -> None:
    """Refuse a bank that was embedded with another backbone, weights or layer than the encoder's features.

    Raises
    ------
    DataError
        Both say what they are, and say different things.
    """
    info = getattr(bank, "info", None)
    if isinstance(info, dict):
        theirs = {"backbone": info.get("model"), "weights": info.get("weights"), "layer": info.get("layer")}
    else:
        first = bank.shards()[0].array if bank.reusable else None
        attrs = first.attrs if isinstance(first, xr.DataArray) else {}
        theirs = {name: attrs.get(name) for name in ("backbone", "weights", "layer")}
    for name, value in theirs.items():
        mine = str(coef.attrs.get(name, ""))
        if value not in (None, "", "unknown") and mine not in ("", "unknown", str(value)):
            raise DataError(
                f"the encoder was fitted on features of {name} {mine!r}, and the bank holds embeddings of {name} "
                f"{value!r}. Next step: embed the bank's images as the stimuli were."
            )


def select_voxels(weights: Weights, which: np.ndarray) -> Weights:
    """The voxels where ``which`` is True, or those at its places, in their order."""
    at = np.flatnonzero(which) if which.dtype == bool else which
    return Weights(weights.coef.isel(voxel=at), weights.intercept[at], weights.has_intercept)


def voxel_labels(labelled: xr.DataArray | xr.Dataset, rows: np.ndarray) -> pd.DataFrame:
    """Coordinates i, j, k, vertex, hemi, roi (where present) of the voxels at ``rows``."""
    columns = {
        name: labelled[name].values[rows]
        for name in VOXEL_LABELS
        if name in labelled.coords and labelled[name].dims == ("voxel",)
    }
    return pd.DataFrame(columns, index=range(len(rows)))
