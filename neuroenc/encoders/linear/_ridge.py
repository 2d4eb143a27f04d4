"""Ridge regression with one penalty per voxel."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import validate_data

from neuroenc._core.checks import one_of
from neuroenc._core.device import array_module
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory, voxel_blocks
from neuroenc._core.store import Store, content_key
from neuroenc.encoders._base import LinearEncoder, check_alphas, default_alphas
from neuroenc.encoders._folds import resolve_folds
from neuroenc.encoders._labels import (
    check_responses,
    count_workers,
    feature_scaling,
    features_matrix,
    raise_nan,
    release_mapped,
    sample_coords,
    to_device,
)
from neuroenc.encoders.linear import _solvers
from neuroenc.encoders.linear._blocks import run_blocks
from neuroenc.encoders.linear._solvers import SCORINGS, warn_at_edges


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

    def __init__(
        self,
        alphas: Any = None,
        *,
        cv: Any = 5,
        scoring: str = "r2",
        fit_intercept: bool = True,
        standardise: bool = False,
        alpha_per_voxel: bool = True,
        solver: str = "auto",
        nan_voxels: str = "raise",
        max_memory: str | int | None = None,
        n_jobs: int | None = None,
        device: str = "cpu",
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.alpha_per_voxel = alpha_per_voxel
        self.solver = solver
        self.nan_voxels = nan_voxels
        self.max_memory = max_memory
        self.n_jobs = n_jobs
        self.device = device
        self.checkpoint = checkpoint
        self.progress = progress

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

        Returns
        -------
        self
        """
        one_of("scoring", self.scoring, SCORINGS)
        one_of("solver", self.solver, ("auto", "primal", "dual"))
        one_of("nan_voxels", self.nan_voxels, ("raise", "skip"))
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=2)
        Y, dtype = check_responses(X, y, values)
        self._remember(X, y)
        n, p = values.shape
        self.n_samples_fit_ = n
        coords = sample_coords(y, X)
        folds = resolve_folds(self.cv, n, coords, groups, self.scoring)
        primal = n >= p if self.solver == "auto" else self.solver == "primal"
        scaling = feature_scaling(values, X) if self.standardise else None
        design = _solvers.make_design(
            values, folds, center=self.fit_intercept, primal=primal, dtype=dtype, scaling=scaling
        )
        release_mapped(X)
        self.alphas_ = self._grid(design)
        self._solve(design, Y)
        return self

    def _grid(self, design: _solvers.Design) -> np.ndarray:
        if self.alphas is not None:
            return check_alphas(self.alphas)
        return default_alphas(np.trace(design.gram) / min(design.X.shape))

    def _solve(self, design: _solvers.Design, Y: Any) -> None:
        p, v = design.X.shape[1], Y.shape[1]
        xp, device = array_module(self.device)
        budget = parse_memory(self.max_memory)
        workers = count_workers(self.n_jobs) if device is None else 1
        groups = _fold_groups(len(design.folds), design.basis_bytes(), budget // 2)
        blocks = voxel_blocks(v, design.block_bytes(), budget // 2, workers, most=1024 if device is None else 8192)
        workers = min(workers, len(blocks))
        store = self._store(design)
        Xd = to_device(design.X, device, xp)
        self.coef_ = np.empty((p, v), dtype=design.dtype)
        self.intercept_ = np.empty(v, dtype=design.dtype)
        self.alpha_ = np.empty(v)
        scores = np.zeros((len(self.alphas_), v))
        fused = len(groups) == 1 and self.alpha_per_voxel
        full = design.full_basis()
        bad: list[np.ndarray] = []

        def solve(
            centred: Any, mean: np.ndarray, exponent: np.ndarray, alpha: np.ndarray, total: Any
        ) -> dict[str, np.ndarray]:
            coef = _solvers.solve_block(design, full, centred, alpha, total=total, X=Xd, xp=xp)
            coef, intercept = design.raw_weights(coef, mean, exponent)
            return {"coef": coef, "intercept": intercept, "alpha": alpha}

        def prepare(raw: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
            centred, mean, exponent, broken = _center_checked(raw, self.fit_intercept, design.dtype)
            if len(broken) and self.nan_voxels == "raise":
                raise_nan(Y, self._voxels_)
            return to_device(centred, device, xp), mean, exponent, broken

        for number, group in enumerate(groups):
            bases = design.fold_bases(group, workers)
            if device is not None:
                bases = [b.to(lambda a: None if a is None else to_device(a, device, xp)) for b in bases]

            def search(raw: np.ndarray, block: slice, bases: Any = bases) -> dict[str, np.ndarray]:
                centred, mean, exponent, broken = prepare(raw)
                found, total = _solvers.score_block(design, centred, bases, self.alphas_, self.scoring, X=Xd, xp=xp)
                if self.scoring == "neg_mse":
                    found = np.ldexp(found, 2 * exponent)
                result = {"scores": found, "broken": broken}
                if fused:
                    alpha = self.alphas_[_solvers.best_alpha(found)]
                    result.update(solve(centred, mean, exponent, alpha, total))
                return result

            # The folds that are held together depend on max_memory; a block of scores is theirs alone.
            phase = "fit" if fused else f"search{group.start}to{group.stop}"
            for block, result in run_blocks(
                search, Y, blocks, workers=workers, phase=phase, store=store, show=self.progress, desc="ridge"
            ):
                scores[:, block] += result["scores"]
                if number == 0:
                    bad.append(result["broken"] + block.start)
                if fused:
                    self._take(block, result)
        scores /= len(design.folds)
        self.nan_voxels_ = np.concatenate(bad)
        if not fused:
            self._refit(scores, Y, blocks, workers, store, prepare, solve)
        self._finish(scores, full.values)

    def _refit(
        self, scores: np.ndarray, Y: Any, blocks: Any, workers: int, store: Any, prepare: Any, solve: Any
    ) -> None:
        if self.alpha_per_voxel:
            chosen = self.alphas_[_solvers.best_alpha(scores)]
        else:
            usable = np.setdiff1d(np.arange(scores.shape[1]), self.nan_voxels_)
            mean = scores[:, usable].mean(axis=1) if len(usable) else scores.mean(axis=1)
            chosen = np.full(scores.shape[1], self.alphas_[np.argmax(mean)])

        def work(raw: np.ndarray, block: slice) -> dict[str, np.ndarray]:
            centred, mean, exponent, _ = prepare(raw)
            return solve(centred, mean, exponent, chosen[block], None)

        for block, result in run_blocks(
            work,
            Y,
            blocks,
            workers=workers,
            phase="solve",
            also=lambda block: chosen[block],
            store=store,
            show=self.progress,
            desc="ridge, solving",
        ):
            self._take(block, result)

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
            import warnings

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


def _center_checked(values: np.ndarray, center: bool, dtype: Any) -> tuple[np.ndarray, ...]:
    """Centred block, means, exponents, and positions of voxels that are not finite (set to zero)."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"responses have dtype {values.dtype}; expected numbers. Next step: convert them to float32.")
    # A sum is finite unless a member is not (or the voxel overflows, which is no better).
    broken = np.flatnonzero(~np.isfinite(values.sum(axis=0, dtype=np.float64)))
    if len(broken):
        values = values.copy()
        values[:, broken] = 0
    return *_solvers.center_block(values, center, dtype), broken
