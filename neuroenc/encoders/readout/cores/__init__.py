"""Cores: trained or frozen networks from images or grids to feature maps.

Examples
--------
>>> core = make_core("equivariant", (3, 64, 64), seed=0)
>>> core.out_shape, make_core("plain", (3, 64, 64), seed=0).out_shape
((64, 16, 16), (64, 16, 16))
"""

import lazy_loader as _lazy

# Cores are found by name once their files are loaded; a lazy name would leave them out.
from . import _equivariant, _grid, _trunk  # noqa: F401

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
