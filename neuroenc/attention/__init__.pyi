from ._aaren import AarenStack as AarenStack
from ._analysis import (
    head_importance as head_importance,
    mask_curve as mask_curve,
    select_calibration_heads as select_calibration_heads,
)
from ._attention import Attention as Attention
from ._blocks import (
    Block as Block,
    GELUFeedForward as GELUFeedForward,
    ResidualMLP as ResidualMLP,
    Stack as Stack,
    SwiGLU as SwiGLU,
)
from ._chunks import ChunkSelectPolicy as ChunkSelectPolicy
from ._context import Context as Context, FullContext as FullContext, LandmarkPolicy as LandmarkPolicy
from ._grouped import (
    GroupedSoftmax as GroupedSoftmax,
    grouped_softmax as grouped_softmax,
    insert_landmarks as insert_landmarks,
    landmark_layout as landmark_layout,
)
from ._memory import MemoryState as MemoryState, StreamingAttention as StreamingAttention, StreamState as StreamState
from ._normalise import Layout as Layout, Normaliser as Normaliser, Sigmoid as Sigmoid, Softmax as Softmax
from ._paths import circuit_overlap as circuit_overlap, path_patch as path_patch
from ._position import (
    AbsolutePosition as AbsolutePosition,
    NoPosition as NoPosition,
    Position as Position,
    Rotary as Rotary,
)
from ._readings import repeat_probe as repeat_probe, retrieval_score as retrieval_score, sink_report as sink_report
from ._recurrent import RecurrentMemory as RecurrentMemory, RecurrentState as RecurrentState
from ._relative import ALiBi as ALiBi, T5Bias as T5Bias, t5_buckets as t5_buckets
from ._scale import LengthScale as LengthScale
from ._sinks import SinkCalibration as SinkCalibration, find_sinks as find_sinks
from ._tap import HeadTap as HeadTap, Recording as Recording
from ._task import TaskEmbedding as TaskEmbedding
from ._titans import NeuralMemory as NeuralMemory, NeuralState as NeuralState
