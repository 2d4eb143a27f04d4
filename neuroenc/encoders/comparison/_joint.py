"""Joint models of several feature spaces as rows of a comparison: the stack of their ridge fits, and banded ridge.

Both are fitted on the training rows of each outer fold, with inner folds of these that keep repeats of a stimulus
together. What they would have reached on the validation rows comes from a fit without these.

References
----------
Lin, Naselaris, Kay & Wehbe (2024), Stacked regressions and structured variance partitioning for interpretable brain
maps, NeuroImage 298:120772. Dupré la Tour et al. (2022), NeuroImage 264.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc._core.store import Tensors
from neuroenc.encoders._folds import resolve_folds
from neuroenc.encoders.comparison._grid import JOINT, Cell, Fitted, Job, Source
from neuroenc.encoders.comparison._statistics import Group, limits
from neuroenc.encoders.linear._banded import BandedRidgeEncoder, simplex_candidates
from neuroenc.encoders.linear._stacked import StackedEncoder, layer_interval, ordered_stacks, partition_dataset

#: Stands for several spaces in the name of a cell.
ALL = "all"
_FOLDS = 5
_CANDIDATES = 30


def joint_cells(joint: Mapping[str, Sequence[str]], spaces: Sequence[str], ordered: bool) -> list[Cell]:
    """A cell ``all/stacked`` or ``all/banded`` for each entry."""
    found = []
    for kind, names in joint.items():
        one_of("joint model", kind, JOINT)
        for name in names:
            one_of(f"space of the {kind} model:", name, spaces)
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                f"a {kind} model is of two different feature spaces or more; found {list(names) or 'none'}. Next step: "
                "name spaces that ridge reads, or leave it out."
            )
        options = {"spaces": list(names), "ordered": ordered and kind == "stacked"}
        found.append(Cell(ALL, kind, kind, options=options, closed_form=True))
    return found


def _encoder(job: Job, X: Mapping[str, xr.DataArray], folds: Any) -> Any:
    settings: dict[str, Any] = {"cv": folds, "standardise": True, "n_jobs": 1}
    if job.cell.kind == "stacked":
        return StackedEncoder(**settings)
    # Bands of one total variance each: a space does not win by its number of features.
    size = np.array([max(int(np.prod(x.shape[1:])), 1) for x in X.values()])
    gammas = simplex_candidates(len(X), max(_CANDIDATES, len(X) + 1), job.seed) / size
    return BandedRidgeEncoder(gammas=gammas, **settings)


def fit_joint(job: Job, source: Source) -> Fitted:
    """Test predictions of a joint model; of a stack also its weights, and with an order single predictions."""
    names, rows = job.cell.options["spaces"], job.rows
    # Rows of one stimulus are those of one row of its features.
    stimulus = source.arrays[f"index-{names[0]}"].load()[rows.train]

    def read(part: np.ndarray) -> dict[str, xr.DataArray]:
        return {name: _labelled(source.features(name, part, job.fold).astype(np.float32)) for name in names}

    def fit(at: np.ndarray) -> Any:
        X = read(rows.train[at])
        n_folds = max(2, min(_FOLDS, len(np.unique(stimulus[at])) // 2))
        folds = resolve_folds(n_folds, len(at), {"stimulus": stimulus[at]})
        Y = source.responses(rows.train[at], job.voxels).values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of penalties at the ends of the grid: spaces may well predict nothing
            encoder = _encoder(job, X, folds).fit(X, Y)
        encoder.coef_[:, ~np.isfinite(encoder.coef_).all(axis=0)] = 0
        return encoder

    held = np.isin(rows.train, rows.validation)
    seen = fit(np.flatnonzero(~held)).predict(read(rows.train[held]))
    measured = source.responses(rows.train[held], job.voxels).values
    validation_r = stats.score(measured, np.asarray(seen))
    encoder, T = fit(np.arange(len(rows.train))), read(rows.test)
    arrays = Tensors()
    share = encoder.weights_ if job.cell.kind == "stacked" else encoder.gamma_
    arrays |= {f"weight_{name}": row.astype(np.float32) for name, row in zip(names, share)}
    if job.cell.options["ordered"]:
        alone = encoder.single_predictions(T).astype(np.float32)
        arrays |= {f"single:{name}": values for name, values in zip(names, alone)}
        stacks = ordered_stacks(names)
        arrays |= {name: encoder.subset_weights(stack).astype(np.float32) for name, stack in stacks.items()}
    record = {"n_candidates": 1, "n_parameters": int(encoder.coef_.size), "best_epoch": None, "seconds_per_fit": np.nan}
    predicted = np.asarray(encoder.predict(T), dtype=np.float32)
    return Fitted(predicted, np.asarray(validation_r, dtype=np.float64), record, arrays=arrays)


def _labelled(maps: np.ndarray) -> xr.DataArray:
    """Dims say which axis holds channels, which are scaled as wholes."""
    dims = {4: ("channel", "y", "x"), 3: ("token", "feature"), 2: ("feature",)}[maps.ndim]
    return xr.DataArray(maps, dims=("stimulus", *dims))


def structured_partition(
    fits: Sequence[tuple[Job, Fitted]],
    responses: xr.DataArray,
    tested: np.ndarray,
    groups: Sequence[Group],
    *,
    share: float,
    n_bootstraps: int,
    seed: int,
) -> tuple[xr.Dataset, pd.DataFrame]:
    """Structured partition of the test predictions of an ordered stack, and the layers that every group needs.

    Parameters
    ----------
    fits : sequence of (Job, Fitted)
        Of one cell.
    responses : DataArray (row, voxel)
    tested : array of int
        Rows that some fold tests.
    groups : sequence of Group
    n_bootstraps, seed : int
        Resamples of the stimuli; weights are not learned again.

    Returns
    -------
    Dataset
        As `StackedEncoder.structured_partition`.
    DataFrame
        A row a group: mean position of the first and the last layer needed, 0 to 1, over voxels that are predicted,
        with intervals; ``share_redundant``, and the mean weight of every layer.
    """
    order = fits[0][0].cell.options["spaces"]
    stacks = list(ordered_stacks(order))
    total = {name: np.full(responses.shape, np.nan, dtype=np.float32) for name in [*stacks, *order]}
    weight, count = np.zeros((len(order), responses.shape[1])), np.zeros(responses.shape[1])
    for job, fitted in fits:
        at = np.ix_(job.rows.test, job.voxels)
        alone = np.stack([fitted.arrays[f"single:{name}"] for name in order])
        for name, values in zip(order, alone):
            total[name][at] = values
        for name in stacks:
            total[name][at] = np.einsum("kv,knv->nv", fitted.arrays[name], alone)
        weight[:, job.voxels] += np.stack([fitted.arrays[f"weight_{name}"] for name in order])
        count[job.voxels] += 1
    weight /= count
    measured, stimuli = responses.values[tested], responses["stimulus"].values[tested]
    total = {name: np.where(np.isnan(measured), np.nan, values[tested]) for name, values in total.items()}
    resampler, n_stimuli = stats.Resampler(n_bootstraps, groups=stimuli, seed=seed), len(np.unique(stimuli))
    drawn = {k: resampler.samples(measured, total[k], metric="r2", dtype=np.float32) for k in stacks}
    single = np.stack([stats.score(measured, total[k], "r2") for k in order])
    found = partition_dataset(order, {k: v[0] for k, v in drawn.items()}, single, weight, share)
    found.attrs |= {"metric": "r2", "n_stimuli": n_stimuli}
    estimate, samples = (
        np.stack(
            layer_interval(
                np.stack([drawn[f"early:{name}"][n] for name in order]),
                np.stack([drawn[f"late:{name}"][n] for name in order]),
                share,
            )
        )
        for n in (0, 1)
    )
    known = estimate[0] >= 0
    rows, scale = [], max(len(order) - 1, 1)
    for group in groups:
        inside = np.asarray(group.voxels)[known[group.voxels]]
        if not len(inside):
            continue
        row: dict[str, Any] = {"kind": group.kind, "group": group.name, "n_voxels": len(inside)}
        for k, name in enumerate(("first", "last")):
            at = samples[k][:, inside]
            # A resample in which nothing is predicted has no layer; it keeps the one that was measured.
            drawn_mean = np.where(at < 0, estimate[k][inside], at).mean(axis=1) / scale
            middle = float(estimate[k][inside].mean() / scale)
            low, high, _ = limits(drawn_mean, middle, n_stimuli)
            row |= {f"mean_{name}": middle, f"{name}_low": low, f"{name}_high": high}
        row["share_redundant"] = float((estimate[0] > estimate[1])[inside].mean())
        rows.append(row | {f"weight_{k}": float(w[inside].mean()) for k, w in zip(order, weight)})
    return found, pd.DataFrame(rows)
