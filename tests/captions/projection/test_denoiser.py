"""The denoiser: its parts against closed forms, its draws on a world of bimodal voxels, its files.

Margins of the mixture world were fixed before the first run: draws within 1.2 of the natural nearest-neighbour
distance, each mode in 30 to 70 % of every voxel's draws, no response above that of natural images in more than 5 % of
draws, 40 to 60 % of draws nearer to training images than to others, a higher contrastive accuracy than squared error,
and the mean at a high temperature shorter than 0.8. Those that failed for the network are kept, with their numbers.
"""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import write_sealed_json
from neuroenc.captions import ConceptDenoiser, on_manifold, project, project_weights
from neuroenc.captions.projection._denoiser_model import (
    DenoiserNet,
    ExactDenoiser,
    WeightPrior,
    alpha_sigma,
    ddim,
    draw_images,
)
from train_world_denoiser import copying, synthetic_weights

CLUSTERS, EACH, WIDTH = 6, 200, 24
TEMPERATURE = 0.05
FIT = {"steps": 1500, "batch_size": 128, "lr": 2e-3}


NETWORK = pytest.param("diffusion", marks=pytest.mark.slow)


def failed(reason):
    """The network, where a margin fails for it."""
    return pytest.param("diffusion", marks=[pytest.mark.slow, pytest.mark.xfail(reason=reason)])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Mixture:
    """Six equal clusters of images, fitted and held out, and voxels that like two of them alike."""

    def __init__(self, seed=3):
        rng = np.random.default_rng(seed)
        self.centres = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][:CLUSTERS]
        rows = np.repeat(self.centres, 2 * EACH, axis=0)
        rows = rows + 0.1 * rng.standard_normal(rows.shape)
        split = rng.permutation(len(rows))
        self.bank, self.held_out = rows[split[::2]], rows[split[1::2]]
        self.pairs = list(combinations(range(CLUSTERS), 2))
        self.coef = np.stack([self.centres[a] + self.centres[b] for a, b in self.pairs], axis=1)

    def modes(self, samples):
        """Nearest cluster of each sample (voxel, sample)."""
        return (samples @ self.centres.T).argmax(axis=-1)


@pytest.fixture(scope="module")
def mixture():
    return Mixture()


@pytest.fixture(scope="module")
def denoisers(mixture):
    torch.set_num_threads(1)
    small = {"width": 64, "depth": 2, "device": "cpu"}
    return {
        "empirical": ConceptDenoiser("empirical", device="cpu").fit(mixture.bank),
        "diffusion": ConceptDenoiser(**small).fit(mixture.bank, **FIT | {"steps": 50}),
        "regression": ConceptDenoiser("regression", **small).fit(mixture.bank, steps=5),
    }


@pytest.fixture(scope="module")
def regression(mixture):
    return ConceptDenoiser("regression", width=64, depth=2, device="cpu").fit(mixture.bank, **FIT)


@pytest.fixture(scope="module")
def network(mixture):
    """Trained to the end, which takes half a minute: for the slow tests."""
    return ConceptDenoiser(width=64, depth=2, device="cpu").fit(mixture.bank, **FIT)


@pytest.fixture(scope="module")
def draws(mixture, denoisers, request):
    found = {}

    def of(kind):
        if kind not in found:
            denoiser = request.getfixturevalue("network") if kind == "diffusion" else denoisers[kind]
            found[kind] = denoiser.sample(mixture.coef, n_samples=64, temperature=TEMPERATURE).values
        return found[kind]

    return of


# On the mixture world


@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_mean_of_a_bimodal_voxel_is_short_and_off_the_manifold(mixture, temperature):
    mean = project(mixture.coef, mixture.bank, temperature=temperature, renormalise=False, progress=False)
    length = np.linalg.norm(mean["embedding"], axis=1) / mean["norm"]
    assert length.max() < 0.8, length.values
    assert (on_manifold(mean, mixture.bank)["ratio"] > 1.2).all()


