"""Stimuli that carry the n-grams of voxels: by their captions' words, by a decoder, and BM25 beside."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("torch")
pytest.importorskip("bm25s")

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import (
    NGramRetriever,
    PrefixDecoder,
    make_language_model,
    named_concepts,
    retrieve_stimuli,
    train_prefix,
    train_retriever,
)
from neuroenc.retrieval import CaptionCorpus, LexicalIndex, pseudo_queries

TEXTS = ["a red cat on a wall", "a cat asleep", "a dog by a tree", "a brown dog", "a dog and a ball", "a tall tower"]
IDS = ["s1", "s1", "s2", "s2", "s3", "s4"]


@pytest.fixture(scope="module")
def corpus():
    return CaptionCorpus(TEXTS, IDS, {"s1": ["cat"], "s2": ["dog"], "s3": ["dog"], "s4": ["building"]})


@pytest.fixture(scope="module")
def decoder():
    lm, tokenizer = make_language_model([f"a photo of {t}" for t in TEXTS], width=16, layers=1, heads=2)
    made = PrefixDecoder(lm, tokenizer, 3, prefix_length=2, stop="<end>", device="cpu")
    seen = np.eye(3)[[0, 0, 1, 1, 1, 2]]
    train_prefix(
        made, seen, [f"a photo of {t}" for t in TEXTS], epochs=60, lr=0.02, warmup=0, batch_size=6, progress=False
    )
    return made


def said(*captions, voxels=None):
    frame = pd.DataFrame({"voxel": voxels or range(len(captions)), "rank": 1, "caption": captions})
    return frame.assign(roi=[f"R{k}" for k in range(len(captions))])


def projected(rows, voxels):
    return xr.Dataset({"embedding": (("voxel", "feature"), np.asarray(rows, float))}, coords={"voxel": voxels})


def test_bm25_stands_beside_with_the_rank_it_gives_each_answer(corpus):
    captions = pd.concat([said("A red cat."), said("A dog.").assign(rank=2)], ignore_index=True)
    found = retrieve_stimuli(captions, corpus, levels=["caption", "image"], top=4, alpha=1.0, smoothing=0.0)
    for level in ("image", "caption"):
        mine = found[found["level"] == level]
        texts, ids = corpus.documents(level)
        index = LexicalIndex(texts, ids)
        scores, rows = index.search(["A red cat.. A dog."], len(index))
        order = [name for name, s in zip(index.names(rows[0]).tolist(), scores[0]) if s > 0]
        assert mine["bm25_id"].tolist() == order[:4] + [""] * (len(mine) - len(order[:4]))
        assert mine["rank"].tolist() == list(range(1, len(mine) + 1))
        for name, rank in zip(mine["id"], mine["bm25_rank"]):
            assert rank == (order.index(name) + 1 if name in order else 0)
    assert set(found["roi"]) == {"R0"}
    first = found[(found["level"] == "image") & (found["rank"] == 1)].iloc[0]
    assert (first["id"], first["text"]) == ("s1", "a red cat on a wall")
    assert "red cat" in first["ngrams"]


def test_a_decoder_s_ngrams_lead_to_what_its_embedding_was_trained_on(corpus, decoder):
    captions = said("nothing here", "nor here", "no", voxels=[9, 4, 7])
    # Matched by label: the projection has the voxels in another order, and one more.
    projection = projected([[0, 0, 1], [0, 1, 0], [1, 1, 1], [1, 0, 0]], [7, 4, 5, 9])
    found = retrieve_stimuli(captions, corpus, projection, decoder, top=2, alpha=1.0, smoothing=0.0)
    first = found[found["rank"] == 1].set_index(["voxel", "level"])
    assert [first.loc[(v, "image"), "id"] for v in (9, 7)] == ["s1", "s4"]
    assert first.loc[(4, "image"), "id"] in ("s2", "s3")
    assert [first.loc[(v, "category"), "id"] for v in (9, 4, 7)] == ["cat", "dog", "building"]
    assert (found["bm25_rank"] == 0).all(), "no word of these captions is in the corpus"
    assert first.loc[(9, "image"), "roi"] == "R0"
    # One pass of writing serves all levels, and says what the retriever says by itself.
    alone = NGramRetriever(corpus, decoder, alpha=1.0, smoothing=0.0).search_voxels(projection, top=2)
    alone = alone.set_index(["voxel", "rank"])
    for row in found[(found["level"] == "image") & (found["id"] != "")].itertuples():
        assert (row.id, row.ngrams) == tuple(alone.loc[(row.voxel, row.rank), ["id", "ngrams"]])
        assert row.score == pytest.approx(alone.loc[(row.voxel, row.rank), "score"])


def test_a_trained_retriever_answers_with_names_and_its_own_prompts(corpus, tmp_path):
    lm, tokenizer = make_language_model(TEXTS, width=16, layers=1, heads=2)
    made = PrefixDecoder(lm, tokenizer, 3, prefix_length=2, stop="<end>", device="cpu")
    kinds = ("cat", "dog", "tower")
    pairs = pseudo_queries(corpus, ["inner", "lead"], levels=["image", "category"])

    def embed(texts):
        return np.array([[float(k in t) for k in kinds] for t in texts])

    train_retriever(made, pairs, embed, prompt="continuous", epochs=80, lr=0.02, warmup=0, progress=False)
    retriever = PrefixDecoder.load(made.save(tmp_path), device="cpu")
    projection = projected(np.eye(3), [0, 1, 2])
    options = {"top": 1, "alpha": 1.0, "smoothing": 0.0}
    found = retrieve_stimuli(said("a", "b", "c"), corpus, projection, retriever, **options)
    first = found.set_index(["voxel", "level"])["id"]
    assert [first[(v, "category")] for v in range(3)] == ["cat", "dog", "building"]
    assert first[(0, "image")] == "s1"
    names = found[found["level"] == "category"]
    assert (names["score"] <= 0).all(), "log-probabilities of names"


def test_levels_that_the_corpus_lacks_are_left_out_and_others_refused(corpus, decoder):
    bare = CaptionCorpus(TEXTS, IDS)
    assert set(retrieve_stimuli(said("a dog"), bare)["level"]) == {"image", "caption"}
    with pytest.raises(ConfigError, match="unknown level 'images'"):
        retrieve_stimuli(said("a dog"), corpus, levels=["images"])
    with pytest.raises(ConfigError, match="a decoder without a projection"):
        retrieve_stimuli(said("a dog"), corpus, decoder=decoder)
    with pytest.raises(DataError, match="lacks 1 of 1 captioned voxels"):
        retrieve_stimuli(said("a dog"), corpus, projected([[1, 0, 0]], [3]), decoder)
    with pytest.raises(ConfigError, match="writes names whole"):
        NGramRetriever(corpus, decoder, level="category").write(np.eye(3))


def test_concepts_are_those_that_half_of_the_captions_name():
    found = named_concepts(["two men", "a dog", "a dog", "a dog and a man", "a wall"], ["x", "x", "y", "y", "z"])
    assert {k: set(v) for k, v in found.items()} == {"x": {"person", "animal"}, "y": {"person", "animal"}}
