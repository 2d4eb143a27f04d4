"""Responses, stimuli and feature spaces, from data sets, the simulated world, or the user's own files."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import check_readable_file, read_npy
from neuroenc._core.optional import require
from neuroenc._core.store import content_key
from neuroenc._core.tables import numbers, read_table, whole_numbers
from neuroenc.captions import aspect_bands
from neuroenc.data import EncodingData, Stimuli, find_pictures
from neuroenc.data.simulate import describe_cells, simulate_cortex, simulate_movie, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder, caption_grid
from neuroenc.encoders import Delayer
from neuroenc.study.config import COMPARED, MOVIE, WORLD, DataConfig, FeaturesConfig, StudyConfig
from neuroenc.study.study import Study, stage

_SAMPLES = ("stimulus", "subject", "session", "run", "repeat")


@dataclass(frozen=True)
class Subject:
    """Prepared responses of one subject.

    Attributes
    ----------
    responses : DataArray (row, voxel)
        What encoders are fitted to: z-scored, repeats averaged unless runs or sessions are left out.
    single : DataArray (row, voxel)
        Single presentations, for noise ceilings.
    repeats : DataArray or None
        Raw repeats, where the data set brings them beside averaged responses.
    truth : Dataset or None
        Of simulated cortex.
    """

    name: str
    responses: xr.DataArray
    single: xr.DataArray
    repeats: xr.DataArray | None = None
    truth: xr.Dataset | None = None
    stimuli: Stimuli | None = None
    animal: str = ""

    def content_hash(self) -> str:
        """Hash of responses, repeats and truth; stimuli count where features are made of them."""
        return content_key(self.name, self.responses, self.repeats, self.truth)


@stage("load", reads=("config.data", "config.evaluation", "config.seed"), writes=("subjects", "stimuli", "unseen"))
def load(study: Study) -> dict[str, Any]:
    """Responses and stimuli of ``[data]``, z-scored, repeats averaged unless folds need single presentations."""
    config = study.config
    unseen = None
    if "responses" in study.given:
        parts = [EncodingData(data.validate_responses(study.given["responses"]), study.given.get("stimuli"))]
    elif config.data.name == "world":
        parts, unseen = _world(config)
    elif config.data.name == "movie":
        o = {**{k: default for k, (default, _) in MOVIE.items()}, **config.data.options}
        made: dict[str, Any] = {k: int(v) for k, v in o.items()}
        parts = [simulate_movie(**made, seed=config.seed)]
    else:
        joined = [{option: str(v)} for option, values in config.data.join.items() for v in values]
        parts = [load_data(config.data, study.mirror, study.progress, **one) for one in joined or [{}]]
    by_row = config.evaluation.scheme in ("run", "session", "block")
    subjects = []
    atlas = data.load_atlas(config.data.atlas) if config.data.atlas else None
    for number, part in enumerate(parts):
        if atlas is not None and part.responses is not None:
            part = replace(part, responses=data.add_atlas(part.responses, atlas))
        single = prepare_responses(part, config.data, keep_presentations=True)
        responses = single if by_row else prepare_responses(part, config.data, keep_presentations=False)
        name = "subject" if len(parts) == 1 else str(number)
        if "subject" in responses.coords:
            name = str(responses.coords["subject"].values.flat[0])
        animal = str(part.extra.get("animal", ""))
        subjects.append(Subject(name, responses, single, part.extra.get("repeats"), part.truth, part.stimuli, animal))
        unit = "stimuli" if responses.dims[0] == "stimulus" else "presentations"
        study.say(
            f"    {name}: {len(responses)} {unit}, {responses.shape[1]} voxels, z-scored by "
            f"{responses.attrs.get('zscored', 'none')}"
        )
    return {"subjects": tuple(subjects), "stimuli": parts[0].stimuli, "unseen": unseen}


def _world(config: StudyConfig) -> tuple[list[EncodingData], Stimuli | None]:
    """Subjects of the simulated world, and scenes of it that nobody saw."""
    o: dict[str, Any] = {**{k: default for k, (default, _) in WORLD.items()}, **config.data.options}
    # Seeds of the scenes are far from those that the world's models were trained on.
    seed = 71_000 + 2 * config.seed if o["world_seed"] is None else int(o["world_seed"])
    shown = simulate_world(o["n_train"] + o["n_test"], seed=seed)
    unseen = simulate_world(o["n_bank"], seed=seed + 1) if config.captions else None
    found = simulate_cortex(
        shown,
        n_subjects=o["n_subjects"],
        n_voxels=o["n_voxels"],
        n_repeats=o["n_repeats"],
        test_ids=shown.ids[o["n_train"] :] if o["n_test"] else None,
        own=o["own"],
        seed=config.seed,
    )
    table = shown.table.assign(test=np.arange(len(shown)) >= o["n_train"])
    shown = Stimuli(shown.ids, shown.images, shown.captions, table, shown.source, shown.licence)
    return [EncodingData(one.responses, shown, truth=one.truth) for one in found], unseen


@stage("embed", reads=("subjects", "stimuli", "config.features"), writes=("spaces",))
def embed(study: Study) -> dict[str, Any]:
    """Feature spaces of ``[features.NAME]``, one row a stimulus (features of stimuli are cached by themselves)."""
    if "features" in study.given:
        spaces = {k: flatten(data.validate_features(v)) for k, v in study.given["features"].items()}
    else:
        # Pixels, grids of captions, joined spaces and those trained in its folds are of the comparison.
        wanted = {k: v for k, v in study.config.features.items() if v.kind not in COMPARED}
        series = {k: v for k, v in wanted.items() if v.kind == "series"}
        spaces = make_spaces({k: v for k, v in wanted.items() if k not in series}, study.stimuli, study.progress)
        spaces |= {k: load_series(v, study.subjects[0].responses) for k, v in series.items()}
        spaces = {k: delayed(flatten(spaces[k]), v.delays, k) for k, v in wanted.items()}
    for name, space in spaces.items():
        study.say(f"    {name}: {space.shape[1]} features")
    return {"spaces": spaces}


def refuse_series(study: Study, what: str) -> None:
    """Refuse time series and delayed features where encoders have no delays: they would not see the response at all."""
    settings = study.config.features.items()
    told = [f"[features.{k}] has delays" for k, v in settings if v.delays]
    told += [
        f"the responses of {one.name} are a time series" for one in study.subjects if data.is_series(one.responses)
    ]
    if told:
        raise ConfigError(
            f"{told[0]}, and {what} are of responses to single stimuli. Next step: neuroenc run, with a table "
            "[features.NAME] for each feature space."
        )


def delayed(space: xr.DataArray, delays: Sequence[int], name: str) -> xr.DataArray:
    """Features at the delays of ``[features.NAME]``; their rows must be volumes."""
    if not delays:
        return space
    if "run" not in space.coords and data.volume_numbers(space["stimulus"].values) is None:
        raise ConfigError(
            f"[features.{name}] delays: stimuli such as {str(space['stimulus'].values[0])!r} are no volumes. "
            'Next step: name them by run and volume, "run01:0005" (neuroenc.data.make_timeseries), or leave delays out.'
        )
    return Delayer(delays).fit_transform(space)


def load_series(config: FeaturesConfig, responses: xr.DataArray) -> xr.DataArray:
    """Features of a CSV with times of their own, at the volumes of the responses."""
    where = f"[features] file {config.file}"
    table = read_table(config.file, ["time"], what="[features] file")
    names = [str(c) for c in table.columns if c not in ("time", "run", "session")]
    if not names:
        raise DataError(f"{where} has no columns beside time, run and session.")
    values = np.stack([numbers(table, c, Path(config.file)) for c in ("time", *names)], axis=1)
    rows: dict[str, Any] = {k: whole_numbers(table, k, where) for k in ("run", "session") if k in table}
    found = data.resample_to_volumes(values[:, 1:], responses, times=values[:, 0], kind=config.resample, **rows)
    return found.assign_coords(feature=names)


def load_data(config: DataConfig, mirror: str | None = None, progress: bool = True, **options: Any) -> EncodingData:
    """Responses and stimuli that ``[data]`` names; ``options`` of a data set are beside those of the config."""
    if config.name:
        found = data.load_dataset(config.name, mirror=mirror, progress=progress, **config.options, **options)
        if found.responses is None:
            raise ConfigError(f"data set {config.name!r} has stimuli but no responses to fit.")
        return found
    responses = _own_responses(config)
    return EncodingData(responses, _own_stimuli(config, responses))


def _own_responses(config: DataConfig) -> xr.DataArray:
    path = Path(config.responses)
    if data.is_assembly(path):
        found = data.read_assembly(path).responses
        assert found is not None
        return data.validate_responses(found, allow_nan=True)
    if path.suffix in (".nc", ".zarr"):
        return data.validate_responses(load_labelled(path, "[data] responses"), allow_nan=True)
    labels = sample_labels(config)
    if path.suffix == ".npy":
        values = _load_numbers(path, "[data] responses", (2,), "one row a sample and one column a voxel")
        return data.make_responses(values, **labels)
    return data.load_masked(path, config.mask, config.rois or None).responses(**labels)


def sample_labels(config: DataConfig) -> dict[str, Any]:
    """Labels of the rows by name, of ``[data] samples``: text, and whole numbers of sessions, runs and repeats."""
    table = read_table(config.samples, ["stimulus"], optional=_SAMPLES, what="[data] samples")
    labels: dict[str, Any] = {}
    for name in _SAMPLES:
        if name not in table:
            continue
        if name in ("stimulus", "subject"):
            _refuse_empty(table, name, f"[data] samples {config.samples}")
            labels[name] = table[name].to_numpy().astype(str)
        else:
            labels[name] = whole_numbers(table, name, f"[data] samples {config.samples}")
    if not len(table):
        raise DataError(f"[data] samples {config.samples} has column names and no rows.")
    return labels


def _refuse_empty(table: pd.DataFrame, name: str, where: str) -> None:
    empty = np.flatnonzero(table[name] == "")
    if len(empty):
        raise DataError(
            f"{where}, row {empty[0] + 1}: {name} is empty ({len(empty)} of {len(table)} rows). Next step: fill it, or "
            "leave that row out (of samples: of the responses too)."
        )


def _own_stimuli(config: DataConfig, responses: xr.DataArray) -> Stimuli | None:
    source, ids = config.images or config.captions, pd.unique(responses.coords["stimulus"].values)
    images = find_pictures(config.images, ids) if config.images else None
    captions = _captions(config.captions, ids) if config.captions else None
    return Stimuli(ids, images, captions=captions, source=source) if source else None


def _captions(path: str, ids: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Captions of each stimulus, as the table has them; ids meet in composed form, as those of pictures do."""
    table = read_table(path, ["stimulus", "caption"], what="[data] captions")
    for name in ("stimulus", "caption"):
        _refuse_empty(table, name, f"[data] captions {path}")
    grouped: dict[str, list[str]] = {}
    for stimulus, caption in zip(table["stimulus"], table["caption"]):
        grouped.setdefault(unicodedata.normalize("NFC", stimulus), []).append(caption)
    found = tuple(tuple(grouped.get(unicodedata.normalize("NFC", str(s)), ())) for s in ids)
    if not any(found):
        raise DataError(
            f"[data] captions {path} has no caption of any stimulus; it has {list(grouped)[:3]}, the "
            f"responses {[str(s) for s in ids[:3]]}."
        )
    return found


