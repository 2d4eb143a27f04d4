"""What stands behind captions: the best images of a voxel, and the words of a region."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._util.errors import ConfigError, DataError, unknown_name
from neuroenc.captions._linear import as_weights, voxel_labels
from neuroenc.captions._projection import IdCollector
from neuroenc.retrieval import as_bank, top_k

__all__ = ["STOP_WORDS", "evidence", "nouns"]

_STOP = """
a about above across after all along also among an and another any are around as at background be been
behind being below beside between big both bottom but by can close closeup colored coloured corner couple
different down each edge few focus for foreground from front full group has have having he her his
holding image in inside into is it its large left little looking lot lots lower lying made many middle
more most near next no not number of off on one onto or other others out over pair part photo photograph
picture piece pieces scene set several shot shown showing shows side sides sitting small some standing
taken that the their them there these they this three through to together top towards two under up upper
very view visible was well were what when where which while who with without wide you your"""
STOP_WORDS = frozenset(_STOP.split())


def evidence(
    coef: Any,
    bank: Any,
    *,
    intercept: Any = None,
    k: int = 8,
    features_normalised: bool = True,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    """The k images of a bank with the highest predicted response ``W . x + b`` of each voxel.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
    bank : see :func:`neuroenc.retrieval.as_bank`
        Image embeddings (n, feature), any norm.
    intercept : array (voxel,), optional
    k : int
        At most the number of images.
    features_normalised : bool
        Whether the encoder was fitted on unit-norm features; x is then the unit-norm embedding.
    max_memory : str, int or None

    Returns
    -------
    DataFrame, one row per voxel and rank
        ``voxel, rank`` (from 1)``, stimulus`` (id)``, predicted`` (units of the responses) and the voxel
        coordinates present. Voxels with zero or NaN weights have no row.

    Raises
    ------
    DataError
        k larger than the bank, width mismatch, NaN embeddings.

    Examples
    --------
    >>> import numpy as np
    >>> bank = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> evidence(np.array([[0.0], [3.0]]), bank, k=2)[["stimulus", "predicted"]].round(2).values.tolist()
    [['1', 3.0], ['2', 2.12]]
    """
    weights = as_weights(coef, intercept)
    rows = np.flatnonzero(weights.valid())
    matrix = weights.matrix()[rows]
    ids = IdCollector()
    columns = ["voxel", "rank", "stimulus", "predicted"]
    if len(rows) == 0:
        return pd.concat([pd.DataFrame({c: [] for c in columns}), voxel_labels(weights.coef, rows)], axis=1)
    score, at = top_k(
        matrix, as_bank(bank), k, normalise=features_normalised, max_memory=max_memory, seen=ids
    )
    predicted = score.astype(np.float64)
    if features_normalised:
        predicted *= np.linalg.norm(matrix, axis=1)[:, None]
    predicted += weights.intercept[rows][:, None]
    voxel = np.repeat(rows, k)
    frame = pd.DataFrame(
        {
            "voxel": weights.coef["voxel"].values[voxel],
            "rank": np.tile(np.arange(1, k + 1), len(rows)),
            "stimulus": ids.names(at).ravel().astype(object),
            "predicted": predicted.ravel(),
        }
    )
    return pd.concat([frame, voxel_labels(weights.coef, voxel)], axis=1)


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
