"""Captions of places: a vector for every cell of a grid over each stimulus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._util.errors import DataError
from neuroenc.data import Stimuli
from neuroenc.data.simulate import describe_cells

__all__ = ["caption_grid", "caption_vectors", "world_dense_captions"]

_COLUMNS = ("stimulus", "row", "column", "caption")


def caption_grid(
    table: pd.DataFrame, ids: Sequence[str], embedder: Any, *, grid: tuple[int, int] = (8, 8)
) -> xr.DataArray:
    """Map ``z[n, :, row, column]``: mean vector of the captions of a cell, zero where a cell has none.

    Parameters
    ----------
    table : DataFrame
        Columns ``stimulus``, ``row`` (0 at the top), ``column`` (0 at the left) and ``caption``. Several captions of
        a cell are averaged.
    ids : sequence of str (n,)
        Stimuli of the map, in its order. One without captions is all zero.
    embedder : TextEmbedder
        Anything with ``embed_texts``, or ``embed(list of str)`` giving (text, feature).
    grid : (int, int)
        Rows and columns.

    Returns
    -------
    DataArray (stimulus, channel, y, x)
        float32; attrs ``empty`` is the share of cells without a caption.

    Raises
    ------
    DataError
        A missing column, a cell outside the grid, an unknown or repeated stimulus, no caption at all.

    Examples
    --------
    >>> import pandas as pd
    >>> from neuroenc.embedding import TextEmbedder, caption_grid
    >>> table = pd.DataFrame({"stimulus": ["a"], "row": [0], "column": [1], "caption": ["a red apple"]})
    >>> maps = caption_grid(table, ["a"], TextEmbedder("world", progress=False), grid=(2, 2))
    >>> maps.dims, (abs(maps[0]).sum("channel") > 0).values.tolist()
    (('stimulus', 'channel', 'y', 'x'), [[False, True], [False, False]])
    """
    missing = [c for c in _COLUMNS if c not in table.columns]
    if missing:
        raise DataError(f"the table of captions lacks {missing}; it has {list(table.columns)}. Needed: {_COLUMNS}.")
    ids = [str(i) for i in ids]
    place = {name: n for n, name in enumerate(ids)}
    if len(place) < len(ids):
        raise DataError(f"ids name {len(ids) - len(place)} stimuli twice.")
    stimulus = table["stimulus"].astype(str)
    unknown = ~stimulus.isin(place)
    if unknown.any():
        first = stimulus[unknown].iloc[0]
        raise DataError(
            f"{int(unknown.sum())} captions are of stimuli that are not in ids (first: {first!r}). "
            "Next step: table[table.stimulus.isin(ids)]."
        )
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    outside = (rows < 0) | (rows >= grid[0]) | (columns < 0) | (columns >= grid[1])
    if outside.any():
        k = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"{int(outside.sum())} captions lie outside a grid of {grid[0]} x {grid[1]} cells (first: row {rows[k]}, "
            f"column {columns[k]}; both count from 0). Next step: grid= of the table."
        )
    if not len(table):
        raise DataError("the table of captions is empty.")
    unique, which = np.unique(table["caption"].astype(str).to_numpy(), return_inverse=True)
    vectors = np.asarray(embedder.embed([str(t) for t in unique]).values, dtype=np.float32)
    cells = (stimulus.map(place).to_numpy() * grid[0] + rows.astype(int)) * grid[1] + columns.astype(int)
    n_cells = len(ids) * grid[0] * grid[1]
    total = np.zeros((n_cells, vectors.shape[1]), dtype=np.float32)
    np.add.at(total, cells, vectors[which])
    count = np.bincount(cells, minlength=n_cells)
    total /= np.maximum(count, 1)[:, None]
    maps = total.reshape(len(ids), *grid, -1).transpose(0, 3, 1, 2)
    attrs = {
        "backbone": str(getattr(embedder, "model", type(embedder).__name__)),
        "layer": "caption grid",
        "empty": float((count == 0).mean()),
    }
    return xr.DataArray(
        np.ascontiguousarray(maps),
        dims=("stimulus", "channel", "y", "x"),
        coords={"stimulus": np.array(ids)},
        name="features",
        attrs=attrs,
    )


def world_dense_captions(stimuli: Stimuli, grid: tuple[int, int] = (8, 8)) -> pd.DataFrame:
    """What a region captioner would say of each cell of scenes of the simulated world.

    A cell is described by the object that covers most of it ("a red apple"), and has no caption where none covers a
    quarter of it.

    Parameters
    ----------
    stimuli : Stimuli
        From `neuroenc.data.simulate.simulate_world`.
    grid : (int, int)
        Rows and columns.

    Returns
    -------
    DataFrame
        ``stimulus, row, column, caption``; row 0 is the top.

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> from neuroenc.embedding import world_dense_captions
    >>> table = world_dense_captions(simulate_world(5), grid=(4, 4))
    >>> list(table.columns), bool(table["row"].between(0, 3).all())
    (['stimulus', 'row', 'column', 'caption'], True)
    """
    return describe_cells(stimuli, grid)


def caption_vectors(stimuli: Stimuli, embedder: Any) -> xr.DataArray:
    """One vector per stimulus: the mean of its captions' vectors, (stimulus, feature).

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> from neuroenc.embedding import TextEmbedder, caption_vectors
    >>> caption_vectors(simulate_world(2), TextEmbedder("world", progress=False)).dims
    ('stimulus', 'feature')
    """
    return embedder.embed_captions(stimuli)
