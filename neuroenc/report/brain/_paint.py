"""What a map shows, where and in which colours: values, opacities, regions, and their legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.data import in_roi, roi_names
from neuroenc.report._style import INK, MUTED, SCORES, bare, category_colours, write_inside

CORTEX = 0.82  # grey under a transparent colour, in legends

Limits = tuple[float | None, float | None]
# Opacities, their range and their label.
Opacity = tuple[Any, Limits | None, str]


def _range(values: np.ndarray, given: Limits | None) -> tuple[float, float]:
    """From 0 (or the least, if all are negative) to the greatest, unless given."""
    finite = values[np.isfinite(values)]
    low, high = given or (None, None)
    top = float(high) if high is not None else float(finite.max()) if finite.size else 1.0
    least = float(low) if low is not None else 0.0 if top > 0 else float(finite.min()) if finite.size else 0.0
    return (least, top) if least < top else (least - 0.5, least + 0.5)


class Painter:
    """Colours of numbers or of names, with an opacity if there is one; and what explains them.

    ``opacity`` is values, their range and their label; voxels without it are not drawn.
    """

    def __init__(
        self,
        values: Any,
        cmap: Any = None,
        limits: Limits = (None, None),
        colours: Mapping[str, Any] | None = None,
        opacity: Opacity = (None, None, ""),
    ) -> None:
        import matplotlib
        from matplotlib.colors import Normalize, to_rgba

        data, (alpha, alpha_range, alpha_label) = np.asarray(values), opacity
        self.alpha = _opacity(alpha, values, len(data))
        self._alpha_label = label_for(alpha, alpha_label) or "alpha"
        self.categories: list[str] = []
        if data.dtype.kind in "OUS":
            names = [str(x) for x in data]
            self.categories = list(dict.fromkeys(x for x in names if x))
            self.numbers = np.array([self.categories.index(x) if x else np.nan for x in names], float)
            self._palette = np.array(category_colours(len(self.categories)))
            # Given colours are explained where they were chosen: no legend of their own then.
            self._explained = colours is not None
            if colours is not None:
                self._palette = np.array([to_rgba(colours[x]) for x in self.categories]).reshape(-1, 4)
        else:
            self.numbers = data.astype(float)
            self._low, self._high = _range(self.numbers, limits)
            self._beyond = _beyond(self.numbers, self._low, self._high)
            self._cmap = matplotlib.colormaps["viridis" if cmap is None else cmap]
            self._norm = Normalize(self._low, self._high, clip=True)
        if self.alpha is not None:
            self.numbers = np.where(np.isfinite(self.alpha), self.numbers, np.nan)
            self._least, self._most = _range(self.alpha, alpha_range)
            self._outside = _beyond(self.alpha, self._least, self._most)

    @property
    def cycle(self) -> tuple[float, float] | None:
        """Limits of values that go round, such as angles: those of a colour map whose ends have one colour."""
        if self.categories or not np.allclose(self._cmap(0.0), self._cmap(1.0), atol=0.03):
            return None
        return self._low, self._high

    @property
    def room(self) -> float:
        """Inches that the colour bar or legend needs."""
        if self.alpha is None:
            return 0.08 if self.categories and self._explained else 0.62
        if not self.categories:
            return 1.62
        return 0.62 if self._explained else 1.0

    def colours(self, numbers: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
        """Colours (..., 4) of numbers and, where there are some, opacities."""
        drawn = np.isfinite(numbers) if alpha is None else np.isfinite(numbers) & np.isfinite(alpha)
        rgba = np.zeros((*numbers.shape, 4))
        if self.categories:
            rgba[drawn] = self._palette[numbers[drawn].astype(int)]
        else:
            rgba[drawn] = self._cmap(self._norm(numbers[drawn]))
        if alpha is not None:
            rgba[drawn, 3] = np.clip((alpha[drawn] - self._least) / (self._most - self._least), 0, 1)
        return rgba

    def corner(self, numbers: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Category of a triangle: its first labelled corner (names have no mean)."""
        corners = numbers[faces]
        return corners[np.arange(len(faces)), np.argmax(np.isfinite(corners), axis=1)]

    def key(self, figure: Any, label: str, bottom: float) -> None:
        """Colour bar (``bottom`` inches above the edge), legend, plane or fading bar below the panels."""
        wide, tall = figure.get_size_inches()
        if self.categories and not self._explained:
            self._legend(figure)
        if self.categories and self.alpha is not None:
            axes = figure.add_axes((0.36, (self.room - 0.3) / tall, 0.28, 0.11 / tall))
            fade = np.linspace(0, 1, 128)[None, :, None]
            shown = fade * 0.2 + (1 - fade) * CORTEX * np.ones(3)
            axes.imshow(shown, aspect="auto", extent=(self._least, self._most, 0, 1))
            axes.set_yticks([])
            self._ticks(axes.xaxis, self._least, self._most, self._outside)
            _beside(axes, -0.02, f"opacity: {self._alpha_label}")
            _bare(axes)
        elif not self.categories and self.alpha is not None:
            self._plane(figure.add_axes(((wide - 1.5) / 2 / wide, 0.5 / tall, 1.5 / wide, 0.92 / tall)), label)
        elif not self.categories:
            from matplotlib.cm import ScalarMappable

            axes = figure.add_axes((0.36, bottom / tall, 0.28, 0.11 / tall))
            extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[self._beyond]
            options = {"orientation": "horizontal", "extend": extend, "extendfrac": 0.03}
            figure.colorbar(ScalarMappable(self._norm, self._cmap), cax=axes, **options).outline.set_visible(False)
            axes.tick_params(length=2, labelsize=9, pad=2)
            _beside(axes, -0.05 if self._beyond[0] else -0.02, label)  # clear of the arrow

    def _legend(self, figure: Any) -> None:
        from matplotlib.patches import Patch

        patches = [Patch(color=tuple(self._palette[k]), label=name) for k, name in enumerate(self.categories)]
        look = {"handlelength": 0.9, "handleheight": 0.9, "columnspacing": 1.3, "handletextpad": 0.5, "labelcolor": INK}
        columns = min(len(patches), 14)
        figure.legend(handles=patches, loc="lower center", ncols=columns, frameon=False, fontsize=9, **look)

    def _plane(self, axes: Any, label: str) -> None:
        """Numbers to the right, opacities up."""
        ends = self._low, self._high, self._least, self._most
        x, y = np.meshgrid(np.linspace(*ends[:2], 96), np.linspace(*ends[2:], 96), indexing="ij")
        rgba = self.colours(x, y)
        rgb = rgba[..., :3] * rgba[..., 3:] + CORTEX * (1 - rgba[..., 3:])
        axes.imshow(np.swapaxes(rgb, 0, 1), origin="lower", aspect="auto", interpolation="nearest", extent=ends)
        self._ticks(axes.xaxis, *ends[:2], self._beyond)
        self._ticks(axes.yaxis, *ends[2:], self._outside)
        axes.set_xlabel(label, fontsize=9, color=INK, labelpad=3)
        _beside(axes, -0.3, f"{self._alpha_label}\n(opacity)")
        _bare(axes)

    @staticmethod
    def _ticks(axis: Any, low: float, high: float, outside: tuple[Any, Any]) -> None:
        """Both ends, and the middle; values beyond an end are said."""
        places = [low, (low + high) / 2, high]
        texts = [f"{x:z.2f}".rstrip("0").rstrip(".") if abs(x) < 100 else f"{x:.3g}" for x in places]
        texts[0] = ("≤ " if outside[0] else "") + texts[0]
        texts[2] = ("≥ " if outside[1] else "") + texts[2]
        axis.set_ticks(places, [t.replace("-", "−") for t in texts])
        axis.set_tick_params(labelcolor=MUTED)


