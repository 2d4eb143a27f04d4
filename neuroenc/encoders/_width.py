"""How wide a layer must be read: scores by layer and number of dimensions, and the cheapest that keep a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_fraction, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._depth import group_curves
from neuroenc.encoders._probes import Responses, read_layers, read_targets, scaled, shuffled_folds
from neuroenc.encoders.comparison._statistics import Group, _median, find_groups, limits
from neuroenc.encoders.linear._reduce import fit_reduction

#: Ways to take fewer dimensions of a layer.
WIDTHS = ("pca", "prefix")


def check_dims(dims: Sequence[int], reduce: str) -> list[int]:
    """Numbers of dimensions, rising, each once."""
    one_of("reduce", reduce, WIDTHS)
    if isinstance(dims, (str, int)) or not len(dims):
        raise ConfigError(f"dims={dims!r} is not legal; give one or more numbers of dimensions, such as [16, 64, 256].")
    found = [check_whole("dims", d) for d in dims]
    if sorted(set(found)) != found:
        raise ConfigError(f"dims={found} must rise. Next step: dims={sorted(set(found))}.")
    return found


def widths(A: np.ndarray, T: np.ndarray, dims: Sequence[int], reduce: str, seed: int) -> list[tuple[Any, Any]]:
    """Training and test rows at each number of dimensions; a narrower layer is read whole.

    Components are those of the training rows, found once for the largest number, of which the others are the first.
    """
    if reduce == "pca":
        made = fit_reduction(A, "pca", min(max(dims), A.shape[1]), seed=seed)
        A, T = made.apply(A), made.apply(T)
    return [(A[:, :d], T[:, :d]) for d in dims]


def layer_dim_sweep(
    features_by_layer: Mapping[str, Any],
    targets: Any,
    *,
    dims: Sequence[int],
    reduce: str = "pca",
    probe: str = "ridge",
    cv: Any = 5,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Score by layer, number of dimensions, and concept or voxel and region, on rows that were left out.

    Parameters
    ----------
    features_by_layer, targets, probe, cv, n_bootstraps, seed
        As in `concept_depth`.
    dims : sequence of int
        Numbers of dimensions, rising. A layer of fewer is read whole.
    reduce : {"pca", "prefix"}
        "pca": the first principal components of the standardised features, found on the training rows of each fold.
        "prefix": the first features, of spaces whose first dimensions are spaces of their own.

    Returns
    -------
    Dataset
        ``score`` (layer, dim, voxel or target); ``inner_score`` and ``fold_score`` (fold, layer, dim, ...) of each
        fold: by cross-validation inside its training rows, and on the rows that it left out. Of responses also
        ``region_score, region_low, region_high`` (layer, dim, region), medians over voxels with 95 % intervals over
        stimuli; of labels ``region`` is the target. For `cheapest` and `neuroenc.report.plot_layer_dims`.

    Raises
    ------
    ConfigError
        ``dims`` do not rise, or an option is unknown.
    DataError
        As `concept_depth`; "prefix" of maps.

    References: Kusupati et al. (2022), Matryoshka Representation Learning, NeurIPS; Li et al. (2024), 2D Matryoshka
    Sentence Embeddings, arXiv:2402.14776.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> late = rng.standard_normal((200, 8)) * [5, 5, 1, 1, 1, 1, 1, 1]
    >>> layers = {"early": rng.standard_normal((200, 8)), "late": late}
    >>> Y = late[:, :2] @ rng.standard_normal((2, 6)) + rng.standard_normal((200, 6))
    >>> sweep = layer_dim_sweep(layers, Y, dims=[2, 8], reduce="prefix", n_bootstraps=50)
    >>> found = cheapest(sweep)
    >>> found["layer"].values.tolist(), found["dim"].values.tolist()
    (['late'], [2])
    """
    dims = check_dims(dims, reduce)
    read = read_targets(targets, probe)
    n = len(read.values) if isinstance(read, Responses) else len(read.codes)
    layers = read_layers(features_by_layer, read, n)
    for name, X in layers.items():
        if reduce == "prefix" and X.ndim > 2:
            raise DataError(
                f"layer {name!r} has dims {X.dims}: maps have no first dimensions. Next step: pooling='mean', or "
                "reduce='pca'."
            )
    folds = shuffled_folds(cv, n, read.stimuli, seed)
    check_whole("n_bootstraps", n_bootstraps, 2)
    size = len(layers), len(dims)
    predicted = [np.full((n, len(read.chance)), np.nan, np.float32) for _ in range(size[0] * size[1])]
    inner, outer = (np.full((len(folds), *size, len(read.chance)), np.nan) for _ in range(2))
    for k, X in enumerate(layers.values()):
        for f, (train, test) in enumerate(folds):
            order = np.random.default_rng([seed, 13]).permutation(train)
            for d, (A, T) in enumerate(widths(*scaled(X, order, test), dims, reduce, seed)):
                total = predicted[k * len(dims) + d]
                total[test], inner[f, k, d] = read.fit(A, order, T, True)
                outer[f, k, d] = read.score(total[test], test)
    estimate, samples = read.draw(predicted, n_bootstraps, seed)
    groups = [Group("target", name, np.array([k])) for k, name in enumerate(read.coords.get("target", []))]
    if isinstance(read, Responses):
        groups = find_groups(xr.DataArray(np.zeros((1, len(read.chance))), dims=("row", "voxel"), coords=read.coords))
    made = sweep_dataset(
        (list(layers), dims),
        estimate,
        samples,
        inner,
        outer,
        (read.dim, read.coords),
        groups,
        read.n_units,
        chance=0.0 if isinstance(read, Responses) else read.chance,
    )
    known = {"metric": read.metric, "probe": "ridge" if isinstance(read, Responses) else probe, "reduce": reduce}
    return made.assign_attrs(**known, n_stimuli=read.n_units, n_bootstraps=n_bootstraps, seed=seed)


