"""Voxels as static cards: captions with their phrases marked, images, accuracy against ceiling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from neuroenc.report._text import bar, number, place_of
from neuroenc.report.explorer._data import VoxelTable

if TYPE_CHECKING:
    from neuroenc.captions import CaptionStudy
    from neuroenc.report._pictures import Pictures


def voxel_link(voxel: Any) -> str:
    """Fragment of the page that opens a voxel."""
    return "#voxel=" + quote(str(voxel), safe="")


def segments(text: str, phrases: Iterable[tuple[int, int, str]]) -> list[dict[str, str]]:
    """The caption in pieces, each with its verdict ("" outside phrases); an overlapping phrase is cut short.

    >>> segments("a red dog", [(2, 9, "supported")])
    [{'text': 'a ', 'verdict': ''}, {'text': 'red dog', 'verdict': 'supported'}]
    """
    out: list[dict[str, str]] = []
    at = 0
    for start, end, verdict in sorted(phrases):
        start = max(start, at)
        if end <= start:
            continue
        if start > at:
            out.append({"text": text[at:start], "verdict": ""})
        out.append({"text": text[start:end], "verdict": verdict})
        at = end
    if at < len(text):
        out.append({"text": text[at:], "verdict": ""})
    return out


def best_rows(table: VoxelTable, rows: np.ndarray, n: int) -> np.ndarray:
    """The ``n`` best predicted captioned voxels among ``rows``."""
    has = np.array([v in table.captions for v in table.frame["voxel"].to_numpy()[rows]], bool)
    rows = rows[has] if len(rows) else rows
    r = table.frame["r"].to_numpy()[rows]
    return rows[np.argsort(-np.where(np.isfinite(r), r, -np.inf), kind="stable")][:n]


def beside(null: float) -> str:
    """A shuffled control, where it is known, beside its number."""
    return f" (shuffled {number(null, digits=2)})" if np.isfinite(null) else ""


def _percentile(share: float | None) -> str:
    return "–" if share is None or not np.isfinite(share) else f"{100 * share:.0f}"


def _phrases(study: CaptionStudy, table: VoxelTable, voxel: Any) -> list[Any]:
    if study.phrases is None or voxel not in table.phrases:
        return []
    return study.phrases.iloc[table.phrases[voxel]].to_dict("records")


def voxel_cards(
    study: CaptionStudy,
    table: VoxelTable,
    rows: Iterable[int],
    images: Pictures,
    *,
    lines: int = 3,
    thumbs: int = 6,
) -> list[dict[str, Any]]:
    """What the template shows of each voxel in ``rows`` of the table."""
    cards = []
    for v in rows:
        line = table.frame.iloc[int(v)]
        voxel = line["voxel"]
        told = _phrases(study, table, voxel)
        captions = study.captions.iloc[table.captions.get(voxel, np.zeros(0, int))[:lines]]
        shown = study.evidence.iloc[table.evidence.get(voxel, np.zeros(0, int))[:thumbs]]
        facts = []
        if np.isfinite(line["unsupported"]):
            facts.append(("unsupported phrases", number(line["unsupported"], "share")))
        for kind in table.stability:
            value = line[f"stability:{kind}"]
            if np.isfinite(value):
                facts.append((f"stability, {kind}", number(value, digits=2) + beside(line[f"stability:{kind}_null"])))
        if "rho" in table.frame and np.isfinite(line["rho"]):
            facts.append(("sentence-level ρ", number(line["rho"], digits=2) + beside(line["shuffled"])))
        where = (line["subject"], line["roi"].replace(";", ", "), place_of(study.scores, int(v)))
        bounded = np.isfinite(line["ceiling"])
        cards.append(
            {
                "voxel": str(voxel),
                "link": voxel_link(voxel),
                "where": " · ".join(x for x in where if x),
                "r": number(line["r"], digits=2),
                "r_bar": bar(line["r"], 1.0) or "0.0",
                "ceiling": number(line["ceiling"], digits=2) if bounded else None,
                "ceiling_bar": bar(line["ceiling"], 1.0) if bounded else None,
                "captions": [
                    {
                        "rank": int(rank),
                        "score": number(float(score), digits=2),
                        "parts": segments(
                            str(text),
                            [(int(p["start"]), int(p["end"]), p["verdict"]) for p in told if p["rank"] == rank],
                        ),
                    }
                    for rank, text, score in zip(captions["rank"], captions["caption"], captions["score"])
                ],
                "phrases": [
                    {
                        "phrase": str(p["phrase"]),
                        "verdict": p["verdict"],
                        "in_images": number(p.get("in_images"), "share"),
                        "predicted": number(p.get("predicted"), digits=2),
                        "percentile": _percentile(p.get("percentile")),
                    }
                    for p in told
                    if len(captions) and p["rank"] == captions["rank"].iloc[0]
                ],
                "images": [
                    images.describe(s) | {"id": s, "predicted": number(float(p), digits=2)}
                    for s, p in zip(shown["stimulus"].astype(str), shown["predicted"])
                ],
                "facts": facts,
                "fails": line["fails"],
            }
        )
    return cards
