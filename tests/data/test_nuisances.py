"""Planted nuisances of simulated responses: each is there, as large as it was asked for, and told in the truth."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.data.simulate import Nuisances, simulate_cortex, simulate_world


def rng():
    return np.random.default_rng(0)


def flat(n=400, v=200):
    """Signals of unit variance, of the voxels and of what they turn to; nothing alike; time."""
    made = np.random.default_rng(1).standard_normal((2, n, v))
    return made[0], made[1], np.zeros(n), np.linspace(0, 1, n)


def test_by_default_there_are_none():
    signal, other, alike, time = flat()
    assert Nuisances().record == {}
    np.testing.assert_array_equal(Nuisances().signal(signal, other, alike, time, rng())[0], signal)
    noise, truth = Nuisances().noise(np.full(200, 0.5), 400, rng())
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert not truth["outlying_trial"].any()
    assert not truth["outlying_response"].any()


def test_outliers_are_where_the_truth_says():
    noise, truth = Nuisances(outlying_trials=0.15, outlying_responses=0.1).noise(np.ones(200), 400, rng())
    odd = truth["outlying_trial"][:, None] | truth["outlying_response"]
    assert truth["outlying_trial"].sum() == 60
    assert truth["outlying_response"].mean() == pytest.approx(0.1, abs=0.005)
    assert noise[odd].std() == pytest.approx(np.sqrt(10), rel=0.05)
    assert noise[~odd].std() == pytest.approx(1.0, rel=0.05)


def test_levels_of_trials_and_heavy_tails_keep_the_variance():
    noise, truth = Nuisances(noise_spread=0.8).noise(np.ones(500), 400, rng())
    assert (noise**2).mean() == pytest.approx(1.0, rel=0.1)
    assert np.corrcoef(noise.std(axis=1), truth["level"])[0, 1] > 0.99
    assert np.log(truth["level"]).std() == pytest.approx(0.8, rel=0.1)
    noise = Nuisances(tails=5).noise(np.ones(500), 400, rng())[0]
    assert (noise**2).mean() == pytest.approx(1.0, rel=0.1)
    assert (noise**4).mean() > 5


def test_tuning_turns_and_gain_drifts():
    signal, other, alike, time = flat()
    found, truth = Nuisances(turning=np.pi / 2).signal(signal, other, alike, time, rng())
    np.testing.assert_allclose(found[0], signal[0])
    np.testing.assert_allclose(found[-1], other[-1], atol=1e-12)
    assert truth["angle"][200] == pytest.approx(np.pi / 4, abs=0.01)
    found, truth = Nuisances(gain_drift=0.5).signal(signal, other, alike, time, rng())
    np.testing.assert_allclose(found, signal * truth["gain"])
    assert np.log(truth["gain"][-1] / truth["gain"][0]).std() == pytest.approx(0.5, rel=0.1)


def test_saturation_keeps_the_variance_and_bends():
    signal, other, alike, time = flat()
    found, _ = Nuisances(saturation=0.5).signal(signal, other, alike, time, rng())
    np.testing.assert_allclose(found.std(axis=0), signal.std(axis=0))
    assert (np.argsort(found[:, 0]) == np.argsort(signal[:, 0])).all()
    assert np.abs(found).max() < 0.8 * np.abs(signal).max()


def test_repeats_are_suppressed_and_responses_missing():
    signal, other, alike, time = flat()
    alike[::2] = 1.0
    found, _ = Nuisances(suppression=0.4).signal(signal, other, alike, time, rng())
    np.testing.assert_allclose(found[::2], 0.6 * signal[::2])
    np.testing.assert_allclose(found[1::2], signal[1::2])
    noise, truth = Nuisances(missing=0.2).noise(np.ones(200), 400, rng())
    assert (np.isnan(noise) == truth["missing"]).all()
    assert truth["missing"].mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    "wrong", [{"missing": 1.0}, {"outlying_trials": -0.1}, {"tails": 2.0}, {"saturation": 0.0}, {"turning": np.nan}]
)
def test_values_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Nuisances(**wrong)


def test_the_simulated_cortex_takes_them():
    world = simulate_world(60, seed=1)
    options = {"n_voxels": {"FFA": 20}, "n_sessions": 2, "n_repeats": 2, "ncsnr": (1.0, 1.0), "drift": 0.0}
    plain = simulate_cortex(world, **options)[0]
    spoilt = simulate_cortex(world, **options, nuisances=Nuisances(outlying_trials=0.1, suppression=0.5))[0]
    assert not [name for name in plain.truth if str(name).startswith("nuisance")]
    np.testing.assert_array_equal(plain.truth["signal"], spoilt.truth["signal"])
    odd = spoilt.truth["nuisance_outlying_trial"].values
    spread = spoilt.responses.values.std(axis=1)
    assert odd.sum() == 12
    assert spread[odd].min() > spread[~odd].mean()
    gain = spoilt.truth["nuisance_gain"].values[:, 0]
    np.testing.assert_allclose(gain, np.where(spoilt.responses["repeat"].values > 0, 0.5, 1.0))
