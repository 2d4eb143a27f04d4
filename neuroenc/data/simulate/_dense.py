"""What lies in each cell of a grid over a scene, in words."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data._schema import Stimuli
from neuroenc.data.simulate._captions import _agree
from neuroenc.data.simulate._lexicon import member

__all__ = ["describe_cells"]

#: Least share of a cell that an object must cover to be named there.
_COVERED = 0.25


def describe_cells(stimuli: Stimuli, grid: tuple[int, int] = (8, 8)) -> pd.DataFrame:
    """Name the object that covers most of each cell, taking objects as squares.

    As in the pictures, smaller objects stand in front of larger ones, and all of them in front of a place.

    Parameters
    ----------
    stimuli : Stimuli
        Of `simulate_world`, with its latents.
    grid : (int, int)
        Rows and columns, row 0 at the top.

    Returns
    -------
    DataFrame
        ``stimulus, row, column, caption``: a noun phrase with article and colour. Cells that no object covers by a
        quarter are left out.

    Raises
    ------
    DataError
        The stimuli carry no latents.
    ConfigError
        A grid without cells.

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> bool(describe_cells(simulate_world(3), (4, 4))["caption"].str.startswith("a").all())
    True
    """
    if stimuli.table is None or "objects" not in stimuli.table:
        raise DataError(
            f"stimuli from {stimuli.source!r} have no latents (a column 'objects' in their table), so that their cells "
            "cannot be described. Next step: a table of captions of your own, with stimulus, row, column, caption."
        )
    height, width = int(grid[0]), int(grid[1])
    if height < 1 or width < 1:
        raise ConfigError(f"grid={tuple(grid)} must be a positive number of rows and of columns.")
    # Edges of the cells as positions from the centre, y up as in the latents.
    left, top = np.arange(width) / width - 0.5, 0.5 - np.arange(height) / height
    found: dict[str, list] = {"stimulus": [], "row": [], "column": [], "caption": []}
    for name, text in zip(stimuli.ids, stimuli.table["objects"]):
        objects = sorted(json.loads(text), key=lambda o: (o["family"] == "place", o["size"]))
        free = np.ones((height, width))
        best, who = np.zeros((height, width)), np.full((height, width), -1)
        for number, o in enumerate(objects):
            x, y, half = o["x"], o["y"], o["size"] / 2
            across = np.clip(np.minimum(left + 1 / width, x + half) - np.maximum(left, x - half), 0, None) * width
            down = np.clip(np.minimum(top, y + half) - np.maximum(top - 1 / height, y - half), 0, None) * height
            cover = np.minimum(down[:, None] * across, free)
            free = free - cover
            better = cover > best
            best[better], who[better] = cover[better], number
        phrases = [_agree("a " + member(o["member"]).phrases[0].format(c=o["colour"])) for o in objects]
        rows, columns = np.nonzero(best >= _COVERED)
        found["stimulus"].extend([str(name)] * len(rows))
        found["row"].extend(rows.tolist())
        found["column"].extend(columns.tolist())
        found["caption"].extend(phrases[k] for k in who[rows, columns])
    return pd.DataFrame(found)
