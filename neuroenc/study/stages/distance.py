"""Folds by distance of stimuli: near duplicates, clusters, sets by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data import Stimuli, picture_endings
from neuroenc.study.stages.load import Subject, flatten, make_spaces
from neuroenc.study.study import Study

Fold = tuple[np.ndarray, np.ndarray]
#: Schemes of ``[evaluation]`` that read more than the responses.
SCHEMES = ("near-duplicates", "cluster", "matched", "file", "column")


def set_names(n: int, sets: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Name (row,) of the test set that each row is in, "" for none."""
    names = np.full(n, "", dtype=object)
    for name, rows in sets:
        names[rows] = name
    return names.astype(str)


def distant_folds(study: Study, one: Subject) -> tuple[list[Fold], np.ndarray]:
    """Folds of the schemes that read more than the responses, and the test set (row,) of each row."""
    config, seed, responses = study.config.evaluation, study.config.seed, one.responses
    ids, n = responses["stimulus"].values.astype(str), len(responses)
    if config.scheme == "file":
        return _listed(config.files, config.sets, ids)
    if config.scheme == "column":
        return _by_column(config.column, config.sets, one)
    name = config.space or (
        "pixels" if config.scheme == "near-duplicates" else next(iter(space_names(study)), "pixels")
    )
    space = seen(the_space(study, one, name), responses)
    if config.scheme == "matched":
        test = np.isin(ids, data.matched_test(space, config.share, seed))
        return [(np.flatnonzero(~test), np.flatnonzero(test))], set_names(n, [("test", np.flatnonzero(test))])
    if config.scheme == "cluster":
        groups = data.feature_clusters(space, config.n_splits, seed)
        folds = data.folds(responses, groups=groups)
        return folds, set_names(n, [(f"cluster {k + 1}", test) for k, (_, test) in enumerate(folds)])
    groups = data.near_duplicates(space, config.threshold)
    study.say(f"    {len(groups)} stimuli in {len(np.unique(groups))} groups of near duplicates ({name})")
    parts = config.n_splits if config.n_splits > 1 else max(2, round(1 / config.share))
    folds = data.folds(responses, n_splits=parts, seed=seed, groups=groups)
    folds = folds if config.n_splits > 1 else folds[:1]
    return folds, set_names(n, [("test", test) for _, test in folds])


def check_sizes(sizes: list[int], folds: list[Fold], ids: np.ndarray, where: str = "[evaluation]") -> None:
    """Refuse a learning curve that no fold has stimuli for."""
    most = min(len(np.unique(ids[train])) for train, _ in folds)
    if sizes and sizes[0] >= most:
        raise ConfigError(
            f"{where} learning_curve begins with {sizes[0]} training stimuli, and folds have {most}; legal is 10 to "
            f"{most - 1}."
        )


def _listed(files: list[str], sets: list[str], ids: np.ndarray) -> tuple[list[Fold], np.ndarray]:
    folds, named = [], []
    for file in files:
        train, every = data.read_split(file)
        tests = data.read_split(file, sets)[1]
        if not any(np.isin(x, ids).any() for x in every.values()):
            # A split may name files, and stimuli are named without the files' endings.
            train = None if train is None else [_bare(i) for i in train]
            every, tests = ({k: [_bare(i) for i in x] for k, x in lists.items()} for lists in (every, tests))
        rows = {name: np.flatnonzero(np.isin(ids, wanted)) for name, wanted in tests.items()}
        unseen = [name for name, found in rows.items() if not len(found)]
        if unseen:
            first = tests[unseen[0]][0]
            raise DataError(f"{file}: no stimulus of {unseen[0]!r} occurs. {unknown_name('stimulus', first, ids)}")
        test = np.sort(np.concatenate(list(rows.values())))
        # Test sets of the file that are not asked for are not trained on either.
        held = np.isin(ids, [i for x in every.values() for i in x])
        inside = ~held if train is None else np.isin(ids, train)
        folds.append((np.flatnonzero(inside), test))
        stem = Path(file).stem
        named += [(stem if len(files) > 1 and len(rows) == 1 else name, found) for name, found in rows.items()]
    tested = np.concatenate([test for _, test in folds])
    if len(np.unique(tested)) < len(tested):
        raise DataError(
            f"[evaluation] files test {len(tested) - len(np.unique(tested))} rows more than once; a run scores every "
            "row once. Next step: a run for each of the files."
        )
    return folds, set_names(len(ids), named)


