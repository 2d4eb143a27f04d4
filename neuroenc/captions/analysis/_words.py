"""Words, attributes, relations and nouns of the captions of each region, tested across regions."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import hypergeom

from neuroenc import stats
from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.tables import check_columns
from neuroenc.captions.text._phrases import PARTS, has_spacy, parse, parts_of
from neuroenc.captions.text._words import STOP_LEMMAS, STOP_PHRASES, STOP_WORDS, strip_phrases, tokens

Floats = np.ndarray


def fisher_enrichment(has: sparse.csr_matrix, inside: Floats) -> Floats:
    r"""One-sided Fisher exact p of every term, ``P(X >= k)`` with :math:`X \sim Hypergeom(N, K, n)`.

    Parameters
    ----------
    has : csr_matrix (voxel, term)
        Positive where a caption of the voxel holds the term.
    inside : bool array (voxel,)
        The n voxels of the region, of N; K voxels have the term, k of them inside.

    Returns
    -------
    ndarray (term,)
    """
    held = (has > 0).astype(np.float64)
    total = np.asarray(held.sum(axis=0)).ravel()
    here = np.asarray(inside.astype(np.float64) @ held).ravel()
    return np.asarray(hypergeom.sf(here - 1, len(inside), total, inside.sum()))


def check_captions(captions: pd.DataFrame, max_rank: int | None = None, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rows up to ``max_rank``; an error where needed columns are absent or nothing is left."""
    needed = ["voxel", "caption", *columns, *(["rank"] if max_rank is not None else [])]
    check_columns(captions, needed, "captions", "Next step: pass the table of a decoder (one row per voxel and rank).")
    if max_rank is not None:
        captions = captions[captions["rank"] <= max_rank]
    if len(captions) == 0:
        raise DataError("the captions table has 0 rows; at least one caption is needed.")
    return captions.reset_index(drop=True)


def region_masks(rois: Iterable[Any]) -> dict[str, np.ndarray]:
    """Rows of each region, sorted by name: names joined by ";" count in each, "" counts as "none"."""
    codes, names = pd.factorize(np.asarray([str(x) for x in rois], dtype=object))
    found: dict[str, np.ndarray] = {}
    for code, entry in enumerate(names):
        here = codes == code
        for roi in [x for x in str(entry).split(";") if x] or ["none"]:
            found[roi] = found[roi] | here if roi in found else here
    return dict(sorted(found.items()))


def roi_strings(table: pd.DataFrame) -> Iterable[Any]:
    """The roi column, or "all" for every row where there is none."""
    return table["roi"] if "roi" in table else ["all"] * len(table)


