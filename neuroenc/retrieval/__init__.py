"""Searching among embeddings, exactly, where they may be larger than memory, and among words and phrases."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
