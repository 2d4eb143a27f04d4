r"""Decoding by an encoder: which stimulus was seen, by the likeness of its predicted and the measured responses.

A response y is compared with the predicted response f(s) to every candidate s: by their correlation over voxels (Kay et
al. 2008), or by the likelihood of Gaussian noise with a covariance (Güçlü & van Gerven 2014, Schoenmakers et al. 2013),

.. math:: \log p(s \mid y) = -\tfrac12 (y - f(s))^\top \Sigma^{-1} (y - f(s)) + \log p(s) + \text{const}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders._labels import align_voxels, sample_coords, voxel_coords
from neuroenc.encoders._noise import NoiseCovariance, refuse_voxels
from neuroenc.encoders.comparison._statistics import Group, find_groups

METRICS = ("correlation", "likelihood", "cosine")
_PAIRS = 2**22  # scores that are held at a time
_HELD = 2**24  # accuracies of permuted labels
_SAME = 1e-9  # scores that differ by less are ties: sums of many numbers end in other digits elsewhere
Positions = np.ndarray


class _Pair(NamedTuple):
    """Predicted responses of candidates and measured ones of trials, of one fold or session."""

    gallery: np.ndarray  # (candidate, voxel), float64
    trials: np.ndarray  # (trial, voxel), float64
    true: Positions  # (trial,), the candidate that was shown
    stimulus: np.ndarray  # (trial,), its id
    noise: NoiseCovariance | None
    std: np.ndarray | None  # (candidate, voxel)
    prior: np.ndarray  # (candidate,), logarithm
    groups: list[Group]
    ids: np.ndarray  # (candidate,)
    coords: dict[str, np.ndarray]


def candidate_scores(
    gallery: np.ndarray,
    trials: np.ndarray,
    metric: str,
    noise: NoiseCovariance | None = None,
    std: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Scores (trial, candidate) of some trials at a time, in their order."""
    step = max(1, _PAIRS // len(gallery))
    parts = [slice(k, k + step) for k in range(0, len(trials), step)]
    if std is not None and noise is not None:
        for at in parts:
            found = np.empty((len(trials[at]), len(gallery)))
            for k, (f, sd) in enumerate(zip(gallery, std)):
                off = noise.with_sd(sd).whiten(trials[at] - f)
                found[:, k] = -0.5 * np.einsum("tv,tv->t", off, off) - np.log(sd).sum()
            yield found
        return
    if noise is not None:
        gallery, trials = noise.whiten(gallery), noise.whiten(trials)
    if metric == "likelihood":
        half = 0.5 * np.einsum("gv,gv->g", gallery, gallery)
        for at in parts:
            yield trials[at] @ gallery.T - half
        return
    gallery, trials = (centred_rows(x, metric) for x in (gallery, trials))
    for at in parts:
        yield trials[at] @ gallery.T


def centred_rows(rows: np.ndarray, metric: str) -> np.ndarray:
    """Response patterns of unit norm, for "correlation" around their mean over voxels."""
    if metric == "correlation":
        rows = rows - rows.mean(axis=1, keepdims=True)
    size = np.sqrt(np.einsum("nv,nv->n", rows, rows))
    flat = size <= 1e-12 * max(1.0, float(size.max(initial=0.0)))
    if flat.any():
        raise DataError(
            f"{int(flat.sum())} of {len(rows)} response patterns are the same in all {rows.shape[1]} voxels, so that "
            f"their {metric} is not defined. Next step: at least 3 voxels, or metric='likelihood'."
        )
    return np.asarray(rows / size[:, None])


def identify(
    predicted: Any,
    measured: Any,
    *,
    metric: str = "correlation",
    noise: Any = None,
    std: Any = None,
    prior: Any = None,
    groups: Any = None,
    sizes: Sequence[int] | None = None,
    top: Sequence[int] = (1, 5),
    blocks: str = "",
    n_permutations: int = 1000,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    r"""Identify the stimuli that were seen, from measured responses and an encoder's predictions for all candidates.

    Every trial ranks the candidates by ``metric``; the rank of the stimulus that was shown gives top-k accuracy, and
    the accuracy among any smaller number of candidates in closed form (`neuroenc.stats.n_way_accuracy`), pairwise
    accuracy among two of them. The metrics are

    .. math:: \text{correlation: } \mathrm{corr}_v(y_v, f_v(s)), \qquad
              \text{likelihood: } -\tfrac12 (y - f(s))^\top \Sigma^{-1} (y - f(s)) + \log p(s)

    With ``noise``, correlation and cosine are of whitened responses, and the likelihood has its covariance (without:
    white noise). Responses are to be z-scored per voxel, or the mean pattern of all stimuli makes all of them alike.

    Parameters
    ----------
    predicted : array (candidate, voxel), or list of arrays
        Predicted response to every candidate, with its id as ``stimulus``. A list has one array for each fold (or
        session), whose encoder has not seen its trials; trials are ranked among the candidates of their own fold.
    measured : array (trial, voxel), or list of arrays
        Measured responses; several trials may be of one stimulus. Voxels are matched by label. Without labels, row n is
        of candidate n.
    metric : {"correlation", "likelihood", "cosine"}
    noise : NoiseCovariance, or list of them, optional
        From residuals of other trials than these.
    std : array (candidate, voxel), or list of arrays, optional
        Of "likelihood" with ``noise``: standard deviation of a response to each candidate, weights' uncertainty and
        noise together, as ``predict(X, return_std=True)`` gives it. The noise lends its correlations.
    prior : array (candidate,), or list of arrays, optional
        Of "likelihood": how probable each candidate is before the response; default: all alike.
    groups : "roi", mapping or list of mappings, optional
        Sets of voxels that are decoded one by one: every region (and value of a text coordinate), or names with masks
        or positions. By default all voxels.
    sizes : sequence of int, optional
        Numbers of candidates of the curve; default 2, 5, 10, 20, 50, ... up to the smallest fold's.
    top : sequence of int
        k of top-k accuracy among all candidates.
    blocks : str
        Coordinate of the trials ("run", "session") within which labels of stimuli are permuted; all trials of a
        stimulus then belong to one.
    n_permutations : int
        Of the test against chance; 0 leaves it out.
    n_bootstraps : int
        Resamples of the stimuli shown, for 95 % intervals; candidates stay.
    seed : int

    Returns
    -------
    Dataset
        ``rank (group, trial)``: place of the stimulus shown, 1 the best, the mean of tied places. ``accuracy (group,
        size)`` among so many candidates, ``top_k (group, k)`` among all, each with ``_low, _high`` (95 %), ``_chance``
        and ``_p``; p of several folds is twice the mean of theirs, which holds however folds depend on each other.
        ``n_voxels (group)``, ``n_candidates (trial)``, ``predicted_stimulus (group, trial)``, the best candidate.

    Raises
    ------
    DataError
        Two candidates of one id, a stimulus that is no candidate, other voxels, a voxel that is constant or not finite,
        a single candidate.
    ConfigError
        An option that is not legal, or that the metric does not read.

    References
    ----------
    Kay, Naselaris, Prenger & Gallant (2008), Nature 452:352. Güçlü & van Gerven (2014), PLoS Comput. Biol. 10:e1003724.
    Vovk & Wang (2020), Biometrika 107:791 (p-values of dependent folds).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> predicted = rng.standard_normal((100, 50))
    >>> found = identify(predicted, predicted + 3 * rng.standard_normal((100, 50)), n_permutations=99)
    >>> found["accuracy"].sel(group="all", size=2).round(2).item(), found["top_k"].sel(k=1).values.round(2).tolist()
    (0.95, [0.48])
    >>> found["top_k_p"].sel(k=1).values.tolist(), found["top_k_chance"].sel(k=1).item()
    ([0.01], 0.01)
    """
    metric = one_of("metric", metric, METRICS, aliases={"pearson": "correlation", "r": "correlation"})
    options = {"noise": noise, "std": std, "prior": prior, "groups": groups}
    if metric != "likelihood" and (prior is not None or std is not None):
        raise ConfigError(f"{'prior' if std is None else 'std'} is of metric='likelihood', and metric is {metric!r}.")
    if std is not None and noise is None:
        raise ConfigError("std needs noise, whose correlations it uses. Next step: noise=NoiseCovariance.fit(...).")
    pairs = _pairs(predicted, measured, options)
    for pair in pairs if blocks else ():
        one_of("blocks", blocks, pair.coords)
    most = min(len(p.gallery) for p in pairs)
    sizes = _sizes(sizes, most)
    top = sorted({check_whole("top", k) for k in top if k <= most} or {1})
    resampler = stats.Resampler(n_bootstraps, groups=np.concatenate([p.stimulus for p in pairs]), seed=seed)
    check_whole("n_permutations", n_permutations, 0)
    names = [(g.kind, g.name) for g in pairs[0].groups]
    columns = [("accuracy", n) for n in sizes] + [("top_k", k) for k in top]
    n_trials = sum(len(p.trials) for p in pairs)
    rank, best = np.empty((len(names), n_trials)), np.empty((len(names), n_trials), dtype=object)
    shape = len(names), len(columns)
    estimate, low, high, p_value = (np.full(shape, np.nan) for _ in range(4))
    for g in range(len(names)):
        right, p_fold, start = [], [], 0
        for pair in pairs:
            found = _Ranks(pair, pair.groups[g].voxels, metric)
            at = slice(start, start + len(pair.trials))
            rank[g, at], best[g, at] = found.own_rank(), found.best
            right.append(np.stack([found.own(kind, n) for kind, n in columns], axis=1))
            if n_permutations:
                block = pair.coords.get(blocks) if blocks else None
                p_fold.append(found.test(columns, block, n_permutations, seed))
            start = at.stop
        estimate[g], drawn = resampler.means(np.concatenate(right))
        n_units = len(np.unique(resampler.groups))
        low[g], high[g], _ = stats.sample_interval(drawn, estimate[g], n_units=n_units, bounds=(0.0, 1.0))
        if p_fold:
            p_value[g] = np.minimum(1.0, np.mean(p_fold, axis=0) * (1 if len(pairs) == 1 else 2))
    shares = np.concatenate([np.full(len(p.trials), 1 / len(p.gallery)) for p in pairs])
    chance = np.array([1 / n if kind == "accuracy" else n * math.fsum(shares) / n_trials for kind, n in columns])
    trial = {k: ("trial", v) for k, v in _merged([p.coords for p in pairs]).items()}
    trial["fold"] = "trial", np.repeat(np.arange(len(pairs)), [len(p.trials) for p in pairs])
    group = {"group": [name for _, name in names], "kind": ("group", [kind for kind, _ in names])}
    out = xr.Dataset(coords={**group, "size": sizes, "k": top, **trial})
    for name, dim, some in (("accuracy", "size", slice(0, len(sizes))), ("top_k", "k", slice(len(sizes), None))):
        out[name] = ("group", dim), estimate[:, some]
        parts = {"low": low, "high": high, **({"p": p_value} if n_permutations else {})}
        out = out.assign({f"{name}_{k}": (("group", dim), v[:, some]) for k, v in parts.items()})
        out[f"{name}_chance"] = dim, chance[some]
    out["rank"] = ("group", "trial"), rank
    out["predicted_stimulus"] = ("group", "trial"), best.astype(str)
    out["n_candidates"] = "trial", np.concatenate([np.full(len(p.trials), len(p.gallery)) for p in pairs])
    out["n_voxels"] = "group", [len(g.voxels) for g in pairs[0].groups]
    about = {"metric": metric, "noise": "none" if noise is None else "covariance", "n_folds": len(pairs)}
    return out.assign_attrs(**about, n_permutations=n_permutations, n_bootstraps=n_bootstraps, seed=seed)


def pairwise_accuracy(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Pairwise identification accuracy by correlation over voxels, ties counting half.

    Rows (stimulus, voxel) of both belong together. Voxels that are constant or not finite are left out; NaN where fewer
    than 3 are left, or a pattern is the same in all.

    >>> f = np.random.default_rng(0).standard_normal((20, 9))
    >>> pairwise_accuracy(f, f), pairwise_accuracy(np.tile(f[0], (20, 1)), f)
    (1.0, 0.5)
    """
    usable = np.isfinite(measured).all(axis=0) & (np.ptp(measured, axis=0) > 0)
    if usable.sum() < 3 or len(measured) < 2:
        return float("nan")
    try:
        f, y = (centred_rows(x[:, usable].astype(np.float64), "correlation") for x in (predicted, measured))
    except DataError:
        return float("nan")
    scores = y @ f.T
    own = np.diag(scores)[:, None]
    behind = (scores < own - _SAME).sum() + 0.5 * ((np.abs(scores - own) <= _SAME).sum() - len(own))
    return float(behind / (len(own) * (len(own) - 1)))


def identification_table(found: Mapping[str, xr.Dataset] | xr.Dataset) -> pd.DataFrame:
    """Accuracies of `identify` as a table, a row for each set of voxels and number of candidates, or k.

    Parameters
    ----------
    found : Dataset, or mapping of name to Dataset
        Results of `identify` by name, such as the metric or the encoder.

    Returns
    -------
    DataFrame
        ``name, kind, group, n_voxels, measure`` ("accuracy" among ``n`` candidates, or "top_k" among all, with k =
        ``n``), ``n, accuracy, low, high, chance, p``.

    Examples
    --------
    >>> import numpy as np
    >>> f = np.random.default_rng(0).standard_normal((20, 9))
    >>> table = identification_table(identify(f, f, sizes=[2], top=[1], n_permutations=99, n_bootstraps=99))
    >>> table[["group", "measure", "n", "accuracy", "chance", "p"]].values.tolist()
    [['all', 'accuracy', 2, 1.0, 0.5, 0.01], ['all', 'top_k', 1, 1.0, 0.05, 0.01]]
    """
    rows = []
    named = {"": found} if isinstance(found, xr.Dataset) else found
    for name, one in named.items():
        for g, group in enumerate(one["group"].values):
            told: dict[str, Any] = {"name": name, "kind": str(one["kind"].values[g]), "group": str(group)}
            told["n_voxels"] = int(one["n_voxels"].values[g])
            for measure, dim in (("accuracy", "size"), ("top_k", "k")):
                for k, n in enumerate(one[dim].values):
                    parts = {c: float(one[f"{measure}_{c}"].values[g, k]) for c in ("low", "high")}
                    p = float(one[f"{measure}_p"].values[g, k]) if f"{measure}_p" in one else float("nan")
                    chance = float(one[f"{measure}_chance"].values[k])
                    value = {"accuracy": float(one[measure].values[g, k]), **parts, "chance": chance, "p": p}
                    rows.append({**told, "measure": measure, "n": int(n), **value})
    return pd.DataFrame(rows)


def _sizes(sizes: Sequence[int] | None, most: int) -> list[int]:
    if sizes is None:
        steps = [m * 10**e for e in range(7) for m in (1, 2, 5)]
        return [n for n in steps if 2 <= n < most] + [most]
    wanted = sorted({check_whole("sizes", n, 2) for n in sizes})
    if not wanted or wanted[-1] > most:
        raise ConfigError(f"sizes={list(sizes)} are not legal; candidates of a choice are 2 to {most}, all there are.")
    return wanted


class _Ranks:
    """Where the measured stimuli of one fold stand among its candidates, for every trial."""

    def __init__(self, pair: _Pair, voxels: Positions, metric: str) -> None:
        self.size = len(pair.gallery)
        # Labels are exchanged among the stimuli that were shown.
        self.shown, self.of = np.unique(pair.true, return_inverse=True)
        self.first, self.tied = (np.empty((len(pair.true), len(self.shown)), dtype=np.int32) for _ in range(2))
        picked, start = [], 0
        noise = None if pair.noise is None else pair.noise.take(voxels)
        std = None if pair.std is None else pair.std[:, voxels]
        for scores in candidate_scores(pair.gallery[:, voxels], pair.trials[:, voxels], metric, noise, std):
            scores = scores + pair.prior
            rows = slice(start, start + len(scores))
            ordered = np.sort(scores, axis=1)
            slack = _SAME * np.maximum(1.0, np.abs(scores).max(axis=1))
            for t, (row, sizes) in enumerate(zip(scores[:, self.shown], ordered)):
                low, high = sizes.searchsorted(row - slack[t], "left"), sizes.searchsorted(row + slack[t], "right")
                self.first[start + t], self.tied[start + t] = 1 + self.size - high, high - low - 1
            picked.append(scores.argmax(axis=1))
            start = rows.stop
        self.best = pair.ids[np.concatenate(picked)]
        self.at = np.arange(len(pair.true)), self.of

    def own_rank(self) -> np.ndarray:
        """Rank (trial,) of the stimulus shown, the mean of tied places."""
        return np.asarray(self.first[self.at] + self.tied[self.at] / 2)

    def _right(self, kind: str, n: int, at: Any) -> np.ndarray:
        first, tied = self.first[at], self.tied[at]
        if kind == "accuracy":
            return stats.n_way_accuracy(first, self.size, n, tied=tied)
        return np.asarray(np.clip((n - first + 1) / (tied + 1), 0.0, 1.0))

    def own(self, kind: str, n: int) -> np.ndarray:
        """Expected accuracy (trial,)."""
        return self._right(kind, n, self.at)

    def test(self, columns: Sequence[tuple[str, int]], block: Any, n_permutations: int, seed: int) -> np.ndarray:
        """p (column,) of the means over trials, labels of stimuli permuted."""
        size = len(self.shown)
        if size < 2:
            return np.full(len(columns), np.nan)
        blocks = None if block is None else _block_of(block, self.of, size)
        p, step = np.empty(len(columns)), max(1, _HELD // size**2)
        for start in range(0, len(columns), step):
            some = columns[start : start + step]
            values = np.zeros((size, size, len(some)))
            for k, (kind, n) in enumerate(some):
                np.add.at(values[..., k], self.of, self._right(kind, n, slice(None)))
            found = stats.matching_test(values, blocks=blocks, n_permutations=n_permutations, seed=seed)
            p[start : start + step] = found.p
        return p


def _block_of(block: np.ndarray, of: Positions, n: int) -> np.ndarray:
    """Block of every stimulus."""
    table = pd.Series(block).groupby(of)
    if (table.nunique() > 1).any():
        raise DataError(
            f"{int((table.nunique() > 1).sum())} of {n} stimuli were shown in more than one block. "
            "Next step: blocks='' (whole stimuli are permuted), or the trials of one session at a time."
        )
    return np.asarray(table.first().to_numpy())


def _pairs(predicted: Any, measured: Any, options: Mapping[str, Any]) -> list[_Pair]:
    """Each fold's arrays, checked and matched."""
    several = isinstance(predicted, (list, tuple))
    if not several:
        return [_pair(predicted, measured, **options)]
    given = {"predicted": predicted, "measured": measured, **options}
    n = {len(v) for v in given.values() if isinstance(v, (list, tuple))}
    if len(n) != 1 or not isinstance(measured, (list, tuple)) or not predicted:
        raise DataError(
            f"predicted is a list of {len(predicted)} folds; measured and options must be lists of as many."
        )
    rows = {k: v if isinstance(v, (list, tuple)) else [v] * len(predicted) for k, v in given.items()}
    found = [_pair(**dict(zip(rows, row))) for row in zip(*rows.values())]
    names = [[g.name for g in pair.groups] for pair in found]
    if any(row != names[0] for row in names):
        raise DataError(f"folds have other groups of voxels: {names[0]} and {next(r for r in names if r != names[0])}.")
    return found


def _pair(predicted: Any, measured: Any, noise: Any, std: Any, prior: Any, groups: Any) -> _Pair:
    labelled = isinstance(predicted, xr.DataArray), isinstance(measured, xr.DataArray)
    if labelled[0] != labelled[1]:
        raise DataError(f"{('measured', 'predicted')[labelled[1]]} has no labels and the other has. Next step: both.")
    arrays = [_voxels_last(x, name) for x, name in ((predicted, "predicted"), (measured, "measured"))]
    candidates, trials = arrays[0], align_voxels(arrays[1], arrays[0], "measured responses")
    if candidates.shape[1] != trials.shape[1]:
        raise DataError(f"predicted has {candidates.shape[1]} voxels, measured {trials.shape[1]}.")
    ids, shown, true = _identities(candidates, trials)
    voxels = voxel_coords(candidates)
    f, y = (as_numpy(x).astype(np.float64) for x in (candidates, trials))
    for values, what in ((f, "predicted responses"), (y, "measured responses")):
        refuse_voxels(~np.asarray(np.isfinite(values).all(axis=0)), voxels, what)
    if len(y) > 1:
        refuse_voxels(np.asarray(np.ptp(y, axis=0) == 0), voxels, "measured responses")
    if noise is not None:
        if not isinstance(noise, NoiseCovariance):
            raise ConfigError(f"noise is a {type(noise).__name__}. Next step: NoiseCovariance.fit(residuals).")
        noise = noise.like(candidates)
    if std is not None:
        std = as_numpy(align_voxels(_voxels_last(std, "std"), candidates, "std")).astype(np.float64)
        if std.shape != f.shape or not (np.isfinite(std) & (std > 0)).all():
            raise DataError(f"std has shape {std.shape}; legal: a number above 0 for each of {f.shape} predictions.")
    coords = sample_coords(trials) | {"stimulus": shown}
    return _Pair(f, y, true, shown, noise, std, _log_prior(prior, len(f)), _groups(groups, candidates), ids, coords)


def _voxels_last(x: Any, name: str) -> Any:
    if getattr(x, "ndim", 0) != 2:
        raise DataError(f"{name} has shape {getattr(x, 'shape', None)}; legal is (stimulus, voxel).")
    # Decoded features are identified as responses are.
    labelled = isinstance(x, xr.DataArray)
    return x.rename({x.dims[1]: "voxel"}) if labelled and x.dims[1] != "voxel" and "voxel" not in x.coords else x


def _identities(candidates: Any, trials: Any) -> tuple[np.ndarray, np.ndarray, Positions]:
    """Ids of candidates, ids of the stimuli shown, and where these stand among the candidates."""
    if len(candidates) < 2:
        raise DataError(f"{len(candidates)} candidate leaves nothing to choose; at least 2.")
    if not isinstance(candidates, xr.DataArray):
        if len(candidates) != len(trials):
            raise DataError(
                f"{len(candidates)} candidates and {len(trials)} trials without labels do not tell which was shown. "
                "Next step: neuroenc.data.make_responses(..., stimulus=ids)."
            )
        ids = np.arange(len(candidates)).astype(str)
        return ids, ids, np.arange(len(candidates))
    named = []
    for array, what in ((candidates, "predicted"), (trials, "measured")):
        if "stimulus" not in array.coords:
            raise DataError(f"{what} has no coordinate stimulus. Next step: neuroenc.data.make_responses.")
        named.append(array["stimulus"].values.astype(str))
    index = pd.Index(named[0])
    if not index.is_unique:
        double = index[index.duplicated()]
        raise DataError(
            f"{len(double)} of {len(index)} candidates have the id of another (first: {double[0]!r}). "
            "Next step: one row for each stimulus."
        )
    true = index.get_indexer(named[1])
    if (true < 0).any():
        lost = np.unique(named[1][true < 0])
        step = f"{len(lost)} in all. Next step: predict them too, or neuroenc.encoders.retrieve for others like them."
        raise DataError(unknown_name("stimulus among the candidates:", lost[0], named[0], step))
    return named[0], named[1], true


def _log_prior(prior: Any, n: int) -> np.ndarray:
    if prior is None:
        return np.zeros(n)
    found = np.asarray(prior, dtype=np.float64)
    if found.shape != (n,) or not (found > 0).all() or not np.isfinite(found).all():
        raise DataError(f"prior has shape {found.shape}; legal: a number above 0 for each of {n} candidates.")
    return np.asarray(np.log(found / found.sum()))


def _groups(groups: Any, like: Any) -> list[Group]:
    n = like.shape[1]
    if groups is None:
        return [Group("all", "all", np.arange(n))]
    if isinstance(groups, str):
        one_of("groups", groups, ("roi",))
        if not isinstance(like, xr.DataArray):
            raise DataError("groups='roi' needs labelled responses. Next step: make_responses(..., roi=names).")
        return find_groups(like)
    found = []
    for name, members in groups.items():
        at = np.asarray(members)
        if at.dtype == bool and at.shape == (n,):
            at = np.flatnonzero(at)
        if at.ndim != 1 or not at.size or at.dtype.kind not in "iu" or at.min() < 0 or at.max() >= n:
            raise DataError(f"group {name!r} is no mask of {n} voxels, nor a list of positions from 0 to {n - 1}.")
        found.append(Group("set", str(name), at))
    return found


def _merged(coords: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Coordinates of the trials of all folds that every fold has."""
    shared = [k for k in coords[0] if all(k in c for c in coords)]
    return {
        k: np.concatenate([c[k] for c in coords]) for k in shared if k not in ("group", "size", "k", "trial", "fold")
    }
