from ._analysis import (
    circuit_overlap as circuit_overlap,
    mask_curve as mask_curve,
    path_patch as path_patch,
    repeat_probe as repeat_probe,
    retrieval_score as retrieval_score,
    select_calibration_heads as select_calibration_heads,
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
    Rotary as Rotary,
    T5Bias as T5Bias,
)
from ._tap import HeadTap as HeadTap, SinkCalibration as SinkCalibration, TaskEmbedding as TaskEmbedding
from ._weights import (
    GroupedSoftmax as GroupedSoftmax,
    LengthScale as LengthScale,
    Normaliser as Normaliser,
    Sigmoid as Sigmoid,
    Softmax as Softmax,
)
