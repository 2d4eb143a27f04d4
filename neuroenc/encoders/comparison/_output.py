"""Files of a comparison: tables, voxels, summary, and what every cell cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core import tables
from neuroenc._core.files import write_json
from neuroenc.data import save
from neuroenc.encoders.comparison._cells import Cell
from neuroenc.encoders.comparison._grid import Job
from neuroenc.encoders.comparison._statistics import Group, closest_rival
from neuroenc.encoders.comparison._store import Fitted

if TYPE_CHECKING:
    from neuroenc.encoders.comparison._result import Comparison

__all__ = ["cell_costs", "summarise", "write_files"]


def cell_costs(
    cells: Sequence[Cell],
    jobs: Mapping[str, Sequence[Job]],
    fits: Mapping[str, Sequence[tuple[Job, Fitted]]],
    responses: xr.DataArray,
    groups: Sequence[Group],
) -> pd.DataFrame:
    """Rows that the voxels of each group saw, and parameters, budget and seconds of each cell."""
    seen = ~np.isnan(responses.values)
    rows: list[dict[str, Any]] = []
    for cell in cells:
        n_folds = 1 + max(job.fold for job in jobs[cell.name])
        counts = np.zeros((3, n_folds, seen.shape[1]))
        for job in jobs[cell.name]:
            for part, index in enumerate((job.rows.train, job.rows.validation, job.rows.test)):
                counts[part, job.fold, job.voxels] = seen[:, job.voxels][index].sum(axis=0)
        records = pd.DataFrame([fitted.record for _, fitted in fits[cell.name]])
        epochs = records["best_epoch"].dropna()
        cost = {
            "features": cell.features,
            "core": cell.core,
            "readout": cell.readout,
            "n_candidates": int(records["n_candidates"].iloc[0]),
            "n_parameters": round(records.groupby("fold")["n_parameters"].sum().mean()),
            "best_epoch": float(epochs.astype(float).median()) if len(epochs) else np.nan,
            "seconds": float(records["seconds"].sum()),
            "seconds_per_fit": float(records["seconds_per_fit"].mean()),
        }
        for group in groups:
            n = [int(np.median(part[:, group.voxels])) for part in counts]
            place = {"cell": cell.name, "kind": group.kind, "group": group.name}
            rows.append({**place, **dict(zip(("n_train", "n_validation", "n_test"), n)), **cost})
    return pd.DataFrame(rows)


def summarise(comparison: Comparison, q: float = 0.05) -> dict[str, Any]:
    """Flat summary, its numbers those of `Comparison.table` and `Comparison.pairwise`.

    ``best_cell`` has the highest median validation r, ``best_median_r`` is its test r; ``selected_median_r`` is that
    of the choice nested in the folds; ``highest_cell`` has the highest median test r. ``rival`` is the cell that the
    best leads by least (or that leads it by most), with the paired difference ``best_difference``, its interval, p and
    q, and ``best_verdict`` in words. ``median_r:CELL`` for each cell, ``share_tie`` the share of voxels without a
    separable winner, and numbers of voxels, stimuli and resamples.
    """
    scores, cells = comparison.scores, comparison.cells
    table = comparison.table()
    table = table[table["kind"] == "all"].set_index("cell")
    medians = {c: float(table["median_r"][c]) for c in cells}
    inner = {c: float(np.nanmedian(scores["validation_r"].sel(cell=c).values)) for c in cells}
    best = comparison.best_cell()
    summary: dict[str, Any] = {
        "n_cells": len(cells),
        "n_voxels": comparison.responses.shape[1],
        "n_stimuli": len(np.unique(comparison.responses["stimulus"].values)),
        "n_bootstraps": comparison.n_bootstraps,
        "seed": comparison.seed,
        "q_level": q,
        "best_cell": best,
        "best_median_r": medians[best],
        "best_validation_r": inner[best],
        "selected_median_r": float(np.nanmedian(comparison.selected()["r"].values)),
        "highest_cell": max(cells, key=lambda c: np.nan_to_num(medians[c], nan=-np.inf)),
    }
    if "median_r_normalised" in table:
        summary["best_median_r_normalised"] = float(table["median_r_normalised"][best])
    if len(cells) > 1:
        found = closest_rival(best, comparison.pairwise(q), q)
        summary.update(
            rival=found["rival"],
            rival_median_r=medians[found["rival"]],
            best_difference=found["difference"],
            best_difference_low=found["low"],
            best_difference_high=found["high"],
            best_difference_p=found["p"],
            best_difference_q=found["q"],
            best_verdict=found["verdict"],
        )
        winner = comparison.winner(q)["winner"].values
        summary["share_tie"] = float((winner == "tie").mean())
        summary.update({f"share_winner:{c}": float((winner == c).mean()) for c in cells})
    summary.update({f"median_r:{c}": medians[c] for c in cells})
    summary.update({f"validation_r:{c}": inner[c] for c in cells})
    records = comparison.records()
    summary["seconds_fits"] = round(float(records["seconds"].sum()), 1)
    summary["n_fits"] = len(records)
    return summary


def write_table(table: pd.DataFrame, path: Path) -> None:
    """CSV, whole or not at all, without cells that a spreadsheet would run."""
    tables.write_table(table, path, float_format="%.8g")


def voxel_file(comparison: Comparison, q: float = 0.05) -> xr.Dataset:
    """Scores of every cell and voxel with the winner, receptive fields and spreads."""
    found = comparison.scores
    if len(comparison.cells) > 1:
        found = found.merge(comparison.winner(q), join="exact", compat="override")
    for part in (comparison.receptive_fields(), comparison.warp_spread()):
        if part is not None:
            found = found.merge(part, join="exact", compat="override")
    return found.assign_attrs(
        {k: v for k, v in comparison.responses.attrs.items() if k in ("affine", "volume_shape", "space", "source")}
    )


def write_files(comparison: Comparison, folder: Path, q: float = 0.05) -> dict[str, Any]:
    """comparison.csv, pairwise.csv (with two cells or more), voxels.nc, summary.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(comparison.table(), folder / "comparison.csv")
    if len(comparison.cells) > 1:
        write_table(comparison.pairwise(q), folder / "pairwise.csv")
    save(voxel_file(comparison, q), folder / "voxels.nc")
    summary = summarise(comparison, q)
    write_json(folder / "summary.json", summary)
    return summary
