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
from neuroenc.attention._chunks import ChunkSelectPolicy
from neuroenc.attention._context import Context, FullContext, LandmarkPolicy
from neuroenc.attention._grouped import GroupedSoftmax, grouped_softmax, landmark_layout
from neuroenc.attention._memory import MemoryState, StreamingAttention, StreamState
from neuroenc.attention._normalise import Layout, Normaliser, Sigmoid, Softmax
from neuroenc.attention._position import AbsolutePosition, NoPosition, Position, Rotary
from neuroenc.attention._recurrent import RecurrentMemory, RecurrentState
from neuroenc.attention._relative import ALiBi, T5Bias, t5_buckets
from neuroenc.attention._scale import LengthScale
from neuroenc.attention._sinks import SinkCalibration, find_sinks
from neuroenc.attention._titans import NeuralMemory, NeuralState

__all__ = [
    "ALiBi",
    "AbsolutePosition",
    "Attention",
    "Block",
    "ChunkSelectPolicy",
    "Context",
    "FullContext",
    "GELUFeedForward",
    "GroupedSoftmax",
    "LandmarkPolicy",
    "Layout",
    "LengthScale",
    "MemoryState",
    "NeuralMemory",
    "NeuralState",
    "NoPosition",
    "Normaliser",
    "Position",
    "RecurrentMemory",
    "RecurrentState",
    "ResidualMLP",
    "Rotary",
    "Sigmoid",
    "SinkCalibration",
    "Softmax",
    "Stack",
    "StreamState",
    "StreamingAttention",
    "SwiGLU",
    "T5Bias",
    "find_sinks",
    "grouped_softmax",
    "landmark_layout",
    "t5_buckets",
]
