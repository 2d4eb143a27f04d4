"""Captions of a run's voxels: an encoder in a space that texts share, a bank, a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import RetrievalDecoder, caption_voxels, shuffled_control
from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.workflows._caption_controls import mark, round_trip_control, sentence_control
from neuroenc.workflows._config import CaptionsConfig, FeaturesConfig, RunConfig
from neuroenc.workflows._evaluate import held_out_predictions, make_ridge, row_features
from neuroenc.workflows._inputs import first_captions, make_feature_space
from neuroenc.workflows._steps import Steps, content_key

__all__ = ["CAPTION_NOTES", "caption_run"]

CAPTION_NOTES = {
    "conse": "Captions go through ConSE (class names of an ImageNet classifier), not CLIP: it has hardly any class for "
    "people, so captions say nothing reliable about faces or bodies.",
    "retrieval": "Captions are retrieved from a caption bank, not written: a preference that no caption of the bank "
    "describes cannot be named.",
}


def _bank(config: CaptionsConfig, stimuli: Stimuli | None, texts: xr.DataArray, mirror: str | None) -> tuple[Any, Any]:
    """Raw embeddings that weights are projected on, and the stimuli they show (None for captions)."""
    if config.bank == "captions":
        return texts, None
    shown = stimuli if config.bank == "stimuli" else data.load_dataset(config.bank, mirror=mirror).stimuli
    if shown is None or shown.images is None:
        raise ConfigError(f'[captions] bank = "{config.bank}" has no images. Next step: bank = "captions".')
    return ImageEmbedder(config.model).embed(shown), shown


def _texts(config: CaptionsConfig, stimuli: Stimuli | None, mirror: str | None) -> tuple[list[str], xr.DataArray]:
    own = config.caption_bank == "stimuli"
    source = stimuli if own else data.load_dataset(config.caption_bank, mirror=mirror).stimuli
    if source is None:
        raise ConfigError(f'[captions] caption_bank = "{config.caption_bank}" has no stimuli.')
    captions, ids = first_captions(source, config.captions_per_stimulus)
    position: dict[str, int] = {}
    names = []
    for stimulus in ids:
        position[stimulus] = position.get(stimulus, -1) + 1
        names.append(f"{stimulus}#{position[stimulus]}" if config.captions_per_stimulus > 1 else stimulus)
    return captions, TextEmbedder(config.model).embed(captions, ids=names)


def _gate(config: CaptionsConfig, scores: xr.Dataset, q: float) -> np.ndarray:
    if config.gate == "none":
        return np.ones(scores.sizes["voxel"], dtype=bool)
    if config.gate == "roi":
        return np.any([data.in_roi(scores, name) for name in config.rois], axis=0)
    if "q_value" not in scores:
        raise ConfigError('[captions] gate = "q" needs [evaluation] permutations above 0.')
    return np.asarray((scores["q_value"] < q) & (scores["r"] > 0))


def caption_run(
    config: RunConfig,
    features: xr.DataArray,
    responses: xr.DataArray,
    stimuli: Stimuli | None,
    scores: xr.Dataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    *,
    steps: Steps,
    mirror: str | None,
    say: Callable[[str], None],
) -> tuple[xr.Dataset, dict[str, pd.DataFrame], Stimuli | None]:
    """Fit the caption space, project, decode, and run the shuffled-weights control.

    Returns
    -------
    scores : Dataset
        With ``r_captions``: held-out accuracy of the encoder that the captions come from.
    tables : dict
        ``captions, evidence, controls``.
    shown : Stimuli or None
        Images of the evidence.
    """
    captions = config.captions
    assert captions is not None
    kind = "captions" if captions.bank == "captions" else "image"
    # Raw embeddings are computed once: the encoder sees them at unit norm, the bank as they are.
    raw = make_feature_space(FeaturesConfig(kind=kind, model=captions.model, standardise=False), stimuli)
    vectors = data.match(raw / np.linalg.norm(raw, axis=1, keepdims=True), responses)
    predicted, _ = held_out_predictions(
        vectors, responses, folds, config.encoder, scale=False, steps=steps, name="captions", say=say
    )
    tested = np.isfinite(predicted.values).any(axis=1)
    accuracy = stats.pearson_r(responses.values[tested], predicted.values[tested])
    scores = scores.assign(r_captions=("voxel", accuracy, {"metric": "r", "features": captions.model}))
    passed = _gate(captions, scores, config.evaluation.q)
    texts, text_vectors = _texts(captions, stimuli, mirror)
    bank, shown = _bank(captions, stimuli, text_vectors, mirror)
    if not passed.any():
        say("  captions: no voxel passed the gate")
    inputs = content_key(
        vectors,
        responses,
        passed,
        vars(captions),
        vars(config.encoder),
        config.seed,
        bank,
        text_vectors,
        texts,
        folds[0],
    )

    def work() -> dict[str, pd.DataFrame]:
        ids = list(text_vectors.stimulus.values)
        decoder = RetrievalDecoder(texts, text_vectors.values, ids, centre=captions.centre)
        options: dict[str, Any] = {"mask": passed, "temperature": captions.temperature, "progress": False}
        place = {text: n for n, text in enumerate(texts)}

        def fitted(rows: np.ndarray, name: str) -> tuple[xr.DataArray, xr.DataArray]:
            encoder = make_ridge(config.encoder, steps.folder / f"captions-ridge-{inputs[:16]}-{name}")
            part = responses[rows]
            return encoder.fit(row_features(vectors.values[rows], part), part).to_linear()

        def best(coef: xr.DataArray, intercept: xr.DataArray) -> np.ndarray:
            """Text vector of every captioned voxel's best caption."""
            told = caption_voxels(coef, bank, decoder, intercept=intercept, n_evidence=0, top=1, **options).captions
            return np.asarray(text_vectors.values[[place[text] for text in told["caption"]]])

        coef, intercept = fitted(np.arange(len(responses)), "all")
        n_evidence = captions.evidence if shown is not None else 0
        found = caption_voxels(
            coef, bank, decoder, intercept=intercept, n_evidence=n_evidence, top=captions.top, **options
        )
        if len(found.captions) and not np.isfinite(found.captions["score"]).all():
            raise DataError("captions without a score.")
        if not passed.any():
            return {"captions": found.captions, "evidence": found.evidence, "controls": pd.DataFrame()}
        train, test = folds[0]
        inner = fitted(train, "controls")
        mixed = (shuffled_control(inner[0], config.seed), inner[1]), (shuffled_control(coef, config.seed), intercept)
        controls = [
            sentence_control(best(*inner), best(*mixed[0]), vectors[test], responses[test][:, passed], config.seed),
            round_trip_control(
                coef.values[:, passed], best(coef, intercept), best(*mixed[1]), text_vectors.values, config.seed
            ),
        ]
        told = pd.DataFrame(controls)
        return {"captions": mark(found.captions, told), "evidence": found.evidence, "controls": told}

    return scores, steps.frames("decode", inputs, work), shown
