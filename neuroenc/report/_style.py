"""The look of pages and figures: colours, numbers and tables as text, figures as bytes that depend on data alone."""

from __future__ import annotations

import base64
import io
import json
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.optional import require

INK, MUTED, FAINT = "#1d2329", "#5c6670", "#d9dee3"
BLUE, ORANGE = "#2b6ca3", "#b8480b"  # told apart by all common forms of colour blindness, and in grey
# A pale rose: bare cortex is grey, and no category is near it.
TIE, OTHER = "#f2d9d0", "#5c6670"
WIDTH = 10.6  # inches; pages show it at 1056 CSS pixels


def parsed(provenance: str | Mapping[str, Any] | None) -> Any:
    """Provenance as JSON writes it; text that is no JSON stays text."""
    if not isinstance(provenance, str):
        return dict(provenance) if provenance else None
    try:
        return json.loads(provenance)
    except json.JSONDecodeError:
        return provenance


def shipped(name: str) -> str:
    """Text of a file in ``templates``."""
    return (files("neuroenc.report") / "templates" / name).read_text(encoding="utf-8")


_TABLES: dict[str, Any] = tomllib.loads(shipped("scores.toml"))
#: Headings of columns, conventions of ceilings, and of each score ``name, meaning, heading, map, cmap, low, high``.
COLUMNS, CEILINGS, SCORES = _TABLES["columns"], _TABLES["ceilings"], _TABLES["scores"]
#: What maps of the explorer can be coloured by: ``heading, low, high``.
EXPLORER: dict[str, dict[str, Any]] = _TABLES["explorer"]


@lru_cache(maxsize=1)
def style() -> Any:
    """Settings of matplotlib for all figures."""
    from matplotlib import rc_params_from_file

    with as_file(files("neuroenc.report") / "templates" / "figures.mplstyle") as path:
        return rc_params_from_file(path, use_default_template=False)


# Tol's muted scheme, extended by darker and lighter steps that stay apart for colour-blind readers.
_MUTED_SCHEME = """
#332288 #88ccee #44aa99 #117733 #999933 #ddcc77 #cc6677 #882255 #aa4499 #d55e00 #0072b2 #7a5c3a #e8a0bf #4d4d4d
"""
_CATEGORIES = _MUTED_SCHEME.split()

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@contextmanager
def drawing(width: float, height: float, layout: Any = "none") -> Iterator[Any]:
    """An empty figure, in inches, and the pages' style while it is drawn.

    Without a layout, axes stay where they were put, whatever the user's matplotlib settings ask for.
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style()):
        yield Figure(figsize=(width, height), layout=layout)


@contextmanager
def panels(n: int, size: Callable[[int, int], tuple[float, float]], share: bool = False) -> Iterator[tuple[Any, Any]]:
    """Figure and grid of ``n`` panels in at most four columns; ``size`` gets columns and lines, and gives inches."""
    columns = min(4, n)
    lines = -(-n // columns)
    with drawing(*size(columns, lines), "constrained") as figure:
        grid = figure.subplots(lines, columns, squeeze=False, sharex=share, sharey=share)
        for axes in grid.ravel()[n:]:
            axes.set_visible(False)
        yield figure, grid


def picked(what: str, names: Iterable[Any], wanted: Sequence[str] | None, most: int | None = None) -> list[str]:
    """Names that are wanted, in their order; by default the first ``most`` of all."""
    legal = [str(x) for x in dict.fromkeys(names)]
    return [one_of(what, name, legal) for name in wanted] if wanted else legal[:most]


def write(axes: Any, x: float, y: float, text: str, at: str = "center center", size: float = 8, **more: Any) -> None:
    """Text in axes; ``at`` is its horizontal and vertical alignment."""
    horizontal, vertical = at.split()
    axes.text(x, y, text, ha=horizontal, va=vertical, fontsize=size, **more)


def write_inside(axes: Any, x: float, y: float, text: str, at: str, size: float = 8, **more: Any) -> None:
    """As `write`, at shares of the width and height of the axes."""
    write(axes, x, y, text, at, size, transform=axes.transAxes, **more)


def bare(axes: Any) -> None:
    """Hide the spines of axes."""
    axes.spines[:].set_visible(False)


def category_colours(n: int) -> list[tuple[float, float, float, float]]:
    """``n`` RGBA colours; beyond 14 they repeat in lighter tones."""
    from matplotlib.colors import to_rgba

    colours = []
    for k in range(n):
        rgb = np.array(to_rgba(_CATEGORIES[k % len(_CATEGORIES)])[:3])
        light = 1 - 0.55 ** (k // len(_CATEGORIES))
        colours.append((*(rgb + (1 - rgb) * light), 1.0))
    return colours


def figure_png(figure: Any, dpi: int = 150, *, tight: bool = False) -> bytes:
    """PNG of a figure without date or software name; ``tight`` without its empty edges."""
    from matplotlib import rc_context

    edges = {"bbox_inches": "tight", "pad_inches": 0.05} if tight else {}
    buffer = io.BytesIO()
    with rc_context(style()):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, **edges)
    return buffer.getvalue()


def figure_svg(figure: Any) -> bytes:
    """SVG of a figure, its text set in the reader's own system font."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(style()), warnings.catch_warnings():
        # A letter that the fonts here lack is the reader's font's to draw.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode().replace("'DejaVu Sans'", _FONTS).encode()


