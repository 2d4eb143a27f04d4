"""Priors over weights: planted covariances found again, noisy ridge weights beaten, files, errors."""

import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import write_sealed_json
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import PlacePrior, PriorMixture, WeightPrior
from neuroenc.encoders.incontext._evidence import RATIOS, fit_hierarchy, grid_posterior, spectrum, subject_gram


def population(n=150, p=12, v=150, n_subjects=2, noise=1.0, seed=0):
    """Subjects whose voxels' weights share a covariance with a steep spectrum, in a random basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
    cov = basis * np.logspace(0, -3, p) @ basis.T
    root = basis * np.sqrt(np.logspace(0, -3, p))
    X = [rng.standard_normal((n, p)) for _ in range(n_subjects)]
    W = [root @ rng.standard_normal((p, v)) for _ in range(n_subjects)]
    Y = [x @ w + 3 + noise * rng.standard_normal((n, v)) for x, w in zip(X, W)]
    return X, Y, W, cov


def relative_error(cov, true):
    return np.linalg.norm(cov - true) / np.linalg.norm(true)


def test_em_finds_a_planted_covariance_better_than_ridge_weights_do():
    X, Y, W, cov = population(n=25)
    em = WeightPrior.from_responses(X, Y)
    weights = np.concatenate([RidgeEncoder(n_jobs=1).fit(x, y).coef_ for x, y in zip(X, Y)], axis=1)
    ridge = WeightPrior.from_weights(weights)
    oracle = WeightPrior.from_weights(np.concatenate(W, axis=1), shrinkage=0.0, use_mean=False)
    assert em.n_voxels == 300
    assert relative_error(oracle.cov, cov) < 0.2
    assert relative_error(em.cov, cov) < 0.25
    # Ridge weights are shrunk: a third of the variance is gone.
    assert relative_error(ridge.cov, cov) > 0.35
    assert 0.8 < em.noise_variance[1] < 1.25


def test_em_never_lowers_the_evidence():
    X, Y, _, _ = population(n=30, p=8, v=60)
    grams = [subject_gram(x, y) for x, y in zip(X, Y)]
    fit = fit_hierarchy(grams, n_iterations=15, shrinkage=0.0, use_mean=True, tolerance=-np.inf)
    # The prior's small ridge on (log scale, log noise) variances and the grid cost a little near convergence.
    assert np.diff(fit.evidence).min() > -0.02
    assert fit.evidence[-1] > fit.evidence[0] + 1


def test_em_finds_a_planted_mean_and_noise():
    rng = np.random.default_rng(3)
    mean = np.array([2.0, -1.0, 0.0, 0.5])
    X = rng.standard_normal((80, 4))
    Y = X @ (mean[:, None] + 0.3 * rng.standard_normal((4, 400))) + 0.5 * rng.standard_normal((80, 400)) - 7
    prior = WeightPrior.from_responses(X, Y)
    np.testing.assert_allclose(prior.mean, mean, atol=0.06)
    np.testing.assert_allclose(np.diag(prior.cov), 0.09, rtol=0.2)
    np.testing.assert_allclose(prior.noise_variance[1], 0.25, rtol=0.1)
    assert abs(prior.intercept_mean + 7) < 0.05
    assert not WeightPrior.from_responses(X, Y, use_mean=False, shrinkage=0.1).mean.any()


def test_scales_of_voxels_are_found():
    rng = np.random.default_rng(4)
    X = rng.standard_normal((120, 6))
    scale = np.exp(rng.standard_normal(300))
    Y = X @ (rng.standard_normal((6, 300)) * np.sqrt(scale)) + rng.standard_normal((120, 300))
    prior = WeightPrior.from_responses(X, Y, use_mean=False, shrinkage=0.0)
    assert 0.6 < prior.hyper_cov[0, 0] < 1.6
    assert prior.hyper_cov[1, 1] < 0.1


def test_from_weights_is_the_sample_covariance_and_ledoit_wolf():
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng(0)
    W = rng.standard_normal((5, 40)) * np.arange(1, 6)[:, None] + 2
    np.testing.assert_allclose(WeightPrior.from_weights(W, shrinkage=0).cov, np.cov(W, bias=True))
    np.testing.assert_allclose(WeightPrior.from_weights(W).cov, ledoit_wolf(W.T)[0], rtol=1e-10)
    half = WeightPrior.from_weights(W, shrinkage=0.5).cov
    sample = np.cov(W, bias=True)
    np.testing.assert_allclose(half, 0.5 * sample + 0.5 * np.trace(sample) / 5 * np.eye(5))
    broken = W.copy()
    broken[:, 3] = np.nan
    assert WeightPrior.from_weights(broken).n_voxels == 39


def test_samples_have_the_moments():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((3, 3))
    prior = WeightPrior(np.array([1.0, 2.0, 3.0]), root @ root.T, 5.0, 4.0)
    coef, intercept = prior.sample(40_000, seed=1)
    np.testing.assert_allclose(coef.mean(axis=1), prior.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(coef), prior.cov, atol=0.15)
    assert abs(intercept.mean() - 5) < 0.05
    assert abs(intercept.var() - 4) < 0.15
    assert np.array_equal(prior.sample(7, seed=1)[0], prior.sample(7, seed=1)[0])


def test_saved_and_loaded(tmp_path):
    X, Y, _, _ = population(n=30, p=5, v=20)
    prior = WeightPrior.from_responses(X, Y, shrinkage=0.1)
    back = WeightPrior.load(prior.save(tmp_path / "prior"))
    for name in ("mean", "cov", "noise_variance", "hyper_mean", "hyper_cov"):
        assert np.array_equal(getattr(back, name), getattr(prior, name))
    assert (back.intercept_mean, back.intercept_var, back.n_voxels) == (
        prior.intercept_mean,
        prior.intercept_var,
        prior.n_voxels,
    )
    assert '"shrinkage": 0.1' in back.provenance
    assert WeightPrior.load(WeightPrior.isotropic(3).save(tmp_path / "flat")).hyper is None
    (tmp_path / "prior" / "prior.safetensors").write_bytes(b"else")
    with pytest.raises(DataError, match="not the file that was saved"):
        WeightPrior.load(tmp_path / "prior")
    with pytest.raises(DataError, match=r"no prior\.json"):
        WeightPrior.load(tmp_path)


def test_errors():
    X, Y, _, _ = population(n=20, p=4, v=5)
    with pytest.raises(DataError, match=r"shape \(2,\)"):
        WeightPrior(np.zeros(2), np.eye(3))
    with pytest.raises(DataError, match="eigenvalues"):
        WeightPrior(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(DataError, match="the same features"):
        WeightPrior.from_responses([X[0], X[1][:, :3]], Y)
    with pytest.raises(DataError, match="1 voxels hold NaN"):
        WeightPrior.from_responses(X[0], np.where(np.arange(5) == 2, np.nan, Y[0]))
    with pytest.raises(ConfigError, match="shrinkage"):
        WeightPrior.from_responses(X, Y, shrinkage=1.5)
    with pytest.raises(DataError, match="needs two"):
        WeightPrior.from_weights(np.ones((3, 1)))


@pytest.mark.parametrize("n", [6, 30])
def test_evidence_on_the_grid_is_the_gaussian_density(n):
    """Primal and dual, averaged and maximised, against scipy in float64."""
    rng = np.random.default_rng(n)
    p = 12
    X, root = rng.standard_normal((n, p)), rng.standard_normal((p, p))
    y = X @ root @ rng.standard_normal((p, 2)) + rng.standard_normal((n, 2))
    shared = spectrum(X, root)
    t = shared.projector.T @ y
    unit = shared.values.sum() / n
    for maximise in (False, True):
        post = grid_posterior(shared.values, t, (y**2).sum(0), n, unit=unit, maximise=maximise)
        for v in range(2):
            cov = post.scale[v] * X @ root @ root.T @ X.T + post.noise_variance[v] * np.eye(n)
            np.testing.assert_allclose(post.log_evidence[v], multivariate_normal.logpdf(y[:, v], cov=cov), rtol=1e-9)
        np.testing.assert_allclose(post.weights.sum(axis=(0, 1)), 1)
    # The exact maximiser over the noise variance is at least as good as any grid point.
    coarse = grid_posterior(shared.values, t, (y**2).sum(0), n, unit=unit)
    assert (post.log_evidence >= coarse.log_evidence - 1e-9).all()
    assert len(RATIOS) == len(post.ratios)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"prior\.safetensors is not the file that was saved"),
        ("no weights", r"prior\.safetensors does not exist"),
        ("edited", r"prior\.json was changed after it was written"),
        ("not JSON", r"prior\.json is not JSON"),
        ("a list", r"prior\.json holds list"),
        ("newer", r"prior\.json has format 9"),
        ("no count", r"prior\.json lacks n_voxels"),
    ],
)
def test_damaged_priors_are_named(tmp_path, kind, message):
    folder = WeightPrior.isotropic(3).save(tmp_path)
    weights, record = folder / "prior.safetensors", folder / "prior.json"
    said = json.loads(record.read_text())
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif kind == "no weights":
        weights.unlink()
    else:
        text = {
            "edited": json.dumps({**said, "intercept_var": 7.0}),
            "not JSON": "{",
            "a list": "[]",
            "newer": json.dumps({**said, "format": 9}),
            "no count": json.dumps(said),
        }[kind]
        record.write_text(text)
    if kind == "no count":
        write_sealed_json(record, {k: v for k, v in said.items() if k not in ("n_voxels", "seal")})
    with pytest.raises(DataError, match=message):
        WeightPrior.load(folder)


@pytest.mark.parametrize("sd", [0.1, 0.2, 0.5, 2.0])
def test_a_density_narrower_than_a_cell_counts_once(sd):
    from neuroenc.encoders.incontext import _evidence as evidence

    cov = sd**2 * np.array([[1.0, 0.5], [0.5, 0.7]])
    ratios, noise = np.log(evidence.RATIOS) + 0.3, np.log(evidence._NOISE_SHARES)[:, None] + np.array([0.0, 0.11])
    # The same points, continued far enough, summed one by one.
    steps = ratios[1] - ratios[0], noise[1, 0] - noise[0, 0]
    wide = ratios[0] + steps[0] * np.arange(-60, 100), noise[0] + steps[1] * np.arange(-90, 120)[:, None]
    mean = np.array([0.4, -0.8])
    for v in range(2):
        a, b = np.meshgrid(wide[0], wide[1][:, v], indexing="ij")
        density = multivariate_normal.pdf(np.stack([a + b, b], axis=-1), mean, cov).sum() * steps[0] * steps[1]
        found = evidence._log_lattice_mass((mean, cov), ratios, noise)[v]
        assert found == pytest.approx(np.log(density), abs=1e-6)


@pytest.mark.parametrize("kind", ["prior", "mixture", "places"])
def test_voxels_that_do_not_vary_are_named(kind):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((2, 40, 5)), rng.standard_normal((2, 40, 12))
    Y[1, :, 4] = 2.0
    places = rng.standard_normal((2, 12, 3))
    make = {
        "prior": lambda: WeightPrior.from_responses(list(X), list(Y)),
        "mixture": lambda: PriorMixture.from_responses(list(zip(X, Y)), n_clusters=2),
        "places": lambda: PlacePrior.from_responses(list(X), list(Y), list(places)),
    }
    with pytest.raises(DataError, match=r"1 of 12 voxels do not vary \(first: column 4\)"):
        make[kind]()
