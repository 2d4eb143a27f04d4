"""Aspects of captions: words against a grammar that knows them, bands against loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.analysis._aspects import ASPECTS, aspect_bands, caption_aspects
from neuroenc.captions.text._phrases import has_spacy
from neuroenc.data import Stimuli
from neuroenc.encoders import BandedRidgeEncoder
from planted_aspects import aspect_captions

pytestmark = pytest.mark.skipif(not has_spacy(), reason="spaCy and its English model are not installed")


def random_vectors(texts, width=6):
    """A vector of its own for every word, the same in every call."""
    return np.stack([np.random.default_rng(list(text.encode())).standard_normal(width) for text in texts])


def unit(text):
    vector = random_vectors([text])[0]
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def planted():
    return aspect_captions(300, seed=11)


@pytest.fixture(scope="module")
def assigned(planted):
    return caption_aspects([c.text for c in planted])


def keys(table):
    return set(table[["stimulus", "aspect", "word"]].itertuples(index=False, name=None))


def pairs(planted):
    return {(str(n), a, w) for n, c in enumerate(planted) for a, words in c.aspects.items() for w in words}


@pytest.mark.parametrize("aspect", ASPECTS)
def test_planted_words_are_found_in_their_aspect(planted, assigned, aspect):
    want = {p for p in pairs(planted) if p[1] == aspect}
    found = keys(assigned[assigned["aspect"] == aspect])
    assert len(want) > 100
    assert len(want & found) / len(want) >= 0.9
    assert len(want & found) / len(found) >= 0.9


def test_a_shuffled_assignment_fails_the_same_count(planted, assigned):
    moved = assigned.assign(aspect=np.random.default_rng(0).permutation(assigned["aspect"].to_numpy()))
    assert len(pairs(planted) & keys(moved)) / len(pairs(planted)) < 0.5


@pytest.mark.parametrize(
    ("caption", "want"),
    [
        (
            "A couple of brown and white dogs are laying next to a street sign.",
            "objects dog, objects street sign, actions lay, attributes brown, attributes white",
        ),
        ("A kitchen table in a living room", "objects kitchen table, scene living room"),
        ("a close up of a hot dog", "objects hot dog"),
        ("Two men playing tennis on a tennis court", "objects man, objects tennis, scene tennis court, actions play"),
        ("The bus is red and waits at a station", "objects bus, scene station, actions wait, attributes red"),
        ("there is nothing to see here", ""),
    ],
)
def test_captions_that_people_write(caption, want):
    found = caption_aspects([caption])
    assert set(found["aspect"] + " " + found["word"]) - {"objects nothing"} == {w for w in want.split(", ") if w}


def test_each_word_of_a_caption_has_one_aspect(assigned):
    once = assigned.groupby(["stimulus", "caption"])["word"]
    assert (once.nunique() == once.size()).all()


def test_scene_words_of_the_user():
    found = caption_aspects(["a dog in a kitchen beside a sushi bar"], scene=["Dog", "sushi bar"])
    assert found["aspect"].tolist() == ["scene", "objects", "scene"]


def test_several_captions_of_a_stimulus():
    texts = [["a red bus", "a bus on a street"], ["a cat"]]
    found = caption_aspects(texts, ids=["x", "y"])
    assert found[["stimulus", "caption"]].drop_duplicates().values.tolist() == [["x", 0], ["x", 1], ["y", 0]]
    stimuli = Stimuli(["x", "y"], captions=texts)
    assert caption_aspects(stimuli).equals(found)
    assert caption_aspects(["a red bus", "a cat", "a bus on a street"], ids=["x", "y", "x"])["word"].tolist() == [
        "bus",
        "red",
        "cat",
        "bus",
        "street",
    ]


def test_bands_are_means_of_unit_vectors():
    texts = [["a red bus", "a bus on a street"], ["a cat sleeping"], ["a red wooden chair"]]
    x = aspect_bands(texts, random_vectors, ["x", "y", "z"])
    assert (x.dims, x.shape, x.dtype) == (("stimulus", "feature"), (3, 24), np.float32)
    assert x["band"].values.tolist() == np.repeat(ASPECTS, 6).tolist()
    want = np.zeros((3, 4, 6))
    want[0, [0, 1, 3]] = unit("street"), unit("bus"), unit("red")
    want[1, [1, 2]] = unit("cat"), unit("sleep")
    want[2, [1, 3]] = unit("chair"), (unit("red") + unit("wooden")) / 2
    np.testing.assert_allclose(x.values.reshape(3, 4, 6), want, atol=1e-6)
    assert json.loads(x.attrs["empty"]) == {"scene": 0.667, "objects": 0.0, "actions": 0.667, "attributes": 0.333}
    normal = aspect_bands(texts, random_vectors, ["x", "y", "z"], normalise=True).values.reshape(3, 4, 6)
    length = np.linalg.norm(want, axis=2, keepdims=True)
    np.testing.assert_allclose(normal, want / np.where(length > 0, length, 1), atol=1e-6)


def test_permuted_captions_give_permuted_rows(planted):
    texts, ids = [c.text for c in planted[:60]], [f"s{i}" for i in range(60)]
    order = np.random.default_rng(1).permutation(60)
    one = aspect_bands(texts, random_vectors, ids)
    two = aspect_bands([texts[i] for i in order], random_vectors, [ids[i] for i in order])
    np.testing.assert_array_equal(one.sel(stimulus=two["stimulus"]).values, two.values)


def test_some_aspects_in_another_order(planted):
    texts = [c.text for c in planted[:40]]
    whole = aspect_bands(texts, random_vectors)
    part = aspect_bands(texts, random_vectors, aspects=("attributes", "scene"))
    assert list(dict.fromkeys(part["band"].values.tolist())) == ["attributes", "scene"]
    for band in ("attributes", "scene"):
        np.testing.assert_array_equal(part.sel(feature=part["band"] == band), whole.sel(feature=whole["band"] == band))


def test_missing_aspects_are_zero_and_said():
    with pytest.warns(UserWarning, match="no caption of 3 stimuli has a word of actions"):
        x = aspect_bands(["a red bus in the street", "an old cat in a kitchen", "a dog"], random_vectors)
    assert (x.sel(feature=x["band"] == "actions") == 0).all()
    assert json.loads(x.attrs["empty"])["actions"] == 1.0
    # A stimulus without any word keeps its row.
    rows = aspect_bands(["a cat", "see this"], random_vectors, aspects=["objects"])
    assert (rows[1] == 0).all()
    with pytest.raises(DataError, match="2 stimuli have no word of actions"):
        aspect_bands(["a cat", "a dog"], random_vectors, aspects=["actions"])


def test_bands_go_through_files_and_banded_ridge(planted, tmp_path):
    x = aspect_bands([c.text for c in planted], random_vectors)
    data.save(x, tmp_path / "bands.nc")
    again = data.load(tmp_path / "bands.nc")
    assert again["band"].values.tolist() == x["band"].values.tolist()
    assert again.attrs["empty"] == x.attrs["empty"]
    scene = (x["band"] == "scene").values
    y = x.values[:, scene] @ np.random.default_rng(0).standard_normal((6, 3))
    encoder = BandedRidgeEncoder(bands=again["band"].values, n_candidates=8).fit(again, y)
    assert encoder.band_names_.tolist() == list(ASPECTS)
    assert (encoder.explained_by_band(again, y).sel(band="scene") > 0.95).all()


def test_an_all_zero_band_is_fitted():
    texts = [f"a {look} {thing}" for look in ("red", "old", "wet") for thing in ("cat", "dog", "bus", "car")]
    with pytest.warns(UserWarning, match="scene, actions"):
        x = aspect_bands(texts, random_vectors)
    y = x.values @ np.random.default_rng(0).standard_normal((24, 2))
    encoder = BandedRidgeEncoder(bands=x["band"].values, n_candidates=8).fit(x, y)
    assert np.isfinite(encoder.coef_).all()


@pytest.mark.parametrize(
    ("captions", "settings", "error", "message"),
    [
        (["a cat"], {"aspects": ["object"]}, ConfigError, "did you mean 'objects'"),
        (["a cat"], {"aspects": []}, ConfigError, "empty or name one twice"),
        (["a cat"], {"aspects": ["objects", "objects"]}, ConfigError, "twice"),
        (["a cat"], {"ids": ["a", "b"]}, DataError, "2 ids for 1 captions"),
        ("a cat", {}, DataError, "one string"),
        ([], {}, DataError, "0 captions"),
        (Stimuli(["a"]), {}, DataError, "have no captions"),
        (Stimuli(["a"], captions=[["a cat"]]), {"ids": ["b"]}, ConfigError, "ids of their own"),
    ],
)
def test_bad_input(captions, settings, error, message):
    with pytest.raises(error, match=message):
        aspect_bands(captions, random_vectors, **settings)
