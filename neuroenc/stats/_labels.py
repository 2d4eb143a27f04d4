"""Labelled arrays that meet are put into one order by their labels, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.errors import DataError

# What tells the rows and columns of labelled arrays apart, where both have it.
_ROWS = ("stimulus", "subject", "session", "run", "repeat")
_VOXELS = ("subject", "hemi", "voxel", "vertex")


def labels_of(a: Any, axis: int, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Labels along an axis by name: of an xarray its coordinates, of a table what it is not merely counted by."""
    if hasattr(a, "coords") and hasattr(a, "dims"):
        if not a.dims:
            return {}
        dim = a.dims[axis]
        return {str(k): np.asarray(v) for k, v in a.coords.items() if v.dims == (dim,) and (k in names or k == dim)}
    index = getattr(a, "index" if axis == 0 else "columns", None)
    if np.ndim(a) == 1:
        index = getattr(a, "index", None)
    if index is None or callable(index) or not hasattr(index, "to_numpy"):
        return {}
    values = index.to_numpy()
    counted = type(index).__name__ == "RangeIndex" and np.array_equal(values, np.arange(len(values)))
    return {} if counted else {"stimulus" if names is _ROWS else "voxel": values}


def match_labels(a: Any, b: Any, names: tuple[str, str]) -> Any:
    """``b`` in the order of ``a`` by the labels of samples and voxels that both have; other labels are refused."""
    if not (_labelled(a) and _labelled(b)) or np.ndim(a) != np.ndim(b):
        return b
    if hasattr(a, "dims") and hasattr(b, "dims") and a.dims != b.dims and set(a.dims) == set(b.dims):
        b = b.transpose(*a.dims)
    for axis, kind in enumerate(("stimulus", "voxel")[: np.ndim(a)]):
        b = _reorder(a, b, axis, kind, names)
    return b


def match_voxels(a: Any, b: Any, names: tuple[str, str]) -> Any:
    """``b`` with its last axis, the voxels, in the order of those of ``a`` where both are labelled."""
    return _reorder(a, b, -1, "voxel", names) if np.ndim(a) and np.ndim(b) else b


def match_rows(a: Any, b: Any, names: tuple[str, str]) -> Any:
    """``b``, one value a sample, in the order of the samples of ``a`` where both are labelled."""
    return _reorder(a, b, 0, "stimulus", names) if np.ndim(b) == 1 else b


def positions_of(mine: Any, theirs: Any, kind: str, names: tuple[str, str]) -> NDArray[np.intp]:
    """Where the labels ``mine`` stand among ``theirs``, which must be the same ones."""
    a, b = np.asarray(mine), np.asarray(theirs)
    return np.arange(len(b)) if _equal(a, b) else np.asarray(_order([a], [b], kind, names, [kind]), dtype=np.intp)


def _reorder(a: Any, b: Any, axis: int, kind: str, names: tuple[str, str]) -> Any:
    """``b`` with an axis in the order of that of ``a`` by the labels that both have."""
    if not (_labelled(a) and _labelled(b)):
        return b
    mine, theirs = (labels_of(x, axis, _ROWS if kind == "stimulus" else _VOXELS) for x in (a, b))
    common = [k for k in mine if k in theirs]
    if not common or all(_equal(mine[k], theirs[k]) for k in common):
        return b
    at: list[Any] = [slice(None)] * np.ndim(b)
    at[axis] = _order([mine[k] for k in common], [theirs[k] for k in common], kind, names, common)
    return b.iloc[tuple(at)] if hasattr(b, "iloc") else b[tuple(at)]


def _labelled(a: Any) -> bool:
    return (hasattr(a, "coords") and hasattr(a, "dims")) or hasattr(a, "iloc")


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b))


def _order(a: list[NDArray[Any]], b: list[NDArray[Any]], kind: str, names: tuple[str, str], by: list[str]) -> Any:
    """Positions in ``b`` of the labels of ``a``; DataError where they are not the same ones, each once."""
    mine, theirs = (list(zip(*(x.tolist() for x in part), strict=True)) for part in (a, b))
    where = {label: k for k, label in enumerate(theirs)}
    lacking = [x for x in mine if x not in where]
    if lacking or len(mine) != len(theirs):
        extra = sorted(set(map(str, theirs)) - set(map(str, mine)))
        example = _shown(lacking[0]) if lacking else extra[0] if extra else "repeats"
        raise DataError(
            f"{names[0]} and {names[1]} name different {kind} labels: {len(mine)} and {len(theirs)}, of which "
            f"{len(mine) - len(lacking)} of {names[0]} are in {names[1]} (one that differs: {example}). Next step: "
            f"select the same {'voxels' if kind == 'voxel' else 'stimuli'} in both, or give plain arrays in one order."
        )
    if len(where) < len(theirs):
        raise DataError(
            f"{names[0]} and {names[1]} hold the same {kind} labels in another order, and some of them several times "
            f"(by {', '.join(by)}), so that they cannot be matched. Next step: bring both into one order."
        )
    return np.array([where[x] for x in mine], dtype=np.intp)


def _shown(label: tuple[Any, ...]) -> str:
    return repr(label[0] if len(label) == 1 else label)
