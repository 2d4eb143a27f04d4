"""How explained variance grows with the number of support stimuli, for several methods on the same draws."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import clone

from neuroenc import stats
from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.progress import progress as bar
from neuroenc._core.provenance import provenance
from neuroenc.data import align
from neuroenc.encoders._labels import (
    describe_features,
    features_matrix,
    match_features,
    match_voxels,
    space_of,
    voxel_coords,
)

__all__ = ["support_curve", "support_draws"]


def support_draws(
    n: int, sizes: Sequence[int], n_draws: int, *, seed: int = 0, nested: bool = True
) -> dict[tuple[int, int], np.ndarray]:
    """Rows (size,) of every (size, draw), without replacement.

    Parameters
    ----------
    n : int
        Stimuli in the pool.
    sizes : sequence of int
    n_draws : int
    seed : int
    nested : bool
        A draw's smaller supports are the first stimuli of its larger ones, so that sizes are compared on the same
        stimuli; else every size draws anew.

    Examples
    --------
    >>> draws = support_draws(10, (2, 4), 1)
    >>> draws[4, 0][:2].tolist() == draws[2, 0].tolist()
    True
    """
    sizes = [int(s) for s in sizes]
    if not sizes or min(sizes) < 2 or len(set(sizes)) < len(sizes) or int(n_draws) < 1:
        raise ConfigError(f"sizes={sizes} must be different and at least 2, n_draws={n_draws} at least 1.")
    if max(sizes) > n:
        raise ConfigError(
            f"size {max(sizes)} of a pool of {n} stimuli. Next step: sizes={tuple(s for s in sizes if s <= n)}."
        )
    found = {}
    for draw in range(int(n_draws)):
        whole = np.random.default_rng([seed, draw]).permutation(n)
        for size in sizes:
            order = whole if nested else np.random.default_rng([seed, draw, size]).permutation(n)
            found[size, draw] = order[:size]
    return found


def support_curve(
    methods: Mapping[str, Any],
    X: Any,
    Y: Any,
    X_query: Any,
    Y_query: Any,
    *,
    sizes: Sequence[int] = (20, 50, 100, 200, 500),
    n_draws: int = 5,
    seed: int = 0,
    nested: bool = True,
    groups: str | None = None,
    noise_ceiling: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Explained variance on the queries of every method, size, draw and voxel.

    Every method sees the same support of a draw.

    Parameters
    ----------
    methods : mapping of name to encoder, or to callable that returns one
        Encoders have ``fit(X, Y)`` and ``predict(X)``; those of scikit-learn are cloned for every fit. A callable may
        take the support size.
    X, Y : arrays (n, feature), (n, voxel)
        Pool that supports are drawn from; NaN responses are left to the methods.
    X_query, Y_query : arrays (q, feature), (q, voxel)
        Queries; a NaN response does not count. Labelled pool and queries must not share stimuli; labelled voxels are
        put in the order of Y.
    sizes, n_draws, seed, nested
        See `support_draws`.
    groups : str, optional
        Voxel coordinate by which `summarise_curve` groups, such as ``"roi"``.
    noise_ceiling : array (voxel,), optional
        Share of the queries' variance that is signal; kept beside the scores.
    progress : bool

    Returns
    -------
    Dataset
        ``explained_variance`` (method, size, draw, voxel), ``1 - Var(y - yhat) / Var(y)``; ``noise_ceiling`` (voxel,)
        if given; the voxels' coordinates.

    Raises
    ------
    ConfigError, DataError
        Sizes beyond the pool, shapes that do not agree, stimuli in both pool and queries, predictions that are not
        finite. What a method raises is passed on, with its name, size and draw as a note.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X, Q, W = rng.standard_normal((90, 8)), rng.standard_normal((50, 8)), rng.standard_normal((8, 6))
    >>> curve = support_curve({"ridge": RidgeEncoder()}, X, X @ W, Q, Q @ W, sizes=(20, 80), n_draws=2)
    >>> dict(curve.sizes)
    {'method': 1, 'size': 2, 'draw': 2, 'voxel': 6}
    """
    if not methods:
        raise ConfigError("methods is empty. Next step: {'ridge': RidgeEncoder()}.")
    X_query = match_features(describe_features(X), X_query, "query features")
    Y_query = match_voxels(voxel_coords(Y), space_of(Y), Y_query, "query responses")
    _check_apart(X, Y, X_query, Y_query)
    values, query = np.asarray(features_matrix(X)), np.asarray(features_matrix(X_query))
    responses, measured = as_numpy(Y, "responses"), as_numpy(Y_query, "query responses").astype(np.float64)
    _check_shapes(values, responses, query, measured)
    draws = support_draws(len(values), sizes, n_draws, seed=seed, nested=nested)
    names = [str(name) for name in methods]
    scores = np.full((len(names), len(sizes), n_draws, responses.shape[1]), np.nan)
    jobs = [(m, s, d) for s in range(len(sizes)) for d in range(n_draws) for m in range(len(names))]
    for m, s, d in bar(jobs, desc="support curve", show=progress):
        name, size = names[m], int(sizes[s])
        rows = draws[size, d]
        try:
            encoder = _make(methods[name], size)
            predicted = encoder.fit(_rows(X, values, rows), _rows(Y, responses, rows)).predict(X_query)
        except Exception as error:
            error.add_note(f"while method {name!r} was fitted to {size} support stimuli, draw {d}")
            raise
        guess = np.asarray(features_matrix(predicted), dtype=np.float64)
        if guess.shape != measured.shape or not np.isfinite(guess).all():
            raise DataError(
                f"method {name!r}, {size} support stimuli, draw {d}: predictions have shape {guess.shape}, "
                f"{int((~np.isfinite(guess)).sum())} of them not finite; expected {measured.shape}, all finite."
            )
        scores[m, s, d] = stats.explained_variance(measured, guess)
    voxels = voxel_coords(Y) or {"voxel": ("voxel", np.arange(responses.shape[1]))}
    if groups is not None and groups not in voxels:
        raise ConfigError(unknown_name("voxel coordinate groups =", groups, voxels))
    dims = ("method", "size", "draw", "voxel")
    data: dict[str, Any] = {"explained_variance": (dims, scores)}
    if noise_ceiling is not None:
        if isinstance(noise_ceiling, xr.DataArray) and noise_ceiling.dims == ("voxel",):
            limit = noise_ceiling.expand_dims("stimulus")
            noise_ceiling = as_numpy(match_voxels(voxel_coords(Y), space_of(Y), limit, "noise ceiling"))[0]
        ceiling = np.asarray(noise_ceiling, dtype=np.float64)
        if ceiling.shape != (responses.shape[1],):
            raise DataError(f"noise_ceiling has shape {ceiling.shape}; expected ({responses.shape[1]},).")
        data["noise_ceiling"] = ("voxel", ceiling)
    labels = {"method": names, "size": [int(s) for s in sizes], "draw": np.arange(n_draws), **voxels}
    attrs = {
        "metric": "ev",
        "groups": groups or "",
        "n_query": len(query),
        "n_pool": len(values),
        "seed": seed,
        "nested": int(nested),
        "provenance": provenance(curve="support", seed=seed, nested=nested, methods=names),
    }
    return xr.Dataset(data, coords=labels, attrs=attrs)


