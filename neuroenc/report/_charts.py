"""Charts of comparisons: matrices, strips of units, gains, shares, learning curves, costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroenc.encoders.comparison import Group
from neuroenc.report._style import FAINT, INK, MUTED, WIDTH, bare, drawing, short, write

GREY = "#9aa4ad"


def _axes(figure: Any, left: float, bottom: float, wide: float, tall: float) -> Any:
    """Axes at a place in inches."""
    height = figure.get_size_inches()[1]
    return figure.add_axes((left / WIDTH, bottom / height, wide / WIDTH, tall / height))


def _gutter(names: Sequence[str]) -> float:
    """Inches that names beside an axis need."""
    return max([0.6, *(0.2 + 0.078 * len(name) for name in names)])


def draw_matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    kinds: Sequence[str] = (),
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    rings: np.ndarray | None = None,
    dots: np.ndarray | None = None,
) -> Any:
    """Numbers as coloured squares; ``rings`` (bool) frames some, ``dots`` (bool) replaces the number by a dot.

    ``kinds`` sets columns of different kinds apart.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba
    from matplotlib.patches import Rectangle

    values = np.asarray(values, float)
    known = values[np.isfinite(values)]
    low, high = limits or (min(0.0, float(known.min())) if known.size else 0.0, float(known.max()) if known.size else 1)
    if not low < high:
        low, high = low - 0.5, low + 0.5
    norm, colour = Normalize(low, high, clip=True), matplotlib.colormaps[cmap]
    named, heads = [short(x, 34) for x in rows], [short(x, 22) for x in columns]
    kinds = list(kinds) or [""] * len(columns)
    left, right = _gutter(named), 0.95
    gaps = np.cumsum([0.0] + [0.35 * (a != b) for a, b in itertools.pairwise(kinds)]) if len(columns) else np.zeros(0)
    at = np.arange(len(columns)) + gaps
    span = at[-1] + 1
    wide = min(0.78, (WIDTH - left - right) / span)
    tall = min(0.3, max(0.2, wide))
    turned = max(map(len, heads)) * 0.075 > wide - 0.06
    top = 0.28 + (max(map(len, heads)) * 0.054 if turned else 0.0) + 0.2 * any(kinds)
    height = top + tall * len(rows) + 0.12
    with drawing(WIDTH, height) as figure:
        axes = _axes(figure, left, 0.12, span * wide, tall * len(rows))
        for i in range(len(rows)):
            for j, x in enumerate(at):
                value = values[i, j]
                rgba = colour(norm(value)) if np.isfinite(value) else to_rgba("#f0f2f4")
                axes.add_patch(Rectangle((x, i), 1, 1, fc=rgba, ec="white", lw=1))
                if not np.isfinite(value):
                    continue
                light = 0.299 * rgba[0] + 0.587 * rgba[1] + 0.114 * rgba[2] > 0.55
                text = f"{value:z.2f}".replace("-", "−").replace("0.", ".", 1) if wide < 0.5 else f"{value:z.2f}"
                if dots is not None and dots[i, j]:
                    text = "•"
                if text == "•" or wide >= 0.3:
                    shown = text.replace("-", "−")
                    size, ink = 8 if wide >= 0.36 else 6.5, INK if light else "white"
                    write(axes, x + 0.5, i + 0.52, shown, size=size, color=ink)
        for i, j in zip(*np.nonzero(rings)) if rings is not None else ():
            axes.add_patch(Rectangle((at[j] + 0.05, i + 0.07), 0.9, 0.86, fc="none", ec="white", lw=2.6, zorder=4))
            axes.add_patch(Rectangle((at[j] + 0.05, i + 0.07), 0.9, 0.86, fc="none", ec=INK, lw=1.3, zorder=5))
        axes.set(xlim=(0, span), ylim=(len(rows), 0))
        axes.set_yticks(np.arange(len(rows)) + 0.5, named, fontsize=8.5)
        axes.xaxis.tick_top()
        turn: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(at + 0.5, heads, fontsize=8.5, **turn)
        axes.tick_params(length=0, labelcolor=INK, pad=2)
        bare(axes)
        for kind in dict.fromkeys(kinds):
            if kind and kind != "all":
                first = at[kinds.index(kind)]
                write(axes, first, -(top - 0.16) / tall, kind, "left center", color=MUTED)
        bar_left = left + span * wide + 0.3
        bar = _axes(figure, bar_left, max(0.12, 0.12 + tall * len(rows) - 1.6), 0.11, min(1.6, tall * len(rows)))
        figure.colorbar(ScalarMappable(norm, colour), cax=bar).outline.set_visible(False)
        bar.tick_params(length=2, labelsize=7.5, pad=2, labelcolor=MUTED)
        bar.locator_params(nbins=4 if tall * len(rows) > 0.8 else 2)
        bar.set_title(label, fontsize=8, color=INK, loc="left", pad=5) if tall * len(rows) > 0.5 else None
    return figure


