"""Where neuroenc keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder of the cache: environment variable NEUROENC_CACHE, else ``~/.cache/neuroenc``; not created here.

    Examples
    --------
    >>> cache_dir().is_absolute()
    True
    """
    return Path(os.environ.get("NEUROENC_CACHE") or "~/.cache/neuroenc").expanduser().absolute()
