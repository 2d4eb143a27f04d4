"""Stimuli and texts to vectors: backbones, layers, pooling, and a cache.

Nothing here imports torch until an embedder computes.

Examples
--------
>>> from neuroenc.embedding import list_backbones
>>> list_backbones()["world"]
'image + text'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroenc.embedding._cache import cache_clear, cache_dir, cache_list
    from neuroenc.embedding._caption_grid import caption_grid, caption_vectors, world_dense_captions
    from neuroenc.embedding._image import ImageEmbedder
    from neuroenc.embedding._registry import list_backbones, register_backbone
    from neuroenc.embedding._text import TextEmbedder
    from neuroenc.embedding._torchvision import prepare

_NAMES = {
    "ImageEmbedder": "_image",
    "TextEmbedder": "_text",
    "cache_clear": "_cache",
    "cache_dir": "_cache",
    "cache_list": "_cache",
    "caption_grid": "_caption_grid",
    "caption_vectors": "_caption_grid",
    "list_backbones": "_registry",
    "prepare": "_torchvision",
    "register_backbone": "_registry",
    "world_dense_captions": "_caption_grid",
}

__all__ = [
    "ImageEmbedder",
    "TextEmbedder",
    "cache_clear",
    "cache_dir",
    "cache_list",
    "caption_grid",
    "caption_vectors",
    "list_backbones",
    "prepare",
    "register_backbone",
    "world_dense_captions",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"neuroenc.embedding.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'neuroenc.embedding' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
