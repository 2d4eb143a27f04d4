"""Stacked regression and structured variance partitioning (Lin et al. 2024), beside single spaces and banded ridge."""

import numpy as np
import pytest

from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder, StackedEncoder

pytestmark = pytest.mark.slow
N_TRAIN, V = 250, 40


def r2(encoder, X, Y):
    rows = slice(N_TRAIN, None)
    held = {k: x[rows] for k, x in X.items()} if isinstance(X, dict) else X[rows]
    return np.asarray(encoder.score_voxels(held, Y[rows], metric="r2"))


def fitted(encoder, X, Y):
    rows = slice(0, N_TRAIN)
    return encoder.fit({k: x[rows] for k, x in X.items()} if isinstance(X, dict) else X[rows], Y[rows])


def layered(seed, n_layers=6, p=40, n=750, noise=1.0):
    """Layers that each keep four fifths of the variance of the one before; voxels read two neighbours."""
    rng = np.random.default_rng(seed)
    layers = [rng.standard_normal((n, p))]
    for _ in range(n_layers - 1):
        layers.append(np.sqrt(0.8) * layers[-1] + np.sqrt(0.2) * rng.standard_normal((n, p)))
    reads = rng.integers(0, n_layers - 1, V)
    parts = [(layers[k] + layers[k + 1]) @ rng.standard_normal(p) / np.sqrt(4 * p) for k in reads]
    Y = np.stack(parts, axis=1) + noise * rng.standard_normal((n, V))
    return {f"layer{k}": x for k, x in enumerate(layers)}, Y, reads


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_stack_predicts_at_least_as_well_as_the_best_single_space(seed):
    X, Y, _ = layered(seed)
    stacked = fitted(StackedEncoder(), X, Y)
    alone = np.stack([r2(fitted(RidgeEncoder(), x, Y), x, Y) for x in X.values()])
    chosen = alone[stacked.band_score_.argmax(axis=0), np.arange(V)]  # the best by training rows
    assert np.mean(r2(stacked, X, Y) - chosen) > 0.005
    # Control: the same predictions under the weights of other voxels.
    stacked.coef_, stacked.intercept_ = stacked._combined(np.roll(stacked.weights_, 7, axis=1))
    assert np.mean(r2(stacked, X, Y) - chosen) < 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_holds_the_layers_that_a_voxel_reads(seed):
    X, Y, reads = layered(seed, noise=0.3)
    stacked = fitted(StackedEncoder(), X, Y)
    found = stacked.structured_partition({k: x[N_TRAIN:] for k, x in X.items()}, Y[N_TRAIN:])
    names = list(X)
    first, last = (np.array([names.index(x) for x in found[end].values]) for end in ("first", "last"))
    assert np.mean(np.abs((first + last) / 2 - (reads + 0.5))) < 0.75
    # Control: voxels in another order are at another depth.
    assert np.mean(np.abs((first + last) / 2 - (np.roll(reads, 7) + 0.5))) > 1.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_stack_beats_ridge_on_spaces_side_by_side_where_most_are_of_no_use(seed):
    rng = np.random.default_rng(seed)
    X = {"useful": rng.standard_normal((750, 20))}
    X |= {f"other{k}": rng.standard_normal((750, 150)) for k in range(3)}
    Y = X["useful"] @ rng.standard_normal((20, V)) / np.sqrt(20) + rng.standard_normal((750, V))
    stacked, joined = fitted(StackedEncoder(), X, Y), np.concatenate(list(X.values()), axis=1)
    assert np.mean(r2(stacked, X, Y) - r2(fitted(RidgeEncoder(), joined, Y), joined, Y)) > 0.05
    assert np.mean(stacked.weights_[0]) > 0.9


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_banded_ridge_beats_the_stack_where_spaces_add(seed):
    """Weights that sum to one average predictions that have to be added."""
    rng = np.random.default_rng(seed)
    X = {k: rng.standard_normal((750, 20)) for k in ("a", "b")}
    Y = sum(x @ rng.standard_normal((20, V)) for x in X.values()) / np.sqrt(40) + 0.7 * rng.standard_normal((750, V))
    gain = r2(fitted(BandedRidgeEncoder(n_candidates=20), X, Y), X, Y) - r2(fitted(StackedEncoder(), X, Y), X, Y)
    assert np.mean(gain) > 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_stack_predicts_no_worse_than_banded_ridge_where_layers_hold_the_same(seed):
    X, Y, _ = layered(seed)
    banded = fitted(BandedRidgeEncoder(n_candidates=50, seed=0), X, Y)
    assert np.mean(r2(fitted(StackedEncoder(), X, Y), X, Y) - r2(banded, X, Y)) > -0.005


def names_the_layer(seed):
    """Share of voxels whose largest weight is on the layer that they read: stack, banded ridge."""
    rng = np.random.default_rng(seed)
    X, _, _ = layered(seed)
    layers, reads = list(X.values()), rng.integers(0, len(X), V)
    Y = np.stack([layers[k] @ rng.standard_normal(40) / np.sqrt(40) for k in reads], axis=1)
    Y += rng.standard_normal(Y.shape)
    stacked, banded = fitted(StackedEncoder(), X, Y), fitted(BandedRidgeEncoder(n_candidates=50, seed=0), X, Y)
    return tuple(np.mean(w.argmax(axis=0) == reads) for w in (stacked.weights_, banded.gamma_))


@pytest.mark.xfail(strict=True, reason="the stack names 1.00 of the layers, banded ridge .95, with each of three seeds")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_weights_name_the_layer_that_a_voxel_reads_more_often_than_bands_do(seed):
    stacked, banded = names_the_layer(seed)
    assert stacked > banded + 0.1
    # Control: one in six by chance.
    assert stacked > 0.5
