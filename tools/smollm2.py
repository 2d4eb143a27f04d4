"""SmolLM2-135M-Instruct as a language model, of the weights that the backbone "smollm2" reads."""

from __future__ import annotations

from typing import Any

from neuroenc._core.checks import one_of
from neuroenc.embedding._offline import SmolLM2

__all__ = ["load_smollm2"]


def load_smollm2(dtype: str = "float32") -> tuple[Any, Any]:
    """The language model and its tokenizer, from a file of quantised weights (Q4_1) that is dequantised.

    Parameters
    ----------
    dtype : {"float32", "bfloat16", "float16"}
        Of the weights in memory.

    Returns
    -------
    tuple
        ``(LlamaForCausalLM, tokenizer)``: 30 layers of width 576, 49,152 tokens, 134.5 M parameters.

    Raises
    ------
    ModuleNotFoundError
        The package that holds the weights, or ``gguf``, is not installed.
    ConfigError
        Unknown ``dtype``.
    """
    one_of("dtype", dtype, ("float32", "bfloat16", "float16"))
    model, tokenizer = SmolLM2().read("AutoModelForCausalLM")
    import torch

    # Written with a decoder, this entry would name the quantised file again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.to(getattr(torch, dtype)), tokenizer
