"""Keyword decoder: what is informative is said once, whatever the blocks, and what cannot be is refused."""

import numpy as np
import pandas as pd
import pytest

from neuroenc._core.errors import DataError
from neuroenc.captions import Decoder, KeywordDecoder, project

THINGS = ["face", "house", "dog", "pizza", "sign", "hand", "bus", "kite"]
COLOURS = ["red", "blue", "green", "small"]


def embed_text(texts):
    """A direction for each thing, a weaker one for each colour, and what all texts share."""
    return np.array([[float(n in t) for n in THINGS] + [0.3 * (c in t) for c in COLOURS] + [1.0] for t in texts])


@pytest.fixture(scope="module")
def bank():
    """Two captions for each of 400 scenes of two things; images lie where their texts do, by another gap."""
    rng = np.random.default_rng(5)
    scenes = [(rng.choice(THINGS, 2, replace=False), rng.choice(COLOURS, 2)) for _ in range(400)]
    told = [f"a {c[0]} {t[0]} near a {c[1]} {t[1]}" for t, c in scenes] + [f"the {t[0]} and {t[1]}" for t, _ in scenes]
    ids = [f"s{k}" for k in range(400)] * 2
    images = embed_text(told[:400]) * 7.0
    images[:, -1] *= -1
    return told, ids, images


@pytest.fixture(scope="module")
def decoder(bank):
    told, ids, _ = bank
    return KeywordDecoder(told, embed_text(told), ids, embed_text=embed_text, engine="rules")


def weights():
    """Voxels of one thing each, then of the first and the third."""
    likes = np.zeros((len(THINGS) + len(COLOURS) + 1, len(THINGS) + 1))
    likes[: len(THINGS), : len(THINGS)] = np.eye(len(THINGS))
    likes[[0, 2], -1] = 1
    return likes


def test_what_a_voxel_prefers_is_said_first_and_once(decoder, bank):
    assert isinstance(decoder, Decoder)
    found = decoder.decode(project(weights(), bank[2], progress=False), top=2, coef=weights())
    best = found[found["rank"] == 1].set_index("voxel")
    for voxel, thing in enumerate(THINGS):
        words = best.loc[voxel, "caption"].split()
        assert words[: words.index(thing)].count("a") == 1, "the first keyword names it"
        assert words.count(thing) == 1
        assert any(thing in bank[0][int(i[1:])] for i in best.loc[voxel, "caption_id"].split(";"))
    both = best.loc[len(THINGS), "caption"]
    assert "face" in both
    assert "dog" in both
    assert found["predicted"].notna().all()
    assert found.groupby("voxel")["caption"].nunique().eq(found.groupby("voxel").size()).all()


def test_blocks_and_company_change_nothing(decoder, bank):
    told, ids, images = bank
    whole = decoder.decode(project(weights(), images, progress=False), top=3)
    small = KeywordDecoder(told, embed_text(told), ids, embed_text=embed_text, engine="rules", max_memory=1 << 15)
    pd.testing.assert_frame_equal(small.decode(project(weights(), images, progress=False), top=3), whole)
    one = decoder.decode(project(weights()[:, 3:4], images, progress=False), top=3).drop(columns="voxel")
    pd.testing.assert_frame_equal(one, whole[whole["voxel"] == 3].drop(columns="voxel").reset_index(drop=True))


def test_voxels_without_weights_get_no_caption_and_what_is_refused(decoder, bank):
    told, ids, images = bank
    likes = weights()
    likes[:, 1] = 0
    with pytest.warns(UserWarning, match="1 of 9 voxels have zero"):
        projection = project(likes, images, progress=False)
    found = decoder.decode(projection, top=1)
    assert found["voxel"].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(DataError, match="must share one space"):
        decoder.decode(project(np.eye(4), np.eye(4) + 0.1, progress=False))
    with pytest.raises(DataError, match="no phrase stands in captions of 500 images"):
        KeywordDecoder(told, embed_text(told), ids, embed_text=embed_text, engine="rules", least=500)
    with pytest.raises(DataError, match="embeddings of shape"):
        KeywordDecoder(told, embed_text(told)[1:], ids, embed_text=embed_text)
