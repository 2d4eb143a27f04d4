"""Image features are the model's own, whatever the batch, the layer and the file they came from."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli, validate_features
from neuroenc.embedding import ImageEmbedder, TextEmbedder

OPTIONS = {"cache": False, "progress": False, "device": "cpu"}


def direct(folder, stimuli):
    """The same through open_clip alone."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    batch = torch.stack([preprocess(stimuli.image(i)) for i in range(len(stimuli))])
    return model.eval(), batch


def test_final_vector_is_open_clips(vit, pictures):
    stimuli = pictures(7)
    model, batch = direct(vit, stimuli)
    with torch.inference_mode():
        expected = model.encode_image(batch).numpy()
    found = ImageEmbedder(f"local-dir:{vit}", **OPTIONS).embed(stimuli)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    assert found.dims == ("stimulus", "feature")
    assert found.stimulus.values.tolist() == stimuli.ids.tolist()
    assert found.attrs["backbone"] == f"local-dir:{vit}"
    record = json.loads(found.attrs["provenance"])
    assert record["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert {"weights_hash", "content", "device"} <= set(record)
    validate_features(found)


def test_norms_raw_or_one(vit, pictures):
    stimuli = pictures(5)
    raw = ImageEmbedder(f"local-dir:{vit}", **OPTIONS).embed(stimuli)
    unit = ImageEmbedder(f"local-dir:{vit}", normalise=True, **OPTIONS).embed(stimuli)
    assert (raw.attrs["normalised"], unit.attrs["normalised"]) == (0, 1)
    assert np.ptp(np.linalg.norm(raw, axis=1)) > 1e-4
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)
    validate_features(unit, unit_norm=True)
    assert raw.attrs["content_hash"] != unit.attrs["content_hash"]


@pytest.mark.parametrize("layer", [None, "block1"])
def test_batch_size_does_not_matter(vit, pictures, layer):
    stimuli = pictures(33)
    found = [ImageEmbedder(f"local-dir:{vit}", layer=layer, batch_size=b, **OPTIONS).embed(stimuli) for b in (1, 7, 64)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)


def test_batches_can_be_taken_in_any_order(vit, pictures):
    stimuli = pictures(9)
    embedder = ImageEmbedder(f"local-dir:{vit}", **OPTIONS)
    whole = embedder.embed(stimuli)
    part = embedder.embed(stimuli.sel(["p7", "p2"]))
    np.testing.assert_allclose(part, whole.sel(stimulus=["p7", "p2"]), rtol=1e-4, atol=1e-5)


