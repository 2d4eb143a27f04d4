"""Stages of a captioning, each kept on disk when done: captions, grounding, checks, analyses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc._core.files import hash_array
from neuroenc.captions import CaptionStudy, shuffled_control
from neuroenc.captions.checks._verdicts import with_failed_controls, with_verdicts
from neuroenc.workflows._caption_analyses import analyses, ground, make_checker
from neuroenc.workflows._caption_checks import diversity_table, held_out_scores, round_trip_table, stability_tables
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_contents import Contents
from neuroenc.workflows._caption_decoders import text_direction
from neuroenc.workflows._caption_fit import Fitted
from neuroenc.workflows._caption_inputs import Bank, Subject, Texts
from neuroenc.workflows._caption_readings import Readings
from neuroenc.workflows._caption_truth import judge_planted, planted_summary
from neuroenc.workflows._captioner import Captioner
from neuroenc.workflows._captioning import CAPTION_NOTES
from neuroenc.workflows._steps import Steps

__all__ = ["analysed", "captioned", "checked", "grounded"]


def _part(study: CaptionStudy, fitted: Fitted) -> tuple[xr.DataArray, np.ndarray]:
    """Weights and intercepts of the captioned voxels."""
    at = np.flatnonzero(study.gate["captioned"].to_numpy(dtype=bool))
    return fitted.coef.isel(voxel=at), fitted.intercept.values[at]


def captioned(
    config: CaptionConfig,
    captioner: Captioner,
    fitted: Fitted,
    gate: pd.DataFrame,
    bank: Bank,
    contents: Contents,
    readings: Readings,
    steps: Steps,
) -> CaptionStudy:
    """The study with captions and evidence."""
    told = [config.title, config.notes, config.space, config.encoder, config.held_out, config.gate, config.projection]
    inputs = [contents, readings.key, gate, bank.name, config.decoder.captioner, told]
    folder = steps.path("captions", inputs)

    def work() -> None:
        _caption(config, captioner, fitted, gate, bank, contents, readings).save(folder)

    # What goes on is what a run that was stopped would read.
    return steps.done("captions", folder, work, lambda: CaptionStudy.load(folder))


def _caption(
    config: CaptionConfig,
    captioner: Captioner,
    fitted: Fitted,
    gate: pd.DataFrame,
    bank: Bank,
    contents: Contents,
    readings: Readings,
) -> CaptionStudy:
    h, e = config.held_out, config.encoder
    projected = (readings.fitted, readings.evidence) if gate["captioned"].any() else None
    study = captioner.caption(
        (fitted.coef, fitted.intercept),
        fitted.scores,
        gate=gate,
        title=config.title,
        settings={
            "features": {"model": config.space.model, "stimuli": config.space.stimuli, "normalised": "unit norm"},
            "encoder": {"kind": e.kind, "cv": e.cv, "scoring": e.scoring},
            "held_out": {"scheme": h.scheme, "permutations": h.permutations},
            "gate": {k: v for k, v in vars(config.gate).items() if v},
            "seed": config.seed,
        },
        caveats=[*config.notes, *_caveats(config)],
        projected=projected,
    )
    settings = dict(study.settings)
    settings["bank"] = {**settings["bank"], "name": bank.name}
    # Of a folder its name: where it lies says nothing to another reader; what it is stands in the provenance.
    settings["decoder"] = {**settings["decoder"], "captioner": Path(config.decoder.captioner).name}
    more = {"weights": hash_array(fitted.coef.values), "writing": contents.writing}
    return dataclasses.replace(study, settings=settings, provenance={**study.provenance, **more})


def _caveats(config: CaptionConfig) -> list[str]:
    notes = []
    if config.space.model == "conse":
        notes.append(CAPTION_NOTES["conse"])
    if config.decoder.kind == "retrieval":
        notes.append(CAPTION_NOTES["retrieval"])
    if config.gate.kind != "q":
        notes.append("Voxels are captioned whether or not they are predicted above chance.")
    return notes


def grounded(
    config: CaptionConfig,
    captioner: Captioner,
    fitted: Fitted,
    study: CaptionStudy,
    texts: Texts | None,
    contents: Contents,
    readings: Readings,
    steps: Steps,
    say: Callable[[str], None],
) -> CaptionStudy:
    """The study with the verdict on each phrase, and captions written under the checker's eyes where asked."""
    if not config.grounding.enabled or not len(study.captions):
        return study
    coef, intercept = _part(study, fitted)
    joint = config.space.stimuli == "image"
    inputs = [contents, readings.key, study.captions, study.evidence, config.grounding, config.seed]

    def work() -> dict[str, pd.DataFrame]:
        direction = text_direction(texts, captioner.decoder)
        checker = make_checker(
            captioner,
            coef,
            intercept,
            study.evidence,
            texts,
            direction,
            joint,
            config.seed,
            readings.images,
            config.grounding.phrases,
        )
        if checker is None:
            return {}
        captions = study.captions
        if config.grounding.intervene:
            projection = readings.fitted.sel(voxel=coef["voxel"])
            captions = _intervened(captioner, checker, projection, coef, intercept, captions)
        return ground(checker, captions, config.seed)

    found = steps.frames("grounding", inputs, work)
    if not found:
        say("    grounding: no human captions to compare with; phrases are not checked")
        return study
    quality = {**study.quality, "hallucination rate": found["rates"]}
    settings = {**study.settings, "grounding": vars(config.grounding)}
    return dataclasses.replace(
        study, captions=found["captions"], phrases=found["phrases"], quality=quality, settings=settings
    )


