"""Scores of documents against the definition written out in Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import simulate_world
from neuroenc.retrieval import CaptionCorpus, NGramIndex, NGramScorer
from neuroenc.retrieval._ngrams import ngram_weight


def brute(
    corpus,
    ids,
    ngrams,
    logp,
    *,
    alpha=2.0,
    beta=0.8,
    smoothing=5.0,
    open_count=1500,
    candidates=500,
    relative=False,
):
    """Score of each document, by loops over documents, n-grams and places."""
    total = sum(map(len, corpus))
    documents = {}
    for c, i in enumerate(ids):
        documents.setdefault(i, []).append(c)

    def count(ngram, rows):
        return sum(tuple(corpus[c][p : p + len(ngram)]) == ngram for c in rows for p in range(len(corpus[c])))

    def weight(ngram, lp, power):
        n = count(ngram, range(len(corpus)))
        if n == 0:
            return 0.0
        p, q = (n + smoothing) / (total + smoothing), math.exp(lp)
        return 0.0 if p == 1 else max(0.0, math.log(q * (1 - p) / (p * (1 - q)))) ** power

    best = {}
    for ngram, lp in zip(ngrams, logp):
        best[tuple(ngram)] = max(lp, best.get(tuple(ngram), -math.inf))
    weights = {n: weight(n, lp, alpha) for n, lp in best.items()}
    order = sorted((n for n in weights if weights[n] > 0), key=lambda n: (-weights[n], -len(n), n))
    length = {d: max(1, sum(len(corpus[c]) for c in rows)) for d, rows in documents.items()}

    def scored(order, among):
        cover = {d: set() for d in among}
        score = dict.fromkeys(among, 0.0)
        for n in order:
            times = {d: count(n, documents[d]) for d in among}
            times = {d: t for d, t in times.items() if t}
            highest = max((times[d] / length[d] for d in times), default=1)
            for d, t in times.items():
                new = len(set(n) - cover[d]) / len(set(n))
                share = t / length[d] / highest if relative else 1.0
                score[d] += weights[n] * (1 - beta + beta * new) * share
                cover[d] |= set(n)
        return score

    every = range(len(corpus))
    rare = [n for n in order if count(n, every) <= open_count]
    held = [d for d, rows in documents.items() if any(count(n, rows) for n in rare)]
    first = scored(rare, held)
    held = sorted(held, key=lambda d: -first[d])[:candidates]
    return scored(order, held)


token = st.integers(0, 5)
corpora = st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=9)
several = st.lists(st.tuples(st.lists(token, min_size=1, max_size=3), st.floats(-6, -0.01)), min_size=1, max_size=10)


@given(
    corpora,
    several,
    st.integers(1, 4),
    st.sampled_from([1, 3, 1500]),
    st.booleans(),
    st.sampled_from([0.0, 0.8, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_scores_are_those_of_loops(corpus, ngrams, n_documents, open_count, relative, beta, seed):
    rng = np.random.default_rng(seed)
    ids = [f"d{k}" for k in rng.integers(0, n_documents, len(corpus))]
    keys, logp = [n for n, _ in ngrams], np.array([p for _, p in ngrams])
    index = NGramIndex(corpus, ids)
    options = dict(beta=beta, smoothing=0.5, open_count=open_count, relative=relative)  # noqa: C408
    found = NGramScorer(index, **options).score(keys, logp, 100)
    expected = brute(corpus, ids, keys, logp, **options)
    expected = {d: s for d, s in expected.items() if s > 0}
    got = {d.id: d.score for d in found}
    assert got.keys() == expected.keys()
    np.testing.assert_allclose([got[d] for d in expected], list(expected.values()), rtol=1e-9)
    assert [d.score for d in found] == sorted(got.values(), reverse=True)
    for d in found:
        np.testing.assert_allclose(sum(g for _, g in d.ngrams), d.score, rtol=1e-9)
        assert all(
            any(tuple(c[p : p + len(n)]) == n for c, i in zip(corpus, ids) if i == d.id for p in range(len(c)))
            for n, _ in d.ngrams
        )


def test_only_the_best_candidates_are_scored_by_all():
    rng = np.random.default_rng(0)
    corpus = [rng.integers(0, 12, 8).tolist() for _ in range(200)]
    ids = [f"d{k // 2}" for k in range(200)]
    ngrams = [corpus[k][a : a + 2] for k in range(20) for a in (0, 3)] + [[k] for k in range(12)]
    logp = np.log(rng.uniform(0.01, 0.3, len(ngrams)))
    options = {"open_count": 40, "candidates": 15}
    found = NGramScorer(NGramIndex(corpus, ids), **options).score(ngrams, logp, 50)
    expected = brute(corpus, ids, ngrams, logp, **options)
    assert len(found) == 15
    assert {d.id for d in found} == set(expected)
    np.testing.assert_allclose([d.score for d in found], sorted(expected.values(), reverse=True), rtol=1e-9)


def test_weights_are_odds_ratios():
    p, q = (7 + 5) / 1005, 0.25
    expected = math.log(q * (1 - p) / (p * (1 - q)))
    np.testing.assert_allclose(ngram_weight([math.log(q)], [7], 1000), [expected**2], rtol=1e-12)
    assert ngram_weight([math.log(0.001), -1.0], [7, 0], 1000).tolist() == [0.0, 0.0]
    assert np.isfinite(ngram_weight([0.0], [7], 1000)).all()
    assert ngram_weight([-1.0, -1.0], [0, 3], 10, smoothing=0.0)[0] == 0
    with pytest.raises(DataError, match="above 0"):
        ngram_weight([0.5], [7], 1000)
    with pytest.raises(DataError, match="equal shapes"):
        ngram_weight([-1.0, -2.0], [7], 1000)


def test_the_query_s_own_ngrams_are_its_pieces_in_the_corpus():
    index = NGramIndex([[1, 2, 3, 4], [2, 3, 2, 3]])
    scorer = NGramScorer(index)
    ngrams, logp = scorer.own_ngrams([2, 3, 2, 9, 3], longest=3)
    found = dict(zip(ngrams, np.exp(logp)))
    expected = {(2,): 0.4, (3,): 0.4, (2, 3): 0.2, (3, 2): 0.2, (2, 3, 2): 0.2}
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()))
    assert scorer.score(*scorer.own_ngrams([9, 9])) == []


def test_illegal_settings_say_why():
    index = NGramIndex([[1, 2]])
    for options in ({"alpha": 0}, {"beta": 1.5}, {"smoothing": -1}, {"candidates": 0}, {"open_count": 0}):
        with pytest.raises(ConfigError):
            NGramScorer(index, **options)
    with pytest.raises(DataError, match="1 log-probabilities for 2"):
        NGramScorer(index).score([[1], [2]], [-1.0])
    with pytest.raises(ConfigError, match="top=0"):
        NGramScorer(index).score([[1]], [-1.0], 0)


def test_levels_of_one_corpus():
    world = simulate_world(60, seed=2)
    present = {
        i: [o for o in ("man", "dog", "pizza", "house") if any(o in c for c in several)]
        for i, several in zip(world.ids.tolist(), world.captions)
    }
    texts, of = [c for several in world.captions for c in several], world.ids.repeat([len(s) for s in world.captions])
    corpus = CaptionCorpus(
        texts, of.tolist(), {k: v for k, v in present.items() if v}, lambda text: text.split(" with ")
    )
    texts, ids = corpus.documents("image")
    assert len(texts) == len(ids) == 240
    assert ids == np.repeat(world.ids, 4).tolist()
    assert texts[0] == world.captions[0][0].lower().rstrip(".")
    assert corpus.documents("caption")[1][:5] == [f"{world.ids[0]}:{k}" for k in range(4)] + [f"{world.ids[1]}:0"]
    texts, ids = corpus.documents("category")
    assert len(texts) == 4 * sum(map(len, present.values()))
    assert set(ids) == set(corpus.names_of_categories)
    phrases, same = corpus.documents("phrase")
    assert phrases == same
    assert len(set(phrases)) == len(phrases)
    assert {p for t in corpus.captions for p in t.split(" with ")} == set(phrases)


def test_corpora_that_cannot_be_read_say_why():
    with pytest.raises(DataError, match="2 captions and 1 images"):
        CaptionCorpus(["a", "b"], ["x"])
    with pytest.raises(DataError, match="1 captions are empty"):
        CaptionCorpus(["a", " ."], ["x", "y"])
    with pytest.raises(DataError, match="no caption: z"):
        CaptionCorpus(["a"], ["x"], {"z": ["cat"]})
    with pytest.raises(DataError, match="list of names"):
        CaptionCorpus(["a"], ["x"], {"x": "cat"})
    corpus = CaptionCorpus(["a"], ["x"])
    with pytest.raises(ConfigError, match="no categories"):
        corpus.documents("category")
    with pytest.raises(ConfigError, match="cannot tell phrases"):
        corpus.documents("phrase")
    with pytest.raises(ConfigError, match="unknown level 'images'"):
        corpus.documents("images")
