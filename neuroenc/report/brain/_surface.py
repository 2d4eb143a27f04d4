"""Values of vertices on a mesh of the cortex, inflated or flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.optional import require
from neuroenc.report._style import MUTED, WIDTH, drawing, write, write_inside
from neuroenc.report.brain import _mesh as meshes
from neuroenc.report.brain._paint import Painter, coordinate, label_for, region_masks

# Lower left and upper right corner of each hemisphere's panel, mm.
Windows = dict[str, tuple[np.ndarray, np.ndarray]]


def _vertex_table(vertex: Any, hemi: Any, n: int, surface: meshes.Surface) -> tuple[np.ndarray, np.ndarray]:
    index = np.asarray(vertex)
    side = np.array([str(h)[:1].upper() for h in np.asarray(hemi).ravel()])
    if len(index) != n or len(side) != n:
        raise DataError(f"{n} values but {len(index)} vertices and {len(side)} hemispheres; legal: one of each.")
    strange = sorted({str(h) for h in side} - {"L", "R"})
    if strange:
        raise DataError(f"hemi holds {strange}; legal: 'L', 'R'.")
    for h in np.unique(side).tolist():
        own, most = index[side == h], len(meshes.inflated_mesh(h, surface)[0])
        if own.min() < 0 or own.max() >= most:
            step = f"resample to {surface.name}, or name the mesh (surface=)"
            step += ", or keep the vertices below 10242 if the space is fsaverage" * (surface == meshes.FSAVERAGE5)
            raise DataError(
                f"vertices {own.min()}..{own.max()} of hemisphere {h} do not fit {surface.name} (0..{most - 1}). "
                f"Next step: {step}."
            )
    return index.astype(int), side


def plot_surface(
    values: Any,
    vertex: Any = None,
    hemi: Any = None,
    *,
    alpha: Any = None,
    rois: Any = None,
    outlines: Any = None,
    mesh: str = "inflated",
    surface: str | Mapping[str, Any] | None = None,
    label: str = "",
    alpha_label: str = "",
    cmap: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    alpha_range: tuple[float | None, float | None] | None = None,
    colours: Mapping[str, Any] | None = None,
    views: Sequence[str] = ("lateral", "medial", "ventral", "posterior"),
) -> Any:
    """Values of vertices on a mesh of the cortex, inflated or flat, with a colour bar or a legend.

    Every triangle that touches a measured vertex takes the mean of its measured corners; the rest shows
    the grey cortex, sulci darker. Panels share one scale in millimetres.

    Parameters
    ----------
    values : DataArray (voxel,) or array (voxel,), float or str
        Numbers are drawn with a colour bar; NaN is not drawn. Strings are drawn as categories with a
        legend; "" is not drawn. A DataArray brings ``vertex``, ``hemi``, ``roi``, its name and its unit.
    vertex : array (voxel,), int
        Vertex numbers on the mesh, of fsaverage5 0..10241; by default the coordinate.
    hemi : array (voxel,), str
        "L" or "R"; by default the coordinate.
    alpha : DataArray or array (voxel,), float, optional
        Opacity, for example accuracy: 0 at the lower end of ``alpha_range``, 1 at the upper one.
    rois : True, str, sequence of str, or mapping of str to bool array (voxel,), optional
        Regions to outline and name: all of the coordinate ``roi``, some of them, or masks.
    outlines : str or DataArray (voxel,) of str, optional
        An atlas to outline whole, whether its vertices were measured or not: a name of `neuroenc.data.list_atlases`, or
        region names with ``vertex`` and ``hemi``, as `neuroenc.data.load_atlas` gives them.
    mesh : {"inflated", "flat"}
    surface : str or mapping of "L" and "R" to mapping of str to path, optional
        Mesh of the vertices: a name of `neuroenc.data.mesh_files` ("fsaverage3" to "fsaverage7", "fsLR-32k"), or files
        of a subject's own surfaces, ``{"L": {"inflated": file, "flat": file, "sulc": file}, "R": ...}``, GIFTI or
        FreeSurfer, of which "flat" and "sulc" (sulci positive) may be left out. By default that of
        ``values.attrs["space"]``, or fsaverage5 where values say none.
    label, alpha_label : str
        Texts at the colour bar; by default names and units of DataArrays.
    cmap : str or Colormap
        By default viridis. One whose ends have the same colour ("twilight") takes values as angles: those of a triangle
        are averaged on the circle from ``vmin`` to ``vmax``.
    vmin, vmax : float, optional
        By default from 0 (or the minimum, if all are negative) to the maximum.
    alpha_range : (low, high), optional
        Likewise; either end may be None.
    colours : mapping of str to colour, optional
        Colour of each category; the legend is then left to the caller.
    views : sequence of str
        Of the inflated mesh: any of ``lateral, medial, ventral, dorsal, posterior, anterior``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If vertices do not fit the mesh, lengths or voxel ids differ, voxels have no vertices, or the mesh or atlas is
        not found, or the atlas lies on another mesh.
    ConfigError
        If a view, mesh or region is unknown.
    ModuleNotFoundError
        If nilearn or matplotlib is not installed.

    Examples
    --------
    >>> figure = plot_surface([0.1, 0.5], vertex=[12, 4000], hemi=["L", "R"], label="r", views=["lateral"])
    >>> len(figure.axes)  # one panel per hemisphere and the colour bar
    3
    >>> figure = plot_surface(
    ...     [0.1, 0.5], [12, 4000], ["L", "R"], alpha=[0.3, 0.2], label="r", alpha_label="ceiling", mesh="flat",
    ...     rois={"FFA": np.array([True, False])},
    ... )
    >>> figure.axes[-1].get_xlabel()  # of the legend
    'r'
    """
    require("matplotlib", "brain")
    for view in views:
        one_of("view", view, meshes.VIEWS)
    one_of("mesh", mesh, ("inflated", "flat"))
    n = len(np.asarray(values))
    space = str(values.attrs.get("space", "unknown")) if isinstance(values, xr.DataArray) else "unknown"
    on = meshes.surface_of(surface, space)
    if mesh == "flat" and not meshes.has_flat(on):
        raise DataError(f"{on.name} has no flat surface. Next step: mesh='inflated', or files with 'flat' (surface=).")
    where = "on a surface"
    place = coordinate(values, "vertex", vertex, where), coordinate(values, "hemi", hemi, where)
    index, side = _vertex_table(*place, n, on)
    painter = Painter(values, cmap, (vmin, vmax), colours, (alpha, alpha_range, alpha_label))
    masks, atlas = region_masks(rois, values, n), _atlas_masks(outlines, on)

    def size(h: str) -> int:
        return len(meshes.inflated_mesh(h, on)[0])

    def painted(h: str) -> np.ndarray:
        """Colour of every triangle of a hemisphere."""
        faces = (meshes.inflated_mesh if mesh == "inflated" else meshes.flat_mesh)(h, on)[1]
        layers: list[np.ndarray] = []
        for numbers in (painter.numbers, painter.alpha):
            if numbers is not None:
                on_mesh = np.full(size(h), np.nan)
                on_mesh[index[side == h]] = np.where(np.isfinite(painter.numbers), numbers, np.nan)[side == h]
                named = painter.categories and not layers
                cycle = None if layers else painter.cycle
                layers.append(painter.corner(on_mesh, faces) if named else meshes.face_values(on_mesh, faces, cycle))
        return painter.colours(*layers)

    def regions(h: str) -> dict[str, np.ndarray]:
        found = dict(atlas[h])
        for name, mask in masks.items():
            found[name] = np.zeros(size(h), bool)
            found[name][index[mask & (side == h)]] = True
        return {name: inside for name, inside in found.items() if inside.any()}

    def key(figure: Any) -> None:
        painter.key(figure, label_for(values, label), 0.34)

    if mesh == "flat":
        return _flat_figure(flat_windows(index, side, 12.0, on), painter.room, painted, regions, key, on)
    return _inflated_figure(views, painter.room, painted, regions, key, on)


def _atlas_masks(outlines: Any, surface: meshes.Surface) -> dict[str, dict[str, np.ndarray]]:
    """Vertices of a mesh in each region of an atlas, by hemisphere."""
    if outlines is None:
        return {"L": {}, "R": {}}
    atlas = data.load_atlas(outlines) if isinstance(outlines, str) else outlines
    # A subject's own mesh takes regions that were made on it, which name its space or none.
    own = surface.files and str(atlas.attrs.get("space", "unknown")) in ("unknown", surface.name)
    space, masks = "unknown" if own else surface.name, {}
    for h in "LR":
        mesh = np.arange(len(meshes.inflated_mesh(h, surface)[0]))
        where = {"vertex": ("voxel", mesh), "hemi": ("voxel", np.full(len(mesh), h))}
        on_mesh = xr.DataArray(np.zeros(len(mesh)), dims="voxel", coords=where, attrs={"space": space})
        names = data.atlas_regions(on_mesh, atlas)
        masks[h] = {str(name): names == name for name in np.unique(names) if name}
    return masks


def _inflated_figure(
    views: Sequence[str], room: float, painted: Any, regions: Any, key: Any, surface: meshes.Surface
) -> Any:
    pairs = [views[k : k + 2] for k in range(0, len(views), 2)]
    height = len(pairs) * WIDTH / 4 * meshes.PANEL[1] / meshes.PANEL[0] + room
    colours, outlined = {h: painted(h) for h in "LR"}, {h: regions(h) for h in "LR"}
    with drawing(WIDTH, height) as figure:
        grid = figure.add_gridspec(len(pairs), 4, left=0, right=1, top=1, bottom=room / height, wspace=0, hspace=0)
        for row, pair in enumerate(pairs):
            # Mirror-symmetric rows: L first, L second | R second, R first.
            order = [("L", v) for v in pair] + [("R", v) for v in reversed(pair)]
            for column, (h, view) in enumerate(order):
                axes = figure.add_subplot(grid[row, column if len(pair) == 2 else column + 1])
                _draw_inflated(axes, h, view, colours[h], outlined[h], views, surface)
                write_inside(axes, 0.5, 0.99, f"{h} {view}", "center top", color=MUTED)
        key(figure)
    return figure


def _flat_figure(windows: Windows, room: float, painted: Any, regions: Any, key: Any, surface: meshes.Surface) -> Any:
    """Both hemispheres side by side at one scale, with a bar of 20 mm."""
    low, high = next(iter(windows.values()))
    wide, tall = high - low
    inches = min(WIDTH / len(windows), 5.2 * wide / tall) * 0.97
    height = inches * tall / wide + 0.25 + room
    with drawing(WIDTH, height) as figure:
        for n, (h, window) in enumerate(windows.items()):
            left = (WIDTH - inches * len(windows) * 1.03) / 2 + n * inches * 1.03 + 0.015 * inches
            axes = figure.add_axes((left / WIDTH, room / height, inches / WIDTH, inches * tall / wide / height))
            draw_flat(axes, h, painted(h), window, surface)
            _outline(axes, h, regions(h), inches, surface)
            write_inside(axes, 0.5, 1.01, f"{meshes.SIDES[h].title()} hemisphere", "center bottom", color=MUTED)
            if n == 0:
                (x0, y0), (x1, _) = window
                start = x0 + 0.03 * (x1 - x0)
                axes.plot([start, start + 20], [y0 + 0.03 * tall] * 2, color=MUTED, linewidth=1.5, zorder=5)
                write(axes, start + 10, y0 + 0.045 * tall, "20 mm", "center bottom", 7, color=MUTED, zorder=5)
        key(figure)
    return figure


def flat_windows(
    vertex: np.ndarray, hemi: np.ndarray, margin: float, surface: meshes.Surface = meshes.FSAVERAGE5
) -> Windows:
    """Lower left and upper right corner (mm) of each hemisphere's panel; both panels have one size.

    Panels hold the voxels and ``margin`` mm around them, or the whole patch where it holds none.
    """
    boxes = {}
    for h in [h for h in "LR" if (hemi == h).any()] or ["L", "R"]:
        xy, _, on = meshes.flat_mesh(h, surface)
        here = vertex[hemi == h]
        here = here[on[here]]
        box, around = (xy[here], margin) if len(here) else (xy[on], 4.0)
        boxes[h] = (box.min(axis=0) - around, box.max(axis=0) + around)
    size = np.max([high - low for low, high in boxes.values()], axis=0)
    return {h: ((low + high - size) / 2, (low + high + size) / 2) for h, (low, high) in boxes.items()}


def draw_flat(
    axes: Any, hemi: str, colours: np.ndarray, window: Any, surface: meshes.Surface = meshes.FSAVERAGE5
) -> None:
    """Paint the flat patch; ``colours`` (face, 4), alpha 0 = bare."""
    from matplotlib.collections import PolyCollection

    xy, faces, _ = meshes.flat_mesh(hemi, surface)
    rgba = meshes.over(colours, meshes.flat_shade(meshes.inflated_mesh(hemi, surface)[2], faces))
    (x0, y0), (x1, y1) = window
    corners = xy[faces]
    near = (corners.max(axis=1) > (x0 - 2, y0 - 2)).all(axis=1) & (corners.min(axis=1) < (x1 + 2, y1 + 2)).all(axis=1)
    look = {"facecolors": rgba[near], "edgecolors": rgba[near], "linewidths": 0.3}
    axes.add_collection(PolyCollection(corners[near], **look, rasterized=True))
    axes.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
    axes.axis("off")


def _outline(axes: Any, hemi: str, regions: Mapping[str, np.ndarray], inches: float, surface: meshes.Surface) -> None:
    """Outline regions, bool (vertex,), on the flat patch, and name their parts."""
    (xy, _, on), anchors = meshes.flat_mesh(hemi, surface), []
    for name, inside in regions.items():
        region = np.packbits(inside & on).tobytes()
        meshes.draw_lines(axes, _lines(hemi, "", region, surface))
        anchors += [(name, _middle(xy[part])) for part in _parts_of(hemi, "", region, surface)]
    meshes.place_labels(axes, anchors, inches)


@lru_cache(maxsize=1024)
def _lines(hemi: str, view: str, region: bytes, surface: meshes.Surface) -> list[np.ndarray]:
    """Borders of a region (packed bits), the same in every map, in a view of the inflated mesh or flat ("")."""
    from matplotlib.figure import Figure

    if view:
        plane, facing, visible = seen(hemi, view, surface)
        faces = meshes.inflated_mesh(hemi, surface)[1]
        faces = faces[visible[faces].all(axis=1) & (facing[faces].mean(axis=1) > 0.08)]
    else:
        plane, faces, _ = meshes.flat_mesh(hemi, surface)
    return meshes.borders(Figure().add_subplot(), plane, faces, _unpacked(region, len(plane)))


@lru_cache(maxsize=1024)
def _parts_of(hemi: str, view: str, region: bytes, surface: meshes.Surface) -> list[np.ndarray]:
    """Parts of a region on the inflated mesh, or on the flat one ("")."""
    xyz, faces, _ = (meshes.inflated_mesh if view else meshes.flat_mesh)(hemi, surface)
    return _parts(_unpacked(region, len(xyz)), faces)


def _unpacked(region: bytes, n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(region, np.uint8), count=n).astype(bool)


def _parts(inside: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """Vertices of each part of a region: the largest, and others of at least a quarter of it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[inside[edges].all(axis=1)]
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(inside), len(inside)))
    own = np.flatnonzero(inside)
    _, number = connected_components(graph, directed=False)
    _, compact, sizes = np.unique(number[own], return_inverse=True, return_counts=True)
    return [own[compact == k] for k in np.flatnonzero(4 * sizes >= sizes.max())] if len(own) else []


