from . import cores as cores
from ._affine import MODES as MODES
from ._attention import AttentionReadout as AttentionReadout
from ._encoder import ReadoutEncoder as ReadoutEncoder
from ._factorized import FactorizedReadout as FactorizedReadout
from ._gaussian import GaussianReadout as GaussianReadout
from ._linear import LinearReadout as LinearReadout, PooledReadout as PooledReadout
from ._losses import LOSSES as LOSSES, make_loss as make_loss
from ._protocol import (
    READOUTS as READOUTS,
    Readout as Readout,
    make_readout as make_readout,
    register_readout as register_readout,
)
from ._semantic import SemanticSpatialReadout as SemanticSpatialReadout
from ._train import TrainResult as TrainResult, train as train
