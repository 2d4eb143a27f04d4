from ._bank_pass import BankPass as BankPass, evidence as evidence
from ._caption import (
    Captioner as Captioner,
    CaptionResult as CaptionResult,
    caption_voxels as caption_voxels,
    shuffled_control as shuffled_control,
)
from ._linear import LinearEncoder as LinearEncoder
from ._study import CaptionStudy as CaptionStudy
from .analysis._aspects import aspect_bands as aspect_bands, caption_aspects as caption_aspects
from .analysis._caption_search import (
    score_words as score_words,
    search_captions as search_captions,
    search_vectors as search_vectors,
    search_vocabulary as search_vocabulary,
)
from .analysis._category_accuracy import category_accuracy as category_accuracy
from .analysis._clusters import VoxelClusters as VoxelClusters, cluster_voxels as cluster_voxels
from .analysis._contrast import (
    contrast as contrast,
    contrast_shares as contrast_shares,
    separating_phrases as separating_phrases,
)
from .analysis._image_evaluation import (
    diffusion_pipeline as diffusion_pipeline,
    evaluate_images as evaluate_images,
    retrieve_images as retrieve_images,
    synthesise as synthesise,
)
from .analysis._lexicon import (
    categorise as categorise,
    concept_maps as concept_maps,
    concept_shares as concept_shares,
    load_categories as load_categories,
    load_lexicon as load_lexicon,
)
from .analysis._map import direction_map as direction_map
from .analysis._persons import (
    cluster_readings as cluster_readings,
    person_shares as person_shares,
    person_voxels as person_voxels,
)
from .analysis._retrieved import named_concepts as named_concepts, retrieve_stimuli as retrieve_stimuli
from .analysis._structurize import StructuredCaptions as StructuredCaptions, structurize as structurize
from .analysis._voxel_search import search_voxels as search_voxels
from .analysis._words import nouns as nouns, words as words
from .checks._gate import gate_voxels as gate_voxels, sample_voxels as sample_voxels
from .checks._grounding import Grounding as Grounding, GroundingChecker as GroundingChecker
from .checks._grounding_bank import BankImages as BankImages, hallucination_rate as hallucination_rate
from .checks._hypothesis import test_caption as test_caption
from .checks._intervention import (
    GroundedCaptions as GroundedCaptions,
    grounded_decode as grounded_decode,
)
from .checks._preference import (
    GroundedTraining as GroundedTraining,
    PreferencePair as PreferencePair,
    PreferenceTraining as PreferenceTraining,
    caption_perplexity as caption_perplexity,
    preference_pairs as preference_pairs,
    train_grounded as train_grounded,
    train_preferences as train_preferences,
)
from .checks._scoring import (
    caption_diversity as caption_diversity,
    round_trip as round_trip,
    score_stability as score_stability,
    sentence_scores as sentence_scores,
    stability_jobs as stability_jobs,
)
from .checks._trimming import trim_captions as trim_captions
from .decoding._constraints import (
    CorpusConstraint as CorpusConstraint,
)
from .decoding._keywords import KeywordDecoder as KeywordDecoder
from .decoding._language_model import load_captioner as load_captioner, make_language_model as make_language_model
from .decoding._ngram_retriever import NGramRetriever as NGramRetriever
from .decoding._prefix import PrefixDecoder as PrefixDecoder
from .decoding._prefix_training import PrefixTraining as PrefixTraining, train_prefix as train_prefix
from .decoding._retrieval import Decoder as Decoder, RetrievalDecoder as RetrievalDecoder
from .decoding._retriever_training import train_retriever as train_retriever
from .decoding._sampling import (
    Hypotheses as Hypotheses,
)
from .decoding._search import Generated as Generated, SearchSettings as SearchSettings
from .projection._project import (
    project as project,
    project_weights as project_weights,
)
from .projection._stream import bank_folds as bank_folds, bank_hash as bank_hash
from .text._parser import Bracketing as Bracketing, SyntacticDistanceParser as SyntacticDistanceParser
from .text._phrases import find_phrases as find_phrases, spacy_version as spacy_version
from .text._words import STOP_WORDS as STOP_WORDS, word_pattern as word_pattern
