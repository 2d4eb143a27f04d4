"""Feature spaces, cores and readouts side by side: the grid of fits, its statistics, its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.tables import write_table
from neuroenc._version import __version__
from neuroenc.data import EncodingData, Stimuli
from neuroenc.embedding import TextEmbedder, train_space
from neuroenc.encoders import cheapest, transfer_matrix
from neuroenc.encoders.comparison import (
    Cell,
    Comparison,
    Fold,
    build_cells,
    compare as compare_cells,
    identify_cells,
    make_folds,
)
from neuroenc.encoders.readout import retinotopy, template_retinotopy
from neuroenc.study.config import CompareConfig
from neuroenc.study.stages.distance import check_sizes
from neuroenc.study.stages.fit import evaluation_folds
from neuroenc.study.stages.leakage import comparison_leakage, near_across, near_summary, say_near
from neuroenc.study.stages.learning import cell_curves
from neuroenc.study.stages.load import Subject, make_spaces, refuse_series, with_joined
from neuroenc.study.stages.score import noise_ceilings
from neuroenc.study.study import Study, stage

# Settings of ``[compare]`` that the comparison takes by the same name.
_PASSED = ("cores", "validation", "n_candidates", "training", "n_components", "n_bootstraps")


@stage(
    "compare",
    reads=("subjects", "stimuli", "config.features", "config.compare", "config.evaluation", "config.seed"),
    writes=("comparison", "cell_curves", "near"),
)
def compare(study: Study) -> dict[str, Any]:
    """Every feature space through every readout, on the same rows, folds and tuning budget."""
    config, whole = study.table("compare"), study.config
    refuse_series(study, "comparisons")
    if config.transfer and len(study.subjects) < 2:
        raise ConfigError(
            "[compare] transfer is between data sets, and there is one. Next step: [data] join = { session = [...] }, "
            "or a data set of several subjects."
        )
    cells = cells_of(config, whole.features)
    unique = unique_spaces(config, cells)
    used = {name for cell in cells for name in cell.spaces if name} | set(unique)
    used |= set(joint_spaces(config, cells)) if config.joint else set()
    responses, stimuli, ceiling = _responses(study)
    missing = float(np.isnan(responses.values).mean())
    unseen = f", {missing:.0%} not seen" if missing else ""
    study.say(f"    {responses.shape[0]} stimuli, {responses.shape[1]} voxels{unseen}")
    together = Subject("all", responses, responses, stimuli=stimuli)
    cv: Any = evaluation_folds(study, together)[0] if config.cv == "evaluation" else config.cv
    folds = make_folds(responses, cv, config.validation, whole.seed)
    if config.decode == "likelihood" and len(folds) < 2:
        raise ConfigError(
            '[compare] decode = "likelihood" takes the noise covariance from the other folds, and there is one fold. '
            "Next step: cv = 5, or decode = true."
        )
    spaces: dict[str, xr.DataArray] = {}
    made = make_spaces(with_joined(whole.features, used), stimuli, study.progress)
    for name, settings in whole.features.items():
        if name in used:
            space = _trained(study, name, stimuli, responses, folds) if settings.kind == "trained" else made[name]
            spaces[name] = data.match(space, _once(responses)) if settings.kind == "file" else space
            scaled = "" if settings.standardise else "; standardised, as every space of a comparison"
            width = " x ".join(str(n) for dim, n in spaces[name].sizes.items() if dim not in ("fold", "stimulus"))
            anew = ", trained anew in each fold" if settings.kind == "trained" else ""
            study.say(f"    {name}: {width}{anew}{scaled}")
        else:
            # Kept by name, so that cells are named as in the config; no cell reads it.
            spaces[name] = xr.DataArray(np.zeros((0, 0), np.float32), dims=("stimulus", "feature"))
    study.say(f"    {len(cells)} cells, {len(folds)} outer folds, {config.n_candidates} settings a cell")
    ids = responses["stimulus"].values.astype(str)
    rows = [(fold.train, fold.test) for fold in folds]
    check_sizes(config.learning_curve, rows, ids, "[compare]")
    near = near_across(study, together, rows)
    say_near(study, near)
    fit = partial(
        compare_cells,
        spaces,
        config.all_readouts(),
        responses,
        cells=config.cells or None,
        **{name: getattr(config, name) for name in _PASSED},
        noise_ceiling=ceiling,
        seed=whole.seed,
        out=study.store.folder,
        client=study.executor.client,
        workers=study.executor.workers,
        threads=whole.compute.threads,
        progress=study.progress,
        say=study.say,
    )
    found = fit(
        cv=cv,
        unique=unique,
        joint={kind: joint_spaces(config, cells) for kind in config.joint},
        ordered=config.layers is not None,
        layers=config.layers.order if config.layers else (),
        dims=config.layers.dims if config.layers else (),
        reduce=config.layers.reduce if config.layers else "pca",
    )
    learned = None
    if config.learning_curve:
        learned = cell_curves(lambda cv: fit(cv=cv), found, rows, ids, config.learning_curve, whole.seed)
    return {"comparison": found, "cell_curves": learned, "near": None if near is None else (together, near)}


def _trained(
    study: Study, name: str, stimuli: Stimuli | None, responses: xr.DataArray, folds: Sequence[Fold]
) -> xr.DataArray:
    """Features (fold, stimulus, feature) of a text space that is trained on all but the test stimuli of each fold."""
    settings, seed = study.config.features[name], study.config.seed
    if stimuli is None or stimuli.captions is None:
        raise ConfigError(f'[features.{name}] train = "{settings.train}" needs captions. Next step: [data] captions.')
    ids = responses["stimulus"].values.astype(str)
    parts, seen = [], []
    for k, fold in enumerate(folds):
        tested = np.unique(ids[fold.test])
        inputs = [settings.train, settings.settings, stimuli.ids, stimuli.captions, tested, seed, __version__]

        def train(inputs: list[Any] = inputs, tested: np.ndarray = tested) -> dict[str, Any]:
            folder = study.store.part("space", inputs).folder / "space"
            options = {"seed": seed, "progress": study.progress, **settings.settings}
            space = train_space(settings.train, stimuli, folder, held_out=tested, **options)
            return {"features": TextEmbedder(space.model, cache=False, progress=False).embed_captions(stimuli)}

        study.say(f"    {name}: training for fold {k + 1} of {len(folds)}")
        found = study.store.keep("space", inputs, train)["features"]
        parts.append(found.values)
        seen.append(found["trained_on"].values if "trained_on" in found.coords else np.zeros(len(stimuli), bool))
    # Words of a fold may be fewer: what it lacks is 0 for every stimulus, which no readout has a weight for.
    width = max(part.shape[1] for part in parts)
    values = np.stack([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])
    coords = {"stimulus": stimuli.ids, "trained_on": (("fold", "stimulus"), np.stack(seen))}
    return xr.DataArray(values, dims=("fold", "stimulus", "feature"), coords=coords, name="features")


def cells_of(config: CompareConfig, features: Iterable[str]) -> list[Cell]:
    """Cells of ``[compare]`` over these feature spaces."""
    return build_cells(list(features), config.all_readouts(), config.cores, config.cells or None, config.training)


def unique_spaces(config: CompareConfig, cells: Iterable[Cell]) -> list[str]:
    """Feature spaces whose unique variance is told: those named, or those that ridge reads, of two to eight."""
    if not isinstance(config.unique, bool):
        return config.unique
    found = list(dict.fromkeys(cell.features for cell in cells if cell.closed_form)) if config.unique else []
    return found if 2 <= len(found) <= 8 else []  # as many as joint models are made of


def joint_spaces(config: CompareConfig, cells: Iterable[Cell]) -> list[str]:
    """Feature spaces of ``joint`` models: the layers in their order, or all that ridge reads."""
    if config.layers:
        return config.layers.order
    return list(dict.fromkeys(cell.features for cell in cells if cell.closed_form))


def _responses(study: Study) -> tuple[xr.DataArray, Stimuli | None, np.ndarray | None]:
    """Responses (stimulus, voxel), stimuli, and noise ceilings as correlations where stimuli were repeated.

    Every voxel has mean 0 and variance 1 over what it saw, so that penalties mean the same for all; correlations do
    not depend on it.
    """
    rows, limits = [], []
    for one in study.subjects:
        averaged = one.responses
        if averaged.dims[0] == "presentation" and study.config.data.average:
            averaged = data.average_repeats(averaged)
        rows.append(averaged)
        ceilings = noise_ceilings(one.repeats, one.single, averaged)
        limits.append(ceilings.get("noise_ceiling_r", np.full(averaged.shape[1], np.nan)))
    ceiling, responses, stimuli = np.concatenate(limits), rows[0], study.stimuli
    if len(rows) > 1 or study.config.data.join:
        joined = join_subjects(
            [EncodingData(r, s.stimuli, extra={"animal": s.animal}) for r, s in zip(rows, study.subjects)]
        )
        assert joined.responses is not None
        responses, stimuli = joined.responses, joined.stimuli
    return scale_voxels(responses), stimuli, None if np.isnan(ceiling).all() else ceiling


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
    chosen: list[Stimuli] = []
    columns: list[pd.DataFrame] = []
    labels: list[pd.DataFrame] = []
    for part in parts:
        responses = part.responses
        if part.stimuli is None or responses is None or responses.dims[0] != "stimulus":
            raise DataError("joining is by pictures: each subject needs stimuli and responses (stimulus, voxel).")
        pictures = dict(zip(part.stimuli.ids.tolist(), _pictures(part.stimuli)))
        new = []
        for name, key in pictures.items():
            if key not in ids:
                ids[key] = name
                new.append(name)
        chosen += [part.stimuli.sel(new)] if new else []
        seen = np.array([ids[pictures[name]] for name in responses["stimulus"].values.tolist()])
        columns.append(pd.DataFrame(responses.values.astype(np.float64)).groupby(seen, sort=False).mean())
        of_voxels = {
            "subject": str(responses["subject"].values.flat[0]) if "subject" in responses.coords else str(len(labels)),
            "unit": responses["voxel"].values,
            "roi": responses["roi"].values.astype(str) if "roi" in responses.coords else "",
            "animal": str(part.extra.get("animal", "")),
        }
        labels.append(pd.DataFrame(of_voxels, index=range(responses.shape[1])))
    order = [name for part in chosen for name in part.ids.tolist()]
    if len(set(order)) < len(order):
        raise DataError("different pictures have the same stimulus id in different subjects. Next step: rename them.")
    table = pd.concat(labels, ignore_index=True)
    named = {k: table[k].tolist() for k in table if k == "unit" or any(table[k])}
    first = parts[0].responses
    joined = xr.DataArray(
        pd.concat(columns, axis=1).reindex(order).to_numpy(np.float32),
        dims=("stimulus", "voxel"),
        name="responses",
        attrs={} if first is None else dict(first.attrs),
        coords={"stimulus": order, "voxel": np.arange(len(table)), **{k: ("voxel", v) for k, v in named.items()}},
    )
    return EncodingData(joined, _concatenate(chosen))


def _concatenate(parts: Sequence[Stimuli]) -> Stimuli:
    """Stimuli of several sets as one."""
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


def _once(responses: xr.DataArray) -> xr.DataArray:
    ids = pd.unique(responses["stimulus"].values)
    return xr.DataArray(np.zeros((len(ids), 1)), dims=("stimulus", "voxel"), coords={"stimulus": ids})


@stage("tabulate", reads=("comparison", "cell_curves", "subjects", "config.compare"), writes=("comparison_parts",))
def tabulate(study: Study) -> dict[str, Any]:
    """Tables of a comparison: fits, curves, regions, layers; written to the study's folder where it has one."""
    config, found, folder = study.table("compare"), study.comparison, study.out
    parts: dict[str, Any] = {"summary": {}}
    if study.has("near") and study.near is not None:
        together, near = study.near
        told = comparison_leakage(study, together, near, found.predictions(found.best_cell()))
        parts |= {f"leakage:{name}": part for name, part in told.items()}
        parts["summary"] |= near_summary(near)
    tables = {"fits": found.records().drop(columns=["chosen", "candidate_r", "conflict"], errors="ignore")}
    curves = found.curves().drop(columns="seconds", errors="ignore")
    if len(curves):
        tables["curves"] = parts["curves"] = curves
    if study.has("cell_curves") and study.cell_curves is not None:
        tables["learning_curve"] = parts["learning"] = study.cell_curves
    unique = found.unique_variance(config.q)
    maps: dict[str, xr.Dataset] = {}
    if unique is not None:
        maps["unique"] = unique[0]
        parts["unique"], tables["unique"] = unique
        parts["unique_table"] = tables["unique"]
        overall = tables["unique"].query("kind == 'all'")
        parts["summary"] |= {f"unique:{k}": float(v) for k, v in zip(overall["part"], overall["median_share"])}
    fields = found.retinotopy(config.field_of_view or 1.0)
    if fields is not None:
        parts["fields"] = fields
        parts["planted_fields"] = _planted_fields(study, config.field_of_view or 1.0)
        if parts["planted_fields"] is None:
            parts["planted_fields"] = _template_fields(study, fields, config.field_of_view)
        maps["receptive_fields"] = fields
    weights, partition = found.joint_weights(), found.structured_partition()
    if weights is not None:
        parts["joint_weights"] = weights
        maps["joint_weights"] = weights.to_dataset()
    if partition is not None:
        maps["stacked_layers"] = parts["stacked"] = partition[0]
        tables["stacked_layers"] = parts["stacked_table"] = partition[1]
    if config.transfer:
        made = transfer(study, found)
        maps["transfer"] = parts["transfer"] = made
        tables["transfer"] = made.drop_dims("voxel").to_dataframe().reset_index()
    if config.decode:
        decoded_by = "correlation" if config.decode is True else config.decode
        identified = identify_cells(found, metric=decoded_by, n_bootstraps=config.n_bootstraps)
        tables["identification"] = parts["identification"] = identified
        pairs = identified.query("measure == 'accuracy' and n == 2").groupby("cell", sort=False)["accuracy"].mean()
        parts["summary"] |= {f"pairwise_accuracy:{cell}": float(v) for cell, v in pairs.items()}
    similarity = found.similarity()
    if len(similarity):
        tables["similarity"] = parts["similarity"] = similarity
    warp = found.warp_spread()
    if warp is not None:
        parts["warp"] = warp
    for name, values in (("gates", found.gates()), ("conflict", found.gradient_conflict())):
        if values is not None:
            parts[name] = values
    if config.regions:
        spaces = {k: getattr(config.regions, k) for k in ("vision", "dense", "single")}
        regions = found.regions(**spaces, readout=config.regions.readouts or None, q=config.q)
        maps["regions"] = parts["regions"] = regions
        tables["regions"] = found.region_table(regions)
        for readout in regions["readout"].values.tolist():
            labels = regions["region"].sel(readout=readout).values
            for name in ("vision", "dense", "single", "not separable"):
                parts["summary"][f"share_region:{readout}:{name}"] = float((labels == name).mean())
        parts["summary"]["share_regions_agree"] = float(regions["agreement"].values.mean())
    if config.layers:
        layers, table = found.layer_map(config.layers.order, config.layers.readout, config.q)
        maps["layers"] = parts["layers"] = layers.assign_attrs(readout=config.layers.readout)
        tables["layers"] = parts["layer_table"] = table
        parts["summary"]["best_layer"] = str(table.iloc[0]["best_layer"])
        sweep = found.layer_dims()
        if sweep is not None:
            chosen = cheapest(sweep, share=config.layers.share)
            maps["layer_dims"] = parts["layer_dims"] = sweep
            parts["cheapest"] = chosen
            tables["cheapest"] = chosen.drop_dims("fold").to_dataframe().reset_index()
    parts = {name: part for name, part in parts.items() if part is not None}
    if folder is not None:
        for name, frame in tables.items():
            write_table(frame, folder / f"{name}.csv", float_format="%.8g")
        for name, values in maps.items():
            data.save(values, folder / f"{name}.nc")
        parts["summary"] = found.write(folder, config.q) | parts["summary"]
    return {"comparison_parts": parts}


