"""Attention over sets: one core, four plug points (weights, length scale, positions, reach), pure torch.

Examples
--------
>>> import torch
>>> from neuroenc.attention import Attention, LengthScale
>>> Attention(16, heads=4, scale=LengthScale("log_n"))(torch.randn(2, 5, 16))[0].shape
torch.Size([2, 5, 16])
"""

from neuroenc.attention._aaren import AarenStack
from neuroenc.attention._analysis import head_importance, mask_curve, select_calibration_heads
from neuroenc.attention._attention import Attention
from neuroenc.attention._blocks import Block, GELUFeedForward, ResidualMLP, Stack, SwiGLU
from neuroenc.attention._chunks import ChunkSelectPolicy
from neuroenc.attention._context import Context, FullContext, LandmarkPolicy
from neuroenc.attention._grouped import GroupedSoftmax, grouped_softmax, insert_landmarks, landmark_layout
from neuroenc.attention._memory import MemoryState, StreamingAttention, StreamState
from neuroenc.attention._normalise import Layout, Normaliser, Sigmoid, Softmax
from neuroenc.attention._paths import circuit_overlap, path_patch
from neuroenc.attention._position import AbsolutePosition, NoPosition, Position, Rotary
from neuroenc.attention._readings import repeat_probe, retrieval_score, sink_report
from neuroenc.attention._recurrent import RecurrentMemory, RecurrentState
from neuroenc.attention._relative import ALiBi, T5Bias, t5_buckets
from neuroenc.attention._scale import LengthScale
from neuroenc.attention._sinks import SinkCalibration, find_sinks
from neuroenc.attention._tap import HeadTap, Recording
from neuroenc.attention._task import TaskEmbedding
from neuroenc.attention._titans import NeuralMemory, NeuralState

__all__ = [
    "ALiBi",
    "AarenStack",
    "AbsolutePosition",
    "Attention",
    "Block",
    "ChunkSelectPolicy",
    "Context",
    "FullContext",
    "GELUFeedForward",
    "GroupedSoftmax",
    "HeadTap",
    "LandmarkPolicy",
    "Layout",
    "LengthScale",
    "MemoryState",
    "NeuralMemory",
    "NeuralState",
    "NoPosition",
    "Normaliser",
    "Position",
    "Recording",
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
    "TaskEmbedding",
    "circuit_overlap",
    "find_sinks",
    "grouped_softmax",
    "head_importance",
    "insert_landmarks",
    "landmark_layout",
    "mask_curve",
    "path_patch",
    "repeat_probe",
    "retrieval_score",
    "select_calibration_heads",
    "sink_report",
    "t5_buckets",
]
