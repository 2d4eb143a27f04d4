"""The released form: checkpoints by their names and shapes, and equal numbers to its equations on torch's layers."""

import importlib.util
import os
import pathlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.incontext import load_braincorl, make_model
from neuroenc.encoders.incontext._official import published_state_dict

_spec = importlib.util.spec_from_file_location("published_form", Path(__file__).with_name("published.py"))
_published = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_published)
Published, stirred = _published.Published, _published.stirred

torch.set_num_threads(1)
SMALL = {"n_features": 11, "dim": 20, "depth": 2, "hidden": 24}


def plain(seed=0, **changes):
    torch.manual_seed(seed)
    return stirred(Published(**{**SMALL, **changes}))


def ours(reference, folder, **options):
    path = Path(folder) / "released.pth"
    torch.save(reference.state_dict(), path)
    return load_braincorl(path, **options)


def support(n, voxels=3, e=11, own=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(voxels if own else 1, n, e, generator=generator)
    return x / x.norm(dim=-1, keepdim=True), torch.randn(voxels, n, generator=generator)


def omega(found):
    return torch.cat([found.coef, found.intercept[:, None]], dim=1)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Names and shapes of the released clip preset, cut to one block; written by hand.
RELEASED = {
    "cls_token": (1, 4, 560),
    "early_layers.0.block.0.weight": (513,),
    "early_layers.0.block.0.bias": (513,),
    "early_layers.0.block.3.weight": (1120, 513),
    "early_layers.0.block.3.bias": (1120,),
    "early_layers.0.block.4.weight": (1120,),
    "early_layers.0.block.4.bias": (1120,),
    "early_layers.0.block.7.weight": (560, 1120),
    "early_layers.0.block.7.bias": (560,),
    "early_layers.0.bypass.weight": (560, 513),
    "early_layers.0.bypass.bias": (560,),
    "transformer.0.layer_norm_1.weight": (560,),
    "transformer.0.layer_norm_1.bias": (560,),
    "transformer.0.attn.in_proj_weight": (1680, 560),
    "transformer.0.attn.in_proj_bias": (1680,),
    "transformer.0.attn.out_proj.weight": (560, 560),
    "transformer.0.attn.out_proj.bias": (560,),
    "transformer.0.layer_norm_2.weight": (560,),
    "transformer.0.layer_norm_2.bias": (560,),
    "transformer.0.ffn.linear1.weight": (4096, 560),
    "transformer.0.ffn.linear1.bias": (4096,),
    "transformer.0.ffn.linear2.weight": (560, 2048),
    "transformer.0.ffn.linear2.bias": (560,),
    "weight_pred.0.block.0.weight": (560,),
    "weight_pred.0.block.0.bias": (560,),
    "weight_pred.0.block.3.weight": (1120, 560),
    "weight_pred.0.block.3.bias": (1120,),
    "weight_pred.0.block.4.weight": (1120,),
    "weight_pred.0.block.4.bias": (1120,),
    "weight_pred.0.block.7.weight": (513, 1120),
    "weight_pred.0.block.7.bias": (513,),
    "weight_pred.0.bypass.weight": (513, 560),
    "weight_pred.0.bypass.bias": (513,),
}


# ---- files


def test_every_released_name_finds_its_place(tmp_path):
    state = {name: torch.randn(shape) for name, shape in RELEASED.items()}
    torch.save(state, tmp_path / "CLIP_trained_on_s125.pth")
    model = load_braincorl(tmp_path / "CLIP_trained_on_s125.pth")
    c = model.config
    assert (c.n_features, c.dim, c.depth, c.heads, c.hidden, c.registers) == (512, 560, 1, 10, 2048, 4)
    assert (c.form, c.length_scale) == ("published", "log_n")
    assert not model.training
    own = model.state_dict()
    assert len(own) == len(RELEASED)
    for theirs, name in {
        "cls_token": "stack.registers",
        "early_layers.0.block.3.weight": "early.linear1.weight",
        "early_layers.0.block.4.bias": "early.norm2.bias",
        "transformer.0.attn.in_proj_bias": "stack.blocks.0.attention.in_proj.bias",
        "transformer.0.attn.out_proj.weight": "stack.blocks.0.attention.out_proj.weight",
        "transformer.0.layer_norm_2.weight": "stack.blocks.0.norm2.weight",
        "transformer.0.ffn.linear2.weight": "stack.blocks.0.feed_forward.linear2.weight",
        "weight_pred.0.block.7.weight": "head.linear2.weight",
        "weight_pred.0.bypass.bias": "head.bypass.bias",
    }.items():
        assert torch.equal(own[name], state[theirs]), theirs
    back = published_state_dict(model)
    assert {k: tuple(v.shape) for k, v in back.items()} == RELEASED
    assert all(torch.equal(back[name], state[name]) for name in RELEASED)


def test_released_names_are_those_of_the_spelled_out_form():
    assert {k: tuple(v.shape) for k, v in Published(512, 560, 1).state_dict().items()} == RELEASED


@pytest.mark.parametrize("prefix", ["", "model.", "net._orig_mod.", "_forward_module.model.", "module."])
def test_lightning_checkpoints_with_any_prefix(tmp_path, prefix):
    reference = plain()
    content = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "loops": {"fit_loop": {"n": [1, 2]}},
        "state_dict": {prefix + name: value for name, value in reference.state_dict().items()},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1), "best_model_path": "a"}},
        # The released training remembers the folder of its results as a path.
        "hyper_parameters": {"default_struct": "CLIP", "lr": 1e-3, "result_dir": pathlib.Path("results")},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
    }
    torch.save(content, tmp_path / "CLIP_subj1.ckpt")
    model = load_braincorl(tmp_path / "CLIP_subj1.ckpt")
    x, y = support(9)
    with torch.no_grad():
        close(omega(model(x[0], y)), reference(x.expand(3, -1, -1), y))


