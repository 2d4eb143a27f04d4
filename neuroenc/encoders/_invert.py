"""Features of a seen stimulus from its response, by the posterior of a linear encoder, and others like it in a bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data, retrieval
from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.topk import BestRows
from neuroenc.encoders._decode import METRICS, centred_rows
from neuroenc.encoders._labels import align_voxels, features_matrix, sample_coords, voxel_coords
from neuroenc.encoders._noise import NoiseCovariance, refuse_voxels

_ROWS = 4096  # of a bank, at a time


def decode_features(
    encoder: Any,
    measured: Any,
    features: Any,
    *,
    noise: NoiseCovariance,
    std: Any = None,
    shrinkage: float | None = None,
) -> xr.Dataset:
    r"""Decode the features of seen stimuli: posterior mean under a linear encoder and a Gaussian prior of features.

    .. math:: y = W^\top x + b + \epsilon, \qquad \epsilon \sim N(0, \Sigma), \qquad x \sim N(m, C)

    .. math:: E[x \mid y] = m + P\, W \Sigma^{-1} (y - W^\top m - b), \qquad P = (C^{-1} + W \Sigma^{-1} W^\top)^{-1}

    Whatever the features are of (an image model, captions), the decoded ones are compared with those of candidates by
    `identify`, or searched for in a bank with `neuroenc.retrieval.DenseIndex`.

    Parameters
    ----------
    encoder : LinearEncoder
        Fitted: ridge, empirical-Bayes ridge, an in-context encoder (any with ``to_linear``).
    measured : array (trial, voxel)
        Responses to decode, of stimuli that the encoder was not fitted on.
    features : array (stimulus, feature)
        Features of many stimuli, in the encoder's space, whose mean and covariance are the prior.
    noise : NoiseCovariance
        From residuals of other trials.
    std : array (stimulus, voxel), optional
        Standard deviation of a response to each of ``features``, from ``predict(features, return_std=True)`` of an
        encoder that knows how uncertain its weights are: their mean square takes the place of the noise variances.
    shrinkage : float, optional
        Of the covariance of the features; default: Ledoit-Wolf.

    Returns
    -------
    Dataset
        ``features (trial, feature)``, the posterior mean; ``prior_mean`` and ``sd (feature)``, posterior standard
        deviation; ``resolved (feature)``, the share of a feature's variance that the responses resolve.

    Raises
    ------
    DataError
        Features of another width, other voxels, voxels that are not finite.

    References
    ----------
    Naselaris, Prenger, Kay, Oliver & Gallant (2009), Neuron 63:902. Yu et al. (2026), BrainCoDec, arXiv:2604.08537 (the
    inversion of in-context encoders of a new subject).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((220, 6)), rng.standard_normal((6, 30))
    >>> Y = X @ W + rng.standard_normal((220, 30))
    >>> encoder = RidgeEncoder().fit(X[:200], Y[:200])
    >>> noise = NoiseCovariance.fit(Y[:200] - encoder.predict(X[:200]))
    >>> found = decode_features(encoder, Y[200:], X[:200], noise=noise)
    >>> bool(np.corrcoef(found["features"].values.ravel(), X[200:].ravel())[0, 1] > 0.9)
    True
    """
    coef, intercept = encoder.to_linear()
    bank = np.asarray(as_numpy(features_matrix(features), "features"), dtype=np.float64)
    if bank.shape[1] != coef.shape[0]:
        raise DataError(f"features have width {bank.shape[1]}, the encoder {coef.shape[0]}. Next step: its own space.")
    trials = align_voxels(measured, coef, "measured responses")
    y = as_numpy(trials, "measured").astype(np.float64)
    if y.ndim != 2 or y.shape[1] != coef.shape[1]:
        raise DataError(f"measured has shape {y.shape}; legal is (trial, {coef.shape[1]} voxels of the encoder).")
    refuse_voxels(~(np.isfinite(y).all(axis=0) & np.isfinite(coef.values).all(axis=0)), voxel_coords(coef), "responses")
    noise = noise.like(coef)
    if std is not None:
        spread = as_numpy(align_voxels(std, coef, "std"), "std").astype(np.float64)
        noise = noise.with_sd(np.sqrt((spread**2).mean(axis=0)))
    mean, varies = bank.mean(axis=0), np.ptp(bank, axis=0) > 0
    if len(bank) < 3 or not varies.any():
        raise DataError(
            f"{len(bank)} rows of features, {int(varies.sum())} of {len(varies)} of them vary, give no prior; at least "
            "3 rows and 1 that varies. Next step: features of more pictures, such as those of the fit."
        )
    prior = NoiseCovariance.fit(bank[:, varies], shrinkage=shrinkage)
    # In the units of the prior's own white noise: y = z M + b.
    M = prior.colour(np.eye(int(varies.sum()))) @ noise.whiten(coef.values[varies])
    offset = noise.whiten(y - (mean @ coef.values + intercept.values))
    if len(M) <= M.shape[1]:
        factor = np.linalg.cholesky(np.eye(len(M)) + M @ M.T)
        z = np.linalg.solve(factor.T, np.linalg.solve(factor, M @ offset.T)).T
        left = (prior.colour(np.linalg.inv(factor)) ** 2).sum(axis=0)
    else:
        inner = np.eye(M.shape[1]) + M.T @ M
        z = np.linalg.solve(inner, offset.T).T @ M.T
        turned = prior.colour(M.T)
        left = prior.sd**2 - np.einsum("vp,vp->p", turned, np.linalg.solve(inner, turned))
    found, variance = np.tile(mean, (len(y), 1)), np.zeros(len(mean))
    found[:, varies] += prior.colour(z)
    variance[varies] = np.maximum(left, 0.0)
    resolved = np.zeros(len(mean))
    resolved[varies] = 1 - variance[varies] / prior.sd**2
    dim = str(trials.dims[0]) if isinstance(trials, xr.DataArray) else "trial"
    names = {k: (dim, v) for k, v in sample_coords(trials).items()}
    parts = {"prior_mean": mean, "sd": np.sqrt(variance), "resolved": resolved}
    return xr.Dataset(
        {"features": ((dim, "feature"), found), **{k: ("feature", v) for k, v in parts.items()}},
        coords={**names, "feature": np.arange(len(mean))},
    )


def retrieve(
    encoder: Any,
    measured: Any,
    bank: Any,
    *,
    k: int = 10,
    metric: str = "correlation",
    noise: NoiseCovariance | None = None,
    shown: Any = None,
) -> xr.Dataset:
    r"""Retrieve from a large bank the stimuli whose predicted responses are most like the measured ones.

    The stimulus that was shown need not be in the bank. With its features ``shown``, each retrieved stimulus is
    compared with it in feature space, by the cosine around the mean of the bank, against that of all rows of the bank.

    Parameters
    ----------
    encoder : LinearEncoder
        Fitted.
    measured : array (trial, voxel)
    bank : array (n, feature), DataArray, path, or bank
        Features in the encoder's space, as `neuroenc.retrieval.as_bank` takes them; read and predicted in parts.
    k : int
    metric : {"correlation", "likelihood", "cosine"}
        As in `identify`.
    noise : NoiseCovariance, optional
        As in `identify`.
    shown : array (trial, feature), optional
        Features of the stimuli that were shown; labelled ones are matched to the trials by stimulus.

    Returns
    -------
    Dataset (trial, place)
        ``retrieved``, ids of the bank, the best first; ``score``; with ``shown`` ``similarity`` and ``percentile``, the
        share of the bank that is less similar to the stimulus shown (chance .5), and ``chance (trial)``, the mean
        similarity of the bank.

    Raises
    ------
    DataError
        Widths or voxels that do not fit, fewer rows in the bank than ``k``, a bank that can be read once only.

    References
    ----------
    Kay, Naselaris, Prenger & Gallant (2008), Nature 452:352. Naselaris et al. (2009), Neuron 63:902.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((210, 6)), rng.standard_normal((6, 30))
    >>> Y = X @ W + rng.standard_normal((210, 30))
    >>> encoder = RidgeEncoder().fit(X[:200], Y[:200])
    >>> found = retrieve(encoder, Y[200:], rng.standard_normal((1000, 6)), k=5, shown=X[200:])
    >>> bool(found["percentile"].mean() > 0.9), bool(abs(found["chance"].mean()) < 0.1)
    (True, True)
    """
    k = check_whole("k", k)
    metric = one_of("metric", metric, METRICS)
    source = retrieval.as_bank(bank).again("a bank to retrieve from is read more than once")
    coef, intercept = encoder.to_linear()
    if source.width != len(coef):
        raise DataError(f"the bank has width {source.width}, the encoder {len(coef)}. Next step: its own space.")
    trials = align_voxels(measured, coef, "measured responses")
    y = as_numpy(trials, "measured").astype(np.float64)
    refuse_voxels(~np.asarray(np.isfinite(y).all(axis=0)), voxel_coords(coef), "measured responses")
    noise = None if noise is None else noise.like(coef)
    white = y if noise is None else noise.whiten(y)
    unit = metric != "likelihood"
    query = centred_rows(white, metric) if unit else np.c_[white, np.ones(len(white))]
    best = BestRows(query, k, source.n, normalise=False)
    weights, offset = coef.values.astype(np.float64), intercept.values.astype(np.float64)
    mean, n = np.zeros(len(weights)), 0
    for chunk in source.chunks(_ROWS, len(weights)):
        rows = np.asarray(chunk.rows, dtype=np.float64)
        mean, n = mean + rows.sum(axis=0), n + len(rows)
        predicted = rows @ weights + offset
        predicted = predicted if noise is None else noise.whiten(predicted)
        if unit:
            found = centred_rows(predicted, metric)
        else:
            # y.f - |f|^2 / 2 as one inner product
            found = np.c_[predicted, -0.5 * np.einsum("nv,nv->n", predicted, predicted)]
        best.update(chunk._replace(rows=found))
    score, index = best.finish()
    dim = str(trials.dims[0]) if isinstance(trials, xr.DataArray) else "trial"
    out = xr.Dataset(
        {
            "retrieved": ((dim, "place"), source.names(index.ravel()).reshape(index.shape)),
            "score": ((dim, "place"), score),
        },
        coords={**{c: (dim, v) for c, v in sample_coords(trials).items()}, "place": np.arange(1, k + 1)},
    )
    if shown is None:
        return out
    like = _centred_unit(_shown_features(shown, trials, len(y), len(weights)), mean / n)
    picked = np.unique(index)
    held = np.concatenate([_centred_unit(c.rows, mean / n) for c in source.take(picked)])
    similarity = np.einsum("tp,tkp->tk", like, held[np.searchsorted(picked, index)])
    less, total = np.zeros(index.shape), np.zeros(len(y))
    for chunk in source.chunks(_ROWS):
        other = like @ _centred_unit(chunk.rows, mean / n).T
        total += other.sum(axis=1)
        less += (other[:, None, :] < similarity[..., None] - 1e-9).sum(axis=2)
    parts = {"similarity": similarity, "percentile": less / max(n - 1, 1)}
    return out.assign({c: ((dim, "place"), v) for c, v in parts.items()} | {"chance": (dim, total / n)})


def _centred_unit(rows: Any, mean: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64) - mean
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(size > 0, size, 1.0))


def _shown_features(shown: Any, trials: Any, n: int, width: int) -> np.ndarray:
    if isinstance(shown, xr.DataArray) and isinstance(trials, xr.DataArray):
        shown = data.match(shown, trials)
    values = np.asarray(as_numpy(features_matrix(shown), "shown"), dtype=np.float64)
    if values.shape != (n, width):
        raise ConfigError(f"shown has shape {values.shape}; legal is ({n} trials, {width} features).")
    return values
