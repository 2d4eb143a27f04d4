"""Captions of fitted weights against those of weights whose features were shuffled: scores, intervals, verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from neuroenc import stats
from neuroenc.captions import round_trip

__all__ = ["BETTER", "compared", "mark", "round_trip_control", "sentence_control"]

BETTER = "better than shuffled weights"
_WORSE = "no better than shuffled weights"
_UNKNOWN = "too few to tell from shuffled weights"
_DRAWS = 1000


def compared(
    control: str, n_voxels: int, fitted: float, shuffled: float, draws: np.ndarray | None, n_units: int
) -> dict[str, Any]:
    """One row of a table of controls, with its verdict in words.

    ``draws`` are differences, fitted minus shuffled, over resamples of ``n_units`` stimuli or voxels; None where
    there are too few.
    """
    low = high = np.nan
    if draws is not None:
        low, high, _ = (float(x) for x in stats.sample_interval(draws, fitted - shuffled, n_units=n_units))
    verdict = _UNKNOWN if not np.isfinite(low) else BETTER if low > 0 else _WORSE
    return {
        "control": control,
        "n_voxels": n_voxels,
        "fitted weights": fitted,
        "shuffled weights": shuffled,
        "difference": fitted - shuffled,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sentence_control(
    fitted: np.ndarray, shuffled: np.ndarray, stimuli: xr.DataArray, responses: xr.DataArray, seed: int
) -> dict[str, Any]:
    """Sentence-level score: does likeness to the caption order held-out stimuli as their responses do?

    Parameters
    ----------
    fitted, shuffled : array (voxel, feature)
        Text vectors of each voxel's best caption, by weights that were fitted without these stimuli.
    stimuli : DataArray (row, feature)
    responses : DataArray (row, voxel)
        Repeats of a stimulus are averaged.
    seed : int
        Of the resampled stimuli.
    """
    name = "sentence-level score, held-out rows"
    _, first, of = np.unique(responses["stimulus"].values, return_index=True, return_inverse=True)
    y = np.zeros((len(first), responses.shape[1]))
    np.add.at(y, of, responses.values)
    y /= np.bincount(of)[:, None]
    s = _unit(stimuli.values[first].astype(np.float64))
    if len(first) < 5:
        return compared(name, y.shape[1], np.nan, np.nan, None, len(first))
    resampler, ranks = stats.Resampler(_DRAWS, seed=seed), rankdata(y, axis=0)
    (a, drawn_a), (b, drawn_b) = (
        resampler.samples(ranks, rankdata(s @ _unit(c).T, axis=0), dtype=np.float32) for c in (fitted, shuffled)
    )
    # A caption that orders nothing (all stimuli alike) scores 0.
    draws = np.asarray(np.nan_to_num(drawn_a) - np.nan_to_num(drawn_b), dtype=np.float64).mean(axis=1)
    return compared(name, y.shape[1], float(np.nan_to_num(a).mean()), float(np.nan_to_num(b).mean()), draws, len(first))


def round_trip_control(
    coef: np.ndarray, fitted: np.ndarray, shuffled: np.ndarray, corpus: np.ndarray, seed: int
) -> dict[str, Any]:
    """Round trip: does a caption drive the voxel's model more than most sentences of the caption bank do?

    Both captions are put to the fitted weights ``coef`` (feature, voxel): this is about writing captions, since they
    come from the same weights; whether the weights say something of the voxel is for `sentence_control`.
    """
    name = "round trip through the fitted weights, percentile"
    n = coef.shape[1]
    if n < 2:
        return compared(name, n, np.nan, np.nan, None, n)
    a, b = (round_trip(coef, c, corpus, n_shuffles=1, seed=seed)[0] for c in (fitted, shuffled))
    at = np.random.default_rng(seed).integers(0, n, (_DRAWS, n))
    return compared(name, n, float(a.mean()), float(b.mean()), (a - b)[at].mean(axis=1), n)


def mark(captions: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Captions with a column ``control``: what they did not pass, "" where they passed all."""
    failed = controls[controls["verdict"] != BETTER]
    words = "; ".join(f"{verdict} ({name})" for name, verdict in zip(failed["control"], failed["verdict"]))
    return captions.assign(control=words)