def test_safetensors_and_half_precision(tmp_path):
    reference = plain()
    state = {name: value.half() for name, value in reference.state_dict().items()}
    save_file(state, tmp_path / "released.safetensors")
    model = load_braincorl(tmp_path / "released.safetensors")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(v.half(), state[k]) for k, v in published_state_dict(model).items())


NAMES = {
    "main and skip": {"block.": "main.", "bypass.": "lin_bypass."},
    "layers by name": {
        "block.0.": "ln_a.",
        "block.3.": "fc_a.",
        "block.4.": "ln_b.",
        "block.7.": "fc_b.",
        "bypass.": "skip.",
    },
    "one list, bypass last": {"block.": "layers.", "bypass.": "layers.8."},
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("n_features", [11, 19, 39])
def test_residual_blocks_under_other_names(tmp_path, names, n_features):
    # With 19 features the bypass maps a width to itself, with 39 all shapes of the early block's layers coincide.
    reference = plain(n_features=n_features)
    state = {}
    for name, value in reference.state_dict().items():
        for old, new in NAMES[names].items():
            name = re.sub(rf"^(early_layers|weight_pred)\.0\.{re.escape(old)}", rf"\1.0.{new}", name)
        state[name] = value
    torch.save(state, tmp_path / "other.pth")
    found = published_state_dict(load_braincorl(tmp_path / "other.pth"))
    assert all(torch.equal(found[k], v) for k, v in reference.state_dict().items())


def test_a_bypass_that_is_no_layer_where_widths_agree(tmp_path):
    reference = plain(n_features=19)
    for room in (reference.early_layers, reference.weight_pred):
        room[0].bypass = torch.nn.Identity()
    model = ours(reference, tmp_path)
    x, y = support(9, e=19)
    with torch.no_grad():
        close(omega(model(x[0], y)), reference(x.expand(3, -1, -1), y))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
@pytest.mark.parametrize("where", ["state_dict", "hyper_parameters"])
def test_objects_are_refused_and_never_run(tmp_path, how, where):
    content = {"state_dict": plain().state_dict(), where: Malicious(str(tmp_path / "ran"))}
    path = tmp_path / "bad.ckpt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(DataError, match=r"mkdir.*refused|cannot be read") as caught:
        load_braincorl(path)
    assert not (tmp_path / "ran").exists()
    assert "refused" in str(caught.value) or how == "pickle"
    assert "weights_only" not in str(caught.value)


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(DataError, match=r"Linear.*refused"):
        load_braincorl(tmp_path / "module.pth")


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", b"hello", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, content, ending):
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_braincorl(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_braincorl(tmp_path / "absent.ckpt")
    with pytest.raises(DataError, match="load_model"):
        load_braincorl(tmp_path)


def without(name):
    return lambda state: state.pop(name)


def swapped(name, value):
    return lambda state: state.update({name: value})


def renamed(old, new):
    return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("cls_token"), "0 tensors named cls_token"),
        (renamed("cls_token", "cls_tokens"), "nearest: cls_tokens"),
        (without("transformer.0.attn.in_proj_bias"), r"Missing: transformer\.0\.attn\.in_proj_bias"),
        (renamed("transformer.1.attn.in_proj_bias", "transformer.1.attn.inproj_bias"), "looks like"),
        (swapped("loss.weight", torch.zeros(2)), r"unexpected: loss\.weight"),
        (swapped("transformer.0.attn.out_proj.weight", torch.zeros(20, 21)), r"\(20, 21\); expected \(20, 20\)"),
        (swapped("transformer.1.ffn.linear1.weight", torch.zeros(46, 20)), r"\(46, 20\); expected \(48, 20\)"),
        (swapped("early_layers.0.bypass.weight", torch.zeros(20, 13)), "early_layers has weights of shapes"),
        (swapped("weight_pred.0.block.7.bias", torch.zeros(2)), "a bias of weight_pred has 2"),
        (swapped("early_layers.1.block.0.weight", torch.zeros(20)), "one residual block"),
        (without("weight_pred.0.block.3.weight"), "one residual block"),
        (swapped("cls_token", torch.zeros(4)), "cls_token has shape"),
        (swapped("cls_token", torch.zeros(1, 4, 30)), "of width 30"),
        (swapped("weight_pred.0.bypass.bias", torch.full((12,), torch.nan)), "not finite"),
    ],
)
def test_other_architectures_are_refused(tmp_path, change, said):
    state = plain().state_dict()
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(DataError, match=said):
        load_braincorl(tmp_path / "other.pth")