def figure_pdf(figure: Any) -> bytes:
    """PDF of a figure, its fonts embedded and its text kept as text."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({**style(), "pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return buffer.getvalue()


def hex_colours(n: int) -> list[str]:
    """`category_colours` as pages and look-up tables write them."""
    from matplotlib.colors import to_hex

    return [to_hex(rgba) for rgba in category_colours(n)]


def colours_of(names: Iterable[str], limit: int = 12) -> dict[str, Any]:
    """One colour for each name, in their order; "tie" has its own, and names after ``limit`` share one."""
    listed = [n for n in dict.fromkeys(names) if n and n != "tie"]
    palette = category_colours(min(len(listed), limit))
    found: dict[str, Any] = {name: palette[k] if k < limit else OTHER for k, name in enumerate(listed)}
    return {**found, "tie": TIE}


def legend(colours: Mapping[str, Any], shares: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Colours as the page shows them."""
    from matplotlib.colors import to_hex

    said = shares or {}
    return [{"name": name, "colour": to_hex(c), "said": said.get(name, "")} for name, c in colours.items()]


def short(name: Any, limit: int = 30) -> str:
    """A name that fits an axis."""
    text = str(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


_SHARES = ("accuracy", "share", "fraction", "rate")


def number(value: Any, column: str = "", digits: int = 3) -> str:
    """A cell as text: shares in percent, small p-values as bounds, missing as a dash.

    >>> number(0.51234), number(12000, "n_voxels"), number(0.8125, "family_accuracy")
    ('0.512', '12,000', '81 %')
    >>> number(float("nan")), number(1e-9, "p_value")
    ('–', '< 0.001')
    """
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)) or value is pd.NA:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        # Thousands are set apart in counts only: a session or a seed is a name.
        return f"{int(value):,}" if column.startswith("n_") else str(int(value))
    if isinstance(value, (float, np.floating)):
        v = float(value)
        if not np.isfinite(v):
            return "∞" if v > 0 else "−∞"
        if column in ("p_value", "q_value", "p", "q") and 0 <= v < 1e-3:
            return "< 0.001"
        if any(column == s or column.endswith(f"_{s}") for s in _SHARES) and 0 <= v <= 1:
            return f"{100 * v:.0f} %"
        if v == int(v) and abs(v) >= 1000:
            return f"{v:,.0f}"
        text = f"{v:z.{digits}f}" if 1e-3 <= abs(v) < 100 or v == 0 else f"{v:.3g}"
        return text.replace("-", "−") if "e" not in text else text
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(number(x) for x in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value))
    return str(value)


def table(frame: pd.DataFrame, links: Sequence[str] = ()) -> dict[str, Any]:
    """Headings, text cells and which columns are numeric, for the template; ``links`` are those of the first column."""
    numeric = [bool(pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool) for c in frame.columns]
    names = [COLUMNS.get(str(c), str(c).replace("_", " ")) for c in frame.columns]
    columns = [{"name": name, "numeric": is_number} for name, is_number in zip(names, numeric)]
    rows = [[number(v, str(c)) for c, v in zip(frame.columns, row)] for row in frame.itertuples(index=False)]
    return {"columns": columns, "rows": rows, "links": list(links)}


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and texts.

    >>> flatten({"ridge": {"alphas": [1, 10]}, "seed": 0})
    [('ridge.alphas', '1, 10'), ('seed', '0')]
    """
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            rows.extend(flatten(item, f"{name}."))
        else:
            rows.append((name, number(item)))
    return rows


def data_uri(content: bytes, kind: str) -> str:
    """``content`` as a data URI of media type ``kind``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def joined(items: Iterable[str], limit: int = 8) -> str:
    """Names in a row, cut after ``limit``."""
    names = list(items)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def bar(value: float) -> str:
    """A share as the width of a bar in percent; 0 where there is no value."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}" if np.isfinite(value) else "0.0"


def beside(null: float) -> str:
    """A shuffled control, where it is known, beside its number."""
    return f" (shuffled {number(round(null, 2), digits=2)})" if np.isfinite(null) else ""


def voxel_link(voxel: Any) -> str:
    """Fragment of the page that opens a voxel."""
    return "#voxel=" + quote(str(voxel), safe="")


def place_of(scores: xr.Dataset, v: int) -> str:
    """Where the ``v``-th voxel lies, as cards say it."""
    if "vertex" in scores.coords and "hemi" in scores.coords:
        return f"{scores['hemi'].values[v]} vertex {int(scores['vertex'].values[v])}"
    if all(axis in scores.coords for axis in "ijk"):
        return "ijk " + ", ".join(str(int(scores[axis].values[v])) for axis in "ijk")
    return ""
