"""Resamples of stimuli as weights, scores of all resamples by matrix products, and their means over subjects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.memory import voxel_blocks
from neuroenc.stats import _intervals as intervals
from neuroenc.stats._blocks import Floats, as_pair, known_mean, load, load_pair, score_from_sums
from neuroenc.stats._intervals import Expansion
from neuroenc.stats._labels import labels_of, match_voxels
from neuroenc.stats._parallel import run

Counts = NDArray[np.int32]
Indices = NDArray[np.intp]
Bounds = tuple[float, float]
UNBOUNDED = (-np.inf, np.inf)


def unit_of(n: int, groups: Any, name: str = "groups", least: int = 2) -> tuple[Indices, int]:
    """The unit (stimulus or group) of every sample, and how many there are."""
    if groups is None:
        unit, n_units = np.arange(n), n
    else:
        labels = np.asarray(groups)
        if labels.shape != (n,):
            raise DataError(f"{name} has shape {labels.shape}; give one label for each of the {n} samples.")
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise DataError(f"{name} has {int(np.isnan(labels).sum())} NaN labels; every sample needs one.")
        distinct, unit = np.unique(labels, return_inverse=True)
        n_units = len(distinct)
    if n_units < least:
        raise DataError(f"got {n_units} {name.removesuffix('s')}; at least {least} are needed.")
    return unit, n_units


def draw_counts(n_units: int, n_bootstraps: int, seed: Any) -> Counts:
    """How often every unit is drawn, (n_bootstraps, n_units)."""
    rng = np.random.default_rng(seed)
    counts = np.empty((n_bootstraps, n_units), dtype=np.int32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n_units, n_units), minlength=n_units)
    return counts


def count_units(mask: Any, unit: Indices, n_units: int, n_voxels: int) -> Floats:
    """How many units every voxel has seen; ``mask`` (n_samples, n_voxels) is None where none is missing."""
    if mask is None or mask.all():
        return np.full(n_voxels, float(n_units))
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(n_units))
    return np.asarray(np.logical_or.reduceat(mask[order], starts, axis=0).sum(axis=0), dtype=np.float64)


def units_seen(y: Any, yhat: Any, unit: Indices, n_units: int, max_memory: int) -> Floats:
    """How many units every voxel has seen, in both arrays."""
    seen = np.empty(y.shape[1])
    for at in voxel_blocks(len(seen), 24 * len(y), max_memory):
        known = ~(np.isnan(load(y, at, "y")[0]) | np.isnan(load(yhat, at, "yhat")[0]))
        seen[at] = count_units(known, unit, n_units, known.shape[1])
    return seen


class Summary(NamedTuple):
    """A few statistics with their resamples, of which `Resampler` makes a result.

    ``error`` is the standard error where it is not that of the resamples.
    """

    estimate: Any
    samples: Floats
    scale: Expansion
    n_units: int
    name: str
    error: Floats | None = None
    bounds: Bounds = UNBOUNDED
    variance: dict[str, Floats] | None = None
    subjects: Floats | None = None


class Sampler:
    """Bootstrap scores of one block of voxels through weighted sums."""

    def __init__(self, y: Any, yhat: Any, columns: slice | Indices, metric: str) -> None:
        self.metric, self.pair = metric, load_pair(y, yhat, columns, metric)
        self.estimate = self.pair.score(metric)
        valid = self.pair.valid
        self.mask = None if valid is None else valid.astype(np.float64)
        self.squares = self.pair.y**2, self.pair.p**2, self.pair.y * self.pair.p

    def scores(self, weights: Floats) -> Floats:
        """Scores (n_resamples, n_voxels) for sample weights (n_resamples, n_samples)."""
        n = weights.sum(axis=1)[:, None] if self.mask is None else weights @ self.mask
        with np.errstate(invalid="ignore"):
            sa, sb, saa, sbb, sab = (weights @ x for x in (self.pair.y, self.pair.p, *self.squares))
            out = score_from_sums(self.metric, n, sa, sb, saa, sbb, sab, self.pair.offset)
        out[:, np.isnan(self.estimate)] = np.nan
        return out


def weight_chunks(counts: Counts, unit: Indices, step: int) -> Iterator[tuple[slice, Floats]]:
    """Sample weights (at most ``step`` resamples at a time) from the counts of units."""
    for start in range(0, len(counts), step):
        rows = slice(start, min(start + step, len(counts)))
        yield rows, counts[rows][:, unit].astype(np.float64)


def difference(parts: Sequence[Any] | Floats) -> Any:
    """The only one, or the first less the second."""
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def region_members(rois: Mapping[str, Any], n_voxels: int, like: Any = None) -> dict[str, Indices]:
    """Positions of the voxels of every ROI; labelled masks are matched to the voxels of ``like``."""
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


def resample_summaries(
    pairs: Sequence[tuple[Any, Any]],
    members: Sequence[Indices],
    counts: Counts,
    unit: Indices,
    *,
    metric: str,
    statistic: str | None,
    max_memory: int,
    jobs: int = 1,
    progress: bool = False,
) -> tuple[Floats, Floats]:
    """Median or mean score over the voxels of every region, and its resamples (n_bootstraps, n_regions).

    ``pairs`` holds (y, yhat), or two of them for a difference. Without a statistic, of every voxel. Resamples of a
    median are those of `median_samples`.
    """
    n, v = pairs[0][0].shape
    step = int(max(1, min(len(counts), max_memory // 4 // jobs // (8 * (n + 3 * v)))))

    def scored(weights: Floats) -> tuple[Floats, Floats]:
        """Of every voxel, on the data as they are (1, v) and in resamples."""
        whole, drawn = np.empty((len(pairs), 1, v)), np.empty((len(pairs), len(weights), v))
        for at in voxel_blocks(v, 72 * n * len(pairs) + 64 * len(weights), max_memory // 2 + 1, jobs):
            for k, (y, yhat) in enumerate(pairs):
                sampler = Sampler(y, yhat, at, metric)
                whole[k, :, at], drawn[k, :, at] = sampler.estimate, sampler.scores(weights)
        return difference(whole), difference(drawn)

    def summarise(scores: Floats) -> Floats:
        if statistic is None:
            return scores
        parts = [scores[:, index] - shift for index, shift in zip(members, shifts, strict=True)]
        return np.stack([intervals.medians(x) if statistic == "median" else known_mean(x) for x in parts], axis=1)

    own = scored(np.ones((1, n)))[0]
    shifts: list[Any] = [0.0] * len(members)
    estimate = summarise(own)[0]
    if statistic == "median":
        drawn = (scored(weights)[1] for _, weights in weight_chunks(counts[: intervals.PILOT], unit, step))
        scatter = [[intervals.voxel_scatter(x[:, index], own[0, index]) for index in members] for x in drawn]
        shifts = [
            intervals.median_shift(own[0, index], np.concatenate(parts))
            for index, parts in zip(members, zip(*scatter, strict=True), strict=True)
        ]
    chunks, total = weight_chunks(counts, unit, step), -(-len(counts) // step)
    bar: dict[str, Any] = {"progress": progress, "total": total, "desc": "bootstrap"}
    found = run(lambda part: summarise(scored(part[1])[1]), chunks, n_jobs=jobs, **bar)
    return estimate, np.concatenate(list(found))


def seen_patterns(y: Any, width: int) -> list[tuple[Indices, Indices]]:
    """(Columns, rows seen by any of them): columns that miss the same rows stand together."""
    n_voxels = y.shape[1]
    keys: dict[bytes, list[int]] = {}
    for start in range(0, n_voxels, 1024):
        missing = np.packbits(np.isnan(np.asarray(y[:, start : start + 1024], dtype=np.float64)), axis=0)
        for v, pattern in enumerate(missing.T, start=start):
            keys.setdefault(pattern.tobytes(), []).append(v)
    # Where nearly every voxel misses rows of its own, a block a pattern would be a loop over voxels.
    if len(keys) > 64:
        keys = {b"": list(range(n_voxels))}
    blocks = []
    for members in keys.values():
        for start in range(0, len(members), width):
            columns = np.array(members[start : start + width], dtype=np.intp)
            seen = ~np.isnan(np.asarray(y[:, columns], dtype=np.float64)).all(axis=1)
            blocks.append((columns, np.flatnonzero(seen)))
    return blocks


def resample_scores(
    y: Any, yhat: Any, counts: Counts, unit: Indices, *, metric: str, max_memory: int, dtype: Any
) -> tuple[Floats, Any]:
    """Score of every voxel, and in every resample (n_bootstraps, n_voxels)."""
    n, n_voxels = y.shape
    step = int(max(1, min(len(counts), max_memory // 4 // (8 * n))))
    width = int(max(1, (max_memory // 2) // (8 * (9 * n + 8 * step))))
    estimate, samples = np.full(n_voxels, np.nan), np.full((len(counts), n_voxels), np.nan, dtype=dtype)
    for columns, rows in seen_patterns(y, width):
        if len(rows) < 2:
            continue
        sampler = Sampler(np.asarray(y[:, columns])[rows], np.asarray(yhat[:, columns])[rows], slice(None), metric)
        estimate[columns] = sampler.estimate
        for drawn, weights in weight_chunks(counts, unit[rows], step):
            samples[drawn, columns] = sampler.scores(weights)
    return estimate, samples


def joint_draws(y_stimulus: Any, n: int, ids: Any, n_bootstraps: int, seed: int) -> tuple[Floats, Floats, int]:
    """Weights of the rows of y and of the repeated stimuli (sorted), over the union of both where ids are given."""
    if y_stimulus is None:
        ours, theirs = draw_counts(n, n_bootstraps, seed), draw_counts(len(ids), n_bootstraps, seed + 1)
        return ours.astype(np.float64), theirs.astype(np.float64), n
    names = np.asarray(y_stimulus)
    if names.shape != (n,) or len(np.unique(names)) < n:
        raise DataError(
            f"y_stimulus has shape {names.shape} with {len(np.unique(names))} different ids; y needs {n} different "
            "ones, one for each row."
        )
    every = np.unique(np.concatenate([names.astype(str), ids.astype(str)]))
    counts = draw_counts(len(every), n_bootstraps, seed)
    ours, theirs = (counts[:, np.searchsorted(every, x.astype(str))] for x in (names, ids))
    return ours.astype(np.float64), theirs.astype(np.float64), len(every)


def check_over(over: str, n_subjects: int) -> str:
    over = one_of("over", over, ("both", "stimuli", "subjects"), aliases={"images": "stimuli", "conditions": "stimuli"})
    if over != "stimuli" and n_subjects < 2:
        raise DataError(f"over={over!r} resamples subjects, but there is one; use over='stimuli'.")
    return over


def resample_subjects(
    data: Mapping[str, Any],
    stimulus: Any,
    over: str,
    metric: str,
    statistic: str | None,
    n_bootstraps: int,
    max_memory: int,
    *,
    seed: int,
    n_jobs: int,
    progress: bool,
) -> Summary:
    """Mean over subjects, see `Resampler.subjects`."""
    if statistic is not None:
        statistic = one_of("statistic", statistic, ("median", "mean"))
    if not data:
        raise DataError("data holds no subject; give {subject: (y, yhat)}.")
    over = check_over(over, len(data))
    kinds = {len(v) for v in data.values()}
    if len(kinds) > 1 or not kinds <= {2, 3}:
        raise DataError(f"subjects hold {sorted(kinds)} arrays; legal is (y, yhat) or (y, yhat_a, yhat_b) for all.")
    if statistic is None:
        first = next(iter(data.values()))[0]
        data = {k: (match_voxels(first, v[0], ("the first subject", str(k))), *v[1:]) for k, v in data.items()}
    pairs = {k: [as_pair(v[0], x)[:2] for x in v[1:]] for k, v in data.items()}
    width = {v[0][0].shape[1] for v in pairs.values()}
    if statistic is None and len(width) > 1:
        raise DataError(f"statistic=None needs corresponding voxels, but subjects have {sorted(width)} of them.")
    unit, n_units = _stimuli_of(data, stimulus)
    counts = draw_counts(n_units, n_bootstraps, seed)

    how: dict[str, Any] = {"metric": metric, "statistic": statistic, "max_memory": max_memory}

    def work(name: str) -> tuple[Floats, Floats]:
        everywhere = [np.arange(pairs[name][0][0].shape[1])]
        return resample_summaries(pairs[name], everywhere, counts, unit[name], **how)

    found = list(run(work, list(data), n_jobs=n_jobs, progress=progress, desc="subjects"))
    own, samples = np.stack([f[0] for f in found]), np.stack([f[1] for f in found])  # (s, o), (s, b, o)
    n = len(own)
    weight = draw_counts(n, n_bootstraps, [seed, 1]) / n
    both = np.einsum("bs,sbo->bo", weight, samples)
    drawn = {"stimuli": samples.mean(axis=0), "subjects": weight @ own, "both": both}
    variance = {k: np.nanvar(v, axis=0, ddof=1) for k, v in drawn.items()}
    variance["corrected"] = intervals.corrected_variance(variance["stimuli"], variance["subjects"], variance["both"])
    sizes = {"stimuli": n_units, "subjects": n}
    if over == "both":
        # The variance of a mean over resampled subjects is known without resamples.
        parts = [(variance["stimuli"], n_units), (own.var(axis=0) / n, n)]
        scale = intervals.pooled_expansion(parts, variance["both"], variance["corrected"])
    else:
        scale = intervals.expansion(np.full(own.shape[1], sizes[over]))
    shape = () if statistic else (own.shape[1],)
    error = np.sqrt(variance["corrected" if over == "both" else over])
    spread: dict[str, Any] = {"error": error, "variance": {k: v.reshape(shape) for k, v in variance.items()}}
    estimate, subjects = own.mean(axis=0).reshape(shape), own.reshape(n, *shape)
    return Summary(estimate, drawn[over], scale, sizes.get(over, n), metric, **spread, subjects=subjects)


def _stimuli_of(data: Mapping[str, Any], stimulus: Any) -> tuple[dict[str, Indices], int]:
    """Which stimulus every row of every subject is, and how many there are."""
    rows = {k: len(v[0]) for k, v in data.items()}
    if stimulus is None:
        named = {k: labels_of(v[0], 0, ("stimulus",)).get("stimulus") for k, v in data.items()}
        if any(x is None for x in named.values()):
            if len(set(rows.values())) > 1:
                raise DataError(f"subjects have different numbers of stimuli ({rows}); give stimulus={{subject: ids}}.")
            return {k: np.arange(n) for k, n in rows.items()}, next(iter(rows.values()))
        stimulus = named
    ids = {}
    for k, n in rows.items():
        ids[k] = np.asarray(stimulus[k] if isinstance(stimulus, Mapping) else stimulus).astype(str)
        if ids[k].shape != (n,):
            raise DataError(f"stimulus of subject {k!r} has shape {ids[k].shape}; give one id for each of {n} rows.")
    every = np.unique(np.concatenate(list(ids.values())))
    return {k: np.searchsorted(every, v) for k, v in ids.items()}, len(every)