def prepare_responses(found: EncodingData, config: DataConfig, keep_presentations: bool) -> xr.DataArray:
    """Z-score, and average repeats of a stimulus unless folds need single presentations."""
    responses = found.responses
    assert responses is not None
    if responses.size and bool((responses.data == responses.data[:1]).all()):
        raise DataError(f"responses of all {responses.shape[1]} voxels are constant: there is nothing to predict.")
    by = config.zscore
    if data.is_series(responses) and (config.detrend != "none" or any(config.trim)):
        how: dict[str, Any] = {"drift": config.detrend, "high_pass": config.high_pass, "trim": tuple(config.trim)}
        responses = data.clean_timeseries(responses, **how)
    elif config.detrend != "none" or any(config.trim):
        raise ConfigError("[data] detrend and trim are of time series; these responses have no coordinate time.")
    if by == "auto" and data.is_series(responses):
        by = "run" if responses.attrs.get("zscored", "none") == "none" else "none"
    elif by == "auto":
        single = responses.dims[0] == "presentation" and responses.attrs.get("zscored", "none") == "none"
        by = "session" if single and "session" in responses.coords else "none"
    if by != "none":
        responses = data.zscore(responses, by=by)
    declared = responses.attrs.get("zscored", "none")
    data.validate_responses(responses, zscored=None if declared == "none" else declared)
    if config.average and not keep_presentations and responses.dims[0] == "presentation":
        responses = data.average_repeats(responses)
    return responses


