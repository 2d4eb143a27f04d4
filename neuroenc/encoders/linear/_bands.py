"""Encoders that read several feature spaces ("bands"), matched by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc._core.arrays import as_numbers
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import _labels
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._folds import Folds, resolve_folds
from neuroenc.encoders.linear._solvers import SCORINGS


class Prepared(NamedTuple):
    """What a fit reads: bands as they came (None for one array), the joined features, responses, precision, folds."""

    parts: dict[str, Any] | None
    values: np.ndarray
    Y: Any
    dtype: np.dtype
    folds: Folds


class BandsEncoder(LinearEncoder):
    """Base class of linear encoders that read several feature spaces, as a mapping, a list, or columns of one array."""

    bands: Any
    cv: Any
    scoring: str
    solver: str
    bands_: np.ndarray
    band_names_: np.ndarray

    def _prepare(self, X: Any, y: Any, groups: Any) -> Prepared:
        """Check settings and inputs, and remember their labels."""
        one_of("scoring", self.scoring, SCORINGS)
        one_of("solver", self.solver, ("auto", "primal", "dual"))
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
        return Prepared(parts, values, Y, dtype, folds)

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

    def _band_predictions(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Parts of the prediction that come from each band (band, row, voxel), without intercept; responses beside."""
        values = self._check_predict(X).astype(np.float64)
        shape = (len(values), self.coef_.shape[1])
        measured = _labels.measured_responses(self._label_source(X), y, shape, self._voxels_, self._space_)
        of_band = [self.bands_ == name for name in self.band_names_]
        parts = [values[:, columns] @ self.coef_[columns].astype(np.float64) for columns in of_band]
        return np.stack(parts), measured.astype(np.float64)

    def _of_bands(self, values: np.ndarray, name: str) -> xr.DataArray:
        """Values (band, voxel) under their labels."""
        voxels = self._voxels_ or {"voxel": np.arange(values.shape[1])}
        coords = {"band": self.band_names_.astype(str), **voxels}
        return xr.DataArray(values, dims=("band", "voxel"), coords=coords, name=name)

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
        parts, centred = self._band_predictions(X, y)
        centred = centred - centred.mean(axis=0)
        parts = parts - parts.mean(axis=1, keepdims=True)
        residual = 2 * centred - parts.sum(axis=0)
        total = np.einsum("nv,nv->v", centred, centred)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.stack([np.einsum("nv,nv->v", part, residual) / total for part in parts])
        found = self._of_bands(share, "ev")
        return self._placed(found, metric="ev", split="product measure", n_stimuli=len(centred))
