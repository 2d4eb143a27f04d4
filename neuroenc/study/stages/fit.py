"""Outer folds, and ridge fitted on the training rows of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.executor import Shared
from neuroenc._core.files import hash_path, output_folder
from neuroenc._core.store import Store, content_key
from neuroenc.encoders import RidgeEncoder, lag_profile, load_encoder, resolve_folds
from neuroenc.study.config import EncoderConfig, EvaluationConfig
from neuroenc.study.stages.card import make_card
from neuroenc.study.stages.distance import SCHEMES, check_sizes, distant_folds, set_names
from neuroenc.study.stages.load import Subject, standardised
from neuroenc.study.study import Study, stage

Fold = tuple[np.ndarray, np.ndarray]
#: Weights with so many entries are kept beside predictions: another command may ask for them.
_SMALL = 2**24


def make_ridge(
    config: EncoderConfig, checkpoint: Any = None, *, standardise: bool = False, n_jobs: int | None = None
) -> RidgeEncoder:
    """The encoder that ``[encoder]`` describes; ``standardise`` is of ``[features]``."""
    return RidgeEncoder(
        config.alphas or None,
        cv=config.cv,
        scoring=config.scoring,
        standardise=standardise,
        reduce=config.reduce,
        n_components=config.n_components,
        max_memory=config.max_memory or None,
        device=config.device,
        checkpoint=checkpoint,
        nan_voxels="raise",
        n_jobs=n_jobs,
    )


def outer_folds(
    responses: xr.DataArray, config: EvaluationConfig, seed: int, stimuli: data.Stimuli | None = None
) -> list[Fold]:
    """Training and test rows of ``[evaluation]``.

    Every row is tested once; with ``scheme = "test"`` or ``n_splits = 1`` only those that are held out.
    """
    if config.scheme == "stimulus" and data.is_series(responses):
        raise ConfigError(
            '[evaluation] scheme = "stimulus" would draw single volumes of a time series, between neighbours that are '
            'nearly the same. Next step: scheme = "run", or "block" with gap = 10 where there is one run.'
        )
    if config.scheme == "test":
        train, test = data.split_by_stimulus(responses, test=_test_ids(config, stimuli), seed=seed)
        data.check_disjoint(train, test)
    elif config.scheme == "block":
        return data.folds(responses, "block", n_splits=config.n_splits, gap=config.gap)
    elif config.scheme not in ("stimulus", "run", "session"):
        raise ConfigError(f'scheme = "{config.scheme}" needs more than responses. Next step: study.until("split").')
    elif config.n_splits > 1:
        if config.scheme == "stimulus":
            return data.folds(responses, "stimulus", n_splits=config.n_splits, seed=seed)
        # Designs with few categories show them in every run; leaving runs out is then about noise, not stimuli. Of a
        # film that several runs showed, an encoder would know the very moments that it is tested on.
        shared = "drop" if data.is_series(responses) else "keep"
        return data.folds(responses, config.scheme, seed=seed, shared=shared)
    elif config.scheme == "stimulus":
        _, test = data.split_by_stimulus(responses, config.share, seed=seed)
    else:
        if config.scheme not in responses.coords:
            raise ConfigError(
                f'[evaluation] scheme = "{config.scheme}": the responses have no {config.scheme} numbers.'
            )
        numbers = np.unique(responses.coords[config.scheme].values)
        if not config.n_last < len(numbers):
            raise ConfigError(
                f"evaluation.n_last = {config.n_last}, but there are {len(numbers)} {config.scheme}s; legal is 1 to "
                f"{len(numbers) - 1}."
            )
        held = np.isin(responses.coords[config.scheme].values, numbers[-config.n_last :])
        ids = responses.coords["stimulus"].values
        known = np.isin(ids, ids[held]) if data.is_series(responses) else held
        if known.all():
            raise DataError(f"the last {config.n_last} {config.scheme}s show what all others show: nothing is new.")
        return [(np.flatnonzero(~known), np.flatnonzero(held))]
    held = np.isin(responses.coords["stimulus"].values, np.unique(test.coords["stimulus"].values))
    if min(held.sum(), (~held).sum()) < 2:
        raise DataError(
            f"[evaluation] leaves {int((~held).sum())} rows to fit on and {int(held.sum())} to test on; both need at "
            "least 2."
        )
    return [(np.flatnonzero(~held), np.flatnonzero(held))]


def _test_ids(config: EvaluationConfig, stimuli: data.Stimuli | None) -> list[str]:
    """The ids asked for, or those of a test set that the data name: a column of flags in the table of stimuli."""
    if len(config.test_ids) == 1 and stimuli is not None and config.test_ids[0] not in stimuli.ids:
        name = config.test_ids[0]
        flags = [str(c) for c in stimuli.table.columns if stimuli.table[c].dtype == bool]
        if name in flags:
            return [str(x) for x in stimuli.ids[stimuli.table[name].to_numpy()]]
        if flags:
            raise ConfigError(unknown_name("stimulus or test set in [evaluation] test_ids:", name, flags))
    if not config.test_ids and stimuli is not None and "test" in stimuli.table.columns:
        return [str(x) for x in stimuli.ids[stimuli.table["test"].to_numpy(dtype=bool)]]
    return config.test_ids


def evaluation_folds(study: Study, one: Subject) -> tuple[list[Fold], np.ndarray]:
    """Folds of ``[evaluation]``, and the name (row,) of the test set that each row is in."""
    config = study.config.evaluation
    if config.scheme in SCHEMES:
        distant, sets = distant_folds(study, one)
        if data.is_series(one.responses):
            _refuse_torn_runs(config, one.responses, distant)
        return distant, sets
    folds = outer_folds(one.responses, config, study.config.seed, one.stimuli)
    return folds, set_names(len(one.responses), [("test", test) for _, test in folds])


def _refuse_torn_runs(config: EvaluationConfig, responses: xr.DataArray, folds: list[Fold]) -> None:
    """Of a film, sets of stimuli must be whole runs: a volume is nearly the one before, whatever cluster it is in."""
    run = responses.coords["run"].values if "run" in responses.coords else np.zeros(len(responses))
    torn = sum(np.isin(run[test], run[train]).any() for train, test in folds)
    if torn:
        raise DataError(
            f'[evaluation] scheme = "{config.scheme}" puts volumes of one run on both sides of {torn} of {len(folds)} '
            "folds: test volumes lie between their neighbours in training, which are nearly the same. Next step: "
            'scheme = "run" or "block", or sets that are whole runs.'
        )


@stage(
    "split", reads=("subjects", "config.evaluation", "config.encoder", "config.decode"), writes=("splits", "test_sets")
)
def split(study: Study) -> dict[str, Any]:
    """Outer folds of each subject; what responses cannot give is refused before features are computed."""
    config, splits, test_sets = study.config, [], []
    for one in study.subjects:
        folds, sets = evaluation_folds(study, one)
        _check(study, one.responses, folds)
        check_sizes(config.evaluation.learning_curve, folds, one.responses["stimulus"].values)
        splits.append(folds)
        test_sets.append(sets)
        sizes = f"{len(folds[0][0])} rows to fit on, {len(folds[0][1])} held out"
        study.say(
            f"    {one.name}: {sizes if len(folds) == 1 else f'{len(folds)} folds by {config.evaluation.scheme}'}"
        )
    return {"splits": tuple(splits), "test_sets": tuple(test_sets)}


def _check(study: Study, responses: xr.DataArray, folds: list[Fold]) -> None:
    encoder, evaluation = study.config.encoder, study.config.evaluation
    labels = {str(k): c.values for k, c in responses.coords.items() if c.dims == responses.dims[:1]}
    for train, _ in folds:
        try:
            rows = {name: values[train] for name, values in labels.items()}
            resolve_folds(encoder.cv, len(train), rows, scoring=encoder.scoring)
        except ValueError as error:
            raise type(error)(f"[encoder] cv = {encoder.cv!r} within an outer fold: {error}") from error
    mixing = evaluation.permutations and evaluation.permutation_mode in ("samples", "within")
    if mixing and data.is_series(responses):
        raise ConfigError(
            f'[evaluation] permutation_mode = "{evaluation.permutation_mode}" shuffles volumes of a time series, '
            "which takes their autocorrelation away: far more than 5 % of voxels without any effect pass at p < 0.05. "
            'Next step: permutation_mode = "shift" (or "auto").'
        )
    decode = study.config.decode
    if decode and data.is_series(responses):
        raise ConfigError(
            "[decode] identifies stimuli, and the responses are volumes of a time series, whose neighbours are alike. "
            "Next step: responses of stimuli (such as GLM betas), or leave [decode] out."
        )
    if decode and decode.blocks and decode.blocks not in responses.coords:
        found = ", ".join(map(str, responses.coords))
        raise ConfigError(f'[decode] blocks = "{decode.blocks}": the rows have only {found}. Next step: blocks = "".')
    blocked = evaluation.permutations and evaluation.permutation_mode in ("within", "whole")
    if blocked and not {"run", "session"} & set(map(str, responses.coords)):
        raise ConfigError(
            f"[evaluation] permutation_mode = {evaluation.permutation_mode!r} needs run or session of every row; found "
            f'{", ".join(map(str, responses.coords))}. Next step: permutation_mode = "samples".'
        )


def fit_folds(
    study: Study, jobs: list[tuple[Subject, xr.DataArray, list[Fold], bool]], weights: bool = False
) -> list[list[dict[str, Any]]]:
    """Ridge of every fold of every job (subject, feature space, folds, whether to standardise), each kept.

    Returns
    -------
    list of list of dict
        For each fold of each job ``predicted`` (test row, voxel) and ``alpha`` (voxel,); with ``weights`` also ``coef``
        and ``intercept``.
    """
    executor, store, config = study.executor, study.store, study.config.encoder
    # Beside others of its machine, a process takes what it was given, not all cores.
    threads = study.config.compute.threads if executor.remote else None
    tasks = []
    for one, space, folds, scale in jobs:
        X = data.match(space, one.responses).values
        content = content_key(X, study.content_of(one.responses), config, scale)
        x, y = (executor.share(array, store.folder) for array in (X, one.responses.values))
        job = _Job(store, content, x, y, one.responses.coords.to_dataset(), config, scale, weights, threads)
        tasks += [(job, train, test) for train, test in folds]
    results = iter(executor.map(_fit_fold, tasks, desc="fits"))
    return [[next(results) for _ in folds] for _, _, folds, _ in jobs]


@dataclass(frozen=True)
class _Job:
    """What all folds of one subject and feature space share, as other processes can read it."""

    store: Store
    content: str
    X: Shared
    Y: Shared
    labels: xr.Dataset
    config: EncoderConfig
    standardise: bool
    weights: bool
    threads: int | None


def _fit_fold(job: _Job, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    x, y = job.X.load(), job.Y.load()
    # Another command may ask for the weights: they are kept where they are small.
    weights = job.weights or x.shape[1] * y.shape[1] <= _SMALL
    inputs = [job.content, train, test, weights]

    def work() -> dict[str, Any]:
        dim = str(job.labels["stimulus"].dims[0])
        part = xr.DataArray(np.asarray(y[train]), dims=(dim, "voxel"), coords=job.labels.isel({dim: train}).coords)
        folder = job.store.part("fit", inputs).folder
        ridge = make_ridge(job.config, folder, standardise=job.standardise, n_jobs=job.threads)
        ridge.fit(row_features(np.asarray(x[train]), part), part)
        predicted, alpha = ridge.predict(np.asarray(x[test])), ridge.alpha_
        found: dict[str, Any] = {"predicted": np.asarray(predicted), "alpha": np.asarray(alpha)}
        if weights:
            found["coef"], found["intercept"] = ridge.to_linear()
        return found

    return job.store.keep("fit", inputs, work)


@stage(
    "fit", reads=("subjects", "splits", "spaces", "config.encoder", "config.features"), writes=("predictions", "alphas")
)
def fit(study: Study) -> dict[str, Any]:
    """Held-out predictions of every subject from every feature space, by ridge tuned within the training rows."""
    names = [name for name in study.spaces for _ in study.subjects]
    jobs = [
        (one, space, folds, standardised(study, name))
        for name, space in study.spaces.items()
        for one, folds in zip(study.subjects, study.splits)
    ]
    for name, (one, space, folds, _) in zip(names, jobs):
        matched = data.match(space, one.responses)
        for _, test in folds:
            data.check_unseen(matched.isel(stimulus=test), f"[features.{name}]")
    predictions: dict[str, list[xr.DataArray]] = {name: [] for name in study.spaces}
    alphas: dict[str, list[np.ndarray]] = {name: [] for name in study.spaces}
    for name, (one, _, folds, _), results in zip(names, jobs, fit_folds(study, jobs)):
        predictions[name].append(held_out(one, folds, results))
        alphas[name].append(np.array([r["alpha"] for r in results]))
    return {"predictions": predictions, "alphas": alphas}


def held_out(one: Subject, folds: list[Fold], results: list[dict[str, Any]]) -> xr.DataArray:
    """Predictions (row, voxel) of the folds' test rows; NaN in rows that none of them tests."""
    total = np.full(one.responses.shape, np.nan, dtype=np.float32)
    for (_, test), result in zip(folds, results):
        total[test] = result["predicted"]
    return one.responses.copy(data=total).rename("predicted")


