"""In-context encoders: a transformer that turns a few (stimulus, response) pairs of a voxel into its encoder.

Baselines, priors over weights and support curves stand beside it, and need no torch.

Examples
--------
>>> from neuroenc.encoders.incontext import PRESETS
>>> PRESETS["clip"].n_features, PRESETS["clip"].depth
(512, 20)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroenc.encoders.incontext._anatomical import AnatomicalTransfer, surface_positions
    from neuroenc.encoders.incontext._attention_maps import support_attention, top_support
    from neuroenc.encoders.incontext._curve import support_curve, support_draws
    from neuroenc.encoders.incontext._curve_tables import compare_methods, summarise_curve
    from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge
    from neuroenc.encoders.incontext._encoder import InContextEncoder
    from neuroenc.encoders.incontext._ensemble import SupportEnsemble, support_ensemble
    from neuroenc.encoders.incontext._episodes import (
        Episode,
        EpisodeSource,
        MixedEpisodes,
        ResponseEpisodes,
        SyntheticEpisodes,
    )
    from neuroenc.encoders.incontext._files import load_model, save_model
    from neuroenc.encoders.incontext._head_maps import circuit_overlap, head_importance, sink_report
    from neuroenc.encoders.incontext._long import ChunkAveraged
    from neuroenc.encoders.incontext._mixture import PriorMixture
    from neuroenc.encoders.incontext._model import PRESETS, InContextConfig, InContextModel, VoxelWeights, make_model
    from neuroenc.encoders.incontext._neighbours import MeanResponse, NearestStimuli
    from neuroenc.encoders.incontext._official import load_braincorl, published_state_dict
    from neuroenc.encoders.incontext._paper_ridge import PaperRidge
    from neuroenc.encoders.incontext._prior import WeightPrior
    from neuroenc.encoders.incontext._stages import STAGES, Stage, make_stage
    from neuroenc.encoders.incontext._streaming import StreamingSession
    from neuroenc.encoders.incontext._text_maps import TEMPLATES, confusion, text_selectivity
    from neuroenc.encoders.incontext._training import TrainedStage, train_stage, validation_episodes
    from neuroenc.encoders.incontext._weights_maps import WeightComponents, weight_components

# Loaded on first use: the model and its training need torch, baselines and curves do not.
_MODULES = {
    "_anatomical": ("AnatomicalTransfer", "surface_positions"),
    "_attention_maps": ("support_attention", "top_support"),
    "_curve": ("support_curve", "support_draws"),
    "_curve_tables": ("compare_methods", "summarise_curve"),
    "_empirical_bayes": ("EmpiricalBayesRidge",),
    "_encoder": ("InContextEncoder",),
    "_ensemble": ("SupportEnsemble", "support_ensemble"),
    "_episodes": ("Episode", "EpisodeSource", "MixedEpisodes", "ResponseEpisodes", "SyntheticEpisodes"),
    "_files": ("load_model", "save_model"),
    "_head_maps": ("circuit_overlap", "head_importance", "sink_report"),
    "_long": ("ChunkAveraged",),
    "_mixture": ("PriorMixture",),
    "_model": ("PRESETS", "InContextConfig", "InContextModel", "VoxelWeights", "make_model"),
    "_neighbours": ("MeanResponse", "NearestStimuli"),
    "_official": ("load_braincorl", "published_state_dict"),
    "_paper_ridge": ("PaperRidge",),
    "_prior": ("WeightPrior",),
    "_stages": ("STAGES", "Stage", "make_stage"),
    "_streaming": ("StreamingSession",),
    "_text_maps": ("TEMPLATES", "confusion", "text_selectivity"),
    "_training": ("TrainedStage", "train_stage", "validation_episodes"),
    "_weights_maps": ("WeightComponents", "weight_components"),
}
_NAMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "PRESETS",
    "STAGES",
    "TEMPLATES",
    "AnatomicalTransfer",
    "ChunkAveraged",
    "EmpiricalBayesRidge",
    "Episode",
    "EpisodeSource",
    "InContextConfig",
    "InContextEncoder",
    "InContextModel",
    "MeanResponse",
    "MixedEpisodes",
    "NearestStimuli",
    "PaperRidge",
    "PriorMixture",
    "ResponseEpisodes",
    "Stage",
    "StreamingSession",
    "SupportEnsemble",
    "SyntheticEpisodes",
    "TrainedStage",
    "VoxelWeights",
    "WeightComponents",
    "WeightPrior",
    "circuit_overlap",
    "compare_methods",
    "confusion",
    "head_importance",
    "load_braincorl",
    "load_model",
    "make_model",
    "make_stage",
    "published_state_dict",
    "save_model",
    "sink_report",
    "summarise_curve",
    "support_attention",
    "support_curve",
    "support_draws",
    "support_ensemble",
    "surface_positions",
    "text_selectivity",
    "top_support",
    "train_stage",
    "validation_episodes",
    "weight_components",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"neuroenc.encoders.incontext.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'neuroenc.encoders.incontext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
