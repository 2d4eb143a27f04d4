from ._core import (
    CORES as CORES,
    Core as Core,
    FrozenCore as FrozenCore,
    make_core as make_core,
    register_core as register_core,
)
from ._equivariant import (
    EquivariantCore as EquivariantCore,
    PlainCore as PlainCore,
)
from ._grid import GridCore as GridCore
from ._trunk import TrunkCore as TrunkCore
