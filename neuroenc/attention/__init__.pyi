from ._analysis import (
    circuit_overlap as circuit_overlap,
    head_importance as head_importance,
    mask_curve as mask_curve,
    path_patch as path_patch,
    repeat_probe as repeat_probe,
    retrieval_score as retrieval_score,
    select_calibration_heads as select_calibration_heads,
    sink_report as sink_report,
)
from ._attention import Attention as Attention, attend as attend
from ._blocks import (
    FEED_FORWARDS as FEED_FORWARDS,
    Block as Block,
    GELUFeedForward as GELUFeedForward,
    Past as Past,
    ResidualMLP as ResidualMLP,
    Stack as Stack,
    SwiGLU as SwiGLU,
)
from ._context import (
    ChunkSelectPolicy as ChunkSelectPolicy,
    Context as Context,
    FullContext as FullContext,
    LandmarkPolicy as LandmarkPolicy,
)
from ._memory import (
    AarenStack as AarenStack,
    Memory as Memory,
    NeuralMemory as NeuralMemory,
    RecurrentMemory as RecurrentMemory,
)
from ._position import (
    AbsolutePosition as AbsolutePosition,
    ALiBi as ALiBi,
    NoPosition as NoPosition,
    Position as Position,
    Rotary as Rotary,
    T5Bias as T5Bias,
    t5_buckets as t5_buckets,
)
from ._tap import (
    HeadTap as HeadTap,
    Recording as Recording,
    SinkCalibration as SinkCalibration,
    TaskEmbedding as TaskEmbedding,
    find_sinks as find_sinks,
)
from ._weights import (
    GroupedSoftmax as GroupedSoftmax,
    Layout as Layout,
    LengthScale as LengthScale,
    Normaliser as Normaliser,
    Sigmoid as Sigmoid,
    Softmax as Softmax,
    grouped_softmax as grouped_softmax,
    landmark_layout as landmark_layout,
)
