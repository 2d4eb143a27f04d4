"""Is a term commoner in some voxels than in the others? Tests over voxels, all terms at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import hypergeom

__all__ = ["fisher_enrichment", "permutation_enrichment"]

Floats = np.ndarray


def fisher_enrichment(has: sparse.csr_matrix, inside: Floats) -> Floats:
    r"""One-sided Fisher exact p of every term, ``P(X >= k)`` with :math:`X \sim Hypergeom(N, K, n)`.

    Parameters
    ----------
    has : csr_matrix (voxel, term)
        Positive where a caption of the voxel holds the term.
    inside : bool array (voxel,)
        The n voxels of the region, of N; K voxels have the term, k of them inside.

    Returns
    -------
    ndarray (term,)
    """
    held = (has > 0).astype(np.float64)
    total = np.asarray(held.sum(axis=0)).ravel()
    here = np.asarray(inside.astype(np.float64) @ held).ravel()
    return np.asarray(hypergeom.sf(here - 1, len(inside), total, inside.sum()))


def permutation_enrichment(
    share: sparse.csr_matrix, inside: Floats, n_permutations: int, seed: Any, max_memory: int
) -> Floats:
    r"""One-sided permutation p of every term: is its mean share inside that of as many random voxels?

    Parameters
    ----------
    share : csr_matrix (voxel, term)
        Share of the voxel's captions that hold the term.
    inside : bool array (voxel,)
    n_permutations : int
    seed : int or sequence of int
    max_memory : int
        Bytes for a block of permutations.

    Returns
    -------
    ndarray (term,)
        ``(1 + #{permuted >= real}) / (1 + n_permutations)``.
    """
    rng = np.random.default_rng(seed)
    n, n_terms = share.shape
    size = int(inside.sum())
    real = np.asarray(inside.astype(np.float64) @ share).ravel()
    at_least = np.zeros(n_terms)
    step = int(max(1, min(n_permutations, max_memory // (8 * (n + n_terms)))))
    for start in range(0, n_permutations, step):
        draws = np.zeros((min(step, n_permutations - start), n))
        for row in draws:
            row[rng.permutation(n)[:size]] = 1.0
        # Sums of the same shares in another order differ in their last bits.
        at_least += (np.asarray((share.T @ draws.T).T) >= real - 1e-9).sum(axis=0)
    return (1.0 + at_least) / (1.0 + n_permutations)
