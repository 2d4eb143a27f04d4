"""Any torch module as an image backbone, its layers read by forward hooks; torchvision's networks by name.

``torchvision:alexnet``, ``torchvision:resnet50.IMAGENET1K_V2``: every module of the network is a layer under its own
name ("features.2", "layer3"). AlexNet's five intermediate maps of the readout comparison are besides called "layer1" to
"layer5": what the pooling (layers 1 and 2) or the rectification (3 to 5) gives, "layer5" before its pooling.

References
----------
Krizhevsky, Sutskever & Hinton (2012). Saha, Chadha & Khosla (2024), arXiv:2410.14031.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from neuroenc._core.checkpoints import read_checkpoint
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.hub import from_hub, quiet
from neuroenc._core.optional import require
from neuroenc.embedding._openclip import check_preprocessing, image_transform
from neuroenc.embedding._packages import prepare
from neuroenc.embedding._registry import Described, Output, fitting, is_module

TORCHVISION = "torchvision:"
# What torchvision's classifiers were trained on: shorter side to 256, centre 224, ImageNet statistics. The whole
# picture is shown here, as the readout comparison does.
_PREPROCESSING = {
    "size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
_ALIASES = {
    "alexnet": {f"layer{n + 1}": f"features.{m}" for n, m in enumerate((2, 5, 7, 9, 11))},
}


class TorchImage(Described):
    """A torch module, or a network of torchvision by name, with every inner module as a layer.

    Parameters
    ----------
    model : torch.nn.Module or "torchvision:NAME", "torchvision:NAME.TAG"
        A module is copied, and reads (b, 3, y, x). Its features are kept in the cache by its weights and its text
        (``repr``): modules that differ in the code of ``forward`` alone need different classes.
    pretrained : str, optional
        Of torchvision: a tag ("IMAGENET1K_V1"), or a file of weights. Without either they are random, with a warning.
    seed : int
        Of random weights.
    preprocessing : mapping, optional
        Overrides of 224 x 224 pixels and ImageNet's mean and s.d.
    """

    def __init__(
        self,
        model: Any,
        pretrained: str | None = None,
        *,
        seed: int = 0,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        self.seed, self._given, self._file, self._weights = seed, None, None, None
        self._preprocessing = check_preprocessing(_PREPROCESSING, preprocessing)
        self._aliases: dict[str, str] = {}
        if is_module(model):
            self._given, self.name, self.weights = model, type(model).__name__, "module"
            return
        prepare()
        vision = require("torchvision", "clip").models
        self.name = model
        self._arch, _, tag = model.removeprefix(TORCHVISION).partition(".")
        if self._arch not in (known := vision.list_models(module=vision)):
            raise ConfigError(unknown_name("torchvision model", self._arch, known))
        self._aliases = _ALIASES.get(self._arch, {})
        wanted = pretrained or tag or None
        tags = {entry.name: entry for entry in vision.get_model_weights(self._arch)}
        if wanted is not None and wanted not in tags:
            self._file = Path(wanted).expanduser()
            if not self._file.is_file():
                step = "The path of a file of weights is legal too."
                raise ConfigError(unknown_name(f"weights of torchvision's {self._arch!r}", wanted, tags, step))
        self._weights = tags.get(wanted or "")
        self.weights = f"random(seed={seed})" if wanted is None else self._file.name if self._file else wanted

    @cached_property
    def _module(self) -> Any:
        import torch

        if self._given is not None:
            return copy.deepcopy(self._given)
        from torchvision.models import get_model

        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = get_model(self._arch, weights=None)
        if self._weights is not None:
            weights = self._weights
            model.load_state_dict(
                from_hub(
                    lambda: weights.get_state_dict(progress=False, check_hash=True),
                    f"the checkpoint {self.weights!r} of torchvision's {self._arch!r}",
                    "connect this machine, or copy the file here and give its path as pretrained=",
                )
            )
        elif self._file is not None:
            with fitting(self._file, f"torchvision's {self._arch!r}"):
                model.load_state_dict(read_checkpoint(self._file, "weights"), strict=True)
        return model

    def _content(self) -> dict[str, Any]:
        import torch

        digest = hashlib.sha256(repr(self._module).encode())
        for name, value in self._module.state_dict().items():
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {"module": digest.hexdigest(), "torch": metadata.version("torch")}

    def layers(self) -> tuple[str, ...]:
        """Every module of the network by its name, and the intermediate maps that have a name of their own."""
        names = [name for name, _ in self._module.named_modules() if name]
        return (*self._aliases, *(name for name in names if name not in self._aliases))

    def load(self, device: str) -> TorchModel:
        """The network on ``device``, in evaluation mode."""
        if self._given is None and self._weights is None and self._file is None:
            self._warn_random(self.seed, stacklevel=5)
        model = self._module.eval().requires_grad_(False).to(device)
        return TorchModel(model, image_transform(self._preprocessing), self._aliases)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_module"}


class TorchModel:
    """A loaded module."""

    def __init__(self, model: Any, transform: Any, aliases: Mapping[str, str]) -> None:
        self._model, self.preprocess, self._aliases = model, transform, aliases

    def encode(self, batch: Any, layer: str | None) -> Output:
        """What the network gives (layer None), or one of its modules."""
        if layer is None:
            found = _output(self._model(batch), "the network")
            # One place is a vector.
            return Output(found.values.flatten(1)) if found.values.shape[2:] == (1, 1) else found
        return self.encode_layers(batch, [layer])[layer]

    def encode_layers(self, batch: Any, layers: Sequence[str]) -> dict[str, Output]:
        """What several modules give in one forward pass; of one that is called more than once, its last output."""
        modules, seen = dict(self._model.named_modules()), {}

        def keep(layer: str) -> Any:
            def hook(module: Any, given: Any, result: Any) -> None:
                # A rectification behind it may write into the same memory.
                seen[layer] = _output(result, f"layer {layer!r}", copied=True)

            return hook

        hooks = [modules[self._aliases.get(k, k)].register_forward_hook(keep(k)) for k in layers]
        try:
            self._model(batch)
        finally:
            for hook in hooks:
                hook.remove()
        silent = [layer for layer in layers if layer not in seen]
        if silent:
            raise DataError(
                f"layer {silent[0]!r} gives nothing when the network reads a picture (a container, or a part that is "
                f"not used). Next step: name one of its parts, {self._parts(silent[0])}."
            )
        return seen

    def _parts(self, layer: str) -> str:
        inner = [n for n, _ in self._model.named_modules() if n.startswith(f"{layer}.")]
        return ", ".join(inner[:5]) or "or another layer"


def _output(result: Any, what: str, copied: bool = False) -> Output:
    """A tensor, or the first one of a tuple or a mapping, as vectors, tokens or a map."""
    import torch

    while not isinstance(result, torch.Tensor):
        values = list(result.values()) if isinstance(result, Mapping) else result
        if not isinstance(values, (list, tuple)) or not values:
            raise DataError(f"{what} gives a {type(result).__name__}, not a tensor. Next step: name another layer.")
        result = values[0]
    if result.ndim not in (2, 3, 4):
        raise DataError(
            f"{what} gives a tensor of shape {tuple(result.shape)}; legal are (b, feature), (b, token, feature) and "
            "(b, channel, y, x). Next step: name another layer."
        )
    values = result.detach().clone() if copied else result
    if values.ndim != 3:
        return Output(values)
    # Tokens on a square grid, with or without a class token in front; others lie on none that is known.
    side = int(values.shape[1] ** 0.5)
    extra = values.shape[1] - side**2
    return Output(values, prefix=extra, grid=(side, side)) if extra in (0, 1) and side > 1 else Output(values)