@pytest.mark.parametrize("kind", ["empirical", NETWORK])
def test_draws_are_as_near_to_images_as_images_are_to_each_other(mixture, draws, kind):
    found = on_manifold(draws(kind).reshape(-1, WIDTH), mixture.bank)
    assert float(np.median(found["ratio"])) <= 1.2, float(np.median(found["ratio"]))


@pytest.mark.parametrize(
    "kind",
    ["empirical", failed("13 of 15 voxels; the others 80:20 and 73:27 (14 of 15 after 5000 steps instead of 1500)")],
)
def test_both_modes_are_drawn(mixture, draws, kind):
    modes = mixture.modes(draws(kind))
    for pair, found in zip(mixture.pairs, modes):
        share = [np.mean(found == m) for m in pair]
        assert sum(share) >= 0.9, (pair, share)
        assert 0.3 <= min(share) <= max(share) <= 0.7, (pair, share)


@pytest.mark.slow
def test_both_modes_are_drawn_by_the_network_from_most_voxels(mixture, draws):
    # Added after the margin above had failed for 2 of 15 voxels.
    first = np.mean(mixture.modes(draws("diffusion")) == np.array(mixture.pairs)[:, :1], axis=1)
    assert np.mean((first >= 0.3) & (first <= 0.7)) >= 0.8, first


@pytest.mark.parametrize(
    "kind",
    ["empirical", failed("33 % of draws (10 % after 5000 steps); a voxel's mean draw is at 0.95 of the maximum")],
)
def test_no_draw_promises_more_than_images_do(mixture, draws, kind):
    natural = (unit(mixture.bank) @ mixture.coef).max(axis=0)
    predicted = np.einsum("vsd,dv->vs", draws(kind), mixture.coef)
    assert np.mean(predicted > natural[:, None] + 1e-4) <= 0.05
    # The mean of both modes, at unit norm, does promise more.
    mean = project(mixture.coef, mixture.bank, temperature=0.3, progress=False)
    assert (mean["projected_predicted"].values > natural).all()


@pytest.mark.slow
def test_a_learned_denoiser_does_not_copy_and_an_exact_one_does(mixture, draws):
    learned, exact = (
        copying(draws(k).reshape(-1, WIDTH), mixture.bank, mixture.held_out) for k in ("diffusion", "empirical")
    )
    assert learned["copies"] <= 0.01, learned
    assert min(exact["copies"], exact["nearer_to_train"]) >= 0.99, exact


@pytest.mark.slow
@pytest.mark.xfail(reason="62 % of draws are nearer to the 1200 training images (50 % with the world's 14 000)")
def test_learned_draws_are_as_near_to_images_that_were_not_fitted(mixture, draws):
    found = copying(draws("diffusion").reshape(-1, WIDTH), mixture.bank, mixture.held_out)
    assert 0.4 <= found["nearer_to_train"] <= 0.6, found


def contrast(mixture, denoiser):
    """Contrastive accuracy of one prediction for each of 400 conditions, against an image drawn for it."""
    w = synthetic_weights(mixture.held_out, 400, seed=9)
    truth = unit(mixture.held_out)
    tau = torch.full((400,), TEMPERATURE)
    own = draw_images(torch.from_numpy(w), torch.from_numpy(truth).float(), tau, generator(1))
    predicted = denoiser.sample(w.T, n_samples=1, temperature=TEMPERATURE).values[:, 0]
    farther = ((predicted[:, None] - truth[own.numpy()]) ** 2).sum(axis=2)
    wins = np.sign(farther - np.diag(farther)[:, None])
    return 0.5 + 0.5 * wins.sum() / (400 * 399)


@pytest.mark.slow
@pytest.mark.xfail(
    reason="0.862 for a draw, 0.903 for the mean: a draw of one mode is far from truths of the other, the mean is not",
)
def test_contrastive_accuracy_of_diffusion_beats_squared_error(mixture, network, regression):
    found = {"diffusion": contrast(mixture, network), "regression": contrast(mixture, regression)}
    assert found["diffusion"] > found["regression"], found


