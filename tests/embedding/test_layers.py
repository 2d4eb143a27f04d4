"""Several layers in one forward pass, and layers of any torch module, are what the network itself computes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import ImageEmbedder
from neuroenc.embedding._offline import EfficientNetModel
from neuroenc.study.read import parse_config
from neuroenc.study.stages.load import make_spaces

PLAIN = {"progress": False, "device": "cpu"}


class Net(nn.Module):
    """Writes into its own outputs, calls a module twice, has one that is not used, and a token layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=4))
        self.twice, self.unused = nn.ReLU(inplace=True), nn.Linear(2, 2)
        self.tokens = nn.Linear(8, 5)
        self.head = nn.Linear(5, 4)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        maps = self.twice(self.features(x))
        maps = self.twice(maps - 0.1)
        return self.head(self.tokens(maps.flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(
    ("name", "layers", "settings"),
    [
        ("world", ["layer1", "stem", "layer3"], {}),
        ("efficientnet-lite0", ["block8", "block2", "logits"], {"preprocessing": {"size": 64}}),
        ("timm:test_vit", ["blocks.4", "blocks.1"], {"pooling": "cls"}),
    ],
)
def test_several_layers_are_each_layer_to_the_bit(pictures, tmp_path, name, layers, settings):
    stimuli, how = pictures(5), {**PLAIN, **settings, "batch_size": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights
        each = {k: ImageEmbedder(name, layer=k, cache=False, **how).embed(stimuli) for k in layers}
        for cache in (False, tmp_path):
            found = ImageEmbedder(name, layers=layers, cache=cache, **how).embed_layers(stimuli)
            assert list(found) == layers
            for layer in layers:
                np.testing.assert_array_equal(found[layer].values, each[layer].values)
                assert {**found[layer].attrs, "provenance": ""} == {**each[layer].attrs, "provenance": ""}
                assert found[layer].dims == each[layer].dims


def test_one_forward_pass_serves_all_layers_and_later_embedders(pictures, tmp_path, monkeypatch):
    passes = []
    run = EfficientNetModel._run

    def counted(self, batch, layers):
        passes.append(len(batch))
        return run(self, batch, layers)

    monkeypatch.setattr(EfficientNetModel, "_run", counted)
    stimuli, how = pictures(600), {**PLAIN, "cache": tmp_path, "preprocessing": {"size": 32}, "pooling": "mean"}
    found = ImageEmbedder("efficientnet-lite0", layers=["block0", "block3"], batch_size=128, **how).embed_layers(
        stimuli
    )
    assert sum(passes) == 600  # each picture once, over several blocks of the cache
    again = ImageEmbedder("efficientnet-lite0", layer="block3", batch_size=128, **how).embed(stimuli)
    assert sum(passes) == 600
    np.testing.assert_array_equal(again, found["block3"])
    more = ImageEmbedder("efficientnet-lite0", layers=["block0", "block1", "block3"], **how).embed_layers(stimuli)
    assert sum(passes) == 1200  # block1 alone was missing
    np.testing.assert_array_equal(more["block0"], found["block0"])


def test_hooks_give_what_each_module_gave(pictures, tmp_path):
    stimuli, net = pictures(4), Net()
    how = {**PLAIN, "preprocessing": {"size": 32}}
    names = ["features.0", "features.1", "features.2", "twice", "tokens", "head"]
    found = ImageEmbedder(net, layers=names, cache=tmp_path, **how).embed_layers(stimuli)
    assert net.training  # one's own module stays as it was
    assert net.passes == 0
    embedder = ImageEmbedder(net, cache=False, **how)
    batch = embedder._batch(stimuli, embedder._model("cpu"), "cpu", 0, 4)
    with torch.no_grad():
        first = net.features[0](batch)
        np.testing.assert_allclose(found["features.0"], first, atol=1e-6)  # not what was written into it later
        second = net.features[2](first.clamp(min=0))
        np.testing.assert_allclose(found["features.2"], second, atol=1e-6)
        np.testing.assert_allclose(found["twice"], (second.clamp(min=0) - 0.1).clamp(min=0), atol=1e-6)
        np.testing.assert_allclose(embedder.embed(stimuli), net(batch), atol=1e-6)
    assert found["tokens"].dims == ("stimulus", "token", "feature")
    assert found["head"].attrs["backbone"] == "Net"
    # The cache goes by weights.
    other = ImageEmbedder(Net(seed=1), layer="head", cache=tmp_path, **how).embed(stimuli)
    assert np.abs(other.values - found["head"].values).max() > 1e-3


def test_unknown_and_silent_layers_are_told(pictures):
    with pytest.raises(ConfigError, match=r"features\.2"):
        ImageEmbedder(Net(), layer="feature.2")
    with pytest.raises(DataError, match="unused"):
        ImageEmbedder(Net(), layer="unused", cache=False, **PLAIN).embed(pictures(1))
    with pytest.raises(ConfigError, match="layers"):
        ImageEmbedder(Net(), layer="head", layers=["head"])
    with pytest.raises(ConfigError, match="embed_layers"):
        ImageEmbedder(Net(), layers=["head"]).embed(pictures(1))


def test_alexnets_maps_are_those_of_the_readout_comparison(pictures, tmp_path):
    from torchvision.models import alexnet

    torch.manual_seed(3)
    net = alexnet(weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "alexnet.pth")
    names = [f"layer{n}" for n in range(1, 6)]
    embedder = ImageEmbedder(
        "torchvision:alexnet", str(tmp_path / "alexnet.pth"), layers=names, pooling=6, cache=False, **PLAIN
    )
    found = embedder.embed_layers(pictures(2))
    assert [found[k].shape[1:] for k in names] == [(c, 6, 6) for c in (64, 192, 384, 256, 256)]
    batch = embedder._batch(pictures(2), embedder._model("cpu"), "cpu", 0, 2)
    for name, stop in zip(names, (3, 6, 8, 10, 12)):
        with torch.no_grad():
            expected = nn.functional.adaptive_avg_pool2d(net.features[:stop](batch.clone()), 6)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="alexnet"):
        ImageEmbedder("torchvision:alexnett")
    with pytest.raises(ConfigError, match="IMAGENET1K_V1"):
        ImageEmbedder("torchvision:alexnet", "IMAGENET1K_V9")


@pytest.mark.parametrize("layer", ["embeddings", "block2"])
def test_text_layers_are_means_over_tokens(layer):
    import transformers

    from neuroenc.embedding import TextEmbedder
    from neuroenc.embedding._offline import MiniLM

    texts = ["a dog", "a man rides a brown horse on the beach"]
    found = TextEmbedder("minilm", layer=layer, cache=False, **PLAIN).embed(texts)
    folder = str(MiniLM()._folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    number = 0 if layer == "embeddings" else 3
    for n, text in enumerate(texts):  # one at a time: nothing is padded
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[number]
        np.testing.assert_allclose(found[n], hidden[0].mean(0), atol=1e-4)
    assert found.attrs["layer"] == layer
    assert not found.attrs["normalised"]
    # The same files as a folder of one's own.
    again = TextEmbedder(f"hf-dir:{folder}", layer=layer, cache=False, **PLAIN).embed(texts)
    np.testing.assert_allclose(again, found, atol=1e-6)
    with pytest.raises(ConfigError, match="block5"):
        TextEmbedder("minilm", layer="block6")
    with pytest.raises(DataError, match="config"):
        TextEmbedder("hf-dir:/nowhere")


def test_a_language_model_without_its_causal_mask(tmp_path):
    import transformers

    from neuroenc.embedding import TextEmbedder
    from neuroenc.embedding._offline import MiniLM

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MiniLM()._folder))
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        **shape, intermediate_size=32, num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.5
    )
    torch.manual_seed(0)
    transformers.LlamaModel(config).eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a dog", "a man rides a brown horse on the beach"]
    found = {
        name: TextEmbedder(f"{name}:{tmp_path}", cache=False, **PLAIN).embed(texts).values
        for name in ("hf-dir", "hf-dir-bidirectional")
    }
    assert np.abs(found["hf-dir"] - found["hf-dir-bidirectional"]).max() > 0.1
    # Attention written out: every token sees every token, and none that only fills the batch.
    both = transformers.LlamaModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for n, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = both(input_ids=ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1])).last_hidden_state
        np.testing.assert_allclose(found["hf-dir-bidirectional"][n], states[0].mean(0), atol=1e-4)
    # Each layer is what transformers tells of it, the last one normalised, and nothing beyond a layer is computed.
    plain = transformers.LlamaModel.from_pretrained(tmp_path).eval()
    ids = tokenizer(texts[:1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = plain(input_ids=ids, output_hidden_states=True).hidden_states
    for number, layer in enumerate(("embeddings", "block0", "block1")):
        embedder = TextEmbedder(f"hf-dir:{tmp_path}", layer=layer, cache=False, **PLAIN)
        ran = []
        for block in embedder._model("cpu")._model.layers:
            block.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        np.testing.assert_allclose(embedder.embed(texts[:1])[0], states[number][0].mean(0), atol=1e-4)
        assert len(ran) == number


def test_prompts_stand_around_texts():
    from neuroenc.embedding import TextEmbedder

    texts, how = ["a dog", "a red house"], {"cache": False, "normalise": True, **PLAIN}
    plain = TextEmbedder("world", **how)
    photo, both = (TextEmbedder("world", prompt=p, **how) for p in ("a photo of {}", ["a photo of {}", "{} in a room"]))
    by_hand = plain.embed([f"a photo of {t}" for t in texts]).values
    np.testing.assert_allclose(photo.embed(texts), by_hand, atol=1e-6)
    mean = by_hand + plain.embed([f"{t} in a room" for t in texts]).values
    found = both.embed(texts, ids=["p", "q"])
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    assert found["stimulus"].values.tolist() == ["p", "q"]
    assert found.attrs["pooling"] == "mean over prompts"
    with pytest.raises(ConfigError, match=r"one \{\}"):
        TextEmbedder("world", prompt="a photo")
    with pytest.raises(ConfigError, match="no instruction"):
        TextEmbedder("world", system="Name what is shown.")


def test_a_language_model_is_instructed_by_its_chat_template(tmp_path):
    import transformers

    from neuroenc.embedding import TextEmbedder
    from neuroenc.embedding._offline import MiniLM

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MiniLM()._folder))
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**shape, intermediate_size=32, max_position_embeddings=64)
    torch.manual_seed(0)
    transformers.LlamaModel(config).eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = {"prompt": "what is seen: {}", "system": "Name it.", "cache": False, **PLAIN}
    with pytest.raises(ConfigError, match="no chat template"):
        TextEmbedder(f"hf-dir:{tmp_path}", **asked).embed(["a dog"])
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    found = TextEmbedder(f"hf-dir:{tmp_path}", **asked).embed(["a dog"]).values
    written = TextEmbedder(f"hf-dir:{tmp_path}", cache=False, **PLAIN)
    expected = written.embed(["[system] Name it. [user] what is seen: a dog "]).values
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - written.embed(["what is seen: a dog"]).values).max() > 1e-3


def test_layers_of_a_clips_text_tower():
    from neuroenc.embedding import TextEmbedder

    embedder = TextEmbedder("world", layer="block0", cache=False, **PLAIN)
    texts = ["a red car", "a dog beside a tree under a lamp"]
    both = embedder.embed(texts).values
    np.testing.assert_allclose(both[0], embedder.embed(texts[:1])[0], atol=1e-5)  # padding does not enter
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_a_config_names_several_layers(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path))
    table = {"model": "efficientnet-lite0", "layers": ["block0", "block2"], "preprocessing": {"size": 32}}
    config = parse_config({"data": {"name": "world"}, "features": {"lite": table}})
    assert list(config.features) == ["lite.block0", "lite.block2"]
    spaces = make_spaces(config.features, pictures(3), False)
    one = ImageEmbedder("efficientnet-lite0", layer="block2", preprocessing={"size": 32}, cache=False, **PLAIN)
    np.testing.assert_array_equal(spaces["lite.block2"], one.embed(pictures(3)))
    with pytest.raises(ConfigError, match="layers"):
        parse_config({"data": {"name": "world"}, "features": {"lite": {**table, "layer": "block1"}}})
