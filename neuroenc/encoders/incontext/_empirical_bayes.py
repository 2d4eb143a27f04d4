"""Empirical-Bayes ridge: a prior over weights from other subjects, scaled by marginal likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import validate_data

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._labels import check_responses, column_block, features_matrix, seen_patterns, wrap
from neuroenc.encoders.incontext._evidence import Floats, GridPosterior
from neuroenc.encoders.incontext._place_prior import PlacePrior
from neuroenc.encoders.incontext._prior import WeightPrior
from neuroenc.encoders.incontext._support_posterior import SupportPosterior
from neuroenc.encoders.incontext._trial_noise import (
    CLIP,
    Contamination,
    effective_voxels,
    gain_drift,
    outlier_bounds,
    trial_precision,
)

_BLOCK = 512
_SHARES = (0.0, 0.1, 0.3, 0.6, 1.0)
_RATES = (1.0, 0.995, 0.99, 0.98, 0.96, 0.92)
# Voxels that a given distribution of scales and noise variances counts as, and passes of EM that adapt it.
_PSEUDO, _PASSES = 10, 3
# Passes of EM over the precisions of trials, and of single responses.
_TRIAL_PASSES, _RESPONSE_PASSES = 12, 25
ROBUST = ("none", "shared", "private", "both")
DRIFT = ("none", "gain")
# Change of a log precision, or of a response in units of its noise, below which EM stops.
_SETTLED = 0.02
_Hyper = tuple[Floats, Floats] | None
_Fitted = tuple[Floats, Floats, Floats, _Hyper]


class EmpiricalBayesRidge(LinearEncoder):
    r"""Empirical-Bayes ridge: posterior mean of a voxel's weights under a prior from other voxels.

    .. math:: y_v \sim N(X \mu + b_v,\; s_v X C X^T + \sigma_v^2 I)

    With an isotropic prior this is ridge whose penalty :math:`\sigma_v^2 / s_v` is chosen by the evidence instead of
    by cross-validation. All voxels share one eigendecomposition of :math:`X C X^T` or its primal twin.

    Parameters
    ----------
    prior : WeightPrior or PlacePrior, optional
        By default `WeightPrior.isotropic`. With a prior of other subjects the support may be empty: prior means.
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
    intercept : {"auto", "flat", "prior", "none"}
        Not penalised; with the prior's mean and variance; or zero. ``"auto"``: the prior's, where it was made of other
        subjects' voxels, else flat.
    robust : {"none", "shared", "private", "both"}
        Heavy-tailed noise, by expectation maximisation. ``"shared"``: a trial has one precision for all voxels of the
        fit (motion), Student's t with degrees of freedom of its own finding; costs about ten fits. ``"private"``:
        each response of each voxel may be an outlier, a contaminated normal whose share and variance all voxels share.
    clip : float, optional
        Responses farther from their voxel's median than this many robust standard deviations (1.4826 times the median
        absolute deviation) are brought in to there, so that a spike does not decide over a voxel with few trials; None
        takes all as they are. Of voxels with fewer than 10 responses none is touched.
    forget : float or "auto"
        Trials in the order of time, each as precise as ``forget`` times the next one, so that weights that drift are
        those of the last trials; 1 forgets nothing, 0.99 looks back about 100 trials. ``"auto"``: the one of 1, .995,
        .99, .98, .96, .92 that predicts the second half of the trials best, each from those before; costs 30 fits.
    drift : {"none", "gain"}
        ``"gain"``: each voxel's gain drifts exponentially over the trials, which come in the order in which they were
        measured; the weights are those at the last of them. How much gains drift is found from all voxels together:
        where none does, nothing changes. For stimuli shown after the support, not between its trials.
    positions : array (voxel, 3), optional
        Where the voxels lie, in the space of a `PlacePrior`.
    hemispheres : array (voxel,), optional
        As that prior was given them.

    Attributes
    ----------
    coef_ : ndarray (feature, voxel)
    intercept_ : ndarray (voxel,)
    noise_variance_, prior_scale_ : ndarray (voxel,)
        Most probable noise variance (response units squared) of a trial of precision 1, and scale of the prior's
        covariance.
    evidence_ : ndarray (voxel,)
        Log likelihood there, the weights integrated out, in nats; restricted likelihood where the intercept is flat.
    isotropic_share_ : float
        That ``adapt`` chose; 0 without.
    hyper_ : ndarray (3, 2)
        Mean and covariance of (log scale, log noise variance) that were used; (0, 2) for none.
    n_seen_ : ndarray (voxel,)
        Responses that are not NaN.
    n_clipped_ : ndarray (voxel,)
        Responses that ``clip`` brought in.
    gain_ : float
        Of the weights at the voxels' places, that the evidence chose; 0 without a `PlacePrior`.
    trial_precision_ : ndarray (n,)
        Relative precisions of the trials; that of the median trial is 1. Ones unless ``robust`` shares them, and
        falling with age by ``forget``.
    forget_ : float
        That was used.
    gain_drift_ : ndarray (voxel,)
        Logarithm of the gain at the last trial over that at the first; 0 without ``drift``.
    gain_drift_var_ : ndarray (voxel,)
        Posterior variance of ``gain_drift_``.
    gain_drift_sd_ : float
        Over voxels, as their common prior has it.
    outlier_share_, outlier_variance_ : float
        Share of outlying responses, and their noise variance over the others'; 0 and 1 unless ``robust`` is private.

    Raises
    ------
    DataError
        Infinite responses, a voxel with fewer than 3 responses, or another number of features than the prior's.

    Notes
    -----
    NaN responses are missing: voxels are grouped by which stimuli they miss, one decomposition a group.

    References
    ----------
    MacKay (1992), Neural Computation 4(3). Efron & Morris (1973), J. Am. Stat. Assoc. 68. Lange, Little & Taylor
    (1989), J. Am. Stat. Assoc. 84 (Student's t by expectation maximisation).

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
        prior: WeightPrior | PlacePrior | None = None,
        *,
        estimate: str = "average",
        use_hyper: bool = True,
        adapt: str = "population",
        intercept: str = "auto",
        robust: str = "none",
        clip: float | None = CLIP,
        forget: float | str = 1.0,
        drift: str = "none",
        positions: Any = None,
        hemispheres: Any = None,
    ) -> None:
        self.prior = prior
        self.estimate = estimate
        self.use_hyper = use_hyper
        self.adapt = adapt
        self.intercept = intercept
        self.robust = robust
        self.clip = clip
        self.forget = forget
        self.drift = drift
        self.positions = positions
        self.hemispheres = hemispheres

    @property
    def fits_without_trials(self) -> bool:
        """Whether an empty support is fitted: with a prior of other subjects."""
        return self.prior is not None

    def fit(self, X: Any, y: Any) -> Self:
        """Condition the prior on the support.

        Parameters
        ----------
        X : array (n, feature)
            Support features: numpy, torch or labelled.
        y : array (n, voxel) or (n,)
            Support responses; NaN where missing.
        """
        one_of("estimate", self.estimate, ("average", "max"))
        one_of("adapt", self.adapt, ("population", "none"))
        one_of("intercept", self.intercept, ("auto", "flat", "prior", "none"))
        one_of("robust", self.robust, ROBUST)
        number = isinstance(self.forget, (int, float)) and 0 < self.forget <= 1
        if not number and self.forget != "auto":
            raise ConfigError(f"forget={self.forget!r}: above 0 and at most 1, or 'auto'.")
        one_of("drift", self.drift, DRIFT)
        if self.forget != 1 and self.drift != "none":
            raise ConfigError(f"forget={self.forget!r} beside drift={self.drift!r}: leave one of them out.")
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=0)
        if len(values) < 3 and (len(values) or self.prior is None):
            raise DataError(
                f"n_samples={len(values)}: at least 3 are needed, or none at all with a prior of other subjects."
            )
        Y, dtype = check_responses(X, y, values)
        responses = np.asarray(column_block(Y, slice(None)), dtype=np.float64)
        self._remember(X, y)
        self._checked_prior(values.shape[1])
        if len(values):
            _check_finite(responses)
        self.support_ = values.astype(np.float64)
        low, high = outlier_bounds(responses, self.clip)
        self.n_clipped_ = ((responses < low) | (responses > high)).sum(axis=0)
        self.responses_ = self.completed_ = np.clip(responses, low, high)
        self.n_seen_ = (~np.isnan(responses)).sum(axis=0)
        self.spread_, self.trial_precision_ = np.zeros((0, responses.shape[1])), np.ones(len(values))
        self.outlier_share_, self.outlier_variance_ = 0.0, 1.0
        self.forget_ = 1.0
        self.gain_drift_, self.gain_drift_var_ = np.zeros(responses.shape[1]), np.zeros(responses.shape[1])
        self.gain_drift_sd_ = 0.0
        self.isotropic_share_, self.gain_, self.place_mean_ = 0.0, 0.0, np.zeros((values.shape[1], 0))
        if isinstance(self.prior, PlacePrior):
            self.gain_, self.place_mean_ = self.prior.gain, self._place_mean(self.prior, responses.shape[1])
        if len(values):
            self.forget_ = self._rate()
            self.trial_precision_ = self._ages()
            coef, offset, rest, hyper = self._choose()
            if self.robust in ("shared", "both"):
                coef, offset, rest, hyper = self._share_noise(hyper)
            if self.robust in ("private", "both"):
                coef, offset, rest, hyper = self._contaminate(hyper)
            if self.drift == "gain":
                coef, offset = self._drifted(coef, offset, hyper)
        else:
            coef, offset, rest, hyper = self._without_trials()
        self.coef_, self.intercept_ = coef.astype(dtype), offset.astype(dtype)
        self.noise_variance_, self.prior_scale_, self.evidence_ = np.ascontiguousarray(rest)
        self.hyper_ = np.zeros((0, 2)) if hyper is None else np.vstack(hyper)
        return self

    def _without_trials(self) -> _Fitted:
        """Prior means, and the levels that the prior expects."""
        v, prior = self.responses_.shape[1], self._current_prior()
        levels = (np.zeros(2), np.zeros((2, 2))) if prior.hyper is None else prior.hyper
        scale, noise = np.exp(levels[0] + levels[1].diagonal() / 2)
        rest = np.repeat([[noise], [scale], [0.0]], v, axis=1)
        return self._means(prior) + np.zeros((1, v)), np.full(v, prior.intercept_mean), rest, prior.hyper

    def _place_mean(self, prior: PlacePrior, n_voxels: int) -> Floats:
        """Mean weights of the other subjects at this subject's places."""
        if self.positions is None:
            raise ConfigError("a prior by place needs positions=, (voxel, 3) in its millimetres.")
        if np.shape(self.positions) != (n_voxels, 3):
            raise DataError(f"positions have shape {np.shape(self.positions)}; expected ({n_voxels}, 3).")
        return prior.at(self.positions, self.hemispheres)

    def _current_prior(self) -> WeightPrior:
        """The prior as far as it is trusted: of the gain and the share of an isotropic covariance that were chosen."""
        prior = self._checked_prior(self.support_.shape[1])
        if isinstance(self.prior, PlacePrior):
            prior = self.prior.priors[self.gain_]
        return prior.toward_isotropic(self.isotropic_share_)

    def _means(self, prior: WeightPrior) -> Floats:
        """Prior means (feature, voxel), or (feature, 1) where all voxels have one."""
        if not self.gain_:
            return prior.mean[:, None]
        return prior.mean[:, None] + (1 - self.isotropic_share_) * self.gain_ * self.place_mean_

    def _ages(self) -> Floats:
        """Precisions of trials by their age, relative to the last."""
        return np.asarray(self.forget_ ** np.arange(len(self.support_) - 1, -1, -1.0))

    def _typical(self) -> float:
        """Noise variance of trials as they come, precise ones and others, over that of a trial of precision 1."""
        return float((self._ages() / self.trial_precision_).mean()) if len(self.support_) else 1.0

    def _rate(self) -> float:
        """The rate of forgetting; of several, the one whose fits to the trials before predict trials best."""
        if self.forget != "auto":
            return float(self.forget)
        X, Y = self.support_, self.responses_
        cuts = np.linspace(len(X) // 2, len(X), 6).astype(int)
        known = (~np.isnan(Y[: cuts[0]])).sum(axis=0) >= 3
        if not known.any() or len(np.unique(cuts)) < len(cuts):
            return 1.0
        rows: dict[str, Any] = {
            k: None if (v := getattr(self, k)) is None else np.asarray(v)[known] for k in ("positions", "hemispheres")
        }

        def miss(rate: float) -> float:
            ahead, total = clone(self).set_params(forget=rate, adapt="none", **rows), 0.0
            for now, later in pairwise(cuts):
                found = ahead.fit(X[:now], Y[:now, known]).predict(X[now:later])
                total += float(np.nansum((found - Y[now:later, known]) ** 2))
            return total

        return min(_RATES, key=miss)

    def _choose(self) -> _Fitted:
        """Fit under the gain of places, and the share of an isotropic covariance, that make the responses likeliest."""
        gains = list(self.prior.priors) if isinstance(self.prior, PlacePrior) else []
        shares = _SHARES if self.adapt == "population" and self.prior is not None else (0.0,)
        self.isotropic_share_ = shares[0]
        fitted = self._best("gain_", gains) if len(gains) > 1 else None
        return self._best("isotropic_share_", shares) if len(shares) > 1 or fitted is None else fitted

    def _best(self, name: str, values: Sequence[float]) -> _Fitted:
        """Set ``name`` to the value of the largest marginal likelihood."""
        best, chosen, kept = -np.inf, values[0], None
        for value in values:
            setattr(self, name, value)
            total, fitted = self._adapt()
            if total > best or kept is None:
                best, chosen, kept = total, value, fitted
        setattr(self, name, chosen)
        assert kept is not None
        return kept

    def _share_noise(self, hyper: _Hyper) -> _Fitted:
        """EM over the precisions of trials, then the trust in the prior anew.

        A trial that no voxel answered counts for none.
        """
        heard = np.flatnonzero(self._heard())
        seen = ~np.isnan(self.responses_[:, heard]).all(axis=1)
        if not heard.size:
            return self._choose()
        rows = np.ix_(seen, heard)
        for _ in range(_TRIAL_PASSES):
            middle, variance, noise = self._expected(hyper)
            rest, noise = (self.responses_ - middle)[rows], noise[heard]
            squares = (rest**2 + variance[rows]) / noise
            found = self._ages()
            found[seen] *= trial_precision(np.nanmean(squares, axis=1), effective_voxels(rest / np.sqrt(noise)))
            old, self.trial_precision_ = self.trial_precision_, found
            if float(np.abs(np.log(found / old)).max()) < _SETTLED:
                break
            hyper = self._adapt()[1][-1]
        return self._choose()

    def _contaminate(self, hyper: _Hyper) -> _Fitted:
        """EM over the precisions of single responses.

        A response of precision 1 - g is its clean part plus other noise; the expected clean part, (1 - g) y + g f(x),
        takes its place, so that all voxels keep one decomposition: the fixed point is that of weighted ridge
        regression with weights of each voxel's own.
        """
        noise_model, precision = Contamination(), self.trial_precision_[:, None]
        for _ in range(_RESPONSE_PASSES):
            middle, variance, noise = self._expected(hyper)
            squares = ((self.responses_ - middle) ** 2 + variance) * precision / noise
            noise_model = noise_model.updated(squares)
            weight = noise_model.weights(squares)
            completed = middle + weight * (self.responses_ - middle)
            self.spread_ = (1 - weight) * noise / precision + (1 - weight) ** 2 * variance
            change = float(np.nanmax(np.abs(completed - self.completed_) / np.sqrt(noise)))
            self.completed_ = completed
            fitted = self._adapt()[1]
            hyper = fitted[-1]
            if change < _SETTLED:
                break
        self.outlier_share_, self.outlier_variance_ = noise_model.share, noise_model.inflation
        return fitted

    def _drifted(self, coef: Floats, offset: Floats, hyper: _Hyper) -> tuple[Floats, Floats]:
        """Weights and intercepts at the gain of the last trial."""
        self.hyper_ = np.zeros((0, 2)) if hyper is None else np.vstack(hyper)
        middle, variance, noise, precision = self.fitted_trials()
        # Where nothing varies there is no gain.
        precision = precision / np.where(self._heard(), noise, np.inf)
        # Around the mean of what was shown: the gain changes what varies, not the baseline.
        centre = np.nanmean(middle, axis=0)
        found = gain_drift(self.responses_ - centre, middle - centre, variance, precision)
        self.gain_drift_, self.gain_drift_var_, self.gain_drift_sd_ = found
        gain = np.exp(self.gain_drift_ / 2)
        return coef * gain, centre + (offset - centre) * gain

    def fitted_trials(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Posterior mean and variance (support, voxel) of noiseless responses, noise variances, relative precisions.

        Noise variances are (voxel,); the precisions (support, voxel) are those of the trials times those of single
        responses, which are judged by the residuals where ``robust`` did not.
        """
        hyper = (self.hyper_[0], self.hyper_[1:]) if len(self.hyper_) else None
        middle, variance, noise = self._expected(hyper)
        precision = self.trial_precision_[:, None]
        squares = ((self.responses_ - middle) ** 2 + variance) * precision / noise
        found = Contamination(self.outlier_share_, self.outlier_variance_) if self.outlier_share_ else Contamination()
        if not self.outlier_share_:
            found = found.updated(squares)
        return middle, variance, noise, precision * np.nan_to_num(found.weights(squares), nan=1.0)

    def _expected(self, hyper: _Hyper) -> tuple[Floats, Floats, Floats]:
        """Posterior mean and variance (support, voxel) of noiseless responses, and noise variance (voxel,)."""
        middle, variance = np.full_like(self.responses_, np.nan), np.full_like(self.responses_, np.nan)
        noise = np.empty(self.responses_.shape[1])
        for part, problem, post, t in self._posteriors(hyper):
            coef, offset = problem.weights(post, t)
            here = np.ix_(problem.rows, part)
            middle[here] = self.support_[problem.rows] @ coef + offset
            variance[here] = problem.signal_variance(self.support_[problem.rows], post)
            noise[part] = post.mean_noise()
        return middle, variance, noise

    def _adapt(self) -> tuple[float, _Fitted]:
        """Fit under the current prior, its distribution of scales and noise variances learned from the voxels.

        EM, the distribution that was given counting as much as ``_PSEUDO`` voxels.
        """
        given = self._current_prior().hyper if self.use_hyper else None
        hyper, v = given, int(self._heard().sum())
        total, fitted, moments = self._solve(hyper)
        if self.adapt == "none" or not self.use_hyper or (given is None and v < _PSEUDO):
            return total, (*fitted, hyper)
        if given is None:
            given = moments[0] / v, np.diag([4.0, 1.0])
        centre, spread = given
        for _ in range(_PASSES):
            mean = (_PSEUDO * centre + moments[0]) / (_PSEUDO + v)
            second = _PSEUDO * (spread + np.outer(centre, centre)) + moments[1]
            hyper = mean, second / (_PSEUDO + v) - np.outer(mean, mean) + 1e-3 * np.eye(2)
            total, fitted, moments = self._solve(hyper)
        return total, (*fitted, hyper)

    def _heard(self) -> NDArray[np.bool_]:
        """Voxels whose responses vary: the others have no noise, and nothing to say of other voxels'."""
        return np.asarray(np.nanmax(self.responses_, axis=0) > np.nanmin(self.responses_, axis=0))

    def _solve(self, hyper: _Hyper) -> tuple[float, tuple[Floats, Floats, Floats], tuple[Floats, Floats]]:
        """Log marginal likelihood; weights, intercepts, (noise variance, scale, evidence); moments of their logs."""
        p, v = self.support_.shape[1], self.responses_.shape[1]
        coef, offset, rest, total = np.empty((p, v)), np.empty(v), np.empty((3, v)), 0.0
        first, second, heard = np.zeros(2), np.zeros((2, 2)), self._heard()
        for part, problem, post, t in self._posteriors(hyper):
            coef[:, part], offset[part] = problem.weights(post, t)
            rest[:, part] = post.noise_variance, post.scale, post.log_evidence
            counted = heard[part]
            total += float(post.log_marginal[counted].sum())
            logs = post.log_moments(counted)
            first, second = first + logs[0], second + logs[1]
        return total, (coef, offset, rest), (first, second)

    def _posteriors(self, hyper: _Hyper) -> Iterator[tuple[np.ndarray, SupportPosterior, GridPosterior, Floats]]:
        """Blocks of voxels that saw the same stimuli: columns, what they share, their posterior over the grid."""
        prior = self._current_prior()
        mean = self._means(prior)
        kind = self.intercept
        if kind == "auto":
            kind = "prior" if prior.n_voxels and prior.intercept_var > 0 else "flat"
        settings: dict[str, Any] = {"intercept": kind, "maximise": self.estimate == "max"}
        for rows, columns in seen_patterns(~np.isnan(self.responses_)):
            precision = self.trial_precision_[rows]
            problem = SupportPosterior(self.support_, rows, prior, mean, hyper, precision=precision, **settings)
            for start in range(0, len(columns), _BLOCK):
                part = columns[start : start + _BLOCK]
                here = np.ix_(rows, part)
                spread = self.spread_[here] if len(self.spread_) else None
                yield part, problem, *problem.posterior(self.completed_[here], spread, part)

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
        hyper = (self.hyper_[0], self.hyper_[1:]) if len(self.hyper_) else None
        inflation = (1.0 + self.outlier_share_ * (self.outlier_variance_ - 1.0)) * self._typical()
        if not len(self.support_):
            prior = self._current_prior()
            spread = np.einsum("qe,ef,qf->q", query, prior.cov, query)[:, None] * self.prior_scale_
            variance = spread + self.noise_variance_ + prior.intercept_var
        else:
            for part, problem, post, t in self._posteriors(hyper):
                variance[:, part] = problem.variance(query, post, t, inflation)
                if self.gain_drift_sd_:
                    gain = np.exp(self.gain_drift_[part])  # squared, of half of the drift
                    variance[:, part] += (gain - 1.0) * problem.signal_variance(query, post)
            varies = query @ self.coef_ + self.intercept_ - np.nanmean(self.responses_, axis=0)
            variance += varies**2 * self.gain_drift_var_ / 4
        std = np.sqrt(variance).astype(self.coef_.dtype)
        if self._single_voxel_:
            std = std[:, 0]
        return mean, wrap(std, self._label_source(X), self._voxels_, name="predicted_sd")

    def _checked_prior(self, n_features: int) -> WeightPrior:
        if self.prior is None:
            return WeightPrior.isotropic(n_features)
        if not isinstance(self.prior, (WeightPrior, PlacePrior)):
            raise ConfigError(f"prior={self.prior!r} is not a WeightPrior. Next step: WeightPrior.from_responses.")
        if self.prior.n_features != n_features:
            raise DataError(
                f"X has {n_features} features, and the prior was made for {self.prior.n_features}. "
                "Next step: embed the stimuli as those that the prior was made from."
            )
        return self.prior.priors[0.0] if isinstance(self.prior, PlacePrior) else self.prior

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
        if rest is not None:
            self.prior = PlacePrior.from_parts(parts, rest) if "priors" in rest else WeightPrior(**parts, **rest)
        super()._unpack({k: a for k, a in arrays.items() if not k.startswith("prior:")}, plain)


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
