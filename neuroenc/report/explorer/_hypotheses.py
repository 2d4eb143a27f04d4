"""Hypotheses about regions, each with what supports it and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neuroenc.captions import CaptionStudy
from neuroenc.report import _regions as regions
from neuroenc.report._page import Block, Section
from neuroenc.report._style import number

_LEVEL = 0.05  # q below which held-out responses bear a caption out
_PER_REGION = 8  # phrases of a region, where no captions were tested
_COLUMNS = ["supported by", "failed"]


def hypotheses_section(
    study: CaptionStudy, name: str | None = None, pages: Mapping[str, str] | None = None
) -> Section | None:
    """Claims about one region, or about all of them with links to their ``pages``; None where nothing was checked.

    Claims are the captions that were tested on held-out responses (``quality["hypotheses"]``), with the phrases of
    their own voxels that the images and weights bear out; without such a test, the phrases that most voxels share.
    """
    tested = study.quality.get("hypotheses")
    if tested is not None and len(tested):
        table = _tested(study, tested)
        lead = (
            "The most frequent captions as claims about a region's mean response, tested on stimuli that neither "
            "weights nor captions have seen: ρ of the caption with measured responses, supported where "
            f"q ≤ {_LEVEL:g}. Phrases are those of the voxels that have the caption, by what most of their checks say."
        )
    elif study.phrases is not None and len(study.phrases):
        table = _phrases(study, _PER_REGION if name is not None else 3)
        lead = (
            "Phrases that most voxels of a region share, as claims about it: voxels of which the best images and the "
            "weights bear the phrase out, and voxels of which neither does. No caption was tested on held-out "
            "responses."
        )
    else:
        return None
    if name is not None:
        table = table[table["roi"] == name].drop(columns="roi")
    if not len(table):
        return None
    links = [pages.get(str(roi), "") for roi in table["roi"]] if pages is not None and "roi" in table else []
    return Section(
        "hypotheses", "Hypotheses and their support", lead, [Block(table=table, links=links)], nav="Hypotheses"
    )


def _tested(study: CaptionStudy, tested: pd.DataFrame) -> pd.DataFrame:
    masks, voxels = regions.memberships(study.scores), study.scores["voxel"].values
    names = {"none": regions.NO_ROI, "all": regions.ALL_VOXELS}
    subject = study.scores["subject"].values.astype(str) if "subject" in study.scores.coords else None
    best = study.captions[study.captions["rank"] == 1]
    lines = []
    for row in tested.to_dict("records"):
        roi = names.get(str(row["roi"]), str(row["roi"]))
        inside = masks.get(roi, np.zeros(len(voxels), bool))
        if subject is not None and "subject" in row:
            inside = inside & (subject == str(row["subject"]))
        own = best.loc[(best["caption"] == row["caption"]) & best["voxel"].isin(voxels[inside]), "voxel"]
        good, bad = _verdicts(study, own)
        held = f"held-out responses (ρ {number(row['rho_measured'], digits=2)}, q {number(row['q'], 'q')})"
        borne = bool(row["q"] <= _LEVEL and row["rho_measured"] > 0)
        line = {"roi": roi} | ({"subject": row["subject"]} if "subject" in row else {})
        line |= {"claim": row["caption"], "n_voxels": int(row["n_voxels"]), "predicted ρ": row["rho_predicted"]}
        texts = [([held] if borne else []) + good, ([] if borne else [held]) + bad]
        lines.append(line | {column: "; ".join(found) for column, found in zip(_COLUMNS, texts)})
    table = pd.DataFrame(lines)
    place = {roi: k for k, roi in enumerate(masks)}
    return table.iloc[np.argsort(table["roi"].map(place).fillna(len(place)), kind="stable")]


def _verdicts(study: CaptionStudy, voxels: pd.Series) -> tuple[list[str], list[str]]:
    """Phrases of these voxels' best captions that mostly are supported, and those that mostly are unsupported."""
    if study.phrases is None:
        return [], []
    told = study.phrases[study.phrases["voxel"].isin(voxels) & (study.phrases["rank"] == 1)]
    shares = {
        v: (told["verdict"] == v).groupby(told["phrase"], sort=False).mean() for v in ("supported", "unsupported")
    }
    found = [", ".join(f"“{p}”" for p, share in shares[v].items() if share > 0.5) for v in shares]
    return [found[0]] * bool(found[0]), [found[1]] * bool(found[1])


def _phrases(study: CaptionStudy, n: int) -> pd.DataFrame:
    assert study.phrases is not None
    voxels, lines = study.scores["voxel"].values, list[dict[str, Any]]()
    for roi, mask in regions.memberships(study.scores).items():
        told = study.phrases[study.phrases["voxel"].isin(voxels[mask])].drop_duplicates(["voxel", "phrase"])
        counts = told["phrase"].value_counts()
        for phrase, count in counts[counts > 1].head(n).items():
            mine = told[told["phrase"] == phrase]
            said = [f"{int((mine['verdict'] == v).sum())} of {count} voxels" for v in ("supported", "unsupported")]
            shown = mine["in_images"].mean() if "in_images" in mine else np.nan
            said[0] += f" (in {number(float(shown), 'share')} of their images)" if np.isfinite(shown) else ""
            lines.append({"roi": roi, "claim": phrase, "n_voxels": int(count), **dict(zip(_COLUMNS, said))})
    return pd.DataFrame(lines, columns=["roi", "claim", "n_voxels", *_COLUMNS])