def standardised(study: Study, space: str) -> bool:
    """Whether encoders standardise a feature space; one that was given in memory is."""
    settings = study.config.features.get(space)
    return settings is None or settings.standardise


def image_embedder(
    config: FeaturesConfig, progress: bool = False, layers: Sequence[str] | None = None, **options: Any
) -> ImageEmbedder:
    """The layer of a vision model of ``[features.NAME]``, or ``layers`` of it; ``options`` are of the embedder."""
    return ImageEmbedder(
        config.model,
        config.pretrained or None,
        layer=None if layers else config.layer or None,
        layers=layers,
        pooling=config.pooling if config.pooling != "" else None,
        normalise=config.normalise,
        preprocessing=config.preprocessing or None,
        progress=progress,
        **options,
    )


def text_embedder(config: FeaturesConfig, progress: bool = False) -> TextEmbedder:
    """The text model that ``[features.NAME]`` describes."""
    return TextEmbedder(
        config.model,
        config.pretrained or None,
        layer=config.layer or None,
        prompt=config.prompt or None,
        system=config.system,
        normalise=config.normalise,
        progress=progress,
    )


def make_spaces(
    features: Mapping[str, FeaturesConfig], stimuli: Stimuli | None, progress: bool = True
) -> dict[str, xr.DataArray]:
    """Features of each space by name; layers of one image model are computed in one forward pass.

    Spaces that others join must be among them; those that are trained within folds are left out.
    """
    together: dict[str, list[str]] = {}
    for name, config in features.items():
        if config.kind == "aspects" or (config.kind == "image" and config.layer):
            key = config.model_dump_json(exclude={"layer" if config.kind == "image" else "aspects", "standardise"})
            together.setdefault(key, []).append(name)
    found: dict[str, xr.DataArray] = {}
    for names in together.values():
        if features[names[0]].kind == "aspects" and stimuli is not None:
            # Captions are parsed once for all aspects.
            wanted = list(dict.fromkeys(a for name in names for a in features[name].aspects))
            bands = _aspects(features[names[0]], stimuli, wanted, progress)
            found |= {name: bands[:, np.isin(bands["band"], features[name].aspects)] for name in names}
            continue
        layers = {features[name].layer: name for name in names}
        if len(layers) > 1 and stimuli is not None:
            made = image_embedder(features[names[0]], progress, list(layers)).embed_layers(stimuli)
            found |= {name: made[features[name].layer] for name in names}
    for name, config in features.items():
        if name not in found and config.kind not in ("join", "trained"):
            found[name] = make_features(config, stimuli, progress)
    return {
        name: join_features({k: found[k] for k in config.spaces}, config.grid) if config.kind == "join" else found[name]
        for name, config in features.items()
        if config.kind != "trained"
    }


