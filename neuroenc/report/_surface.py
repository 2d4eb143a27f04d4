"""Values of vertices on fsaverage5, inflated or flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc.report._brain_draw import draw_flat, draw_inflated, flat_windows
from neuroenc.report._brain_mesh import N_VERTICES, PANEL, VIEWS, _draw_hemisphere, _face_values, _mesh, flat_mesh
from neuroenc.report._brain_paint import BrainPainter
from neuroenc.report._brain_places import channel, label_for, region_masks, surface_places
from neuroenc.report._style import MUTED, STYLE

__all__ = ["N_VERTICES", "PANEL", "VIEWS", "_draw_hemisphere", "_face_values", "_mesh", "plot_surface"]


def _vertex_table(vertex: Any, hemi: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.asarray(vertex)
    side = np.array([str(h)[:1].upper() for h in np.asarray(hemi).ravel()])
    if len(index) != n or len(side) != n:
        raise DataError(f"{n} values but {len(index)} vertices and {len(side)} hemispheres; legal: one of each.")
    strange = sorted({str(h) for h in side} - {"L", "R"})
    if strange:
        raise DataError(f"hemi holds {strange}; legal: 'L', 'R'.")
    if n and (index.min() < 0 or index.max() >= N_VERTICES):
        raise DataError(
            f"vertices {index.min()}..{index.max()} do not fit fsaverage5 (0..{N_VERTICES - 1}). "
            "Next step: resample to fsaverage5, or keep the vertices below 10242 if the space is fsaverage."
        )
    return index.astype(int), side


def plot_surface(
    values: Any,
    vertex: Any = None,
    hemi: Any = None,
    *,
    second: Any = None,
    alpha: Any = None,
    rois: Any = None,
    mesh: str = "inflated",
    label: str = "",
    second_label: str = "",
    alpha_label: str = "",
    cmap: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    second_range: tuple[float | None, float | None] | None = None,
    alpha_range: tuple[float | None, float | None] | None = None,
    colours: Mapping[str, Any] | None = None,
    views: Sequence[str] = ("lateral", "medial", "ventral", "posterior"),
    crop: bool = True,
) -> Any:
    """Values of vertices on fsaverage5, inflated or flat, with a colour bar, a legend, or a square for two numbers.

    Every triangle that touches a measured vertex takes the mean of its measured corners; the rest shows
    the grey cortex, sulci darker. Panels share one scale in millimetres.

    Parameters
    ----------
    values : DataArray (voxel,) or array (voxel,), float or str
        Numbers are drawn with a colour bar; NaN is not drawn. Strings are drawn as categories with a
        legend; "" is not drawn. A DataArray brings ``vertex``, ``hemi``, ``roi``, its name and its unit.
    vertex : array (voxel,), int
        Vertex numbers on fsaverage5, 0..10241; by default the coordinate.
    hemi : array (voxel,), str
        "L" or "R"; by default the coordinate.
    second : DataArray or array (voxel,), float, optional
        A second number: the colour then comes from a two-dimensional map, explained by a square.
    alpha : DataArray or array (voxel,), float, optional
        Opacity, for example accuracy: 0 at the lower end of ``alpha_range``, 1 at the upper one.
    rois : True, str, sequence of str, or mapping of str to bool array (voxel,), optional
        Regions to outline and name: all of the coordinate ``roi``, some of them, or masks.
    mesh : {"inflated", "flat"}
    label, second_label, alpha_label : str
        Texts at the colour bar; by default names and units of DataArrays.
    cmap : str or Colormap; with ``second`` a name, four colours or a table
        By default viridis; with ``second`` "teal-purple" (or "gold-purple", "blue-orange", the four colours of
        (low, low), (high, low), (low, high), (high, high), or an array (n, m, 3)).
    vmin, vmax : float, optional
        By default from 0 (or the minimum, if all are negative) to the maximum.
    second_range, alpha_range : (low, high), optional
        Likewise; either end may be None.
    colours : mapping of str to colour, optional
        Colour of each category; the legend is then left to the caller.
    views : sequence of str
        Of the inflated mesh: any of ``lateral, medial, ventral, dorsal, posterior, anterior``.
    crop : bool
        Show the part of the flat mesh that holds voxels, not all of it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If vertices do not fit fsaverage5, lengths or voxel ids differ, or voxels have no vertices.
    ConfigError
        If a view, mesh, region or colour map is unknown, or both ``second`` and ``alpha`` are given.
    ModuleNotFoundError
        If nilearn or matplotlib is not installed.

    Examples
    --------
    >>> figure = plot_surface([0.1, 0.5], vertex=[12, 4000], hemi=["L", "R"], label="r", views=["lateral"])
    >>> len(figure.axes)  # one panel per hemisphere and the colour bar
    3
    >>> figure = plot_surface(
    ...     [0.1, 0.5], [12, 4000], ["L", "R"], second=[0.3, 0.2], label="faces", second_label="places", mesh="flat",
    ...     rois={"FFA": np.array([True, False])},
    ... )
    >>> figure.axes[-1].get_xlabel()  # of the legend
    'faces'
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for view in views:
        if view not in VIEWS:
            raise ConfigError(unknown_name("view", view, VIEWS))
    if mesh not in ("inflated", "flat"):
        raise ConfigError(unknown_name("mesh", mesh, ("inflated", "flat")))
    data = np.asarray(values)
    index, side = _vertex_table(*surface_places(values, vertex, hemi), len(data))
    painter = BrainPainter(
        data,
        cmap,
        vmin,
        vmax,
        colours,
        second=channel(second, values, len(data), "second"),
        alpha=channel(alpha, values, len(data), "alpha"),
        other_range=second_range if second is not None else alpha_range,
        other_label=label_for(second, second_label) if second is not None else label_for(alpha, alpha_label),
    )
    masks = region_masks(rois, values, len(data))

    def painted(h: str) -> np.ndarray:
        """Colour of every triangle of a hemisphere."""
        faces = _mesh(h)[1] if mesh == "inflated" else flat_mesh(h)[1]
        layers: list[np.ndarray] = []
        for numbers in (painter.numbers, painter.other):
            if numbers is not None:
                on_mesh = np.full(N_VERTICES, np.nan)
                on_mesh[index[side == h]] = np.where(np.isfinite(painter.numbers), numbers, np.nan)[side == h]
                named = painter.categories and not layers
                layers.append(painter.corner(on_mesh, faces) if named else _face_values(on_mesh, faces))
        return painter.colours(*layers)

    def regions(h: str) -> dict[str, np.ndarray]:
        found = {}
        for name, mask in masks.items():
            found[name] = np.zeros(N_VERTICES, bool)
            found[name][index[mask & (side == h)]] = True
        return {name: inside for name, inside in found.items() if inside.any()}

    with rc_context(STYLE):
        figure = (
            _flat_figure(Figure, index, side, crop, painter, painted, regions)
            if mesh == "flat"
            else (_inflated_figure(Figure, views, painter, painted, regions))
        )
        height = figure.get_size_inches()[1]
        painter.key(figure, label_for(values, label), height=0.11 / height, bottom=0.34 / height)
    return figure


