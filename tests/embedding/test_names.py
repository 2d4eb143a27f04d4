"""Names of architectures and weights: what is right is taken, what is wrong is said; never a download."""

from __future__ import annotations

import json

import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import ImageEmbedder, TextEmbedder, list_backbones, register_backbone
from neuroenc.embedding._openclip import resolve

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("arch", "tag", "right"),
    [
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-B/32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-L-14", "metaclip_400m", "ViT-L-14-quickgelu"),
        ("RN50", "OpenAI", "RN50-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "ViT-B-32"),
    ],
)
def test_quickgelu_mismatch_names_the_right_architecture(arch, tag, right):
    for embedder in (ImageEmbedder, TextEmbedder):
        with pytest.raises(ConfigError, match="QuickGELU") as caught:
            embedder(arch, tag)
        assert f"model='{right}'" in str(caught.value)
    assert resolve(right, tag).tag == tag


def test_every_published_pair_resolves_or_names_one_that_does():
    from neuroenc.embedding import prepare

    prepare()
    import open_clip

    refused = 0
    for arch, tag in open_clip.list_pretrained():
        if open_clip.get_model_config(arch) is None:
            continue
        try:
            source = resolve(arch, tag)
        except ConfigError as error:
            refused += 1
            right = str(error).split("model='")[1].split("'")[0]
            source = resolve(right, tag)
        assert source.tag == tag
        assert source.preprocessing["mean"] == open_clip.get_pretrained_cfg(source.create, tag)["mean"]
    assert refused > 15


def test_a_file_known_by_its_name_or_its_config_is_checked_too(tmp_path, vit):
    known = tmp_path / "vit_b_32-quickgelu-laion400m_e32-46683a32.pt"
    known.touch()
    with pytest.raises(ConfigError, match="model='ViT-B-32-quickgelu'"):
        ImageEmbedder("ViT-B-32", str(known))
    (tmp_path / "model.safetensors").touch()
    document = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="model='ViT-B-32-quickgelu'"):
        ImageEmbedder("ViT-B-32", tmp_path / "model.safetensors")
    embedder = ImageEmbedder("ViT-B-32-quickgelu", tmp_path / "model.safetensors")
    assert embedder.backbone.preprocessing["mean"] == [0.1, 0.2, 0.3]


def test_preprocessing_of_a_plain_file_is_the_architectures(tmp_path):
    (tmp_path / "x.safetensors").touch()
    siglip = ImageEmbedder("ViT-B-16-SigLIP", tmp_path / "x.safetensors").backbone.preprocessing
    assert siglip["mean"] == [0.5, 0.5, 0.5]
    assert siglip["resize_mode"] == "squash"


@pytest.mark.parametrize(
    ("model", "pretrained", "words"),
    [
        ("ViT-B-23", None, ("ViT-B-32",)),
        ("wrld", None, ("'world'",)),
        ("efficientnet-lite", None, ("'efficientnet-lite0'",)),
        ("ViT-B-32", "laion2b_s34b_b79", ("laion2b_s34b_b79k",)),
        ("world", "openai", ("brings its own weights",)),
        ("local-dir:/nowhere", "openai", ("has weights",)),
        ("minilm", None, ("embeds no images",)),
    ],
)
def test_unknown_names_and_the_nearest(model, pretrained, words):
    with pytest.raises(ConfigError) as caught:
        ImageEmbedder(model, pretrained)
    assert all(w in str(caught.value) for w in words)


def test_image_models_do_not_embed_text():
    with pytest.raises(ConfigError, match="embeds no texts"):
        TextEmbedder("efficientnet-lite0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "open_clip_config.json is missing"),
        ({"open_clip_config.json": "{"}, "not an open_clip configuration"),
        ({"open_clip_config.json": '{"model_cfg": {"embed_dim": 3}}'}, "vision_cfg"),
        ({"open_clip_config.json": None}, "0 checkpoints"),
        ({"open_clip_config.json": None, "a.pt": "", "b.pt": ""}, "2 checkpoints"),
    ],
)
def test_broken_folders(tmp_path, vit, content, words):
    for name, text in content.items():
        source = (vit / name).read_text() if text is None else text
        (tmp_path / name).write_text(source)
    with pytest.raises(DataError, match=words):
        ImageEmbedder(f"local-dir:{tmp_path}")


def test_missing_folder_and_file(tmp_path, arch):
    with pytest.raises(DataError, match="no such folder"):
        ImageEmbedder(f"local-dir:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="does not exist"):
        ImageEmbedder(arch, tmp_path / "none.safetensors")
    (tmp_path / "weights.pkl").touch()
    with pytest.raises(DataError, match="safetensors"):
        ImageEmbedder(arch, tmp_path / "weights.pkl")


def test_settings_that_do_not_go_together(vit):
    name = f"local-dir:{vit}"
    with pytest.raises(ConfigError, match="did you mean 'block2'"):
        ImageEmbedder(name, layer="blok2")
    with pytest.raises(ConfigError, match="pooling='average' is not legal"):
        ImageEmbedder(name, layer="block1", pooling="average")
    with pytest.raises(ConfigError, match="intermediate layer"):
        ImageEmbedder(name, pooling="mean")
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        ImageEmbedder(name, preprocessing={"means": (0, 0, 0)})
    with pytest.raises(ConfigError, match="batch_size=0"):
        ImageEmbedder(name, batch_size=0)


def test_names_can_be_added(pictures):
    class Brightness:
        name, weights, unit_norm, preprocessing = "brightness", "none", False, {"size": 1}

        def __init__(self, preprocessing=None):
            pass

        def weights_hash(self):
            return "0"

        def layers(self):
            return ()

        def load(self, device):
            return self

        def preprocess(self, image):
            import numpy as np
            import torch

            return torch.from_numpy(np.asarray(image, dtype="float32")).permute(2, 0, 1)

        def encode(self, batch, layer):
            from neuroenc.embedding._registry import Output

            return Output(batch.mean((2, 3)))

    if "brightness" not in list_backbones():
        register_backbone("brightness", image=Brightness)
    stimuli = pictures(3)
    found = ImageEmbedder("brightness", cache=False).embed(stimuli)
    assert found.values == pytest.approx(stimuli.images.mean((1, 2)), rel=1e-5)
    with pytest.raises(ConfigError, match="exists already"):
        register_backbone("brightness", image=Brightness)
