"""Training and test sets in which no stimulus sits on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import DataError, unknown_name
from neuroenc.data._align import match, stimulus_ids
from neuroenc.data._build import string_ids
from neuroenc.data._preprocess import group_ids
from neuroenc.data._series import block_folds, is_series

_SHARED = ("error", "drop", "keep")
_KINDS = ("stimulus", "session", "run", "block")


def check_disjoint(train: Any, test: Any) -> None:
    """Raise unless no stimulus of ``test`` is also in ``train``.

    Parameters
    ----------
    train, test : DataArray with a ``stimulus`` coordinate, or sequence of str

    Raises
    ------
    DataError
        Names how many stimuli are shared, and the first of them.

    Examples
    --------
    >>> check_disjoint(["a", "b"], ["c"])
    >>> check_disjoint(["a", "b"], ["b", "c"])
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: 1 of 2 test stimuli are also in training, first ['b']...
    """
    left, right = (stimulus_ids(x) if isinstance(x, xr.DataArray) else string_ids(x) for x in (train, test))
    shared = np.intersect1d(left, right)
    if shared.size:
        raise DataError(
            f"{shared.size} of {np.unique(right).size} test stimuli are also in training, first "
            f"{shared[:5].tolist()}: scores would count memory as prediction. "
            "Next step: neuroenc.data.split_by_stimulus(responses, test=...), or shared='drop' where you split by "
            "session or run."
        )


def check_unseen(features: xr.DataArray, what: str = "features") -> None:
    """Raise unless the space of ``features`` was trained on other stimuli than these.

    Parameters
    ----------
    features : DataArray (stimulus, ...)
        Of test stimuli; the coordinate ``trained_on`` (bool), which embedders give to features of a space that was
        trained on some of them, says which. Without it there is nothing to refuse.
    what : str
        What it is, for the error.

    Raises
    ------
    DataError
        Names how many stimuli the space was trained on, and the first of them.

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> x = make_features([[0.0], [1.0]], stimulus=["a", "b"], trained_on=("stimulus", [True, False]))
    >>> check_unseen(x[1:])
    >>> check_unseen(x)
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: features: the space was trained on 1 of 2 test stimuli, first ['a']...
    """
    if "trained_on" not in features.coords:
        return
    seen = features["trained_on"].values.astype(bool)
    if seen.any():
        names = list(dict.fromkeys(features["stimulus"].values[seen].tolist()))
        raise DataError(
            f"{what}: the space was trained on {len(names)} of {len(set(features['stimulus'].values.tolist()))} test "
            f"stimuli, first {names[:5]}: scores would count memory as prediction. Next step: train it on captions of "
            "other stimuli (neuroenc space train ... --held-out FILE)."
        )


def _take(responses: xr.DataArray, rows: np.ndarray) -> xr.DataArray:
    """Rows by ascending position; a view where they are contiguous."""
    if rows.size and rows[-1] - rows[0] + 1 == rows.size:
        return responses.isel({responses.dims[0]: slice(int(rows[0]), int(rows[-1]) + 1)})
    return responses.isel({responses.dims[0]: rows})


def _two_sides(responses: xr.DataArray, in_test: np.ndarray, what: str) -> tuple[xr.DataArray, xr.DataArray]:
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    if not train.size or not test.size:
        raise DataError(
            f"{what} puts {train.size} rows into training and {test.size} into test of {in_test.size}; both sides "
            "need at least one."
        )
    return _take(responses, train), _take(responses, test)


def split_by_stimulus(
    responses: xr.DataArray, test: float | int | Iterable[str] = 0.2, seed: int = 0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Split so that all presentations of a stimulus fall on one side.

    Parameters
    ----------
    responses : DataArray (presentation, voxel) or (stimulus, voxel)
    test : float, int or iterable of str
        Share of the stimuli, their number, or their ids (every id must occur; for a list of which the
        subject saw a part, see :func:`shared_test`).
    seed : int

    Returns
    -------
    train, test : DataArray
        Rows keep their order.

    Raises
    ------
    DataError
        An id does not occur, or a side is empty.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[0.0]] * 4, stimulus=["a", "b", "a", "c"])
    >>> train, test = split_by_stimulus(r, test=["a"])
    >>> train.stimulus.values.tolist(), test.stimulus.values.tolist()
    (['b', 'c'], ['a', 'a'])
    """
    ids = stimulus_ids(responses)
    unique = np.unique(ids)
    if isinstance(test, str):
        test = [test]
    if isinstance(test, (float, int, np.number, np.bool_)):
        _refuse_volumes(responses, True)
        share = isinstance(test, (float, np.floating))
        number = round(float(test) * unique.size) if share and 0 < test < 1 else 0 if share else int(test)
        if not 0 < number < unique.size or isinstance(test, (bool, np.bool_)):
            raise DataError(
                f"test={test!r} asks for {number} of {unique.size} stimuli; legal: a share between 0 and 1, a whole "
                f"number from 1 to {unique.size - 1}, or ids."
            )
        chosen = make_rng(seed).permutation(unique)[:number]
    else:
        chosen = string_ids(list(test))
        missing = np.setdiff1d(chosen, unique)
        if missing.size:
            raise DataError(
                f"{missing.size} of {chosen.size} test ids do not occur: "
                + unknown_name("stimulus", missing[0], unique.tolist())
                + " Next step: neuroenc.data.shared_test takes those of a list that do occur."
            )
    return _two_sides(responses, np.isin(ids, chosen), f"test={len(chosen)} stimuli")


