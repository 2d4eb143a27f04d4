"""Depth and width: scores layer by layer with their points, and by layer and number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.report._charts import draw_matrix
from neuroenc.report._page import Block, Section
from neuroenc.report._style import BLUE, FAINT, INK, MUTED, ORANGE, WIDTH, number, panels, picked, short

_PANELS, _BLOCKS = 12, 6
_NEEDED = ("score", "score_low", "score_high", "jump_point", "convergence_point", "flat")


def plot_depth_curves(found: xr.Dataset, *, targets: Sequence[str] | None = None) -> Any:
    """Score layer by layer: a panel a target or region, a band for the interval, jump and convergence points marked.

    A triangle stands at the jump point, a square at the convergence point, each with the interval of its depth as a
    line; a curve that is nearly flat is grey, says so, and has no points.

    Parameters
    ----------
    found : Dataset
        From `neuroenc.encoders.concept_depth`, or the layer map of a comparison: ``score, score_low, score_high``
        (layer, target), ``jump_point, convergence_point`` with their ``_low`` and ``_high``, ``flat`` (target).
    targets : sequence of str, optional
        Which, in this order; default the first 12.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import concept_depth
    >>> a, b = np.random.default_rng(0).standard_normal((2, 200))
    >>> layers = {"pixels": np.c_[a, b], "middle": np.c_[a, b, a * b]}
    >>> len(plot_depth_curves(concept_depth(layers, {"A xor B": a * b > 0})).axes)
    1
    """
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise DataError(f"depth curves need {', '.join(missing)}. Next step: neuroenc.encoders.concept_depth(...).")
    layer, target = map(str, found["score"].dims)
    layers, names = ([str(x) for x in found[d].values] for d in (layer, target))
    shown = picked(target, names, targets, _PANELS)
    at = np.arange(len(layers))
    last = max(1, len(layers) - 1)
    long = max(map(len, layers)) > 3
    with panels(len(shown), lambda c, n: (WIDTH, 2.2 * n + 0.5) if c > 1 else (5.2, 3.2), share=True) as (figure, grid):
        for axes, name in zip(grid.ravel(), shown):
            own = found.isel({target: names.index(name)})
            flat = bool(own["flat"])
            colour = MUTED if flat else BLUE
            score, low, high = (own[n].values.astype(float) for n in ("score", "score_low", "score_high"))
            axes.fill_between(at, low, high, color=colour, alpha=0.16, lw=0)
            axes.plot(at, score, "o-", color=colour, ms=3.4, lw=1.5)
            axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
            for which, mark, ink in (("jump", "^", ORANGE), ("convergence", "s", INK)):
                point = float(own[f"{which}_point"])
                if flat or not np.isfinite(point):
                    continue
                height = score[round(point * last)]
                ends = [float(own[f"{which}_{end}"]) * last for end in ("low", "high")]
                if np.isfinite(ends).all():
                    axes.plot(ends, [height] * 2, color=ink, lw=1.1, zorder=3)
                axes.plot(point * last, height, mark, color=ink, ms=6.5, mec="white", mew=0.8, zorder=4)
            axes.set_title(short(name, 28) + (" (nearly flat)" if flat else ""), fontsize=9, loc="left", color=INK)
            axes.set_xticks(
                at, [short(n, 16) for n in layers], rotation=40 if long else 0, ha="right" if long else "center"
            )
            axes.tick_params(labelsize=7.5, labelcolor=MUTED, length=2)
        for row in grid:
            row[0].set_ylabel(str(found.attrs.get("metric", "median r")))
        marks = [
            figure.axes[0].plot([], [], mark, color=ink, ms=6, label=name)[0]
            for name, mark, ink in (("jump point", "^", ORANGE), ("convergence point", "s", INK))
        ]
        figure.legend(handles=marks, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_layer_dims(
    sweep: xr.Dataset, chosen: xr.Dataset | None = None, *, regions: Sequence[str] | None = None
) -> Any:
    """Score by layer (rows) and number of dimensions (columns), a block of columns for each region or concept.

    Parameters
    ----------
    sweep : Dataset
        From `neuroenc.encoders.layer_dim_sweep`: ``region_score`` (layer, dim, region).
    chosen : Dataset, optional
        From `neuroenc.encoders.cheapest`, whose cells are framed.
    regions : sequence of str, optional
        Which, in this order; default the first 6.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import layer_dim_sweep
    >>> x = np.random.default_rng(0).standard_normal((120, 8))
    >>> sweep = layer_dim_sweep({"early": x[:, ::-1], "late": x}, {"A": x[:, 0] > 0}, dims=[2, 8], reduce="prefix")
    >>> len(plot_layer_dims(sweep).axes)
    2
    """
    if "region_score" not in sweep:
        raise DataError("a sweep has region_score. Next step: neuroenc.encoders.layer_dim_sweep(...).")
    names = [str(x) for x in sweep["region"].values]
    shown = picked("region", names, regions, _BLOCKS)
    at = [names.index(name) for name in shown]
    layers, dims = [str(x) for x in sweep["layer"].values], sweep["dim"].values.tolist()
    score = sweep["region_score"].transpose("layer", "region", "dim").values[:, at]
    rings = np.zeros(score.shape, bool)
    for k, region in enumerate(at) if chosen is not None else ():
        assert chosen is not None
        layer, dim = str(chosen["layer"].values[region]), int(chosen["dim"].values[region])
        rings[layers.index(layer), k, dims.index(dim)] = True
    columns = [str(d) for _ in at for d in dims]
    kinds = [short(name, 14) for name in shown for _ in dims]
    flat = len(layers), len(columns)
    label = "score" if sweep.attrs.get("metric", "r") != "r" else "median r"
    return draw_matrix(score.reshape(flat), layers, columns, label=label, kinds=kinds, rings=rings.reshape(flat))


def widths_section(sweep: xr.Dataset, chosen: xr.Dataset) -> Section:
    """Score by layer and number of dimensions, and the cheapest cell of every group that keeps a share of the best."""
    share = float(chosen.attrs["share"])
    named = {"pca": "first principal components of the training stimuli", "prefix": "first features of the space"}
    keys = ("kind", "region", "layer", "dim", "agreement", "score", "best_score", "kept")
    table = pd.DataFrame({k: chosen[k].values for k in keys}).rename(
        columns={"region": "group", "dim": "dimensions", "agreement": "folds that agree", "kept": "kept share"}
    )
    words = "; ".join(
        f"{row.group}: {row.layer}, {row.dimensions} dimensions" for row in table.head(_BLOCKS).itertuples(index=False)
    )
    dimensions = named.get(str(sweep.attrs.get("reduce")), "first dimensions")
    drawn = (
        f"Median r of ridge on the {dimensions}, by layer (rows) and their number (columns). A frame marks the "
        f"earliest layer, and there the fewest dimensions, that keep {share:.0%} of the best score."
    )
    if sweep.sizes["region"] > _BLOCKS:
        drawn += f" {_BLOCKS} of {sweep.sizes['region']} groups are drawn; the table has all."
    lead = (
        "Choices are made inside the training stimuli of each fold. The scores of the table are on the stimuli that "
        "the fold left out: kept share is what the cheap choice has of the best. Over all voxels it is "
        f"{number(table['kept share'][0])}."
    )
    figure = plot_layer_dims(sweep, chosen)
    block = Block(figure, f"Cheapest cells. {words}.", drawn, table, about="cheapest layer and width of every group")
    return Section("widths", "How deep and how wide", lead, [block], nav="Widths")
