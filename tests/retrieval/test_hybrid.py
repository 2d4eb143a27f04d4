"""Fusion of rankings against a loop over ids, written out."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import simulate_world
from neuroenc.retrieval import DenseIndex, LexicalIndex, _search as module, hybrid_search

pytest.importorskip("bm25s")


@pytest.fixture(scope="module")
def setup():
    """Three indexes with ids in different orders and numbers, and twenty queries for them."""
    rng = np.random.default_rng(4)
    world = simulate_world(90, seed=9)
    vectors = rng.standard_normal((90, 12))
    other = rng.permutation(90)[:70]
    words = LexicalIndex([c[:3] for c in world.captions], world.ids, aggregate="sum")
    # Several rows an id, as for captions that were embedded one by one.
    rows = np.tile(vectors[other], (2, 1)) + rng.standard_normal((140, 12))
    double = DenseIndex(rows, ids=np.tile(world.ids[other], 2))
    indexes = [DenseIndex(vectors, ids=world.ids), words, double]
    texts = [c[3] for c in world.captions[:19]] + ["zebra xylophone"]
    return indexes, [rng.standard_normal((20, 12)), texts, rng.standard_normal((20, 12))]


def ranking(index, query, depth):
    """Ids in order with their scores, each once, without what does not match."""
    scores, rows = index.search(query, min(depth, len(index)))
    found = {}
    for name, score in zip(index.names(rows[0]).tolist(), scores[0].tolist()):
        if score > 0 or not isinstance(index, LexicalIndex):
            found.setdefault(name, score)
    return found


def brute(indexes, queries, q, k, method, rrf_k, weights, depth):
    total, ranks = {}, {}
    for r, (index, asked, w) in enumerate(zip(indexes, queries, weights)):
        found = ranking(index, asked[q : q + 1], depth)
        high, low = max(found.values(), default=0), min(found.values(), default=0)
        for place, (name, score) in enumerate(found.items(), 1):
            if method == "rrf":
                value = w / (rrf_k + place)
            else:
                value = w / sum(weights) * ((score - low) / (high - low) if high > low else 1.0)
            if w:
                total[name] = total.get(name, 0.0) + value
                ranks.setdefault(name, [10**9] * len(indexes))[r] = place
    best = sorted(total, key=lambda name: (-round(total[name], 12), ranks[name], name))[:k]
    return best, [total[n] for n in best], [[p if p < 10**9 else 0 for p in ranks[n]] for n in best]


@pytest.mark.parametrize("method", ["rrf", "convex"])
@pytest.mark.parametrize(
    ("weights", "rrf_k", "depth"),
    [((1, 1, 1), 60, 1000), ((1, 2, 0.5), 10, 25), ((0, 1, 0), 60, 40), ((3, 1, 0), 1, 9)],
)
def test_equals_a_loop_over_ids(setup, method, weights, rrf_k, depth):
    indexes, queries = setup
    found = hybrid_search(indexes, queries, 8, method=method, rrf_k=rrf_k, weights=weights, depth=depth)
    assert (found.scores.shape, found.ids.shape, found.ranks.shape) == ((20, 8), (20, 8), (20, 8, 3))
    for q in range(20):
        ids, scores, ranks = brute(indexes, queries, q, 8, method, rrf_k, weights, depth)
        n = len(ids)
        assert found.ids[q, :n].tolist() == ids
        np.testing.assert_allclose(found.scores[q, :n], scores, rtol=1e-12)
        assert found.ranks[q, :n].tolist() == ranks
        assert found.ids[q, n:].tolist() == [""] * (8 - n)
        assert (found.scores[q, n:] == -np.inf).all()
        assert (found.ranks[q, n:] == 0).all()


@pytest.mark.parametrize("method", ["rrf", "convex"])
def test_does_not_depend_on_blocks_or_company(setup, method, monkeypatch):
    indexes, queries = setup
    whole = hybrid_search(indexes, queries, 6, method=method)
    monkeypatch.setattr(module, "_QUERIES", 3)
    blocks = hybrid_search(indexes, queries, 6, method=method, max_memory="8MB")
    alone = hybrid_search(indexes, [q[5:6] for q in queries], 6, method=method)
    for one, two, three in zip(whole, blocks, alone):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one[5:6], three)


@pytest.mark.parametrize("method", ["rrf", "convex"])
def test_order_of_the_indexes_changes_only_ties(setup, method):
    indexes, queries = setup
    one = hybrid_search(indexes, queries, 90, method=method, weights=[1, 2, 3])
    two = hybrid_search(indexes[::-1], queries[::-1], 90, method=method, weights=[3, 2, 1])
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-12)
    for q in range(20):
        left = dict(zip(one.ids[q].tolist(), one.scores[q].tolist()))
        right = dict(zip(two.ids[q].tolist(), two.scores[q].tolist()))
        assert left == pytest.approx(right, rel=1e-12)


def test_one_index_alone_keeps_its_order(setup):
    indexes, queries = setup
    found = hybrid_search(indexes[:1], queries[:1], 10)
    np.testing.assert_array_equal(found.ids, indexes[0].names(indexes[0].search(queries[0], 10)[1]))
    np.testing.assert_allclose(found.scores, np.tile(1 / (60 + np.arange(1, 11)), (20, 1)))


def test_words_that_are_unknown_add_nothing(setup):
    indexes, queries = setup
    found = hybrid_search(indexes[:2], queries[:2], 5)
    assert (found.ranks[19, :, 1] == 0).all()
    alone = hybrid_search(indexes[1:2], queries[1:2], 5)
    assert alone.ids[19].tolist() == [""] * 5


def test_convex_scores_are_between_0_and_1(setup):
    indexes, queries = setup
    scores = hybrid_search(indexes, queries, 90, method="convex", weights=[5, 1, 1]).scores
    assert ((scores == -np.inf) | ((scores >= 0) & (scores <= 1))).all()
    # One id alone in its ranking has the whole weight.
    single = LexicalIndex(["a cat", "a dog"])
    assert hybrid_search([single], [["dog"]], 1, method="convex").scores.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rff"}, "did you mean 'rrf'"),
        ({"rrf_k": 0}, "above 0"),
        ({"weights": [1, -1, 1]}, "at least 0"),
        ({"weights": [0, 0, 0]}, "one above"),
        ({"weights": [1, 1]}, "for 3 indexes"),
        ({"depth": 0}, "depth=0"),
        ({"k": 0}, "k=0"),
    ],
)
def test_bad_settings(setup, settings, message):
    indexes, queries = setup
    with pytest.raises(ConfigError, match=message):
        hybrid_search(indexes, queries, **{"k": 3, **settings})


def test_queries_must_fit_the_indexes(setup):
    indexes, queries = setup
    with pytest.raises(DataError, match=r"lengths \[20, 19, 20\]"):
        hybrid_search(indexes, [queries[0], queries[1][:-1], queries[2]], 3)
    with pytest.raises(DataError, match="3 indexes"):
        hybrid_search(indexes, queries[:2], 3)
    with pytest.raises(DataError, match="0 indexes"):
        hybrid_search([], [], 3)