def _bare(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in picture_endings() else name


def _by_column(column: str, sets: list[str], one: Subject) -> tuple[list[Fold], np.ndarray]:
    responses, stimuli = one.responses, one.stimuli
    rows = {str(k): c for k, c in responses.coords.items() if c.dims == responses.dims[:1]}
    columns = [] if stimuli is None else [str(c) for c in stimuli.table.columns]
    if column in rows:
        values = rows[column].values.astype(str)
    elif stimuli is not None and column in columns:
        values = stimuli.table[column].astype(str).to_numpy()[stimuli.index_of(responses["stimulus"].values)]
    else:
        raise ConfigError(unknown_name("value of [evaluation] column:", column, [*columns, *rows]))
    by_stimulus = pd.Series(values).groupby(responses["stimulus"].values).nunique()
    if (by_stimulus > 1).any():
        raise ConfigError(
            f"[evaluation] column = {column!r} has several values for {int((by_stimulus > 1).sum())} stimuli, first "
            f"{by_stimulus.index[by_stimulus > 1][0]!r}: a stimulus would be on both sides."
        )
    legal = pd.unique(values).tolist()
    for name in sets:
        if name not in legal:
            raise ConfigError(unknown_name(f"value of {column} in [evaluation] sets:", name, legal))
    where = {name: np.flatnonzero(values == name) for name in sets or legal}
    parts = [np.sort(np.concatenate(list(where.values())))] if sets else list(where.values())
    every = np.arange(len(values))
    return [(np.setdiff1d(every, part), part) for part in parts], set_names(len(values), list(where.items()))


def space_names(study: Study) -> list[str]:
    return list(study.given.get("features", study.config.features))


def the_space(study: Study, one: Subject, name: str) -> xr.DataArray:
    """Pixels, or a feature space by its name, before the stage that makes all of them."""
    if name == "pixels":
        found = pixels_of(study, one)
        if found is None:
            raise ConfigError(
                '[evaluation] space = "pixels" needs pictures, and there are none. Next step: [data] images, or a '
                f"feature space: {', '.join(space_names(study)) or 'there is none'}."
            )
        return found
    if study.has("spaces") and name in study.spaces:
        return study.spaces[name]
    if name not in space_names(study):
        raise ConfigError(unknown_name("value of [evaluation] space:", name, ["pixels", *space_names(study)]))
    if "features" in study.given:
        return flatten(data.validate_features(study.given["features"][name]))
    stimuli = one.stimuli if one.stimuli is not None else study.stimuli
    return flatten(make_spaces({name: study.config.features[name]}, stimuli, study.progress)[name])


def pixels_of(study: Study, one: Subject) -> xr.DataArray | None:
    """Small grey pictures of what a subject saw, kept; None where there are no pictures."""
    stimuli = stimuli_of(study, one)
    if stimuli is None:
        return None
    wanted = stimuli.sel(pd.unique(one.responses["stimulus"].values))
    found = study.store.keep("pictures", [wanted, "small"], lambda: {"pictures": data.small_pictures(wanted)})
    return found["pictures"]


def stimuli_of(study: Study, one: Subject) -> Stimuli | None:
    """Stimuli with pictures of everything that a subject saw."""
    stimuli = one.stimuli if one.stimuli is not None else study.stimuli
    if stimuli is None or stimuli.images is None:
        return None
    return stimuli if np.isin(one.responses["stimulus"].values, stimuli.ids).all() else None


def seen(space: xr.DataArray, responses: xr.DataArray) -> xr.DataArray:
    """Features of the stimuli that were shown, one row each."""
    ids = pd.unique(responses["stimulus"].values)
    return data.match(
        space, xr.DataArray(np.zeros((len(ids), 1)), dims=("stimulus", "voxel"), coords={"stimulus": ids})
    )
