"""Maps of directions: planted topics stay together, other subjects are placed by the first one's map."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import xarray as xr
from sklearn.manifold import trustworthiness

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import direction_map

UMAP = pytest.param("umap", marks=pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed"))


def words(seed=0, topics=8, each=12, d=32):
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(topics), each)
    return kind, rng.standard_normal((topics, d))[kind] + 0.5 * rng.standard_normal((topics * each, d))


@pytest.mark.parametrize("method", ["pca", UMAP])
def test_words_of_a_topic_are_near(method):
    """Mean distance within topics below half of that between them; neighbours trusted more than in a random map."""
    kind, vectors = words()
    found = direction_map(vectors.T, n_components=2, method=method).values
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1)
    same = kind[:, None] == kind[None]
    off = ~np.eye(len(kind), dtype=bool)
    assert apart[same & off].mean() < 0.5 * apart[~same].mean()
    random = np.random.default_rng(1).random(found.shape)
    trust = [trustworthiness(vectors, m, n_neighbors=8, metric="cosine") for m in (found, random)]
    assert trust[0] > trust[1] + 0.2
    if method == "umap":
        pca = direction_map(vectors.T, n_components=2, method="pca").values
        assert trust[0] > trustworthiness(vectors, pca, n_neighbors=8, metric="cosine")


@pytest.mark.parametrize("method", ["pca", UMAP])
def test_other_subjects_are_placed_by_the_first_ones_map(method):
    kind, vectors = words()
    coords = {"voxel": np.arange(96), "subject": ("voxel", np.where(np.arange(96) % 2, "s1", "s2"))}
    weights = xr.DataArray(vectors.T, dims=("feature", "voxel"), coords=coords)
    whole = direction_map(weights, method=method, fit_subject="s1", seed=3)
    alone = direction_map(weights[:, 1::2], method=method, seed=3)
    np.testing.assert_allclose(whole.values[1::2], alone.values)
    assert whole["subject"].values.tolist() == weights["subject"].values.tolist()
    named_once = weights[:, 1::2].drop_vars("subject").assign_coords(subject="s1")
    assert direction_map(named_once, method="pca", fit_subject="s1")["subject"].values.tolist() == ["s1"] * 48
    middle = np.stack([alone.values[kind[1::2] == k].mean(0) for k in range(8)])
    nearest = np.linalg.norm(whole.values[::2, None] - middle[None], axis=-1).argmin(1)
    assert (nearest == kind[::2]).mean() > 0.75


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(DataError, match="too few"):
        direction_map(np.eye(5)[:, :3])
    weights = xr.DataArray(np.eye(8), dims=("feature", "voxel"), coords={"subject": ("voxel", list("aabbccdd"))})
    if find_spec("umap") is None:
        with pytest.raises(ModuleNotFoundError, match=r"neuroenc\[umap\]"):
            direction_map(np.eye(9), method="umap")
    with pytest.raises(ConfigError, match="unknown subject 'x'"):
        direction_map(weights, fit_subject="x", n_components=1)
