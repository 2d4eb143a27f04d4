"""Permutation tests of prediction accuracy, by sample or by block, and the false discovery rate over voxels."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory, voxel_blocks
from neuroenc._core.progress import progress as progress_bar
from neuroenc.stats import _blocks
from neuroenc.stats._blocks import MAX_MEMORY, Floats
from neuroenc.stats._labels import match_rows
from neuroenc.stats._parallel import check_jobs, run
from neuroenc.stats._resampling import unit_of
from neuroenc.stats._tfce import check_edges, tfce

MODES = ("samples", "within", "whole", "shift")
Indices = NDArray[np.intp]


ROWS_HELD = 12  # float64 copies of a block of voxels that `Null` may hold at once


class Null:
    """Scores under permutation; what does not change between arrangements is computed once.

    Without missing values every score is a function of sum(y[order] * yhat) alone. Voxels with missing values
    take a slower way: missing responses move with the permutation, so the pairs that are left differ.
    """

    def __init__(self, y: Any, yhat: Any, columns: slice, metric: str, whole: Indices | None) -> None:
        self.metric, self.whole = metric, whole
        self.pair = pair = _blocks.load_pair(y, yhat, columns, metric)
        self.observed = pair.score(metric)
        self.usable = pair.usable_y & pair.usable_p if metric == "r" else pair.usable_y
        self.syy = np.einsum("nv,nv->v", pair.y, pair.y)
        self.spp = np.einsum("nv,nv->v", pair.p, pair.p)
        self.products: Floats | None = None
        if whole is not None and len(whole) ** 2 <= 4 * whole.size:
            # Inner products of every pair of blocks: each permutation is then a sum of n_blocks of them.
            products = np.einsum("ikv,jkv->ijv", pair.y[whole], pair.p[whole], optimize=True)
            self.products = products.reshape(len(whole) ** 2, -1)
        self.holed = np.flatnonzero(self.usable & (pair.n < len(pair.y)))
        if self.holed.size:
            self._keep_holed(y, yhat, self.holed + columns.start)

    def _keep_holed(self, y: Any, yhat: Any, columns: Indices) -> None:
        a, b = _blocks.load(y, columns, "y")[0], _blocks.load(yhat, columns, "yhat")[0]
        scale = _blocks.scale_of(a)
        a *= scale
        b *= _blocks.scale_of(b) if self.metric == "r" else scale
        (a, valid_a, _, mean_a), (b, valid_b, _, mean_b) = _blocks.centre(a), _blocks.centre(b)
        self.a, self.b, self.b2, self.shift = a, b, b * b, mean_b - mean_a
        self.has_a = np.ones_like(a) if valid_a is None else valid_a.astype(np.float64)
        self.has_b = np.ones_like(b) if valid_b is None else valid_b.astype(np.float64)

    def scores(self, orders: Indices) -> Floats:
        """Null scores (n_orders, n_voxels); NaN where undefined."""
        cross = self._cross(orders)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.metric == "r":
                out = np.clip(cross / (np.sqrt(self.syy) * np.sqrt(self.spp)), -1.0, 1.0)
            else:
                error = np.maximum(self.syy - 2.0 * cross + self.spp, 0.0)
                if self.metric == "r2":
                    error += self.pair.n * self.pair.offset**2
                out = 1.0 - error / self.syy
        if self.holed.size:
            for k, index in enumerate(self._rows(orders)):
                out[k, self.holed] = self._holed_scores(index)
        out[:, ~self.usable] = np.nan
        return out

    def _cross(self, orders: Indices) -> Floats:
        if self.products is not None:
            n_blocks = orders.shape[1]
            pick = np.zeros((len(orders), n_blocks, n_blocks))
            np.put_along_axis(pick, orders[:, None, :], 1.0, axis=1)
            with np.errstate(invalid="ignore"):
                return np.asarray(pick.reshape(len(orders), -1) @ self.products)
        out = np.empty((len(orders), self.pair.y.shape[1]))
        moved = np.empty_like(self.pair.y)
        for k, index in enumerate(self._rows(orders)):
            np.take(self.pair.y, index, axis=0, out=moved, mode="clip")
            np.einsum("nv,nv->v", moved, self.pair.p, out=out[k])
        return out

    def _rows(self, orders: Indices) -> Iterator[Indices]:
        for order in orders:
            if self.whole is None:
                yield order
            else:
                index = np.empty(self.whole.size, dtype=np.intp)
                index[self.whole] = self.whole[order]
                yield index

    def _holed_scores(self, index: Indices) -> Floats:
        a, has_a = self.a[index], self.has_a[index]

        def total(x: Floats, w: Floats) -> Floats:
            return np.asarray(np.einsum("nv,nv->v", x, w))

        n, sa, sb = total(has_a, self.has_b), total(a, self.has_b), total(has_a, self.b)
        sab, sbb = total(a, self.b), total(has_a, self.b2)
        saa = total(np.square(a, out=a), self.has_b)
        return _blocks.score_from_sums(self.metric, n, sa, sb, saa, sbb, sab, self.shift)


def _just_below(seen: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(seen - 1e-10 * np.maximum(1.0, np.where(np.isfinite(seen), np.abs(seen), 1.0)))


@dataclass(frozen=True)
class PermutationResult:
    """Outcome of a permutation test; arrays are (n_voxels,), or (n_tests,).

    Attributes
    ----------
    statistic : array, float64
        Observed score, difference of scores, or statistic over subjects.
    p : array, float64
        Uncorrected p-value, (1 + number of null values at least as large) / (1 + n_permutations).
    p_fwe : array, float64
        p-value against the maximum over voxels: controls the family-wise error.
    null_max : array (n_permutations,), float64
        Largest null value over voxels, per permutation.
    n_permutations : int
        Permutations used.
    exhaustive : bool
        True if these are all arrangements that exist.
    metric, alternative, mode : str
        As asked.
    """

    statistic: Floats
    p: Floats
    p_fwe: Floats
    null_max: Floats
    n_permutations: int
    exhaustive: bool
    metric: str
    alternative: str
    mode: str = ""


def against_null(
    make: Callable[[slice], Any],
    chunks: Iterable[Any],
    count: int,
    columns: list[slice],
    *,
    two_sided: bool,
    n_jobs: int,
    progress: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Statistic, p, family-wise p and largest null values of ``count`` arrangements, absolute if two-sided.

    ``make(columns)`` gives an object with ``observed`` and ``scores(chunk of arrangements)``.
    """
    n = columns[-1].stop if columns else 0
    statistic, exceed, top = np.full(n, np.nan), np.zeros(n), np.full(count, -np.inf)
    size, start = np.abs if two_sided else np.asarray, 0
    with progress_bar(total=count, desc="permutations") if progress else nullcontext() as bar:
        for some in chunks:

            def work(at: slice, some: Any = some, first: bool = start == 0) -> Floats:
                test = make(at)
                if first:
                    statistic[at] = test.observed
                null = size(test.scores(some))
                with np.errstate(invalid="ignore"):
                    # What is undefined counts as at least as large.
                    exceed[at] += (~(null < _just_below(size(statistic[at])))).sum(axis=0)
                return np.where(np.isnan(null), -np.inf, null).max(axis=1)

            part = slice(start, start + len(some))
            for best in run(work, columns, n_jobs=n_jobs):
                top[part] = np.maximum(top[part], best)
            if bar is not None:
                bar.update(len(some))
            start = part.stop
    known = ~np.isnan(statistic)
    p = np.where(known, (1.0 + exceed) / (1.0 + count), np.nan)
    below = np.searchsorted(np.sort(top), _just_below(size(statistic)), side="left")
    p_fwe = np.where(known, (1.0 + count - below) / (1.0 + count), np.nan)
    return statistic, p, p_fwe, np.where(np.isinf(top), np.nan, top)


