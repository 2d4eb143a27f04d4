"""Voxels that stand for all others where a check of every voxel would take too long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuroenc._core.errors import DataError

__all__ = ["sample_voxels"]


def sample_voxels(strata: Sequence[str], n: int | None, seed: int = 0) -> np.ndarray:
    r"""A random sample of voxels, stratified: region h of :math:`N_h` voxels gives about :math:`n N_h / N`.

    Every region gives at least one voxel where n allows it. Inside a region voxels are drawn without replacement.

    Parameters
    ----------
    strata : sequence of str (voxel,)
        Region of each voxel.
    n : int or None
        Voxels of the sample; None, or more than there are: all of them.
    seed : int

    Returns
    -------
    ndarray (voxel,) of bool

    Raises
    ------
    DataError
        Fewer than two voxels are asked for.

    Examples
    --------
    >>> chosen = sample_voxels(["FFA"] * 30 + ["PPA"] * 60 + ["RSC"], 10)
    >>> int(chosen[:30].sum()), int(chosen[30:90].sum()), int(chosen[90:].sum())
    (3, 6, 1)
    """
    labels = np.asarray(strata, dtype=str)
    if n is not None and n < 2:
        raise DataError(f"a sample of {n} voxels is not legal; it must be None (all), or at least 2.")
    if n is None or n >= len(labels):
        return np.ones(len(labels), dtype=bool)
    names, of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    share = n * sizes / len(labels)
    least = int(n >= len(names))
    take = np.maximum(np.floor(share).astype(np.int64), least)
    # Largest remainders are rounded up; what small regions were given too much, large ones give back.
    while take.sum() < n:
        take[np.argmax(np.where(take < sizes, share - take, -np.inf))] += 1
    while take.sum() > n:
        take[np.argmax(np.where(take > least, take - share, -np.inf))] -= 1
    chosen = np.zeros(len(labels), dtype=bool)
    for k in range(len(names)):
        inside = np.flatnonzero(of == k)
        # Of the region alone: its voxels stay the same when another region changes.
        rng = np.random.default_rng([seed, *names[k].encode()])
        chosen[inside[rng.permutation(len(inside))[: take[k]]]] = True
    return chosen
