"""Memory budgets."""

from __future__ import annotations

import os
import re

from neuroenc._util.errors import ConfigError

__all__ = ["parse_memory"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def parse_memory(value: str | int | float | None) -> int:
    """Bytes of a memory budget; ``None`` means a quarter of the machine's memory.

    >>> parse_memory("2GB"), parse_memory("512 MiB"), parse_memory(1000)
    (2000000000, 536870912, 1000)
    """
    if value is None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        except (ValueError, OSError, AttributeError):
            return 4 * 10**9
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number: float = value
    else:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(value))
        if not match or match[2].lower() not in _UNITS:
            raise ConfigError(f"max_memory={value!r} is not a size; write it as '2GB', '512MiB' or bytes.")
        number = float(match[1]) * _UNITS[match[2].lower()]
    if not number >= 1:
        raise ConfigError(f"max_memory={value!r} must be positive.")
    return int(number)
