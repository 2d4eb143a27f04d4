"""Choosing stimuli: which pictures of a pool to show to a new subject, under constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from sklearn.cluster import KMeans

from neuroenc._core.arrays import as_numpy, unit_rows
from neuroenc._core.checks import at_least, check_ids, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.retrieval._design import Design


class Eligible:
    """Rows of a pool that may be chosen next, given those that are.

    ``labels`` are categories to balance: of those that still have candidates, only the ones of which fewest were shown.
    """

    def __init__(self, free: np.ndarray, labels: np.ndarray | None, shown: np.ndarray) -> None:
        self.free = free.copy()
        self._kind = None if labels is None else np.unique(labels, return_inverse=True)[1]
        self._count = np.zeros(0 if self._kind is None else self._kind.max() + 1, dtype=np.int64)
        for row in shown:
            self.take(int(row))

    def take(self, row: int) -> None:
        """Choose a row."""
        self.free[row] = False
        if self._kind is not None:
            self._count[self._kind[row]] += 1

    def mask(self) -> np.ndarray:
        """Rows (n,) that may be chosen next."""
        if self._kind is None:
            return self.free
        left = np.bincount(self._kind[self.free], minlength=len(self._count)) > 0
        return np.asarray(self.free & (left & (self._count == self._count[left].min()))[self._kind])


class SupportSelector(ABC):
    """Protocol of a support selector: ``select(pool, k)`` gives rows of a pool, in the order to show them.

    A selector of your own defines ``_choose``; what is legal to choose is worked out here, once for all of them.
    """

    def select(
        self,
        pool: Any,
        k: int,
        *,
        voxels: Any = None,
        responses: Any = None,
        exclude: Sequence[str] | np.ndarray | None = None,
        balance: Any = None,
    ) -> np.ndarray:
        """Choose ``k`` stimuli of a pool.

        Parameters
        ----------
        pool : array (n, feature)
            Features of the candidates; a DataArray's stimuli are their names.
        k : int
        voxels : array (voxel,), optional
            How much each voxel of ``responses`` counts, at least 0: those of the regions that the session is for.
        responses : array (m, voxel), optional
            Responses so far, to stimuli of the pool. They are not chosen again, and selectors that know encoders go on
            from them. Labelled: one row a stimulus, matched by name. Else (n, voxel), NaN where nothing was shown.
        exclude : sequence of str, or array (n,) of bool, optional
            Stimuli that must not be chosen: names (row numbers as text where the pool has none), or a mask.
        balance : array (n,), or str, optional
            Categories to balance, or the pool's stimulus coordinate that has them: at every place of the list no
            category that has candidates left was shown two times more than another.

        Returns
        -------
        ndarray (k,) int64
            Rows of the pool, the first to be shown first.

        Raises
        ------
        DataError
            A pool that is not finite, responses to stimuli that are not in it, or of other shapes.
        ConfigError
            More stimuli than may be chosen, unknown names, weights of voxels without responses.
        """
        values, ids = _pool(pool)
        shown, seen = _responses(responses, ids, pool)
        free = ~_excluded(exclude, ids)
        free[shown] = False
        if check_whole("k", k) > free.sum():
            raise ConfigError(
                f"k={k} of {int(free.sum())} stimuli that may be chosen ({len(ids)} in the pool, {len(shown)} shown, "
                f"{len(ids) - len(shown) - int(free.sum())} excluded). Next step: at most {int(free.sum())}."
            )
        eligible = Eligible(free, _labels(balance, pool, len(ids)), shown)
        weight = _weights(voxels, seen)
        rows = self._choose(values, int(k), eligible, shown, seen, weight)
        return np.asarray(rows, dtype=np.int64)

    @abstractmethod
    def _choose(
        self,
        values: np.ndarray,
        k: int,
        eligible: Eligible,
        shown: np.ndarray,
        responses: np.ndarray | None,
        voxels: np.ndarray | None,
    ) -> Sequence[int] | np.ndarray:
        """Rows of ``values`` (n, feature); ``responses`` are those to the rows ``shown``, one after the other."""


def _pool(pool: Any) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(as_numpy(pool, "pool"))
    if values.ndim != 2 or not len(values):
        raise DataError(f"pool has shape {values.shape}; expected (stimulus, feature), at least one stimulus.")
    values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise DataError(f"{len(bad)} of {len(values)} stimuli of the pool have features that are not finite.")
    ids = pool["stimulus"].values if isinstance(pool, xr.DataArray) and "stimulus" in pool.coords else None
    names = np.array(check_ids(None if ids is None else ids.astype(str).tolist(), len(values), "stimuli of the pool"))
    if len(np.unique(names)) < len(names):
        raise DataError("the pool holds stimuli twice. Next step: one row of features for each.")
    return values, names


def _responses(responses: Any, ids: np.ndarray, pool: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of the pool that were shown (m,), ascending, and the responses to them (m, voxel)."""
    if responses is None:
        return np.zeros(0, np.int64), None
    given = np.asarray(as_numpy(responses, "responses"))
    if given.ndim != 2:
        raise DataError(f"responses have shape {given.shape}; expected (stimulus, voxel).")
    rows = np.arange(len(ids))
    if not (isinstance(responses, xr.DataArray) and "stimulus" in responses.coords):
        if len(given) != len(ids):
            raise DataError(
                f"responses have {len(given)} rows, the pool {len(ids)}. Next step: responses labelled by stimulus, or "
                "a row for each of the pool, NaN where it was not shown."
            )
    else:
        names = responses["stimulus"].values.astype(str)
        if not (isinstance(pool, xr.DataArray) and "stimulus" in pool.coords):
            raise DataError("responses are labelled by stimulus and the pool is not. Next step: label the pool.")
        if len(np.unique(names)) < len(names):
            raise DataError("responses hold stimuli twice. Next step: neuroenc.data.average_repeats.")
        where = {name: row for row, name in enumerate(ids.tolist())}
        lost = [name for name in names.tolist() if name not in where]
        if lost:
            raise DataError(
                f"{len(lost)} of {len(names)} stimuli with responses are not in the pool (first: {lost[0]!r}). "
                "Next step: a pool that holds what was shown, too."
            )
        rows = np.array([where[name] for name in names.tolist()], dtype=np.int64)
        order = np.argsort(rows)
        rows, given = rows[order], given[order]
    known = ~np.isnan(given).all(axis=1)
    # Not a row for each candidate: most were not shown, and voxels are many.
    return rows[known], given[known]


