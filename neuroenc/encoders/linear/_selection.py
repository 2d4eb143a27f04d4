"""Nested selection of layer or backbone per voxel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import clone

from neuroenc import stats
from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance
from neuroenc.encoders._folds import check_groups, resolve_folds
from neuroenc.encoders._labels import align_voxels, sample_coords, voxel_coords
from neuroenc.encoders.linear._partition import as_responses, block, check_spaces, fit_inside, left_out_rows
from neuroenc.encoders.linear._ridge import RidgeEncoder

METRICS = ("r", "r2", "ev")


def _inner_scores(model: Any, x: np.ndarray, Y: Any, cv: Any, groups: np.ndarray | None, metric: str) -> np.ndarray:
    """Mean score over inner folds of the training rows, one number per voxel."""
    folds = resolve_folds(cv, len(x), sample_coords(Y), groups)
    total = np.zeros(Y.shape[1])
    for train, test in folds:
        inner = clone(model)
        fit_inside(inner, x[train], block(Y, train), None if groups is None else groups[train])
        predicted = np.asarray(inner.predict(x[test]), dtype=np.float64).reshape(len(test), -1)
        # A prediction without variance has no correlation, and has predicted nothing.
        total += np.nan_to_num(stats.score(np.asarray(block(Y, test)), predicted, metric), nan=0.0)
    return total / len(folds)


def _own_score(model: Any, metric: str) -> np.ndarray:
    """The score by which the encoder chose its penalty: layer and penalty are then chosen together."""
    if not hasattr(model, "best_score_"):
        raise ConfigError(
            f"inner_cv=None uses the encoder's own cross-validated best_score_, which {type(model).__name__} lacks. "
            "Next step: inner_cv=5."
        )
    if getattr(model, "scoring", metric) != metric:
        raise ConfigError(
            f"inner_cv=None would choose by scoring={model.scoring!r} and score by metric={metric!r}. "
            f"Next step: give an encoder with scoring={metric!r}, or inner_cv=5."
        )
    return np.nan_to_num(np.asarray(model.best_score_, dtype=np.float64), nan=0.0)


def _over(Y: Any, per: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What turns scores per voxel into the scores that the choice is made by."""
    v = Y.shape[1]
    if isinstance(per, str) and per == "voxel":
        return lambda s: s
    if isinstance(per, str) and per == "all":
        return lambda s: np.full(v, s.mean())
    if isinstance(per, str):
        known = [str(k) for k in Y.coords if Y.coords[k].dims == ("voxel",)] if isinstance(Y, xr.DataArray) else []
        if per not in known:
            raise ConfigError(
                unknown_name("per", per, ("voxel", "all", *known), "Next step: label the voxels, or give labels.")
            )
        labels = Y.coords[per].values
    else:
        if isinstance(per, xr.DataArray) and per.dims == ("voxel",):
            per = align_voxels(per.expand_dims("row"), Y, "labels")[0]
        labels = as_numpy(per, "labels")
    if labels.shape != (v,):
        raise DataError(f"per has shape {labels.shape}; give one label for each of the {v} voxels.")
    names, member = np.unique(labels.astype(str), return_inverse=True)
    size = np.bincount(member, minlength=len(names))
    return lambda s: (np.bincount(member, weights=s, minlength=len(names)) / size)[member]


