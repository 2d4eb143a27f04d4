"""Whether a denoiser has learned images or copies them, and whether its draws point at the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions.projection._manifold import chord, gather_rows
from neuroenc.retrieval import as_bank, top_k

__all__ = ["contrastive_accuracy", "copying"]


def copying(
    samples: Any, train: Any, held_out: Any, *, seed: int = 0, max_memory: str | int | None = None
) -> dict[str, float]:
    r"""Are draws nearer to the images that a denoiser was fitted to than to others of the same kind?

    Distances are :math:`\min_k \|x - m_k\|` of unit vectors, to sets of equal size: as many training images, drawn at
    random, as there are held-out ones. A denoiser that learned the distribution is as near to both; one that keeps its
    images is at distance 0 of one of them.

    Parameters
    ----------
    samples : array (n, d)
    train, held_out : see :func:`neuroenc.retrieval.as_bank`
        Images that were fitted, and images that were not.
    seed : int
        Of the sample of training images.
    max_memory : str, int or None

    Returns
    -------
    dict
        ``to_train, to_held_out``: median distance of a draw to the sets of equal size; ``nearer_to_train``: share of
        draws that are nearer to the training set's (0.5: no copying); ``to_all_train``: median distance to all training
        images, beside ``held_out_to_all_train``, that of held-out images; ``copies``: share of draws within a tenth of
        the latter.

    Raises
    ------
    DataError
        Fewer training images than held-out ones, streams, or what the search refuses.

    References
    ----------
    Meehan, Chaudhuri, Dasgupta. A non-parametric test to detect data-copying in generative models. AISTATS 2020.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> images = rng.standard_normal((600, 8))
    >>> copying(images[:200], images[:400], images[400:])["copies"]
    1.0
    """
    x = np.asarray(samples, dtype=np.float64)
    fitted, others = as_bank(train), as_bank(held_out)
    if not (fitted.reusable and others.reusable) or fitted.n is None or others.n is None or fitted.n < others.n:
        raise DataError(
            f"{fitted.n} training and {others.n} held-out images; legal are banks that can be read again, with at "
            "least as many training images."
        )
    at = np.sort(make_rng(seed).choice(fitted.n, others.n, replace=False))
    equal = as_bank(gather_rows(fitted, at, x.shape[1], max_memory))

    def distance(rows: np.ndarray, bank: Any) -> np.ndarray:
        return chord(top_k(rows, bank, 1, max_memory=max_memory)[0][:, 0])

    to_train, to_held_out, to_all = distance(x, equal), distance(x, others), distance(x, fitted)
    unseen = gather_rows(others, np.arange(others.n), x.shape[1], max_memory)
    natural = float(np.median(distance(unseen, fitted)))
    nearer = np.mean(np.where(to_train == to_held_out, 0.5, to_train < to_held_out))
    return {
        "to_train": float(np.median(to_train)),
        "to_held_out": float(np.median(to_held_out)),
        "nearer_to_train": float(nearer),
        "to_all_train": float(np.median(to_all)),
        "held_out_to_all_train": natural,
        "copies": float(np.mean(to_all < 0.1 * natural)),
    }


def contrastive_accuracy(predicted: Any, truth: Any) -> float:
    r"""Share of other truths that lie farther from a prediction than its own, averaged over predictions.

    .. math:: \frac{1}{n (n - 1)} \sum_i \sum_{j \ne i} [\|p_i - x_j\| > \|p_i - x_i\|]

    Parameters
    ----------
    predicted, truth : array (n, d)

    Returns
    -------
    float
        Chance is 0.5; equal distances count half.

    References
    ----------
    LCM team et al. Large Concept Models: language modeling in a sentence representation space. 2024.

    Examples
    --------
    >>> contrastive_accuracy(np.eye(3), np.eye(3)), contrastive_accuracy(np.eye(3)[[1, 2, 0]], np.eye(3))
    (1.0, 0.25)
    """
    p, x = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.ndim != 2 or p.shape != x.shape or len(p) < 2:
        raise DataError(f"predictions of shape {p.shape} and truths of {x.shape}; legal are two of one (n, d), n > 1.")
    squared = (x**2).sum(axis=1) - 2 * p @ x.T
    own = np.diag(squared)[:, None]
    wins = np.where(np.isclose(squared, own, rtol=0, atol=1e-12), 0.5, squared > own)
    np.fill_diagonal(wins, 0.0)
    return float(wins.sum() / (len(p) * (len(p) - 1)))
