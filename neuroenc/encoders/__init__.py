"""Voxelwise encoders behind one protocol: fit, predict, score, to_linear, save and load.

Examples
--------
>>> from sklearn.base import clone
>>> from neuroenc.encoders import RidgeEncoder
>>> clone(RidgeEncoder(scoring="r")).scoring
'r'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroenc.encoders._banded import BandedRidgeEncoder, simplex_candidates
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._partition import nested_gammas, variance_partition
from neuroenc.encoders._resampled import resampled_rows, ridge_weights
from neuroenc.encoders._ridge import RidgeEncoder
from neuroenc.encoders._selection import select_features
from neuroenc.encoders._storage import load_encoder

if TYPE_CHECKING:
    from neuroenc.encoders.incontext import InContextEncoder
    from neuroenc.encoders.readout import ReadoutEncoder

__all__ = [
    "BandedRidgeEncoder",
    "InContextEncoder",
    "LinearEncoder",
    "ReadoutEncoder",
    "RidgeEncoder",
    "load_encoder",
    "nested_gammas",
    "resampled_rows",
    "ridge_weights",
    "select_features",
    "simplex_candidates",
    "variance_partition",
]


def __getattr__(name: str) -> Any:
    # Readouts and in-context encoders need torch, the linear core does not.
    if name == "InContextEncoder":
        return import_module("neuroenc.encoders.incontext").InContextEncoder
    if name == "ReadoutEncoder":
        return import_module("neuroenc.encoders.readout").ReadoutEncoder
    raise AttributeError(f"module 'neuroenc.encoders' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
