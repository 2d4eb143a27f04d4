from . import cores as cores
from ._bottleneck import CompressionReadout as CompressionReadout, LowRankReadout as LowRankReadout
from ._conditional import (
    CodebookReadout as CodebookReadout,
    PatchSummaryReadout as PatchSummaryReadout,
    SentenceGateReadout as SentenceGateReadout,
)
from ._encoder import ReadoutEncoder as ReadoutEncoder
from ._geometry import MODES as MODES
from ._linear import LinearReadout as LinearReadout, PooledReadout as PooledReadout
from ._losses import LOSSES as LOSSES, make_loss as make_loss
from ._patch_map import PatchUpsampler as PatchUpsampler, patch_map as patch_map
from ._protocol import (
    READOUTS as READOUTS,
    Readout as Readout,
    make_readout as make_readout,
    register_readout as register_readout,
)
from ._retinotopy import (
    compare_retinotopy as compare_retinotopy,
    retinotopy as retinotopy,
    template_retinotopy as template_retinotopy,
)
from ._semantic import SemanticSpatialReadout as SemanticSpatialReadout
from ._slim import search_widths as search_widths
from ._spatial import (
    AttentionReadout as AttentionReadout,
    FactorizedReadout as FactorizedReadout,
    GaussianReadout as GaussianReadout,
)
from ._train import TrainResult as TrainResult, train as train
