"""Layers by number of dimensions in a comparison: ridge at each width, on the rows and folds of all cells.

References
----------
Kusupati et al. (2022), Matryoshka Representation Learning, NeurIPS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from neuroenc._core.store import Tensors
from neuroenc.encoders._probes import ridge_probe, scaled
from neuroenc.encoders._width import check_dims, widths
from neuroenc.encoders.comparison._grid import Cell, Fitted, Job, Source

KIND = "layer-dims"


def width_cells(layers: Sequence[str], dims: Sequence[int], reduce: str) -> list[Cell]:
    """A cell for each layer, that no table of cells shows."""
    options = {"dims": check_dims(dims, reduce), "reduce": reduce}
    return [Cell(layer, KIND, KIND, options=options, closed_form=True) for layer in layers]


def fit_widths(job: Job, source: Source) -> Fitted:
    """Test predictions at every number of dimensions, and r on the validation rows, of ridge."""
    options, rows = job.cell.options, job.rows
    both = np.concatenate([rows.train, rows.test])
    maps = source.features(job.cell.features, both, job.fold)
    names = {4: ("channel", "y", "x"), 3: ("token", "feature"), 2: ("feature",)}[maps.ndim]
    n = len(rows.train)
    A, T = scaled(xr.DataArray(maps, dims=("stimulus", *names)), np.arange(n), np.arange(n, len(both)))
    Y = np.asarray(source.responses(rows.train, job.voxels).values, dtype=np.float64)
    validation = np.isin(rows.train, rows.validation)
    split = [(np.flatnonzero(~validation), np.flatnonzero(validation))]
    arrays, n_parameters = Tensors(), 0
    for d, (X, new) in zip(options["dims"], widths(A, T, options["dims"], options["reduce"], job.seed)):
        predicted, inner, _ = ridge_probe(X, Y, new, split)
        arrays[f"predicted{d}"], arrays[f"inner{d}"] = predicted, inner
        n_parameters = (X.shape[1] + 1) * Y.shape[1]
    record = {"n_candidates": 1, "n_parameters": n_parameters, "best_epoch": None, "seconds_per_fit": np.nan}
    return Fitted(predicted, inner, record, arrays=arrays)
