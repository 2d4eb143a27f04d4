"""Ridge weights on resampled rows with fixed penalties: sampling variability of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import DataError
from neuroenc.data import align
from neuroenc.encoders._folds import check_groups
from neuroenc.encoders._labels import align_voxels
from neuroenc.encoders.linear._solvers import make_design, solve_block


def ridge_weights(X: Any, Y: Any, alpha: Any) -> tuple[np.ndarray, np.ndarray]:
    r"""Ridge weights of all voxels for given penalties.

    .. math:: \min_{w_v, b_v} \|y_v - X w_v - b_v\|^2 + \alpha_v \|w_v\|^2

    Parameters
    ----------
    X : array (n, feature)
    Y : array (n, voxel)
    alpha : float or array (voxel,)

    Returns
    -------
    coef : ndarray (feature, voxel)
    intercept : ndarray (voxel,)

    Raises
    ------
    DataError
        Shapes that do not fit, values that are not finite, negative penalties.

    Examples
    --------
    >>> coef, intercept = ridge_weights([[0.0], [1.0], [2.0]], [[1.0], [3.0], [5.0]], 0.0)
    >>> coef.round(6).tolist(), intercept.round(6).tolist()
    ([[2.0]], [1.0])
    """
    if isinstance(X, xr.DataArray) and isinstance(Y, xr.DataArray):
        align(X, Y)
    if isinstance(alpha, xr.DataArray) and alpha.dims == ("voxel",):
        alpha = align_voxels(alpha.expand_dims("row"), Y, "penalties")[0]
    x, y = (as_numpy(a, what).astype(np.float64) for a, what in ((X, "features"), (Y, "responses")))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise DataError(f"X {x.shape} and Y {y.shape} do not fit; legal is (n, feature) and (n, voxel).")
    penalty = np.asarray(alpha, dtype=np.float64)
    if penalty.shape not in ((), y.shape[1:]):
        raise DataError(f"alpha has shape {penalty.shape}; legal is one, or one for each of {y.shape[1]} voxels.")
    penalty = np.broadcast_to(penalty, y.shape[1:])
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (penalty >= 0).all()):
        raise DataError("X and Y must be finite and penalties not negative.")
    design = make_design(x, (), center=True, primal=x.shape[1] <= len(x), dtype=np.float64)
    basis = design.full_basis()
    mean = y.mean(axis=0)
    coef = solve_block(design, basis, y - mean, np.array(penalty))
    return coef, mean - x.mean(axis=0) @ coef


def resampled_rows(groups: Any, kind: str = "bootstrap", n_draws: int = 5, *, seed: int = 0) -> Iterator[np.ndarray]:
    """Resample rows by groups (stimuli, runs or sessions): bootstrap samples, or disjoint halves.

    Parameters
    ----------
    groups : array (n,)
        Rows of equal value stay together, so that repeats of a stimulus never stand on both sides.
    kind : {"bootstrap", "halves"}
    n_draws : int
        Bootstraps; of halves, pairs of halves (each gives two).
    seed : int

    Yields
    ------
    ndarray of int

    Examples
    --------
    >>> a, b = resampled_rows(["x", "x", "y", "z"], "halves", 1)
    >>> sorted([*a.tolist(), *b.tolist()])
    [0, 1, 2, 3]
    """
    one_of("kind", kind, ("bootstrap", "halves"))
    check_whole("n_draws", n_draws)
    member = check_groups(groups, np.size(groups), {})
    if member is None:
        raise DataError("groups=None; expected the group of each row, such as its stimulus.")
    labels = np.unique(member)
    if len(labels) < 2:
        raise DataError(f"{len(labels)} group of rows; at least two are needed to resample.")
    rng = make_rng(seed)
    order = np.argsort(member, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(member))[:-1])
    for _ in range(n_draws):
        if kind == "bootstrap":
            yield np.concatenate([rows[g] for g in rng.integers(0, len(rows), len(rows))])
        else:
            mixed = rng.permutation(len(rows))
            for part in (mixed[: len(rows) // 2], mixed[len(rows) // 2 :]):
                yield np.sort(np.concatenate([rows[g] for g in part]))
