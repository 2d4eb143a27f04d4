"""What a source of a panel is measured on: responses or dissimilarities, stimuli, folds, galleries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ChecksumError, DataError, unknown_name
from neuroenc._core.files import hash_json
from neuroenc.data import EncodingData, Stimuli
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.retrieval import DenseIndex, Galleries, LexicalIndex, hard_gallery
from neuroenc.study.config import DataConfig
from neuroenc.study.config.panel import PanelConfig, SourceConfig, manifest_hash
from neuroenc.study.stages.load import prepare_responses
from neuroenc.study.stages.score import noise_ceilings

#: Characters of a hash that a panel's file has.
SHORT = 16
#: Cells a side of the pictures by which galleries are pooled.
_CELLS = 8


@dataclass(frozen=True)
class Material:
    """A source, loaded.

    Attributes
    ----------
    stimuli : Stimuli
        The drawn ones, with pictures, captions or both.
    responses : DataArray (stimulus, voxel) or None
        Averaged over repeats.
    ceilings : array (voxel,) or None
        Of a correlation.
    rdm : DataArray (stimulus, stimulus_2) or None
        Of sources without responses.
    regions : dict of str to array of int
        Positions of voxels.
    folds : list of (train, test)
    rsa, half : array
        Positions of stimuli whose dissimilarities count; which half each stimulus is in.
    """

    source: SourceConfig
    stimuli: Stimuli
    responses: xr.DataArray | None
    ceilings: np.ndarray | None
    rdm: xr.DataArray | None
    regions: Mapping[str, np.ndarray]
    folds: list[tuple[np.ndarray, np.ndarray]]
    rsa: np.ndarray
    half: np.ndarray
    galleries: Galleries | None


def absent(source: SourceConfig, mirror: Any) -> str:
    """Why a source's data cannot be read here, or "": nothing is downloaded for a panel."""
    if source.data == "world" or data.presence(data.load_manifest(source.data), mirror) != "no":
        return ""
    return f"{source.data} is not on this machine. Next step: neuroenc data fetch {source.data}"


