"""From the weights of an encoder to language: projection, evidence, decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroenc.captions._caption import CaptionResult, caption_voxels, shuffled_control
from neuroenc.captions._decoding import Decoder, RetrievalDecoder
from neuroenc.captions._evidence import STOP_WORDS, evidence, nouns
from neuroenc.captions._linear import LinearEncoder
from neuroenc.captions._projection import project
from neuroenc.captions._state import ProjectionState

if TYPE_CHECKING:
    from neuroenc.captions._hypotheses import Hypotheses
    from neuroenc.captions._ngram import CorpusConstraint
    from neuroenc.captions._sampling import sample
    from neuroenc.captions._search import beam_search
    from neuroenc.captions._steps import CausalStep, FunctionStep, StepModel

__all__ = [
    "STOP_WORDS",
    "CaptionResult",
    "CausalStep",
    "CorpusConstraint",
    "Decoder",
    "FunctionStep",
    "Hypotheses",
    "LinearEncoder",
    "ProjectionState",
    "RetrievalDecoder",
    "StepModel",
    "beam_search",
    "caption_voxels",
    "evidence",
    "nouns",
    "project",
    "sample",
    "shuffled_control",
]

# Language models need torch; projection, evidence and retrieval do not.
_LAZY = {
    "CausalStep": "_steps",
    "CorpusConstraint": "_ngram",
    "FunctionStep": "_steps",
    "Hypotheses": "_hypotheses",
    "StepModel": "_steps",
    "beam_search": "_search",
    "sample": "_sampling",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from neuroenc._util.optional import require

        require("torch", "clip")
        return getattr(import_module(f"neuroenc.captions.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'neuroenc.captions' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
