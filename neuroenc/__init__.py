"""Voxelwise encoding models of human visual cortex.

Rooms are imported on first use, so ``import neuroenc`` is cheap and needs none of the optional
packages: ``neuroenc.data``, ``neuroenc.embedding``, ``neuroenc.encoders``, ``neuroenc.captions``,
``neuroenc.stats``, ``neuroenc.report``, ``neuroenc.study``.

Examples
--------
>>> import neuroenc
>>> sorted(set(dir(neuroenc)) & {"data", "RidgeEncoder"})
['RidgeEncoder', 'data']
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
