"""Feature spaces, cores and readouts compared: the same rows, folds and budget, and paired statistics.

Examples
--------
>>> from neuroenc.encoders.comparison import build_cells
>>> [cell.name for cell in build_cells(["layer1", "layer2"], ["linear"])]
['layer1/linear', 'layer2/linear']
"""

from __future__ import annotations

from neuroenc.encoders.comparison._cells import Cell, build_cells
from neuroenc.encoders.comparison._compare import compare
from neuroenc.encoders.comparison._result import Comparison

__all__ = ["Cell", "Comparison", "build_cells", "compare"]
