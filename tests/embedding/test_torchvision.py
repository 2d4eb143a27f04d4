"""torchvision beside a CPU build of torch, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def broken() -> bool:
    """Whether torchvision cannot be imported here without help."""
    return run("import torchvision").returncode != 0


@pytest.mark.slow
def test_open_clip_imports_and_creates_a_model(vit, broken):
    done = run(
        "from neuroenc.embedding import prepare\n"
        "print('declared', prepare(), prepare())\n"
        "import open_clip, torch\n"
        f"m, _, pre = open_clip.create_model_and_transforms('local-dir:{vit}')\n"
        "from PIL import Image\n"
        "print(tuple(m.encode_image(pre(Image.new('RGB', (50, 40)))[None]).shape))\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # The help is given exactly where it is needed.
    assert done.stdout.splitlines() == [f"declared {broken} {broken}", "(1, 24)"]


def test_nothing_is_done_on_a_gpu_build_or_after_import(broken):
    done = run(
        "import torch\n"
        "torch.version.cuda = '13.0'\n"
        "from neuroenc.embedding import prepare\n"
        "print(prepare(), hasattr(torch.ops.torchvision, 'qnms'))\n"
        "import torchvision\n"
    )
    assert done.stdout.splitlines()[0] == ("False False" if broken else done.stdout.splitlines()[0])
    # A fault of a GPU build stays visible.
    assert (done.returncode != 0) == broken


@pytest.mark.slow
def test_transformers_and_timm_import_too():
    done = run(
        "from neuroenc.embedding import prepare; prepare()\n"
        "import timm\nfrom transformers import GPT2LMHeadModel, BertModel\nprint('ok')"
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def test_the_room_is_light():
    done = run(
        "import sys, neuroenc.embedding as e\n"
        "e.ImageEmbedder, e.TextEmbedder, e.cache_list, e.list_backbones()\n"
        "e.ImageEmbedder('world'), e.TextEmbedder('world')\n"
        "print([m for m in ('torch', 'open_clip', 'transformers', 'timm', 'matplotlib') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
