"""Cross-validation folds: scikit-learn splitters, or the name of a coordinate."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, check_cv

from neuroenc._util.errors import ConfigError, DataError

__all__ = ["resolve_folds"]


def resolve_folds(
    cv: Any, n: int, coords: dict[str, np.ndarray], groups: Any = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lists of (training rows, rows left out).

    ``cv`` is an integer (contiguous folds; by stimulus where stimuli repeat), "run" or "session" (leave one
    out), a scikit-learn splitter, or an iterable of splits.
    """
    stimulus = coords.get("stimulus")
    dummy = np.zeros((n, 1))
    repeated = stimulus is not None and len(np.unique(stimulus)) < n
    if isinstance(cv, str):
        if cv not in coords:
            known = [k for k in ("run", "session", "subject") if k in coords]
            raise ConfigError(
                f"cv={cv!r} needs a coordinate of that name on the samples; found {known or 'none'}. "
                "Next step: pass labelled responses, or a scikit-learn splitter with groups."
            )
        groups = coords[cv]
        splits = LeaveOneGroupOut().split(dummy, groups=groups)
    elif isinstance(cv, (int, np.integer)) and repeated and groups is None:
        assert stimulus is not None
        splits = GroupKFold(int(cv)).split(dummy, groups=stimulus)
    else:
        if isinstance(cv, int) and cv > n >= 2 and n < 5:
            cv = n  # so few samples that leaving one out is what remains
        if isinstance(cv, (int, np.integer)) and not 2 <= cv <= n:
            raise ConfigError(f"cv={cv} folds of n_samples={n}: need at least 2 folds and one sample in each.")
        splits = check_cv(5 if cv is None else cv).split(dummy, groups=groups)
    folds = [(np.asarray(train), np.asarray(test)) for train, test in splits]
    if not folds:
        raise ConfigError("cv gave no folds.")
    for number, (train, test) in enumerate(folds):
        if len(train) < 2 or len(test) < 1:
            raise ConfigError(f"fold {number} has {len(train)} training and {len(test)} test samples; too few.")
        if stimulus is not None and not isinstance(cv, str):
            both = np.intersect1d(stimulus[train], stimulus[test])
            if len(both):
                raise DataError(
                    f"fold {number} has {len(both)} stimuli on both sides (first: {', '.join(map(str, both[:3]))}): "
                    "scores would be inflated. Next step: cv=5 (folds by stimulus), or GroupKFold with "
                    "groups=responses.stimulus."
                )
    return folds