def test_transformer_layers_are_the_blocks_outputs(vit, pictures):
    stimuli = pictures(4)
    model, batch = direct(vit, stimuli)
    seen = []
    model.visual.transformer.resblocks[1].register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.inference_mode():
        model.encode_image(batch)
    name = f"local-dir:{vit}"
    assert ImageEmbedder(name).layers() == ("block0", "block1", "block2")
    tokens = ImageEmbedder(name, layer="block1", **OPTIONS).embed(stimuli)
    assert tokens.dims == ("stimulus", "token", "feature")
    np.testing.assert_allclose(tokens, seen[0].numpy(), rtol=1e-5, atol=1e-6)
    plane = ImageEmbedder(name, layer="block1", pooling="map", **OPTIONS).embed(stimuli)
    assert plane.sizes == {"stimulus": 4, "channel": 32, "y": 4, "x": 4}
    # Row y, column x of the map is patch token 4 y + x, after the class token.
    np.testing.assert_array_equal(plane[:, :, 2, 3], tokens[:, 1 + 4 * 2 + 3])
    mean = ImageEmbedder(name, layer="block1", pooling="mean", **OPTIONS).embed(stimuli)
    np.testing.assert_allclose(mean, tokens[:, 1:].mean("token"), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        ImageEmbedder(name, layer="block1", pooling="cls", **OPTIONS).embed(stimuli), tokens[:, 0]
    )
    grid = ImageEmbedder(name, layer="block1", pooling=2, **OPTIONS).embed(stimuli)
    expected = plane.values.reshape(4, 32, 2, 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(grid, expected, rtol=1e-4, atol=1e-6)
    assert grid.attrs["pooling"] == "2"


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_convnet_layers(make_folder, pictures, kind):
    name = f"local-dir:{make_folder(kind)}"
    stimuli = pictures(3)
    embedder = ImageEmbedder(name, **OPTIONS)
    layers = embedder.layers()
    assert len(layers) >= 4
    model, batch = direct(name.removeprefix("local-dir:"), stimuli)
    with torch.inference_mode():
        expected = model.visual.forward_intermediates(batch)["image_intermediates"]
        final = model.encode_image(batch).numpy()
    np.testing.assert_allclose(embedder.embed(stimuli), final, rtol=1e-4, atol=1e-5)
    for layer, plane in zip(layers, expected, strict=True):
        found = ImageEmbedder(name, layer=layer, **OPTIONS).embed(stimuli)
        assert found.dims == ("stimulus", "channel", "y", "x")
        np.testing.assert_allclose(found, plane.numpy(), rtol=1e-4, atol=1e-5)
    tokens = ImageEmbedder(name, layer=layers[1], pooling="tokens", **OPTIONS).embed(stimuli)
    plane = expected[1].numpy()
    np.testing.assert_allclose(tokens[:, plane.shape[3] + 2], plane[:, :, 1, 2], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="class token"):
        ImageEmbedder(name, layer=layers[1], pooling="cls", **OPTIONS).embed(stimuli)


def test_unit_norm_is_for_vectors(vit, pictures):
    with pytest.raises(ConfigError, match="normalise=True is for vectors"):
        ImageEmbedder(f"local-dir:{vit}", layer="block0", normalise=True, **OPTIONS).embed(pictures(2))


def test_files_of_weights(vit, arch, pictures, tmp_path):
    stimuli = pictures(3)
    safe = vit / "open_clip_model.safetensors"
    expected = ImageEmbedder(f"local-dir:{vit}", **OPTIONS).embed(stimuli)
    found = ImageEmbedder(arch, safe, **OPTIONS).embed(stimuli)
    np.testing.assert_array_equal(found, expected)
    assert found.attrs["weights"] == safe.name
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(safe)}, tmp_path / "beside.pt")
    plain = ImageEmbedder(
        arch, tmp_path / "beside.pt", preprocessing={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}, **OPTIONS
    )
    np.testing.assert_array_equal(plain.embed(stimuli), expected)


class _Trap:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_pickles_are_not_run(arch, pictures, tmp_path, capsys):
    (tmp_path / "trap.pt").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(DataError, match="does not load"):
        ImageEmbedder(arch, tmp_path / "trap.pt", **OPTIONS).embed(pictures(1))
    torch.save({"state_dict": _Trap()}, tmp_path / "trap2.pt")
    with pytest.raises(DataError, match="weights_only"):
        ImageEmbedder(arch, tmp_path / "trap2.pt", **OPTIONS).embed(pictures(1))
    assert "a pickle was run" not in capsys.readouterr().out


def test_weights_of_another_architecture(make_folder, arch, pictures):
    other = make_folder("resnet") / "open_clip_model.safetensors"
    with pytest.raises(DataError, match="does not load into 'Tiny-ViT-test'"):
        ImageEmbedder(arch, other, **OPTIONS).embed(pictures(1))