class Loader:
    """Loads sources of a panel; what several of them share is read once."""

    def __init__(self, panel: PanelConfig, mirror: Any = None, progress: bool = False) -> None:
        self.panel, self.mirror, self.progress = panel, mirror, progress
        self._known: dict[str, Any] = {}

    def load(self, source: SourceConfig) -> Material:
        """The material of one source."""
        found = self._data(source)
        stimuli = self._with_words(found.stimuli, source)
        rng = np.random.default_rng([self.panel.seed, len(stimuli)])
        if found.responses is None:
            if "human" not in found.extra:
                raise DataError(
                    f"{source.data} has neither responses nor dissimilarities of subjects. Next step: a data set with "
                    "responses, or objects92."
                )
            rdm = found.extra["human"].mean("session").sel(subject=source.subject, drop=True)
            half = rng.permutation(len(stimuli)) % 2
            self._frozen(source, [list(map(str, stimuli.ids)), half.tolist()])
            every = np.arange(len(stimuli))
            return Material(
                source, stimuli, None, None, rdm, dict.fromkeys(source.regions, every), [], every, half, None
            )
        config = DataConfig(name=source.data)
        single = prepare_responses(found, config, keep_presentations=True)
        responses = prepare_responses(found, config, keep_presentations=False)
        ids = np.sort(np.unique(responses["stimulus"].values))
        ids = np.sort(rng.permutation(ids)[: source.n_stimuli])
        responses = responses[_rows(responses, ids)]
        ceilings = noise_ceilings(found.extra.get("repeats"), single, responses).get("noise_ceiling_r")
        stimuli = stimuli.sel(ids)
        folds = data.folds(responses, "stimulus", n_splits=source.n_folds, seed=self.panel.seed)
        half = rng.permutation(len(ids)) % 2
        rsa = np.sort(rng.permutation(len(ids))[: source.n_rsa])
        self._frozen(source, [list(map(str, ids)), [t.tolist() for _, t in folds], half.tolist(), rsa.tolist()])
        regions = {name: _voxels(responses, labels, source) for name, labels in source.regions.items()}
        galleries = self._galleries(stimuli, folds) if "retrieval" in source.metrics else None
        return Material(source, stimuli, responses, ceilings, None, regions, folds, rsa, half, galleries)

    def _data(self, source: SourceConfig) -> EncodingData:
        options = dict(source.options)
        key = hash_json([source.data, options])
        if key not in self._known:
            if source.data == "world":
                self._known[key] = _world(options)
                shown = self._known[key][0].stimuli
                found = hash_json([list(map(str, shown.ids)), [list(c) for c in shown.captions]])
            else:
                self._known[key] = [
                    data.load_dataset(source.data, mirror=self.mirror, progress=self.progress, **options)
                ]
                found = manifest_hash(source.data)
            expected = self.panel.data[source.data].hash
            if expected and not found.startswith(expected):
                raise ChecksumError(
                    f"{source.data} has hash {found[:SHORT]}, and panel {self.panel.name} was frozen with {expected}: "
                    "scores would not be comparable. Next step: the version of neuroenc that the panel names."
                )
        parts = self._known[key]
        if len(parts) == 1:
            return parts[0]
        names = [str(p.responses["subject"].values.flat[0]) for p in parts]
        if source.subject not in names:
            raise DataError(unknown_name(f"subject of {source.name}", source.subject, names))
        return parts[names.index(source.subject)]

    def _with_words(self, stimuli: Stimuli | None, source: SourceConfig) -> Stimuli:
        assert stimuli is not None
        words = self.panel.data[source.data].words
        if not words:
            return stimuli
        return Stimuli(
            stimuli.ids, stimuli.images, tuple((w,) for w in words), stimuli.table, stimuli.source, stimuli.licence
        )

    def _frozen(self, source: SourceConfig, drawn: Any) -> None:
        found = hash_json(drawn)
        if source.splits and not found.startswith(source.splits):
            raise ChecksumError(
                f"splits of {source.name} have hash {found[:SHORT]}, and panel {self.panel.name} was frozen with "
                f"{source.splits}: scores would not be comparable. Next step: the version of neuroenc that it names."
            )

    def _galleries(self, stimuli: Stimuli, folds: list[tuple[np.ndarray, np.ndarray]]) -> Galleries:
        """Of each stimulus, what is like it in colours, in contrasts and in words: no model that is compared is asked.

        Nor are the responses: what is like a measured pattern is like its noise too, and would beat its own stimulus.
        Candidates are of the stimulus' own fold for the same reason: other folds' predictions learned from its pattern.
        """
        looks = _looks(stimuli) if stimuli.images is not None else []
        ids = np.array([str(i) for i in stimuli.ids])
        size = min(self.panel.gallery, *(len(test) for _, test in folds))
        found = np.full((len(ids), size), "", dtype=object)
        for _, test in folds:
            indexes: list[Any] = [DenseIndex(vectors[test], ids=ids[test]) for vectors in looks]
            queries: list[Any] = [vectors[test] for vectors in looks]
            if stimuli.captions is not None:
                captions = [stimuli.captions[n] for n in test]
                indexes.append(LexicalIndex(captions, ids[test], aggregate="sum"))
                queries.append([" ".join(c) for c in captions])
            found[test] = hard_gallery(indexes, queries, [[i] for i in ids[test]], size=size).ids
        return Galleries(found.astype(str), np.arange(size) == np.zeros((len(ids), 1)))


def _looks(stimuli: Stimuli) -> list[np.ndarray]:
    """Colours of 8 x 8 cells, and contrasts (standard deviation of grey) of as many; (stimulus, feature) each."""
    side = _CELLS * 8
    pictures = [stimuli.image(n).convert("RGB").resize((side, side)) for n in range(len(stimuli))]
    cells = np.stack([np.asarray(x, dtype=np.float64) for x in pictures]).reshape(-1, _CELLS, 8, _CELLS, 8, 3)
    return [_standard(x.reshape(len(pictures), -1)) for x in (cells.mean(axis=(2, 4)), cells.mean(5).std(axis=(2, 4)))]


def _rows(responses: xr.DataArray, ids: np.ndarray) -> np.ndarray:
    """Positions of the rows of these stimuli, in their order."""
    place = {str(s): n for n, s in enumerate(responses["stimulus"].values)}
    return np.array([place[str(i)] for i in ids])


def _standard(values: np.ndarray) -> np.ndarray:
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _voxels(responses: xr.DataArray, labels: list[str], source: SourceConfig) -> np.ndarray:
    if not labels:
        return np.arange(responses.shape[1])
    inside = np.flatnonzero(np.isin(responses["roi"].values.astype(str), labels))
    if not len(inside):
        known = sorted(set(responses["roi"].values.astype(str)))
        raise DataError(unknown_name(f"roi of {source.name}", labels[0], known))
    return inside


def _world(options: dict[str, Any]) -> list[EncodingData]:
    shown = simulate_world(options["n"], seed=options["seed"])
    how = {k: options[k] for k in ("n_subjects", "n_voxels", "n_repeats")}
    found = simulate_cortex(shown, seed=options["cortex_seed"], **how)
    return [EncodingData(one.responses, shown, truth=one.truth) for one in found]
