"""Bootstrap over stimuli: uncertainty of scores, of their differences, and of means over voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc.stats._blocks import (
    MAX_MEMORY,
    Floats,
    as_pair,
    check_choice,
    check_count,
    check_metric,
    voxel_blocks,
)
from neuroenc.stats._intervals import (
    PILOT,
    check_confidence,
    check_interval,
    expansion,
    interval_and_p,
    median_shift,
    medians,
    standard_deviation,
    voxel_scatter,
)
from neuroenc.stats._labels import match_rows, match_voxels
from neuroenc.stats._parallel import Progress, check_jobs, run
from neuroenc.stats._resampling import (
    BootstrapResult,
    Counts,
    Metric,
    Sampler,
    count_units,
    draw_resamples,
    weight_chunks,
)

__all__ = ["BootstrapResult", "bootstrap", "bootstrap_difference", "bootstrap_rois"]


def _prepare(
    y: Any,
    yhat: Any,
    metric: Metric,
    n_bootstraps: int,
    confidence: float,
    groups: Any,
    seed: int,
    max_memory: int,
) -> tuple[Any, Any, tuple[int, ...], Metric, str, tuple[Counts, NDArray[np.intp], int], int]:
    if not callable(metric):
        metric = check_metric(metric)
    n_bootstraps = check_count("n_bootstraps", n_bootstraps, 2)
    check_confidence(confidence)
    y2, p2, shape = as_pair(y, yhat)
    draws = draw_resamples(y2.shape[0], match_rows(y, groups, ("y", "groups")), n_bootstraps, seed)
    step = int(max(1, min(n_bootstraps, max_memory // 4 // (8 * y2.shape[0]))))
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "callable")
    return y2, p2, shape, metric, name, draws, step


def _voxelwise(
    y: Any,
    predictions: list[Any],
    metric: Metric,
    n_bootstraps: int,
    confidence: float,
    interval: str,
    groups: Any,
    seed: int,
    max_memory: int | str,
    n_jobs: int,
    progress: Progress,
) -> BootstrapResult:
    jobs, interval, max_memory = check_jobs(n_jobs), check_interval(interval), parse_memory(max_memory)
    y2, first, shape, metric, name, (counts, unit, n_units), step = _prepare(
        y, predictions[0], metric, n_bootstraps, confidence, groups, seed, max_memory
    )
    predicted = [first, *(as_pair(y, x, ("y", "yhat_b"))[1] for x in predictions[1:])]
    paired = len(predicted) == 2
    n, n_voxels = y2.shape
    estimate, error, low, high = (np.full(n_voxels, np.nan) for _ in range(4))
    p = np.full(n_voxels, np.nan) if paired else None
    limits = _limits(metric, paired)
    held = 9 * n * len(predicted) + 4 * n_bootstraps + 8 * step

    def work(columns: slice) -> slice:
        samplers = [Sampler(y2, x, columns, metric) for x in predicted]
        samples = np.empty((n_bootstraps, columns.stop - columns.start))
        for rows, weights in weight_chunks(counts, unit, step):
            samples[rows] = samplers[0].scores(weights)
            if paired:
                samples[rows] -= samplers[1].scores(weights)
        estimate[columns] = samplers[0].estimate - (samplers[1].estimate if paired else 0.0)
        error[columns] = standard_deviation(samples)
        scale = None
        if interval == "expanded":
            scale = expansion(np.max([count_units(s.seen, unit, n_units, len(s.estimate)) for s in samplers], axis=0))
        low[columns], high[columns], own = interval_and_p(samples, estimate[columns], error[columns], confidence, scale)
        np.clip(low[columns], *limits, out=low[columns])
        np.clip(high[columns], *limits, out=high[columns])
        if p is not None:
            p[columns] = own
        return columns

    blocks = list(voxel_blocks(held, n_voxels, jobs, max_memory // 2 + 1))
    for _ in run(work, blocks, n_jobs=jobs, progress=progress, desc="bootstrap"):
        pass
    return BootstrapResult(
        estimate.reshape(shape),
        error.reshape(shape),
        low.reshape(shape),
        high.reshape(shape),
        None if p is None else p.reshape(shape),
        confidence,
        n_bootstraps,
        n_units,
        name,
        interval,
    )


def _limits(metric: Metric, paired: bool) -> tuple[float, float]:
    """What a score cannot exceed: Student's limits, where few units need them, know nothing of it."""
    if metric == "r":
        return (-2.0, 2.0) if paired else (-1.0, 1.0)
    return (-np.inf, 1.0) if metric in ("r2", "ev") and not paired else (-np.inf, np.inf)


