"""In-context encoders: a transformer that turns a few (stimulus, response) pairs of a voxel into its encoder.

Examples
--------
>>> from neuroenc.encoders.incontext import PRESETS
>>> PRESETS["clip"].n_features, PRESETS["clip"].depth
(512, 20)
"""

from neuroenc.encoders.incontext._episodes import (
    Episode,
    EpisodeSource,
    MixedEpisodes,
    ResponseEpisodes,
    SyntheticEpisodes,
)
from neuroenc.encoders.incontext._model import PRESETS, InContextConfig, InContextModel, VoxelWeights, make_model
from neuroenc.encoders.incontext._stages import STAGES, Stage, make_stage
from neuroenc.encoders.incontext._training import TrainedStage, train_stage, validation_episodes

__all__ = [
    "PRESETS",
    "STAGES",
    "Episode",
    "EpisodeSource",
    "InContextConfig",
    "InContextModel",
    "MixedEpisodes",
    "ResponseEpisodes",
    "Stage",
    "SyntheticEpisodes",
    "TrainedStage",
    "VoxelWeights",
    "make_model",
    "make_stage",
    "train_stage",
    "validation_episodes",
]
