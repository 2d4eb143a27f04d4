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

from neuroenc.workflows._compare_config import (
    CompareConfig,
    example_compare_config,
    list_compare_examples,
    read_compare_config,
)
from neuroenc.workflows._config import RunConfig, example_config, list_examples, read_config

if TYPE_CHECKING:
    from neuroenc.workflows._compare import run_comparison
    from neuroenc.workflows._demo import demo
    from neuroenc.workflows._run import run

__all__ = [
    "CompareConfig",
    "RunConfig",
    "demo",
    "example_compare_config",
    "example_config",
    "list_compare_examples",
    "list_examples",
    "read_compare_config",
    "read_config",
    "run",
    "run_comparison",
]

_LATER = {"demo": "_demo", "run": "_run", "run_comparison": "_compare"}


def __getattr__(name: str) -> Any:
    # Reading a config needs neither encoders nor reports.
    if name in _LATER:
        return getattr(import_module(f"neuroenc.workflows.{_LATER[name]}"), name)
    raise AttributeError(f"module 'neuroenc.workflows' has no attribute {name!r}")
