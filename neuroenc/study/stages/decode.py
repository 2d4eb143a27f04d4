"""Which stimulus was seen: identification of held-out stimuli by the encoders of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data, stats
from neuroenc.encoders import NoiseCovariance, fit_reduction, identification_table, identify, ridge_residuals
from neuroenc.encoders.comparison import find_groups
from neuroenc.study.config import DecodeConfig
from neuroenc.study.stages.fit import Fold
from neuroenc.study.stages.load import Subject, standardised
from neuroenc.study.study import Study, stage

_FEWEST = 5  # voxels of a region


@stage(
    "decode",
    reads=("subjects", "splits", "spaces", "predictions", "alphas", "config.encoder", "config.decode", "config.seed"),
    writes=("decoding",),
)
def decode(study: Study) -> dict[str, Any]:
    """Accuracies of identification of every subject, space, metric and region; None without ``[decode]``."""
    config = study.config.decode
    if config is None:
        return {"decoding": None}
    tables = []
    for name, space in study.spaces.items():
        scale = standardised(study, name)
        each = zip(study.subjects, study.splits, study.predictions[name], study.alphas[name])
        for one, folds, predicted, alphas in each:
            inputs = [space, study.content_of(one.responses), predicted.values, alphas, folds, scale]
            inputs += [study.config.encoder, config, study.config.seed]
            work = partial(_decode_subject, study, one, folds, space, predicted, alphas, scale)
            table = study.store.keep("decoding", inputs, partial(_as_part, work))["table"]
            labels = {"subject": one.name} if len(study.subjects) > 1 else {}
            tables.append(table.assign(**labels, **({"space": name} if len(study.spaces) > 1 else {})))
    return {"decoding": pd.concat(tables, ignore_index=True)}


def _as_part(work: Callable[[], pd.DataFrame]) -> dict[str, Any]:
    return {"table": work()}


def _decode_subject(
    study: Study,
    one: Subject,
    folds: list[Fold],
    space: xr.DataArray,
    predicted: xr.DataArray,
    alphas: np.ndarray,
    scale: bool,
) -> pd.DataFrame:
    """Accuracies of one subject's held-out rows, by metric."""
    config, responses = study.config.decode, one.responses
    assert config is not None
    varies = np.ptp(responses.values, axis=0) > 0
    for rows in (x for fold in folds for x in fold):
        varies &= np.ptp(responses.values[rows], axis=0) > 0
    Y, P = responses[:, varies], predicted[:, varies]
    X = data.match(space, responses).values
    reduce, n_components = study.config.encoder.reduce, study.config.encoder.n_components
    galleries, measured, noise, sets = [], [], [], []
    for (train, test), alpha in zip(folds, alphas):
        part = X[train]
        if reduce:
            scaling = (part.mean(axis=0), part.std(axis=0)) if scale else None
            part = fit_reduction(part, reduce, n_components, scaling).apply(part)
        left = ridge_residuals(part, Y.values[train], alpha[varies], standardise=scale and not reduce)
        # Correlations over voxels are of z-scores: voxels of high rates would otherwise decide alone.
        mean, sd = Y.values[train].mean(axis=0), Y.values[train].std(axis=0)
        noise.append(NoiseCovariance.fit(Y[train].copy(data=left / sd), shrinkage=config.shrinkage))
        sets.append(_voxel_sets(config, Y, Y.values[train] - left, Y.values[train], study.config.seed))
        held = (P[test] - mean) / sd
        _, first = np.unique(held["stimulus"].values, return_index=True)
        galleries.append(held[np.sort(first)])
        measured.append((Y[test] - mean) / sd)
    most = min(len(x) for x in galleries)
    how: dict[str, Any] = {
        "groups": sets,
        "sizes": [n for n in config.sizes if n <= most] or None,
        "top": config.top,
        "blocks": config.blocks,
        "n_permutations": config.permutations,
        "seed": study.config.seed,
    }
    found: dict[str, xr.Dataset] = {}
    for metric in config.metrics:
        own = noise if metric == "likelihood" else None
        found[metric] = identify(galleries, measured, metric=metric, noise=own, **how)
    table = identification_table(found).rename(columns={"name": "metric"})
    kinds = {g.name: g.kind for g in find_groups(Y)}
    return table.assign(kind=[kinds.get(name, config.choose) for name in table["group"]])


def _voxel_sets(
    config: DecodeConfig, Y: xr.DataArray, predicted: np.ndarray, measured: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """All voxels, regions, and some: the best by the accuracy on training rows left out one by one, or any."""
    groups = find_groups(Y)
    sets = {g.name: g.voxels for g in (groups if config.regions else groups[:1]) if g.kind in ("all", "roi")}
    sets = {name: v for name, v in sets.items() if name == "all" or _FEWEST <= len(v) < Y.shape[1]}
    if config.choose == "best":
        order = np.argsort(-np.nan_to_num(stats.score(measured, predicted, metric="r"), nan=-1.0), kind="stable")
    else:
        order = np.random.default_rng([seed, 41]).permutation(Y.shape[1])  # the same in every fold
    return sets | {f"{config.choose} {n}": order[:n] for n in sorted(config.voxels) if n < len(order)}
