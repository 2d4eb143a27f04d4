"""Block permutation tests of prediction accuracy."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import make_rng
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
from neuroenc.stats._labels import match_rows
from neuroenc.stats._null import ROWS_HELD, Null
from neuroenc.stats._parallel import Progress, check_jobs, run, ticker

__all__ = ["PermutationResult", "permutation_test"]

MODES = ("samples", "within", "whole", "shift")
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class PermutationResult:
    """Outcome of `permutation_test`.

    Attributes
    ----------
    statistic : array (n_voxels,), float64
        Observed score.
    p : array (n_voxels,), float64
        Uncorrected p-value, (1 + number of null scores at least as large) / (1 + n_permutations).
    p_fwe : array (n_voxels,), float64
        p-value against the maximum over voxels: controls the family-wise error.
    null_max : array (n_permutations,), float64
        Largest null score over voxels, per permutation.
    n_permutations : int
        Permutations used.
    exhaustive : bool
        True if these are all arrangements that exist.
    metric, mode, alternative : str
        As asked.
    """

    statistic: Floats
    p: Floats
    p_fwe: Floats
    null_max: Floats
    n_permutations: int
    exhaustive: bool
    metric: str
    mode: str
    alternative: str


def _block_rows(blocks: Any, n: int) -> list[Indices]:
    """Rows of every block, in order of first appearance."""
    if blocks is None:
        return [np.arange(n)]
    labels = np.asarray(blocks)
    if labels.shape != (n,):
        raise DataError(f"blocks has shape {labels.shape}; give one label for each of the {n} samples.")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise DataError(f"blocks has {int(np.isnan(labels).sum())} NaN labels; every sample needs a block.")
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return [np.flatnonzero(inverse == k) for k in np.argsort(first)]


def _check_mode(mode: object, blocks: Any, n: int) -> tuple[str, list[Indices]]:
    mode = check_choice("mode", mode, MODES, {"block": "whole", "blocks": "whole", "circular": "shift"})
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
    if mode == "shift":
        return sum(math.log(len(x)) for x in rows)
    return sum(math.lgamma(len(x) + 1) for x in rows)


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
    progress: Progress = False,
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
    progress : bool or callable
        True shows a bar; a callable is told (done, total) in permutations.

    Returns
    -------
    PermutationResult
        ``statistic``, ``p``, ``p_fwe`` and more; NaN for voxels without a score. A null score that is
        undefined counts as large.

    Raises
    ------
    ValueError
        Unknown names, blocks missing or of unequal size for ``"whole"``, only one arrangement.

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
    metric = check_metric(metric)
    alternative = check_choice("alternative", alternative, ("greater", "two-sided"))
    if alternative == "two-sided" and metric != "r":
        raise DataError(f"alternative='two-sided' is for metric='r' only; {metric!r} has no meaning below 0.")
    n_permutations = check_count("n_permutations", n_permutations)
    max_memory = parse_memory(max_memory)
    jobs = check_jobs(n_jobs)
    y2, p2, shape = as_pair(y, yhat)
    n, n_voxels = y2.shape
    mode, rows = _check_mode(mode, match_rows(y, blocks, ("y", "blocks")), n)
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
    statistic, exceed = np.empty(n_voxels), np.zeros(n_voxels)
    null_max = np.full(n_permutations, -np.inf)
    tell, close = ticker(progress, n_permutations, "permutations")
    for start in range(0, n_permutations, step):
        some = np.stack(list(itertools.islice(orders, step)))
        rows_held = max(n * ROWS_HELD, 3 * len(some) + (len(rows) ** 2 if mode == "whole" else 0))

        def work(columns: slice, some: Indices = some, start: int = start) -> Floats:
            null = Null(y2, p2, columns, metric, whole)
            if start == 0:
                statistic[columns] = null.observed
            scores, seen = null.scores(some), statistic[columns]
            if alternative == "two-sided":
                scores, seen = np.abs(scores), np.abs(seen)
            # Arrangements that equal the observed one must count, whatever the order of summation.
            slack = 1e-10 * np.maximum(1.0, np.abs(seen))
            with np.errstate(invalid="ignore"):
                exceed[columns] += (~(scores < seen - slack)).sum(axis=0)
            return np.where(np.isnan(scores), -np.inf, scores).max(axis=1)

        blocks = list(voxel_blocks(rows_held, n_voxels, jobs, max_memory // 2 + 1, cache=8 * 2**20))
        part = slice(start, start + len(some))
        for top in run(work, blocks, n_jobs=jobs):
            null_max[part] = np.maximum(null_max[part], top)
        tell(len(some))
    close()
    seen = np.abs(statistic) if alternative == "two-sided" else statistic
    known = ~np.isnan(statistic)
    p, p_fwe = np.full(n_voxels, np.nan), np.full(n_voxels, np.nan)
    p[known] = (1.0 + exceed[known]) / (1.0 + n_permutations)
    sorted_max = np.sort(null_max)
    below = np.searchsorted(sorted_max, seen[known] - 1e-10 * np.maximum(1.0, np.abs(seen[known])), side="left")
    p_fwe[known] = (1.0 + n_permutations - below) / (1.0 + n_permutations)
    return PermutationResult(
        statistic.reshape(shape),
        p.reshape(shape),
        p_fwe.reshape(shape),
        np.where(np.isinf(null_max), np.nan, null_max),
        n_permutations,
        exhaustive,
        metric,
        mode,
        alternative,
    )
