"""Memory budgets, and blocks of voxels that keep them."""

from __future__ import annotations

import math
import os
import re
from itertools import pairwise

import numpy as np

from neuroenc._core.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_memory(value: str | int | float | None) -> int:
    """Bytes of a memory budget; ``None`` means a quarter of the machine's memory.

    Examples
    --------
    >>> parse_memory("2GB"), parse_memory("512 MiB"), parse_memory(1000)
    (2000000000, 536870912, 1000)
    """
    if value is None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        except (ValueError, OSError, AttributeError):
            return 4 * 10**9
    number = math.nan
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", value, re.IGNORECASE | re.ASCII)
        if match and match[2].lower() in _UNITS:
            number = float(match[1]) * _UNITS[match[2].lower()]
    elif not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"max_memory={value!r} is not a size. Next step: write it as '2GB', '512MiB' or bytes.")
    if number < 1:
        raise ConfigError(f"max_memory={value!r} is not legal; it must be at least 1 byte.")
    return int(number)


def voxel_blocks(
    n_voxels: int, bytes_per_voxel: int, budget: int | str, workers: int = 1, most: int | None = None
) -> list[slice]:
    """Slices of voxels whose working memory, over all workers, stays within ``budget`` (one voxel at least).

    >>> voxel_blocks(10, 8, 32)
    [slice(0, 3, None), slice(3, 7, None), slice(7, 10, None)]
    """
    size = max(1, parse_memory(budget) // max(1, workers * bytes_per_voxel))
    # Equal blocks keep the workers busy to the end.
    count = -(-n_voxels // (size if most is None else min(size, most)))
    if workers > 1 and n_voxels > 256:
        count = -(-count // workers) * workers
    edges = np.linspace(0, n_voxels, min(count, n_voxels) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges) if b > a]
