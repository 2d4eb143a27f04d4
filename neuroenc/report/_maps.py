"""Which brain maps the report shows, and on what: fsaverage5 or slices."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.report._brain_places import HEADINGS
from neuroenc.report._exports import numeric_scores, places
from neuroenc.report._html import data_uri
from neuroenc.report._mosaic import plot_mosaic
from neuroenc.report._style import figure_png
from neuroenc.report._surface import N_VERTICES, plot_surface
from neuroenc.report._tables import median, memberships

__all__ = ["draw_maps", "map_names"]

# What a map shows: heading, colour map, range (None = from the data), transform.
MAPS: dict[str, tuple[str, str, float | None, float | None]] = {
    "r": (HEADINGS["r"], "viridis", 0.0, None),
    "r2": (HEADINGS["r2"], "viridis", 0.0, None),
    "ev": (HEADINGS["ev"], "viridis", 0.0, None),
    "noise_ceiling_r": (HEADINGS["noise_ceiling_r"], "viridis", 0.0, None),
    "noise_ceiling_r2": (HEADINGS["noise_ceiling_r2"], "viridis", 0.0, None),
    "r_normalised": (HEADINGS["r_normalised"], "plasma", 0.0, 1.0),
    "ncsnr": (HEADINGS["ncsnr"], "viridis", 0.0, None),
    "alpha": ("Ridge penalty, log10 alpha", "cividis", None, None),
    "p_value": ("−log10 p", "viridis", 0.0, None),
    "q_value": ("−log10 q (FDR)", "viridis", 0.0, None),
    "roi": ("Regions of interest", "", None, None),
}


def map_names(scores: xr.Dataset, maps: Sequence[str] | None) -> list[str]:
    legal = numeric_scores(scores) + (["roi"] if "roi" in scores.coords else [])
    if maps is not None:
        for name in maps:
            if name not in legal:
                raise ConfigError(unknown_name("map", name, legal))
        return list(maps)
    chosen: list[str] = [name for name in ("r", "r_normalised") if name in legal]
    if "roi" in legal and 1 < len([g for g in memberships(scores) if g != "no ROI"]) <= 14:
        chosen.append("roi")
    return chosen


def _map_values(scores: xr.Dataset, name: str) -> np.ndarray:
    if name == "roi":
        return np.array([str(x).split(";")[0] for x in scores["roi"].values])
    values = np.asarray(scores[name].values, float)
    if name in ("p_value", "q_value"):
        return -np.log10(np.clip(values, 1e-6, 1))
    return np.log10(np.where(values > 0, values, np.nan)) if name == "alpha" else values


def _surface_voxels(scores: xr.Dataset) -> tuple[np.ndarray, str]:
    """Voxels that can be drawn on fsaverage5, and what to say of the rest."""
    vertex, space = scores["vertex"].values, str(scores.attrs.get("space", "unknown"))
    if "fsaverage" not in space and space != "unknown":
        return np.zeros(len(vertex), bool), f"Vertices lie in the space {space!r}, for which no mesh is at hand."
    fits = (vertex >= 0) & (vertex < N_VERTICES)
    if fits.all():
        return fits, ""
    if "fsaverage" not in space or space == "fsaverage5":
        return np.zeros(len(vertex), bool), (
            f"{int((~fits).sum())} vertices do not fit fsaverage5 (0..{N_VERTICES - 1}) and the space is {space!r}; "
            "no surface map is drawn."
        )
    # The vertices of fsaverage5 are the first ones of every denser fsaverage mesh.
    return fits, f"Drawn on fsaverage5: {int(fits.sum())} of {len(vertex)} vertices of {space}."


def draw_maps(scores: xr.Dataset, names: Sequence[str], bar: Any) -> tuple[list[dict[str, str]], list[str]]:
    volume, surface, remark = places(scores)
    drawn: list[dict[str, str]] = []
    remarks = [remark] if remark else []
    kept = np.ones(scores.sizes["voxel"], bool)
    if surface:
        if find_spec("nilearn") is None:
            remarks.append("Surface maps were left out: nilearn is not installed (pip install 'neuroenc[brain]').")
            surface = False
        else:
            kept, remark = _surface_voxels(scores)
            remarks += [remark] if remark else []
            surface = bool(kept.any())
    if not surface and not volume:
        return drawn, remarks
    for name in names:
        heading, cmap, low, high = MAPS.get(name, (name.replace("_", " "), "viridis", None, None))
        values = _map_values(scores, name)
        options: dict[str, Any] = {"label": heading, "cmap": cmap or "viridis", "vmin": low, "vmax": high}
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if values.dtype.kind == "f" and (not finite.size or (low is not None and finite.max() <= low)):
            options |= {"vmin": None, "vmax": None}
        if surface:
            figure = plot_surface(values[kept], scores["vertex"].values[kept], scores["hemi"].values[kept], **options)
        else:
            ijk = np.stack([scores[axis].values for axis in "ijk"], axis=1)
            shape, affine = scores.attrs["volume_shape"], scores.attrs["affine"]
            figure = plot_mosaic(values, ijk, affine=affine, volume_shape=shape, **options)
        text = f"{heading}. " + (
            f"{np.isfinite(values).sum()} voxels, median {median(values):z.2f}." if values.dtype.kind == "f" else ""
        )
        drawn.append({"uri": data_uri(figure_png(figure), "image/png"), "heading": heading, "alt": text})
        bar.update(1)
    return drawn, remarks