def with_joined(features: Mapping[str, FeaturesConfig], names: Container[str]) -> dict[str, FeaturesConfig]:
    """Spaces of these names, and those that they join."""
    inner = {other for name, config in features.items() if name in names for other in config.spaces}
    return {name: config for name, config in features.items() if name in names or name in inner}


def join_features(parts: Mapping[str, xr.DataArray], grid: int) -> xr.DataArray:
    """Feature spaces side by side, along channels of maps of ``grid`` x ``grid`` cells, or along features.

    A vector is the same in every cell. The coordinate ``space`` tells which space a channel is of.
    """
    first = next(iter(parts.values()))
    arrays, labels = [], []
    maps = any(part.ndim == 4 for part in parts.values())
    for name, part in parts.items():
        if part.ndim == 3:
            raise DataError(
                f"feature space {name!r} is of tokens. Next step: pooling = {grid}, which makes them a map."
            )
        values = data.match(part, first).values if part is not first else part.values
        if maps and values.ndim == 2:
            values = np.broadcast_to(values[:, :, None, None], (*values.shape, grid, grid))
        elif maps:
            values = _resized(values, grid)
        arrays.append(values)
        labels += [name] * values.shape[1]
    dims = ("stimulus", "channel", "y", "x") if maps else ("stimulus", "feature")
    coords = {"stimulus": first["stimulus"].values, "space": (dims[1], labels)}
    seen = [data.match(part, first)["trained_on"].values for part in parts.values() if "trained_on" in part.coords]
    if seen:
        coords["trained_on"] = ("stimulus", np.any(seen, axis=0))
    return xr.DataArray(np.concatenate(arrays, axis=1), dims=dims, coords=coords, name="features")


