"""Where on the cortex, or in which unit, a class or a number stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr

from neuroenc.report._comparison_inputs import TIE, Group
from neuroenc.report._comparison_matrix import draw_strip
from neuroenc.report._exports import places
from neuroenc.report._html import data_uri
from neuroenc.report._maps import _surface_voxels
from neuroenc.report._mosaic import plot_mosaic
from neuroenc.report._style import figure_png, figure_svg
from neuroenc.report._surface import plot_surface

__all__ = ["Canvas"]


class Canvas:
    """Draws values of voxels on fsaverage5, on slices, or, where they have no place, as one bar for each unit."""

    def __init__(self, scores: xr.Dataset, groups: Sequence[Group]) -> None:
        volume, surface, remark = places(scores)
        self.remarks = [remark.replace("no maps were made", "units are drawn side by side")] if remark else []
        self._scores, self._kept = scores, np.ones(scores.sizes["voxel"], bool)
        if surface:
            if find_spec("nilearn") is None:
                self.remarks.append("No surface maps: nilearn is not installed (pip install 'neuroenc[brain]').")
                surface = False
            else:
                self._kept, said = _surface_voxels(scores)
                self.remarks += [said] if said else []
                surface = bool(self._kept.any())
        self.kind = "surface" if surface else "volume" if volume else "strip"
        kinds = list(dict.fromkeys(g.kind for g in groups if g.kind != "all"))
        self._groups = [g for g in groups if kinds and g.kind == kinds[0]] or [g for g in groups if g.kind == "all"]
        if kinds:
            outside = ~np.any([g.mask for g in self._groups], axis=0)
            self._groups += [Group(kinds[0], "other", outside)] if outside.any() else []
        # Hundreds of groups would leave no room for units.
        self._groups = (
            sorted(self._groups, key=lambda g: -int(g.mask.sum()))[:24] if len(self._groups) > 24 else (self._groups)
        )

    @property
    def how(self) -> str:
        """What the reader looks at, for captions."""
        return {
            "surface": "Inflated fsaverage5; grey cortex carries no voxel of the analysis.",
            "volume": "Slices through the volume, left on the left.",
            "strip": "Units have no place on the cortex: one bar for each, the best predicted first in each group.",
        }[self.kind]

    def draw(
        self,
        values: np.ndarray,
        *,
        label: str,
        heights: np.ndarray,
        height_label: str = "best r",
        colours: Mapping[str, Any] | None = None,
        limits: tuple[float, float] | None = None,
    ) -> str | None:
        """The figure as a data URI: names in their ``colours``, numbers in a colour map; None without any.

        ``heights`` are what the bars of a strip show.
        """
        import matplotlib
        from matplotlib.colors import Normalize, to_rgba

        named = values.dtype.kind in "OUS"
        known = values != "" if named else np.isfinite(values)
        if not (known & self._kept).any():
            return None
        if self.kind == "strip":
            if named:
                shown = np.array([to_rgba((colours or {}).get(str(x), TIE)) for x in values])
            else:
                low, high = limits or (float(values[known].min()), float(values[known].max()))
                shown = matplotlib.colormaps["viridis"](Normalize(low, high, clip=True)(values))
            figure = draw_strip(np.where(known, heights, np.nan), shown, self._groups, height_label)
            return data_uri(figure_svg(figure), "image/svg+xml")
        options: dict[str, Any] = {"label": label, "colours": colours}
        if limits and not named:
            options |= {"vmin": limits[0], "vmax": limits[1]}
        where, kept = self._scores, self._kept & known
        if self.kind == "surface":
            figure = plot_surface(values[kept], where["vertex"].values[kept], where["hemi"].values[kept], **options)
        else:
            ijk = np.stack([where[axis].values for axis in "ijk"], axis=1)
            options |= {"affine": where.attrs["affine"], "volume_shape": where.attrs["volume_shape"]}
            figure = plot_mosaic(values, ijk, **options)
        return data_uri(figure_png(figure), "image/png")
