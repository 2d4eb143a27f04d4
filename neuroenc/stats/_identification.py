"""Identification accuracy: what a rank among candidates says of n-way choices, and its test by permuted labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import gammaln

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats
from neuroenc.stats._permutation import (
    PermutationResult,
    _all_orders,
    _block_rows,
    _log_arrangements,
    _random_orders,
    against_null,
    in_chunks,
)

_HELD = 2**22  # numbers that a chunk of permutations gathers


def _log_choose(n: Any, k: Any) -> Floats:
    """Logarithm of the binomial coefficient; minus infinity where k > n."""
    n = np.asarray(n, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        found = gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1)
    return np.where(n >= k, found, -np.inf)


def n_way_accuracy(rank: Any, size: Any, n: int = 2, *, tied: Any = 0) -> Floats:
    r"""Expected n-way identification accuracy of a rank, in closed form (hypergeometric).

    The right one of S candidates stands at rank r. It is chosen from itself and n - 1 distractors, drawn without
    replacement from the S - 1 others, if all of them stand behind it:

    .. math:: P = \binom{S - r}{n - 1} \Big/ \binom{S - 1}{n - 1}

    Chance is 1 / n. n = 2 is pairwise accuracy, n = S the top-1 accuracy.

    Parameters
    ----------
    rank : array of int
        1 is the best. With ties, the first of the places that are shared.
    size : int or array
        Candidates, the right one among them.
    n : int
        Candidates of a choice, 2 to ``size``.
    tied : array of int
        Other candidates with the same score: P is the mean over the places ``rank`` to ``rank + tied``.

    Returns
    -------
    array, float64
        From 0 to 1.

    Raises
    ------
    ConfigError
        ``n`` below 2.
    DataError
        More candidates in a choice than there are, or ranks that are none.

    References
    ----------
    Kay, Naselaris, Prenger & Gallant (2008), Nature 452:352, whose figure 4 draws it over the number of candidates.

    Examples
    --------
    >>> n_way_accuracy([1, 2, 100], 100).round(3).tolist()
    [1.0, 0.99, 0.0]
    >>> round(float(n_way_accuracy(range(1, 101), 100, 10).mean()), 6)  # any rank is as likely: chance
    0.1
    """
    n = check_whole("n", n, 2)
    first, others, total = np.broadcast_arrays(
        as_floats(rank, "rank"), as_floats(tied, "tied"), as_floats(size, "size")
    )
    if total.size and total.min() < n:
        raise DataError(f"n={n} candidates of {int(total.min())}. Next step: n of at most {int(total.min())}.")
    if (first < 1).any() or (others < 0).any() or (first + others > total).any():
        raise DataError(f"ranks are from {first.min():g} to {(first + others).max():g}; legal: 1 to {total.max():g}.")
    whole, behind = _log_choose(total - 1, n - 1), total - first
    one = np.exp(_log_choose(behind, n - 1) - whole)
    if not others.any():
        return np.asarray(one)
    # Binomial coefficients of one k in a row add up to a difference of two.
    shared = np.exp(_log_choose(behind + 1, n) - whole) - np.exp(_log_choose(behind - others, n) - whole)
    return np.where(others > 0, shared / (others + 1), one)


class _Matches:
    """Means over rows of what a matrix holds at the columns that an arrangement names."""

    def __init__(self, values: Floats) -> None:
        self.values, self.rows = values, np.arange(len(values))
        self.observed = values[self.rows, self.rows].mean(axis=0)

    def scores(self, orders: Any) -> Floats:
        return np.asarray(self.values[self.rows, orders].mean(axis=1))


def matching_test(values: Any, *, blocks: Any = None, n_permutations: int = 1000, seed: int = 0) -> PermutationResult:
    r"""Permutation test that rows of a matrix match their own columns, such as responses the stimuli that were shown.

    .. math:: T = \frac{1}{n} \sum_i a_{ii}, \qquad T^* = \frac{1}{n} \sum_i a_{i \pi(i)}, \qquad
              p = \frac{1 + \#\{T^* \ge T\}}{1 + n_{perm}}

    Exact where the labels of the rows are exchangeable (inside each block) when nothing is known of them.

    Parameters
    ----------
    values : array (row, row) or (row, row, statistic)
        Entry (i, j): the score, rank or accuracy of row i if its label were that of row j.
    blocks : array (row,), optional
        Session or run of each row: labels are permuted inside it.
    n_permutations : int
        All arrangements are used where they are no more.
    seed : int

    Returns
    -------
    PermutationResult
        Arrays (statistic,), or scalars.

    Raises
    ------
    DataError
        A matrix that is not square, fewer than two rows, blocks of one row each.

    References
    ----------
    Phipson & Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9:39.

    Examples
    --------
    >>> import numpy as np
    >>> float(matching_test(np.eye(20), n_permutations=199).p)
    0.005
    """
    n_permutations = check_whole("n_permutations", n_permutations)
    a = as_floats(values, "values")
    if a.ndim not in (2, 3) or a.shape[0] != a.shape[1] or len(a) < 2:
        raise DataError(f"values have shape {a.shape}; legal is (row, row) or (row, row, statistic), 2 rows or more.")
    shape = a.shape[2:]
    a = a.reshape(len(a), len(a), -1)
    rows = _block_rows(blocks, len(a))
    log_total = _log_arrangements("within", rows)
    if log_total < 1e-9:
        raise DataError(f"each of {len(rows)} blocks holds one row, so that no label can move. Next step: no blocks.")
    exhaustive = log_total <= math.log(n_permutations + 1) + 1e-9
    if exhaustive:
        n_permutations, orders = round(math.exp(log_total)) - 1, _all_orders("within", rows)
    else:
        orders = _random_orders("within", rows, n_permutations, seed)
    chunks = in_chunks(orders, max(1, _HELD // a[0].size))
    columns = [slice(0, a.shape[2])]
    how: dict[str, Any] = {"two_sided": False, "n_jobs": 1, "progress": False}
    found = against_null(lambda at: _Matches(a[..., at]), chunks, n_permutations, columns, **how)
    statistic, p, p_fwe = (x.reshape(shape) for x in found[:3])
    return PermutationResult(
        statistic,
        p,
        p_fwe,
        found[3],
        n_permutations,
        exhaustive,
        "match",
        "greater",
        "within" if blocks is not None else "samples",
    )
