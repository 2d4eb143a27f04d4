"""Mixtures of priors and pooling over voxels: scales, planted components, places in maps."""

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import PriorMixture, make_model
from neuroenc.encoders.incontext._anchor import _NOISE, _SIGNAL, gaussian_grid
from neuroenc.encoders.incontext._condition import pooled_prior

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((800, 6)) @ np.diag([3, 2, 1, 1, 0.5, 0.2]) + 1.0


def test_components_have_unit_signal_variance_over_the_images():
    a = RNG.standard_normal((6, 6))
    mixture = PriorMixture.build(IMAGES, [a @ a.T, np.eye(6)], means=[np.ones(6), np.zeros(6)], share=[1, 3])
    np.testing.assert_allclose(mixture.share, [0.25, 0.75])
    for component in range(2):
        share = np.eye(2)[component]
        alone = PriorMixture(mixture.means, mixture.covs, share, mixture.center)
        w, b = alone.sample(4000, seed=1)
        signal = IMAGES @ w + b
        assert abs(signal.mean()) < 0.02
        assert signal.var(axis=0).mean() == pytest.approx(1.0, abs=0.05)


def test_sampling_follows_shares_and_seed():
    ends = [np.diag([1.0, 0, 0, 0, 0, 0]), np.diag([0, 0, 0, 0, 0, 1.0])]
    mixture = PriorMixture.build(IMAGES, ends, share=[0.2, 0.8])
    w, _ = mixture.sample(3000, seed=2)
    assert (w[0] != 0).mean() == pytest.approx(0.2, abs=0.03)
    np.testing.assert_array_equal(w, mixture.sample(3000, seed=2)[0])


def test_clusters_find_planted_families():
    family = RNG.standard_normal((3, 6))
    coef = np.repeat(family, 60, axis=0).T + 0.05 * RNG.standard_normal((6, 180))
    mixture = PriorMixture.clusters(IMAGES, coef, n_clusters=3, shrinkage=0.1)
    assert mixture.n_components == 4  # and the whole
    around = np.cov(IMAGES.T)

    def unit(w):
        return w / np.sqrt(w @ around @ w)

    for w in family:
        likeness = [unit(w) @ around @ unit(m) for m in mixture.means[:3]]
        assert max(likeness) > 0.98


def test_spatial_components_are_places():
    channels, side, n = 3, 4, 10
    projection = np.linalg.qr(RNG.standard_normal((channels * side * side, n)))[0]
    coef = projection.T @ RNG.standard_normal((channels * side * side, 40))
    maps = RNG.standard_normal((300, channels * side * side))
    mixture = PriorMixture.spatial(maps @ projection, projection, (channels, side, side), coef, sizes=(0.7,))
    assert mixture.n_components == side * side + 1
    # A component's variance over places peaks at its own, as far as the projection lets one see.
    full = np.eye(channels * side * side)
    whole = PriorMixture.spatial(maps, full, (channels, side, side), full @ RNG.standard_normal((48, 40)), sizes=(0.7,))
    for place in range(side * side):
        variance = np.diag(whole.covs[place]).reshape(channels, -1).sum(axis=0)
        assert variance.argmax() == place
    with pytest.raises(DataError, match="48"):
        PriorMixture.spatial(maps @ projection, projection[:40], (channels, side, side), coef)


def test_from_responses_has_blends_and_levels():
    x = RNG.standard_normal((800, 6))  # white: a draw's signal is close to the mean over draws
    w = RNG.standard_normal((6, 60))
    y = x @ w
    y = (y / y.std(axis=0)) * np.sqrt(0.3) + np.sqrt(0.7) * RNG.standard_normal(y.shape)
    mixture = PriorMixture.from_responses([(x[:400], y[:400, :30]), (x[400:], y[400:, 30:])], n_clusters=2)
    assert mixture.n_components == 2 + 1 + 5
    assert mixture.share.sum() == pytest.approx(1)
    # The typical signal is about .3 of the variance, the typical noise about .7.
    assert np.exp(mixture.level_mean[0]) == pytest.approx(0.3, rel=0.35)
    assert np.exp(mixture.level_mean[1]) == pytest.approx(0.7, rel=0.15)
    around = np.cov(np.concatenate([x[:400], x[400:]]).T)
    isotropic = np.eye(6) / np.trace(around)
    np.testing.assert_allclose(mixture.covs[-1], isotropic, rtol=1e-6)


