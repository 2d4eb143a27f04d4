"""Finite impulse responses: features at several delays, and the response function that weights on them are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import volume_numbers
from neuroenc.encoders._folds import check_groups

_MARK = "@"


class Delayer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Features of earlier volumes side by side, for a finite impulse response (FIR) model of the hemodynamics.

    .. math:: \tilde x_{(d, f)}(t) = x_f(t - d), \qquad y(t) = \sum_{d, f} w_{df}\, x_f(t - d)

    so that ridge on delayed features fits each voxel's response function with its weights. What lies before the
    beginning of a run is 0; no row reads another run.

    Labelled features whose stimuli are volumes, "run01:0005", are delayed by these names: rows may have been trimmed or
    stand in any order. Others are delayed by position within each ``run`` (and ``session``), or within ``groups``.

    Parameters
    ----------
    delays : sequence of int
        In volumes. A negative delay reads ahead.

    Attributes
    ----------
    n_features_in_ : int

    Raises
    ------
    ConfigError, DataError
        Delays that are no whole numbers or occur twice; a volume that occurs twice.

    References
    ----------
    Nishimoto et al. (2011), Current Biology 21, 1641-1646. Dupré la Tour, Visconti di Oleggio Castello & Gallant
    (2025), Imaging Neuroscience 3 (the Voxelwise Encoding Model framework).

    Examples
    --------
    >>> Delayer(delays=[0, 1]).fit_transform([[1.0], [2.0], [3.0]], groups=[1, 1, 2]).tolist()
    [[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]]
    """

    def __init__(self, delays: Sequence[int] = (1, 2, 3, 4)) -> None:
        self.delays = delays

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Remember the number of features.

        Parameters
        ----------
        X : array (n, feature), numpy or labelled
        y, groups : ignored
        """
        check_delays(self.delays)
        validate_data(self, X.values if isinstance(X, xr.DataArray) else X, dtype=[np.float32, np.float64])
        return self

    def fit_transform(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X, groups)

    def transform(self, X: Any, groups: Any = None) -> Any:
        """Delay features.

        Parameters
        ----------
        X : array (n, feature)
            numpy, or labelled with stimulus or ``run``.
        groups : array (n,), optional
            Run of each row of a numpy array; without it all rows are one run.

        Returns
        -------
        array (n, delay * feature)
            All features at the first delay, then all at the second. Labelled: ``feature`` is "FEATURE@DELAY", with the
            coordinate ``delay``.
        """
        check_is_fitted(self)
        delays = check_delays(self.delays)
        labelled = isinstance(X, xr.DataArray)
        dtype = [np.float32, np.float64]
        values = validate_data(self, X.values if labelled else X, reset=False, dtype=dtype)
        group, number = _places(X if labelled else None, len(values), groups)
        # A volume's place is one number, in which runs are so far apart that no delay leads from one to another.
        span = int(number.max() - number.min()) + 2 * int(np.abs(delays).max()) + 1 if len(values) else 1
        key = group * span + number - (number.min() if len(number) else 0)
        index = pd.Index(key)
        if not index.is_unique:
            row = int(np.argmax(index.duplicated()))
            raise DataError(
                f"row {row} is a volume that was there before. Next step: delay features that have each volume once, "
                "and neuroenc.data.match them to the responses then."
            )
        n, p = values.shape
        out = np.zeros((n, p * len(delays)), dtype=values.dtype)
        for k, delay in enumerate(delays):
            source = index.get_indexer(key - delay)
            known = source >= 0
            out[known, k * p : (k + 1) * p] = values[source[known]]
        if not labelled:
            return out
        dim = X.dims[0]
        coords: dict[str, Any] = {str(c): v for c, v in X.coords.items() if v.dims == (dim,)}
        names = X["feature"].values if "feature" in X.coords else np.arange(p)
        coords["feature"] = delayed_names(names, delays)
        for name, coord in X.coords.items():
            if name != "feature" and coord.dims == ("feature",):
                coords[str(name)] = ("feature", np.tile(coord.values, len(delays)))
        coords["delay"] = ("feature", np.repeat(delays, p))
        attrs = {k: v for k, v in X.attrs.items() if k not in ("normalised", "content_hash")}
        return xr.DataArray(out, dims=(dim, "feature"), coords=coords, attrs=attrs, name=X.name)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, "FEATURE@DELAY"."""
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", [f"x{k}" for k in range(self.n_features_in_)])
        return delayed_names(names if input_features is None else input_features, check_delays(self.delays)).astype(
            object
        )