def sweep_dataset(
    names: tuple[list[str], list[int]],
    estimate: np.ndarray,
    samples: np.ndarray,
    inner: np.ndarray,
    outer: np.ndarray,
    targets: tuple[str, dict[str, Any]],
    groups: Sequence[Group],
    n_units: int,
    chance: Any = 0.0,
) -> xr.Dataset:
    """The sweep from scores (cell, target), resamples (cell, resample, target) and scores of folds.

    Cells are layers by dims, ``names``; ``inner`` and ``outer`` are (fold, layer, dim, target).
    """
    (layers, dims), (dim, coords) = names, targets
    own, drawn = group_curves(estimate, samples, groups)
    ends = np.array(
        [[limits(drawn[c, :, g], own[c, g], n_units)[:2] for g in range(len(groups))] for c in range(len(own))]
    )
    shape = len(layers), len(dims)
    grid = ("layer", "dim")
    regions = {"score": own, "low": ends[..., 0], "high": ends[..., 1]}
    return xr.Dataset(
        {
            "score": ((*grid, dim), estimate.reshape(*shape, -1)),
            "inner_score": (("fold", *grid, dim), inner),
            "fold_score": (("fold", *grid, dim), outer),
            **{f"region_{k}": ((*grid, "region"), v.reshape(*shape, -1)) for k, v in regions.items()},
            "chance": ("region", np.broadcast_to(np.asarray(chance, dtype=float), (len(groups),))),
            "member": (("region", dim), np.stack([np.isin(np.arange(estimate.shape[1]), g.voxels) for g in groups])),
        },
        coords={
            "layer": layers,
            "dim": dims,
            "region": [g.name for g in groups],
            "kind": ("region", [g.kind for g in groups]),
            **coords,
        },
    )


