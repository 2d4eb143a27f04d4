"""``neuroenc run``: data, features, encoder, scores, captions and a report, from one config."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError
from neuroenc._core.files import hash_array, hash_path, output_folder, write_json, write_text
from neuroenc._core.provenance import provenance
from neuroenc.encoders._folds import resolve_folds
from neuroenc.encoders._labels import sample_coords
from neuroenc.report import roi_summary, write_report
from neuroenc.workflows._captioning import CAPTION_NOTES, caption_run
from neuroenc.workflows._config import RunConfig
from neuroenc.workflows._evaluate import (
    held_out_predictions,
    make_ridge,
    noise_ceilings,
    outer_folds,
    row_features,
    score_table,
)
from neuroenc.workflows._inputs import load_data, make_feature_space, prepare_responses
from neuroenc.workflows._null import cross_validated_p
from neuroenc.workflows._preflight import check_run
from neuroenc.workflows._steps import Steps, content_key

__all__ = ["run"]


def run(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fit voxelwise encoders to a data set and report on them.

    Steps that are done are kept in ``out/.steps``; the same call after a kill goes on and ends with the same
    files (``seconds`` in ``summary.json`` apart).

    Parameters
    ----------
    config : RunConfig
        From `read_config` or `example_config`.
    out : path
        Folder for ``report/``, ``encoder/`` and ``summary.json``.
    mirror : path, optional
        Folder with data sets, tried before any download.
    progress : bool
    say : callable
        Gets the lines that the command prints.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels``, ``n_stimuli``, ``median_r``, ``median_r2``,
        ``median_noise_ceiling_r`` and ``median_r_normalised`` (null without repeats), ``n_significant``
        (q below the level), ``n_captioned``, ``seconds`` and more.

    Examples
    --------
    >>> from neuroenc.workflows import example_config
    >>> example_config("v4").evaluation.n_splits
    4
    """
    start = time.perf_counter()
    check_run(config, mirror)
    out = output_folder(out)
    steps = Steps(out / ".steps", say)
    name = config.data.name or Path(config.data.responses).name
    say(f"1/5 data: {name}")
    found = load_data(config.data, None if mirror is None else os.fspath(mirror), progress)
    by_run = config.evaluation.scheme in ("run", "session")
    single = prepare_responses(found, config.data, keep_presentations=True)
    responses = single if by_run else prepare_responses(found, config.data, keep_presentations=False)
    n_rows, n_voxels = responses.shape
    unit = "stimuli" if responses.dims[0] == "stimulus" else "presentations"
    say(f"    {n_rows} {unit}, {n_voxels} voxels, z-scored by {responses.attrs.get('zscored', 'none')}")
    folds = outer_folds(responses, config.evaluation, config.seed, found.stimuli)
    _check_responses(config, responses, folds, found.stimuli)
    say(f"2/5 features: {config.features.model if config.features.kind != 'file' else config.features.file}")
    space = make_feature_space(config.features, found.stimuli, progress)
    features = data.match(space, responses)
    say(f"    {features.shape[1]} features")
    say(f"3/5 ridge: {len(folds)} outer folds by {config.evaluation.scheme}, penalties by inner cross-validation")
    predicted, alphas = held_out_predictions(
        features,
        responses,
        folds,
        config.encoder,
        scale=config.features.standardise,
        steps=steps,
        name="evaluate",
        say=say,
    )
    ceilings = noise_ceilings(found, single, responses)
    p_values = None
    if config.evaluation.scheme != "test":
        p_values = _cross_validated(config, features, responses, folds, alphas, progress)
    seen = content_key(
        features.values,
        responses,
        predicted.values,
        alphas,
        folds,
        ceilings,
        vars(config.evaluation),
        config.features.standardise,
        config.seed,
    )
    scores = steps.arrays(
        "scores",
        seen,
        lambda: score_table(
            responses, predicted, config.evaluation, ceilings=ceilings, seed=config.seed, p_values=p_values
        ),
    )
    _save_encoder(config, features, responses, out, steps)
    tables: dict[str, pd.DataFrame] = {}
    shown = found.stimuli
    if config.captions:
        say(f"4/5 captions: {config.captions.model}, retrieved from {config.captions.caption_bank}")
        scores, tables, shown = caption_run(
            config,
            features,
            responses,
            found.stimuli,
            scores,
            folds,
            steps=steps,
            mirror=None if mirror is None else os.fspath(mirror),
            say=say,
        )
    else:
        say("4/5 captions: none asked for")
    summary = _summary(config, scores, tables, responses)
    say("5/5 report")
    page = write_report(
        out / "report",
        title=config.title,
        scores=scores,
        captions=tables.get("captions"),
        evidence=tables.get("evidence") if tables and len(tables["evidence"]) else None,
        stimuli=shown,
        roi_table=_roi_table(scores),
        controls=tables.get("controls"),
        summary=summary,
        settings=_settings(config),
        notes=_notes(config, scores, responses),
        provenance=provenance(run=_settings(config), responses=hash_array(responses.values), seed=config.seed),
        subject=str(responses.coords["subject"].values.flat[0]) if "subject" in responses.coords else "",
        progress=progress,
    )
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "summary.json", summary)
    say(_closing(scores, summary, page))
    return summary


