"""One cell, one fold, one group of voxels: the only place that knows which encoder fits a cell."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import stats
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.comparison._cells import CLOSED_FORM
from neuroenc.encoders.comparison._grid import Job
from neuroenc.encoders.comparison._store import Fitted, Source

__all__ = ["fit_job", "pool_cells"]


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
        fitted = _ridge(job, source) if job.cell.closed_form else _trained(job, source, checkpoint)
    rows = job.rows
    fitted.record.update(
        cell=job.cell.name,
        fold=job.fold,
        group=job.group,
        n_voxels=len(job.voxels),
        n_train=len(rows.train),
        n_validation=len(rows.validation),
        n_test=len(rows.test),
        seconds=time.perf_counter() - start,
    )
    return fitted


def _ridge(job: Job, source: Source) -> Fitted:
    options, rows = job.cell.options, job.rows
    pool = options.get("pool")
    X, T = (
        _labelled(pool_cells(source.features(job.cell.features, r).astype(np.float32, copy=False), pool))
        for r in (rows.train, rows.test)
    )
    Y = source.responses(rows.train, job.voxels).values
    validation = np.isin(rows.train, rows.validation)
    split = [(np.flatnonzero(~validation), np.flatnonzero(validation))]
    inner = options.get("cv")
    begin = time.perf_counter()
    # R2 chooses: a correlation does not care how far a penalty shrinks, and folds that are shrunken differently
    # do not go together in one score. Correlations of the same fits are what other readouts report.
    settings: dict[str, Any] = {"cv": inner or split, "n_jobs": 1, "standardise": True}
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
        "n_parameters": int(encoder.coef_.size + Y.shape[1]),
        "best_epoch": None,
        "seconds_per_fit": time.perf_counter() - begin,
        "chosen": {"alpha_median": float(np.median(encoder.alpha_)), "inner": inner or "validation split"},
    }
    predicted = np.asarray(encoder.predict(T), dtype=np.float32)
    alpha = np.asarray(encoder.alpha_, dtype=np.float64)
    return Fitted(predicted, np.asarray(validation_r, dtype=np.float64), record, arrays={"alpha": alpha})


def _labelled(maps: np.ndarray) -> xr.DataArray:
    """Dims say which axis holds channels, which are scaled as wholes."""
    dims = {4: ("channel", "y", "x"), 3: ("token", "feature"), 2: ("feature",)}[maps.ndim]
    return xr.DataArray(maps, dims=("stimulus", *dims))


def _encoder(job: Job, candidate: dict[str, Any], **arguments: Any) -> Any:
    from neuroenc.encoders.readout import ReadoutEncoder

    cell = job.cell
    drawn = candidate["options"]
    trains = {k: v for k, v in drawn.items() if k in ReadoutEncoder().get_params(deep=False)}
    if cell.kind in CLOSED_FORM:
        arguments["solver"] = "gradient"
    options = {**cell.options, **{k: v for k, v in drawn.items() if k not in trains}}
    # Candidates share first weights unless the start is what they differ in; folds differ.
    seed = int(np.random.SeedSequence([job.seed, job.fold, candidate["start"]]).generate_state(1)[0] % 2**31)
    return ReadoutEncoder(
        cell.kind,
        readout_options=options,
        core=cell.core_kind or None,
        core_options=cell.core_options or None,
        seed=seed,
        progress=False,
        **{**cell.training, **trains, **arguments},
    )


def _trained(job: Job, source: Source, checkpoint: Path | None) -> Fitted:
    cell, rows = job.cell, job.rows
    X, Y = source.features(cell.features, rows.train), source.responses(rows.train, job.voxels)
    context = source.features(cell.context, rows.train) if cell.context else None
    held = np.flatnonzero(np.isin(rows.train, rows.validation))
    tried = []
    for number, candidate in enumerate(job.candidates):
        begin = time.perf_counter()
        folder = None if checkpoint is None else checkpoint / f"candidate{number}"
        encoder = _encoder(job, candidate, validation=held.tolist(), checkpoint=folder)
        encoder.fit(X, Y, context=context)
        seen = _predict(encoder, X[held], None if context is None else context[held])
        r = stats.score(Y.values[held], seen)
        mean = float(np.nanmean(r)) if np.isfinite(r).any() else -np.inf
        tried.append((mean, r, encoder, time.perf_counter() - begin))
    best = int(np.argmax([t[0] for t in tried]))
    _, validation_r, chosen, _ = tried[best]
    begin = time.perf_counter()
    folder = None if checkpoint is None else checkpoint / "refit"
    final = _encoder(job, job.candidates[best], checkpoint=folder)
    # The same rates over the same epochs; more rows make these epochs longer, and nothing is stopped on the test.
    final.fit(X, Y, context=context, fixed_epochs=chosen.schedule_ if len(chosen.schedule_) else 1)
    last = time.perf_counter() - begin
    T = source.features(cell.features, rows.test)
    context = source.features(cell.context, rows.test) if cell.context else None
    record = {
        "n_candidates": len(job.candidates),
        "n_parameters": int(final.n_parameters_),
        "best_epoch": int(chosen.best_epoch_),
        "seconds_per_fit": (last + sum(t[3] for t in tried)) / (1 + len(tried)),
        "chosen": job.candidates[best],
        "candidate_r": [t[0] for t in tried],
    }
    curves = [{"candidate": n, **row} for n, t in enumerate(tried) for row in t[2].curves_.to_dict("records")]
    extras = _extras(final, T, context, len(job.voxels))
    return Fitted(_predict(final, T, context), validation_r, record, curves, extras)


def _predict(encoder: Any, X: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    predicted = encoder.predict(X) if context is None else encoder.predict(X, context=context)
    return np.asarray(predicted, dtype=np.float32).reshape(len(X), -1)


def _extras(encoder: Any, X: np.ndarray, context: np.ndarray | None, n_voxels: int) -> dict[str, np.ndarray]:
    """Receptive fields and how far they move with content, where the readout has them."""
    found: dict[str, np.ndarray] = {}
    fields = encoder.receptive_field()
    for name in ("x", "y", "size") if fields is not None else ():
        found[f"rf_{name}"] = np.asarray(fields[name], dtype=np.float32)
    spread = getattr(encoder, "warp_spread", None)
    if spread is not None:
        values = spread(X, context=context)
        for name in values.data_vars if values is not None else ():
            found[f"warp_{name}"] = np.asarray(values[name], dtype=np.float32)
    return {k: v for k, v in found.items() if v.shape == (n_voxels,)}
