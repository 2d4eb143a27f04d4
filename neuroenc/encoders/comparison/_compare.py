"""`compare`: fit and score every cell of a comparison, here, in processes or on a Dask cluster."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import stats
from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, keywords, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.executor import Executor
from neuroenc._core.store import Store, Tensors
from neuroenc.data import check_unseen, match
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders._labels import align_voxels
from neuroenc.encoders.comparison import _grid as grid
from neuroenc.encoders.comparison._grid import Fitted, Job, Source
from neuroenc.encoders.comparison._joint import fit_joint, joint_cells
from neuroenc.encoders.comparison._layer_dims import KIND as WIDTHS, fit_widths, width_cells
from neuroenc.encoders.comparison._result import Comparison
from neuroenc.encoders.comparison._unique import KIND, fit_unique, unique_cell


def pool_cells(maps: np.ndarray, cells: int | None) -> np.ndarray:
    """Maps (n, C, H, W) averaged over ``cells`` x ``cells`` cells, as adaptive average pooling does."""
    if cells is None or maps.ndim != 4:
        return maps
    for axis in (2, 3):
        size = maps.shape[axis]
        edges = [(k * size // cells, -(-(k + 1) * size // cells)) for k in range(cells)]
        parts = [maps.take(range(a, b), axis=axis).mean(axis=axis, keepdims=True) for a, b in edges]
        maps = np.concatenate(parts, axis=axis)
    return maps


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """A fixed number of threads, so that numbers do not depend on how many fits run side by side."""
    import sys

    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with threadpool_limits(limits=n):
        if torch:
            torch.set_num_threads(n)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def fit_job(job: Job, source: Source, threads: int = 1, checkpoint: Path | None = None) -> Fitted:
    """Choose settings on the validation rows, fit again on all training rows, predict the test rows.

    Test rows are read after everything has been chosen and fitted.
    """
    start = time.perf_counter()
    if not job.cell.closed_form:
        import torch  # noqa: F401  (so that its threads are limited too)
    with _threads(threads):
        if job.cell.kind == KIND:
            fitted = fit_unique(job, source)
        elif job.cell.kind == WIDTHS:
            fitted = fit_widths(job, source)
        elif job.cell.kind in grid.JOINT:
            fitted = fit_joint(job, source)
        else:
            fitted = _ridge(job, source) if job.cell.closed_form else _trained(job, source, checkpoint)
    fitted.record |= {"cell": job.cell.name, "fold": job.fold, "group": job.group, "n_voxels": len(job.voxels)}
    fitted.record |= {f"n_{part}": len(rows) for part, rows in vars(job.rows).items()}
    fitted.record["seconds"] = time.perf_counter() - start
    return fitted


def _ridge(job: Job, source: Source) -> Fitted:
    options, rows = job.cell.options, job.rows
    pool = options.get("pool")
    read = (
        source.features(job.cell.features, r, job.fold).astype(np.float32, copy=False) for r in (rows.train, rows.test)
    )
    X, T = (_labelled(pool_cells(maps, pool)) for maps in read)
    Y = source.responses(rows.train, job.voxels).values
    validation = np.isin(rows.train, rows.validation)
    split = [(np.flatnonzero(~validation), np.flatnonzero(validation))]
    inner = options.get("cv")
    begin = time.perf_counter()
    # R2 chooses: a correlation does not care how far a penalty shrinks, and folds that are shrunken differently
    # do not go together in one score. Correlations of the same fits are what other readouts report.
    settings: dict[str, Any] = {"cv": inner or split, "n_jobs": 1, "standardise": True}
    settings |= {k: options[k] for k in ("reduce", "n_components") if k in options}
    encoder = RidgeEncoder(options.get("alphas"), scoring="r2", **settings).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be told of these penalties, the first fit has told
        inside = RidgeEncoder(encoder.alphas_, scoring="r", **settings).fit(X, Y).cv_scores_
    validation_r = inside[np.searchsorted(encoder.alphas_, encoder.alpha_), np.arange(Y.shape[1])]
    # A voxel that is constant in training has no score and predicts its mean.
    encoder.coef_[:, ~np.isfinite(encoder.coef_).all(axis=0)] = 0
    record = {
        "n_candidates": 1,
        "n_penalties": len(encoder.alphas_),
        "n_parameters": int((_n_read(encoder, options) + 1) * Y.shape[1]),
        "best_epoch": None,
        "seconds_per_fit": time.perf_counter() - begin,
        "chosen": {"alpha_median": float(np.median(encoder.alpha_)), "inner": inner or "validation split"},
    }
    predicted = np.asarray(encoder.predict(T), dtype=np.float32)
    alpha = np.asarray(encoder.alpha_, dtype=np.float64)
    return Fitted(predicted, np.asarray(validation_r, dtype=np.float64), record, arrays=Tensors(alpha=alpha))


def _n_read(encoder: Any, options: dict[str, Any]) -> int:
    """Features that ridge has a weight for."""
    n = int(encoder.coef_.shape[0])
    return min(n, int(options.get("n_components", 100))) if options.get("reduce") else n


def _labelled(maps: np.ndarray) -> xr.DataArray:
    """Dims say which axis holds channels, which are scaled as wholes."""
    dims = {4: ("channel", "y", "x"), 3: ("token", "feature"), 2: ("feature",)}[maps.ndim]
    return xr.DataArray(maps, dims=("stimulus", *dims))


def _encoder(
    job: Job, candidate: dict[str, Any], spaces: Sequence[str] = (), rank: Any = None, **arguments: Any
) -> Any:
    from neuroenc.encoders.readout import ReadoutEncoder

    cell = job.cell
    drawn = candidate["options"]
    trains = {k: v for k, v in drawn.items() if k in keywords(ReadoutEncoder)}
    if cell.kind in grid.CLOSED_FORM:
        arguments["solver"] = "gradient"
    fixed = {k: v for k, v in cell.options.items() if k != "matches"}
    arguments["readout_options"] = {**fixed, **(rank or {}), **{k: v for k, v in drawn.items() if k not in trains}}
    # Candidates share first weights unless the start is what they differ in; folds differ.
    seed = int(np.random.SeedSequence([job.seed, job.fold, candidate["start"]]).generate_state(1)[0] % 2**31)
    own = {**({"spaces": spaces} if spaces and cell.core_kind == "trunk" else {}), **cell.core_options}
    arguments |= {"core": cell.core_kind or None, "core_options": own or None}
    return ReadoutEncoder(cell.kind, seed=seed, progress=False, **{**cell.training, **trains, **arguments})


def _trained(job: Job, source: Source, checkpoint: Path | None) -> Fitted:
    cell, rows, spaces = job.cell, job.rows, source.spaces.get(job.cell.features, [])
    X, Y = source.features(cell.features, rows.train, job.fold), source.responses(rows.train, job.voxels)
    context = source.features(cell.context, rows.train, job.fold) if cell.context else None
    held = np.flatnonzero(np.isin(rows.train, rows.validation))
    rank = _matched_rank(cell.options["matches"], X, context, len(job.voxels)) if "matches" in cell.options else None
    tried = []
    for number, candidate in enumerate(job.candidates):
        begin = time.perf_counter()
        folder = None if checkpoint is None else checkpoint / f"candidate{number}"
        encoder = _encoder(job, candidate, spaces, rank, validation=held.tolist(), checkpoint=folder)
        encoder.fit(X, Y, context=context)
        seen = _predict(encoder, X[held], None if context is None else context[held])
        r = stats.score(Y.values[held], seen)
        mean = float(np.nanmean(r)) if np.isfinite(r).any() else -np.inf
        tried.append((mean, r, encoder, time.perf_counter() - begin))
    best = int(np.argmax([t[0] for t in tried]))
    _, validation_r, chosen, _ = tried[best]
    begin = time.perf_counter()
    folder = None if checkpoint is None else checkpoint / "refit"
    final = _encoder(job, job.candidates[best], spaces, rank, checkpoint=folder)
    # The same rates over the same epochs; more rows make these epochs longer, and nothing is stopped on the test.
    final.fit(X, Y, context=context, fixed_epochs=chosen.schedule_ if len(chosen.schedule_) else 1)
    last = time.perf_counter() - begin
    record = {
        "n_candidates": len(job.candidates),
        "n_parameters": int(final.n_parameters_),
        "best_epoch": int(chosen.best_epoch_),
        "seconds_per_fit": (last + sum(t[3] for t in tried)) / (1 + len(tried)),
        "chosen": job.candidates[best],
        "candidate_r": [t[0] for t in tried],
    }
    if len(final.tasks_) > 1 and final.model_.core is not None and final.model_.core.n_parameters:
        conflict = final.gradient_conflict(X, Y, context=context)
        record["conflict"] = {"tasks": conflict["task"].values.tolist(), "cosines": conflict.values.tolist()}
    T = source.features(cell.features, rows.test, job.fold)
    context = source.features(cell.context, rows.test, job.fold) if cell.context else None
    curves = [{"candidate": n, **row} for n, t in enumerate(tried) for row in t[2].curves_.to_dict("records")]
    extras = _extras(final, T, context, len(job.voxels))
    return Fitted(_predict(final, T, context), validation_r, record, curves, extras)


def _matched_rank(other: Mapping[str, Any], X: np.ndarray, context: np.ndarray | None, n_voxels: int) -> dict[str, int]:
    """Rank at which a low-rank readout has as many parameters as another readout of the same features."""
    import torch

    from neuroenc.encoders.readout import READOUTS, make_readout
    from neuroenc.encoders.readout._maps import as_maps

    options = {k: v for k, v in other.items() if k != "readout"}
    if context is not None and "context_shape" in keywords(READOUTS[other["readout"]]):
        options["context_shape"] = as_maps(context).shape[1:]
    shape = as_maps(X).shape[1:]
    with torch.random.fork_rng(devices=[]):
        wanted = make_readout(other["readout"], shape, n_voxels, **options).n_parameters
    return {"rank": max(1, round((wanted - n_voxels) / (int(np.prod(shape)) + n_voxels)))}


def _predict(encoder: Any, X: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    predicted = encoder.predict(X) if context is None else encoder.predict(X, context=context)
    return np.asarray(predicted, dtype=np.float32).reshape(len(X), -1)


def _extras(encoder: Any, X: np.ndarray, context: np.ndarray | None, n_voxels: int) -> Tensors:
    """Receptive fields and how far they move with content, where the readout has them; gates of a trunk's tasks."""
    found: dict[str, np.ndarray] = {}
    if getattr(encoder.model_.core, "conditioning", "") == "affine+gate":
        of_voxel = np.repeat(encoder.model_.core.gates().cpu().numpy(), encoder.sizes_, axis=0)
        for k, name in enumerate(encoder.model_.core.spaces):
            found[f"gate_{name}"] = np.empty(n_voxels, np.float32)
            found[f"gate_{name}"][encoder.columns_] = of_voxel[:, k]
    fields = encoder.receptive_field()
    for name in ("x", "y", "size") if fields is not None else ():
        found[f"rf_{name}"] = np.asarray(fields[name], dtype=np.float32)
    spread = getattr(encoder, "warp_spread", None)
    if spread is not None:
        values = spread(X, context=context)
        for name in values.data_vars if values is not None else ():
            found[f"warp_{name}"] = np.asarray(values[name], dtype=np.float32)
    return Tensors({k: v for k, v in found.items() if v.shape == (n_voxels,)})


