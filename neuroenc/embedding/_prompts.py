"""Prompts of text models: templates around each text, and the instruction of a model that takes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError


def check_prompts(prompt: str | Sequence[str] | None, system: str, backbone: Any) -> tuple[str, ...]:
    """Templates, each with one ``{}`` where the text stands."""
    found = ("{}",) if prompt is None or prompt == "" else (prompt,) if isinstance(prompt, str) else tuple(prompt)
    for one in found:
        if not isinstance(one, str) or one.count("{}") != 1:
            raise ConfigError(f"prompt {one!r} must be a text with one {{}} in it, such as 'a photo of {{}}'.")
    if not found:
        raise ConfigError("prompt is an empty list. Next step: prompt=None, or at least one template.")
    if system and not hasattr(backbone, "instruct"):
        raise ConfigError(
            f"system={system!r} is for models with a chat template, 'hf-dir:PATH'; {backbone.name!r} takes no "
            f"instruction. Next step: put it before the text, prompt='{system} {{}}'."
        )
    return found


def unit(means: np.ndarray, normalise: bool) -> np.ndarray:
    """Means of vectors, scaled to unit norm where asked."""
    if not normalise:
        return means
    import torch

    from neuroenc.embedding._registry import unit_norm

    return unit_norm(torch.from_numpy(means)).numpy()


def with_prompts(texts: Sequence[str], templates: Sequence[str], system: str, backbone: Any) -> list[str]:
    """Texts in every template, template by template, under the instruction.

    >>> with_prompts(["a dog"], ["a photo of {}", "{}"], "", None)
    ['a photo of a dog', 'a dog']
    """
    found = [template.replace("{}", text) for template in templates for text in texts]
    return list(backbone.instruct(system, found)) if system else found
