"""The look of every figure, and how a figure becomes bytes that depend on the data alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from neuroenc._core.optional import require

INK, MUTED, FAINT = "#1d2329", "#5c6670", "#d9dee3"
BLUE, ORANGE = "#2b6ca3", "#b8480b"  # told apart by all common forms of colour blindness, and in grey
# A pale rose: bare cortex is grey, and no category is near it.
TIE, OTHER = "#f2d9d0", "#5c6670"
WIDTH = 10.6  # inches; pages show it at 1056 CSS pixels

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#9aa4ad",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#9aa4ad",
    "ytick.color": "#9aa4ad",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "figure.facecolor": "white",
    "text.parse_math": False,  # "$" in a name from a file is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "neuroenc",
}

# Tol's muted scheme, extended by darker and lighter steps that stay apart for colour-blind readers.
_MUTED_SCHEME = """
#332288 #88ccee #44aa99 #117733 #999933 #ddcc77 #cc6677 #882255 #aa4499 #d55e00 #0072b2 #7a5c3a #e8a0bf #4d4d4d
"""
_CATEGORIES = _MUTED_SCHEME.split()

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@contextmanager
def drawing(width: float, height: float, layout: str = "none") -> Iterator[Any]:
    """An empty figure, in inches, and the pages' style while it is drawn.

    Without a layout, axes stay where they were put, whatever the user's matplotlib settings ask for.
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout=layout)


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
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, **edges)
    return buffer.getvalue()


def figure_svg(figure: Any) -> bytes:
    """SVG of a figure, its text set in the reader's own system font."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode().replace("'DejaVu Sans'", _FONTS).encode()


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

    return [
        {"name": name, "colour": to_hex(colour), "said": (shares or {}).get(name, "")}
        for name, colour in colours.items()
    ]


def short(name: Any, limit: int = 30) -> str:
    """A name that fits an axis."""
    text = str(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
