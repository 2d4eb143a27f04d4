"""Variance between and within the repeats of a stimulus."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import DataError
from neuroenc._core.memory import voxel_blocks
from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_samples, cached, centre, load, load_pair
from neuroenc.stats._labels import match_rows

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


def check_repeats(responses: Any, stimulus: Any) -> tuple[Any, Indices, Indices]:
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

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> signal, noise = variance_components(y, ["a", "a", "b", "b"], total="empirical")
    >>> noise, signal.round(6)
    (array([2.]), array([7.]))
    """
    total = one_of("total", total, ("unit", "empirical"))
    weighting = one_of("weighting", weighting, ("max_repeats", "df"))
    values, order, counts = check_repeats(responses, stimulus)
    most = int(counts.max())
    freedom = int((counts - 1).sum())
    used = int((most - 1) * (counts == most).sum())
    if weighting == "max_repeats" and used < 0.1 * freedom:
        raise DataError(
            f"only {int((counts == most).sum())} stimuli have the largest number of repeats ({most}); they "
            f"hold {used} of {freedom} degrees of freedom. Use weighting='df' to pool all repeated stimuli."
        )
    n, n_voxels = values.shape
    signal, noise, spread = np.empty(n_voxels), np.empty(n_voxels), np.empty(n_voxels)
    for at in voxel_blocks(n_voxels, 64 * n, max_memory, most=cached(n, 16)):
        block, eps = load(values, at, "responses")
        sums = RepeatSums(block, order, counts, total, weighting)
        between, inside = (x[0] for x in sums.components(np.ones((1, len(counts)))))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            variance = sums.squares.sum(axis=0) / (sums.per.sum(axis=0) - 1)
            varies = np.isfinite(variance) & (variance > (eps * np.abs(sums.mean)) ** 2)
            # Repeats that are the same but for the rounding of their means have no noise.
            same = inside <= (16.0 * np.finfo(np.float64).eps) ** 2 * (variance + sums.mean**2)
        ok = varies & np.isfinite(inside)
        noise[at] = np.where(ok, np.where(same, 0.0, inside), np.nan)
        signal[at] = np.where(ok, np.where(same & (total == "unit"), 1.0, between), np.nan)
        spread[at] = np.where(varies, variance, np.nan)
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
    check_whole("n_splits", n_splits)
    values, order, counts = check_repeats(responses, stimulus)
    most, chosen = int(counts.max()), np.flatnonzero(counts == counts.max())
    if len(chosen) < 3:
        raise DataError(
            f"only {len(chosen)} stimuli have the largest number of repeats ({most}); split halves need at "
            "least 3. Give stimuli with equal numbers of repeats."
        )
    rng, half = make_rng(seed), most // 2
    rows = order[(np.cumsum(counts) - counts)[chosen][:, None] + np.arange(most)]
    splits = [np.split(rng.permuted(rows, axis=1)[:, : 2 * half], 2, axis=1) for _ in range(n_splits)]
    ratio = np.empty(values.shape[1])
    held = 56 * n_splits * len(chosen) + 8 * len(values)
    for at in voxel_blocks(len(ratio), held, max_memory, most=cached(len(values), 16)):
        block = load(values, at, "responses")[0]
        halves = [[block[part].mean(axis=1) for part in split] for split in splits]
        r = sum(load_pair(first, second, slice(None)).score("r") for first, second in halves) / n_splits
        mean = np.clip(r, 0.0, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio[at] = np.sqrt(mean / (1.0 - mean) / half)
    return ratio, most


class RepeatSums:
    """Sums over the repeats of every stimulus of one block of voxels: a resample is a weight for each stimulus."""

    def __init__(self, block: Floats, order: Indices, counts: Indices, total: str, weighting: str) -> None:
        block, valid, _, self.mean = centre(block[order])
        starts, self.total = np.cumsum(counts) - counts, total
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if valid is None:
                self.per = np.broadcast_to(counts[:, None].astype(np.float64), (len(counts), block.shape[1]))
            else:
                self.per = np.add.reduceat(valid, starts, axis=0, dtype=np.float64)
            self.sums, self.squares = (np.add.reduceat(x, starts, axis=0) for x in (block, block * block))
            block -= np.repeat(np.where(self.per > 0, self.sums / self.per, 0.0), counts, axis=0)
            if valid is not None:
                block[~valid] = 0.0
            used = self.per == counts.max() if weighting == "max_repeats" else self.per > 1
            self.within = np.where(used, np.add.reduceat(block * block, starts, axis=0), 0.0)
        self.freedom = np.where(used, self.per - 1.0, 0.0)

    def components(self, weights: Floats) -> tuple[Floats, Floats]:
        """Signal and noise variance (n_resamples, n_voxels) of resamples of the stimuli."""
        parts = (self.within, self.freedom, self.per, self.squares, self.sums, self.per**2)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            within, freedom, m, squares, sums, per2 = (weights @ x for x in parts)
            noise = within / freedom
            if self.total == "unit":
                return np.maximum(0.0, 1.0 - noise), noise
            variance = (squares - sums**2 / m) / (m - 1.0)
            return np.maximum(0.0, (variance - noise) * (m - 1.0) / (m - per2 / m)), noise

    def ratios(self, weights: Floats) -> Floats:
        """The ncsnr (n_resamples, n_voxels) of resamples of the stimuli."""
        signal, noise = self.components(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.sqrt(signal / noise))
