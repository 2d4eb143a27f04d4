"""Scores of captions: against scipy, planted truth, nulls."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from neuroenc._core.errors import DataError
from neuroenc.captions import caption_diversity, round_trip, sentence_scores
from neuroenc.captions.checks._scoring import caption_agreement


def planted(rng, n_voxels=60, n_stimuli=120, e=16, noise=1.0, families=3):
    """Voxels of a few families; each answers to stimuli like its family's caption."""
    family = rng.standard_normal((families, e))
    which = rng.integers(0, families, n_voxels)
    captions = family[which] + 0.3 * rng.standard_normal((n_voxels, e))
    stimuli = rng.standard_normal((n_stimuli, e))
    signal = stimuli @ captions.T
    y = signal / signal.std(axis=0) + noise * rng.standard_normal(signal.shape)
    return captions, stimuli, y, which


def test_rho_is_scipys_and_nulls_are_lower():
    rng = np.random.default_rng(0)
    captions, stimuli, y, which = planted(rng)
    found = sentence_scores(captions, stimuli, y, roi=which, n_shuffles=50)
    c = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    s = stimuli / np.linalg.norm(stimuli, axis=1, keepdims=True)
    expected = [spearmanr(s @ c[v], y[:, v]).statistic for v in range(len(c))]
    np.testing.assert_allclose(found.rho, expected, atol=1e-10)
    a = found.attrs
    assert a["mean"] > a["mean_shuffled_within_roi"] > a["mean_shuffled"] + 0.1
    assert a["p"] < 0.05
    assert a["low"] < a["mean"] < a["high"]


def test_captions_that_say_nothing_are_at_chance():
    rng = np.random.default_rng(1)
    _, stimuli, y, _ = planted(rng)
    found = sentence_scores(rng.standard_normal((60, 16)), stimuli, y, n_shuffles=50)
    assert abs(found.attrs["mean"]) < 0.05
    assert found.attrs["p"] > 0.05


def test_ties_and_monotone_responses_change_nothing():
    rng = np.random.default_rng(2)
    captions, stimuli, y, _ = planted(rng)
    a = sentence_scores(captions, stimuli, y, n_shuffles=2, n_bootstraps=2)
    b = sentence_scores(captions * 7, stimuli, np.exp(y), n_shuffles=2, n_bootstraps=2)
    np.testing.assert_allclose(a.rho, b.rho, atol=1e-12)
    y[:, 3] = 1.0
    silent = sentence_scores(captions, stimuli, y, n_shuffles=2, n_bootstraps=2)
    assert np.isnan(silent.rho[3])
    assert np.isfinite(silent.attrs["mean"])


def test_labels_are_kept_and_regions_found():
    rng = np.random.default_rng(3)
    captions, stimuli, y, which = planted(rng)
    labelled = xr.DataArray(y, dims=("stimulus", "voxel"), coords={"roi": ("voxel", which), "voxel": np.arange(60) + 5})
    found = sentence_scores(captions, stimuli, labelled, n_shuffles=5, n_bootstraps=5)
    assert found.voxel.values.tolist() == (np.arange(60) + 5).tolist()
    assert "shuffled_within_roi" in found


def test_interval_covers_the_mean_of_many_stimuli():
    rng = np.random.default_rng(4)
    captions, stimuli, y, _ = planted(rng, n_stimuli=4000, noise=2.0)
    truth = sentence_scores(captions, stimuli, y, n_shuffles=1, n_bootstraps=1).attrs["mean"]
    inside = 0
    for k in range(40):
        rows = slice(100 * k, 100 * (k + 1))
        a = sentence_scores(captions, stimuli[rows], y[rows], n_shuffles=1, n_bootstraps=200, seed=k).attrs
        inside += a["low"] <= truth <= a["high"]
    assert inside >= 33


def test_round_trip_is_a_percentile():
    rng = np.random.default_rng(5)
    coef, corpus, captions = rng.standard_normal((6, 9)), rng.standard_normal((300, 6)), rng.standard_normal((9, 6))
    found, _ = round_trip(coef, captions, corpus)
    u = corpus / np.linalg.norm(corpus, axis=1, keepdims=True)
    c = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    expected = [(u @ coef[:, v] < c[v] @ coef[:, v]).mean() for v in range(9)]
    np.testing.assert_allclose(found, expected)
    good, summary = round_trip(coef, coef.T, corpus)
    assert good.min() > 0.95
    assert summary["p"] < 0.05


def test_agreement_is_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(6)
    folds = rng.standard_normal((4, 5, 7))
    found, summary = caption_agreement(folds)
    u = folds / np.linalg.norm(folds, axis=2, keepdims=True)
    expected = np.mean([(u[i] * u[j]).sum(1) for i in range(4) for j in range(i)], axis=0)
    np.testing.assert_allclose(found, expected)
    assert summary["p"] > 0.01


def test_bad_input_is_named():
    rng = np.random.default_rng(7)
    captions, stimuli, y, _ = planted(rng)
    with pytest.raises(DataError, match="do not fit"):
        sentence_scores(captions, stimuli, y.T)
    with pytest.raises(DataError, match="NaN"):
        sentence_scores(captions, stimuli, np.where(y > 2, np.nan, y))
    with pytest.raises(DataError, match="zero"):
        sentence_scores(0 * captions, stimuli, y)
    with pytest.raises(DataError, match="two folds"):
        caption_agreement(captions[None])
    with pytest.raises(DataError, match="2 captions"):
        caption_diversity(["a", "b"], captions)
    with pytest.raises(DataError, match="fit"):
        round_trip(captions, captions, stimuli)