def test_other_contents_and_heads(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list"):
        load_braincorl(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(DataError, match="epoch"):
        load_braincorl(tmp_path / "epoch.pth")
    with pytest.raises(ConfigError, match="heads=3"):
        ours(plain(), tmp_path, heads=3)
    with pytest.raises(ConfigError, match="anchored"):
        published_state_dict(make_model("small", n_features=8, depth=1))


# ---- numbers


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("n", [1, 30, 500])
def test_equal_to_the_equations(tmp_path, n, own):
    reference = plain(depth=3)
    model = ours(reference, tmp_path)
    x, y = support(n, own=own)
    with torch.no_grad():
        close(omega(model(x if own else x[0], y)), reference(x.expand(3, -1, -1), y))


def test_equal_to_the_equations_at_the_width_of_the_clip_preset(tmp_path):
    reference = plain(n_features=512, dim=560, depth=2, hidden=2048)
    model = ours(reference, tmp_path)
    assert model.config == make_model("clip-3", depth=2).config
    x, y = support(60, voxels=2, e=512)
    with torch.no_grad():
        close(omega(model(x[0], y)), reference(x.expand(2, -1, -1), y))


@pytest.mark.parametrize(("heads", "registers"), [(4, 1), (10, 4), (5, 7)])
def test_other_heads_and_registers(tmp_path, heads, registers):
    reference = plain(heads=heads, registers=registers)
    x, y = support(12)
    with torch.no_grad():
        close(omega(ours(reference, tmp_path, heads=heads)(x[0], y)), reference(x.expand(3, -1, -1), y))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    reference = plain(depth=3)
    return reference, ours(reference, tmp_path_factory.mktemp("pair"))


def test_attention_of_the_readout_row(pair):
    reference, model = pair
    x, y = support(15)
    with torch.no_grad():
        reference(x.expand(3, -1, -1), y)
        _, weights = model.read(x[0], y, None, weights_of=slice(0, 1))
    assert len(weights) == 3
    close(weights[-1].mean(1)[:, 0], reference.weights[:, 0])


def test_order_of_the_support_does_not_matter(pair):
    _, model = pair
    x, y = support(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        close(omega(model(x[0][order], y[:, order])), omega(model(x[0], y)))


def test_missing_responses_are_left_out(pair):
    reference, model = pair
    x, y = support(25)
    gone = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        found = omega(model(x[0], y.masked_fill(gone, torch.nan)))
        for v in range(len(y)):
            left = ~gone[v]
            close(found[v], reference(x[:, left], y[v : v + 1, left])[0])


def test_weights_count_repetitions(pair):
    reference, model = pair
    x, y = support(8)
    times = torch.tensor([1, 2, 3, 1, 0, 1, 4, 2])
    again = torch.repeat_interleave(torch.arange(8), times)
    with torch.no_grad():
        found = omega(model(x[0], y, times.log()))
        close(found, reference(x[:, again].expand(3, -1, -1), y[:, again]))
        close(omega(model(x.expand(3, -1, -1), y, times.log().expand(3, -1))), found)


def test_the_last_block_computes_its_row_only(pair):
    _, model = pair
    x, y = support(15)
    with torch.no_grad():
        tokens = model.early(torch.cat([x.expand(3, -1, -1), y[..., None]], dim=-1))
        whole, _ = model.stack(tokens)
        row, _ = model.stack(tokens, keep=slice(0, 1))
    assert whole.shape == (3, 19, 20)
    close(row, whole[:, :1])
