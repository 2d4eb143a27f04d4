"""Transfer of encoders between data sets: fitted on one session, task or subject, tested on another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.base import clone

from neuroenc import stats
from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance
from neuroenc.data import in_roi, match, roi_names
from neuroenc.encoders._labels import align_voxels, voxel_coords
from neuroenc.encoders.comparison import find_groups
from neuroenc.encoders.linear._ridge import RidgeEncoder
from neuroenc.encoders.linear._spaces import fit_inside

#: What stands for the same place in two data sets.
ACROSS = ("voxel", "vertex", "roi")


def transfer_matrix(
    features: xr.DataArray,
    datasets: Mapping[str, xr.DataArray],
    *,
    across: str = "voxel",
    encoder: Any = None,
    cv: int = 5,
    metric: str = "r",
    n_bootstraps: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    r"""Transfer matrix: encoders fitted on every data set, tested on every data set.

    .. math:: r_{AB} = \mathrm{score}\big(Y_B, \hat Y_{B}^{(A)}\big), \qquad
              \mathrm{loss}_{AB} = r_{BB} - r_{AB}

    Stimuli of all data sets together are dealt into folds, the same for all. For each fold an encoder is fitted on A
    without the fold's stimuli, and predicts the fold's rows of B: no encoder has met a stimulus that it is tested on,
    whichever data set showed it, and the diagonal is plain cross-validation. Cells of one column have the same test
    rows and the same resamples, so that losses are paired; cells of one row share their encoders.

    Parameters
    ----------
    features : DataArray (stimulus, ...)
        Every stimulus of all data sets.
    datasets : mapping of name to DataArray (presentation or stimulus, voxel)
        Two or more. They may show the same stimuli or others.
    across : {"voxel", "vertex", "roi"}
        What corresponds: the same voxels (sessions or tasks of one subject), the vertices that all share (by ``hemi``
        and ``vertex`` on one surface), or the regions that all have; of a region the mean over its z-scored voxels.
    encoder : encoder, optional
        Cloned for every data set and fold. Default ``RidgeEncoder(standardise=True)``, with fewer inner folds where
        stimuli are few.
    cv : int
        Folds.
    metric : {"r", "r2", "ev"}
        Over the rows of all folds; r of predictions less the mean of their training rows. r does not see a change of
        gain between data sets, r2 does.
    n_bootstraps : int
        Resamples of the test stimuli.
    seed : int
        Of folds and resamples.
    progress : bool

    Returns
    -------
    Dataset
        ``score`` and ``loss`` (fit, test, voxel) with the labels of the voxels (or regions); ``median``, ``low``,
        ``high`` and ``loss_median``, ``loss_low``, ``loss_high``, ``loss_p`` (fit, test, group), medians over the
        voxels of a group with intervals over stimuli. ``kind`` and ``group`` name the groups, the first is all voxels.

    Raises
    ------
    DataError
        Voxels, places or subjects that do not correspond, nothing shared, or stimuli without features.
    ConfigError
        One data set only, too many folds, an unknown setting.

    References
    ----------
    Cross-decoding between perception and imagery: Naselaris et al. (2015), NeuroImage 105:215. Transfer between tasks
    and subjects as a matrix: King & Dehaene (2014), Trends Cogn. Sci. 18:203 (over time).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import make_features, make_responses
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"s{k}" for k in range(100)]
    >>> X, W, other = rng.standard_normal((100, 4)), *rng.standard_normal((2, 4, 6))
    >>> seen, imagined, unlike = (
    ...     make_responses(X @ w + rng.standard_normal((100, 6)), stimulus=ids) for w in (W, W, other)
    ... )
    >>> sets = {"seen": seen, "imagined": imagined, "unlike": unlike}
    >>> found = transfer_matrix(make_features(X, stimulus=ids), sets, n_bootstraps=100)
    >>> all_voxels = found["median"].isel(group=0)
    >>> bool(all_voxels.sel(fit="seen", test="imagined") > 0.6), bool(all_voxels.sel(fit="seen", test="unlike") < 0.3)
    (True, True)
    """
    one_of("across", across, ACROSS)
    one_of("metric", metric, ("r", "r2", "ev"))
    check_whole("cv", cv, 2)
    if not isinstance(datasets, Mapping) or len(datasets) < 2:
        raise ConfigError(f"a transfer matrix is of two data sets or more; found {len(datasets)}.")
    names = [str(name) for name in datasets]
    sets = dict(zip(names, _corresponding(dict(zip(names, datasets.values())), across)))
    inputs = {name: match(features, Y) for name, Y in sets.items()}
    fold = _folds({name: Y["stimulus"].values.astype(str) for name, Y in sets.items()}, cv, seed)
    template = encoder
    if template is None:
        # Of few stimuli (twelve imagined pictures) fewer inner folds, each of two at least.
        fewest = min(len(np.unique(Y["stimulus"].values[fold[a] != k])) for a, Y in sets.items() for k in range(cv))
        template = RidgeEncoder(standardise=True, cv=max(2, min(5, fewest // 2)))
    n_voxels = next(iter(sets.values())).shape[1]
    predicted = {(a, b): np.full(sets[b].shape, np.nan, np.float32) for a in names for b in names}
    with progress_bar(total=cv * len(names), desc="transfer", show=progress, unit="fit") as bar:
        for a in names:
            for k in range(cv):
                rows = np.flatnonzero(fold[a] != k)
                means = sets[a].values[rows].mean(axis=0)
                units = np.unique(sets[a]["stimulus"].values[rows].astype(str), return_inverse=True)[1]
                # Plain arrays: labels have been matched, and another subject's are no error here.
                model = fit_inside(clone(template), _plain(inputs[a], rows), sets[a].values[rows], units)
                for b in names:
                    test = np.flatnonzero(fold[b] == k)
                    made = np.asarray(model.predict(_plain(inputs[b], test))).reshape(len(test), -1)
                    # The mean of A's training rows is low where the rows left out are high, which over few stimuli
                    # turns the r of noise negative, on the diagonal alone.
                    predicted[a, b][test] = made - (means if metric == "r" else 0)
                bar.update(1)
    first = sets[names[0]]
    groups = find_groups(first)
    shape = (len(names), len(names), n_voxels)
    score, loss = np.full(shape, np.nan), np.full(shape, np.nan)
    table = {k: np.full((*shape[:2], len(groups)), np.nan) for k in ("median", "low", "high")}
    table |= {f"loss_{k}": np.full((*shape[:2], len(groups)), np.nan) for k in ("median", "low", "high", "p")}
    for column, b in enumerate(names):
        stimuli, y = sets[b]["stimulus"].values.astype(str), sets[b].values
        resampler, n = stats.Resampler(n_bootstraps, groups=stimuli, seed=seed), len(np.unique(stimuli))
        drawn = [resampler.samples(y, predicted[a, b], metric=metric, dtype=np.float32) for a in names]
        own, own_samples = drawn[column]
        for row, (estimate, samples) in enumerate(drawn):
            score[row, column], loss[row, column] = estimate, own - estimate
            for g, group in enumerate(groups):
                at = row, column, g
                found = _group(samples, estimate, group.voxels, n)
                for name, value in zip(("median", "low", "high"), found):
                    table[name][at] = value
                if row != column:
                    found = _group(own_samples - samples, own - estimate, group.voxels, n)
                    for name, value in zip(("median", "low", "high", "p"), found):
                        table[f"loss_{name}"][at] = value
    dims = ("fit", "test")
    data = {"score": ((*dims, "voxel"), score), "loss": ((*dims, "voxel"), loss)}
    coords = {"fit": names, "test": names, **(voxel_coords(first) or {"voxel": np.arange(n_voxels)})}
    coords |= {"group": np.array([g.name for g in groups]), "kind": ("group", np.array([g.kind for g in groups]))}
    settings = {"across": across, "cv": cv, "metric": metric, "seed": seed, "n_bootstraps": n_bootstraps}
    attrs = {k: v for k, v in settings.items() if k != "seed"} | {"split": f"{cv} folds by stimulus"}
    attrs["n_stimuli"] = [len(np.unique(Y["stimulus"].values)) for Y in sets.values()]
    attrs["provenance"] = provenance(method="transfer_matrix", datasets=names, **settings)
    return xr.Dataset(data | {k: ((*dims, "group"), v) for k, v in table.items()}, coords, attrs)


def _plain(X: xr.DataArray, rows: np.ndarray) -> xr.DataArray:
    """Some rows without their labels; dimensions stay, which say what is scaled together."""
    return xr.DataArray(X.values[rows], dims=X.dims)


def _group(samples: np.ndarray, estimate: np.ndarray, voxels: np.ndarray, n: int) -> tuple[float, ...]:
    """Median over voxels with interval and p."""
    inside = estimate[voxels]
    if not np.isfinite(inside).any():
        return (np.nan,) * 4
    middle = float(np.nanmedian(inside))
    low, high, p = stats.sample_interval(stats.median_samples(samples[:, voxels], inside), middle, n_units=n)
    return middle, float(low), float(high), float(p)


def _folds(stimuli: Mapping[str, np.ndarray], cv: int, seed: int) -> dict[str, np.ndarray]:
    """Fold of every row; a stimulus is in one fold of all data sets, and each data set has its share in every fold."""
    sets = {name: set(ids.tolist()) for name, ids in stimuli.items()}
    few = {name: len(ids) for name, ids in sets.items() if len(ids) < 2 * cv}
    if few:
        raise ConfigError(
            f"cv={cv} folds need {2 * cv} stimuli at least in each data set; found {few}. Next step: fewer folds."
        )
    every = sorted(set().union(*sets.values()))
    seen = np.array([[i in ids for ids in sets.values()] for i in every])
    pattern = np.unique(seen, axis=0, return_inverse=True)[1].ravel()
    order = make_rng(seed).permutation(len(every))
    order = order[np.argsort(pattern[order], kind="stable")]
    part = pd.Series(np.arange(len(every)) % cv, index=np.array(every)[order])
    return {name: part.loc[ids].to_numpy() for name, ids in stimuli.items()}


def _corresponding(sets: Mapping[str, xr.DataArray], across: str) -> list[xr.DataArray]:
    """Responses of every data set over the same units in the same order."""
    for name, Y in sets.items():
        if not isinstance(Y, xr.DataArray) or Y.dims[1:] != ("voxel",) or "stimulus" not in Y.coords:
            raise DataError(f"data set {name!r} holds no labelled responses (presentation or stimulus, voxel).")
        if not np.isfinite(Y.values).all():
            raise DataError(f"data set {name!r} holds NaN or infinite responses. Next step: leave these voxels out.")
    first = next(iter(sets.values()))
    if across == "voxel":
        return [align_voxels(Y, first, f"responses of {name!r}") for name, Y in sets.items()]
    if across == "vertex":
        return _shared_vertices(sets)
    regions = {name: set(roi_names(Y)) if "roi" in Y.coords else set() for name, Y in sets.items()}
    shared = sorted(set.intersection(*regions.values()))
    if not shared:
        told = "; ".join(f"{k}: {', '.join(sorted(v)) or 'none'}" for k, v in regions.items())
        raise DataError(f"the data sets share no region ({told}).")
    found = []
    for Y in sets.values():
        values = Y.values.astype(np.float64)
        spread = values.std(axis=0)
        z = (values - values.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
        means = np.stack([z[:, np.asarray(in_roi(Y, r))].mean(axis=1) for r in shared], axis=1)
        rows = {k: c for k, c in Y.coords.items() if c.dims == Y.dims[:1]}
        coords = {**rows, "voxel": np.arange(len(shared)), "roi": ("voxel", np.array(shared))}
        found.append(xr.DataArray(means.astype(np.float32), coords, Y.dims, attrs={"units": "mean z of the region"}))
    return found


def _shared_vertices(sets: Mapping[str, xr.DataArray]) -> list[xr.DataArray]:
    places = {}
    for name, Y in sets.items():
        if not {"vertex", "hemi"} <= set(Y.coords):
            raise DataError(f"data set {name!r} has no vertex and hemi; it has {', '.join(map(str, Y.coords))}.")
        places[name] = pd.MultiIndex.from_arrays([Y["hemi"].values.astype(str), Y["vertex"].values.astype(int)])
    spaces = {name: str(Y.attrs.get("space", "unknown")) for name, Y in sets.items()}
    if len(set(spaces.values())) > 1:
        raise DataError(f"vertices of different surfaces do not correspond: {spaces}. Next step: one space for all.")
    shared = None
    for own in places.values():
        shared = own if shared is None else shared[shared.isin(own)]
    if shared is None or not len(shared):
        raise DataError(f"the data sets share no vertex; they have { ({k: len(v) for k, v in places.items()}) }.")
    return [Y[:, places[name].get_indexer(shared)] for name, Y in sets.items()]
