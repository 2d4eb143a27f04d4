"""Captions that say what the encoder bears out: phrases without an effect on the voxel are taken out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from neuroenc._core.checks import at_least
from neuroenc._core.tables import check_columns
from neuroenc.captions.checks._grounding import GroundingChecker
from neuroenc.captions.checks._verifiers import EFFECT
from neuroenc.captions.decoding._search import text_key
from neuroenc.captions.text._phrases import Phrase
from neuroenc.captions.text._words import word_set

#: Words between a phrase and what stands in front of it: they go where it goes.
_FRONT = re.compile(rf"(?:\b(?:{'|'.join(sorted(word_set('determiners')))})\s+)+$", re.IGNORECASE)
# "a person running": what a phrase does stands behind it.
_DOING = re.compile(r"(?:\s+[a-z]+ing\b)+")
_VOWELS = tuple("aeiou")


class _Kept(NamedTuple):
    """Phrase ``number`` of a caption, without its first ``drop`` words, and its effect."""

    number: int
    drop: int
    effect: float


def trim_captions(captions: pd.DataFrame, checker: GroundingChecker, *, effect: float = EFFECT) -> pd.DataFrame:
    r"""Take phrases out of captions that make no difference to the voxel's predicted response.

    A phrase p of voxel v stays if :math:`d_{vp} \ge \delta`, with the standardised difference of predicted responses
    between images of the bank that show it and images that do not (:meth:`GroundingChecker.effects`). Where a whole
    phrase has too small an effect, or too few images show it, its first words are dropped until what is left has one
    ("small red book" becomes "book"). What stands between two phrases that stay next to each other stays; where a
    phrase between them goes, "and" takes its place. A caption of which nothing stays is left out, captions that become
    alike count once, and a voxel of whose captions nothing stays keeps its single strongest phrase.

    So a caption ends where the weights have nothing left to say, whatever a language model would go on with.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, rank, caption`` and further columns, which are kept.
    checker : GroundingChecker
        With ``judge="responses"``. With ``apart=True`` its verdicts rest on other images than those that phrases are
        chosen by here, so that they are no foregone conclusion.
    effect : float
        :math:`\delta` in standard deviations of the predicted response; 0.5 is a medium effect by Cohen's convention.

    Returns
    -------
    DataFrame
        As ``captions``, ranks counted anew, with ``written``, each caption as the decoder wrote it. ``predicted``,
        where it was known, is of the new caption.

    Raises
    ------
    ConfigError
        A checker that does not predict responses.
    DataError
        Voxels that the checker does not know.

    References
    ----------
    Peng et al. Mitigating object hallucinations via sentence-level early intervention (SENTINEL). ICCV 2025.

    Examples
    --------
    A voxel that dogs drive, whose caption goes on as captions do:

    >>> import numpy as np, pandas as pd
    >>> from neuroenc.captions import GroundingChecker, trim_captions
    >>> names = ["dog", "house", "pizza", "sign", "hand"]
    >>> told = {f"{n}{k}": [f"a {n}"] for n in names for k in range(20)}
    >>> bank = np.repeat(np.eye(5), 20, axis=0)
    >>> best = pd.DataFrame({"voxel": 0, "rank": range(1, 6), "stimulus": [f"dog{k}" for k in range(5)]})
    >>> def embed_text(texts):
    ...     return np.array([[float(n in t) for n in names] for t in texts]) + 0.01
    >>> checker = GroundingChecker(
    ...     np.eye(5)[:, :1], best, told, embed_text, bank=(bank, list(told)), judge="responses", engine="rules")
    >>> said = pd.DataFrame({"voxel": [0], "rank": [1], "caption": ["a brown dog in front of a house."]})
    >>> trim_captions(said, checker)["caption"].tolist()
    ['a dog.']
    """
    check_columns(captions, ("voxel", "rank", "caption"), "captions")
    at_least("effect", effect)
    texts = captions["caption"].astype(str).tolist()
    several, rows = checker.find(texts), checker.rows(captions["voxel"].tolist())
    # Every phrase, and what is left of it without its first words.
    claims = [
        (k, number, drop, _without(phrase, drop))
        for k, phrases in enumerate(several)
        for number, phrase in enumerate(phrases)
        for drop in range(phrase.n_words)
    ]
    found = checker.effects(rows[[k for k, *_ in claims]], [p for *_, p in claims]) if claims else np.zeros(0)
    best: dict[tuple[int, int], _Kept] = {}
    strongest: dict[int, tuple[float, str]] = {}
    for (k, number, drop, phrase), d in zip(claims, found.tolist(), strict=True):
        if d >= effect and (k, number) not in best:
            best[k, number] = _Kept(number, drop, d)
        if drop == 0 and (k not in strongest or d > strongest[k][0]):
            strongest[k] = (d, phrase.text)
    new = [
        _edited(t, p, [best[k, n] for n in range(len(p)) if (k, n) in best])
        for k, (t, p) in enumerate(zip(texts, several))
    ]
    frame = captions.assign(caption=np.array(new, dtype=object), written=np.array(texts, dtype=object))
    keep = np.array([text != "" for text in new], dtype=bool)
    place = np.arange(len(frame))
    for _, part in frame.reset_index(drop=True).groupby("voxel", sort=False):
        if not keep[part.index].any():
            # Nothing has an effect: the strongest of its phrases, which the verdicts will show for what it is.
            known = [(strongest[k][0], -k) for k in part.index if k in strongest and np.isfinite(strongest[k][0])]
            k = -max(known)[1] if known else int(part.index[0])
            new[k] = _sentence(f"a {strongest[k][1]}", texts[k]) if known else texts[k]
            keep[k] = True
    frame["caption"] = np.array(new, dtype=object)
    frame = frame[keep].assign(place=place[keep]).sort_values(["place"], kind="stable")
    frame = frame.loc[~frame.assign(key=frame["caption"].map(text_key)).duplicated(["voxel", "key"])]
    frame = frame.drop(columns="place").reset_index(drop=True)
    frame["rank"] = frame.groupby("voxel", sort=False).cumcount() + 1
    if "predicted" in frame and frame["predicted"].notna().any():
        frame["predicted"] = checker.predicted(frame["voxel"].tolist(), frame["caption"].tolist())
    return frame


def _without(phrase: Phrase, drop: int) -> Phrase:
    words = phrase.key.split()[drop:]
    return Phrase(" ".join(words), phrase.start, phrase.end, phrase.head)


def _edited(text: str, phrases: Sequence[Phrase], kept: Sequence[_Kept]) -> str:
    """The caption with these phrases alone; "" for none."""
    parts: list[str] = []
    last: int | None = None
    for one in kept:
        phrase = phrases[one.number]
        if last is not None and one.number == last + 1:
            between = text[phrases[last].end : phrase.start]
        else:
            # What introduces the first phrase of a caption stays ("a picture of"), else the article alone.
            opening = text[: phrase.start]
            front = opening if one.number == 0 else "".join(_FRONT.findall(opening)[-1:])
            between = front if last is None else _and(parts, front)
        words = text[phrase.start : phrase.end].split()[one.drop :]
        if one.drop:
            between = _article(between, words[0])
        parts += [between, " ".join(words)]
        last = one.number
        doing = _DOING.match(text[phrase.end :])
        follower = phrases[last + 1].start if last + 1 < len(phrases) else len(text)
        goes_on = any(k.number == last + 1 for k in kept)
        if doing and phrase.end + doing.end() <= follower and not goes_on:
            parts.append(doing.group(0))
    return _sentence("".join(parts), text) if parts else ""


def _and(parts: Sequence[str], front: str) -> str:
    return f" and {front[:1].lower()}{front[1:]}"


def _article(between: str, word: str) -> str:
    """The text in front of a word, its last indefinite article agreeing with it."""
    right = "an" if word[:1].lower() in _VOWELS else "a"
    return re.sub(r"\b([Aa])n?(\s+)$", lambda m: f"{m[1]}{right[1:]}{m[2]}", between)


def _sentence(text: str, like: str) -> str:
    """Capital and full stop as the caption had them."""
    text = text.strip(" ,")
    text = text[:1].upper() + text[1:] if like[:1].isupper() else text
    return text + ("." if like.rstrip().endswith(".") and not text.endswith(".") else "")
