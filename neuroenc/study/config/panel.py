"""A panel as its TOML file describes it: data by hash, and tasks of region, metric and form of stimuli."""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
from pydantic import model_validator

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.files import hash_json, read_text
from neuroenc.data import load_manifest
from neuroenc.study.config.table import Count, Seed, Table

Form = Literal["images", "words"]
Metric = Literal["r", "rsa", "retrieval"]


class DataRecord(Table):
    """Where a source's data are from: ``[data.NAME]``.

    Attributes
    ----------
    hash
        Start of the SHA-256 over the files' own (of the world: over ids and captions of its scenes).
    licence
        As its manifest has it.
    citation
        As its manifest has it.
    words
        Captions of stimuli that have none of their own, in the order of the data set.
    """

    hash: str = ""
    licence: str
    citation: str
    words: list[str] = []


class SourceConfig(Table):
    """Responses (or dissimilarities) of one subject or session, ``[[sources]]``: a task for each region, metric, form.

    Attributes
    ----------
    name
        First part of the names of its tasks.
    data
        A data set of ``neuroenc data list``, or "world".
    options
        Of the data set's loader; of the world ``n, seed, cortex_seed, n_subjects, n_voxels, n_repeats``.
    subject
        Which subject of those that are loaded ("" for the only one).
    regions
        Labels of ``roi`` by region; an empty list is all voxels.
    metrics
        "r": median over voxels of the correlation of held-out responses with those that ridge predicts from the
        model's features, divided by the noise ceiling where stimuli were repeated. "rsa": Spearman r of the
        dissimilarities of responses (as published, or 1 - r) and of features (1 - r). "retrieval": share of measured
        patterns whose stimulus has the best predicted pattern in its gallery of hard negatives.
    stimuli
        Forms in which models may take them: a task for each.
    n_stimuli
        Of a fixed draw, or all that there are.
    n_folds
        Outer folds of ridge, by stimulus.
    n_rsa
        Stimuli of the dissimilarities, drawn from the others.
    splits
        Start of the SHA-256 of the draw and the folds.
    """

    name: str
    data: str
    options: dict[str, Any] = {}
    subject: str = ""
    regions: dict[str, list[str]]
    metrics: list[Metric]
    stimuli: list[Form]
    n_stimuli: Count = 400
    n_folds: Count = 4
    n_rsa: Count = 120
    splits: str = ""


class PanelConfig(Table):
    """A panel: what `neuroenc panel run` measures models on.

    Attributes
    ----------
    name
        What it is called by.
    version
        Another one is another panel.
    title
        What it holds.
    citation
        What it is cited by.
    seed
        Of draws, folds and resamples.
    n_bootstraps
        Resamples of stimuli.
    gallery
        Candidates for each measured pattern, of which one is right.
    k
        Places that count.
    pooling
        Layers with places are averaged over so many cells a side.
    data
        Data sets by name.
    sources
        What tasks are of.
    """

    name: str
    version: str
    title: str
    citation: str
    seed: Seed = 0
    n_bootstraps: Count = 1000
    gallery: Count = 20
    k: Count = 1
    pooling: Count = 4
    data: dict[str, DataRecord]
    sources: list[SourceConfig]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [s.name for s in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"source {name!r} stands twice. Next step: give each a name of its own.")
        for one in self.sources:
            if one.data not in self.data:
                raise ConfigError(unknown_name(f"data of source {one.name!r}:", one.data, self.data))
        return self

    def tasks(self) -> pd.DataFrame:
        """One row a task: ``task, track, source, data, subject, region, metric``."""
        rows = [
            (f"{s.name}/{region}/{metric}/{form}", form, s.name, s.data, s.subject or s.name, region, metric)
            for s in self.sources
            for form in s.stimuli
            for region in s.regions
            for metric in s.metrics
        ]
        return pd.DataFrame(rows, columns=["task", "track", "source", "data", "subject", "region", "metric"])

    def content_hash(self) -> str:
        """Hash of all that it asks for, which tells tables that may be joined."""
        return hash_json(self.model_dump())


def list_panels() -> list[str]:
    """Names of the panels that come with neuroenc.

    Examples
    --------
    >>> list_panels()
    ['offline-1']
    """
    folder = resources.files("neuroenc.study.panels")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def read_panel(panel: str | os.PathLike[str]) -> PanelConfig:
    """A panel by its name, or from a TOML file of one's own.

    Parameters
    ----------
    panel : str or path

    Raises
    ------
    ConfigError
        An unknown name (the nearest is told), or a file that is no panel.

    Examples
    --------
    >>> read_panel("offline-1").version
    '1'
    """
    path = Path(panel)
    if path.suffix == ".toml":
        text = read_text(path, "panel")
    elif str(panel) in list_panels():
        text = resources.files("neuroenc.study.panels").joinpath(f"{panel}.toml").read_text(encoding="utf-8")
    else:
        raise ConfigError(unknown_name("panel", panel, list_panels(), "Or give a TOML file."))
    try:
        return PanelConfig(**tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{panel} is not TOML: {error}.") from None


def manifest_hash(name: str) -> str:
    """Hash of all files of a data set by their manifest."""
    return hash_json({f.path: f.sha256 for f in load_manifest(name).files})
