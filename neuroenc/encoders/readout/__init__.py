"""Readouts from feature maps to voxels behind one protocol, and their training loop.

Examples
--------
>>> import torch
>>> from neuroenc.encoders.readout import make_readout
>>> make_readout("factorized", (8, 7, 7), 3)(torch.zeros(2, 8, 7, 7)).shape
torch.Size([2, 3])
"""

import lazy_loader as _lazy

from neuroenc._core.optional import require

require("torch", "clip")

# Readouts are found by name once their files are loaded; a lazy name would leave them out.
from . import _bottleneck, _conditional, _linear, _semantic, _spatial  # noqa: E402, F401

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
