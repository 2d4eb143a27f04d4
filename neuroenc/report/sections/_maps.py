"""Scores on the brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.report._page import Block, Section
from neuroenc.report._regions import NO_ROI, median, memberships
from neuroenc.report.brain._canvas import Canvas
from neuroenc.report.brain._places import HEADINGS
from neuroenc.report.export._files import numeric_scores

# What a map shows: heading, colour map, lowest and highest value (None = from the data).
MAPS: dict[str, tuple[str, str, float | None, float | None]] = {
    **{name: (heading, "viridis", 0.0, None) for name, heading in HEADINGS.items()},
    "r_normalised": (HEADINGS["r_normalised"], "plasma", 0.0, 1.0),
    "alpha": ("Ridge penalty, log10 alpha", "cividis", None, None),
    "p_value": ("−log10 p", "viridis", 0.0, None),
    "q_value": ("−log10 q (FDR)", "viridis", 0.0, None),
    "roi": ("Regions of interest", "", None, None),
}


def map_names(scores: xr.Dataset, maps: Sequence[str] | None) -> list[str]:
    """Scores to draw, as asked for; by default r, r_normalised and, up to 14, the ROIs."""
    legal = numeric_scores(scores) + (["roi"] if "roi" in scores.coords else [])
    if maps is not None:
        for name in maps:
            if name not in legal:
                raise ConfigError(unknown_name("map", name, legal))
        return list(maps)
    chosen: list[str] = [name for name in ("r", "r_normalised") if name in legal]
    if "roi" in legal and 1 < len([g for g in memberships(scores) if g != NO_ROI]) <= 14:
        chosen.append("roi")
    return chosen


def _values(scores: xr.Dataset, name: str) -> np.ndarray:
    if name == "roi":
        return np.array([str(x).split(";")[0] for x in scores["roi"].values])
    values = np.asarray(scores[name].values, float)
    if name in ("p_value", "q_value"):
        return -np.log10(np.clip(values, 1e-6, 1))
    return np.log10(np.where(values > 0, values, np.nan)) if name == "alpha" else values


def maps_section(scores: xr.Dataset, names: Sequence[str]) -> Section | None:
    """A map of each score; None where voxels have no place and nothing is to be said of it."""
    canvas = Canvas(scores)
    blocks: list[Block] = []
    for name in names if canvas.kind != "strip" else ():
        heading, cmap, low, high = MAPS.get(name, (name.replace("_", " "), "viridis", None, None))
        values = _values(scores, name)
        finite = values[np.isfinite(values)] if name != "roi" else values
        if name != "roi" and (not finite.size or (low is not None and finite.max() <= low)):
            low = high = None
        figures = canvas.draw(values, label=heading, cmap=cmap or None, limits=(low, high), both=not blocks)
        said = "" if name == "roi" else f"{finite.size} voxels, median {median(values):z.2f}."
        if not figures:
            blocks.append(Block(heading=heading, caption="No voxel has a value."))
        else:
            blocks.append(Block(figures, f"{heading}. {said}", heading=heading))
    if not blocks and not canvas.remarks:
        return None
    return Section("maps", "Brain maps", canvas.how if blocks else "", blocks, remarks=canvas.remarks, style="maps")
