"""Ridge regression with one penalty per voxel, and its weights on resampled rows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from sklearn.utils.validation import validate_data

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import DataError
from neuroenc._core.store import Store, content_key
from neuroenc.data import align
from neuroenc.encoders import _labels
from neuroenc.encoders._base import LinearEncoder, check_alphas, default_alphas
from neuroenc.encoders._folds import check_groups, resolve_folds
from neuroenc.encoders.linear import _solvers
from neuroenc.encoders.linear._blocks import Held, Search
from neuroenc.encoders.linear._reduce import check_reduction, fit_reduction
from neuroenc.encoders.linear._solvers import SCORINGS, warn_at_edges


@dataclass(eq=False, repr=False)
class RidgeEncoder(LinearEncoder):
    r"""Voxelwise ridge regression with one cross-validated penalty per voxel.

    .. math:: \min_{w_v, b_v} \lVert y_v - X w_v - b_v \rVert^2 + \alpha_v \lVert w_v \rVert^2

    The intercept is not penalised. All voxels share one decomposition a fold; with more samples than
    features, scores of every penalty follow from Gram matrices without predicting single stimuli.

    Parameters
    ----------
    alphas : array-like (a,), optional
        Penalties to choose from, positive. By default 25 values from 1e-4 to 1e4 in steps of a third of a decade,
        times the mean eigenvalue of the features' Gram matrix, so that the grid follows the features' scale.
    cv : int, str, splitter or iterable, default 5
        Folds: a number (contiguous; by stimulus where stimuli repeat), ``"run"`` or ``"session"`` (leave one
        out, from the responses' coordinates), a scikit-learn splitter, or splits.
    scoring : {"r2", "neg_mse", "r"}
        Score on the rows left out, averaged over folds.
    fit_intercept : bool
    standardise : bool
        Fit on features of mean 0 and s.d. 1 over the rows that `fit` is given (over rows and places for each channel
        of labelled maps). The scaling is folded into ``coef_`` and ``intercept_``: `predict` and `to_linear` are
        about the features as they come, penalties about the scaled ones.
    reduce : {"", "pca", "projection"}
        Fit on the first ``n_components`` principal components of the features, or on a sparse random projection, both
        of the rows that `fit` is given. They are folded into ``coef_`` and ``intercept_`` as scaling is, so that
        `predict` and `to_linear` are about the features as they come.
    n_components : int
    alpha_per_voxel : bool
        False chooses one penalty for all voxels by their mean score.
    solver : {"auto", "primal", "dual"}
        ``"auto"`` takes the primal form when there are at least as many samples as features.
    nan_voxels : {"raise", "skip"}
        What to do with voxels that hold NaN or infinite responses; ``"skip"`` gives them NaN weights and a warning.
    max_memory : str or int, optional
        Working memory beyond X, Y and the weights, such as ``"2GB"``; default a quarter of the machine's.
    n_jobs : int, optional
        Threads; default all cores.
    device : str
        ``"cpu"``, a torch device such as ``"cuda"``, or ``"auto"`` (a GPU if torch sees one).
    checkpoint : path, optional
        Folder in which finished blocks of voxels are kept, by the content of what they come from: a fit that was
        killed goes on from there, and other fits may use the folder too.
    progress : bool

    Attributes
    ----------
    coef_ : ndarray (feature, voxel)
        In response units per feature unit.
    intercept_ : ndarray (voxel,)
    alpha_ : ndarray (voxel,)
        Chosen penalty.
    alphas_ : ndarray (a,)
        The grid.
    cv_scores_ : ndarray (a, voxel)
        Mean score over folds.
    best_score_ : ndarray (voxel,)
        Score of the chosen penalty; optimistic, because the penalty was chosen by it.
    nan_voxels_ : ndarray of int
        Positions of voxels that were skipped.

    Raises
    ------
    DataError
        NaN voxels, sample counts or stimulus order that differ between X and Y, or a stimulus on both sides of
        a fold.

    References
    ----------
    Hoerl & Kennard (1970), Technometrics 12(1). Dupré la Tour, Eickenberg, Nunez-Elizalde & Gallant (2022),
    NeuroImage 264.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 10)), rng.standard_normal((10, 3))
    >>> encoder = RidgeEncoder().fit(X, X @ W + 0.1 * rng.standard_normal((200, 3)))
    >>> encoder.coef_.shape, bool(np.abs(encoder.coef_ - W).max() < 0.05)
    ((10, 3), True)
    """

    alphas: Any = None
    _: KW_ONLY
    cv: Any = 5
    scoring: str = "r2"
    fit_intercept: bool = True
    standardise: bool = False
    reduce: str = ""
    n_components: int = 100
    alpha_per_voxel: bool = True
    solver: str = "auto"
    nan_voxels: str = "raise"
    max_memory: str | int | None = None
    n_jobs: int | None = None
    device: str = "cpu"
    checkpoint: str | os.PathLike[str] | None = None
    progress: bool = False

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose penalties and solve.

        Parameters
        ----------
        X : array (n, feature)
            Features: numpy, torch, dask, or labelled (maps are flattened in C order).
        y : array (n, voxel) or (n,)
            Responses: numpy, memmap, torch, dask, or labelled. Read block by block, never copied whole. Blocks of
            dask arrays are fitted where dask computes, on the workers of an active client; features are held, and
            decomposed, in the calling process.
        groups : array (n,), optional
            Rows of a group stay on one side of every fold, with a number of folds (`GroupKFold`) or a splitter.
        """
        one_of("scoring", self.scoring, SCORINGS)
        one_of("solver", self.solver, ("auto", "primal", "dual"))
        one_of("nan_voxels", self.nan_voxels, ("raise", "skip"))
        values = validate_data(self, _labels.features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=2)
        Y, dtype = _labels.check_responses(X, y, values)
        self._remember(X, y)
        self.n_samples_fit_ = len(values)
        folds = resolve_folds(self.cv, len(values), _labels.sample_coords(y, X), groups, self.scoring)
        scaling = _labels.feature_scaling(values, X) if self.standardise else None
        check_reduction(self.reduce, self.n_components)
        reduction = None
        if self.reduce:
            reduction = fit_reduction(values, self.reduce, self.n_components, scaling)
            values, scaling = reduction.apply(values), None
        how: dict[str, Any] = {"center": self.fit_intercept, "dtype": dtype, "solver": self.solver, "scaling": scaling}
        design = _solvers.make_design(values, folds, **how)
        _labels.release_mapped(X)
        scale = np.trace(design.gram) / min(values.shape)
        self.alphas_ = default_alphas(scale) if self.alphas is None else check_alphas(self.alphas)
        self._solve(design, Y)
        if reduction is not None:
            self.coef_ = np.asarray(reduction.weights @ self.coef_).astype(self.coef_.dtype, copy=False)
            self.intercept_ = (self.intercept_ - reduction.mean @ self.coef_).astype(self.coef_.dtype, copy=False)
        return self

    def _solve(self, design: _solvers.Design, Y: Any) -> None:
        search = Search(self, design, Y)
        p, v = design.X.shape[1], Y.shape[1]
        groups = _fold_groups(len(design.folds), design.basis_bytes(), search.budget)
        self.coef_ = np.empty((p, v), dtype=design.dtype)
        self.intercept_ = np.empty(v, dtype=design.dtype)
        self.alpha_ = np.empty(v)
        scores = np.zeros((len(self.alphas_), v))
        fused = len(groups) == 1 and self.alpha_per_voxel
        full = design.full_basis()
        how: dict[str, Any] = {"store": self._store(design), "show": self.progress}
        bad: list[np.ndarray] = []

        def solve(held: Held, alpha: np.ndarray, total: Any = None) -> dict[str, np.ndarray]:
            centred, mean, exponent, _ = held
            coef = _solvers.solve_block(design, full, centred, alpha, total=total, X=search.X, xp=search.xp)
            coef, intercept = design.raw_weights(coef, mean, exponent)
            return {"coef": coef, "intercept": intercept, "alpha": alpha}

        for number, group in enumerate(groups):
            bases = search.bases(group)

            def score(raw: np.ndarray, block: slice, bases: Any = bases) -> dict[str, np.ndarray]:
                held = search.centred(raw)
                found, total = search.scores(held, bases)
                solved = solve(held, self.alphas_[np.argmax(found, axis=0)], total) if fused else {}
                return {"scores": found, "broken": held[3], **solved}

            # The folds that are held together depend on max_memory; a block of scores is theirs alone.
            phase = "fit" if fused else f"search{group.start}to{group.stop}"
            for block, result in search.run(score, phase=phase, desc="ridge", **how):
                scores[:, block] += result["scores"]
                if number == 0:
                    bad.append(result["broken"] + block.start)
                if fused:
                    self._take(block, result)
        scores /= len(design.folds)
        self.nan_voxels_ = np.concatenate(bad)
        if not fused:
            chosen = self._chosen(scores)

            def work(raw: np.ndarray, block: slice) -> dict[str, np.ndarray]:
                return solve(search.centred(raw), chosen[block])

            how |= {"phase": "solve", "desc": "ridge, solving", "also": lambda block: chosen[block]}
            for block, result in search.run(work, **how):
                self._take(block, result)
        self._finish(scores, full.values)

    def _chosen(self, scores: np.ndarray) -> np.ndarray:
        """The best penalty of every voxel (the smallest of equals), or of their mean."""
        if self.alpha_per_voxel:
            return self.alphas_[np.argmax(scores, axis=0)]
        usable = np.setdiff1d(np.arange(scores.shape[1]), self.nan_voxels_)
        mean = scores[:, usable].mean(axis=1) if len(usable) else scores.mean(axis=1)
        return np.full(scores.shape[1], self.alphas_[np.argmax(mean)])

    def _take(self, block: slice, result: dict[str, np.ndarray]) -> None:
        self.coef_[:, block] = result["coef"]
        self.intercept_[block] = result["intercept"]
        self.alpha_[block] = result["alpha"]

    def _finish(self, scores: np.ndarray, values: np.ndarray) -> None:
        chosen = np.searchsorted(self.alphas_, self.alpha_)
        self.best_score_ = scores[chosen, np.arange(scores.shape[1])]
        self.cv_scores_ = scores
        shown, at = scores, chosen
        if not self.alpha_per_voxel:  # one choice, by the mean
            shown, at = scores.mean(axis=1, keepdims=True), chosen[:1]
        usable = np.setdiff1d(np.arange(shown.shape[1]), self.nan_voxels_)
        warn_at_edges(shown[:, usable], at[usable], self.alphas_, values, self.scoring, self.alphas is not None)
        if len(self.nan_voxels_):
            for array in (self.coef_, self.intercept_, self.alpha_, self.best_score_, self.cv_scores_):
                array[..., self.nan_voxels_] = np.nan
            warnings.warn(
                f"{len(self.nan_voxels_)} of {scores.shape[1]} voxels hold NaN or infinite responses; "
                "their weights are NaN.",
                stacklevel=4,
            )

    def _store(self, design: _solvers.Design) -> tuple[Store, str] | None:
        if self.checkpoint is None:
            return None
        settings = [self.alphas_, self.scoring, self.fit_intercept, self.alpha_per_voxel, design.primal]
        data = [design.X, design.mean, design.scale, design.folds]
        return Store(self.checkpoint), content_key(settings, self.nan_voxels, data)


