"""Regions and other groups of voxels, and their tables of scores and words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole
from neuroenc._core.schema import check_scores
from neuroenc.captions import nouns
from neuroenc.data import in_roi, roi_names
from neuroenc.encoders.comparison import Group, find_groups

NO_ROI = "no ROI"
ALL_VOXELS = "all voxels"

# Reading order from early to high-level cortex; names that are not listed follow by the alphabet.
_EARLY_TO_LATE = """
V1 V1v V1d V2 V2v V2d V3 V3v V3d hV4 V4 VO LO LOC OFA FFA FFA-1 FFA-2 EBA FBA FBA-1 FBA-2 PPA OPA RSC VWFA OWFA
food
"""
_KNOWN = {name: place for place, name in enumerate(_EARLY_TO_LATE.split())}
_FUNCTION_WORDS = """
a above an and are as at be behind below beside between by for from front has have her his in into is it its
near next of off on one or over some that the their there these they this to two under up very was were which
while who with
"""


def has_caption(captions: pd.DataFrame) -> pd.Series:
    """Rows that hold a caption at all; a gated voxel may be listed with an empty one."""
    return captions["caption"].notna() & (captions["caption"].astype(str).str.strip() != "")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts "area 2" before "area 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _reading(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sorting key of regions: from early to late, then by name."""
    return _KNOWN.get(name, len(_KNOWN)), _natural(name)


def memberships(scores: xr.Dataset) -> dict[str, np.ndarray]:
    """Voxels (bool mask) of every ROI; a voxel of several ROIs counts in each of them."""
    names = roi_names(scores) if "roi" in scores.coords else []
    if not names:
        return {ALL_VOXELS: np.ones(scores.sizes["voxel"], bool)}
    result = {name: in_roi(scores, name) for name in sorted(names, key=_reading)}
    outside = ~np.any(list(result.values()), axis=0)
    if outside.any():
        result[NO_ROI] = outside
    return result


def ceiling_r(scores: xr.Dataset) -> np.ndarray | None:
    """Noise ceiling in units of correlation, float64 (voxel,); from the variance form if only that is there."""
    if "noise_ceiling_r" in scores:
        return np.asarray(scores["noise_ceiling_r"].values, float)
    if "noise_ceiling_r2" in scores:
        return np.sqrt(np.clip(np.asarray(scores["noise_ceiling_r2"].values, float), 0, None))
    return None


def normalised_r(scores: xr.Dataset) -> np.ndarray | None:
    """``r`` over its ceiling, float64 (voxel,); NaN where the ceiling is not positive."""
    if "r_normalised" in scores:
        return np.asarray(scores["r_normalised"].values, float)
    ceiling = ceiling_r(scores)
    if ceiling is None:
        return None
    r = np.asarray(scores["r"].values, float)
    return np.divide(r, ceiling, out=np.full_like(r, np.nan), where=ceiling > 0)


def median(values: np.ndarray | None, mask: np.ndarray | None = None) -> float:
    """Median of the finite values, NaN where there are none."""
    if values is None:
        return float("nan")
    kept = values if mask is None else values[mask]
    kept = kept[np.isfinite(kept)]
    return float(np.median(kept)) if kept.size else float("nan")


