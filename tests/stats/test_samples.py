"""Bootstrap samples: the same resamples as `bootstrap`, whatever is missing."""

import numpy as np
import pytest

from neuroenc.stats import Resampler, sample_interval, score


def planted(seed=0, n=120, v=9):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, v))
    a, b = y + rng.standard_normal((n, v)), y + 2 * rng.standard_normal((n, v))
    return y, a, b


def three_subjects(y):
    """Voxels 0-2 saw the first half, 3-5 the second, 6-8 all but some of their own."""
    y = y.copy()
    y[60:, :3] = np.nan
    y[:60, 3:6] = np.nan
    y[[5, 77], 7] = np.nan
    return y


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
@pytest.mark.parametrize("missing", [False, True])
def test_agrees_with_bootstrap(metric, missing):
    y, a, _ = planted()
    y = three_subjects(y) if missing else y
    estimate, samples = Resampler(300, seed=3).samples(y, a, metric=metric)
    known = Resampler(300, seed=3, interval="percentile").score(y, a, metric=metric)
    np.testing.assert_allclose(estimate, known.estimate, rtol=1e-12)
    np.testing.assert_allclose(samples.std(axis=0, ddof=1), known.standard_error, rtol=1e-9)
    np.testing.assert_allclose(np.quantile(samples, 0.025, axis=0), known.low, rtol=1e-9)


def test_a_resample_is_the_score_of_the_rows_it_drew():
    y, a, _ = planted()
    y = three_subjects(y)
    _, samples = Resampler(4, seed=8).samples(y, a)
    rng = np.random.default_rng(8)
    for k in range(4):
        rows = rng.integers(0, 120, 120)
        np.testing.assert_allclose(samples[k], score(y[rows], a[rows]), rtol=1e-9)


def test_pairs_and_p_values():
    y, a, b = planted()
    y = three_subjects(y)
    groups = np.repeat(np.arange(40), 3)
    pair = [Resampler(400, seed=1, groups=groups).samples(y, x)[1] for x in (a, b)]
    known = Resampler(400, seed=1, groups=groups, interval="percentile").difference(y, a, b)
    np.testing.assert_allclose(
        sample_interval(pair[0] - pair[1], known.estimate, n_units=40, interval="percentile")[2], known.p
    )


def test_memory_changes_nothing_and_empty_voxels_are_nan():
    y, a, _ = planted()
    y = three_subjects(y)
    y[:, 8] = np.nan
    whole = Resampler(50).samples(y, a)[1]
    parts = Resampler(50, max_memory=20_000).samples(y, a)[1]
    np.testing.assert_allclose(whole, parts, rtol=1e-12)
    assert np.isnan(whole[:, 8]).all()
    assert np.isfinite(whole[:, :8]).all()


def test_patterns_of_their_own_for_every_voxel():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((50, 80))
    a = y + rng.standard_normal(y.shape)
    y[rng.random(y.shape) < 0.2] = np.nan
    samples = Resampler(60).samples(y, a)[1]
    np.testing.assert_allclose(samples.std(axis=0, ddof=1), Resampler(60).score(y, a).standard_error)
