"""Whole analyses: from data to a report, resumable, from a config or in one call.

Examples
--------
>>> from neuroenc.workflows import list_examples
>>> list_examples()
['haxby', 'haxby-slice', 'nsd', 'v4']
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
    from neuroenc.workflows._bank import build_bank
    from neuroenc.workflows._caption import caption
    from neuroenc.workflows._caption_config import (
        CaptionConfig,
        example_caption_config,
        list_caption_examples,
        read_caption_config,
    )
    from neuroenc.workflows._caption_truth import judge_planted
    from neuroenc.workflows._captioner import Captioner
    from neuroenc.workflows._compare import run_comparison
    from neuroenc.workflows._demo import demo
    from neuroenc.workflows._export import export
    from neuroenc.workflows._icl import icl_extend, icl_finetune, icl_predict, icl_pretrain
    from neuroenc.workflows._icl_config import IclConfig, example_icl_config, list_icl_examples, read_icl_config
    from neuroenc.workflows._icl_evaluate import icl_evaluate
    from neuroenc.workflows._run import run

__all__ = [
    "CaptionConfig",
    "Captioner",
    "CompareConfig",
    "IclConfig",
    "RunConfig",
    "build_bank",
    "caption",
    "demo",
    "example_caption_config",
    "example_compare_config",
    "example_config",
    "example_icl_config",
    "export",
    "icl_evaluate",
    "icl_extend",
    "icl_finetune",
    "icl_predict",
    "icl_pretrain",
    "judge_planted",
    "list_caption_examples",
    "list_compare_examples",
    "list_examples",
    "list_icl_examples",
    "read_caption_config",
    "read_compare_config",
    "read_config",
    "read_icl_config",
    "run",
    "run_comparison",
]

_LATER = {
    "build_bank": "_bank",
    "Captioner": "_captioner",
    "caption": "_caption",
    "judge_planted": "_caption_truth",
    **dict.fromkeys(
        ("CaptionConfig", "example_caption_config", "list_caption_examples", "read_caption_config"), "_caption_config"
    ),
    "demo": "_demo",
    "export": "_export",
    "run": "_run",
    "run_comparison": "_compare",
    "icl_evaluate": "_icl_evaluate",
    **dict.fromkeys(("icl_extend", "icl_finetune", "icl_predict", "icl_pretrain"), "_icl"),
    **dict.fromkeys(("IclConfig", "example_icl_config", "list_icl_examples", "read_icl_config"), "_icl_config"),
}


def __getattr__(name: str) -> Any:
    # Reading a config needs neither encoders nor reports.
    if name in _LATER:
        return getattr(import_module(f"neuroenc.workflows.{_LATER[name]}"), name)
    raise AttributeError(f"module 'neuroenc.workflows' has no attribute {name!r}")
