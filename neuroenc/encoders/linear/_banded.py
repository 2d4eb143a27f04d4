"""Banded ridge: one penalty per feature space and voxel, by random search on the simplex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError
from neuroenc._core.progress import progress
from neuroenc.encoders import _labels
from neuroenc.encoders._base import check_alphas, default_alphas
from neuroenc.encoders.linear import _solvers
from neuroenc.encoders.linear._bands import BandsEncoder
from neuroenc.encoders.linear._blocks import Search
from neuroenc.encoders.linear._solvers import row_gram, warn_at_edges


def simplex_candidates(
    n_bands: int, n_candidates: int, seed: int, concentration: Sequence[float] = (0.1, 1.0)
) -> np.ndarray:
    """Sample candidate band weights gamma (candidate, band) on the simplex.

    The first is uniform (plain ridge), then one for each band alone, then Dirichlet draws that cycle through
    ``concentration`` (small values give sparse weights).

    Examples
    --------
    >>> simplex_candidates(2, 4, seed=0)[:3].tolist()
    [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    """
    check_whole("n_bands", n_bands)
    check_whole("n_candidates", n_candidates)
    if not (np.size(concentration) and (np.asarray(concentration, dtype=np.float64) > 0).all()):
        raise ConfigError(f"concentration={concentration!r} is not legal; its numbers must be above 0.")
    rng = make_rng(seed)
    rows = [np.full(n_bands, 1 / n_bands)]
    if n_bands > 1:
        rows += list(np.eye(n_bands))
    while len(rows) < n_candidates:
        rows.append(rng.dirichlet(np.full(n_bands, concentration[len(rows) % len(concentration)])))
    return np.array(rows[:n_candidates])


@dataclass(eq=False, repr=False)
class BandedRidgeEncoder(BandsEncoder):
    r"""Banded (group) ridge regression: a penalty for each feature space ("band") and voxel.

    .. math:: \min_{w_v, b_v} \Big\lVert y_v - \sum_k X_k w_{kv} - b_v \Big\rVert^2
              + \sum_k \frac{\alpha_v}{\gamma_{kv}} \lVert w_{kv} \rVert^2,
              \qquad \gamma_v \in \text{simplex}

    Candidates for gamma are drawn at random once and shared by all voxels; every voxel keeps the pair
    (gamma, alpha) with the best cross-validated score. A band with gamma 0 is left out. Bands of a mapping are matched
    by name when the encoder predicts or scores, in any order.

    Parameters
    ----------
    alphas : array-like (a,), optional
        As in `RidgeEncoder`.
    bands : array-like (feature,), optional
        Band of each column when X is one array; not needed when X is a mapping or a list of arrays.
    n_candidates : int
        Number of band weightings tried.
    gammas : array (candidate, band), optional
        The candidates themselves, instead of random ones.
    cv, scoring, fit_intercept, standardise, solver, nan_voxels, max_memory, n_jobs, device, progress
        As in `RidgeEncoder`.
    seed : int
        Of the random candidates.

    Attributes
    ----------
    coef_, intercept_, alphas_, best_score_
        As in `RidgeEncoder`; the rows of ``coef_`` are the bands' features one after another.
    bands_ : ndarray of str (feature,)
    band_names_ : ndarray of str (band,)
    gamma_ : ndarray (band, voxel)
    alpha_ : ndarray (voxel,)
    band_alpha_ : ndarray (band, voxel)
        Penalty of each band, ``alpha_ / gamma_``; infinite for a band left out.

    References
    ----------
    Nunez-Elizalde, Huth & Gallant (2019), NeuroImage 197. Dupré la Tour et al. (2022), NeuroImage 264.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import BandedRidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X = {"vision": rng.standard_normal((300, 8)), "language": rng.standard_normal((300, 40))}
    >>> y = X["vision"] @ rng.standard_normal((8, 2)) + rng.standard_normal((300, 2))
    >>> encoder = BandedRidgeEncoder(n_candidates=10).fit(X, y)
    >>> share = encoder.explained_by_band(X, y)
    >>> share.dims, bool((share.sel(band="vision") > 0.7).all())
    (('band', 'voxel'), True)
    """

    alphas: Any = None
    _: KW_ONLY
    bands: Any = None
    n_candidates: int = 50
    gammas: Any = None
    cv: Any = 5
    scoring: str = "r2"
    fit_intercept: bool = True
    standardise: bool = False
    solver: str = "auto"
    nan_voxels: str = "raise"
    max_memory: str | int | None = None
    n_jobs: int | None = None
    device: str = "cpu"
    progress: bool = False
    seed: int = 0

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Search band weights and penalties, then solve.

        Parameters
        ----------
        X : mapping of name to array (n, feature_k), sequence of such arrays, or one array (n, feature)
        y : array (n, voxel) or (n,)
            As in `RidgeEncoder`; of dask arrays the search runs where dask computes, the last solution here.
        groups : array (n,), optional
            As in `RidgeEncoder`.
        """
        one_of("nan_voxels", self.nan_voxels, ("raise",))
        parts, values, Y, dtype, folds = self._prepare(X, y, groups)
        n, p = values.shape
        scaling = self._scaling(values, X if parts is None else parts) if self.standardise else None
        how: dict[str, Any] = {"center": self.fit_intercept, "dtype": dtype, "solver": self.solver, "scaling": scaling}
        design = _solvers.make_design(values, folds, **how)
        # gamma sums to one over bands, so penalties are smaller by their number than those of plain ridge.
        scale = np.trace(design.gram) / min(n, p) / len(self.band_names_)
        self.alphas_ = default_alphas(scale) if self.alphas is None else check_alphas(self.alphas)
        self._search(design, Y)
        return self

    def _candidates(self) -> np.ndarray:
        n_bands = len(self.band_names_)
        if self.gammas is None:
            return simplex_candidates(n_bands, self.n_candidates if n_bands > 1 else 1, self.seed)
        gammas = np.atleast_2d(np.asarray(self.gammas, dtype=float))
        if gammas.shape[1] != n_bands or np.any(gammas < 0) or not np.all(gammas.sum(1) > 0):
            raise ConfigError(
                f"gammas have shape {gammas.shape}; expected (candidate, {n_bands}), not negative, not all zero."
            )
        return gammas / gammas.sum(1, keepdims=True)

    def _search(self, design: _solvers.Design, Y: Any) -> None:
        search = Search(self, design, Y)
        v, n_bands = Y.shape[1], len(self.band_names_)
        band = (self.bands_[:, None] == self.band_names_.astype(str)).argmax(axis=1)
        kernels = [] if design.primal else [row_gram(design.X[:, band == k]) for k in range(n_bands)]
        gammas = self._candidates()

        def prior(gamma: np.ndarray) -> dict[str, Any]:
            if design.primal:
                return {"scale": np.sqrt(gamma[band])}
            return {"kernel": sum(g * K for g, K in zip(gamma, kernels))}

        best = np.full(v, -np.inf)
        chosen, seen = np.zeros((2, v), dtype=int), np.zeros((len(self.alphas_), v))
        for number, gamma in enumerate(progress(gammas, desc="banded ridge", show=self.progress, unit="candidate")):
            bases = search.bases(range(len(design.folds)), **prior(gamma))

            def score(raw: np.ndarray, block: slice, bases: Any = bases) -> dict[str, np.ndarray]:
                return {"scores": search.scores(search.centred(raw), bases)[0]}

            for block, result in search.run(score):
                scores = result["scores"] / len(design.folds)
                index = np.argmax(scores, axis=0)
                reached = scores[index, np.arange(scores.shape[1])]
                better = reached > best[block]
                seen[:, block] = np.where(better, scores, seen[:, block])
                best[block] = np.where(better, reached, best[block])
                chosen[:, block] = np.where(better, np.stack([np.full_like(index, number), index]), chosen[:, block])
        self.best_score_ = best
        self.gamma_ = gammas[chosen[0]].T
        self.alpha_ = self.alphas_[chosen[1]]
        with np.errstate(divide="ignore"):
            self.band_alpha_ = self.alpha_ / self.gamma_
        self.coef_ = np.empty((len(band), v), dtype=design.dtype)
        self.intercept_ = np.empty(v, dtype=design.dtype)
        for number in np.unique(chosen[0]):
            basis = design.full_basis(**prior(gammas[number]))
            voxels = np.flatnonzero(chosen[0] == number)
            for start in range(0, len(voxels), 1024):
                part = voxels[start : start + 1024]
                # Voxels of one candidate are scattered; a slice that spans them keeps lazy responses readable.
                span = _labels.column_block(Y, slice(int(part[0]), int(part[-1]) + 1))[:, part - part[0]]
                centred, mean, exponent = _solvers.center_block(span, self.fit_intercept, design.dtype)
                coef = _solvers.solve_block(design, basis, centred, self.alpha_[part])
                if not design.primal:
                    coef = coef * gammas[number][band][:, None].astype(coef.dtype)
                self.coef_[:, part], self.intercept_[part] = design.raw_weights(coef, mean, exponent)
        values = design.full_basis().values / n_bands
        warn_at_edges(seen, chosen[1], self.alphas_, values, self.scoring, self.alphas is not None)
