"""Networks whose weights have few bits."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.data import simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder, quantise_weights, train_space

torch = pytest.importorskip("torch")
QUIET = {"cache": False, "progress": False}


def test_weights_are_rounded_output_by_output_and_the_module_stays():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(20, 4))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = quantise_weights(net, 4)
    for name, weight in found.state_dict().items():
        assert torch.equal(net.state_dict()[name], before[name])
        if weight.ndim == 1:
            assert torch.equal(weight, before[name])
            continue
        # By hand: seven steps of each sign, the largest weight is one of them.
        rows, old = (x.flatten(1).double().numpy() for x in (weight, before[name]))
        step = np.abs(old).max(1, keepdims=True) / 7
        np.testing.assert_allclose(rows, np.round(old / step) * step, atol=1e-6)
        assert max(len(np.unique(np.round(row / s))) for row, s in zip(rows, step)) <= 15


@pytest.mark.parametrize(
    ("model", "layer"), [("world", "layer2"), ("efficientnet-lite0", "block2"), ("efficientnet-lite0", None)]
)
def test_images_change_the_more_the_fewer_the_bits(model, layer):
    stimuli = simulate_world(4)
    whole = ImageEmbedder(model, layer=layer, **QUIET)
    x = whole.embed(stimuli).values.ravel()
    r = []
    for bits in (16, 8, 3):
        few = quantise_weights(whole, bits)
        assert few.backbone.weights_hash() != whole.backbone.weights_hash()
        r.append(np.corrcoef(few.embed(stimuli).values.ravel(), x)[0, 1])
    assert r[0] > 0.9999
    assert r[0] > r[1] > r[2]
    np.testing.assert_array_equal(whole.embed(stimuli).values.ravel(), x)


def test_a_trained_space_still_tells_what_it_was_trained_on(tmp_path):
    shown = simulate_world(40)
    space = train_space("ranked", shown, tmp_path / "s", held_out=shown.ids[:10], dims=8, epochs=1, progress=False)
    found = quantise_weights(space, 4).embed_captions(shown)
    assert found["trained_on"].values.tolist() == [False] * 10 + [True] * 30
    assert found.attrs["normalised"] == space.embed_captions(shown).attrs["normalised"]


def test_texts_and_what_has_no_weights():
    texts, whole = ["a dog", "a red house"], TextEmbedder("minilm", **QUIET)
    x = whole.embed(texts).values
    np.testing.assert_allclose(quantise_weights(whole, 16).embed(texts), x, atol=1e-3)
    assert np.abs(quantise_weights(whole, 3).embed(texts).values - x).max() > 0.01
    with pytest.raises(ConfigError, match="gabor"):
        quantise_weights(ImageEmbedder("gabor", layer="map", pooling=4, **QUIET), 4).embed(simulate_world(2))
    with pytest.raises(ConfigError, match="ImageEmbedder"):
        quantise_weights("minilm", 4)