def _excluded(exclude: Any, ids: np.ndarray) -> np.ndarray:
    if exclude is None:
        return np.zeros(len(ids), dtype=bool)
    given = np.asarray(exclude)
    if given.dtype == bool:
        if given.shape != ids.shape:
            raise DataError(f"exclude has shape {given.shape}; the pool has {len(ids)} stimuli.")
        return given
    names = given.astype(str).tolist()
    known = set(ids.tolist())
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name("stimulus in exclude:", name, ids.tolist()))
    return np.isin(ids, names)


def _labels(balance: Any, pool: Any, n: int) -> np.ndarray | None:
    if balance is None:
        return None
    if isinstance(balance, str):
        coords = [str(c) for c, v in getattr(pool, "coords", {}).items() if v.dims == pool["stimulus"].dims]
        if balance not in coords:
            raise ConfigError(unknown_name("stimulus coordinate balance =", balance, coords))
        balance = pool[balance]
    labels = np.asarray(getattr(balance, "values", balance)).astype(str)
    if labels.shape != (n,):
        raise DataError(f"balance has shape {labels.shape}; expected one category for each of {n} stimuli.")
    return labels


def _weights(voxels: Any, seen: np.ndarray | None) -> np.ndarray | None:
    if voxels is None:
        return None
    if seen is None:
        raise ConfigError("voxels= weighs voxels of responses, and there are none. Next step: responses=.")
    weight = np.asarray(getattr(voxels, "values", voxels), dtype=np.float64)
    if weight.shape != (seen.shape[1],) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise DataError(
            f"voxels has shape {weight.shape}; expected {(seen.shape[1],)}, weights of at least 0, not all zero."
        )
    return weight