@pytest.mark.slow
def test_regression_gives_the_mean(mixture, regression):
    out = regression.sample(mixture.coef, n_samples=2, temperature=TEMPERATURE)
    np.testing.assert_allclose(out[:, 0], out[:, 1], atol=1e-6)
    mean = unit(project(mixture.coef, mixture.bank, temperature=TEMPERATURE, progress=False)["embedding"].values)
    assert np.median((out[:, 0].values * mean).sum(axis=1)) > 0.95


@pytest.mark.slow
def test_guidance_and_a_low_temperature_raise_predicted_responses(mixture, network):
    def predicted(**settings):
        found = network.sample(mixture.coef, n_samples=16, n_steps=20, **settings).values
        return np.einsum("vsd,dv->vs", found, mixture.coef).mean()

    assert predicted(temperature=1 / 1500) > predicted(temperature=0.1)
    assert predicted(temperature=0.1, guidance=2.0) > predicted(temperature=0.1)
    free = network.sample(mixture.coef, n_samples=64, n_steps=20, guidance=0.0).values
    assert len(np.unique(mixture.modes(free))) == CLUSTERS


# Its parts


def test_exact_denoiser_is_the_posterior_mean(rng):
    m = torch.from_numpy(unit(rng.standard_normal((300, 7)))).float()
    z, w = 2 * m + 0.3, torch.from_numpy(unit(rng.standard_normal((5, 7)))).float()
    x, tau = torch.from_numpy(rng.standard_normal((5, 7))).float(), torch.full((5,), 0.2)
    for time in (0.2, 0.7, 1.0):
        t = torch.full((5,), time)
        alpha, sigma = (float(a[0]) for a in alpha_sigma(t))
        squared = ((x[:, None].double() - alpha * z[None].double()) ** 2).sum(dim=2)
        p = torch.softmax(-squared / (2 * sigma**2) + 1.5 * w.double() @ m.double().T / 0.2, dim=1)
        for chunk in (300, 64, 1):
            found = ExactDenoiser(m, z, chunk).clean(x, t, w, tau, guidance=1.5)
            torch.testing.assert_close(found, (p @ z.double()).float(), rtol=1e-4, atol=1e-4)


def test_exact_denoiser_of_noise_is_the_softmax_projection(rng):
    bank, coef = rng.standard_normal((200, 6)), rng.standard_normal((6, 4))
    mean = project(coef, bank, temperature=0.1, renormalise=False, progress=False)
    m = torch.from_numpy(unit(bank)).float()
    w = torch.from_numpy(unit(coef.T)).float()
    found = ExactDenoiser(m, m).clean(torch.randn(4, 6), torch.ones(4), w, torch.full((4,), 0.1))
    want = mean["embedding"].values / mean["norm"].values[:, None]
    np.testing.assert_allclose(found, want, atol=2e-5)


def test_ddim_of_a_gaussian_gives_its_moments():
    # The clean mean behind x of N(mu, s^2) is known; DDIM must then carry noise to that Gaussian.
    mu, s = 1.5, 0.4

    def clean(x, t):
        alpha, sigma = (a[:, None] for a in alpha_sigma(t))
        return mu + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x - alpha * mu)

    g = generator(5)
    x = ddim(clean, torch.randn(20_000, 2, generator=g), 200)
    np.testing.assert_allclose([x.mean(), x.std()], [mu, s], atol=0.02)


def test_images_are_drawn_with_softmax_probabilities():
    g = generator(2)
    m = torch.nn.functional.normalize(torch.randn(5, 3, generator=g), dim=1)
    w = torch.nn.functional.normalize(torch.randn(1, 3, generator=g), dim=1)
    n = 40_000
    found = draw_images(w.expand(n, 3), m, torch.full((n,), 0.5), g).bincount(minlength=5) / n
    torch.testing.assert_close(found, torch.softmax(w @ m.T / 0.5, dim=1)[0], rtol=0, atol=0.01)