def check_delays(delays: Any) -> np.ndarray:
    """Delays in volumes, each once."""
    found = np.atleast_1d(np.asarray(delays))
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iu" or len(np.unique(found)) < len(found):
        raise ConfigError(f"delays={delays!r} are not legal; whole numbers of volumes, each once, such as [2, 3, 4].")
    return found.astype(np.int64)


def delayed_names(names: Any, delays: Any) -> np.ndarray:
    """ "FEATURE@DELAY" of every column.

    >>> delayed_names(["a", "b"], [1, 2]).tolist()
    ['a@1', 'b@1', 'a@2', 'b@2']
    """
    return np.array([f"{name}{_MARK}{d}" for d in np.asarray(delays).tolist() for name in np.asarray(names).tolist()])


def _places(X: xr.DataArray | None, n: int, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """Run of each row, counted from 0, and its place in time there."""
    parts: list[np.ndarray] = []
    number = np.zeros(n, dtype=np.int64)
    named = None
    if X is not None:
        labels = [X[k].values for k in ("subject", "session", "run") if k in X.coords and X[k].dims == X.dims[:1]]
        named = volume_numbers(X["stimulus"].values) if "stimulus" in X.coords else None
        parts = [np.asarray(values).astype(str) for values in ([*labels, named[0]] if named else labels)]
    if groups is not None:
        grouped = check_groups(groups, n, {})
        assert grouped is not None
        parts.append(grouped.astype(str))
    _, group = np.unique(np.array(parts), axis=1, return_inverse=True) if parts else (None, np.zeros(n, dtype=np.int64))
    group = np.asarray(group).reshape(-1)
    if named:
        return group, named[1]
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        number[rows] = np.arange(len(rows))
    return group, number


def lag_profile(encoder: Any, *, tr: float, delays: Any = None, band: str | None = None) -> xr.Dataset:
    r"""Response function of each voxel from the weights of a finite impulse response model: peak, width, shape.

    Weights of one voxel are a matrix (delay, feature). Where all features go through one response function they are
    the outer product of that function and the voxel's tuning; its best approximation by one such product,

    .. math:: W_v \approx h_v u_v^\top, \qquad W_v W_v^\top h_v = \lambda_v h_v,

    gives :math:`h_v`, signed so that its largest value is positive (a voxel that is suppressed has tuning of the other
    sign). The peak is interpolated by a parabola through the largest value and its neighbours.

    Parameters
    ----------
    encoder : fitted linear encoder
        On features of `Delayer`.
    tr : float, s
        Time between volumes.
    delays : sequence of int, optional
        For encoders that were fitted on unlabelled features; the blocks of their columns.
    band : str, optional
        Of banded encoders: which feature space.

    Returns
    -------
    Dataset over ``voxel``
        ``response`` (delay, voxel; largest value 1), ``peak_latency`` (s), ``width`` (s, full width at half the
        maximum within the delays, NaN where the response does not fall below half on both sides), ``separability``
        (share of the weights' square that one response function explains; 1 over the number of delays or more).
        NaN where weights are.

    Raises
    ------
    DataError
        Weights without delays, features that have not all of them, or unevenly spaced delays.

    Examples
    --------
    >>> from neuroenc.encoders import RidgeEncoder
    >>> x = np.random.default_rng(0).standard_normal((300, 3))
    >>> late = Delayer(delays=[0, 1, 2, 3, 4]).fit_transform(x)
    >>> y = late @ np.outer([0, 1, 2, 1, 0], [1.0, -1.0, 0.5]).ravel()[:, None]
    >>> found = lag_profile(RidgeEncoder().fit(late, y), tr=2.0, delays=[0, 1, 2, 3, 4])
    >>> found["peak_latency"].round(1).values.tolist(), found["width"].round(1).values.tolist()
    ([4.0], [4.0])
    """
    if not (np.isfinite(tr) and tr > 0):
        raise DataError(f"tr={tr!r} is not legal; it is the time between volumes in seconds, above 0.")
    coef = np.asarray(encoder.coef_, dtype=np.float64)
    features = getattr(encoder, "_features_", None) or {}
    if band is not None:
        names = [str(x) for x in getattr(encoder, "band_names_", [])]
        one_of("band", band, names)
        coef = coef[np.asarray(encoder.bands_) == band]
        features = features.get(band, features)
    if delays is None:
        labels = [str(x).rpartition(_MARK) for x in features.get("labels", {}).get("feature", [])]
        if len(labels) != len(coef) or not all(mark and d.lstrip("-").isdigit() for _, mark, d in labels):
            raise DataError(
                f"the encoder's {len(coef)} features have no delays. Next step: fit it on labelled features of "
                "Delayer, or give delays= (and band= of a banded encoder)."
            )
        of = np.array([int(d) for *_, d in labels])
        lags = np.array(list(dict.fromkeys(of.tolist())))
        counts = [int((of == d).sum()) for d in lags]
        if len(set(counts)) > 1:
            raise DataError(f"features differ in their delays: {dict(zip(lags.tolist(), counts))} columns a delay.")
        weights = np.stack([coef[of == d] for d in lags])
    else:
        lags = check_delays(delays)
        if len(coef) % len(lags):
            raise DataError(f"{len(coef)} columns are not {len(lags)} delays of the same features.")
        weights = coef.reshape(len(lags), -1, coef.shape[1])
    order = np.argsort(lags)
    lags, weights = lags[order], weights[order]
    steps = np.unique(np.diff(lags))
    if len(lags) < 2 or len(steps) > 1:
        raise DataError(f"delays {lags.tolist()} are not evenly spaced, or only one: they have no shape.")
    broken = ~np.isfinite(weights).all(axis=(0, 1))
    weights = np.where(broken, 0.0, weights)
    values, vectors = np.linalg.eigh(np.einsum("dfv,efv->vde", weights, weights))
    total = values.sum(axis=1)
    response = vectors[:, :, -1].T
    top = np.abs(response).argmax(axis=0)
    voxels = np.arange(response.shape[1])
    response = response / np.where(total > 0, response[top, voxels], np.nan)
    share = np.divide(values[:, -1], total, out=np.full(len(total), np.nan), where=total > 0)
    place, height = _peak(response, top)
    out = {
        "response": (("delay", "voxel"), response),
        "peak_latency": ("voxel", tr * (lags[0] + steps[0] * place), {"unit": "s"}),
        "width": ("voxel", tr * steps[0] * _width(response, top, height), {"unit": "s"}),
        "separability": ("voxel", share),
    }
    coords = dict(getattr(encoder, "_voxels_", None) or {"voxel": voxels})
    found = xr.Dataset(out, coords={**coords, "delay": lags, "lag": ("delay", tr * lags)})
    return found


def _peak(response: np.ndarray, top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place (steps) and height of the maximum, by a parabola through three values; of an end, the end."""
    last, v = len(response) - 1, np.arange(response.shape[1])
    left, right = response[np.maximum(top - 1, 0), v], response[np.minimum(top + 1, last), v]
    bend = left - 2 * response[top, v] + right
    inside = (top > 0) & (top < last) & (bend < 0)
    shift = np.where(inside, 0.5 * (left - right) / np.where(inside, bend, 1.0), 0.0)
    height = response[top, v] - 0.25 * (left - right) * shift
    return np.where(np.isfinite(height), top + shift, np.nan), height


def _width(response: np.ndarray, top: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Steps between the places on both sides of the maximum where half of it is crossed; NaN where it is not."""
    found, half, last = np.zeros(response.shape[1]), height / 2, len(response) - 1
    for side in (1, -1):
        edge = np.full(response.shape[1], np.nan)
        for step in range(1, len(response)):
            at = top + side * step
            high, low = (np.take_along_axis(response, np.clip(x, 0, last)[None], axis=0)[0] for x in (at - side, at))
            crossed = np.isnan(edge) & (at >= 0) & (at <= last) & (low <= half) & (high > half)
            with np.errstate(divide="ignore", invalid="ignore"):
                edge = np.where(crossed, step - 1 + (high - half) / (high - low), edge)
        # Edges are counted from the largest value, which both sides share.
        found += edge
    return found