@stage(
    "encode",
    reads=("subjects", "spaces", "scores_of", "config.data", "config.encoder", "config.features", "config.evaluation"),
    writes=("encoders", "response_functions"),
)
def encode(study: Study) -> dict[str, Any]:
    """Encoders fitted on all rows, saved with their cards in ``OUT/encoder``, for maps and other stimuli."""
    encoders: dict[str, Path | RidgeEncoder] = {}
    functions: dict[str, list[xr.Dataset]] = {}
    several = len(study.subjects) * len(study.spaces) > 1
    labels = [f"{name}-{one.name}" if study.subjects[1:] else name for name in study.spaces for one in study.subjects]
    if study.out is not None:
        _clear_encoders(study.out / "encoder", labels if several else [""])
    config, features = study.config, {} if "features" in study.given else study.config.features
    for name, space in study.spaces.items():
        scale, found = standardised(study, name), study.scores_of.get(name)
        for one, mine in zip(study.subjects, split_scores(found, [s.responses.shape[1] for s in study.subjects])):
            label = f"{name}-{one.name}" if len(study.subjects) > 1 else name
            X = data.match(space, one.responses).values
            rows, encoder = row_features(X, one.responses, space), make_ridge(config.encoder, standardise=scale)
            encoder.card = make_card(
                config,
                one,
                space=name,
                features=features,
                responses=one.responses,
                scores=mine,
                split=config.evaluation.scheme,
            )
            if study.out is None:
                encoders[label] = encoder.fit(rows, one.responses)
                _add_function(study, functions, name, one, lambda fitted=encoder: fitted)
                continue
            encoders[label] = folder = study.out / "encoder" / (label if several else "")
            inputs = [X, study.content_of(one.responses), config.encoder, scale, folder.name, str(encoder.card), mine]
            saved = study.store.read("encoder", inputs)
            # The folder may by now hold the encoder of another config.
            if saved is None or not folder.is_dir() or saved["content"] != hash_path(folder):
                encoder.fit(rows, one.responses)
                output_folder(folder.parent)
                encoder.save(folder)
                study.store.write("encoder", inputs, {"content": hash_path(folder)})
            _add_function(study, functions, name, one, lambda at=folder: load_encoder(at))
    return {"encoders": encoders, "response_functions": functions}


