"""Every option of Attention against loops over plain formulas, in float64."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from neuroenc.attention import (
    Attention,
    Block,
    ChunkSelectPolicy,
    FullContext,
    GroupedSoftmax,
    LandmarkPolicy,
    LengthScale,
    NoPosition,
    Rotary,
    Sigmoid,
    SinkCalibration,
    Softmax,
    Stack,
    T5Bias,
)

_spec = importlib.util.spec_from_file_location("attention_reference", Path(__file__).with_name("reference.py"))
_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reference)
attend, sigmoid_row = _reference.attend, _reference.sigmoid_row

TIGHT = {"atol": 1e-12, "rtol": 1e-10}


def make(heads=2, dim=8, **settings):
    torch.manual_seed(0)
    attention = Attention(dim, heads, **settings).double().eval()
    nn.init.normal_(attention.in_proj.weight, std=0.5)
    if attention.in_proj.bias is not None:
        nn.init.normal_(attention.in_proj.bias)
        nn.init.normal_(attention.out_proj.bias)
    return attention


def tokens(batch=2, count=5, dim=8, seed=1):
    return torch.randn(batch, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def log_weight():
    return torch.tensor([[0.0, math.log(3), -math.inf, 0.5, 0.0], [-math.inf, 0.0, 0.0, -2.0, math.log(2)]]).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_softmax(bias, need, cross, log_weight):
    attention = make(bias=bias)
    x, memory = tokens(), tokens(seed=2) if cross else None
    x = x[:, :3] if cross else x
    expected, weights = attend(attention, x, memory, log_weight=log_weight)
    out, found = attention(x, memory, log_weight=log_weight, need_weights=need)
    torch.testing.assert_close(out, expected, **TIGHT)
    assert (found is None) != need
    if need:
        torch.testing.assert_close(found, weights, **TIGHT)
    rows = slice(1, 3)
    out, found = attention(x, memory, log_weight=log_weight, rows=rows, need_weights=need)
    torch.testing.assert_close(out, expected[:, rows], **TIGHT)
    if need:
        torch.testing.assert_close(found, weights[:, :, rows], **TIGHT)


@pytest.mark.parametrize("bias", ["neg_log_n", -1.5, 0.0])
def test_sigmoid(bias, log_weight):
    attention = make(normaliser=Sigmoid(bias))
    x = tokens()
    for b in range(2):
        b0 = -math.log(log_weight[b].exp().sum()) if bias == "neg_log_n" else bias
        case, lw = x[b : b + 1], log_weight[b : b + 1]
        expected, weights = attend(attention, case, log_weight=lw, row=sigmoid_row(b0))
        out, found = attention(case, log_weight=lw, rows=slice(1, 4), need_weights=True)
        torch.testing.assert_close(out, expected[:, 1:4], **TIGHT)
        torch.testing.assert_close(found, weights[:, :, 1:4], **TIGHT)


@pytest.mark.parametrize("kind", ["none", "log_n"])
@pytest.mark.parametrize("before", [True, False])
def test_length_scale(kind, before):
    attention = make(scale=LengthScale(kind, before_projection=before))
    x = tokens()
    n = torch.tensor([5.0, 7.0]).double()
    out = attention(x, n=n)[0]
    for b in range(2):
        s = float(n[b].log()) if kind == "log_n" else 1.0
        if before:
            expected = attend(attention, x[b : b + 1], scale=s)[0]
        else:
            score = lambda h, i, j, q, k, s=s: s * float(q @ k) / math.sqrt(len(q))  # noqa: E731
            expected = attend(attention, x[b : b + 1], score=score)[0]
        torch.testing.assert_close(out[b : b + 1], expected, **TIGHT)


def test_count_of_keys_is_the_sum_of_weights(log_weight):
    attention = make(scale=LengthScale("log_n"))
    x = tokens()
    given = attention(x, log_weight=log_weight, n=log_weight.exp().sum(-1))[0]
    assert torch.equal(attention(x, log_weight=log_weight)[0], given)


@pytest.mark.parametrize(
    "settings",
    [{}, {"normaliser": Sigmoid()}, {"normaliser": Sigmoid(-2.0)}, {"scale": LengthScale("log_n")}],
    ids=["softmax", "sigmoid", "sigmoid-2", "log_n"],
)
@pytest.mark.parametrize("need", [True, False])
def test_weight_3_is_three_tokens_and_minus_infinity_none(settings, need):
    attention = make(**settings)
    x = tokens(batch=1)
    repeated = x[:, [0, 1, 1, 1, 3, 4, 4]]
    log_weight = torch.tensor([[0.0, math.log(3), -math.inf, 0.0, math.log(2)]], dtype=torch.float64)
    weighed = attention(x, log_weight=log_weight, need_weights=need)[0]
    expected = attention(repeated, need_weights=need)[0]
    torch.testing.assert_close(weighed[:, [0, 1, 3, 4]], expected[:, [0, 1, 4, 5]], **TIGHT)


NORMALISERS = [Softmax(), Sigmoid(), Sigmoid(-1.0), SinkCalibration(threshold=0.2), SinkCalibration(Sigmoid())]


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("scale", ["none", "log_n"])
def test_a_row_without_keys_is_zero(normaliser, need, scale):
    attention = make(normaliser=normaliser, scale=LengthScale(scale))
    x = tokens().requires_grad_()
    log_weight = torch.zeros(2, 5).double()
    log_weight[0] = -math.inf
    heads, weights = attention.head_outputs(x, log_weight=log_weight, need_weights=need)
    assert (heads[0] == 0).all()
    assert heads.isfinite().all()
    if need:
        assert (weights[0] == 0).all()
        assert weights.isfinite().all()
    heads.sum().backward()
    assert x.grad.isfinite().all()
    alone = attention.head_outputs(x[1:], need_weights=need)[0]
    torch.testing.assert_close(heads[1:], alone, **TIGHT)


@pytest.mark.parametrize("log_weights", [True, False])
def test_fused_equals_unfused(log_weights, log_weight):
    attention = make().float()
    x, lw = tokens().float(), log_weight.float() if log_weights else None
    fused = attention(x, log_weight=lw)[0]
    torch.testing.assert_close(fused, attention(x, log_weight=lw, need_weights=True)[0], atol=1e-6, rtol=1e-6)


def test_the_plain_path_stays_fused(monkeypatch):
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: calls.append(k.get("attn_mask")) or fused(*a, **k),
    )
    x = tokens()
    for settings in ({}, {"position": NoPosition()}, {"context": FullContext()}):
        make(**settings)(x)
        make(**settings)(x, rows=slice(0, 1))
    assert calls == [None] * 6
    make()(x, need_weights=True)
    assert len(calls) == 6


def test_equals_torch():
    attention = make(dim=12, heads=3)
    peer = nn.MultiheadAttention(12, 3, batch_first=True).double()
    peer.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    x, memory = tokens(dim=12), tokens(dim=12, count=7, seed=2)
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[1, 3:] = True
    log_weight = torch.zeros(2, 7).double().masked_fill(hidden, -math.inf)
    expected, weights = peer(x, memory, memory, key_padding_mask=hidden, average_attn_weights=False)
    out, found = attention(x, memory, log_weight=log_weight, need_weights=True)
    torch.testing.assert_close(out, expected, **TIGHT)
    torch.testing.assert_close(found, weights, **TIGHT)
    causal = make(dim=12, heads=3, causal=True)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    torch.testing.assert_close(causal(x)[0], peer(x, x, x, attn_mask=mask)[0], **TIGHT)


@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("offset", [0, 2])
def test_causal_with_registers_in_front(need, offset):
    attention = make(causal=True)
    x = tokens(batch=1)
    seen = lambda b, h, i: [j for j in range(5) if j - offset <= max(i - offset, -1) or j < offset]  # noqa: E731
    expected = attend(attention, x, sees=seen)[0]
    torch.testing.assert_close(attention(x, offset=offset, need_weights=need)[0], expected, **TIGHT)
    part = attention(x, offset=offset, rows=slice(2, 4), need_weights=need)[0]
    torch.testing.assert_close(part, expected[:, 2:4], **TIGHT)
    # The same queries, continuing a sequence that stands in memory.
    later = attention(x[:, 3:], x, offset=offset - 3, memory_offset=offset, need_weights=need)[0]
    torch.testing.assert_close(later, expected[:, 3:], **TIGHT)


def test_causal_query_before_all_keys_is_zero():
    attention = make(causal=True)
    heads = attention.head_outputs(tokens(), tokens(seed=2), memory_offset=-3)[0]
    assert (heads[:, :, :3] == 0).all()
    assert (heads[:, :, 3] != 0).all()


def test_stack_is_a_function_of_a_set():
    torch.manual_seed(0)
    stack = Stack([Block(Attention(8, 2), hidden=16) for _ in range(2)], registers=3).double().eval()
    x = tokens(count=9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    out, mixed = stack(x)[0], stack(x[:, order])[0]
    torch.testing.assert_close(mixed[:, :3], out[:, :3], **TIGHT)
    torch.testing.assert_close(mixed[:, 3:], out[:, 3:][:, order], **TIGHT)


def test_weights_of_rows_need_no_other_pass():
    torch.manual_seed(0)
    stack = Stack([Block(Attention(8, 2), hidden=16) for _ in range(2)], registers=3).double().eval()
    x = tokens(count=9)
    plain = stack(x, keep=slice(0, 1))[0]
    out, weights = stack(x, keep=slice(0, 1), weights_of=slice(0, 3))
    assert torch.equal(out, plain)
    assert [w.shape for w in weights] == [(2, 2, 3, 12)] * 2


def test_half_precision_counts_keys():
    attention = Attention(8, 2, scale=LengthScale("log_n")).bfloat16()
    seen = []
    attention.scale.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attention(torch.randn(1, 501, 8).bfloat16())
    assert seen[0].item() == 501


def test_learned_scale_takes_part_in_training():
    attention = make(scale=LengthScale("learned", heads=2)).train()
    attention(tokens())[0].sum().backward()
    assert attention.scale.slope.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Attention(10, 4), "dim=10"),
        (lambda: LengthScale("sqrt"), "sqrt"),
        (lambda: Sigmoid("log"), "neg_log_n"),
    ],
)
def test_bad_settings(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("n", [16, 256, 4096])
def test_row_mass_of_sigmoid_at_the_start(n):
    """-ln n keeps a new layer's rows near 1 at any n; no bias makes them n / 2."""
    torch.manual_seed(0)
    x = torch.randn(1, n, 32)
    mass = {}
    for bias in ("neg_log_n", 0.0):
        attention = Attention(32, 4, normaliser=Sigmoid(bias))
        nn.init.normal_(attention.in_proj.weight, std=0.02)
        with torch.no_grad():
            mass[bias] = float(attention(x, rows=slice(0, 8), need_weights=True)[1].sum(-1).mean())
    assert mass["neg_log_n"] == pytest.approx(1, abs=0.1)
    assert mass[0.0] == pytest.approx(n / 2, rel=0.1)


