"""Prompts of levels: words, learned vectors and both; what is trained, what is kept, and going on from it."""

import itertools

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError
from neuroenc.captions import NGramRetriever, PrefixDecoder, make_language_model, train_retriever
from neuroenc.retrieval import CaptionCorpus, pseudo_queries

COLOURS, THINGS = ("red", "blue"), ("cat", "house", "cup")
TEXTS = [(f"{form} {c} {t}", f"{c}-{t}") for c, t in itertools.product(COLOURS, THINGS) for form in ("a", "one")]
TRAIN = {"epochs": 30, "batch_size": 16, "lr": 1e-2, "warmup": 0, "progress": False, "ngrams": 2}
LONGER = {"epochs": 90, "batch_size": 24, "lr": 0.02}


@pytest.fixture(scope="module")
def corpus():
    return CaptionCorpus([x for x, _ in TEXTS], [i for _, i in TEXTS], {i: i.split("-") for _, i in TEXTS})


def embed(several):
    return np.array([[float(w in t) for w in (*COLOURS, *THINGS)] for t in several])


def fresh(**options):
    lm, tokenizer = make_language_model([x for x, _ in TEXTS], width=16, layers=1, heads=2)
    return PrefixDecoder(lm, tokenizer, 5, prefix_length=2, stop="<end>", device="cpu", **options)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(one, other):
    return all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("kind", ["none", "discrete", "continuous", "hybrid"])
def test_a_kind_is_learned_saved_and_asked_with(corpus, kind, tmp_path):
    decoder = fresh(normalise=True, centre=True)
    room = decoder.room
    pairs = pseudo_queries(corpus, ["inner"], levels=("image", "category"), per_image=None)
    found = train_retriever(decoder, pairs, embed, prompt=kind, prompt_length=3, **{**TRAIN, **LONGER})
    assert found.losses[-5:].mean() < found.losses[:5].mean() / 2
    learned = 3 if kind in ("continuous", "hybrid") else 0
    assert decoder.prompts.length == learned == room - decoder.room
    retriever = NGramRetriever(corpus, decoder, level="category", beams=8)
    assert retriever.prompt == ("category:" if kind in ("discrete", "hybrid") else "")
    asked = embed([w.replace("-", " ") for w in corpus.categories])
    table = retriever.search(asked, 2, mean=decoder.text_direction)
    right = [name in list(corpus.categories)[query].split("-") for query, name in zip(table["query"], table["id"])]
    # Two of five names would be right .4 of the time.
    assert np.mean(right) > 0.7
    again = PrefixDecoder.load(decoder.save(tmp_path), device="cpu")
    same = NGramRetriever(corpus, again, level="category", beams=8).search(asked, 2, mean=again.text_direction)
    assert same.drop(columns=["score", "ngrams"]).equals(table.drop(columns=["score", "ngrams"]))
    np.testing.assert_allclose(same["score"], table["score"], atol=1e-4)
    # Another text in front stands in place of what was learned.
    plain = NGramRetriever(corpus, decoder, level="category", beams=8, prompt="")
    moved = plain.search(asked, 2, mean=decoder.text_direction)["score"].to_numpy()
    assert np.allclose(moved, table["score"].to_numpy()) == (kind == "none")


def test_prompts_alone_are_tuned_and_nothing_else(corpus):
    decoder = fresh()
    before = state(decoder.lm), state(decoder.mapping)
    pairs = pseudo_queries(corpus, ["inner"], levels=("image", "category"))
    found = train_retriever(decoder, pairs, embed, prompt="continuous", tune="prompts", **TRAIN)
    assert equal(before[0], state(decoder.lm))
    assert equal(before[1], state(decoder.mapping))
    assert found.losses[-5:].mean() < found.losses[:5].mean()
    # Levels that no pair asked for keep the vectors that they began with.
    begun = fresh()
    train_retriever(begun, pairs, embed, prompt="continuous", tune="prompts", **{**TRAIN, "epochs": 1, "lr": 1e-9})
    moved = (decoder.prompts.vectors - begun.prompts.vectors).abs().amax(dim=(1, 2)) > 1e-3
    assert [bool(moved[decoder.prompts.number(x)]) for x in ("image", "category", "phrase")] == [True, True, False]
    assert all(p.requires_grad for part in (decoder.lm, decoder.mapping) for p in part.parameters())
    with pytest.raises(ConfigError, match="leaves nothing to learn"):
        train_retriever(fresh(), pairs, embed, tune="prompts", **TRAIN)


def test_a_retriever_goes_on_from_its_own_prompts_and_mean(corpus, tmp_path):
    decoder = fresh(normalise=True, centre=True)
    train_retriever(decoder, pseudo_queries(corpus, ["inner"]), embed, prompt="hybrid", **TRAIN)
    mean, vectors = decoder.text_direction.copy(), decoder.prompts.vectors.detach().clone()
    few = pseudo_queries(corpus, ["lead"], levels=["image"]).head(2)
    decoder = PrefixDecoder.load(decoder.save(tmp_path), device="cpu")
    train_retriever(decoder, few, embed, **{**TRAIN, "epochs": 2})
    np.testing.assert_allclose(decoder.text_direction, mean, atol=1e-6)
    assert decoder.prompts.kind == "hybrid"
    assert not torch.equal(decoder.prompts.vectors.detach(), vectors)
    with pytest.raises(ConfigError, match="trained with the prompt 'hybrid', not 'discrete'"):
        train_retriever(decoder, few, embed, prompt="discrete", **TRAIN)
    with pytest.raises(ConfigError, match="prompt"):
        train_retriever(fresh(), few, embed, prompt="soft", **TRAIN)


def test_a_killed_training_of_prompts_ends_as_one_that_was_not(corpus, tmp_path):
    pairs = pseudo_queries(corpus, ["inner"], levels=["image"])
    options = {**TRAIN, "epochs": 4, "prompt": "continuous"}
    whole, parts = fresh(), fresh()
    train_retriever(whole, pairs, embed, **options)
    with pytest.MonkeyPatch.context() as patch:
        from neuroenc.captions.decoding import _prefix_training

        one, steps = _prefix_training._Run._one, iter(range(3))

        def killed(run):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            one(run)

        patch.setattr(_prefix_training._Run, "_one", killed)
        with pytest.raises(KeyboardInterrupt):
            train_retriever(parts, pairs, embed, checkpoint=tmp_path, checkpoint_every=1, **options)
    parts = fresh()
    train_retriever(parts, pairs, embed, checkpoint=tmp_path, **options)
    assert torch.equal(whole.prompts.vectors, parts.prompts.vectors)
    assert equal(state(whole.lm), state(parts.lm))
