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
from neuroenc.captions.checks._grounding_rates import hallucination_rate
from neuroenc.captions.checks._phrases import find_phrases
from neuroenc.captions.checks._scoring import caption_agreement, caption_diversity, round_trip, sentence_scores
from neuroenc.captions.checks._stability import caption_stability
from neuroenc.captions.decoding._retrieval import Decoder, RetrievalDecoder
from neuroenc.captions.projection._alternatives import project_weights
from neuroenc.captions.projection._denoiser_checks import contrastive_accuracy, copying
from neuroenc.captions.projection._folds import bank_folds
from neuroenc.captions.projection._manifold import on_manifold
from neuroenc.captions.projection._project import project, project_folds
from neuroenc.captions.projection._state import ProjectionState
from neuroenc.captions.projection._truncate import TruncatedState

if TYPE_CHECKING:
    from neuroenc.captions._synthesis import diffusion_pipeline, synthesise
    from neuroenc.captions.analysis._aspects import aspect_bands, caption_aspects
    from neuroenc.captions.analysis._categories import categorise, categorise_evidence, category_shares, load_categories
    from neuroenc.captions.analysis._clusters import VoxelClusters, cluster_voxels
    from neuroenc.captions.analysis._colours import EmbeddingColours
    from neuroenc.captions.analysis._contrast import contrast, difference_captions
    from neuroenc.captions.analysis._image_evaluation import evaluate_images, retrieve_images
    from neuroenc.captions.analysis._lexicon import concept_maps, concept_shares, load_lexicon
    from neuroenc.captions.analysis._separating import separating_phrases
    from neuroenc.captions.analysis._spacy import load_spacy
    from neuroenc.captions.analysis._stop_phrases import STOP_PHRASES
    from neuroenc.captions.analysis._structurize import StructuredCaptions, structurize
    from neuroenc.captions.analysis._syntactic_parser import Bracketing, SyntacticDistanceParser
    from neuroenc.captions.analysis._voxel_search import search_voxels
    from neuroenc.captions.analysis._words import words
    from neuroenc.captions.checks._intervention import (
        GroundedCaptions,
        GroundedConstraint,
        GroundedRescore,
        grounded_decode,
    )
    from neuroenc.captions.checks._preference import (
        PreferencePair,
        PreferenceTraining,
        caption_perplexity,
        cdpo_loss,
        preference_pairs,
        train_preferences,
    )
    from neuroenc.captions.decoding._hypotheses import Hypotheses
    from neuroenc.captions.decoding._ngram import CorpusConstraint
    from neuroenc.captions.decoding._ngram_retriever import LEVEL_PROMPTS, NGramRetriever
    from neuroenc.captions.decoding._ngram_training import train_retriever
    from neuroenc.captions.decoding._prefix import PrefixDecoder
    from neuroenc.captions.decoding._prefix_training import PrefixTraining, train_prefix
    from neuroenc.captions.decoding._sampling import sample
    from neuroenc.captions.decoding._search import beam_search
    from neuroenc.captions.decoding._search_settings import Generated, SearchSettings
    from neuroenc.captions.decoding._shipped import load_captioner
    from neuroenc.captions.decoding._steps import CausalStep, FunctionStep, StepModel
    from neuroenc.captions.decoding._trie import TrieConstraint
    from neuroenc.captions.decoding._word_ban import WordBan
    from neuroenc.captions.projection._denoiser import ConceptDenoiser

