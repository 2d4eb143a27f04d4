"""Where on the cortex, or in which unit, a class or a number stands: figures, and the maps of the explorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.encoders.comparison import Group
from neuroenc.report._charts import draw_strip
from neuroenc.report._regions import NO_ROI, memberships
from neuroenc.report._style import TIE, data_uri, figure_png
from neuroenc.report.brain import _mesh as meshes
from neuroenc.report.brain._paint import Painter
from neuroenc.report.brain._slices import plot_mosaic, slices_of
from neuroenc.report.brain._surface import draw_flat, flat_windows, plot_surface, seen
from neuroenc.report.export._files import places

MOST_OUTLINES, MOST_STRIPS = 24, 24
NO_NILEARN = "Surface maps were left out: nilearn is not installed (pip install 'neuroenc[brain]')."


def surface_voxels(scores: xr.Dataset) -> tuple[np.ndarray, str, meshes.Surface]:
    """Voxels that can be drawn on the mesh of their space, or else on fsaverage5; what to say of the rest; the mesh."""
    vertex, space = scores["vertex"].values, str(scores.attrs.get("space", "unknown"))
    if space == "fsnative" and "subject" in scores.coords:  # of one subject, by its name
        people = np.unique(scores["subject"].values)
        space = str(people[0]) if len(people) == 1 else space
    try:
        surface, missing = meshes.surface_of(None, space), ""
    except DataError as error:
        surface, missing = meshes.FSAVERAGE5, str(error)
    if surface.name != "fsaverage5":
        most = [len(meshes.inflated_mesh(h, surface)[0]) for h in "LR"]
        side = np.array([str(h)[:1].upper() for h in scores["hemi"].values])
        if (fits := (vertex >= 0) & (vertex < np.where(side == "L", *most))).all():
            return fits, "", surface
    if "fsaverage" not in space and space != "unknown":
        said = f"Vertices lie in the space {space!r}, for which no mesh is at hand."
        said += " " + (missing or f"{int((~fits).sum())} of them do not fit {surface.name}.")
        return np.zeros(len(vertex), bool), said, surface
    surface = meshes.FSAVERAGE5
    fits = (vertex >= 0) & (vertex < meshes.N_VERTICES)
    if fits.all():
        return fits, "", surface
    if "fsaverage" not in space or space == "fsaverage5":
        said = f"{int((~fits).sum())} vertices do not fit fsaverage5 (0..{meshes.N_VERTICES - 1}) and the space is "
        return np.zeros(len(vertex), bool), f"{said}{space!r}; no surface map is drawn.", surface
    # The vertices of fsaverage5 are the first ones of every denser fsaverage mesh.
    return fits, f"Drawn on fsaverage5: {int(fits.sum())} of {len(vertex)} vertices of {space}.", surface


class Canvas:
    """Values of voxels on the mesh of their space, on slices, or else as one bar for each unit.

    ``groups`` are what bars are put side by side in; ``kind`` is "surface", "volume" or "strip", ``remarks`` say what
    cannot be drawn, and ``how`` what the reader looks at.
    """

    def __init__(self, scores: xr.Dataset, groups: Sequence[Group] = ()) -> None:
        volume, surface, remark = places(scores)
        if groups:
            remark = remark.replace("no maps were made", "units are drawn side by side")
        self.remarks = [remark] if remark else []
        self._surface = meshes.FSAVERAGE5
        self._scores, self._kept = scores, np.ones(scores.sizes["voxel"], bool)
        if surface:
            kept, said = None, NO_NILEARN
            if find_spec("nilearn") is not None:
                kept, said, self._surface = surface_voxels(scores)
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
        mesh = self._surface.name
        return {
            "surface": f"{mesh}, flat or inflated; grey cortex carries no voxel of the analysis." + outlined,
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
            tones = {str(x): (colours or {}).get(str(x), TIE) for x in values} if named else None
            painter = Painter(values, None, limits or (None, None), tones)
            shown = np.where(known, np.asarray(heights), np.nan)
            return [draw_strip(shown, painter.colours(painter.numbers), self._groups, height_label)]
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
        on, kinds = self._surface, ["inflated"]
        if meshes.has_flat(on):
            hidden = any((~meshes.flat_mesh(h, on)[2][place[0][place[1] == h]]).any() for h in np.unique(place[1]))
            kinds = ["flat", "inflated"] if both or hidden else ["flat"]
        return [_png(plot_surface(shown, *place, mesh=kind, surface=on.name, **options)) for kind in kinds]


def _png(figure: Any) -> str:
    return data_uri(figure_png(figure, tight=True), "image/png")


# Panels of the inflated map, rows of (hemisphere, view).
_INFLATED = (
    (("L", "lateral"), ("L", "medial"), ("R", "medial"), ("R", "lateral")),
    (("L", "ventral"), ("L", "posterior"), ("R", "posterior"), ("R", "ventral")),
)
_WIDTH = 1000.0  # units of a map's width; the page scales them
_FLAT_HEIGHT, _HEAD, _GAP = 470.0, 28.0, 14.0
_INFLATED_TALL = _WIDTH / 4 * meshes.PANEL[1] / meshes.PANEL[0]  # of a row of panels


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH / 100, height / 100))


def _flat_map(vertex: np.ndarray, hemi: np.ndarray, surface: meshes.Surface) -> dict[str, Any]:
    """Both hemispheres side by side, cropped to the voxels; every voxel is seen once."""

    windows = flat_windows(vertex, hemi, 9.0, surface)
    (left_edge, low), (right_edge, high) = next(iter(windows.values()))
    tall, room = float(high - low), (_WIDTH - _GAP * (len(windows) - 1)) / len(windows)
    scale = min(room / float(right_edge - left_edge), (_FLAT_HEIGHT - _HEAD) / tall)
    height, wide = tall * scale + _HEAD, room / scale
    figure = _figure(height)
    x, y = np.full(len(vertex), np.nan), np.full(len(vertex), np.nan)
    labels = []
    for panel, (h, (low, high)) in enumerate(windows.items()):
        xy, faces, on = meshes.flat_mesh(h, surface)
        left = panel * (room + _GAP)
        # The panel is filled with more of the cortex around the voxels, as far as there is some.
        edge = xy[on].min(axis=0)[0] - 4, xy[on].max(axis=0)[0] + 4
        x0 = (low[0] + high[0] - wide) / 2
        x0 = max(min(x0, edge[1] - wide), edge[0]) if edge[1] - edge[0] > wide else (edge[0] + edge[1] - wide) / 2
        axes = figure.add_axes((left / _WIDTH, 0, room / _WIDTH, (height - _HEAD) / height))
        draw_flat(axes, h, np.zeros((len(faces), 4)), ((x0, low[1]), (x0 + wide, high[1])), surface)
        mine = np.flatnonzero((hemi == h) & on[vertex])
        x[mine] = left + (xy[vertex[mine], 0] - x0) * scale
        y[mine] = _HEAD + (high[1] - xy[vertex[mine], 1]) * scale
        labels.append({"text": f"{meshes.SIDES[h].title()} hemisphere", "x": left + room / 2, "y": 17})
    return _map("flat", "Flat", figure_png(figure, dpi=160), height, x, y, labels, spacing=1.5 * scale)


@lru_cache(maxsize=4)
def _inflated_panels(surface: meshes.Surface) -> tuple[bytes, dict[tuple[str, str], tuple[float, ...]]]:
    """Picture of all panels, the same for every subject, and the limits (left, right, bottom, top) of each."""
    figure = _figure(2 * _INFLATED_TALL)
    limits = {}
    for row, panels in enumerate(_INFLATED):
        for column, (h, view) in enumerate(panels):
            axes = figure.add_axes((column / 4, 0.5 * (1 - row), 0.25, 0.5))
            bare = np.zeros((len(meshes.inflated_mesh(h, surface)[1]), 4))
            meshes.draw_hemisphere(axes, h, view, bare, surface)
            limits[h, view] = (*axes.get_xlim(), *axes.get_ylim())
    return figure_png(figure, dpi=160), limits


def _inflated_map(vertex: np.ndarray, hemi: np.ndarray, surface: meshes.Surface) -> dict[str, Any]:
    """Four views of each hemisphere; a voxel is drawn in every view that it faces."""
    cell, tall = _WIDTH / 4, _INFLATED_TALL
    background, limits = _inflated_panels(surface)
    at: list[np.ndarray] = []
    who: list[np.ndarray] = []
    labels = []
    views = {h: [view for panels in _INFLATED for side, view in panels if side == h] for h in "LR"}
    for row, panels in enumerate(_INFLATED):
        for column, (h, view) in enumerate(panels):
            mine, (plane, *_) = np.flatnonzero(hemi == h), seen(h, view, surface)
            facing = np.stack([seen(h, other, surface)[1][vertex[mine]] for other in views[h]], axis=1)
            # What no view faces, such as the top of the brain, stands in the one that comes closest.
            own = views[h].index(view)
            mine = mine[(facing[:, own] > 0.12) | (facing.argmax(axis=1) == own)]
            x0, x1, y0, y1 = limits[h, view]
            px = column * cell + (plane[vertex[mine], 0] - x0) / (x1 - x0) * cell
            py = row * tall + (y1 - plane[vertex[mine], 1]) / (y1 - y0) * tall
            at.append(np.stack([px, py], axis=1))
            who.append(mine)
            labels.append({"text": f"{h} {view}", "x": (column + 0.5) * cell, "y": row * tall + 13})
    points, voxel = np.concatenate(at), np.concatenate(who).tolist()
    more = {"spacing": 1.6 * cell / (2 * meshes.PANEL[0]), "voxel": voxel}
    return _map("inflated", "Inflated", background, 2 * tall, points[:, 0], points[:, 1], labels, **more)


def _map(
    kind: str, name: str, background: bytes | None, height: float, x: Any, y: Any, labels: Any, **more: Any
) -> dict[str, Any]:
    """What the page needs of a map; voxels without a place are left out."""
    placed = np.flatnonzero(np.isfinite(x))
    size = round(float(np.clip(more.pop("spacing", 0), 2.2, 9)), 2)
    about = {"kind": kind, "name": name, "width": _WIDTH, "height": round(height, 1), "shape": "dot", "size": size}
    about |= {"x": _round(x[placed]), "y": _round(y[placed]), "voxel": placed.tolist(), "labels": labels}
    return about | {"background": background} | more


def _round(values: np.ndarray) -> list[float]:
    return np.round(np.asarray(values, float), 1).tolist()


def _volume_map(ijk: np.ndarray, affine: Any, shape: Sequence[int]) -> dict[str, Any]:
    """Every slice that holds a voxel, as `plot_mosaic` draws them."""
    found = slices_of(ijk, np.asarray(affine, float).reshape(4, 4), shape)
    place, cuts, axis, across, upward = found.place, found.cuts, found.axis, found.across, found.upward
    low, high = place.min(axis=0) - 1, place.max(axis=0) + 2
    ratio = float(found.step[upward] / found.step[across])
    wide, tall = int(high[across] - low[across]), float((high[upward] - low[upward]) * ratio)
    # As few columns as keep the map about as high as wide: cells stay large enough to click.
    fits = [c for c in range(1, 9) if -(-len(cuts) // c) * (tall * _WIDTH / (c * wide) + 22) < 0.75 * _WIDTH]
    columns = min(*fits, 8, len(cuts))
    cell = (_WIDTH - 10 * (columns - 1)) / columns / wide
    row_height = tall * cell + 26
    corner = [(n % columns * (wide * cell + 10), n // columns * row_height + 22) for n in range(len(cuts))]
    left, top = np.array(corner)[np.searchsorted(cuts, place[:, axis])].T
    x = left + (place[:, across] - low[across] + 0.5) * cell
    y = top + (high[upward] - place[:, upward] - 0.5) * ratio * cell
    labels = [{"text": found.title(c), "x": a + wide * cell / 2, "y": b - 6} for c, (a, b) in zip(cuts, corner)]
    frames = [_round(np.array([a, b, wide * cell, tall * cell])) for a, b in corner]
    more = {"shape": "cell", "size": [round(cell, 2), round(cell * ratio, 2)], "frames": frames, "sides": axis != 0}
    return _map("volume", "Slices", None, -(-len(cuts) // columns) * row_height, x, y, labels, **more)


def layouts(scores: xr.Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Maps of one subject's voxels, best first, and remarks on what could not be placed.

    Each map: ``kind, name, width, height`` (units), ``x, y`` of its dots, ``voxel`` (row of scores that each dot
    shows), ``shape`` ("dot" or "cell"), ``size``, ``labels``, and ``background`` (PNG bytes) or ``frames``.
    """
    maps: list[dict[str, Any]] = []
    remarks: list[str] = []
    if "vertex" in scores.coords and "hemi" in scores.coords:
        kept, remark, surface = surface_voxels(scores)
        remarks += [remark] if remark else []
        if kept.any() and (find_spec("nilearn") is None or find_spec("matplotlib") is None):
            remarks.append(NO_NILEARN)
        elif kept.any():
            rows = np.flatnonzero(kept)
            vertex = scores["vertex"].values[rows].astype(int)
            hemi = np.array([str(h)[:1].upper() for h in scores["hemi"].values[rows]])
            flat = meshes.has_flat(surface)
            for draw in (_flat_map, _inflated_map) if flat else (_inflated_map,):
                found = draw(vertex, hemi, surface)
                found["voxel"] = rows[found["voxel"]].tolist() if len(found["voxel"]) else []
                maps.append(found)
            hidden = len(rows) - len(maps[0]["voxel"])
            if flat and hidden:
                said = "voxels lie on the cuts of the flat map and are seen on the inflated one only."
                remarks.append(f"{hidden} {said}")
    if all(axis in scores.coords for axis in "ijk") and {"affine", "volume_shape"} <= set(scores.attrs):
        ijk = np.stack([scores[axis].values for axis in "ijk"], axis=1).astype(int)
        shape = [int(n) for n in scores.attrs["volume_shape"]]
        if (ijk < 0).any() or (ijk >= np.array(shape)).any():
            remarks.append(f"i, j, k reach beyond the volume of shape {tuple(shape)}; slices were left out.")
        else:
            maps.append(_volume_map(ijk, scores.attrs["affine"], shape))
    return maps, remarks
