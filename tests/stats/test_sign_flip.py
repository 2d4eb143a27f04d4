"""Effects over subjects: scipy, brute force, tests that are undefined."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from neuroenc.stats import sign_flip_test


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
        (lambda: sign_flip_test([1.0]), "at least 2 subjects"),
        (lambda: sign_flip_test([1.0, 2.0], statistic="T"), "did you mean 't'"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
