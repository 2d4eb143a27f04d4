"""Readouts through a bottleneck: where voxels share what they read, few stimuli are enough; where not, ridge wins.

Margins were fixed before looking.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroenc import stats
from neuroenc.data.simulate import simulate_readout_population
from neuroenc.encoders import ReadoutEncoder
from neuroenc.encoders.readout import make_readout

FIT = {"lr": 0.01, "max_epochs": 40, "patience": 4, "lr_cuts": 1}


def sharing(kind, n_train, *, rank=4, channels=36, side=8, n_voxels=48, n_test=300, seed=5):
    """Voxels that read maps under the masks of ``kind``, with channel weights that span ``rank`` dimensions."""
    shape = {"channels": channels, "height": side, "width": side}
    found = simulate_readout_population(kind, n_voxels=n_voxels, n_stimuli=n_train + n_test, seed=seed, **shape)
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n_voxels, rank)) @ rng.standard_normal((rank, channels))
    weights[:, -4:] = 0  # the object channels
    maps, masks = found.maps.values, found.truth["mask"].values.reshape(n_voxels, -1)
    flat = maps.reshape(len(maps), channels, -1)
    signal = np.einsum("ncp,vp,vc->nv", flat, masks, weights, optimize=True)
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    noisy = signal + 0.5 * rng.standard_normal(signal.shape)
    return maps, signal, noisy, slice(0, n_train), slice(n_train, None)


def accuracy(name, options, data, **settings):
    maps, signal, noisy, train, test = data
    encoder = ReadoutEncoder(name, readout_options=options, **{**FIT, **settings}).fit(maps[train], noisy[train])
    return float(np.median(stats.score(signal[test], np.asarray(encoder.predict(maps[test]))))), encoder


def test_compression_beats_pooling_and_ridge_on_spatial_voxels_that_share_channels():
    """By .3 in r over pooling, by .1 over ridge on the flattened map, with fewer parameters than it."""
    data = sharing("gaussian", 250)
    compression, encoder = accuracy("compression", {"alpha": 0.3}, data)
    pooled, _ = accuracy("pooled", {}, data)
    ridge, flat = accuracy("linear", {}, data)
    assert compression >= pooled + 0.3, (compression, pooled)
    assert compression >= ridge + 0.1, (compression, ridge)
    assert encoder.n_parameters_ < flat.n_parameters_ / 3


def test_compression_without_its_kernel_predicts_nothing():
    data = sharing("gaussian", 250)
    _, encoder = accuracy("compression", {"alpha": 0.3}, data, max_epochs=5)
    with_kernel = np.asarray(encoder.predict(data[0][:20]))
    with torch.no_grad():
        encoder.model_.each[0].reduce.weight.zero_()
    without = np.asarray(encoder.predict(data[0][:20]))
    assert with_kernel.std(axis=0).min() > 0
    np.testing.assert_allclose(without.std(axis=0), 0, atol=1e-6)


@pytest.mark.xfail(reason="at 250 stimuli: compression .79, pooled .98")
def test_compression_is_as_good_as_pooling_on_voxels_without_places():
    data = sharing("pooled", 250)
    assert accuracy("compression", {"alpha": 0.3}, data)[0] >= accuracy("pooled", {}, data)[0] - 0.05


@pytest.mark.xfail(reason="twelve channels, each read by half of the voxels: compression .50, ridge .78")
def test_compression_beats_ridge_where_voxels_share_no_channels():
    found = simulate_readout_population("gaussian", n_voxels=48, n_stimuli=600, seed=5)
    data = found.maps.values, found.truth["signal"].values, found.responses.values, slice(0, 300), slice(300, None)
    assert accuracy("compression", {"alpha": 0.1}, data)[0] >= accuracy("linear", {}, data)[0]


def in_few_dimensions(n_train, *, rank=10, n_features=128, n_voxels=60, noise=2.0, seed=0):
    """Voxels that answer to 10 of 128 dimensions of vectors."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_train + 300, n_features)).astype(np.float32)
    signal = X[:, :rank] @ rng.standard_normal((rank, n_voxels))
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    return X, signal, signal + noise * rng.standard_normal(signal.shape), slice(0, n_train), slice(n_train, None)


def test_low_rank_beats_ridge_on_voxels_of_few_dimensions():
    """By .05 at 300 stimuli, and more of its weights lie on the features that drive voxels."""
    data = in_few_dimensions(300)
    ridge, full = accuracy("linear", {}, data)
    low, encoder = accuracy("lowrank", {"rank": 10, "alpha": 0.3}, data)
    assert low >= ridge + 0.05, (low, ridge)
    found = encoder.weights()
    written = found["loading"].values @ found["component_weight"].values.reshape(10, -1)
    share = [np.square(w[:, :10]).sum() / np.square(w).sum() for w in (written, np.asarray(full.to_linear()[0]).T)]
    assert share[0] > share[1] + 0.1, share


def test_low_rank_field_is_that_of_its_written_out_weights():
    torch.manual_seed(0)
    low, full = make_readout("lowrank", (3, 6, 5), 4, rank=2), make_readout("linear", (3, 6, 5), 4)
    with torch.no_grad():
        low.loading.normal_()
        full.weight.copy_(low.loading @ low.component)
    for name, value in full.receptive_field().items():
        torch.testing.assert_close(low.receptive_field()[name], value)
