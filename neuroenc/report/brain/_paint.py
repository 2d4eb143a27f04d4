"""What a map shows, where and in which colours: values, second values, opacities, regions, and their legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import in_roi, roi_names
from neuroenc.report._style import INK, MUTED, SCORES, bare, category_colours, write_inside

# Corners: neither, first alone, second alone, both. Both axes stay apart for the common forms of colour blindness.
COLOUR_SQUARES: Mapping[str, tuple[str, str, str, str]] = {
    "teal-purple": ("#e8e8e8", "#3fbfbf", "#be64ac", "#2f3b8f"),
    "gold-purple": ("#e8e8e8", "#c8a52d", "#9063b8", "#6b3a20"),
    "blue-orange": ("#26292d", "#2583e0", "#ef7d11", "#fbf6ee"),
}
CORTEX = 0.82  # grey under a transparent colour, in legends

Limits = tuple[float | None, float | None]
# Values of a second number or an opacity, their range and their label.
Channel = tuple[Any, Limits | None, str]


def colour_square(cmap: Any, n: int = 64) -> np.ndarray:
    """Table of colours (n, n, 3): first index follows the first number, second the second.

    Parameters
    ----------
    cmap : str, four colours, or array (n, m, 3)
        A name of `COLOUR_SQUARES`; or the colours of (low, low), (high, low), (low, high), (high, high), mixed
        linearly between; or the table itself.

    Examples
    --------
    >>> colour_square(("#000000", "#ff0000", "#0000ff", "#ff00ff"), n=3)[1, 2].tolist()
    [0.5, 0.0, 1.0]
    """
    from matplotlib.colors import to_rgb

    if isinstance(cmap, np.ndarray):
        if cmap.ndim != 3 or cmap.shape[2] not in (3, 4) or min(cmap.shape[:2]) < 2:
            raise ConfigError(f"a table of colours has shape {cmap.shape}; legal: (n, m, 3), n and m at least 2.")
        return cmap[..., :3].astype(float)
    if isinstance(cmap, str):
        cmap = COLOUR_SQUARES[one_of("two-dimensional colour map", cmap, COLOUR_SQUARES)]
    if len(cmap) != 4:
        raise ConfigError(f"{len(cmap)} colours; legal: four, of (low, low), (high, low), (low, high), (high, high).")
    corners = np.array([to_rgb(c) for c in cmap])
    x, y = (a[..., None] for a in np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij"))
    return (1 - x) * (1 - y) * corners[0] + x * (1 - y) * corners[1] + (1 - x) * y * corners[2] + x * y * corners[3]


def _range(values: np.ndarray, given: Limits | None) -> tuple[float, float]:
    """From 0 (or the least, if all are negative) to the greatest, unless given."""
    finite = values[np.isfinite(values)]
    low, high = given or (None, None)
    top = float(high) if high is not None else float(finite.max()) if finite.size else 1.0
    least = float(low) if low is not None else 0.0 if top > 0 else float(finite.min()) if finite.size else 0.0
    return (least, top) if least < top else (least - 0.5, least + 0.5)


class Painter:
    """Colours of one number, of two, or of one with an opacity, or of names; and what explains them.

    ``second`` and ``alpha`` are values, their range and their label. ``other`` is the one of them that is given, or
    None; voxels without it are not drawn.
    """

    def __init__(
        self,
        values: Any,
        cmap: Any = None,
        limits: Limits = (None, None),
        colours: Mapping[str, Any] | None = None,
        *,
        second: Channel = (None, None, ""),
        alpha: Channel = (None, None, ""),
    ) -> None:
        import matplotlib
        from matplotlib.colors import Normalize, to_rgba

        two, data = second[0] is not None, np.asarray(values)
        if two and alpha[0] is not None:
            raise ConfigError("second and alpha are both given; a figure shows two numbers. Next step: drop one.")
        other, other_range, other_label = second if two else alpha
        self.other = channel(other, values, len(data), "second" if two else "alpha")
        self._other_label = label_for(other, other_label)
        self.categories: list[str] = []
        if data.dtype.kind in "OUS":
            if two:
                raise DataError("values are names, which have no place in a two-dimensional colour map; legal: alpha.")
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
            self._cmap = matplotlib.colormaps["viridis" if cmap is None or two else cmap]
            self._norm = Normalize(self._low, self._high, clip=True)
        self._square = colour_square("teal-purple" if cmap is None else cmap) if two else None
        if self.other is not None:
            self.numbers = np.where(np.isfinite(self.other), self.numbers, np.nan)
            self._least, self._most = _range(self.other, other_range)
            self._outside = _beyond(self.other, self._least, self._most)

    @property
    def room(self) -> float:
        """Inches that the colour bar or legend needs."""
        if self.other is None:
            return 0.08 if self.categories and self._explained else 0.62
        if not self.categories:
            return 1.62
        return 0.62 if self._explained else 1.0

    def share(self, other: np.ndarray) -> np.ndarray:
        """Second number or opacity as a share of its range, 0 to 1."""
        return np.clip((other - self._least) / (self._most - self._least), 0, 1)

    def colours(self, numbers: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """Colours (..., 4) of numbers and, where there are two, of the second."""
        drawn = np.isfinite(numbers) if other is None else np.isfinite(numbers) & np.isfinite(other)
        rgba = np.zeros((*numbers.shape, 4))
        if self.categories:
            rgba[drawn] = self._palette[numbers[drawn].astype(int)]
        elif self._square is not None and other is not None:
            first = np.clip((numbers[drawn] - self._low) / (self._high - self._low), 0, 1)
            at = [x * (n - 1) for x, n in zip((first, self.share(other[drawn])), self._square.shape)]
            rgba[drawn, :3] = self._square[tuple(x.round().astype(int) for x in at)]
            rgba[drawn, 3] = 1
            return rgba
        else:
            rgba[drawn] = self._cmap(self._norm(numbers[drawn]))
        if self.other is not None and other is not None:
            rgba[drawn, 3] = self.share(other[drawn])
        return rgba

    def corner(self, numbers: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Category of a triangle: its first labelled corner (names have no mean)."""
        corners = numbers[faces]
        return corners[np.arange(len(faces)), np.argmax(np.isfinite(corners), axis=1)]

    def key(self, figure: Any, label: str, bottom: float) -> None:
        """Colour bar (``bottom`` inches above the edge), legend, square or fading bar below the panels."""
        wide, tall = figure.get_size_inches()
        if self.categories and not self._explained:
            self._legend(figure)
        if self.categories and self.other is not None:
            axes = figure.add_axes((0.36, (self.room - 0.3) / tall, 0.28, 0.11 / tall))
            fade = np.linspace(0, 1, 128)[None, :, None]
            shown = fade * 0.2 + (1 - fade) * CORTEX * np.ones(3)
            axes.imshow(shown, aspect="auto", extent=(self._least, self._most, 0, 1))
            axes.set_yticks([])
            self._ticks(axes.xaxis, self._least, self._most, self._outside)
            _beside(axes, -0.02, f"opacity: {self._other_label or 'alpha'}")
            _bare(axes)
        elif not self.categories and self.other is not None:
            width = 0.92 if self._square is not None else 1.5
            self._plane(figure.add_axes(((wide - width) / 2 / wide, 0.5 / tall, width / wide, 0.92 / tall)), label)
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
        """Both numbers, or number and opacity, as a square."""
        ends = self._low, self._high, self._least, self._most
        x, y = np.meshgrid(np.linspace(*ends[:2], 96), np.linspace(*ends[2:], 96), indexing="ij")
        rgba = self.colours(x, y)
        rgb = rgba[..., :3] * rgba[..., 3:] + CORTEX * (1 - rgba[..., 3:])
        axes.imshow(np.swapaxes(rgb, 0, 1), origin="lower", aspect="auto", interpolation="nearest", extent=ends)
        self._ticks(axes.xaxis, *ends[:2], self._beyond)
        self._ticks(axes.yaxis, *ends[2:], self._outside)
        axes.set_xlabel(label, fontsize=9, color=INK, labelpad=3)
        if self._square is not None:
            _beside(axes, -0.5, self._other_label)
        else:
            _beside(axes, -0.3, f"{self._other_label or 'alpha'}\n(opacity)")
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


def channel(other: Any, values: Any, n: int, what: str) -> np.ndarray | None:
    """A second number for each voxel, in the order of ``values``."""
    if other is None:
        return None
    if all(isinstance(x, xr.DataArray) and "voxel" in x.coords for x in (other, values)):
        here, there = values["voxel"].values, other["voxel"].values
        if not np.array_equal(here, there):
            raise DataError(
                f"{what} has {there.size} voxels, values {here.size}, with other ids or in another order. "
                f"Next step: {what}.sel(voxel=values.voxel)."
            )
    data = np.asarray(other)
    if data.shape != (n,) or data.dtype.kind not in "fiub":
        raise DataError(f"{what} has shape {data.shape} ({data.dtype}); legal: one number for each of {n} values.")
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
