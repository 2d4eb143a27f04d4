"""Image and text embedders, and the one loop from inputs to features, with and without the cache."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_ids, check_texts, check_whole
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.progress import progress
from neuroenc._core.provenance import provenance
from neuroenc._version import __version__
from neuroenc.data import Stimuli, make_features
from neuroenc.embedding._cache import FeatureCache, block_rows, check_finite
from neuroenc.embedding._prompts import check_prompts, unit, with_prompts
from neuroenc.embedding._registry import (
    Backbone,
    check_layer,
    check_model,
    check_pooling,
    image_backbone,
    pool,
    text_backbone,
    unit_norm,
)
from neuroenc.embedding.spaces._folder import mark_trained


class _Embedder:
    """What both embedders share: settings, and the model, kept as long as the embedder lives.

    Building a network takes longer than a few pictures, and captions are embedded a few at a time.
    """

    backbone: Backbone
    normalise: bool
    device: str
    batch_size: int
    cache: bool | str | os.PathLike[str]
    progress: bool
    pooling: str | int | None = None
    _loaded: tuple[str, Any] | None = None

    def _model(self, device: str) -> Any:
        if self._loaded is None or self._loaded[0] != device:
            self._loaded = (device, self.backbone.load(device))
        return self._loaded[1]

    def _array(self, values: Any) -> np.ndarray:
        """A batch's tensor as float32, of unit norm if asked for."""
        values = unit_norm(values) if self.normalise else values
        return np.ascontiguousarray(values.float().cpu().numpy())

    def _labelled(
        self, values: Any, ids: Any, layer: str | None, pooling: str, normalised: bool, record: str
    ) -> xr.DataArray:
        known = {"backbone": self.backbone.name, "weights": self.backbone.weights, "layer": layer or ""}
        made: dict[str, Any] = {**known, "pooling": pooling, "normalised": normalised, "provenance": record}
        return make_features(values, stimulus=ids, **made)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and other processes load their own.
        return {**self.__dict__, "_loaded": None}

    def _settings(self, kind: str, content: str, layer: str | None) -> dict[str, Any]:
        """All that decides features, as the cache knows them."""
        backbone = self.backbone
        own = backbone.unit_norm and (not layer or getattr(backbone, "unit_layers", False))
        return {
            "kind": kind,
            "content": content,
            "backbone": backbone.name,
            "weights": backbone.weights,
            "weights_hash": backbone.weights_hash(),
            "layer": layer or "",
            "pooling": "" if self.pooling is None else str(self.pooling),
            "normalised": int(self.normalise or own),
            "preprocessing": backbone.preprocessing,
            "neuroenc": __version__,
        }

    def _store(self) -> FeatureCache | None:
        if not isinstance(self.cache, (bool, str, os.PathLike)):
            raise ConfigError(f"cache={self.cache!r} is not legal; use True, False or the path of a folder.")
        return None if self.cache is False else FeatureCache(None if self.cache is True else self.cache)

    def _features(
        self,
        kind: str,
        content: str,
        ids: np.ndarray,
        layer: str | None,
        encode: Callable[[str, int, int], np.ndarray],
        look: Callable[[str], dict[str, Any]] = lambda device: {},
        after: Callable[[int, int], None] = lambda start, stop: None,
    ) -> xr.DataArray:
        """Features of ``len(ids)`` inputs whose content has hash ``content``, from the cache or computed.

        ``encode(device, start, stop)`` gives the values of one batch; ``after(start, stop)`` is called when those of a
        block are known. Nothing of torch is touched unless something has to be computed; ``look(device)`` then says
        what shall be told of the inputs and kept in the provenance.
        """
        backbone = self.backbone
        if len(ids) == 0:
            raise DataError("there is nothing to embed (0 inputs).")
        if not isinstance(self.normalise, bool):
            raise ConfigError(f"normalise={self.normalise!r} is not legal; use True or False.")
        store, settings = self._store(), self._settings(kind, content, layer)
        found = None if store is None else store.load(settings)
        if found is not None:
            values, record = found
        else:
            place = resolve_device(self.device)
            record = provenance(step="embed", device=place, **settings, **look(place))
            n, desc = len(ids), f"{backbone.name} {layer or ''}".strip()
            bar = progress(desc=desc, total=n, show=self.progress, unit=kind)

            def extract(start: int, stop: int) -> np.ndarray:
                parts = []
                bar.update(start - bar.n)
                for first in range(start, stop, self.batch_size):
                    last = min(first + self.batch_size, stop)
                    parts.append(check_finite(encode(place, first, last), ids, first))
                    bar.update(last - first)
                after(start, stop)
                return np.concatenate(parts)

            rows = block_rows(self.batch_size)
            with bar:
                if store is not None:
                    values = store.compute(settings, n, rows, extract, record)
                else:
                    values = np.concatenate([extract(start, min(start + rows, n)) for start in range(0, n, rows)])
                bar.update(n - bar.n)
        cut = json.loads(record).get("cut")
        if cut:
            warnings.warn(
                f"{cut['texts']} of {len(ids)} texts are longer than the {cut['limit']} {cut.get('unit', 'tokens')} "
                f"that {backbone.name!r} reads, and are cut there; the first is {cut['first']!r} ({cut['tokens']}). "
                "What stands behind the cut does not enter the features. Next step: shorten or split them.",
                UserWarning,
                stacklevel=3,
            )
        return self._labelled(values, ids, layer, settings["pooling"], bool(settings["normalised"]), record)