def _fold_groups(n_folds: int, bytes_each: int, budget: int) -> list[range]:
    """Folds whose decompositions are held together; more groups mean more passes over the responses."""
    size = int(max(1, min(n_folds, budget // max(1, bytes_each))))
    return [range(i, min(i + size, n_folds)) for i in range(0, n_folds, size)]


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
    x, y, penalty = _checked(X, Y, alpha)
    design = _solvers.make_design(x, (), center=True, dtype=np.float64)
    mean = y.mean(axis=0)
    coef = _solvers.solve_block(design, design.full_basis(), y - mean, penalty)
    return coef, mean - x.mean(axis=0) @ coef


def ridge_residuals(X: Any, Y: Any, alpha: Any, *, standardise: bool = False) -> np.ndarray:
    r"""Leave-one-out residuals of ridge regression for given penalties, in closed form.

    .. math:: e_{iv} = \frac{y_{iv} - \hat y_{iv}}{1 - h_i(\alpha_v)}, \qquad
              h_i(\alpha) = \tfrac1n + \sum_k \frac{u_{ik}^2 s_k}{s_k + \alpha}

    with the eigenvectors u and eigenvalues s of the Gram matrix of the centred rows: exactly what is left of each row
    when it is predicted by ridge on all others (Allen's PRESS). Unlike residuals of the fit they are as large as those
    of new stimuli, so that they tell the noise of a prediction.

    Parameters
    ----------
    X : array (n, feature)
    Y : array (n, voxel)
    alpha : float or array (voxel,)
    standardise : bool
        Scale features to unit variance before.

    Returns
    -------
    ndarray (n, voxel), float64
        In units of the responses; 0 where a row cannot be told from those it is predicted by.

    References
    ----------
    Allen (1974), Technometrics 16:125.

    Examples
    --------
    >>> ridge_residuals([[0.0], [1.0], [2.0], [4.0]], [[1.0], [3.0], [5.0], [0.0]], 0.0).round(2).ravel().tolist()
    [-4.5, 0.75, 3.81, -9.0]
    """
    x, y, penalty = _checked(X, Y, alpha)
    scaling = _labels.feature_scaling(x, X) if standardise else None
    design = _solvers.make_design(x, (), center=True, dtype=np.float64, scaling=scaling)
    basis = design.full_basis()
    values = np.maximum(basis.values, 0.0)
    rows = design.X @ basis.vectors if basis.primal else basis.vectors * np.sqrt(values)
    y = y - y.mean(axis=0)
    found = np.empty_like(y)
    for a in np.unique(penalty):
        at = penalty == a
        weighted = rows * _solvers.shrinkage(values, np.array([a]))[0]
        left = 1.0 - 1.0 / len(y) - np.einsum("nr,nr->n", weighted, rows)
        off = y[:, at] - weighted @ (rows.T @ y[:, at])
        found[:, at] = off / np.where(left > 1e-10, left, np.inf)[:, None]
    return found


def _checked(X: Any, Y: Any, alpha: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, responses and a penalty for each voxel, float64, matched by label."""
    if isinstance(X, xr.DataArray) and isinstance(Y, xr.DataArray):
        align(X, Y)
    if isinstance(alpha, xr.DataArray) and alpha.dims == ("voxel",):
        alpha = _labels.align_voxels(alpha.expand_dims("row"), Y, "penalties")[0]
    x, y = (as_numpy(a, what).astype(np.float64) for a, what in ((X, "features"), (Y, "responses")))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise DataError(f"X {x.shape} and Y {y.shape} do not fit; legal is (n, feature) and (n, voxel).")
    penalty = np.asarray(alpha, dtype=np.float64)
    if penalty.shape not in ((), y.shape[1:]):
        raise DataError(f"alpha has shape {penalty.shape}; legal is one, or one for each of {y.shape[1]} voxels.")
    penalty = np.broadcast_to(penalty, y.shape[1:])
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (penalty >= 0).all()):
        raise DataError("X and Y must be finite and penalties not negative.")
    return x, y, penalty


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
