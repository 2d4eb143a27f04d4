"""Support curves: explained variance against the number of support stimuli."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.base import clone

from neuroenc import stats
from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_fraction, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.progress import progress as bar
from neuroenc._core.provenance import provenance
from neuroenc.data import align
from neuroenc.encoders._decode import pairwise_accuracy
from neuroenc.encoders._labels import align_voxels, describe_features, features_matrix, match_features, voxel_coords
from neuroenc.encoders.incontext._selection import chosen_supports, named_selectors, sub_pool_size
from neuroenc.retrieval import SupportSelector


def summarise_curve(
    curve: xr.Dataset,
    *,
    groups: str | None = None,
    normalise: bool = False,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean explained variance per method, group and size, with an interval (`neuroenc.stats.crossed_interval`).

    Parameters
    ----------
    curve : Dataset
        From `support_curve`.
    groups : str, optional
        Voxel coordinate; by default the curve's own, if it has one. All voxels are a group of their own, "all".
    normalise : bool
        Divide the mean over voxels by the mean noise ceiling of the same voxels (those with one above 0).
    n_bootstraps, confidence, seed
        Of the interval.

    Returns
    -------
    DataFrame
        Columns ``method, group, size, explained_variance, low, high, n_voxels, n_draws``; ``cosine``, its mean over
        voxels and draws, where the curve has it; ``select`` behind ``method`` where it has selectors.

    Notes
    -----
    A resample draws voxels with replacement, and draws of the support with replacement, independently of each other;
    queries and trial noise are fixed. The interval is therefore for other voxels like these and other supports, with
    these queries. Voxels that share noise or
    signal vary less among themselves than those of another subject would: for claims about subjects, use one mean a
    subject.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> scores = np.random.default_rng(0).normal(0.2, 0.01, (1, 1, 3, 50))
    >>> curve = xr.Dataset({"explained_variance": (("method", "size", "draw", "voxel"), scores)},
    ...                    coords={"method": ["ridge"], "size": [20]})
    >>> summarise_curve(curve)[["method", "size", "explained_variance"]].round(1).values.tolist()
    [['ridge', 20, 0.2]]
    """
    options: dict[str, Any] = {"n_bootstraps": n_bootstraps, "confidence": confidence, "seed": seed}
    if "select" in curve.dims:
        frames = []
        for name, part in _slices(curve, "select"):
            frames.append(summarise_curve(part, groups=groups, normalise=normalise, **options))
            frames[-1].insert(1, "select", name)
        return pd.concat(frames, ignore_index=True)
    weights = _resamples(curve, n_bootstraps, confidence, seed)
    rows = []
    for group, mask in _groups(curve, groups):
        ceiling = _ceiling(curve, mask) if normalise else None
        for method in curve["method"].values.tolist():
            for size in curve["size"].values.tolist():
                scores = curve["explained_variance"].sel({"method": method, "size": size}).values[:, mask]
                known = np.isfinite(scores).any(axis=0)
                if ceiling is not None:
                    known &= ceiling > 0
                estimate, samples = _means(scores, known, weights, mask, ceiling)
                low, high, _ = _interval(samples, estimate, _sizes(curve, known), confidence)
                row = [method, group, size, estimate, low, high, int(known.sum()), scores.shape[0]]
                if "cosine" in curve:
                    cosines = curve["cosine"].sel({"method": method, "size": size}).values[:, mask]
                    row.append(np.nanmean(cosines) if np.isfinite(cosines).any() else np.nan)
                rows.append(row)
    columns = ["method", "group", "size", "explained_variance", "low", "high", "n_voxels", "n_draws"]
    return pd.DataFrame(rows, columns=columns + ["cosine"] * ("cosine" in curve))


