"""Comparison of feature spaces, cores and readouts on equal rows, folds and budget, with paired statistics.

Examples
--------
>>> from neuroenc.encoders.comparison import build_cells
>>> [cell.name for cell in build_cells(["layer1", "layer2"], ["linear"])]
['layer1/linear', 'layer2/linear']
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
