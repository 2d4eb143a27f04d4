"""Per-ROI tables of scores and captions, and the checks that they rest on."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError, nearest_names
from neuroenc.data import in_roi, roi_names

__all__ = [
    "ceiling_r",
    "check_captions",
    "check_scores",
    "frequent_words",
    "memberships",
    "normalised_r",
    "roi_summary",
]

NO_ROI = "no ROI"
ALL_VOXELS = "all voxels"

# Reading order from early to high-level cortex; names that are not listed follow by the alphabet.
_ORDER = (
    "V1",
    "V1v",
    "V1d",
    "V2",
    "V2v",
    "V2d",
    "V3",
    "V3v",
    "V3d",
    "hV4",
    "V4",
    "VO",
    "LO",
    "LOC",
    "OFA",
    "FFA",
    "FFA-1",
    "FFA-2",
    "EBA",
    "FBA",
    "FBA-1",
    "FBA-2",
    "PPA",
    "OPA",
    "RSC",
    "VWFA",
    "OWFA",
    "food",
)

_STOP_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "has",
        "have",
        "her",
        "his",
        "in",
        "into",
        "is",
        "it",
        "its",
        "near",
        "of",
        "off",
        "on",
        "one",
        "or",
        "over",
        "some",
        "that",
        "the",
        "their",
        "there",
        "these",
        "they",
        "this",
        "to",
        "two",
        "up",
        "very",
        "was",
        "were",
        "which",
        "while",
        "who",
        "with",
        "under",
        "beside",
        "behind",
        "next",
        "front",
        "above",
        "below",
        "between",
    )
)
_WORD = re.compile(r"[^\W\d_]+")


def check_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return ``scores`` if a report can be made of it."""
    if not isinstance(scores, xr.Dataset):
        raise DataError(
            f"scores is a {type(scores).__name__}; an xarray.Dataset over 'voxel' is needed. "
            "Next step: scores.to_dataset(name='r')."
        )
    if "r" not in scores.data_vars:
        raise DataError(
            f"scores has no variable 'r' (found: {', '.join(map(str, scores.data_vars)) or 'none'}). "
            "Next step: scores['r'] = ('voxel', pearson r of each voxel)."
        )
    if scores["r"].dims != ("voxel",):
        raise DataError(f"scores['r'] has dims {scores['r'].dims}; legal: ('voxel',).")
    if scores["r"].dtype.kind not in "fiu":
        raise DataError(f"scores['r'] has dtype {scores['r'].dtype}; legal: real numbers.")
    if scores.sizes["voxel"] == 0:
        raise DataError("scores holds 0 voxels; there is nothing to report. Next step: look at the voxel mask.")
    if "voxel" not in scores.coords:
        scores = scores.assign_coords(voxel=np.arange(scores.sizes["voxel"]))
    ids = scores["voxel"].values
    if len(np.unique(ids)) != len(ids):
        raise DataError(
            f"scores has {len(ids)} voxels but only {len(np.unique(ids))} distinct voxel numbers. "
            "Next step: give every voxel of every subject its own number."
        )
    return scores


def check_captions(captions: pd.DataFrame, scores: xr.Dataset, needed: tuple[str, ...], what: str) -> pd.DataFrame:
    """Return the table sorted by voxel and rank, if it has the columns and speaks of voxels in ``scores``."""
    for column in needed:
        if column not in captions.columns:
            close = nearest_names(column, [str(c) for c in captions.columns])
            hint = f"; nearest is {close[0]!r}" if close else ""
            found = ", ".join(map(str, captions.columns))
            raise DataError(f"{what} has no column {column!r}{hint} (found: {found}).")
    strangers = ~captions["voxel"].isin(scores["voxel"].values)
    if strangers.any():
        shown = captions.loc[strangers, "voxel"].unique()
        raise DataError(
            f"{what} speaks of {len(shown)} voxels that scores does not hold (first: {shown[0]}). "
            f"Next step: select {what} and scores from the same voxels."
        )
    keys = ["voxel", "rank"] if "rank" in captions.columns else ["voxel"]
    return captions.sort_values(keys, kind="stable").reset_index(drop=True)


def has_caption(captions: pd.DataFrame) -> pd.Series:
    """Rows that hold a caption at all; a gated voxel may be listed with an empty one."""
    return captions["caption"].notna() & (captions["caption"].astype(str).str.strip() != "")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts "area 2" before "area 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def memberships(scores: xr.Dataset) -> dict[str, np.ndarray]:
    """Voxels (bool mask) of every ROI; a voxel of several ROIs counts in each of them."""
    n = scores.sizes["voxel"]
    if "roi" not in scores.coords:
        return {ALL_VOXELS: np.ones(n, bool)}
    names = roi_names(scores)
    if not names:
        return {ALL_VOXELS: np.ones(n, bool)}
    known = {name: place for place, name in enumerate(_ORDER)}
    result = {
        name: in_roi(scores, name) for name in sorted(names, key=lambda x: (known.get(x, len(known)), _natural(x)))
    }
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


def roi_summary(scores: xr.Dataset, captions: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per ROI: how many voxels, and the medians of accuracy, ceiling and their ratio.

    Parameters
    ----------
    scores : xarray.Dataset over ``voxel``
        ``r`` (Pearson correlation) and optionally ``noise_ceiling_r`` (correlation) or
        ``noise_ceiling_r2`` (share of variance; its root is used) and ``r_normalised``. The coordinate
        ``roi`` may name several ROIs joined by ";": the voxel counts in each. Voxels outside every ROI
        form the row "no ROI"; without any ROI there is one row, "all voxels".
    captions : pandas.DataFrame, optional
        With columns ``voxel`` and ``caption``; adds how many voxels have a caption and how many have not.

    Returns
    -------
    pandas.DataFrame
        ``roi``, ``n_voxels``, ``median_r``, ``median_ceiling_r``, ``median_r_normalised`` (NaN where
        unknown) and, with captions, ``n_captioned``, ``n_without_caption``.

    Raises
    ------
    DataError
        If scores has no ``r`` over ``voxel``, or captions speaks of voxels that scores does not hold.

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
    captioned = None
    if captions is not None:
        captions = check_captions(captions, scores, ("voxel", "caption"), "captions")
        captioned = np.isin(scores["voxel"].values, captions.loc[has_caption(captions), "voxel"])
    rows = []
    for name, mask in memberships(scores).items():
        row = {
            "roi": name,
            "n_voxels": int(mask.sum()),
            "median_r": median(r, mask),
            "median_ceiling_r": median(ceiling, mask),
            "median_r_normalised": median(ratio, mask),
        }
        if captioned is not None:
            row["n_captioned"] = int((mask & captioned).sum())
            row["n_without_caption"] = int((mask & ~captioned).sum())
        rows.append(row)
    return pd.DataFrame(rows)


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
    if "rank" in best.columns:
        best = best.sort_values("rank", kind="stable")
    best = best.drop_duplicates("voxel")
    counts: Counter[str] = Counter()
    for text in best["caption"].astype(str):
        counts.update({word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS and len(word) > 1})
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]
    return [(word, count / len(best)) for word, count in ranked]
