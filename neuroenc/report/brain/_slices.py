"""Values of voxels on slices through their volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc.report._style import MUTED, WIDTH, drawing, write_inside
from neuroenc.report.brain._mesh import draw_lines, place_labels, slice_edges
from neuroenc.report.brain._paint import Painter, label_for, region_masks, volume_places

_MOST_SLICES = 15


@dataclass(frozen=True, eq=False)
class Slices:
    """Voxels in the closest RAS orientation, and the slices that show them.

    ``place`` (voxel, 3) are indices into the turned volume of ``shape`` and ``affine``; slices ``cuts`` lie along
    ``axis`` (axial, unless the volume is a single slice of another kind), their page spans ``across`` and ``upward``,
    and ``step`` are the millimetres of a voxel.
    """

    place: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    axis: int
    cuts: np.ndarray

    @property
    def across(self) -> int:
        return 1 if self.axis == 0 else 0

    @property
    def upward(self) -> int:
        return 1 if self.axis == 2 else 2

    @property
    def step(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def title(self, cut: int) -> str:
        """Where a slice lies, at the middle of the volume."""
        from nibabel.affines import apply_affine

        middle = [cut if a == self.axis else self.shape[a] // 2 for a in range(3)]
        return f"{'xyz'[self.axis]} = {apply_affine(self.affine, middle)[self.axis]:z.0f} mm"


def slices_of(
    ijk: np.ndarray, affine: np.ndarray, shape: Sequence[int], shown: np.ndarray | None = None, limit: int | None = None
) -> Slices:
    """Slices that hold voxels (those ``shown``, bool, if there are any), at most ``limit``, evenly spaced."""
    from nibabel.affines import apply_affine
    from nibabel.orientations import inv_ornt_aff, io_orientation

    turn = io_orientation(affine)
    back = inv_ornt_aff(turn, shape)
    place = np.round(apply_affine(np.linalg.inv(back), ijk)).astype(int).reshape(-1, 3)
    size = tuple(int(shape[k]) for k in np.argsort(turn[:, 0]))
    axis = size.index(1) if size[2] > 1 and 1 in size else 2
    kept = place[shown] if shown is not None and shown.any() else place
    cuts = np.unique(kept[:, axis])
    if limit is not None and len(cuts) > limit:
        cuts = cuts[np.linspace(0, len(cuts) - 1, limit).round().astype(int)]
    return Slices(place, size, affine @ back, axis, cuts)


def _underlay(image: Any, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Anatomy on the grid of the voxels, as grey between its 2nd and 99.5th percentile, 0.05 to 0.95."""
    from nibabel.processing import resample_from_to

    from neuroenc.data import image_values, open_image

    if not isinstance(image, np.ndarray):
        found = open_image(image, "background")
        if found.shape[:3] != shape or not np.allclose(found.affine, affine, atol=1e-4):
            found = resample_from_to(found, (shape, affine), order=1)
        image = image_values(found, "background")
    anatomy = np.asarray(image, float)
    if anatomy.shape != shape:
        raise DataError(f"background has shape {anatomy.shape}; legal: {shape}, or an image with an affine.")
    filled = anatomy[np.isfinite(anatomy) & (anatomy != 0)]
    low, high = np.percentile(filled, [2, 99.5]) if filled.size else (0.0, 1.0)
    low = min(0.0, low) if low == high else low  # a mask has one value
    return 0.05 + 0.9 * np.clip((np.nan_to_num(anatomy) - low) / max(float(high - low), 1e-12), 0, 1)


