"""Two encoders and effects over subjects: scipy, brute force, level under the null, power, blocks, threads."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from neuroenc.stats import paired_permutation_test, score, sign_flip_test


def pair(n=40, v=5, seed=0, a=1.0, b=1.0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, v))
    return y, y + a * rng.standard_normal((n, v)), y + b * rng.standard_normal((n, v))


def exchanged(y, a, b, signs, metric):
    if metric == "r":
        a, b = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (a, b))
    swap = signs[:, None] < 0
    return score(y, np.where(swap, b, a), metric) - score(y, np.where(swap, a, b), metric)


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_every_exchange_by_hand(metric, alternative):
    y, a, b = pair(n=8, v=3, b=2.0)
    b += 0.3  # an offset that r2 must carry along
    settings = {"metric": metric, "alternative": alternative, "n_permutations": 255}
    found = paired_permutation_test(y, a, b, rois={"x": [0, 2]}, **settings)
    assert found.exhaustive
    assert found.n_permutations == 255
    patterns = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1).T
    null = np.array([exchanged(y, a, b, s, metric) for s in patterns])
    seen = score(y, a, metric) - score(y, b, metric)
    np.testing.assert_allclose(found.statistic, seen, atol=1e-10)
    turn = np.abs if alternative == "two-sided" else np.asarray
    np.testing.assert_allclose(found.p, (turn(null) >= turn(seen) - 1e-9).mean(axis=0))
    np.testing.assert_allclose(found.p_fwe, (turn(null).max(axis=1)[:, None] >= turn(seen) - 1e-9).mean(axis=0))
    roi = null[:, [0, 2]].mean(axis=1)
    expected = (turn(roi) >= turn(seen[[0, 2]].mean()) - 1e-9).mean()
    np.testing.assert_allclose(found.rois["x"], (seen[[0, 2]].mean(), expected, expected))


def test_is_scipys_permutation_test():
    y, a, b = pair(n=10, v=1, b=2.0)
    z = [(x - x.mean()) / x.std() for x in (a[:, 0], b[:, 0])]
    expected = scipy.stats.permutation_test(
        z,
        lambda u, w: np.corrcoef(y[:, 0], u)[0, 1] - np.corrcoef(y[:, 0], w)[0, 1],
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
    )
    found = paired_permutation_test(y, a, b, n_permutations=2000, alternative="greater")
    assert found.p[0] == pytest.approx(expected.pvalue)


def test_missing_values_blocks_of_voxels_and_threads():
    y, a, b = pair(n=30, v=7, b=3.0)
    y[3, 0] = a[5, 0] = b[7, 2] = np.nan
    y[:, 6] = 1.0
    settings = {"n_permutations": 99, "rois": {"all": np.ones(7, bool), "none": [6]}}
    settings["blocks"] = np.repeat(np.arange(10), 3)
    one = paired_permutation_test(y, a, b, **settings)
    told = []
    two = paired_permutation_test(
        y, a, b, max_memory=9000, n_jobs=2, progress=lambda *count: told.append(count), **settings
    )
    np.testing.assert_allclose(one.p, two.p)
    np.testing.assert_allclose(one.p_fwe, two.p_fwe)
    np.testing.assert_allclose(one.rois["all"], two.rois["all"])
    assert np.isnan(one.p[6])
    assert np.isnan(one.rois["none"][1])
    assert told[-1] == (99, 99)
    keep = np.delete(np.arange(30), [3, 5])
    alone = paired_permutation_test(y[keep, :1], a[keep, :1], b[keep, :1], n_permutations=99)
    np.testing.assert_allclose(one.statistic[0], alone.statistic[0])


def test_level_and_power():
    y, a, b = pair(n=60, v=1500, seed=1)
    null = paired_permutation_test(y, a, b, n_permutations=199)
    assert (null.p <= 0.05).mean() < 0.075
    scaled = paired_permutation_test(y, a, 5 * b + 3, n_permutations=199)
    assert (scaled.p == null.p).mean() > 0.999  # r is blind to gain and offset
    y, a, b = pair(n=120, v=200, seed=2, b=3.0)
    assert (paired_permutation_test(y, a, b, n_permutations=199).p <= 0.05).mean() > 0.9


def test_signs_are_scipys():
    x = np.random.default_rng(0).standard_normal((9, 4)) + 0.5
    statistics = {"mean": np.mean, "t": lambda z, axis=-1: scipy.stats.ttest_1samp(z, 0, axis=axis).statistic}
    for alternative in ("two-sided", "greater"):
        for name, of in statistics.items():
            found = sign_flip_test(x, statistic=name, alternative=alternative, n_permutations=511)
            assert found.exhaustive
            for k in range(4):
                expected = scipy.stats.permutation_test(
                    (x[:, k],),
                    of,
                    permutation_type="samples",
                    n_resamples=np.inf,
                    alternative=alternative,
                    vectorized=False,
                )
                assert found.p[k] == pytest.approx(expected.pvalue)
                assert found.statistic[k] == pytest.approx(expected.statistic)


def test_signs_family_wise_by_hand_and_odd_columns():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_normal((8, 3)), np.zeros(8), np.full(8, np.nan)])
    found = sign_flip_test(x, statistic="mean", n_permutations=255)
    patterns = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1).T
    null = np.abs(patterns @ x[:, :3] / 8)
    seen = np.abs(x[:, :3].mean(axis=0))
    np.testing.assert_allclose(found.p_fwe[:3], (null.max(axis=1)[:, None] >= seen - 1e-9).mean(axis=0))
    assert np.isnan(found.p[3:]).all()
    assert sign_flip_test(np.ones(4)).p == 2 / 16
    assert not sign_flip_test(rng.standard_normal((30, 2)), n_permutations=50).exhaustive


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_permutation_test(*pair(), blocks=np.zeros(40)), "got 1 block"),
        (lambda: paired_permutation_test(*pair(), blocks=[0, 1]), "one label for each"),
        (lambda: paired_permutation_test(*pair(), n_jobs=0), "number of threads"),
        (lambda: paired_permutation_test(*pair(), rois={"x": []}), "no voxel"),
        (lambda: sign_flip_test([1.0]), "at least 2 subjects"),
        (lambda: sign_flip_test([1.0, 2.0], statistic="T"), "did you mean 't'"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
