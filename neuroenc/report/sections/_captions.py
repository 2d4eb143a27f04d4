"""Captions of one encoder's voxels: the best voxels of each region with their evidence, and a table of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._page import Section
from neuroenc.report._pictures import Pictures
from neuroenc.report._regions import ceiling_r, frequent_words, has_caption, median, memberships, roi_summary
from neuroenc.report._text import bar, number, place_of, table

if TYPE_CHECKING:
    from neuroenc.data import Stimuli

__all__ = ["caption_sections", "caption_tile"]


def caption_tile(captions: pd.DataFrame) -> tuple[str, str]:
    """How many voxels have a caption, and whether captions failed their control."""
    n = captions.loc[has_caption(captions), "voxel"].nunique()
    failed = ", which fails its control" if failed_control(captions) else ""
    return f"{n:,}", f"voxels with a caption{failed}"


def caption_sections(
    scores: xr.Dataset, captions: pd.DataFrame, evidence: pd.DataFrame | None, stimuli: Stimuli | None
) -> list[Section]:
    """Captions by region, and the best caption of every voxel; tables are sorted by voxel and rank."""
    pictures = Pictures(stimuli, budget=3_500_000, inside=True)
    cards, rows = roi_cards(scores, captions, evidence, pictures), caption_rows(scores, captions)
    counts = roi_summary(scores, captions)[["roi", "n_voxels", "median_r", "n_captioned", "n_without_caption"]]
    n = int(captions.loc[has_caption(captions), "voxel"].nunique())
    lead = (
        "For each region, the words that its voxels’ best captions share most often, with the share of captioned "
        "voxels (outlined: at least twice as common here as over all voxels), then its best predicted voxels. The "
        "number before a caption is its score; bars beside captions start at zero and are relative to the region’s "
        "best score. Pictures are the stimuli to which the voxel’s model responds most, with the response that it "
        "predicts."
    )
    context = {"cards": cards, "gated": table(counts), "n": scores.sizes["voxel"], "n_captioned": n}
    made = [
        Section(
            "captions",
            "Captions by region",
            lead,
            remarks=pictures.remarks,
            template="regions.html.j2",
            context=context,
            terms=["score"] if "score" in captions.columns else [],
        )
    ]
    if rows:
        some = f"the {len(rows)} best predicted of {n} captioned voxels; captions.csv holds all"
        lead = f"The best caption of {some if len(rows) < n else 'each captioned voxel'}."
        rois = sorted({name for row in rows for name in row["roi"].split(", ") if name})
        made.append(
            Section(
                "voxels",
                "All captioned voxels",
                lead,
                nav="All voxels",
                template="voxels.html.j2",
                context={"rows": rows, "rois": rois},
            )
        )
    return made


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


def roi_cards(
    scores: xr.Dataset,
    captions: pd.DataFrame,
    evidence: pd.DataFrame | None,
    pictures: Pictures,
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
                    "where": place_of(scores, int(v)),
                    "failed": failed_control(rows),
                    "r": number(r[v], digits=2),
                    "r_bar": bar(r[v], 1.0) or "0.0",
                    "ceiling": number(ceiling[v], digits=2) if ceiling is not None else None,
                    "ceiling_bar": bar(ceiling[v], 1.0) if ceiling is not None else None,
                    "captions": [
                        {
                            "text": str(text),
                            "score": number(score, digits=2) if scored else None,
                            "bar": bar(float(score), top) if scored else None,
                        }
                        for text, score in zip(rows["caption"], rows["score"] if scored else [None] * len(rows))
                    ],
                    "images": [
                        {
                            "id": s,
                            "src": pictures.src(s),
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
                "where": place_of(scores, int(v)),
                "roi": str(roi[v]).replace(";", ", "),
                "r": number(r[v]),
                "ceiling": number(ceiling[v]) if ceiling is not None else "–",
                "caption": str(line["caption"]),
                "failed": str(line["control"]) if "control" in best.columns else "",
                "score": number(line["score"]) if "score" in best.columns else "–",
            }
        )
    return rows
