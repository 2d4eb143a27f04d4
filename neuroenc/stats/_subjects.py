"""Bootstrap over stimuli, over subjects, and over both, of scores and of differences between two encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_pair, check_choice, check_count, check_metric, voxel_blocks
from neuroenc.stats._intervals import (
    PILOT,
    check_confidence,
    check_interval,
    corrected_variance,
    expansion,
    interval_and_p,
    median_shift,
    medians,
    pooled_expansion,
    voxel_scatter,
)
from neuroenc.stats._labels import labels_of, match_voxels
from neuroenc.stats._parallel import Progress, run
from neuroenc.stats._resampling import Sampler, draw_resamples, weight_chunks

__all__ = ["SubjectBootstrap", "bootstrap_subjects"]


@dataclass(frozen=True)
class SubjectBootstrap:
    """Outcome of `bootstrap_subjects`; arrays are (n_outputs,), or scalars where voxels are averaged.

    Attributes
    ----------
    estimate : array, float64
        Mean over subjects.
    standard_error, low, high, p : array, float64
        For what was asked with ``over``; p is two-sided, that the mean is 0 (a difference, mostly).
    variance : dict {"stimuli", "subjects", "both", "corrected": array}
        Bootstrap variance of each kind; "corrected" as in `bootstrap_subjects`.
    subjects : array (n_subjects, ...)
        Each subject's own value.
    over : str
    n_bootstraps : int
    metric : str
    interval : {"expanded", "percentile"}
    """

    estimate: Floats
    standard_error: Floats
    low: Floats
    high: Floats
    p: Floats
    variance: dict[str, Floats]
    subjects: Floats
    over: str
    n_bootstraps: int
    metric: str
    interval: str = "expanded"


def _ids(stimulus: Any, name: str, n: int) -> NDArray[Any]:
    ids = np.asarray(stimulus[name] if isinstance(stimulus, Mapping) else stimulus)
    if ids.shape != (n,):
        raise DataError(f"stimulus of subject {name!r} has shape {ids.shape}; give one id for each of {n} rows.")
    return ids.astype(str)


def bootstrap_subjects(
    data: Mapping[str, Any],
    *,
    stimulus: Any = None,
    over: str = "both",
    metric: str = "r",
    statistic: str | None = "median",
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    interval: str = "expanded",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> SubjectBootstrap:
    r"""Does a score, or a difference of two encoders, generalise to new stimuli, new subjects, or both?

    The mean over subjects of a score is resampled: stimuli (the same draw for all subjects who saw them), subjects,
    or both crossed. The crossed bootstrap counts the noise of single entries more than once, and
    ``variance["corrected"]``, of which the standard error is the root, is

    .. math:: \sigma^2 = \min(\max(2 (\sigma^2_{stimuli} + \sigma^2_{subjects}) - \sigma^2_{both},
              \sigma^2_{stimuli}, \sigma^2_{subjects}), \sigma^2_{both})

    The expanded interval (`sample_interval`) of both has the corrected variance, and the degrees of freedom of a sum of
    the variances over stimuli and over subjects (Satterthwaite): those of the subjects where subjects differ, and those
    of the stimuli where they do not.

    Parameters
    ----------
    data : mapping {subject: (y, yhat) or (y, yhat_a, yhat_b)}
        Arrays (n_stimuli, n_voxels), test stimuli and voxels of that subject; three arrays ask for the difference
        score(y, yhat_a) - score(y, yhat_b).
    stimulus : array (n_stimuli,) or mapping {subject: array}, optional
        Ids of the rows; equal ids are drawn together. Default the labels "stimulus" of labelled responses; without
        any, row n is the same stimulus in all subjects.
    over : {"both", "stimuli", "subjects"}
        To what the interval generalises.
    metric : {"r", "r2", "ev"}
    statistic : {"median", "mean"} or None
        Over the voxels of a subject (voxels differ between subjects; give those of one ROI). None keeps them:
        corresponding voxels (parcels, vertices), one result for each.
    n_bootstraps, confidence, interval, seed
        As in `bootstrap`. With fewer than 6 subjects the mean over them takes too few values for percentiles, which
        leave out 0 in 25 % of cases with 3 subjects; the expanded interval is then Student's.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take, beside the result of all resamples and subjects.
    n_jobs : int
        Threads, over subjects.
    progress : bool or callable

    Returns
    -------
    SubjectBootstrap

    Raises
    ------
    ValueError
        Fewer than two subjects where they are resampled, shapes that differ, mixed numbers of predictions.

    References
    ----------
    Owen (2007), Ann. Appl. Stat. 1:386. Schütt et al. (2023), eLife 12:e82566 (the correction). Satterthwaite (1946),
    Biometrics Bulletin 2:110. Hesterberg (2015), Am. Stat. 69:371.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> data = {}
    >>> for subject in ("s1", "s2", "s3"):
    ...     y = rng.standard_normal((100, 20))
    ...     data[subject] = y, y + rng.standard_normal((100, 20)), y + 2 * rng.standard_normal((100, 20))
    >>> found = bootstrap_subjects(data, n_bootstraps=200)
    >>> bool(found.low > 0)
    True
    """
    over = check_choice("over", over, ("both", "stimuli", "subjects"), {"images": "stimuli"})
    metric = check_metric(metric)
    n_bootstraps = check_count("n_bootstraps", n_bootstraps, 2)
    max_memory = parse_memory(max_memory)
    if statistic is not None:
        statistic = check_choice("statistic", statistic, ("median", "mean"))
    confidence, interval = check_confidence(confidence), check_interval(interval)
    if not data:
        raise DataError("data holds no subject; give {subject: (y, yhat)}.")
    if over != "stimuli" and len(data) < 2:
        raise DataError(f"over={over!r} resamples subjects, but there is one; use over='stimuli'.")
    kinds = {len(v) for v in data.values()}
    if len(kinds) > 1 or not kinds <= {2, 3}:
        raise DataError(f"subjects hold {sorted(kinds)} arrays; legal is (y, yhat) or (y, yhat_a, yhat_b) for all.")
    if statistic is None:
        first = next(iter(data.values()))[0]
        data = {k: (match_voxels(first, v[0], ("the first subject", str(k))), *v[1:]) for k, v in data.items()}
    pairs = {k: [as_pair(v[0], x)[:2] for x in v[1:]] for k, v in data.items()}
    if stimulus is None:
        named = {k: labels_of(v[0], 0, ("stimulus",)).get("stimulus") for k, v in data.items()}
        if all(x is not None for x in named.values()):
            stimulus = named
    rows = {k: v[0][0].shape[0] for k, v in pairs.items()}
    width = {v[0][0].shape[1] for v in pairs.values()}
    if statistic is None and len(width) > 1:
        raise DataError(f"statistic=None needs corresponding voxels, but subjects have {sorted(width)} of them.")
    if stimulus is None:
        if len(set(rows.values())) > 1:
            raise DataError(f"subjects have different numbers of stimuli ({rows}); give stimulus={{subject: ids}}.")
        every, unit = np.arange(next(iter(rows.values()))), {k: np.arange(n) for k, n in rows.items()}
    else:
        ids = {k: _ids(stimulus, k, n) for k, n in rows.items()}
        every = np.unique(np.concatenate(list(ids.values())))
        unit = {k: np.searchsorted(every, v) for k, v in ids.items()}
    counts, _, n_units = draw_resamples(len(every), None, n_bootstraps, seed)

    def work(name: str) -> tuple[Floats, Floats]:
        return _one(pairs[name], counts, unit[name], metric, statistic, max_memory)

    found = list(run(work, list(data), n_jobs=n_jobs, progress=progress, desc="subjects"))
    own, samples = np.stack([f[0] for f in found]), np.stack([f[1] for f in found])  # (s, o), (s, b, o)
    rng = np.random.default_rng([seed, 1])
    n = len(own)
    weight = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(n_bootstraps)]) / n
    drawn = {
        "stimuli": samples.mean(axis=0),
        "subjects": weight @ own,
        "both": np.einsum("bs,sbo->bo", weight, samples),
    }
    variance = {k: np.nanvar(v, axis=0, ddof=1) for k, v in drawn.items()}
    variance["corrected"] = corrected_variance(variance["stimuli"], variance["subjects"], variance["both"])
    chosen, estimate, error = drawn[over], own.mean(axis=0), np.sqrt(variance[over])
    told = np.sqrt(variance["corrected"]) if over == "both" else error
    scale = None
    if interval == "expanded":
        sizes = {"stimuli": n_units, "subjects": n}
        # The variance of a mean over resampled subjects is known without resamples.
        parts = [(own.var(axis=0) / n if k == "subjects" else variance[k], size) for k, size in sizes.items()]
        if over == "both":
            scale = pooled_expansion(parts, variance["both"], variance["corrected"])
        else:
            scale = expansion(np.full(estimate.shape, sizes[over]))
    low, high, p = interval_and_p(chosen, estimate, error, confidence, scale)
    shape = () if statistic else (own.shape[1],)
    estimate, told, low, high, p = (np.asarray(x).reshape(shape) for x in (estimate, told, low, high, p))
    return SubjectBootstrap(
        estimate,
        told,
        low,
        high,
        p,
        {k: v.reshape(shape) for k, v in variance.items()},
        own.reshape(len(own), *shape),
        over,
        n_bootstraps,
        metric,
        interval,
    )


def _one(
    pairs: Any, counts: Any, unit: NDArray[np.intp], metric: str, statistic: str | None, max_memory: int
) -> tuple[Floats, Floats]:
    """A subject's values (n_outputs,), and their resamples (n_bootstraps, n_outputs)."""
    n, v = pairs[0][0].shape
    step = int(max(1, min(len(counts), max_memory // 4 // (8 * (n + 3 * v)))))
    whole = np.empty(v)

    def difference(parts: list[Floats]) -> Floats:
        return parts[0] if len(parts) == 1 else parts[0] - parts[1]

    def scores(weights: Floats) -> Floats:
        out = np.empty((len(weights), v))
        for at in voxel_blocks(9 * n * len(pairs) + 8 * len(out), v, 1, max_memory // 2 + 1):
            samplers = [Sampler(y, yhat, at, metric) for y, yhat in pairs]
            out[:, at] = difference([s.scores(weights) for s in samplers])
            whole[at] = difference([s.estimate for s in samplers])
        return out

    scores(np.ones((1, n)))
    shift = np.zeros(v)
    if statistic == "median":
        pilot = [voxel_scatter(scores(w), whole) for _, w in weight_chunks(counts[:PILOT], unit, step)]
        shift = median_shift(whole, np.concatenate(pilot))
    drawn = [_summary(scores(w) - shift, statistic) for _, w in weight_chunks(counts, unit, step)]
    return _summary(whole[None], statistic)[0], np.concatenate(drawn)


def _summary(scores: Floats, statistic: str | None) -> Floats:
    if statistic is None:
        return scores
    if statistic == "median":
        return medians(scores)[:, None]
    known = ~np.isnan(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(known, scores, 0.0).sum(axis=1) / known.sum(axis=1))[:, None]