def _check_responses(config: RunConfig, responses: xr.DataArray, folds: Any, stimuli: data.Stimuli | None) -> None:
    """Refuse what these responses cannot give, before features are computed."""
    encoder, evaluation = config.encoder, config.evaluation
    for train, _ in folds:
        try:
            resolve_folds(encoder.cv, len(train), sample_coords(responses[train]), scoring=encoder.scoring)
        except ValueError as error:
            raise type(error)(f"[encoder] cv = {encoder.cv!r} within an outer fold: {error}") from error
    blocked = evaluation.permutations and evaluation.permutation_mode in ("within", "whole")
    if blocked and not {"run", "session"} & set(map(str, responses.coords)):
        raise ConfigError(
            f"[evaluation] permutation_mode = {evaluation.permutation_mode!r} needs run or session of every row; found "
            f'{", ".join(map(str, responses.coords))}. Next step: permutation_mode = "samples".'
        )
    if config.captions is None:
        return
    for name in config.captions.rois if config.captions.gate == "roi" else ():
        data.in_roi(responses, name)
    # The caption space is fitted on the run's own stimuli, whatever it is projected onto.
    kind = "captions" if config.captions.bank == "captions" else "images"
    if stimuli is None or getattr(stimuli, kind) is None:
        raise ConfigError(f"[captions] model = {config.captions.model!r} needs stimuli with {kind}: [data] {kind}.")
    if config.captions.caption_bank == "stimuli" and stimuli.captions is None:
        raise ConfigError('[captions] caption_bank = "stimuli" needs captions of the stimuli: [data] captions.')


def _cross_validated(
    config: RunConfig, features: xr.DataArray, responses: xr.DataArray, folds: Any, alphas: np.ndarray, show: bool
) -> Callable[[np.ndarray | None], tuple[np.ndarray, dict[str, Any]]]:
    """P-values of the cross-validated correlations."""

    def work(groups: np.ndarray | None) -> tuple[np.ndarray, dict[str, Any]]:
        return cross_validated_p(
            features.values,
            responses.values,
            folds,
            alphas,
            scale=config.features.standardise,
            groups=groups,
            n_permutations=config.evaluation.permutations,
            null=config.evaluation.permutation_null,
            seed=config.seed,
            show=show,
        )

    return work


def _save_encoder(config: RunConfig, features: xr.DataArray, responses: xr.DataArray, out: Path, steps: Steps) -> None:
    """Fit on all rows and keep the encoder, for maps and for other stimuli."""
    folder = out / "encoder"
    inputs = content_key(features, responses, vars(config.encoder), config.features.standardise)
    marker = steps.path("encoder", inputs, ".txt")
    # The folder may by now hold the encoder of another config.
    if marker.exists() and folder.is_dir() and marker.read_bytes() == hash_path(folder).encode():
        return
    encoder = make_ridge(config.encoder, standardise=config.features.standardise)
    encoder.fit(row_features(features.values, responses), responses)
    encoder.save(folder)
    write_text(marker, hash_path(folder))