def draw_strip(heights: np.ndarray, colours: np.ndarray, groups: Sequence[Group], label: str) -> Any:
    """One bar for every unit, coloured, side by side in their groups, the highest first."""
    from matplotlib.collections import PolyCollection

    names, sizes = [short(g.name, 18) for g in groups], np.array([len(g.voxels) for g in groups])
    gap = max(1.0, 0.012 * sizes.sum())
    ends = np.cumsum(sizes + gap) - gap
    edges, ticks, span = list(zip(ends - sizes, ends)), ends - sizes / 2, ends[-1]
    places = np.concatenate([start + np.arange(n) for start, n in zip(ends - sizes, sizes)])
    falling = np.where(np.isfinite(heights), -heights, np.inf)
    order = np.concatenate([g.voxels[np.argsort(falling[g.voxels], kind="stable")] for g in groups])
    values = heights[order]
    known = np.isfinite(values)
    turned = any(len(n) * 0.075 > (b - a) / span * 9.6 for n, (a, b) in zip(names, edges))
    bottom = 0.3 + (max(map(len, names)) * 0.056 if turned else 0)
    with drawing(WIDTH, 2.3 + bottom) as figure:
        axes = _axes(figure, 0.62, bottom, WIDTH - 0.8, 2.15)
        bars = [[(p, 0), (p, v), (p + 1, v), (p + 1, 0)] for p, v in zip(places[known], values[known])]
        shown = colours[order][known]
        axes.add_collection(PolyCollection(bars, facecolors=shown, edgecolors=shown, linewidths=0.1))
        top = float(values[known].max()) if known.any() else 1.0
        low = min(0.0, float(values[known].min())) if known.any() else 0.0
        for a, b in edges:
            axes.plot([a, b], [0, 0], color=GREY, lw=0.8)
        axes.set(xlim=(-gap / 2, span + gap / 2), ylim=(low * 1.05, max(top, 1e-3) * 1.04))
        turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(ticks, names, fontsize=8.5, **turn)
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.tick_params(axis="y", labelsize=8, labelcolor=MUTED)
        axes.spines["bottom"].set_visible(False)
        axes.set_ylabel(label)
    return figure


def draw_gains(panels: Mapping[str, pd.DataFrame], groups: Sequence[str], colours: Mapping[str, Any]) -> Any:
    """Differences with intervals: a panel for each feature space, a row for each group, a colour for each readout.

    Each table has ``readout``, ``group``, ``median_difference``, ``low``, ``high``, ``q``.
    """
    from matplotlib.ticker import MaxNLocator

    names = [short(g, 24) for g in groups]
    readouts = list(dict.fromkeys(r for t in panels.values() for r in t["readout"]))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    step = 0.14 * max(len(readouts), 1) + 0.14
    tall, left = step * len(names) + 0.1, _gutter(names)
    height = lines * (tall + 0.75) + 0.1
    wide = min(4.6, (WIDTH - left - 0.15 - 0.25 * (columns - 1)) / columns)
    values = np.concatenate([t[["low", "high", "median_difference"]].to_numpy(float).ravel() for t in panels.values()])
    values = values[np.isfinite(values)]
    reach = (min(0.0, values.min()), max(0.0, values.max())) if values.size else (-0.1, 0.1)
    pad = 0.05 * max(reach[1] - reach[0], 1e-3)
    with drawing(WIDTH, height) as figure:
        for k, (title, rows) in enumerate(panels.items()):
            row, column = divmod(k, columns)
            axes = _axes(figure, left + column * (wide + 0.25), height - (row + 1) * (tall + 0.75) + 0.4, wide, tall)
            for place, group in enumerate(groups):
                if place % 2 == 0:
                    axes.axhspan(place - 0.5, place + 0.5, color="#f5f7f9", lw=0, zorder=0)
                for n, readout in enumerate(readouts):
                    y = place + (n - (len(readouts) - 1) / 2) * 0.14 / step
                    for found in rows[(rows["readout"] == readout) & (rows["group"] == group)].to_dict("records"):
                        colour = colours[readout]
                        dot = {"mec": colour, "mfc": colour if found["q"] < 0.05 else "white", "ms": 4.6, "mew": 1.2}
                        axes.plot([found["low"], found["high"]], [y, y], color=colour, lw=1.5, zorder=3)
                        axes.plot(found["median_difference"], y, "o", zorder=4, **dot)
            axes.axvline(0, color=GREY, lw=0.9, zorder=1)
            axes.set(xlim=(reach[0] - pad, reach[1] + pad), ylim=(len(groups) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), names if column == 0 else [""] * len(names), fontsize=8.5)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.spines["left"].set_visible(False)
            axes.set_title(short(title, 40), fontsize=9.5, loc="left", color=INK)
            if row == lines - 1 or k + columns >= len(panels):
                axes.set_xlabel("difference of r")
    return figure


