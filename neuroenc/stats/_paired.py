"""Permutation tests by exchange and by sign: two encoders of the same responses, and effects over subjects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc.stats._blocks import (
    MAX_MEMORY,
    Floats,
    as_floats,
    as_pair,
    centre,
    check_choice,
    check_count,
    check_metric,
    load,
    scale_of,
    score_from_sums,
    voxel_blocks,
)
from neuroenc.stats._bootstrap import _rois
from neuroenc.stats._labels import match_rows
from neuroenc.stats._parallel import Progress, check_jobs, run

__all__ = ["PairedResult", "SignFlipResult", "paired_permutation_test", "sign_flip_test"]


@dataclass(frozen=True)
class SignFlipResult:
    """Outcome of `sign_flip_test`; arrays are (n_tests,).

    Attributes
    ----------
    statistic : array, float64
        t value or mean over subjects.
    mean : array, float64
    p, p_fwe : array, float64
        Uncorrected, and against the largest statistic over tests.
    n_permutations : int
    exhaustive : bool
        True if these are all sign patterns that exist.
    """

    statistic: Floats
    mean: Floats
    p: Floats
    p_fwe: Floats
    n_permutations: int
    exhaustive: bool


@dataclass(frozen=True)
class PairedResult:
    """Outcome of `paired_permutation_test`.

    Attributes
    ----------
    difference : array (n_voxels,), float64
        score(y, a) - score(y, b).
    p, p_fwe : array (n_voxels,), float64
        Uncorrected, and against the largest difference over voxels.
    null_max : array (n_permutations,), float64
    rois : dict {name: (difference, p, p_fwe)}
        Mean difference over the voxels of a ROI; p_fwe is over ROIs.
    n_permutations : int
    exhaustive : bool
    metric, alternative : str
    """

    difference: Floats
    p: Floats
    p_fwe: Floats
    null_max: Floats
    n_permutations: int
    exhaustive: bool
    metric: str
    alternative: str
    rois: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def _sign_chunks(n_units: int, n_permutations: int, seed: int, step: int) -> tuple[int, bool, Iterator[Floats]]:
    """Number of sign patterns beside the identity, whether they are all, and the patterns in chunks."""
    exhaustive = n_units < 60 and 2**n_units <= n_permutations + 1
    if exhaustive:
        source: Iterator[Any] = itertools.islice(itertools.product((1.0, -1.0), repeat=n_units), 1, None)
        n_permutations = 2**n_units - 1
    else:
        rng = make_rng(seed)
        source = (1.0 - 2.0 * rng.integers(0, 2, n_units) for _ in range(n_permutations))

    def chunks() -> Iterator[Floats]:
        while some := list(itertools.islice(source, step)):
            yield np.asarray(some, dtype=np.float64)

    return n_permutations, exhaustive, chunks()


def _tail(null: Floats, seen: Floats, two_sided: bool) -> tuple[Floats, NDArray[np.bool_]]:
    """Null as compared (absolute if two-sided), and where it is at least as large as what was seen."""
    if two_sided:
        null, seen = np.abs(null), np.abs(seen)
    slack = 1e-10 * np.maximum(1.0, np.abs(np.where(np.isfinite(seen), seen, 0.0)))
    with np.errstate(invalid="ignore"):
        return null, ~(null < seen - slack)


def sign_flip_test(
    values: Any,
    *,
    statistic: str = "t",
    alternative: str = "two-sided",
    n_permutations: int = 1000,
    seed: int = 0,
    n_jobs: int = 1,
    progress: Progress = False,
) -> SignFlipResult:
    r"""Is the mean over subjects 0? Signs of whole subjects are flipped, all tests alike.

    .. math:: T = \bar x / (s_x / \sqrt n), \qquad p = \frac{1 + \#\{T^*_k \ge T\}}{1 + n_{perm}}

    Exact if every subject's values are symmetric around 0 under the null hypothesis, which differences of two
    encoders are. The largest statistic over tests controls the family-wise error. With n subjects the smallest p is
    :math:`2^{-n}` (:math:`2^{1 - n}` two-sided): 5 subjects cannot reach 0.05 two-sided.

    Parameters
    ----------
    values : array (n_subjects, n_tests) or (n_subjects,)
        One number per subject for each voxel, vertex or ROI: a difference of scores, a score less its chance level.
        A NaN makes the test NaN.
    statistic : {"t", "mean"}
    alternative : {"two-sided", "greater"}
    n_permutations : int
        All :math:`2^n` patterns are used where they are no more.
    seed : int
    n_jobs : int
        Threads.
    progress : bool or callable
        True shows a bar; a callable is told (done, total).

    Returns
    -------
    SignFlipResult

    Raises
    ------
    ValueError
        Fewer than two subjects, an unknown name.

    References
    ----------
    Nichols & Holmes (2002), Human Brain Mapping 15:1. Winkler et al. (2014), NeuroImage 92:381.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((8, 3)) + [2.0, 0.0, 0.0]
    >>> sign_flip_test(x).p[0]
    np.float64(0.015625)
    """
    statistic = check_choice("statistic", statistic, ("t", "mean"))
    alternative = check_choice("alternative", alternative, ("two-sided", "greater"))
    n_permutations = check_count("n_permutations", n_permutations)
    x = as_floats(values, "values")
    shape = x.shape[1:]
    if x.ndim not in (1, 2) or len(x) < 2:
        raise DataError(f"values have shape {x.shape}; legal is (n_subjects, n_tests) with at least 2 subjects.")
    x = x.reshape(len(x), -1)
    n = len(x)
    known = np.isfinite(x).all(axis=0)
    x = np.where(known, x, 0.0)
    square = (x**2).sum(axis=0)

    def of(means: Floats) -> Floats:
        if statistic == "mean":
            return means
        # Signs leave the sum of squares alone, so that every t follows from its mean.
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt(np.maximum(square / n - means**2, 0.0) / (n - 1))
            return np.where(spread > 1e-12 * np.sqrt(square / n), means / spread, np.sign(means) * np.inf)

    mean = x.mean(axis=0)
    seen = of(mean[None])[0]
    known &= ~np.isnan(seen) & (square > 0)
    count, exhaustive, chunks = _sign_chunks(n, n_permutations, seed, max(1, 2**22 // max(1, x.shape[1])))
    exceed, top = np.zeros(x.shape[1]), []
    work = lambda signs: _tail(of(signs @ x / n), seen, alternative == "two-sided")  # noqa: E731
    for null, larger in run(work, chunks, n_jobs=n_jobs, progress=progress, desc="sign flips"):
        exceed += larger.sum(axis=0)
        top.append(np.where(known, null, -np.inf).max(axis=1))
    p = np.where(known, (1.0 + exceed) / (1.0 + count), np.nan)
    p_fwe = np.where(known, _against(np.concatenate(top), seen, alternative), np.nan)
    seen, mean = np.where(known, seen, np.nan), np.where(known, mean, np.nan)
    return SignFlipResult(
        seen.reshape(shape), mean.reshape(shape), p.reshape(shape), p_fwe.reshape(shape), count, exhaustive
    )


def _against(top: Floats, seen: Floats, alternative: str) -> Floats:
    """Family-wise p-values from the largest null statistics."""
    seen = np.abs(seen) if alternative == "two-sided" else seen
    with np.errstate(invalid="ignore"):
        limit = seen - 1e-10 * np.maximum(1.0, np.where(np.isfinite(seen), np.abs(seen), 1.0))
    below = np.searchsorted(np.sort(top), limit, side="left")
    return np.asarray((1.0 + len(top) - below) / (1.0 + len(top)))


class _Exchange:
    """Scores of two predictions of a block of voxels for any exchange of their samples.

    With m = (a + b) / 2 and d = (a - b) / 2 an exchange is a sign s for each sample, a* = m + s d and b* = m - s d,
    and every sum that a score is made of is one matrix product of the signs.
    """

    def __init__(self, y: Any, a: Any, b: Any, columns: slice, metric: str) -> None:
        parts = [load(x, columns, name)[0] for x, name in ((y, "y"), (a, "yhat_a"), (b, "yhat_b"))]
        scale = scale_of(parts[0])
        for x in parts:
            x *= scale_of(x) if metric == "r" else scale
        missing = np.isnan(parts[0]) | np.isnan(parts[1]) | np.isnan(parts[2])
        for x in parts:
            x[missing] = np.nan
        self.metric = metric
        (y0, valid, self.n, mean_y), (a0, _, _, mean_a), (b0, _, _, mean_b) = (centre(x) for x in parts)
        if metric == "r":
            # r is blind to gain and offset: only standardised predictions may be exchanged.
            for x in (a0, b0):
                scale = np.sqrt(np.einsum("nv,nv->v", x, x))
                np.divide(x, np.where(scale > 0, scale, np.nan), out=x)
            shift_a = shift_b = np.zeros_like(mean_y)
        else:
            shift_a, shift_b = mean_a - mean_y, mean_b - mean_y
        keep = 1.0 if valid is None else valid
        # Predictions relative to the mean response, so that their offsets are exchanged with them.
        a0, b0 = (a0 + shift_a) * keep, (b0 + shift_b) * keep
        self.m, self.d = (a0 + b0) / 2.0, (a0 - b0) / 2.0
        self.yd, self.md = y0 * self.d, self.m * self.d
        self.sum_m, self.sum_ym = self.m.sum(axis=0), np.einsum("nv,nv->v", y0, self.m)
        self.square = np.einsum("nv,nv->v", self.m, self.m) + np.einsum("nv,nv->v", self.d, self.d)
        self.syy, self.zero = np.einsum("nv,nv->v", y0, y0), np.zeros(y0.shape[1])

    def differences(self, signs: Floats) -> Floats:
        """score(a*) - score(b*), (n_exchanges, n_voxels), for signs (n_exchanges, n_samples)."""
        with np.errstate(invalid="ignore"):
            sd, syd, smd = signs @ self.d, signs @ self.yd, signs @ self.md
            syy = np.broadcast_to(self.syy, sd.shape)
            scores = [
                score_from_sums(
                    self.metric,
                    self.n,
                    self.zero,
                    self.sum_m + k * sd,
                    syy,
                    self.square + 2.0 * k * smd,
                    self.sum_ym + k * syd,
                    self.zero,
                )
                for k in (1.0, -1.0)
            ]
            return scores[0] - scores[1]


def paired_permutation_test(
    y: Any,
    yhat_a: Any,
    yhat_b: Any,
    *,
    metric: str = "r",
    blocks: Any = None,
    rois: Mapping[str, Any] | None = None,
    alternative: str = "two-sided",
    n_permutations: int = 1000,
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: Progress = False,
) -> PairedResult:
    r"""Do two encoders predict equally well? Their predictions are exchanged sample by sample, or block by block.

    .. math:: T = s(y, \hat y_a) - s(y, \hat y_b), \qquad p = \frac{1 + \#\{T^*_k \ge T\}}{1 + n}

    where in :math:`T^*` every sample (or block) swaps its two predictions with probability 1/2, the same swaps for
    all voxels. Valid if under the null hypothesis the two errors of a sample can be exchanged. For ``"r"`` the
    predictions are standardised first; for ``"r2"`` and ``"ev"`` two encoders of equal score but unequal variance
    of prediction are not exchangeable, and `bootstrap_difference` is the better question.

    Parameters
    ----------
    y, yhat_a, yhat_b : array (n_samples, n_voxels) or (n_samples,)
        Measured responses and two held-out predictions. A NaN in any of them drops that sample for that voxel.
    metric : {"r", "r2", "ev"}
    blocks : array (n_samples,), optional
        Samples that are exchanged together: stimuli where rows are presentations, runs or sessions where noise is
        autocorrelated inside them.
    rois : mapping {name: bool array (n_voxels,) or voxel positions}, optional
        Regions whose mean difference is tested too, with the family-wise error over regions.
    alternative : {"two-sided", "greater"}
        ``"greater"``: a is better than b.
    n_permutations : int
        All :math:`2^n` exchanges are used where they are no more.
    seed : int
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.
    n_jobs : int
        Threads; the result does not depend on it.
    progress : bool or callable
        True shows a bar; a callable is told (done, total).

    Returns
    -------
    PairedResult

    Raises
    ------
    ValueError
        Shapes that differ, an unknown name, a single block, an empty ROI.

    References
    ----------
    Nichols & Holmes (2002), Human Brain Mapping 15:1. Good (2005), Permutation, parametric and bootstrap tests.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((100, 4))
    >>> a, b = (y + k * rng.standard_normal((100, 4)) for k in (1, 4))
    >>> result = paired_permutation_test(y, a, b, rois={"V1": [0, 1]}, n_permutations=199)
    >>> result.p.tolist(), result.rois["V1"][2]
    ([0.005, 0.005, 0.005, 0.005], 0.005)
    """
    metric = check_metric(metric)
    alternative = check_choice("alternative", alternative, ("two-sided", "greater"))
    n_permutations = check_count("n_permutations", n_permutations)
    max_memory = parse_memory(max_memory)
    jobs = check_jobs(n_jobs)
    y2, a2, shape = as_pair(y, yhat_a)
    _, b2, _ = as_pair(y, yhat_b, ("y", "yhat_b"))
    n, v = y2.shape
    unit, n_units = np.arange(n), n
    if blocks is not None:
        labels = np.asarray(match_rows(y, blocks, ("y", "blocks")))
        if labels.shape != (n,):
            raise DataError(f"blocks has shape {labels.shape}; give one label for each of the {n} samples.")
        distinct, unit = np.unique(labels, return_inverse=True)
        n_units = len(distinct)
        if n_units < 2:
            raise DataError("got 1 block; an exchange of two encoders needs at least 2.")
    members = {} if rois is None else _rois(rois, v, y)
    two_sided = alternative == "two-sided"
    step = int(max(1, min(n_permutations, max_memory // 8 // (8 * (n + 4 * len(members))), 1024)))
    count, exhaustive, chunks = _sign_chunks(n_units, n_permutations, seed, step)
    seen, exceed = np.full(v, np.nan), np.zeros(v)
    top, region = np.full(count, -np.inf), np.zeros((count + 1, len(members)))
    known_in = np.zeros(len(members))
    columns = list(voxel_blocks(12 * n + 10 * step, v, jobs, max_memory // 2 + 1, cache=16 * 2**20))
    mine = [[(k, m[(m >= c.start) & (m < c.stop)] - c.start) for k, m in enumerate(members.values())] for c in columns]
    signs_of = [signs[:, unit] for signs in chunks] if count * n * 8 <= max_memory // 4 else None

    def work(item: tuple[slice, Any]) -> tuple[slice, Floats, Floats, Floats, Floats, Floats]:
        at, parts = item
        exchange = _Exchange(y2, a2, b2, at, metric)
        observed = exchange.differences(np.ones((1, n)))[0]
        known = ~np.isnan(observed)
        over, best = np.zeros(len(observed)), np.full(count, -np.inf)
        sums, size = np.zeros((count + 1, len(members))), np.zeros(len(members))
        for k, index in parts:
            sums[0, k], size[k] = np.nansum(observed[index]), known[index].sum()
        start = 0
        source: Any = signs_of
        if source is None:
            source = (s[:, unit] for s in _sign_chunks(n_units, n_permutations, seed, step)[2])
        for signs in source:
            raw = exchange.differences(signs)
            null, larger = _tail(raw, observed, two_sided)
            over += larger.sum(axis=0)
            rows = slice(start, start + len(signs))
            if known.any():
                best[rows] = np.where(known & ~np.isnan(null), null, -np.inf).max(axis=1)
            for k, index in parts:
                sums[rows.start + 1 : rows.stop + 1, k] = np.where(known[index], raw[:, index], 0.0).sum(axis=1)
            start = rows.stop
        return at, observed, over, best, sums, size

    items = list(zip(columns, mine))
    for at, observed, over, best, sums, size in run(work, items, n_jobs=jobs, progress=progress, desc="exchanges"):
        seen[at], exceed[at] = observed, over
        np.maximum(top, best, out=top)
        region += sums
        known_in += size
    known = ~np.isnan(seen)
    p = np.where(known, (1.0 + exceed) / (1.0 + count), np.nan)
    p_fwe = np.where(known, _against(top, seen, alternative), np.nan)
    found: dict[str, tuple[float, float, float]] = {}
    if members:
        with np.errstate(divide="ignore", invalid="ignore"):
            region = region / known_in
        null, larger = _tail(region[1:], region[0], two_sided)
        fwe = _against(np.where(np.isnan(null), -np.inf, null).max(axis=1), region[0], alternative)
        roi_p = (1.0 + larger.sum(axis=0)) / (1.0 + count)
        for k, name in enumerate(members):
            if known_in[k] > 0:
                found[name] = float(region[0, k]), float(roi_p[k]), float(fwe[k])
            else:
                found[name] = float("nan"), float("nan"), float("nan")
    return PairedResult(
        seen.reshape(shape), p.reshape(shape), p_fwe.reshape(shape), top, count, exhaustive, metric, alternative, found
    )