def _intervened(
    captioner: Captioner,
    checker: Any,
    projection: xr.Dataset,
    coef: xr.DataArray,
    intercept: np.ndarray,
    captions: pd.DataFrame,
) -> pd.DataFrame:
    from neuroenc.captions import PrefixDecoder, grounded_decode

    if not isinstance(captioner.decoder, PrefixDecoder):
        raise ConfigError('[grounding] intervene = true needs [decoder] kind = "prefix" or "corpus".')
    found = grounded_decode(
        captioner.decoder, projection, checker, captioner.top, coef=coef, intercept=intercept
    ).captions
    evidence = captions.drop_duplicates("voxel").set_index("voxel")["evidence"]
    return found.assign(evidence=found["voxel"].map(evidence))


def checked(
    config: CaptionConfig,
    captioner: Captioner,
    fitted: Fitted,
    study: CaptionStudy,
    subjects: list[Subject],
    shown: Any,
    texts: Texts | None,
    contents: Contents,
    readings: Readings,
    steps: Steps,
    progress: bool,
    say: Callable[[str], None],
) -> CaptionStudy:
    """The study with stability, scores and controls."""
    passed = study.gate["captioned"].to_numpy(dtype=bool)
    if not passed.any():
        say("    no voxel passed the gate: nothing to check")
        return study
    assert captioner.embed_text is not None
    embed_text, direction = captioner.embed_text, text_direction(texts, captioner.decoder)
    base = [contents, readings.key, study.captions, config.seed]
    quality = dict(study.quality)
    kinds = config.stability.folds or config.stability.bootstraps or config.stability.halves
    n, of = int(readings.sampled.sum()), readings.n_passed
    on = f", {n:,} of {of:,} voxels" if n < of else ""
    say(f"4/6 stability: captions again on parts of the bank and of the data{on if kinds else ''}")

    def stability() -> dict[str, pd.DataFrame]:
        return stability_tables(captioner, readings, embed_text, direction, config.seed, progress)

    stable = steps.frames("stability", [*base, config.stability], stability)
    if stable:
        quality["stability"] = stable["summary"]
    say("5/6 scores: held-out stimuli, round trip, diversity, shuffled weights")

    def control() -> dict[str, pd.DataFrame]:
        mixed = shuffled_control(fitted.coef, config.seed)
        gate = study.gate
        projection = readings.shuffled.sel(voxel=gate.loc[gate["captioned"], "voxel"].to_numpy())
        nothing = pd.DataFrame({"voxel": [], "rank": [], "stimulus": [], "predicted": []})
        found = captioner.caption(mixed, fitted.scores, gate=gate, projected=(projection, nothing))
        return {"captions": found.captions}

    shuffled = steps.frames("shuffled", base, control)["captions"]
    vectors, kind = _stimulus_vectors(config, shown, subjects, progress)
    sentence = None
    if vectors is not None:
        regions = dict(zip(fitted.scores["voxel"].values.tolist(), _first_roi(fitted.scores)))

        def scores() -> dict[str, pd.DataFrame]:
            assert vectors is not None
            per_voxel, summary = held_out_scores(
                study.captions, subjects, fitted.voxels, regions, vectors, embed_text, config.seed
            )
            return {"voxels": per_voxel, "summary": summary}

        found = steps.frames("sentence", [*base, kind, vectors, regions], scores)
        sentence, quality["sentence-level scores"] = found["voxels"], found["summary"]
    captions = study.captions
    if texts is not None:
        image_mean = readings.fitted["bank_direction"].values
        text_mean = direction if config.bank.source != "captions" else None
        quality["round trip"], own = round_trip_table(
            study.captions, fitted.coef, texts.vectors, embed_text, text_mean, image_mean, config.seed
        )
        captions = captions.merge(own, how="left", on=["voxel", "rank"])
    quality["diversity"] = diversity_table(
        {"fitted weights": study.captions, "shuffled weights": shuffled}, embed_text, config.seed
    )
    caveats = list(study.caveats)
    if vectors is None:
        caveats.append("Too few held-out stimuli (under 20) for a sentence-level score.")
    if kind == "images":
        caveats.append(
            "The stimuli have no captions: sentence-level scores compare a voxel's caption with the images themselves, "
            "in the joint space."
        )
    if fitted.truth is not None:
        rows = []
        for name, table in (("fitted weights", study.captions), ("shuffled weights", shuffled)):
            rows.append({"weights": name, **planted_summary(judge_planted(table, fitted.truth), "")})
        quality["planted selectivity"] = pd.DataFrame(rows)
    settings = dict(study.settings)
    if stable:
        settings["stability"] = {**vars(config.stability), "n_voxels": n, "of_voxels": of}
    if sentence is not None:
        settings["sentence"] = {"stimuli as": kind}
    quality = {name: with_verdicts(name, table) for name, table in quality.items()}
    study = dataclasses.replace(
        study,
        captions=captions,
        stability=stable.get("voxels"),
        sentence=sentence,
        quality=quality,
        caveats=tuple(caveats),
        settings=settings,
    )
    return dataclasses.replace(study, captions=with_failed_controls(study))


