"""Training pairs made of a corpus: what each kind may ask and answer."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import FAMILIES, MEMBERS, simulate_world
from neuroenc.retrieval import CaptionCorpus, labelled_queries, pseudo_queries

LEVELS = ("image", "caption", "phrase", "category")


@pytest.fixture(scope="module")
def corpus():
    world = simulate_world(80, seed=4)
    members = [m for f in FAMILIES for m in MEMBERS[f]]
    names = {i: [m for m in members if world.table.loc[i, f"member_{m}"] > 0] for i in world.ids}
    texts, of = [c for several in world.captions for c in several], world.ids.repeat([len(s) for s in world.captions])
    return CaptionCorpus(texts, of.tolist(), {k: v for k, v in names.items() if v}, lambda t: [t.split(" ", 1)[-1]])


def of(corpus, image):
    return [corpus.captions[r] for r in corpus.rows_of(image)]


def test_inner_and_lead_answer_with_the_image_of_the_query(corpus):
    pairs = pseudo_queries(corpus, ["inner", "lead"], levels=LEVELS)
    assert set(pairs["level"]) == set(LEVELS)
    for row in pairs.itertuples():
        own = of(corpus, row.image)
        assert row.query in own
        if row.level == "image":
            assert (row.id, row.target in own) == (row.image, True)
        elif row.level == "caption":
            assert row.id.rsplit(":", 1)[0] == row.image
            assert row.target == corpus.captions[corpus.caption_ids.tolist().index(row.id)]
        elif row.level == "category":
            assert row.target == row.id in corpus.categories[row.image]
        else:
            assert any(row.target in c for c in own if c != row.query)
        if row.level in ("image", "caption"):
            assert row.target != row.query or own.count(row.query) == len(own)
    lead = pairs[pairs["kind"] == "lead"]
    assert all(len(q) == max(map(len, of(corpus, i))) for q, i in zip(lead["query"], lead["image"]))
    assert set(lead["image"]) == set(corpus.images.tolist())


def test_links_share_a_category_and_are_not_the_image(corpus):
    pairs = pseudo_queries(corpus, ["link"], levels=LEVELS)
    assert len(pairs) > 50
    for row in pairs.itertuples():
        if row.level in ("image", "caption"):
            other = row.id if row.level == "image" else row.id.rsplit(":", 1)[0]
            assert other != row.image
            assert set(corpus.categories[other]) & set(corpus.categories[row.image])
            assert row.target in of(corpus, other)
        elif row.level == "category":
            assert row.id in corpus.categories[row.image]


def test_draws_depend_on_the_seed_and_the_image_alone(corpus):
    first, again = (pseudo_queries(corpus, seed=3) for _ in range(2))
    assert first.equals(again)
    assert not first.equals(pseudo_queries(corpus, seed=4))
    inner = first[first["kind"] == "inner"].reset_index(drop=True)
    assert inner.equals(pseudo_queries(corpus, ["inner"], seed=3))
    every = pseudo_queries(corpus, ["inner"], levels=["image"], per_image=None)
    assert set(every["query"]) == set(corpus.captions)
    counts = every.groupby("image")["query"].nunique()
    assert np.array_equal(counts.to_numpy(), [len(set(of(corpus, i))) for i in counts.index])


def test_what_a_corpus_lacks_is_said():
    corpus = CaptionCorpus(["a cat", "a dog"], ["x", "y"])
    with pytest.raises(ConfigError, match="no categories"):
        pseudo_queries(corpus)
    with pytest.raises(ConfigError, match="did you mean 'inner'"):
        pseudo_queries(corpus, ["iner"], levels=["image"])
    with pytest.raises(ConfigError, match="per_image=0"):
        pseudo_queries(corpus, ["inner"], levels=["image"], per_image=0)
    # One caption an image: it answers itself.
    assert pseudo_queries(corpus, ["inner"], levels=["image"])["target"].tolist() == ["a cat", "a dog"]


def test_labelled_queries_answer_with_all_that_their_image_has(corpus):
    images = list(dict.fromkeys(corpus.images.tolist()))[3:5]
    pairs = labelled_queries(corpus, ["Something Red.", "a thing"], images, levels=LEVELS)
    assert (pairs["kind"] == "label").all()
    assert list(pairs.columns) == list(pseudo_queries(corpus, ["inner"]).columns)
    for query, image in zip(("something red", "a thing"), images):
        mine = pairs[pairs["query"] == query]
        assert set(mine["image"]) == {image}
        answers = mine.groupby("level")["target"].agg(list)
        assert answers["image"] == answers["caption"] == of(corpus, image)
        assert set(answers.get("category", ())) == set(corpus.categories.get(image, ()))
        assert set(answers["phrase"]) == {p for r in corpus.rows_of(image) for p in corpus.phrases_of(r)}
        assert set(mine.loc[mine["level"] == "image", "id"]) == {image}
    with pytest.raises(DataError, match="2 queries and 1 images"):
        labelled_queries(corpus, ["a", "b"], images[:1])
    with pytest.raises(DataError, match="no caption in the corpus"):
        labelled_queries(corpus, ["a"], ["nowhere"])
    with pytest.raises(ConfigError, match="no categories"):
        labelled_queries(CaptionCorpus(["a cat"], ["x"]), ["a"], ["x"])
