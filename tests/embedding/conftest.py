"""Tiny open_clip models: real architectures and files, random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from neuroenc.data import Stimuli

VISION = {
    "vit": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1], "head_width": 16},
    "timm": {"image_size": 64, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"},
}
ARCH = "Tiny-ViT-test"


def config_of(kind: str) -> dict:
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    return {"embed_dim": 24, "vision_cfg": VISION[kind], "text_cfg": text}


@pytest.fixture(scope="session", autouse=True)
def _torchvision():
    """Tests import open_clip and torchvision themselves, in any order."""
    from neuroenc.embedding import prepare

    prepare()


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Build an open_clip folder of random weights: make_folder(kind, seed) -> path."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    def make(kind="vit", seed=0, mean=(0.4, 0.5, 0.6), **config):
        folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
        model_cfg = {**config_of(kind), **config}
        document = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": mean, "std": [0.2, 0.3, 0.4]}}
        (folder / "open_clip_config.json").write_text(json.dumps(document))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = open_clip.CLIP(**model_cfg).state_dict()
        save_file({k: v.clone() for k, v in state.items()}, str(folder / "open_clip_model.safetensors"))
        return folder

    return make


@pytest.fixture(scope="session")
def vit(make_folder):
    return make_folder("vit")


@pytest.fixture(scope="session")
def arch(tmp_path_factory):
    """A tiny architecture by name, as open_clip's users add one."""
    import open_clip

    path = tmp_path_factory.mktemp("configs") / f"{ARCH}.json"
    path.write_text(json.dumps(config_of("vit")))
    open_clip.add_model_config(path)
    return ARCH


@pytest.fixture(scope="session")
def pictures():
    """Make n pictures of noise, of size 40 x 32."""

    def make(n, seed=0, prefix="p"):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (n, 40, 32, 3), dtype=np.uint8)
        return Stimuli([f"{prefix}{i}" for i in range(n)], images)

    return make


@pytest.fixture
def count(monkeypatch):
    """Counts the images that go through open_clip towers (the real ones)."""
    from neuroenc.embedding._openclip import OpenClipImageModel

    seen = []
    encode = OpenClipImageModel.encode

    def counted(self, batch, layer):
        seen.append(len(batch))
        return encode(self, batch, layer)

    monkeypatch.setattr(OpenClipImageModel, "encode", counted)
    return seen


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError(f"network was used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
