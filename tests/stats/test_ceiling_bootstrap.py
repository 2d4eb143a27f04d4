"""Uncertain ceilings: loops over resampled presentations, planted truth, coverage, units, subjects."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.stats import Resampler, ncsnr, noise_ceiling, normalise, score, subject_ceiling
from neuroenc.stats._scores import convert_ceiling


def shown(n=80, k=3, v=4, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    stimulus = np.repeat(np.arange(n), k)
    signal = rng.standard_normal((n, v))
    y = signal[stimulus] + noise * rng.standard_normal((n * k, v))
    return signal, y / y.std(axis=0), stimulus


def test_ncsnr_as_nsd_computes_it():
    """The published script: z-scored, unbiased variance over the 3 trials, mean over images, signal = 1 - noise."""
    _, y, _ = shown(n=300, v=50, noise=2.0)
    trials = y.reshape(300, 3, 50)
    noise = np.sqrt(np.mean(np.var(trials, axis=1, ddof=1), axis=0))
    signal = np.sqrt(np.maximum(0, 1 - noise**2))
    np.testing.assert_allclose(ncsnr(y, np.repeat(np.arange(300), 3)), signal / noise, atol=1e-6)


@pytest.mark.parametrize("unit", ["r", "r2"])
@pytest.mark.parametrize(("total", "weighting"), [("unit", "max_repeats"), ("empirical", "df")])
def test_ceiling_of_each_resample_by_a_loop(unit, total, weighting):
    _, y, stimulus = shown()
    found = Resampler(40, seed=3, interval="percentile").ceiling(
        y, stimulus, unit=unit, total=total, weighting=weighting
    )
    rng = np.random.default_rng(3)
    counts = [np.bincount(rng.integers(0, 80, 80), minlength=80) for _ in range(40)]
    samples = []
    for c in counts:
        picked = np.repeat(np.arange(80), c)
        rows = (3 * picked[:, None] + np.arange(3)).ravel()
        names = np.repeat(np.arange(80), 3)  # a stimulus drawn twice counts as two
        samples.append(noise_ceiling(ncsnr(y[rows], names, total=total, weighting=weighting), 3, unit=unit))
    np.testing.assert_allclose(found.standard_error, np.std(samples, axis=0, ddof=1), atol=1e-9)
    np.testing.assert_allclose(found.low, np.quantile(samples, 0.025, axis=0), atol=1e-9)


def test_missing_presentations_blocks_and_threads():
    _, y, stimulus = shown(v=9)
    y[4, 0] = y[7, 0] = np.nan
    settings = {"unit": "r2", "total": "empirical", "weighting": "df"}
    one = Resampler(30).ceiling(y, stimulus, **settings)
    two = Resampler(30, max_memory=60_000, n_jobs=2).ceiling(y, stimulus, **settings)
    for name in ("estimate", "standard_error", "low", "high"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-12)
    assert np.isfinite(one.low).all()


def test_planted_ceiling_is_covered():
    covered = []
    for seed in range(30):
        _, y, stimulus = shown(n=150, v=20, seed=seed)
        found = Resampler(200, seed=seed).ceiling(y, stimulus, unit="r2", total="empirical")
        covered.append((found.low <= 0.75) & (found.high >= 0.75))
    assert 0.9 < np.mean(covered) < 0.98


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
def test_normalised_estimate_and_spread(metric):
    signal, single, stimulus = shown(n=150, v=6)
    y = single.reshape(150, 3, 6).mean(axis=1)
    yhat = signal / (single.std(axis=0) * 1.4142)
    unit = "r" if metric == "r" else "r2"
    found = Resampler(25, seed=2).normalised(
        y, yhat, single, stimulus, y_stimulus=np.arange(150), metric=metric, total="empirical"
    )
    ceiling = noise_ceiling(ncsnr(single, stimulus, total="empirical"), 3, unit=unit)
    expected = normalise(score(y, yhat, metric), ceiling, score_unit=metric, ceiling_unit=unit)
    np.testing.assert_allclose(found.estimate, expected)
    # By a loop, the same stimuli in score and ceiling; ids are sorted as text.
    order = np.argsort(np.arange(150).astype(str))
    rng = np.random.default_rng(2)
    counts = [np.bincount(rng.integers(0, 150, 150), minlength=150) for _ in range(25)]
    samples = []
    for c in counts:
        picked = np.repeat(order, c)
        rows = (3 * picked[:, None] + np.arange(3)).ravel()
        top = noise_ceiling(ncsnr(single[rows], np.repeat(np.arange(150), 3), total="empirical"), 3, unit=unit)
        samples.append(score(y[picked], yhat[picked], metric) / top)
    np.testing.assert_allclose(found.standard_error, np.std(samples, axis=0, ddof=1), atol=1e-9)


def test_the_ceilings_uncertainty_widens_the_interval_and_covers():
    covered, naive = [], []
    for seed in range(40):
        signal, single, _ = shown(n=60, v=15, noise=2.0, seed=seed)
        y = single.reshape(60, 3, 15).mean(axis=1)
        other, other_stimulus = shown(n=60, v=15, noise=2.0, seed=1000 + seed)[1:]
        found = Resampler(200, seed=seed).normalised(y, signal, other, other_stimulus, total="empirical")
        covered.append((found.low <= 1) & (found.high >= 1))
        plain = Resampler(200, seed=seed).score(y, signal)
        ceiling = noise_ceiling(ncsnr(other, other_stimulus, total="empirical"), 3, unit="r")
        naive.append((plain.low <= ceiling) & (plain.high >= ceiling))
    assert np.mean(covered) > 0.9
    assert np.mean(naive) < np.mean(covered) - 0.05  # the negative control: the ceiling taken as known


def test_floor_and_units():
    rng = np.random.default_rng(0)
    single, stimulus = rng.standard_normal((300, 5)), np.repeat(np.arange(100), 3)
    y = single.reshape(100, 3, 5).mean(axis=1)
    found = Resampler(20).normalised(y, y, single, stimulus, floor=0.5, total="empirical")
    assert np.isnan(found.estimate).any()
    assert found.metric == "r/ceiling"


def test_subjects_by_hand_and_in_both_units():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((1, 50, 3)) + rng.standard_normal((4, 50, 3))
    y[1] = 3 * y[1] + 7  # gain and offset of a subject do not matter
    found = subject_ceiling(y, unit="r")
    z = (y - y.mean(axis=1, keepdims=True)) / y.std(axis=1, keepdims=True)
    for s in range(4):
        for v in range(3):
            rest = np.delete(z, s, axis=0).mean(axis=0)[:, v]
            assert found.lower_subject[s, v] == pytest.approx(np.corrcoef(y[s, :, v], rest)[0, 1])
            assert found.upper_subject[s, v] == pytest.approx(np.corrcoef(y[s, :, v], z.mean(axis=0)[:, v])[0, 1])
    share = subject_ceiling(y, unit="r2")
    np.testing.assert_allclose(convert_ceiling(share.lower_subject, from_unit="r2", to_unit="r"), found.lower_subject)
    np.testing.assert_allclose(subject_ceiling(y, unit="r", max_memory=10_000).upper, found.upper)
    # No common prediction exceeds the upper bound.
    guesses = z.mean(axis=0)[:, 0] + 0.05 * rng.standard_normal((200, 50))
    best = max(np.mean([np.corrcoef(y[s, :, 0], guess)[0, 1] for s in range(4)]) for guess in guesses)
    assert best <= found.upper[0] + 1e-12


def test_subjects_with_missing_stimuli():
    y = np.random.default_rng(1).standard_normal((3, 20, 2))
    y[2, 5, 0] = np.nan
    found, without = subject_ceiling(y, unit="r"), subject_ceiling(np.delete(y, 5, axis=1), unit="r")
    assert found.lower[0] == pytest.approx(without.lower[0])
    assert found.lower[1] != pytest.approx(without.lower[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: subject_ceiling(np.ones((1, 5, 2)), unit="r"), "at least 2"),
        (lambda: subject_ceiling(np.ones((2, 5, 2)), unit="rr"), "did you mean"),
        (lambda: Resampler().ceiling(np.ones((4, 1)), [0, 1, 2, 3], unit="r"), "none of the 4 stimuli is repeated"),
        (
            lambda: Resampler().normalised(*[np.eye(4)] * 3, [0, 0, 1, 1], y_stimulus=[0, 0, 1, 2], total="empirical"),
            "needs 4",
        ),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
