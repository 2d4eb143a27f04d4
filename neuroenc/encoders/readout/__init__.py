"""Readouts: from feature maps to voxels, behind one protocol, and the loop that trains them.

Examples
--------
>>> import torch
>>> from neuroenc.encoders.readout import make_readout
>>> make_readout("factorized", (8, 7, 7), 3)(torch.zeros(2, 8, 7, 7)).shape
torch.Size([2, 3])
"""

from __future__ import annotations

from neuroenc._util.optional import require

require("torch", "clip")

from neuroenc.encoders.readout._affine import MODES  # noqa: E402
from neuroenc.encoders.readout._attention import AttentionReadout  # noqa: E402
from neuroenc.encoders.readout._encoder import ReadoutEncoder  # noqa: E402
from neuroenc.encoders.readout._factorized import FactorizedReadout  # noqa: E402
from neuroenc.encoders.readout._gaussian import GaussianReadout  # noqa: E402
from neuroenc.encoders.readout._linear import LinearReadout, PooledReadout  # noqa: E402
from neuroenc.encoders.readout._losses import LOSSES, make_loss  # noqa: E402
from neuroenc.encoders.readout._protocol import READOUTS, Readout, make_readout, register_readout  # noqa: E402
from neuroenc.encoders.readout._semantic import SemanticSpatialReadout  # noqa: E402
from neuroenc.encoders.readout._train import TrainResult, train  # noqa: E402

__all__ = [
    "LOSSES",
    "MODES",
    "READOUTS",
    "AttentionReadout",
    "FactorizedReadout",
    "GaussianReadout",
    "LinearReadout",
    "PooledReadout",
    "Readout",
    "ReadoutEncoder",
    "SemanticSpatialReadout",
    "TrainResult",
    "make_loss",
    "make_readout",
    "register_readout",
    "train",
]
