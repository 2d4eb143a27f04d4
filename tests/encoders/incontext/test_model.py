"""Presets, shapes, errors and files of the in-context model."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import sha256_file, write_sealed_json
from neuroenc.attention import ChunkSelectPolicy, GroupedSoftmax, Rotary, Sigmoid, SinkCalibration
from neuroenc.encoders.incontext import (
    PRESETS,
    InContextModel,
    PriorMixture,
    load_model,
    make_model,
    save_model,
)

torch.set_num_threads(1)


def small(form="anchored", **changes):
    shape = {"n_features": 8, "dim": 16, "depth": 2, "hidden": 24, "heads": 4}
    return make_model("small", form=form, **{**shape, **changes}).eval()


def support(n=15, voxels=4, e=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, e, generator=generator), torch.randn(voxels, n, generator=generator)


def mixture(e=8, components=3, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((components, e, e))
    return PriorMixture.build(
        rng.standard_normal((300, e)) + 0.5, roots @ roots.transpose(0, 2, 1), share=np.arange(1, components + 1)
    )


def counted(config):
    """Parameters of a preset without holding them."""
    with torch.device("meta"):
        model = InContextModel(config)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("preset", "millions"), [("clip", 97.07), ("dino", 156.0), ("siglip", 277.0)])
def test_presets_have_as_many_parameters_as_released(preset, millions):
    config = PRESETS[preset]
    e, d, h, r = config.n_features, config.dim, config.hidden, config.registers
    norm, linear = lambda n: 2 * n, lambda a, b: a * b + b
    block = 2 * norm(d) + linear(d, 3 * d) + linear(d, d) + linear(d, 2 * h) + linear(h, d)

    def residual(a, b):
        return norm(a) + linear(a, 2 * d) + norm(2 * d) + linear(2 * d, b) + linear(a, b)

    found = counted(config)
    assert found == residual(e + 1, d) + r * d + config.depth * block + residual(d, e + 1)
    assert round(found / 1e6, 2 if preset == "clip" else 1) == millions
    assert (config.depth, config.heads, config.hidden, config.registers) == (20, 10, 2048, 4)
    assert (config.form, config.length_scale) == ("published", "log_n")


def test_the_shallow_preset_has_three_blocks():
    assert PRESETS["clip-3"] == replace(PRESETS["clip"], depth=3)


def test_a_seed_gives_the_same_model_and_leaves_the_global_one():
    torch.manual_seed(5)
    a = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = small(seed=3), small(seed=3), small(seed=4)
    assert torch.equal(torch.rand(1), a)
    for p, q in zip(one.parameters(), two.parameters()):
        assert torch.equal(p, q)
    assert not torch.equal(one.stack.registers, other.stack.registers)


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        (("clop",), {}, "did you mean 'clip'"),
        (("small",), {"deph": 3}, "did you mean 'depth'"),
        (("small",), {"depth": 0}, "depth=0 is not legal; it must be an integer of at least 1"),
        (("small",), {"form": "anchord"}, "did you mean 'anchored'"),
        (("small",), {"n_features": 9, "prior": "mixture"}, "n_features=9, but the prior has 8"),
    ],
)
def test_wrong_settings(arguments, changes, said):
    if changes.get("prior"):
        changes = {**changes, "prior": mixture()}
    with pytest.raises(ConfigError, match=said):
        make_model(*arguments, **changes)


@pytest.mark.parametrize(("dim", "heads"), [(10, 4), (0, 4)])
def test_widths_and_heads(dim, heads):
    with pytest.raises(ValueError, match=r"dim|at least"):
        small(dim=dim, heads=heads)


@pytest.mark.parametrize("form", ["anchored", "published"])
def test_wrong_data(form):
    model, (x, y) = small(form), support()
    with pytest.raises(DataError, match="this model takes 8"):
        model(x[:, :7], y)
    for bad in ((x, y[:, :14]), (x.expand(3, -1, -1), y), (x, y[0])):
        with pytest.raises(DataError, match="support images have shape"):
            model(*bad)
    with pytest.raises(DataError, match="2 of 4 voxels have no response"):
        model(x, y.masked_fill(torch.tensor([[True], [False], [True], [False]]), torch.nan))


@pytest.mark.parametrize("form", ["anchored", "published"])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_shapes_and_predictions(form, n):
    model, (x, y) = small(form), support(n)
    with torch.no_grad():
        found = model(x, y, covariance=form == "anchored")
    assert found.coef.shape == (4, 8)
    assert found.intercept.shape == (4,)
    assert all(torch.isfinite(part).all() for part in found if part is not None)
    q = torch.randn(5, 8)
    expected = q @ found.coef.T + found.intercept
    torch.testing.assert_close(found.predict(q), expected.T)
    torch.testing.assert_close(found.predict(q.expand(4, -1, -1)), expected.T)
    if form == "published":
        assert found.noise is None
        with pytest.raises(ConfigError, match="anchored"):
            found.variance(q)
        return
    assert (found.noise > 0).all()
    wide = torch.cat([q, torch.ones(5, 1)], dim=1)
    by_loop = torch.stack([found.noise[v] + torch.stack([w @ found.covariance[v] @ w for w in wide]) for v in range(4)])
    torch.testing.assert_close(found.variance(q), by_loop)
    torch.testing.assert_close(found.variance(q.expand(4, -1, -1)), by_loop)


@pytest.mark.parametrize("form", ["anchored", "published"])
def test_order_missing_and_weights(form):
    model, (x, y) = small(form), support()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        found = model(x, y)
        order = torch.randperm(15)
        for a, b in zip(found, model(x[order], y[:, order])):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        gone = y.clone()
        gone[1, ::3] = torch.nan
        some = model(x, gone)
        left = [i for i in range(15) if i % 3]
        torch.testing.assert_close(some.coef[1], model(x[left], y[1:2, left]).coef[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.coef[2], found.coef[2], rtol=1e-4, atol=1e-5)
        times = torch.tensor([2, 0, 3] + [1] * 12)
        again = torch.repeat_interleave(torch.arange(15), times)
        weighted, repeated = model(x, y, times.log()), model(x[again], y[:, again])
        torch.testing.assert_close(weighted.coef, repeated.coef, rtol=1e-4, atol=1e-5)


def test_dropout_in_training_only():
    model, (x, y) = small("published", dropout=0.3), support()
    with torch.no_grad():
        torch.testing.assert_close(model(x, y).coef, model(x, y).coef)
        model.train()
        assert not torch.allclose(model(x, y).coef, model(x, y).coef)


def test_gradients_reach_every_parameter():
    for form in ("anchored", "published"):
        model, (x, y) = small(form).train(), support()
        found = model(x, y)
        (found.predict(torch.randn(6, 8)).square().mean() + found.coef.sum()).backward()
        dead = [name for name, p in model.named_parameters() if p.grad is None]
        assert not dead, dead


def test_a_prior_sets_the_anchor_and_its_first_guess():
    prior = mixture()
    model = make_model("small", prior=prior, dim=16, depth=1, hidden=16)
    anchor = model.anchor
    assert (model.config.n_features, model.config.components) == (8, 3)
    for k in range(3):
        root = anchor.roots[k, :-1, :-1].double().numpy()
        np.testing.assert_allclose(root @ root.T, prior.covs[k], atol=1e-5)
    np.testing.assert_allclose(anchor.center, prior.center, atol=1e-6)
    np.testing.assert_allclose(anchor.component.detach().softmax(0), prior.share, atol=1e-6)


# ---- files


@pytest.mark.parametrize("form", ["anchored", "published"])
def test_files_round_trip(tmp_path, form):
    model, (x, y) = small(form, components=2, length_scale="learned"), support()
    if model.anchor is not None:
        model.anchor.set_prior(torch.randn(2, 8), torch.eye(8).repeat(2, 1, 1), center=torch.randn(8))
    back = load_model(save_model(model, tmp_path / "model", subjects=["a", "b"]))
    assert back.config == model.config
    assert not back.training
    with torch.no_grad():
        for a, b in zip(model(x, y), back(x, y)):
            assert a is b or torch.equal(a, b)
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    assert record["record"] == {"subjects": ["a", "b"]}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_changed_files_are_refused(tmp_path):
    folder = save_model(small(), tmp_path / "model")
    weights, record = folder / "model.safetensors", folder / "model.json"
    whole, said = weights.read_bytes(), json.loads(record.read_text())
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="not the file that was saved"):
        load_model(folder)
    weights.write_bytes(whole)
    load_model(folder)
    record.write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        load_model(folder)
    write_sealed_json(record, _unsealed(said) | {"config": {**said["config"], "colour": 1}})
    with pytest.raises(DataError, match="colour"):
        load_model(folder)
    with pytest.raises(DataError, match="did you mean 'world'"):
        load_model("wrld")
    with pytest.raises(DataError, match="save_model"):
        load_model(tmp_path)


def _spoilt(kind, folder):
    """One way in which a saved model may be damaged."""
    weights, record = folder / "model.safetensors", folder / "model.json"
    said = json.loads(record.read_text())
    if kind == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:200])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "weights of another model":
        save_model(make_model("small", n_features=8, dim=16, depth=2, hidden=32), folder / "other")
        weights.write_bytes((folder / "other" / "model.safetensors").read_bytes())
    elif kind == "weights are a folder":
        weights.unlink()
        weights.mkdir()
    elif kind == "foreign weights":
        weights.write_bytes(b"<html>not found</html>")
        write_sealed_json(record, _unsealed(said) | {"sha256": sha256_file(weights)})
    elif kind == "heads edited":
        # Shapes are the same: only the seal tells.
        record.write_text(json.dumps({**said, "config": {**said["config"], "heads": 2}}))
    elif kind == "no seal":
        record.write_text(json.dumps({k: v for k, v in said.items() if k != "seal"}))
    elif kind == "truncated record":
        record.write_bytes(record.read_bytes()[:50])
    elif kind == "a list":
        record.write_text("[]")
    elif kind == "not UTF-8":
        record.write_bytes(b"\xff\xfe\x00{")
    elif kind == "no config":
        write_sealed_json(record, {k: v for k, v in _unsealed(said).items() if k != "config"})
    elif kind == "config is text":
        write_sealed_json(record, _unsealed(said) | {"config": "small"})
    elif kind == "depth is text":
        write_sealed_json(record, _unsealed(said) | {"config": {**said["config"], "depth": "two"}})
    elif kind == "no width":
        less = {k: v for k, v in said["config"].items() if k != "dim"}
        write_sealed_json(record, _unsealed(said) | {"config": less})
    elif kind == "another depth":
        write_sealed_json(record, _unsealed(said) | {"config": {**said["config"], "depth": 3}})


def _unsealed(said):
    return {k: v for k, v in said.items() if k != "seal"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated weights", r"model\.safetensors is not the file that was saved"),
        ("no weights", r"model\.safetensors does not exist"),
        ("weights of another model", r"model\.safetensors is not the file that was saved"),
        ("weights are a folder", r"model\.safetensors is a folder"),
        ("foreign weights", r"model\.safetensors is no safetensors file"),
        ("heads edited", r"model\.json was changed after it was written"),
        ("no seal", r"model\.json has no seal"),
        ("truncated record", r"model\.json is not JSON"),
        ("a list", r"model\.json holds list"),
        ("not UTF-8", r"model\.json is not UTF-8"),
        ("no config", r"model\.json lacks config"),
        ("config is text", r"model\.json: config is 'small'"),
        ("depth is text", r"model\.json: depth='two' is not legal"),
        ("no width", r"model\.json: .*dim"),
        ("another depth", r"does not hold the model of model\.json: stack\.blocks\.1"),
    ],
)
def test_damaged_models_are_named(tmp_path, kind, message):
    folder = save_model(make_model("small", n_features=8, dim=16, depth=1, hidden=32), tmp_path / "model")
    _spoilt(kind, folder)
    with pytest.raises(DataError, match=message):
        load_model(folder)


LAYOUT = {"block_size": 4, "lead": 4}
GROUPED = {"class": "GroupedSoftmax", **LAYOUT}
PLUGS = {
    "sigmoid": {"normaliser": {"class": "Sigmoid", "bias": 0.4}},
    "sigmoid of n": {"normaliser": {"class": "Sigmoid"}, "length_scale": "none"},
    "sinks": {
        "normaliser": {"class": "SinkCalibration", "inner": {"class": "Sigmoid"}, "heads": [0, 2], "beta": 0.1},
        "length_scale": "none",
    },
    "sines": {"position": {"class": "AbsolutePosition", "dim": 16}},
    "learned": {"position": {"class": "AbsolutePosition", "dim": 16, "kind": "learned", "length": 64}},
    "rotary": {"position": {"class": "Rotary", "base": 50.0}},
    "buckets": {"position": {"class": "T5Bias", "heads": 4, "buckets": 8, "max_distance": 20}},
    "alibi": {"position": {"class": "ALiBi", "heads": 4, "symmetric": False}},
    "chunks": {"context": {"class": "ChunkSelectPolicy", "chunk_size": 4, "max_tokens": 12}},
    "landmarks": {"normaliser": GROUPED, "context": {"class": "LandmarkPolicy", **LAYOUT, "top_k": 3}},
    "all landmarks": {"normaliser": GROUPED},
    "queries": {"form": "query"},
    "streamed attention": {"memory": "attention"},
    "fading attention": {"memory": "attention", "position": {"class": "ALiBi", "heads": 4}, "form": "anchored"},
    "titans": {"memory": "titans"},
    "gru": {"memory": "gru", "form": "anchored"},
    "lstm": {"memory": "lstm"},
    "gelu": {"feed_forward": "gelu"},
    "learned scale": {"length_scale": "learned", "scale_before_projection": False},
    "several": {"normaliser": {"class": "Sigmoid", "bias": -1.0}, "position": {"class": "Rotary"}, "dropout": 0.2},
}


def _stirred(model):
    """Weights that are all random, so that every part matters."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


