"""Scores of held-out predictions: accuracy, noise ceilings, permutation p-values and false discovery rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data, stats
from neuroenc.data import group_ids
from neuroenc.encoders import cross_validated_p
from neuroenc.study.config import EvaluationConfig
from neuroenc.study.stages.load import Subject
from neuroenc.study.study import Study, stage


@stage(
    "score",
    reads=("subjects", "splits", "spaces", "predictions", "alphas", "config.evaluation", "config.seed"),
    writes=("scores", "scores_of"),
)
def score(study: Study) -> dict[str, Any]:
    """Scores of every voxel from every feature space; ``scores`` are those of the first space."""
    found = {}
    for name, space in study.spaces.items():
        settings = study.config.features.get(name)
        scale = settings.standardise if settings is not None else True
        parts = [
            score_subject(study, one, folds, space, predicted, alphas, scale)
            for one, folds, predicted, alphas in zip(
                study.subjects, study.splits, study.predictions[name], study.alphas[name]
            )
        ]
        found[name] = merge_subjects(study, parts)
    return {"scores": next(iter(found.values())), "scores_of": found}


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
    X = data.match(space, responses).values
    p_values = None
    if len(folds) > 1:

        def p_values(groups: np.ndarray | None) -> tuple[np.ndarray, dict[str, Any]]:
            return cross_validated_p(
                X,
                responses.values,
                folds,
                alphas,
                scale=scale,
                groups=groups,
                n_permutations=config.permutations,
                null=config.permutation_null,
                seed=study.config.seed,
                show=study.progress,
            )

    content = study.content_of(responses)
    inputs = [X, content, predicted.values, alphas, folds, ceilings, config, scale, study.config.seed]
    return study.store.keep(
        "scores",
        inputs,
        lambda: {
            "scores": score_table(
                responses, predicted, config, ceilings=ceilings, seed=study.config.seed, p_values=p_values
            )
        },
    )["scores"]


def merge_subjects(study: Study, parts: list[xr.Dataset], number: bool = False) -> xr.Dataset:
    """Voxels of all subjects in one row, numbered anew where there are several (or with ``number``)."""
    if len(parts) == 1 and not number:
        return parts[0]
    offset, numbered = 0, []
    for one, part in zip(study.subjects, parts):
        n = part.sizes["voxel"]
        numbered.append(
            part.assign_coords(
                subject=("voxel", np.full(n, one.name)),
                voxel_of_subject=("voxel", part["voxel"].values),
                voxel=np.arange(offset, offset + n),
            )
        )
        offset += n
    return xr.concat(numbered, dim="voxel", combine_attrs="override", coords="different", compat="equals")


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
    if scored.dims[0] == "presentation":
        counts: Any = 1
    else:
        ids, number = np.unique(repeats.coords["stimulus"].values, return_counts=True)
        lookup = dict(zip(ids.tolist(), number.tolist()))
        counts = np.array([lookup.get(s, 1) for s in scored.coords["stimulus"].values.tolist()])
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
    p_values: Callable[[np.ndarray | None], tuple[np.ndarray, dict[str, Any]]] | None = None,
) -> xr.Dataset:
    """Scores of every voxel with ceilings, permutation p-values and FDR q-values, labels kept.

    Parameters
    ----------
    measured, predicted : DataArray (row, voxel)
        Rows with NaN predictions are left out.
    p_values : callable, optional
        Gives p-values and their facts from the groups to shuffle within (or None), for cross-validated predictions;
        without it,
        responses are shuffled against the predictions, which is right for a test set apart.
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
        blocks = None
        if config.permutation_mode != "samples":
            kind = next((k for k in ("run", "session") if k in measured.coords), None)
            # Runs are counted anew in every session (and subject).
            blocks = None if kind is None else group_ids(measured, kind)[0][tested]
        facts: dict[str, Any] = {"mode": config.permutation_mode}
        if p_values is not None:
            chance, found = p_values(blocks)
            facts.update(found)
        else:
            test = stats.permutation_test(
                y, p, mode=config.permutation_mode, blocks=blocks, n_permutations=config.permutations, seed=seed
            )
            chance = test.p
            facts.update(n_permutations=int(test.n_permutations), null="fixed predictions")
        out["p_value"] = ("voxel", chance, facts)
        out["q_value"] = ("voxel", stats.fdr(chance), {"method": "Benjamini-Hochberg", **facts})
    out.attrs.update({k: v for k, v in measured.attrs.items() if k in ("affine", "volume_shape", "space")})
    return out
