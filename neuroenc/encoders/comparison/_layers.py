"""Layer profiles: the best layer of each voxel through one readout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc.encoders.comparison._statistics import Group, Samples, _median, voxel_winner


def layer_positions(layers: Sequence[str], drawn: Samples, level: float) -> xr.Dataset:
    """Best layer of every voxel, its position from 0 to 1, and its standard error over resampled stimuli.

    ``layer`` is the best as measured; ``winner`` is "tie" where it does not beat every other layer.
    """
    found = voxel_winner(layers, drawn, level)
    scale = max(1, len(layers) - 1)
    first = _argmax(drawn.samples) / scale
    none = np.isnan(drawn.estimate).all(axis=0)
    position = np.where(none, np.nan, _argmax(drawn.estimate) / scale)
    return (
        found.rename(best="layer")
        .assign(
            r=(("layers", "voxel"), drawn.estimate),
            position=("voxel", position),
            position_se=("voxel", np.where(none, np.nan, first.std(axis=0, ddof=1))),
        )
        .assign_coords(layers=list(layers))
    )


def _argmax(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), -np.inf, scores).argmax(axis=0)


def _best_of_resamples(samples: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Best layer of every resample and voxel, from scores (layer, resample, voxel) and (layer, voxel).

    A resample adds noise to scores that hold noise already, and the best layers of voxels whose layers are equally good
    would vary too little: what a layer has above the mean of all layers is drawn towards its mean over voxels first,
    as in `neuroenc.stats.median_samples`.
    """
    own = estimate - _known_mean(estimate)
    samples = samples - _known_mean(samples)
    for contrast, drawn in zip(own, samples, strict=True):
        spread, around = np.nanvar(contrast), drawn[:100] - contrast
        if spread > 0:
            noise = np.nanmean((around - _known_mean(around.T)[:, None]) ** 2)
            drawn -= (1.0 - np.sqrt(max(0.0, 1.0 - noise / spread))) * (contrast - np.nanmean(contrast))
    return _argmax(samples)


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined."""
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def layer_table(
    layers: Sequence[str], drawn: Samples, groups: Sequence[Group], confidence: float = 0.95
) -> pd.DataFrame:
    """For each group, the layer with the highest median score, and mean best position over voxels with interval.

    The interval is over stimuli, of which the mean position is no share: it has no width where no resample moves the
    best layer of any voxel. In simulations 95 % intervals held the truth in 94 to 97 % of cases where layers are about
    equally good, and in 99 % and more (1.3 to 1.9 times too wide) where most voxels have one that is clearly best.
    """
    scale = max(1, len(layers) - 1)
    rows = []
    whole = _argmax(drawn.estimate) / scale
    for group in groups:
        known = np.isfinite(drawn.estimate[:, group.voxels]).any(axis=0)
        voxels = group.voxels[known]
        if not len(voxels):
            continue
        medians = _median(drawn.estimate[:, voxels])
        first = _best_of_resamples(drawn.samples[:, :, voxels], drawn.estimate[:, voxels]) / scale
        low, high, _ = map(
            float,
            stats.sample_interval(
                first.mean(axis=1), whole[voxels].mean(), n_units=drawn.n_stimuli, confidence=confidence
            ),
        )
        row = {
            "kind": group.kind,
            "group": group.name,
            "n_voxels": len(voxels),
            "best_layer": str(layers[int(np.nanargmax(medians))]),
            "mean_position": float(whole[voxels].mean()),
            "low": max(low, 0.0),
            "high": min(high, 1.0),
        }
        row.update({f"median_r_{name}": float(m) for name, m in zip(layers, medians)})
        rows.append(row)
    return pd.DataFrame(rows)