def cheapest(sweep: xr.Dataset, *, share: float = 0.95, first: str = "layer") -> xr.Dataset:
    """Cheapest layer and number of dimensions that keep a stated share of the best score, for every region or concept.

    In each fold, cells count that reach ``share`` of the highest score (of labels: what is above chance) inside the
    training rows, and the cheapest is taken: the earliest layer and then the fewest dimensions, or the other way
    about. Rows that the fold left out, of which the choice knows nothing, score it: ``kept`` is its mean score as a
    share of that of the cells that were best inside. ``layer`` and ``dim`` are chosen in the same way by the mean
    over folds: a recommendation from all rows, of which ``agreement`` tells how many folds give it.

    Parameters
    ----------
    sweep : Dataset
        From `layer_dim_sweep`.
    share : float
        In (0, 1).
    first : {"layer", "dim"}
        What is cheap before all: an early layer (less to compute), or few dimensions (less to store and search).

    Returns
    -------
    Dataset (region)
        ``layer``, ``dim``, ``agreement``; ``score`` and ``best_score``, means over folds on rows left out, and
        ``kept``; ``fold_layer`` and ``fold_dim`` (fold, region).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> z = rng.standard_normal((300, 4))
    >>> layers = {"early": np.c_[z[:, 0], rng.standard_normal((300, 9))], "late": np.c_[z, z]}
    >>> sweep = layer_dim_sweep(layers, {"one": z[:, 0] > 0, "all": z.sum(1) > 0}, dims=[1, 4, 8], reduce="prefix")
    >>> found = cheapest(sweep)
    >>> list(zip(found["layer"].values.tolist(), found["dim"].values.tolist()))
    [('early', 1), ('late', 4)]
    """
    missing = [name for name in ("inner_score", "fold_score", "member", "chance") if name not in sweep]
    if missing:
        raise DataError(
            f"a sweep has {', '.join(missing)}. Next step: layer_dim_sweep(features_by_layer, targets, ...)."
        )
    share, first = check_fraction("share", share), one_of("first", first, ("layer", "dim"))
    layers, dims = sweep["layer"].values, sweep["dim"].values
    member = sweep["member"].values
    chance = sweep["chance"].values
    inner, outer = (
        np.stack([_median(sweep[name].values[..., m]) for m in member], axis=-1) - chance
        for name in ("inner_score", "fold_score")
    )
    n_folds, n_regions = len(inner), len(member)
    # Cells in the order of their cost.
    order = [(k, d) for k in range(len(layers)) for d in range(len(dims))]
    if first == "dim":
        order.sort(key=lambda cell: (cell[1], cell[0]))
    rows, columns = np.array(order).T

    def choose(values: np.ndarray) -> tuple[int, int]:
        """Cheapest and best cell, as places in the order."""
        flat = np.where(np.isnan(values[rows, columns]), -np.inf, values[rows, columns])
        best = int(flat.argmax())
        return (int(np.argmax(flat >= share * flat[best])) if flat[best] > 0 else best), best

    picked = np.array([[choose(inner[f, ..., g])[0] for g in range(n_regions)] for f in range(n_folds)])
    top = np.array([[choose(inner[f, ..., g])[1] for g in range(n_regions)] for f in range(n_folds)])
    whole = np.array([choose(inner[..., g].mean(axis=0))[0] for g in range(n_regions)])
    fold, region = np.arange(n_folds)[:, None], np.arange(n_regions)[None]
    score, best = (outer[fold, rows[at], columns[at], region].mean(axis=0) for at in (picked, top))
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(best > 0, score / best, np.nan)
    found = {
        "layer": ("region", layers[rows[whole]]),
        "dim": ("region", dims[columns[whole]]),
        "agreement": ("region", (picked == whole).mean(axis=0)),
        "score": ("region", score + chance),
        "best_score": ("region", best + chance),
        "kept": ("region", kept),
        "fold_layer": (("fold", "region"), layers[rows[picked]]),
        "fold_dim": (("fold", "region"), dims[columns[picked]]),
    }
    coords = {"region": sweep["region"].values, "kind": ("region", sweep["kind"].values)}
    note = "chosen inside the training rows of each fold, scored on the rows that it left out"
    return xr.Dataset(found, coords=coords).assign_attrs(share=share, first=first, choice=note)