def compare_methods(
    curve: xr.Dataset,
    a: str,
    b: str,
    *,
    along: str = "method",
    groups: str | None = None,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Difference of two methods' mean explained variance, ``a - b``, paired by voxel and draw.

    Parameters
    ----------
    curve : Dataset
        From `support_curve`.
    a, b : str
        Methods, or selectors.
    along : {"method", "select"}
        ``"select"``: two selectors of a curve, with every method; a column ``method`` comes first. Two methods of a
        curve with selectors are compared on the supports of each; a column ``select`` stands behind ``b``.
    groups, n_bootstraps, confidence, seed
        As in `summarise_curve`; voxels and draws are resampled, the same ones for both methods.

    Returns
    -------
    DataFrame
        Columns ``a, b, group, size, difference, low, high, p, relative, relative_low, relative_high, n_voxels``.
        ``relative`` is the difference as a share of b's mean (NaN unless that is positive, in the interval too where
        more than 2.5 % of resamples have none); ``p`` two-sided, and <= 1 - confidence where the interval leaves out 0.

    Raises
    ------
    ConfigError
        A method or selector does not exist.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> scores = np.random.default_rng(0).normal(0.2, 0.01, (2, 1, 3, 50)) + np.reshape([0.1, 0.0], (2, 1, 1, 1))
    >>> curve = xr.Dataset({"explained_variance": (("method", "size", "draw", "voxel"), scores)},
    ...                    coords={"method": ["bayes", "ridge"], "size": [20]})
    >>> table = compare_methods(curve, "bayes", "ridge")
    >>> table[["difference", "relative"]].round(1).values.tolist(), bool(table["p"][0] < 0.01)
    ([[0.1, 0.5]], True)
    """
    options: dict[str, Any] = {"groups": groups, "n_bootstraps": n_bootstraps, "confidence": confidence, "seed": seed}
    one_of("along", along, ("method", "select"))
    if along == "select" and "select" not in curve.dims:
        raise ConfigError("along='select' and the curve has no selectors. Next step: support_curve(select=...).")
    if "select" in curve.dims:
        for name in (a, b):
            one_of(along, name, curve[along].values.tolist())
        frames = []
        for name, part in _slices(curve, "method" if along == "select" else "select"):
            part = part.rename(select="method") if along == "select" else part
            frames.append(compare_methods(part, a, b, **options))
            frames[-1].insert(*((0, "method", name) if along == "select" else (2, "select", name)))
        return pd.concat(frames, ignore_index=True)
    names = curve["method"].values.tolist()
    for name in (a, b):
        one_of("method", name, names)
    weights = _resamples(curve, n_bootstraps, confidence, seed)
    rows = []
    for group, mask in _groups(curve, groups):
        for size in curve["size"].values.tolist():
            pair = [curve["explained_variance"].sel({"method": m, "size": size}).values[:, mask] for m in (a, b)]
            paired = np.isfinite(pair[0]) & np.isfinite(pair[1])
            known = paired.any(axis=0)
            first, second = (_means(np.where(paired, scores, np.nan), known, weights, mask) for scores in pair)
            difference, sizes = first[1] - second[1], _sizes(curve, known)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(second[1] > 0, difference / second[1], np.nan)
            low, high, p = _interval(difference, first[0] - second[0], sizes, confidence)
            relative = (first[0] - second[0]) / second[0] if second[0] > 0 else np.nan
            bounds = np.nan, np.nan
            if np.isnan(share[0]).mean() <= 0.025 and not np.isnan(relative):
                bounds = _interval(share, relative, sizes, confidence)[:2]
            rows.append((a, b, group, size, first[0] - second[0], low, high, p, relative, *bounds, int(known.sum())))
    columns = [
        "a",
        "b",
        "group",
        "size",
        "difference",
        "low",
        "high",
        "p",
        "relative",
        "relative_low",
        "relative_high",
        "n_voxels",
    ]
    return pd.DataFrame(rows, columns=columns)


def _slices(curve: xr.Dataset, dim: str) -> Iterator[tuple[str, xr.Dataset]]:
    """Each label of a dimension, and the curve at it."""
    for name in curve[dim].values.tolist():
        yield name, curve.sel({dim: name}, drop=True)


def _resamples(curve: xr.Dataset, n: int, confidence: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of draws (n, draw) and of voxels (n, voxel)."""
    if "explained_variance" not in curve:
        raise DataError(f"no explained_variance among {sorted(map(str, curve))}. Next step: support_curve.")
    check_whole("n_bootstraps", n, 2)
    check_fraction("confidence", confidence)
    rng = np.random.default_rng([seed, 11])
    draws, voxels = curve.sizes["draw"], curve.sizes["voxel"]
    even = np.full(draws, 1 / draws)
    return rng.multinomial(draws, even, n).astype(np.float64), rng.multinomial(
        voxels, np.full(voxels, 1 / voxels), n
    ).astype(np.float64)