def _planted_fields(study: Study, width: float) -> xr.Dataset | None:
    """Receptive fields that simulated cortex has, voxels as in the comparison; None of measured responses."""
    truths = [one.truth for one in study.subjects if one.truth is not None and "rf_x" in one.truth]
    if not truths or len(truths) < len(study.subjects):
        return None
    # The simulation tells shares of the picture's width from its centre, y up.
    scale = {"x": 2.0, "y": -2.0, "size": 2.0}
    values = {k: np.concatenate([t[f"rf_{k}"].values for t in truths]) * s for k, s in scale.items()}
    return retinotopy(xr.Dataset({k: ("voxel", v) for k, v in values.items()}), width)


def _template_fields(study: Study, fields: xr.Dataset, width: float) -> xr.Dataset | None:
    """Fields of the atlas that the study names; None where it has none, or pictures have no width in degrees."""
    responses = study.subjects[0].responses
    if not width or not study.config.data.atlas or responses is None or "vertex" not in fields.coords:
        return None
    atlas = data.load_atlas(study.config.data.atlas)
    if "polar_angle" not in atlas.coords:
        return None
    return template_retinotopy(fields.assign_attrs(space=responses.attrs.get("space", "unknown")), atlas, width)


def transfer(study: Study, found: Comparison) -> xr.Dataset:
    """Transfer between the subjects (or sessions, or tasks) of a comparison, by ridge on the best space it reads."""
    config, whole = study.table("compare"), study.config
    linear = [c for c in found.cells if c.endswith("/linear") and c.count("/") == 1]
    known = {c.split("/")[0]: c for c in linear if whole.features[c.split("/")[0]].kind != "trained"}
    if not known:
        raise ConfigError("[compare] transfer is by ridge on a fixed space; no cell SPACE/linear reads one.")
    inner = found.scores["validation_r"].sel(cell=list(known.values())).median("voxel")
    space = list(known)[int(np.argmax(inner.values))]
    values = [str(v) for several in whole.data.join.values() for v in several]
    names = values if len(values) == len(study.subjects) else [one.name for one in study.subjects]
    sets: dict[str, xr.DataArray] = {}
    first = 0
    for k, (name, one) in enumerate(zip(names, study.subjects)):
        # One after the other, as they stand side by side in the comparison.
        part = found.responses.isel(voxel=slice(first, first := first + one.responses.shape[1]))
        part = part.isel({part.dims[0]: np.isfinite(part.values).all(axis=1)})
        own = {"voxel": part["unit"].values if "unit" in part.coords else part["voxel"].values}
        roi = {"roi": ("voxel", part["roi"].values)} if "roi" in part.coords else {}
        rows = {"stimulus": part["stimulus"].values}
        plain = xr.DataArray(part.values, {**rows, **own, **roi}, ("stimulus", "voxel"), attrs=part.attrs)
        sets[name if name not in sets else f"{name} ({k})"] = plain.assign_coords(subject=one.name)
    study.say(f"    transfer of {space}/linear between {', '.join(sets)}")
    how = {"across": config.transfer, "n_bootstraps": config.n_bootstraps, "seed": whole.seed}
    made = transfer_matrix(found.features(space), sets, cv=config.cv if isinstance(config.cv, int) else 5, **how)
    return made.assign_attrs(features=space)


def comparison_text(found: Comparison) -> str:
    """Cells, the best first, as a command prints them."""
    table = found.table().query("kind == 'all'").sort_values("median_r", ascending=False)
    shown = table[["cell", "median_r", "low", "high", "n_parameters", "seconds"]]
    return shown.to_string(index=False, float_format=lambda x: f"{x:.3f}")
