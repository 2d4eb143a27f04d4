"""BM25 against its formulas, written out in float64 with plain loops."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import simulate_world
from neuroenc.retrieval import LexicalIndex

pytest.importorskip("bm25s")


def words_of(text):
    return re.findall(r"\b\w\w+\b", text.lower())


def brute(captions, query, k1=1.5, b=0.75):
    """Kamphuis et al. (2020), table 1: Lucene."""
    found = [Counter(words_of(c)) for c in captions]
    n, mean = len(found), sum(sum(f.values()) for f in found) / len(captions)
    out = np.zeros(n)
    for t in words_of(query):
        df = sum(t in f for f in found)
        if not df:
            continue
        idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
        for d, f in enumerate(found):
            out[d] += idf * f[t] / (f[t] + k1 * (1 - b + b * sum(f.values()) / mean))
    return out


@pytest.fixture(scope="module")
def world():
    return simulate_world(120, seed=3)


@pytest.fixture(scope="module")
def texts(world):
    return [c for captions in world.captions for c in captions[:2]]


QUERIES = ["a man in a red shirt", "dog dog on the beach", "the word of a sign in the street", "two apples"]


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.6, 0.2)])
def test_scores_equal_the_formula(texts, k1, b):
    index = LexicalIndex(texts, k1=k1, b=b, stop_words=None)
    scores, rows = index.search(QUERIES, len(texts))
    for q, query in enumerate(QUERIES):
        want = brute(texts, query, k1, b)
        np.testing.assert_allclose(scores[q], want[rows[q]], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores[q], np.sort(want)[::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggregate", ["best", "sum"])
def test_several_captions_an_id(rng, texts, aggregate):
    ids = rng.integers(0, 40, len(texts)).astype(str)
    index = LexicalIndex(texts, ids, aggregate=aggregate, stop_words=None)
    assert index.n_captions == len(texts)
    assert index.ids.tolist() == list(dict.fromkeys(ids.tolist()))
    scores, rows = index.search(QUERIES, len(index))
    for q, query in enumerate(QUERIES):
        each = brute(texts, query)
        reduce = max if aggregate == "best" else sum
        want = {name: reduce(each[ids == name]) for name in index.ids}
        np.testing.assert_allclose(scores[q], [want[name] for name in index.names(rows[q])], rtol=1e-5, atol=1e-5)


def test_captions_of_stimuli_as_they_are(world):
    nested = LexicalIndex(world.captions, world.ids)
    flat = LexicalIndex(
        [c for captions in world.captions for c in captions],
        np.repeat(world.ids, [len(c) for c in world.captions]),
    )
    assert len(nested) == len(world)
    for one, two in zip(nested.search(QUERIES, 20), flat.search(QUERIES, 20)):
        np.testing.assert_array_equal(one, two)


def test_result_has_the_form_of_a_dense_index(texts):
    scores, rows = LexicalIndex(texts).search(QUERIES, 7)
    assert (scores.shape, scores.dtype, rows.shape, rows.dtype) == ((4, 7), np.float32, (4, 7), np.int64)
    assert (np.diff(scores, axis=1) <= 0).all()
    tie = scores[:, 1:] == scores[:, :-1]
    assert tie.any()
    assert (rows[:, 1:] > rows[:, :-1])[tie].all()


def test_result_does_not_depend_on_k_or_on_other_queries(texts):
    index = LexicalIndex(texts)
    whole = index.search(QUERIES, len(texts))
    for q, query in enumerate(QUERIES):
        scores, rows = index.search([query], 6)
        np.testing.assert_array_equal(scores[0], whole[0][q, :6])
        np.testing.assert_array_equal(rows[0], whole[1][q, :6])


def test_permuted_captions_give_permuted_rows(rng, texts):
    order = rng.permutation(len(texts))
    ids = [str(i) for i in range(len(texts))]
    one = LexicalIndex(texts, ids)
    two = LexicalIndex([texts[i] for i in order], [ids[i] for i in order])
    a, b = one.search(QUERIES, len(texts)), two.search(QUERIES, len(texts))
    for q in range(len(QUERIES)):
        left = dict(zip(one.names(a[1][q]), a[0][q]))
        right = dict(zip(two.names(b[1][q]), b[0][q]))
        assert left == pytest.approx(right, rel=1e-5)


def test_no_common_word_scores_exactly_zero():
    index = LexicalIndex(["a cat", "a cat and a dog", "a house by the sea", "a boat"])
    scores, rows = index.search(["dog", "zebra", "dog zebra"], 4)
    assert (scores[0] > 0).tolist() == [True, False, False, False]
    np.testing.assert_array_equal(scores[0, 1:], index.no_match)
    np.testing.assert_array_equal(scores[1], 0)
    np.testing.assert_array_equal(rows[1], [0, 1, 2, 3])
    np.testing.assert_array_equal(scores[2], scores[0])


def test_stop_words():
    captions = ["the dogs run", "a cat on the sofa", "a sofa"]
    assert LexicalIndex(captions).search(["the"], 3)[0].max() == 0
    assert LexicalIndex(captions, stop_words=None).search(["the"], 3)[0].max() > 0
    assert LexicalIndex(captions, stop_words=["sofa"]).search(["sofa"], 3)[0].max() == 0
    assert LexicalIndex(captions).search(["dog"], 3)[0].max() == 0


@pytest.mark.parametrize(
    ("captions", "settings", "message"),
    [
        ("a dog", {}, "one string"),
        ([], {}, "0 captions"),
        (["a dog", 3], {}, "1 of 2 captions are not text; the first is number 1: 3"),
        (["a", "the"], {}, "none of 2 captions has a word"),
        (["a dog", "a cat"], {"ids": ["x"]}, "1 ids for 2 captions"),
        ([["a dog"], []], {}, "1 of 2 ids have no caption, the first is '1'"),
    ],
)
def test_bad_captions(captions, settings, message):
    with pytest.raises(DataError, match=message):
        LexicalIndex(captions, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregate": "mean"}, "Legal: best, sum"),
        ({"k1": 0}, "k1=0"),
        ({"b": 1.5}, "b=1.5.*from 0 to 1"),
        ({"stop_words": "eng"}, "did you mean 'en'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LexicalIndex(["a dog"], **settings)


def test_bad_searches():
    index = LexicalIndex(["a dog", "a cat"])
    with pytest.raises(DataError, match="k=3 of an index of 2 ids"):
        index.search(["dog"], 3)
    with pytest.raises(ConfigError, match="at least 1"):
        index.search(["dog"], 0)
    with pytest.raises(DataError, match="one string"):
        index.search("dog", 1)
