"""Where a result came from, as one JSON string (nested attributes do not survive netCDF or zarr)."""

from __future__ import annotations

import json
import platform
import sys
from functools import cache
from importlib import metadata
from typing import Any

from neuroenc._core.files import _finite, _plain
from neuroenc._version import __version__

_PACKAGES = ("numpy", "scipy", "scikit-learn", "xarray", "torch", "open-clip-torch", "nilearn", "nibabel")


def versions() -> dict[str, str]:
    """Versions of neuroenc, Python and the packages that results depend on (without importing them)."""
    return dict(_versions())


@cache  # every fit asks, and reading them takes longer than a small fit
def _versions() -> dict[str, str]:
    found = {"neuroenc": __version__, "python": platform.python_version(), "platform": sys.platform}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(**settings: Any) -> str:
    """JSON string of versions and settings. It holds no time, so that equal runs give equal files."""
    record = {"versions": versions(), **settings}
    return json.dumps(_finite(record), sort_keys=True, default=_plain)
