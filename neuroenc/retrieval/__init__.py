"""Exact retrieval over embeddings larger than memory, and over words and phrases of captions."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