class RandomSelector(SupportSelector):
    """Random stimuli: what other selectors have to beat.

    Parameters
    ----------
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> RandomSelector(seed=0).select(np.eye(6), 6, balance=list("aaabbb")).tolist()
    [4, 1, 5, 0, 3, 2]
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _choose(self, values: Any, k: int, eligible: Eligible, *_: Any) -> list[int]:
        # A place in line for each row: what is excluded does not change the order of the others.
        return greedy(-np.random.default_rng(self.seed).permutation(len(values)).astype(float), k, eligible)


class NearestSelector(SupportSelector):
    """Nearest stimuli: those whose features are most alike (cosine) to the mean of a target set.

    Parameters
    ----------
    target : array (m, feature), optional
        Features of the stimuli that are to be predicted; by default the pool itself, whose most typical stimuli are
        then chosen.

    Examples
    --------
    >>> import numpy as np
    >>> NearestSelector(np.array([[0.0, 1.0]])).select(np.array([[1.0, 0.0], [1.0, 1.0], [0.1, 1.0]]), 2).tolist()
    [2, 1]
    """

    def __init__(self, target: Any = None) -> None:
        self.target = target

    def _choose(self, values: np.ndarray, k: int, eligible: Eligible, *_: Any) -> list[int]:
        target = check_target(self.target, values)
        middle = unit_rows(unit_rows(target).mean(axis=0, keepdims=True))
        return greedy((unit_rows(values) @ middle.T)[:, 0], k, eligible)


def check_target(target: Any, values: np.ndarray) -> np.ndarray:
    """Features (m, feature) of the stimuli that are to be predicted: by default those of the pool."""
    if target is None:
        return values
    found = np.asarray(as_numpy(target, "target"))
    if found.ndim != 2 or found.shape[1] != values.shape[1] or not np.isfinite(found).all():
        raise DataError(f"target has shape {found.shape}; expected (m, {values.shape[1]}), all finite.")
    return found


def greedy(score: np.ndarray, k: int, eligible: Eligible) -> list[int]:
    """The k best eligible rows by a score (n,) that does not change."""
    rows = []
    for _ in range(k):
        rows.append(int(np.argmax(np.where(eligible.mask(), score, -np.inf))))
        eligible.take(rows[-1])
    return rows


class CoverageSelector(SupportSelector):
    """Stimuli that cover the pool: the ones next to the centres of k-means clusters.

    Clusters without a stimulus that was shown come first, larger ones before smaller ones, so that the beginning of the
    list covers what is common. As many clusters are made as there are stimuli to choose and shown ones.

    Parameters
    ----------
    n_init : int
        Starts of k-means.
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> pool = np.repeat(np.eye(3), [6, 3, 2], axis=0) + np.random.default_rng(0).normal(0, 0.01, (11, 3))
    >>> [int(np.argmax(pool[row])) for row in CoverageSelector().select(pool, 3)]
    [0, 1, 2]
    """

    def __init__(self, *, n_init: int = 1, seed: int = 0) -> None:
        self.n_init = n_init
        self.seed = seed

    def _choose(self, values: np.ndarray, k: int, eligible: Eligible, shown: np.ndarray, *_: Any) -> list[int]:
        n_clusters = min(k + len(shown), len(np.unique(values, axis=0)))
        found = KMeans(n_clusters, n_init=check_whole("n_init", self.n_init), random_state=self.seed).fit(values)
        size = np.bincount(found.labels_, minlength=n_clusters).astype(float)
        size[found.labels_[shown]] = -1.0
        distance = ((values**2).sum(axis=1)[:, None] - 2 * values @ found.cluster_centers_.T).T
        distance += (found.cluster_centers_**2).sum(axis=1)[:, None]
        rows: list[int] = []
        order = np.argsort(-size, kind="stable")
        for place in range(k):
            near = np.where(eligible.mask(), distance[order[place % n_clusters]], np.inf)
            rows.append(int(np.argmin(near)))
            eligible.take(rows[-1])
        return rows


class DOptimalSelector(SupportSelector):
    r"""D-optimal design: stimuli whose responses tell most about the weights of linear encoders, greedily.

    .. math:: \arg\max_{|S| = k} \tfrac12 \log\det\!\left(I + \rho\, X_S C X_S^T\right)

    for weights :math:`w \sim N(0, \tau C)`, noise :math:`\sigma^2` and :math:`\rho = \tau / \sigma^2`: the information,
    in nats, that the responses have about the weights. It is submodular, so that greedy choice has at least
    :math:`1 - 1/e` of the best set's. Responses tell nothing more here, other than what was shown;
    :class:`~neuroenc.encoders.incontext.PriorSelector` reads them.

    Parameters
    ----------
    covariance : array (feature, feature), optional
        C, up to scale; the identity by default.
    snr : float
        Variance of the signal over that of the noise of one response, at a stimulus of the pool's mean variance: with
        noisy responses loud stimuli are repeated in kind, with clean ones different ones are chosen.
    objective : {"information", "accuracy"}
        ``"accuracy"``: the expected share of variance explained for the target stimuli (V-optimal, in the units of
        the encoders' score) in the place of information about the weights.
    target : array (m, feature), optional
        Stimuli that are to be predicted; by default the pool.

    References
    ----------
    Chaloner & Verdinelli (1995), Bayesian experimental design: a review, Statistical Science 10(3). Nemhauser, Wolsey &
    Fisher (1978), Mathematical Programming 14.

    Examples
    --------
    >>> import numpy as np
    >>> pool = np.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.8], [0.0, 0.1]])
    >>> DOptimalSelector(snr=10.0).select(pool, 2).tolist()
    [0, 2]
    """

    def __init__(
        self, covariance: Any = None, *, snr: float = 0.3, objective: str = "information", target: Any = None
    ) -> None:
        self.covariance = covariance
        self.snr = snr
        self.objective = objective
        self.target = target

    def _choose(self, values: np.ndarray, k: int, eligible: Eligible, shown: np.ndarray, *_: Any) -> list[int]:
        p = values.shape[1]
        cov = np.eye(p) if self.covariance is None else np.asarray(self.covariance, dtype=np.float64)
        if cov.shape != (p, p) or not np.isfinite(cov).all():
            raise DataError(f"covariance has shape {cov.shape}; expected {(p, p)}, the pool's features, all finite.")
        at_least("snr", self.snr, above=True)
        one_of("objective", self.objective, ("information", "accuracy"))
        target = check_target(self.target, values)
        design = Design.relative(values, cov, [self.snr], target=target, accuracy=self.objective == "accuracy")
        return choose_greedily(design, k, eligible, shown, self.objective)


def choose_greedily(design: Design, k: int, eligible: Eligible, shown: np.ndarray, objective: str) -> list[int]:
    """Greedy design: k eligible rows, each of the highest gain given those before it and the rows ``shown`` (m,).

    Examples
    --------
    >>> pool = np.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.8]])
    >>> eligible = Eligible(np.ones(3, dtype=bool), None, np.zeros(0, dtype=int))
    >>> choose_greedily(Design(pool, np.eye(2), [5.0]), 2, eligible, np.zeros(0, dtype=int), "information")
    [0, 2]
    """
    if len(shown):
        design.add(shown)
    rows: list[int] = []
    for _ in range(k):
        rows.append(int(np.argmax(np.where(eligible.mask(), design.gains(objective), -np.inf))))
        eligible.take(rows[-1])
        design.add(rows[-1])
    return rows