def test_bad_mixtures_are_refused():
    with pytest.raises(DataError, match="6 features"):
        PriorMixture.build(IMAGES, [np.eye(5)])
    with pytest.raises(DataError, match="no signal"):
        PriorMixture.build(IMAGES, [np.zeros((6, 6))])
    with pytest.raises(ConfigError, match="shares"):
        PriorMixture.build(IMAGES, [np.eye(6)], share=[1, 2])
    with pytest.raises(ConfigError, match="shape"):
        PriorMixture.from_responses([(IMAGES, IMAGES[:, :3])], projection=np.eye(6))


def test_gaussian_grid_is_a_gaussian():
    found = gaussian_grid(torch.tensor([-1.0, -0.5]).double(), torch.eye(2).double() * 0.3).exp()
    assert float(found.sum()) == pytest.approx(1)
    s, n = np.log(_SIGNAL.numpy()), np.log(_NOISE.numpy())
    expected = np.exp(-0.5 * ((s[:, None] + 1) ** 2 + (n + 0.5) ** 2) / 0.301)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)


def planted(n_voxels, n, signal, noise, rng, direction=None):
    x = rng.standard_normal((n, 12)).astype(np.float32)
    w = rng.standard_normal((n_voxels, 12)) if direction is None else rng.standard_normal((n_voxels, 1)) * direction
    w *= np.sqrt(signal / (w**2).sum(1, keepdims=True))
    return x, x @ w.T + np.sqrt(noise) * rng.standard_normal((n, n_voxels)), w


def test_pooling_finds_levels_and_kinds_of_planted_voxels():
    rng = np.random.default_rng(3)
    images = rng.standard_normal((2000, 12))
    line = np.diag([1.0] + [0.001] * 11)
    mixture = PriorMixture.build(images, [np.eye(12), line])
    model = make_model("small", prior=mixture, dim=16, depth=1, hidden=32).eval()
    x, y, _ = planted(300, 25, 0.15, 0.85, rng, direction=np.eye(12)[0])
    with torch.no_grad():
        a = torch.as_tensor(x), torch.as_tensor(y.T.copy(), dtype=torch.float32)
        z, _ = model.read(*a, None)
        scores = model.anchor.log_posterior(z[:, 0], model.anchor.moments(*a))
    prior = model.anchor.prior().detach()
    found = pooled_prior(scores, prior, n_iterations=30).exp()
    assert float(found[1].sum()) > 0.9
    level = (found.sum(0).sum(1) * _SIGNAL.log()).sum().exp(), (found.sum(0).sum(0) * _NOISE.log()).sum().exp()
    assert float(level[0]) == pytest.approx(0.15, rel=0.4)
    assert float(level[1]) == pytest.approx(0.85, rel=0.25)


def test_pooling_helps_new_voxels():
    rng = np.random.default_rng(4)
    images = rng.standard_normal((2000, 12))
    mixture = PriorMixture.build(images, [np.eye(12), np.diag([1.0] + [0.001] * 11)])
    model = make_model("small", prior=mixture, dim=16, depth=1, hidden=32).eval()
    x, y, w = planted(200, 20, 0.2, 0.8, rng, direction=np.eye(12)[0])
    alone = InContextEncoder(model, pool="none").fit(x, y)
    together = InContextEncoder(model).fit(x, y)
    error = [float(((e.coef_.T - w) ** 2).sum(1).mean()) for e in (alone, together)]
    assert error[1] < 0.85 * error[0]
    few = InContextEncoder(model).fit(x, y[:, :10])
    np.testing.assert_array_equal(few.coef_, InContextEncoder(model, pool="none").fit(x, y[:, :10]).coef_)


def test_pooling_does_not_depend_on_order_or_blocks():
    rng = np.random.default_rng(5)
    model = make_model("small", prior=PriorMixture.build(rng.standard_normal((500, 12)), [np.eye(12)]), dim=16, depth=1)
    x, y, _ = planted(120, 30, 0.3, 0.7, rng)
    order = rng.permutation(120)
    a, b = InContextEncoder(model).fit(x, y), InContextEncoder(model, max_memory="1MB").fit(x, y[:, order])
    np.testing.assert_allclose(a.coef_[:, order], b.coef_, atol=2e-6)
