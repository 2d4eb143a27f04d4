"""Attention over sets: one core, four plug points (weights, length scale, positions, reach), pure torch.

Examples
--------
>>> import torch
>>> from neuroenc.attention import Attention, LengthScale
>>> Attention(16, heads=4, scale=LengthScale("log_n"))(torch.randn(2, 5, 16))[0].shape
torch.Size([2, 5, 16])
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
