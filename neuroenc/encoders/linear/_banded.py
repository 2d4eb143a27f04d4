"""Banded ridge: one penalty per feature space and voxel, by random search on the simplex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc._core.arrays import as_numbers
from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.progress import progress
from neuroenc.encoders import _labels
from neuroenc.encoders._base import LinearEncoder, check_alphas, default_alphas
from neuroenc.encoders._folds import resolve_folds
from neuroenc.encoders.linear import _solvers
from neuroenc.encoders.linear._blocks import Search
from neuroenc.encoders.linear._solvers import SCORINGS, row_gram, warn_at_edges


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
class BandedRidgeEncoder(LinearEncoder):
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

        Returns
        -------
        self
        """
        one_of("scoring", self.scoring, SCORINGS)
        one_of("solver", self.solver, ("auto", "primal", "dual"))
        one_of("nan_voxels", self.nan_voxels, ("raise",))
        parts, first = self._parts(X), self._label_source(X)
        if parts is None:
            joined = _labels.features_matrix(X)
            bands = None if self.bands is None else np.asarray(self.bands).astype(str)
        elif self.bands is not None:
            raise ConfigError("bands= names the columns of one array; X already comes as bands. Next step: bands=None.")
        else:
            joined, bands = self._join(parts)
        values = validate_data(self, joined, dtype=[np.float32, np.float64], ensure_min_samples=2)
        Y, dtype = _labels.check_responses(first, y, values)
        self._remember(first, y)
        if parts is not None:
            self._features_ = {name: _labels.describe_features(part) for name, part in parts.items()}
        n, p = values.shape
        self.n_samples_fit_ = n
        self.bands_ = np.zeros(p, dtype=int).astype(str) if bands is None else bands
        if self.bands_.shape != (p,):
            raise ConfigError(f"bands has shape {self.bands_.shape}; expected one name for each of X's {p} columns.")
        self.band_names_ = np.array(list(dict.fromkeys(self.bands_.tolist())), dtype=object)
        folds = resolve_folds(self.cv, n, _labels.sample_coords(y, first), groups, self.scoring)
        scaling = self._scaling(values, X if parts is None else parts) if self.standardise else None
        how: dict[str, Any] = {"center": self.fit_intercept, "dtype": dtype, "solver": self.solver, "scaling": scaling}
        design = _solvers.make_design(values, folds, **how)
        # gamma sums to one over bands, so penalties are smaller by their number than those of plain ridge.
        scale = np.trace(design.gram) / min(n, p) / len(self.band_names_)
        self.alphas_ = default_alphas(scale) if self.alphas is None else check_alphas(self.alphas)
        self._search(design, Y)
        return self

    @staticmethod
    def _scaling(values: np.ndarray, X: Any) -> tuple[np.ndarray, np.ndarray]:
        if not isinstance(X, dict):
            return _labels.feature_scaling(values, X)
        found = [_labels.feature_scaling(np.asarray(_labels.features_matrix(part)), part) for part in X.values()]
        return np.concatenate([m for m, _ in found]), np.concatenate([s for _, s in found])

    def _parts(self, X: Any) -> dict[str, Any] | None:
        """Bands by name, by number for a list; None for one array."""
        # Sparse matrices in dictionary form are mappings too; they are refused further on.
        if isinstance(X, Mapping) and not hasattr(X, "shape"):
            if len({str(k) for k in X}) < len(X) or not len(X):
                raise DataError(f"names of bands must be distinct, and one at least; found {list(map(str, X))}.")
            return {str(k): part for k, part in X.items()}
        if isinstance(X, (list, tuple)) and X and np.ndim(X[0]) == 2:
            return {str(i): part for i, part in enumerate(X)}
        return None

    def _join(self, parts: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """One array of all bands, and the band of each column."""
        arrays = [as_numbers(_labels.features_matrix(part), f"features {name!r}") for name, part in parts.items()]
        rows = {name: len(a) for name, a in zip(parts, arrays)}
        if len(set(rows.values())) > 1:
            raise DataError(f"bands have different numbers of samples: {rows}.")
        flat = [name for name, a in zip(parts, arrays) if a.ndim != 2]
        if flat:
            raise DataError(f"band {flat[0]!r} has {arrays[0].ndim} dimensions; expected (n_samples, n_features).")
        labels = [
            p.coords["stimulus"].values
            for p in parts.values()
            if isinstance(p, xr.DataArray) and "stimulus" in p.coords
        ]
        if any(not np.array_equal(labels[0], other) for other in labels[1:]):
            raise DataError(
                "bands list their stimuli in different orders. Next step: neuroenc.data.match each to the responses."
            )
        return np.concatenate(arrays, axis=1), np.repeat(list(parts), [a.shape[1] for a in arrays])

    def _label_source(self, X: Any) -> Any:
        parts = self._parts(X)
        if parts is None:
            return X
        return next((p for p in parts.values() if isinstance(p, xr.DataArray)), next(iter(parts.values())))

    def _check_predict(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        parts = self._parts(X)
        if parts is None:
            # Side by side, in the order of the fit.
            return super()._check_predict(X)
        known = self.band_names_.astype(str).tolist()
        if not isinstance(X, Mapping):
            parts = dict(zip(known, parts.values())) if len(parts) == len(known) else parts
        missing, unknown = [k for k in known if k not in parts], [k for k in parts if k not in known]
        if missing or unknown:
            raise DataError(
                f"the encoder was fitted on bands {known}; found {list(parts)}: "
                + ", ".join([*(f"no {k!r}" for k in missing), *(f"unknown {k!r}" for k in unknown)])
                + "."
            )
        values, bands = self._join(
            {k: _labels.match_features(self._features_.get(k, {}), parts[k], f"band {k!r}") for k in known}
        )
        for name in known:
            if (bands == name).sum() != (self.bands_ == name).sum():
                raise DataError(
                    f"band {name!r} has {(bands == name).sum()} features; the encoder was fitted on "
                    f"{(self.bands_ == name).sum()}."
                )
        # Where bands= names columns of one array, those of a band need not stand together.
        order = np.concatenate([np.flatnonzero(self.bands_ == name) for name in known])
        return super()._check_predict(values[:, np.argsort(order)])

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

    def explained_by_band(self, X: Any, y: Any) -> xr.DataArray:
        r"""Product-measure split of explained variance.

        .. math:: \mathrm{EV}_k = \frac{\sum_i \hat y_{ki} (2 y_i - \hat y_i)}{\sum_i y_i^2}

        with responses and predictions centred and ``\hat y_k`` the part of the prediction that comes from band
        k. The parts add up to the explained variance (which is R2 where the mean prediction is right: the
        intercept belongs to no band).

        Parameters
        ----------
        X, y
            As in `fit`.

        Returns
        -------
        DataArray (band, voxel)

        References
        ----------
        Dupré la Tour et al. (2022), NeuroImage 264; Pratt (1987).
        """
        values = self._check_predict(X).astype(np.float64)
        shape = (len(values), self.coef_.shape[1])
        source = self._label_source(X)
        measured = _labels.measured_responses(source, y, shape, self._voxels_, self._space_).astype(np.float64)
        centred = measured - measured.mean(axis=0)
        parts = []
        for name in self.band_names_:
            columns = self.bands_ == name
            parts.append(values[:, columns] @ self.coef_[columns].astype(np.float64))
        parts = [part - part.mean(axis=0) for part in parts]
        residual = 2 * centred - sum(parts)
        total = np.einsum("nv,nv->v", centred, centred)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.stack([np.einsum("nv,nv->v", part, residual) / total for part in parts])
        voxels = self._voxels_ or {"voxel": np.arange(share.shape[1])}
        coords = {"band": self.band_names_.astype(str), **voxels}
        found = xr.DataArray(share, dims=("band", "voxel"), coords=coords, name="ev")
        return self._placed(found, metric="ev", split="product measure", n_stimuli=len(measured))