def plot_mosaic(
    values: Any,
    ijk: Any = None,
    *,
    affine: Any = None,
    volume_shape: Sequence[int] | None = None,
    alpha: Any = None,
    rois: Any = None,
    background: Any = None,
    label: str = "",
    alpha_label: str = "",
    cmap: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    alpha_range: tuple[float | None, float | None] | None = None,
    colours: Mapping[str, Any] | None = None,
) -> Any:
    """Slices through a volume, in the closest RAS orientation (left of the page is left), with a colour bar.

    At most 15 slices are shown, evenly spaced among those that hold voxels.

    Parameters
    ----------
    values : DataArray (voxel,) or array (voxel,), float or str
        Numbers (NaN is not drawn) or category names ("" is not drawn). A DataArray brings ``i, j, k``, ``roi``, its
        name, its unit, and ``affine`` and ``volume_shape`` where its attributes hold them.
    ijk : array (voxel, 3), int
        Indices into the volume.
    affine : array (4, 4) or (16,), float
        Indices to millimetres.
    volume_shape : three ints
    alpha, rois, label, alpha_label, cmap, vmin, vmax, alpha_range, colours
        As in `plot_surface`; outlines follow the edges of voxels.
    background : array of ``volume_shape``, nibabel image or path, optional
        Anatomy in grey, under the voxels; an image with another grid is resampled (linearly). Slices are then shown
        whole.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If an index lies outside the volume, or voxels have no place in one.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_mosaic([0.1, 0.4], [[1, 2, 0], [3, 3, 1]], affine=np.eye(4), volume_shape=(5, 6, 2))
    >>> len(figure.axes)  # two slices and the colour bar
    3
    """
    from nibabel.orientations import apply_orientation, io_orientation

    data = np.asarray(values)
    where, matrix, shape = volume_places(values, ijk, affine, volume_shape)
    if len(where) != len(data):
        raise DataError(f"{len(data)} values but {len(where)} voxel indices; legal: one i, j, k per value.")
    if len(where) and ((where < 0).any() or (where >= np.array(shape)).any()):
        raise DataError(
            f"voxel indices span {where.min(axis=0).tolist()}..{where.max(axis=0).tolist()}, outside a volume of "
            f"shape {shape}. Next step: pass the shape of the image that i, j, k index."
        )
    painter = Painter(values, cmap, (vmin, vmax), colours, (alpha, alpha_range, alpha_label))
    regions = region_masks(rois, values, len(data))
    # Slices on which no voxel has a value show nothing.
    found = slices_of(where, matrix, shape, np.isfinite(painter.numbers), _MOST_SLICES)
    axis, cuts, step, plane = found.axis, found.cuts, found.step, (found.across, found.upward)

    def placed(own: Any, fill: Any = np.nan) -> np.ndarray:
        """Values of voxels in the turned volume."""
        full = np.full(found.shape, fill)
        full[tuple(found.place.T)] = own
        return full

    volume, mask = placed(painter.numbers), placed(True, False)
    opacity = None if painter.alpha is None else placed(painter.alpha)
    inside = {name: placed(own, False) for name, own in regions.items()}
    below = None if background is None else _underlay(background, shape, matrix)
    under = None if below is None else apply_orientation(below, io_orientation(matrix))
    window = []
    for a in plane:
        filled = np.unique(found.place[:, a])
        whole = under is not None or not filled.size
        window.append(slice(0, found.shape[a]) if whole else slice(max(filled[0] - 2, 0), filled[-1] + 3))
    # The slice on which a region is largest carries its name.
    named = {name: int(cuts[np.argmax([own.take(c, axis=axis).sum() for c in cuts])]) for name, own in inside.items()}

    columns = min(5, max(len(cuts), 1))
    rows = max(-(-len(cuts) // columns), 1)
    extent = [min(w.stop, found.shape[a]) - w.start for a, w in zip(plane, window)]
    ratio = extent[1] * step[plane[1]] / max(extent[0] * step[plane[0]], 1e-9)
    width = min(WIDTH / columns, 4.4 / max(ratio, 0.3))
    cell = width * ratio + 0.22
    height = cell * rows + painter.room
    edge, low = (1 - columns * width / WIDTH) / 2, max(painter.room - 0.12, 0.02) / height
    margins = {"left": edge, "right": 1 - edge, "top": 1 - 0.2 / height, "bottom": low}
    with drawing(WIDTH, height) as figure:
        grid = figure.add_gridspec(rows, columns, **margins, wspace=0.04, hspace=0.22 / cell)
        for panel, cut in enumerate(cuts):
            axes = figure.add_subplot(grid[panel // columns, panel % columns])
            slab = tuple(cut if a == axis else window[plane.index(a)] for a in range(3))
            rgba = painter.colours(volume[slab], None if opacity is None else opacity[slab])
            shown = np.swapaxes(_laid(rgba, mask[slab], None if under is None else under[slab]), 0, 1)
            axes.set_facecolor("#f6f7f8")
            axes.imshow(shown, origin="lower", interpolation="nearest", aspect=step[plane[1]] / step[plane[0]])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#d8dce0")
            axes.set_title(found.title(cut), fontsize=9, color=MUTED, pad=3)
            if panel == 0 and axis != 0:
                for text, x, at in (("L", 0.02, "left top"), ("R", 0.98, "right top")):
                    write_inside(axes, x, 0.98, text, at, color=MUTED if under is None else "white")
            anchors = []
            for name, own in inside.items():
                if not own[slab].any():
                    continue
                draw_lines(axes, list(slice_edges(own[slab])), 0.8)
                if named[name] == cut:
                    spots = np.argwhere(own[slab])
                    anchors.append((name, spots[np.argmin(np.abs(spots - np.median(spots, axis=0)).sum(axis=1))]))
            place_labels(axes, anchors, width, fontsize=6.5)
        painter.key(figure, label_for(values, label), 0.33)
    return figure


def _laid(rgba: np.ndarray, mask: np.ndarray, under: np.ndarray | None) -> np.ndarray:
    """Colours over anatomy, or over light grey where there is a voxel; outside stays clear without anatomy."""
    bare = np.zeros_like(rgba)
    if under is None:
        bare[mask] = (0.9, 0.9, 0.9, 1)
    else:
        bare[..., :3], bare[..., 3] = under[..., None], 1
    opacity = rgba[..., 3:]
    laid = rgba[..., :3] * opacity + bare[..., :3] * (1 - opacity)
    return np.concatenate([laid, np.maximum(opacity, bare[..., 3:])], axis=-1)
