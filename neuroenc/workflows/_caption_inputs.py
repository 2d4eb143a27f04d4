"""Subjects of a captioning: rows to fit on, rows to judge on, and the images and texts that captions come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError
from neuroenc.data import EncodingData, Stimuli
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.workflows._caption_config import WORLD, CaptionConfig, HeldOutConfig
from neuroenc.workflows._evaluate import noise_ceilings
from neuroenc.workflows._inputs import first_captions, load_data, prepare_responses

__all__ = ["Bank", "Subject", "Texts", "load_bank_of", "load_subjects", "load_texts"]


@dataclass(frozen=True)
class Subject:
    """Rows of one subject; features at unit norm.

    Attributes
    ----------
    name : str
    X, X_test : DataArray (row, feature)
    Y, Y_test : DataArray (row, voxel)
    ceilings : dict of array (voxel,)
    truth : Dataset or None
        Of simulated cortex.
    """

    name: str
    X: xr.DataArray
    Y: xr.DataArray
    X_test: xr.DataArray
    Y_test: xr.DataArray
    ceilings: dict[str, np.ndarray]
    truth: xr.Dataset | None = None


@dataclass(frozen=True)
class Bank:
    """Raw embeddings that weights are projected onto, what they show, and what that is called."""

    embeddings: Any
    stimuli: Stimuli | None
    name: str


@dataclass(frozen=True)
class Texts:
    """A caption bank: texts, their vectors, and the id of each one's image."""

    captions: list[str]
    vectors: np.ndarray
    ids: list[str]
    name: str


def load_subjects(
    config: CaptionConfig, mirror: str | None, progress: bool
) -> tuple[list[Subject], Stimuli | None, Stimuli | None]:
    """Subjects, the stimuli that they saw, and scenes of the same world that nobody saw (None for real data)."""
    if config.data.name == "world":
        return _world(config, progress)
    found = load_data(config.data, mirror, progress)
    by_row = config.held_out.scheme in ("run", "session")
    single = prepare_responses(found, config.data, keep_presentations=True)
    responses = single if by_row else prepare_responses(found, config.data, keep_presentations=False)
    train, test = _split(responses, config.held_out, config.seed)
    vectors = _embed(config, found.stimuli, progress)
    ceilings = noise_ceilings(found, single, test)
    name = str(responses.coords["subject"].values.flat[0]) if "subject" in responses.coords else "subject"
    subject = Subject(name, data.match(vectors, train), train, data.match(vectors, test), test, ceilings)
    return [subject], found.stimuli, None


def _split(responses: xr.DataArray, config: HeldOutConfig, seed: int) -> tuple[xr.DataArray, xr.DataArray]:
    if config.scheme == "stimulus":
        return data.split_by_stimulus(responses, config.share, seed=seed)
    if config.scheme == "test":
        return data.shared_test(responses, config.test_ids)
    if config.scheme not in responses.coords:
        raise ConfigError(f'[held_out] scheme = "{config.scheme}": the responses have no {config.scheme} numbers.')
    numbers = np.unique(responses.coords[config.scheme].values)
    if not 0 < config.n_last < len(numbers):
        raise ConfigError(
            f"held_out.n_last = {config.n_last}, but there are {len(numbers)} {config.scheme}s; legal is 1 to "
            f"{len(numbers) - 1}."
        )
    # Designs with few categories show them in every run; leaving runs out is then about noise, not stimuli.
    return data.split_by(responses, config.scheme, numbers[-config.n_last :].tolist(), shared="keep")


def _embed(config: CaptionConfig, stimuli: Stimuli | None, progress: bool) -> xr.DataArray:
    """One row a stimulus, at unit norm."""
    if stimuli is None:
        raise ConfigError("captions need stimuli. Next step: [data] images, or captions.")
    space = config.space
    options: dict[str, Any] = {"progress": progress}
    if space.stimuli == "captions":
        raw = TextEmbedder(space.model, space.pretrained or None, **options).embed_captions(stimuli)
    else:
        raw = ImageEmbedder(space.model, space.pretrained or None, **options).embed(stimuli)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    unit.attrs.update(raw.attrs, normalised=1)
    return unit


