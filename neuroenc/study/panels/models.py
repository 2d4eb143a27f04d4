"""Models of a panel: backbones of the registry, trained spaces and files of features, by one spelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.store import content_key
from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder, TextEmbedder, list_backbones
from neuroenc.study.stages.load import flatten, load_labelled

#: Beginnings of names that hold a colon of their own.
_PREFIXES = ("timm", "torchvision", "local-dir", "hf-hub", "hf-dir", "hf-dir-bidirectional")


@dataclass
class PanelModel:
    """A model in one track.

    Attributes
    ----------
    name : str
        As it was asked for.
    track : {"images", "words"}
        The form of stimuli that it takes.
    identity : str
        Hash of all that its features depend on beside the stimuli.
    about : dict
        What a table tells of it.
    """

    name: str
    track: str
    identity: str
    about: dict[str, Any]
    embedder: Any = None
    stored: xr.DataArray | None = None
    pooling: int = 4

    def features(self, stimuli: Stimuli) -> xr.DataArray:
        """Features (stimulus, feature) of these stimuli; maps and tokens in cells, side by side."""
        if self.stored is not None:
            known = set(self.stored["stimulus"].values.astype(str))
            lost = [str(i) for i in stimuli.ids if str(i) not in known]
            if lost:
                raise DataError(f"{len(lost)} of {len(stimuli)} stimuli have no features, first {lost[0]!r}")
            found = self.stored.sel(stimulus=[str(i) for i in stimuli.ids])
        elif self.track == "words":
            found = self.embedder.embed_captions(stimuli)
        else:
            self.settle_pooling(stimuli)
            found = self.embedder.embed(stimuli)
        data.check_unseen(found, self.name)
        return flatten(found)

    def settle_pooling(self, stimuli: Stimuli) -> None:
        """Cells where a layer has places; one vector where it has none; the map where it is coarser than the cells."""
        if self.embedder.layer is None or self.embedder.pooling is not None:
            return
        first = stimuli.sel(stimuli.ids[:1])
        shape = self.embedder.embed(first)
        if shape.ndim > 2:
            side = min(shape.shape[2:]) if shape.ndim == 4 else self.pooling
            self.embedder.pooling = min(self.pooling, side)
            try:
                self.embedder.embed(first)
            except ConfigError:  # tokens that do not lie on a grid
                self.embedder.pooling = "mean"


def embed_together(models: Sequence[PanelModel], stimuli: Stimuli) -> None:
    """Features of several layers of one network in one forward pass, for the cache that each model reads its own from.

    Values are those of each layer alone; without a cache nothing is gained, and each model computes its own.
    """
    together: dict[Any, list[PanelModel]] = {}
    for model in models:
        if model.track == "images" and model.embedder is not None and model.embedder.layer is not None:
            model.settle_pooling(stimuli)
            e = model.embedder
            together.setdefault((str(e.model), e.pretrained, str(e.pooling), e.device), []).append(model)
    for several in together.values():
        if len(several) > 1:
            e = several[0].embedder
            how: dict[str, Any] = {"pooling": e.pooling, "device": e.device, "progress": e.progress}
            ImageEmbedder(e.model, e.pretrained, layers=[m.embedder.layer for m in several], **how).embed_layers(
                stimuli
            )


def split_name(spec: str) -> tuple[str, str | None, str | None]:
    """``BACKBONE[@WEIGHTS][:LAYER]`` as its parts.

    >>> split_name("efficientnet-lite0:block8")
    ('efficientnet-lite0', None, 'block8')
    >>> split_name("timm:resnet50.a1_in1k:layer3")
    ('timm:resnet50.a1_in1k', None, 'layer3')
    >>> split_name("ViT-B-32@openai")
    ('ViT-B-32', 'openai', None)
    """
    head, _, rest = spec.partition(":")
    if head in _PREFIXES and rest:
        name, _, layer = rest.partition(":")
        name = f"{head}:{name}"
    else:
        name, layer = head, rest
    if Path(name).exists():
        return name, None, layer or None
    name, _, weights = name.partition("@")
    return name, weights or None, layer or None


def open_models(
    specs: Sequence[str], pooling: int, *, device: str = "auto", progress: bool = False
) -> list[PanelModel]:
    """Models by their names; one that embeds pictures and words is two, one in each track.

    Parameters
    ----------
    specs : sequence of str
        ``BACKBONE[@WEIGHTS][:LAYER]`` with a name of the registry, an open_clip architecture, ``timm:NAME``, or the
        folder of a trained space; or a file of features (.nc, .zarr), whose attribute ``stimuli`` may be "words".
    pooling : int
        Cells a side of layers with places.
    """
    if not specs:
        raise ConfigError(
            f"no model is named. Next step: --model {next(iter(list_backbones()))} (registered: "
            f"{', '.join(list_backbones())}), --model FOLDER of a trained space, or --model FEATURES.nc."
        )
    twice = {s for s in specs if list(specs).count(s) > 1}
    if twice:
        raise ConfigError(f"model {min(twice)!r} is named twice. Next step: name it once.")
    return [one for spec in specs for one in _open(spec, pooling, device, progress)]


def _open(spec: str, pooling: int, device: str, progress: bool) -> list[PanelModel]:
    if Path(spec).suffix in (".nc", ".zarr"):
        stored = data.validate_features(load_labelled(spec, "--model"))
        track = str(stored.attrs.get("stimuli", "images"))
        if track not in ("images", "words"):
            raise DataError(f"{spec}: attribute stimuli is {track!r}; legal are 'images' and 'words'.")
        about = {"features": Path(spec).name, "backbone": str(stored.attrs.get("backbone", ""))}
        stored = stored.assign_coords(stimulus=stored["stimulus"].values.astype(str))
        return [PanelModel(spec, track, content_key(stored), about, stored=stored)]
    name, weights, layer = split_name(spec)
    kinds = list_backbones().get(name, "image + text")
    found: list[PanelModel] = []
    refused: list[ConfigError] = []
    for kind, make, track in (("image", ImageEmbedder, "images"), ("text", TextEmbedder, "words")):
        if kind not in kinds:
            continue
        try:
            embedder = make(name, weights, layer=layer, device=device, progress=progress)  # type: ignore[operator]
            content = [
                embedder.backbone.name,
                embedder.backbone.weights_hash(),
                embedder.backbone.preprocessing,
                layer,
                pooling if layer and track == "images" else None,
            ]
        except ConfigError as error:
            refused.append(error)
            continue
        about = {"backbone": name, "weights": embedder.backbone.weights, "layer": layer or ""}
        about["weights_hash"] = embedder.backbone.weights_hash()[:16]
        found.append(PanelModel(spec, track, content_key(content), about, embedder, pooling=pooling))
    if not found:
        raise refused[0]
    return found


def finite(features: xr.DataArray) -> np.ndarray:
    """Values (stimulus, feature) as float32."""
    values = np.asarray(features.values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{int((~np.isfinite(values)).sum())} of {values.size} features are not finite")
    return values
