"""What a session is expected to give: explained variance after each picture, under the prior of other subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.linalg import solve_triangular
from scipy.special import logsumexp, softmax

from neuroenc import stats
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError
from neuroenc.encoders.incontext._evidence import Floats, covariance_root
from neuroenc.encoders.incontext._prior import WeightPrior
from neuroenc.encoders.incontext._selection import posterior_population, prior_ratios
from neuroenc.retrieval import check_target

# Values of signal scale over noise, of equal shares of voxels, and simulated voxels in all; values that the encoder
# averages over, and points of the scale at each.
_NODES, _VOXELS, _GUESSES, _SCALES = 15, 600, 7, 5
# Prior variance of an intercept of which nothing is known, in units of the signal's.
_FLAT = 1e4
_QUANTILES = (0.05, 0.95)
# Share of the explained variance that repeats may cost, and the error of a ceiling that is worth it.
_COST, _ERROR = 0.1, 0.1


class ExpectedAccuracy:
    r"""Explained variance that a prior expects of encoders after each stimulus of a list, by simulated voxels.

    .. math:: EV_v = 1 - \frac{(w_v - \hat w_v)^T \Sigma (w_v - \hat w_v) + \rho_v^{-1}}
              {w_v^T \Sigma w_v + \rho_v^{-1}}, \qquad
              \hat w_v = E_{\rho, \tau \mid y_v}\!\left[\mu + C X^T (X C X^T + I / (\rho r))^{-1} (y_v - X \mu)\right]

    of single responses to the target stimuli, whose features have covariance :math:`\Sigma`, for voxels that are drawn
    from the prior, :math:`w_v \sim N(\mu, \tau_v C)`, noise :math:`\sigma_v^2`, :math:`\rho_v = \tau_v /
    \sigma_v^2` (written in units of :math:`\tau_v`), and a support of stimuli X that are shown r times each. It is what
    `EmpiricalBayesRidge` reaches where a subject is as the prior says, and as good as the prior where it is not.
    Responses so far tell the distribution of :math:`\rho` and C, as in `PriorSelector`; what is forecast is then
    another subject of that kind.

    Parameters
    ----------
    prior : WeightPrior
    pool : array (n, feature)
        Candidates.
    target : array (m, feature), optional
        Stimuli that are to be predicted; by default the pool.
    shown : array (m,) of int
        Rows of the pool that were shown already.
    responses : array (m, voxel), optional
        To these, in their order.
    voxels : array (voxel,), optional
        How much each voxel counts.
    presentations : array (m,), optional
        How many were averaged for each row of ``responses``; by default one.
    seed : int
        Of the simulated voxels.

    Attributes
    ----------
    ratios : ndarray (j,)
        Signal scale over the noise variance of one presentation, of equal shares of voxels.
    ceiling : float
        Explained variance with everything known: the mean over voxels.

    Raises
    ------
    DataError
        A pool or target of another number of features.

    Examples
    --------
    >>> import numpy as np
    >>> pool = np.random.default_rng(0).standard_normal((50, 4))
    >>> expected = ExpectedAccuracy(WeightPrior.isotropic(4), pool)
    >>> curve = expected.after(np.arange(20)).explained_variance
    >>> bool(curve[0] < curve[9] < curve[19] < expected.of_pool() < expected.ceiling)
    True
    """

    def __init__(
        self,
        prior: WeightPrior,
        pool: Any,
        *,
        target: Any = None,
        shown: Any = (),
        responses: np.ndarray | None = None,
        voxels: np.ndarray | None = None,
        presentations: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        values = np.asarray(getattr(pool, "values", pool), dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != prior.n_features:
            raise DataError(f"pool has shape {values.shape}; the prior has {prior.n_features} features.")
        self.prior = prior
        target = np.asarray(check_target(target, values), dtype=np.float64)
        # With a flat intercept nothing depends on where features have their origin.
        self._flat = prior.n_voxels == 0
        middle = target.mean(axis=0) if self._flat else np.zeros(prior.n_features)
        self._values, self._target = values - middle, target - target.mean(axis=0)
        self._cov = np.asarray(prior.cov)
        points, shares = prior_ratios(prior, values, 41)
        self.shown = np.asarray(shown, dtype=np.int64)
        self._count = np.ones(len(self.shown)) if presentations is None else np.asarray(presentations, dtype=float)
        if responses is not None and len(self.shown) >= 3:
            points, shares, self._cov = posterior_population(prior, values[self.shown], responses, voxels)
            points = points / self._count.mean()  # the noise was that of averages
        self.ratios = _quantiles(points, shares, _NODES)
        self._guesses = _quantiles(points, shares, _GUESSES)
        self._within = _axes(self._target, self._cov)
        self._root = covariance_root(self._cov)
        self._seed = check_whole("seed", seed, 0)
        every = np.repeat(self.ratios, _VOXELS // len(self.ratios))
        n = len(every)
        rng = np.random.default_rng([self._seed, 0])
        self._white = rng.standard_normal((self._root.shape[1], n))
        # Of each simulated voxel, in units of its own scale: weights about the mean, signal in the target's own axes,
        # its variance with the mean's, and the noise of one presentation.
        middle, spread = self._scales(every)
        self._scale = middle * np.exp(spread * rng.standard_normal(n))
        self._weights = self._root @ self._white
        self._signal = self._within.T @ self._weights
        mean = self._within.T @ prior.mean
        self._power = ((self._signal + mean[:, None] / np.sqrt(self._scale)) ** 2).sum(axis=0)
        self._noise = 1 / every
        self.ceiling = float((self._power / (self._power + self._noise)).mean())

    def after(self, rows: Any, *, repeats: int = 1) -> xr.Dataset:
        """Expected explained variance after each stimulus of a list.

        Parameters
        ----------
        rows : array (k,) or (draw, k) of int
            Rows of the pool in the order in which they are shown, after those that were; a mean over draws.
        repeats : int
            Presentations of each, whose responses are averaged.

        Returns
        -------
        Dataset over place (1 to k)
            ``explained_variance``, the mean over voxels, and their 5 and 95 % quantiles, ``low`` and ``high``: of one
            response, noise included. ``start``: before the first of them.
        """
        repeats = check_whole("repeats", repeats)
        lists = np.atleast_2d(np.asarray(rows, dtype=np.int64))
        found = []
        for row in lists:
            curve = self._curve(row, repeats)[len(self.shown) :]
            found.append([curve.mean(axis=1), *np.quantile(curve, _QUANTILES, axis=1)])
        told = np.mean(found, axis=0)
        names = ("explained_variance", "low", "high")
        return xr.Dataset(
            {name: ("place", line[1:]) for name, line in zip(names, told)} | {"start": float(told[0, 0])},
            coords={"place": np.arange(1, lists.shape[1] + 1)},
        )

    def of_pool(self) -> float:
        """The same with every stimulus of the pool shown once; what lacks to the ceiling takes repeats, or others."""
        seen = self._values - self._values.mean(axis=0)
        values, vectors = np.linalg.eigh(self._root.T @ (seen.T @ seen) @ self._root)
        told = np.sqrt(np.maximum(values, 0)[:, None] / self._noise)
        heard = np.random.default_rng([self._seed, 1]).standard_normal(self._white.shape)
        error = (vectors.T @ self._white - told * heard) / (1 + told**2)
        missed = ((self._within.T @ self._root @ vectors) @ error) ** 2
        return float(self._share(missed.sum(axis=0)).mean())

    def unexplained(self, rows: Any, *, repeats: int = 1) -> Floats:
        """Share of each target stimulus' signal variance (m,) that is still open after a list, of the middle voxel."""
        ratio = float(self.ratios[len(self.ratios) // 2])
        shown, noise = self._support(np.asarray(rows, dtype=np.int64), repeats)
        offset = self._offset(np.array([ratio]))[0]
        lower = np.linalg.cholesky(shown @ self._cov @ shown.T + offset + np.diag(noise / ratio))
        gone = solve_triangular(lower, shown @ self._cov @ self._target.T, lower=True)
        whole = np.einsum("mp,pq,mq->m", self._target, self._cov, self._target, optimize=True)
        return np.asarray(np.clip(1 - (gone**2).sum(axis=0) / np.maximum(whole, np.finfo(float).tiny), 0, 1))

    def by_repeats(self, rows: Any, trials: int, most: int = 6) -> pd.DataFrame:
        r"""How many repeats against how many pictures, for a session of some trials.

        Parameters
        ----------
        rows : array (k,) of int
            As in `after`; the first ``trials // repeats`` of them are shown.
        trials : int
            Presentations that the session has.
        most : int
            Rows of the table, at most.

        Returns
        -------
        DataFrame
            ``repeats, pictures, explained_variance, low, high`` (of single responses, so that rows can be compared),
            ``lost``, the share of the first row's that is missing; ``ceiling_error``, the standard error of the noise
            ceiling of the middle voxel (`neuroenc.stats.ceiling_error`); ``recommended``.

        Notes
        -----
        Recommended are the fewest repeats that cost at most a tenth of what the first row explains and tell the
        ceiling to .1; where there are none, the first row: single presentations, if there are enough pictures.
        """
        trials, found = check_whole("trials", trials, 2), []
        middle = float(np.median(self._power / (self._power + self._noise)))
        least = next(r for r in range(1, trials + 1) if trials // r <= len(rows))
        for repeats in range(least, min(least + check_whole("most", most), trials + 1)):
            pictures = trials // repeats
            last = self.after(np.asarray(rows)[:pictures], repeats=repeats).isel(place=-1)
            error = float(stats.ceiling_error(middle, pictures, repeats)) if pictures > 1 else np.nan
            told = {name: float(last[name]) for name in ("explained_variance", "low", "high")}
            found.append({"repeats": repeats, "pictures": pictures, **told, "ceiling_error": error})
        table = pd.DataFrame(found)
        first = table["explained_variance"].iloc[0]
        table.insert(5, "lost", 1 - table["explained_variance"] / first if first > 0 else 0.0)
        good = table[(table["lost"] <= _COST) & (table["ceiling_error"] <= _ERROR)]
        table["recommended"] = table.index == (good.index[0] if len(good) else table.index[0])
        return table

    def _support(self, rows: np.ndarray, repeats: int) -> tuple[Floats, Floats]:
        """Features of what was shown and what follows, and the noise variance of each over that of one response."""
        noise = np.concatenate([1 / self._count, np.full(len(rows), 1 / repeats)])
        return self._values[np.concatenate([self.shown, rows])], noise

    def _offset(self, ratios: Floats) -> Floats:
        """Prior variance of the intercept for voxels of each ratio, in units of tau."""
        if self._flat:
            return np.full(len(ratios), _FLAT * max(float(np.median(self._power)), np.finfo(float).tiny))
        return np.asarray(self.prior.intercept_var / self._scales(ratios)[0])

    def _scales(self, ratios: Floats) -> tuple[Floats, float]:
        """Scale tau that voxels of each ratio have in the middle, and the standard deviation of its logarithm."""
        if self.prior.hyper is None:
            return np.ones(len(ratios)), 0.0
        centre, spread = self.prior.hyper
        turn = np.array([1.0, -1.0])
        across = spread[0] @ turn / max(turn @ spread @ turn, np.finfo(float).tiny)
        left = float(spread[0, 0] - across * (spread[0] @ turn))
        return np.asarray(np.exp(centre[0] + across * (np.log(ratios) - turn @ centre))), max(left, 0.0) ** 0.5

    def _share(self, missed: Floats) -> Floats:
        """Explained variance of a response, of squared errors of the signal (..., voxel)."""
        return np.asarray(1 - (missed + self._noise) / (self._power + self._noise))

    def _curve(self, rows: np.ndarray, repeats: int) -> Floats:
        """Explained variance (1 + shown + k, voxel) before and after each stimulus."""
        X, noise = self._support(rows, repeats)
        rng = np.random.default_rng([self._seed, 2])
        heard = X @ self._weights + np.sqrt(noise[:, None] * self._noise) * rng.standard_normal(
            (len(X), len(self._noise))
        )
        if not self._flat:
            heard += np.sqrt(self._offset(1 / self._noise)) * rng.standard_normal(len(self._noise))
        inner, along = X @ self._cov @ X.T, X @ self._cov @ self._within
        middle, spread = self._scales(self._guesses)
        points, shares = np.polynomial.hermite_e.hermegauss(_SCALES if spread else 1)
        scales = middle[:, None] * np.exp(spread * points)
        news, moves, score = [], [], []
        for ratio, offset, scale in zip(self._guesses, self._offset(self._guesses), scales):
            lower = np.linalg.cholesky(inner + offset + np.diag(noise / ratio))
            # What each response tells beyond those before it, and where that moves the weights: rows of L^-1 do not
            # change as stimuli are added, so that one factor gives the whole curve.
            told = solve_triangular(lower, heard, lower=True)
            news.append(told)
            moves.append(solve_triangular(lower, along, lower=True))
            # Log likelihood of the responses so far, for scales that could be those of the voxel.
            square = np.cumsum(told**2, axis=0)[..., None] * self._scale[:, None] / scale
            size = np.cumsum(2 * np.log(np.diag(lower)))[:, None, None] + np.arange(1, len(X) + 1)[
                :, None, None
            ] * np.log(scale)
            score.append(logsumexp(-0.5 * (square + size), b=shares, axis=2))
        weight = softmax(np.array(score), axis=0)
        found, missed = np.zeros((len(news), *self._signal.shape)), np.empty((len(X) + 1, len(self._noise)))
        missed[0] = (self._signal**2).sum(axis=0)
        for n in range(len(X)):
            for i in range(len(news)):
                found[i] += moves[i][n][:, None] * news[i][n]
            missed[n + 1] = ((self._signal - np.einsum("iv,iqv->qv", weight[:, n], found)) ** 2).sum(axis=0)
        return self._share(missed)


def _axes(target: Floats, cov: Floats) -> Floats:
    """R (feature, q) with R R' the covariance of the target stimuli, without directions that hardly vary."""
    values, vectors = np.linalg.eigh(target.T @ target / len(target))
    spread = np.maximum(values, 0) * np.einsum("pq,pq->q", vectors, cov @ vectors)
    order = np.argsort(-spread)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(spread[order]), 0.999 * spread.sum()))]
    return np.asarray(vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0)))


def _quantiles(points: Floats, shares: Floats, n: int) -> Floats:
    """``n`` values of equal shares in the place of a distribution, interpolated in logarithms."""
    if len(points) == 1:
        return np.full(1, points[0])
    middle = (np.cumsum(shares) - shares / 2) / shares.sum()
    return np.asarray(np.exp(np.interp((np.arange(n) + 0.5) / n, middle, np.log(points))))


def random_lists(free: Sequence[int] | np.ndarray, k: int, n_draws: int, seed: int) -> np.ndarray:
    """Random lists (draw, k) of rows that may be shown."""
    rng = np.random.default_rng([seed, 3])
    return np.stack([rng.permutation(np.asarray(free))[:k] for _ in range(n_draws)])
