"""What a session is expected to give, against voxels that are drawn from the prior and fitted."""

from dataclasses import replace

import numpy as np
import pytest

from neuroenc import stats
from neuroenc._core.errors import DataError
from neuroenc.encoders.incontext import EmpiricalBayesRidge, ExpectedAccuracy, PriorSelector, WeightPrior
from neuroenc.encoders.incontext._evidence import covariance_root

P = 24
RNG = np.random.default_rng(8)
TURN = np.linalg.qr(RNG.standard_normal((P, P)))[0]
PRIOR = WeightPrior(
    0.05 * RNG.standard_normal(P),
    TURN @ np.diag(np.arange(1, P + 1) ** -1.5) @ TURN.T,
    hyper_mean=[-1.5, -0.3],
    hyper_cov=[[1.0, -0.1], [-0.1, 0.1]],
)
POOL = RNG.standard_normal((150, P)) @ TURN.T * np.arange(1, P + 1) ** -0.25 + 0.5
MARGIN = 0.02


def voxels(prior, n, seed):
    """Signals (picture, voxel) and noise standard deviations of voxels that are as the prior says."""
    rng = np.random.default_rng(seed)
    scale, noise = np.exp(rng.multivariate_normal(*prior.hyper, size=n)).T
    W = prior.mean[:, None] + covariance_root(prior.cov) @ rng.standard_normal((P, n)) * np.sqrt(scale)
    b = prior.intercept_mean + np.sqrt(prior.intercept_var) * rng.standard_normal(n)
    return POOL @ W + b, np.sqrt(noise), rng


@pytest.mark.parametrize(
    ("prior", "repeats"),
    [
        (PRIOR, 1),
        (replace(PRIOR, mean=np.zeros(P), intercept_mean=0.2, intercept_var=0.05, n_voxels=500), 1),
        (PRIOR, 3),
    ],
    ids=["flat intercept", "known intercept", "repeats"],
)
def test_expected_is_what_simulated_voxels_give(prior, repeats):
    rows = PriorSelector(prior).select(POOL, 40)
    expected = ExpectedAccuracy(prior, POOL)
    curve = expected.after(rows, repeats=repeats)
    signal, sd, rng = voxels(prior, 1000, 3)
    Y = signal[rows] + sd * rng.standard_normal((len(rows), 1000)) / np.sqrt(repeats)
    new = signal + sd * rng.standard_normal(signal.shape)
    seen = prior if repeats == 1 else replace(prior, hyper_mean=prior.hyper[0] - [0, np.log(repeats)])
    for k in (5, 15, 40):
        fitted = EmpiricalBayesRidge(seen, adapt="none").fit(POOL[rows[:k]], Y[:k])
        reached = stats.explained_variance(new, fitted.predict(POOL))
        assert float(curve.explained_variance[k - 1]) == pytest.approx(reached.mean(), abs=MARGIN)
        assert float(curve.high[k - 1]) == pytest.approx(np.quantile(reached, 0.95), abs=3 * MARGIN)
    within = signal.var(axis=0)
    assert expected.ceiling == pytest.approx((within / (within + sd**2)).mean(), abs=MARGIN)


def test_expected_grows_to_the_ceiling_without_noise():
    clean = replace(PRIOR, hyper_mean=[0.0, -12.0])
    expected = ExpectedAccuracy(clean, POOL)
    curve = expected.after(np.arange(60)).explained_variance.values
    assert (np.diff(curve) > -0.01).all()
    assert curve[-1] > 0.99 * expected.ceiling
    assert expected.of_pool() == pytest.approx(expected.ceiling, abs=1e-3)


def test_chosen_pictures_are_expected_to_beat_random_ones():
    expected = ExpectedAccuracy(PRIOR, POOL)
    chosen = expected.after(PriorSelector(PRIOR).select(POOL, 20)).explained_variance[-1]
    lists = np.array([np.random.default_rng(n).permutation(150)[:20] for n in range(4)])
    assert float(chosen) > float(expected.after(lists).explained_variance[-1]) + 0.005
    one = np.mean([float(expected.after(row).explained_variance[-1]) for row in lists])
    assert float(expected.after(lists).explained_variance[-1]) == pytest.approx(one)


def test_pictures_that_were_shown_are_known_best():
    left = ExpectedAccuracy(PRIOR, POOL).unexplained(np.arange(30))
    assert left[:30].mean() < left[30:].mean()
    assert left.min() >= 0
    assert left.max() <= 1


def test_responses_so_far_say_how_much_signal_there_is():
    expected = ExpectedAccuracy(PRIOR, POOL)
    found = []
    for gain in (0.2, 3.0):
        signal, sd, rng = voxels(PRIOR, 300, 4)
        Y = (gain * (signal - signal.mean(0)) + sd * rng.standard_normal(signal.shape))[:40]
        found.append(ExpectedAccuracy(PRIOR, POOL, shown=np.arange(40), responses=Y))
    assert found[0].ceiling < expected.ceiling - 0.05
    assert found[1].ceiling > expected.ceiling + 0.05
    assert float(found[1].after(np.arange(40, 50)).start) > 0.5 * found[1].ceiling
    # Twice as many presentations behind the same averages: each of them had twice the noise.
    again = ExpectedAccuracy(PRIOR, POOL, shown=np.arange(40), responses=Y, presentations=np.full(40, 2))
    assert again.ratios == pytest.approx(found[1].ratios / 2)


def test_repeats_cost_pictures_and_buy_ceilings():
    table = ExpectedAccuracy(PRIOR, POOL).by_repeats(np.random.default_rng(0).permutation(150), 120)
    assert table["repeats"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["pictures"].tolist() == [120, 60, 40, 30, 24, 20]
    assert np.isnan(table["ceiling_error"][0])
    assert table["explained_variance"][0] > table["explained_variance"][5]
    assert table["recommended"].sum() == 1
    best = table[table["recommended"]].iloc[0]
    few = ExpectedAccuracy(PRIOR, POOL).by_repeats(np.arange(30), 300, most=2)
    assert few["pictures"].tolist() == [30, 27]
    assert few["repeats"].tolist() == [10, 11]
    assert best["repeats"] == 1 or (best["lost"] <= 0.1 and best["ceiling_error"] <= 0.1)


@pytest.mark.parametrize(("m", "r", "ceiling"), [(100, 2, 0.2), (60, 3, 0.3), (40, 5, 0.1)])
def test_error_of_a_ceiling_is_that_of_simulated_ones(m, r, ceiling):
    rng = np.random.default_rng(1)
    n = 3000
    signal = np.sqrt(ceiling) * rng.standard_normal((m, n))
    Y = np.repeat(signal, r, axis=0) + np.sqrt(1 - ceiling) * rng.standard_normal((m * r, n))
    within = Y.reshape(m, r, n).var(axis=1, ddof=1).mean(axis=0)
    between = r * Y.reshape(m, r, n).mean(axis=1).var(axis=0, ddof=1)
    found = (between - within) / (between + (r - 1) * within)  # not cut off at 0, as ncsnr is
    assert float(stats.ceiling_error(ceiling, m, r)) == pytest.approx(found.std(), rel=0.05)
    ncsnr = stats.ncsnr(Y, np.repeat(np.arange(m), r), total="empirical")
    assert stats.noise_ceiling(ncsnr, 1, unit="r2") == pytest.approx(np.maximum(found, 0), abs=0.01)


def test_a_pool_of_another_space_is_refused():
    with pytest.raises(DataError, match="the prior has 24 features"):
        ExpectedAccuracy(PRIOR, POOL[:, :3])
