"""Noise ceilings: NSD's definition by a plain loop, planted truth recovered, units never mixed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from neuroenc.stats import explained_variance, ncsnr, noise_ceiling, normalise, pearson_r, split_half_reliability
from neuroenc.stats._repeats import variance_components
from neuroenc.stats._scores import convert_ceiling


def simulate(planted, n_stimuli, repeats, seed=0):
    """Presentations of stimuli with unit total variance; ``repeats`` is one number or one per stimulus."""
    rng = np.random.default_rng(seed)
    planted = np.asarray(planted, dtype=float)
    stimulus = rng.permutation(np.repeat(np.arange(n_stimuli), repeats))
    signal = rng.standard_normal((n_stimuli, len(planted))) * planted / np.sqrt(1 + planted**2)
    noise = rng.standard_normal((len(stimulus), len(planted))) / np.sqrt(1 + planted**2)
    return signal, signal[stimulus] + noise, stimulus


def average(y, stimulus):
    return np.stack([y[stimulus == s].mean(axis=0) for s in np.unique(stimulus)])


PLANTED = np.repeat([0.0, 0.2, 0.5, 1.0, 2.0], 40)


def by_planted(values):
    return values.reshape(5, 40).mean(axis=1)


def test_equal_to_the_definition_in_a_loop():
    rng = np.random.default_rng(1)
    counts = rng.choice([1, 2, 3], 50, p=[0.2, 0.2, 0.6])
    stimulus = rng.permutation(np.repeat([f"s{i}" for i in range(50)], counts))
    y = rng.standard_normal((len(stimulus), 7)) + rng.standard_normal(7)
    y = (y - y.mean(0)) / y.std(0)
    noise = np.zeros(7)
    pooled = np.zeros(7)
    n_full = 0
    for s in np.unique(stimulus):
        rows = y[stimulus == s]
        if len(rows) == 3:
            noise += rows.var(axis=0, ddof=1)
            n_full += 1
        pooled += ((rows - rows.mean(0)) ** 2).sum(0)
    noise /= n_full
    pooled /= (counts - 1).sum()
    found_signal, found_noise = variance_components(y, stimulus)
    np.testing.assert_allclose(found_noise, noise, rtol=1e-12)
    np.testing.assert_allclose(found_signal, np.maximum(0, 1 - noise), atol=1e-12)
    np.testing.assert_allclose(ncsnr(y, stimulus), np.sqrt(np.maximum(0, 1 - noise) / noise), rtol=1e-10)
    np.testing.assert_allclose(variance_components(y, stimulus, weighting="df")[1], pooled, rtol=1e-12)


def test_planted_ncsnr_is_recovered():
    _, y, stimulus = simulate(PLANTED, 3000, 3)
    y = (y - y.mean(0)) / y.std(0)
    for total in ("unit", "empirical"):
        found = by_planted(ncsnr(y, stimulus, total=total))
        np.testing.assert_allclose(found[1:], [0.2, 0.5, 1.0, 2.0], atol=0.02)
        assert found[0] < 0.1
    # Again 6000 degrees of freedom: with fewer, truncation at 0 biases the weakest voxels.
    _, y, stimulus = simulate(PLANTED, 6000, np.random.default_rng(5).choice([1, 2, 3], 6000))
    found = by_planted(ncsnr(y, stimulus, total="empirical", weighting="df"))
    np.testing.assert_allclose(found[1:], [0.2, 0.5, 1.0, 2.0], atol=0.02)


def test_empirical_signal_variance_is_unbiased_with_few_stimuli():
    """Six stimuli: the plain variance of the presentations would lose an eighth of the signal."""
    rng = np.random.default_rng(0)
    stimulus = np.repeat(np.arange(6), [5, 5, 5, 5, 2, 2])
    y = 2.0 * rng.standard_normal((6, 40000))[stimulus] + rng.standard_normal((24, 40000))
    signal, noise = variance_components(y, stimulus, total="empirical", weighting="df")
    assert noise.mean() == pytest.approx(1.0, abs=0.01)
    assert signal.mean() == pytest.approx(4.0, rel=0.015)


def test_the_true_signal_attains_the_ceiling():
    counts = np.random.default_rng(2).choice([1, 2, 3], 2500, p=[0.2, 0.3, 0.5])
    signal, y, stimulus = simulate(PLANTED, 2500, counts)
    measured = average(y, stimulus)
    mixed = np.bincount(counts)[1:]
    repeats = {3: mixed[2], 2: mixed[1], 1: mixed[0]}
    r2 = noise_ceiling(PLANTED, repeats, unit="r2")
    np.testing.assert_allclose(by_planted(explained_variance(measured, signal)), by_planted(r2), atol=0.01)
    r = noise_ceiling(PLANTED, repeats, unit="r")
    known = PLANTED > 0
    assert np.isnan(pearson_r(measured, signal)[~known]).all()
    np.testing.assert_allclose(
        by_planted(np.nan_to_num(pearson_r(measured, signal))), by_planted(np.where(known, r, 0.0)), atol=0.01
    )
    direct = noise_ceiling(ncsnr(y, stimulus, total="empirical"), repeats, unit="r2")
    for estimated in (direct, split_half_reliability(y, stimulus, unit="r2", n_repeats=repeats)):
        np.testing.assert_allclose(by_planted(estimated)[1:], by_planted(r2)[1:], atol=0.02)


@pytest.mark.parametrize("repeats", [2, 3, 4, 5])
def test_split_half_agrees_with_ncsnr(repeats):
    _, y, stimulus = simulate(PLANTED, 1500, repeats)
    halves = split_half_reliability(y, stimulus, unit="r2", n_splits=5)
    direct = noise_ceiling(PLANTED, repeats, unit="r2")
    np.testing.assert_allclose(by_planted(halves)[1:], by_planted(direct)[1:], atol=0.02)
    as_r = split_half_reliability(y, stimulus, unit="r", n_splits=5)
    np.testing.assert_allclose(as_r, np.sqrt(halves), rtol=1e-12)


def test_spearman_brown_by_hand():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((30, 1))[np.repeat(np.arange(30), 2)] + rng.standard_normal((60, 1))
    stimulus = np.repeat(np.arange(30), 2)
    rho = []
    draws = np.random.default_rng(4)
    for _ in range(3):
        pairs = draws.permuted(np.arange(60).reshape(30, 2), axis=1)
        rho.append(np.corrcoef(y[pairs[:, 0], 0], y[pairs[:, 1], 0])[0, 1])
    rho = np.mean(rho)
    found = split_half_reliability(y, stimulus, unit="r2", n_splits=3, seed=4)
    assert found[0] == pytest.approx(2 * rho / (1 + rho), rel=1e-10)


def test_formula_of_the_ceiling():
    assert float(noise_ceiling(0.5, 3, unit="r2")) == pytest.approx(0.25 / (0.25 + 1 / 3))
    a, b, c = 700, 200, 100
    expected = 0.25 / (0.25 + (a / 3 + b / 2 + c) / (a + b + c))
    assert float(noise_ceiling(0.5, {3: a, 2: b, 1: c}, unit="r2")) == pytest.approx(expected)
    per_stimulus = np.repeat([3, 2, 1], [a, b, c])
    assert float(noise_ceiling(0.5, per_stimulus, unit="r2")) == pytest.approx(expected)
    assert float(noise_ceiling(0.5, per_stimulus, unit="r")) == pytest.approx(expected**0.5)
    np.testing.assert_array_equal(noise_ceiling([0.0, np.inf], 2, unit="r"), [0.0, 1.0])
    assert np.isnan(noise_ceiling([np.nan], 2, unit="r"))


def test_missing_and_constant_voxels():
    _, y, stimulus = simulate([0.5, 0.5, 0.5, 0.5], 400, 3)
    y = (y - y.mean(0)) / y.std(0)
    holed = y.copy()
    gone = np.random.default_rng(0).choice(len(y), 100, replace=False)
    holed[gone, 1] = np.nan
    holed[:, 2] = 0.0
    holed[:, 3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weighting in ("max_repeats", "df"):
            found = ncsnr(holed, stimulus, weighting=weighting)
            kept = np.ones(len(y), bool)
            kept[gone] = False
            if weighting == "max_repeats":
                kept &= np.array([kept[stimulus == s].sum() == 3 for s in range(400)])[stimulus]
            alone = ncsnr(holed[kept, 1], stimulus[kept], weighting=weighting)
            assert found[1] == pytest.approx(float(alone[0]), rel=1e-10)
            assert found[0] == pytest.approx(ncsnr(y, stimulus, weighting=weighting)[0])
            assert np.isnan(found[2:]).all()
        assert np.isnan(split_half_reliability(holed, stimulus, unit="r")[2:]).all()


def test_invariances_and_blocks():
    _, y, stimulus = simulate(PLANTED, 200, 3)
    base = ncsnr(y, stimulus, total="empirical")
    rng = np.random.default_rng(0)
    i, v = rng.permutation(len(y)), rng.permutation(y.shape[1])
    moved = ncsnr(7 * y[i][:, v] + 100, stimulus[i], total="empirical")
    np.testing.assert_allclose(moved, base[v], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ncsnr(y, stimulus, total="empirical", max_memory=1), base, rtol=1e-12)
    one, other = (split_half_reliability(y, stimulus, unit="r", max_memory=m) for m in (1, 10**9))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    float32 = ncsnr(y.astype(np.float32), stimulus, total="empirical")
    np.testing.assert_allclose(float32, base, rtol=1e-4, atol=1e-3)


def test_units_are_never_mixed():
    score, ceiling = np.array([0.3, 0.5]), np.array([0.6, 0.8])
    np.testing.assert_allclose(normalise(score, ceiling, score_unit="r", ceiling_unit="r"), [0.5, 0.625])
    np.testing.assert_allclose(normalise(score, ceiling, score_unit="ev", ceiling_unit="r2"), [0.5, 0.625])
    with pytest.raises(ValueError, match=r"convert_ceiling\(ceiling, from_unit='r2', to_unit='r'\)"):
        normalise(score, ceiling, score_unit="r", ceiling_unit="r2")
    with pytest.raises(ValueError, match=r"convert_ceiling\(ceiling, from_unit='r', to_unit='r2'\)"):
        normalise(score, ceiling, score_unit="ev", ceiling_unit="r")
    with pytest.raises(TypeError, match="unit"):
        noise_ceiling(0.5, 3)
    back = convert_ceiling(convert_ceiling(ceiling, from_unit="r2", to_unit="r"), from_unit="r", to_unit="r2")
    np.testing.assert_allclose(back, ceiling)


def test_normalise_floor_clip_and_leading_axes():
    ceiling = np.array([0.099, 0.5, np.nan, 0.0, -0.1])
    out = normalise(np.full((3, 5), 0.6), ceiling, score_unit="r", ceiling_unit="r")
    assert out.shape == (3, 5)
    np.testing.assert_allclose(out[:, 1], 1.2)
    assert np.isnan(out[:, [0, 2, 3, 4]]).all()
    assert normalise([0.6], [0.5], score_unit="r", ceiling_unit="r", clip=True).tolist() == [1.0]
    assert normalise([0.05], [0.05], score_unit="r", ceiling_unit="r", floor=0.01).tolist() == [1.0]
    ceilings = np.linspace(0.001, 0.3, 50)
    same = np.isnan(normalise(ceilings, ceilings, score_unit="r", ceiling_unit="r"))
    squared = np.isnan(normalise(ceilings**2, ceilings**2, score_unit="r2", ceiling_unit="r2"))
    np.testing.assert_array_equal(same, squared)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ncsnr(np.ones((4, 2)), [1, 2, 3, 4]), "none of the 4 stimuli is repeated"),
        (lambda: ncsnr(np.ones((4, 2)), [1, 1, 2]), "4 presentations but stimulus has 3"),
        (lambda: ncsnr(np.ones((2, 2)), [[1, 1]]), "one id per presentation"),
        (lambda: ncsnr(np.eye(4) * 9, [1, 1, 2, 2]), r"total='unit' expects.*20\.25"),
        (lambda: ncsnr(np.eye(4), [1, 1, 2, 2], total="units"), "did you mean 'unit'"),
        (lambda: ncsnr(np.ones((4, 1)), [1.0, 1.0, np.nan, 2.0]), "1 NaN ids"),
        (lambda: noise_ceiling(0.5, 0, unit="r"), "at least 1"),
        (lambda: noise_ceiling(0.5, 2.5, unit="r"), "integers"),
        (lambda: noise_ceiling(-0.5, 2, unit="r"), "negative"),
        (lambda: noise_ceiling(0.5, {3: 0}, unit="r"), "mapping"),
        (lambda: noise_ceiling(0.5, 3, unit="variance"), "did you mean 'r2'"),
        (lambda: normalise([0.5], [36.0], score_unit="r2", ceiling_unit="r2"), "percent: divide by 100"),
        (lambda: normalise([1.5], [0.5], score_unit="r", ceiling_unit="r"), "correlation of 1.5"),
        (lambda: normalise([0.1, 0.2], [0.5], score_unit="r", ceiling_unit="r"), r"\(2,\).*\(1,\)"),
        (lambda: normalise([0.1], [0.5], score_unit="r", ceiling_unit="r", floor=0), "floor"),
        (lambda: convert_ceiling([-0.2], from_unit="r2", to_unit="r"), "negative"),
        (lambda: split_half_reliability(np.eye(4), [1, 1, 2, 2], unit="r"), "only 2 stimuli"),
    ],
)
def test_errors_name_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_stimulus_with_most_repeats_does_not_decide():
    stimulus = np.concatenate([np.zeros(10), np.repeat(np.arange(1, 200), 3)]).astype(int)
    y = np.random.default_rng(0).standard_normal((len(stimulus), 2))
    with pytest.raises(ValueError, match=r"only 1 stimuli have the largest number of repeats \(10\).*'df'"):
        ncsnr(y, stimulus)
    assert np.isfinite(ncsnr(y, stimulus, weighting="df")).all()
