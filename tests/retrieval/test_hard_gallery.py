"""Galleries of hard negatives: what is pooled, in which order, and recall within them."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import DataError
from neuroenc.retrieval import DenseIndex, Galleries, hard_gallery


def spaces(n=60, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, width)) for _ in range(2)], [f"s{k}" for k in range(n)]


def test_negatives_are_those_of_the_best_rank_in_any_retriever():
    both, ids = spaces()
    found = hard_gallery([DenseIndex(x, ids=ids) for x in both], [x[:5] for x in both], [[i] for i in ids[:5]], size=9)
    for n in range(5):
        ranks = []
        for x in both:
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            ranks.append(np.argsort(np.argsort(-(unit @ unit[n]))))
        best = np.minimum(*ranks)
        assert found.ids[n, 0] == ids[n]
        assert set(found.ids[n, 1:]) <= {ids[k] for k in np.flatnonzero(best <= 8)}
        places = [best[ids.index(i)] for i in found.ids[n, 1:]]
        assert places == sorted(places)
    assert found.relevant.sum(axis=1).tolist() == [1] * 5


def test_positives_come_first_and_are_never_negatives():
    both, ids = spaces()
    positives = [[ids[n], ids[n + 20], ids[n]] for n in range(5)]
    found = hard_gallery([DenseIndex(both[0], ids=ids)], [both[0][:5]], positives, size=60)
    assert (found.ids[:, :2] == np.array([p[:2] for p in positives])).all()
    assert all(len(set(row)) == 60 for row in found.ids)


def test_recall_counts_places_and_ties():
    galleries = Galleries(np.array([["a", "b", "c", ""]] * 4), np.array([[True, False, False, False]] * 4))
    scores = np.array([[3.0, 2, 1, 9], [1, 2, 3, 9], [1, 1, 1, 9], [np.nan, 0, 0, 9]])
    assert galleries.recall(scores, list("abcd")).tolist() == pytest.approx([1, 0, 1 / 3, 0])
    assert galleries.recall(scores, list("abcd"), k=2).tolist() == pytest.approx([1, 0, 2 / 3, 0])
    several = Galleries(np.array([["a", "b", "c", "d"]]), np.array([[True, True, False, False]]))
    rng = np.random.default_rng(0)
    drawn = np.mean([np.isin(rng.permutation(4)[:2], [0, 1]).any() for _ in range(20000)])
    assert (
        several.recall(np.zeros((1, 4)), list("abcd"), k=2)[0] == pytest.approx(5 / 6) == pytest.approx(drawn, abs=0.02)
    )


def test_what_does_not_fit_is_refused():
    both, ids = spaces()
    index = DenseIndex(both[0], ids=ids)
    with pytest.raises(DataError, match="queries of lengths"):
        hard_gallery([index], [both[0][:5]], [["s0"]] * 4)
    with pytest.raises(DataError, match="query 1 has 0 positives"):
        hard_gallery([index], [both[0][:2]], [["s0"], []])
    found = hard_gallery([index], [both[0][:2]], [["s0"], ["s1"]], size=5)
    with pytest.raises(DataError, match="unknown candidate"):
        found.recall(np.zeros((2, 1)), ["s0"])
    with pytest.raises(DataError, match="expected"):
        found.recall(np.zeros((3, 60)), ids)
