"""Several feature spaces: variance partitioning over their subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import clone

from neuroenc import stats
from neuroenc._core.arrays import as_numbers
from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance
from neuroenc.data import align
from neuroenc.encoders._folds import check_groups, resolve_folds
from neuroenc.encoders._labels import features_matrix, sample_coords, voxel_coords
from neuroenc.encoders.linear._banded import BandedRidgeEncoder
from neuroenc.encoders.linear._bands import BandsEncoder
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