__all__ = [
    "LEVEL_PROMPTS",
    "STOP_PHRASES",
    "STOP_WORDS",
    "Bracketing",
    "CaptionResult",
    "CaptionStudy",
    "CausalStep",
    "ConceptDenoiser",
    "CorpusConstraint",
    "Decoder",
    "EmbeddingColours",
    "FunctionStep",
    "Generated",
    "GroundedCaptions",
    "GroundedConstraint",
    "GroundedRescore",
    "Grounding",
    "GroundingChecker",
    "Hypotheses",
    "LinearEncoder",
    "NGramRetriever",
    "PreferencePair",
    "PreferenceTraining",
    "PrefixDecoder",
    "PrefixTraining",
    "ProjectionState",
    "RetrievalDecoder",
    "SearchSettings",
    "StepModel",
    "StructuredCaptions",
    "SyntacticDistanceParser",
    "TrieConstraint",
    "TruncatedState",
    "VoxelClusters",
    "WordBan",
    "aspect_bands",
    "bank_folds",
    "beam_search",
    "caption_agreement",
    "caption_aspects",
    "caption_diversity",
    "caption_perplexity",
    "caption_stability",
    "caption_voxels",
    "categorise",
    "categorise_evidence",
    "category_shares",
    "cdpo_loss",
    "cluster_voxels",
    "concept_maps",
    "concept_shares",
    "contrast",
    "contrastive_accuracy",
    "copying",
    "difference_captions",
    "diffusion_pipeline",
    "evaluate_images",
    "evidence",
    "find_phrases",
    "gate_voxels",
    "grounded_decode",
    "hallucination_rate",
    "load_captioner",
    "load_categories",
    "load_lexicon",
    "load_spacy",
    "nouns",
    "on_manifold",
    "preference_pairs",
    "project",
    "project_folds",
    "project_weights",
    "retrieve_images",
    "round_trip",
    "sample",
    "search_voxels",
    "sentence_scores",
    "separating_phrases",
    "shuffled_control",
    "structurize",
    "synthesise",
    "train_preferences",
    "train_prefix",
    "train_retriever",
    "words",
]

# Language models need torch; projection, evidence and retrieval do not.
_LAZY = {
    "Bracketing": "analysis._syntactic_parser",
    "CausalStep": "decoding._steps",
    "ConceptDenoiser": "projection._denoiser",
    "CorpusConstraint": "decoding._ngram",
    "FunctionStep": "decoding._steps",
    "Generated": "decoding._search_settings",
    "GroundedCaptions": "checks._intervention",
    "GroundedConstraint": "checks._intervention",
    "GroundedRescore": "checks._intervention",
    "Hypotheses": "decoding._hypotheses",
    "LEVEL_PROMPTS": "decoding._ngram_retriever",
    "NGramRetriever": "decoding._ngram_retriever",
    "PreferencePair": "checks._preference",
    "PreferenceTraining": "checks._preference",
    "PrefixDecoder": "decoding._prefix",
    "PrefixTraining": "decoding._prefix_training",
    "SearchSettings": "decoding._search_settings",
    "StepModel": "decoding._steps",
    "SyntacticDistanceParser": "analysis._syntactic_parser",
    "TrieConstraint": "decoding._trie",
    "WordBan": "decoding._word_ban",
    "beam_search": "decoding._search",
    "caption_perplexity": "checks._preference",
    "cdpo_loss": "checks._preference",
    "grounded_decode": "checks._intervention",
    "load_captioner": "decoding._shipped",
    "preference_pairs": "checks._preference",
    "sample": "decoding._sampling",
    "train_preferences": "checks._preference",
    "train_prefix": "decoding._prefix_training",
    "train_retriever": "decoding._ngram_training",
}

# Analyses need scikit-learn or a parser, which captions themselves do not.
_ANALYSES = {
    "EmbeddingColours": "analysis._colours",
    "STOP_PHRASES": "analysis._stop_phrases",
    "StructuredCaptions": "analysis._structurize",
    "VoxelClusters": "analysis._clusters",
    "aspect_bands": "analysis._aspects",
    "caption_aspects": "analysis._aspects",
    "categorise": "analysis._categories",
    "categorise_evidence": "analysis._categories",
    "category_shares": "analysis._categories",
    "cluster_voxels": "analysis._clusters",
    "concept_maps": "analysis._lexicon",
    "concept_shares": "analysis._lexicon",
    "contrast": "analysis._contrast",
    "difference_captions": "analysis._contrast",
    "diffusion_pipeline": "_synthesis",
    "evaluate_images": "analysis._image_evaluation",
    "load_categories": "analysis._categories",
    "load_lexicon": "analysis._lexicon",
    "load_spacy": "analysis._spacy",
    "retrieve_images": "analysis._image_evaluation",
    "search_voxels": "analysis._voxel_search",
    "separating_phrases": "analysis._separating",
    "structurize": "analysis._structurize",
    "synthesise": "_synthesis",
    "words": "analysis._words",
}


def __getattr__(name: str) -> Any:
    if name in _ANALYSES:
        return getattr(import_module(f"neuroenc.captions.{_ANALYSES[name]}"), name)
    if name in _LAZY:
        from neuroenc._util.optional import require

        require("torch", "clip")
        return getattr(import_module(f"neuroenc.captions.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'neuroenc.captions' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
