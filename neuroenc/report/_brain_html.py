"""An interactive cortex in one file: turn it, flatten it, read values off it."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import write_text
from neuroenc._core.optional import require
from neuroenc._version import __version__
from neuroenc.report._brain_draw import _parts
from neuroenc.report._brain_mesh import VIEWS, _mesh, flat_mesh, vertex_normals
from neuroenc.report._brain_outlines import loops, smooth
from neuroenc.report._brain_paint import BrainPainter
from neuroenc.report._brain_places import channel, label_for, region_masks, surface_places
from neuroenc.report._exports import numeric_scores
from neuroenc.report._html import data_uri, render
from neuroenc.report._style import STYLE, figure_png
from neuroenc.report._surface import _vertex_table

__all__ = ["surface_html"]

_UNIT = 0.01  # mm of one step of the stored coordinates
_LABELS = {"L": "Left", "R": "Right"}


def surface_html(
    values: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    names: list[str] | None = None,
    second: Any = None,
    alpha: Any = None,
    rois: Any = True,
    title: str = "",
    cmap: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    second_range: tuple[float | None, float | None] | None = None,
    alpha_range: tuple[float | None, float | None] | None = None,
) -> Path:
    """Write one HTML file with both hemispheres to turn, zoom, flatten and read values off.

    The file holds everything, about 2 MB: it opens from disk, fetches nothing, and runs only its own script. Colours
    are those of `plot_surface`, interpolated between vertices; every map has its legend, and every vertex under the
    pointer tells its voxel, regions and values.

    Parameters
    ----------
    values : DataArray or Dataset over ``voxel``
        With coordinates ``vertex`` and ``hemi`` on fsaverage5 (and ``roi``). Every numeric variable of a Dataset
        becomes a map to choose; strings in a DataArray are categories.
    path : path
        The file, or a folder, which then gets ``surface.html``.
    names : list of str, optional
        Variables of the Dataset, in this order.
    second, alpha, cmap, vmin, vmax, second_range, alpha_range
        As in `plot_surface`. In a Dataset they hold for every map; ``second`` and ``alpha`` may name a variable.
    rois : True, str, sequence of str, mapping or None
        Regions to outline, as in `plot_surface`; True does nothing where voxels carry no regions.
    title : str

    Returns
    -------
    Path

    Raises
    ------
    DataError, ConfigError
        As `plot_surface`; a variable does not exist; nothing to show.
    ModuleNotFoundError
        If nilearn or matplotlib is not installed.

    Examples
    --------
    >>> import tempfile
    >>> r = xr.DataArray(
    ...     [0.1, 0.5], dims="voxel", name="r", coords={"vertex": ("voxel", [12, 40]), "hemi": ("voxel", ["L", "R"])}
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     surface_html(r, folder).name
    'surface.html'
    """
    require("matplotlib", "brain")
    path = Path(path)
    path = path if path.suffix in (".html", ".htm") else path / "surface.html"
    maps = _maps(values, names)
    first = next(iter(maps.values()))
    index, side = _vertex_table(*surface_places(first, None, None), first.sizes["voxel"])
    n = len(index)
    places = np.stack([index, side == "R"], axis=1)
    if len(np.unique(places, axis=0)) < n:
        raise DataError(
            f"{n - len(np.unique(places, axis=0))} voxels share their vertex with another (several subjects?). Next "
            "step: values.isel(voxel=values.subject == 'sub-01')."
        )
    if rois is True and "roi" not in first.coords:
        rois = None
    masks = region_masks(rois, first, n)
    second, alpha = (_named(values, x) for x in (second, alpha))
    drawn = [
        _drawn(
            one,
            name,
            channel(second, first, n, "second"),
            channel(alpha, first, n, "alpha"),
            label_for(second if second is not None else alpha),
            cmap,
            vmin,
            vmax,
            second_range if second is not None else alpha_range,
        )
        for name, one in maps.items()
    ]
    hemis = {h: _hemisphere(h, index[side == h], {k: m[side == h] for k, m in masks.items()}) for h in "LR"}
    tips = first["roi"].values.astype(str).tolist() if "roi" in first.coords else [""] * n
    ids = first["voxel"].values if "voxel" in first.coords else np.arange(n)
    payload = {
        "unit": _UNIT,
        "hemis": hemis,
        "maps": drawn,
        "views": {k: {h: v[h] for h in "LR"} for k, v in VIEWS.items()},
        "voxels": {"vertex": index.tolist(), "hemi": "".join(side), "id": [str(x) for x in ids], "roi": tips},
    }
    heading = title or label_for(first) or "Cortical map"
    page = render(
        {
            "payload": payload,
            "title": heading,
            "version": __version__,
            "maps": drawn,
            "views": list(VIEWS),
            "outlined": sorted(masks),
            "n_voxels": n,
        },
        "brain_surface.html.j2",
        ("brain_surface.css",),
        ("brain_surface.js",),
    )
    return write_text(path, page)


def _named(values: Any, other: Any) -> Any:
    """A variable of the Dataset by name."""
    if not isinstance(other, str):
        return other
    legal = numeric_scores(values) if isinstance(values, xr.Dataset) else []
    if other not in legal:
        raise ConfigError(unknown_name("score", other, legal))
    return values[other]


def _maps(values: Any, names: list[str] | None) -> dict[str, xr.DataArray]:
    if isinstance(values, xr.DataArray):
        if values.dims != ("voxel",):
            raise DataError(f"values have dims {values.dims}; legal: ('voxel',).")
        return {str(values.name or "values"): values}
    if not isinstance(values, xr.Dataset):
        raise DataError(f"values is a {type(values).__name__}; legal: a DataArray or Dataset over 'voxel'.")
    legal = numeric_scores(values)
    for name in names or ():
        if name not in legal:
            raise ConfigError(unknown_name("score", name, legal))
    chosen = list(names) if names is not None else legal
    if not chosen:
        raise DataError("values hold no numeric variable over 'voxel', so there is nothing to show.")
    return {name: values[name] for name in chosen}


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _steps(coordinates: np.ndarray) -> np.ndarray:
    return np.round(coordinates / _UNIT).astype("<i2")


def _hemisphere(hemi: str, index: np.ndarray, regions: dict[str, np.ndarray]) -> dict[str, Any]:
    """Both meshes of a hemisphere, grey of the bare cortex, outlines and names, as text of their bytes."""
    xyz, faces, sulc = _mesh(hemi)
    xy, flat_faces, on = flat_mesh(hemi)
    # The flat map opens where the voxels are.
    seen = index[on[index]] if on[index].any() else np.flatnonzero(on)
    flat = np.zeros_like(xyz)
    flat[:, :2] = np.where(on[:, None], xy, xy[on].mean(axis=0)) - xy[on].mean(axis=0)
    centre = (flat[seen].min(axis=0) + flat[seen].max(axis=0)) / 2
    normals = vertex_normals(xyz, faces)
    # Lines lie a little above the cortex, so that it does not swallow them.
    above = xyz + 0.7 * normals
    lines: list[np.ndarray] = [np.zeros((0, 3))]
    flat_lines: list[np.ndarray] = [np.zeros((0, 3))]
    texts = []
    for name, mask in regions.items():
        inside = np.zeros(len(xyz), bool)
        inside[index[mask]] = True
        for kept, positions, triangles, own in (
            (lines, above, faces, inside),
            (flat_lines, flat, flat_faces, inside & on),
        ):
            for chain in loops(own, triangles):
                points = smooth(positions[chain].mean(axis=1))
                kept.append(np.stack([points[:-1], points[1:]], axis=1).reshape(-1, 3))
        for part in _parts(inside, faces):
            middle = part[np.argmin(np.linalg.norm(xyz[part] - np.median(xyz[part], axis=0), axis=1))]
            texts.append({"name": name, "vertex": int(middle)})
    grey = np.clip(0.86 - 0.09 * np.clip(sulc / 0.8, -1, 1), 0, 1)
    return {
        "name": _LABELS[hemi],
        "inflated": _text(_steps(xyz)),
        "flat": _text(_steps(flat)),
        "normals": _text(np.round(127 * normals).astype("i1")),
        "grey": _text(np.round(255 * grey).astype("u1")),
        "faces": _text(faces.astype("<u2")),
        "flat_faces": _text(flat_faces.astype("<u2")),
        "on": _text(on.astype("u1")),
        "centre": centre.round(1).tolist(),
        "span": float(np.ptp(flat[seen], axis=0).max().round(1)),
        "texts": texts,
        "lines": _text(_steps(np.concatenate(lines))),
        "flat_lines": _text(_steps(np.concatenate(flat_lines))),
    }


def _drawn(
    one: xr.DataArray, name: str, second: Any, alpha: Any, other_label: str, cmap: Any, vmin: Any, vmax: Any, span: Any
) -> dict[str, Any]:
    """Colours, texts and legend of a map."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    data = np.asarray(one.values)
    painter = BrainPainter(
        data, cmap, vmin, vmax, second=second, alpha=alpha, other_range=span, other_label=other_label
    )
    rgba = painter.colours(painter.numbers, painter.other)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.6, painter.room))
        painter.key(figure, label_for(one), height=0.11 / painter.room, bottom=0.34 / painter.room)
    named = data.dtype.kind in "OUS"
    texts = [str(x) if named else ("–" if not np.isfinite(x) else f"{float(x):.3g}") for x in data.tolist()]
    return {
        "name": name,
        "label": label_for(one) or name,
        "colours": _text(np.round(255 * rgba).astype("u1")),
        "texts": texts,
        "legend": data_uri(figure_png(figure, dpi=140), "image/png"),
        "others": None if painter.other is None else [f"{x:.3g}" for x in painter.other.tolist()],
        "other": other_label,
    }