def voxel_keys(captions: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Number of each row's voxel, and one row per voxel in order of appearance.

    Voxels of several subjects are told apart by a ``subject`` column.
    """
    columns = ["subject", "voxel"] if "subject" in captions else ["voxel"]
    number = captions.groupby(columns, sort=False).ngroup().to_numpy()
    first = np.unique(number, return_index=True)[1]
    return number, captions.iloc[first].reset_index(drop=True)


def unique_texts(texts: Iterable[Any]) -> tuple[list[str], np.ndarray]:
    """Different texts in order of appearance, and which one each row has."""
    codes, names = pd.factorize(np.asarray([str(x) for x in texts], dtype=object))
    return [str(x) for x in names], codes


@dataclass(frozen=True)
class Terms:
    """Which caption holds which term.

    Attributes
    ----------
    names : list
        Terms (text, or any hashable).
    rows : csr_matrix (caption, term)
        1 where the caption holds the term.
    """

    names: list[Any]
    rows: sparse.csr_matrix

    def by_voxel(self, voxel: np.ndarray, n_voxels: int) -> sparse.csr_matrix:
        """Number of captions of each voxel that hold each term (voxel, term)."""
        return sparse.csr_matrix(indicator(voxel, n_voxels) @ self.rows)


def indicator(groups: np.ndarray, n: int) -> sparse.csr_matrix:
    """Matrix (group, row) with 1 where the row is in the group."""
    one = np.ones(len(groups))
    return sparse.csr_matrix((one, (groups, np.arange(len(groups)))), shape=(n, len(groups)))


def count_terms(found: Sequence[Iterable[Any]], codes: np.ndarray) -> Terms:
    """Terms of every row from the terms of the different texts; a term counts once a caption."""
    number: dict[Any, int] = {}
    at, term = [], []
    for i, terms in enumerate(found):
        for name in sorted(set(terms)):
            at.append(i)
            term.append(number.setdefault(name, len(number)))
    shape = (len(found), len(number))
    unique = sparse.csr_matrix((np.ones(len(at)), (at, term)), shape=shape)
    return Terms(list(number), sparse.csr_matrix(unique[codes]))


def frequent_terms(
    found: Sequence[Iterable[Any]], codes: np.ndarray, voxel: np.ndarray, n_voxels: int, min_voxels: int
) -> tuple[Terms, sparse.csr_matrix]:
    """Terms of at least ``min_voxels`` voxels, and how many captions of each voxel hold each (voxel, term)."""
    terms = count_terms(found, codes)
    per_voxel = terms.by_voxel(voxel, n_voxels)
    at = np.flatnonzero(np.asarray((per_voxel > 0).sum(axis=0)).ravel() >= min_voxels)
    return Terms([terms.names[i] for i in at], sparse.csr_matrix(terms.rows[:, at])), per_voxel[:, at]


_COLUMNS = ["roi", "part", "word", "count", "share", "lift", "n_voxels", "p", "q"]


def words(
    captions: pd.DataFrame,
    parts: Iterable[str] = PARTS,
    *,
    stop_phrases: Iterable[str] = STOP_PHRASES,
    stop: Iterable[str] = STOP_LEMMAS,
    max_rank: int | None = None,
    min_voxels: int = 2,
    parser: str = "auto",
    model: str | None = None,
) -> pd.DataFrame:
    r"""Count nouns, verbs, attributes and relations in the captions of each region, and test them.

    .. math:: \mathrm{share}_{rw} = \frac{\#\{c \in r : w \in c\}}{\#\{c \in r\}}, \qquad
              \mathrm{lift}_{rw} = \frac{\mathrm{share}_{rw}}{\mathrm{share}_{\cdot w}}

    over captions c (voxels and ranks), a word counted once a caption; :math:`\mathrm{share}_{\cdot w}` is that in
    all captions. Voxels, not captions, are the units of the test, because the captions of one voxel are alike.
    Neighbouring voxels are alike, too: p and q say how unusual a word is among voxels that could be exchanged,
    so across subjects the words that recur say more than a small p does.

    Parameters
    ----------
    captions : DataFrame
        Columns ``voxel, caption`` (``rank, roi, subject`` if known; a roi such as "FFA;OFA" counts in each). With
        ``fold``, as captions of disjoint parts of a bank have it, shares are also taken fold by fold.
    parts : iterable of {"noun", "verb", "attribute", "relation"}
        Attributes are adjective and noun ("brown dog"), relations "person ride wave" or "person on surfboard".
    stop_phrases : iterable of str
        "A PHRASE of" is removed before parsing, so that "a close up of a dog" has no noun "close".
    stop : iterable of str
        Lemmas that do not count.
    max_rank : int, optional
        Only captions up to this rank.
    min_voxels : int
        Words of fewer voxels (in all regions) are left out, and out of the correction.
    parser : {"auto", "spacy", "none"}
        "auto" parses with spaCy where it is installed, and otherwise warns and counts words as
        :func:`neuroenc.captions.nouns` does, as part "noun".
    model : str, optional
        spaCy pipeline, the small English one by default.

    Returns
    -------
    DataFrame
        ``roi, part, word, count`` (captions)``, share, lift, n_voxels`` (of the region, with the word)``, p`` (Fisher's
        exact test of "a voxel of the region has the word" against all other voxels, one-sided: more here) and ``q``
        (Benjamini-Hochberg over all rows' tests), with folds also ``share_sd``, the standard deviation of the share
        over folds. Sorted by roi, part, then count. roi is "all" where captions
        have none; lift is then 1 and p is NaN.

    Raises
    ------
    DataError
        Columns are absent, or there are no captions.
    ConfigError
        An unknown part or parser.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 4). Honnibal et al., spaCy.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"voxel": range(6), "rank": 1, "roi": ["FFA"] * 3 + ["PPA"] * 3, "caption": [
    ...     "a dog", "two dogs", "a close up of a dog", "a house", "a house", "a street"]})
    >>> words(frame, ["noun"], parser="none")[["roi", "word", "count", "lift"]].values.tolist()
    [['FFA', 'dog', 2, 2.0], ['PPA', 'house', 2, 2.0]]
    """
    wanted = [str(p) for p in parts]
    for part in wanted:
        one_of("part", part, PARTS)
    one_of("parser", parser, ("auto", "spacy", "none"))
    captions = check_captions(captions, max_rank)
    voxel, first = voxel_keys(captions)
    texts, codes = unique_texts(captions["caption"])
    found = _found(strip_phrases(texts, stop_phrases), wanted, frozenset(stop), parser, model)
    terms, per_voxel = frequent_terms(found, codes, voxel, len(first), min_voxels)
    overall = np.asarray(terms.rows.sum(axis=0)).ravel() / len(captions)
    fold = captions["fold"].to_numpy() if "fold" in captions else None
    frames = []
    for roi, rows in region_masks(roi_strings(captions)).items():
        inside = np.zeros(len(first), dtype=bool)
        inside[voxel[rows]] = True
        count = np.asarray(rows.astype(np.float64) @ terms.rows).ravel()
        p = np.full(len(terms.names), np.nan) if inside.all() else fisher_enrichment(per_voxel, inside)
        share = count / int(rows.sum())
        frame = pd.DataFrame(
            {
                "roi": roi,
                "part": [part for part, _ in terms.names],
                "word": [word for _, word in terms.names],
                "count": count.astype(int),
                "share": share,
                "lift": share / overall,
                "n_voxels": np.asarray(inside.astype(np.float64) @ (per_voxel > 0)).ravel().astype(int),
                "p": p,
            }
        )
        if fold is not None:
            frame.insert(5, "share_sd", _share_sd(terms.rows, fold, rows))
        frames.append(frame[count > 0])
    out = pd.concat(frames, ignore_index=True)
    out["q"] = stats.fdr(out["p"])
    order = {part: i for i, part in enumerate(PARTS)}
    out["_part"] = out["part"].map(order)
    out = out.sort_values(["roi", "_part", "count", "word"], ascending=[True, True, False, True], kind="stable")
    return out[[*_COLUMNS[:5], *(["share_sd"] if fold is not None else []), *_COLUMNS[5:]]].reset_index(drop=True)


def _share_sd(has: sparse.csr_matrix, fold: np.ndarray, rows: np.ndarray) -> Floats:
    """Standard deviation over folds of the share of a region's captions that hold each term; NaN with one fold."""
    inside = [rows & (fold == k) for k in np.unique(fold[rows])]
    shares = np.array([np.asarray(x.astype(np.float64) @ has).ravel() / x.sum() for x in inside])
    return shares.std(axis=0, ddof=1) if len(shares) > 1 else np.full(has.shape[1], np.nan)


