from ._attention_maps import (
    circuit_overlap as circuit_overlap,
    head_importance as head_importance,
    sink_report as sink_report,
    support_attention as support_attention,
    top_support as top_support,
)
from ._baselines import (
    AnatomicalTransfer as AnatomicalTransfer,
    MeanResponse as MeanResponse,
    NearestStimuli as NearestStimuli,
    PaperRidge as PaperRidge,
    surface_positions as surface_positions,
)
from ._chunks import ChunkAveraged as ChunkAveraged
from ._config import PRESETS as PRESETS, InContextConfig as InContextConfig
from ._curve import (
    compare_methods as compare_methods,
    summarise_curve as summarise_curve,
    support_curve as support_curve,
    support_draws as support_draws,
)
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
from ._learned_selector import LearnedSelector as LearnedSelector
from ._maps import (
    TEMPLATES as TEMPLATES,
    WeightComponents as WeightComponents,
    confusion as confusion,
    text_selectivity as text_selectivity,
    weight_components as weight_components,
)
from ._mixture import PriorMixture as PriorMixture
from ._model import InContextModel as InContextModel, VoxelWeights as VoxelWeights, make_model as make_model
from ._official import load_braincorl as load_braincorl
from ._place_prior import PlacePrior as PlacePrior
from ._planning import ExpectedAccuracy as ExpectedAccuracy, random_lists as random_lists
from ._prior import WeightPrior as WeightPrior
from ._selection import SELECTORS as SELECTORS, PriorSelector as PriorSelector, make_selector as make_selector
from ._stored import list_models as list_models, load_model as load_model, save_model as save_model
from ._streaming import StreamingSession as StreamingSession
from ._task import region_embedding as region_embedding
from ._training import (
    STAGES as STAGES,
    Stage as Stage,
    TrainedStage as TrainedStage,
    make_stage as make_stage,
    train_stage as train_stage,
    validation_episodes as validation_episodes,
)
