from ._c8 import (
    FieldNorm as FieldNorm,
    GaussianPool as GaussianPool,
    GroupConv as GroupConv,
    LiftConv as LiftConv,
    ring_basis as ring_basis,
)
from ._equivariant import EquivariantCore as EquivariantCore
from ._frozen import FrozenCore as FrozenCore
from ._grid import GridCore as GridCore
from ._plain import PlainCore as PlainCore
from ._protocol import CORES as CORES, Core as Core, make_core as make_core, register_core as register_core
