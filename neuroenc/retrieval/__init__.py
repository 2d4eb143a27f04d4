"""Searching among embeddings, exactly, where they may be larger than memory."""

from __future__ import annotations

from neuroenc.retrieval._bank import Chunk, EmbeddingBank, as_bank
from neuroenc.retrieval._dense import DenseIndex
from neuroenc.retrieval._topk import top_k

__all__ = ["Chunk", "DenseIndex", "EmbeddingBank", "as_bank", "top_k"]
