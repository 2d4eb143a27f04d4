"""Captions as hypotheses: planted ones are found, p is nominal where nothing is planted, labels decide."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.captions import test_caption as hypothesis
from neuroenc.data import make_features, make_responses

NAMES = [f"thing{k:02d}" for k in range(24)]
N = 200


def embed_text(texts):
    return np.array([[float(n in t) for n in NAMES] + [1.0] for t in texts])


@pytest.fixture(scope="module")
def planted():
    """Images, and voxels of which the k-th answers to the k-th thing, measured with noise in two repeats."""
    rng = np.random.default_rng(8)
    x = np.hstack([rng.standard_normal((N, len(NAMES))), np.full((N, 1), 3.0)])
    images = make_features(x.astype(np.float32), stimulus=[f"s{k}" for k in range(N)])
    coef = xr.DataArray(np.eye(25, 24), dims=("feature", "voxel"), coords={"voxel": np.arange(100, 124)})
    order = np.concatenate([rng.permutation(N), rng.permutation(N)])
    y = (x @ coef.values)[order] + 2.0 * rng.standard_normal((2 * N, 24))
    names = [f"s{k}" for k in order]
    responses = make_responses(y.astype(np.float32), stimulus=names, subject="s1", voxel=coef.voxel.values)
    return images, coef, responses


def table(captions, coef):
    return pd.DataFrame({"voxel": coef["voxel"].values, "caption": captions})


def test_planted_captions_are_found_and_others_are_not(planted):
    images, coef, responses = planted
    told = [f"a {n}" for n in NAMES]
    options = {"embed_text": embed_text, "text_direction": embed_text(told).mean(axis=0) / 2, "others": told}
    found = hypothesis(coef, table(told, coef), images, responses, **options)
    assert (found.q < 0.05).all()
    assert (found.rho_measured > 0.2).all()
    assert (found.top_minus_rest > 0).all()
    assert (found.p_others < 0.1).all()
    # In new order, and shuffled among the voxels: labels decide.
    mixed = responses.isel(presentation=np.arange(2 * N)[::-1], voxel=np.arange(24)[::-1])
    again = hypothesis(coef, table(told, coef), images, mixed, **options)
    np.testing.assert_allclose(again.rho_measured, found.rho_measured, atol=1e-6)
    wrong = hypothesis(coef, table(told[1:] + told[:1], coef), images, responses, **options)
    assert (wrong.q < 0.05).mean() < 0.1
    # One call for all, or one for a voxel: the same.
    one = hypothesis(coef.isel(voxel=[3]), told[3], images, responses, **{**options, "others": ()})
    assert one.loc[0, ["p", "best", "worst"]].tolist() == found.loc[3, ["p", "best", "worst"]].tolist()
    numbers = ["rho_predicted", "rho_measured", "top_minus_rest"]
    assert one.loc[0, numbers].tolist() == pytest.approx(found.loc[3, numbers].tolist())


def test_p_is_nominal_where_no_voxel_answers_to_anything(planted):
    """Fixed before it was looked at: of 480 captions, 2 to 9 % below .05."""
    images, coef, _ = planted
    rng = np.random.default_rng(3)
    noise = make_responses(
        rng.standard_normal((N, 24)).astype(np.float32), stimulus=images.stimulus.values, voxel=coef.voxel.values
    )
    told = [f"a {a} and a {b}" for a, b in zip(NAMES[:20], NAMES[4:])]
    found = hypothesis(coef, told, images, noise, embed_text=embed_text, n_permutations=199, seed=1)
    assert len(found) == 480
    assert 0.02 <= (found.p < 0.05).mean() <= 0.09


def test_what_is_refused(planted):
    images, coef, responses = planted
    options = {"embed_text": embed_text}
    with pytest.raises(DataError, match=r"2 of 200 images were seen .*'s1'"):
        hypothesis(coef, "a thing01", images, seen=["s1", "s7", "other"], **options)
    with pytest.raises(DataError, match="19 images are too few"):
        hypothesis(coef, "a thing01", images[:19], **options)
    with pytest.raises(DataError, match="of voxels that the encoder does not have"):
        hypothesis(coef[:, 1:], table(NAMES, coef), images, **options)
    with pytest.raises(DataError, match="responses lack 1 of 24 voxels"):
        hypothesis(coef, "a thing01", images, responses[:, 1:], **options)
    with pytest.raises(DataError, match="have no features"):
        hypothesis(coef, "a thing01", images[:100], responses, **options)
    assert not hypothesis.__test__