def _refuse_volumes(responses: xr.DataArray, drawn: bool) -> None:
    if drawn and is_series(responses):
        raise DataError(
            f"the {len(responses)} rows are volumes of a time series: drawn one by one, test volumes lie between their "
            "neighbours in training, which are nearly the same. Next step: whole runs (folds(responses, 'run')), or "
            "folds(responses, 'block', gap=10) within a run."
        )


def shared_test(responses: xr.DataArray, ids: Iterable[str]) -> tuple[xr.DataArray, xr.DataArray]:
    """Split off the stimuli of a list that all subjects share, as far as this subject saw them.

    Parameters
    ----------
    responses : DataArray (presentation, voxel) or (stimulus, voxel)
    ids : iterable of str
        For example the 1,000 shared images of a data set.

    Returns
    -------
    train, test : DataArray

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> train, test = shared_test(make_responses([[0.0]] * 3, stimulus=["a", "b", "c"]), ["c", "z"])
    >>> test.stimulus.values.tolist()
    ['c']
    """
    wanted, have = string_ids(list(ids)), stimulus_ids(responses)
    found = np.isin(have, wanted)
    if not found.any():
        raise DataError(
            f"none of {wanted.size} shared ids (first {wanted[:3].tolist()}) occurs among {np.unique(have).size} "
            f"stimuli (first {have[:3].tolist()}). Next step: write both in one form."
        )
    return _two_sides(responses, found, f"a list of {wanted.size} shared ids")


def split_by(
    responses: xr.DataArray, by: str, test: Sequence[int] | int, *, shared: str = "error"
) -> tuple[xr.DataArray, xr.DataArray]:
    """Split by session or run numbers.

    Parameters
    ----------
    responses : DataArray (presentation, voxel)
        With the coordinate ``by``.
    by : {"session", "run"}
    test : int or sequence of int
        Numbers of the test sessions (or runs; where runs count anew in each session, those of all of them).
    shared : {"error", "drop", "keep"}
        What to do with stimuli on both sides: stop, drop them from training, or keep them (only where
        every run shows the same conditions by design).

    Returns
    -------
    train, test : DataArray

    Raises
    ------
    DataError
        A number does not occur, a side is empty, or a stimulus sits on both sides.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[0.0]] * 4, stimulus=["a", "b", "c", "b"], run=[1, 1, 2, 2])
    >>> train, test = split_by(r, "run", test=[2], shared="drop")
    >>> train.stimulus.values.tolist()
    ['a']
    """
    one_of("value of shared", shared, _SHARED)
    group_ids(responses, by)
    numbers = responses[by].values
    chosen = np.unique(np.atleast_1d(np.asarray(test)))
    missing = np.setdiff1d(chosen, numbers)
    if missing.size:
        raise DataError(unknown_name(by, missing[0], np.unique(numbers).tolist()))
    in_test = np.isin(numbers, chosen)
    keep = np.flatnonzero(in_test | _allowed(responses, in_test, shared))
    return _two_sides(_take(responses, keep), in_test[keep], f"test {by} {chosen.tolist()}")


