"""Unique variance: what a feature space predicts that none of the others does, from joint models of their components.

Every space is reduced to its first principal components over the training rows of a fold. For the set of all spaces,
and for each set without one of them (of two or three spaces every subset), banded ridge with a penalty for each space
is tuned on the validation rows that all cells of the comparison share, fitted on all training rows, and predicts the
test rows. The unique part of a space is R2 of all spaces less R2 without it.

References
----------
Lescroart, Stansbury & Gallant (2015), Front. Comput. Neurosci. 9:135. de Heer et al. (2017), J. Neurosci. 37:6539.
Nunez-Elizalde, Huth & Gallant (2019), NeuroImage 197:482.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import check_fraction
from neuroenc._core.errors import ConfigError
from neuroenc._core.store import Tensors
from neuroenc.encoders.comparison._grid import Cell, Fitted, Job, Source
from neuroenc.encoders.comparison._statistics import Group, limits
from neuroenc.encoders.linear._banded import BandedRidgeEncoder
from neuroenc.encoders.linear._spaces import nested_gammas

KIND = "unique"
#: Spaces of one analysis at most.
MOST = 8
_AND = " & "


def unique_cell(spaces: Sequence[str], n_components: int) -> Cell:
    """The joint models of ``spaces``, as one cell of a comparison that no table of cells shows."""
    if not 2 <= len(spaces) <= MOST or len(set(spaces)) < len(spaces):
        raise ConfigError(
            f"unique variance is of 2 to {MOST} different feature spaces; found {len(spaces)} "
            f"({', '.join(spaces)}). Next step: name some of them, unique = [...]."
        )
    options = {"spaces": list(spaces), "n_components": n_components}
    return Cell("", KIND, KIND, options=options, closed_form=True)


def subsets_of(spaces: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets that are fitted: every one of two or three spaces; of more, all of them and each that lacks one.

    >>> subsets_of(["a", "b"])
    [('a',), ('b',), ('a', 'b')]
    """
    if len(spaces) <= 3:
        return stats.subsets(spaces)
    return [*(tuple(s for s in spaces if s != left) for left in spaces), tuple(spaces)]


