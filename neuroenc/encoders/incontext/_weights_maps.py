"""Weights on the cortex: components of their directions, and colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._labels import match_voxels

__all__ = ["WeightComponents", "voxels_of", "weight_components", "weights_of"]


@dataclass(frozen=True, eq=False)
class WeightComponents:
    """Principal components of weight directions; from `weight_components`.

    Attributes
    ----------
    components : ndarray (component, feature)
        Orthonormal; the sign is such that the largest entry is positive.
    mean : ndarray (feature,)
    explained : ndarray (component,)
        Share of the variance of directions.
    low, high : ndarray (component,)
        What becomes 0 and 1 in colours: the 2nd and 98th percentile of the voxels that were fitted.
    """

    components: np.ndarray
    mean: np.ndarray
    explained: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def scores(self, coef: Any) -> xr.DataArray:
        """Scores (component, voxel) of weights or an encoder, of any subject; NaN where weights are 0."""
        weights = weights_of(coef)
        if weights.shape[0] != len(self.mean):
            raise DataError(f"weights have {weights.shape[0]} features; components have {len(self.mean)}.")
        values = self.components @ (_directions(weights.values) - self.mean[:, None])
        coords = {"component": np.arange(len(values)), **voxels_of(weights)}
        return xr.DataArray(values, dims=("component", "voxel"), coords=coords, name="score")

    def rgb(self, coef: Any) -> xr.DataArray:
        """Colours (voxel, channel) in [0, 1] from the first three components; grey for voxels without weights."""
        if len(self.components) < 3:
            raise ConfigError(f"{len(self.components)} components are no colour. Next step: n=3.")
        scores = self.scores(coef)
        low, high = self.low[:3, None], self.high[:3, None]
        values = np.clip((scores.values[:3] - low) / np.maximum(high - low, 1e-12), 0, 1)
        values = np.where(np.isnan(values), 0.5, values).T
        coords = {"channel": ["red", "green", "blue"], **voxels_of(scores)}
        return xr.DataArray(values, dims=("voxel", "channel"), coords=coords, name="rgb")


def weight_components(coef: Any, n: int = 3, *, weight: Any = None) -> WeightComponents:
    """Principal components of the directions of voxels' weights.

    Weights are scaled to unit norm first: strength says how well a voxel is predicted, direction what it prefers.

    Parameters
    ----------
    coef : array (feature, voxel), or encoder with ``to_linear()``
        Of one subject, or several side by side; apply the result to others.
    n : int
    weight : array (voxel,), optional
        How much a voxel counts, such as its prediction accuracy (negative is 0).

    Returns
    -------
    WeightComponents

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first, second = rng.standard_normal((2, 8, 50))
    >>> found = weight_components(first)
    >>> found.rgb(second).shape, found.components.shape
    ((50, 3), (3, 8))
    """
    weights = weights_of(coef)
    values = _directions(weights.values)
    if isinstance(weight, xr.DataArray) and weight.dims == ("voxel",):
        weight = match_voxels(voxels_of(weights), {}, weight.expand_dims("stimulus"), "weight")[0]
    heavy = np.ones(values.shape[1]) if weight is None else np.maximum(np.asarray(weight, dtype=np.float64), 0.0)
    if heavy.shape != (values.shape[1],):
        raise DataError(f"weight has shape {heavy.shape}; expected one number for each of {values.shape[1]} voxels.")
    known = np.isfinite(values).all(axis=0) & (heavy > 0)
    if not 1 <= n <= min(values.shape[0], int(known.sum()) - 1):
        raise ConfigError(f"n={n} components of {int(known.sum())} voxels with weights and {values.shape[0]} features.")
    values, heavy = values[:, known], heavy[known] / heavy[known].sum()
    mean = values @ heavy
    around = values - mean[:, None]
    spectrum, vectors = np.linalg.eigh((around * heavy) @ around.T)
    components = vectors[:, ::-1][:, :n].T
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.sign(largest)
    low, high = np.quantile(components @ around, [0.02, 0.98], axis=1)
    return WeightComponents(components, mean, spectrum[::-1][:n] / spectrum.sum(), low, high)


def weights_of(source: Any) -> xr.DataArray:
    """Weights (feature, voxel) of an encoder, a labelled array or an array."""
    if hasattr(source, "to_linear"):
        source = source.to_linear()[0]
    if not isinstance(source, xr.DataArray):
        source = xr.DataArray(np.asarray(source), dims=("feature", "voxel")[: np.ndim(source)])
    if source.ndim != 2 or "voxel" not in source.dims:
        raise DataError(f"weights have dims {source.dims}; expected (feature, voxel).")
    return source.transpose(..., "voxel")


def voxels_of(weights: xr.DataArray) -> dict[str, Any]:
    """Coordinates of the voxels."""
    return {str(k): ("voxel", c.values) for k, c in weights.coords.items() if c.dims == ("voxel",)}


def _directions(weights: np.ndarray) -> np.ndarray:
    """Columns of unit norm; NaN where there is none."""
    values = np.asarray(weights, dtype=np.float64)
    length = np.linalg.norm(values, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, values / length, np.nan)