def _beyond(values: np.ndarray, low: float, high: float) -> tuple[int, int]:
    """Whether some values lie below and above a range."""
    return int((values < low - 1e-9).any()), int((values > high + 1e-9).any())


def _beside(axes: Any, x: float, text: str) -> None:
    write_inside(axes, x, 0.5, text, "right center", 9, color=INK, linespacing=1.3)


def _bare(axes: Any) -> None:
    axes.tick_params(length=2, labelsize=8, pad=2)
    bare(axes)


def label_for(values: Any, given: str = "") -> str:
    """Text of a colour bar: as given, or name and unit of a DataArray.

    >>> label_for(xr.DataArray([1.0], dims="voxel", name="beta", attrs={"units": "% signal change"}))
    'beta (% signal change)'
    """
    if given or not isinstance(values, xr.DataArray) or values.name is None:
        return given
    unit = str(values.attrs.get("units", "") or "")
    heading = str(values.attrs.get("long_name", "") or SCORES.get(str(values.name), {}).get("heading", values.name))
    return f"{heading.replace('_', ' ')} ({unit})" if unit and unit not in ("1", heading) else heading.replace("_", " ")


def _opacity(alpha: Any, values: Any, n: int) -> np.ndarray | None:
    """Opacity of each voxel, in the order of ``values``."""
    if alpha is None:
        return None
    if all(isinstance(x, xr.DataArray) and "voxel" in x.coords for x in (alpha, values)):
        here, there = values["voxel"].values, alpha["voxel"].values
        if not np.array_equal(here, there):
            raise DataError(
                f"alpha has {there.size} voxels, values {here.size}, with other ids or in another order. "
                "Next step: alpha.sel(voxel=values.voxel)."
            )
    data = np.asarray(alpha)
    if data.shape != (n,) or data.dtype.kind not in "fiub":
        raise DataError(f"alpha has shape {data.shape} ({data.dtype}); legal: one number for each of {n} values.")
    return data.astype(float)


