"""Choosing stimuli by what encoders would learn from them: with the prior of other subjects, and responses so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neuroenc._core.checks import check_fraction, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders._labels import seen_patterns
from neuroenc.encoders.incontext._evidence import Floats, GridPosterior
from neuroenc.encoders.incontext._prior import WeightPrior
from neuroenc.encoders.incontext._support_posterior import SupportPosterior
from neuroenc.encoders.incontext._trial_noise import CLIP, outlier_bounds
from neuroenc.retrieval import (
    CoverageSelector,
    Design,
    DOptimalSelector,
    NearestSelector,
    RandomSelector,
    SupportSelector,
    check_target,
    choose_greedily,
)

# Prior variance of an intercept of which nothing is known, in units of the signal's.
_FLAT = 100.0
# Voxels that a distribution over voxels is taken from, and those that are looked at together.
_MOST, _BLOCK = 4000, 512
OBJECTIVES = ("accuracy", "information")


class PriorSelector(SupportSelector):
    r"""Bayesian optimal design over all voxels of a prior: the stimuli after which new responses are predicted best.

    .. math:: \arg\max_x\; E_v\!\left[\frac{\operatorname{tr}(\Sigma S_v) - \operatorname{tr}(\Sigma S_v^{+x})}
              {\operatorname{tr}(\Sigma C) + \rho_v^{-1}}\right], \qquad
              S^{+x} = S - \frac{S x x^T S}{\rho^{-1} + x^T S x}

    greedily, for weights :math:`w_v \sim N(\mu, \tau_v C)`, noise :math:`\sigma_v^2`, :math:`\rho_v = \tau_v /
    \sigma_v^2`, and :math:`\Sigma` the covariance of the stimuli to predict: what is expected of the explained variance
    of responses. Voxels differ in :math:`\rho`, whose distribution is the prior's.

    Responses so far say which voxels have signal (the distribution of :math:`\rho` given them), and along which
    features (:math:`C` after one step of expectation maximisation); they do not say that a stimulus was well predicted:
    for linear encoders with Gaussian noise that tells nothing about which one to show next.

    Parameters
    ----------
    prior : WeightPrior
        Of other subjects' voxels, in the feature space of the pool.
    objective : {"accuracy", "information"}
        Explained variance of the target stimuli, or information about the weights (Bayesian D-optimal), in nats.
    adapt : {"both", "snr", "none"}
        What responses so far change: ratios and covariance, ratios only, nothing.
    target : array (m, feature), optional
        Stimuli that are to be predicted; by default the pool.
    nodes : int
        Values of :math:`\rho` that stand for their distribution.

    References
    ----------
    Chaloner & Verdinelli (1995), Bayesian experimental design: a review, Statistical Science 10(3).

    Examples
    --------
    >>> import numpy as np
    >>> prior = WeightPrior(np.zeros(3), np.diag([1.0, 1.0, 0.0]), hyper_mean=[0.0, 0.0], hyper_cov=np.eye(2))
    >>> PriorSelector(prior).select(np.array([[0, 0, 9.0], [1, 0, 0], [0.8, 0, 0], [0, 0.9, 0]]), 2).tolist()
    [3, 1]
    """

    def __init__(
        self,
        prior: WeightPrior,
        *,
        objective: str = "accuracy",
        adapt: str = "both",
        target: Any = None,
        nodes: int = 5,
    ) -> None:
        self.prior = prior
        self.objective = objective
        self.adapt = adapt
        self.target = target
        self.nodes = nodes

    def design(
        self, values: np.ndarray, shown: np.ndarray, responses: np.ndarray | None, voxels: np.ndarray | None
    ) -> Design:
        """Candidates before any of them was shown, as responses (shown, voxel) so far make the prior."""
        one_of("objective", self.objective, OBJECTIVES)
        one_of("adapt", self.adapt, ("both", "snr", "none"))
        prior = self.prior
        if not isinstance(prior, WeightPrior):
            raise ConfigError(f"prior={prior!r} is not a WeightPrior. Next step: WeightPrior.from_responses.")
        if prior.n_features != values.shape[1]:
            raise DataError(
                f"the pool has {values.shape[1]} features, the prior {prior.n_features}. "
                "Next step: embed the pool as the stimuli that the prior was made from."
            )
        cov, ratios, weights = prior.cov, *prior_ratios(prior, values, check_whole("nodes", self.nodes))
        if responses is not None and self.adapt != "none" and len(shown) >= 3:
            found = posterior_population(prior, values[shown], responses, voxels)
            ratios, weights = _collapsed(*found[:2], len(ratios))
            cov = found[2] if self.adapt == "both" else cov
        target, offset = check_target(self.target, values), intercept_offset(prior, values, cov)
        if not prior.n_voxels:
            # With an intercept of which nothing is known, nothing depends on where features have their origin.
            values = values - values.mean(axis=0)
        return Design(
            values,
            cov,
            ratios,
            weights,
            offset=offset,
            target=target,
            accuracy=self.objective == "accuracy",
        )

    def _choose(self, values: Any, k: int, eligible: Any, shown: Any, responses: Any, voxels: Any) -> list[int]:
        design = self.design(values, shown, responses, voxels)
        return choose_greedily(design, k, eligible, shown, self.objective)


def _with_prior(prior: WeightPrior | None, target: Any, seed: int) -> SupportSelector:
    if prior is None:
        raise ConfigError("select='prior' needs a prior. Next step: prior=, or 'v-optimal', which does without.")
    return PriorSelector(prior, target=target)


def _d_optimal(prior: WeightPrior | None, target: Any, seed: int) -> SupportSelector:
    return DOptimalSelector(None if prior is None else prior.cov, target=target)


#: Selectors by name: of a prior (or None), the target's features (or None) and a seed.
SELECTORS: dict[str, Callable[[WeightPrior | None, Any, int], SupportSelector]] = {
    "random": lambda prior, target, seed: RandomSelector(seed),
    "nearest": lambda prior, target, seed: NearestSelector(target),
    "coverage": lambda prior, target, seed: CoverageSelector(seed=seed),
    "d-optimal": _d_optimal,
    "v-optimal": lambda prior, target, seed: DOptimalSelector(objective="accuracy", target=target),
    "prior": _with_prior,
}


def make_selector(name: str, prior: WeightPrior | None = None, *, target: Any = None, seed: int = 0) -> SupportSelector:
    """Make a support selector by its name.

    Parameters
    ----------
    name : str
        "random", "nearest", "coverage", "d-optimal" (information about weights), "v-optimal" (expected accuracy, from
        features alone), or "prior" (expected accuracy over a prior's voxels).
    prior : WeightPrior, optional
        Of other subjects' voxels: "prior" needs it, "d-optimal" takes its covariance, and the identity without.
    target : array (m, feature), optional
        Stimuli that are to be predicted, for selectors that aim at some; by default the pool.
    seed : int
        Of what is random.

    Raises
    ------
    ConfigError
        An unknown name; "prior" without a prior.

    Examples
    --------
    >>> import numpy as np
    >>> pool = np.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.8]])
    >>> make_selector("d-optimal", WeightPrior.isotropic(2)).select(pool, 2).tolist()
    [0, 2]
    """
    if name not in SELECTORS:
        raise ConfigError(unknown_name("selector", name, SELECTORS))
    return SELECTORS[name](prior, target, seed)


def prior_ratios(prior: WeightPrior, values: np.ndarray, nodes: int) -> tuple[Floats, Floats]:
    """Ratios of signal scale to noise variance that stand for those of the prior's voxels, and their shares.

    Where the prior does not know them, a signal of three tenths of the noise over the pool.
    """
    if prior.hyper is None:
        return np.array([0.3 / mean_variance(values, prior.cov)]), np.ones(1)
    centre, spread = prior.hyper
    turn = np.array([1.0, -1.0])
    points, shares = np.polynomial.hermite_e.hermegauss(nodes)
    return np.exp(turn @ centre + np.sqrt(turn @ spread @ turn) * points), shares / shares.sum()


def mean_variance(values: np.ndarray, cov: Floats) -> float:
    """Variance over stimuli of the signal of weights of covariance ``cov``, on average."""
    around = values - values.mean(axis=0)
    return max(float(np.einsum("np,np->", around @ cov, around)) / len(values), float(np.finfo(np.float64).tiny))


def intercept_offset(prior: WeightPrior, values: np.ndarray, cov: Floats) -> float:
    """Prior variance of the intercept in units of the signal's scale.

    It is that of other subjects' voxels; where there were none, nothing is known of it, as in `EmpiricalBayesRidge`.
    """
    if prior.n_voxels:
        return prior.intercept_var / (1.0 if prior.hyper is None else float(np.exp(prior.hyper[0][0])))
    # No stimulus has more signal variance than its squared norm times the trace, which is quicker to tell.
    return _FLAT * float(np.trace(cov)) * float(values.var(axis=0).sum()) + float(np.finfo(np.float64).tiny)


def _collapsed(ratios: Floats, weights: Floats, nodes: int) -> tuple[Floats, Floats]:
    """Nodes of equal share in the place of many ratios: means of the logarithm between quantiles."""
    kept = weights > 1e-12
    log, weights = np.log(ratios[kept]), weights[kept] / weights[kept].sum()
    edges = np.concatenate([[0.0], np.cumsum(weights)])
    found = []
    for a in range(nodes):
        inside = np.clip(np.minimum(edges[1:], (a + 1) / nodes) - np.maximum(edges[:-1], a / nodes), 0, None)
        found.append(inside @ log / inside.sum())
    return np.exp(found), np.full(nodes, 1 / nodes)


def posterior_population(
    prior: WeightPrior, X: np.ndarray, Y: np.ndarray, voxels: np.ndarray | None = None
) -> tuple[Floats, Floats, Floats]:
    """Ratios and their shares over voxels given a support, and the covariance after a step of EM.

    ``voxels`` are the voxels' weights in both.
    """
    heard = (~np.isnan(Y)).sum(axis=0) >= 3
    heard &= np.nanmax(np.where(heard, Y, 0), axis=0) > np.nanmin(np.where(heard, Y, 0), axis=0)
    weight = np.ones(Y.shape[1]) if voxels is None else voxels
    heard &= weight > 0
    if not heard.any():
        raise DataError("no voxel that counts has three responses that vary. Next step: select without responses.")
    chosen = np.flatnonzero(heard)
    if len(chosen) > _MOST:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, _MOST, replace=False))
    weight = weight[chosen] / weight[chosen].sum()
    p = prior.n_features
    total, ratios, cov = np.zeros(0), np.zeros(0), np.zeros((p, p))
    for part, basis, post, values, t in _blocks(prior, X, Y[:, chosen]):
        w = weight[part]
        share = post.ratio_weights()
        factors = post.ratios[:, None] / (1.0 + post.ratios[:, None] * values)
        inverse = post.scale_moment(-1)
        inner = np.diag((share @ w) @ (1 / (1.0 + post.ratios[:, None] * values)))
        for factor, each in zip(factors, inverse):
            if each.max() > 1e-9 * inverse.max():
                inner += np.outer(factor, factor) * ((t * (each * w)) @ t.T)
        cov += w.sum() * prior.cov + basis @ (inner - w.sum() * np.eye(len(inner))) @ basis.T
        total, ratios = np.concatenate([total, share @ w]), np.concatenate([ratios, post.ratios])
    order = np.argsort(ratios)
    return ratios[order], total[order], (cov + cov.T) / 2


def _blocks(
    prior: WeightPrior, X: np.ndarray, Y: np.ndarray
) -> Iterator[tuple[np.ndarray, Floats, GridPosterior, Floats, Floats]]:
    """Posteriors of blocks of voxels, as `EmpiricalBayesRidge` has them, without its weights."""
    support = np.asarray(X, dtype=np.float64)
    Y = np.clip(np.asarray(Y, dtype=np.float64), *outlier_bounds(Y, CLIP))
    intercept = "prior" if prior.n_voxels and prior.intercept_var > 0 else "flat"
    settings: dict[str, Any] = {"intercept": intercept, "maximise": False}
    for rows, columns in seen_patterns(~np.isnan(Y)):
        settings["precision"] = np.ones(len(rows))
        problem = SupportPosterior(support, rows, prior, prior.mean[:, None], prior.hyper, **settings)
        for start in range(0, len(columns), _BLOCK):
            part = columns[start : start + _BLOCK]
            post, t = problem.posterior(Y[np.ix_(rows, part)])
            yield part, problem.shared.basis[: prior.n_features], post, problem.shared.values, t


def named_selectors(select: Mapping[str, SupportSelector] | Sequence[str]) -> dict[str, SupportSelector]:
    """Selectors by name, without "random": so supports are drawn."""
    if isinstance(select, str):
        raise ConfigError(f"select={select!r} is one name. Next step: select=[{select!r}].")
    found = dict(select) if isinstance(select, Mapping) else {name: make_selector(name) for name in select}
    for name, selector in found.items():
        if not isinstance(selector, SupportSelector):
            raise ConfigError(
                f"select: {name!r} is {selector!r}; expected a SupportSelector, such as DOptimalSelector()."
            )
    return {str(name): selector for name, selector in found.items() if name != "random"}


def sub_pool_size(n: int, share: float, sizes: Sequence[int]) -> int:
    """How many of ``n`` stimuli selectors choose from in each draw."""
    if share != 1:
        check_fraction("select_pool", share, ", or 1")
    size = max(1, round(n * share))
    if max(sizes) > size:
        raise ConfigError(
            f"size {max(sizes)} of a pool of {n} stimuli, of which selectors choose from {size} in each draw. "
            f"Next step: select_pool={min(1.0, max(sizes) / n):.2g} or more, or sizes of at most {size}."
        )
    return size


def chosen_supports(
    selector: SupportSelector, values: np.ndarray, Y: np.ndarray, sizes: Sequence[int], batch: int | None
) -> dict[int, np.ndarray]:
    """Rows of a pool by size of the support; with ``batch``, that many at a time and with the responses so far."""
    if not batch:
        return {size: selector.select(values, size) if size else np.zeros(0, np.int64) for size in sizes}
    rows = np.zeros(0, dtype=np.int64)
    while len(rows) < max(sizes):
        seen = np.full(Y.shape, np.nan)
        seen[rows] = Y[rows]
        known = {"responses": seen} if np.isfinite(seen).any() else {"exclude": np.isin(np.arange(len(Y)), rows)}
        k = min(check_whole("select_batch", batch), max(sizes) - len(rows))
        rows = np.concatenate([rows, selector.select(values, k, **known)])
    return {size: rows[:size] for size in sizes}
