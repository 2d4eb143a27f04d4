"""Where on the cortex, or in which unit, a class or a number stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr

from neuroenc.encoders.comparison import Group
from neuroenc.report._charts import draw_strip
from neuroenc.report._regions import NO_ROI, memberships
from neuroenc.report._style import TIE, figure_png
from neuroenc.report._text import data_uri
from neuroenc.report.brain._mesh import N_VERTICES, flat_mesh
from neuroenc.report.brain._slices import plot_mosaic
from neuroenc.report.brain._surface import plot_surface
from neuroenc.report.export._files import places

MOST_OUTLINES, MOST_STRIPS = 24, 24
NO_NILEARN = "Surface maps were left out: nilearn is not installed (pip install 'neuroenc[brain]')."


def surface_voxels(scores: xr.Dataset) -> tuple[np.ndarray, str]:
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


class Canvas:
    """Values of voxels on fsaverage5, on slices, or else as one bar for each unit.

    ``groups`` are what bars are put side by side in; ``kind`` is "surface", "volume" or "strip", ``remarks`` say what
    cannot be drawn, and ``how`` what the reader looks at.
    """

    def __init__(self, scores: xr.Dataset, groups: Sequence[Group] = ()) -> None:
        volume, surface, remark = places(scores)
        if groups:
            remark = remark.replace("no maps were made", "units are drawn side by side")
        self.remarks = [remark] if remark else []
        self._scores, self._kept = scores, np.ones(scores.sizes["voxel"], bool)
        if surface:
            kept, said = surface_voxels(scores) if find_spec("nilearn") is not None else (None, NO_NILEARN)
            self.remarks += [said] if said else []
            surface = kept is not None and bool(kept.any())
            self._kept = kept if kept is not None else self._kept
        self.kind = "surface" if surface else "volume" if volume else "strip"
        self._regions = {k: v for k, v in memberships(scores).items() if k != NO_ROI} if "roi" in scores.coords else {}
        if not 1 <= len(self._regions) <= MOST_OUTLINES or any(v.all() for v in self._regions.values()):
            self._regions = {}
        kinds = list(dict.fromkeys(g.kind for g in groups if g.kind != "all"))
        strips = [g for g in groups if kinds and g.kind == kinds[0]] or [g for g in groups if g.kind == "all"]
        if kinds:
            held = np.concatenate([g.voxels for g in strips])
            outside = np.setdiff1d(np.arange(scores.sizes["voxel"]), held)
            strips += [Group(kinds[0], "other", outside)] if len(outside) else []
        # Hundreds of groups would leave no room for units.
        most = sorted(strips, key=lambda g: -len(g.voxels))[:MOST_STRIPS]
        self._groups = most if len(strips) > MOST_STRIPS else strips

    @property
    def how(self) -> str:
        outlined = " Lines are the borders of regions." if self._regions else ""
        return {
            "surface": "fsaverage5, flat or inflated; grey cortex carries no voxel of the analysis." + outlined,
            "volume": "Slices through the volume, left on the left." + outlined,
            "strip": "Units have no place on the cortex: one bar for each, the best predicted first in each group.",
        }[self.kind]

    def draw(
        self,
        values: np.ndarray,
        *,
        label: str,
        heights: np.ndarray | None = None,
        height_label: str = "best r",
        colours: Mapping[str, Any] | None = None,
        limits: tuple[float | None, float | None] | None = None,
        cmap: str | None = None,
        both: bool = False,
    ) -> list[Any]:
        """Figures: names in their ``colours``, numbers in a colour map; none where there is nothing to draw.

        ``heights`` are what the bars of a strip show; without them there is no strip. A surface is flat, and inflated
        too with ``both``, or where a voxel lies on a cut of the flat patch.
        """
        named = values.dtype.kind in "OUS"
        known = values != "" if named else np.isfinite(values)
        if not (known & self._kept).any() or (self.kind == "strip" and heights is None):
            return []
        if self.kind == "strip":
            shown = np.where(known, np.asarray(heights), np.nan)
            return [draw_strip(shown, self._tones(values, colours, limits), self._groups, height_label)]
        options: dict[str, Any] = {"label": label, "colours": colours, "cmap": cmap}
        if limits and not named:
            options |= {"vmin": limits[0], "vmax": limits[1]}
        where = self._scores
        if self.kind == "volume":
            ijk = np.stack([where[axis].values for axis in "ijk"], axis=1)
            options |= {"affine": where.attrs["affine"], "volume_shape": where.attrs["volume_shape"]}
            return [_png(plot_mosaic(values, ijk, rois=self._regions, **options))]
        # All voxels of a region are outlined, drawn or not.
        kept = self._kept
        shown = np.where(known, values, "" if named else np.nan)[kept]
        options |= {"rois": {name: mask[kept] for name, mask in self._regions.items()}}
        place = where["vertex"].values[kept], where["hemi"].values[kept]
        hidden = any((~flat_mesh(h)[2][place[0][place[1] == h]]).any() for h in np.unique(place[1]))
        meshes = ("flat", "inflated") if both or hidden else ("flat",)
        return [_png(plot_surface(shown, *place, mesh=mesh, **options)) for mesh in meshes]

    def _tones(self, values: np.ndarray, colours: Mapping[str, Any] | None, limits: Any) -> np.ndarray:
        import matplotlib
        from matplotlib.colors import Normalize, to_rgba

        if values.dtype.kind in "OUS":
            return np.array([to_rgba((colours or {}).get(str(x), TIE)) for x in values])
        known = values[np.isfinite(values)]
        low, high = limits or (float(known.min()), float(known.max()))
        return matplotlib.colormaps["viridis"](Normalize(low, high, clip=True)(values))


def _png(figure: Any) -> str:
    return data_uri(figure_png(figure, tight=True), "image/png")
