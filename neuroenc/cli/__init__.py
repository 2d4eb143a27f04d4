"""The ``neuroenc`` command."""

from __future__ import annotations

from neuroenc.cli._main import main

__all__ = ["main"]