OPTIONS = {
    "softmax": {},
    "sigmoid": {"normaliser": Sigmoid()},
    "sinks": {"normaliser": SinkCalibration(threshold=0.2)},
    "landmarks": {"normaliser": GroupedSoftmax(2), "context": LandmarkPolicy(2, top_k=1)},
    "chunks": {"context": ChunkSelectPolicy(2, max_tokens=6)},
    "rotary chunks": {"context": ChunkSelectPolicy(2, max_tokens=6), "position": Rotary()},
    "t5": {"position": T5Bias(2), "causal": True},
    "scaled": {"scale": LengthScale("learned", heads=2)},
}


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("need", [True, False])
def test_gradients(settings, need):
    attention = make(**settings)
    x = tokens(batch=1, count=9)
    log_weight = torch.zeros(1, 9).double()
    log_weight[0, 4] = -math.inf

    def run(x, *parameters):
        return torch.func.functional_call(
            attention, dict(zip(names, parameters)), (x,), {"log_weight": log_weight, "need_weights": need}
        )[0]

    names, parameters = zip(*attention.named_parameters())
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters), fast_mode=True)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_dropout_is_of_training_only(settings):
    attention = make(**settings, dropout=0.5)
    x = tokens(count=9)
    plain = attention(x)[0]
    assert torch.equal(attention(x)[0], plain)
    attention.train()
    assert not torch.allclose(attention(x)[0], plain)
    with torch.no_grad():
        mean = attention.head_outputs(x[:1].expand(3000, -1, -1))[0].mean(0)
        right = attention.eval().head_outputs(x[:1])[0][0]
    torch.testing.assert_close(mean, right, atol=0.2, rtol=0.2)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_cases_of_a_batch_know_nothing_of_each_other(settings):
    attention = make(**settings)
    x = tokens(count=9)
    for b in range(2):
        torch.testing.assert_close(attention(x)[0][b : b + 1], attention(x[b : b + 1])[0], **TIGHT)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_weights_wanted_or_not_and_rows_or_all(settings):
    attention = make(**settings)
    x = tokens(count=9)
    out, weights = attention(x, need_weights=True)
    torch.testing.assert_close(attention(x)[0], out, **TIGHT)
    part, some = attention(x, rows=slice(3, 8, 2), need_weights=True)
    torch.testing.assert_close(part, out[:, 3:8:2], **TIGHT)
    torch.testing.assert_close(some, weights[:, :, 3:8:2], **TIGHT)
