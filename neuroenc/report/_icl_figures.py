"""Figures of in-context encoders: support curves, attended images, colours of weights on the cortex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc._core.tables import check_columns
from neuroenc.report._mosaic import plot_mosaic
from neuroenc.report._style import FAINT, INK, MUTED, STYLE, category_colours
from neuroenc.report._surface import plot_surface

__all__ = ["plot_support_curves", "plot_top_support", "plot_weight_colours"]

_WIDTH = 10.6
_LEVELS = 15  # steps of each channel of a colour on the cortex


def plot_support_curves(
    table: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    reference: Mapping[str, float] | None = None,
    label: str = "explained variance",
) -> Any:
    """Score over the size of the support: a panel a group, a line a method, bands for intervals.

    Parameters
    ----------
    table : DataFrame
        From `neuroenc.encoders.incontext.summarise_curve`: ``method, group, size, explained_variance, low, high``.
    methods, groups : sequence of str, optional
        Which, in this order; default all.
    reference : mapping of group to number, optional
        A dashed line, such as an encoder fitted to the whole session.
    label : str
        Of the vertical axis.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 100], "explained_variance": [0.1, 0.2],
    ...                       "low": [0.08, 0.18], "high": [0.12, 0.22]})
    >>> len(plot_support_curves(table).axes)
    1
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    methods = _chosen(table, "method", methods)
    groups = _chosen(table, "group", groups)
    colours = dict(zip(methods, category_colours(len(methods))))
    sizes = sorted(int(s) for s in table["size"].unique())
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    with rc_context(STYLE):
        size = (_WIDTH, 2.3 * lines + 0.55) if columns > 1 else (6.4, 3.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.ravel()[len(groups) :]:
            axes.set_visible(False)
        for axes, group in zip(grid.ravel(), groups):
            for method in methods:
                part = table[(table["method"] == method) & (table["group"] == group)].sort_values("size")
                axes.fill_between(part["size"], part["low"], part["high"], color=colours[method], alpha=0.16, lw=0)
                axes.plot(
                    part["size"], part["explained_variance"], "o-", color=colours[method], ms=3.4, lw=1.5, label=method
                )
            if reference is not None and group in reference:
                axes.axhline(reference[group], color=MUTED, lw=1, dashes=(4, 2.5), zorder=1)
            axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
            axes.set_xscale("log")
            axes.set_xticks(sizes, [str(s) for s in sizes])
            axes.minorticks_off()
            axes.set_title(group, fontsize=9.5, loc="left", color=INK)
        for axes in grid.ravel()[: len(groups)][-columns:]:  # the last one of each column
            axes.set_xlabel("support images")
            axes.tick_params(labelbottom=True)
        for row in grid:
            row[0].set_ylabel(label)
        handles = grid.ravel()[0].get_legend_handles_labels()
        figure.legend(
            *handles,
            loc="outside upper left",
            ncols=min(5 if columns > 1 else 3, len(methods)),
            frameon=False,
            fontsize=8.5,
        )
    return figure


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
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups = _chosen(table, "group", groups)
    k = int(table["rank"].max()) + 1
    left, gap = 0.95, 0.2
    cell = (_WIDTH - left - gap - 0.1) / (2 * k)
    cell = min(cell, 1.1)
    step = cell + 0.17
    height = step * len(groups) + 0.3
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        for row, group in enumerate(groups):
            low = height - 0.28 - row * step - cell
            figure.text((left - 0.1) / _WIDTH, (low + cell / 2) / height, group, ha="right", va="center")
            for side, start in (("top", left), ("bottom", left + k * cell + gap)):
                part = table[(table["group"] == group) & (table["side"] == side)].sort_values("rank")
                for place, found in enumerate(part.to_dict("records")):
                    box = ((start + place * cell) / _WIDTH, low / height, (cell - 0.05) / _WIDTH, cell / height)
                    axes = figure.add_axes(box)
                    axes.imshow(np.asarray(stimuli.image(str(found["stimulus"])).convert("RGB")))
                    axes.axis("off")
                    axes.text(
                        0.5,
                        -0.02,
                        f"{found['attention']:.1f}×",
                        transform=axes.transAxes,
                        ha="center",
                        va="top",
                        fontsize=7,
                        color=MUTED,
                    )
        for text, at in (("attended to most", left), ("least", left + k * cell + gap)):
            figure.text(at / _WIDTH, (height - 0.2) / height, text, fontsize=8.5, color=MUTED)
    return figure


def plot_weight_colours(
    rgb: xr.DataArray, *, affine: Any = None, volume_shape: Sequence[int] | None = None, **options: Any
) -> Any:
    """Colours of voxels' weights on the inflated cortex, or on slices.

    Parameters
    ----------
    rgb : DataArray (voxel, channel)
        From `WeightComponents.rgb`, with coordinates ``vertex`` and ``hemi``, or ``i``, ``j``, ``k``.
    affine, volume_shape
        For slices, as in `plot_mosaic`; without them the surface is drawn.
    **options
        Passed on to `plot_surface` or `plot_mosaic`.

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
    needed = ("vertex", "hemi") if affine is None else ("i", "j", "k")
    for name in needed:
        if name not in rgb.coords:
            raise DataError(unknown_name("voxel coordinate", name, map(str, rgb.coords)))
    if affine is None:
        return plot_surface(names, rgb["vertex"].values, rgb["hemi"].values, colours=colours, **options)
    if volume_shape is None:
        raise ConfigError("slices need volume_shape, too. Next step: the shape of the image that i, j, k index.")
    ijk = np.stack([rgb[axis].values for axis in "ijk"], axis=1)
    return plot_mosaic(names, ijk, affine=affine, volume_shape=volume_shape, colours=colours, **options)


def _chosen(table: pd.DataFrame, column: str, wanted: Sequence[str] | None) -> list[str]:
    """Values of a column, all in their order or those wanted."""
    check_columns(table, (column,), "table")
    legal = [str(v) for v in dict.fromkeys(table[column])]
    for name in wanted or ():
        if name not in legal:
            raise ConfigError(unknown_name(column, name, legal))
    return legal if wanted is None else list(wanted)
