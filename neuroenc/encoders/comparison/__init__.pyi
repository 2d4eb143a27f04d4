from ._cells import Cell as Cell, build_cells as build_cells
from ._compare import compare as compare
from ._result import Comparison as Comparison
