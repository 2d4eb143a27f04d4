"""Voxelwise encoders behind one protocol: fit, predict, score, to_linear, save and load.

Examples
--------
>>> from sklearn.base import clone
>>> from neuroenc.encoders import RidgeEncoder
>>> clone(RidgeEncoder(scoring="r")).scoring
'r'
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
