"""Captions of simulated cortex against what was planted in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.data.simulate import families_in_caption, names_member


def judge_planted(captions: pd.DataFrame, truth: xr.Dataset) -> pd.DataFrame:
    """Whether the captions of each selective voxel name what drives it.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, rank, caption``.
    truth : Dataset over ``voxel``
        Of :func:`neuroenc.data.simulate.simulate_cortex`: ``family, second_family, members, mixed``.

    Returns
    -------
    DataFrame
        One row for each captioned voxel with a planted family: ``voxel, family`` and whether the best caption names
        the family (either of two for mixed voxels, ``named_family``), one of the planted members (``named_member``);
        for mixed voxels whether the best caption (``both_best``) or all captions together (``both``) name both
        families.

    Examples
    --------
    >>> names = {"family": "face", "second_family": "", "members": "man", "mixed": False}
    >>> truth = xr.Dataset({k: ("voxel", [v]) for k, v in names.items()}, coords={"voxel": [7]})
    >>> said = pd.DataFrame({"voxel": [7], "rank": [1], "caption": ["a woman"]})
    >>> judge_planted(said, truth)[["named_family", "named_member"]].values.tolist()
    [[True, False]]
    """
    names = ["family", "second_family", "members", "mixed"]
    planted = pd.DataFrame({name: truth[name].values for name in names}, index=truth["voxel"].values)
    rows = []
    for voxel, several in captions.sort_values(["voxel", "rank"]).groupby("voxel", sort=False)["caption"]:
        about = planted.loc[voxel]
        if about["family"] == "":
            continue
        texts = [str(t) for t in several]
        wanted = {about["family"], about["second_family"]} - {""}
        best = families_in_caption(texts[0])
        said = set().union(*(families_in_caption(t) for t in texts))
        members = [m for m in str(about["members"]).split(";") if m]
        rows.append(
            {
                "voxel": voxel,
                "family": about["family"],
                "mixed": bool(about["mixed"]),
                "named_family": bool(best & wanted),
                "named_member": any(names_member(texts[0], m) for m in members),
                "both_best": wanted <= best if about["mixed"] else False,
                "both": wanted <= said if about["mixed"] else False,
            }
        )
    columns = ["voxel", "family", "mixed", "named_family", "named_member", "both_best", "both"]
    return pd.DataFrame(rows, columns=columns)


def planted_summary(judged: pd.DataFrame, prefix: str = "planted_") -> dict[str, Any]:
    """Shares over voxels; those of mixed voxels apart."""
    mixed = judged[judged["mixed"]] if len(judged) else judged

    def share(frame: pd.DataFrame, column: str) -> float | None:
        return float(np.mean(frame[column])) if len(frame) else None

    return {
        f"{prefix}n": len(judged),
        f"{prefix}family_named": share(judged, "named_family"),
        f"{prefix}member_named": share(judged, "named_member"),
        f"{prefix}n_mixed": len(mixed),
        f"{prefix}both_named": share(mixed, "both"),
        f"{prefix}both_in_best": share(mixed, "both_best"),
    }
