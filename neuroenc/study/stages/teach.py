"""Preference training of the captioner before it captions: phrases of the bank stand for voxels that prefer them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError
from neuroenc._core.store import Tensors, content_key
from neuroenc.captions import GroundingChecker, evidence, find_phrases
from neuroenc.study.stages.bank import text_direction
from neuroenc.study.stages.check import evidence_captions
from neuroenc.study.study import Study, stage

#: Images whose captions phrases are drawn from, and images with a caption for replay and perplexity.
_IMAGES = 1500


@stage(
    "teach",
    reads=("captioner", "texts", "contents", "config.captions", "config.seed"),
    writes=("captioner", "contents", "taught"),
)
def teach(study: Study) -> dict[str, Any]:
    """With ``preferences.rounds``, train the captioner on what it should not say of voxels that are no one's."""
    settings, seed, captioner = study.table("captions").preferences, study.config.seed, study.captioner
    if not settings.rounds:
        return {"captioner": captioner, "contents": study.contents, "taught": pd.DataFrame()}
    # What `bank` made stays as it is.
    decoder = copy.copy(captioner.decoder)
    decoder.lm, decoder.mapping = copy.deepcopy(decoder.lm), copy.deepcopy(decoder.mapping)
    inputs = [study.contents.bank, study.contents.writing, settings, captioner.n_evidence, seed]

    def work() -> dict[str, Any]:
        table = _train(study, decoder)
        # Named parameters hold those that share memory (tied embeddings) once.
        parts = ((name, getattr(decoder, name).named_parameters()) for name in ("lm", "mapping"))
        return {"rounds": table, **{name: Tensors((k, p.detach()) for k, p in found) for name, found in parts}}

    found = study.store.keep("preferences", inputs, work)
    for name in ("lm", "mapping"):
        getattr(decoder, name).load_state_dict(found[name], strict=False)
    if study.out is not None:
        decoder.with_options(constraint=None).save(study.out / "captioner")
    last = found["rounds"].loc[found["rounds"]["kept"], "round"].item()
    study.say(f"    preferences: the captioner after round {last} of {settings.rounds}")
    new = copy.copy(captioner)
    new.decoder = decoder
    contents = dataclasses.replace(study.contents, writing=content_key(inputs))
    return {"captioner": new, "contents": contents, "taught": found["rounds"]}


def _train(study: Study, decoder: Any) -> pd.DataFrame:
    from neuroenc.captions import train_grounded

    settings, captioner, seed = study.table("captions").preferences, study.captioner, study.config.seed
    told = evidence_captions(captioner, study.texts)
    rng = np.random.default_rng([seed, 5])
    images = captioner.bank.take(np.sort(rng.permutation(captioner.bank.n)[:_IMAGES]))
    named = [(x, str(name)) for c in images for x, name in zip(c.rows, c.names(c.at(np.arange(len(c.rows)))))]
    clean = [(x, told[name][0]) for x, name in named if told.get(name)]
    if not clean:
        raise ConfigError(
            f"[captions.preferences] needs captions, and the images of bank {study.bank_name!r} have none. Next step: "
            "rounds = 0, or [captions.bank] source = a set of images with captions."
        )
    joint, direction = study.table("captions").space.stimuli == "image", text_direction(study.texts, decoder)
    coef = phrase_weights([c for _, c in clean], captioner.embed_text, settings.voxels, direction, seed)
    checker = GroundingChecker(
        coef,
        evidence(coef, captioner.bank, k=max(1, min(captioner.n_evidence, int(captioner.bank.n or 0)))),
        told,
        captioner.embed_text,
        bank=captioner.bank,
        text_direction=direction if joint else None,
        centre=joint,
        seed=seed,
        features_normalised=captioner.features_normalised,
        max_memory=captioner.max_memory,
        engine=study.table("captions").grounding.phrases,
    )
    found = train_grounded(
        decoder,
        captioner.project(coef),
        checker,
        (np.stack([x for x, _ in clean]), [c for _, c in clean]),
        **settings.model_dump(exclude={"voxels", "replay"}),
        replay_weight=settings.replay,
        train_mapping=True,
        seed=seed,
    )
    return found.rounds


def phrase_weights(
    captions: list[str], embed_text: Any, n: int, direction: np.ndarray | None = None, seed: int = 0
) -> xr.DataArray:
    r"""Weights of ``n`` voxels that prefer what captions name, (feature, voxel).

    .. math:: w = \frac{t_a + z\,t_b}{\|t_a + z\,t_b\|} + 2\epsilon, \qquad z \in \{0, 1\}

    with centred unit-norm vectors t of two phrases and a random direction :math:`\epsilon` of unit norm. Main nouns
    are drawn alike, so that frequent ones are no more often preferred.

    >>> def embed_text(texts):
    ...     return np.array([[1.0, 0.0] if "dog" in t else [0.0, 1.0] for t in texts])
    >>> phrase_weights(["a dog and a cat"], embed_text, 3).shape
    (2, 3)
    """
    rng = np.random.default_rng([seed, 6])
    by = find_phrases(captions, "rules").groupby("head")["phrase"].unique().tolist()
    drawn = [sorted(by[k]) for k in rng.integers(0, len(by), 2 * n)]
    texts = [phrases[rng.integers(len(phrases))] for phrases in drawn]
    t = unit_rows(np.asarray(embed_text(texts), dtype=np.float64))
    t = unit_rows(t - (t.mean(axis=0) if direction is None else direction))
    w = unit_rows(t[:n] + rng.integers(0, 2, (n, 1)) * t[n:]) + 2 * unit_rows(rng.standard_normal(t[:n].shape))
    return xr.DataArray(w.T, dims=("feature", "voxel"), coords={"voxel": np.arange(n)})
