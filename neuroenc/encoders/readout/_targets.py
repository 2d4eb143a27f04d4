"""Training targets: responses with NaN for unseen stimuli, subjects of voxels, validation rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._folds import positions
from neuroenc.encoders._labels import check_responses
from neuroenc.encoders.readout._maps import MapArray


def masked_responses(X: Any, y: Any, maps: MapArray, voxels: dict[str, Any] | None) -> np.ndarray:
    """Responses (n, V) float32, NaN where the voxel's subject did not see the stimulus.

    Raises
    ------
    DataError
        Infinite responses, voxels that saw fewer than two stimuli, or what `check_responses` finds.
    """
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


def subject_columns(voxels: dict[str, Any] | None, name: str | None, n_voxels: int) -> dict[str, np.ndarray]:
    """Columns of each subject, in the order of their labels; one group where there is no such label."""
    labels = None if voxels is None or name is None or name not in voxels else np.asarray(voxels[name][1]).astype(str)
    if labels is None or len(np.unique(labels)) < 2:
        return {"": np.arange(n_voxels)}
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def validation_rows(
    validation: Any, Y: np.ndarray, groups: dict[str, np.ndarray], stimulus: np.ndarray | None, seed: int
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
    saw = np.stack([(~np.isnan(Y[:, columns])).any(axis=1) for columns in groups.values()], axis=1)
    by_stimulus = np.zeros((len(first), saw.shape[1]), dtype=bool)
    np.logical_or.at(by_stimulus, code, saw)
    rng = make_rng(seed)
    _, pattern = np.unique(by_stimulus, axis=0, return_inverse=True)
    held: list[np.ndarray] = []
    for k in range(pattern.max() + 1):
        # By first appearance, so that the draw does not depend on what the stimuli are called.
        members = np.flatnonzero(pattern.ravel() == k)
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
