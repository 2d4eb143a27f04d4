"""Response functions in time: their course and peak by region."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._page import Block, Section
from neuroenc.report._regions import memberships
from neuroenc.report._style import BLUE, FAINT, INK, MUTED, ORANGE, WIDTH, number, panels, short

_PANELS = 12


def _known(scores: xr.Dataset) -> dict[str, np.ndarray]:
    """Voxels with a response function by region; all of them where there are no regions."""
    seen = np.isfinite(scores["peak_latency"].values)
    groups = {name: mask & seen for name, mask in memberships(scores).items()}
    return {name: mask for name, mask in groups.items() if mask.any()}


def plot_responses(scores: xr.Dataset) -> Any:
    """Median response function of each region with the middle half of its voxels, and their peaks as ticks.

    Parameters
    ----------
    scores : Dataset over ``voxel``
        With ``response`` (delay, voxel), ``peak_latency`` (s) and the coordinate ``lag`` (s), as
        `neuroenc.encoders.lag_profile` gives them; NaN of voxels without one. The 12 largest regions are drawn.

    Returns
    -------
    matplotlib.figure.Figure
    """
    groups = _known(scores)
    names = sorted(groups, key=lambda name: -int(groups[name].sum()))[:_PANELS]
    names = [name for name in groups if name in names]
    lag, response = scores["lag"].values, scores["response"].transpose("delay", "voxel").values
    with panels(len(names), lambda c, n: (WIDTH, 2.0 * n + 0.4) if c > 1 else (5.2, 3.0), share=True) as (figure, grid):
        for axes, name in zip(grid.ravel(), names):
            own = response[:, groups[name]]
            peaks = scores["peak_latency"].values[groups[name]]
            low, middle, high = np.quantile(own, [0.25, 0.5, 0.75], axis=1)
            axes.fill_between(lag, low, high, color=BLUE, alpha=0.18, lw=0)
            axes.plot(lag, middle, "o-", color=BLUE, ms=3.4, lw=1.5)
            axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
            axes.axvline(np.median(peaks), color=ORANGE, lw=1.4)
            axes.set_title(f"{short(name, 24)}  ({len(peaks)})", fontsize=9, loc="left", color=INK)
            axes.tick_params(labelsize=7.5, labelcolor=MUTED, length=2)
        for axes in grid[-1]:
            axes.set_xlabel("time after the volume, s")
        for row in grid:
            row[0].set_ylabel("response (peak 1)")
    return figure


def response_section(scores: xr.Dataset) -> Section | None:
    """Section on response functions; None where scores have none."""
    if "response" not in scores or not _known(scores):
        return None
    rows = []
    for name, mask in _known(scores).items():
        part = scores.isel(voxel=np.flatnonzero(mask))
        low, middle, high = np.quantile(part["peak_latency"].values, [0.25, 0.5, 0.75])
        wide = part["width"].values[np.isfinite(part["width"].values)]
        rows.append(
            {
                "roi": name,
                "n_voxels": int(mask.sum()),
                "median_peak_s": middle,
                "peak_25_percent_s": low,
                "peak_75_percent_s": high,
                "median_width_s": float(np.median(wide)) if len(wide) else np.nan,
                "median_separability": float(np.median(part["separability"].values)),
            }
        )
    table = pd.DataFrame(rows)
    alt = "; ".join(f"{row.roi}: peak {number(row.median_peak_s)} s" for row in table.itertuples())
    lead = (
        "Weights on features at several delays are a finite impulse response. Where all features go through one "
        "response function, the weights of a voxel are that function times its tuning; here is the nearest such "
        "function. Only voxels that are predicted have one."
    )
    caption = (
        "Median over the voxels of a region, and the middle half of them; the line is the median peak (parabola "
        "through three delays). Width: full width at half of the peak. Separability: share of the weights' square that "
        "one function explains."
    )
    block = Block(plot_responses(scores), f"Response functions. {alt}", caption, table)
    return Section("responses", "Response functions", lead, [block], nav="Time")
