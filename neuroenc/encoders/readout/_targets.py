"""Training targets: responses with NaN for unseen stimuli, tasks of voxels, validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numpy, row_patterns
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders._folds import positions
from neuroenc.encoders._labels import check_responses
from neuroenc.encoders.readout._maps import MapArray


def masked_responses(X: Any, y: Any, maps: MapArray, voxels: dict[str, Any] | None) -> np.ndarray:
    """Responses (n, V) float32, NaN where the voxel's subject did not see the stimulus."""
    like: Any = maps  # it has a length and a dtype, which is all that is looked at
    checked, _ = check_responses(X, y, like)
    values = as_numpy(checked, "responses")
    if values.dtype.kind not in "fiub":
        raise DataError(f"responses have dtype {values.dtype}; expected numbers. Next step: convert them to float32.")
    values = values.astype(np.float32)

    def names(which: np.ndarray) -> list[Any]:
        first = np.flatnonzero(which)[:5]
        return voxels["voxel"][1][first].tolist() if voxels and "voxel" in voxels else first.tolist()

    infinite = np.isinf(values).any(axis=0)
    if infinite.any():
        raise DataError(
            f"{int(infinite.sum())} of {values.shape[1]} voxels hold infinite (inf) responses "
            f"(first: {names(infinite)}). "
            "Only NaN, which stands for a stimulus that was not seen, is legal. Next step: drop those voxels."
        )
    few = (~np.isnan(values)).sum(axis=0) < 2
    if few.any():
        raise DataError(
            f"{int(few.sum())} of {values.shape[1]} voxels have responses to fewer than 2 of {len(values)} stimuli, "
            f"the others are NaN (first: {names(few)}). "
            "Next step: responses[:, responses.notnull().sum('stimulus') > 1]."
        )
    return values


def task_columns(
    voxels: dict[str, Any] | None, subjects: str | None, regions: str | None, n_voxels: int, also: str = ""
) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    """Tasks (labels of a subject, or of its region) and the columns of each, in the order of their labels.

    One task with all columns where voxels have no such labels. Of regions joined by ";" the first counts. ``also`` is
    one more coordinate to label tasks with, which must not vary within one.
    """
    known = voxels or {}
    for what, name in (("regions", regions), ("experts", also)):
        if name and name not in known and not (name == subjects and what == "experts"):
            raise ConfigError(unknown_name(f"{what}: coordinate on voxel", name, [k for k in known if k != "voxel"]))
    names = [name for name in (subjects, regions) if name and name in known]
    if not names:
        return [{}], [np.arange(n_voxels)]
    labels = [np.array([str(v).split(";")[0] if name == regions else str(v) for v in known[name][1]]) for name in names]
    rows, which = np.unique(np.stack(labels, axis=1), axis=0, return_inverse=True)
    columns = [np.flatnonzero(which.ravel() == k) for k in range(len(rows))]
    tasks = [dict(zip(names, map(str, row))) for row in rows]
    if also and also not in names:
        for task, own in zip(tasks, columns):
            found = sorted({str(v) for v in np.asarray(known[also][1])[own]})
            if len(found) > 1:
                raise ConfigError(
                    f"voxels of task {task} have {len(found)} values of {also!r} ({', '.join(found[:3])}); one expert "
                    f"serves a task. Next step: regions={also!r}, or a coordinate that is constant in a task."
                )
            task[also] = found[0]
    return tasks, columns


def task_groups(voxels: dict[str, Any] | None, name: str, columns: np.ndarray, sizes: Sequence[int]) -> list[list[int]]:
    """For each task, a number from 0 for each of its voxels by the coordinate ``name``, such as its region."""
    known = voxels or {}
    if name not in known:
        raise ConfigError(unknown_name("groups: coordinate on voxel", name, [k for k in known if k != "voxel"]))
    labels = np.array([str(v).split(";")[0] for v in known[name][1]])[columns]
    parts = np.split(labels, np.cumsum(sizes)[:-1])
    return [np.unique(part, return_inverse=True)[1].tolist() for part in parts]


def label_tasks(values: np.ndarray, tasks: Sequence[dict[str, str]], last: tuple[str, list[str]]) -> xr.DataArray:
    """Values (task, last) as a labelled array over the tasks' names (subject, roi) and the last dimension."""
    names = list(tasks[0]) if tasks else []
    levels = [sorted({task[name] for task in tasks}) for name in names]
    out = np.full([len(level) for level in levels] + [values.shape[-1]], np.nan, dtype=values.dtype)
    for task, row in zip(tasks, values):
        out[tuple(level.index(task[name]) for name, level in zip(names, levels))] = row
    coords = {**dict(zip(names, levels)), last[0]: last[1]}
    return xr.DataArray(out, dims=(*names, last[0]), coords=coords)


def validation_rows(
    validation: Any, Y: np.ndarray, groups: Sequence[np.ndarray], stimulus: np.ndarray | None, seed: int
) -> np.ndarray:
    """Rows kept apart: those given, or all rows of a fraction of the stimuli.

    Stimuli are drawn within each set of stimuli that the same subjects saw, so that every subject is validated.
    """
    n = len(Y)
    if not isinstance(validation, (float, np.floating)):
        if isinstance(validation, (int, np.integer, bool)) or validation is None:
            raise ConfigError(f"validation={validation!r} must be a fraction between 0 and 1, or rows.")
        return positions(validation, n, "validation")
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation} must be a fraction between 0 and 1, or rows.")
    labels = np.arange(n) if stimulus is None else np.asarray(stimulus)
    _, first, code = np.unique(labels, return_index=True, return_inverse=True)
    saw = np.stack([(~np.isnan(Y[:, columns])).any(axis=1) for columns in groups], axis=1)
    by_stimulus = np.zeros((len(first), saw.shape[1]), dtype=bool)
    np.logical_or.at(by_stimulus, code, saw)
    rng = make_rng(seed)
    pattern = row_patterns(by_stimulus)
    held: list[np.ndarray] = []
    for k in range(pattern.max() + 1):
        # By first appearance, so that the draw does not depend on what the stimuli are called.
        members = np.flatnonzero(pattern == k)
        members = members[np.argsort(first[members])]
        count = max(1, round(validation * len(members))) if len(members) > 1 else 0
        held.append(rng.permutation(members)[:count])
    rows = np.flatnonzero(np.isin(code, np.concatenate(held)))
    if len(rows) < 2 or n - len(rows) < 2:
        raise DataError(
            f"validation={validation} of {len(first)} stimuli leaves {n - len(rows)} rows to train on and {len(rows)} "
            "to validate; both need 2. Next step: more stimuli, or fit(..., fixed_epochs=n)."
        )
    return rows
