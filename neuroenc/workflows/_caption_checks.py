"""Checks of a captioning: stability, scores on held-out stimuli, round trip, diversity, shuffled weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.progress import progress as progress_bar
from neuroenc.captions import caption_diversity, round_trip, sentence_scores
from neuroenc.captions.checks._stability import score_stability
from neuroenc.workflows._caption_inputs import Subject
from neuroenc.workflows._caption_readings import Readings
from neuroenc.workflows._captioner import Captioner

__all__ = ["diversity_table", "held_out_scores", "round_trip_table", "stability_tables"]


def stability_tables(
    captioner: Captioner,
    readings: Readings,
    embed_text: Callable[[list[str]], Any],
    direction: Any,
    seed: int,
    progress: bool,
) -> dict[str, pd.DataFrame]:
    """Captions again on folds of the bank, bootstraps and halves: ``voxels`` and ``summary``, or nothing."""
    told, voxels = [], np.zeros(0)
    with progress_bar(desc="stability", total=readings.n_stability, show=progress) as bar:
        for kind, null, projection in readings.stability():
            voxels = voxels if null else projection["voxel"].values
            told.append((kind, null, captioner.best_of(projection)))
            bar.update(1)
    if not told:
        return {}
    found = score_stability(voxels, told, embed_text, text_direction=direction, seed=seed, of_voxels=readings.n_passed)
    return dict(zip(("voxels", "summary"), found))


def held_out_scores(
    captions: pd.DataFrame,
    subjects: list[Subject],
    voxels_of: list[np.ndarray],
    rois: dict[Any, str],
    stimulus_vectors: xr.DataArray,
    embed_text: Callable[[list[str]], Any],
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sentence-level scores of each subject's best captions on its held-out stimuli.

    Parameters
    ----------
    voxels_of : list of array
        The study's voxel numbers of each subject's columns.
    rois : dict
        Region of each voxel of the study.
    stimulus_vectors : DataArray (stimulus, feature)
        Vectors of the stimuli's captions, or of their images in a joint space.

    Returns
    -------
    voxels : DataFrame
        ``voxel, rho, shuffled, shuffled_within_roi``.
    summary : DataFrame
        One row a subject.
    """
    best = captions[captions["rank"] == 1].set_index("voxel")["caption"]
    tables, rows = [], []
    for subject, voxels in zip(subjects, voxels_of):
        at = np.flatnonzero(np.isin(voxels, best.index))
        if len(at) < 2:
            continue
        texts = best.loc[voxels[at]].tolist()
        # Repeats of a stimulus count once: they have one caption.
        measured = subject.Y_test.isel(voxel=at)
        by = measured.groupby("stimulus").mean() if "presentation" in measured.dims else measured
        ids = by.coords["stimulus"].values
        s = stimulus_vectors.sel(stimulus=ids).values
        region = [rois.get(v, "") for v in voxels[at]]
        found = sentence_scores(embed_text(texts), s, by.values, roi=region, seed=seed)
        frame = {name: found[name].values for name in ("rho", "shuffled", "shuffled_within_roi")}
        tables.append(pd.DataFrame({"voxel": voxels[at], **frame}))
        keys = ("mean", "low", "high", "mean_shuffled", "p", "mean_shuffled_within_roi", "p_shuffled_within_roi")
        rows.append(
            {"subject": subject.name, "n_voxels": len(at), "n_stimuli": len(ids), **{k: found.attrs[k] for k in keys}}
        )
    empty = pd.DataFrame(columns=["voxel", "rho", "shuffled", "shuffled_within_roi"])
    return (pd.concat(tables, ignore_index=True) if tables else empty), pd.DataFrame(rows)


def _interval(values: np.ndarray, rng: np.random.Generator, n: int = 1000) -> tuple[float, float]:
    """95 % of the mean of percentiles (0 to 1) over resampled voxels."""
    draws = values[rng.integers(0, len(values), (n, len(values)))].mean(axis=1)
    low, high, _ = stats.sample_interval(draws, values.mean(), n_units=len(values), bounds=(0.0, 1.0))
    return float(low), float(high)


def round_trip_table(
    captions: pd.DataFrame,
    coef: xr.DataArray,
    corpus: np.ndarray,
    embed_text: Callable[[list[str]], Any],
    text_mean: np.ndarray | None,
    image_mean: np.ndarray | None,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predicted response of a caption's own text vector among those of the caption bank, as a percentile.

    Returns
    -------
    row : DataFrame
        The mean over voxels, beside other voxels' captions.
    voxels : DataFrame
        ``voxel, rank`` (1)``, round_trip, round_trip_shuffled``.
    """
    best = captions[captions["rank"] == 1].set_index("voxel")["caption"]
    voxels = [v for v in coef["voxel"].values.tolist() if v in best.index]

    def across(vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit if text_mean is None or image_mean is None else unit - text_mean + image_mean

    percentile, info = round_trip(
        coef.sel(voxel=voxels).values,
        across(np.asarray(embed_text(best.loc[voxels].tolist()))),
        across(corpus),
        seed=seed,
    )
    low, high = _interval(percentile, np.random.default_rng(seed))
    row = {
        "n_voxels": len(voxels),
        "mean percentile": info["mean"],
        "low": low,
        "high": high,
        "other voxels' captions": info["mean_shuffled"],
        "p": info["p"],
    }
    own = {"voxel": voxels, "rank": 1, "round_trip": percentile, "round_trip_shuffled": info["mean_shuffled"]}
    return pd.DataFrame([row]), pd.DataFrame(own)


def diversity_table(
    named: dict[str, pd.DataFrame], embed_text: Callable[[list[str]], Any], seed: int, n_draws: int = 1000
) -> pd.DataFrame:
    """How much best captions differ among voxels, for several sets of captions.

    The semantic variance has a 95 % interval over voxels. Numbers of words and of components have none: they grow with
    the number of captions, and resamples, which repeat captions, say too little of them (intervals of them held the
    expected number in 44 to 88 % of simulated cases).
    """
    rows = []
    for name, captions in named.items():
        texts = captions.loc[captions["rank"] == 1, "caption"].astype(str).tolist()
        if len(texts) < 3:
            continue
        vectors = np.asarray(embed_text(texts), dtype=np.float64)
        row: dict[str, Any] = {"captions": name, **{str(k): v for k, v in caption_diversity(texts, vectors).items()}}
        n, unit = len(texts), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_draws) / n
        # Of unit vectors the mean squared distance from their mean is 1 less its square.
        samples = 1.0 - ((drawn @ unit) ** 2).sum(axis=1)
        low, high, _ = stats.sample_interval(samples, row["semantic_variance"], n_units=n)
        row["semantic_variance_low"], row["semantic_variance_high"] = max(0.0, float(low)), min(1.0, float(high))
        rows.append({k: int(v) if k.startswith("n_") else v for k, v in row.items()})
    return pd.DataFrame(rows)
