"""Empirical-Bayes ridge: a prior over weights from other subjects, scaled by marginal likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import validate_data

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._labels import check_responses, column_block, features_matrix, wrap
from neuroenc.encoders.incontext._evidence import (
    Floats,
    GridPosterior,
    Spectrum,
    covariance_root,
    grid_posterior,
    spectrum,
)
from neuroenc.encoders.incontext._prior import WeightPrior


class SupportPosterior:
    """Some rows of a support under one prior; ``hyper`` is that of (log scale, log noise variance), or None."""

    def __init__(
        self,
        support: Floats,
        rows: np.ndarray,
        prior: WeightPrior,
        hyper: tuple[Floats, Floats] | None,
        *,
        intercept: str,
        maximise: bool,
    ) -> None:
        self.rows, self.hyper, self.maximise = rows, hyper, maximise
        X, self.mean, cov = support[rows], prior.mean, prior.cov
        self.flat, self.augmented = intercept == "flat", intercept == "prior"
        if self.augmented:
            X, self.mean = np.column_stack([X, np.ones(len(X))]), np.append(prior.mean, prior.intercept_mean)
            cov = np.pad(cov, (0, 1))
            cov[-1, -1] = prior.intercept_var
        self.dof = len(rows) - self.flat
        self.centre = X.mean(axis=0) if self.flat else np.zeros(X.shape[1])
        self.root = covariance_root(cov)
        self.X = X - self.centre
        self.shared: Spectrum = spectrum(self.X, self.root)
        self.unit = max(float(self.shared.values.sum()) / self.dof, np.finfo(float).tiny)

    def posterior(self, Y: Floats) -> tuple[GridPosterior, Floats]:
        """Over the grid, and ``t`` (r, voxel), of responses Y (row, voxel)."""
        self.mean_y = Y.mean(axis=0) if self.flat else np.zeros(Y.shape[1])
        rest = Y - self.mean_y - (self.X @ self.mean)[:, None]
        t = self.shared.projector.T @ rest
        total = (rest**2).sum(axis=0)
        settings: dict[str, Any] = {"hyper": self.hyper, "maximise": self.maximise}
        return grid_posterior(self.shared.values, t, total, self.dof, unit=self.unit, **settings), t

    def _factors(self, post: GridPosterior) -> Floats:
        """rho / (1 + rho d), (R, r)."""
        ratios = post.ratios[:, None]
        return np.asarray(ratios / (1.0 + ratios * self.shared.values))

    def weights(self, post: GridPosterior, t: Floats) -> tuple[Floats, Floats]:
        """Posterior mean weights (feature, voxel) and intercepts (voxel,) of the responses last given."""
        shrunk = (self._factors(post).T @ post.ratio_weights()) * t
        full = self.mean[:, None] + self.shared.basis @ shrunk
        if self.augmented:
            return full[:-1], full[-1]
        return full, self.mean_y - self.centre @ full

    def variance(self, query: Floats, post: GridPosterior, t: Floats) -> Floats:
        """Of a new response: noise, weights, intercept, and the uncertainty of scale and noise variance."""
        if self.augmented:
            query = np.column_stack([query, np.ones(len(query))])
        query = query - self.centre
        projected = query @ self.shared.basis
        factors, moment, weights = self._factors(post), post.scale_moment(1), post.ratio_weights()
        noise = post.mean_noise()
        total = noise * (1.0 + (1.0 / len(self.rows) if self.flat else 0.0))
        prior = ((query @ self.root) ** 2).sum(axis=1)
        known = projected**2 @ (self.shared.values[:, None] * (factors.T @ moment))
        variance = total + np.maximum(prior[:, None] * moment.sum(axis=0) - known, 0.0)
        middle = projected @ ((factors.T @ weights) * t)
        for factor, weight in zip(factors, weights):
            if weight.max() > 1e-14:
                variance += weight * (projected @ (factor[:, None] * t) - middle) ** 2
        return np.asarray(variance)


_BLOCK = 512
_SHARES = (0.0, 0.1, 0.3, 0.6, 1.0)
# Voxels that a given distribution of scales and noise variances counts as, and passes of EM that adapt it.
_PSEUDO, _PASSES = 10, 3
_Hyper = tuple[Floats, Floats] | None


class EmpiricalBayesRidge(LinearEncoder):
    r"""Empirical-Bayes ridge: posterior mean of a voxel's weights under a prior from other voxels.

    .. math:: y_v \sim N(X \mu + b_v,\; s_v X C X^T + \sigma_v^2 I)

    With an isotropic prior this is ridge whose penalty :math:`\sigma_v^2 / s_v` is chosen by the evidence instead of
    by cross-validation. All voxels share one eigendecomposition of :math:`X C X^T` or its primal twin.

    Parameters
    ----------
    prior : WeightPrior, optional
        By default `WeightPrior.isotropic`.
    estimate : {"average", "max"}
        How noise variance and scale are dealt with: the posterior is averaged over a grid of both, weighted by their
        probability, or taken at the best point. With few stimuli they are poorly known, and averaging is safer.
    use_hyper : bool
        Whether a distribution of scales and noise variances over voxels counts beside the evidence: the prior's, which
        is in the units of the responses that it was made from (z-scored), adapted.
    adapt : {"population", "none"}
        Whether all voxels of the fit together decide how far to trust the prior: the share of an isotropic covariance
        (`WeightPrior.toward_isotropic`) under which they are most likely, out of 0, 0.1, 0.3, 0.6 and 1, and the
        distribution of scales and noise variances, the prior's counting as 10 voxels (without one: 10 voxels or more
        are needed). Queries are not looked at. A voxel that is fitted alone gets another result than among others.
    intercept : {"flat", "prior", "none"}
        Not penalised; with the prior's mean and variance; or zero.

    Attributes
    ----------
    coef_ : ndarray (feature, voxel)
    intercept_ : ndarray (voxel,)
    noise_variance_, prior_scale_ : ndarray (voxel,)
        Most probable noise variance (response units squared) and scale of the prior covariance.
    evidence_ : ndarray (voxel,)
        Log likelihood there, the weights integrated out, in nats; restricted likelihood where the intercept is flat.
    isotropic_share_ : float
        That ``adapt`` chose; 0 without.
    hyper_ : ndarray (3, 2)
        Mean and covariance of (log scale, log noise variance) that were used; (0, 2) for none.
    n_seen_ : ndarray (voxel,)
        Responses that are not NaN.

    Raises
    ------
    DataError
        Infinite responses, a voxel with fewer than 3 responses, or another number of features than the prior's.

    Notes
    -----
    NaN responses are missing: voxels are grouped by which stimuli they miss, one decomposition a group.

    References
    ----------
    MacKay (1992), Neural Computation 4(3). Efron & Morris (1973), J. Am. Stat. Assoc. 68.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> prior = WeightPrior(np.zeros(20), np.diag(np.logspace(0, -3, 20)))
    >>> X, W = rng.standard_normal((15, 20)), prior.sample(50, seed=1)[0]
    >>> encoder = EmpiricalBayesRidge(prior).fit(X, X @ W + 0.5 * rng.standard_normal((15, 50)))
    >>> mean, sd = encoder.predict(rng.standard_normal((4, 20)), return_std=True)
    >>> mean.shape, bool((sd > 0.3).all())
    ((4, 50), True)
    """

    def __init__(
        self,
        prior: WeightPrior | None = None,
        *,
        estimate: str = "average",
        use_hyper: bool = True,
        adapt: str = "population",
        intercept: str = "flat",
    ) -> None:
        self.prior = prior
        self.estimate = estimate
        self.use_hyper = use_hyper
        self.adapt = adapt
        self.intercept = intercept

    def fit(self, X: Any, y: Any) -> Self:
        """Condition the prior on the support.

        Parameters
        ----------
        X : array (n, feature)
            Support features: numpy, torch or labelled.
        y : array (n, voxel) or (n,)
            Support responses; NaN where missing.

        Returns
        -------
        self
        """
        one_of("estimate", self.estimate, ("average", "max"))
        one_of("adapt", self.adapt, ("population", "none"))
        one_of("intercept", self.intercept, ("flat", "prior", "none"))
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=3)
        Y, dtype = check_responses(X, y, values)
        responses = np.asarray(column_block(Y, slice(None)), dtype=np.float64)
        self._remember(X, y)
        prior = self._checked_prior(values.shape[1])
        _check_finite(responses)
        self.support_ = values.astype(np.float64)
        self.responses_ = responses
        self.n_seen_ = (~np.isnan(responses)).sum(axis=0)
        shares = _SHARES if self.adapt == "population" and self.prior is not None else (0.0,)
        best = -np.inf
        for share in shares:
            total, fitted = self._adapt(prior.toward_isotropic(share))
            if total > best or share == shares[0]:
                best, self.isotropic_share_, (coef, offset, rest, hyper) = total, share, fitted
        self.coef_, self.intercept_ = coef.astype(dtype), offset.astype(dtype)
        self.noise_variance_, self.prior_scale_, self.evidence_ = np.ascontiguousarray(rest)
        self.hyper_ = np.zeros((0, 2)) if hyper is None else np.vstack(hyper)
        return self

    def _adapt(self, prior: WeightPrior) -> tuple[float, tuple[Floats, Floats, Floats, _Hyper]]:
        """Fit under one prior, its distribution of scales and noise variances learned from the voxels themselves.

        EM, the distribution that was given counting as much as ``_PSEUDO`` voxels.
        """
        given = prior.hyper if self.use_hyper else None
        hyper, v = given, self.responses_.shape[1]
        total, fitted, moments = self._solve(prior, hyper)
        if self.adapt == "none" or not self.use_hyper or (given is None and v < _PSEUDO):
            return total, (*fitted, hyper)
        if given is None:
            given = moments[0] / v, np.diag([4.0, 1.0])
        centre, spread = given
        for _ in range(_PASSES):
            mean = (_PSEUDO * centre + moments[0]) / (_PSEUDO + v)
            second = _PSEUDO * (spread + np.outer(centre, centre)) + moments[1]
            hyper = mean, second / (_PSEUDO + v) - np.outer(mean, mean) + 1e-3 * np.eye(2)
            total, fitted, moments = self._solve(prior, hyper)
        return total, (*fitted, hyper)

    def _solve(
        self, prior: WeightPrior, hyper: _Hyper
    ) -> tuple[float, tuple[Floats, Floats, Floats], tuple[Floats, Floats]]:
        """Log marginal likelihood; weights, intercepts, (noise variance, scale, evidence); moments of their logs."""
        p, v = self.support_.shape[1], self.responses_.shape[1]
        coef, offset, rest, total = np.empty((p, v)), np.empty(v), np.empty((3, v)), 0.0
        first, second = np.zeros(2), np.zeros((2, 2))
        for columns, problem in self._problems(prior, hyper):
            for part in _parts(columns):
                post, t = problem.posterior(self.responses_[np.ix_(problem.rows, part)])
                coef[:, part], offset[part] = problem.weights(post, t)
                rest[:, part] = post.noise_variance, post.scale, post.log_evidence
                total += float(post.log_marginal.sum())
                logs = post.log_moments()
                first, second = first + logs[0], second + logs[1]
        return total, (coef, offset, rest), (first, second)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Posterior mean of responses to new stimuli, and their standard deviation.

        Parameters
        ----------
        X : array (n, feature)
        return_std : bool
            Also give the predictive standard deviation of a new response, noise included.

        Returns
        -------
        mean : array (n, voxel)
        std : array (n, voxel)
            Only with ``return_std``.
        """
        mean = super().predict(X)
        if not return_std:
            return mean
        query = self._check_predict(X).astype(np.float64)
        variance = np.empty((len(query), self.responses_.shape[1]))
        prior = self._checked_prior(query.shape[1]).toward_isotropic(self.isotropic_share_)
        hyper = (self.hyper_[0], self.hyper_[1:]) if len(self.hyper_) else None
        for columns, problem in self._problems(prior, hyper):
            for part in _parts(columns):
                post, t = problem.posterior(self.responses_[np.ix_(problem.rows, part)])
                variance[:, part] = problem.variance(query, post, t)
        std = np.sqrt(variance).astype(self.coef_.dtype)
        if self._single_voxel_:
            std = std[:, 0]
        return mean, wrap(std, self._label_source(X), self._voxels_, name="predicted_sd")

    def _checked_prior(self, n_features: int) -> WeightPrior:
        if self.prior is None:
            return WeightPrior.isotropic(n_features)
        if not isinstance(self.prior, WeightPrior):
            raise ConfigError(f"prior={self.prior!r} is not a WeightPrior. Next step: WeightPrior.from_responses.")
        if self.prior.n_features != n_features:
            raise DataError(
                f"X has {n_features} features, and the prior was made for {self.prior.n_features}. "
                "Next step: embed the stimuli as those that the prior was made from."
            )
        return self.prior

    def _problems(self, prior: WeightPrior, hyper: _Hyper) -> Iterator[tuple[np.ndarray, SupportPosterior]]:
        """Voxels that saw the same stimuli, and what they share."""
        patterns, which = np.unique(~np.isnan(self.responses_), axis=1, return_inverse=True)
        for g in range(patterns.shape[1]):
            yield (
                np.flatnonzero(which.ravel() == g),
                SupportPosterior(
                    self.support_,
                    np.flatnonzero(patterns[:, g]),
                    prior,
                    hyper,
                    intercept=self.intercept,
                    maximise=self.estimate == "max",
                ),
            )

    def _pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, plain = super()._pack()
        if self.prior is not None:
            parts, rest = self.prior.to_parts()
            arrays |= {f"prior:{k}": np.array(a) for k, a in parts.items()}
            plain["prior"] = rest
        return arrays, plain

    def _unpack(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        parts: dict[str, Any] = {k.removeprefix("prior:"): a for k, a in arrays.items() if k.startswith("prior:")}
        rest = plain.pop("prior", None)
        self.prior = None if rest is None else WeightPrior(**parts, **rest)
        super()._unpack({k: a for k, a in arrays.items() if not k.startswith("prior:")}, plain)


def _parts(columns: np.ndarray) -> list[np.ndarray]:
    return [columns[s : s + _BLOCK] for s in range(0, len(columns), _BLOCK)]


def _check_finite(responses: np.ndarray) -> None:
    if np.isinf(responses).any():
        raise DataError(
            f"{int(np.isinf(responses).any(axis=0).sum())} voxels hold infinite (inf) responses. "
            "Next step: NaN, if they are missing."
        )
    few = (~np.isnan(responses)).sum(axis=0) < 3
    if few.any():
        raise DataError(
            f"{int(few.sum())} of {responses.shape[1]} voxels have fewer than 3 responses that are not NaN "
            f"(first: voxel {int(np.flatnonzero(few)[0])}). Next step: leave them out."
        )
