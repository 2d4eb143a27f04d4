"""Phrases of a corpus against brute force; captions under its constraint and where they come from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import CorpusConstraint
from neuroenc.captions.decoding._sampling import sample
from neuroenc.captions.decoding._search import beam_search
from neuroenc.data.simulate import simulate_world
from neuroenc.retrieval import NGramIndex
from steps import FunctionStep

STOP = 0
token = st.integers(0, 4)
corpora = st.lists(st.lists(token, max_size=9), min_size=1, max_size=12)
phrase = st.lists(token, min_size=1, max_size=5)


def brute(corpus, ngram, start=False, end=False):
    """(caption, position) of every occurrence, and what follows each."""
    m, places, after = len(ngram), [], []
    for c, row in enumerate(corpus):
        for p in range(len(row) - m + 1):
            if row[p : p + m] == ngram and (not start or p == 0) and (not end or p + m == len(row)):
                places.append((c, p))
                after.append(row[p + m] if p + m < len(row) else None)
    return places, after


@given(corpora, phrase, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_counts_places_and_successors_are_brute_force(corpus, ngram, start, end):
    index = NGramIndex(corpus)
    places, after = brute(corpus, ngram, start, end)
    assert index.count(ngram, start=start, end=end) == len(places)
    ids, position = index.locate(ngram, start=start, end=end)
    assert list(zip(ids.tolist(), position.tolist(), strict=True)) == [(str(c), p) for c, p in places]
    places, after = brute(corpus, ngram, start)
    found = index.successors(ngram, start=start)
    inside = [t for t in after if t is not None]
    assert found.tokens.tolist() == sorted(set(inside))
    assert found.counts.tolist() == [inside.count(t) for t in sorted(set(inside))]
    assert found.ends == after.count(None)


@given(corpora)
@settings(max_examples=100, deadline=None)
def test_successors_of_nothing_are_all_tokens_or_all_first_ones(corpus):
    index = NGramIndex(corpus)
    flat = [t for row in corpus for t in row]
    free, first = index.successors([]), index.successors([], start=True)
    assert dict(zip(free.tokens.tolist(), free.counts.tolist(), strict=True)) == {t: flat.count(t) for t in set(flat)}
    heads = [row[0] for row in corpus if row]
    assert dict(zip(first.tokens.tolist(), first.counts.tolist(), strict=True)) == {t: heads.count(t) for t in heads}
    assert first.ends == sum(not row for row in corpus)
    assert index.count([]) == index.n_tokens == len(flat)
    assert len(index) == len(corpus)
    assert index.longest == max(map(len, corpus))


@given(corpora, st.lists(token, max_size=8))
@settings(max_examples=200, deadline=None)
def test_phrases_are_the_longest_pieces(corpus, tokens):
    n = len(tokens)
    pieces = [(a, b) for a in range(n) for b in range(a + 1, n + 1) if brute(corpus, tokens[a:b])[0]]
    longest = [p for p in pieces if not any(q != p and q[0] <= p[0] and p[1] <= q[1] for q in pieces)]
    found = NGramIndex(corpus).phrases(tokens, limit=100)
    assert list(zip(found["start"], found["end"], strict=True)) == longest
    for row in found.itertuples():
        places = brute(corpus, tokens[row.start : row.end])[0]
        assert row.count == len(places)
        assert row.ids.split(";") == [str(c) for c in dict.fromkeys(c for c, _ in places)]


def test_long_captions_large_ranges_and_many_tokens():
    rng = np.random.default_rng(0)
    # Repeats far longer than what the first sort sees, and tokens of more than 16 bits.
    base = rng.integers(0, 3, 300).tolist()
    corpus = [base[: rng.integers(1, 300)] for _ in range(150)] + [[70_000, 1, 2]]
    index = NGramIndex(corpus)
    for length in (1, 2, 7, 40, 200):
        ngram = base[3 : 3 + length]
        places, after = brute(corpus, ngram)
        assert index.count(ngram) == len(places)
        assert index.successors(ngram).counts.sum() == len([t for t in after if t is not None])
    assert index.successors([70_000]).tokens.tolist() == [1]
    assert index.count([70_001]) == index.count([50_000]) == index.count([10**9]) == 0


def test_corpora_that_cannot_be_indexed_say_why():
    with pytest.raises(DataError, match="0 captions"):
        NGramIndex([])
    with pytest.raises(DataError, match="token -1"):
        NGramIndex([[1, -1]])
    with pytest.raises(DataError, match="2 ids for 1"):
        NGramIndex([[1]], ids=["a", "b"])
    index = NGramIndex([[1, 2]])
    with pytest.raises(ConfigError, match="everywhere"):
        index.locate([])
    with pytest.raises(ConfigError, match="at least 2"):
        CorpusConstraint(index, stop=0, vocabulary=5, n=1)
    with pytest.raises(DataError, match="stop token 2"):
        CorpusConstraint(index, stop=2, vocabulary=5)
    with pytest.raises(DataError, match="own tokenizer"):
        CorpusConstraint(index, stop=0, vocabulary=2)


class Words:
    """Captions of the simulated world as words, and a model that would rather say anything else."""

    def __init__(self, n=120, seed=0):
        world = simulate_world(n, seed=seed)
        self.texts = [c for four in world.captions for c in four]
        self.ids = [str(i) for i, four in zip(world.ids, world.captions, strict=True) for _ in four]
        words = sorted({w for t in self.texts for w in self.split(t)})
        self.number = {w: k + 1 for k, w in enumerate(words)}
        self.vocabulary = len(words) + 1
        rng = np.random.default_rng(seed)
        self.table = torch.from_numpy(rng.standard_normal((6, self.vocabulary, self.vocabulary)))

    @staticmethod
    def split(text):
        return text.lower().replace(",", " ,").rstrip(".").split()

    def encode(self, text):
        return [self.number[w] for w in self.split(text)]

    def step(self):
        def logits(items, tokens):
            last = tokens[:, -1] if tokens.shape[1] else torch.zeros_like(items)
            return 3 * self.table[items, last]

        return FunctionStep(logits, 6)


@pytest.fixture(scope="module")
def words():
    return Words()


def grams(y, n, anchored):
    y = ["<", *y, ">"] if anchored else list(y)
    return [tuple(y[a : a + n]) for a in range(max(1, len(y) - n + 1))]


def occurs(constraint, y):
    """Whether a written caption, without its stop token, keeps the rule."""
    return all(y[t] in constraint.allowed(y[:t]) for t in range(len(y))) and STOP in constraint.allowed(y)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("n", [2, 3, None])
def test_every_phrase_of_every_caption_occurs(words, n, anchored):
    constraint = CorpusConstraint.from_captions(
        words.texts, words.encode, stop=STOP, vocabulary=words.vocabulary, ids=words.ids, n=n, anchored=anchored
    )
    corpus = [words.encode(t) for t in words.texts]
    longest = max(map(len, corpus)) + 1
    free = beam_search(words.step(), stop=STOP, beams=4, max_length=longest)
    several = [y for item in range(6) for y, _ in free.texts(item) if len(y) > 1]
    assert not any(occurs(constraint, [t for t in y if t != STOP]) for y in several)
    seen = {g for row in corpus for g in grams(row, n, anchored)} if n else None
    written = 0
    for found in (
        beam_search(words.step(), stop=STOP, beams=4, max_length=longest, constraint=constraint),
        beam_search(words.step(), stop=STOP, beams=4, groups=2, max_length=longest, constraint=constraint),
        sample(words.step(), stop=STOP, n_samples=4, max_length=longest, constraint=constraint),
    ):
        for item in range(6):
            for (y, _), done in zip(found.texts(item), found.finished[item].tolist(), strict=True):
                if not done:
                    continue
                y, written = y[:-1], written + 1
                assert occurs(constraint, y)
                if n is None:
                    assert brute(corpus, y, start=anchored, end=anchored)[0]
                elif len(y) + 2 * anchored >= n:
                    assert set(grams(y, n, anchored)) <= seen
    assert written > 30


def test_provenance_names_the_images(words):
    corpus = [words.encode(t) for t in words.texts]
    whole = CorpusConstraint.from_captions(
        words.texts, words.encode, stop=STOP, vocabulary=words.vocabulary, ids=words.ids
    )
    for row in (0, 17, 100):
        found = whole.provenance([*corpus[row], STOP, -1])
        same = dict.fromkeys(words.ids[k] for k, y in enumerate(corpus) if y == corpus[row])
        assert found["ids"].tolist() == [";".join(list(same)[:5])]
    pairs = CorpusConstraint(whole.index, stop=STOP, vocabulary=words.vocabulary, n=2)
    drawn = sample(words.step(), stop=STOP, n_samples=3, max_length=30, constraint=pairs)
    by_image = {i: [words.encode(t) for t, j in zip(words.texts, words.ids, strict=True) if i == j] for i in words.ids}
    for item in range(6):
        for y, _ in drawn.texts(item):
            found = pairs.provenance(y, limit=3)
            y = [t for t in y if t != STOP]
            assert {p for a, b in zip(found["start"], found["end"], strict=True) for p in range(a, b)} == set(
                range(len(y))
            )
            for piece in found.itertuples():
                for image in piece.ids.split(";"):
                    assert brute(by_image[image], y[piece.start : piece.end])[0]


def test_captions_are_cut_at_their_first_stop():
    constraint = CorpusConstraint.from_captions(["1 2 0 3", "2 4"], lambda t: map(int, t.split()), stop=0, vocabulary=9)
    assert constraint.allowed([1, 2]) == [0]
    assert constraint.allowed([2]) == [4]
    assert constraint.index.count([3]) == 0