def _block_rows(blocks: Any, n: int) -> list[Indices]:
    """Rows of every block, in order of first appearance."""
    if blocks is None:
        return [np.arange(n)]
    unit, n_units = unit_of(n, blocks, "blocks", least=1)
    return sorted((np.flatnonzero(unit == k) for k in range(n_units)), key=lambda x: int(x[0]))


def _check_mode(mode: object, blocks: Any, n: int) -> tuple[str, list[Indices]]:
    mode = one_of("mode", mode, MODES, aliases={"block": "whole", "blocks": "whole", "circular": "shift"})
    if mode in ("within", "whole") and blocks is None:
        raise DataError(f"mode={mode!r} needs blocks: one label (run, session) per sample.")
    if mode == "samples" and blocks is not None:
        raise DataError(
            "mode='samples' ignores blocks, which were given; use 'within' (shuffle inside each block), "
            "'whole' (exchange blocks) or 'shift' (rotate inside each block), or leave blocks out."
        )
    rows = _block_rows(blocks, n)
    sizes = sorted({len(x) for x in rows})
    if mode == "whole" and len(sizes) > 1:
        raise DataError(
            f"mode='whole' exchanges blocks of equal size, but the {len(rows)} blocks have {sizes[0]} to "
            f"{sizes[-1]} samples; drop samples to equal sizes or use mode='within' or 'shift'."
        )
    return mode, rows


