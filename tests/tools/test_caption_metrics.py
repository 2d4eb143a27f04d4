"""Caption metrics: values by hand, an independent form of CIDEr, properties that they must have."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from caption_metrics import _words, bleu4, bleu_counts, chrf, cider, sentence_similarity
from neuroenc._core.errors import ConfigError, DataError
from photo_evaluation import METRICS, compare_captions

HUMAN = [
    ["a red cat on the grass", "a cat sits on green grass"],
    ["two boats near an old bridge", "boats under a bridge at night"],
    ["a man rides a wave", "a surfer on a big wave in the sea", "a man on a board"],
]
SAID = ["a red cat on a bridge", "boats near a bridge", "a man on a wave"]


def dense_cider(captions, references, clipped=False, sigma=6.0):
    """The equations over dense count vectors, order by order."""
    total = np.zeros(len(captions))
    for n in range(1, 5):
        grams = lambda t: [tuple(t.split()[k : k + n]) for k in range(len(t.split()) - n + 1)]  # noqa: B023, E731
        known = sorted({g for t in [*captions, *(r for h in references for r in h)] for g in grams(t)})
        place = {g: k for k, g in enumerate(known)}
        count = lambda t: np.bincount([place[g] for g in grams(t)], minlength=len(known)).astype(float)  # noqa: B023, E731
        df = np.sum([np.clip(sum(count(r) for r in h), 0, 1) for h in references], axis=0)
        idf = np.log(len(references) / np.maximum(1, df))
        for k, (c, h) in enumerate(zip(captions, references)):
            a = count(c) * idf
            for r in h:
                b = count(r) * idf
                size = np.linalg.norm(a) * np.linalg.norm(b)
                value = (np.minimum(a, b) if clipped else a) @ b / size if size else 0.0
                if clipped:
                    value *= math.exp(-((len(c.split()) - len(r.split())) ** 2) / (2 * sigma**2))
                total[k] += 10 * value / 4 / len(h)
    return total


def test_cider_by_hand():
    # Two images; "a" is in both (idf 0), the others in one (ln 2 each). Unigrams: {cat} against {cat}, {dog}.
    found = cider(["a cat", "a cat"], [["a cat"], ["a dog"]])
    # First: orders 1 and 2 are perfect, orders 3 and 4 have nothing: 10 * 2 / 4. Second: nothing shared but "a".
    np.testing.assert_allclose(found, [5.0, 0.0])
    # "cat" twice: unigram vectors (2, 0) and (1, 1) times ln 2: cosine 2 / (2 sqrt 2); clipped 1 / (2 sqrt 2).
    said, human = ["cat cat", "x"], [["cat dog"], ["bird"]]
    np.testing.assert_allclose(cider(said, human, variant="plain")[0], 10 / 4 / math.sqrt(2))
    np.testing.assert_allclose(cider(said, human)[0], 10 / 4 / (2 * math.sqrt(2)))
    # One word against three: length differs by two.
    np.testing.assert_allclose(
        cider(["cat", "x"], [["cat dog cow"], ["bird"]], sigma=2.0)[0],
        10 / 4 / math.sqrt(3) * math.exp(-4 / 8),
    )


@pytest.mark.parametrize("variant", ["plain", "cider", "cider-d"])
def test_cider_against_dense_vectors(variant):
    rng = random.Random(0)
    words = ["a", "cat", "dog", "on", "the", "bed", "red", "tree"]
    text = lambda: " ".join(rng.choices(words, k=rng.randint(3, 9)))  # noqa: E731
    said, human = [text() for _ in range(12)], [[text() for _ in range(rng.randint(1, 5))] for _ in range(12)]
    np.testing.assert_allclose(
        cider(said, human, variant=variant), dense_cider(said, human, variant != "plain"), rtol=1e-12
    )


def test_cider_properties():
    for variant in ("cider", "plain"):
        alone = [[h[0]] for h in HUMAN]
        np.testing.assert_allclose(cider([h[0] for h in HUMAN], alone, variant=variant), 10.0)
        found = cider(SAID, HUMAN, variant=variant)
        order = [2, 0, 1]
        turned = cider([SAID[k] for k in order], [HUMAN[k][::-1] for k in order], variant=variant)
        np.testing.assert_allclose(turned, found[order])
        assert (found > 0).all()
        assert (cider(SAID[1:] + SAID[:1], HUMAN, variant=variant) < found).all()
    np.testing.assert_array_equal(cider([f"{c.upper()}." for c in SAID], HUMAN), cider(SAID, HUMAN))
    # One image: every n-gram is in all images, and nothing has weight.
    assert cider(["a cat"], [["a cat"]]).tolist() == [0.0]
    # Saying the rare word again never pays with clipping.
    again = ["red red red red red red", *SAID[1:]]
    assert cider(again, HUMAN)[0] < cider(again, HUMAN, variant="plain")[0]


# What Stanford's tokeniser gives (stanford-corenlp 3.4.1 -lowerCase, marks on the evaluation's list left out).
PUBLISHED = {
    "A man's t-shirt doesn't fit.": "a man 's t-shirt does n't fit",
    "It's 12:30 o'clock -- really...": "it 's 12:30 o'clock really",
    "the dogs' bowl (a red one) and/or cat": "the dogs bowl -lrb- a red one -rrb- and/or cat",
    "I can't, cannot, won't; gonna go!": "i ca n't can not wo n't gon na go",
    'a "quoted" sign & $5 50% #1 at 3.5 p.m.': "a quoted sign & $ 5 50 % # 1 at 3.5 p.m.",
    "Mr. Smith in the U.S. with 1,000 cats.": "mr. smith in the u.s. with 1,000 cats",
    "the boy's and girls' 1980's-style T-shirts": "the boy 's and girls 1980 's style t-shirts",
    "two men,one dog .": "two men one dog",
    "5'10\" tall": "5 10 tall",
}


def test_words_are_those_of_the_published_evaluation():
    for text, words in PUBLISHED.items():
        assert " ".join(_words(text)) == words
    # A caption that people wrote with a hyphen is another than one without.
    human = [["a t-shirt"], ["a dog"]]
    assert cider(["a t shirt", "x"], human)[0] == 0 < cider(["a t-shirt", "x"], human)[0]


def test_document_frequencies_come_from_the_corpus():
    corpus = [*HUMAN, ["a red wall"], ["red"]]
    df = Counter(w for h in corpus for w in {w for t in h for w in t.split()})
    assert df["red"] == 3
    # Only "red" is shared: weights ln(5/3) and, for the unseen word, ln(5/1).
    a, b, cat = math.log(5 / 3), math.log(5), math.log(5 / 1)
    expected = 10 / 4 * a * a / (math.hypot(a, b) * math.hypot(a, cat))
    assert cider(["red zebra"], [["red cat"]], corpus=corpus)[0] == pytest.approx(expected)


def bleu_by_definition(captions, references):
    """Papineni et al.: clipped n-gram precisions, the brevity penalty of the nearest reference."""
    grams = lambda t, n: Counter(zip(*(t.split()[k:] for k in range(n))))  # noqa: E731
    logs = []
    for n in range(1, 5):
        right = sum(
            min(k, max(grams(r, n)[g] for r in h)) for c, h in zip(captions, references) for g, k in grams(c, n).items()
        )
        logs.append(math.log(right / sum(len(c.split()) - n + 1 for c in captions)))
    said = sum(len(c.split()) for c in captions)
    near = sum(
        min((abs(len(r.split()) - len(c.split())), len(r.split())) for r in h)[1] for c, h in zip(captions, references)
    )
    return 100 * math.exp(min(0, 1 - near / said) + sum(logs) / 4)


def test_bleu_is_sacrebleu_and_the_definition():
    import sacrebleu

    turned = [[h[k] if k < len(h) else None for h in HUMAN] for k in range(3)]
    expected = sacrebleu.corpus_bleu(SAID, turned, lowercase=True, smooth_method="none").score
    assert bleu4(SAID, HUMAN) == pytest.approx(expected)
    assert bleu4(SAID, HUMAN) == pytest.approx(bleu_by_definition(SAID, HUMAN))
    assert bleu4([h[1] for h in HUMAN], HUMAN) == pytest.approx(100)
    # "a cat" of "a big cat": 2 of 2 words, 0 of 1 pairs; lengths 2 and 3.
    assert bleu_counts(["a cat"], [["a big cat"]])[0].tolist() == [2, 0, 0, 0, 2, 1, 0, 0, 2, 3]


def test_chrf_and_similarity():
    import sacrebleu

    expected = [sacrebleu.sentence_chrf(c, h).score for c, h in zip(SAID, HUMAN)]
    np.testing.assert_allclose(chrf(SAID, HUMAN), expected)
    table = {"u": [3.0, 0.0], "v": [0.0, 2.0], "w": [1.0, 1.0]}
    found = sentence_similarity(["u", "w"], [["u", "v"], ["v"]], lambda t: [table[x] for x in t])
    np.testing.assert_allclose(found, [0.5, math.sqrt(0.5)])


def test_illegal_input():
    for metric in (bleu4, chrf, cider, lambda c, r: sentence_similarity(c, r, lambda t: np.ones((len(t), 2)))):
        with pytest.raises(DataError, match="2 captions and references for 1"):
            metric(["a", "b"], [["a"]])
        with pytest.raises(DataError, match="first is 0"):
            metric(["a"], ["a"])
    with pytest.raises(ConfigError, match="did you mean 'cider-d'"):
        cider(["a"], [["a"]], variant="ciderD")
    with pytest.raises(ConfigError, match="sigma"):
        cider(["a"], [["a"]], sigma=0)


def test_methods_beside_people():
    rng = np.random.default_rng(0)
    words = np.array(["cat", "dog", "bed", "tree", "boat", "wave", "grass", "bridge", "man", "red", "old", "big", "on"])
    truth = [rng.choice(words, 7) for _ in range(30)]
    noisy = lambda w, k: " ".join(np.where(rng.random(7) < k, rng.choice(words, 7), w))  # noqa: E731
    human = [[noisy(w, 0.2) for _ in range(5)] for w in truth]
    good = [noisy(w, 0.3) for w in truth]
    methods = {"good": good, "shuffled": good[1:] + good[:1]}
    vectors = {w: rng.standard_normal(8) for w in words}
    embed = lambda texts: [sum(vectors[w] for w in t.split()) for t in texts]  # noqa: E731
    scores, differences = compare_captions(methods, human, baselines=["shuffled"], n_bootstraps=200, embed=embed)
    values = scores.pivot(index="method", columns="metric", values="value")
    assert set(values.columns) == set(METRICS)
    assert (values.loc["human (leave one out)"] > values.loc["good"]).all()
    assert (values.loc["good"] > values.loc["shuffled"]).all()
    assert ((scores["low"] <= scores["value"]) & (scores["value"] <= scores["high"])).all()
    assert (differences["low"] > 0).all()
    # Averages over what is left out, by hand.
    each = [cider(good, [[c for j, c in enumerate(h) if j != k] for h in human]).mean() for k in range(5)]
    assert values.loc["good", "cider"] == pytest.approx(np.mean(each))
    again, _ = compare_captions(methods, human, n_bootstraps=200, embed=embed)
    assert again.equals(scores)
    with pytest.raises(DataError, match="legal is one number"):
        compare_captions(methods, [["a"]])
    with pytest.raises(ConfigError, match="no methods"):
        compare_captions(methods, human, baselines=["retrieval"], embed=embed)