def _settings(config: RunConfig) -> dict[str, Any]:
    """Settings without the folders of this machine."""
    record = dataclasses.asdict(config)
    for key in ("responses", "samples", "mask", "images", "captions"):
        record["data"][key] = Path(record["data"][key]).name
    record["data"]["rois"] = {k: Path(v).name for k, v in record["data"]["rois"].items()}
    if "root" in record["data"]["options"]:
        record["data"]["options"]["root"] = Path(str(record["data"]["options"]["root"])).name
    for key in ("file", "samples"):
        record["features"][key] = Path(record["features"][key]).name
    return record


def _median(scores: xr.Dataset, name: str) -> float | None:
    return float(np.nanmedian(scores[name].values)) if name in scores else None


def _summary(
    config: RunConfig, scores: xr.Dataset, tables: dict[str, pd.DataFrame], responses: xr.DataArray
) -> dict[str, Any]:
    whole = _roi_table(scores).iloc[-1]
    summary: dict[str, Any] = {
        "n_voxels": scores.sizes["voxel"],
        "n_stimuli": len(np.unique(responses.coords["stimulus"].values)),
        "n_samples": responses.shape[0],
        "median_r": float(whole["median_r"]),
        "median_r2": _median(scores, "r2"),
        "median_ev": _median(scores, "ev"),
        "median_noise_ceiling_r": float(whole["median_ceiling_r"]) if "median_ceiling_r" in whole else None,
        "median_r_normalised": float(whole["median_r_normalised"]) if "median_r_normalised" in whole else None,
    }
    if "q_value" in scores:
        passed = (scores["q_value"].values < config.evaluation.q) & (scores["r"].values > 0)
        summary["n_significant"] = int(passed.sum())
        summary["q_level"] = config.evaluation.q
    if "captions" in tables:
        summary["n_captioned"] = int(tables["captions"]["voxel"].nunique()) if len(tables["captions"]) else 0
        summary["median_r_captions"] = _median(scores, "r_captions")
    return summary


def _notes(config: RunConfig, scores: xr.Dataset, responses: xr.DataArray) -> list[str]:
    notes = list(config.notes)
    if "noise_ceiling_r" not in scores:
        notes.append("No noise ceiling: no stimulus was repeated, so accuracies are not normalised.")
    if config.captions:
        notes.append(CAPTION_NOTES["retrieval"])
        if config.captions.model in CAPTION_NOTES:
            notes.append(CAPTION_NOTES[config.captions.model])
        if config.captions.gate != "q":
            notes.append("Voxels were captioned without asking whether they are predicted above chance; see q_value.")
    if responses.attrs.get("licence"):
        notes.append(f"Responses: {responses.attrs.get('source', '')}; licence {responses.attrs['licence']}.")
    return notes


def _roi_table(scores: xr.Dataset) -> pd.DataFrame:
    """Regions, and all voxels in the last row where there are several: the headline is read from it."""
    table = roi_summary(scores)
    if len(table) > 1:
        table = pd.concat([table, roi_summary(scores.drop_vars("roi"))], ignore_index=True)
    return table.dropna(axis="columns", how="all")


def _closing(scores: xr.Dataset, summary: dict[str, Any], page: Path) -> str:
    lines = ["", _roi_table(scores).to_string(index=False, float_format=lambda x: f"{x:.3f}"), ""]
    parts = [f"median r {summary['median_r']:.4f} over {summary['n_voxels']} voxels"]
    if summary.get("median_r_normalised") is not None:
        parts.append(f"{summary['median_r_normalised']:.3f} of the ceiling")
    if "n_significant" in summary:
        parts.append(f"{summary['n_significant']} voxels above chance (q < {summary['q_level']})")
    return "\n".join([*lines, ", ".join(parts), f"report: {page}"])