@pytest.mark.slow
def test_every_option_comes_back_in_a_new_process(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(30, 8), torch.randn(5, 30)
    usual = None
    for number, (name, changes) in enumerate({"usual": {}, **PLUGS}.items()):
        sizes = {"n_features": 8, "dim": 16, "depth": 2, "hidden": 32, "form": "published"}
        model = _stirred(make_model("small", **sizes | changes))
        with torch.no_grad():
            coef = model(x, y).predict(x).numpy()
        usual = coef if usual is None else usual
        assert name in ("usual", "sigmoid of n") or np.abs(coef - usual).max() > 1e-4, name
        np.save(save_model(model, tmp_path / str(number)) / "coef.npy", coef)
    np.savez(tmp_path / "support.npz", x=x.numpy(), y=y.numpy())
    code = (
        "import sys, numpy as np, torch\n"
        "from pathlib import Path\n"
        "from neuroenc.encoders.incontext import load_model\n"
        "given = np.load(Path(sys.argv[1]) / 'support.npz')\n"
        "x, y = torch.as_tensor(given['x']), torch.as_tensor(given['y'])\n"
        "for folder in sorted(Path(sys.argv[1]).glob('*/')):\n"
        "    with torch.no_grad():\n"
        "        found = load_model(folder)(x, y).predict(x).numpy()\n"
        "    print(folder.name, np.abs(found - np.load(folder / 'coef.npy')).max())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(done) == 2 * (1 + len(PLUGS))
    assert max(map(float, done[1::2])) <= 1e-6


@pytest.mark.parametrize(
    ("name", "make", "settings"),
    [
        ("normaliser", lambda: Sigmoid(0.4), {"class": "Sigmoid", "bias": 0.4}),
        ("position", lambda: Rotary(50.0), {"class": "Rotary", "base": 50.0}),
        (
            "context",
            lambda: ChunkSelectPolicy(4, 12),
            {"class": "ChunkSelectPolicy", "chunk_size": 4, "max_tokens": 12, "keep_first": 1, "keep_last": 1},
        ),
    ],
)
def test_parts_that_were_exchanged_are_saved(tmp_path, name, make, settings):
    model = small()
    for block in model.stack.blocks:
        setattr(block.attention, name, make())
    again = load_model(save_model(model, tmp_path / "model"))
    assert getattr(again.config, name) == settings
    x, y = torch.randn(30, model.config.n_features), torch.randn(3, 30)
    with torch.no_grad():
        assert torch.equal(again(x, y).coef, model.eval()(x, y).coef)


def test_what_settings_cannot_say_is_not_saved(tmp_path):
    class Own(Sigmoid):
        pass

    def everywhere(name, value):
        def change(model):
            for block in model.stack.blocks:
                setattr(block.attention, name, value)

        return change

    changes = {
        "normaliser=Own": everywhere("normaliser", Own()),
        r"blocks\.1\.attention\.normaliser\.": lambda m: setattr(m.stack.blocks[1].attention, "normaliser", Sigmoid()),
        r"attention\.causal is True": everywhere("causal", True),
        r"early\.norm1": lambda m: setattr(m.early, "norm1", torch.nn.Identity()),
        r"attention\.dropout is 0\.3": lambda m: setattr(m.stack.blocks[0].attention, "dropout", 0.3),
        "normaliser has lead=0, the model 4 registers": everywhere("normaliser", GroupedSoftmax(3)),
        r"stack\.block_size is 0": everywhere("normaliser", GroupedSoftmax(3, lead=4)),
        r"weights are torch\.bfloat16": lambda m: m.bfloat16(),
        "NaN or infinity": lambda m: m.early.bypass.weight.data.fill_(torch.nan),
    }
    for message, change in changes.items():
        model = make_model("small", n_features=8, dim=16, depth=2, hidden=32)
        change(model)
        with pytest.raises((ConfigError, DataError), match=message):
            save_model(model, tmp_path / "model")
        assert not (tmp_path / "model" / "model.json").exists()


def test_landmarks_that_are_not_there_drop_no_trial():
    model = make_model("small", n_features=8, dim=16, depth=2, hidden=32)
    for block in model.stack.blocks:
        block.attention.normaliser = SinkCalibration(GroupedSoftmax(4))
    with pytest.raises(ConfigError, match="would drop the trials"):
        model(torch.randn(20, 8), torch.randn(3, 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normaliser": {"class": "GroupedSoftmax", "block_size": 4}}, "lead=0, the model 4 registers"),
        ({"context": {"class": "LandmarkPolicy", "block_size": 4, "top_k": 2, "lead": 4}}, "legal: GroupedSoftmax"),
        ({"normaliser": GROUPED, "position": {"class": "Rotary"}}, "block of like stimuli"),
        ({"memory": "titan"}, "did you mean 'titans'"),
        ({"memory": "titans"}, "its map is the weights"),
        ({"memory": "attention", "form": "query"}, "it keeps none"),
        ({"memory": "attention", "length_scale": "log_n"}, "scaled anew"),
        ({"memory": "attention", "position": {"class": "Rotary"}}, "cannot be streamed"),
        ({"memory": "gru", "position": {"class": "ALiBi", "heads": 4}}, "cannot be streamed"),
        ({"memory": "gru", "normaliser": {"class": "Sigmoid"}}, "cannot be streamed"),
        (
            {
                "context": {"class": "ChunkSelectPolicy", "chunk_size": 4, "max_tokens": 12},
                "normaliser": {"class": "SinkCalibration"},
            },
            "looks at all weights",
        ),
        ({"position": {"class": "ALiBi", "heads": 3}}, "has heads=3, the model 4"),
        ({"position": {"class": "AbsolutePosition", "dim": 12}}, "has dim=12, the model 16"),
        ({"position": {"class": "Rotari"}}, "did you mean 'Rotary'"),
        ({"position": {"class": "Rotary", "bass": 2.0}}, "did you mean 'base'"),
        ({"position": {"class": "Rotary", "base": 0.5}}, "legal: a number over 1"),
        ({"position": "rotary"}, "no table of settings with a class"),
        ({"normaliser": {"class": "SinkCalibration", "heads": [7]}}, "the model has 4"),
        ({"heads": 3}, "heads=3 does not divide dim=16"),
        ({"length_scale": "log"}, "did you mean 'log_n'"),
        ({"normaliser": {"class": "Sigmoid"}}, "count it twice"),
        ({"feed_forward": "glu"}, "did you mean"),
        ({"dropout": 1.5}, "dropout=1.5 must be"),
        ({"registers": True}, "registers=True is not legal"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_model("small", **{"n_features": 8, "dim": 16, "depth": 2, "hidden": 32, **changes})


def test_features_far_from_unit_norm_are_told_to_a_model_of_unit_norm():
    from neuroenc.encoders import InContextEncoder

    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((20, 8)), rng.standard_normal((20, 2))
    model = make_model("small", n_features=8, depth=1)
    model.features = {"backbone": "world", "normalised": 1}
    with pytest.warns(UserWarning, match=r"median norm of 2\d.*rows of norm 1"):
        InContextEncoder(model, device="cpu").fit(10 * X, Y)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*median norm")
        InContextEncoder(model, device="cpu").fit(X / np.linalg.norm(X, axis=1, keepdims=True), Y)


def test_a_silent_model_is_its_closed_form_in_files_too(tmp_path):
    model = make_model("small", n_features=6, dim=16, depth=1, hidden=32).eval()
    torch.nn.init.normal_(model.anchor.out.weight)
    x, y = torch.randn(20, 6), torch.randn(4, 20)
    with torch.no_grad():
        loud = model(x, y).coef
        save_model(model.silence(), tmp_path / "m")
        silent = load_model(tmp_path / "m").eval()
        torch.nn.init.zeros_(model.silence(False).anchor.out.weight)
        torch.nn.init.zeros_(model.anchor.out.bias)
        closed = model(x, y).coef
        assert not torch.allclose(loud, closed, atol=1e-3)
        torch.testing.assert_close(silent(x, y).coef, closed)
        # Speaking again, it is the network that was saved.
        torch.testing.assert_close(silent.silence(False)(x, y).coef, loud)
    with pytest.raises(ConfigError, match="anchored form"):
        make_model("small", n_features=6, dim=16, depth=1, hidden=32, form="published", silent=True)


def test_heads_of_a_silent_network_are_not_looked_at():
    from neuroenc.encoders.incontext import support_attention

    model = make_model("small", n_features=6, dim=16, depth=1, hidden=32).silence()
    with pytest.raises(ConfigError, match=r"silence\(False\)"):
        support_attention(model, np.zeros((9, 6)), np.zeros((9, 2)))
