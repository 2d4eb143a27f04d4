"""Components of weights and answers to words, on planted directions and planted category voxels."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import TextEmbedder
from neuroenc.encoders import InContextEncoder, RidgeEncoder
from neuroenc.encoders.incontext import confusion, make_model, text_selectivity, weight_components

PROMPTS = {
    "face": ["face of a man", "face of a woman", "face of a child", "face of a cat", "face of a dog"],
    "body": ["person", "runner", "dancer", "surfer", "hand"],
    "place": ["house", "church", "mountain", "beach", "corridor"],
    "word": ["sign", "poster", "letter", "book", "newspaper"],
    "food": ["pizza", "cake", "burger", "apple", "banana"],
}
EXPECTED = {
    "OFA": "face",
    "FFA": "face",
    "EBA": "body",
    "FBA": "body",
    "PPA": "place",
    "OPA": "place",
    "RSC": "place",
    "VWFA": "word",
    "food": "food",
}


class Words:
    """Embeds a text as the sum of its words' fixed vectors, off the unit sphere."""

    def __init__(self, width=12):
        self.width, self.table = width, {}

    def embed(self, texts):
        rows = [sum(self.vector(w) for w in t.split()) for t in texts]
        return xr.DataArray(np.array(rows), dims=("stimulus", "feature"))

    def vector(self, word):
        seed = [ord(c) for c in word]
        return self.table.setdefault(word, 3 * np.random.default_rng(seed).standard_normal(self.width))


