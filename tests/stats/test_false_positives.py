"""Noise only: every test holds its nominal level, and threads and progress change nothing.

The slow part is 500 repetitions of each test or more; a rate is compared with the 99.9 % binomial limit around the
nominal level.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from neuroenc.stats import Resampler, fdr, permutation_test, rdm, sign_flip_test

N, LEVEL = 500, 0.05
MOST = scipy.stats.binom.ppf(0.999, N, LEVEL)  # 41 of 500


def noise(seed, n=40, v=10):
    return np.random.default_rng(seed).standard_normal((3, n, v))


def correlated(seed, n=40, v=10):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, n, v)) + rng.standard_normal((3, n, 1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["samples", "within", "whole", "shift"])
@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
def test_permutation(mode, metric):
    blocks = None if mode == "samples" else np.repeat(np.arange(8), 5)
    single = family = 0
    for seed in range(N):
        y, yhat, _ = correlated(seed)
        found = permutation_test(y, yhat, mode=mode, blocks=blocks, metric=metric, n_permutations=99, seed=seed)
        single += found.p[0] <= LEVEL
        family += found.p_fwe.min() <= LEVEL
    assert single <= MOST
    assert family <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["t", "mean"])
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_sign_flips(statistic, alternative):
    single = family = 0
    for seed in range(N):
        x = correlated(seed, n=8)[0]
        found = sign_flip_test(x, statistic=statistic, alternative=alternative, n_permutations=255)
        single += found.p[0] <= LEVEL
        family += found.p_fwe.min() <= LEVEL
    assert max(single, family) <= MOST


@pytest.mark.slow
def test_fdr_in_pure_noise_is_family_wise():
    found = {"bh": 0, "by": 0}
    for seed in range(N):
        y, yhat, _ = noise(seed, v=30)
        p = permutation_test(y, yhat, n_permutations=999, seed=seed).p
        for method in found:
            found[method] += (fdr(p, method=method) <= LEVEL).any()
    assert found["bh"] <= MOST
    assert found["by"] <= found["bh"]


def most(repetitions):
    return scipy.stats.binom.ppf(0.999, repetitions, LEVEL) / repetitions


def outside(found, truth=0.0):
    return float(np.mean((found.low > truth) | (found.high < truth)))


# Voxels of noise are repetitions: 10 draws of 500.
DRAWS, VOXELS = 10, 500


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 60, 200])
@pytest.mark.parametrize("kind", ["r", "ev", "difference"])
def test_bootstrap_intervals(kind, n):
    rates, narrow = [], []
    for seed in range(DRAWS):
        y, a, b = noise(seed, n=n, v=VOXELS)
        if kind == "ev":
            a = y + a  # as much error as variance: the truth is 0
        if kind == "difference":
            a, b = y + 2 * a, y + 2 * b
            found = Resampler(999, seed=seed).difference(y, a, b)
            np.testing.assert_array_equal(found.p <= LEVEL, (found.low > 0) | (found.high < 0))
        else:
            found = Resampler(999, seed=seed).score(y, a, metric=kind)
            narrow.append(outside(Resampler(999, seed=seed, interval="percentile").score(y, a, metric=kind)))
        rates.append(outside(found))
    assert np.mean(rates) <= most(DRAWS * VOXELS)
    if narrow and n == 60:
        assert np.mean(narrow) > most(DRAWS * VOXELS)  # the negative control


@pytest.mark.slow
@pytest.mark.parametrize("tails", ["heavy", "skewed"])
def test_bootstrap_intervals_of_responses_that_are_not_normal(tails):
    rates = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        draw = (
            (lambda rng=rng: rng.standard_t(3, (60, VOXELS)))
            if tails == "heavy"
            else (lambda rng=rng: rng.exponential(size=(60, VOXELS)))
        )
        rates.append(outside(Resampler(999, seed=seed).score(draw(), draw())))
    assert np.mean(rates) <= most(DRAWS * VOXELS)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_bootstrap_intervals_of_rois(statistic):
    hits = 0.0
    for seed in range(N):
        y, a, _ = correlated(seed, n=60)
        found = Resampler(499, seed=seed).regions(y, a, {"all": np.ones(10, bool)}, statistic=statistic)
        hits += outside(found["all"])
    assert hits <= MOST


def subjects_of(seed, n_subjects, kind):
    """Two encoders that are equally good over subjects (and stimuli); ``kind`` is what differs by chance."""
    rng = np.random.default_rng(seed)
    data, error = {}, rng.standard_normal((2, 60, 4))
    for k in range(n_subjects):
        y = rng.standard_normal((60, 4))
        gain = 1.0 + (0.5 * rng.uniform(-1, 1, 2) if kind == "subjects" else 0.0) * np.ones(2)
        # "stimuli": the same stimuli are predicted badly for all subjects.
        own = error if kind == "stimuli" else rng.standard_normal((2, 60, 4))
        data[f"s{k}"] = y, gain[0] * y + own[0], gain[1] * y + own[1]
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "kind", "n_subjects"),
    [
        *[("both", kind, n) for kind in ("noise", "subjects", "stimuli") for n in (3, 8)],
        ("stimuli", "stimuli", 3),
        ("stimuli", "noise", 8),
        ("subjects", "subjects", 3),
        ("subjects", "noise", 5),
        ("subjects", "subjects", 12),
    ],
)
def test_bootstrap_of_subjects(over, kind, n_subjects):
    hits = 0
    for seed in range(N):
        found = Resampler(499, seed=seed).subjects(subjects_of(seed, n_subjects, kind), over=over, statistic="mean")
        hits += bool(found.p <= LEVEL)
        assert (found.p <= LEVEL) == ((found.low > 0) | (found.high < 0))
    assert hits <= MOST


@pytest.mark.slow
def test_normalised_scores_of_noise_cover_zero():
    rates = []
    for seed in range(N // 5):
        rng = np.random.default_rng(seed)
        signal = rng.standard_normal((60, 30))
        single = np.repeat(signal, 3, axis=0) + rng.standard_normal((180, 30))
        y = single.reshape(60, 3, 30).mean(axis=1)
        found = Resampler(499, seed=seed).normalised(
            y,
            rng.standard_normal((60, 30)),
            single,
            np.repeat(np.arange(60), 3),
            y_stimulus=np.arange(60),
            total="empirical",
        )
        rates.append(outside(found))
    assert np.mean(rates) <= most(N // 5 * 30)


@pytest.mark.slow
def test_planted_ceilings_are_covered():
    rates = []
    for seed in range(N // 10):
        rng = np.random.default_rng(seed)
        single = np.repeat(rng.standard_normal((60, 50)), 3, axis=0) + rng.standard_normal((180, 50))
        found = Resampler(499, seed=seed).ceiling(
            single, np.repeat(np.arange(60), 3), unit="r2", total="empirical", weighting="df"
        )
        rates.append(outside(found, 0.75))
    assert np.mean(rates) <= most(N // 10 * 50)


def test_fdr_is_statsmodels_on_these_p_values():
    y, yhat, _ = noise(0, v=50)
    p = permutation_test(y, yhat + 0.3 * y, n_permutations=499).p
    for ours, theirs in (("bh", "fdr_bh"), ("by", "fdr_by")):
        np.testing.assert_allclose(fdr(p, method=ours), multipletests(p, method=theirs)[1])


def test_bootstrap_is_scipys():
    """Same scheme, other random numbers: standard errors agree to the error of 4000 resamples."""
    y, yhat, _ = noise(1, n=50, v=2)
    yhat = yhat + y
    found = Resampler(4000, interval="percentile").score(y, yhat)
    for v in range(2):
        expected = scipy.stats.bootstrap(
            (y[:, v], yhat[:, v]),
            lambda a, b, axis=-1: scipy.stats.pearsonr(a, b, axis=axis).statistic,
            paired=True,
            vectorized=True,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        assert found.standard_error[v] == pytest.approx(expected.standard_error, rel=0.06)
        assert found.low[v] == pytest.approx(expected.confidence_interval.low, abs=0.02)


def test_threads_and_progress_change_nothing(capsys, monkeypatch):
    monkeypatch.setenv("NEUROENC_PROGRESS", "1")
    y, a, b = noise(3, v=40)
    calls = {
        "permutation": lambda **k: permutation_test(y, a, n_permutations=50, **k).p_fwe,
        "bootstrap": lambda **k: Resampler(50, **k).score(y, a).low,
        "difference": lambda **k: Resampler(50, **k).difference(y, a, b).p,
        "rois": lambda **k: Resampler(50, **k).regions(y, a, {"all": np.ones(40, bool)})["all"].low,
        "rdms": lambda **k: Resampler(20, **k).rdms(rdm(y), rdm(a), over="stimuli").low,
    }
    for name, call in calls.items():
        quiet = call()
        assert not capsys.readouterr().err
        np.testing.assert_allclose(quiet, call(n_jobs=3, progress=True), atol=1e-12, err_msg=name)
        assert "100%" in capsys.readouterr().err, name
        with pytest.raises(ValueError, match="number of threads"):
            call(n_jobs=0)


def test_statistics_load_neither_the_package_nor_progress_bars():
    code = (
        "import sys, numpy as np; import neuroenc.stats as s\n"
        "s.permutation_test(np.eye(9), np.eye(9), n_permutations=5)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'tqdm', 'xarray', 'pandas', 'sklearn')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
