"""From the weights of an encoder to language: projection, evidence, decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroenc.captions._caption import CaptionResult, caption_voxels, shuffled_control
from neuroenc.captions._evidence import evidence
from neuroenc.captions._linear import LinearEncoder
from neuroenc.captions._stop_words import STOP_WORDS
from neuroenc.captions._study import CaptionStudy
from neuroenc.captions.analysis._nouns import nouns
from neuroenc.captions.checks._gate import gate_voxels
from neuroenc.captions.checks._grounding import Grounding, GroundingChecker
from neuroenc.captions.checks._phrases import find_phrases
from neuroenc.captions.checks._scoring import caption_agreement, caption_diversity, round_trip, sentence_scores
from neuroenc.captions.checks._stability import caption_stability
from neuroenc.captions.decoding._retrieval import Decoder, RetrievalDecoder
from neuroenc.captions.projection._project import project
from neuroenc.captions.projection._state import ProjectionState

if TYPE_CHECKING:
    from neuroenc.captions.decoding._hypotheses import Hypotheses
    from neuroenc.captions.decoding._ngram import CorpusConstraint
    from neuroenc.captions.decoding._prefix import PrefixDecoder
    from neuroenc.captions.decoding._prefix_training import PrefixTraining, train_prefix
    from neuroenc.captions.decoding._sampling import sample
    from neuroenc.captions.decoding._search import beam_search
    from neuroenc.captions.decoding._search_settings import Generated, SearchSettings
    from neuroenc.captions.decoding._steps import CausalStep, FunctionStep, StepModel

__all__ = [
    "STOP_WORDS",
    "CaptionResult",
    "CaptionStudy",
    "CausalStep",
    "CorpusConstraint",
    "Decoder",
    "FunctionStep",
    "Generated",
    "Grounding",
    "GroundingChecker",
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
    "caption_stability",
    "caption_voxels",
    "evidence",
    "find_phrases",
    "gate_voxels",
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
    "CausalStep": "decoding._steps",
    "CorpusConstraint": "decoding._ngram",
    "FunctionStep": "decoding._steps",
    "Generated": "decoding._search_settings",
    "Hypotheses": "decoding._hypotheses",
    "PrefixDecoder": "decoding._prefix",
    "PrefixTraining": "decoding._prefix_training",
    "SearchSettings": "decoding._search_settings",
    "StepModel": "decoding._steps",
    "beam_search": "decoding._search",
    "sample": "decoding._sampling",
    "train_prefix": "decoding._prefix_training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from neuroenc._util.optional import require

        require("torch", "clip")
        return getattr(import_module(f"neuroenc.captions.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'neuroenc.captions' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
