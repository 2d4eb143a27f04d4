"""Agreement of captions among folds, bootstraps and halves."""

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.captions import RetrievalDecoder, project, stability_jobs
from neuroenc.captions.checks._gate import sample_voxels
from neuroenc.captions.checks._scoring import score_stability
from neuroenc.encoders import resampled_rows, ridge_weights

NAMES = ["face", "house", "dog", "pizza", "sign", "hand"]


def stability(kinds, decode, embed):
    """Captions of every job, scored."""
    jobs = stability_jobs(kinds)
    told = [(job.kind, job.null, decode(job.weights, job.bank)) for job in jobs]
    return score_stability(jobs[0].weights["voxel"].values, told, embed)


@pytest.fixture(scope="module")
def study():
    """Voxels that want one of six concepts: half of them well measured, half of them noise."""
    rng = np.random.default_rng(0)
    concepts = np.linalg.qr(rng.standard_normal((32, 6)))[0].T
    images = concepts[rng.integers(0, 6, 600)] + 0.1 * rng.standard_normal((600, 32))
    X = images / np.linalg.norm(images, axis=1, keepdims=True)
    wanted = rng.integers(0, 6, 40)
    clean = X @ concepts[wanted].T
    noise = rng.standard_normal(clean.shape)
    noisy = np.arange(40) >= 20
    Y = np.where(noisy, noise, clean + 0.2 * noise)
    decoder = RetrievalDecoder(NAMES, concepts, centre=False)
    bank = images[:300]

    def decode(weights, bank):
        projection = project(weights, bank, progress=False)
        return decoder.decode(projection, top=1)["caption"].tolist()

    vectors = dict(zip(NAMES, concepts))
    coef = [ridge_weights(X[r], Y[r], 1.0)[0] for r in resampled_rows(np.arange(600), "halves", 2, seed=1)]
    variants = [(xr.DataArray(c, dims=("feature", "voxel"), coords={"voxel": np.arange(40)}), bank) for c in coef]
    return variants, decode, lambda t: np.array([vectors[x] for x in t]), noisy


def test_measured_voxels_keep_their_caption_and_noise_does_not(study):
    variants, decode, embed, noisy = study
    voxels, summary = stability({"halves": variants}, decode, embed)
    assert (voxels.loc[~noisy, "halves"] > 0.99).all()
    assert (voxels.loc[~noisy, "halves_same"] == 1).all()
    # One in six by chance, as the concepts' vectors are orthogonal.
    assert voxels.loc[noisy, "halves"].mean() < 0.45
    row = summary.iloc[0]
    assert row["n_variants"] == 4
    assert row["shuffled_weights"] < 0.4
    assert row["shuffled_voxels"] < 0.4
    assert row["mean"] > row["shuffled_voxels"] + 0.2
    assert row["p"] < 0.05


def test_noise_alone_agrees_as_its_nulls_do(study):
    variants, decode, embed, noisy = study
    only = [(coef.isel(voxel=noisy), bank) for coef, bank in variants]
    _, summary = stability({"halves": only}, decode, embed)
    assert abs(summary.loc[0, "mean"] - summary.loc[0, "shuffled_weights"]) < 0.15


def test_agreement_does_not_depend_on_the_order_of_voxels(study):
    variants, decode, embed, *_ = study
    order = np.random.default_rng(2).permutation(40)
    mixed = [(coef.isel(voxel=order), bank) for coef, bank in variants]
    one, _ = stability({"halves": variants}, decode, embed)
    two, _ = stability({"halves": mixed}, decode, embed)
    np.testing.assert_allclose(two.set_index("voxel")["halves"].loc[one["voxel"]], one["halves"])


def test_the_interval_holds_the_mean_of_all_voxels():
    rng = np.random.default_rng(0)
    held = []
    for seed in range(60):
        # Voxels whose captions are one of two words, more or less often the same.
        share = rng.uniform(0.2, 1, 600)
        said = (rng.random((4, 600)) > share).astype(int)
        told = [("x", False, np.array(["a", "b"])[row].tolist()) for row in said]
        null = [("x", True, ["a", "b", "a"]) for _ in said]
        embed = lambda texts: np.array([[1.0, 0.0] if t == "a" else [0.0, 1.0] for t in texts])  # noqa: E731
        all_voxels = score_stability(np.arange(600), told + null, embed, n_shuffles=2)[1].loc[0, "mean"]
        at = np.flatnonzero(sample_voxels(["r"] * 600, 80, seed))
        part = [(k, n, [t[v] for v in at]) for k, n, t in told]
        row = score_stability(at, part + null, embed, n_shuffles=2, seed=seed)[1].iloc[0]
        held.append(row["low"] <= all_voxels <= row["high"])
    assert 0.87 < np.mean(held) <= 1


def test_samples_are_stratified_and_of_the_region_alone():
    regions = ["a"] * 50 + ["b"] * 25 + ["c"] * 2 + ["d"] * 300
    chosen = sample_voxels(regions, 40, seed=3)
    counts = [int(chosen[np.array(regions) == r].sum()) for r in "abcd"]
    assert sum(counts) == 40
    assert min(counts) == 1
    np.testing.assert_allclose(counts, 40 * np.array([50, 25, 2, 300]) / 377, atol=1.2)
    more = sample_voxels([*regions, *["e"] * 3], 43, seed=3)
    assert (more[:50] & chosen[:50]).sum() == min(more[:50].sum(), chosen[:50].sum())
    assert sample_voxels(regions, None).all()
    assert sample_voxels(regions, 377).all()
    # More regions than voxels: the largest are there.
    assert sample_voxels(regions, 2)[77:].sum() == 2
    assert sample_voxels([""] * 5, 3).sum() == 3


def test_variants_must_be_of_the_same_voxels(study):
    variants, decode, embed, *_ = study
    with pytest.raises(DataError, match="at least two"):
        stability({"folds": variants[:1]}, decode, embed)
    other = variants[1][0].assign_coords(voxel=np.arange(40) + 1)
    with pytest.raises(DataError, match="different voxels"):
        stability({"folds": [variants[0], (other, None)]}, decode, embed)
