"""Scores of held-out predictions: accuracy, noise ceilings, permutation p-values and false discovery rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data, stats
from neuroenc.data import group_ids
from neuroenc.encoders import cross_validated_p, fit_reduction
from neuroenc.study.config import EvaluationConfig
from neuroenc.study.stages.load import Subject, standardised
from neuroenc.study.study import Study, stage


@stage(
    "score",
    reads=(
        "subjects",
        "splits",
        "spaces",
        "predictions",
        "alphas",
        "config.encoder",
        "config.evaluation",
        "config.seed",
    ),
    writes=("scores", "scores_of"),
)
def score(study: Study) -> dict[str, Any]:
    """Scores of every voxel from every feature space; ``scores`` are those of the first space."""
    scores = {}
    for name, space in study.spaces.items():
        each = zip(study.subjects, study.splits, study.predictions[name], study.alphas[name])
        scale = standardised(study, name)
        parts = [score_subject(study, one, folds, space, found, a, scale) for one, folds, found, a in each]
        scores[name] = merge_subjects(study, parts)
    return {"scores": next(iter(scores.values())), "scores_of": scores}


def score_subject(
    study: Study,
    one: Subject,
    folds: Any,
    space: xr.DataArray,
    predicted: xr.DataArray,
    alphas: np.ndarray,
    scale: bool,
) -> xr.Dataset:
    """Scores of one subject's held-out rows, kept."""
    config, responses = study.config.evaluation, one.responses
    tested = np.isfinite(predicted.values).any(axis=1)
    ceilings = noise_ceilings(one.repeats, one.single, responses[tested])
    X, seed = data.match(space, responses).values, study.config.seed
    refit: dict[str, Any] = {
        "n_permutations": config.permutations,
        "null": config.permutation_null,
        "scale": scale,
        "seed": seed,
    }
    p_values = partial(_p_values, study, X, responses.values, folds, alphas, **refit)
    table = partial(score_table, responses, predicted, config, ceilings=ceilings, seed=seed)
    inputs = [X, study.content_of(responses), predicted.values, alphas, folds, ceilings, config, scale, seed]
    found = study.store.keep("scores", inputs, lambda: {"scores": table(p_values=p_values if len(folds) > 1 else None)})
    return found["scores"]


def _p_values(study: Study, X: np.ndarray, Y: np.ndarray, folds: Any, alphas: np.ndarray, **refit: Any) -> Any:
    """Permutation p-values of cross-validated predictions, on the features that each fold was fitted on."""
    encoder = study.config.encoder
    rows = np.unique(np.concatenate([test for _, test in folds]))
    if len(rows) < len(Y):
        # Rows that no fold tests cannot be exchanged with others.
        X, Y = X[rows], Y[rows]
        inside = [np.intersect1d(train, rows) for train, _ in folds]
        folds = [(np.searchsorted(rows, a), np.searchsorted(rows, test)) for a, (_, test) in zip(inside, folds)]
    if not encoder.reduce:
        return cross_validated_p(X, Y, folds, alphas, show=study.progress, **refit)
    own = []
    for train, _ in folds:
        part = X[train]
        scaling = (part.mean(axis=0), part.std(axis=0)) if refit["scale"] else None
        own.append(fit_reduction(part, encoder.reduce, encoder.n_components, scaling).apply(X))
    return cross_validated_p(own, Y, folds, alphas, show=study.progress, **{**refit, "scale": False})


def merge_subjects(study: Study, parts: list[xr.Dataset], number: bool = False) -> xr.Dataset:
    """Voxels of all subjects in one row, numbered anew where there are several (or with ``number``)."""
    if len(parts) == 1 and not number:
        return parts[0]
    named = [
        part.assign_coords(
            subject=("voxel", np.full(part.sizes["voxel"], one.name)), voxel_of_subject=("voxel", part["voxel"].values)
        )
        for one, part in zip(study.subjects, parts)
    ]
    whole = xr.concat(named, dim="voxel", combine_attrs="override", coords="different", compat="equals")
    return whole.assign_coords(voxel=np.arange(whole.sizes["voxel"]))


