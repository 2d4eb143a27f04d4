"""Which words, attributes and relations lead the captions of each region, and whether more than elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import pandas as pd

from neuroenc import stats
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.memory import parse_memory
from neuroenc.captions._stop_words import STOP_WORDS
from neuroenc.captions.analysis._association import fisher_enrichment, permutation_enrichment
from neuroenc.captions.analysis._parse import PARTS, parse, parts_of
from neuroenc.captions.analysis._spacy import has_spacy
from neuroenc.captions.analysis._stop_phrases import STOP_LEMMAS, STOP_PHRASES, strip_phrases, tokens
from neuroenc.captions.analysis._tables import (
    Terms,
    check_captions,
    count_terms,
    region_masks,
    roi_strings,
    unique_texts,
    voxel_keys,
)

__all__ = ["words"]

_COLUMNS = ["roi", "part", "word", "count", "share", "lift", "n_voxels", "p", "q"]


def words(
    captions: pd.DataFrame,
    parts: Iterable[str] = PARTS,
    *,
    stop_phrases: Iterable[str] = STOP_PHRASES,
    stop: Iterable[str] = STOP_LEMMAS,
    max_rank: int | None = None,
    min_voxels: int = 2,
    test: str = "fisher",
    n_permutations: int = 1000,
    seed: int = 0,
    parser: str = "auto",
    model: str | None = None,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    r"""Nouns, verbs, attributes and relations in the captions of each region.

    .. math:: \mathrm{share}_{rw} = \frac{\#\{c \in r : w \in c\}}{\#\{c \in r\}}, \qquad
              \mathrm{lift}_{rw} = \frac{\mathrm{share}_{rw}}{\mathrm{share}_{\cdot w}}

    over captions c (voxels and ranks), a word counted once a caption; :math:`\mathrm{share}_{\cdot w}` is that in
    all captions. Voxels, not captions, are the units of the test, because the captions of one voxel are alike.
    Neighbouring voxels are alike, too: p and q say how unusual a word is among voxels that could be exchanged,
    so across subjects the words that recur say more than a small p does.

    Parameters
    ----------
    captions : DataFrame
        Columns ``voxel, caption`` (``rank, roi, subject`` if known; a roi such as "FFA;OFA" counts in each).
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
    test : {"fisher", "permutation", "none"}
        Fisher's exact test of "a voxel of the region has the word" against all other voxels, or a permutation of
        voxels on the mean share of captions; both one-sided (more here). With several captions a voxel the second
        sees more (once or always are one to Fisher), but p is at least 1 / (1 + n_permutations).
    n_permutations, seed : int
        Of the permutation test.
    parser : {"auto", "spacy", "none"}
        "auto" parses with spaCy where it is installed, and otherwise warns and counts words as
        :func:`neuroenc.captions.nouns` does, as part "noun".
    model : str, optional
        spaCy pipeline, the small English one by default.
    max_memory : str, int or None
        For permutations.

    Returns
    -------
    DataFrame
        ``roi, part, word, count`` (captions)``, share, lift, n_voxels`` (of the region, with the word)``, p, q``
        (Benjamini-Hochberg over all rows' tests). Sorted by roi, part, then count. roi is "all" where captions
        have none; lift is then 1 and p is NaN.

    Raises
    ------
    DataError
        Columns are absent, or there are no captions.
    ConfigError
        An unknown part, test or parser.

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
        if part not in PARTS:
            raise ConfigError(unknown_name("part", part, PARTS))
    for name, value, legal in (
        ("test", test, ("fisher", "permutation", "none")),
        ("parser", parser, ("auto", "spacy", "none")),
    ):
        if value not in legal:
            raise ConfigError(unknown_name(name, value, legal))
    captions = check_captions(captions, max_rank)
    voxel, first = voxel_keys(captions)
    texts, codes = unique_texts(captions["caption"])
    found = _found(strip_phrases(texts, stop_phrases), wanted, frozenset(stop), parser, model)
    terms = count_terms(found, codes)
    per_voxel = terms.by_voxel(voxel, len(first))
    often = np.asarray((per_voxel > 0).sum(axis=0)).ravel() >= min_voxels
    terms, per_voxel = terms.keep(often), per_voxel[:, np.flatnonzero(often)]
    captions_of = np.bincount(voxel, minlength=len(first))
    overall = np.asarray(terms.rows.sum(axis=0)).ravel() / len(captions)
    frames = []
    for k, (roi, rows) in enumerate(region_masks(roi_strings(captions)).items()):
        inside = np.zeros(len(first), dtype=bool)
        inside[voxel[rows]] = True
        count = np.asarray(rows.astype(np.float64) @ terms.rows).ravel()
        p = np.full(len(terms.names), np.nan)
        if test == "fisher" and not inside.all():
            p = fisher_enrichment(per_voxel, inside)
        elif test == "permutation" and not inside.all():
            share = per_voxel.multiply(1.0 / captions_of[:, None]).tocsr()
            p = permutation_enrichment(share, inside, n_permutations, [seed, k], parse_memory(max_memory) // 4)
        frame = _region(roi, terms, count, int(rows.sum()), overall)
        frame["n_voxels"] = np.asarray(inside.astype(np.float64) @ (per_voxel > 0)).ravel().astype(int)
        frame["p"] = p
        frames.append(frame[count > 0])
    out = pd.concat(frames, ignore_index=True)
    out["q"] = stats.fdr(out["p"])
    order = {part: i for i, part in enumerate(PARTS)}
    out["_part"] = out["part"].map(order)
    out = out.sort_values(["roi", "_part", "count", "word"], ascending=[True, True, False, True], kind="stable")
    return out[_COLUMNS].reset_index(drop=True)


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


def _region(roi: str, terms: Terms, count: np.ndarray, n: int, overall: np.ndarray) -> pd.DataFrame:
    share = count / n
    return pd.DataFrame(
        {
            "roi": roi,
            "part": [part for part, _ in terms.names],
            "word": [word for _, word in terms.names],
            "count": count.astype(int),
            "share": share,
            "lift": share / overall,
        }
    )