def _clear_encoders(folder: Path, kept: list[str]) -> None:
    """Remove encoders that another config left here: a folder of one encoder must not hold that of another run."""
    for place in [p.parent for p in (folder / "encoder.json", *folder.glob("*/encoder.json")) if p.is_file()]:
        if place not in [folder / label for label in kept]:
            for name in ("encoder.json", "arrays.safetensors", "README.md"):
                (place / name).unlink(missing_ok=True)
            if place != folder and not any(place.iterdir()):
                place.rmdir()


def _add_function(study: Study, found: dict[str, list[xr.Dataset]], name: str, one: Subject, encoder: Any) -> None:
    """The response function of each voxel, where a time series was fitted on delayed features."""
    settings = study.config.features.get(name)
    if settings is not None and len(settings.delays) > 2 and data.is_series(one.responses):
        tr = data.series_tr(one.responses)
        if len(set(np.diff(sorted(settings.delays)))) == 1:
            found.setdefault(name, []).append(lag_profile(encoder(), tr=tr, delays=settings.delays))


def row_features(values: np.ndarray, responses: xr.DataArray, origin: xr.DataArray | None = None) -> xr.DataArray:
    """Features (row, feature) under the labels of the responses' rows, one row each; ``origin`` says what made them."""
    dim = responses.dims[0]
    found = xr.DataArray(
        values, dims=(dim, "feature"), coords={str(k): c for k, c in responses.coords.items() if c.dims == (dim,)}
    )
    names = ("backbone", "weights", "layer", "pooling", "normalised", "content_hash")
    return found if origin is None else found.assign_attrs({k: origin.attrs[k] for k in names if k in origin.attrs})


def split_scores(scores: xr.Dataset | None, sizes: list[int]) -> list[xr.Dataset | None]:
    """Scores of each subject, of those of all in one row."""
    if scores is None:
        return [None] * len(sizes)
    ends = np.cumsum(sizes)
    return [scores.isel(voxel=slice(end - size, end)) for size, end in zip(sizes, ends)]
