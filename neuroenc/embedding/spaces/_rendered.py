"""Rendered texts: pictures of texts through a frozen image network, and the head that is trained on its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.files import hash_array
from neuroenc.data import perturb_text, render_text
from neuroenc.embedding._losses import perturbation_contrast
from neuroenc.embedding._registry import Described, image_backbone, pool

#: Every letter, so that another font, or another version of what draws it, is another backbone.
_PROBE = ["The quick brown fox jumps over the lazy dog, 0123456789", "SPHINX OF BLACK QUARTZ: JUDGE MY VOW!"]


def draw(texts: Sequence[str], settings: Mapping[str, Any]) -> Any:
    """Stimuli of texts as a space of ``settings`` draws them."""
    shape = settings["height"], settings["width"]
    return render_text(texts, ids=[str(n) for n in range(len(texts))], size=settings["size"], shape=shape, clip=True)


def rendering_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of pixels of drawn text, which depend on the installed font too."""
    return hash_array(draw(_PROBE, settings).images)


def picture_size(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing of a backbone that leaves the size of drawn pictures as it is."""
    shape = [settings["height"], settings["width"]]
    # Some networks take squares only, as one number.
    return {"size": shape[0] if shape[0] == shape[1] else shape, "resize_mode": "squash"}


def pooled(base: Any, batch: Any, settings: Mapping[str, Any]) -> Any:
    """Vectors (b, feature) of prepared pictures: a layer on its grid, or the final vector where none is named."""
    return pool(base.encode(batch, settings.get("layer")), settings.get("grid")).float().flatten(1)


class FrozenText(Described):
    """Text backbone: drawn texts through a layer of a frozen image network, pooled to a grid, as vectors."""

    def __init__(self, image_model: str, settings: Mapping[str, Any]) -> None:
        self.name, self.weights, self._settings = f"rendered:{image_model}", image_model, dict(settings)
        names = ("height", "width", "size", "layer", "grid")
        self._preprocessing = {name: settings[name] for name in names}
        self.base = image_backbone(image_model, None, 0, picture_size(settings))
        if settings["layer"] not in self.base.layers():
            raise ConfigError(unknown_name(f"layer of {image_model!r}", settings["layer"], self.base.layers()))

    def _content(self) -> dict[str, Any]:
        return {"base": self.base.weights_hash(), "drawn": self.drawn, **self._preprocessing}

    @cached_property
    def drawn(self) -> str:
        """`rendering_hash` of its settings."""
        return rendering_hash(self._settings)

    def load(self, device: str) -> RenderedText:
        """The network on ``device``."""
        return RenderedText(self.base.load(device), self._settings, device)


class RenderedText:
    """A loaded text model: texts are drawn, and embedded as pictures."""

    token_name = "pixels of height"

    def __init__(self, base: Any, settings: Mapping[str, Any], device: str, tower: Any = None) -> None:
        self._base, self._settings, self._device, self._tower = base, settings, device, tower
        self.max_tokens = settings["height"]

    def mapped(self, tower: Any) -> RenderedText:
        """The same with a trained map of its vectors."""
        return RenderedText(self._base, self._settings, self._device, tower)

    def count_tokens(self, texts: list[str]) -> np.ndarray:
        """Height (n,) that each text takes, pixels; the share of the width, if a word takes more of that."""
        box = draw(texts, {**self._settings, "height": 8}).table
        wide = (box["right"] - box["left"]) * self._settings["height"] // self._settings["width"]
        return np.maximum(box["bottom"] - box["top"], wide).to_numpy()

    def encode(self, texts: list[str]) -> Any:
        """Vectors (b, feature)."""
        import torch

        parts = []
        for first in range(0, len(texts), 32):
            drawn = draw(texts[first : first + 32], self._settings)
            batch = torch.stack([self._base.preprocess(drawn.image(n)) for n in range(len(drawn))])
            parts.append(pooled(self._base, batch.to(self._device), self._settings))
        return torch.cat(parts) if self._tower is None else self._tower(torch.cat(parts))


def fit_rendered(
    texts: Sequence[str],
    embed: Callable[[list[str]], np.ndarray],
    settings: Mapping[str, Any],
    fit: Callable[..., None],
    seed: int,
) -> Any:
    """Train a linear head, by which a text lies with its misspelt forms and apart from its letters scrambled.

    Parameters
    ----------
    texts : sequence of str (n,)
        Equal ones count once.
    embed : callable
        Texts to the frozen network's vectors (n, feature).
    settings : mapping
    fit : callable
        `train` with its settings.
    """
    import torch
    from torch import nn

    from neuroenc.embedding.spaces._towers import LinearTower

    once = sorted(set(texts))
    # Of other seeds than those by which a user looks at the space first.
    kept = [
        perturb_text(once, "typo", settings["typos"], seed=1000 * (seed + 1) + n) for n in range(settings["variants"])
    ]
    broken = perturb_text(once, "scramble", seed=1000 * (seed + 1))
    clean, apart, *near = (torch.from_numpy(embed(some)) for some in (once, broken, *kept))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"image": LinearTower(clean.shape[1], settings["dims"])})
    head: Any = model["image"]
    x = head.see(clean.numpy())
    # Cells that are blank in every picture vary by rounding alone, which no scale must raise.
    head.scale.clamp_(min=0.01 * float(head.scale.mean()))

    def loss(rows: np.ndarray) -> torch.Tensor:
        at = torch.from_numpy(rows)
        return perturbation_contrast(
            head(x[at]), [head(some[at]) for some in near], [head(apart[at])], temperature=settings["temperature"]
        )

    fit(model, loss, len(once))
    return model