def _groups(curve: xr.Dataset, name: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """All voxels, and each value of the coordinate."""
    yield "all", np.ones(curve.sizes["voxel"], dtype=bool)
    name = name or str(curve.attrs.get("groups", ""))
    if name:
        if name not in curve.coords:
            raise ConfigError(unknown_name("voxel coordinate groups =", name, map(str, curve.coords)))
        labels = curve[name].values.astype(str)
        for value in dict.fromkeys(labels.tolist()):
            yield value, labels == value


def _ceiling(curve: xr.Dataset, mask: np.ndarray) -> np.ndarray:
    if "noise_ceiling" not in curve:
        raise ConfigError("normalise=True needs support_curve(..., noise_ceiling=...).")
    return np.nan_to_num(curve["noise_ceiling"].values[mask])


def _means(
    scores: np.ndarray,
    known: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
    mask: np.ndarray,
    ceiling: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Mean over draws and known voxels, whole and in every resample of both, of draws and of voxels alone (3, n)."""
    if not known.any():
        return np.nan, np.full((3, len(weights[0])), np.nan)
    part = scores[:, known]
    filled, seen = np.nan_to_num(part), np.isfinite(part).astype(np.float64)
    limit = np.ones(part.shape[1]) if ceiling is None else ceiling[known]
    draws, voxels = weights[0], weights[1][:, mask][:, known]
    samples = np.empty((3, len(draws)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, (a, b) in enumerate(((draws, voxels), (draws, np.ones_like(voxels)), (np.ones_like(draws), voxels))):
            samples[k] = ((a @ filled) * b).sum(axis=1) / ((a @ (seen * limit)) * b).sum(axis=1)
    return float(filled.sum() / (seen * limit).sum()), samples


def _sizes(curve: xr.Dataset, known: np.ndarray) -> tuple[int, int]:
    """How many draws and voxels are resampled."""
    return curve.sizes["draw"], int(known.sum())


def _interval(
    samples: np.ndarray, estimate: float, sizes: tuple[int, int], confidence: float
) -> tuple[float, float, float]:
    """Low, high and p; ``samples`` of both kinds, of draws and of voxels (3, n)."""
    if not np.isfinite(samples[0]).any() or max(sizes) < 2:  # one number has no spread
        return np.nan, np.nan, np.nan
    low, high, p = stats.crossed_interval(
        samples[0], estimate, [(samples[1], sizes[0]), (samples[2], sizes[1])], confidence=confidence
    )
    return float(low), float(high), float(p)


def support_draws(
    n: int,
    sizes: Sequence[int],
    n_draws: int,
    *,
    seed: int = 0,
    disjoint: bool = False,
    within: Any = None,
    order: str = "shuffled",
) -> dict[tuple[int, int], np.ndarray]:
    """Draw support rows (size,) for every (size, draw), without replacement.

    A draw's smaller supports are the first stimuli of its larger ones, so that sizes are compared on the same stimuli.

    Parameters
    ----------
    n : int
        Stimuli in the pool.
    sizes : sequence of int
        0, or at least 2.
    n_draws : int
    seed : int
    disjoint : bool
        No two draws share a stimulus, so that they are independent supports.
    within : array (n,) of labels, optional
        Every support holds stimuli of one category only; draws go through the categories with enough of them.
    order : {"shuffled", "time"}
        ``"time"``: the rows of a support in the order of the pool, for methods that follow time.

    Examples
    --------
    >>> draws = support_draws(10, (2, 4), 2, disjoint=True)
    >>> draws[4, 0][:2].tolist() == draws[2, 0].tolist(), len(set(draws[4, 0]) & set(draws[4, 1]))
    (True, 0)
    """
    sizes = [int(s) for s in sizes]
    if not sizes or min(sizes) < 0 or 1 in sizes or len(set(sizes)) < len(sizes) or int(n_draws) < 1:
        raise ConfigError(f"sizes={sizes} must be different, 0 or at least 2, n_draws={n_draws} at least 1.")
    one_of("order", order, ("shuffled", "time"))
    if max(sizes) > n:
        raise ConfigError(
            f"size {max(sizes)} of a pool of {n} stimuli. Next step: sizes={tuple(s for s in sizes if s <= n)}."
        )
    pools = [np.arange(n)] if within is None else _categories(within, n, max(sizes))
    found = {}
    for draw in range(int(n_draws)):
        pool, turn = pools[draw % len(pools)], draw // len(pools)
        if disjoint and (turn + 1) * max(sizes) > len(pool):
            raise ConfigError(
                f"{n_draws} disjoint draws of {max(sizes)} stimuli, of a pool of {len(pool)}. Next step: at most "
                f"{len(pool) // max(sizes) * len(pools)} draws, or smaller sizes."
            )
        keys = [seed, draw % len(pools)] if disjoint else [seed, draw]
        whole = np.random.default_rng(keys).permutation(len(pool))[turn * max(sizes) if disjoint else 0 :]
        for size in sizes:
            rows = pool[whole[:size]]
            found[size, draw] = np.sort(rows) if order == "time" else rows
    return found


def _categories(within: Any, n: int, least: int) -> list[np.ndarray]:
    """Rows of each category that has enough stimuli."""
    labels = np.asarray(getattr(within, "values", within)).astype(str)
    if labels.shape != (n,):
        raise DataError(f"within has shape {labels.shape}; expected one category for each of {n} stimuli.")
    rows = {label: np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())}
    enough = [r for r in rows.values() if len(r) >= least]
    if not enough:
        most = max(rows.items(), key=lambda item: len(item[1]))
        raise ConfigError(
            f"no category of {sorted(rows)} has {least} stimuli; {most[0]!r} has {len(most[1])}. Next step: smaller "
            "sizes, or coarser categories."
        )
    return enough


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
    disjoint: bool = False,
    within: Any = None,
    order: str = "shuffled",
    select: Mapping[str, SupportSelector] | Sequence[str] | None = None,
    select_pool: float = 0.5,
    select_batch: int | None = None,
    groups: str | None = None,
    noise_ceiling: Any = None,
    reference: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Support curve: explained variance on queries by method, support size, draw and voxel.

    Every method sees the same support of a draw.

    Parameters
    ----------
    methods : mapping of name to encoder
        Estimators with ``fit(X, Y)`` and ``predict(X)``, scikit-learn's too; cloned for every fit.
    X, Y : arrays (n, feature), (n, voxel)
        Pool that supports are drawn from; NaN responses are left to the methods.
    X_query, Y_query : arrays (q, feature), (q, voxel)
        Queries; a NaN response does not count. Labelled pool and queries must not share stimuli; labelled voxels are
        put in the order of Y.
    sizes, n_draws, seed, disjoint, within, order
        See `support_draws`. At size 0 only methods that know other subjects have a score; the others' is NaN.
    select : mapping of name to SupportSelector, or sequence of names, optional
        Beside supports that are drawn ("random", always there), those that selectors choose; names as `make_selector`
        takes them. The curve then has a dimension ``select`` behind ``method``. Not with ``within``.
    select_pool : float
        Share of the pool, drawn anew for each draw, that selectors choose from and random supports are drawn from: the
        same stimuli for all, so that draws differ and selectors are compared within each. At 1, draws differ for
        selectors that are random only.
    select_batch : int, optional
        Closed loop: selectors are asked for that many stimuli at a time, given the responses to those before. By
        default for the whole support at once, without responses.
    groups : str, optional
        Voxel coordinate by which `summarise_curve` groups, such as ``"roi"``.
    noise_ceiling : array (voxel,), optional
        Share of the queries' variance that is signal; kept beside the scores.
    reference : array (feature, voxel), optional
        Weights of encoders of these voxels that saw all trials; those of the supports are among them, so that methods
        of the reference's kind are nearer to it than others that predict as well.
    progress : bool

    Returns
    -------
    Dataset
        ``explained_variance`` (method, size, draw, voxel), ``1 - Var(y - yhat) / Var(y)``; ``pairwise`` (method, size,
        draw), the share of pairs of queries that all voxels tell apart (chance .5; see `neuroenc.encoders.identify`);
        ``noise_ceiling`` (voxel,) if given; ``cosine`` (method, size, draw, voxel) of a method's weights with those of
        ``reference``, NaN for methods without weights; the voxels' coordinates. With ``select``, (method, select, size,
        draw, voxel).

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

    Stimuli that are chosen, beside random ones:

    >>> options = {"sizes": (20,), "n_draws": 2, "select": ["v-optimal"]}
    >>> curve = support_curve({"ridge": RidgeEncoder()}, X, X @ W, Q, Q @ W, **options)
    >>> curve["select"].values.tolist()
    ['random', 'v-optimal']
    """
    if not methods:
        raise ConfigError("methods is empty. Next step: {'ridge': RidgeEncoder()}.")
    for name, method in methods.items():
        if isinstance(method, type) or not hasattr(method, "get_params"):
            raise ConfigError(f"method {name!r} is {method!r}; expected an estimator, such as RidgeEncoder().")
    X_query = match_features(describe_features(X), X_query, "query features")
    Y_query = align_voxels(Y_query, Y, "query responses")
    _check_apart(X, Y, X_query, Y_query)
    values, query = np.asarray(features_matrix(X)), np.asarray(features_matrix(X_query))
    responses, measured = as_numpy(Y, "responses"), as_numpy(Y_query, "query responses").astype(np.float64)
    _check_shapes(values, responses, query, measured)
    layout: dict[str, Any] = {"disjoint": disjoint, "order": order}
    draws = _supports(values, responses, sizes, n_draws, seed, within, layout, select, select_pool, select_batch)
    selectors = list(dict.fromkeys(name for name, _, _ in draws))
    aims = None if reference is None else np.asarray(features_matrix(reference), dtype=np.float64)
    if aims is not None and aims.shape != (values.shape[1], responses.shape[1]):
        raise DataError(f"reference has shape {aims.shape}; expected {(values.shape[1], responses.shape[1])}.")
    names = [str(name) for name in methods]
    scores = np.full((len(names), len(selectors), len(sizes), n_draws, responses.shape[1]), np.nan)
    cosines, pairwise = np.full_like(scores, np.nan), np.full(scores.shape[:-1], np.nan)
    jobs = [
        (m, c, s, d)
        for s in range(len(sizes))
        for d in range(n_draws)
        for c in range(len(selectors))
        for m in range(len(names))
    ]
    for m, c, s, d in bar(jobs, desc="support curve", show=progress):
        name, size = names[m], int(sizes[s])
        rows = draws[selectors[c], size, d]
        try:
            encoder = clone(methods[name])
            if not size and not getattr(encoder, "fits_without_trials", False):
                continue
            predicted = encoder.fit(_rows(X, values, rows), _rows(Y, responses, rows)).predict(X_query)
            coef = getattr(encoder, "coef_", None)
        except Exception as error:
            error.add_note(f"while method {name!r} was fitted to {size} support stimuli, draw {d}")
            raise
        guess = np.asarray(features_matrix(predicted), dtype=np.float64)
        if guess.shape != measured.shape or not np.isfinite(guess).all():
            raise DataError(
                f"method {name!r}, {size} support stimuli, draw {d}: predictions have shape {guess.shape}, "
                f"{int((~np.isfinite(guess)).sum())} of them not finite; expected {measured.shape}, all finite."
            )
        scores[m, c, s, d] = stats.explained_variance(measured, guess)
        pairwise[m, c, s, d] = pairwise_accuracy(guess, measured)
        if aims is not None and coef is not None:
            cosines[m, c, s, d] = _cosines(np.asarray(coef, dtype=np.float64).reshape(aims.shape), aims)
    voxels = voxel_coords(Y) or {"voxel": ("voxel", np.arange(responses.shape[1]))}
    if groups is not None and groups not in voxels:
        raise ConfigError(unknown_name("voxel coordinate groups =", groups, voxels))
    dims = ("method", "select", "size", "draw", "voxel")
    data: dict[str, Any] = {"explained_variance": (dims, scores), "pairwise": (dims[:-1], pairwise)}
    if aims is not None:
        data["cosine"] = (dims, cosines)
    if noise_ceiling is not None:
        if isinstance(noise_ceiling, xr.DataArray) and noise_ceiling.dims == ("voxel",):
            limit = noise_ceiling.expand_dims("stimulus")
            noise_ceiling = as_numpy(align_voxels(limit, Y, "noise ceiling"))[0]
        ceiling = np.asarray(noise_ceiling, dtype=np.float64)
        if ceiling.shape != (responses.shape[1],):
            raise DataError(f"noise_ceiling has shape {ceiling.shape}; expected ({responses.shape[1]},).")
        data["noise_ceiling"] = ("voxel", ceiling)
    labels = {
        "method": names,
        "select": selectors,
        "size": [int(s) for s in sizes],
        "draw": np.arange(n_draws),
        **voxels,
    }
    attrs = {
        "metric": "ev",
        "groups": groups or "",
        "n_query": len(query),
        "n_pool": len(values),
        "seed": seed,
        **{name: int(value) if isinstance(value, bool) else value for name, value in layout.items()},
        "provenance": provenance(curve="support", seed=seed, methods=names, **layout),
    }
    if select is not None:
        return xr.Dataset(
            data, coords=labels, attrs=attrs | {"select_pool": select_pool, "select_batch": select_batch or 0}
        )
    return xr.Dataset(data, coords=labels, attrs=attrs).isel(select=0, drop=True)


def _supports(
    values: np.ndarray,
    responses: np.ndarray,
    sizes: Sequence[int],
    n_draws: int,
    seed: int,
    within: Any,
    layout: Mapping[str, Any],
    select: Mapping[str, SupportSelector] | Sequence[str] | None,
    share: float,
    batch: int | None,
) -> dict[tuple[str, int, int], np.ndarray]:
    """Rows by selector, size and draw; "random" are the beginnings of a draw, whose sub-pool the others choose from."""
    if select is None:
        draws = support_draws(len(values), sizes, n_draws, seed=seed, within=within, **layout)
        return {("random", size, draw): rows for (size, draw), rows in draws.items()}
    if within is not None:
        raise ConfigError("select and within: selectors choose over all categories. Next step: one of the two.")
    selectors = named_selectors(select)
    most = sub_pool_size(len(values), share, sizes)
    every = list(dict.fromkeys([*map(int, sizes), most]))
    draws = support_draws(len(values), every, n_draws, seed=seed, **layout)
    found = {("random", size, draw): draws[size, draw] for size in map(int, sizes) for draw in range(n_draws)}
    for draw in range(n_draws):
        pool = np.sort(draws[most, draw])
        for name, selector in selectors.items():
            rows = chosen_supports(selector, values[pool], responses[pool], list(map(int, sizes)), batch)
            for size, chosen in rows.items():
                found[name, size, draw] = pool[np.sort(chosen) if layout["order"] == "time" else chosen]
    return found


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each column; NaN where one is zero."""
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.divide((a * b).sum(axis=0), lengths, out=np.full(a.shape[1], np.nan), where=lengths > 0)


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
