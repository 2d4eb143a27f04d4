"""The page's machinery: escaped templates, data URIs, thumbnails, numbers as text."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError

if TYPE_CHECKING:
    from neuroenc.data import Stimuli

__all__ = ["Thumbnails", "data_uri", "flatten", "number", "render", "table"]

THUMBNAIL = 96  # pixels, shown at 64 CSS pixels

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


def table(frame: pd.DataFrame) -> dict[str, Any]:
    """Headings, text cells and which columns are numeric, for the template."""
    numeric = [bool(pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool) for c in frame.columns]
    return {
        "columns": [
            {"name": _HEADINGS.get(str(c), str(c).replace("_", " ")), "numeric": is_number}
            for c, is_number in zip(frame.columns, numeric)
        ],
        "rows": [[number(v, str(c)) for c, v in zip(frame.columns, row)] for row in frame.itertuples(index=False)],
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


class Thumbnails:
    """Small JPEGs of stimuli as data URIs, until the page has taken ``budget`` characters of them."""

    def __init__(self, stimuli: Stimuli | None, budget: int = 3_500_000) -> None:
        self._stimuli = stimuli if stimuli is not None and stimuli.images is not None else None
        self._place = {} if self._stimuli is None else {str(s): n for n, s in enumerate(self._stimuli.ids)}
        self._budget = budget
        self._done: dict[str, str] = {}
        self.unreadable: list[str] = []

    def get(self, stimulus: str) -> str | None:
        """Data URI of a stimulus' image, or None where there is none to show."""
        if self._stimuli is None or stimulus not in self._place or stimulus in self.unreadable:
            return None
        if stimulus not in self._done and not self._read(stimulus):
            return None
        uri = self._done[stimulus]
        self._budget -= len(uri)
        return uri if self._budget >= 0 else None

    def _read(self, stimulus: str) -> bool:
        assert self._stimuli is not None
        if self._budget <= 0:
            return False
        try:
            image = self._stimuli.image(self._place[stimulus])
        except (OSError, DataError):
            # One lost file must not cost the report of a long run; the page names how many are missing.
            self.unreadable.append(stimulus)
            return False
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=84, optimize=True)
        self._done[stimulus] = data_uri(buffer.getvalue(), "image/jpeg")
        return True


def _asset(name: str) -> str:
    return (files("neuroenc.report") / "templates" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Always on, not by file ending: captions, file names and settings are other people's text.
    return Environment(
        loader=PackageLoader("neuroenc.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(
    context: Mapping[str, Any],
    template: str = "report.html.j2",
    styles: tuple[str, ...] = ("report.css",),
    scripts: tuple[str, ...] = ("report.js",),
    beside: bool = False,
) -> str:
    """The page as text. Its policy lets only its own script run and lets nothing be fetched.

    With ``beside`` it may also read images and data scripts that lie beside it, opened from disk or a server.
    """
    from markupsafe import Markup

    script = "".join(map(_asset, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    own = " 'self' file:" if beside else ""
    policy = f"default-src 'none'; img-src data:{own}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'{own}"
    page = _environment().get_template(template)
    style = Markup("".join(map(_asset, styles)))
    return page.render(policy=policy, style=style, script=Markup(script), **context)


def joined(items: Iterable[str], limit: int = 8) -> str:
    """Names in a row, cut after ``limit``."""
    names = list(items)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
