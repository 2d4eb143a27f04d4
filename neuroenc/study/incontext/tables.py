"""Support curves of several new subjects as tables and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.encoders.incontext import compare_methods, summarise_curve
from neuroenc.study.config import METHODS, EvaluateConfig

_RIDGE = METHODS["ridge"]
#: What in-context models are compared with at every size.
BASELINES = tuple(label for name, label in METHODS.items() if name not in ("in-context", "full"))


def joined(curves: Sequence[xr.Dataset], groups: str) -> xr.Dataset:
    """Subjects side by side, with the coordinates that all have."""
    shared = set.intersection(*(set(map(str, c.coords)) for c in curves))
    kept = {"method", "size", "draw", "voxel", "subject", "direction", groups} & shared
    some = any("noise_ceiling" in c for c in curves)
    parts = []
    for curve in curves:
        if some and "noise_ceiling" not in curve:
            curve = curve.assign(noise_ceiling=("voxel", np.full(curve.sizes["voxel"], np.nan)))
        parts.append(
            curve.reset_coords(drop=True)
            .assign_coords({k: curve.coords[k] for k in kept if k != "voxel"})
            .drop_vars("voxel", errors="ignore")
        )
    # The order of methods and sizes is that of the config, whatever a subject lacks.
    methods = list(dict.fromkeys(m for c in curves for m in c["method"].values.tolist()))
    whole = xr.concat(parts, "voxel", join="outer", combine_attrs="drop")
    return whole.sel({"method": methods, "size": sorted(whole["size"].values.tolist())})


def kinds(curve: xr.Dataset, groups: str) -> list[str]:
    """Coordinates that a table is grouped by, beside all voxels."""
    found = [k for k in ("direction", "subject") if k in curve.coords and len(np.unique(curve[k].values)) > 1]
    return found + ([groups] if groups and groups not in found else [])


def curve_table(curve: xr.Dataset, fulls: Sequence[xr.DataArray | None], wanted: EvaluateConfig) -> pd.DataFrame:
    """Rows of all voxels, then of each kind of group; the fully trained encoder at the size of its pool."""
    settings: dict[str, Any] = {"n_bootstraps": wanted.n_bootstraps, "seed": wanted.seed}
    pieces = [curve]
    if fulls and all(f is not None for f in fulls):
        pool = int(np.median([f.attrs["n_pool"] for f in fulls if f is not None]))
        values = np.concatenate([f.values for f in fulls if f is not None])[None, None, None]
        dims = ("method", "size", "draw", "voxel")
        held = {k: v for k, v in curve.coords.items() if v.dims == ("voxel",)}
        whole = xr.Dataset(
            {"explained_variance": (dims, values)},
            coords={**held, "method": [METHODS["full"]], "size": [pool], "draw": [0]},
        )
        if "noise_ceiling" in curve:
            whole["noise_ceiling"] = curve["noise_ceiling"]
        pieces.append(whole)
    frames = []
    for n, kind in enumerate(["all", *kinds(curve, wanted.groups)]):
        for piece in pieces:
            frame = summarise_curve(piece, groups=None if kind == "all" else kind, **settings)
            if "noise_ceiling" in piece:
                scaled = summarise_curve(piece, groups=None if kind == "all" else kind, normalise=True, **settings)
                frame["normalised"] = scaled["explained_variance"]
            frame.insert(1, "kind", kind)
            frames.append(frame if n == 0 else frame[frame["group"] != "all"])
    table = pd.concat(frames, ignore_index=True)
    return table[table["n_voxels"] > 0].reset_index(drop=True)


def comparison_table(curve: xr.Dataset, wanted: EvaluateConfig) -> pd.DataFrame:
    """In-context models against every baseline, and baselines against cross-validated ridge; ``best`` marks rows whose
    second method is the baseline of the highest mean over all voxels at that size."""
    names = curve["method"].values.tolist()
    baselines = [name for name in names if name in BASELINES]
    pairs = [(name, other) for name in names if name not in BASELINES for other in baselines]
    pairs += [(name, _RIDGE) for name in baselines if _RIDGE in baselines and name != _RIDGE]
    best = best_baselines(curve)
    frames = []
    for first, second in pairs:
        for n, kind in enumerate(["all", *kinds(curve, wanted.groups)]):
            frame = compare_methods(
                curve,
                first,
                second,
                groups=None if kind == "all" else kind,
                n_bootstraps=wanted.n_bootstraps,
                seed=wanted.seed,
            )
            frame.insert(2, "kind", kind)
            frame["best"] = frame["size"].map(best) == second
            frames.append(frame if n == 0 else frame[frame["group"] != "all"])
    if not frames:
        columns = ["a", "b", "kind", "group", "size", "difference", "low", "high", "p", "relative", "best"]
        return pd.DataFrame(columns=columns)
    table = pd.concat(frames, ignore_index=True)
    return table[table["n_voxels"] > 0].reset_index(drop=True)


def best_baselines(curve: xr.Dataset) -> dict[int, str]:
    """The baseline of the highest mean explained variance over all voxels and draws, by support size."""
    names = [name for name in curve["method"].values.tolist() if name in BASELINES]
    if not names:
        return {}
    means = curve["explained_variance"].sel({"method": names}).mean(["draw", "voxel"])
    found = {}
    for size in curve["size"].values.tolist():
        values = means.sel({"size": size}).transpose("method").values
        if np.isfinite(values).any():
            found[int(size)] = names[int(np.nanargmax(values))]
    return found


def curve_summary(curve: xr.Dataset, table: pd.DataFrame, pairs: pd.DataFrame, n_subjects: int) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "n_subjects": n_subjects,
        "n_voxels": int(curve.sizes["voxel"]),
        "n_draws": int(curve.sizes["draw"]),
    }
    for row in table[table["kind"] == "all"].to_dict("records"):
        summary[f"explained_variance:{row['method']}:{row['size']}"] = row["explained_variance"]
        if "normalised" in row and np.isfinite(row["normalised"]):
            summary[f"normalised:{row['method']}:{row['size']}"] = row["normalised"]
    summary |= {f"best_baseline:{size}": name for size, name in best_baselines(curve).items()}
    # What is claimed is claimed against the best baseline of that size.
    ours = pairs[(pairs["kind"] == "all") & pairs["best"].astype(bool) & ~pairs["a"].isin(BASELINES)]
    for row in ours.to_dict("records"):
        summary[f"relative:{row['a']}:{row['size']}"] = row["relative"]
        summary[f"p:{row['a']}:{row['size']}"] = row["p"]
    if len(ours):
        # At 50 trials, or the size nearest to it.
        first = ours[ours["a"] == ours["a"].iloc[0]]
        row = first.iloc[int((first["size"] - 50).abs().argmin())]
        summary["gain_size"], summary["relative_gain"] = int(row["size"]), float(row["relative"])
        summary["gain_baseline"] = str(row["b"])
    return summary
