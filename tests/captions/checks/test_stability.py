"""Agreement of captions among folds, bootstraps and halves."""

import numpy as np
import pytest
import xarray as xr

from neuroenc._util.errors import DataError
from neuroenc.captions import RetrievalDecoder, caption_stability, project
from neuroenc.encoders import resampled_rows, ridge_weights

NAMES = ["face", "house", "dog", "pizza", "sign", "hand"]


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
    voxels, summary = caption_stability({"halves": variants}, decode, embed, progress=False)
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
    _, summary = caption_stability({"halves": only}, decode, embed, progress=False)
    assert abs(summary.loc[0, "mean"] - summary.loc[0, "shuffled_weights"]) < 0.15


def test_agreement_does_not_depend_on_the_order_of_voxels(study):
    variants, decode, embed, *_ = study
    order = np.random.default_rng(2).permutation(40)
    mixed = [(coef.isel(voxel=order), bank) for coef, bank in variants]
    one, _ = caption_stability({"halves": variants}, decode, embed, progress=False)
    two, _ = caption_stability({"halves": mixed}, decode, embed, progress=False)
    np.testing.assert_allclose(two.set_index("voxel")["halves"].loc[one["voxel"]], one["halves"])


def test_variants_must_be_of_the_same_voxels(study):
    variants, decode, embed, *_ = study
    with pytest.raises(DataError, match="at least two"):
        caption_stability({"folds": variants[:1]}, decode, embed, progress=False)
    other = variants[1][0].assign_coords(voxel=np.arange(40) + 1)
    with pytest.raises(DataError, match="different voxels"):
        caption_stability({"folds": [variants[0], (other, None)]}, decode, embed, progress=False)
    with pytest.raises(DataError, match="gave 1 captions"):
        caption_stability({"folds": variants}, lambda w, b: ["x"], embed, progress=False)
