"""Voxelwise encoders behind one protocol: fit, predict, score, to_linear, save and load.

Examples
--------
>>> from sklearn.base import clone
>>> from neuroenc.encoders import RidgeEncoder
>>> clone(RidgeEncoder(scoring="r")).scoring
'r'
"""

from __future__ import annotations

from neuroenc.encoders._banded import BandedRidgeEncoder, simplex_candidates
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._ridge import RidgeEncoder
from neuroenc.encoders._storage import load_encoder

__all__ = ["BandedRidgeEncoder", "LinearEncoder", "RidgeEncoder", "load_encoder", "simplex_candidates"]
