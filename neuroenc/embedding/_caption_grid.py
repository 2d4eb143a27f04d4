"""Grids of dense-caption embeddings over each stimulus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc._core.tables import check_columns
from neuroenc.data import Stimuli, make_features
from neuroenc.embedding.spaces._folder import mark_trained


def caption_grid(
    table: pd.DataFrame, ids: Stimuli | Sequence[str] | np.ndarray, embedder: Any, *, grid: tuple[int, int] = (8, 8)
) -> xr.DataArray:
    """Grid of caption embeddings ``z[n, :, row, column]``: mean text vector per cell, zero where none.

    Parameters
    ----------
    table : DataFrame
        Columns ``stimulus``, ``row`` (0 at the top), ``column`` (0 at the left) and ``caption``. Several captions of
        a cell are averaged.
    ids : Stimuli, or sequence or array of str (n,)
        Stimuli of the map, in its order. One without captions is all zero. Whole `Stimuli` let a space that was trained
        on their own captions or pictures be told.
    embedder : TextEmbedder
        Or anything whose ``embed(list of str)`` gives an array (text, feature). Equal captions are embedded once.
    grid : (int, int)
        Rows and columns. The published maps had 8 x 8 cells over the picture.

    Returns
    -------
    DataArray (stimulus, channel, y, x)
        float32 features; attrs as those of an embedder, and ``empty``, the share of cells without a caption.

    Raises
    ------
    DataError
        A missing column, a cell that is no whole number or outside the grid, an empty caption, an unknown or repeated
        stimulus, no caption at all.
    ConfigError
        A grid without cells.

    References
    ----------
    .. [1] Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> import pandas as pd
    >>> from neuroenc.embedding import TextEmbedder, caption_grid
    >>> table = pd.DataFrame({"stimulus": ["a"], "row": [0], "column": [1], "caption": ["a red apple"]})
    >>> maps = caption_grid(table, ["a"], TextEmbedder("world", progress=False), grid=(2, 2))
    >>> maps.dims, (abs(maps[0]).sum("channel") > 0).values.tolist()
    (('stimulus', 'channel', 'y', 'x'), [[False, True], [False, False]])
    """
    check_columns(table, ("stimulus", "row", "column", "caption"), "the table of captions")
    pair = isinstance(grid, (tuple, list)) and len(grid) == 2
    if not pair or not all(isinstance(g, (int, np.integer)) and not isinstance(g, bool) and g >= 1 for g in grid):
        raise ConfigError(f"grid={grid!r} must be a positive number of rows and of columns, such as (8, 8).")
    grid = (int(grid[0]), int(grid[1]))
    whole = ids if isinstance(ids, Stimuli) else None
    ids = [str(i) for i in (ids.ids if isinstance(ids, Stimuli) else ids)]
    place = {name: n for n, name in enumerate(ids)}
    if len(place) < len(ids):
        raise DataError(f"ids name {len(ids) - len(place)} stimuli twice.")
    if not len(table):
        raise DataError("the table of captions is empty.")
    stimulus = table["stimulus"].astype(str)
    unknown = ~stimulus.isin(place)
    if unknown.any():
        first = stimulus[unknown].iloc[0]
        raise DataError(
            f"{int(unknown.sum())} captions are of stimuli that are not in ids (first: {first!r}). "
            "Next step: table[table.stimulus.isin(ids)]."
        )
    where = _whole_numbers(table, "row", grid[0]) * grid[1] + _whole_numbers(table, "column", grid[1])
    texts = _texts(table)
    unique, which = np.unique(np.array(texts, dtype=str), return_inverse=True)
    found = embedder.embed([str(t) for t in unique])
    vectors = np.asarray(found, dtype=np.float32)
    cells = stimulus.map(place).to_numpy() * (grid[0] * grid[1]) + where
    n_cells = len(ids) * grid[0] * grid[1]
    total = np.zeros((n_cells, vectors.shape[1]), dtype=np.float32)
    np.add.at(total, cells, vectors[which])
    count = np.bincount(cells, minlength=n_cells)
    total /= np.maximum(count, 1)[:, None]
    attrs = getattr(found, "attrs", {})
    maps = make_features(
        np.ascontiguousarray(total.reshape(len(ids), *grid, -1).transpose(0, 3, 1, 2)),
        stimulus=ids,
        backbone=str(attrs.get("backbone", getattr(embedder, "model", type(embedder).__name__))),
        weights=str(attrs.get("weights", "")),
        layer="caption grid",
        pooling="mean over the captions of a cell",
        provenance=provenance(step="caption_grid", grid=list(grid), captions=str(attrs.get("provenance", ""))),
    )
    maps.attrs["empty"] = float((count == 0).mean())
    told: list[list[str]] = [[] for _ in ids]
    for place_of, text in zip(stimulus.map(place), texts):
        told[place_of].append(text)
    backbone = getattr(embedder, "backbone", None)
    maps = mark_trained(maps, backbone, Stimuli(np.array(ids), captions=tuple(map(tuple, told))))
    if whole is None:
        return maps
    of_cells = maps["trained_on"] if "trained_on" in maps.coords else False
    maps = mark_trained(maps, backbone, whole)
    return maps.assign_coords(trained_on=of_cells | maps["trained_on"]) if "trained_on" in maps.coords else maps


def _whole_numbers(table: pd.DataFrame, column: str, n: int) -> np.ndarray:
    """Rows or columns of cells, from 0 to ``n - 1``."""
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    wrong = ~(np.isfinite(values) & (values == np.floor(values)) & (values >= 0) & (values < n))
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum())} captions lie outside the grid (first: {column} {values[wrong.argmax()]:g}; legal "
            f"are the whole numbers 0 to {n - 1}). Next step: grid= of the table, whose cells count from 0."
        )
    return values.astype(np.int64)


def _texts(table: pd.DataFrame) -> list[str]:
    texts = list(table["caption"])
    wrong = [n for n, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(texts)} captions are empty or not text (first: {texts[wrong[0]]!r}, of stimulus "
            f"{str(table['stimulus'].iloc[wrong[0]])!r}). Next step: leave those rows out; their cells become zero."
        )
    return texts
