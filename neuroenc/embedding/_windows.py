"""Grids of image embeddings: each place of a picture by what a window around it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.data import Stimuli, make_features


def embed_windows(embedder: Any, stimuli: Stimuli, *, grid: int = 8, window: float = 0.5) -> xr.DataArray:
    r"""Embed a window around each cell of a grid: ``z[n, :, row, column] = embedder(window of image n)``.

    Every cell has a vector in the space of whole images and texts, whatever the network: one whose last map is coarse,
    or whose tokens do not lie in the joint space, too. It costs ``grid ** 2`` images a picture.

    Parameters
    ----------
    embedder : ImageEmbedder
        Of vectors (layer None, or pooled).
    stimuli : Stimuli
        With images.
    grid : int
        Cells a side.
    window : float
        Side of a window as a share of the picture's shorter side; beyond the border the outermost pixels go on.

    Returns
    -------
    DataArray (stimulus, channel, y, x)
        float32; attrs as those of the embedder.

    Raises
    ------
    DataError
        No images, or an embedder that gives maps.
    ConfigError
        A window that is not above 0 and at most 1.

    References
    ----------
    Subramanian et al. (2022), ReCLIP: A strong zero-shot baseline for referring expression comprehension, ACL (crops
    of a picture in the joint space).

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> from neuroenc.embedding import ImageEmbedder
    >>> embedder = ImageEmbedder("world", cache=False, progress=False)
    >>> embed_windows(embedder, simulate_world(1), grid=2).shape
    (1, 128, 2, 2)
    """
    check_whole("grid", grid)
    if not 0 < window <= 1:
        raise ConfigError(f"window={window} must be a share of the picture, above 0 and at most 1.")
    if stimuli.images is None or not len(stimuli):
        raise DataError(f"these {len(stimuli)} stimuli have no images (source {stimuli.source!r}).")
    parts, attrs = [], {}
    for n, name in enumerate(stimuli.ids):
        crops = _windows(np.asarray(stimuli.image(n)), grid, window)
        found = embedder.embed(Stimuli(np.array([f"{name}#{k}" for k in range(len(crops))]), crops))
        if found.ndim != 2:
            raise DataError(f"the embedder gives dims {found.dims}; windows need vectors. Next step: pooling='mean'.")
        parts.append(found.values.T.reshape(-1, grid, grid))
        attrs = dict(found.attrs)
    known: dict[str, Any] = {k: str(attrs.get(k, "")) for k in ("backbone", "weights", "layer")}
    record = provenance(step="embed_windows", grid=grid, window=window, **known)
    return make_features(np.stack(parts), stimulus=stimuli.ids, **known, pooling="windows", provenance=record)


def _windows(picture: np.ndarray, grid: int, window: float) -> np.ndarray:
    """Windows (grid ** 2, side, side, 3) around the cells of a grid, row by row."""
    height, width = picture.shape[:2]
    side = max(1, round(window * min(height, width)))
    around = np.pad(picture, ((side // 2, side - side // 2), (side // 2, side - side // 2), (0, 0)), mode="edge")
    rows = ((np.arange(grid) + 0.5) * height / grid).astype(int)
    columns = ((np.arange(grid) + 0.5) * width / grid).astype(int)
    return np.stack([around[y : y + side, x : x + side] for y in rows for x in columns])