def _log_arrangements(mode: str, rows: list[Indices]) -> float:
    if mode == "whole":
        return math.lgamma(len(rows) + 1)
    return sum(math.log(len(x)) if mode == "shift" else math.lgamma(len(x) + 1) for x in rows)


def _all_orders(mode: str, rows: list[Indices]) -> Iterator[Indices]:
    """Every arrangement but the identity; for mode 'whole' of the blocks, otherwise of the samples."""
    if mode == "whole":
        for order in itertools.islice(itertools.permutations(range(len(rows))), 1, None):
            yield np.array(order)
        return
    choices: list[Any]
    if mode == "shift":
        choices = [[np.roll(x, s) for s in range(len(x))] for x in rows]
    else:
        choices = [list(itertools.permutations(x.tolist())) for x in rows]
    where = np.concatenate(rows)
    for pick in itertools.islice(itertools.product(*choices), 1, None):
        index = np.empty(len(where), dtype=np.intp)
        index[where] = np.concatenate([np.asarray(x) for x in pick])
        yield index


def _random_orders(mode: str, rows: list[Indices], n_permutations: int, seed: int) -> Iterator[Indices]:
    rng = make_rng(seed)
    where = np.concatenate(rows)
    sizes = np.array([len(x) for x in rows])
    block = np.repeat(np.arange(len(rows)), sizes)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    inside = np.arange(len(where)) - start
    for _ in range(n_permutations):
        if mode == "whole":
            yield rng.permutation(len(rows))
            continue
        index = np.empty(len(where), dtype=np.intp)
        if mode == "shift":
            moved = start + (inside + np.repeat(rng.integers(0, sizes), sizes)) % np.repeat(sizes, sizes)
            index[where] = where[moved]
        else:
            index[where] = where[np.lexsort((rng.random(len(where)), block))]
        yield index


