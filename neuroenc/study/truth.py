"""Captions of simulated cortex against what was planted in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.data.simulate import families_in_caption, names_member, scenes_showing


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


#: Differences of the noiseless response, in its standard deviations, from which a phrase is true, and up to which it
#: is false of a voxel; and scenes that must show it.
TRUE, FALSE, LEAST_SCENES = 0.3, 0.0, 20


def judge_phrases(phrases: pd.DataFrame, signal: xr.DataArray, table: pd.DataFrame) -> pd.DataFrame:
    """Whether each phrase is true of its voxel, by the noiseless responses to scenes that show it.

    "true" where scenes that show the phrase drive the voxel by 0.3 standard deviations more than the others do, "false"
    where they drive it no more, "undecidable" between, where fewer than 20 scenes show it, and where the phrase names
    nothing in the simulated world. What the phrase stands in, and what a checker says of it, play no part.

    Parameters
    ----------
    phrases : DataFrame
        ``voxel, phrase``.
    signal : DataArray (stimulus, voxel)
        Noiseless responses, ``truth["signal"]`` of :func:`neuroenc.data.simulate.simulate_cortex`.
    table : DataFrame
        ``table`` of the stimuli.

    Returns
    -------
    DataFrame
        The phrases with ``difference`` (in standard deviations; NaN where too few scenes show the phrase) and
        ``truth``.

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> world = simulate_world(300, seed=0)
    >>> likes = (world.table[["face"]] > 0).to_numpy(float)
    >>> signal = xr.DataArray(likes, dims=("stimulus", "voxel"), coords={"stimulus": world.ids, "voxel": [7]})
    >>> said = pd.DataFrame({"voxel": 7, "phrase": ["face", "cake", "middle"]})
    >>> judge_phrases(said, signal, world.table)["truth"].tolist()
    ['true', 'false', 'undecidable']
    """
    names = signal["stimulus"].values.astype(str)
    rows = pd.Index(table.index.astype(str)).get_indexer(names)
    values = np.asarray(signal.values, dtype=np.float64)
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)
    column = {v: k for k, v in enumerate(signal["voxel"].values.tolist())}
    known = {text: scenes_showing(text, table) for text in phrases["phrase"].unique()}
    found = np.full(len(phrases), np.nan)
    for k, (voxel, text) in enumerate(zip(phrases["voxel"], phrases["phrase"])):
        shown = known[text]
        inside = None if shown is None else shown[rows]
        if inside is not None and LEAST_SCENES <= inside.sum() <= len(inside) - LEAST_SCENES:
            y = values[:, column[voxel]]
            found[k] = y[inside].mean() - y[~inside].mean()
    truth = np.select([np.isnan(found), found >= TRUE, found <= FALSE], ["undecidable", "true", "false"], "undecidable")
    return phrases.assign(difference=found, truth=truth)


def checker_summary(judged: pd.DataFrame) -> dict[str, float]:
    """Shares of true and false phrases, and precision and recall of verdicts, over phrases that are true or false.

    >>> said = pd.DataFrame({"truth": ["true", "true", "false"], "verdict": ["supported", "uncertain", "unsupported"]})
    >>> {k: round(v, 2) for k, v in checker_summary(said).items() if "recall" in k}
    {'recall of supported': 0.5, 'recall of unsupported': 1.0}
    """
    n, decided = len(judged), judged[judged["truth"] != "undecidable"]
    out = {f"{name}": float((judged["truth"] == name).mean()) if n else np.nan for name in ("true", "false")}
    for verdict, truth in (("supported", "true"), ("unsupported", "false")):
        said, holds = decided["verdict"] == verdict, decided["truth"] == truth
        out[f"precision of {verdict}"] = float(holds[said].mean()) if said.any() else np.nan
        out[f"recall of {verdict}"] = float(said[holds].mean()) if holds.any() else np.nan
    return out
