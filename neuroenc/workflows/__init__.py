"""Whole analyses: from data to a report, resumable, from a config or in one call.

Examples
--------
>>> from neuroenc.workflows import list_examples
>>> list_examples()
['haxby', 'haxby-slice', 'v4']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroenc.workflows._config import RunConfig, example_config, list_examples, read_config

if TYPE_CHECKING:
    from neuroenc.workflows._demo import demo
    from neuroenc.workflows._run import run

__all__ = ["RunConfig", "demo", "example_config", "list_examples", "read_config", "run"]


def __getattr__(name: str) -> Any:
    # Reading a config needs neither encoders nor reports.
    if name in ("demo", "run"):
        return getattr(import_module(f"neuroenc.workflows._{name}"), name)
    raise AttributeError(f"module 'neuroenc.workflows' has no attribute {name!r}")
