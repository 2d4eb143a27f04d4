"""timm backbones: layers are the modules' outputs, weights are those of the file, random ones say so."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import ImageEmbedder, TextEmbedder

pytestmark = pytest.mark.usefixtures("no_network")
OPTIONS = {"cache": False, "progress": False, "device": "cpu"}
MAPS = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "densenet121",
    "swin_tiny_patch4_window7_224",
]
# Class token; registers alone; class token and four registers; class and distillation tokens.
TOKENS = {
    "test_vit": (1, 1),
    "test_vit2": (1, 0),
    "vit_small_patch14_reg4_dinov2": (5, 5),
    "deit_tiny_distilled_patch16_224": (2, 2),
}


def create(name, seed=0, **options):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False, **options).eval()


def silent(name, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = ImageEmbedder(name, *args, **options).backbone
        return backbone, backbone.load("cpu")


def outputs_of(model, modules, batch):
    seen = {}
    for name in modules:
        part = model.get_submodule(name)
        part.register_forward_hook(lambda m, i, o, name=name: seen.setdefault(name, o))
    with torch.inference_mode():
        final = model.forward_head(model.forward_features(batch), pre_logits=True)
    return seen, final


@pytest.mark.parametrize("name", MAPS)
def test_layers_of_convnets_are_their_modules_maps(name):
    backbone, model = silent(f"timm:{name}")
    original = create(name)
    size = backbone.preprocessing["size"][0]
    batch = torch.randn(2, 3, size, size)
    seen, final = outputs_of(original, backbone.layers(), batch)
    assert len(backbone.layers()) == len(original.feature_info)
    for layer, part in zip(backbone.layers(), original.feature_info, strict=True):
        found = model.encode(batch, layer)
        expected = seen[layer]
        if getattr(original, "output_fmt", "NCHW") == "NHWC":
            expected = expected.permute(0, 3, 1, 2)
        assert found.values.shape[1] == part["num_chs"]
        assert found.prefix == 0
        torch.testing.assert_close(found.values, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.encode(batch, None).values, final.flatten(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TOKENS)
def test_layers_of_transformers_are_their_modules_tokens(name):
    options = {"preprocessing": {"size": 98}} if "dinov2" in name else {}
    backbone, model = silent(f"timm:{name}", **options)
    original = create(name, **({"img_size": 98} if options else {}))
    size = backbone.preprocessing["size"]
    size = size if isinstance(size, int) else size[0]
    batch = torch.randn(2, 3, size, size)
    seen, final = outputs_of(original, backbone.layers(), batch)
    in_network, handed_out = TOKENS[name]
    for layer in (backbone.layers()[0], backbone.layers()[-1]):
        found = model.encode(batch, layer)
        assert found.prefix == handed_out
        assert found.grid[0] * found.grid[1] == found.values.shape[1] - handed_out
        expected = seen[layer] if handed_out else seen[layer][:, in_network:]
        torch.testing.assert_close(found.values, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.encode(batch, None).values, final, atol=1e-4, rtol=1e-4)


def test_features_of_pictures(pictures):
    stimuli = pictures(3)
    options = {**OPTIONS, "preprocessing": {"size": 64}}
    with pytest.warns(UserWarning, match="RANDOM"):
        plane = ImageEmbedder("timm:test_resnet", layer="layer2", **options).embed(stimuli)
    assert plane.dims == ("stimulus", "channel", "y", "x")
    assert plane.shape == (3, 48, 8, 8)
    with pytest.warns(UserWarning, match="RANDOM"):
        grid = ImageEmbedder("timm:test_resnet", layer="layer2", pooling=4, **options).embed(stimuli)
    np.testing.assert_allclose(grid, plane.values.reshape(3, 48, 4, 2, 4, 2).mean((3, 5)), rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="RANDOM"):
        tokens = ImageEmbedder("timm:test_vit", layer="blocks.2", **options).embed(stimuli)
    assert tokens.dims == ("stimulus", "token", "feature")
    assert tokens.shape == (3, 1 + 16, 64)
    with pytest.warns(UserWarning, match="RANDOM"):
        cls = ImageEmbedder("timm:test_vit", layer="blocks.2", pooling="cls", **options).embed(stimuli)
    np.testing.assert_allclose(cls, tokens[:, 0], rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="RANDOM"), pytest.raises(ConfigError, match="class token"):
        ImageEmbedder("timm:test_vit2", layer="blocks.2", pooling="cls", **options).embed(stimuli)
    assert tokens.attrs["backbone"] == "timm:test_vit"
    assert tokens.attrs["weights"] == "random(seed=0)"


def test_seeds_make_random_weights(pictures):
    stimuli = pictures(2)
    a, b, c = (ImageEmbedder("timm:test_resnet", seed=s, **OPTIONS) for s in (0, 0, 1))
    with pytest.warns(UserWarning, match="RANDOM"):
        x, y, z = (e.embed(stimuli).values for e in (a, b, c))
    assert np.array_equal(x, y)
    assert not np.allclose(x, z)
    assert a.backbone.weights_hash() == b.backbone.weights_hash() != c.backbone.weights_hash()


def checkpoint(folder: Path, name="test_resnet", ending=".safetensors", seed=7, **options) -> Path:
    path = folder / f"own{ending}"
    state = create(name, seed, **options).state_dict()
    if ending == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, str(path))
    else:
        torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes", [1000, 7, 0])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_checkpoint_is_what_is_used(tmp_path, pictures, name, ending, classes):
    """With its own number of classes, or without a classifier."""
    path = checkpoint(tmp_path, name, ending, num_classes=classes)
    embedder = ImageEmbedder(f"timm:{name}", path, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = embedder.embed(pictures(2))
    model = create(name, 7, num_classes=classes)
    transform = embedder.backbone.load("cpu").preprocess
    batch = torch.stack([transform(pictures(2).image(n)) for n in range(2)])
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.attrs["weights"] == path.name


def test_weights_of_another_network_are_refused(tmp_path):
    path = checkpoint(tmp_path, "test_convnext")
    with pytest.raises(DataError, match="does not load into timm's 'test_resnet'"):
        ImageEmbedder("timm:test_resnet", path, **OPTIONS).backbone.load("cpu")
    state = create("test_resnet").state_dict()
    del state["layer1.0.conv1.weight"]
    save_file(state, str(tmp_path / "part.safetensors"))
    with pytest.raises(DataError, match=r"layer1\.0\.conv1"):
        ImageEmbedder("timm:test_resnet", tmp_path / "part.safetensors", **OPTIONS).backbone.load("cpu")


def test_a_pickled_checkpoint_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": create("test_resnet").state_dict(), "made by": Path}, path)
    with pytest.raises(DataError, match="weights_only"):
        ImageEmbedder("timm:test_resnet", path, **OPTIONS).backbone.load("cpu")


def test_a_tag_loads_the_file_of_its_repository(tmp_path, monkeypatch, pictures):
    """The hub is played by a folder: which repository and file are asked for, and that the file is used."""
    import huggingface_hub

    path, asked = checkpoint(tmp_path), []

    def download(repository, filename, revision=None):
        asked.append((repository, filename, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    by_name = ImageEmbedder("timm:test_resnet.r160_in1k", **OPTIONS)
    by_option = ImageEmbedder("timm:test_resnet", "r160_in1k", **OPTIONS)
    own = ImageEmbedder("timm:test_resnet", path, **OPTIONS)
    x, y, z = (e.embed(pictures(2)).values for e in (by_name, by_option, own))
    assert np.array_equal(x, z)
    assert np.array_equal(y, z)
    assert set(asked) == {("timm/test_resnet.r160_in1k", "model.safetensors", None)}
    assert by_name.backbone.weights == "r160_in1k"


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DataError, match=r"is not reached.*give its path as pretrained="):
        ImageEmbedder("timm:test_resnet.r160_in1k", **OPTIONS).backbone.load("cpu")


def test_nothing_drifts(pictures):
    _, model = silent("timm:test_resnet")
    network = model._model
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for _ in range(3):
        model.encode(5 + torch.randn(4, 3, 160, 160), "layer3")
        model.encode(5 + torch.randn(4, 3, 160, 160), None)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_preprocessing_is_the_weights_own():
    from timm.data import create_transform, resolve_model_data_config

    backbone, model = silent("timm:resnet18")
    assert backbone.preprocessing["crop_pct"] == 0.95
    own = create_transform(**resolve_model_data_config(create("resnet18"), use_test_size=False), is_training=False)
    picture = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    from PIL import Image

    image = Image.fromarray(picture)
    assert torch.equal(model.preprocess(image), own(image))
    whole, _ = silent("timm:resnet18", preprocessing={"crop_pct": 1, "size": 96})
    assert whole.preprocessing["crop_pct"] == 1
    # With the whole picture seen, its outermost pixels count.
    seen = silent("timm:resnet18", preprocessing={"crop_pct": 1, "size": 300, "resize_mode": "squash"})[1]
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    mean, std = np.array(whole.preprocessing["mean"]), np.array(whole.preprocessing["std"])
    expected = (np.asarray(square) / 255 - mean) / std
    np.testing.assert_allclose(seen.preprocess(square), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ImageEmbedder("timm:resnet81"), "did you mean 'resnet18'"),
        (lambda: ImageEmbedder("timm:resnet18.a1_in1"), "a1_in1k"),
        (lambda: ImageEmbedder("timm:resnet18", "a9_in1k"), "a1_in1k"),
        (lambda: ImageEmbedder("timm:resnet18.a1_in1k", "a2_in1k"), "leave one out"),
        (lambda: ImageEmbedder("timm:resnet18", layer="layer5"), "did you mean 'layer"),
        (lambda: ImageEmbedder("timm:resnet18", preprocessing={"crop": 1}), "crop"),
        (lambda: ImageEmbedder("timm:resnet18", preprocessing={"crop_pct": 1.5}), "crop_pct"),
        (lambda: TextEmbedder("timm:resnet18"), "embeds no texts"),
    ],
)
def test_bad_names(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ImageEmbedder("timm:resnet18", tmp_path / "none.safetensors")
    (tmp_path / "x.pkl").touch()
    with pytest.raises(DataError, match="no file with weights"):
        ImageEmbedder("timm:resnet18", tmp_path / "x.pkl")
