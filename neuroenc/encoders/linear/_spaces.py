"""Several feature spaces: variance partitioning over their subsets, and the best of them for every voxel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import clone

from neuroenc import stats
from neuroenc._core.arrays import as_numbers, as_numpy
from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance
from neuroenc.data import align
from neuroenc.encoders._folds import check_groups, resolve_folds
from neuroenc.encoders._labels import align_voxels, features_matrix, sample_coords, voxel_coords
from neuroenc.encoders.linear._banded import BandedRidgeEncoder
from neuroenc.encoders.linear._bands import BandsEncoder
from neuroenc.encoders.linear._ridge import RidgeEncoder
from neuroenc.stats import partition_variance

# Between the names of a joint space, as `stats.partition_variance` writes them.
_AND = " & "


def nested_gammas(n_bands: int, n_candidates: int = 50, seed: int = 0) -> np.ndarray:
    """Band weights (candidate, band) under which joint models contain the models of their parts.

    The uniform weighting of every subset of the bands comes first (single bands among them), then Dirichlet draws.
    A joint model may thus leave out what does not help, and falls below its parts by chance only.

    Parameters
    ----------
    n_candidates : int
        In all; at least the ``2 ** n_bands - 1`` subsets are given.
    seed : int
        Of the Dirichlet draws.

    Returns
    -------
    ndarray (candidate, band)
        Rows sum to 1; for ``BandedRidgeEncoder(gammas=...)``.

    Examples
    --------
    >>> nested_gammas(2, 3).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    """
    check_whole("n_bands", n_bands)
    check_whole("n_candidates", n_candidates)
    rows = []
    for chosen in stats.subsets([str(k) for k in range(n_bands)]):
        row = np.zeros(n_bands)
        row[[int(k) for k in chosen]] = 1.0 / len(chosen)
        rows.append(row)
    rng = make_rng(seed)
    while len(rows) < n_candidates and n_bands > 1:
        rows.append(rng.dirichlet(np.full(n_bands, (0.3, 1.0)[len(rows) % 2])))
    return np.array(rows)


def check_spaces(features: Any, Y: Any, least: int, most: int, what: str) -> tuple[dict[str, np.ndarray], Any]:
    """Feature spaces as matrices of equal length in the order of the responses, and the first as it came."""
    if not isinstance(features, Mapping):
        raise DataError(f"{what} must be a mapping {{name: features}}; found {type(features).__name__}.")
    if not least <= len(features) <= most:
        raise ConfigError(
            f"got {len(features)} {what} ({', '.join(map(str, features)) or 'none'}); legal are {least} to {most}."
        )
    if len({str(name) for name in features}) < len(features):
        raise ConfigError(f"names of {what} must be distinct; found {list(map(str, features))}.")
    matrices: dict[str, np.ndarray] = {}
    labelled = [part for part in features.values() if isinstance(part, xr.DataArray) and "stimulus" in part.coords]
    for name, part in features.items():
        if isinstance(part, xr.DataArray) and isinstance(Y, xr.DataArray):
            align(part, Y)
        elif isinstance(part, xr.DataArray) and "stimulus" in part.coords:
            align(part, labelled[0])
        values = as_numbers(features_matrix(part), f"features {name!r}")
        if values.ndim != 2 or len(values) != Y.shape[0]:
            raise DataError(
                f"{name!r} of the {what} has shape {values.shape}; expected ({Y.shape[0]}, n_features): one row for "
                "each row of the responses. Next step: neuroenc.data.match(features, responses)."
            )
        if not np.isfinite(values).all():
            raise DataError(f"{name!r} of the {what} holds NaN or infinity.")
        matrices[str(name)] = values
    return matrices, next(iter(labelled), next(iter(features.values())))


def as_responses(Y: Any) -> Any:
    """Responses with two dimensions; labelled ones stay labelled."""
    if isinstance(Y, xr.DataArray):
        voxel_coords(Y)  # raises where voxels are not the second dimension
        return Y if Y.ndim == 2 else Y.expand_dims("voxel", axis=1)
    values = as_numbers(Y, "responses")
    return values[:, None] if values.ndim == 1 else values


def block(Y: Any, rows: np.ndarray) -> Any:
    """Some rows of the responses, labels kept."""
    return Y[rows] if not isinstance(Y, xr.DataArray) else Y.isel({Y.dims[0]: rows})


def _groups(coords: dict[str, np.ndarray], groups: Any, n: int) -> np.ndarray | None:
    """What the bootstrap resamples: repeats of a stimulus stay together."""
    if groups is not None:
        return np.asarray(groups)
    return coords.get("stimulus") if len(coords.get("stimulus", ())) == n else None


def variance_partition(
    features: Mapping[str, Any],
    Y: Any,
    *,
    encoder: Any = None,
    cv: Any = 5,
    groups: Any = None,
    metric: str = "r2",
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    tolerance: float = 0.01,
    seed: int = 0,
    max_memory: str | int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Variance partitioning: unique and shared variance of 2 or 3 feature spaces per voxel, out of fold.

    For every non-empty subset T of the spaces an encoder is fitted on the training rows of each fold and predicts
    the rows left out; f(T) is the score of all these predictions, and

    .. math:: C(S) = \sum_{T \subseteq S} (-1)^{|T| + 1} f(T \cup S^c)

    is what exactly the spaces S hold (`neuroenc.stats.partition_variance`, which says what biases it). Penalties are
    chosen inside the training rows. Joint models are banded, with the models of their parts among the candidates.

    Parameters
    ----------
    features : mapping {name: array (n, feature)}
        Two or three feature spaces, rows in the order of Y.
    Y : array (n, voxel)
        Responses; z-scored or not.
    encoder : encoder, optional
        Cloned for every subset and fold; a `BandedRidgeEncoder` or `StackedEncoder` is fitted on a mapping of the
        subset's spaces, any other on their columns side by side. Default ``BandedRidgeEncoder`` with `nested_gammas`.
    cv, groups
        Outer folds, as in `RidgeEncoder`.
    metric : {"r2", "ev"}
        Shares of variance; correlations do not add.
    n_bootstraps : int
        Resamples of the stimuli for intervals of the parts; 0 for none. Encoders are not fitted again, so that this
        is the uncertainty from the stimuli scored, not from training.
    confidence : float
    tolerance : float
        Joint scores that fall below a part's by more are flagged, and shared parts below minus this.
    seed : int
    max_memory : str or int, optional
        Of the fits and of the resamples, beside one prediction (float32) of Y for every subset.
    progress : bool

    Returns
    -------
    Dataset
        ``score`` (subset, voxel); ``share`` (part, voxel), with ``low``, ``high`` and two-sided ``p`` where
        bootstrapped; ``overfitted`` and ``suppressed`` (voxel). Subsets and parts are named "a", "b", "a & b".

    Raises
    ------
    DataError, ConfigError
        Spaces that do not fit the responses, a number of spaces other than 2 or 3, metric "r".

    References
    ----------
    de Heer et al. (2017), J. Neurosci. 37:6539. Nunez-Elizalde, Huth & Gallant (2019), NeuroImage 197:482.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((2, 300, 5))
    >>> y = a @ rng.standard_normal((5, 2)) + 0.5 * rng.standard_normal((300, 2))   # only the first space
    >>> out = variance_partition({"a": a, "b": b}, y, n_bootstraps=100)
    >>> bool((out.share.sel(part="a") > 0.8).all()), bool((abs(out.share.sel(part="b")) < 0.05).all())
    (True, True)
    """
    one_of("metric", metric, ("r2", "ev"), "Correlations do not add up over feature spaces.")
    Y = as_responses(Y)
    spaces, first = check_spaces(features, Y, 2, 3, "feature spaces")
    if any(_AND in name for name in spaces):
        raise ConfigError(f"names of feature spaces must not contain {_AND!r}; found {list(spaces)}.")
    coords = sample_coords(Y, first)
    groups = check_groups(groups, Y.shape[0], coords)
    folds = resolve_folds(cv, Y.shape[0], coords, groups)
    tested = left_out_rows(folds, Y.shape[0])
    measured = np.asarray(Y)[tested]
    predictions = {}
    total = len(stats.subsets(spaces)) * len(folds)
    with progress_bar(total=total, desc="variance partition", show=progress, unit="fit") as bar:
        for subset in stats.subsets(spaces):
            predicted = np.full(Y.shape, np.nan, dtype=np.float32)
            for train, test in folds:
                model, pick = _model(encoder, {k: spaces[k] for k in subset}, max_memory)
                fit_inside(model, pick(train), block(Y, train), None if groups is None else groups[train])
                predicted[test] = np.asarray(model.predict(pick(test))).reshape(len(test), -1)
                bar.update(1)
            predictions[subset] = predicted[tested]
    estimate = {k: stats.score(measured, v, metric) for k, v in predictions.items()}
    out = _dataset(partition_variance(estimate, spaces, unit=metric, tolerance=tolerance), estimate, Y)
    if n_bootstraps:
        unit, budget = _groups(coords, groups, Y.shape[0]), parse_memory(max_memory)
        of_units = None if unit is None else unit[tested]
        resampler = stats.Resampler(
            n_bootstraps, groups=of_units, confidence=confidence, seed=seed, max_memory=max(1, budget // 4)
        )
        _add_intervals(out, measured, predictions, metric, resampler, budget)
    settings = {"spaces": list(spaces), "metric": metric, "seed": seed, "n_bootstraps": n_bootstraps}
    out.attrs |= {"metric": metric, "n_stimuli": len(measured), "split": "out of fold", "confidence": confidence}
    return out.assign_attrs(provenance=provenance(method="variance_partition", **settings))


def left_out_rows(folds: Any, n: int) -> np.ndarray:
    """Rows that some fold leaves out; an error where one is left out twice."""
    count = np.zeros(n, dtype=int)
    for _, test in folds:
        count[test] += 1
    if count.max() > 1:
        raise ConfigError(
            f"{int((count > 1).sum())} rows are tested in several folds; give folds that test every row once at most."
        )
    return np.flatnonzero(count)


def fit_inside(model: Any, X: Any, Y: Any, groups: np.ndarray | None) -> Any:
    """Fit on training rows; inner folds of a plain number keep the outer groups together too."""
    if groups is not None and isinstance(getattr(model, "cv", None), (int, np.integer)):
        model.set_params(cv=int(min(model.cv, len(np.unique(groups)))))
        return model.fit(X, Y, groups)
    return model.fit(X, Y)


def _model(encoder: Any, spaces: dict[str, np.ndarray], max_memory: Any) -> tuple[Any, Any]:
    """An unfitted encoder of these spaces, and what picks its rows."""
    if encoder is None:
        gammas = nested_gammas(len(spaces), 20 if len(spaces) == 2 else 35)
        model: Any = BandedRidgeEncoder(gammas=gammas, max_memory=max_memory)
    else:
        model = clone(encoder)
    if isinstance(model, BandsEncoder):
        given = getattr(model, "gammas", None)
        if given is not None and np.shape(given)[-1] != len(spaces):
            raise ConfigError(
                f"the encoder's gammas are for {np.shape(given)[-1]} bands, but subsets hold 1 to 3. "
                "Next step: leave gammas out (and give n_candidates), or leave encoder out."
            )
        return model, lambda rows: {k: v[rows] for k, v in spaces.items()}
    joined = np.concatenate(list(spaces.values()), axis=1)
    return model, lambda rows: joined[rows]


def _dataset(found: stats.Partition, estimate: Any, Y: Any) -> xr.Dataset:
    return xr.Dataset(
        {
            "score": (("subset", "voxel"), np.stack(list(estimate.values()))),
            "share": (("part", "voxel"), np.stack(list(found.parts.values()))),
            "overfitted": ("voxel", found.overfitted),
            "suppressed": ("voxel", found.suppressed),
        },
        coords={
            "subset": [_AND.join(s) for s in estimate],
            "part": [_AND.join(s) for s in found.parts],
            **(voxel_coords(Y) or {"voxel": np.arange(Y.shape[1])}),
        },
    )


def _add_intervals(
    out: xr.Dataset, measured: np.ndarray, predictions: Any, metric: str, resampler: stats.Resampler, budget: int
) -> None:
    """Intervals and p-values of the parts; all subsets see the same resamples."""
    n, v = measured.shape
    limits, p = np.full((2, *out["share"].shape), np.nan), np.full(out["share"].shape, np.nan)
    width = max(1, budget // 2 // (8 * (4 * len(predictions) * (resampler.n_bootstraps + n) + 2 * n)))
    for start in range(0, v, width):
        at = slice(start, min(start + width, v))
        y = measured[:, at]
        samples = {name: resampler.samples(y, x[:, at], metric=metric)[1] for name, x in predictions.items()}
        seen = resampler.units(y, next(reversed(predictions.values()))[:, at])
        for k, drawn in enumerate(partition_variance(samples, max(predictions, key=len)).parts.values()):
            limits[0, k, at], limits[1, k, at], p[k, at] = stats.sample_interval(
                drawn, out["share"].values[k, at], n_units=seen, confidence=resampler.confidence
            )
    out["low"], out["high"] = (("part", "voxel"), limits[0]), (("part", "voxel"), limits[1])
    out["p"] = (("part", "voxel"), p)


def _inner_scores(model: Any, x: np.ndarray, Y: Any, cv: Any, groups: np.ndarray | None, metric: str) -> np.ndarray:
    """Mean score over inner folds of the training rows, one number per voxel."""
    folds = resolve_folds(cv, len(x), sample_coords(Y), groups)
    total = np.zeros(Y.shape[1])
    for train, test in folds:
        inner = clone(model)
        fit_inside(inner, x[train], block(Y, train), None if groups is None else groups[train])
        predicted = np.asarray(inner.predict(x[test]), dtype=np.float64).reshape(len(test), -1)
        # A prediction without variance has no correlation, and has predicted nothing.
        total += np.nan_to_num(stats.score(np.asarray(block(Y, test)), predicted, metric), nan=0.0)
    return total / len(folds)


def _over(Y: Any, per: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What turns scores per voxel into the scores that the choice is made by."""
    v = Y.shape[1]
    if isinstance(per, str):
        known = [str(k) for k in Y.coords if Y.coords[k].dims == ("voxel",)] if isinstance(Y, xr.DataArray) else []
        one_of("per", per, ("voxel", "all", *known), "Next step: label the voxels, or give labels.")
        if per == "voxel":
            return lambda s: s
        if per == "all":
            return lambda s: np.full(v, s.mean())
        labels = Y.coords[per].values
    else:
        if isinstance(per, xr.DataArray) and per.dims == ("voxel",):
            per = align_voxels(per.expand_dims("row"), Y, "labels")[0]
        labels = as_numpy(per, "labels")
    if labels.shape != (v,):
        raise DataError(f"per has shape {labels.shape}; give one label for each of the {v} voxels.")
    names, member = np.unique(labels.astype(str), return_inverse=True)
    size = np.bincount(member, minlength=len(names))
    return lambda s: (np.bincount(member, weights=s, minlength=len(names)) / size)[member]


def select_features(
    candidates: Mapping[str, Any],
    Y: Any,
    *,
    encoder: Any = None,
    cv: Any = 5,
    inner_cv: Any = 5,
    groups: Any = None,
    metric: str = "r",
    per: Any = "voxel",
    progress: bool = False,
) -> xr.Dataset:
    r"""Select the best layer or backbone of every voxel by nested cross-validation.

    In outer fold k candidate c gets the score :math:`g_{kc}` from the training rows alone (inner folds); the
    winner predicts the rows left out, and only that prediction is scored:

    .. math:: s_v = mean_k\; score(y_k, \hat y_k^{(c^*_{kv})}), \quad c^*_{kv} = \arg\max_c g_{kcv}

    No row takes part in a choice that it scores, so ``score`` is unbiased however many candidates there are, for the
    procedure "choose, then fit" (not for one fixed candidate). The largest outer score over candidates, ``naive``, is
    biased upwards; it is returned to show by how much.

    Parameters
    ----------
    candidates : mapping {name: array (n, feature)}
        Features of each layer or backbone, rows in the order of Y; maps are flattened.
    Y : array (n, voxel)
    encoder : encoder, optional
        Cloned for every candidate and fold; default `RidgeEncoder`, which chooses its penalty on the training
        rows that it is given.
    cv : int, str, splitter or iterable
        Outer folds, as in `RidgeEncoder`.
    inner_cv : int, str or splitter
        Inner folds, made anew from the training rows.
    groups : array (n,), optional
        Rows of a group stay together, in outer and inner folds.
    metric : {"r", "r2", "ev"}
        Mean over outer folds; where a prediction does not vary r is 0. (Correlating the predictions of all folds at
        once is biased downwards in noise: a fold's training mean is low where the rows left out are high.)
    per : {"voxel", "all"}, name of a coordinate of the voxels, or array (voxel,)
        The choice is made for each voxel, for all, or by the mean score of the voxels of one label (an ROI).
    progress : bool

    Returns
    -------
    Dataset
        ``score`` (voxel), unbiased; ``chosen`` (fold, voxel), names; ``selected`` (voxel), the candidate chosen in
        most folds, and ``agreement`` (voxel), in what share of them; ``candidate_score`` (candidate, voxel), outer
        scores of each; ``inner_score`` (candidate, voxel), what the choice saw, mean over folds; ``naive`` (voxel);
        ``predicted`` (row, voxel), the winners' predictions, NaN for rows never left out.

    Raises
    ------
    DataError, ConfigError
        Features that do not fit the responses, an unknown setting, outer folds with fewer than 3 rows for "r".

    References
    ----------
    Varma & Simon (2006), BMC Bioinformatics 7:91. Cawley & Talbot (2010), JMLR 11:2079.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> layers = {f"layer{k}": rng.standard_normal((200, 6)) for k in range(3)}
    >>> y = layers["layer1"] @ rng.standard_normal((6, 4)) + rng.standard_normal((200, 4))
    >>> out = select_features(layers, y)
    >>> out.selected.values.tolist(), bool((out.score > 0.6).all())
    (['layer1', 'layer1', 'layer1', 'layer1'], True)
    """
    one_of("metric", metric, ("r", "r2", "ev"))
    Y = as_responses(Y)
    spaces, first = check_spaces(candidates, Y, 1, 10_000, "candidates")
    if not isinstance(inner_cv, (int, np.integer, str)) and not hasattr(inner_cv, "split"):
        raise ConfigError(
            "inner_cv must be a number, a coordinate's name or a splitter: a list of splits cannot be reused inside "
            "the outer folds."
        )
    pool = _over(Y, per)
    n, v = Y.shape
    coords = sample_coords(Y, first)
    groups = check_groups(groups, n, coords)
    folds = resolve_folds(cv, n, coords, groups)
    left_out_rows(folds, n)
    least = min(len(test) for _, test in folds)
    if least < 3:
        raise ConfigError(f"an outer fold has {least} rows; scores are means over folds and need 3 in each.")
    base = RidgeEncoder(scoring=metric) if encoder is None else encoder
    names = list(spaces)
    inner, outer = np.zeros((len(names), v)), np.zeros((len(names), v))
    score, chosen = np.zeros(v), np.zeros((len(folds), v), dtype=int)
    predicted = np.full((n, v), np.nan, dtype=np.float32)
    with progress_bar(total=len(folds) * len(names), desc="selection", show=progress, unit="candidate") as bar:
        for k, (train, test) in enumerate(folds):
            held, trained = np.asarray(block(Y, test)), block(Y, train)
            of_train = None if groups is None else groups[train]
            best, at_best = np.full(v, -np.inf), np.zeros(v)
            for c, name in enumerate(names):
                x = spaces[name]
                model = fit_inside(clone(base), x[train], trained, of_train)
                found = _inner_scores(base, x[train], trained, inner_cv, of_train, metric)
                guess = np.asarray(model.predict(x[test]), dtype=np.float64).reshape(len(test), -1)
                reached = stats.score(held, guess, metric)
                if metric == "r":
                    reached[np.isnan(reached) & ~np.isnan(stats.score(held, guess, "ev"))] = 0.0
                inner[c] += found / len(folds)
                outer[c] += reached / len(folds)
                by = pool(found)
                better = by > best
                best[better], at_best[better], chosen[k, better] = by[better], reached[better], c
                predicted[np.ix_(test, better)] = guess[:, better]
                bar.update(1)
            score += at_best / len(folds)
    votes = np.stack([(chosen == c).sum(axis=0) for c in range(len(names))])
    # Of candidates with equally many folds, the one that the training rows scored higher.
    modal = np.lexsort((inner, votes), axis=0)[-1]
    labels = np.array(names, dtype=object).astype(str)
    made = {"metric": metric, "candidates": names, "per": per if isinstance(per, str) else "labels"}
    attrs = {"metric": metric, "split": "nested cross-validation", "n_stimuli": n, "n_folds": len(folds)}
    row = str(Y.dims[0]) if isinstance(Y, xr.DataArray) else "presentation"
    rows = {k: (row, c.values) for k, c in Y.coords.items() if c.dims == (row,)} if isinstance(Y, xr.DataArray) else {}
    return xr.Dataset(
        {
            "score": ("voxel", score),
            "chosen": (("fold", "voxel"), labels[chosen]),
            "selected": ("voxel", labels[modal]),
            "agreement": ("voxel", votes.max(axis=0) / len(chosen)),
            "candidate_score": (("candidate", "voxel"), outer),
            "inner_score": (("candidate", "voxel"), inner),
            "naive": ("voxel", outer.max(axis=0)),
            "predicted": ((row, "voxel"), predicted),
        },
        coords={"candidate": labels, **rows, **(voxel_coords(Y) or {"voxel": np.arange(v)})},
        attrs={**attrs, "provenance": provenance(method="select_features", **made)},
    )