def noise_ceilings(repeats: xr.DataArray | None, prepared: xr.DataArray, scored: xr.DataArray) -> dict[str, np.ndarray]:
    """ncsnr and ceilings of the scored rows, where stimuli were repeated; else nothing.

    ``prepared`` are z-scored single presentations, or ``repeats`` are raw ones.
    """
    if repeats is None and prepared.dims[0] == "presentation":
        repeats = prepared
    if repeats is None or len(np.unique(repeats.coords["stimulus"].values)) == repeats.shape[0]:
        return {}
    total = "unit" if repeats.attrs.get("zscored", "none") != "none" else "empirical"
    weighting = "max_repeats" if total == "unit" else "df"
    ncsnr = stats.ncsnr(repeats.values, repeats.coords["stimulus"].values, total=total, weighting=weighting)
    counts: Any = 1
    if scored.dims[0] != "presentation":
        number = pd.Series(repeats.coords["stimulus"].values).value_counts()
        counts = number.reindex(scored.coords["stimulus"].values, fill_value=1).to_numpy()
    return {
        "ncsnr": ncsnr,
        "noise_ceiling_r": stats.noise_ceiling(ncsnr, counts, unit="r"),
        "noise_ceiling_r2": stats.noise_ceiling(ncsnr, counts, unit="r2"),
    }


def score_table(
    measured: xr.DataArray,
    predicted: xr.DataArray,
    config: EvaluationConfig,
    *,
    ceilings: dict[str, np.ndarray],
    seed: int,
    p_values: Callable[..., tuple[np.ndarray, dict[str, Any]]] | None = None,
) -> xr.Dataset:
    """Scores of every voxel with ceilings, permutation p-values and FDR q-values, labels kept.

    Parameters
    ----------
    measured, predicted : DataArray (row, voxel)
        Rows with NaN predictions are left out.
    p_values : callable, optional
        Gives p-values and their facts for ``groups`` to shuffle (or with ``shift`` to rotate) within, or None, for
        cross-validated predictions; without it, responses are shuffled against the predictions, which is right for a
        test set apart.
    """
    tested = np.isfinite(predicted.values).any(axis=1)
    y, p = measured.values[tested], predicted.values[tested]
    voxels = {str(k): c for k, c in measured.coords.items() if c.dims == ("voxel",)}
    out = xr.Dataset(coords=voxels)
    note = {"n_stimuli": int(tested.sum()), "split": config.scheme}
    for metric in ("r", "r2", "ev"):
        out[metric] = ("voxel", stats.score(y, p, metric=metric), {"metric": metric, **note})
    for name, values in ceilings.items():
        unit = {"noise_ceiling_r": "correlation", "noise_ceiling_r2": "share of variance"}.get(name, "")
        out[name] = ("voxel", values, {"ceiling": "ncsnr", "unit": unit})
    if "noise_ceiling_r" in ceilings:
        values = stats.normalise(out["r"].values, ceilings["noise_ceiling_r"], score_unit="r", ceiling_unit="r")
        out["r_normalised"] = ("voxel", values, {"metric": "r / noise_ceiling_r", "ceiling": "correlation", **note})
    if config.permutations:
        blocks, mode = None, config.permutation_mode
        if mode == "auto":
            mode = "shift" if data.is_series(measured) else "samples"
        if mode != "samples":
            kind = next((k for k in ("run", "session") if k in measured.coords), None)
            # Runs are counted anew in every session (and subject).
            blocks = None if kind is None else group_ids(measured, kind)[0][tested]
        facts: dict[str, Any] = {"mode": mode}
        if p_values is not None:
            chance, found = p_values(groups=blocks, shift=mode == "shift")
            facts.update(found)
        else:
            # Labelled, a time series is refused where its volumes would be shuffled.
            rows = measured[np.flatnonzero(tested)] if data.is_series(measured) else y
            how: dict[str, Any] = {"n_permutations": config.permutations, "seed": seed}
            test = stats.permutation_test(rows, p, mode=mode, blocks=blocks, **how)
            chance = test.p
            facts.update(n_permutations=int(test.n_permutations), null="fixed predictions")
        out["p_value"] = ("voxel", chance, facts)
        out["q_value"] = ("voxel", stats.fdr(chance), {"method": "Benjamini-Hochberg", **facts})
    out.attrs.update({k: v for k, v in measured.attrs.items() if k in ("affine", "volume_shape", "space")})
    return out