def _make(method: Any, size: int) -> Any:
    """A fresh encoder: a clone, what a callable returns, or a copy by the class's own means."""
    if hasattr(method, "fit") and not isinstance(method, type):
        return clone(method)
    if not callable(method):
        raise ConfigError(f"{method!r} is neither an encoder with fit and predict nor a callable that returns one.")
    return method(size) if _takes_size(method) else method()


def _takes_size(method: Callable[..., Any]) -> bool:
    if isinstance(method, type):
        return False
    needed = [
        p
        for p in inspect.signature(method).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 1


def _rows(source: Any, values: np.ndarray, rows: np.ndarray) -> Any:
    """Rows of labelled arrays with their labels; of all others as numpy."""
    return source[rows] if isinstance(source, xr.DataArray) else values[rows]


def _check_apart(X: Any, Y: Any, X_query: Any, Y_query: Any) -> None:
    for a, b in ((X, Y), (X_query, Y_query)):
        if isinstance(a, xr.DataArray) and isinstance(b, xr.DataArray):
            align(a, b)
    if all(isinstance(a, xr.DataArray) and "stimulus" in a.coords for a in (X, X_query)):
        both = np.intersect1d(X["stimulus"].values, X_query["stimulus"].values)
        if len(both):
            raise DataError(f"{len(both)} stimuli are in the pool and among the queries (first: {both[0]!r}).")


def _check_shapes(X: np.ndarray, Y: np.ndarray, X_query: np.ndarray, Y_query: np.ndarray) -> None:
    good = X.ndim == Y.ndim == X_query.ndim == Y_query.ndim == 2
    good = good and len(X) == len(Y) and len(X_query) == len(Y_query)
    if not good or X.shape[1] != X_query.shape[1] or Y.shape[1] != Y_query.shape[1]:
        raise DataError(
            f"shapes do not agree: pool {X.shape} and {Y.shape}, queries {X_query.shape} and {Y_query.shape}; "
            "expected (n, feature), (n, voxel), (q, feature), (q, voxel)."
        )
