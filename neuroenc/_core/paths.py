"""Where neuroenc keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """``NEUROENC_CACHE``, or ``~/.cache/neuroenc``; not created here.

    >>> import os
    >>> before = os.environ.get("NEUROENC_CACHE")
    >>> os.environ["NEUROENC_CACHE"] = "/scratch/me"
    >>> cache_dir().as_posix()
    '/scratch/me'
    >>> _ = os.environ.pop("NEUROENC_CACHE") if before is None else os.environ.update(NEUROENC_CACHE=before)
    """
    value = os.environ.get("NEUROENC_CACHE")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "neuroenc"