class ImageEmbedder(_Embedder):
    """Image features ``X[n] = pool(backbone_layer(preprocess(image[n])))``, raw or of unit norm.

    The model is in evaluation mode, without gradients, in float32; the preprocessing is the checkpoint's own.
    It is loaded when something has to be computed (features found in the cache need no model), and kept as long as the
    embedder lives.

    Parameters
    ----------
    model : str or torch.nn.Module
        - "world": the simulated world's own CLIP (shipped);
        - an open_clip architecture ("ViT-B-32") together with ``pretrained``;
        - "local-dir:PATH" or "hf-hub:USER/NAME", an open_clip folder or hub model with its own weights;
        - "timm:NAME" or "timm:NAME.TAG", an image network of timm (see :mod:`neuroenc.embedding._timm`);
        - "torchvision:NAME" or "torchvision:NAME.TAG", such as "torchvision:alexnet", or a torch module of your own
          that reads (b, 3, y, x): every inner module is a layer (see :mod:`neuroenc.embedding._torch`);
        - "efficientnet-lite0": ImageNet features from the ``offline`` extra;
        - "conse": their joint space with MiniLM sentence vectors (ConSE, see
          :mod:`neuroenc.embedding._offline` for what it cannot see);
        - "gabor", "contrast", "colour": low-level maps in closed form (see :mod:`neuroenc.embedding._lowlevel`);
        - the folder of :func:`train_space`, if it was trained with pictures;
        - a name of :func:`register_backbone`.
    pretrained : str or path, optional
        open_clip tag ("openai", "laion2b_s34b_b79k") or a checkpoint file (safetensors, or .pt read with
        ``weights_only=True``). None with an architecture means random weights, with a warning.
        Weights trained with another activation than the architecture's (QuickGELU) are an error. For a file
        that is known from its name, or lies beside its open_clip_config.json, too; nothing in other files
        tells which activation they were trained with.
    layer : str, optional
        Intermediate layer, one of :meth:`layers`; None is the final vector.
    layers : sequence of str, optional
        Several layers, for :meth:`embed_layers`, in place of ``layer``.
    pooling : None, "tokens", "map", "mean", "cls" or int, optional
        Of an intermediate layer. None: as the layer gives it, tokens (stimulus, token, feature) with the class
        token first for a transformer, a channel map (stimulus, channel, y, x) for a convnet. "tokens" and "map"
        choose the form. "mean" over places and "cls" (class token) give vectors (stimulus, feature). An int g
        is adaptive average pooling of the map to (stimulus, channel, g, g).
    normalise : bool
        Unit Euclidean norm of each vector. False keeps the norms, which captions need.
    preprocessing : mapping, optional
        Overrides of the checkpoint's own: ``size, mean, std, interpolation, resize_mode, fill_color``.
    device : str
        "auto" takes CUDA, then MPS, then the CPU.
    batch_size : int
        Images at a time; results do not depend on it (to float32 rounding).
    cache : bool or path
        Keep features in NEUROENC_CACHE (or in that folder) and take them from there.
    progress : bool
        Show a bar.
    seed : int
        Of random weights.

    Raises
    ------
    ConfigError
        A name is unknown (the message has the nearest), or settings do not go together.
    DataError
        A checkpoint or image cannot be read.

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> embedder = ImageEmbedder("world", cache=False, progress=False)
    >>> embedder.embed(simulate_world(2)).shape
    (2, 128)
    >>> ImageEmbedder("world", layer="layer2", pooling=4, cache=False).embed(simulate_world(1)).dims
    ('stimulus', 'channel', 'y', 'x')
    """

    def __init__(
        self,
        model: Any = "world",
        pretrained: str | os.PathLike[str] | None = None,
        *,
        layer: str | None = None,
        layers: Sequence[str] | None = None,
        pooling: str | int | None = None,
        normalise: bool = False,
        preprocessing: Mapping[str, Any] | None = None,
        device: str = "auto",
        batch_size: int = 64,
        cache: bool | str | os.PathLike[str] = True,
        progress: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.pretrained, self.normalise, self.seed = model, pretrained, normalise, seed
        self.device, self.batch_size = device, check_whole("batch_size", batch_size)
        self.cache, self.progress = cache, progress
        self.layer, self.pooling = layer, check_pooling(pooling)
        self.backbone = image_backbone(*check_model(model, pretrained, seed), seed, preprocessing)
        if isinstance(layers, str) or (layers is not None and (layer is not None or not layers)):
            raise ConfigError(
                f"layers={layers!r} with layer={layer!r}; legal is one layer=, or layers= with a list of names."
            )
        #: Layers by name, of one that was made with several.
        self.several = None if layers is None else tuple(dict.fromkeys(layers))
        for name in self.several or ([] if layer is None else [layer]):
            check_layer(self.backbone.name, name, self.backbone.layers())
        if layer is None and layers is None and pooling is not None:
            raise ConfigError(
                f"pooling={pooling!r} is of an intermediate layer, and none is named (layer=None is the final "
                f"vector). Next step: layer= one of {', '.join(self.backbone.layers()[:20]) or '(none)'}."
            )

    def __repr__(self) -> str:
        place = f"layer={self.layer!r}" if self.several is None else f"layers={list(self.several)}"
        return (
            f"ImageEmbedder({self.model!r}, weights={self.backbone.weights!r}, {place}, "
            f"pooling={self.pooling!r}, normalise={self.normalise})"
        )

    def layers(self) -> tuple[str, ...]:
        """Names of the intermediate layers, from the image on.

        Examples
        --------
        >>> ImageEmbedder("world").layers()[0]
        'stem'
        """
        return self.backbone.layers()

    def embed(self, stimuli: Stimuli) -> xr.DataArray:
        """Features of the images of ``stimuli``, in their order.

        Parameters
        ----------
        stimuli : Stimuli
            With images.

        Returns
        -------
        xarray.DataArray
            float32 "features", (stimulus, feature), (stimulus, token, feature) or (stimulus, channel, y, x);
            attrs ``backbone, weights, layer, pooling, normalised, content_hash, provenance``. More than 1 GiB
            stays on disk, memory-mapped, if the cache is in use.

        Raises
        ------
        DataError
            There are no images, one cannot be read, or features are not finite.
        """
        self._check(stimuli)
        if self.several is not None:
            raise ConfigError(
                f"this embedder has {len(self.several)} layers, of which each gives features. Next step: "
                "embed_layers(stimuli)."
            )
        encode = partial(self._encode, stimuli)
        found = self._features("image", stimuli.content_hash(), stimuli.ids, self.layer, encode)
        return mark_trained(found, self.backbone, stimuli)

    def embed_layers(self, stimuli: Stimuli) -> dict[str, xr.DataArray]:
        """Features of all ``layers``, in one forward pass of each image.

        Values and cache are those of an embedder for each layer: what is in the cache is taken from there, and the
        rest is computed together.

        Parameters
        ----------
        stimuli : Stimuli
            With images.

        Returns
        -------
        dict of str to xarray.DataArray
            By layer, as :meth:`embed` gives them.

        Raises
        ------
        ConfigError
            The embedder was made without ``layers``.
        DataError
            As :meth:`embed`.

        Examples
        --------
        >>> from neuroenc.data import simulate_world
        >>> embedder = ImageEmbedder("world", layers=["layer1", "layer3"], pooling="mean", cache=False, progress=False)
        >>> {name: found.shape for name, found in embedder.embed_layers(simulate_world(2)).items()}
        {'layer1': (2, 64), 'layer3': (2, 256)}
        """
        self._check(stimuli)
        if self.several is None:
            raise ConfigError("this embedder has no layers=. Next step: ImageEmbedder(..., layers=[...]), or embed().")
        content, store, found = stimuli.content_hash(), self._store(), {}
        ahead: dict[str, dict[tuple[int, int], np.ndarray]] = {layer: {} for layer in self.several}
        for n, layer in enumerate(self.several):
            later = [
                name
                for name in self.several[n + 1 :]
                if store is None or not store.has(self._settings("image", content, name))
            ]

            def encode(device: str, start: int, stop: int, layer: str = layer, later: list[str] = later) -> np.ndarray:
                if (start, stop) not in ahead[layer]:
                    asked = [layer, *(name for name in later if (start, stop) not in ahead[name])]
                    for name, values in self._encode_layers(stimuli, asked, device, start, stop).items():
                        ahead[name][start, stop] = check_finite(values, stimuli.ids, start)
                return ahead[layer].pop((start, stop))

            def after(start: int, stop: int, later: list[str] = later) -> None:
                # What the cache takes needs no memory until its turn comes.
                if store is None:
                    return
                for name in later:
                    spans = sorted(span for span in ahead[name] if start <= span[0] < stop)
                    whole = [ahead[name][span] for span in spans]
                    if whole and store.ahead(self._settings("image", content, name), start, stop, whole):
                        for span in spans:
                            del ahead[name][span]

            made = self._features("image", content, stimuli.ids, layer, encode, after=after)
            found[layer] = mark_trained(made, self.backbone, stimuli)
        return found

    def _check(self, stimuli: Any) -> None:
        if not isinstance(stimuli, Stimuli):
            raise DataError(
                f"embed() takes Stimuli, and got {type(stimuli).__name__}. "
                "Next step: neuroenc.data.Stimuli(ids, images)."
            )
        if stimuli.images is None:
            raise DataError(f"these {len(stimuli)} stimuli have no images (source {stimuli.source!r}).")

    def _batch(self, stimuli: Stimuli, model: Any, device: str, start: int, stop: int) -> Any:
        """Prepared pictures (b, 3, y, x)."""
        import torch

        def prepared(n: int) -> Any:
            image = stimuli.image(n)
            try:
                return model.preprocess(image)
            except (ValueError, RuntimeError, MemoryError, OverflowError, ZeroDivisionError) as error:
                raise DataError(
                    f"picture of stimulus {str(stimuli.ids[n])!r} ({image.size[0]} x {image.size[1]} pixels) cannot be "
                    f"prepared for {self.backbone.name!r}: {error}. Next step: look at that picture."
                ) from error

        # Threads of a batch only: they are gone with it.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as workers:
            tensors = list(workers.map(prepared, range(start, stop)))
        return torch.stack(tensors).to(device)

    def _encode(self, stimuli: Stimuli, device: str, start: int, stop: int) -> np.ndarray:
        model = self._model(device)
        batch = self._batch(stimuli, model, device, start, stop)
        with exact_arithmetic():
            return self._array(pool(model.encode(batch, self.layer), self.pooling))

    def _encode_layers(
        self, stimuli: Stimuli, layers: Sequence[str], device: str, start: int, stop: int
    ) -> dict[str, np.ndarray]:
        model = self._model(device)
        batch = self._batch(stimuli, model, device, start, stop)
        together = getattr(model, "encode_layers", None)
        with exact_arithmetic():
            found = together(batch, layers) if together else {name: model.encode(batch, name) for name in layers}
            return {name: self._array(pool(found[name], self.pooling)) for name in layers}


class TextEmbedder(_Embedder):
    """Text features ``X[n] = tower(tokens(text[n]))``, raw or of unit norm.

    Parameters
    ----------
    model : str
        "world", an open_clip architecture with ``pretrained``, "local-dir:PATH", "hf-hub:USER/NAME", "minilm"
        (all-MiniLM-L6-v2 sentence vectors, of unit norm by the model's own last step), "smollm2" (a language model;
        its package is installed by itself), "conse" (the text side of the ConSE space of :class:`ImageEmbedder`),
        "hf-dir:PATH" (a folder of transformers, such as a language model's), the folder of :func:`train_space`, or a
        name of :func:`register_backbone`.
    layer : str, optional
        One of :meth:`layers`; None is the model's own vector. A hidden layer ("block2") is the mean over the tokens of
        each text; of a nested space "first64" or "block2-first64" are first dimensions.
    prompt : str or sequence of str, optional
        Template with ``{}`` where a text stands, "a photo of {}"; of several the mean of their vectors is taken.
    system : str
        Instruction of a model with a chat template ("hf-dir:PATH"): the system's part, with the prompt as the user's.
    pretrained, normalise, device, batch_size, cache, progress, seed
        As in :class:`ImageEmbedder`.

    Notes
    -----
    A model reads a number of tokens (77 of CLIP, 64 of SigLIP, 32 of "world", 256 of "minilm"), and what is longer is
    cut: a warning says how many texts, and the first. The model is kept as long as the embedder lives.

    Examples
    --------
    >>> embedder = TextEmbedder("world", normalise=True, cache=False, progress=False)
    >>> x = embedder.embed(["a photo of a face", "a photo of a house"])
    >>> x.shape, x.attrs["normalised"]
    ((2, 128), 1)
    """

    def __init__(
        self,
        model: str = "world",
        pretrained: str | os.PathLike[str] | None = None,
        *,
        layer: str | None = None,
        prompt: str | Sequence[str] | None = None,
        system: str = "",
        normalise: bool = False,
        device: str = "auto",
        batch_size: int = 256,
        cache: bool | str | os.PathLike[str] = True,
        progress: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.pretrained, self.normalise, self.seed = model, pretrained, normalise, seed
        self.device, self.batch_size = device, check_whole("batch_size", batch_size)
        self.cache, self.progress = cache, progress
        self.backbone = text_backbone(*check_model(model, pretrained, seed), seed)
        self.layer, self.prompt, self.system = layer, prompt, system
        self._templates = check_prompts(prompt, system, self.backbone)
        if layer is not None:
            check_layer(self.backbone.name, layer, self.layers(), "text layer")

    def __repr__(self) -> str:
        place = "" if self.layer is None else f", layer={self.layer!r}"
        return f"TextEmbedder({self.model!r}, weights={self.backbone.weights!r}{place}, normalise={self.normalise})"

    def layers(self) -> tuple[str, ...]:
        """Names of the hidden layers, from the words on; none where the model tells none.

        Examples
        --------
        >>> TextEmbedder("minilm").layers()[:2]
        ('embeddings', 'block0')
        """
        return self.backbone.layers() if hasattr(self.backbone, "layers") else ()

    def embed(self, texts: Sequence[str], ids: Sequence[str] | None = None) -> xr.DataArray:
        """Features of ``texts``, in their order.

        Parameters
        ----------
        texts : sequence of str (n,)
        ids : sequence of str (n,), optional
            Stimulus ids; "0", "1", ... by default. Several texts of one stimulus may bear its id.

        Returns
        -------
        xarray.DataArray
            float32 (stimulus, feature).

        Raises
        ------
        DataError
            ``texts`` is one string, is empty or holds something else than text, or ids do not fit.

        Examples
        --------
        >>> TextEmbedder("world", cache=False, progress=False).embed(["a cat"], ids=["p1"]).stimulus.item()
        'p1'
        """
        listed = check_texts(texts, "texts")
        # Halves of characters come out of broken files, and no tokenizer takes them.
        wrong = [n for n, t in enumerate(listed) if not t.strip() or t != t.encode("utf-8", "replace").decode()]
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(listed)} texts are empty or not UTF-8; the first is number {wrong[0]}: "
                f"{listed[wrong[0]]!r}."
            )
        names = np.array(check_ids(ids, len(listed), "texts"))
        listed, several = with_prompts(listed, self._templates, self.system, self.backbone), len(self._templates)
        content, cut, rows = (
            hash_array(np.array(listed, dtype=str)),
            partial(self._cut, listed),
            np.tile(names, several),
        )
        found = self._features("text", content, rows, self.layer, partial(self._encode, listed), look=cut)
        if several == 1:
            return found
        mean = unit(found.values.reshape(several, len(names), -1).mean(0), self.normalise)
        return found[: len(names)].copy(data=mean).assign_attrs(pooling="mean over prompts")

    def embed_captions(self, stimuli: Stimuli) -> xr.DataArray:
        """Mean vector of each stimulus' captions: ``X[n] = mean_k tower(caption[n][k])``.

        With ``normalise=True`` each caption's vector and then each mean has unit norm.

        Parameters
        ----------
        stimuli : Stimuli
            With one or more captions for every stimulus.

        Returns
        -------
        xarray.DataArray
            float32 (stimulus, feature).

        Raises
        ------
        DataError
            There are no captions, or some stimuli have none.

        Examples
        --------
        >>> from neuroenc.data import Stimuli
        >>> two = Stimuli(["a", "b"], captions=[["a cat", "a dog"], ["a house"]])
        >>> TextEmbedder("world", cache=False, progress=False).embed_captions(two).shape
        (2, 128)
        """
        if not isinstance(stimuli, Stimuli):
            raise DataError(f"embed_captions() takes Stimuli, and got {type(stimuli).__name__}.")
        captions = stimuli.captions
        if captions is None:
            raise DataError(f"these {len(stimuli)} stimuli have no captions (source {stimuli.source!r}).")
        empty = [str(s) for s, c in zip(stimuli.ids, captions, strict=True) if not c]
        if empty:
            raise DataError(f"{len(empty)} of {len(stimuli)} stimuli have no caption, the first is {empty[0]!r}.")
        unique = sorted({text for texts in captions for text in texts})
        place = {text: n for n, text in enumerate(unique)}
        found = self.embed(unique)
        values = found.values
        mean = unit(np.stack([values[[place[t] for t in texts]].mean(0) for texts in captions]), self.normalise)
        made = provenance(step="embed_captions", captions=found.attrs["provenance"])
        features = self._labelled(mean, stimuli.ids, self.layer, "mean over captions", self.normalise, made)
        return mark_trained(features, self.backbone, stimuli)

    def _cut(self, texts: list[str], device: str) -> dict[str, Any]:
        """Which texts are longer than the model reads, for models that count tokens."""
        model = self._model(device)
        count, limit = getattr(model, "count_tokens", None), getattr(model, "max_tokens", None)
        if count is None or not limit:
            return {}
        tokens = np.concatenate([count(texts[n : n + 1024]) for n in range(0, len(texts), 1024)])
        long = np.flatnonzero(tokens > limit)
        if not long.size:
            return {}
        shown = texts[long[0]][:60] + "..." * (len(texts[long[0]]) > 60)
        found = {"texts": int(long.size), "limit": int(limit), "first": shown, "tokens": int(tokens[long[0]])}
        return {"cut": {**found, "unit": getattr(model, "token_name", "tokens")}}

    def _encode(self, texts: list[str], device: str, start: int, stop: int) -> np.ndarray:
        with exact_arithmetic():
            model = self._model(device)
            where = () if self.layer is None else (self.layer,)
            return self._array(model.encode(texts[start:stop], *where))
