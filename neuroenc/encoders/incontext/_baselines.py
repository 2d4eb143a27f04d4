"""Baselines with few stimuli: mean response, nearest stimuli, anatomical transfer, released ridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._base import LinearEncoder, check_alphas
from neuroenc.encoders._labels import check_responses, column_block, features_matrix, raise_nan, voxel_coords, wrap
from neuroenc.encoders.incontext._evidence import Floats
from neuroenc.encoders.incontext._place_prior import PlacedWeights


class SupportBased(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What the baselines share: they keep the support's responses and labels; NaN responses are missing."""

    n_features_in_: int

    fits_without_trials = False

    def _remember_support(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        least = 0 if self.fits_without_trials else 1
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=least)
        Y, dtype = check_responses(X, y, values)
        responses = np.asarray(column_block(Y, slice(None)), dtype=dtype)
        if np.isinf(responses).any():
            raise DataError("responses hold infinity (inf). Next step: NaN, if they are missing.")
        self._voxels_ = voxel_coords(y)
        self._single_voxel_ = (y.ndim if hasattr(y, "ndim") else np.asarray(y).ndim) == 1
        if len(responses) and np.isnan(responses).all(axis=0).any():
            raise DataError(f"{int(np.isnan(responses).all(axis=0).sum())} voxels hold NaN only.")
        return values, responses

    def _query(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(validate_data(self, features_matrix(X), reset=False, dtype=[np.float32, np.float64]))

    def _labelled(self, predicted: np.ndarray, X: Any) -> Any:
        if self._single_voxel_:
            predicted = predicted[:, 0]
        return wrap(predicted, X, self._voxels_, name="predicted")


class MeanResponse(SupportBased):
    """Baseline: predict the mean support response of a voxel; its explained variance is 0.

    Examples
    --------
    >>> import numpy as np
    >>> MeanResponse().fit(np.zeros((2, 1)), np.array([[1.0], [3.0]])).predict(np.zeros((1, 1)))
    array([[2.]])
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Mean over the support, X (n, feature) and y (n, voxel), without NaN."""
        _, responses = self._remember_support(X, y)
        self.mean_ = np.nanmean(responses, axis=0, dtype=np.float64).astype(responses.dtype)
        return self

    def predict(self, X: Any) -> Any:
        """The mean, once a stimulus."""
        return self._labelled(np.repeat(self.mean_[None], len(self._query(X)), axis=0), X)


class NearestStimuli(SupportBased):
    r"""Baseline: nearest neighbours, the mean response to the ``k`` most similar support stimuli.

    Parameters
    ----------
    k : int
        Neighbours; all, if the support has fewer.

    Notes
    -----
    Nearness is the cosine of feature vectors. A NaN response is left out of the mean; where all ``k`` are missing, the
    prediction is the voxel's mean response.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([5.0, 7.0])
    >>> NearestStimuli(k=1).fit(X, y).predict(np.array([[0.1, 2.0]]))
    array([7.])
    """

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def fit(self, X: Any, y: Any) -> Self:
        """Keep the support, X (n, feature) and y (n, voxel)."""
        check_whole("k", self.k)
        values, self.responses_ = self._remember_support(X, y)
        self.support_ = unit_rows(values)
        self.mean_ = np.nanmean(self.responses_, axis=0)
        return self

    def predict(self, X: Any) -> Any:
        """Mean response of the neighbours of every row of X (n, feature)."""
        query = unit_rows(self._query(X))
        k = min(int(self.k), len(self.support_))
        known = ~np.isnan(self.responses_)
        filled = np.where(known, self.responses_, 0)
        predicted = np.empty((len(query), self.responses_.shape[1]), dtype=self.responses_.dtype)
        for start in range(0, len(query), 256):
            cosine = query[start : start + 256] @ self.support_.T
            nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            weight = np.zeros_like(cosine)
            np.put_along_axis(weight, nearest, 1.0, axis=1)
            total = weight @ known.astype(weight.dtype)
            with np.errstate(invalid="ignore", divide="ignore"):
                predicted[start : start + 256] = np.where(total > 0, (weight @ filled) / total, self.mean_)
        return self._labelled(predicted, X)


class AnatomicalTransfer(SupportBased):
    r"""Baseline: predict a voxel by encoders of other subjects' voxels at the same cortical place.

    .. math:: \hat y_v(x) = \frac{1}{S} \sum_s \frac{\sum_{u \in N_k(v, s)} \kappa(|p_u - p_v|)
              \,(x \cdot w_u + b_u)} {\sum_{u \in N_k(v, s)} \kappa(|p_u - p_v|)}, \qquad
              \kappa(d) = e^{-d^2 / 2 h^2}

    Neighbours are in the same hemisphere, in each of the S training subjects that has voxels there. It is the
    anatomical baseline of BraInCoRL (fsaverage); responses of the support are not looked at.

    Parameters
    ----------
    encoders : encoder or sequence of encoders
        Fitted, linear (`to_linear`), one per training subject.
    positions : array (voxel, 3), or one per training subject
        Where their voxels lie, in millimetres of a common space.
    target : array (voxel, 3)
        Where the new subject's voxels lie, in the same space; see `surface_positions`.
    hemispheres, target_hemisphere : array (voxel,) of labels (one per subject), optional
        Both or neither.
    k : int
        Neighbours a subject.
    bandwidth : float
        h, in millimetres.
    max_distance : float
        A subject none of whose voxels is nearer does not count; a voxel without any predicts 0.

    Attributes
    ----------
    coef_, intercept_ : arrays (feature, voxel) and (voxel,)
    n_neighbours_ : array (voxel,)
        Voxels of all subjects that were averaged.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X, W, where = rng.standard_normal((200, 4)), rng.standard_normal((4, 9)), np.arange(27.0).reshape(9, 3)
    >>> other = RidgeEncoder().fit(X, X @ W)
    >>> transfer = AnatomicalTransfer(other, where, where + 0.1, k=1).fit(X[:2], np.zeros((2, 9)))
    >>> bool(np.abs(transfer.predict(X) - X @ W).max() < 0.01)
    True
    """

    fits_without_trials = True

    def __init__(
        self,
        encoders: Any = None,
        positions: Any = None,
        target: Any = None,
        *,
        hemispheres: Any = None,
        target_hemisphere: Any = None,
        k: int = 10,
        bandwidth: float = 5.0,
        max_distance: float = 20.0,
    ) -> None:
        self.encoders = encoders
        self.positions = positions
        self.target = target
        self.hemispheres = hemispheres
        self.target_hemisphere = target_hemisphere
        self.k = k
        self.bandwidth = bandwidth
        self.max_distance = max_distance

    def __sklearn_clone__(self) -> Self:
        # The training subjects' encoders are data: a clone that forgot their fits would be of no use.
        return type(self)(**self.get_params(deep=False))

    def fit(self, X: Any, y: Any) -> Self:
        """Average the neighbours' weights; the responses y (n, voxel) give the voxels' labels."""
        values, responses = self._remember_support(X, y)
        coef, offset = self._transferred(responses.shape[1])
        if len(coef) != values.shape[1]:
            raise DataError(f"X has {values.shape[1]} features, the training subjects' encoders {len(coef)}.")
        self.coef_, self.intercept_ = coef.astype(responses.dtype), offset.astype(responses.dtype)
        return self

    def predict(self, X: Any) -> Any:
        """Predicted responses (n, voxel)."""
        return self._labelled(self._query(X) @ self.coef_ + self.intercept_, X)

    def _transferred(self, n_voxels: int) -> tuple[Floats, Floats]:
        others = self._others()
        target = np.asarray(self.target, dtype=np.float64)
        if target.shape != (n_voxels, 3):
            raise DataError(f"target has shape {target.shape}; expected ({n_voxels}, 3), a place for every voxel.")
        if (self.target_hemisphere is None) != (self.hemispheres is None):
            raise ConfigError("hemispheres and target_hemisphere are given together or not at all.")
        side = np.zeros(n_voxels) if self.target_hemisphere is None else np.asarray(self.target_hemisphere)
        found, self.n_neighbours_ = others.at(
            target, side, k=self.k, bandwidth=self.bandwidth, max_distance=self.max_distance
        )
        return found[:-1], found[-1]

    def _others(self) -> PlacedWeights:
        """Weights and intercepts (feature + 1, voxel) of the training subjects, and their places."""
        if self.encoders is None or self.positions is None:
            raise ConfigError("AnatomicalTransfer needs fitted encoders, their voxels' positions and the target's.")
        many = isinstance(self.encoders, Sequence)
        linear = [encoder.to_linear() for encoder in (self.encoders if many else [self.encoders])]
        places = [np.asarray(p, dtype=np.float64) for p in (self.positions if many else [self.positions])]
        sides = [np.zeros(len(p)) for p in places]
        if self.hemispheres is not None:
            sides = [np.asarray(h) for h in (self.hemispheres if many else [self.hemispheres])]
        weights = [np.vstack([w.values, b.values]).astype(np.float64) for w, b in linear]
        return PlacedWeights(weights, places, sides)


def surface_positions(responses: xr.DataArray, vertices: Mapping[str, Any] | None = None) -> tuple[Floats, np.ndarray]:
    """Surface coordinates (voxel, 3) in millimetres and hemispheres (voxel,) of responses.

    Parameters
    ----------
    responses : DataArray (..., voxel)
        With coordinates ``vertex`` and ``hemi``.
    vertices : mapping of hemisphere to array (vertex, 3), optional
        By default fsaverage5, midway between white matter and pia (needs nilearn); its vertices are the first ones of
        the denser fsaverage meshes.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> responses = make_responses([[0.0, 1.0]], stimulus=["a"], vertex=[2, 0], hemi=["L", "L"])
    >>> surface_positions(responses, {"L": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]})[0].tolist()
    [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    for name in ("vertex", "hemi"):
        if name not in responses.coords:
            raise DataError(f"responses have no voxel coordinate {name!r}; found {sorted(map(str, responses.coords))}.")
    if vertices is None:
        from neuroenc.data.simulate import fsaverage5

        vertices = {side: xyz for side, (xyz, _) in fsaverage5().items()}
    hemi, vertex = responses["hemi"].values.astype(str), responses["vertex"].values
    places = np.empty((len(hemi), 3))
    for side in np.unique(hemi).tolist():
        if side not in vertices:
            raise DataError(f"vertices hold hemispheres {sorted(vertices)}; the responses have {side!r} too.")
        here, xyz = hemi == side, np.asarray(vertices[side], dtype=np.float64)
        if vertex[here].max() >= len(xyz):
            raise DataError(
                f"vertex {int(vertex[here].max())} of hemisphere {side}; the surface has {len(xyz)}. "
                "Next step: vertices= of the surface that the responses are on."
            )
        places[here] = xyz[vertex[here]]
    return places, hemi


_BLOCK = 2048


class PaperRidge(LinearEncoder):
    r"""Baseline: ridge regression as in the released evaluation code of BraInCoRL.

    Rows are cut into ``cv`` consecutive folds of ``n // cv``; rows left over stand in every training set and in no
    test set. The intercept is a column of ones and is penalised like every weight:
    :math:`\omega = (A^T A + \lambda I)^{-1} A^T y`, ``A = [X, 1]``. Each voxel takes the penalty of the best mean
    explained variance, and its weights are the **mean over folds** at that penalty: there is no fit to all rows.

    `RidgeEncoder` is the better baseline; this one is for comparison with published figures.

    Parameters
    ----------
    alphas : array-like (a,), optional
        By default 1e-3 to 1e5 in decades.
    cv : int
        Folds.

    Attributes
    ----------
    coef_ : ndarray (feature, voxel)
    intercept_ : ndarray (voxel,)
    alpha_ : ndarray (voxel,)
    cv_scores_ : ndarray (a, voxel)
        Mean explained variance over folds.

    References
    ----------
    Yu et al. (2025), Meta-learning an in-context transformer model of human higher visual cortex, NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((100, 5)), rng.standard_normal((5, 2))
    >>> bool(np.abs(PaperRidge().fit(X, X @ W).coef_ - W).max() < 0.01)
    True
    """

    def __init__(self, alphas: Any = None, *, cv: int = 5) -> None:
        self.alphas = alphas
        self.cv = cv

    def fit(self, X: Any, y: Any) -> Self:
        """Fit every fold and average.

        Parameters
        ----------
        X : array (n, feature)
        y : array (n, voxel) or (n,)

        Raises
        ------
        DataError
            Fewer than two rows a fold (explained variance needs two), or NaN responses.
        """
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=2)
        Y, dtype = check_responses(X, y, values)
        self._remember(X, y)
        n, p = values.shape
        size = n // self.cv
        if self.cv < 2 or size < 2:
            raise DataError(
                f"n_samples={n} make {self.cv} folds of {size}; each needs 2 rows or more. "
                "Next step: fewer folds, or more stimuli."
            )
        self.alphas_ = check_alphas(np.logspace(-3, 5, 9) if self.alphas is None else self.alphas)
        A = np.column_stack([values.astype(np.float64), np.ones(n)])
        folds = [np.arange(f * size, (f + 1) * size) for f in range(self.cv)]
        bases = [_basis(np.delete(A, test, axis=0)) for test in folds]
        v = Y.shape[1]
        weights, self.alpha_, self.cv_scores_ = np.empty((p + 1, v)), np.empty(v), np.empty((len(self.alphas_), v))
        for start in range(0, v, _BLOCK):
            block = slice(start, min(start + _BLOCK, v))
            responses = np.asarray(column_block(Y, block), dtype=np.float64)
            if not np.isfinite(responses).all():
                raise_nan(Y, self._voxels_)
            weights[:, block], self.alpha_[block], self.cv_scores_[:, block] = self._fit_block(
                A, responses, folds, bases
            )
        self.coef_, self.intercept_ = weights[:-1].astype(dtype), weights[-1].astype(dtype)
        return self

    def _fit_block(self, A: Any, Y: Any, folds: Any, bases: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        projected = [
            (vectors, values, vectors.T @ (np.delete(A, test, axis=0).T @ np.delete(Y, test, axis=0)))
            for test, (values, vectors) in zip(folds, bases)
        ]
        scores = np.zeros((len(self.alphas_), Y.shape[1]))
        for test, (vectors, values, z) in zip(folds, projected):
            rotated = A[test] @ vectors
            for a, alpha in enumerate(self.alphas_):
                predicted = rotated @ (z / (values + alpha)[:, None])
                scores[a] += stats.explained_variance(Y[test], predicted)
        scores /= len(folds)
        # A voxel constant within a fold has no score there: all penalties are as good, and the strongest is taken.
        usable = np.where(np.isnan(scores), -np.inf, scores)
        usable[-1, np.isinf(usable).all(axis=0)] = 0.0
        alpha = self.alphas_[np.argmax(usable, axis=0)]
        total = sum(vectors @ (z / (values[:, None] + alpha)) for vectors, values, z in projected)
        return np.asarray(total) / len(folds), alpha, scores


def _basis(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and vectors (p + 1, r) of ``A'A``, without its null space."""
    _, singular, vectors = np.linalg.svd(A, full_matrices=False)
    return singular**2, vectors.T
