"""Cross-validation folds: scikit-learn splitters, or groups by a coordinate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, check_cv

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError

Folds = list[tuple[np.ndarray, np.ndarray]]


def positions(rows: Any, n: int, what: str, *, twice: bool = False) -> np.ndarray:
    """Row positions as an int64 array, from positions or a mask of all rows; ``twice`` allows repeated rows."""
    values = np.atleast_1d(as_numpy(rows, what))
    if values.dtype == bool:
        if values.shape != (n,):
            raise DataError(f"{what} is a mask of shape {values.shape}; there are {n} rows.")
        return np.flatnonzero(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise DataError(f"{what} must be row positions; found dtype {values.dtype}, shape {values.shape}.")
    values = values.astype(np.int64)
    if values.size and (values.min() < 0 or values.max() >= n):
        worst = int(values.min()) if values.min() < 0 else int(values.max())
        raise DataError(f"{what} holds position {worst}; there are {n} rows, 0 to {n - 1}.")
    if not twice and len(np.unique(values)) < len(values):
        raise DataError(f"{what} names {len(values) - len(np.unique(values))} rows twice.")
    return values


def check_groups(groups: Any, n: int, coords: dict[str, np.ndarray]) -> np.ndarray | None:
    """Group of each of ``n`` rows; labelled groups must list the stimuli in the order of the rows."""
    if groups is None:
        return None
    values = as_numpy(groups, "groups")
    if values.shape != (n,):
        raise DataError(f"groups have shape {values.shape}; expected one for each of the {n} rows.")
    missing = pd.isna(values)
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} of {n} groups are missing (NaN or masked; first: row {missing.argmax()})."
        )
    if isinstance(groups, xr.DataArray) and "stimulus" in groups.coords and "stimulus" in coords:
        labels = groups.coords["stimulus"].values
        if labels.shape == (n,) and not np.array_equal(labels.astype(str), coords["stimulus"].astype(str)):
            raise DataError(
                "groups list their stimuli in another order than the rows. Next step: put them in that order."
            )
    return np.asarray(np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)[1])


def resolve_folds(
    cv: Any, n: int, coords: dict[str, np.ndarray], groups: Any = None, scoring: str = "neg_mse"
) -> Folds:
    """Lists of (training rows, rows left out).

    ``cv`` is an integer (contiguous folds; of whole groups where groups are given; by stimulus where stimuli repeat),
    "run" or "session" (leave one out), a scikit-learn splitter, or an iterable of splits, as positions or masks.

    Parameters
    ----------
    cv : int, str, splitter or iterable
    n : int
        Rows.
    coords : mapping of str to array (n,)
        Labels of the rows: ``stimulus, run, session``, as far as there are any.
    groups : array (n,), optional
    scoring : str
        What chooses between penalties.

    Raises
    ------
    ConfigError, DataError
        Folds that are too small for ``scoring``, train on rows that they test, or part the rows of a group or of a
        stimulus.

    Examples
    --------
    >>> [test.tolist() for _, test in resolve_folds("run", 4, {"run": np.array([1, 1, 2, 2])})]
    [[0, 1], [2, 3]]
    """
    stimulus = coords.get("stimulus")
    groups = check_groups(groups, n, coords)
    folds = []
    for number, split in enumerate(_splits(cv, n, coords, groups)):
        try:
            train, test = split
        except (TypeError, ValueError):
            raise ConfigError(f"fold {number} of cv is not a pair (training rows, rows left out).") from None
        train = positions(train, n, f"training rows of fold {number}", twice=True)
        test = positions(test, n, f"rows left out of fold {number}")
        folds.append((train, test))
    if not folds:
        raise ConfigError("cv gave no folds.")
    for number, (train, test) in enumerate(folds):
        if len(train) < 2 or len(test) < 1:
            raise ConfigError(f"fold {number} has {len(train)} training and {len(test)} test samples; too few.")
        if len(test) < 2 and scoring != "neg_mse":
            raise ConfigError(
                f"fold {number} leaves out {len(test)} row of {n}, over which scoring={scoring!r} is not defined: no "
                "penalty could be told from another. Next step: fewer folds, or scoring='neg_mse'."
            )
        shared = np.intersect1d(train, test)
        if len(shared):
            raise DataError(
                f"fold {number} trains on {len(shared)} of the rows that it tests (first: row {shared[0]}): "
                "scores would be inflated. Next step: disjoint rows."
            )
        if stimulus is not None and not isinstance(cv, str):
            both = np.intersect1d(stimulus[train], stimulus[test])
            if len(both):
                raise DataError(
                    f"fold {number} has {len(both)} stimuli on both sides (first: {', '.join(map(str, both[:3]))}): "
                    "scores would be inflated. Next step: cv=5 (folds by stimulus), or GroupKFold with "
                    "groups=responses.stimulus."
                )
        if groups is not None and len(np.intersect1d(groups[train], groups[test])):
            count = len(np.intersect1d(groups[train], groups[test]))
            raise DataError(
                f"fold {number} has {count} of the groups on both sides: cv does not keep them together. "
                "Next step: a number of folds, GroupKFold, or no groups."
            )
    return folds


def _splits(cv: Any, n: int, coords: dict[str, np.ndarray], groups: np.ndarray | None) -> Any:
    dummy = np.zeros((n, 1))
    stimulus = coords.get("stimulus")
    if isinstance(cv, str):
        if cv not in coords:
            known = [k for k in ("run", "session", "subject") if k in coords]
            raise ConfigError(
                f"cv={cv!r} needs a coordinate of that name on the samples; found {known or 'none'}. "
                "Next step: pass labelled responses, or a scikit-learn splitter with groups."
            )
        if len(np.unique(coords[cv])) < 2:
            raise ConfigError(f"cv={cv!r} needs two of them at least; all {n} rows are of one. Next step: cv=5.")
        return LeaveOneGroupOut().split(dummy, groups=coords[cv])
    if isinstance(cv, (bool, np.bool_, float)):
        raise ConfigError(f"cv={cv!r} is not legal; a number of folds is an integer of at least 2.")
    if isinstance(cv, (int, np.integer)):
        together = groups
        if groups is None and stimulus is not None and len(np.unique(stimulus)) < n:
            together = np.unique(stimulus, return_inverse=True)[1]
        units, what = (n, "n_samples") if together is None else (len(np.unique(together)), "n_groups")
        if together is None and cv > n >= 2 and n < 5:
            cv = n  # so few samples that leaving one out is what remains
        if not 2 <= cv <= units:
            raise ConfigError(f"cv={cv} folds of {what}={units}: need at least 2 folds and one of these in each.")
        if together is not None:
            return GroupKFold(int(cv)).split(dummy, groups=together)
    if not (cv is None or isinstance(cv, (int, np.integer)) or hasattr(cv, "split")):
        try:
            return list(cv)
        except TypeError as error:
            raise ConfigError(
                f"cv={cv!r} is not legal. Legal: a number of folds, 'run', 'session', a splitter, or splits."
            ) from error
    try:
        return list(check_cv(5 if cv is None else cv).split(dummy, groups=groups))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cv={cv!r} cannot split {n} rows: {error}") from error
