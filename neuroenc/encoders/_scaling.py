"""Scaling of features, as a part of the encoder that is fitted on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

__all__ = ["feature_scaling"]

_ROWS = 1024


def feature_scaling(values: np.ndarray, like: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (p,) of the columns of ``values`` (n, p), float64.

    ``like`` are the features as they came: a channel of labelled maps shares one mean and one s.d. over its places,
    and so keeps their ratio; a feature of tokens shares them over the tokens. What never varies has an infinite
    s.d., so that it becomes zero.

    >>> mean, scale = feature_scaling(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), scale.tolist()
    ([2.0, 5.0], [1.0, inf])
    """
    labelled = isinstance(like, xr.DataArray) and like.ndim > 2
    shape = like.shape[1:] if labelled else values.shape[1:]
    channel = like.dims.index("channel") if labelled and "channel" in like.dims else len(shape)
    cube = values.reshape(len(values), *shape)
    axes = tuple(a for a in range(cube.ndim) if a != channel)
    mean = cube.mean(axis=axes, dtype=np.float64, keepdims=True)
    square = np.zeros_like(mean)
    for start in range(0, len(cube), _ROWS):  # not numpy.std, which makes a float64 copy of everything
        square += ((cube[start : start + _ROWS] - mean) ** 2).sum(axis=axes, keepdims=True)
    scale = np.sqrt(square * (mean.size / cube.size))
    # Compared exactly: the mean of equal numbers is not always that number.
    scale[cube.max(axis=axes, keepdims=True) == cube.min(axis=axes, keepdims=True)] = np.inf
    return tuple(np.broadcast_to(x, (1, *shape)).ravel() for x in (mean, scale))  # type: ignore[return-value]
