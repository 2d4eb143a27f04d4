"""Which images of a bank are in which fold."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError, unknown_name

__all__ = ["as_folds", "bank_folds"]

_KINDS = ("disjoint", "resampled")


def bank_folds(n: int, folds: int = 5, *, size: int | None = None, kind: str = "disjoint", seed: int = 0) -> np.ndarray:
    """Samples of a bank without replacement, as masks.

    Pools of images that are sampled in different ways stand beside each other along the bank: masks of pools
    are joined with ``numpy.concatenate(..., axis=1)``. The released folds take a disjoint fifth of one pool and, anew
    for each fold, a part of two others.

    Parameters
    ----------
    n : int
        Images of the pool.
    folds : int
    size : int, optional
        Images a fold; by default ``n // folds`` (the remainder goes to the first folds).
    kind : "disjoint" or "resampled"
        "disjoint": no image is in two folds. "resampled": each fold draws anew, so folds overlap.
    seed : int

    Returns
    -------
    ndarray (folds, n) of bool

    Raises
    ------
    ConfigError
        A fold would be empty, or folds of that size do not fit.

    Examples
    --------
    >>> bank_folds(5, 2).sum(axis=1).tolist(), bool(bank_folds(5, 2).all(axis=0).any())
    ([3, 2], False)
    >>> pools = [bank_folds(8, 2, size=4, kind="resampled"), bank_folds(100, 2)]
    >>> np.concatenate(pools, axis=1).sum(axis=1).tolist()
    [54, 54]
    """
    if kind not in _KINDS:
        raise ConfigError(unknown_name("kind of folds", kind, _KINDS))
    if isinstance(folds, bool) or int(folds) != folds or folds < 1 or (folds > n and size is None):
        raise ConfigError(f"folds={folds!r} of {n} images is not legal; it must be from 1 to the number of images.")
    most = n // folds if kind == "disjoint" else n
    if size is not None and not 1 <= size <= most:
        raise ConfigError(f"{folds} {kind} folds of size={size} from {n} images; legal sizes are 1 to {most}.")
    rng = make_rng(seed)
    out = np.zeros((folds, n), dtype=bool)
    if kind == "disjoint":
        parts = np.array_split(rng.permutation(n), folds)
        for mask, rows in zip(out, parts, strict=True):
            mask[rows[:size]] = True
    else:
        for mask in out:
            mask[rng.choice(n, n // folds if size is None else size, replace=False, shuffle=False)] = True
    return out


def as_folds(folds: Any, n: int | None, seed: int) -> np.ndarray:
    """Masks (fold, n) from a number of folds or from masks, checked against the bank."""
    if n is None:
        raise DataError("folds of a stream whose length is not known. Next step: pass a list, a memmap or a path.")
    if isinstance(folds, (int, np.integer)) and not isinstance(folds, bool):
        return bank_folds(n, int(folds), seed=seed)
    masks = np.asarray(folds)
    if masks.dtype != bool or masks.ndim != 2 or masks.shape[1] != n or len(masks) == 0:
        raise DataError(
            f"folds have dtype {masks.dtype} and shape {masks.shape}; legal is a number, or bool (folds, {n}) as of "
            "bank_folds()."
        )
    empty = np.flatnonzero(~masks.any(axis=1))
    if len(empty):
        raise DataError(f"{len(empty)} of {len(masks)} folds have no image; the first is fold {empty[0]}.")
    return masks