def permutation_test(
    y: Any,
    yhat: Any,
    *,
    metric: str = "r",
    mode: str = "samples",
    blocks: Any = None,
    n_permutations: int = 1000,
    alternative: str = "greater",
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
    n_jobs: int = 1,
    progress: bool = False,
) -> PermutationResult:
    r"""Permutation test of predicted against measured responses, per voxel, respecting runs and sessions.

    The measured responses are rearranged against fixed predictions, all voxels by the same arrangement, and

    .. math:: p = \frac{1 + \#\{T^*_k \ge T\}}{1 + n}

    which is exact: under exchangeability P(p <= a) <= a for every a. Where the arrangements that exist number
    no more than ``n_permutations + 1``, all of them are used once instead of a random draw.

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels) or (n_samples,)
        Measured and held-out predicted responses. A NaN in either drops that sample for that voxel; missing
        responses move with the permutation.
    metric : {"r", "r2", "ev"}
        Statistic, see `score`.
    mode : {"samples", "within", "whole", "shift"}
        What is exchangeable under the null hypothesis. ``"samples"``: single samples, freely (independent
        noise only). ``"within"``: samples inside each block, so that differences between runs or sessions
        stay. ``"whole"``: entire blocks, in order, so that autocorrelation inside a block stays; equal
        sizes needed. ``"shift"``: circular shifts in time inside each block (of the whole series without
        ``blocks``); samples must stand in order of time, and it is exact for stationary series that wrap
        around.
    blocks : array (n_samples,), optional
        Block (run, session) of every sample.
    n_permutations : int
        Random arrangements at most; the smallest p is 1 / (1 + n_permutations).
    alternative : {"greater", "two-sided"}
        ``"two-sided"`` compares absolute values, for ``metric="r"`` only.
    seed : int
        Same seed, same result, whatever ``max_memory`` is.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.
    n_jobs : int
        Threads over blocks of voxels; -1 is all cores.
    progress : bool
        Show a bar.

    Returns
    -------
    PermutationResult
        ``statistic``, ``p``, ``p_fwe`` and more; NaN for voxels without a score. A null score that is
        undefined counts as large.

    Raises
    ------
    ValueError
        Unknown names, blocks missing or of unequal size for ``"whole"``, only one arrangement, or volumes of a time
        series (labelled, with the coordinate ``time``) that ``"samples"`` or ``"within"`` would shuffle.

    Warns
    -----
    UserWarning
        If the arrangements are so few that no p can reach 0.05.

    References
    ----------
    Phipson & Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9:39. Nichols & Holmes (2002), Human Brain
    Mapping 15:1. Winkler et al. (2015), NeuroImage 123:253 (exchangeability blocks).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((60, 2))
    >>> yhat = y * [1.0, 0.0] + rng.standard_normal((60, 2))       # only the first voxel is predicted
    >>> runs = np.repeat(np.arange(6), 10)
    >>> result = permutation_test(y, yhat, blocks=runs, mode="within", n_permutations=199)
    >>> result.p[0], bool(result.p[1] > 0.05)
    (np.float64(0.005), True)
    """
    metric = _blocks.check_metric(metric)
    alternative = one_of("alternative", alternative, ("greater", "two-sided"))
    if alternative == "two-sided" and metric != "r":
        raise DataError(f"alternative='two-sided' is for metric='r' only; {metric!r} has no meaning below 0.")
    n_permutations = check_whole("n_permutations", n_permutations)
    max_memory = parse_memory(max_memory)
    jobs = check_jobs(n_jobs)
    y2, p2, shape = _blocks.as_pair(y, yhat)
    n, n_voxels = y2.shape
    mode, rows = _check_mode(mode, match_rows(y, blocks, ("y", "blocks")), n)
    if mode in ("samples", "within") and "time" in getattr(y, "coords", ()):
        raise DataError(
            f"the {n} samples are volumes of a time series, and mode={mode!r} shuffles them: without their "
            "autocorrelation far more than 5 % of voxels without any effect pass at p < 0.05. "
            "Next step: mode='shift', with runs as blocks."
        )
    log_total = _log_arrangements(mode, rows)
    exhaustive = log_total <= math.log(n_permutations + 1) + 1e-9
    if log_total < 1e-9:
        raise DataError(f"mode={mode!r} with {len(rows)} block(s) of these sizes has only one arrangement.")
    if log_total < math.log(20) - 1e-9:
        least = math.exp(-log_total)
        warnings.warn(f"only {1 / least:.0f} arrangements exist: no p can be below {least:.2g}.", stacklevel=2)
    if exhaustive:
        n_permutations = round(math.exp(log_total)) - 1
        orders = _all_orders(mode, rows)
    else:
        orders = _random_orders(mode, rows, n_permutations, seed)
    whole = np.stack(rows) if mode == "whole" else None
    width = len(rows) if mode == "whole" else n
    step = max(1, min(n_permutations, max_memory // 4 // (8 * width), 2**23 // width))
    held = max(n * ROWS_HELD, 3 * step + (len(rows) ** 2 if mode == "whole" else 0))
    columns = voxel_blocks(n_voxels, 8 * held, max_memory // 2 + 1, jobs, most=_blocks.cached(held, 8))
    how: dict[str, Any] = {"two_sided": alternative == "two-sided", "n_jobs": jobs, "progress": progress}
    nulls, chunks = (lambda at: Null(y2, p2, at, metric, whole)), in_chunks(orders, step)
    statistic, p, p_fwe, top = against_null(nulls, chunks, n_permutations, columns, **how)
    value, chance, family = (x.reshape(shape) for x in (statistic, p, p_fwe))
    return PermutationResult(value, chance, family, top, n_permutations, exhaustive, metric, alternative, mode)


def in_chunks(source: Iterator[Any], step: int) -> Iterator[Any]:
    """Arrays of ``step`` arrangements; the last one may hold fewer."""
    while some := list(itertools.islice(source, step)):
        yield np.stack(some)


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
    edges: Any = None,
    min_subjects: int | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
    progress: bool = False,
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
        A NaN makes the test NaN, unless ``min_subjects`` is given.
    statistic : {"t", "mean", "tfce"}
        ``"tfce"`` enhances t by the clusters that it forms on ``edges``, see `tfce`.
    alternative : {"two-sided", "greater"}
    edges : int array (edge, 2), optional
        Neighbours among the tests, from `mesh_edges`; with ``"tfce"`` alone.
    min_subjects : int, optional
        Tests that fewer subjects have are NaN; the others use the subjects that they have. By default all.
    n_permutations : int
        All :math:`2^n` patterns are used where they are no more.
    seed : int
    progress : bool
        Show a bar.

    Returns
    -------
    PermutationResult
        ``metric`` names the statistic.

    Raises
    ------
    ValueError
        Fewer than two subjects, an unknown name, no edges.

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
    statistic = one_of("statistic", statistic, ("t", "mean", "tfce"))
    alternative = one_of("alternative", alternative, ("two-sided", "greater"))
    n_permutations = check_whole("n_permutations", n_permutations)
    x = _blocks.as_floats(values, "values")
    shape = x.shape[1:]
    if x.ndim not in (1, 2) or len(x) < 2:
        raise DataError(f"values have shape {x.shape}; legal is (n_subjects, n_tests) with at least 2 subjects.")
    x = x.reshape(len(x), -1)
    if (statistic == "tfce") != (edges is not None):
        raise ConfigError(
            f"statistic={statistic!r} {'needs' if edges is None else 'uses no'} edges. Next step: statistic='tfce', "
            "edges=mesh_edges(faces)."
        )
    pairs = None if edges is None else check_edges(edges, x.shape[1])
    least = len(x) if min_subjects is None else check_whole("min_subjects", min_subjects, least=2)
    count, exhaustive, signs = _signs(len(x), n_permutations, seed)
    two_sided = alternative == "two-sided"
    chunks = in_chunks(signs, max(1, 2**22 // max(1, x.shape[1])))
    how: dict[str, Any] = {"two_sided": two_sided, "n_jobs": 1, "progress": progress}
    test = _Flips(x, statistic, pairs, least, two_sided)
    statistic_of, p, p_fwe, top = against_null(lambda _: test, chunks, count, [slice(0, x.shape[1])], **how)
    found, chance, family = (v.reshape(shape) for v in (statistic_of, p, p_fwe))
    return PermutationResult(found, chance, family, top, count, exhaustive, statistic, alternative)


class _Flips:
    """Means, t values or enhanced t values over subjects of tests whose subjects' signs are flipped.

    NaN where fewer than ``least`` subjects have a value.
    """

    def __init__(self, x: Floats, statistic: str, edges: Any, least: int, two_sided: bool) -> None:
        known = np.isfinite(x)
        self.n = known.sum(axis=0).astype(np.float64)
        self.n[(self.n < least) | ~((x != 0) & known).any(axis=0)] = np.nan
        self.x = np.where(known, x, 0.0)
        self.square, self.statistic, self.edges, self.two_sided = (self.x**2).sum(axis=0), statistic, edges, two_sided
        self.observed = self.scores(np.ones((1, len(x))))[0]

    def scores(self, signs: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            means = signs @ self.x / self.n
            if self.statistic == "mean":
                return np.asarray(means)
            # Signs leave the sum of squares alone, so that every t follows from its mean.
            spread = np.sqrt(np.maximum(self.square / self.n - means**2, 0.0) / (self.n - 1))
            t = np.where(spread > 1e-12 * np.sqrt(self.square / self.n), means / spread, np.sign(means) * np.inf)
        t[:, np.isnan(self.n)] = np.nan
        if self.statistic == "t":
            return t
        out = tfce(t if self.two_sided else np.maximum(t, 0.0), self.edges)
        out[:, np.isnan(self.n)] = np.nan
        return out


def fdr(p: Any, *, method: str = "bh") -> Floats:
    r"""Benjamini-Hochberg or Benjamini-Yekutieli q-values (adjusted p-values).

    .. math:: q_{(i)} = \min_{j \ge i} \min\left(1, \frac{m\,c}{j} p_{(j)}\right)

    with c = 1 for Benjamini-Hochberg and :math:`c = \sum_{k=1}^m 1/k` for Benjamini-Yekutieli. Voxels with
    ``q <= alpha`` have an expected share of false discoveries of at most alpha.

    Parameters
    ----------
    p : array of any shape
        p-values in [0, 1]; all of them are one family. NaN stays NaN and is not counted in m.
    method : {"bh", "by"}
        ``"bh"`` is valid for independent or positively dependent tests, ``"by"`` under any dependence.

    Returns
    -------
    array of the same shape, float64
        q-values in [0, 1].

    Raises
    ------
    ValueError
        p-values outside [0, 1] or an unknown method.

    References
    ----------
    Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57:289. Benjamini & Yekutieli (2001), Ann. Stat. 29:1165.

    Examples
    --------
    >>> import numpy as np
    >>> fdr(np.array([0.01, np.nan, 0.04, 0.03, 0.5]))
    array([0.04      ,        nan, 0.05333333, 0.05333333, 0.5       ])
    """
    method = one_of("method", method, ("bh", "by"), aliases={"benjamini-hochberg": "bh", "benjamini-yekutieli": "by"})
    values = _blocks.as_floats(p, "p")
    keep = ~np.isnan(values)
    family = values[keep]
    outside = (family < 0) | (family > 1)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} of {family.size} p-values lie outside [0, 1] "
            f"(from {family.min():g} to {family.max():g}); give p-values, not statistics."
        )
    q = np.full(values.shape, np.nan)
    if family.size:
        q[keep] = false_discovery_control(family, method=method)
    return q