def _found(
    texts: list[str], wanted: list[str], stop: frozenset[str], parser: str, model: str | None
) -> list[list[tuple[str, str]]]:
    """(part, word) of every text."""
    if parser == "auto" and not has_spacy():
        warnings.warn(
            "spaCy is not installed: words are counted as nouns() does, without parts of speech, lemmas, attributes "
            "or relations. Next step: pip install 'neuroenc[language]', or parser=\"none\" to accept this.",
            stacklevel=3,
        )
        parser = "none"
    if parser == "none":
        left_out = STOP_WORDS | stop
        return [[("noun", w) for w in tokens(t) if len(w) > 1 and w not in left_out] for t in texts]

    def reduce(doc: object) -> list[tuple[str, str]]:
        parts = parts_of(doc, stop)
        return [(part, word) for part in wanted for word in parts[part]]

    return parse(texts, reduce, model=model)


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
    max_rank: int | None = None,
) -> pd.DataFrame:
    """Count words in the captions of each region.

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
    max_rank : int, optional
        Only captions up to this rank; 1 is the best caption of each voxel.

    Returns
    -------
    DataFrame
        ``roi, word, count, share`` (of the region's captions), and ``family`` with a lexicon. Sorted by roi, then
        count. roi is "all" where the captions have no roi column.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"voxel": [0, 1], "rank": 1, "caption": ["A close up of a dog.", "two dogs"],
    ...                       "roi": ["FFA;OFA", "FFA"]})
    >>> nouns(frame, {"dog": "animal"}).values.tolist()
    [['FFA', 'dog', 1, 0.5, 'animal'], ['FFA', 'dogs', 1, 0.5, 'animal'], ['OFA', 'dog', 1, 1.0, 'animal']]
    """
    check_columns(captions, ["caption"], "captions")
    if max_rank is not None:
        captions = captions[captions["rank"] <= max_rank]
    stopped = {x.casefold() for x in stop}
    found = [set(re.findall(r"[^\W\d_]{2,}", str(text).casefold())) - stopped for text in captions["caption"]]
    families: dict[str, str] = {}
    if lexicon is not None:
        known = {word: _family(word, lexicon) for several in found for word in several}
        families = {word: family for word, family in known.items() if family is not None}
        found = [{w for w in several if w in families} for several in found]
    rows: list[tuple[str, str, int, float]] = []
    for roi, mask in region_masks(roi_strings(captions)).items():
        counts = Counter(word for several, inside in zip(found, mask) if inside for word in several)
        ordered = sorted(counts.items(), key=lambda x: (-x[1], x[0]))
        rows += [(roi, word, count, count / int(mask.sum())) for word, count in ordered]
    out = pd.DataFrame(rows, columns=["roi", "word", "count", "share"])
    if lexicon is not None:
        out["family"] = [families[x] for x in out["word"]]
    return out