def _components(X: np.ndarray, T: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of training and test rows; channels of maps are scaled as wholes first."""
    from sklearn.decomposition import PCA

    axes = (0, 2, 3) if X.ndim == 4 else (0,)
    mean, scale = X.mean(axis=axes, keepdims=True), X.std(axis=axes, keepdims=True)
    scale[scale < 1e-8 * max(float(scale.max()), 1e-30)] = np.inf
    flat, test = (((part - mean) / scale).reshape(len(part), -1) for part in (X, T))
    if flat.shape[1] <= n:
        return flat, test
    n = min(n, len(flat) - 1)
    model = PCA(n, svd_solver="randomized" if min(flat.shape) > 2 * n else "full", random_state=seed).fit(flat)
    return model.transform(flat), model.transform(test)


def fit_unique(job: Job, source: Source) -> Fitted:
    """Test predictions of every subset, one after the other along the voxels of ``arrays``."""
    options, rows = job.cell.options, job.rows
    Y = source.responses(rows.train, job.voxels).values
    validation = np.isin(rows.train, rows.validation)
    split = [(np.flatnonzero(~validation), np.flatnonzero(validation))]
    parts = {}
    for name in options["spaces"]:
        X, T = (source.features(name, r, job.fold).astype(np.float32, copy=False) for r in (rows.train, rows.test))
        parts[name] = _components(X, T, options["n_components"], job.seed)
    arrays, n_parameters, inner = Tensors(), 0, np.zeros(len(job.voxels))
    for subset in subsets_of(options["spaces"]):
        own = [parts[name] for name in subset]
        # Bands of one total variance each: a space does not win by its number of features.
        size = np.array([max(float(X.var(axis=0).sum()), 1e-12) for X, _ in own])
        bands = len(own)
        gammas = nested_gammas(bands, 2**bands - 1) if bands <= 3 else _few_gammas(bands)
        encoder = BandedRidgeEncoder(gammas=gammas / size, cv=split, scoring="r2", n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of penalties at the ends of the grid: spaces may well predict nothing
            encoder.fit({name: X for name, (X, _) in zip(subset, own)}, Y)
        encoder.coef_[:, ~np.isfinite(encoder.coef_).all(axis=0)] = 0
        predicted = encoder.predict({name: T for name, (_, T) in zip(subset, own)})
        arrays[_AND.join(subset)] = np.asarray(predicted, dtype=np.float32)
        n_parameters, inner = int(encoder.coef_.size), encoder.best_score_
    record = {"n_candidates": 1, "n_parameters": n_parameters, "best_epoch": None, "seconds_per_fit": np.nan}
    whole = arrays[_AND.join(options["spaces"])]
    return Fitted(whole, np.asarray(inner, dtype=np.float64), record, arrays=arrays)


def _few_gammas(n: int) -> np.ndarray:
    """All spaces, each set that lacks one, and each alone."""
    return np.concatenate([np.ones((1, n)), 1 - np.eye(n), np.eye(n)])


def unique_variance(
    measured: np.ndarray,
    predictions: dict[str, np.ndarray],
    spaces: Sequence[str],
    groups: Sequence[Group],
    *,
    stimuli: Any,
    n_bootstraps: int,
    seed: int,
    level: float,
) -> tuple[xr.Dataset, pd.DataFrame]:
    """Unique (and, of up to three spaces, shared) parts of R2, with intervals over resampled stimuli.

    Parameters
    ----------
    measured : array (row, voxel)
    predictions : dict of str to array (row, voxel)
        By subset, names joined by " & ".
    spaces : sequence of str
    groups : sequence of Group
    stimuli : array (row,)
    level : float
        False discovery rate over voxels.

    Returns
    -------
    Dataset (part, voxel)
        ``share``, ``low``, ``high``, ``p``, ``q``; ``total`` (voxel), R2 of all spaces together.
    DataFrame
        Group by part: ``median_share`` over voxels with interval, and ``share_voxels``, where it is above 0 after
        correction.
    """
    check_fraction("q", level)
    resampler = stats.Resampler(n_bootstraps, groups=stimuli, seed=seed)
    drawn = {k: resampler.samples(measured, v, metric="r2", dtype=np.float32) for k, v in predictions.items()}
    n_units = np.max([resampler.units(measured, v) for v in predictions.values()], axis=0)
    whole = _AND.join(spaces)
    parts: dict[str, Any]
    if len(spaces) <= 3:
        both = [stats.partition_variance({k: v[n] for k, v in drawn.items()}, spaces).parts for n in (0, 1)]
        parts = {_AND.join(k): (both[0][k], both[1][k]) for k in both[0]}
    else:
        rest = {s: _AND.join(x for x in spaces if x != s) for s in spaces}
        parts = {s: tuple(drawn[whole][n] - drawn[rest[s]][n] for n in (0, 1)) for s in spaces}
    names = list(parts)
    share = np.stack([parts[name][0] for name in names])
    found = [stats.sample_interval(parts[name][1], parts[name][0], n_units=n_units) for name in names]
    low, high, p = (np.stack([f[k] for f in found]) for k in range(3))
    q = np.stack([stats.fdr(row) for row in p])
    rows = []
    n_stimuli = len(np.unique(stimuli))
    for k, name in enumerate(names):
        for group in groups:
            inside = share[k][group.voxels]
            known = np.isfinite(inside)
            if not known.any():
                continue
            middle = float(np.median(inside[known]))
            ends = limits(stats.median_samples(parts[name][1][:, group.voxels], inside), middle, n_stimuli)
            row: dict[str, Any] = {"kind": group.kind, "group": group.name, "part": name, "n_voxels": int(known.sum())}
            row |= {"median_share": middle, "low": ends[0], "high": ends[1]}
            sure = (q[k][group.voxels] < level) & (inside > 0)
            rows.append(row | {"share_voxels": float(sure.sum() / known.sum())})
    values = {"share": share, "low": low, "high": high, "p": p, "q": q}
    out = xr.Dataset({k: (("part", "voxel"), v) for k, v in values.items()}, coords={"part": names})
    out["total"] = ("voxel", drawn[whole][0])
    return out.assign_attrs(metric="r2", spaces=list(spaces), q_level=level), pd.DataFrame(rows)
