"""ConSE with CLIP's text vectors of concept names."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.data import load_dataset
from neuroenc.embedding import ImageEmbedder, TextEmbedder

QUIET = {"cache": False, "progress": False}


@pytest.fixture
def concepts(mirror, monkeypatch):
    monkeypatch.setenv("NEUROENC_MIRROR", str(mirror))


def test_texts_are_means_of_the_concepts_that_they_name(concepts):
    found = load_dataset("clip-text-concepts", progress=False)
    raw = found.extra["vectors"].values / np.linalg.norm(found.extra["vectors"].values, axis=1, keepdims=True)
    names = found.stimuli.table["name"].str.lower().values

    def centred(name):
        return raw[names == name].mean(0) - raw.mean(0)

    embedder = TextEmbedder("conse-concepts", **QUIET)
    x = embedder.embed(["A dog, and two elephants!", "an alarm clock"]).values
    np.testing.assert_allclose(x[0], (centred("dog") + centred("elephant")) / 2, atol=1e-6)
    np.testing.assert_allclose(x[1], centred("alarm clock"), atol=1e-6)
    with pytest.warns(UserWarning, match="1 of 2 texts name none"):
        assert not embedder.embed(["of the", "a cat"]).values[0].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*name none of")
def test_captions_find_their_photographs(concepts):
    stimuli = load_dataset("coco-permissive", progress=False).stimuli
    sides = ImageEmbedder("conse-concepts", **QUIET).embed(stimuli), TextEmbedder("conse-concepts", **QUIET)
    z, t = sides[0].values, sides[1].embed_captions(stimuli).values
    z, t = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (z, t))
    scores = t @ z.T
    first = (scores > np.diag(scores)[:, None]).sum(1) < 10
    print(f"among the first ten: {first.mean():.3f}")
    assert first.mean() > 0.7
    shuffled = np.roll(z, 1, axis=0)
    assert ((t @ shuffled.T > np.diag(t @ shuffled.T)[:, None]).sum(1) < 10).mean() < 0.3