def _resized(maps: np.ndarray, grid: int) -> np.ndarray:
    """Maps (n, channel, y, x) on ``grid`` x ``grid`` cells: averages where they are finer, else interpolated."""
    import torch

    tensor = torch.as_tensor(maps)
    if min(maps.shape[2:]) >= grid:
        return torch.nn.functional.adaptive_avg_pool2d(tensor, grid).numpy()
    return torch.nn.functional.interpolate(tensor, (grid, grid), mode="bilinear", align_corners=False).numpy()


def make_features(config: FeaturesConfig, stimuli: Stimuli | None, progress: bool = True) -> xr.DataArray:
    """Features that ``[features.NAME]`` describes, one row a stimulus, as the map, tokens or vectors that they are."""
    if config.kind == "file":
        return load_features(config)
    if config.kind == "series":
        raise ConfigError('[features] kind = "series" is of neuroenc run; comparisons read kind = "file".')
    if stimuli is None:
        raise ConfigError(f'[features] kind = "{config.kind}" needs stimuli. Next step: [data] images or captions.')
    if config.kind == "columns":
        known = list(map(str, stimuli.table.select_dtypes("number").columns))
        for name in config.columns:
            if name not in known:
                raise ConfigError(unknown_name("column of [features] columns:", name, known))
        names = config.columns or known
        if not names:
            raise ConfigError('[features] kind = "columns": the table of stimuli has no columns of numbers.')
        return data.make_features(stimuli.table[names].to_numpy(), stimulus=stimuli.ids, feature=names)
    if config.kind == "pixels":
        return _pixels(stimuli, config.size)
    if config.kind == "image":
        return image_embedder(config, progress).embed(stimuli)
    if config.kind == "aspects":
        return _aspects(config, stimuli, config.aspects, progress)
    text = text_embedder(config, progress)
    if config.kind == "captions":
        return text.embed_captions(stimuli)
    cells = (config.grid, config.grid)
    if config.table:
        table = read_table(config.table, ("stimulus", "row", "column", "caption"), what="[features] table")
    else:
        table = describe_cells(stimuli, cells)
    return caption_grid(table, stimuli, text, grid=cells)


