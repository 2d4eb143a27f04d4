"""Variance between and within the repeats of a stimulus."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import (
    MAX_MEMORY,
    Floats,
    as_samples,
    centre,
    check_choice,
    check_count,
    load,
    load_pair,
    voxel_blocks,
)
from neuroenc.stats._labels import match_rows

__all__ = ["variance_components"]

Indices = NDArray[np.intp]


def repeat_groups(stimulus: Any) -> tuple[Indices, Indices]:
    """Stable order that puts presentations of one stimulus side by side, and the count of each stimulus."""
    ids = np.asarray(stimulus)
    if ids.ndim != 1 or ids.size == 0:
        raise DataError(f"stimulus has shape {ids.shape}; give one id per presentation.")
    if ids.dtype.kind == "f" and np.isnan(ids).any():
        raise DataError(f"stimulus has {int(np.isnan(ids).sum())} NaN ids; every presentation needs an id.")
    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return np.argsort(inverse, kind="stable"), counts


def _check(responses: Any, stimulus: Any) -> tuple[Any, Indices, Indices]:
    values = as_samples(responses, "responses")
    order, counts = repeat_groups(match_rows(responses, stimulus, ("responses", "stimulus")))
    if len(order) != values.shape[0]:
        raise DataError(f"responses have {values.shape[0]} presentations but stimulus has {len(order)} ids.")
    if counts.max() < 2:
        raise DataError(
            f"none of the {len(counts)} stimuli is repeated; a noise ceiling needs at least two "
            "presentations of some stimuli (give presentations, not averages)."
        )
    return values, order, counts


def variance_components(
    responses: Any,
    stimulus: Any,
    *,
    total: str = "unit",
    weighting: str = "max_repeats",
    max_memory: int | str = MAX_MEMORY,
) -> tuple[Floats, Floats]:
    """Signal and noise variance per voxel of single presentations; the two parts of `ncsnr`.

    Parameters
    ----------
    responses : array (n_presentations, n_voxels)
        Single-presentation responses; a NaN drops that presentation for that voxel.
    stimulus : array (n_presentations,)
        Stimulus id of every presentation.
    total : {"unit", "empirical"}
        As in `ncsnr`.
    weighting : {"max_repeats", "df"}
        As in `ncsnr`.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    signal, noise : array (n_voxels,), float64, squared unit of the responses
        NaN for constant voxels and voxels without repeats.

    Raises
    ------
    ValueError
        As `ncsnr`.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> signal, noise = variance_components(y, ["a", "a", "b", "b"], total="empirical")
    >>> noise, signal.round(6)
    (array([2.]), array([7.]))
    """
    total = check_choice("total", total, ("unit", "empirical"))
    weighting = check_choice("weighting", weighting, ("max_repeats", "df"))
    values, order, counts = _check(responses, stimulus)
    most = int(counts.max())
    freedom = int((counts - 1).sum())
    used = int((most - 1) * (counts == most).sum())
    if weighting == "max_repeats" and used < 0.1 * freedom:
        raise DataError(
            f"only {int((counts == most).sum())} stimuli have the largest number of repeats ({most}); they "
            f"hold {used} of {freedom} degrees of freedom. Use weighting='df' to pool all repeated stimuli."
        )
    n, n_voxels = values.shape
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    signal, noise, spread = np.empty(n_voxels), np.empty(n_voxels), np.empty(n_voxels)
    for columns in voxel_blocks(n, n_voxels, 6, max_memory, cache=16 * 2**20):
        block, eps = load(values, columns, "responses")
        block, valid, m, mean = centre(block[order])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            variance = np.einsum("nv,nv->v", block, block) / (m - 1)
            varies = np.isfinite(variance) & (variance > (eps * np.abs(mean)) ** 2)
            if valid is None:
                per = np.broadcast_to(counts[:, None].astype(np.float64), (len(counts), block.shape[1]))
            else:
                per = np.add.reduceat(valid, starts, axis=0, dtype=np.float64)
            means = np.add.reduceat(block, starts, axis=0) / per
            block -= np.repeat(means, counts, axis=0)
            if valid is not None:
                block[~valid] = 0.0
            within = np.add.reduceat(block * block, starts, axis=0)
            if weighting == "df":
                inside = within.sum(axis=0) / np.maximum(per - 1, 0).sum(axis=0)
            else:
                full = per == most
                inside = np.where(full, within, 0.0).sum(axis=0) / (most - 1) / full.sum(axis=0)
            if total == "unit":
                between = np.maximum(0.0, 1.0 - inside)
            else:
                unbias = (m - 1) / (m - (per**2).sum(axis=0) / m)
                between = np.maximum(0.0, (variance - inside) * unbias)
            # Repeats that are the same but for the rounding of their means have no noise.
            same = inside <= (16.0 * np.finfo(np.float64).eps) ** 2 * (variance + mean**2)
        inside = np.where(same, 0.0, inside)
        if total == "unit":
            between = np.where(same, 1.0, between)
        ok = varies & np.isfinite(inside)
        noise[columns] = np.where(ok, inside, np.nan)
        signal[columns] = np.where(ok, between, np.nan)
        spread[columns] = np.where(varies, variance, np.nan)
    known = spread[~np.isnan(spread)]
    if total == "unit" and known.size and not 0.75 <= float(np.median(known)) <= 1.33:
        raise DataError(
            f"total='unit' expects responses z-scored within session, but their median variance over voxels "
            f"is {np.median(known):g} (from {known.min():g} to {known.max():g}); z-score them within "
            "session, or use total='empirical'."
        )
    return signal, noise


def split_half_noise_ratio(
    responses: Any, stimulus: Any, *, n_splits: int, seed: int, max_memory: int | str
) -> tuple[Floats, int]:
    """The ncsnr that the mean split-half correlation implies, and the largest number of repeats."""
    check_count("n_splits", n_splits)
    values, order, counts = _check(responses, stimulus)
    most, chosen = int(counts.max()), np.flatnonzero(counts == counts.max())
    if len(chosen) < 3:
        raise DataError(
            f"only {len(chosen)} stimuli have the largest number of repeats ({most}); split halves need at "
            "least 3. Give stimuli with equal numbers of repeats."
        )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = order[starts[chosen][:, None] + np.arange(most)]
    half = most // 2
    rng = make_rng(seed)
    splits = [rng.permuted(rows, axis=1)[:, : 2 * half] for _ in range(n_splits)]
    n_voxels = values.shape[1]
    r = np.empty(n_voxels)
    for columns in voxel_blocks(values.shape[0], n_voxels, 4, max_memory, cache=16 * 2**20):
        block, _ = load(values, columns, "responses")
        total = np.zeros(block.shape[1])
        for split in splits:
            first = block[split[:, :half]].mean(axis=1)
            second = block[split[:, half:]].mean(axis=1)
            total += load_pair(first, second, slice(None)).score("r")
        r[columns] = total / n_splits
    with np.errstate(divide="ignore", invalid="ignore"):
        reliability = np.clip(r, 0.0, 1.0)
        return np.sqrt(reliability / (1.0 - reliability) / half), most
