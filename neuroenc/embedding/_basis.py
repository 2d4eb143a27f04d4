"""Backward-compatible vectors after a change of backbone: a basis transformation and its least-squares baseline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.weights import Kind, read_folder, write_folder
from neuroenc.data import align

_KIND = Kind("basis transform", "transform.json", "transform.safetensors", ("params", "labels", "sha256"))
_ORIGIN = ("backbone", "weights", "layer", "pooling", "normalised")
_PENALTIES = np.logspace(-4, 3, 15)
_ARRAYS = ("new_mean_", "old_mean_", "hidden_", "guess_", "guess_mean_", "order_", "rotation_", "linear_")


class BasisTransform(TransformerMixin, BaseEstimator):
    r"""Vector of a new backbone that holds an old backbone's vector in its first dimensions (BT2).

    With z new features (n) and y old ones (m) of the same stimuli, both centred and of mean squared norm 1,

    .. math:: h = [\,g(z),\; c P z\,], \qquad t = [\,Q h_{1..m},\; h_{m+1..n+a}\,], \qquad
              P^T P = I_n,\; Q^T Q = I_m

    where g guesses a of the old dimensions by ridge on z and random rectified features of it, and P and Q minimise
    \|Q h_{1..m} - y\|^2 in turns, each in closed form under orthogonality. The first m dimensions of t stand in for
    y, so that old encoders and stored old vectors go on being used; all n + a hold every dimension of z undistorted, so
    that nothing of the new backbone is lost.

    Least squares from z to y (`to_old` with ``way="least_squares"``) is the baseline: for old encoders alone it is at
    least as good, and it keeps of the new backbone only what the old one had.

    Parameters
    ----------
    extra : int
        Dimensions a that are guessed freely.
    scale : float
        Weight c of the new features beside the guess. Larger ones weigh their geometry more, and serve the old worse.
    n_hidden : int
        Random rectified features of the guess; 0 leaves it linear.
    n_iterations : int
        Turns of P and Q.
    seed : int
        Of the random features.

    Attributes
    ----------
    dim_old_, dim_new_ : int
    errors_ : list of float
        Share of the old variance that the first m dimensions miss on the fitted stimuli, by turn.

    Raises
    ------
    ConfigError
        Fewer new dimensions than the transform needs.
    DataError
        Rows that do not belong together, or values that are not finite.

    References
    ----------
    Zhou, Li, Shrivastava & Ordonez (2023), BT2: backward-compatible training with basis transformation, ICCV.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> new = rng.standard_normal((300, 20))
    >>> old = new[:, :8] @ rng.standard_normal((8, 8)) + 0.1 * rng.standard_normal((300, 8))
    >>> basis = BasisTransform(extra=4).fit(new, old)
    >>> basis.transform(new).shape, basis.to_old(new).shape
    ((300, 24), (300, 8))
    """

    def __init__(
        self, extra: int = 32, *, scale: float = 1.0, n_hidden: int = 512, n_iterations: int = 20, seed: int = 0
    ) -> None:
        self.extra, self.scale, self.n_hidden, self.n_iterations, self.seed = extra, scale, n_hidden, n_iterations, seed

    def fit(self, Z_new: Any, Z_old: Any) -> Self:
        """Fit on stimuli that both backbones have seen.

        Parameters
        ----------
        Z_new : array (n_stimuli, n)
        Z_old : array (n_stimuli, m)
            Labelled features must list the same stimuli in the same order.
        """
        extra = check_whole("extra", self.extra, least=0)
        hidden, turns = check_whole("n_hidden", self.n_hidden, least=0), check_whole("n_iterations", self.n_iterations)
        if not self.scale > 0:
            raise ConfigError(f"scale={self.scale!r} is not legal; it must be above 0.")
        if isinstance(Z_new, xr.DataArray) and isinstance(Z_old, xr.DataArray):
            align(Z_new, Z_old)
        new, old = _vectors(Z_new, "new"), _vectors(Z_old, "old")
        if len(new) != len(old) or len(new) < 3:
            raise DataError(f"{len(new)} new and {len(old)} old vectors; both of the same 3 or more stimuli.")
        (n_rows, n), m = new.shape, old.shape[1]
        free = min(extra, m)
        if n < m - free:
            raise ConfigError(
                f"{n} new dimensions cannot hold {m - free} of the {m} old ones. Next step: extra={m - n} or more."
            )
        self.dim_new_, self.dim_old_, self._labels_ = n, m, _labels(Z_old)
        self.new_mean_, self.old_mean_ = new.mean(0), old.mean(0)
        self.new_scale_, self.old_scale_ = _norm(new - self.new_mean_), _norm(old - self.old_mean_)
        rng = np.random.default_rng(self.seed)
        self.hidden_ = rng.standard_normal((n + 1, hidden)) * np.append(np.full(n, 1.5), 0.7)[:, None]
        z, y = self._scaled(new), (old - self.old_mean_) / self.old_scale_
        self.guess_mean_ = self._expanded(z).mean(0)
        self.guess_ = _ridge(self._expanded(z) - self.guess_mean_, y)
        self.linear_ = _ridge(z, y)
        guessed = (self._expanded(z) - self.guess_mean_) @ self.guess_
        # The guess takes the directions in which most of the old vectors can be told.
        q = np.linalg.svd(guessed, full_matrices=False)[2]
        q = np.linalg.qr(np.concatenate([q, np.eye(m)]).T)[0][:, :m].T
        p = np.linalg.qr(rng.standard_normal((n, n)))[0].T
        second = z.T @ z / n_rows
        self.errors_ = []
        for _ in range(turns):
            target = y @ q.T
            p = self._rows(p, second, z.T @ target[:, free:] / n_rows)
            h = np.concatenate([guessed @ q[:free].T, self.scale * z @ p[: m - free].T], axis=1)
            u, _, v = np.linalg.svd(h.T @ y)
            q = u @ v
            self.errors_.append(float(((h @ q - y) ** 2).sum() / (y**2).sum()))
        self.order_, self.rotation_, self._free = p, q, free
        return self

    def _rows(self, p: np.ndarray, second: np.ndarray, cross: np.ndarray, steps: int = 20) -> np.ndarray:
        """Orthonormal rows whose first ones minimise the distance of c P z to its target, completed to a basis."""
        k, n, c = cross.shape[1], len(p), self.scale
        if not k:
            return p
        rows, top = p[:k], float(np.linalg.eigvalsh(second)[-1])
        for _ in range(steps):  # each step minimises a bound that touches the objective
            u, _, v = np.linalg.svd(c**2 * rows @ (top * np.eye(n) - second) + c * cross.T, full_matrices=False)
            rows = u @ v
        # The rest of the space, by the singular vectors that the rows leave.
        return np.concatenate([rows, np.linalg.svd(rows, full_matrices=True)[2][k:]])

    def _scaled(self, new: np.ndarray) -> np.ndarray:
        return np.asarray((new - self.new_mean_) / self.new_scale_)

    def _expanded(self, z: np.ndarray) -> np.ndarray:
        """New features beside rectified random ones, of about one length."""
        size = self.hidden_.shape[1]
        drawn = np.maximum(z @ self.hidden_[:-1] + self.hidden_[-1], 0.0) / np.sqrt(max(size, 1))
        return np.concatenate([z, drawn], axis=1)

    def _checked(self, Z_new: Any) -> np.ndarray:
        check_is_fitted(self, "rotation_")
        new = _vectors(Z_new, "new")
        if new.shape[1] != self.dim_new_:
            raise DataError(f"vectors have {new.shape[1]} dimensions; the transform was fitted on {self.dim_new_}.")
        return new

    def transform(self, Z_new: Any) -> Any:
        """Vectors (stimulus, n + a); the first ``dim_old_`` are comparable with old ones (centred, over one scale)."""
        z = self._scaled(self._checked(Z_new))
        guessed = (self._expanded(z) - self.guess_mean_) @ self.guess_ @ self._rotation_t[:, : self._free]
        held = self.dim_old_ - self._free
        rotated = self.scale * z @ self.order_.T
        first = np.concatenate([guessed, rotated[:, :held]], axis=1) @ self.rotation_
        found = np.concatenate([first, rotated[:, held:]], axis=1).astype(np.float32)
        return _wrapped(found, Z_new, {})

    @property
    def _rotation_t(self) -> np.ndarray:
        """Transpose of the rotation of the old dimensions."""
        return np.asarray(self.rotation_.T)

    def from_old(self, Z_old: Any) -> Any:
        """Old vectors as the first ``dim_old_`` dimensions of `transform` have them: centred, over one scale."""
        check_is_fitted(self, "rotation_")
        old = _vectors(Z_old, "old")
        return _wrapped(((old - self.old_mean_) / self.old_scale_).astype(np.float32), Z_old, {})

    def to_old(self, Z_new: Any, way: str = "basis") -> Any:
        """Old features of new stimuli, in their own units, for encoders that were fitted on them.

        Parameters
        ----------
        Z_new : array (stimulus, n)
        way : {"basis", "least_squares"}
            The first dimensions of `transform`, or ridge from new to old features.

        Returns
        -------
        array (stimulus, m)
            Labelled as the old features were, where both were labelled.
        """
        one_of("way", way, ("basis", "least_squares"))
        if way == "basis":
            found = np.asarray(self.transform(Z_new))[:, : self.dim_old_]
        else:
            found = self._scaled(self._checked(Z_new)) @ self.linear_
        return _wrapped((found * self.old_scale_ + self.old_mean_).astype(np.float32), Z_new, self._labels_)

    def linear_map(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (new feature, old feature) and offsets of the least-squares way."""
        check_is_fitted(self, "rotation_")
        coef = self.linear_ * self.old_scale_ / self.new_scale_
        return coef, self.old_mean_ - self.new_mean_ @ coef

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted transform to a folder."""
        check_is_fitted(self, "rotation_")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        names = self._labels_.get("feature")
        record = {
            "params": self.get_params(),
            "labels": {**self._labels_, "feature": None if names is None else [str(x) for x in names]},
            "fitted": {"scales": [self.new_scale_, self.old_scale_], "free": self._free, "errors": self.errors_},
        }
        return write_folder(path, _KIND, json.loads(json.dumps(record)), arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a transform that `save` wrote."""
        record, arrays = read_folder(path, _KIND, "numpy")
        made = cls(**record["params"])
        for name in _ARRAYS:
            setattr(made, name, arrays[name])
        made.new_scale_, made.old_scale_ = record["fitted"]["scales"]
        made._free, made.errors_ = record["fitted"]["free"], record["fitted"]["errors"]
        made.dim_new_, made.dim_old_, made._labels_ = len(made.order_), len(made.rotation_), record["labels"]
        return made


