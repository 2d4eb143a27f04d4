"""Running a model over many voxels in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.progress import progress as bar
from neuroenc.encoders._labels import column_block
from neuroenc.encoders.incontext._fast import FastReader
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights

__all__ = ["condition", "conditioned_blocks", "missing_groups", "voxels_at_once"]

# More patterns of missing responses than this are dealt with by masking instead of one by one.
_MAX_GROUPS = 16
_LARGEST = 256


def voxels_at_once(
    model: InContextModel, support: int, max_bytes: int, *, half: bool = False, covariance: bool = False
) -> int:
    """Voxels whose tokens fit in ``max_bytes`` of working memory."""
    c = model.config
    per_token = 3 * c.hidden + 8 * c.dim + 3 * (c.n_features + 1) + 2 * c.dim
    own = c.components * (9 * 12 + 4 * (c.n_features + 1)) * 8 if c.form == "anchored" else 0
    if covariance:
        own += (3 * 9 * 12 + 6 * (c.n_features + 1)) * (c.n_features + 1) * 8
    each = (support + c.registers) * per_token * (2 if half else 4) + own
    return int(max(1, min(_LARGEST, max_bytes // max(1, each))))


def missing_groups(seen: np.ndarray) -> list[tuple[np.ndarray | None, np.ndarray]]:
    """(rows that were seen, voxels) of each pattern of ``seen`` (support, voxel); rows None for the masked path."""
    if seen.all():
        return [(np.arange(len(seen)), np.arange(seen.shape[1]))]
    patterns, which = np.unique(seen, axis=1, return_inverse=True)
    which = which.ravel()
    if patterns.shape[1] > _MAX_GROUPS:
        return [(None, np.arange(seen.shape[1]))]
    return [(np.flatnonzero(patterns[:, k]), np.flatnonzero(which == k)) for k in range(patterns.shape[1])]


def conditioned_blocks(
    model: InContextModel,
    x: np.ndarray,
    Y: Any,
    *,
    log_weight: np.ndarray | None = None,
    scale: Any = None,
    device: torch.device,
    half: bool = False,
    max_bytes: int = 2**28,
    covariance: bool = False,
    show: bool = False,
    registers: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Iterator[tuple[np.ndarray, VoxelWeights]]:
    """Columns of voxels and their weights, block by block; ``scale`` = (mean, sd) (voxel,) taken off responses first.

    ``Y`` (support, voxel) is read block by block; NaN is a missing response. ``registers`` (voxel, dim) are those of a
    pass before this one, ``pooled`` the prior that it led to.
    """
    model = model.to(device).eval()
    images = torch.as_tensor(x, dtype=torch.float32, device=device)
    weight = None if log_weight is None else torch.as_tensor(log_weight, dtype=torch.float32, device=device)
    n_voxels = Y.shape[1]
    size = voxels_at_once(model, len(x), max_bytes, half=half, covariance=covariance)
    wide = max(size, 1024)
    read = FastReader(model, half)
    with torch.inference_mode(), bar(total=n_voxels, desc="in context", show=show) as line:
        for start in range(0, n_voxels, wide):
            block = np.asarray(column_block(Y, slice(start, start + wide)), dtype=np.float32)
            if scale is not None:
                block = (block - scale[0][start : start + wide]) / scale[1][start : start + wide]
                block = block.astype(np.float32)
            seen = ~np.isnan(block)
            # Where the place of a trial matters, leaving rows out would move the others.
            whole = model.is_set or seen.all()
            for rows, columns in missing_groups(seen) if whole else [(None, np.arange(seen.shape[1]))]:
                step = size if rows is not None else max(1, size // 4)
                for first in range(0, len(columns), step):
                    part = columns[first : first + step]
                    y = torch.as_tensor(block[:, part].T.copy(), device=device)
                    few, less = images, weight
                    if rows is not None and len(rows) < len(block):
                        kept = torch.as_tensor(rows, device=device)
                        few, y, less = images[kept], y[:, kept], None if weight is None else weight[kept]
                    if registers is None:
                        z = read.read(few, y, less)
                    else:
                        z = registers[torch.as_tensor(start + part, device=device)]
                    found = read.write(z, few, y, less, pooled=pooled, covariance=covariance)
                    line.update(len(part))
                    yield start + part, found


def condition(model: InContextModel, x: np.ndarray, Y: Any, **settings: Any) -> dict[str, np.ndarray]:
    """``coef`` (feature, voxel), ``intercept`` (voxel,) and ``noise`` (voxel,) (NaN without an anchor)."""
    n = Y.shape[1]
    coef = np.empty((x.shape[1], n), dtype=np.float32)
    intercept, noise = np.empty(n, dtype=np.float32), np.full(n, np.nan, dtype=np.float32)
    for columns, found in conditioned_blocks(model, x, Y, **settings):
        coef[:, columns] = _numpy(found.coef).T
        intercept[columns] = _numpy(found.intercept)
        if found.noise is not None:
            noise[columns] = _numpy(found.noise)
    return {"coef": coef, "intercept": intercept, "noise": noise}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
