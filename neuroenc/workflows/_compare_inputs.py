"""Responses, stimuli and feature spaces of a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import EncodingData, Stimuli
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.workflows._compare_config import WORLD, CompareDataConfig, SpaceConfig
from neuroenc.workflows._evaluate import noise_ceilings
from neuroenc.workflows._inputs import load_data, load_features, prepare_responses
from neuroenc.workflows._settings import check_world

__all__ = ["join_subjects", "load_comparison", "make_space", "scale_voxels"]


def load_comparison(
    config: CompareDataConfig, mirror: str | None = None, progress: bool = True
) -> tuple[xr.DataArray, Stimuli | None, np.ndarray | None]:
    """Responses (stimulus, voxel), stimuli, and noise ceilings as correlations where stimuli were repeated.

    Every voxel has mean 0 and variance 1 over what it saw, so that penalties mean the same for all; correlations do
    not depend on it.
    """
    if config.world:
        found = [_world(config.world)]
    elif config.join:
        ((option, values),) = config.join.items()
        chosen = [str(v) for v in (values if isinstance(values, list) else [values])]
        loads = [
            data.load_dataset(config.name, mirror=mirror, progress=progress, **{option: v}, **config.options)
            for v in chosen
        ]
        found = loads
    else:
        found = [load_data(config, mirror, progress)]
    for part in found:
        if part.responses is None:
            raise ConfigError(f"data set {config.name!r} has stimuli but no responses to fit.")
    rows = [prepare_responses(part, config, keep_presentations=False) for part in found]
    limits = []
    for part, averaged in zip(found, rows):
        single = prepare_responses(part, config, keep_presentations=True)
        ceilings = noise_ceilings(part, single, averaged)
        limits.append(ceilings.get("noise_ceiling_r", np.full(averaged.shape[1], np.nan)))
    ceiling = np.concatenate(limits)
    stimuli = found[0].stimuli
    if len(found) > 1 or config.join:
        joined = join_subjects([EncodingData(r, p.stimuli, extra=p.extra) for r, p in zip(rows, found)])
        responses, stimuli = joined.responses, joined.stimuli
    else:
        responses = rows[0]
    assert responses is not None
    return scale_voxels(responses), stimuli, None if np.isnan(ceiling).all() else ceiling


def _world(given: dict[str, Any]) -> EncodingData:
    check_world("data.world", given, WORLD)
    settings: dict[str, Any] = {**WORLD, **given}
    # Seeds of the scenes are far from those that the world's CLIP was trained on.
    scenes = simulate_world(settings["n_stimuli"], seed=80_000 + settings["seed"])
    subject = simulate_cortex(
        scenes, n_voxels=settings["n_voxels"], n_repeats=settings["n_repeats"], seed=settings["seed"]
    )[0]
    return EncodingData(subject.responses, scenes, extra=subject.extra)


def scale_voxels(responses: xr.DataArray) -> xr.DataArray:
    """Mean 0 and variance 1 of every voxel over the rows that it saw; constant voxels become 0."""
    values = responses.values.astype(np.float64)
    mean = np.nanmean(values, axis=0)
    scale = np.nanstd(values, axis=0)
    scale[scale == 0] = np.inf
    out = responses.copy(data=((values - mean) / scale).astype(np.float32))
    return out.assign_attrs(units="standard deviations of the voxel")


def _pictures(stimuli: Stimuli) -> list[str]:
    """Hash of every picture (of every id where there are none)."""
    if stimuli.images is None:
        return [f"id {i}" for i in stimuli.ids]
    return [
        hashlib.sha256(np.asarray(stimuli.image(n)).tobytes() + str(stimuli.image(n).size).encode()).hexdigest()
        for n in range(len(stimuli))
    ]


def join_subjects(parts: Sequence[EncodingData]) -> EncodingData:
    """Subjects side by side: one row a picture, every subject's voxels after those of the one before.

    Pictures that are equal to the pixel are one stimulus, under its first id: shown to two subjects they must be on
    the same side of a fold, and shown twice to one subject under two ids they are averaged.

    Parameters
    ----------
    parts : sequence of EncodingData
        Responses (stimulus, voxel) with a coordinate ``subject``; ``extra`` may name an ``animal``.

    Returns
    -------
    EncodingData
        ``responses`` (stimulus, voxel), NaN where a subject did not see a stimulus, with voxel coordinates
        ``subject``, ``unit`` (the voxel's number within its subject), ``roi`` and ``animal`` if known.
    """
    ids: dict[str, str] = {}
    kept: list[tuple[Stimuli, str]] = []
    names: list[np.ndarray] = []
    for part in parts:
        assert part.responses is not None
        if part.stimuli is None or part.responses.dims[0] != "stimulus":
            raise DataError("joining is by pictures: each subject needs stimuli and responses (stimulus, voxel).")
        lookup: dict[str, str] = {}
        for key, name in zip(_pictures(part.stimuli), part.stimuli.ids.tolist()):
            if key not in ids:
                ids[key] = name
                kept.append((part.stimuli, name))
            lookup[name] = ids[key]
        names.append(np.array([lookup[s] for s in part.responses["stimulus"].values.tolist()]))
    order = [name for _, name in kept]
    if len(set(order)) < len(order):
        raise DataError("different pictures have the same stimulus id in different subjects. Next step: rename them.")
    place = {name: n for n, name in enumerate(order)}
    total = np.full((len(order), sum(p.responses.shape[1] for p in parts if p.responses is not None)), np.nan)
    coords: dict[str, list[Any]] = {"subject": [], "unit": [], "roi": [], "animal": []}
    start = 0
    for part, seen in zip(parts, names):
        assert part.responses is not None
        values = pd.DataFrame(part.responses.values.astype(np.float64)).groupby(seen, sort=False).mean()
        n = part.responses.shape[1]
        total[np.ix_([place[s] for s in values.index], range(start, start + n))] = values.to_numpy()
        subject = str(part.responses["subject"].values.flat[0]) if "subject" in part.responses.coords else str(start)
        roi = part.responses["roi"].values.tolist() if "roi" in part.responses.coords else [""] * n
        found = {"subject": subject, "animal": part.extra.get("animal", "")}
        for name, value in found.items():
            coords[name].extend([str(value)] * n)
        coords["unit"].extend(part.responses["voxel"].values.tolist())
        coords["roi"].extend(roi)
        start += n
    first = parts[0].responses
    assert first is not None
    labels = {k: ("voxel", v) for k, v in coords.items() if any(v) or k == "unit"}
    responses = xr.DataArray(
        total.astype(np.float32),
        dims=("stimulus", "voxel"),
        name="responses",
        attrs=dict(first.attrs),
        coords={"stimulus": order, "voxel": np.arange(start), **labels},
    )
    return EncodingData(responses, _concatenate(kept))


def _concatenate(kept: Sequence[tuple[Stimuli, str]]) -> Stimuli:
    """Chosen stimuli of several sets as one."""
    groups: dict[int, tuple[Stimuli, list[str]]] = {}
    for source, name in kept:
        groups.setdefault(id(source), (source, []))[1].append(name)
    parts = [source.sel(names) for source, names in groups.values()]
    images: Any = None
    if all(p.images is not None for p in parts):
        arrays = [p.images for p in parts if isinstance(p.images, np.ndarray)]
        same = len(arrays) == len(parts) and len({a.shape[1:] for a in arrays}) == 1
        paths = [p.images for p in parts if isinstance(p.images, list)]
        if same:
            images = np.concatenate(arrays)
        elif len(paths) == len(parts):
            images = [f for p in paths for f in p]
        else:
            raise DataError("subjects have pictures of different sizes; give files instead of arrays.")
    captions = None
    if all(p.captions is not None for p in parts):
        captions = tuple(c for p in parts for c in p.captions or ())
    ids = np.concatenate([p.ids for p in parts])
    table = pd.concat([p.table for p in parts])
    return Stimuli(ids, images, captions, table, parts[0].source, parts[0].licence)


def make_space(
    name: str, config: SpaceConfig, stimuli: Stimuli | None, responses: xr.DataArray, progress: bool = True
) -> xr.DataArray:
    """Feature space that ``[features.NAME]`` describes, as the map, tokens or vectors that it is."""
    if config.kind == "file":
        return data.match(load_features(config), _once(responses))
    if stimuli is None:
        raise ConfigError(f'[features.{name}] kind = "{config.kind}" needs stimuli: [data] images or captions.')
    if config.kind == "pixels":
        return _pixels(stimuli, config.size)
    if config.kind in ("captions", "dense"):
        text = TextEmbedder(config.model, config.pretrained or None, normalise=config.normalise, progress=progress)
        return text.embed_captions(stimuli) if config.kind == "captions" else _dense(config, stimuli, text)
    return ImageEmbedder(
        config.model,
        config.pretrained or None,
        layer=config.layer or None,
        pooling=config.pooling if config.pooling != "" else None,
        normalise=config.normalise,
        preprocessing=config.preprocessing or None,
        progress=progress,
    ).embed(stimuli)


def _once(responses: xr.DataArray) -> xr.DataArray:
    ids = pd.unique(responses["stimulus"].values)
    return xr.DataArray(np.zeros((len(ids), 1)), dims=("stimulus", "voxel"), coords={"stimulus": ids})


def _pixels(stimuli: Stimuli, size: int) -> xr.DataArray:
    """Pictures (stimulus, channel, y, x), uint8, ``size`` pixels a side."""
    values = np.empty((len(stimuli), 3, size, size), dtype=np.uint8)
    for n in range(len(stimuli)):
        image = stimuli.image(n)
        if image.size != (size, size):
            image = image.resize(
                (size, size), Image.Resampling.BOX if image.size[0] % size == 0 else Image.Resampling.BICUBIC
            )
        values[n] = np.asarray(image).transpose(2, 0, 1)
    return xr.DataArray(values, dims=("stimulus", "channel", "y", "x"), coords={"stimulus": stimuli.ids}, name="pixels")


def _dense(config: SpaceConfig, stimuli: Stimuli, text: TextEmbedder) -> xr.DataArray:
    from neuroenc.embedding import caption_grid, world_dense_captions

    cells = (config.grid, config.grid)
    if config.table:
        table = pd.read_csv(config.table, dtype={"stimulus": str, "caption": str})
        missing = {"stimulus", "row", "column", "caption"} - set(table.columns)
        if missing:
            raise DataError(f"{config.table} lacks columns {sorted(missing)}; found {list(table.columns)}.")
    else:
        table = world_dense_captions(stimuli, cells)
    return caption_grid(table, stimuli.ids, text, grid=cells)