def _vectors(Z: Any, what: str) -> np.ndarray:
    values = as_numpy(Z, f"{what} features").astype(np.float64)
    if values.ndim > 2 and isinstance(Z, xr.DataArray):
        values = values.reshape(len(values), -1)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"{what} features have shape {values.shape}; expected finite values (stimulus, feature).")
    return values


def _norm(centred: np.ndarray) -> float:
    return max(float(np.sqrt((centred**2).sum(1).mean())), 1e-12)


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Ridge weights under the one penalty that leave-one-out prefers."""
    from sklearn.linear_model import RidgeCV

    scale = float((x**2).sum() / min(x.shape))
    return np.asarray(RidgeCV(_PENALTIES * max(scale, 1e-12), fit_intercept=False).fit(x, y).coef_).T


def _labels(Z_old: Any) -> dict[str, Any]:
    """What says where features come from, so that encoders know them again."""
    if not isinstance(Z_old, xr.DataArray):
        return {}
    found: dict[str, Any] = {k: _json(Z_old.attrs[k]) for k in _ORIGIN if k in Z_old.attrs}
    if Z_old.ndim == 2 and "feature" in Z_old.coords:
        found["feature"] = Z_old.coords["feature"].values
    return found


def _json(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _wrapped(values: np.ndarray, source: Any, labels: dict[str, Any]) -> Any:
    """As labelled features where the source is labelled."""
    if not isinstance(source, xr.DataArray):
        return values
    dim = source.dims[0]
    coords = {str(k): c for k, c in source.coords.items() if c.dims == (dim,)}
    if labels.get("feature") is not None:
        coords["feature"] = ("feature", np.asarray(labels["feature"]))
    attrs = {k: v for k, v in labels.items() if k != "feature"}
    return xr.DataArray(values, dims=(dim, "feature"), coords=coords, name="features", attrs=attrs)
