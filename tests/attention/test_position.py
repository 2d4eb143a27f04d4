"""Positions against their formulas, and what they do to attention."""

import cmath
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from neuroenc.attention import AbsolutePosition, ALiBi, Attention, Block, Rotary, Stack, T5Bias
from neuroenc.attention._position import t5_buckets

_spec = importlib.util.spec_from_file_location("attention_reference", Path(__file__).with_name("reference.py"))
_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reference)
attend = _reference.attend

TIGHT = {"atol": 1e-12, "rtol": 1e-10}


def tokens(batch=1, count=6, dim=8, seed=1):
    return torch.randn(batch, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def position_of(kind, heads=2, dim=8):
    torch.manual_seed(3)
    if kind == "t5":
        position = T5Bias(heads, buckets=8, max_distance=6)
        nn.init.normal_(position.table)
    elif kind == "t5-past":
        position = T5Bias(heads, buckets=4, max_distance=5, bidirectional=False)
        nn.init.normal_(position.table)
    elif kind in ("alibi", "alibi-past"):
        position = ALiBi(heads, symmetric=kind == "alibi")
    elif kind == "rotary":
        position = Rotary(base=50.0)
    else:
        position = AbsolutePosition(dim, kind, length=40)
        if kind == "learned":
            nn.init.normal_(position.table)
    return position.double()


KINDS = ["t5", "t5-past", "alibi", "alibi-past", "rotary", "sinusoidal", "learned"]


def make(kind, **settings):
    position = position_of(kind)
    torch.manual_seed(0)
    attention = Attention(8, 2, position=position, **settings).double().eval()
    nn.init.normal_(attention.in_proj.weight, std=0.5)
    nn.init.normal_(attention.in_proj.bias)
    return attention


def bucket(distance, buckets, far, both):
    """T5's bucket of one distance key - query, as its paper describes it."""
    first = 0
    if both:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    wide = exact + math.floor(math.log(distance / exact) / math.log(far / exact) * (buckets - exact) + 1e-9)
    return first + min(wide, buckets - 1)


def turned(x, at, base):
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        z = complex(float(x[i]), float(x[i + half])) * cmath.exp(1j * at * base ** (-2 * i / len(x)))
        out[i], out[i + half] = z.real, z.imag
    return out


def expected_output(attention, kind, x, memory, query_at, key_at):
    position = attention.position

    def score(h, i, j, q, k):
        a, b = query_at[i], key_at[j]
        if kind == "rotary":
            q, k = turned(q, max(a, 0), 50.0), turned(k, max(b, 0), 50.0)
        s = float(q @ k) / math.sqrt(len(q))
        if a < 0 or b < 0:
            return s
        if kind == "t5":
            s += float(position.table[h, bucket(b - a, 8, 6, True)].detach())
        if kind == "t5-past":
            s += float(position.table[h, bucket(b - a, 4, 5, False)].detach())
        if kind.startswith("alibi"):
            s = -math.inf if kind == "alibi-past" and b > a else s - 2 ** (-8 * (h + 1) / 2) * abs(a - b)
        return s

    def placed(x, at):
        x = x.clone()
        for i, t in enumerate(at):
            if t >= 0 and kind == "learned":
                x[:, i] += position.table[t].detach()
            if t >= 0 and kind == "sinusoidal":
                for c in range(4):
                    angle = t / 10000 ** (2 * c / 8)
                    x[:, i, 2 * c] += math.sin(angle)
                    x[:, i, 2 * c + 1] += math.cos(angle)
        return x

    return attend(attention, placed(x, query_at), None if memory is None else placed(memory, key_at), score=score)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("offset", [0, 2])
def test_self_attention(kind, need, offset):
    attention, x = make(kind), tokens()
    at = [i - offset for i in range(6)]
    expected, weights = expected_output(attention, kind, x, None, at, at)
    rows = slice(1, 5, 2)
    torch.testing.assert_close(attention(x, offset=offset, need_weights=need)[0], expected, **TIGHT)
    out, found = attention(x, offset=offset, rows=rows, need_weights=need)
    torch.testing.assert_close(out, expected[:, rows], **TIGHT)
    if need:
        torch.testing.assert_close(found, weights[:, :, rows], **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_cross_attention(kind):
    attention, x, memory = make(kind), tokens(count=3), tokens(count=7, seed=2)
    query_at, key_at = [i + 4 for i in range(3)], [j - 1 for j in range(7)]
    expected = expected_output(attention, kind, x, memory, query_at, key_at)[0]
    out = attention(x, memory, offset=-4, memory_offset=1)[0]
    torch.testing.assert_close(out, expected, **TIGHT)
    part = attention(x, memory, offset=-4, memory_offset=1, rows=slice(2, 3))[0]
    torch.testing.assert_close(part, expected[:, 2:], **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_causal(kind):
    attention, x = make(kind, causal=True), tokens()
    whole = attention(x)[0]
    for t in range(1, 6):
        torch.testing.assert_close(attention(x[:, :t])[0], whole[:, :t], **TIGHT)


def test_rotary_scores_depend_on_the_distance():
    q, k = tokens(count=5, seed=1), tokens(count=5, seed=2)
    at = torch.arange(5)
    a, b = Rotary().rotate(q, k)
    c, d = Rotary().rotate(q, k, at + 1000, at + 1000)
    torch.testing.assert_close(a @ b.mT, c @ d.mT, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(a @ b.mT, q @ k.mT)
    torch.testing.assert_close(a.norm(dim=-1), q.norm(dim=-1), **TIGHT)


@pytest.mark.parametrize("heads", [1, 4, 8, 10])
def test_alibi_slopes(heads):
    bias = ALiBi(heads).double().bias(2, 2)
    expected = torch.tensor([-(2 ** (-8 * h / heads)) for h in range(1, heads + 1)])
    torch.testing.assert_close(bias[:, 0, 1].float(), expected)
    assert torch.equal(bias, bias.mT)
    past = ALiBi(heads, symmetric=False).bias(2, 2)
    assert (past[:, 0, 1] == -math.inf).all()
    torch.testing.assert_close(past[:, 1, 0].float(), expected)


@pytest.mark.parametrize(
    ("buckets", "far", "both"), [(32, 128, True), (32, 128, False), (8, 20, True), (64, 500, False)]
)
def test_t5_buckets(buckets, far, both):
    distance = torch.arange(-600, 601)
    found = t5_buckets(distance, buckets, far, both)
    expected = torch.tensor([bucket(int(d), buckets, far, both) for d in distance])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_registers_have_no_position_but_tokens_are_in_order(kind):
    position = position_of(kind)
    torch.manual_seed(0)
    stack = Stack([Block(Attention(8, 2, position=position), hidden=16)], registers=2).double().eval()
    x = tokens(count=6)
    order = [3, 0, 1, 5, 2, 4]
    out, mixed = stack(x)[0], stack(x[:, order])[0]
    assert not torch.allclose(mixed[:, 2:], out[:, 2:][:, order])
    if kind in ("t5", "t5-past", "alibi", "alibi-past", "rotary"):
        # Registers of one layer: rotated keys have positions, biases have none.
        same = torch.allclose(mixed[:, :2], out[:, :2])
        assert same == (kind != "rotary")


def test_no_position_is_refused_beyond_the_table():
    position = AbsolutePosition(4, "learned", length=3)
    position.add(torch.zeros(1, 5, 4), torch.arange(5) - 2)
    with pytest.raises(ValueError, match="position 4 of a table of length 3"):
        position.add(torch.zeros(1, 5, 4))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AbsolutePosition(8, "sin"), "sinusoidal, learned"),
        (lambda: AbsolutePosition(7), "dim=7 is odd"),
        (lambda: T5Bias(2, buckets=7), "buckets=7"),
        (lambda: T5Bias(2, buckets=32, max_distance=8), "max_distance=8"),
        (lambda: ALiBi(0), "heads=0"),
        (lambda: Rotary(1.0), "base=1.0"),
        (lambda: Attention(8, 2, position=ALiBi(4)), "heads=4"),
        (lambda: Rotary().rotate(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)), "3 wide"),
    ],
)
def test_bad_settings(build, words):
    with pytest.raises(ValueError, match=words):
        build()