def run_one(job: Job, source: Source, store: Store, threads: int) -> None:
    """Fit a job and keep its result."""
    work = store.part(job.name, job.key).folder
    store.keep(job.name, job.key, lambda: vars(fit_job(job, source, threads, work)))


_DIMS = {("stimulus", "feature"), ("stimulus", "token", "feature"), ("stimulus", "channel", "y", "x")}


def compare(
    features: Mapping[str, xr.DataArray],
    readouts: Mapping[str, Mapping[str, Any]] | Sequence[str],
    responses: xr.DataArray,
    *,
    cores: Mapping[str, Mapping[str, Any]] | Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
    cv: Any = 5,
    validation: float = 0.2,
    n_candidates: int = 3,
    training: Mapping[str, Any] | None = None,
    noise_ceiling: Any = None,
    unique: Sequence[str] = (),
    n_components: int = 100,
    joint: Mapping[str, Sequence[str]] | None = None,
    ordered: bool = False,
    layers: Sequence[str] = (),
    dims: Sequence[int] = (),
    reduce: str = "pca",
    n_bootstraps: int = 1000,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    client: Any = None,
    workers: int = 1,
    threads: int = 1,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare feature spaces x readouts: fit each on the same rows, folds and budget, with paired statistics.

    Every cell (feature space, core, readout) sees the same outer folds by stimulus, and within each the same
    validation split. ``n_candidates`` settings are drawn from the readout's search space; the one with the highest
    mean validation r is fitted again on all training rows, for as many epochs as it took, and predicts the test
    rows. Ridge chooses its penalty per voxel on the same validation rows (all penalties are one candidate); its
    option ``cv`` chooses by inner folds of the training rows instead.

    Parameters
    ----------
    features : mapping of name to DataArray
        (stimulus, feature), (stimulus, token, feature) or (stimulus, channel, y, x); every stimulus of the responses.
        A space that was trained anew for each outer fold, on its training stimuli, has the first dimension ``fold``.
    readouts : mapping of label to settings, or names
        See `neuroenc.encoders.readout`; settings are the readout's options, arguments of `ReadoutEncoder`,
        ``readout`` (which one the label stands for), ``context`` (a feature space) and ``search``.
        "linear" and "pooled" (with ``pool``) are ridge in closed form on frozen features.
    responses : DataArray (presentation or stimulus, voxel)
        NaN where a subject did not see a stimulus; those entries take part in nothing. Subjects side by side along
        voxel carry the coordinate ``subject``.
    cores : mapping of label to settings, or names, optional
        Cores trained together with the readout: ``core`` (which), ``features`` (the spaces, images or grids, that
        it takes; these are then read through cores only), and the core's options.
    cells : sequence of str, optional
        Only these, ``features/readout`` or ``features/core/readout``; ``*`` stands for anything.
    cv : int, str, splitter or iterable
        Outer folds.
    validation : float
        Share of the training stimuli on which settings are chosen.
    n_candidates : int
        Settings tried for each cell.
    training : mapping, optional
        Arguments of `ReadoutEncoder` for all cells that are trained by gradients.
    noise_ceiling : array (voxel,), optional
        As correlations.
    unique : sequence of str, optional
        Feature spaces of which `Comparison.unique_variance` tells what each predicts that the others do not.
    n_components : int
        Principal components of each space in these joint models, fitted on the training rows of each fold.
    joint : mapping of "stacked" or "banded" to feature spaces, optional
        Models of several spaces at once, as cells ``all/stacked`` (`neuroenc.encoders.StackedEncoder`) and
        ``all/banded`` (`neuroenc.encoders.BandedRidgeEncoder`).
    ordered : bool
        The spaces of the stack go from early to late, for `Comparison.structured_partition`.
    layers, dims, reduce : sequence of str, sequence of int, {"pca", "prefix"}, optional
        Feature spaces that ridge reads besides at these numbers of dimensions, for `Comparison.layer_dims`; see
        `neuroenc.encoders.layer_dim_sweep`.
    n_bootstraps : int
        Resamples of stimuli.
    seed : int
    out : path, optional
        Folder where finished fits are kept: the same call goes on after a kill and ends with the same numbers.
    client : dask.distributed.Client, optional
        Its workers must see ``out`` under the same path.
    workers : int
        Processes on this machine.
    threads : int
        Of each fit; a fixed number, so that results do not depend on ``workers``.
    progress : bool
    say : callable, optional
        Callback for progress messages.

    Raises
    ------
    ConfigError
        Unknown names of features, readouts, cores or settings; the nearest is named.
    DataError
        Features that lack stimuli, are not finite or are of a space that was trained on a test stimulus, voxels without
        responses, folds that share stimuli.

    References
    ----------
    Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import make_features, make_responses
    >>> rng = np.random.default_rng(0)
    >>> ids = [f"s{i}" for i in range(120)]
    >>> X = rng.standard_normal((120, 8)).astype("float32")
    >>> Y = X @ rng.standard_normal((8, 5)) + rng.standard_normal((120, 5))
    >>> spaces = {"right": make_features(X, stimulus=ids), "wrong": make_features(X[::-1], stimulus=ids)}
    >>> found = compare(spaces, ["linear"], make_responses(Y, stimulus=ids), cv=3, n_bootstraps=200, progress=False)
    >>> found.best_cell(), set(found.winner()["winner"].values.tolist())
    ('right/linear', {'right/linear'})
    """
    if client is not None and out is None:
        raise ConfigError("a client's workers write into out; give out= a folder that all of them see.")
    budget = {"n_candidates": n_candidates, "workers": workers, "threads": threads, "n_bootstraps": n_bootstraps}
    for name, value in budget.items():
        check_whole(name, value)
    _check_responses(responses)
    spaces = dict(features)
    chosen = grid.build_cells(list(spaces), readouts, cores, cells, training)
    chosen += joint_cells(joint or {}, list(spaces), ordered)
    for name in unique:
        one_of("space in unique:", name, spaces)
    beside = [unique_cell(list(unique), check_whole("n_components", n_components))] if unique else []
    for name in layers if dims else ():
        one_of("space in layers:", name, spaces)
    beside += width_cells(layers, dims, reduce) if dims else []
    used = {name for cell in [*chosen, *beside] for name in cell.spaces if name}
    spaces = {name: space for name, space in spaces.items() if name in used}
    indices = {name: _rows_of(name, space, responses) for name, space in spaces.items()}
    ceiling = check_ceiling(noise_ceiling, responses)
    folds = grid.make_folds(responses, cv, validation, seed)
    for name, space in spaces.items():
        _check_folds(name, space, indices[name], folds)
    jobs = grid.make_jobs([*chosen, *beside], folds, responses, n_candidates, seed)
    # Gone with the last reference to the comparison.
    kept = tempfile.TemporaryDirectory(prefix="neuroenc-compare-") if out is None else None
    store, executor = Store(kept.name if kept else os.fspath(out or "")), Executor(workers, client, progress)
    try:
        source = grid.make_source(spaces, indices, responses, partial(executor.share, folder=store.folder))
        jobs = [replace(job, key=source.key(job)) for job in jobs]
        waiting = [job for job in jobs if store.read(job.name, job.key) is None]
        if len(waiting) < len(jobs) and say is not None:
            say(f"  {len(jobs) - len(waiting)} of {len(jobs)} fits done before")
        # Long fits first: cells with a core would otherwise be what everybody waits for.
        waiting.sort(key=lambda job: (not job.cell.core, job.cell.closed_form))
        executor.map(run_one, [(job, source, store, threads) for job in waiting], desc="fits")
    finally:
        executor.close()
    return Comparison(
        chosen,
        jobs,
        store,
        responses,
        noise_ceiling=ceiling,
        n_bootstraps=n_bootstraps,
        seed=seed,
        # Those of different folds have no geometry in common.
        features={k: (space.values, indices[k]) for k, space in spaces.items() if grid.FOLD not in space.dims},
        keep=kept,
    )


def _check_responses(responses: xr.DataArray) -> None:
    if not isinstance(responses, xr.DataArray) or responses.ndim != 2 or responses.dims[1] != "voxel":
        found = tuple(map(str, responses.dims)) if isinstance(responses, xr.DataArray) else type(responses).__name__
        raise DataError(
            f"responses are {found}; expected a DataArray (stimulus or presentation, voxel). Next step: "
            "neuroenc.data.make_responses."
        )
    values = responses.values
    if np.isinf(values).any():
        raise DataError(f"responses hold {int(np.isinf(values).sum())} infinite values; NaN stands for not seen.")
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if len(empty):
        names = responses["voxel"].values[empty[:5]].tolist() if "voxel" in responses.coords else empty[:5].tolist()
        raise DataError(f"{len(empty)} voxels have no response at all (first: {names}). Next step: drop them.")


def _check_folds(name: str, space: xr.DataArray, rows: np.ndarray, folds: Sequence[grid.Fold]) -> None:
    """Refuse a space that was trained on a stimulus on which it is tested, or has other folds than the comparison."""
    if grid.FOLD in space.dims and len(space) != len(folds):
        raise DataError(
            f"feature space {name!r} is of {len(space)} folds, and the comparison has {len(folds)}. Next step: train "
            "it for the folds of make_folds(responses, cv, validation, seed), in their order."
        )
    tested = [fold.test for fold in folds] if grid.FOLD in space.dims else [np.concatenate([f.test for f in folds])]
    for k, test in enumerate(tested):
        own = space.isel(fold=k) if grid.FOLD in space.dims else space
        check_unseen(own.isel(stimulus=rows[np.sort(test)]), f"feature space {name!r}")


def _rows_of(name: str, space: xr.DataArray, responses: xr.DataArray) -> np.ndarray:
    """Row of the feature space for every row of the responses."""
    dims = tuple(str(dim) for dim in space.dims if dim != grid.FOLD) if isinstance(space, xr.DataArray) else ()
    if dims not in _DIMS or grid.FOLD in space.dims[1:]:
        found = tuple(map(str, space.dims)) if isinstance(space, xr.DataArray) else type(space).__name__
        raise DataError(
            f"feature space {name!r} is {found}; legal are (stimulus, feature), (stimulus, token, feature) and "
            "(stimulus, channel, y, x), with fold before them where each outer fold has its own. Next step: "
            "neuroenc.data.make_features."
        )
    if space.dtype.kind == "f" and not np.isfinite(space.values).all():
        raise DataError(f"feature space {name!r} holds NaN or infinite values.")
    if space.dtype.kind not in "fiu":
        raise DataError(f"feature space {name!r} has dtype {space.dtype}; expected numbers.")
    number = xr.DataArray(
        np.arange(space.sizes["stimulus"]), dims="stimulus", coords={"stimulus": space["stimulus"].values}
    )
    try:
        return np.asarray(match(number, responses).values)
    except DataError as error:
        raise DataError(f"feature space {name!r}: {error}") from None


def check_ceiling(noise_ceiling: Any, responses: xr.DataArray) -> np.ndarray | None:
    """Ceilings as correlations (voxel,), labelled ones in the order of the responses' voxels."""
    if noise_ceiling is None:
        return None
    n_voxels = responses.shape[1]
    if isinstance(noise_ceiling, xr.DataArray) and noise_ceiling.dims == ("voxel",):
        row = noise_ceiling.expand_dims("row")
        noise_ceiling = align_voxels(row, responses, "noise ceilings")[0]
    values = as_numpy(noise_ceiling, "noise ceilings").astype(np.float64)
    if values.shape != (n_voxels,) or np.nanmax(values, initial=0.0) > 1 + 1e-6:
        raise DataError(
            f"noise_ceiling has shape {values.shape} and maximum {np.nanmax(values, initial=np.nan):g}; expected one "
            f"correlation of at most 1 for each of the {n_voxels} voxels. Next step: stats.noise_ceiling(unit='r')."
        )
    return values
