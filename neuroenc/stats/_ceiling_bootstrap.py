"""Uncertainty of noise ceilings, and scores divided by uncertain ceilings."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.stats._blocks import (
    MAX_MEMORY,
    Floats,
    as_pair,
    check_choice,
    check_count,
    check_metric,
    load,
    voxel_blocks,
)
from neuroenc.stats._ceilings import ceiling_from_repeats, noise_ceiling
from neuroenc.stats._intervals import (
    check_confidence,
    check_interval,
    expansion,
    interval_and_p,
    standard_deviation,
)
from neuroenc.stats._labels import match_rows, match_voxels
from neuroenc.stats._normalise import check_unit
from neuroenc.stats._parallel import Progress, check_jobs, run
from neuroenc.stats._repeats import _check
from neuroenc.stats._resampling import BootstrapResult, Sampler, draw_resamples

__all__ = ["bootstrap_ceiling", "bootstrap_normalised"]


class _Repeats:
    """Sums over the repeats of every stimulus of one block of voxels: a resample is a weight for each stimulus."""

    def __init__(self, values: Any, columns: slice, order: Any, counts: Any, total: str, weighting: str) -> None:
        block, _ = load(values, columns, "responses")
        block = block[order] - np.nanmean(block, axis=0)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        valid = ~np.isnan(block)
        block[~valid] = 0.0
        self.per = np.add.reduceat(valid, starts, axis=0, dtype=np.float64)
        self.sums = np.add.reduceat(block, starts, axis=0)
        self.squares = np.add.reduceat(block * block, starts, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = np.maximum(self.squares - np.where(self.per > 0, self.sums**2 / self.per, 0.0), 0.0)
        freedom = np.maximum(self.per - 1.0, 0.0)
        used = self.per == counts.max() if weighting == "max_repeats" else self.per > 1
        self.within, self.freedom = np.where(used, within, 0.0), np.where(used, freedom, 0.0)
        self.total = total

    def ratios(self, weights: Floats) -> Floats:
        """The ncsnr (n_resamples, n_voxels) of resamples of the stimuli."""
        parts = (self.within, self.freedom, self.per, self.squares, self.sums, self.per**2)
        return self._ratio([weights @ x for x in parts])

    def _ratio(self, parts: list[Floats]) -> Floats:
        within, freedom, m, squares, sums, per2 = parts
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = within / freedom
            if self.total == "unit":
                signal = np.maximum(0.0, 1.0 - noise)
            else:
                variance = (squares - sums**2 / m) / (m - 1.0)
                signal = np.maximum(0.0, (variance - noise) * (m - 1.0) / (m - per2 / m))
            return np.asarray(np.sqrt(signal / noise))


class _Halves:
    """Random halves of the repeats of one block of voxels."""

    def __init__(self, values: Any, columns: slice, rows: Any, chosen: Any) -> None:
        block, _ = load(values, columns, "responses")
        half = rows[0].shape[1] // 2
        self.half, self.chosen = half, chosen
        self.pairs = [
            Sampler(block[split[:, :half]].mean(axis=1), block[split[:, half:]].mean(axis=1), slice(None), "r")
            for split in rows
        ]

    def ratios(self, weights: Floats) -> Floats:
        return self._ratio([pair.scores(weights[:, self.chosen]) for pair in self.pairs])

    def _ratio(self, parts: list[Floats]) -> Floats:
        r = np.clip(sum(parts) / len(parts), 0.0, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.sqrt(r / (1.0 - r) / self.half))


def _source(responses: Any, stimulus: Any, method: str, total: str, weighting: str, n_splits: int, seed: int) -> Any:
    values, order, counts = _check(responses, stimulus)
    if method == "ncsnr":
        return values, counts, lambda columns: _Repeats(values, columns, order, counts, total, weighting)
    chosen = np.flatnonzero(counts == counts.max())
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = order[starts[chosen][:, None] + np.arange(counts.max())]
    rng = make_rng(seed)
    splits = [rng.permuted(rows, axis=1)[:, : 2 * (counts.max() // 2)] for _ in range(n_splits)]
    return values, counts, lambda columns: _Halves(values, columns, splits, chosen)


def bootstrap_ceiling(
    responses: Any,
    stimulus: Any,
    *,
    unit: str,
    n_repeats: Any = None,
    method: str = "ncsnr",
    total: str = "unit",
    weighting: str = "max_repeats",
    n_splits: int = 20,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    interval: str = "expanded",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> BootstrapResult:
    """Standard error and interval of a noise ceiling, by resampling stimuli with all their repeats.

    Parameters
    ----------
    responses : array (n_presentations, n_voxels)
    stimulus : array (n_presentations,)
    unit : {"r2", "r"}
        Share of variance or correlation.
    n_repeats, method, total, weighting, n_splits
        As in `ceiling_from_repeats`.
    n_bootstraps : int
    confidence : float
    interval : {"expanded", "percentile"}
        As in `bootstrap`.
    seed : int
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.
    n_jobs : int
        Threads.
    progress : bool or callable

    Returns
    -------
    BootstrapResult
        ``estimate`` is `ceiling_from_repeats`; ``metric`` names the unit. Where the estimate is truncated at 0 the
        interval begins at 0.

    Raises
    ------
    ValueError
        As `ceiling_from_repeats`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> stimulus = np.repeat(np.arange(500), 3)
    >>> y = rng.standard_normal((500, 1))[stimulus] + rng.standard_normal((1500, 1))   # planted: 3 / 4
    >>> found = bootstrap_ceiling(y, stimulus, unit="r2", total="empirical", n_bootstraps=200)
    >>> bool(found.low[0] < 0.75 < found.high[0])
    True
    """
    unit = check_unit("unit", unit)
    method = check_choice("method", method, ("ncsnr", "split_half"))
    n_bootstraps = check_count("n_bootstraps", n_bootstraps, 2)
    confidence, interval = check_confidence(confidence), check_interval(interval)
    estimate = ceiling_from_repeats(
        responses,
        stimulus,
        unit=unit,
        n_repeats=n_repeats,
        method=method,
        total=total,
        weighting=weighting,
        n_splits=n_splits,
        seed=seed,
        max_memory=max_memory,
    )
    values, counts, make = _source(responses, stimulus, method, total, weighting, n_splits, seed)
    drawn, _, n_units = draw_resamples(len(counts), None, n_bootstraps, seed)
    repeats = counts if n_repeats is None else n_repeats
    out = np.full((3, len(estimate)), np.nan)

    def work(columns: slice) -> tuple[slice, Floats]:
        source, own = make(columns), estimate[columns]
        samples = noise_ceiling(source.ratios(drawn.astype(np.float64)), repeats, unit=unit)
        samples[:, np.isnan(own)] = np.nan
        error = standard_deviation(samples)
        scale = expansion(n_units) if interval == "expanded" else None
        low, high, _ = interval_and_p(samples, own, error, confidence, scale)
        return columns, np.stack([error, np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)])

    held = (14 if method == "ncsnr" else 7 * n_splits + 4) * values.shape[0] + 8 * n_bootstraps
    blocks = list(voxel_blocks(held, len(estimate), check_jobs(n_jobs), max_memory, cache=64 * 2**20))
    for columns, found in run(work, blocks, n_jobs=n_jobs, progress=progress, desc="bootstrap of ceiling"):
        out[:, columns] = found
    return BootstrapResult(estimate, out[0], out[1], out[2], None, confidence, n_bootstraps, n_units, unit, interval)


def bootstrap_normalised(
    y: Any,
    yhat: Any,
    responses: Any,
    stimulus: Any,
    *,
    y_stimulus: Any = None,
    metric: str = "r",
    n_repeats: Any = None,
    method: str = "ncsnr",
    total: str = "unit",
    weighting: str = "max_repeats",
    n_splits: int = 20,
    floor: float | None = None,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    interval: str = "expanded",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> BootstrapResult:
    r"""Score as a share of the noise ceiling, with the uncertainty of both.

    In every resample the score and the ceiling are computed anew and divided. The ceiling's unit follows the metric:
    correlations are divided by a correlation ceiling, shares of variance by a variance ceiling.

    Parameters
    ----------
    y, yhat : array (n_stimuli, n_voxels)
        Responses averaged over repeats, and predictions of them.
    responses, stimulus
        Single presentations and their stimuli, as in `ceiling_from_repeats`: of the same stimuli, or of others.
    y_stimulus : array (n_stimuli,), optional
        Stimuli of the rows of ``y``. Given, a resample holds the same stimuli in score and ceiling, whose errors
        are then correlated as they are; without, the two are resampled independently.
    metric : {"r", "r2", "ev"}
    n_repeats, method, total, weighting, n_splits
        As in `ceiling_from_repeats`. By default ``n_repeats`` is the counts in ``stimulus``, which is right where ``y``
        holds the means of these presentations.
    floor : float, optional
        Voxels whose ceiling is below it become NaN; default 0.1 in unit "r" and 0.01 in unit "r2". In a resample a
        ceiling below the floor is the floor, which keeps intervals of weak voxels wide but finite.
    n_bootstraps, confidence, interval, seed, max_memory, n_jobs, progress
        As in `bootstrap_ceiling`.

    Returns
    -------
    BootstrapResult
        Values above 1 occur by chance and are kept.

    Raises
    ------
    ValueError
        As `bootstrap` and `ceiling_from_repeats`; stimuli of ``y`` that are repeated.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> stimulus = np.repeat(np.arange(400), 3)
    >>> signal = rng.standard_normal((400, 1))
    >>> single = signal[stimulus] + rng.standard_normal((1200, 1))
    >>> y = single.reshape(400, 3, 1).mean(axis=1)
    >>> found = bootstrap_normalised(y, signal, single, stimulus, total="empirical", n_bootstraps=200)
    >>> bool(found.low[0] < 1 < found.high[0])                            # the true model reaches the ceiling
    True
    """
    metric = check_metric(metric)
    unit = "r" if metric == "r" else "r2"
    y2, p2, shape = as_pair(y, yhat)
    responses = match_voxels(y, responses, ("y", "responses"))
    method = check_choice("method", method, ("ncsnr", "split_half"))
    n_bootstraps = check_count("n_bootstraps", n_bootstraps, 2)
    confidence, interval = check_confidence(confidence), check_interval(interval)
    least = (0.1 if unit == "r" else 0.01) if floor is None else float(floor)
    if not 0 < least <= 1:
        raise ConfigError(f"floor={floor!r} is not legal; give a fraction in (0, 1].")
    ceiling = ceiling_from_repeats(
        responses,
        stimulus,
        unit=unit,
        n_repeats=n_repeats,
        method=method,
        total=total,
        weighting=weighting,
        n_splits=n_splits,
        seed=seed,
        max_memory=max_memory,
    )
    if len(ceiling) != y2.shape[1]:
        raise DataError(f"y has {y2.shape[1]} voxels and responses {len(ceiling)}; both must hold the same ones.")
    values, counts, make = _source(responses, stimulus, method, total, weighting, n_splits, seed)
    ids = np.unique(np.asarray(stimulus))
    y_stimulus = match_rows(y, y_stimulus, ("y", "y_stimulus"))
    drawn_y, drawn_c, n_units = _joint_draws(y_stimulus, y2.shape[0], ids, n_bootstraps, seed)
    repeats = counts if n_repeats is None else n_repeats
    out = np.full((4, len(ceiling)), np.nan)

    def floored(ratios: Floats) -> Floats:
        limit = noise_ceiling(ratios, repeats, unit=unit)
        return np.where(np.isnan(limit), np.nan, np.maximum(limit, least))

    def work(columns: slice) -> tuple[slice, Floats]:
        sampler, source = Sampler(y2, p2, columns, metric), make(columns)
        samples = sampler.scores(drawn_y) / floored(source.ratios(drawn_c))
        usable = ceiling[columns] >= least
        samples[:, ~usable] = np.nan
        limit = np.where(usable, ceiling[columns], np.nan)
        estimate, error = sampler.estimate / limit, standard_deviation(samples)
        # Where score and ceiling have stimuli of their own, the fewer decide how far the tails reach.
        scale = expansion(min(n_units, len(ids))) if interval == "expanded" else None
        low, high, _ = interval_and_p(samples, estimate, error, confidence, scale)
        return columns, np.stack([estimate, error, low, high])

    rows = values.shape[0] * (14 if method == "ncsnr" else 7 * n_splits + 4)
    held = rows + 20 * y2.shape[0] + 12 * n_bootstraps
    blocks = list(voxel_blocks(held, len(ceiling), check_jobs(n_jobs), max_memory, cache=64 * 2**20))
    for columns, found in run(work, blocks, n_jobs=n_jobs, progress=progress, desc="normalised bootstrap"):
        out[:, columns] = found
    parts = [x.reshape(shape) for x in out]
    return BootstrapResult(
        parts[0], parts[1], parts[2], parts[3], None, confidence, n_bootstraps, n_units, f"{metric}/ceiling", interval
    )


def _joint_draws(y_stimulus: Any, n: int, ids: Any, n_bootstraps: int, seed: int) -> tuple[Floats, Floats, int]:
    """Weights of the rows of y and of the repeated stimuli (sorted), over the union of both where ids are given."""
    if y_stimulus is None:
        ours, _, _ = draw_resamples(n, None, n_bootstraps, seed)
        theirs, _, _ = draw_resamples(len(ids), None, n_bootstraps, seed + 1)
        return ours.astype(np.float64), theirs.astype(np.float64), n
    names = np.asarray(y_stimulus)
    if names.shape != (n,) or len(np.unique(names)) < n:
        raise DataError(
            f"y_stimulus has shape {names.shape} with {len(np.unique(names))} different ids; y needs {n} different "
            "ones, one for each row."
        )
    every = np.unique(np.concatenate([names.astype(str), ids.astype(str)]))
    counts, _, n_units = draw_resamples(len(every), None, n_bootstraps, seed)
    pick = [np.searchsorted(every, x.astype(str)) for x in (names, ids)]
    return counts[:, pick[0]].astype(np.float64), counts[:, pick[1]].astype(np.float64), n_units
