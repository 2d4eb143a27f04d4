from ._compare import compare as compare
from ._grid import Cell as Cell, Fold as Fold, build_cells as build_cells, make_folds as make_folds
from ._identification import identify_cells as identify_cells
from ._result import Comparison as Comparison
from ._statistics import Group as Group, closest_rival as closest_rival, find_groups as find_groups
