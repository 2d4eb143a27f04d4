"""Cores: networks from images or grids to feature maps, trained together with a readout or held still.

Examples
--------
>>> core = make_core("equivariant", (3, 64, 64), seed=0)
>>> core.out_shape, make_core("plain", (3, 64, 64), seed=0).out_shape
((64, 16, 16), (64, 16, 16))
"""

from __future__ import annotations

from neuroenc.encoders.readout.cores._c8 import FieldNorm, GaussianPool, GroupConv, LiftConv, ring_basis
from neuroenc.encoders.readout.cores._equivariant import EquivariantCore
from neuroenc.encoders.readout.cores._frozen import FrozenCore
from neuroenc.encoders.readout.cores._grid import GridCore
from neuroenc.encoders.readout.cores._plain import PlainCore
from neuroenc.encoders.readout.cores._protocol import CORES, Core, make_core, register_core

__all__ = [
    "CORES",
    "Core",
    "EquivariantCore",
    "FieldNorm",
    "FrozenCore",
    "GaussianPool",
    "GridCore",
    "GroupConv",
    "LiftConv",
    "PlainCore",
    "make_core",
    "register_core",
    "ring_basis",
]
