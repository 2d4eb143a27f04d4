"""From an embedding to language: retrieval, prefix language models, search, constraints."""
