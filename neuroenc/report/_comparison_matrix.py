"""Matrices of numbers and strips of units, and what all charts of a comparison share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroenc.report._comparison_inputs import Group, short
from neuroenc.report._style import INK, MUTED, STYLE

__all__ = ["GREY", "WIDTH", "draw_matrix", "draw_strip", "gutter", "new_figure", "style"]

WIDTH = 10.6  # inches; the page shows it at 1056 CSS pixels
GREY = "#9aa4ad"


def new_figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


def gutter(names: Sequence[str], size: float = 0.078, least: float = 0.6) -> float:
    """Inches that names beside an axis need."""
    return max([least, *(0.2 + size * len(name) for name in names)])


def style() -> Any:
    from matplotlib import rc_context

    return rc_context(STYLE)


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
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    values = np.asarray(values, float)
    known = values[np.isfinite(values)]
    low, high = limits or (min(0.0, float(known.min())) if known.size else 0.0, float(known.max()) if known.size else 1)
    if not low < high:
        low, high = low - 0.5, low + 0.5
    norm, colour = Normalize(low, high, clip=True), matplotlib.colormaps[cmap]
    named, heads = [short(x, 34) for x in rows], [short(x, 22) for x in columns]
    kinds = list(kinds) or [""] * len(columns)
    left, right = gutter(named), 0.95
    gaps = np.cumsum([0.0] + [0.35 * (a != b) for a, b in itertools.pairwise(kinds)]) if len(columns) else np.zeros(0)
    at = np.arange(len(columns)) + gaps
    span = at[-1] + 1
    wide = min(0.78, (WIDTH - left - right) / span)
    tall = min(0.3, max(0.2, wide))
    turned = max(map(len, heads)) * 0.075 > wide - 0.06
    top = 0.28 + (max(map(len, heads)) * 0.054 if turned else 0.0) + 0.2 * any(kinds)
    height = top + tall * len(rows) + 0.12
    with style():
        figure = new_figure(height)
        axes = figure.add_axes((left / WIDTH, 0.12 / height, span * wide / WIDTH, tall * len(rows) / height))
        for i in range(len(rows)):
            for j, x in enumerate(at):
                value = values[i, j]
                if not np.isfinite(value):
                    axes.add_patch(Rectangle((x, i), 1, 1, fc="#f0f2f4", ec="white", lw=1))
                    continue
                rgba = colour(norm(value))
                axes.add_patch(Rectangle((x, i), 1, 1, fc=rgba, ec="white", lw=1))
                light = 0.299 * rgba[0] + 0.587 * rgba[1] + 0.114 * rgba[2] > 0.55
                text = f"{value:z.2f}".replace("-", "−").replace("0.", ".", 1) if wide < 0.5 else f"{value:z.2f}"
                dotted = dots is not None and bool(dots[i, j])
                if dotted or wide >= 0.3:
                    axes.text(
                        x + 0.5,
                        i + 0.52,
                        "•" if dotted else text.replace("-", "−"),
                        ha="center",
                        va="center",
                        color=INK if light else "white",
                        fontsize=8 if wide >= 0.36 else 6.5,
                    )
        for i, j in zip(*np.nonzero(rings)) if rings is not None else ():
            axes.add_patch(Rectangle((at[j] + 0.05, i + 0.07), 0.9, 0.86, fc="none", ec="white", lw=2.6, zorder=4))
            axes.add_patch(Rectangle((at[j] + 0.05, i + 0.07), 0.9, 0.86, fc="none", ec=INK, lw=1.3, zorder=5))
        axes.set(xlim=(0, span), ylim=(len(rows), 0))
        axes.set_yticks(np.arange(len(rows)) + 0.5, named, fontsize=8.5)
        axes.xaxis.tick_top()
        turn: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(at + 0.5, heads, fontsize=8.5, **turn)
        axes.tick_params(length=0, labelcolor=INK, pad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for kind in dict.fromkeys(kinds):
            if kind and kind != "all":
                first = at[kinds.index(kind)]
                axes.text(first, -(top - 0.16) / tall, kind, color=MUTED, fontsize=8, ha="left", va="center")
        bar_left = left + span * wide + 0.3
        bar = figure.add_axes(
            (
                bar_left / WIDTH,
                max(0.12, 0.12 + tall * len(rows) - 1.6) / height,
                0.11 / WIDTH,
                min(1.6, tall * len(rows)) / height,
            )
        )
        figure.colorbar(ScalarMappable(norm, colour), cax=bar).outline.set_visible(False)
        bar.tick_params(length=2, labelsize=7.5, pad=2, labelcolor=MUTED)
        bar.locator_params(nbins=4 if tall * len(rows) > 0.8 else 2)
        bar.set_title(label, fontsize=8, color=INK, loc="left", pad=5) if tall * len(rows) > 0.5 else None
    return figure


def draw_strip(heights: np.ndarray, colours: np.ndarray, groups: Sequence[Group], label: str) -> Any:
    """One bar for every unit, coloured, side by side in their groups, the highest first."""
    from matplotlib.collections import PolyCollection

    order, edges, ticks, names, x = [], [], [], [], 0.0
    places: list[float] = []
    total = sum(int(g.mask.sum()) for g in groups)
    gap = max(1.0, 0.012 * total)
    for group in groups:
        members = np.flatnonzero(group.mask)
        key = np.where(np.isfinite(heights[members]), -heights[members], np.inf)
        members = members[np.argsort(key, kind="stable")]
        order += members.tolist()
        places += (x + np.arange(len(members))).tolist()
        edges.append((x, x + len(members)))
        ticks.append(x + len(members) / 2)
        names.append(short(group.name, 18))
        x += len(members) + gap
    values = heights[order]
    known = np.isfinite(values)
    span = x - gap
    turned = any(len(n) * 0.075 > (b - a) / span * 9.6 for n, (a, b) in zip(names, edges))
    bottom = 0.3 + (max(map(len, names)) * 0.056 if turned else 0)
    height = 2.3 + bottom
    with style():
        figure = new_figure(height)
        axes = figure.add_axes((0.62 / WIDTH, bottom / height, (WIDTH - 0.8) / WIDTH, 2.15 / height))
        bars = [[(p, 0), (p, v), (p + 1, v), (p + 1, 0)] for p, v in zip(np.array(places)[known], values[known])]
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