def _middle(points: np.ndarray) -> np.ndarray:
    """The point closest to the median, so that a label stands on its region even where it is bent or in parts."""
    return points[np.argmin(np.linalg.norm(points - np.median(points, axis=0), axis=1))]


def _draw_inflated(
    axes: Any,
    hemi: str,
    view: str,
    colours: np.ndarray,
    regions: Mapping[str, np.ndarray],
    views: Sequence[str],
    surface: meshes.Surface,
) -> None:
    """Paint one view of the inflated mesh with the outlines that face the camera.

    A part of a region is named in that one of ``views`` (this one by default) where most of it is seen.
    """
    meshes.draw_hemisphere(axes, hemi, view, colours, surface)
    if not regions:
        return
    plane, _, visible = seen(hemi, view, surface)
    anchors = []
    for name, inside in regions.items():
        region = np.packbits(inside).tobytes()
        meshes.draw_lines(axes, _lines(hemi, view, region, surface))
        for part in _parts_of(hemi, "inflated", region, surface):
            looks = {v: seen(hemi, v, surface) for v in views}
            shares = {v: float((facing[part] * shown[part]).sum()) for v, (_, facing, shown) in looks.items()}
            if max(shares, key=lambda v: shares[v]) == view and shares[view] > 0.1 * len(part):
                anchors.append((name, _middle(plane[part[visible[part]]])))
    meshes.place_labels(axes, anchors, WIDTH / 4, fontsize=6.5)


@lru_cache(maxsize=24)
def seen(
    hemi: str, view: str, surface: meshes.Surface = meshes.FSAVERAGE5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices on the page (vertex, 2), cosine of the angle to the camera, and whether the camera sees them."""
    xyz, faces, _ = meshes.inflated_mesh(hemi, surface)
    forward, right, up = meshes.camera(hemi, view)
    plane = np.stack([xyz @ right, xyz @ up], axis=1)
    facing = -meshes.vertex_normals(xyz, faces) @ forward
    return plane, facing, (facing > 0) & ~_hidden(plane, xyz @ forward, faces, facing)


def _hidden(plane: np.ndarray, depth: np.ndarray, faces: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Vertices behind another part of the cortex, by a coarse depth buffer (4 mm cells)."""
    shown = faces[(facing[faces] > 0).all(axis=1)]
    cell = np.floor((plane - plane.min(axis=0)) / 4).astype(int)
    nearest = np.full(cell.max(axis=0) + 1, np.inf)
    used = np.unique(shown)
    np.minimum.at(nearest, tuple(cell[used].T), depth[used])
    return depth > nearest[tuple(cell.T)] + 18
