"""Learning curves: accuracy over the number of training stimuli, of a run's encoder and of cells of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.tables import write_table
from neuroenc.encoders.comparison import Comparison
from neuroenc.encoders.incontext import summarise_curve, support_draws
from neuroenc.study.stages.distance import check_sizes
from neuroenc.study.stages.fit import Fold, fit_folds
from neuroenc.study.stages.load import standardised
from neuroenc.study.study import Study, stage

#: Draws of the training stimuli where there is one fold only.
_DRAWS = 3


def nested(train: np.ndarray, ids: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Training rows of the first 10, 20, ... stimuli of one random order; smaller sizes are part of larger ones.

    >>> ids = np.array(["a", "a", "b", "c", "d"])
    >>> small, large = nested(np.arange(5), ids, [2, 3], seed=0)
    >>> set(small) < set(large), len(np.unique(ids[small])), len(np.unique(ids[large]))
    (True, 2, 3)
    """
    names = np.unique(ids[train])
    drawn = support_draws(len(names), sizes, 1, seed=seed)
    return [train[np.isin(ids[train], names[drawn[size, 0]])] for size in sizes]


@stage(
    "learn",
    reads=("subjects", "splits", "spaces", "predictions", "config.encoder", "config.evaluation", "config.seed"),
    writes=("learning",),
)
def learn(study: Study) -> dict[str, Any]:
    """Explained variance over the number of training stimuli; draws are the folds, or three orders of one fold."""
    config, seed = study.config.evaluation, study.config.seed
    if not config.learning_curve:
        if study.out is not None:  # that of another config
            (study.out / "learning_curve.csv").unlink(missing_ok=True)
        return {"learning": None}
    rows = [one.responses["stimulus"].values.astype(str) for one in study.subjects]
    whole = min(len(np.unique(ids[train])) for ids, folds in zip(rows, study.splits) for train, _ in folds)
    sizes = [n for n in config.learning_curve if n < whole]
    jobs, plans = [], []
    for name, space in study.spaces.items():
        for one, ids, folds in zip(study.subjects, rows, study.splits):
            draws = folds if len(folds) > 1 else list(folds) * _DRAWS
            plan: list[Fold] = []
            for k, (train, test) in enumerate(draws):
                plan += [(part, test) for part in [*nested(train, ids, sizes, seed + k), np.sort(train)]]
            jobs.append((one, space, plan, standardised(study, name)))
            plans.append((name, one, len(draws)))
    found: dict[str, list[xr.DataArray]] = {name: [] for name in study.spaces}
    for (name, one, n_draws), (_, _, plan, _), results in zip(plans, jobs, fit_folds(study, jobs)):
        scores = [
            stats.explained_variance(one.responses.values[test], result["predicted"])
            for (_, test), result in zip(plan, results)
        ]
        values = np.reshape(scores, (n_draws, len(sizes) + 1, -1)).transpose(1, 0, 2)
        found[name].append(xr.DataArray(values, dims=("size", "draw", "voxel")))
    whole_curve = xr.concat([xr.concat(parts, "voxel") for parts in found.values()], "method")
    curve = xr.Dataset({"explained_variance": whole_curve}, coords={"method": list(found), "size": [*sizes, whole]})
    table = summarise_curve(curve, seed=seed).drop(columns="group")
    parts: dict[str, Any] = {"table": table, "laws": law_table(table)}
    if study.out is not None:
        write_table(table, study.out / "learning_curve.csv", float_format="%.6g")
    return {"learning": parts}


def law_table(table: pd.DataFrame) -> pd.DataFrame:
    """By method, the power law of its curve, and the score that is expected at twice the largest size.

    Twice is told only where the law foretells the largest size from the smaller ones, to within .01.
    """
    rows = []
    for name, part in table.groupby("method", sort=False):
        part = part.dropna(subset=["explained_variance"]).sort_values("size")
        if len(part) < 4:
            continue
        law = stats.fit_power_law(part["size"], part["explained_variance"])
        expected = law.expected(2 * law.largest)
        rows.append(
            {
                "method": name,
                "exponent": law.exponent,
                "miss": law.miss,
                "twice": 2 * law.largest,
                "expected_at_twice": np.nan if expected is None else expected,
                "why_not": law.reason,
            }
        )
    return pd.DataFrame(rows)


def learning_summary(parts: dict[str, Any]) -> dict[str, Any]:
    """Figures of a learning curve, flat."""
    table = parts["table"]
    told = {
        f"explained_variance:{row.method}:{row.size_}": float(row.explained_variance)
        for row in table.rename(columns={"size": "size_"}).itertuples()
    }
    for row in parts["laws"].to_dict("records"):
        if np.isfinite(row["expected_at_twice"]):
            told[f"expected_explained_variance:{row['method']}:{row['twice']}"] = float(row["expected_at_twice"])
    return told


def cell_curves(
    fit: Callable[[list[Fold]], Comparison],
    whole: Comparison,
    folds: Sequence[Fold],
    ids: np.ndarray,
    sizes: Sequence[int],
    seed: int,
) -> pd.DataFrame:
    """Median r of every cell over the number of training stimuli: ``method, size, median_r, low, high``.

    Parameters
    ----------
    fit : callable
        Compares the same cells on given folds.
    whole : Comparison
        On all training stimuli.
    """
    check_sizes(list(sizes), list(folds), ids, "[compare]")
    most = min(len(np.unique(ids[train])) for train, _ in folds)
    sizes = [n for n in sizes if n < most]
    parts = [nested(train, ids, sizes, seed + k) for k, (train, _) in enumerate(folds)]
    tables = []
    for s, size in enumerate([*sizes, most]):
        found = whole if size == most else fit([(part[s], test) for part, (_, test) in zip(parts, folds)])
        table = found.table().query("kind == 'all'")
        tables.append(table[["cell", "median_r", "low", "high"]].rename(columns={"cell": "method"}).assign(size=size))
    return pd.concat(tables, ignore_index=True)[["method", "size", "median_r", "low", "high"]]