def test_random_weights_are_said_loudly(arch, pictures):
    stimuli = pictures(3)

    def embed(seed):
        with pytest.warns(UserWarning, match=f"'{arch}' has RANDOM weights"):
            return ImageEmbedder(arch, seed=seed, **OPTIONS).embed(stimuli)

    before = torch.random.get_rng_state()
    first, again, other = embed(0), embed(0), embed(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.attrs["weights"] == "random(seed=0)"
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_trained_weights_say_nothing(vit, pictures, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageEmbedder(f"local-dir:{vit}", **OPTIONS).embed(pictures(1))
    assert not [r for r in caplog.records if "randomly" in r.getMessage()]


def test_model_is_frozen_in_evaluation_mode(make_folder):
    backbone = ImageEmbedder(f"local-dir:{make_folder('resnet', 5)}").backbone
    model = backbone.load("cpu")._model
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert backbone.load("cpu")._model is model


def test_the_activation_matters(make_folder, pictures):
    """Why a mismatch is an error: the same weights give other features."""
    stimuli = pictures(4)
    plain, quick = make_folder("vit", 3), make_folder("vit", 3, quick_gelu=True)
    a, b = (ImageEmbedder(f"local-dir:{f}", **OPTIONS).embed(stimuli).values for f in (plain, quick))
    assert np.abs(a - b).max() > 1e-3


def test_preprocessing_can_be_overridden(vit, pictures):
    stimuli = pictures(3)
    name = f"local-dir:{vit}"
    own = ImageEmbedder(name, **OPTIONS).embed(stimuli)
    other = ImageEmbedder(name, preprocessing={"mean": (0.0, 0.0, 0.0)}, **OPTIONS).embed(stimuli)
    assert np.abs(own - other).max() > 1e-3
    larger = ImageEmbedder(name, layer="block0", pooling="map", preprocessing={"size": 48}, **OPTIONS).embed(stimuli)
    assert larger.shape == (3, 32, 6, 6)


def test_bad_input(vit, pictures):
    embedder = ImageEmbedder(f"local-dir:{vit}", **OPTIONS)
    with pytest.raises(DataError, match="takes Stimuli, and got ndarray"):
        embedder.embed(pictures(1).images)
    with pytest.raises(DataError, match="have no images"):
        embedder.embed(Stimuli(["a"], captions=[["x"]]))
    with pytest.raises(DataError, match="nothing to embed"):
        embedder.embed(pictures(2).sel([]))


def test_weights_that_overflow_are_reported(make_folder, pictures):
    folder = make_folder("vit", 8)
    from safetensors.torch import load_file, save_file

    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    state["visual.proj"][0] = float("inf")
    save_file(state, path)
    with pytest.raises(DataError, match="from 'p0' on are not finite"):
        ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(2))


def test_devices(vit, pictures):
    with pytest.raises(ConfigError, match="not a torch device"):
        ImageEmbedder(f"local-dir:{vit}", device="gpu0").embed(pictures(1))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no CUDA device"):
            ImageEmbedder(f"local-dir:{vit}", device="cuda").embed(pictures(1))
    else:
        stimuli = pictures(5)
        options = {"cache": False, "progress": False}
        here, there = (ImageEmbedder(f"local-dir:{vit}", device=d, **options).embed(stimuli) for d in ("cpu", "auto"))
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hugging Face cache of a machine without network, empty."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_models_from_the_hubs_own_cache(vit, pictures, hub):
    shelf = hub / "models--lab--tiny"
    (shelf / "refs").mkdir(parents=True)
    (shelf / "refs" / "main").write_text("0123abc")
    shutil.copytree(vit, shelf / "snapshots" / "0123abc")
    stimuli = pictures(3)
    found = ImageEmbedder("hf-hub:lab/tiny", **OPTIONS).embed(stimuli)
    np.testing.assert_array_equal(found, ImageEmbedder(f"local-dir:{vit}", **OPTIONS).embed(stimuli))
    assert (found.attrs["backbone"], found.attrs["weights"]) == ("hf-hub:lab/tiny", "0123abc")
    text = TextEmbedder("hf-hub:lab/tiny", **OPTIONS).embed(["a cat"])
    np.testing.assert_array_equal(text, TextEmbedder(f"local-dir:{vit}", **OPTIONS).embed(["a cat"]))


@pytest.mark.parametrize(("model", "tag"), [("hf-hub:lab/none", None), ("ViT-B-32", "laion2b_s34b_b79k")])
def test_weights_that_cannot_be_downloaded(pictures, hub, no_network, model, tag):
    with pytest.raises(DataError, match=r"not on this machine.*Next step: c"):
        ImageEmbedder(model, tag, **OPTIONS).embed(pictures(1))


@pytest.mark.parametrize("damage", ["cut", "other keys", "cut config", "config of numbers", "no size"])
def test_damaged_folders_are_one_clear_error(make_folder, pictures, damage):
    from safetensors.torch import load_file, save_file

    folder = make_folder("vit", 31)
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "other keys":
        save_file({f"x.{k}": v for k, v in load_file(weights).items()}, weights)
    elif damage == "cut config":
        config.write_text(config.read_text()[:60])
    elif damage == "config of numbers":
        config.write_text('{"model_cfg": {"embed_dim": "x", "vision_cfg": 3, "text_cfg": {}}}')
    else:
        config.write_text(config.read_text().replace('"patch_size": 8', '"patch_size": 0'))
    with pytest.raises(DataError, match=r"open_clip_|cannot be built") as found:
        ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(1))
    assert len(str(found.value)) < 1200


