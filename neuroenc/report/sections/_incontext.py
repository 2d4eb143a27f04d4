"""Figures of in-context encoders: attended images, colours of weights, confusion of categories, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.optional import require
from neuroenc._core.tables import check_columns
from neuroenc.report._style import INK, MUTED, WIDTH, bare, drawing, panels, picked, write, write_inside
from neuroenc.report.brain._paint import coordinate
from neuroenc.report.brain._surface import plot_surface

_LEVELS = 15  # steps of each channel of a colour on the cortex


def plot_top_support(table: pd.DataFrame, stimuli: Any, *, groups: Sequence[str] | None = None) -> Any:
    """Support images that each region attends to most (left) and least (right).

    Parameters
    ----------
    table : DataFrame
        From `neuroenc.encoders.incontext.top_support`.
    stimuli : Stimuli
        With the images; ids as in the table's column ``stimulus``.
    groups : sequence of str, optional
        Which, in this order; default all.

    Returns
    -------
    matplotlib.figure.Figure
        Under every image its attention relative to an equal share.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neuroenc.data import Stimuli
    >>> pictures = Stimuli(["a", "b"], images=np.zeros((2, 8, 8, 3), np.uint8))
    >>> table = pd.DataFrame({"group": "FFA", "side": ["top", "bottom"], "rank": 0, "stimulus": ["a", "b"],
    ...                       "attention": [2.0, 0.1]})
    >>> len(plot_top_support(table, pictures).axes)
    2
    """
    check_columns(table, ("group",), "table")
    groups = picked("group", table["group"], groups)
    k = int(table["rank"].max()) + 1
    left, gap = 0.95, 0.2
    cell = min((WIDTH - left - gap - 0.1) / (2 * k), 1.1)
    step = cell + 0.17
    height = step * len(groups) + 0.3
    with drawing(WIDTH, height) as figure:
        for row, group in enumerate(groups):
            low = height - 0.28 - row * step - cell
            figure.text((left - 0.1) / WIDTH, (low + cell / 2) / height, group, ha="right", va="center")
            for side, start in (("top", left), ("bottom", left + k * cell + gap)):
                part = table[(table["group"] == group) & (table["side"] == side)].sort_values("rank")
                for place, found in enumerate(part.to_dict("records")):
                    box = ((start + place * cell) / WIDTH, low / height, (cell - 0.05) / WIDTH, cell / height)
                    axes = figure.add_axes(box)
                    axes.imshow(np.asarray(stimuli.image(str(found["stimulus"])).convert("RGB")))
                    axes.axis("off")
                    write_inside(axes, 0.5, -0.02, f"{found['attention']:.1f}×", "center top", 7, color=MUTED)
        for text, at in (("attended to most", left), ("least", left + k * cell + gap)):
            figure.text(at / WIDTH, (height - 0.2) / height, text, fontsize=8.5, color=MUTED)
    return figure


def plot_weight_colours(rgb: xr.DataArray, **options: Any) -> Any:
    """Colours of voxels' weights on the cortex.

    Parameters
    ----------
    rgb : DataArray (voxel, channel)
        From `WeightComponents.rgb`, with coordinates ``vertex`` and ``hemi``.
    **options
        Passed on to `plot_surface`.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Each channel is drawn in 16 steps. Colours of neighbours are not mixed: a triangle takes its first voxel's.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> coords = {"vertex": ("voxel", [3, 70]), "hemi": ("voxel", ["L", "R"])}
    >>> rgb = xr.DataArray(np.eye(3)[:2], dims=("voxel", "channel"), coords=coords)
    >>> len(plot_weight_colours(rgb, views=["ventral"]).axes)
    2
    """
    require("matplotlib", "brain")
    if rgb.ndim != 2 or rgb.sizes.get("channel") != 3:
        raise DataError(f"rgb has dims {dict(rgb.sizes)}; expected (voxel, 3 channels).")
    values = rgb.transpose("voxel", "channel").values
    steps = np.round(np.clip(np.nan_to_num(values), 0, 1) * _LEVELS).astype(int)
    names = np.array(["#" + "".join(f"{s * 17:02x}" for s in row) for row in steps])
    names = np.where(np.isfinite(values).all(axis=1), names, "")
    colours = {name: name for name in dict.fromkeys(names.tolist()) if name}
    place = (coordinate(rgb, name, None, "on a surface") for name in ("vertex", "hemi"))
    return plot_surface(names, *place, colours=colours, **options)


def plot_confusion(table: pd.DataFrame) -> Any:
    """Preferred category of each region's voxels, with accuracy beside the shuffled labels'.

    Parameters
    ----------
    table : DataFrame
        From `neuroenc.encoders.incontext.confusion`.

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
    values = table[categories].to_numpy(float)
    with drawing(2.9 + 0.72 * len(categories) + 0.9, 0.33 * len(rows) + 1.0, "constrained") as figure:
        axes = figure.subplots()
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if value >= 0.005:
                text = f"{value:z.2f}".lstrip("0") if value < 1 else "1"
                write(axes, j, i, text, color="white" if value > 0.55 else INK)
        axes.set_xticks(range(len(categories)), categories)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        for i, note in enumerate(notes):
            write(axes, len(categories) - 0.4, i, note, "left center", color=MUTED)
        bare(axes)
        look = {"location": "bottom", "fraction": 0.05, "pad": 0.03, "aspect": 40}
        bar = figure.colorbar(image, ax=axes, **look, label="share of voxels")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=8)
    return figure


def plot_heads(values: xr.DataArray, *, label: str = "") -> Any:
    """Number of every head: a matrix (layer, head), or one a group.

    Parameters
    ----------
    values : DataArray (layer, head) or (group, layer, head)
        Such as ``sink_report(...)["registers"]``, or ``circuit_overlap(...)["importance"]``.
    label : str
        Of the colour bar; default the array's name.

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

    if "layer" not in values.dims or "head" not in values.dims or values.ndim > 3:
        raise DataError(f"values have dims {values.dims}; expected (layer, head), or a group before them.")
    other = [d for d in values.dims if d not in ("layer", "head")]
    if other:
        names = [str(v) for v in values[other[0]].values]
        heads = dict(zip(names, values.transpose(other[0], "layer", "head").values))
    else:
        heads = {"": values.transpose("layer", "head").values}
    every = np.concatenate([p.ravel() for p in heads.values()])
    every = every[np.isfinite(every)]
    top = float(np.abs(every).max()) if every.size else 1.0
    signed = bool(every.size and every.min() < 0)
    limits = {"vmin": -top if signed else 0.0, "vmax": top or 1.0, "cmap": "RdBu_r" if signed else "viridis"}
    n_layers, n_heads = next(iter(heads.values())).shape
    tall = min(3.6, 0.28 * n_layers + 0.75)
    wide = 0.3 * n_heads + 2.2
    with panels(len(heads), lambda c, n: (WIDTH if c > 2 else wide * c, tall * n + 0.1)) as (figure, grid):
        for axes, (name, panel) in zip(grid.ravel(), heads.items()):
            image = axes.imshow(panel, aspect="auto", **limits)
            axes.set_title(name, fontsize=9.5, loc="left")
            axes.set(xlabel="head", ylabel="layer")
            axes.set_xticks(range(n_heads), [str(h) for h in range(n_heads)])
            axes.set_yticks(range(0, n_layers, max(1, n_layers // 5)))
            axes.tick_params(length=0, labelsize=8)
        shown = list(grid.ravel()[: len(heads)])
        bar = figure.colorbar(image, ax=shown, fraction=0.03, pad=0.02, label=label or str(values.name or ""))
        bar.outline.set_visible(False)
    return figure
