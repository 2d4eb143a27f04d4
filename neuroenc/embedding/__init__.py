"""Feature extraction from images and texts: backbones, layers, pooling, and a cache.

Nothing here imports torch until an embedder computes.

Examples
--------
>>> from neuroenc.embedding import list_backbones
>>> list_backbones()["world"]
'image + text'
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
