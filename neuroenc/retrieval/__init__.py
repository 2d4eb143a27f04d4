"""Searching among embeddings, exactly, where they may be larger than memory, and among words and phrases."""

from __future__ import annotations

from neuroenc.retrieval._bank import Chunk, EmbeddingBank, as_bank
from neuroenc.retrieval._caption_corpus import CaptionCorpus
from neuroenc.retrieval._dense import DenseIndex
from neuroenc.retrieval._hybrid import HybridResult, SearchIndex, hybrid_search
from neuroenc.retrieval._lexical import LexicalIndex
from neuroenc.retrieval._ngram_index import NGramIndex, Successors
from neuroenc.retrieval._ngram_scorer import NGramScorer, ScoredDocument
from neuroenc.retrieval._ngram_weight import ngram_weight
from neuroenc.retrieval._pseudo_queries import pseudo_queries
from neuroenc.retrieval._shards import StoredBank, load_bank
from neuroenc.retrieval._topk import top_k

__all__ = [
    "CaptionCorpus",
    "Chunk",
    "DenseIndex",
    "EmbeddingBank",
    "HybridResult",
    "LexicalIndex",
    "NGramIndex",
    "NGramScorer",
    "ScoredDocument",
    "SearchIndex",
    "StoredBank",
    "Successors",
    "as_bank",
    "hybrid_search",
    "load_bank",
    "ngram_weight",
    "pseudo_queries",
    "top_k",
]
