from ._anatomical import AnatomicalTransfer as AnatomicalTransfer, surface_positions as surface_positions
from ._attention_maps import support_attention as support_attention, top_support as top_support
from ._curve import support_curve as support_curve, support_draws as support_draws
from ._curve_tables import compare_methods as compare_methods, summarise_curve as summarise_curve
from ._empirical_bayes import EmpiricalBayesRidge as EmpiricalBayesRidge
from ._encoder import InContextEncoder as InContextEncoder
from ._ensemble import SupportEnsemble as SupportEnsemble, support_ensemble as support_ensemble
from ._episodes import (
    Episode as Episode,
    EpisodeSource as EpisodeSource,
    MixedEpisodes as MixedEpisodes,
    ResponseEpisodes as ResponseEpisodes,
    SyntheticEpisodes as SyntheticEpisodes,
)
from ._files import load_model as load_model, save_model as save_model
from ._head_maps import (
    circuit_overlap as circuit_overlap,
    head_importance as head_importance,
    sink_report as sink_report,
)
from ._long import ChunkAveraged as ChunkAveraged
from ._mixture import PriorMixture as PriorMixture
from ._model import (
    PRESETS as PRESETS,
    InContextConfig as InContextConfig,
    InContextModel as InContextModel,
    VoxelWeights as VoxelWeights,
    make_model as make_model,
)
from ._neighbours import MeanResponse as MeanResponse, NearestStimuli as NearestStimuli
from ._official import load_braincorl as load_braincorl, published_state_dict as published_state_dict
from ._paper_ridge import PaperRidge as PaperRidge
from ._prior import WeightPrior as WeightPrior
from ._stages import STAGES as STAGES, Stage as Stage, make_stage as make_stage
from ._streaming import StreamingSession as StreamingSession
from ._text_maps import TEMPLATES as TEMPLATES, confusion as confusion, text_selectivity as text_selectivity
from ._training import (
    TrainedStage as TrainedStage,
    train_stage as train_stage,
    validation_episodes as validation_episodes,
)
from ._weights_maps import WeightComponents as WeightComponents, weight_components as weight_components
