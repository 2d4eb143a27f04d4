"""Values of voxels on slices through their volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroenc._util.errors import DataError
from neuroenc._util.optional import require
from neuroenc.report._paint import Painter
from neuroenc.report._style import MUTED, STYLE

__all__ = ["plot_mosaic"]


def _slices(mask: np.ndarray, limit: int) -> tuple[int, np.ndarray]:
    """Axis to cut along (axial, unless the volume is a single slice of another kind) and which slices."""
    axis = 2
    if mask.shape[2] > 1 and 1 in mask.shape:
        axis = mask.shape.index(1)
    other = tuple(a for a in range(3) if a != axis)
    filled = np.flatnonzero(mask.any(axis=other))
    if len(filled) > limit:
        filled = filled[np.linspace(0, len(filled) - 1, limit).round().astype(int)]
    return axis, filled


def plot_mosaic(
    values: Any,
    ijk: Any,
    *,
    affine: Any,
    volume_shape: Sequence[int],
    label: str = "",
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    colours: Mapping[str, Any] | None = None,
    max_slices: int = 15,
) -> Any:
    """Slices through a volume, in the closest RAS orientation (left of the page is left), with a colour bar.

    Parameters
    ----------
    values : array (voxel,), float or str
        Numbers (NaN is not drawn) or category names ("" is not drawn).
    ijk : array (voxel, 3), int
        Indices into the volume.
    affine : array (4, 4) or (16,), float
        Indices to millimetres.
    volume_shape : three ints
    label, cmap, vmin, vmax, colours
        As in `plot_surface`.
    max_slices : int
        At most this many, evenly spaced among those that hold voxels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If an index lies outside the volume.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_mosaic([0.1, 0.4], [[1, 2, 0], [3, 3, 1]], affine=np.eye(4), volume_shape=(5, 6, 2))
    >>> len(figure.axes)  # two slices and the colour bar
    3
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from nibabel.affines import apply_affine
    from nibabel.orientations import apply_orientation, io_orientation

    data, where = np.asarray(values), np.asarray(ijk, int).reshape(-1, 3)
    matrix, shape = np.asarray(affine, float).reshape(4, 4), tuple(int(n) for n in volume_shape)
    if len(where) != len(data):
        raise DataError(f"{len(data)} values but {len(where)} voxel indices; legal: one i, j, k per value.")
    if len(where) and ((where < 0).any() or (where >= np.array(shape)).any()):
        raise DataError(
            f"voxel indices span {where.min(axis=0).tolist()}..{where.max(axis=0).tolist()}, outside a volume of "
            f"shape {shape}. Next step: pass the shape of the image that i, j, k index."
        )
    painter = Painter(data, cmap, vmin, vmax, colours)
    volume, mask, place = np.full(shape, np.nan), np.zeros(shape, bool), np.zeros((*shape, 3))
    volume[tuple(where.T)] = painter.numbers
    mask[tuple(where.T)] = True
    place[...] = apply_affine(matrix, np.moveaxis(np.indices(shape), 0, -1))
    turn = io_orientation(matrix)
    volume, mask = apply_orientation(volume, turn), apply_orientation(mask, turn).astype(bool)
    place = np.stack([apply_orientation(place[..., a], turn) for a in range(3)], axis=-1)
    axis, cuts = _slices(mask, max_slices)
    across, upward = (a for a in range(3) if a != axis)
    window = []
    for a in (across, upward):
        filled = np.flatnonzero(mask.any(axis=tuple(b for b in range(3) if b != a)))
        window.append(slice(max(filled[0] - 2, 0), filled[-1] + 3) if filled.size else slice(None))
    step = np.linalg.norm(matrix[:3, :3], axis=0)[turn[:, 0].argsort()] if np.isfinite(turn).all() else np.ones(3)

    columns = min(5, max(len(cuts), 1))
    rows = max(-(-len(cuts) // columns), 1)
    extent = [
        (w.stop if w.stop is not None else volume.shape[a]) - (w.start or 0) for a, w in zip((across, upward), window)
    ]
    ratio = extent[1] * step[upward] / max(extent[0] * step[across], 1e-9)
    width = min(10.6 / columns, 4.4 / max(ratio, 0.3))
    cell = width * ratio + 0.22
    height = cell * rows + painter.room
    with rc_context(STYLE):
        figure = Figure(figsize=(10.6, height))
        edge = (1 - columns * width / 10.6) / 2
        grid = figure.add_gridspec(
            rows,
            columns,
            left=edge,
            right=1 - edge,
            top=1 - 0.2 / height,
            bottom=max(painter.room - 0.12, 0.02) / height,
            wspace=0.04,
            hspace=0.22 / cell,
        )
        for panel, cut in enumerate(cuts):
            axes = figure.add_subplot(grid[panel // columns, panel % columns])
            slab = tuple(cut if a == axis else window[(across, upward).index(a)] for a in range(3))
            rgba = painter.colours(volume[slab])
            # Voxels of the mask without a value stay visible as light grey, outside stays white.
            rgba[mask[slab] & ~np.isfinite(volume[slab])] = (0.9, 0.9, 0.9, 1)
            axes.set_facecolor("#f6f7f8")
            axes.imshow(
                np.swapaxes(rgba, 0, 1),
                origin="lower",
                interpolation="nearest",
                aspect=step[upward] / step[across],
            )
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color("#d8dce0")
            middle = place[tuple(cut if a == axis else volume.shape[a] // 2 for a in range(3))]
            axes.set_title(f"{'xyz'[axis]} = {middle[axis]:.0f} mm", fontsize=8, color=MUTED, pad=3)
            if panel == 0 and axis != 0:
                for text, x, ha in (("L", 0.02, "left"), ("R", 0.98, "right")):
                    axes.text(x, 0.98, text, transform=axes.transAxes, ha=ha, va="top", fontsize=8, color=MUTED)
        painter.key(figure, label, height=0.11 / height, bottom=0.33 / height)
    return figure
