"""Bayesian designs over the voxels of a prior, and what responses so far change."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.incontext import SELECTORS, PriorSelector, WeightPrior, make_selector
from neuroenc.encoders.incontext._selection import posterior_population, prior_ratios

RNG = np.random.default_rng(5)
P = 8
COV = np.diag(np.linspace(2, 0.1, P))
PRIOR = WeightPrior(np.zeros(P), COV, hyper_mean=[0.0, 1.0], hyper_cov=np.diag([0.5, 0.2]), n_voxels=0)
POOL = RNG.standard_normal((200, P))


def test_ratios_are_those_of_the_prior():
    ratios, shares = prior_ratios(PRIOR, POOL, 7)
    assert shares @ np.log(ratios) == pytest.approx(-1.0)
    assert shares @ (np.log(ratios) + 1) ** 2 == pytest.approx(0.7)


def test_covariance_after_responses_is_a_step_of_em():
    rows = np.arange(30)
    W, _ = PRIOR.sample(40, seed=1)
    noise = 1.5
    Y = POOL[rows] @ W + noise * RNG.standard_normal((30, 40))
    _, shares, cov = posterior_population(PRIOR, POOL[rows], Y)
    assert shares.sum() == pytest.approx(1.0)
    # By hand, at the grid's own points: E[w w' / tau] of each voxel in the weights' own space.
    from neuroenc.encoders.incontext._evidence import covariance_root, grid_posterior, spectrum

    X = POOL[rows] - POOL[rows].mean(0)
    shared = spectrum(X, covariance_root(COV))
    t = shared.projector.T @ (Y - Y.mean(0))
    unit = shared.values.sum() / 29
    post = grid_posterior(shared.values, t, ((Y - Y.mean(0)) ** 2).sum(0), 29, unit=unit, hyper=PRIOR.hyper)
    expected = np.zeros((P, P))
    for v in range(40):
        for r, ratio in enumerate(post.ratios):
            within = np.linalg.inv(np.linalg.inv(COV) + ratio * X.T @ X)
            mean = ratio * within @ X.T @ (Y[:, v] - Y[:, v].mean())
            weight = post.weights[r, :, v]
            scale = ratio * np.broadcast_to(post.noise, post.weights.shape)[r, :, v]
            expected += weight.sum() * within + (weight / scale).sum() * np.outer(mean, mean)
    assert cov == pytest.approx(expected / 40, abs=1e-8)


def test_voxels_that_do_not_count_change_nothing():
    rows = np.arange(30)
    W, _ = PRIOR.sample(30, seed=1)
    Y = np.full((200, 30), np.nan)
    Y[rows] = POOL[rows] @ W + RNG.standard_normal((30, 30))
    Y[rows, 20:] = 100 * RNG.standard_normal((30, 10))
    counted = np.r_[np.ones(20), np.zeros(10)]
    selector = PriorSelector(PRIOR)
    both = selector.select(POOL, 6, responses=Y, voxels=counted)
    assert both.tolist() == selector.select(POOL, 6, responses=Y[:, :20]).tolist()


def test_responses_say_along_which_features_the_subject_has_signal():
    """The prior knows nothing of directions, the subject's voxels have weights along two of eight."""
    flat = WeightPrior(np.zeros(P), np.eye(P), hyper_mean=[0.0, 0.0], hyper_cov=0.1 * np.eye(2))
    W = np.zeros((P, 300))
    W[:2] = 2 * RNG.standard_normal((2, 300))
    Y = POOL[:20] @ W + RNG.standard_normal((20, 300))
    power = np.diag(posterior_population(flat, POOL[:20], Y)[2])
    assert power[:2].sum() > 0.6 * power.sum()  # a quarter before
    shuffled = np.array([RNG.permutation(y) for y in Y.T]).T
    power = np.diag(posterior_population(flat, POOL[:20], shuffled)[2])
    assert power[:2].sum() < 0.4 * power.sum()


def test_a_pool_of_another_space_is_refused():
    with pytest.raises(DataError, match="the pool has 3 features, the prior 8"):
        PriorSelector(PRIOR).select(POOL[:, :3], 2)


def test_selectors_by_name():
    for name in SELECTORS:
        rows = make_selector(name, PRIOR, target=POOL[:20], seed=1).select(POOL, 5)
        assert len(set(rows.tolist())) == 5, name
    assert make_selector("prior", PRIOR).select(POOL, 5).tolist() == PriorSelector(PRIOR).select(POOL, 5).tolist()
    with pytest.raises(ConfigError, match=r"unknown selector 'piror'; did you mean 'prior'"):
        make_selector("piror", PRIOR)
    with pytest.raises(ConfigError, match="needs a prior"):
        make_selector("prior")


def test_the_origin_of_features_does_not_matter_where_nothing_is_known_of_intercepts():
    for objective in ("accuracy", "information"):
        selector = PriorSelector(PRIOR, objective=objective)
        assert selector.select(POOL + 3.0, 12).tolist() == selector.select(POOL, 12).tolist()


def test_intercepts_cost_a_stimulus():
    """Of an intercept that is not known the first stimulus tells, and the second must differ from it."""
    pool = np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.9, 0.0]])
    prior = WeightPrior(np.zeros(2), np.eye(2), hyper_mean=[0.0, -2.0], hyper_cov=0.1 * np.eye(2))
    assert set(PriorSelector(prior).select(pool, 2).tolist()) & {2}
    known = WeightPrior(
        np.zeros(2), np.eye(2), 0.0, 1e-6, hyper_mean=[0.0, -2.0], hyper_cov=0.1 * np.eye(2), n_voxels=9
    )
    assert PriorSelector(known).design(pool, np.zeros(0, int), None, None).offset < 1e-5
