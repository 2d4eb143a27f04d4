"""Charts of accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.optional import require
from neuroenc.report._style import BLUE, FAINT, INK, MUTED, ORANGE, STYLE
from neuroenc.report._tables import ceiling_r, check_scores, median, memberships

__all__ = ["MAX_DOTS", "MAX_ROIS", "plot_accuracy"]

MAX_ROIS, MAX_DOTS = 24, 300


def _spread(values: np.ndarray, low: float, high: float, reach: float = 0.34) -> np.ndarray:
    """Vertical offsets that keep dots of similar value apart: each bin is filled from the middle outwards."""
    bins = np.clip(((values - low) / max(high - low, 1e-9) * 60).astype(int), 0, 59)
    offsets = np.zeros(len(values))
    rng = np.random.default_rng(0)
    largest = max(np.bincount(bins).max(), 1)
    step = min(0.1, reach / max(largest / 2, 1))
    for b in np.unique(bins):
        members = np.flatnonzero(bins == b)
        # In random order: sorted by value, the bins of a dense strip would line up as arrows.
        order = rng.permutation(members)
        place = np.arange(len(order))
        offsets[order] = step * np.where(place % 2, (place + 1) // 2, -(place // 2))
    return offsets


def _thin(values: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` order statistics, evenly spaced, extremes kept."""
    values = np.sort(values)
    return values if len(values) <= limit else values[np.linspace(0, len(values) - 1, limit).round().astype(int)]


def _strips(axes: Any, scores: xr.Dataset, max_rois: int, max_dots: int) -> None:
    r, ceiling = np.asarray(scores["r"].values, float), ceiling_r(scores)
    groups = memberships(scores)
    if len(groups) > max_rois:
        kept = set(sorted(groups, key=lambda name: -int(groups[name].sum()))[:max_rois])
        groups = {name: mask for name, mask in groups.items() if name in kept}
    finite = r[np.isfinite(r)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    for row, (_name, mask) in enumerate(groups.items()):
        values = r[mask & np.isfinite(r)]
        axes.axhline(row, color=FAINT, lw=0.6, zorder=0)
        if values.size:
            dots = _thin(values, max_dots)
            first = {"label": "one voxel"} if row == 0 else {}
            axes.plot(dots, row + _spread(dots, low, high), "o", ms=3.2, mew=0, color=BLUE, alpha=0.55, **first)
            axes.plot(
                [np.median(values)] * 2,
                [row - 0.36, row + 0.36],
                color=INK,
                lw=2,
                solid_capstyle="butt",
                zorder=4,
                **({"label": "median r"} if row == 0 else {}),
            )
        top = median(ceiling, mask)
        if np.isfinite(top):
            axes.plot(
                top,
                row,
                "D",
                ms=6,
                mfc="white",
                mec=ORANGE,
                mew=1.6,
                zorder=5,
                **({"label": "median noise ceiling"} if row == 0 else {}),
            )
    counts = [int(mask.sum()) for mask in groups.values()]
    names = [name if len(name) <= 28 else f"{name[:27]}…" for name in groups]
    axes.set_yticks(range(len(groups)), [f"{name}  ({n})" for name, n in zip(names, counts)])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color="#9aa4ad", lw=0.8, zorder=0)
    axes.set_xlabel("prediction accuracy, Pearson r")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.4,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _against_ceiling(axes: Any, r: np.ndarray, ceiling: np.ndarray) -> None:
    both = np.isfinite(r) & np.isfinite(ceiling)
    x, y = ceiling[both], r[both]
    low = min(0.0, float(y.min()) - 0.03) if y.size else 0.0
    high = max(1.0, float(x.max()) + 0.03 if x.size else 1.0)
    axes.plot([0, high], [0, high], color=ORANGE, lw=1.2, dashes=(4, 2.5), zorder=3)
    axes.text(
        high * 0.04,
        high * 0.06,
        "r = ceiling",
        color=ORANGE,
        fontsize=8.5,
        rotation=45,
        rotation_mode="anchor",
        ha="left",
        va="bottom",
        transform_rotates_text=True,
    )
    if x.size > 2500:
        axes.hexbin(x, y, gridsize=45, extent=(0, high, low, high), mincnt=1, cmap="Blues", bins="log", linewidths=0.1)
    else:
        axes.plot(x, y, "o", ms=3.2, mew=0, color=BLUE, alpha=0.5)
    axes.axhline(0, color="#9aa4ad", lw=0.8, zorder=0)
    axes.set(xlim=(0, high), ylim=(low, high), aspect="equal", anchor="NW")
    axes.set_xlabel("noise ceiling, correlation")
    axes.set_ylabel("prediction accuracy, Pearson r")
    axes.tick_params(axis="y", labelcolor=MUTED)


def _histogram(axes: Any, r: np.ndarray) -> None:
    values = r[np.isfinite(r)]
    axes.hist(values, bins=min(40, max(8, int(np.sqrt(max(values.size, 1)) * 2))), color=BLUE, alpha=0.8, lw=0)
    if values.size:
        axes.axvline(np.median(values), color=INK, lw=2)
        axes.text(
            np.median(values),
            1.01,
            f"median {np.median(values):z.2f}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
        )
    axes.set_xlabel("prediction accuracy, Pearson r")
    axes.set_ylabel("voxels")
    axes.tick_params(axis="y", labelcolor=MUTED)


def plot_accuracy(scores: xr.Dataset, *, max_rois: int = MAX_ROIS, max_dots: int = MAX_DOTS) -> Any:
    """Accuracy per ROI beside its noise ceiling, and voxel by voxel against the ceiling.

    Left, a strip per ROI: voxels (dots), their median, and the ROI's median ceiling. Right, each voxel's
    ``r`` over its ceiling with the line where both are equal; a histogram of ``r`` if there is no ceiling.

    Parameters
    ----------
    scores : xarray.Dataset over ``voxel``
        ``r``; optionally ``noise_ceiling_r`` or ``noise_ceiling_r2``; coordinate ``roi``.
    max_rois : int
        With more ROIs, the ones with most voxels are drawn.
    max_dots : int
        With more voxels, this many evenly spaced order statistics of an ROI are drawn; medians use all.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If scores has no ``r`` over ``voxel``.

    Examples
    --------
    >>> import xarray as xr
    >>> figure = plot_accuracy(xr.Dataset({"r": ("voxel", [0.2, 0.4])}, coords={"roi": ("voxel", ["V1", "V2"])}))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['V1  (1)', 'V2  (1)']
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scores = check_scores(scores)
    r, ceiling = np.asarray(scores["r"].values, float), ceiling_r(scores)
    rows = min(len(memberships(scores)), max_rois)
    with rc_context(STYLE):
        height = max(3.9, 0.36 * rows + 1.1)
        figure = Figure(figsize=(10.6, height))
        square = min(height, 4.4) - 0.95
        left, bottom, top = 1.25, 0.55, 0.4
        figure_width = 10.6
        gap = 0.95
        strip = figure_width - left - gap - square - 0.15
        axes = figure.add_axes(
            (left / figure_width, bottom / height, strip / figure_width, (height - bottom - top) / height)
        )
        _strips(axes, scores, max_rois, max_dots)
        # Level with the strips' top: in a tall figure the reader meets both panels at once.
        low = (height - top - square) / height
        place = ((left + strip + gap) / figure_width, low, square / figure_width, square / height)
        other = figure.add_axes(place)
        if ceiling is not None and np.isfinite(ceiling).any():
            _against_ceiling(other, r, ceiling)
        else:
            _histogram(other, r)
    return figure
