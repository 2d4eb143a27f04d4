"""Words and families of words in the captions of each region."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.captions._stop_words import STOP_WORDS

__all__ = ["nouns"]


def _family(word: str, lexicon: Mapping[str, str] | Callable[[str], str | None]) -> str | None:
    look = lexicon if callable(lexicon) else lexicon.get
    for form in (word, word[:-1] if word.endswith("s") else "", word[:-2] if word.endswith("es") else ""):
        if form and (found := look(form)) is not None:
            return str(found)
    return None


def nouns(
    captions: pd.DataFrame,
    lexicon: Mapping[str, str] | Callable[[str], str | None] | None = None,
    *,
    stop: Iterable[str] = STOP_WORDS,
    by: str = "word",
    max_rank: int | None = None,
) -> pd.DataFrame:
    """Counts of words (or of families of words) in the captions of each region.

    A word counts once a caption. No part of speech is known here: without ``lexicon`` all words outside
    the stop list and of at least two letters count.

    Parameters
    ----------
    captions : DataFrame
        From a decoder; columns ``voxel, rank, caption`` and, if regions are known, ``roi`` (names joined
        by ";": such a voxel counts in each; "" counts as "none").
    lexicon : mapping or callable, word -> family, optional
        Only words that it knows count (a regular plural is looked up as its singular, too).
    stop : iterable of str
    by : "word" or "family"
        Count words, or families of the lexicon.
    max_rank : int, optional
        Only captions up to this rank; 1 is the best caption of each voxel.

    Returns
    -------
    DataFrame
        ``roi, word, count, share`` (of the region's captions), and ``family`` with a lexicon; with
        ``by="family"`` ``word`` is the family. Sorted by roi, then count. roi is "all" where the captions
        have no roi column.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"voxel": [0, 1], "rank": 1, "caption": ["A close up of a dog.", "two dogs"],
    ...                       "roi": ["FFA;OFA", "FFA"]})
    >>> nouns(frame, {"dog": "animal"}, by="family").values.tolist()
    [['FFA', 'animal', 2, 1.0], ['OFA', 'animal', 1, 1.0]]
    """
    if by not in ("word", "family"):
        raise ConfigError(unknown_name("by", by, ("word", "family")))
    if by == "family" and lexicon is None:
        raise ConfigError("by='family' needs a lexicon that maps words to families.")
    if "caption" not in captions:
        raise DataError(f"captions have columns {list(captions.columns)}; 'caption' is needed.")
    if max_rank is not None:
        captions = captions[captions["rank"] <= max_rank]
    stopped = {x.casefold() for x in stop}
    counts: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    families: dict[str, str] = {}
    regions = captions["roi"] if "roi" in captions else ["all"] * len(captions)
    for text, names in zip(captions["caption"], regions):
        found: set[str] = set()
        for word in re.findall(r"[^\W\d_]{2,}", str(text).casefold()):
            if word in stopped:
                continue
            if lexicon is None:
                found.add(word)
            elif (family := _family(word, lexicon)) is not None:
                families[word] = family
                found.add(family if by == "family" else word)
        for roi in [x for x in str(names).split(";") if x] or ["none"]:
            totals[roi] += 1
            counts.setdefault(roi, Counter()).update(found)
    rows = [
        (roi, word, count, count / totals[roi])
        for roi, words in sorted(counts.items())
        for word, count in sorted(words.items(), key=lambda x: (-x[1], x[0]))
    ]
    out = pd.DataFrame(rows, columns=["roi", "word", "count", "share"])
    if lexicon is not None and by == "word":
        out["family"] = [families[x] for x in out["word"]]
    return out