def draw_shares(shares: np.ndarray, groups: Sequence[Group], counts: Sequence[int], colours: Mapping[str, Any]) -> Any:
    """Stacked bars: the share of every class (class, group) in each group of so many voxels."""
    from matplotlib.colors import to_rgb

    names = [f"{short(g.name, 24)}  ({n})" for g, n in zip(groups, counts)]
    left = _gutter(names)
    height = 0.27 * len(names) + 0.3
    with drawing(WIDTH, height) as figure:
        axes = _axes(figure, left, 0.25, WIDTH - left - 0.25, height - 0.3)
        for g in range(len(groups)):
            start = 0.0
            for name, share in zip(colours, shares[:, g]):
                if not share > 0:
                    continue
                axes.barh(g, share, 0.78, left=start, color=colours[name], ec="white", lw=0.7)
                if share >= 0.05:
                    light = np.array(to_rgb(colours[name])) @ [0.299, 0.587, 0.114] > 0.55
                    colour = INK if light else "white"
                    write(axes, start + share / 2, g + 0.03, f"{100 * share:.0f}", size=7.5, color=colour)
                start += share
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def draw_curves(curves: Mapping[str, list[pd.DataFrame]], colours: Mapping[str, Any]) -> Any:
    """Validation r by epoch, a panel for each cell and a line for each fit; the best epoch is marked."""
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    wide, tall = (WIDTH - 0.6) / 4, 1.45
    height = lines * tall + 0.35
    every = pd.concat([t for fits in curves.values() for t in fits])
    known = every["validation_r"][np.isfinite(every["validation_r"])]
    low, high = (min(0.0, known.min()), known.max()) if len(known) else (0.0, 1.0)
    with drawing(WIDTH, height) as figure:
        for k, (cell, fits) in enumerate(curves.items()):
            row, column = divmod(k, columns)
            axes = _axes(figure, 0.5 + column * wide, height - (row + 1) * tall + 0.1, wide - 0.2, tall - 0.42)
            for fit in fits:
                epoch, r = fit["epoch"].to_numpy(float), fit["validation_r"].to_numpy(float)
                axes.plot(epoch, r, color=colours[cell], lw=1.0, alpha=0.75)
                if np.isfinite(r).any():
                    best = int(np.nanargmax(r))
                    axes.plot(epoch[best], r[best], "o", ms=3.4, mew=0, color=INK, zorder=4)
            axes.set_ylim(low - 0.03 * (high - low), high + 0.06 * (high - low + 1e-3))
            axes.set_title(short(cell, 34), fontsize=8.2, loc="left", color=INK, pad=3)
            axes.tick_params(labelsize=7.5, labelcolor=MUTED, length=2)
            axes.locator_params(nbins=5)
            axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
            if column:
                axes.set_yticklabels([])
            if k + columns >= len(curves):
                axes.set_xlabel("epoch", fontsize=8)
        figure.text(0.02 / WIDTH, 0.5, "validation r", rotation=90, va="center", ha="left", fontsize=8.5, color=INK)
    return figure


def _plain(value: float, _place: Any = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * size or (value >= size and size > 1e3):
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def draw_costs(costs: pd.DataFrame, colours: Sequence[Any]) -> Any:
    """Three panels over the same rows: median r with its interval, trained parameters, seconds a fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = [short(c, 34) for c in costs["cell"]]
    left, rows = _gutter(names), np.arange(len(names))
    panels = [("median_r", "median r"), ("n_parameters", "parameters")]
    height = 0.24 * len(names) + 0.75
    wide = (WIDTH - left - 0.2 - 0.3 * (len(panels) - 1)) / len(panels)
    with drawing(WIDTH, height) as figure:
        for k, (column, title) in enumerate(panels):
            axes = _axes(figure, left + k * (wide + 0.3), 0.5, wide, height - 0.6)
            for y in rows:
                axes.axhline(y, color=FAINT, lw=0.6, zorder=0)
            values, score = costs[column].to_numpy(float), column == "median_r"
            if score:
                axes.hlines(rows, costs["low"], costs["high"], color=colours, lw=1.6)
            shown = np.isfinite(values) if score else values > 0
            if not score and shown.any():
                axes.set_xscale("log")
                # Plain numbers: powers of ten would need mathematical text, which names must not become.
                axes.xaxis.set_major_locator(LogLocator(subs=(1.0,), numticks=5))
                axes.xaxis.set_major_formatter(FuncFormatter(_plain))
                if np.ptp(np.log10(values[shown])) < 1.2:
                    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.set_xlim(values[shown].min() / 1.8, values[shown].max() * 1.8)
            for y in rows[shown]:
                axes.plot(values[y], y, "o", ms=5.2, mew=0, color=colours[y])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(rows, names if k == 0 else [""] * len(names), fontsize=8.5)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8, which="both", length=2)
            axes.spines["left"].set_visible(False)
            axes.set_xlabel(title)
    return figure
