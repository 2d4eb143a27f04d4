"""Voxelwise encoding models of human visual cortex.

Rooms are imported on first use, so ``import neuroenc`` is cheap and needs none of the optional
packages: ``neuroenc.data``, ``neuroenc.embedding``, ``neuroenc.encoders``, ``neuroenc.captions``,
``neuroenc.stats``, ``neuroenc.report``, ``neuroenc.workflows``.

Examples
--------
>>> import neuroenc
>>> sorted(set(dir(neuroenc)) & {"data", "RidgeEncoder"})
['RidgeEncoder', 'data']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroenc._version import __version__

if TYPE_CHECKING:
    from neuroenc import (
        captions,
        cli,
        data,
        embedding,
        encoders,
        report,
        retrieval,
        stats,
        workflows,
    )
    from neuroenc.embedding import ImageEmbedder, TextEmbedder
    from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder
    from neuroenc.workflows import Captioner

_ROOMS = ("captions", "cli", "data", "embedding", "encoders", "report", "retrieval", "stats", "workflows")
_NAMES = {
    "BandedRidgeEncoder": "encoders",
    "Captioner": "workflows",
    "ImageEmbedder": "embedding",
    "RidgeEncoder": "encoders",
    "TextEmbedder": "embedding",
}

__all__ = [
    "BandedRidgeEncoder",
    "Captioner",
    "ImageEmbedder",
    "RidgeEncoder",
    "TextEmbedder",
    "__version__",
    "captions",
    "cli",
    "data",
    "embedding",
    "encoders",
    "report",
    "retrieval",
    "stats",
    "workflows",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"neuroenc.{name}")
    if name in _NAMES:
        return getattr(import_module(f"neuroenc.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'neuroenc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
