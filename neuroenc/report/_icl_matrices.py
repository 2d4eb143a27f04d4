"""Matrices of in-context encoders: regions and words, layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.optional import require
from neuroenc._core.tables import check_columns
from neuroenc.report._style import INK, MUTED, STYLE

__all__ = ["plot_confusion", "plot_heads"]

_WIDTH = 10.6


def plot_confusion(table: pd.DataFrame, *, label: str = "share of voxels") -> Any:
    """Preferred category of each region's voxels, with accuracy beside the shuffled labels'.

    Parameters
    ----------
    table : DataFrame
        From `neuroenc.encoders.incontext.confusion`.
    label : str
        Of the colour bar.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"face": [1.0, 0.2], "place": [0.0, 0.8], "n_voxels": 9, "accuracy": [1.0, 0.8],
    ...                       "null_accuracy": 0.5, "p": 0.01}, index=["FFA", "PPA"])
    >>> len(plot_confusion(table).axes)  # matrix and colour bar
    2
    """
    extra = ["n_voxels", "accuracy", "null_accuracy", "p"]
    check_columns(table, extra[:3], "table")
    categories = [c for c in table.columns if c not in extra]
    rows = [f"{name}  ({int(n)})" for name, n in zip(table.index, table["n_voxels"])]
    notes = [f"{a:.0%} (shuffled {b:.0%})" for a, b in zip(table["accuracy"], table["null_accuracy"])]
    return _matrix(table[categories].to_numpy(float), rows, categories, notes=notes, label=label)


def plot_heads(values: xr.DataArray, *, label: str = "", groups: Sequence[str] | None = None) -> Any:
    """Number of every head: a matrix (layer, head), or one a group.

    Parameters
    ----------
    values : DataArray (layer, head) or (group, layer, head)
        Such as ``sink_report(...)["registers"]``, or ``circuit_overlap(...)["importance"]``.
    label : str
        Of the colour bar; default the array's name.
    groups : sequence of str, optional
        Which, in this order.

    Returns
    -------
    matplotlib.figure.Figure
        With negative values, colours are centred on 0.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> len(plot_heads(xr.DataArray(np.random.rand(3, 4), dims=("layer", "head"))).axes)
    2
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if "layer" not in values.dims or "head" not in values.dims or values.ndim > 3:
        raise DataError(f"values have dims {values.dims}; expected (layer, head), or a group before them.")
    other = [d for d in values.dims if d not in ("layer", "head")]
    if other:
        names = [str(v) for v in values[other[0]].values]
        panels = dict(zip(names, values.transpose(other[0], "layer", "head").values))
        panels = {name: panels[name] for name in (groups or names)}
    else:
        panels = {"": values.transpose("layer", "head").values}
    every = np.concatenate([p.ravel() for p in panels.values()])
    every = every[np.isfinite(every)]
    top = float(np.abs(every).max()) if every.size else 1.0
    signed = bool(every.size and every.min() < 0)
    limits = {"vmin": -top if signed else 0.0, "vmax": top or 1.0, "cmap": "RdBu_r" if signed else "viridis"}
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    n_layers, n_heads = next(iter(panels.values())).shape
    tall = min(3.6, 0.28 * n_layers + 0.75)
    with rc_context(STYLE):
        width = _WIDTH if columns > 2 else 0.3 * n_heads * columns + 2.2 * columns
        figure = Figure(figsize=(width, tall * lines + 0.1), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, panel) in zip(grid.ravel(), panels.items()):
            image = axes.imshow(panel, aspect="auto", **limits)
            axes.set_title(name, fontsize=9.5, loc="left")
            axes.set(xlabel="head", ylabel="layer")
            axes.set_xticks(range(n_heads), [str(h) for h in range(n_heads)])
            axes.set_yticks(range(0, n_layers, max(1, n_layers // 5)))
            axes.tick_params(length=0, labelsize=8)
        shown = list(grid.ravel()[: len(panels)])
        bar = figure.colorbar(image, ax=shown, fraction=0.03, pad=0.02, label=label or str(values.name or ""))
        bar.outline.set_visible(False)
    return figure


def _matrix(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, notes: Sequence[str], label: str
) -> Any:
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(2.9 + 0.72 * len(columns) + 0.9, 0.33 * len(rows) + 1.0), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if value >= 0.005:
                axes.text(
                    j,
                    i,
                    f"{value:z.2f}".lstrip("0") if value < 1 else "1",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 0.55 else INK,
                )
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        for i, note in enumerate(notes):
            axes.text(len(columns) - 0.4, i, note, va="center", fontsize=8, color=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, pad=0.03, aspect=40, label=label)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=8)
    return figure