def _inflated_figure(make: Any, views: Sequence[str], painter: BrainPainter, painted: Any, regions: Any) -> Any:
    pairs = [views[k : k + 2] for k in range(0, len(views), 2)]
    height = len(pairs) * 10.6 / 4 * PANEL[1] / PANEL[0] + painter.room
    figure = make(figsize=(10.6, height))
    grid = figure.add_gridspec(len(pairs), 4, left=0, right=1, top=1, bottom=painter.room / height, wspace=0, hspace=0)
    colours, outlined = {h: painted(h) for h in "LR"}, {h: regions(h) for h in "LR"}
    for row, pair in enumerate(pairs):
        # Mirror-symmetric rows: L first, L second | R second, R first.
        order = [("L", v) for v in pair] + [("R", v) for v in reversed(pair)]
        for column, (h, view) in enumerate(order):
            place = column if len(pair) == 2 else column + 1
            axes = figure.add_subplot(grid[row, place])
            draw_inflated(axes, h, view, colours[h], 10.6 / 4, outlined[h], views)
            axes.text(
                0.5, 0.99, f"{h} {view}", transform=axes.transAxes, ha="center", va="top", color=MUTED, fontsize=8
            )
    return figure


def _flat_figure(
    make: Any, index: np.ndarray, side: np.ndarray, crop: bool, painter: BrainPainter, painted: Any, regions: Any
) -> Any:
    """Both hemispheres side by side at one scale, with a bar of 20 mm."""
    windows = flat_windows(index, side, crop)
    low, high = next(iter(windows.values()))
    wide, tall = high - low
    inches = min(10.6 / len(windows), 5.2 * wide / tall) * 0.97
    height = inches * tall / wide + 0.25 + painter.room
    figure = make(figsize=(10.6, height))
    for n, (h, window) in enumerate(windows.items()):
        left = (10.6 - inches * len(windows) * 1.03) / 2 + n * inches * 1.03 + 0.015 * inches
        axes = figure.add_axes((left / 10.6, painter.room / height, inches / 10.6, inches * tall / wide / height))
        draw_flat(axes, h, painted(h), window, inches, regions(h))
        axes.text(
            0.5,
            1.01,
            {"L": "Left", "R": "Right"}[h] + " hemisphere",
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            color=MUTED,
            fontsize=8,
        )
        if n == 0:
            (x0, y0), (x1, _) = window
            start = x0 + 0.03 * (x1 - x0)
            axes.plot([start, start + 20], [y0 + 0.03 * tall] * 2, color=MUTED, linewidth=1.5, zorder=5)
            axes.text(
                start + 10, y0 + 0.045 * tall, "20 mm", ha="center", va="bottom", fontsize=7, color=MUTED, zorder=5
            )
    return figure