def bootstrap(
    y: Any,
    yhat: Any,
    *,
    metric: Metric = "r",
    n_bootstraps: int = 1000,
    groups: Any = None,
    confidence: float = 0.95,
    interval: str = "expanded",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> BootstrapResult:
    r"""Standard error and interval of a score per voxel, by resampling stimuli.

    Each resample draws as many stimuli as there are, with replacement, the same ones for all voxels, and
    weights the sums that make up the score: with counts W, :math:`\sum_i w_i y_i \hat y_i` for all
    resamples and voxels is one matrix product. Predictions stay fixed, so this is the uncertainty from the
    choice of test stimuli (and their noise), not from training.

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels) or (n_samples,)
        Measured and predicted responses; a NaN in either drops that sample for that voxel.
    metric : {"r", "r2", "ev"} or callable
        A callable gets float64 arrays (n_resampled, n_voxels) of y and yhat and returns (n_voxels,); it is
        called once per resample and block of voxels, which is slow.
    n_bootstraps : int
        Resamples.
    groups : array (n_samples,), optional
        Resample whole groups instead of rows: stimulus ids when rows are presentations, sessions or runs when
        noise is shared within them.
    confidence : float
        Coverage of the interval.
    interval : {"expanded", "percentile"}
        ``"percentile"``: quantiles of the resamples, which are too narrow for few stimuli (7 % of intervals miss the
        truth with 60, nominal 5 %). ``"expanded"``: centred, and quantiles further out; see `sample_interval`.
    seed : int
        Same seed, same resamples.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take, beside 4 bytes per resample and unit.
    n_jobs : int
        Threads over blocks of voxels, which are smaller for more of them; -1 is all cores.
    progress : bool or callable
        True shows a bar; a callable is told (done, total) in blocks of voxels.

    Returns
    -------
    BootstrapResult
        Arrays (n_voxels,); NaN where the score is undefined.

    Raises
    ------
    ValueError
        Unknown metric, shapes that differ, fewer than 2 groups, a callable that does not return one per
        voxel.

    References
    ----------
    Efron & Tibshirani (1993), An Introduction to the Bootstrap. Hesterberg (2015), Am. Stat. 69:371.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((400, 1))
    >>> yhat = y + rng.standard_normal((400, 1))
    >>> result = bootstrap(y, yhat, seed=1)
    >>> bool(result.low[0] < 0.5**0.5 < result.high[0])
    True
    """
    return _voxelwise(y, [yhat], metric, n_bootstraps, confidence, interval, groups, seed, max_memory, n_jobs, progress)


def bootstrap_difference(
    y: Any,
    yhat_a: Any,
    yhat_b: Any,
    *,
    metric: Metric = "r",
    n_bootstraps: int = 1000,
    groups: Any = None,
    confidence: float = 0.95,
    interval: str = "expanded",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> BootstrapResult:
    """Paired bootstrap of ``score(y, yhat_a) - score(y, yhat_b)``: both see the same resampled stimuli.

    Parameters
    ----------
    y, yhat_a, yhat_b : array (n_samples, n_voxels) or (n_samples,)
        Measured responses and two predictions of them. A NaN in one prediction drops that sample for that
        prediction only.
    metric, n_bootstraps, groups, confidence, interval, seed, max_memory, n_jobs, progress
        As in `bootstrap`.

    Returns
    -------
    BootstrapResult
        Of the difference, with a two-sided p-value per voxel.

    Raises
    ------
    ValueError
        As `bootstrap`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((300, 1))
    >>> noise = rng.standard_normal((300, 1))
    >>> result = bootstrap_difference(y, y + noise, y + 3 * noise, n_bootstraps=200)
    >>> bool(result.low[0] > 0), bool(result.p[0] < 0.02)
    (True, True)
    """
    return _voxelwise(
        y, [yhat_a, yhat_b], metric, n_bootstraps, confidence, interval, groups, seed, max_memory, n_jobs, progress
    )


def _rois(rois: Mapping[str, Any], n_voxels: int, like: Any = None) -> dict[str, NDArray[np.intp]]:
    chosen = {}
    for name, members in rois.items():
        if np.asarray(members).dtype == bool:
            members = match_voxels(like, members, ("y", f"the mask of ROI {name!r}"))
        index = np.asarray(members)
        if index.dtype == bool:
            if index.shape != (n_voxels,):
                raise DataError(f"mask of ROI {name!r} has shape {index.shape}; there are {n_voxels} voxels.")
            index = np.flatnonzero(index)
        elif index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise DataError(f"ROI {name!r} must be a boolean mask or a list of voxel positions.")
        if index.size == 0:
            raise DataError(f"ROI {name!r} has no voxel; leave it out.")
        if index.min() < 0 or index.max() >= n_voxels:
            raise DataError(f"ROI {name!r} has positions {index.min()} to {index.max()}; legal: 0 to {n_voxels - 1}.")
        chosen[str(name)] = index.astype(np.intp)
    if not chosen:
        raise DataError("rois is empty; give {name: mask}.")
    return chosen


def bootstrap_rois(
    y: Any,
    yhat: Any,
    rois: Mapping[str, Any],
    *,
    metric: Metric = "r",
    statistic: str = "median",
    transform: Callable[[Floats], Any] | None = None,
    n_bootstraps: int = 1000,
    groups: Any = None,
    confidence: float = 0.95,
    interval: str = "expanded",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> dict[str, BootstrapResult]:
    """Bootstrap over stimuli of the mean or median score over the voxels of each ROI.

    Voxels are not resampled: they share stimuli and noise, so a mean over voxels varies far more than
    independent voxels would suggest, and resampling stimuli keeps that.

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels)
        Measured and predicted responses.
    rois : mapping {name: bool array (n_voxels,) or voxel positions}
        ROIs may overlap. Labelled masks are matched to the voxels of ``y``.
    metric : {"r", "r2", "ev"} or callable
        As in `bootstrap`.
    statistic : {"median", "mean"}
        Over the voxels of a ROI whose score is not NaN; resamples of a median as in `median_samples`.
    transform : callable, optional
        Applied to scores (n_resamples, n_voxels) first, for all voxels of ``y``; for example
        ``lambda r: normalise(r, ceiling, score_unit="r", ceiling_unit="r")``.
    n_bootstraps, groups, confidence, interval, seed, max_memory, n_jobs, progress
        As in `bootstrap`; progress counts chunks of resamples. One resample of all voxels' scores must fit.

    Returns
    -------
    dict {name: BootstrapResult}
        With scalars (0-d arrays).

    Raises
    ------
    ValueError
        As `bootstrap`; an empty ROI, a mask of the wrong length.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((200, 6))
    >>> yhat = y + rng.standard_normal((200, 6))
    >>> out = bootstrap_rois(y, yhat, {"V1": [0, 1, 2], "all": np.ones(6, bool)}, n_bootstraps=100)
    >>> bool(out["all"].low < out["all"].estimate < out["all"].high)
    True
    """
    statistic = check_choice("statistic", statistic, ("median", "mean"))
    interval, max_memory = check_interval(interval), parse_memory(max_memory)
    y2, p2, _, metric, name, (counts, unit, n_units), _ = _prepare(
        y, yhat, metric, n_bootstraps, confidence, groups, seed, max_memory
    )
    n, n_voxels = y2.shape
    members = _rois(rois, n_voxels, y)
    jobs = check_jobs(n_jobs)
    step = int(max(1, min(n_bootstraps, max_memory // 4 // jobs // (8 * (n + 3 * n_voxels)))))

    def transformed(scores: Floats) -> Floats:
        if transform is None:
            return scores
        scores = np.asarray(transform(scores), dtype=np.float64)
        if scores.shape[-1:] != (n_voxels,):
            raise DataError(f"transform returned shape {scores.shape}; the last axis must stay {n_voxels}.")
        return scores

    whole = np.empty((1, n_voxels))

    def score_all(weights: Floats) -> Floats:
        scores = np.empty((len(weights), n_voxels))
        for columns in voxel_blocks(9 * n + 8 * len(weights), n_voxels, jobs, max_memory // 2 + 1):
            sampler = Sampler(y2, p2, columns, metric)
            whole[0, columns] = sampler.estimate
            scores[:, columns] = sampler.scores(weights)
        return transformed(scores)

    shifts = [np.zeros(len(index)) for index in members.values()]

    def summarise(scores: Floats) -> Floats:
        """Of every ROI, (n_resamples, n_rois)."""
        out = np.empty((len(scores), len(members)))
        for k, index in enumerate(members.values()):
            part = scores[:, index]
            if statistic == "median":
                out[:, k] = medians(part - shifts[k])
            else:
                known = ~np.isnan(part)
                with np.errstate(divide="ignore", invalid="ignore"):
                    out[:, k] = np.where(known, part, 0.0).sum(axis=1) / known.sum(axis=1)
        return out

    score_all(np.ones((1, n)))
    own = transformed(whole)
    estimate = summarise(own)[0]
    if statistic == "median":
        scatter: list[list[Floats]] = [[] for _ in members]
        for _, weights in weight_chunks(counts[:PILOT], unit, step):
            scores = score_all(weights)
            for k, index in enumerate(members.values()):
                scatter[k].append(voxel_scatter(scores[:, index], own[0, index]))
        shifts = [median_shift(own[0, index], np.concatenate(scatter[k])) for k, index in enumerate(members.values())]
    samples = np.empty((n_bootstraps, len(members)))

    def work(part: tuple[slice, Floats]) -> None:
        rows, weights = part
        samples[rows] = summarise(score_all(weights))

    chunks, total = weight_chunks(counts, unit, step), -(-n_bootstraps // step)
    for _ in run(work, chunks, n_jobs=jobs, progress=progress, total=total, desc="bootstrap of ROIs"):
        pass
    error = standard_deviation(samples)
    scale = expansion(n_units) if interval == "expanded" else None
    low, high, _ = interval_and_p(samples, estimate, error, confidence, scale)
    return {
        roi: BootstrapResult(
            np.asarray(estimate[k]),
            np.asarray(error[k]),
            np.asarray(low[k]),
            np.asarray(high[k]),
            None,
            confidence,
            n_bootstraps,
            n_units,
            name,
            interval,
        )
        for k, roi in enumerate(members)
    }
