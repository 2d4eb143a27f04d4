"""Models with weights of few bits: a control of what is claimed of a network's layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError
from neuroenc.embedding._embedders import ImageEmbedder, TextEmbedder
from neuroenc.embedding._registry import Described, is_module


def quantise_weights(model: Any, n_bits: int) -> Any:
    r"""Quantise a network's weights: round them to ``n_bits`` bits, output by output.

    .. math:: \hat w_{ij} = s_i \,\mathrm{round}(w_{ij} / s_i), \qquad s_i = \max_j |w_{ij}| / (2^{n - 1} - 1)

    A hierarchy of layers that 8 bits change is none of the network's (see `neuroenc.encoders.concept_depth`). Vectors,
    such as biases and the scales of norms, stay as they are.

    Parameters
    ----------
    model : ImageEmbedder, TextEmbedder or torch.nn.Module
        It is not changed.
    n_bits : int
        2 or more.

    Returns
    -------
    ImageEmbedder, TextEmbedder or torch.nn.Module
        Of an embedder one that has a name and hash of its own, so that the cache keeps its features apart.

    Raises
    ------
    ConfigError
        A model without weights, such as "gabor", or something else than a model.

    References
    ----------
    Jin et al. (2024), Exploring Concept Depth, arXiv:2404.07066 (quantisation as a test of depth).

    Examples
    --------
    >>> from neuroenc.embedding import TextEmbedder
    >>> few = quantise_weights(TextEmbedder("world", cache=False, progress=False), 4)
    >>> few.backbone.name, few.embed(["a red house"]).shape
    ('world (4-bit weights)', (1, 128))
    """
    check_whole("n_bits", n_bits, 2)
    if is_module(model):
        found = copy.deepcopy(model)
        _round(found, n_bits)
        return found
    if not isinstance(model, (ImageEmbedder, TextEmbedder)):
        raise ConfigError(
            f"model is a {type(model).__name__}; legal are an ImageEmbedder, a TextEmbedder and a torch module."
        )
    found = copy.copy(model)
    found.backbone, found._loaded = _Quantised(model, n_bits), None
    return found


def _round(module: Any, n_bits: int) -> None:
    import torch

    most = 2 ** (n_bits - 1) - 1
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                flat = weight.flatten(1)
                step = (flat.abs().amax(1, keepdim=True) / most).clamp(min=1e-30)
                weight.copy_(((flat / step).round() * step).view_as(weight))


def _modules(value: Any, depth: int = 3) -> Iterator[Any]:
    """Torch modules inside a loaded model, in attributes, lists and tables."""
    if is_module(value):
        yield value
    elif depth:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        own = type(value).__module__.startswith("neuroenc.")
        for part in [*inside, *(vars(value).values() if own and hasattr(value, "__dict__") else ())]:
            yield from _modules(part, depth - 1)


class _Quantised(Described):
    """A backbone whose weights have few bits."""

    def __init__(self, embedder: Any, n_bits: int) -> None:
        self._whole, self._n_bits = embedder.backbone, n_bits
        self.name, self.weights = f"{self._whole.name} ({n_bits}-bit weights)", self._whole.weights
        self.unit_norm, self.unit_layers = self._whole.unit_norm, getattr(self._whole, "unit_layers", False)
        if hasattr(self._whole, "seen"):  # what a trained space was trained on stays known
            self.seen = self._whole.seen

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of the whole model."""
        return dict(self._whole.preprocessing)

    def _content(self) -> dict[str, Any]:
        return {"whole": self._whole.weights_hash(), "n_bits": self._n_bits}

    def layers(self) -> tuple[str, ...]:
        """Those of the whole model."""
        return tuple(self._whole.layers()) if hasattr(self._whole, "layers") else ()

    def load(self, device: str) -> Any:
        """The model on ``device``."""
        made = copy.deepcopy(self._whole.load(device))
        found = {id(module): module for module in _modules(made)}
        if not any(p.ndim > 1 for module in found.values() for p in module.parameters()):
            raise ConfigError(f"{self._whole.name!r} has no weights that could have few bits.")
        for module in found.values():
            _round(module, self._n_bits)
        return made