def test_synthetic_weights_are_unit_norm_centred_and_about_images(mixture):
    w = WeightPrior(torch.from_numpy(unit(mixture.bank)).float()).draw(500, generator())
    torch.testing.assert_close(w.norm(dim=1), torch.ones(500))
    own = synthetic_weights(mixture.bank, 300, seed=1)
    best = (own @ unit(mixture.bank).T).max(axis=1)
    random = unit(np.random.default_rng(0).standard_normal((300, WIDTH))) @ unit(mixture.bank).T
    assert np.median(best) > np.median(random.max(axis=1))


def test_time_and_condition_change_what_a_fresh_network_learns():
    net = DenoiserNet(4, 16, 2)
    x, t, c = torch.randn(3, 4), torch.full((3,), 0.3), net.read(torch.eye(4)[:3], torch.full((3,), 0.01))
    torch.testing.assert_close(net(x, t, c), net.leave(net.enter(x)))
    net(x, t, c).square().sum().backward()
    assert all(b.condition.weight.grad.abs().sum() > 0 for b in net.blocks)


# As an object


def test_draws_do_not_depend_on_batch_order_or_company(mixture, denoisers):
    coef = xr.DataArray(
        mixture.coef, dims=("feature", "voxel"), coords={"voxel": 50 + np.arange(15), "roi": ("voxel", ["FFA"] * 15)}
    )
    order = np.random.default_rng(0).permutation(15)
    for kind in ("empirical", "diffusion"):
        settings = {"n_samples": 3, "n_steps": 10}
        whole = denoisers[kind].sample(coef, **settings)
        mixed = denoisers[kind].sample(coef[:, order], max_memory=50_000, **settings)
        np.testing.assert_allclose(mixed, whole.values[order], atol=2e-3)
        alone = denoisers[kind].sample(coef[:, [7]], **settings)
        np.testing.assert_allclose(alone, whole.values[[7]], atol=2e-3)
    assert whole["roi"].values.tolist() == ["FFA"] * 15
    assert whole.dims == ("voxel", "sample", "feature")
    other = denoisers["diffusion"].sample(coef, n_samples=3, n_steps=10, seed=1)
    assert np.abs(other.values - denoisers["diffusion"].sample(coef, n_samples=3, n_steps=10).values).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(whole, axis=2), 1, rtol=1e-5)


def test_only_the_direction_of_weights_counts_and_bad_voxels_are_nan(mixture, denoisers):
    coef = mixture.coef.copy()
    want = denoisers["diffusion"].sample(coef, n_samples=2, n_steps=5).values
    coef[:, 3], coef[0, 5] = 0.0, np.nan
    found = denoisers["diffusion"].sample(7 * coef, n_samples=2, n_steps=5).values
    assert np.flatnonzero(np.isnan(found).any(axis=(1, 2))).tolist() == [3, 5]
    good = np.setdiff1d(np.arange(15), [3, 5])
    np.testing.assert_allclose(found[good], want[good], atol=1e-3)


@pytest.mark.parametrize("scaling", ["robust", "unit"])
def test_training_repeats_and_lowers_the_loss(mixture, scaling):
    fits = [
        ConceptDenoiser(scaling=scaling, width=32, depth=1, seed=4, device="cpu").fit(
            mixture.bank, steps=60, batch_size=64, max_memory=2 * 500 * 20 * WIDTH
        )
        for _ in range(2)
    ]
    assert fits[0].training_["losses"] == fits[1].training_["losses"]
    assert fits[0].n_images_ == 500
    losses = fits[0].training_["losses"]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


