"""What the page shows of captions: voxels per ROI with their evidence, and the table of all voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._html import Thumbnails, number
from neuroenc.report._tables import ceiling_r, frequent_words, has_caption, median, memberships

__all__ = ["caption_rows", "failed_control", "roi_cards"]


def _location(scores: xr.Dataset, v: int) -> str:
    if "vertex" in scores.coords and "hemi" in scores.coords:
        return f"{scores['hemi'].values[v]} vertex {int(scores['vertex'].values[v])}"
    if all(axis in scores.coords for axis in "ijk"):
        return "ijk " + ", ".join(str(int(scores[axis].values[v])) for axis in "ijk")
    return ""


def _evidence(captions: pd.DataFrame, evidence: pd.DataFrame | None) -> dict[Any, list[tuple[str, float]]]:
    """Stimuli and predicted responses of each voxel, best first; from the evidence table if there is one."""
    found: dict[Any, list[tuple[str, float]]] = {}
    if evidence is not None:
        predicted = evidence["predicted"] if "predicted" in evidence.columns else [float("nan")] * len(evidence)
        for voxel, stimulus, value in zip(evidence["voxel"], evidence["stimulus"].astype(str), predicted):
            found.setdefault(voxel, []).append((stimulus, float(value)))
    elif "evidence" in captions.columns:
        for voxel, listed in zip(captions["voxel"], captions["evidence"]):
            if isinstance(listed, str) and voxel not in found:
                found[voxel] = [(x, float("nan")) for x in listed.split(";") if x]
    return found


def _bar(value: float, top: float) -> str | None:
    """Width in percent of a bar that starts at zero; None where there is no value."""
    if not np.isfinite(value) or not top > 0:
        return None
    return f"{100 * min(max(value / top, 0.0), 1.0):.1f}"


def roi_cards(
    scores: xr.Dataset,
    captions: pd.DataFrame,
    evidence: pd.DataFrame | None,
    thumbnails: Thumbnails,
    *,
    voxels: int = 4,
    lines: int = 3,
    images: int = 6,
) -> list[dict[str, Any]]:
    """One entry per ROI: its words and its best predicted captioned voxels.

    ``captions`` and ``evidence`` are sorted by voxel and rank. A word is marked as telling where its share
    in the ROI is at least twice the share over all voxels.
    """
    captions = captions[has_caption(captions)]
    r, ceiling = np.asarray(scores["r"].values, float), ceiling_r(scores)
    ids = scores["voxel"].values
    captioned = np.isin(ids, captions["voxel"])
    of_voxel = captions.groupby("voxel", sort=False).indices
    shown_images = _evidence(captions, evidence)
    overall = dict(frequent_words(captions, n=len(captions) * 40))
    groups = memberships(scores)
    if len(groups) > 12:
        voxels = 2
    scored = "score" in captions.columns

    cards = []
    for name, mask in groups.items():
        chosen = np.flatnonzero(mask & captioned)
        key = np.where(np.isfinite(r[chosen]), r[chosen], -np.inf)
        chosen = chosen[np.argsort(-key, kind="stable")][:voxels]
        top = (
            max((float(captions["score"].iloc[of_voxel[ids[v]]].max()) for v in chosen), default=0.0) if scored else 0.0
        )
        entries = []
        for v in chosen:
            rows = captions.iloc[of_voxel[ids[v]][:lines]]
            entries.append(
                {
                    "voxel": str(ids[v]),
                    "where": _location(scores, int(v)),
                    "failed": failed_control(rows),
                    "r": number(r[v], digits=2),
                    "r_bar": _bar(r[v], 1.0) or "0.0",
                    "ceiling": number(ceiling[v], digits=2) if ceiling is not None else None,
                    "ceiling_bar": _bar(ceiling[v], 1.0) if ceiling is not None else None,
                    "captions": [
                        {
                            "text": str(text),
                            "score": number(score, digits=2) if scored else None,
                            "bar": _bar(float(score), top) if scored else None,
                        }
                        for text, score in zip(rows["caption"], rows["score"] if scored else [None] * len(rows))
                    ],
                    "images": [
                        {
                            "id": s,
                            "uri": thumbnails.get(s),
                            "predicted": number(p, digits=2) if np.isfinite(p) else None,
                        }
                        for s, p in shown_images.get(ids[v], [])[:images]
                    ],
                }
            )
        in_roi = captions[captions["voxel"].isin(ids[mask])]
        words = [
            {
                "word": word,
                "share": f"{100 * share:.0f} %",
                "telling": len(groups) > 1 and share >= 2 * overall[word],
            }
            for word, share in (frequent_words(in_roi, n=8) if len(in_roi) else [])
        ]
        cards.append(
            {
                "name": name,
                "n": int(mask.sum()),
                "n_captioned": int((mask & captioned).sum()),
                "n_without": int((mask & ~captioned).sum()),
                "median_r": number(median(r, mask), digits=2),
                "median_ceiling": number(median(ceiling, mask), digits=2) if ceiling is not None else None,
                "words": words,
                "voxels": entries,
            }
        )
    return cards


def failed_control(captions: pd.DataFrame) -> str:
    """Control that these captions did not pass, in words; "" where there was none or all were passed."""
    if "control" not in captions.columns:
        return ""
    return "; ".join(sorted({str(x) for x in captions["control"].dropna() if str(x)}))


def caption_rows(scores: xr.Dataset, captions: pd.DataFrame, limit: int = 400) -> list[dict[str, str]]:
    """Best caption of the ``limit`` best predicted captioned voxels, for the table that can be searched."""
    best = captions[has_caption(captions)].drop_duplicates("voxel").set_index("voxel")
    ids, r, ceiling = scores["voxel"].values, np.asarray(scores["r"].values, float), ceiling_r(scores)
    roi = scores["roi"].values if "roi" in scores.coords else np.full(len(ids), "")
    order = np.argsort(-np.where(np.isfinite(r), r, -np.inf), kind="stable")
    rows = []
    for v in order[np.isin(ids[order], best.index)][:limit]:
        line = best.loc[ids[v]]
        rows.append(
            {
                "voxel": str(ids[v]),
                "where": _location(scores, int(v)),
                "roi": str(roi[v]).replace(";", ", "),
                "r": number(r[v]),
                "ceiling": number(ceiling[v]) if ceiling is not None else "–",
                "caption": str(line["caption"]),
                "failed": str(line["control"]) if "control" in best.columns else "",
                "score": number(line["score"]) if "score" in best.columns else "–",
            }
        )
    return rows
