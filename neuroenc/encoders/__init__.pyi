from . import comparison as comparison, incontext as incontext, merge as merge, readout as readout
from ._base import (
    LinearEncoder as LinearEncoder,
    encoder_folder as encoder_folder,
    list_encoders as list_encoders,
    load_encoder as load_encoder,
)
from ._card import EncoderCard as EncoderCard
from ._carry import CarriedEncoder as CarriedEncoder, carry_over as carry_over
from ._decode import identification_table as identification_table, identify as identify
from ._delays import Delayer as Delayer, lag_profile as lag_profile
from ._depth import concept_depth as concept_depth
from ._folds import resolve_folds as resolve_folds
from ._invariance import (
    invariance as invariance,
    invariance_index as invariance_index,
)
from ._invert import decode_features as decode_features, retrieve as retrieve
from ._labels import align_voxels as align_voxels, check_space as check_space, feature_space as feature_space
from ._noise import NoiseCovariance as NoiseCovariance
from ._share import encoder_table as encoder_table, pull_encoder as pull_encoder, push_encoder as push_encoder
from ._transfer import transfer_matrix as transfer_matrix
from ._width import cheapest as cheapest, layer_dim_sweep as layer_dim_sweep
from .incontext import InContextEncoder as InContextEncoder
from .linear._banded import BandedRidgeEncoder as BandedRidgeEncoder
from .linear._descent import descent_weights as descent_weights
from .linear._null import cross_validated_p as cross_validated_p
from .linear._reduce import Reduction as Reduction, fit_reduction as fit_reduction
from .linear._ridge import (
    RidgeEncoder as RidgeEncoder,
    resampled_rows as resampled_rows,
    ridge_residuals as ridge_residuals,
    ridge_weights as ridge_weights,
)
from .linear._spaces import (
    variance_partition as variance_partition,
)
from .linear._stacked import (
    StackedEncoder as StackedEncoder,
    layer_interval as layer_interval,
    simplex_weights as simplex_weights,
)
from .readout import ReadoutEncoder as ReadoutEncoder
