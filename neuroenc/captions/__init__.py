"""From the weights of an encoder to language: projection, evidence, decoding."""

from __future__ import annotations

from neuroenc.captions._caption import CaptionResult, caption_voxels, shuffled_control
from neuroenc.captions._decoding import Decoder, RetrievalDecoder
from neuroenc.captions._evidence import STOP_WORDS, evidence, nouns
from neuroenc.captions._linear import LinearEncoder
from neuroenc.captions._projection import project
from neuroenc.captions._state import ProjectionState

__all__ = [
    "STOP_WORDS",
    "CaptionResult",
    "Decoder",
    "LinearEncoder",
    "ProjectionState",
    "RetrievalDecoder",
    "caption_voxels",
    "evidence",
    "nouns",
    "project",
    "shuffled_control",
]