def mean(values: np.ndarray) -> float:
    """Mean of the finite values, NaN where there are none."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")


def roi_summary(scores: xr.Dataset) -> pd.DataFrame:
    """One row per ROI: how many voxels, and the medians of accuracy, ceiling and their ratio.

    Parameters
    ----------
    scores : xarray.Dataset over ``voxel``
        ``r`` (Pearson correlation) and optionally ``noise_ceiling_r`` (correlation) or
        ``noise_ceiling_r2`` (share of variance; its root is used) and ``r_normalised``. The coordinate
        ``roi`` may name several ROIs joined by ";": the voxel counts in each. Voxels outside every ROI
        form the row "no ROI"; without any ROI there is one row, "all voxels".

    Returns
    -------
    pandas.DataFrame
        ``roi``, ``n_voxels``, ``median_r``, ``median_ceiling_r``, ``median_r_normalised`` (NaN where unknown).

    Examples
    --------
    >>> import xarray as xr
    >>> scores = xr.Dataset(
    ...     {"r": ("voxel", [0.2, 0.4, 0.6]), "noise_ceiling_r": ("voxel", [0.4, 0.8, 0.8])},
    ...     coords={"voxel": [0, 1, 2], "roi": ("voxel", ["FFA", "FFA;OFA", ""])},
    ... )
    >>> roi_summary(scores).round(2)
          roi  n_voxels  median_r  median_ceiling_r  median_r_normalised
    0     OFA         1       0.4               0.8                 0.50
    1     FFA         2       0.3               0.6                 0.50
    2  no ROI         1       0.6               0.8                 0.75
    """
    scores = check_scores(scores)
    r, ceiling, ratio = np.asarray(scores["r"].values, float), ceiling_r(scores), normalised_r(scores)
    masks = memberships(scores)
    table = pd.DataFrame({"roi": list(masks), "n_voxels": [int(mask.sum()) for mask in masks.values()]})
    for name, values in (("median_r", r), ("median_ceiling_r", ceiling), ("median_r_normalised", ratio)):
        table[name] = [median(values, mask) for mask in masks.values()]
    return table


def frequent_words(captions: pd.DataFrame, n: int = 8) -> list[tuple[str, float]]:
    """Words that most voxels' best caption holds, each with the share of voxels.

    Parameters
    ----------
    captions : pandas.DataFrame
        Columns ``voxel``, ``caption`` and optionally ``rank``; a voxel's lowest rank is its best caption.
    n : int
        How many words at most.

    Returns
    -------
    list of (str, float)
        Word in lower case and share of captioned voxels in (0, 1], most frequent first; function words
        are left out and a word counts once per voxel.

    Examples
    --------
    >>> import pandas as pd
    >>> frequent_words(pd.DataFrame({"voxel": [1, 2], "caption": ["a red face", "the face of a dog"]}), n=1)
    [('face', 1.0)]
    """
    check_whole("n", n, least=0)
    best = captions[has_caption(captions)]
    best = (best.sort_values("rank", kind="stable") if "rank" in best.columns else best).drop_duplicates("voxel")
    found = nouns(best[["caption"]], stop=_FUNCTION_WORDS.split()).head(n)
    return list(zip(found["word"], found["share"]))


def groups_of(scores: xr.Dataset) -> list[Group]:
    """All voxels, every region from early to late, and every value of a text coordinate that several voxels share."""
    groups = [g for g in find_groups(scores) if g.kind != "hemi"]
    kinds = [g.kind for g in groups]
    # One value for each voxel is a label, no group.
    kept = [g for g in groups if g.kind == "roi" or kinds.count(g.kind) <= max(1, scores.sizes["voxel"] // 2)]
    known = list(dict.fromkeys(kinds))
    return sorted(
        kept, key=lambda g: (known.index(g.kind), *(_reading(g.name) if g.kind == "roi" else (0, _natural(g.name))))
    )


def by_kind(groups: Sequence[Group], limit: int) -> tuple[list[Group], str]:
    """At most ``limit`` groups, the largest of every kind, in their order, and what was left out."""
    kept = list(groups)
    while len(kept) > limit:
        kinds = [g.kind for g in kept if g.kind != "all"]
        most = max(dict.fromkeys(kinds), key=kinds.count)
        # Of equals, the last goes.
        smallest = min((g for g in reversed(kept) if g.kind == most), key=lambda g: len(g.voxels))
        kept.remove(smallest)
    said = "" if len(kept) == len(groups) else f"The {len(kept)} largest of {len(groups)} groups are drawn."
    return kept, said


def group_medians(values: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """Medians (row, group) over the voxels where ``values`` (row, voxel) are defined; NaN without any."""
    rows = [[median(row[g.voxels]) for g in groups] for row in np.asarray(values, float)]
    return np.array(rows).reshape(len(values), len(groups))


def shares_of(labels: np.ndarray, classes: Sequence[str], groups: Sequence[Group]) -> np.ndarray:
    """Share of each class (class, group) among the voxels that have a label; NaN without any."""
    out = np.full((len(classes), len(groups)), np.nan)
    for g, group in enumerate(groups):
        known = labels[group.voxels][labels[group.voxels] != ""]
        if known.size:
            out[:, g] = [float((known == c).mean()) for c in classes]
    return out