def select_features(
    candidates: Mapping[str, Any],
    Y: Any,
    *,
    encoder: Any = None,
    cv: Any = 5,
    inner_cv: Any = 5,
    groups: Any = None,
    metric: str = "r",
    per: Any = "voxel",
    progress: bool = False,
) -> xr.Dataset:
    r"""Select the best layer or backbone of every voxel by nested cross-validation.

    In outer fold k candidate c gets the score :math:`g_{kc}` from the training rows alone (inner folds); the
    winner predicts the rows left out, and only that prediction is scored:

    .. math:: s_v = mean_k\; score(y_k, \hat y_k^{(c^*_{kv})}), \quad c^*_{kv} = \arg\max_c g_{kcv}

    No row takes part in a choice that it scores, so ``score`` is unbiased however many candidates there are, for the
    procedure "choose, then fit" (not for one fixed candidate). The largest outer score over candidates, ``naive``, is
    biased upwards; it is returned to show by how much.

    Parameters
    ----------
    candidates : mapping {name: array (n, feature)}
        Features of each layer or backbone, rows in the order of Y; maps are flattened.
    Y : array (n, voxel)
    encoder : encoder, optional
        Cloned for every candidate and fold; default `RidgeEncoder`, which chooses its penalty on the training
        rows that it is given.
    cv, inner_cv : int, str, splitter or iterable
        Outer and inner folds, as in `RidgeEncoder`; inner ones are made anew from the training rows, and cannot be
        an iterable of splits. ``inner_cv=None`` chooses by the encoder's own cross-validated score
        (``best_score_``), which costs one fit instead of six: every candidate then comes with its best penalty.
    groups : array (n,), optional
        Rows of a group stay together, in outer and inner folds.
    metric : {"r", "r2", "ev"}
        Mean over outer folds; where a prediction does not vary r is 0. (Correlating the predictions of all folds at
        once is biased downwards in noise: a fold's training mean is low where the rows left out are high.)
    per : {"voxel", "all"}, name of a coordinate of the voxels, or array (voxel,)
        The choice is made for each voxel, for all, or by the mean score of the voxels of one label (an ROI).
    progress : bool

    Returns
    -------
    Dataset
        ``score`` (voxel), unbiased; ``chosen`` (fold, voxel), names; ``selected`` (voxel), the candidate chosen in
        most folds, and ``agreement`` (voxel), in what share of them; ``candidate_score`` (candidate, voxel), outer
        scores of each; ``inner_score`` (candidate, voxel), what the choice saw, mean over folds; ``naive`` (voxel);
        ``predicted`` (row, voxel), the winners' predictions, NaN for rows never left out.

    Raises
    ------
    DataError, ConfigError
        Features that do not fit the responses, an unknown setting, outer folds with fewer than 3 rows for "r".

    References
    ----------
    Varma & Simon (2006), BMC Bioinformatics 7:91. Cawley & Talbot (2010), JMLR 11:2079.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> layers = {f"layer{k}": rng.standard_normal((200, 6)) for k in range(3)}
    >>> y = layers["layer1"] @ rng.standard_normal((6, 4)) + rng.standard_normal((200, 4))
    >>> out = select_features(layers, y)
    >>> out.selected.values.tolist(), bool((out.score > 0.6).all())
    (['layer1', 'layer1', 'layer1', 'layer1'], True)
    """
    one_of("metric", metric, METRICS)
    Y = as_responses(Y)
    spaces, first = check_spaces(candidates, Y, 1, 10_000, "candidates")
    if not isinstance(inner_cv, (int, np.integer, str, type(None))) and not hasattr(inner_cv, "split"):
        raise ConfigError(
            "inner_cv must be a number, a coordinate's name, a splitter or None: a list of splits cannot be reused "
            "inside the outer folds."
        )
    pool = _over(Y, per)
    n, v = Y.shape
    coords = sample_coords(Y, first)
    groups = check_groups(groups, n, coords)
    folds = resolve_folds(cv, n, coords, groups)
    left_out_rows(folds, n)
    least = min(len(test) for _, test in folds)
    if least < 3:
        raise ConfigError(f"an outer fold has {least} rows; scores are means over folds and need 3 in each.")
    base = RidgeEncoder(scoring=metric) if encoder is None else encoder
    names = list(spaces)
    inner, outer = np.zeros((len(names), v)), np.zeros((len(names), v))
    score, chosen = np.zeros(v), np.zeros((len(folds), v), dtype=int)
    predicted = np.full((n, v), np.nan, dtype=np.float32)
    with progress_bar(total=len(folds) * len(names), desc="selection", show=progress, unit="candidate") as bar:
        for k, (train, test) in enumerate(folds):
            held, trained = np.asarray(block(Y, test)), block(Y, train)
            of_train = None if groups is None else groups[train]
            best, at_best = np.full(v, -np.inf), np.zeros(v)
            for c, name in enumerate(names):
                x = spaces[name]
                model = fit_inside(clone(base), x[train], trained, of_train)
                if inner_cv is None:
                    found = _own_score(model, metric)
                else:
                    found = _inner_scores(base, x[train], trained, inner_cv, of_train, metric)
                guess = np.asarray(model.predict(x[test]), dtype=np.float64).reshape(len(test), -1)
                reached = stats.score(held, guess, metric)
                if metric == "r":
                    reached[np.isnan(reached) & ~np.isnan(stats.score(held, guess, "ev"))] = 0.0
                inner[c] += found / len(folds)
                outer[c] += reached / len(folds)
                by = pool(found)
                better = by > best
                best[better], at_best[better], chosen[k, better] = by[better], reached[better], c
                predicted[np.ix_(test, better)] = guess[:, better]
                bar.update(1)
            score += at_best / len(folds)
    return _dataset(Y, names, score, chosen, inner, outer, predicted, metric, n, per)


def _dataset(
    Y: Any,
    names: list[str],
    score: np.ndarray,
    chosen: np.ndarray,
    inner: np.ndarray,
    outer: np.ndarray,
    predicted: np.ndarray,
    metric: str,
    n: int,
    per: Any,
) -> xr.Dataset:
    votes = np.stack([(chosen == c).sum(axis=0) for c in range(len(names))])
    # Of candidates with equally many folds, the one that the training rows scored higher.
    modal = np.lexsort((inner, votes), axis=0)[-1]
    labels = np.array(names, dtype=object).astype(str)
    row = str(Y.dims[0]) if isinstance(Y, xr.DataArray) else "presentation"
    rows = {k: (row, c.values) for k, c in Y.coords.items() if c.dims == (row,)} if isinstance(Y, xr.DataArray) else {}
    return xr.Dataset(
        {
            "score": ("voxel", score),
            "chosen": (("fold", "voxel"), labels[chosen]),
            "selected": ("voxel", labels[modal]),
            "agreement": ("voxel", votes.max(axis=0) / len(chosen)),
            "candidate_score": (("candidate", "voxel"), outer),
            "inner_score": (("candidate", "voxel"), inner),
            "naive": ("voxel", outer.max(axis=0)),
            "predicted": ((row, "voxel"), predicted),
        },
        coords={"candidate": labels, **rows, **(voxel_coords(Y) or {"voxel": np.arange(len(score))})},
        attrs={
            "metric": metric,
            "split": "nested cross-validation",
            "n_stimuli": n,
            "n_folds": len(chosen),
            "provenance": provenance(
                method="select_features",
                metric=metric,
                candidates=names,
                per=per if isinstance(per, str) else "labels",
            ),
        },
    )
