"""Hard negatives: filters against plain loops, batches, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features
from neuroenc.retrieval import AdaptiveMargin, OwnerQuery, RankWindow, mine_hard_negatives


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((600, 12))
    return z + 0.3 * rng.standard_normal(z.shape), z + 0.3 * rng.standard_normal(z.shape)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_best_that_do_not_belong(pairs):
    queries, candidates = pairs
    found = mine_hard_negatives(queries, candidates, k=3)
    scores = unit(queries) @ unit(candidates).T
    np.fill_diagonal(scores, -2)
    expected = np.argsort(-scores, axis=1)[:, :3]
    assert np.array_equal(found.indices, expected)
    assert np.allclose(found.scores, np.take_along_axis(scores, expected, 1))
    assert found.dropped == {}


def test_filters_are_what_they_say(pairs):
    queries, candidates = pairs
    filters = [OwnerQuery(0.5), AdaptiveMargin(0.8), RankWindow(3, 40)]
    found = mine_hard_negatives(queries, candidates, k=4, filters=filters, depth=600)
    scores, likeness = unit(queries) @ unit(candidates).T, unit(queries) @ unit(queries).T
    for q in range(0, 600, 37):
        rank = [c for c in np.argsort(-scores[q]).tolist() if c != q]
        kept = [c for c in rank[2:40] if likeness[q, c] <= 0.5 and scores[q, c] < 0.8 * scores[q, q]][:4]
        assert found.indices[q].tolist() == kept + [-1] * (4 - len(kept))
    assert 0 < found.dropped["OwnerQuery"] < found.dropped["RankWindow"] < 1


def test_ids_decide_what_belongs(pairs):
    queries, _ = pairs
    ids = np.arange(600) // 5  # five captions of a stimulus
    same = mine_hard_negatives(queries, queries, query_ids=ids, candidate_ids=ids, k=5, filters=[AdaptiveMargin()])
    assert not (ids[same.indices] == ids[:, None])[same.indices >= 0].any()
    labelled = [
        make_features(queries, stimulus=ids.astype(str)),
        make_features(queries[::-1], stimulus=ids[::-1].astype(str)),
    ]
    found = mine_hard_negatives(*labelled, k=1)
    assert not (ids[::-1][found.indices] == ids[:, None]).any()


def test_a_random_choice_is_of_what_is_left_and_of_the_seed(pairs):
    best = mine_hard_negatives(*pairs, k=20, filters=[RankWindow(10, 29)]).indices
    one, again, other = (
        mine_hard_negatives(*pairs, k=5, filters=[RankWindow(10, 29)], draw="random", seed=s).indices for s in (0, 0, 1)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert all(np.isin(a, b).all() for a, b in zip(one, best))


def test_batches_hold_every_id_once_and_are_harder_than_chance(pairs):
    queries, candidates = pairs
    found = mine_hard_negatives(queries, candidates, k=8)
    batches = [b.astype(int) for b in found.batches(20, seed=1)]
    assert sorted(np.concatenate(batches)) == list(range(600))
    assert {len(b) for b in batches} == {20}
    scores = unit(queries) @ unit(candidates).T
    inside = np.mean([scores[np.ix_(b, b)][~np.eye(20, dtype=bool)].mean() for b in batches])
    assert inside > scores[~np.eye(600, dtype=bool)].mean() + 0.1


def test_what_does_not_fit_is_told(pairs):
    queries, candidates = pairs
    with pytest.raises(DataError, match="600, 12"):
        mine_hard_negatives(queries, candidates[:, :5])
    with pytest.raises(DataError, match="one each"):
        mine_hard_negatives(queries, candidates, query_ids=["a"])
    with pytest.raises(DataError, match="256 of 256 queries"):
        mine_hard_negatives(queries, candidates, candidate_ids=["x"] * 600, filters=[AdaptiveMargin()])
    with pytest.raises(ConfigError, match="depth=200"):
        mine_hard_negatives(queries, candidates, filters=[RankWindow(50, 300)])
