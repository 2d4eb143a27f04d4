"""From the weights of an encoder to language: projection, evidence, decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroenc.captions._caption import CaptionResult, caption_voxels, shuffled_control
from neuroenc.captions._decoding import Decoder, RetrievalDecoder
from neuroenc.captions._evidence import STOP_WORDS, evidence, nouns
from neuroenc.captions._linear import LinearEncoder
from neuroenc.captions._projection import project
from neuroenc.captions._scoring import caption_agreement, caption_diversity, round_trip, sentence_scores
from neuroenc.captions._state import ProjectionState

if TYPE_CHECKING:
    from neuroenc.captions._hypotheses import Hypotheses
    from neuroenc.captions._ngram import CorpusConstraint
    from neuroenc.captions._prefix import PrefixDecoder
    from neuroenc.captions._prefix_training import PrefixTraining, train_prefix
    from neuroenc.captions._sampling import sample
    from neuroenc.captions._search import beam_search
    from neuroenc.captions._search_settings import Generated, SearchSettings
    from neuroenc.captions._steps import CausalStep, FunctionStep, StepModel

__all__ = [
    "STOP_WORDS",
    "CaptionResult",
    "CausalStep",
    "CorpusConstraint",
    "Decoder",
    "FunctionStep",
    "Generated",
    "Hypotheses",
    "LinearEncoder",
    "PrefixDecoder",
    "PrefixTraining",
    "ProjectionState",
    "RetrievalDecoder",
    "SearchSettings",
    "StepModel",
    "beam_search",
    "caption_agreement",
    "caption_diversity",
    "caption_voxels",
    "evidence",
    "nouns",
    "project",
    "round_trip",
    "sample",
    "sentence_scores",
    "shuffled_control",
    "train_prefix",
]

# Language models need torch; projection, evidence and retrieval do not.
_LAZY = {
    "CausalStep": "_steps",
    "CorpusConstraint": "_ngram",
    "FunctionStep": "_steps",
    "Generated": "_search_settings",
    "Hypotheses": "_hypotheses",
    "PrefixDecoder": "_prefix",
    "PrefixTraining": "_prefix_training",
    "SearchSettings": "_search_settings",
    "StepModel": "_steps",
    "beam_search": "_search",
    "sample": "_sampling",
    "train_prefix": "_prefix_training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from neuroenc._util.optional import require

        require("torch", "clip")
        return getattr(import_module(f"neuroenc.captions.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'neuroenc.captions' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
