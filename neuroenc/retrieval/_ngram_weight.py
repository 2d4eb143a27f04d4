"""What an n-gram is worth: its odds for a query beside its odds in the corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.errors import DataError

__all__ = ["ngram_weight"]

# Log-probabilities stay below 0 by this much, so that odds are finite.
_BELOW = 1e-10


def ngram_weight(logp: Any, counts: Any, n_tokens: int, *, alpha: float = 2.0, smoothing: float = 5.0) -> np.ndarray:
    r"""How much more probable n-grams are for a query than in the corpus.

    .. math:: w(n) = \max\!\left(0,\; \log \frac{P(n \mid q)\,(1 - P(n))}{P(n)\,(1 - P(n \mid q))}\right)^{\alpha},
        \qquad P(n) = \frac{\mathrm{count}(n) + s}{N + s}

    Parameters
    ----------
    logp : array (n,)
        :math:`\log P(n \mid q)`, at most 0.
    counts : array (n,)
        Occurrences in the corpus; an n-gram that does not occur weighs 0.
    n_tokens : int
        N, tokens of the corpus.
    alpha : float
    smoothing : float
        s.

    Returns
    -------
    ndarray (n,) float64

    Raises
    ------
    DataError
        Log-probabilities above 0, NaN, or another number of counts.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.

    Examples
    --------
    >>> ngram_weight(np.log([0.5, 0.5, 0.001]), [5, 95, 95], 1000, alpha=1.0).round(2).tolist()
    [4.6, 2.2, 0.0]
    """
    log_query, n = np.asarray(logp, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if log_query.shape != n.shape:
        raise DataError(f"{log_query.shape} log-probabilities for counts of shape {n.shape}; legal are equal shapes.")
    if np.isnan(log_query).any() or (log_query > 1e-6).any():
        raise DataError("log-probabilities of n-grams hold NaN or numbers above 0. Next step: give log P(n | q).")
    if not ((n >= 0) & (n <= n_tokens)).all():
        raise DataError(
            f"counts of n-grams run from {n.min():g} to {n.max():g}; legal are 0 to n_tokens={n_tokens}. Next step: "
            "count them in the corpus whose tokens were counted."
        )
    # n-grams of count 0 without smoothing have no odds, and weigh 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        log_corpus = np.log((n + smoothing) / (n_tokens + smoothing))
        above = np.maximum(0.0, _log_odds(log_query) - _log_odds(log_corpus))
    return np.where(n > 0, above, 0.0) ** alpha


def _log_odds(logp: np.ndarray) -> np.ndarray:
    below = np.minimum(logp, -_BELOW)
    return below - np.log(-np.expm1(below))
