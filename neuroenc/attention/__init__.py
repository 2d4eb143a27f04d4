"""Attention over sets: one core, four plug points (weights, length scale, positions, reach), pure torch.

Examples
--------
>>> import torch
>>> from neuroenc.attention import Attention, LengthScale
>>> Attention(16, heads=4, scale=LengthScale("log_n"))(torch.randn(2, 5, 16))[0].shape
torch.Size([2, 5, 16])
"""

from neuroenc.attention._attention import Attention
from neuroenc.attention._blocks import Block, GELUFeedForward, ResidualMLP, Stack, SwiGLU
from neuroenc.attention._normalise import Normaliser, Softmax
from neuroenc.attention._scale import LengthScale

__all__ = [
    "Attention",
    "Block",
    "GELUFeedForward",
    "LengthScale",
    "Normaliser",
    "ResidualMLP",
    "Softmax",
    "Stack",
    "SwiGLU",
]
