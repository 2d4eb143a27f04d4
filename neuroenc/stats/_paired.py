"""Permutation tests by exchange and by sign: two encoders of the same responses, and effects over subjects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory, voxel_blocks
from neuroenc.stats import _blocks
from neuroenc.stats._blocks import MAX_MEMORY, Floats
from neuroenc.stats._labels import match_rows
from neuroenc.stats._parallel import Progress, check_jobs
from neuroenc.stats._permutation import PermutationResult, against_null, family_wise_p, in_chunks, larger
from neuroenc.stats._resampling import region_members, unit_of


def _signs(n_units: int, n_permutations: int, seed: int) -> tuple[int, bool, Iterator[Any]]:
    """Number of sign patterns beside the identity, whether they are all, and the patterns."""
    if n_units < 60 and 2**n_units <= n_permutations + 1:
        return 2**n_units - 1, True, itertools.islice(itertools.product((1.0, -1.0), repeat=n_units), 1, None)
    rng = make_rng(seed)
    return n_permutations, False, (1.0 - 2.0 * rng.integers(0, 2, n_units) for _ in range(n_permutations))


def sign_flip_test(
    values: Any,
    *,
    statistic: str = "t",
    alternative: str = "two-sided",
    n_permutations: int = 1000,
    seed: int = 0,
    n_jobs: int = 1,
    progress: Progress = False,
) -> PermutationResult:
    r"""Sign-flip permutation test that the mean over subjects is 0, with maximum-statistic correction over tests.

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
    PermutationResult
        ``metric`` names the statistic.

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
    statistic = one_of("statistic", statistic, ("t", "mean"))
    alternative = one_of("alternative", alternative, ("two-sided", "greater"))
    n_permutations = check_whole("n_permutations", n_permutations)
    x = _blocks.as_floats(values, "values")
    shape = x.shape[1:]
    if x.ndim not in (1, 2) or len(x) < 2:
        raise DataError(f"values have shape {x.shape}; legal is (n_subjects, n_tests) with at least 2 subjects.")
    x = x.reshape(len(x), -1)
    count, exhaustive, signs = _signs(len(x), n_permutations, seed)
    nulls, chunks = (lambda at: _Flips(x[:, at], statistic)), in_chunks(signs, max(1, 2**22 // max(1, x.shape[1])))
    how: dict[str, Any] = {"two_sided": alternative == "two-sided", "n_jobs": n_jobs, "progress": progress}
    statistic_of, p, p_fwe, top, _ = against_null(nulls, chunks, count, [slice(0, x.shape[1])], **how)
    found, chance, family = (v.reshape(shape) for v in (statistic_of, p, p_fwe))
    return PermutationResult(found, chance, family, top, count, exhaustive, statistic, alternative)


class _Flips:
    """Means or t values over subjects of tests whose subjects' signs are flipped; NaN where one is missing."""

    def __init__(self, x: Floats, statistic: str) -> None:
        self.x = np.where(np.isfinite(x).all(axis=0) & (x != 0).any(axis=0), x, np.nan)
        self.square, self.statistic = (self.x**2).sum(axis=0), statistic
        self.observed = self.scores(np.ones((1, len(x))))[0]

    def scores(self, signs: Floats) -> Floats:
        n = len(self.x)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = signs @ self.x / n
            if self.statistic == "mean":
                return np.asarray(means)
            # Signs leave the sum of squares alone, so that every t follows from its mean.
            spread = np.sqrt(np.maximum(self.square / n - means**2, 0.0) / (n - 1))
            return np.where(spread > 1e-12 * np.sqrt(self.square / n), means / spread, np.sign(means) * np.inf)


class _Exchange:
    """Scores of two predictions of a block of voxels for any exchange of their samples.

    With m = (a + b) / 2 and d = (a - b) / 2 an exchange is a sign s for each sample, a* = m + s d and b* = m - s d,
    and every sum that a score is made of is one matrix product of the signs.
    """

    def __init__(self, y: Any, a: Any, b: Any, columns: slice, metric: str) -> None:
        parts = [_blocks.load(x, columns, name)[0] for x, name in ((y, "y"), (a, "yhat_a"), (b, "yhat_b"))]
        scale = _blocks.scale_of(parts[0])
        for x in parts:
            x *= _blocks.scale_of(x) if metric == "r" else scale
        missing = np.isnan(parts[0]) | np.isnan(parts[1]) | np.isnan(parts[2])
        for x in parts:
            x[missing] = np.nan
        self.metric = metric
        (y0, valid, self.n, mean_y), (a0, _, _, mean_a), (b0, _, _, mean_b) = (_blocks.centre(x) for x in parts)
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
        self.observed = self.scores(np.ones((1, len(y0))))[0]

    def scores(self, signs: Floats) -> Floats:
        """score(a*) - score(b*), (n_exchanges, n_voxels), for signs (n_exchanges, n_samples)."""
        with np.errstate(invalid="ignore"):
            sd, syd, smd = signs @ self.d, signs @ self.yd, signs @ self.md
            syy, scores = np.broadcast_to(self.syy, sd.shape), []
            for k in (1.0, -1.0):
                sums = self.sum_m + k * sd, syy, self.square + 2.0 * k * smd, self.sum_ym + k * syd
                scores.append(_blocks.score_from_sums(self.metric, self.n, self.zero, *sums, self.zero))
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
) -> PermutationResult:
    r"""Paired permutation test of two encoders: predictions are exchanged sample by sample, or block by block.

    .. math:: T = s(y, \hat y_a) - s(y, \hat y_b), \qquad p = \frac{1 + \#\{T^*_k \ge T\}}{1 + n}

    where in :math:`T^*` every sample (or block) swaps its two predictions with probability 1/2, the same swaps for
    all voxels. Valid if under the null hypothesis the two errors of a sample can be exchanged. For ``"r"`` the
    predictions are standardised first; for ``"r2"`` and ``"ev"`` two encoders of equal score but unequal variance
    of prediction are not exchangeable, and `Resampler.difference` is the better question.

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
    PermutationResult
        ``statistic`` is the difference, ``rois`` holds those of regions.

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
    metric = _blocks.check_metric(metric)
    alternative = one_of("alternative", alternative, ("two-sided", "greater"))
    n_permutations = check_whole("n_permutations", n_permutations)
    max_memory = parse_memory(max_memory)
    jobs = check_jobs(n_jobs)
    y2, a2, shape = _blocks.as_pair(y, yhat_a)
    _, b2, _ = _blocks.as_pair(y, yhat_b, ("y", "yhat_b"))
    n, v = y2.shape
    unit, n_units = unit_of(n, match_rows(y, blocks, ("y", "blocks")), "blocks")
    members = {} if rois is None else region_members(rois, v, y)
    two_sided = alternative == "two-sided"
    step = int(max(1, min(n_permutations, max_memory // 8 // (8 * (n + 4 * len(members))), 1024)))
    count, exhaustive, signs = _signs(n_units, n_permutations, seed)
    held = 12 * n + 10 * step
    columns = voxel_blocks(v, 8 * held, max_memory // 2 + 1, jobs, most=_blocks.cached(held, 16))
    nulls, chunks = (lambda at: _Exchange(y2, a2, b2, at, metric)), (some[:, unit] for some in in_chunks(signs, step))
    how: dict[str, Any] = {"two_sided": two_sided, "n_jobs": jobs, "progress": progress}
    statistic, p, p_fwe, top, sums = against_null(nulls, chunks, count, columns, members=list(members.values()), **how)
    found: dict[str, tuple[float, ...]] = {}
    if members:
        inside = [statistic[m] for m in members.values()]
        size = np.array([(~np.isnan(x)).sum() for x in inside], dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            own, null = np.array([np.nansum(x) for x in inside]) / size, sums / size
        null, above = larger(null, own, two_sided)
        fwe = family_wise_p(np.where(np.isnan(null), -np.inf, null).max(axis=1), own, two_sided)
        roi_p = np.where(size > 0, (1.0 + above.sum(axis=0)) / (1.0 + count), np.nan)
        values = zip(own.tolist(), roi_p.tolist(), np.where(size > 0, fwe, np.nan).tolist(), strict=True)
        found = dict(zip(members, values, strict=True))
    value, chance, family = (x.reshape(shape) for x in (statistic, p, p_fwe))
    return PermutationResult(value, chance, family, top, count, exhaustive, metric, alternative, rois=found)
