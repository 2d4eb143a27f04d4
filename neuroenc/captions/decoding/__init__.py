"""Decoding of embeddings: retrieval, prefix language models, search, constraints."""