def coordinate(values: Any, name: str, given: Any, where: str) -> Any:
    """A coordinate of the voxels, as given or as ``values`` carry it."""
    if given is not None:
        return np.asarray(given)
    if isinstance(values, (xr.DataArray, xr.Dataset)) and name in values.coords:
        return values[name].values
    raise DataError(f"values carry no coordinate {name!r}, so they have no place {where}. Next step: pass {name}=.")


def volume_places(
    values: Any, ijk: Any, affine: Any, volume_shape: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Indices (voxel, 3), affine (4, 4) and shape, as given or as ``values`` carry them."""
    attrs: Mapping[Any, Any] = getattr(values, "attrs", {}) if isinstance(values, xr.DataArray) else {}
    if ijk is None:
        ijk = np.stack([coordinate(values, axis, None, "in a volume") for axis in "ijk"], axis=1)
    affine = attrs.get("affine") if affine is None else affine
    volume_shape = attrs.get("volume_shape") if volume_shape is None else volume_shape
    if affine is None or volume_shape is None:
        raise DataError(
            "the affine or the shape of the volume is not known. Next step: pass affine= and volume_shape=, or "
            "values.assign_attrs(scores.attrs): a variable of a Dataset does not carry the attributes of the Dataset."
        )
    return np.asarray(ijk, int).reshape(-1, 3), np.asarray(affine, float).reshape(4, 4), tuple(map(int, volume_shape))


def region_masks(rois: Any, values: Any, n: int) -> dict[str, np.ndarray]:
    """Voxels of each region, bool (voxel,): all of the coordinate ``roi``, some of it, or masks as given."""
    if rois is None or rois is False:
        return {}
    if isinstance(rois, Mapping):
        masks = {str(name): np.asarray(mask) for name, mask in rois.items()}
        for name, mask in masks.items():
            if mask.shape != (n,) or mask.dtype != bool:
                raise DataError(f"region {name!r} has shape {mask.shape} ({mask.dtype}); legal: bool ({n},).")
        return masks
    if not isinstance(values, (xr.DataArray, xr.Dataset)) or "roi" not in values.coords:
        raise DataError("values carry no coordinate 'roi' to outline. Next step: rois={'FFA': mask over the voxels}.")
    wanted = roi_names(values) if rois is True else [rois] if isinstance(rois, str) else list(rois)
    for name in wanted:
        one_of("roi", name, roi_names(values))
    return {name: in_roi(values, name) for name in wanted}
