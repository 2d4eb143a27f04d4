"""Ridge whose prior was learned from other subjects, its strength from the voxel's own evidence."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import validate_data

from neuroenc._util.errors import ConfigError, DataError
from neuroenc.encoders._base import LinearEncoder, check_choice
from neuroenc.encoders._inputs import check_responses
from neuroenc.encoders._labels import column_block, features_matrix, wrap
from neuroenc.encoders.incontext._evidence import (
    Floats,
    GridPosterior,
    Spectrum,
    covariance_root,
    grid_posterior,
    spectrum,
)
from neuroenc.encoders.incontext._prior import WeightPrior

__all__ = ["EmpiricalBayesRidge"]

_BLOCK = 512


class EmpiricalBayesRidge(LinearEncoder):
    r"""Posterior mean of a voxel's weights under a prior made from other voxels, in closed form.

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
        Whether the prior's distribution of scales and noise variances, where known, counts beside the evidence. It
        holds for responses in the units of those that the prior was made from (z-scored).
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
        intercept: str = "flat",
    ) -> None:
        self.prior = prior
        self.estimate = estimate
        self.use_hyper = use_hyper
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
        check_choice("estimate", self.estimate, ("average", "max"))
        check_choice("intercept", self.intercept, ("flat", "prior", "none"))
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=3)
        Y, dtype = check_responses(X, y, values)
        responses = np.asarray(column_block(Y, slice(None)), dtype=np.float64)
        self._remember(X, y)
        prior = self._checked_prior(values.shape[1])
        _check_finite(responses)
        v = responses.shape[1]
        self.support_ = values.astype(np.float64)
        self.responses_ = responses
        self.n_seen_ = (~np.isnan(responses)).sum(axis=0)
        coef, offset = np.empty((values.shape[1], v)), np.empty(v)
        self.noise_variance_, self.prior_scale_, self.evidence_ = np.empty(v), np.empty(v), np.empty(v)
        for columns, problem in self._problems(prior):
            for part in _parts(columns):
                post, t = problem.posterior(responses[np.ix_(problem.rows, part)])
                coef[:, part], offset[part] = problem.weights(post, t)
                self.noise_variance_[part], self.prior_scale_[part] = post.noise_variance, post.scale
                self.evidence_[part] = post.log_evidence
        self.coef_, self.intercept_ = coef.astype(dtype), offset.astype(dtype)
        return self

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
        for columns, problem in self._problems(self._checked_prior(query.shape[1])):
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

    def _problems(self, prior: WeightPrior) -> list[tuple[np.ndarray, _Problem]]:
        """Voxels that saw the same stimuli, and what they share."""
        seen = ~np.isnan(self.responses_)
        patterns, which = np.unique(seen, axis=1, return_inverse=True)
        return [
            (np.flatnonzero(which.ravel() == g), _Problem(self, prior, np.flatnonzero(patterns[:, g])))
            for g in range(patterns.shape[1])
        ]

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


class _Problem:
    """One set of support rows under one prior."""

    def __init__(self, encoder: EmpiricalBayesRidge, prior: WeightPrior, rows: np.ndarray) -> None:
        self.rows, self.encoder = rows, encoder
        X, self.mean, cov = encoder.support_[rows], prior.mean, prior.cov
        self.flat, self.augmented = encoder.intercept == "flat", encoder.intercept == "prior"
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
        self.hyper = prior.hyper if encoder.use_hyper else None

    def posterior(self, Y: Floats) -> tuple[GridPosterior, Floats]:
        self.mean_y = Y.mean(axis=0) if self.flat else np.zeros(Y.shape[1])
        rest = Y - self.mean_y - (self.X @ self.mean)[:, None]
        t = self.shared.projector.T @ rest
        maximise = self.encoder.estimate == "max"
        post = grid_posterior(
            self.shared.values, t, (rest**2).sum(axis=0), self.dof, unit=self.unit, hyper=self.hyper, maximise=maximise
        )
        return post, t

    def _factors(self, post: GridPosterior) -> Floats:
        """rho / (1 + rho d), (R, r)."""
        ratios = post.ratios[:, None]
        return np.asarray(ratios / (1.0 + ratios * self.shared.values))

    def weights(self, post: GridPosterior, t: Floats) -> tuple[Floats, Floats]:
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
            if weight.max() > 1e-6:
                variance += weight * (projected @ (factor[:, None] * t) - middle) ** 2
        return np.asarray(variance)


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