def _first_roi(scores: xr.Dataset) -> list[str]:
    if "roi" not in scores.coords:
        return [""] * scores.sizes["voxel"]
    return [str(x).split(";")[0] for x in scores["roi"].values]


def _stimulus_vectors(
    config: CaptionConfig, shown: Any, subjects: list[Subject], progress: bool
) -> tuple[xr.DataArray | None, str]:
    """One vector a held-out stimulus: of its captions, else of its image in a joint space; None with few stimuli."""
    from neuroenc.embedding import TextEmbedder

    ids = pd.unique(np.concatenate([s.Y_test.coords["stimulus"].values for s in subjects]))
    if shown is None or len(ids) < 20:
        return None, ""
    own = shown.sel(ids)
    if own.captions is not None:
        embedder = TextEmbedder(config.space.model, config.space.pretrained or None, progress=progress)
        return embedder.embed_captions(own), "captions"
    test = xr.concat([s.X_test for s in subjects], dim=subjects[0].X_test.dims[0])
    unique, first = np.unique(test.coords["stimulus"].values, return_index=True)
    return xr.DataArray(test.values[first], dims=("stimulus", "feature"), coords={"stimulus": unique}), "images"


def analysed(
    config: CaptionConfig,
    captioner: Captioner,
    fitted: Fitted,
    study: CaptionStudy,
    texts: Texts | None,
    contents: Contents,
    readings: Readings,
    steps: Steps,
    say: Callable[[str], None],
) -> CaptionStudy:
    """The study with what its captions say of regions."""
    if not len(study.captions):
        return study
    coef, _ = _part(study, fitted)
    inputs = [contents, readings.key, study.captions, config.analysis, config.seed]

    def work() -> dict[str, pd.DataFrame]:
        labels = {k: c for k, c in fitted.scores.coords.items() if c.dims == ("voxel",)}
        projection = readings.fitted.sel(voxel=coef["voxel"])
        projection = projection.assign_coords({k: c.sel(voxel=coef["voxel"]) for k, c in labels.items()})
        return analyses(
            study,
            projection,
            config.analysis,
            captioner.embed_text,
            text_direction(texts, captioner.decoder),
            config.space.stimuli == "image",
            config.seed,
            say,
        )

    found: dict[str, Any] = dict(steps.frames("analyses", inputs, work))
    return dataclasses.replace(study, **found)
