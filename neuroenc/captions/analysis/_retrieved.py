"""Stimuli, captions and categories that carry the n-grams of voxels, beside BM25."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions._linear import VOXEL_LABELS
from neuroenc.captions.analysis._lexicon import concept_maps
from neuroenc.captions.analysis._words import check_captions
from neuroenc.retrieval import LEVELS, CaptionCorpus, LexicalIndex

_FOUND = ["id", "text", "score", "ngrams", "bm25_rank", "bm25_id", "bm25_text", "bm25_score"]


def named_concepts(captions: Sequence[str], ids: Sequence[str]) -> dict[str, list[str]]:
    """Concepts of the lexicon that at least half of each stimulus' captions name.

    Parameters
    ----------
    captions : sequence of str (n,)
    ids : sequence of str (n,)
        Stimulus of each caption.

    Returns
    -------
    dict of stimulus to list of str
        Without stimuli whose captions name none.

    Examples
    --------
    >>> named_concepts(["Two men.", "a man", "a wall"], ["x", "x", "y"])
    {'x': ['person']}
    """
    frame = pd.DataFrame({"voxel": np.asarray(ids, dtype=str), "rank": 1, "caption": list(captions)})
    maps = concept_maps(frame, parser="rules")
    names, named = maps["concept"].values.astype(str), maps["named"].values
    found = {str(i): names[column].tolist() for i, column in zip(maps["voxel"].values, named.T)}
    return {i: several for i, several in found.items() if several}


def retrieve_stimuli(
    captions: pd.DataFrame,
    corpus: CaptionCorpus,
    projection: xr.Dataset | None = None,
    decoder: Any = None,
    *,
    levels: Sequence[str] = ("image", "caption", "category"),
    top: int = 5,
    **options: Any,
) -> pd.DataFrame:
    """Stimuli, captions and categories that carry the n-grams of voxels, with BM25's answer beside each (SEAL, UGR).

    With a decoder, n-grams are those that it writes for a voxel's projected weights, under the constraint that the
    corpus holds them; without one, those of the voxel's captions. BM25 is always asked with the words of the captions.

    Parameters
    ----------
    captions : DataFrame
        Columns ``voxel, rank, caption``.
    corpus : CaptionCorpus
        Captions of the stimuli that may be found.
    projection : Dataset, optional
        From :func:`neuroenc.captions.project`, of these voxels: with a decoder.
    decoder : PrefixDecoder, optional
        The captioner, or a decoder of :func:`train_retriever`, whose prompts then ask for each level.
    levels : sequence of {"image", "caption", "phrase", "category"}
        "category" is left out where the corpus knows none.
    top : int
        Answers of a voxel at each level.
    **options
        Of :class:`NGramRetriever`.

    Returns
    -------
    DataFrame
        One row per voxel, level and rank: ``voxel, level, rank``; ``id, text`` (a caption of it)``, score, ngrams``
        (with what each adds to the score) of the n-grams' answer, "" where they have none left; ``bm25_rank``, where
        BM25 has that answer (0 where it shares no word); ``bm25_id, bm25_text, bm25_score`` of BM25's own answer at
        this rank; and the voxel coordinates that the captions have.

    Raises
    ------
    DataError
        Voxels of captions that the projection does not hold.
    ConfigError
        Unknown levels, or one of projection and decoder without the other.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.
    Chen et al. A unified generative retriever for knowledge-intensive language tasks via prompt learning. SIGIR 2023.

    Examples
    --------
    >>> import pandas as pd
    >>> from neuroenc.captions import retrieve_stimuli
    >>> from neuroenc.retrieval import CaptionCorpus
    >>> corpus = CaptionCorpus(["A red cat by a wall.", "A cat.", "A dog by a tree.", "A red dog."], list("xxyz"))
    >>> said = pd.DataFrame({"voxel": [7], "rank": 1, "caption": "a red cat"})
    >>> found = retrieve_stimuli(said, corpus, levels=["image"], top=2, alpha=1.0, smoothing=0.0)
    >>> found[["voxel", "rank", "id", "ngrams", "bm25_rank", "bm25_id"]].values.tolist()[0]
    [7, 1, 'x', 'a red cat (2.01); red cat (0.40); a red (0.25); red (0.25); cat (0.25)', 1, 'x']
    """
    from neuroenc.captions.decoding._constraints import TrieConstraint
    from neuroenc.captions.decoding._ngram_retriever import NGramRetriever

    check_whole("top", top)
    asked = [one_of("level", level, LEVELS) for level in levels]
    if (projection is None) != (decoder is None):
        given, lacking = ("a projection", "decoder") if decoder is None else ("a decoder", "projection")
        raise ConfigError(f"{given} without a {lacking} finds nothing. Next step: give both, or neither.")
    said = check_captions(captions)
    said = said.sort_values("rank", kind="stable") if "rank" in said else said
    first = said.drop_duplicates("voxel").set_index("voxel").sort_index()
    voxels = first.index.to_numpy()
    words = said.groupby("voxel", sort=True)["caption"].agg(". ".join).tolist()
    vectors = mean = None
    if projection is not None:
        vectors = _embeddings(projection, voxels)
        mean = decoder.mean_of(projection)
    trained = getattr(decoder, "prompts", None) is not None
    if not trained:
        # A decoder of captions never learned names: its n-grams are looked up in all captions.
        options = {"closed": False, **options}
    written: dict[Any, Any] = {}
    parts = []
    # Not all captions are of a category, so that level comes last.
    for level in sorted(dict.fromkeys(asked), key="category".__eq__):
        if level == "category" and not corpus.categories:
            continue
        retriever = NGramRetriever(corpus, decoder, level=level, **options)
        if decoder is None:
            answers = retriever.search_texts(words, top)
        elif isinstance(retriever.constraint, TrieConstraint):
            answers = retriever.search(vectors, top, mean=mean)
        else:
            # Without prompts of levels, what is written is the same at every level of the same captions.
            key = level if trained or level == "phrase" else ""
            if key not in written:
                written[key] = retriever.write(vectors, mean=mean)
            answers = retriever.rank(written[key], top)
        parts.append(_beside(corpus, level, words, answers, top))
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["query", "level", "rank", *_FOUND])
    found = found.sort_values("query", kind="stable").reset_index(drop=True)
    at = found["query"].to_numpy(dtype=np.int64)
    found.insert(0, "voxel", voxels[at])
    labels = {c: first[c].to_numpy()[at] for c in ("subject", *VOXEL_LABELS) if c in first}
    return found.drop(columns="query").assign(**labels)


def _embeddings(projection: xr.Dataset, voxels: np.ndarray) -> np.ndarray:
    """Projected weights of these voxels, by name."""
    at = pd.Index(projection["voxel"].values).get_indexer(voxels)
    if (at < 0).any():
        raise DataError(
            f"the projection lacks {int((at < 0).sum())} of {len(voxels)} captioned voxels (first: "
            f"{voxels[at < 0][0]}). Next step: project the weights that were captioned."
        )
    return np.asarray(projection["embedding"].values[at], dtype=np.float64)


def _beside(corpus: CaptionCorpus, level: str, words: list[str], answers: pd.DataFrame, top: int) -> pd.DataFrame:
    """Answers of each query by rank, and beside them BM25's for its words."""
    texts, ids = corpus.documents(level)
    shown = dict(zip(reversed(ids), reversed(texts))) if level != "category" else {name: name for name in ids}
    index = LexicalIndex(texts, ids)
    scores, rows = index.search(words, len(index))
    columns = [answers[c].tolist() for c in ("query", "rank", "id", "score", "ngrams")]
    own = {(q, r): {"id": i, "score": s, "ngrams": n} for q, r, i, s, n in zip(*columns)}
    out = []
    for query in range(len(words)):
        matched = int((scores[query] > 0).sum())
        order = index.names(rows[query, :matched]).tolist()
        place = {name: k + 1 for k, name in enumerate(order)}
        for rank in range(1, top + 1):
            mine = own.get((query, rank))
            if mine is None and rank > matched:
                break
            line: dict[str, Any] = {"query": query, "level": level, "rank": rank, "id": "", "text": "", "score": np.nan}
            line |= {"ngrams": "", "bm25_rank": 0, "bm25_id": "", "bm25_text": "", "bm25_score": np.nan}
            if mine is not None:
                line |= {**mine, "text": shown[mine["id"]], "bm25_rank": place.get(mine["id"], 0)}
            if rank <= matched:
                name = order[rank - 1]
                line |= {"bm25_id": name, "bm25_text": shown[name], "bm25_score": float(scores[query, rank - 1])}
            out.append(line)
    return pd.DataFrame(out, columns=["query", "level", "rank", *_FOUND])
