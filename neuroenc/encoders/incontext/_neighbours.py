"""Baselines that fit nothing: the mean response, and the responses to the nearest stimuli."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._inputs import check_responses
from neuroenc.encoders._labels import column_block, features_matrix, voxel_coords, wrap

__all__ = ["MeanResponse", "NearestStimuli", "SupportBased"]


class SupportBased(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What the baselines share: they keep the support's responses and labels; NaN responses are missing."""

    n_features_in_: int

    def _remember_support(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64])
        Y, dtype = check_responses(X, y, values)
        responses = np.asarray(column_block(Y, slice(None)), dtype=dtype)
        if np.isinf(responses).any():
            raise DataError("responses hold infinity (inf). Next step: NaN, if they are missing.")
        self._voxels_ = voxel_coords(y)
        self._single_voxel_ = (y.ndim if hasattr(y, "ndim") else np.asarray(y).ndim) == 1
        if np.isnan(responses).all(axis=0).any():
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
    """Predicts the mean support response of a voxel for every stimulus; its explained variance is 0.

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
    r"""Mean response to the ``k`` support stimuli nearest to the query.

    .. math:: \hat y_v(x) = \sum_{t \in N_k(x)} \omega_t y_{tv} \Big/ \sum_{t \in N_k(x)} \omega_t

    Parameters
    ----------
    k : int
        Neighbours; all, if the support has fewer.
    weights : {"uniform", "cosine"}
        ``"cosine"``: :math:`\omega_t = \exp((\cos(x, x_t) - 1) / T)`.
    temperature : float
        T, of ``"cosine"``.

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

    def __init__(self, k: int = 5, *, weights: str = "uniform", temperature: float = 0.1) -> None:
        self.k = k
        self.weights = weights
        self.temperature = temperature

    def fit(self, X: Any, y: Any) -> Self:
        """Keep the support, X (n, feature) and y (n, voxel)."""
        if self.weights not in ("uniform", "cosine") or not self.k >= 1 or not self.temperature > 0:
            raise ConfigError(
                f"k={self.k!r}, weights={self.weights!r}, temperature={self.temperature!r}: k is at least 1, weights "
                "'uniform' or 'cosine', the temperature positive."
            )
        values, self.responses_ = self._remember_support(X, y)
        self.support_ = _unit(values)
        self.mean_ = np.nanmean(self.responses_, axis=0)
        return self

    def predict(self, X: Any) -> Any:
        """Weighted mean response of the neighbours of every row of X (n, feature)."""
        query = _unit(self._query(X))
        k = min(int(self.k), len(self.support_))
        known = ~np.isnan(self.responses_)
        filled = np.where(known, self.responses_, 0)
        predicted = np.empty((len(query), self.responses_.shape[1]), dtype=self.responses_.dtype)
        for start in range(0, len(query), 256):
            cosine = query[start : start + 256] @ self.support_.T
            nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            chosen = np.take_along_axis(cosine, nearest, axis=1)
            weight = np.zeros_like(cosine)
            values = np.exp((chosen - 1) / self.temperature) if self.weights == "cosine" else np.ones_like(chosen)
            np.put_along_axis(weight, nearest, values, axis=1)
            total = weight @ known.astype(weight.dtype)
            with np.errstate(invalid="ignore", divide="ignore"):
                predicted[start : start + 256] = np.where(total > 0, (weight @ filled) / total, self.mean_)
        return self._labelled(predicted, X)


def _unit(values: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(norms > 0, norms, 1))