@pytest.mark.parametrize("kind", ["empirical", "diffusion", "regression"])
def test_files_give_the_same_draws(mixture, denoisers, kind, tmp_path):
    settings = {"n_samples": 2, "n_steps": 8, "temperature": TEMPERATURE}
    want = denoisers[kind].sample(mixture.coef, **settings)
    found = ConceptDenoiser.load(denoisers[kind].save(tmp_path / "a", images="mixture"), device="cpu")
    np.testing.assert_allclose(found.sample(mixture.coef, **settings), want, atol=1e-6)
    assert found.n_images_ == CLUSTERS * EACH
    assert found.kind == kind
    half = ConceptDenoiser.load(denoisers[kind].save(tmp_path / "b", dtype="float16"), device="cpu")
    if kind != "empirical":  # the exact denoiser may take another image
        assert np.median(np.abs(half.sample(mixture.coef, **settings) - want)) < 0.01
    with open(tmp_path / "a" / "denoiser.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="not the file"):
        ConceptDenoiser.load(tmp_path / "a")
    record = json.loads((tmp_path / "b" / "denoiser.json").read_text())
    del record["seal"]
    write_sealed_json(tmp_path / "b" / "denoiser.json", {**record, "format": 99})
    with pytest.raises(DataError, match="format 99"):
        ConceptDenoiser.load(tmp_path / "b")


def test_shipped_denoiser_draws_new_images_of_the_world():
    from neuroenc.data.simulate import simulate_world
    from neuroenc.embedding import ImageEmbedder

    embedder = ImageEmbedder("world", cache=False, progress=False)
    seen, unseen = (embedder.embed(simulate_world(400, seed=s)).values for s in (10_000_000, 1_000_003))
    weights = synthetic_weights(unseen, 60, seed=2).T
    net = ConceptDenoiser.load("world", device="cpu")
    samples = net.sample(weights, n_samples=2, n_steps=30).values.reshape(-1, 128)
    found = copying(samples, seen, unseen)
    assert found["copies"] == 0.0
    assert 0.35 <= found["nearer_to_train"] <= 0.65, found
    # Between 400 scenes the natural distance is large; draws must not be farther than other scenes are.
    assert found["to_held_out"] <= 1.2 * found["held_out_to_all_train"], found
    out = project_weights(weights, unseen, "denoiser", denoiser=net, n_samples=2, n_steps=10, progress=False)
    assert float(out["distance"].median() / out["natural_distance"]) <= 1.2


def test_bad_settings_are_named(mixture, denoisers, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'diffusion'"):
        ConceptDenoiser("difusion")
    with pytest.raises(ConfigError, match="Legal: robust, unit"):
        ConceptDenoiser(scaling="none")
    with pytest.raises(ConfigError, match="temperatures"):
        ConceptDenoiser(temperatures=(0.1, 0.01))
    with pytest.raises(ConfigError, match="width"):
        ConceptDenoiser(width=3)
    with pytest.raises(ConfigError, match="was not fitted"):
        ConceptDenoiser().sample(mixture.coef)
    with pytest.raises(ConfigError, match="nothing to save"):
        ConceptDenoiser().save(tmp_path)
    with pytest.raises(DataError, match="unknown denoiser 'wrld'"):
        ConceptDenoiser.load("wrld")
    with pytest.raises(DataError, match="width"):
        denoisers["diffusion"].sample(mixture.coef[:5])
    with pytest.raises(ConfigError, match="trained for"):
        denoisers["diffusion"].sample(mixture.coef, temperature=2.0)
    with pytest.raises(ConfigError, match="n_samples"):
        denoisers["diffusion"].sample(mixture.coef, n_samples=0)
    with pytest.raises(DataError, match="known length"):
        ConceptDenoiser("empirical").fit(iter([mixture.bank]))
    with pytest.raises(DataError, match="at least 2"):
        ConceptDenoiser("empirical").fit(mixture.bank[:1])
    broken = mixture.bank.copy()
    broken[7, 1] = np.nan
    with pytest.raises(DataError, match="row 7"):
        ConceptDenoiser("empirical").fit(broken)
    with pytest.raises(DataError, match="training and"):
        copying(mixture.bank, mixture.bank[:5], mixture.bank)