def _aspects(config: FeaturesConfig, stimuli: Stimuli, aspects: Sequence[str], progress: bool) -> xr.DataArray:
    """Vectors of the words of each aspect, side by side."""
    text = text_embedder(config.model_copy(update={"normalise": False}), progress)
    return aspect_bands(stimuli, text, aspects=aspects, normalise=config.normalise)


def _pixels(stimuli: Stimuli, size: int) -> xr.DataArray:
    """Pictures (stimulus, channel, y, x), uint8, ``size`` pixels a side."""
    values = np.empty((len(stimuli), 3, size, size), dtype=np.uint8)
    for n in range(len(stimuli)):
        image = stimuli.image(n)
        if image.size != (size, size):
            whole = image.size[0] % size == 0
            image = image.resize((size, size), Image.Resampling.BOX if whole else Image.Resampling.BICUBIC)
        values[n] = np.asarray(image).transpose(2, 0, 1)
    return xr.DataArray(values, dims=("stimulus", "channel", "y", "x"), coords={"stimulus": stimuli.ids}, name="pixels")


def load_features(config: FeaturesConfig) -> xr.DataArray:
    """Features of one's own, of a .nc or .zarr, or of a .npy whose rows a table names."""
    path = Path(config.file)
    if path.suffix != ".npy":
        return data.validate_features(load_labelled(path, "[features] file"))
    values, ids = feature_rows(config)
    _, first, of = np.unique(ids, return_index=True, return_inverse=True)
    for at in np.flatnonzero(first[of] != np.arange(len(ids))):
        before = first[of[at]]
        if not np.array_equal(values[at], values[before], equal_nan=True):
            raise DataError(
                f"{path}: rows {before + 1} and {at + 1} are both of stimulus {str(ids[at])!r} and differ. "
                "Next step: give every stimulus one row, or equal rows."
            )
    rows = np.sort(first)
    return data.make_features(values[rows], stimulus=ids[rows])


def load_labelled(path: str | os.PathLike[str], what: str) -> xr.DataArray:
    """The one labelled array of a file."""
    found = data.load(path)
    if not isinstance(found, xr.DataArray):
        raise DataError(f"{what} {path} holds a {type(found).__name__}; expected one DataArray, as data.save writes.")
    return found


def _load_numbers(path: str | os.PathLike[str], what: str, dims: Container[int], rows: str) -> np.ndarray:
    values = read_npy(path, what)
    if values.ndim not in dims or 0 in values.shape or values.dtype.kind not in "fiub":
        raise DataError(f"{what} {path} has shape {values.shape} and dtype {values.dtype}; expected numbers, {rows}.")
    return values


def check_array(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a file of an array that is not there or may not be read, and a .zarr without the package for it."""
    if Path(path).suffix == ".zarr" and Path(path).is_dir():
        require("zarr", "big")
    else:
        check_readable_file(path, what)


def feature_rows(config: FeaturesConfig, where: str = "[features]") -> tuple[np.ndarray, np.ndarray]:
    """Values of a .npy, mapped into memory, and the stimulus of each row."""
    values = _load_numbers(config.file, f"{where} file", range(2, 33), "one row a stimulus")
    ids = read_table(config.samples, ["stimulus"], what=f"{where} samples")["stimulus"].to_numpy(dtype=str)
    if len(ids) != len(values):
        raise DataError(f"{config.file} has {len(values)} rows, {config.samples} {len(ids)}; they must agree.")
    return values, ids


def flatten(features: xr.DataArray) -> xr.DataArray:
    """Maps and tokens as one row a stimulus, in C order."""
    if features.ndim == 2:
        return features
    attrs = dict(features.attrs)
    values = features.values.reshape(features.sizes["stimulus"], -1)
    kept = {k: attrs[k] for k in ("backbone", "weights", "layer", "pooling", "provenance") if k in attrs}
    return data.make_features(values, stimulus=features.coords["stimulus"].values, **kept)
