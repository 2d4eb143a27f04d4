from . import comparison as comparison, incontext as incontext, readout as readout
from ._banded import BandedRidgeEncoder as BandedRidgeEncoder, simplex_candidates as simplex_candidates
from ._base import LinearEncoder as LinearEncoder
from ._partition import nested_gammas as nested_gammas, variance_partition as variance_partition
from ._resampled import resampled_rows as resampled_rows, ridge_weights as ridge_weights
from ._ridge import RidgeEncoder as RidgeEncoder
from ._selection import select_features as select_features
from ._storage import load_encoder as load_encoder
from .incontext import InContextEncoder as InContextEncoder
from .readout import ReadoutEncoder as ReadoutEncoder
