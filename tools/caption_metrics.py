"""How like human captions captions are: BLEU-4, chrF, CIDEr, and the cosine of sentence vectors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require

__all__ = ["bleu4", "bleu_counts", "bleu_of_counts", "chrf", "cider", "sentence_similarity"]

Phrases = Counter[tuple[str, ...]]
References = Sequence[Sequence[str]]
_LONGEST = 4


def _check(captions: Sequence[str], references: References) -> None:
    if isinstance(captions, str) or len(captions) != len(references) or not len(captions):
        raise DataError(f"{len(captions)} captions and references for {len(references)}; legal is one entry each.")
    bad = [k for k, several in enumerate(references) if isinstance(several, str) or not len(several)]
    if bad:
        raise DataError(f"references of {len(bad)} captions are no lists of texts, or empty; the first is {bad[0]}.")


def bleu_counts(captions: Sequence[str], references: References) -> np.ndarray:
    """What corpus BLEU adds up, int64 (m, 10): n-grams found and tried (4 each), length, nearest reference's length.

    Parameters
    ----------
    captions : sequence of str (m,)
    references : sequence of sequences of str (m, several)
    """
    _check(captions, references)
    metric = require("sacrebleu", "offline").metrics.BLEU(lowercase=True, effective_order=True)
    scores = [
        metric.sentence_score(c.rstrip(" ."), [r.rstrip(" .") for r in several])
        for c, several in zip(captions, references)
    ]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], dtype=np.int64)


def bleu_of_counts(counts: Any) -> float:
    """BLEU-4, 0 to 100, of summed `bleu_counts` (10,)."""
    row = [int(x) for x in np.asarray(counts)]
    compute = require("sacrebleu", "offline").metrics.BLEU.compute_bleu
    found = compute(row[:4], row[4:8], row[8], row[9], smooth_method="none", max_ngram_order=_LONGEST)
    return float(found.score)


def bleu4(captions: Sequence[str], references: References) -> float:
    """Corpus BLEU-4 of lower-case captions without their final stop, 0 to 100, by sacrebleu (tokens ``13a``).

    Parameters
    ----------
    captions : sequence of str (m,)
    references : sequence of sequences of str (m, several)

    References
    ----------
    Papineni et al. BLEU: a method for automatic evaluation of machine translation. ACL 2002.
    Post. A call for clarity in reporting BLEU scores. WMT 2018.

    Examples
    --------
    >>> round(bleu4(["a red cat on the grass"], [["A red cat on the grass.", "There is a cat."]]), 6)
    100.0
    """
    return bleu_of_counts(bleu_counts(captions, references).sum(axis=0))


def chrf(captions: Sequence[str], references: References) -> np.ndarray:
    """chrF (characters up to 6, beta 2) of each caption to its best reference, 0 to 100, float64 (m,), by sacrebleu.

    Parameters
    ----------
    captions : sequence of str (m,)
    references : sequence of sequences of str (m, several)

    References
    ----------
    Popović. chrF: character n-gram F-score for automatic MT evaluation. WMT 2015.

    Examples
    --------
    >>> chrf(["a cat"], [["a cat", "a dog"]]).tolist()
    [100.0]
    """
    _check(captions, references)
    metric = require("sacrebleu", "offline").metrics.CHRF(lowercase=True)
    return np.array(
        [
            metric.sentence_score(c.rstrip(" ."), [r.rstrip(" .") for r in several]).score
            for c, several in zip(captions, references)
        ]
    )


# Tokens of the Penn treebank, as Stanford's tokeniser finds them in captions: words with their hyphens, inner stops and
# slashes; contractions apart; numbers; each other mark by itself.
_TOKEN = re.compile(
    r"""
    \b(?:mr|mrs|ms|dr|st|jr|sr|vs|prof|inc|corp|ltd|ave|blvd|rd|mt)\.
    | \b(?:[^\W\d_]\.){2,}(?:[^\W\d_]\b)?                                  # u.s.  d.v.d
    | n['\u2019]t\b | ['\u2019](?:s|m|d|ll|re|ve)\b                                  # what is left of a contraction
    | \d+(?:[.,:/]\d+)*(?:st|nd|rd|th|s)?(?:(?=[ap]m\b)|\b(?![-\w]))       # 1,000  3.5  12:30  1/2  2nd
    | \w+?(?=n['\u2019]t\b)                                                     # do|n't
    | \w+(?:[-/.@](?=\w)\w+ | ['\u2019](?!(?:s|m|d|ll|re|ve|t)\b)\w+)*            # t-shirt  and/or  o'clock
    | -{2,} | \.{2,} | [^\w\s]
    """,
    re.VERBOSE,
)
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
    # Brackets are words there: their lower-case names are not on its list of marks.
    "(": ("-lrb-",),
    ")": ("-rrb-",),
    "[": ("-lsb-",),
    "]": ("-rsb-",),
    "{": ("-lcb-",),
    "}": ("-rcb-",),
}
_NO_WORDS = frozenset((*"\"'`.?!,:-;\u2019\u2018\u201c\u201d\u2026", "''", "``", "--", "..", "..."))


def _words(text: str) -> list[str]:
    """Lower-case tokens as the published evaluation counts them: "t-shirt" is one, "man's" is two, marks are none.

    >>> _words("A man's t-shirt doesn't fit.")
    ['a', 'man', "'s", 't-shirt', 'does', "n't", 'fit']
    """
    found: list[str] = []
    for token in _TOKEN.findall(text.lower()):
        found.extend(_JOINED.get(token, (token,)))
    return [t.replace("\u2019", "'") for t in found if t not in _NO_WORDS]


def _phrases(text: str) -> list[Phrases]:
    words = _words(text)
    return [Counter(zip(*(words[k:] for k in range(n)))) for n in range(1, _LONGEST + 1)]


class _Weights:
    """Inverse document frequencies: a document is all that was said of one image."""

    def __init__(self, corpus: References) -> None:
        self.documents = len(corpus)
        self.seen: Counter[tuple[str, ...]] = Counter()
        for several in corpus:
            self.seen.update({g for text in several for phrases in _phrases(text) for g in phrases})

    def vector(self, phrases: Phrases) -> dict[tuple[str, ...], float]:
        return {g: n * math.log(self.documents / max(1, self.seen[g])) for g, n in phrases.items()}


def _norm(vector: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(v * v for v in vector.values()))


def cider(
    captions: Sequence[str],
    references: References,
    *,
    corpus: References | None = None,
    variant: str = "cider",
    sigma: float = 6.0,
) -> np.ndarray:
    r"""CIDEr of each caption, 0 to 10: cosine of its weighted n-grams with those of human captions.

    .. math:: \mathrm{CIDEr}(c, S) = \frac{10}{4} \sum_{n=1}^{4} \frac{1}{|S|} \sum_{s \in S}
        e^{-(l(c) - l(s))^2 / 2 \sigma^2} \,
        \frac{\min(g^n(c), g^n(s)) \cdot g^n(s)}{\|g^n(c)\| \, \|g^n(s)\|}, \qquad
        g_k = h_k \log \frac{|I|}{\max(1, |\{i : k \in S_i\}|)}

    with h_k how often n-gram k is said, I the images of the corpus and l lengths in words. This is what the published
    evaluation (pycocoevalcap) computes and papers quote as CIDEr; its authors call it CIDEr-D. The plain form of the
    paper's equations neither clips nor looks at lengths, so that saying confident words often pays. A perfect caption
    has 10 only where every order has an n-gram that not all images share; both are often quoted times 100. Counts are
    not divided by the caption's length, as in the published evaluation, and words are not stemmed.

    Words are those of the published evaluation, without its Java: lower-case tokens of the Penn treebank ("t-shirt" is
    one, "man's" is two) without punctuation. Of 25,014 captions of COCO val2017, 7 are cut otherwise there
    (abbreviations that end a caption).

    Parameters
    ----------
    captions : sequence of str (m,)
    references : sequence of sequences of str (m, several)
    corpus : sequence of sequences of str, optional
        Captions of images for document frequencies; default ``references``.
    variant : {"cider", "cider-d", "plain"}
        "cider-d" is another name of "cider".
    sigma : float

    Returns
    -------
    ndarray (m,) float64
        The mean is the corpus' score.

    Raises
    ------
    DataError
        Numbers do not agree, or there is no reference.
    ConfigError
        Unknown ``variant``, ``sigma`` not positive.

    References
    ----------
    Vedantam, Zitnick, Parikh. CIDEr: Consensus-based image description evaluation. CVPR 2015.

    Examples
    --------
    >>> human = [["a red cat on the grass"], ["two boats near an old bridge"]]
    >>> cider(["a red cat on the grass", "a red cat on the grass"], human).round(6).tolist()
    [10.0, 0.0]
    """
    _check(captions, references)
    if variant not in ("cider", "cider-d", "plain"):
        raise ConfigError(unknown_name("variant", variant, ("cider", "cider-d", "plain")))
    clip = variant != "plain"
    if not sigma > 0:
        raise ConfigError(f"sigma={sigma!r} is not legal; it must be positive.")
    weights = _Weights(references if corpus is None else corpus)
    out = np.zeros(len(captions))
    for k, (caption, several) in enumerate(zip(captions, references)):
        mine, length = [weights.vector(p) for p in _phrases(caption)], len(_words(caption))
        for text in several:
            total = 0.0
            for a, b in zip(mine, (weights.vector(p) for p in _phrases(text))):
                size = _norm(a) * _norm(b)
                if size > 0:
                    shared = a.keys() & b.keys()
                    total += sum((min(a[g], b[g]) if clip else a[g]) * b[g] for g in sorted(shared)) / size
            if clip:
                total *= math.exp(-((length - len(_words(text))) ** 2) / (2 * sigma**2))
            out[k] += 10.0 / _LONGEST * total / len(several)
    return out


def sentence_similarity(
    captions: Sequence[str], references: References, embed: Callable[[list[str]], Any] | None = None
) -> np.ndarray:
    """Mean cosine of each caption's sentence vector with those of its references, float64 (m,).

    Parameters
    ----------
    captions : sequence of str (m,)
    references : sequence of sequences of str (m, several)
    embed : callable, optional
        ``embed(list of str) -> (n, d)``; default MiniLM (``TextEmbedder("minilm")``).

    Examples
    --------
    >>> table = {"a cat": [1.0, 0.0], "a dog": [0.0, 1.0]}
    >>> sentence_similarity(["a cat"], [["a cat", "a dog"]], lambda texts: [table[t] for t in texts]).tolist()
    [0.5]
    """
    _check(captions, references)
    if embed is None:
        from neuroenc.embedding import TextEmbedder

        embedder = TextEmbedder("minilm", cache=False, progress=False)
        embed = lambda texts: embedder.embed(texts).values  # noqa: E731
    different = list(dict.fromkeys([*captions, *(r for several in references for r in several)]))
    vectors = np.asarray(embed(different), dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {t: k for k, t in enumerate(different)}
    return np.array(
        [
            vectors[place[c]] @ vectors[[place[r] for r in several]].mean(axis=0)
            for c, several in zip(captions, references)
        ]
    )
