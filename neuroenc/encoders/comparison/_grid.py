"""Who is fitted on what: outer folds, the validation split, groups of voxels, candidate settings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_json
from neuroenc.encoders._folds import resolve_folds
from neuroenc.encoders._labels import sample_coords
from neuroenc.encoders.comparison._cells import Cell

__all__ = ["Fold", "Job", "candidates", "make_folds", "make_jobs", "voxel_groups"]

_MAX_PATTERNS = 64


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of one outer fold; ``validation`` is part of ``train``."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Job:
    """One cell fitted on one fold for the voxels that share it."""

    cell: Cell
    fold: int
    group: int
    voxels: np.ndarray
    rows: Fold
    candidates: tuple[dict[str, Any], ...]
    seed: int


def _patterns(values: np.ndarray, axis: int) -> np.ndarray:
    """Number of the NaN pattern of each row (axis 0) or voxel (axis 1)."""
    missing = np.isnan(values)
    packed = np.packbits(missing, axis=1) if axis == 0 else np.packbits(missing, axis=0).T
    return np.unique(packed, axis=0, return_inverse=True)[1].reshape(-1)


def _strata(responses: xr.DataArray, stimulus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stimulus number of every row, and the stratum of every stimulus: who saw it.

    Folds then hold the same share of every subject's stimuli.
    """
    _, number = np.unique(stimulus, return_inverse=True)
    pattern = _patterns(responses.values, 0)
    if pattern.max() >= _MAX_PATTERNS:
        pattern = np.zeros_like(pattern)
    stratum = np.zeros(number.max() + 1, dtype=np.intp)
    np.maximum.at(stratum, number, pattern)
    return number, stratum


def _deal(stratum: np.ndarray, n_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Part of every stimulus: shuffled, and dealt out one stratum after the other."""
    order = rng.permutation(len(stratum))
    order = order[np.argsort(stratum[order], kind="stable")]
    part = np.empty(len(stratum), dtype=np.intp)
    part[order] = np.arange(len(stratum)) % n_parts
    return part


def make_folds(responses: xr.DataArray, cv: Any, validation: float, seed: int) -> list[Fold]:
    """Outer folds by stimulus, each with one validation split that all cells use.

    Parameters
    ----------
    responses : DataArray (presentation or stimulus, voxel)
        NaN where a subject did not see a stimulus.
    cv : int, str, splitter or iterable
        A number deals shuffled stimuli out so that every fold has the same share of what each subject saw;
        anything else as in `RidgeEncoder`.
    validation : float
        Share of the training stimuli.
    seed : int

    Raises
    ------
    ConfigError, DataError
        Too few stimuli, or a stimulus on both sides.
    """
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation!r} must be a share of the training stimuli between 0 and 1.")
    coords = sample_coords(responses)
    stimulus = coords.get("stimulus", np.arange(len(responses)))
    number, stratum = _strata(responses, stimulus)
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        if not 2 <= cv <= len(stratum):
            raise ConfigError(f"cv={cv} folds of {len(stratum)} stimuli: need at least 2 folds, one stimulus in each.")
        part = _deal(stratum, int(cv), np.random.default_rng([seed, 0]))[number]
        cv = [(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(cv)]
    splits = resolve_folds(cv, len(responses), coords)
    tested = np.concatenate([test for _, test in splits])
    if len(np.unique(tested)) < len(tested):
        raise DataError(
            f"{len(tested) - len(np.unique(tested))} rows are tested in more than one fold; every row may be tested "
            "once. Next step: cv=5, or a splitter without repeats."
        )
    folds = []
    for k, (train, test) in enumerate(splits):
        own, where = np.unique(number[train], return_inverse=True)
        # Stimuli are dealt into so many parts that one of them is the share asked for.
        n_parts = max(2, round(1 / validation))
        left_out = _deal(stratum[own], n_parts, np.random.default_rng([seed, 1, k]))
        share = max(1, round(validation * n_parts))
        held = train[(left_out < share)[where]]
        if len(held) < 2 or len(train) - len(held) < 2:
            raise ConfigError(f"fold {k} has {len(train)} training rows, too few for validation={validation}.")
        folds.append(Fold(np.sort(train), np.sort(held), np.sort(test)))
    return folds


def voxel_groups(responses: xr.DataArray, cell: Cell) -> list[np.ndarray]:
    """Voxels that are fitted together.

    A trained core serves all. Frozen features are read for each subject on its own, over the rows that it
    saw, which is the same fit for less work. Ridge also keeps voxels apart that miss different rows.
    """
    values, n_voxels = responses.values, responses.shape[1]
    everyone = [np.arange(n_voxels)]
    if cell.core or not np.isnan(values).any():
        return everyone
    labels = _patterns(values, 1)
    if not cell.closed_form and "subject" in responses.coords and responses["subject"].dims == ("voxel",):
        labels = np.unique(responses["subject"].values, return_inverse=True)[1]
    elif not cell.closed_form and labels.max() >= _MAX_PATTERNS:
        return everyone
    # In order of the first voxel, so that names of groups follow the data.
    first = {int(label): None for label in labels}
    return [np.flatnonzero(labels == label) for label in first]


def candidates(cell: Cell, n: int, seed: int) -> tuple[dict[str, Any], ...]:
    """``n`` settings drawn without replacement; where there are fewer, they come again with other first weights.

    Ridge has one: all its penalties are one batch of closed forms.
    """
    if cell.closed_form:
        return ({},)
    names = sorted(cell.search)
    grid = [dict(zip(names, values)) for values in itertools.product(*(cell.search[k] for k in names))]
    # Equal readouts on other features draw equal settings, and no cell changes what another draws.
    key = int(hash_json({"kind": cell.kind, "search": cell.search})[:8], 16)
    order = np.random.default_rng([seed, 2, key]).permutation(len(grid))
    return tuple({"options": grid[order[k % len(grid)]], "start": k // len(grid)} for k in range(n))


def make_jobs(
    cells: Sequence[Cell], folds: Sequence[Fold], responses: xr.DataArray, n_candidates: int, seed: int
) -> list[Job]:
    """Every fit of the comparison, cell by cell."""
    seen = ~np.isnan(responses.values)
    jobs = []
    for cell in cells:
        drawn = candidates(cell, n_candidates, seed)
        for g, voxels in enumerate(voxel_groups(responses, cell)):
            known = seen[:, voxels].any(axis=1)
            for f, fold in enumerate(folds):
                rows = Fold(*(r[known[r]] for r in (fold.train, fold.validation, fold.test)))
                if len(rows.validation) < 2 or len(rows.train) - len(rows.validation) < 2:
                    first = responses["voxel"].values[voxels[0]] if "voxel" in responses.coords else voxels[0]
                    raise DataError(
                        f"fold {f} leaves {len(rows.train)} rows ({len(rows.validation)} for validation) to the "
                        f"{len(voxels)} voxels that go with voxel {first}: too few. Next step: fewer folds."
                    )
                jobs.append(Job(cell, f, g, voxels, rows, drawn, seed))
    return jobs


def check_budget(values: Mapping[str, Any]) -> None:
    """Counts that must be positive integers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigError(f"{name}={value!r} must be an integer of at least 1.")
