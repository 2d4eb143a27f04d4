"""Verdicts of controls, for all captions together and for each voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def verdict(than: str, p: float | None = None, interval: tuple[float, float] | None = None) -> str:
    """Whether a measure is above its control.

    Parameters
    ----------
    than : str
        What the control is.
    p : float, optional
        Of the difference; above its control where it is at most 0.05.
    interval : tuple of float, optional
        The measure's interval, minus its control: above it where all of it is.

    Returns
    -------
    str
        "above THAN", "not above THAN", or "not measured", with p where it is known.

    Examples
    --------
    >>> verdict("other voxels' captions", p=0.0099), verdict("chance", interval=(-0.1, 0.2))
    ("above other voxels' captions (p = 0.0099)", 'not above chance')
    """
    known = [x for x in ((p,) if p is not None else interval or ()) if x is not None and np.isfinite(x)]
    if not known:
        return "not measured"
    above = p <= 0.05 if p is not None else min(known) > 0
    shown = "" if p is None else f" (p = {p:.2g})"
    return f"{'above' if above else 'not above'} {than}{shown}"


def with_verdicts(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table of ``CaptionStudy.quality`` with what its controls say in the column ``verdict``.

    Tables of another name, or without the columns that are needed, come back as they are.
    """
    if not len(table):
        return table
    rows = table.to_dict("records")
    said: list[str] | None = None
    if name in ("sentence-level scores", "round trip") and "p" in table:
        said = [verdict("other voxels' captions", p=row["p"]) for row in rows]
    elif name == "stability" and {"low", "high", "shuffled_weights"} <= set(table):
        control = "shuffled_weights"
        said = [verdict("shuffled weights", interval=(r["low"] - r[control], r["high"] - r[control])) for r in rows]
    elif name == "hallucination rate" and {"low", "high", "chance"} <= set(table):
        # Few unsupported phrases are good ones: turned round.
        turned = [verdict("x", interval=(row["chance"] - row["high"], row["chance"] - row["low"])) for row in rows]
        said = [text.replace("above x", "below chance") for text in turned]
    elif len(table) == 2 and table.iloc[:, 0].tolist() == ["fitted weights", "shuffled weights"]:
        said = _of_pair(name, rows)
    return table if said is None else table.drop(columns="verdict", errors="ignore").assign(verdict=said)


def _of_pair(name: str, rows: list[dict[Any, Any]]) -> list[str] | None:
    """Captions of fitted weights beside those of shuffled ones, in two rows."""
    fitted, shuffled = rows
    if name == "diversity":
        if "semantic_variance_low" not in fitted:
            return None
        gap = fitted["semantic_variance_low"] - shuffled["semantic_variance_high"]
        return [verdict("shuffled weights", interval=(gap, gap)), "the control"]
    column = next((c for c in ("family_named", "both_named") if fitted.get(c) is not None), None)
    if column is None or shuffled.get(column) is None:
        return None
    n = max(int(fitted.get("n") or 1), 1)
    share, chance = float(fitted[column]), float(shuffled[column])
    # Two standard errors of the difference of two shares.
    half = 1.96 * np.sqrt((share * (1 - share) + chance * (1 - chance)) / n)
    return [verdict("shuffled weights", interval=(share - chance - half, share - chance + half)), "the control"]


def failed_controls(study: Any) -> pd.Series:
    """Controls that the best caption of each voxel does not exceed, joined by "; "; "" where it exceeds all of them.

    Compared are, where they were measured, the sentence-level score with that of other voxels' captions for the same
    voxel (of its region, where known), the percentile of the round trip with that of other voxels' captions, and the
    agreement of captions with that of shuffled weights; and what the column ``control`` of the captions says. A single
    voxel has no p: captions that say nothing fail about every second comparison.

    Returns
    -------
    Series of str
        By voxel, of those that have a caption; None where nothing was measured.

    Examples
    --------
    >>> import xarray as xr
    >>> from neuroenc.captions import CaptionStudy
    >>> said = pd.DataFrame({"voxel": [7, 9], "rank": 1, "caption": ["a dog", "a cat"], "score": 0.3})
    >>> study = CaptionStudy(
    ...     "two voxels", xr.Dataset({"r": ("voxel", [0.5, 0.4])}, coords={"voxel": [7, 9]}), captions=said,
    ...     evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
    ...     gate=pd.DataFrame({"voxel": [7, 9], "captioned": True, "reason": ""}),
    ...     sentence=pd.DataFrame({"voxel": [7, 9], "rho": [0.3, 0.0], "shuffled": [0.1, 0.1]}))
    >>> failed_controls(study).to_dict()
    {7: '', 9: 'sentence-level score'}
    """
    best = study.captions[study.captions["rank"] == 1].drop_duplicates("voxel").set_index("voxel")
    checks: list[tuple[str, pd.Series, Any]] = []
    if study.sentence is not None:
        told = study.sentence.drop_duplicates("voxel").set_index("voxel")
        null = next((c for c in ("shuffled_within_roi", "shuffled") if c in told and told[c].notna().any()), None)
        if null is not None:
            checks.append(("sentence-level score", told["rho"], told[null]))
    if {"round_trip", "round_trip_shuffled"} <= set(best):
        checks.append(("round trip", best["round_trip"], best["round_trip_shuffled"]))
    if study.stability is not None:
        stable = study.stability.drop_duplicates("voxel").set_index("voxel")
        for kind in (str(c) for c in stable if f"{c}_null" in stable):
            checks.append((f"stability, {kind}", stable[kind], stable[f"{kind}_null"]))
    measured, failed = pd.Series(False, index=best.index), pd.Series("", index=best.index, dtype=object)
    for name, value, null in checks:
        v, n = (np.asarray(x.reindex(best.index), dtype=float) for x in (value, null))
        known = np.isfinite(v) & np.isfinite(n)
        measured |= known
        bad = known & (v <= n)
        failed = failed.where(~bad, failed.map(lambda x, name=name: f"{x}; {name}" if x else name))
    if "control" in best:
        # What a control of all captions together said.
        told = best["control"].fillna("").astype(str)
        measured[:] = True
        failed = failed.where(told == "", told.where(failed == "", failed + "; " + told))
    return failed.where(measured, None)