def test_the_network_is_built_once_and_left_out_of_copies(vit, pictures, monkeypatch):
    import copy
    import pickle

    from neuroenc.embedding._openclip import OpenClipImage

    built, load = [], OpenClipImage.load
    monkeypatch.setattr(OpenClipImage, "load", lambda self, device: built.append(device) or load(self, device))
    embedder = ImageEmbedder(f"local-dir:{vit}", **OPTIONS)
    first = embedder.embed(pictures(3))
    assert first.identical(embedder.embed(pictures(3)))
    embedder.embed(pictures(2, seed=1))
    assert built == ["cpu"]
    assert copy.copy(embedder)._loaded is None
    assert len(pickle.dumps(embedder)) < 20_000


@pytest.mark.parametrize("model", [lambda images: images, 3, None])
def test_what_is_no_name_is_refused_at_construction(model):
    for embedder in (ImageEmbedder, TextEmbedder):
        with pytest.raises(ConfigError, match=r"model is a .*legal is a name.*register_backbone"):
            embedder(model)
    with pytest.raises(ConfigError, match="pretrained is a"):
        ImageEmbedder("world", pretrained=3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 2000)])
def test_odd_sizes_are_embedded_or_named(shape):
    stimuli = Stimuli(["a"], np.full((1, *shape, 3), 90, dtype="uint8"))
    found = ImageEmbedder("world", cache=False, progress=False, device="cpu").embed(stimuli)
    assert np.isfinite(found).all()


def test_features_that_overflow_name_the_stimulus(make_folder, pictures):
    from safetensors.torch import load_file, save_file

    folder = make_folder("vit", 33)
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.proj"] = state["visual.proj"] * float("inf")
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(DataError, match="from 'p0' on are not finite"):
        ImageEmbedder(f"local-dir:{folder}", **OPTIONS).embed(pictures(2))


def test_devices_that_are_not_there_are_refused_with_the_legal_ones(pictures):
    for device in ("cuda:99", "meta", "gpu", 3.5, "mps:7"):
        with pytest.raises(ConfigError, match="auto, cpu"):
            ImageEmbedder("world", cache=False, device=device).embed(pictures(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"preprocessing": {"interpolation": "x"}}, "bicubic, bilinear"),
        ({"preprocessing": {"resize_mode": "sqash"}}, "squash"),
        ({"preprocessing": {"size": 0}}, "size is at least 1"),
        ({"preprocessing": {"mean": [1]}}, "three numbers"),
        ({"preprocessing": [1]}, "legal is a mapping, {'size': 224}"),
        ({"layer": "layer1", "pooling": 10**9}, "finer than this layer's map"),
        ({"cache": 3}, "cache=3"),
        ({"normalise": "x"}, "normalise='x'"),
        ({"seed": "x"}, "seed='x'"),
    ],
)
def test_settings_that_cannot_be(pictures, options, message):
    with pytest.raises(ConfigError, match=message):
        ImageEmbedder("world", **{**OPTIONS, **options}).embed(pictures(1))
