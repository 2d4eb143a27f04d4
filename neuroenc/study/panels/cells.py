"""Scores of one model's features on one source, each with its interval and those of the halves of the stimuli."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc.encoders import RidgeEncoder
from neuroenc.study.config.panel import PanelConfig
from neuroenc.study.panels.material import Material

COLUMNS = ["region", "metric", "score", "low", "high", "n", "half_1", "half_2"]


def score_source(X: np.ndarray, material: Material, panel: PanelConfig) -> pd.DataFrame:
    """Scores (region, metric) of features.

    Parameters
    ----------
    X : array (stimulus, feature), float32
        Rows in the order of the material's stimuli.

    Returns
    -------
    DataFrame
        ``region, metric, score, low, high, n, half_1, half_2``: intervals and halves are over stimuli.
    """
    source, rows = material.source, []
    predicted = None
    if material.responses is not None and {"r", "retrieval"} & set(source.metrics):
        predicted = held_out(X, material.responses, material.folds)
    for region, voxels in material.regions.items():
        for metric in source.metrics:
            if metric == "rsa":
                found = _rsa(X, material, voxels, panel)
            elif metric == "r":
                found = _correlation(material, predicted, voxels, panel)
            else:
                found = _retrieval(material, predicted, voxels, panel)
            rows.append((region, metric, *found))
    return pd.DataFrame(rows, columns=COLUMNS)


def held_out(X: np.ndarray, responses: xr.DataArray, folds: Any) -> np.ndarray:
    """Responses (stimulus, voxel) that ridge predicts for the test rows of each fold, float32.

    A penalty for each voxel by five inner folds, features standardised on the training rows.
    """
    Y = responses.values.astype(np.float32)
    out = np.full(Y.shape, np.nan, dtype=np.float32)
    for train, test in folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # penalties at the end of the grid: low-level features reach it
            encoder = RidgeEncoder(cv=5, standardise=True, scoring="r2", n_jobs=1).fit(X[train], Y[train])
        out[test] = np.asarray(encoder.predict(X[test]), dtype=np.float32)
    return out


def _correlation(material: Material, predicted: Any, voxels: np.ndarray, panel: PanelConfig) -> tuple[Any, ...]:
    assert material.responses is not None
    y, p = material.responses.values[:, voxels].astype(np.float64), predicted[:, voxels].astype(np.float64)
    ceiling = None if material.ceilings is None else material.ceilings[voxels]
    resampler = stats.Resampler(panel.n_bootstraps, seed=panel.seed)
    own, drawn = resampler.samples(y, p)
    # A constant prediction tells nothing of a voxel: its correlation counts as 0, not as missing.
    own, drawn = np.nan_to_num(own), np.nan_to_num(drawn)
    if ceiling is not None:
        how: dict[str, Any] = {"score_unit": "r", "ceiling_unit": "r"}
        own, drawn = (stats.normalise(x, ceiling, **how) for x in (own, drawn))
        known = np.isfinite(own)
        own, drawn = own[known], drawn[:, known]
    score = float(np.median(own))
    low, high, _ = stats.sample_interval(stats.median_samples(drawn, own), score, n_units=len(y))
    halves = []
    for part in (0, 1):
        at = material.half == part
        r = np.nan_to_num(stats.pearson_r(y[at], p[at]))
        if ceiling is not None:
            r = stats.normalise(r, ceiling, score_unit="r", ceiling_unit="r")
        halves.append(float(np.nanmedian(r)))
    return score, float(low), float(high), len(y), *halves


def _rsa(X: np.ndarray, material: Material, voxels: np.ndarray, panel: PanelConfig) -> tuple[Any, ...]:
    at = material.rsa
    if material.rdm is not None:
        measured = material.rdm.values
    else:
        assert material.responses is not None
        patterns = material.responses.values[np.ix_(at, voxels)]
        measured = stats.square_rdm(stats.rdm(patterns, "correlation"))
    model = stats.square_rdm(stats.rdm(X[at].astype(np.float64), "correlation"))
    resampler = stats.Resampler(panel.n_bootstraps, seed=panel.seed)
    found = resampler.rdms(model[None], measured[None], over="stimuli")
    halves = []
    for part in (0, 1):
        rows = np.flatnonzero(material.half[at] == part)
        square = np.ix_(rows, rows)
        halves.append(float(stats.compare_rdms(model[square], measured[square])[0, 0]))
    return float(found.estimate[0]), float(found.low[0]), float(found.high[0]), len(at), *halves


def _retrieval(material: Material, predicted: Any, voxels: np.ndarray, panel: PanelConfig) -> tuple[Any, ...]:
    assert material.responses is not None
    assert material.galleries is not None
    sides = [_unit(x[:, voxels].astype(np.float64)) for x in (material.responses.values, predicted)]
    hit = material.galleries.recall(sides[0] @ sides[1].T, material.stimuli.ids, k=panel.k)
    share, drawn = stats.Resampler(panel.n_bootstraps, seed=panel.seed).means(hit[:, None])
    low, high, _ = stats.sample_interval(drawn, share, n_units=len(hit), bounds=(0.0, 1.0))
    halves = [float(hit[material.half == part].mean()) for part in (0, 1)]
    return float(share[0]), float(low[0]), float(high[0]), len(hit), *halves


def _unit(values: np.ndarray) -> np.ndarray:
    """Each voxel standardised over stimuli, then each pattern centred and of unit length."""
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    values = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(length > 0, length, 1.0))