def _world(config: CaptionConfig, progress: bool) -> tuple[list[Subject], Stimuli, Stimuli]:
    o: dict[str, Any] = {**WORLD, **config.data.options}
    # Seeds of the scenes are far from those that the world's models were trained on.
    seed = 71_000 + 2 * config.seed if o["world_seed"] is None else int(o["world_seed"])
    shown = simulate_world(o["n_train"] + o["n_test"], seed=seed)
    unseen = simulate_world(o["n_bank"], seed=seed + 1)
    test_ids = shown.ids[o["n_train"] :]
    found = simulate_cortex(
        shown, n_subjects=o["n_subjects"], n_voxels=o["n_voxels"], test_ids=test_ids, seed=config.seed
    )
    vectors = _embed(config, shown, progress)
    subjects = []
    for one in found:
        assert one.responses is not None
        scaled = data.validate_responses(data.zscore(one.responses, by="session"), zscored="session")
        train, single = data.shared_test(scaled, test_ids)
        train, test = data.average_repeats(train), data.average_repeats(single)
        ceilings = noise_ceilings(EncodingData(None, None), single, test)
        name = str(one.responses.coords["subject"].values.flat[0])
        subjects.append(
            Subject(name, data.match(vectors, train), train, data.match(vectors, test), test, ceilings, one.truth)
        )
    return subjects, shown, unseen


def load_bank_of(
    config: CaptionConfig,
    subjects: list[Subject],
    shown: Stimuli | None,
    unseen: Stimuli | None,
    texts: Texts | None,
    mirror: str | None,
    progress: bool,
) -> Bank:
    """The bank that ``[bank]`` names."""
    source, space = config.bank.source, config.space
    if source == "captions":
        assert texts is not None
        labelled = data.make_features(texts.vectors, stimulus=_unique(texts.ids))
        return Bank(labelled, None, texts.name)
    if Path(source).is_dir():
        from neuroenc.retrieval import as_bank

        return Bank(as_bank(source), None, Path(source).name)
    if source == "unseen":
        stimuli = unseen
    elif source == "stimuli":
        assert shown is not None
        ids = pd.unique(np.concatenate([s.Y.coords["stimulus"].values for s in subjects]))
        stimuli = shown.sel(ids)
    else:
        stimuli = data.load_dataset(source, mirror=mirror).stimuli
    if stimuli is None or stimuli.images is None:
        raise ConfigError(f'[bank] source = "{source}" has no images.')
    raw = ImageEmbedder(space.model, space.pretrained or None, progress=progress).embed(stimuli)
    return Bank(raw, stimuli, stimuli.source or source)


def load_texts(
    config: CaptionConfig,
    subjects: list[Subject],
    shown: Stimuli | None,
    unseen: Stimuli | None,
    mirror: str | None,
    progress: bool,
) -> Texts | None:
    """The caption bank that ``[decoder]`` names; None where the bank's images have no captions."""
    name = config.decoder.caption_bank
    if name == "bank" and config.bank.source == "captions":
        raise ConfigError('[decoder] caption_bank = "bank" and [bank] source = "captions" name each other.')
    if name == "bank":
        source = config.bank.source
        if Path(source).is_dir():
            return None
        name = "stimuli" if source == "stimuli" else source
    if name == "unseen":
        stimuli = unseen
    elif name == "stimuli":
        assert shown is not None
        stimuli = shown.sel(pd.unique(np.concatenate([s.Y.coords["stimulus"].values for s in subjects])))
    else:
        stimuli = data.load_dataset(name, mirror=mirror).stimuli
    if stimuli is None or stimuli.captions is None:
        return None
    captions, ids = first_captions(stimuli, config.decoder.captions_per_stimulus)
    vectors = TextEmbedder(config.space.model, config.space.pretrained or None, progress=progress).embed(captions)
    return Texts(captions, vectors.values, ids, stimuli.source or name)


def _unique(ids: list[str]) -> list[str]:
    """Ids with a number where an image has several captions."""
    seen: dict[str, int] = {}
    out = []
    for name in ids:
        seen[name] = seen.get(name, -1) + 1
        out.append(f"{name}#{seen[name]}")
    return out
