from . import (
    attention as attention,
    captions as captions,
    cli as cli,
    data as data,
    embedding as embedding,
    encoders as encoders,
    report as report,
    retrieval as retrieval,
    stats as stats,
    study as study,
)
from ._version import __version__ as __version__
from .captions import Captioner as Captioner
from .embedding import ImageEmbedder as ImageEmbedder, TextEmbedder as TextEmbedder
from .encoders import BandedRidgeEncoder as BandedRidgeEncoder, RidgeEncoder as RidgeEncoder
from .study import Study as Study, evaluate as evaluate