def test_components_find_planted_axes_and_carry_over():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((20, 3)))[0].T
    mix = rng.standard_normal((3, 400)) * np.array([[3.0], [2.0], [1.0]])
    first = axes.T @ mix + 0.01 * rng.standard_normal((20, 400))
    found = weight_components(first * rng.uniform(0.1, 10, 400))  # strength does not matter
    assert np.linalg.svd(found.components @ axes.T)[1].min() > 0.99
    assert found.explained.sum() > 0.99
    assert (found.components[np.arange(3), np.abs(found.components).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(3), atol=1e-10)
    # Another subject's voxels of the same direction get the same colour.
    second = 5 * first[:, ::-1]
    np.testing.assert_allclose(found.rgb(second), found.rgb(first)[::-1], atol=1e-9)
    colours = found.rgb(first)
    assert colours.values.min() == 0
    assert colours.values.max() == 1
    assert colours.std("voxel").min() > 0.15


def test_components_skip_voxels_without_weights_and_keep_labels():
    rng = np.random.default_rng(1)
    coef = xr.DataArray(rng.standard_normal((6, 30)), dims=("feature", "voxel"), coords={"roi": ("voxel", ["a"] * 30)})
    whole = weight_components(coef[:, 2:])
    coef[:, :2] = 0.0
    found = weight_components(coef)
    np.testing.assert_allclose(np.abs(found.components), np.abs(whole.components), atol=1e-10)
    assert (found.rgb(coef).values[:2] == 0.5).all()
    assert np.isnan(found.scores(coef).values[:, 0]).all()
    assert found.scores(coef)["roi"].values.tolist() == ["a"] * 30
    weighted = weight_components(coef, weight=np.r_[np.zeros(10), np.ones(20)])
    np.testing.assert_allclose(
        np.abs(weighted.components), np.abs(weight_components(coef[:, 10:]).components), atol=1e-10
    )
    with pytest.raises(DataError, match="features"):
        found.scores(coef[:4])
    with pytest.raises(ConfigError, match="components"):
        weight_components(coef, n=7)


def test_selectivity_is_the_response_to_the_mean_prompt():
    words, rng = Words(), np.random.default_rng(2)
    encoder = RidgeEncoder(alphas=[1.0]).fit(rng.standard_normal((50, 12)), rng.standard_normal((50, 4)))
    prompts, templates = {"a": ["x", "y"], "b": ["z"]}, ("see {}", "{}")
    found = text_selectivity(encoder, prompts, words, templates=templates, centre=False)

    def unit(v):
        return v / np.linalg.norm(v)

    texts = {"a": ["see x", "x", "see y", "y"], "b": ["see z", "z"]}
    vectors = [unit(np.mean([unit(words.embed([t]).values[0]) for t in texts[c]], axis=0)) for c in "ab"]
    np.testing.assert_allclose(found, encoder.predict(np.array(vectors)), atol=1e-5)
    centred = text_selectivity(encoder, prompts, words, templates=templates)
    np.testing.assert_allclose(centred, found - found.mean("category"), atol=1e-5)


def test_selectivity_refuses_what_it_cannot_use():
    coef, words = np.ones((12, 3)), Words()
    for prompts in ({}, {"a": "x"}, {"a": []}):
        with pytest.raises(ConfigError, match="prompts"):
            text_selectivity(coef, prompts, words)
    with pytest.raises(ConfigError, match="templates"):
        text_selectivity(coef, {"a": ["x"]}, words, templates=["no place"])
    with pytest.raises(DataError, match="12 dimensions"):
        text_selectivity(np.ones((5, 3)), {"a": ["x"]}, words)


def test_confusion_counts_and_null():
    rng = np.random.default_rng(3)
    values = xr.DataArray(
        rng.standard_normal((3, 300)),
        dims=("category", "voxel"),
        coords={"category": ["face", "place", "food"], "roi": ("voxel", ["F"] * 100 + ["P"] * 150 + [""] * 50)},
    )
    table = confusion(values, expected={"F": "face", "P": ["place", "food"]})
    preferred = values.values.argmax(axis=0)
    assert table.loc["F", "face"] == pytest.approx((preferred[:100] == 0).mean())
    assert table.loc["P", "accuracy"] == pytest.approx((preferred[100:250] > 0).mean())
    assert table.loc["all", "accuracy"] == pytest.approx(table["accuracy"].iloc[:2].mean())
    assert table["n_voxels"].tolist() == [100, 150, 250]
    assert table.loc["F", "null_accuracy"] == pytest.approx((preferred[:250] == 0).mean(), abs=0.01)
    assert (table["p"] > 0.01).all()
    values[0, :100] += 3
    assert confusion(values, expected={"F": "face", "P": ["place", "food"]}).loc["all", "p"] < 0.01
    with pytest.raises(ConfigError, match="faec"):
        confusion(values, expected={"F": "faec"})
    with pytest.raises(DataError, match="no voxel"):
        confusion(values, expected={"FFA": "face"})


@pytest.fixture(scope="module")
def world():
    from neuroenc.study.incontext.tasks import world_tasks

    return world_tasks(n_train_subjects=1, n_train=150, n_pool=400, n_query=50, n_voxels=200, own=0.0)


def test_words_find_the_planted_category_regions(world):
    new = world.test[0]
    embedder = TextEmbedder("world", cache=False, progress=False)
    encoder = InContextEncoder(make_model("small", n_features=128, dim=16, depth=1), device="cpu").fit(new.X, new.Y)
    found = text_selectivity(encoder, PROMPTS, embedder)
    table = confusion(found, expected=EXPECTED, n_permutations=200)
    assert table.loc["all", "accuracy"] > 0.8
    assert table.loc["all", "null_accuracy"] < 0.35
    assert table.loc["all", "p"] < 0.01
    shuffled = found.assign_coords(roi=("voxel", np.random.default_rng(0).permutation(found["roi"].values)))
    assert confusion(shuffled, expected=EXPECTED, n_permutations=200).loc["all", "p"] > 0.01


def test_colours_of_a_region_are_alike(world):
    new = world.test[0]
    encoder = RidgeEncoder(alphas=[3.0]).fit(new.X, new.Y)
    other = RidgeEncoder(alphas=[3.0]).fit(world.train[0].X, world.train[0].Y)
    colours = weight_components(other).rgb(encoder)  # fitted on one subject, seen on another
    roi = colours["roi"].values
    families = [np.isin(roi, part) for part in (["FFA", "OFA"], ["PPA", "OPA", "RSC"], ["EBA", "FBA"])]
    middle = np.array([colours.values[m].mean(axis=0) for m in families])
    within = np.mean([np.linalg.norm(colours.values[m] - c, axis=1).mean() for m, c in zip(families, middle)])
    between = np.mean([np.linalg.norm(a - b) for i, a in enumerate(middle) for b in middle[:i]])
    assert between > 1.5 * within
