"""Numbers and tables as text for pages."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

_HEADINGS = {
    "roi": "ROI",
    "n_voxels": "voxels",
    "median_r": "median r",
    "median_ceiling_r": "median ceiling",
    "median_r_normalised": "median r / ceiling",
    "n_captioned": "with caption",
    "n_without_caption": "without caption",
    "r": "r",
    "r2": "R²",
    "p_value": "p",
    "q_value": "q (FDR)",
}
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
    return {
        "columns": [
            {"name": _HEADINGS.get(str(c), str(c).replace("_", " ")), "numeric": is_number}
            for c, is_number in zip(frame.columns, numeric)
        ],
        "rows": [[number(v, str(c)) for c, v in zip(frame.columns, row)] for row in frame.itertuples(index=False)],
        "links": list(links),
    }


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


def bar(value: float, top: float) -> str | None:
    """Width in percent of a bar that starts at zero; None where there is no value."""
    if not np.isfinite(value) or not top > 0:
        return None
    return f"{100 * min(max(value / top, 0.0), 1.0):.1f}"


def place_of(scores: xr.Dataset, v: int) -> str:
    """Where the ``v``-th voxel lies, as cards say it."""
    if "vertex" in scores.coords and "hemi" in scores.coords:
        return f"{scores['hemi'].values[v]} vertex {int(scores['vertex'].values[v])}"
    if all(axis in scores.coords for axis in "ijk"):
        return "ijk " + ", ".join(str(int(scores[axis].values[v])) for axis in "ijk")
    return ""
