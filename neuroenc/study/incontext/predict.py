"""Responses of a new subject from a few of its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data, stats
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError, NeuroencError
from neuroenc.encoders import EncoderCard, check_space, feature_space
from neuroenc.encoders.incontext import InContextEncoder, load_model
from neuroenc.study.config import FeaturesConfig
from neuroenc.study.incontext.evaluate import expert_of
from neuroenc.study.incontext.subjects import prepared, read_matrix, subjects
from neuroenc.study.stages.load import image_embedder
from neuroenc.study.study import Study, stage

Support = tuple[xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray | None]


def _from_files(study: Study) -> Support | None:
    """Support features and responses, query features, and no responses of these; None where no files are named."""
    config = study.table("incontext")
    given = {k: getattr(config.predict, k) for k in ("features", "responses", "query")}
    if not any(given.values()):
        return None
    Y = prepared(read_matrix(given["responses"], "responses"), config.task.zscore)
    X = data.match(read_matrix(given["features"], "features"), Y)
    query = read_matrix(given["query"], "query")
    check_space(feature_space(X), query, "those of the support")
    if query.shape[1] != X.shape[1]:
        raise DataError(f"query features have {query.shape[1]} dimensions, those of the support {X.shape[1]}.")
    both = np.intersect1d(X["stimulus"].values.astype(str), query["stimulus"].values.astype(str))
    if len(both):
        study.say(f"  {len(both)} of {len(query)} queries are stimuli of the support: their predictions are no test")
    return X, Y, query, None


def _from_task(study: Study) -> Support:
    """Some trials of the task's first new subject, and its queries."""
    subject, n = study.through([subjects]).parts[0].tasks.test[0], study.table("incontext").predict.n_support
    assert subject.X_query is not None
    if n > len(subject.X):
        raise ConfigError(f"predict.n_support = {n}; {subject.name} has {len(subject.X)} trials to draw from.")
    rows = np.sort(np.random.default_rng([study.config.seed, 5]).permutation(len(subject.X))[:n])
    study.say(f"  {subject.name}: {n} of its {len(subject.X)} trials")
    return subject.X[rows], subject.Y[rows], subject.X_query, subject.Y_query


def _recipe(X: xr.DataArray) -> dict[str, dict[str, Any]]:
    """How pictures become such features, as a table ``[features.NAME]``; empty where their labels do not tell."""
    made = feature_space(X)
    if not made or X.ndim != 2 or "pooling" in made:
        return {}
    name, weights = str(made["backbone"]), str(made.get("weights", ""))
    table: dict[str, Any] = {
        "kind": "image",
        "model": name,
        "layer": str(made.get("layer", "")),
        "normalise": bool(made["normalised"]),
    }
    for pretrained in ("", weights):
        try:
            if image_embedder(FeaturesConfig(**table, pretrained=pretrained)).backbone.weights == weights:
                return {"features": {k: v for k, v in {**table, "pretrained": pretrained}.items() if v != ""}}
        except NeuroencError:
            continue  # a backbone that is not of this installation
    return {}


def _card(
    study: Study, X: xr.DataArray, Y: xr.DataArray, model: str, truth: xr.DataArray | None, r: Any
) -> EncoderCard:
    """What a stranger must know of an encoder that was made in context."""
    ids = tuple(dict.fromkeys(map(str, Y["stimulus"].values)))
    people: Any = np.unique(Y["subject"].values) if "subject" in Y.coords else []
    of = ", ".join(map(str, people)) or "a new subject"
    features, task = _recipe(X), study.table("incontext").task.kind
    scores = None if truth is None else xr.Dataset({"r": ("voxel", r)}, coords={"voxel": Y["voxel"].values})
    return EncoderCard(
        title=f"{study.config.title}: {of}, in context",
        subject=of,
        features=features,
        space=next(iter(features), ""),
        units=str(Y.attrs.get("units", "")),
        zscored=str(Y.attrs.get("zscored", "")),
        pictures=f"{len(ids)} stimuli, such as {', '.join(ids[:3])}",
        stimuli=ids,
        n_fit=len(Y),
        n_test=0 if truth is None else len(truth),
        split="" if truth is None else "queries that are never in the support",
        notes=(f"Made by the in-context model {model} from {len(Y)} trials.", *study.config.notes),
        limits=("Anything about brains: these responses were simulated.",) if task == "world" else (),
        licence=str(Y.attrs.get("licence", "")),
        scores=scores,
    )


@stage("predict", reads=("config.incontext", "config.seed"), writes=("predictions", "summary"))
def predict(study: Study) -> dict[str, Any]:
    """Predictions of the model of ``[incontext.predict]``, saved with its encoder in the study's folder."""
    settings = study.table("incontext").predict
    resolve_device(settings.device)
    model = load_model(settings.model)
    X, Y, query, truth = _from_files(study) or _from_task(study)
    encoder = InContextEncoder(
        settings.model,
        response_scale=settings.response_scale,
        expert=expert_of(study, model),
        device=settings.device,
        progress=study.progress,
    ).fit(X, Y)
    study.say(f"  {model!r}: {len(X)} support trials, {Y.shape[1]} voxels, {len(query)} queries")
    found: dict[str, Any] = {}
    # What queries find in the support has no variance.
    if model.anchor is not None and (model.query is None or model.config.silent):
        found["predicted"], found["std"] = encoder.predict(query, return_std=True)
    else:
        found["predicted"] = encoder.predict(query)
    predictions = xr.Dataset({k: v.rename(k) for k, v in found.items()})
    summary: dict[str, Any] = {
        "model": Path(settings.model).name,
        "n_support": len(X),
        "n_query": len(query),
        "n_voxels": int(Y.shape[1]),
    }
    if "std" in found:
        summary["median_std"] = float(np.median(found["std"].values))
    if truth is not None:
        ev = stats.explained_variance(truth.values.astype(np.float64), found["predicted"].values)
        summary["mean_explained_variance"] = float(np.nanmean(ev))
        study.say(f"  mean explained variance of the queries: {summary['mean_explained_variance']:.4f}")
    if study.out is not None:
        r = None if truth is None else stats.pearson_r(truth.values, found["predicted"].values)
        encoder.save(study.out / "encoder", _card(study, X, Y, summary["model"], truth, r))
        data.save(predictions, study.out / "predictions.nc")
    return {"predictions": predictions, "summary": summary}