def _allowed(responses: xr.DataArray, in_test: np.ndarray, shared: str) -> np.ndarray:
    """Rows that may be trained on, under the rule for stimuli on both sides."""
    ids = stimulus_ids(responses)
    if shared == "error":
        check_disjoint(ids[~in_test], ids[in_test])
    return ~np.isin(ids, ids[in_test]) if shared == "drop" else ~in_test


def folds(
    responses: xr.DataArray,
    kind: str = "stimulus",
    n_splits: int | None = None,
    seed: int = 0,
    *,
    shared: str = "error",
    groups: xr.DataArray | None = None,
    gap: int = 10,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation folds over the rows, by scikit-learn's splitters.

    Parameters
    ----------
    responses : DataArray (presentation, voxel) or (stimulus, voxel)
    kind : {"stimulus", "session", "run", "block"}
        "stimulus": shuffled ``KFold`` over unique stimuli; "session", "run": ``LeaveOneGroupOut``, or
        shuffled ``GroupKFold`` where ``n_splits`` is given. "block", of time series: each run is cut into ``n_splits``
        pieces in time, of which one is left out.
    n_splits : int, optional
        5 by default for stimuli and blocks, one per group otherwise.
    seed : int
    shared : {"error", "drop", "keep"}
        As in :func:`split_by`.
    groups : DataArray (stimulus,), optional
        With "stimulus": a label of every stimulus, such as from :func:`near_duplicates` or :func:`feature_clusters`;
        stimuli of one label stay together. Without ``n_splits`` one label is left out at a time.
    gap : int
        Of "block": volumes on both sides of a test block that are neither trained on nor tested in that fold, so that
        neighbours in time are not on both sides. At least the length of the hemodynamic response.

    Returns
    -------
    list of (train, test), each int64 (n_rows,)
        Positions along the first dimension; every row is tested once.

    Raises
    ------
    DataError
        Too few groups, a stimulus without a label, a stimulus on both sides, or single volumes of a time series
        drawn as stimuli.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[0.0]] * 4, stimulus=list("abcd"), run=[1, 1, 2, 2])
    >>> [(train.tolist(), test.tolist()) for train, test in folds(r, "run")]
    [([2, 3], [0, 1]), ([0, 1], [2, 3])]
    """
    one_of("value of shared", shared, _SHARED)
    check_whole("seed", seed, least=0)
    one_of("kind of folds", kind, _KINDS)
    check_whole("gap", gap, least=0)
    ids = stimulus_ids(responses)
    if kind == "block":
        return block_folds(responses, 5 if n_splits is None else check_whole("n_splits", n_splits, least=2), gap)
    _refuse_volumes(responses, kind == "stimulus" and groups is None)
    if groups is not None:
        one_of("kind of folds with groups", kind, ("stimulus",))
        kind, (labels, number) = "group", np.unique(match(groups, responses).values, return_inverse=True)
        names = labels.tolist()
    elif kind == "stimulus":
        unique, number = np.unique(ids, return_inverse=True)
        names = unique.tolist()
        n_splits = 5 if n_splits is None else n_splits
    else:
        number, names = group_ids(responses, kind)
    wanted = len(names) if n_splits is None else check_whole("n_splits", n_splits, least=0)
    if not 2 <= wanted <= len(names):
        raise DataError(
            f"{wanted} folds by {kind} need 2 to as many groups; found {len(names)} ({', '.join(map(str, names[:3]))})."
        )
    rows = np.arange(len(ids))
    if kind == "stimulus":
        splitter = KFold(n_splits, shuffle=True, random_state=seed)
        pairs = [(np.isin(number, a), np.isin(number, b)) for a, b in splitter.split(np.arange(len(names)))]
        return [(rows[a], rows[b]) for a, b in pairs]
    grouped: Any = LeaveOneGroupOut() if n_splits is None else GroupKFold(n_splits, shuffle=True, random_state=seed)
    result = []
    for _, test in grouped.split(rows, groups=number):
        in_test = np.zeros(len(rows), dtype=bool)
        in_test[test] = True
        train = np.flatnonzero(_allowed(responses, in_test, shared))
        if not train.size:
            raise DataError(
                f"no training rows are left beside {kind} {names[number[test[0]]]!r}: all stimuli are shared."
            )
        result.append((train, np.flatnonzero(in_test)))
    return result
