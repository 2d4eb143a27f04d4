"""Stacked regression: a convex combination of the predictions of single feature spaces, for every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from sklearn.utils.validation import check_is_fitted

from neuroenc._core.checks import check_fraction, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory, voxel_blocks
from neuroenc._core.progress import progress
from neuroenc.encoders import _labels
from neuroenc.encoders.linear import _solvers
from neuroenc.encoders.linear._bands import BandsEncoder
from neuroenc.encoders.linear._ridge import RidgeEncoder


def simplex_weights(gram: Any) -> np.ndarray:
    r"""Weights of the convex combination of smallest squared error, for many voxels at once.

    .. math:: \min_{w} \; w^\top G w \quad \text{subject to} \quad w \ge 0, \; \sum_k w_k = 1

    where ``G[k, l]`` is the sum of products of the errors of predictions k and l. Solved exactly by an active set:
    predictions enter one at a time while that lowers the error, and leave where their weight would fall below zero.
    Of predictions that err alike each has the same weight.

    Parameters
    ----------
    gram : array (..., k, k)
        Positive semi-definite.

    Returns
    -------
    ndarray (..., k), float64
        Not negative, sums 1.

    Raises
    ------
    DataError
        Another shape, or values that are not finite.

    References
    ----------
    Wolfe (1976), Math. Program. 11:128. Breiman (1996), Mach. Learn. 24:49.

    Examples
    --------
    >>> simplex_weights([[1.0, 0.0], [0.0, 3.0]]).round(6).tolist()   # independent errors: weights go by precision
    [0.75, 0.25]
    >>> simplex_weights([[1.0, 1.5], [1.5, 3.0]]).tolist()   # the second adds nothing to the first
    [1.0, 0.0]
    """
    G = np.asarray(gram, dtype=np.float64)
    if G.ndim < 2 or G.shape[-1] != G.shape[-2] or not G.shape[-1] or not np.isfinite(G).all():
        raise DataError(f"gram has shape {G.shape}; legal are finite matrices (..., k, k).")
    k = G.shape[-1]
    shape, G = G.shape[:-1], G.reshape(-1, k, k)
    size = np.einsum("vkk->v", G) / k
    # The ridge splits the weight of predictions that err alike; it changes others by less than anything measures.
    G = G / np.where(size > 0, size, 1.0)[:, None, None] + 1e-10 * np.eye(k)
    first = np.einsum("vkk->vk", G).argmin(axis=1)
    w = np.eye(k)[first]
    inside, open_ = w > 0, np.arange(len(G))
    for _ in range(100 * k):
        if not len(open_):
            break
        own, kept = G[open_], inside[open_]
        both = kept[:, :, None] & kept[:, None, :]
        z = np.linalg.solve(np.where(both, own, np.eye(k)), kept[..., None].astype(np.float64))[..., 0]
        z = np.where(kept, z / z.sum(axis=1, keepdims=True), 0.0)
        below = kept & (z < 0)
        at = w[open_]
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(below, at / (at - z), np.inf).min(axis=1)
        moved = at + np.minimum(step, 1.0)[:, None] * (z - at)
        leaves = below & (moved <= 1e-14)
        moved[leaves] = 0.0
        slope = np.einsum("vkl,vl->vk", own, moved)
        value = np.einsum("vk,vk->v", slope, moved)
        whole = ~below.any(axis=1)
        enters = np.where(kept, np.inf, slope).argmin(axis=1)
        rows = np.arange(len(open_))
        better = whole & ~kept.all(axis=1) & (slope[rows, enters] < value * (1 - 1e-12) - 1e-15)
        kept = kept & ~leaves
        kept[rows[better], enters[better]] = True
        w[open_], inside[open_] = moved, kept
        open_ = open_[~whole | better]
    return (w / w.sum(axis=1, keepdims=True)).reshape(shape)


def layer_interval(early: Any, late: Any, share: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """First and last layer that a voxel needs, from scores of stacks that grow from either end.

    The last layer ends the shortest stack from the first layer on that keeps ``share`` of the score of all layers;
    the first begins the shortest stack up to the last one that does.

    Parameters
    ----------
    early : array (layer, ...)
        R2 of the layers up to this one.
    late : array (layer, ...)
        R2 of this layer and all behind it.
    share : float

    Returns
    -------
    first, last : ndarray (...), int
        -1 where all layers together have no R2 above 0. First behind last: either stack is enough, the layers hold
        the same.

    References
    ----------
    Lin, Naselaris, Kay & Wehbe (2024), NeuroImage 298:120772.

    Examples
    --------
    >>> first, last = layer_interval([[0.1], [0.5], [0.5]], [[0.5], [0.49], [0.2]])   # the second layer of three
    >>> first.tolist(), last.tolist()
    ([1], [1])
    """
    check_fraction("share", share)
    early, late = np.asarray(early, dtype=np.float64), np.asarray(late, dtype=np.float64)
    if early.shape != late.shape or not early.ndim or not len(early):
        raise DataError(f"early {early.shape} and late {late.shape} differ; legal is one shape (layer, ...) for both.")
    whole = early[-1]
    last = (early >= share * whole).argmax(axis=0)
    first = len(late) - 1 - (late[::-1] >= share * whole).argmax(axis=0)
    none = ~(whole > 0)
    return np.where(none, -1, first), np.where(none, -1, last)


@dataclass(eq=False, repr=False)
class StackedEncoder(BandsEncoder):
    r"""Stacked ridge regression: a convex combination of ridge predictions of single feature spaces ("bands").

    .. math:: \hat y_v = \sum_k \pi_{kv} (X_k w_{kv} + b_{kv}), \qquad
              \pi_v = \arg\min_{\pi \in \text{simplex}} \sum_i \Big(y_{iv} - \sum_k \pi_k \hat y_{kiv}\Big)^2

    Ridge is fitted on every space by itself, with a penalty of its own for every voxel; the weights are learned on
    predictions of the rows that each fold of ``cv`` leaves out, never on rows that a prediction was fitted on. Spaces
    are trained one by one, so that memory and time grow with their number, not with their sum as in banded ridge; but
    what a space adds to the others is only seen through these predictions.

    Parameters
    ----------
    alphas : array-like (a,), optional
        As in `RidgeEncoder`; by default each space has a grid of its own scale.
    bands : array-like (feature,), optional
        As in `BandedRidgeEncoder`.
    cv : int, str, splitter or iterable
        Folds, as in `RidgeEncoder`. They choose the penalties and give the predictions that the weights are learned
        on.
    fit_intercept, standardise, solver, max_memory, n_jobs, device, progress
        As in `RidgeEncoder`; predictions of the folds are made on the processor.

    Attributes
    ----------
    coef_, intercept_
        Of the combination; the rows of ``coef_`` are the bands' features one after another.
    bands_ : ndarray of str (feature,)
    band_names_ : ndarray of str (band,)
    weights_ : ndarray (band, voxel)
        Weight of each space: not negative, sums 1.
    band_coef_ : ndarray (feature, voxel)
        Weights of the single spaces' ridge.
    band_intercept_ : ndarray (band, voxel)
    alpha_ : ndarray (band, voxel)
    gram_ : ndarray (voxel, band, band)
        Sums of products of the errors of the spaces' out-of-fold predictions.
    band_score_ : ndarray (band, voxel)
        Out-of-fold R2 of each space alone.
    best_score_ : ndarray (voxel,)
        Out-of-fold R2 of the combination; a little optimistic, because penalties and weights were chosen by it.

    References
    ----------
    Wolpert (1992), Neural Networks 5:241. Breiman (1996), Mach. Learn. 24:49. Lin, Naselaris, Kay & Wehbe (2024),
    Stacked regressions and structured variance partitioning for interpretable brain maps, NeuroImage 298:120772.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import StackedEncoder
    >>> rng = np.random.default_rng(0)
    >>> X = {"vision": rng.standard_normal((300, 8)), "language": rng.standard_normal((300, 40))}
    >>> y = X["vision"] @ rng.standard_normal((8, 2)) + rng.standard_normal((300, 2))
    >>> encoder = StackedEncoder().fit(X, y)
    >>> encoder.weights_.shape, bool((encoder.weights_[0] > 0.9).all())
    ((2, 2), True)
    """

    scoring = "r2"  # of the errors that the weights are learned on; no setting

    alphas: Any = None
    _: KW_ONLY
    bands: Any = None
    cv: Any = 5
    fit_intercept: bool = True
    standardise: bool = False
    solver: str = "auto"
    max_memory: str | int | None = None
    n_jobs: int | None = None
    device: str = "cpu"
    progress: bool = False

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit ridge on every space, then learn the weights on out-of-fold predictions.

        Parameters
        ----------
        X : mapping of name to array (n, feature_k), sequence of such arrays, or one array (n, feature)
        y : array (n, voxel) or (n,)
            As in `RidgeEncoder`.
        groups : array (n,), optional
            As in `RidgeEncoder`.
        """
        parts, values, Y, dtype, folds = self._prepare(X, y, groups)
        # Folds are decided; rows need no labels any more, which would be checked against them once for every space.
        own = Y.drop_vars([k for k, c in Y.coords.items() if Y.dims[0] in c.dims]) if isinstance(Y, xr.DataArray) else Y
        names = self.band_names_.astype(str).tolist()
        settings = {k: getattr(self, k) for k in ("fit_intercept", "solver", "max_memory", "n_jobs", "device")}
        self.band_coef_ = np.empty((len(self.bands_), own.shape[1]), dtype=dtype)
        spaces, offsets, penalties = [], [], []
        for name in progress(names, desc="stacking", show=self.progress, unit="space"):
            columns = self.bands_ == name
            x = values[:, columns].astype(dtype)
            mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
            if self.standardise:
                mean, scale = _labels.feature_scaling(x, None if parts is None else parts[name])
                x = ((x - mean) / scale).astype(dtype)
            ridge = RidgeEncoder(self.alphas, cv=folds, **settings).fit(x, own)
            coef = (ridge.coef_ / scale[:, None]).astype(dtype)
            self.band_coef_[columns] = coef
            offsets.append(ridge.intercept_ - mean @ coef)
            penalties.append(ridge.alpha_)
            spaces.append(x)
        self.band_intercept_, self.alpha_ = np.stack(offsets).astype(dtype), np.stack(penalties)
        total = self._errors(spaces, own, folds, dtype)
        self.weights_ = simplex_weights(self.gram_).T
        self.coef_, self.intercept_ = self._combined(self.weights_)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.band_score_ = 1 - np.einsum("vkk->kv", self.gram_) / total
            self.best_score_ = 1 - _quadratic(self.weights_, self.gram_) / total
        return self

    def _errors(self, spaces: list[np.ndarray], Y: Any, folds: Any, dtype: np.dtype) -> np.ndarray:
        """Fill ``gram_`` from the predictions of the rows that the folds leave out; their total variance (voxel,)."""
        k, v = len(spaces), Y.shape[1]
        self.gram_ = np.zeros((v, k, k))
        sums = np.zeros((2, v))
        n = max(sum(map(len, fold)) for fold in folds)
        widest = max(x.shape[1] for x in spaces)
        blocks = voxel_blocks(v, 8 * (3 * n + k * n + 2 * widest), parse_memory(self.max_memory) // 2, 1, most=2048)
        for train, test in folds:
            designs = [
                _solvers.make_design(x[train], (), center=self.fit_intercept, dtype=dtype, solver=self.solver)
                for x in spaces
            ]
            bases = [design.full_basis() for design in designs]
            for block in blocks:
                y = _labels.column_block(Y, block)
                centred, mean, exponent = _solvers.center_block(y[train], self.fit_intercept, dtype)
                held = y[test].astype(np.float64)
                errors = np.empty((k, *held.shape))
                for j, (design, basis) in enumerate(zip(designs, bases)):
                    coef = _solvers.solve_block(design, basis, centred, self.alpha_[j, block])
                    coef, intercept = design.raw_weights(coef, mean, exponent)
                    errors[j] = held - (spaces[j][test] @ coef + intercept)
                self.gram_[block] += np.einsum("knv,lnv->vkl", errors, errors, optimize=True)
                sums[0, block] += held.sum(axis=0)
                sums[1, block] += (held**2).sum(axis=0)
        return sums[1] - sums[0] ** 2 / sum(len(test) for _, test in folds)

    def _combined(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (feature, voxel) and intercept (voxel,) of the spaces' ridge under these weights."""
        band = (self.bands_[:, None] == self.band_names_.astype(str)).argmax(axis=1)
        own = weights.astype(self.band_coef_.dtype)
        return self.band_coef_ * own[band], (self.band_intercept_ * own).sum(axis=0)

    def subset_weights(self, bands: Sequence[str]) -> np.ndarray:
        """Weights (band, voxel) of the stack of some spaces alone, zero for the others; nothing is fitted again.

        Parameters
        ----------
        bands : sequence of str

        Raises
        ------
        ConfigError
            No band, or an unknown one.
        """
        check_is_fitted(self)
        names = self.band_names_.astype(str).tolist()
        at = [names.index(one_of("band", str(name), names)) for name in bands]
        if not at:
            raise ConfigError(f"a stack needs one band at least; legal are {', '.join(names)}.")
        out = np.zeros(self.weights_.shape)
        out[at] = simplex_weights(self.gram_[:, at][:, :, at]).T
        return out

    def structured_partition(self, X: Any, y: Any, order: Sequence[str] = (), share: float = 0.95) -> xr.Dataset:
        """Structured variance partitioning: which of an ordered series of spaces (layers) a voxel needs.

        Stacks of the layers up to each one, and of each layer and all behind it, are compared with the stack of all.
        Weights of every stack come from the out-of-fold predictions of the fit.

        Parameters
        ----------
        X, y
            As in `fit`; rows that the encoder was not fitted on.
        order : sequence of str
            Names of the layers from early to late; default: all, in the order of the fit.
        share : float
            Of the R2 of all layers, that a stack must keep to count as enough.

        Returns
        -------
        Dataset
            ``early``, ``late`` and ``alone`` (layers, voxel), R2 of the layers up to this one, from this one on, and of
            this one; ``weight`` (layers, voxel) in the stack of all; ``first`` and ``last`` (voxel), names of the
            layers between which the voxel lies, "" where all layers together predict nothing; ``redundant`` (voxel),
            where ``first`` comes behind ``last``: either end alone is enough.

        Raises
        ------
        ConfigError
            Fewer than two layers, or an unknown one.

        References
        ----------
        Lin, Naselaris, Kay & Wehbe (2024), NeuroImage 298:120772.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> layers = {f"block{k}": rng.standard_normal((300, 5)) for k in range(3)}
        >>> y = layers["block1"] @ rng.standard_normal((5, 2)) + rng.standard_normal((300, 2))
        >>> encoder = StackedEncoder().fit({k: x[:200] for k, x in layers.items()}, y[:200])
        >>> found = encoder.structured_partition({k: x[200:] for k, x in layers.items()}, y[200:])
        >>> found["first"].values.tolist(), found["last"].values.tolist()
        (['block1', 'block1'], ['block1', 'block1'])
        """
        check_is_fitted(self)
        names = self.band_names_.astype(str).tolist()
        order = [one_of("band in order:", str(name), names) for name in order or names]
        if len(order) < 2 or len(set(order)) < len(order):
            raise ConfigError(f"order takes two different bands at least; found {order}, legal are {', '.join(names)}.")
        predicted, measured = self.single_predictions(X, y)
        errors = measured - predicted
        gram = np.einsum("knv,lnv->vkl", errors, errors, optimize=True)
        total = ((measured - measured.mean(axis=0)) ** 2).sum(axis=0)
        stacks = ordered_stacks(order)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = {name: 1 - _quadratic(self.subset_weights(stack), gram) / total for name, stack in stacks.items()}
        at = [names.index(name) for name in order]
        alone = 1 - np.einsum("vkk->kv", gram)[at] / total
        whole = self.subset_weights(order)[at]
        out = partition_dataset(order, r2, alone, whole, share)
        voxels = self._voxels_ or {"voxel": np.arange(measured.shape[1])}
        return self._placed(out.assign_coords(voxels), metric="r2", n_stimuli=len(measured))

    def single_predictions(self, X: Any, y: Any = None) -> Any:
        """Predictions of each space's own ridge (band, row, voxel), float64; with ``y`` also the measured responses."""
        values = self._check_predict(X).astype(np.float64)
        found = np.empty((len(self.band_names_), len(values), self.band_coef_.shape[1]))
        for j, name in enumerate(self.band_names_):
            columns = self.bands_ == name
            found[j] = values[:, columns] @ self.band_coef_[columns] + self.band_intercept_[j]
        if y is None:
            return found
        source, shape = self._label_source(X), found.shape[1:]
        measured = _labels.measured_responses(source, y, shape, self._voxels_, self._space_)
        return found, measured.astype(np.float64)


def ordered_stacks(order: Sequence[str]) -> dict[str, list[str]]:
    """Stacks that grow from either end of a series, by name: "early:LAYER" up to it, "late:LAYER" from it on."""
    found = {f"early:{name}": list(order[: k + 1]) for k, name in enumerate(order)}
    return found | {f"late:{name}": list(order[k:]) for k, name in enumerate(order)}


def partition_dataset(
    order: Sequence[str], r2: Mapping[str, np.ndarray], alone: np.ndarray, weight: np.ndarray, share: float
) -> xr.Dataset:
    """Structured partition from R2 (voxel,) of every stack of `ordered_stacks`."""
    early, late = (np.stack([r2[f"{end}:{name}"] for name in order]) for end in ("early", "late"))
    first, last = layer_interval(early, late, share)
    names = np.array([*order, ""])
    dims = ("layers", "voxel")
    return xr.Dataset(
        {
            "early": (dims, early),
            "late": (dims, late),
            "alone": (dims, alone),
            "weight": (dims, weight),
            "first": ("voxel", names[first]),
            "last": ("voxel", names[last]),
            "redundant": ("voxel", first > last),
        },
        coords={"layers": list(order)},
        attrs={"share": share},
    )


def _quadratic(weights: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Squared error (voxel,) of combinations ``weights`` (band, voxel)."""
    return np.einsum("kv,vkl,lv->v", weights, gram, weights, optimize=True)
