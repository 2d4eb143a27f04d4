"""Grouped softmax, landmark and chunk selection against loops; equal to full context wherever everything fits."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from neuroenc.attention import (
    ALiBi,
    Attention,
    ChunkSelectPolicy,
    FullContext,
    GroupedSoftmax,
    LandmarkPolicy,
    Rotary,
    Sigmoid,
    SinkCalibration,
    T5Bias,
    _attention,
)
from neuroenc.attention._weights import grouped_softmax, insert_landmarks, landmark_layout

_spec = importlib.util.spec_from_file_location("attention_reference", Path(__file__).with_name("reference.py"))
_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reference)
attend, projected = _reference.attend, torch.no_grad()(_reference.projected)

TIGHT = {"atol": 1e-12, "rtol": 1e-10}


def make(**settings):
    torch.manual_seed(0)
    attention = Attention(8, 2, **settings).double().eval()
    nn.init.normal_(attention.in_proj.weight, std=0.5)
    nn.init.normal_(attention.in_proj.bias)
    return attention


def tokens(count, batch=2, seed=1):
    return torch.randn(batch, count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block_of(j, total, size, lead):
    """(block or None, is landmark)."""
    if j < lead or (j - lead) // (size + 1) >= (total - lead) // (size + 1):
        return None, False
    return (j - lead) // (size + 1), (j - lead) % (size + 1) == size


def grouped_row(scores, total, size, lead, query=None, keep=None):
    """Weights of one query by loops; ``keep`` are the blocks that are looked into."""
    own = None if query is None else block_of(query, total, size, lead)[0]
    seen = [j for j in range(total) if scores[j] > -math.inf]
    base, members, gates = [], {}, {}
    for j in seen:
        b, landmark = block_of(j, total, size, lead)
        if b is None or (b == own and not landmark):
            base.append(j)
        elif b != own and (keep is None or b in keep):
            if landmark:
                gates[b] = j
            else:
                members.setdefault(b, []).append(j)
    gates = {b: j for b, j in gates.items() if b in members}
    total_base = sum(math.exp(scores[j]) for j in [*base, *gates.values()])
    weights = [0.0] * total
    for j in base:
        weights[j] = math.exp(scores[j]) / total_base
    for b, gate in gates.items():
        inside = sum(math.exp(scores[j]) for j in members[b])
        for j in members[b]:
            weights[j] = math.exp(scores[j]) / inside * math.exp(scores[gate]) / total_base
    return weights


@pytest.mark.parametrize("lead", [0, 2])
@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_softmax(lead, cross, causal):
    attention = make(normaliser=GroupedSoftmax(3, lead=lead), causal=causal)
    x, total = tokens(12), 12
    log_weight = torch.zeros(2, total).double()
    log_weight[0, 4] = math.log(3)
    log_weight[0, lead : lead + 3] = -math.inf
    log_weight[1, lead + 7] = -math.inf
    queries = tokens(5, seed=2) if cross else x
    out, weights = attention(
        queries, x if cross else None, log_weight=log_weight, offset=-7 if cross else 0, need_weights=True
    )
    for b in range(2):
        Q, K, _ = projected(attention, queries[b], x[b])
        for h in range(2):
            for i in range(queries.shape[1]):
                at = i + 7 if cross else i
                s = [float(Q[h][i] @ K[h][j]) / 2 + float(log_weight[b, j]) for j in range(total)]
                s = [-math.inf if causal and j > at else s[j] for j in range(total)]
                right = grouped_row(s, total, 3, lead, None if cross else i)
                torch.testing.assert_close(weights[b, h, i], torch.tensor(right, dtype=torch.float64), **TIGHT)
    rows = attention(queries, x if cross else None, log_weight=log_weight, offset=-7 if cross else 0, rows=slice(2, 4))[
        0
    ]
    torch.testing.assert_close(rows, out[:, 2:4], **TIGHT)


def test_grouped_softmax_sums_to_1_and_landmarks_weigh_nothing():
    attention = make(normaliser=GroupedSoftmax(3, lead=1))
    weights = attention(tokens(15), need_weights=True)[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 15).double(), **TIGHT)
    assert (weights[..., [4, 8, 12]] == 0).all()


def test_grouped_softmax_without_blocks_is_softmax():
    grouped = make(normaliser=GroupedSoftmax(30))(tokens(12))[0]
    torch.testing.assert_close(grouped, make()(tokens(12))[0], **TIGHT)


def test_grouped_softmax_of_weights_is_of_repeated_tokens():
    block = torch.tensor([0, 0, 0, 1, 1, 1])
    landmark = torch.tensor([0, 0, 1, 0, 0, 1]).bool()
    s = tokens(6)[0, :, 0]
    weighed = grouped_softmax(
        (s + torch.tensor([math.log(2), 0, 0, 0, 0, 0], dtype=torch.float64))[None], block, landmark
    )
    order = [0, 0, 1, 2, 3, 4, 5]
    twice = grouped_softmax(s[order][None], block[order], landmark[order])
    torch.testing.assert_close(weighed[0, 0], twice[0, :2].sum(), **TIGHT)
    torch.testing.assert_close(weighed[0, 1:], twice[0, 2:], **TIGHT)


def test_grouped_softmax_gradient():
    block, landmark = landmark_layout(torch.arange(9), 9, 2, lead=1)
    own = landmark_layout(torch.tensor([0, 2, 8]), 9, 2, lead=1)[0]
    scores = tokens(9, batch=3)[..., 0].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: grouped_softmax(s, block, landmark, own), scores)


def landmark_blocks(attention, x, memory, i, h, b, top_k, size, lead, own=None):
    source = x if memory is None else memory
    Q, K, _ = projected(attention, x[b], source[b])
    total = source.shape[1]
    blocks = (total - lead) // (size + 1)
    gate = {c: float(Q[h][i] @ K[h][lead + c * (size + 1) + size]) for c in range(blocks) if c != own}
    return sorted(gate, key=gate.get)[-top_k:]


@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("budget", [1, 2**23])
def test_landmark_policy(cross, budget, monkeypatch):
    monkeypatch.setattr(_attention, "BUDGET", budget)
    size, lead, top_k, total = 3, 1, 2, 23
    attention = make(normaliser=GroupedSoftmax(size, lead=lead), context=LandmarkPolicy(size, top_k, lead=lead))
    x, memory = (tokens(4, seed=2), tokens(total)) if cross else (tokens(total), None)
    out, weights = attention(x, memory, need_weights=True)
    for b in range(2):
        Q, K, V = projected(attention, x[b], (x if memory is None else memory)[b])
        for i in range(x.shape[1]):
            heads = []
            for h in range(2):
                own = None if cross else block_of(i, total, size, lead)[0]
                keep = landmark_blocks(attention, x, memory, i, h, b, top_k, size, lead, own)
                s = [float(Q[h][i] @ K[h][j]) / 2 for j in range(total)]
                right = torch.tensor(grouped_row(s, total, size, lead, None if cross else i, keep)).double()
                torch.testing.assert_close(weights[b, h, i], right, atol=1e-7, rtol=1e-6)
                heads.append(right @ V[h])
            torch.testing.assert_close(out[b, i], attention.out_proj(torch.cat(heads)), atol=1e-6, rtol=1e-6)
    part = attention(x, memory, rows=slice(1, 3))[0]
    torch.testing.assert_close(part, out[:, 1:3], **TIGHT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", [None, Rotary(), ALiBi(2), T5Bias(2)])
def test_policies_equal_full_context_where_all_fits(causal, position):
    x = tokens(17)
    for normaliser, context in [
        (GroupedSoftmax(3), LandmarkPolicy(3, top_k=4)),
        (None, ChunkSelectPolicy(4, max_tokens=17)),
        (Sigmoid(), ChunkSelectPolicy(4, max_tokens=17)),
    ]:
        shared = {"normaliser": normaliser, "position": position, "causal": causal}
        full = make(**shared, context=FullContext())(x, offset=1)[0]
        assert torch.equal(make(**shared, context=context)(x, offset=1)[0], full)


@pytest.mark.parametrize("position", [None, Rotary(), ALiBi(2)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("weighed", [True, False])
def test_selecting_every_block_is_full_context(position, causal, weighed, monkeypatch):
    """The code that selects, made to select everything."""
    x = tokens(18)
    log_weight = torch.zeros(2, 18).double()
    log_weight[0, 2], log_weight[1, 5] = math.log(3), -math.inf
    log_weight = log_weight if weighed else None
    for normaliser, context in [
        (GroupedSoftmax(3), LandmarkPolicy(3, top_k=4)),
        (None, ChunkSelectPolicy(4, max_tokens=20)),
        (Sigmoid(), ChunkSelectPolicy(4, max_tokens=20)),
    ]:
        monkeypatch.setattr(type(context), "fits", lambda self, total: False)
        shared = {"normaliser": normaliser, "position": position, "causal": causal}
        full, right = make(**shared)(x, log_weight=log_weight, offset=1, need_weights=True)
        out, weights = make(**shared, context=context)(x, log_weight=log_weight, offset=1, need_weights=True)
        torch.testing.assert_close(out, full, **TIGHT)
        torch.testing.assert_close(weights, right, **TIGHT)


def chunk_sets(attention, x, size, room, first, last, log_weight=None):
    """Keys seen by query i of head h: loops over the formulas of the class."""
    Q, K, V = projected(attention, x, x)
    total = len(x)
    chunks = [range(c, min(c + size, total)) for c in range(0, total, size)]
    lw = torch.zeros(total).double() if log_weight is None else log_weight
    seen = {}
    for h in range(2):
        summaries = []
        for c in chunks:
            c = [j for j in c if lw[j] > -math.inf]
            inside = [torch.softmax(torch.stack([Q[h][i] @ K[h][j] / 2 + lw[j] for j in c]), 0) @ V[h][c] for i in c]
            mean = sum(o * lw[i].exp() for o, i in zip(inside, c)) / lw[c].exp().sum()
            summaries.append(torch.softmax(torch.stack([mean @ K[h][j] / 2 + lw[j] for j in c]), 0) @ K[h][c])
        for i in range(total):
            kept = {*range(first), *range(len(chunks) - last, len(chunks))}
            rest = sorted((c for c in range(len(chunks)) if c not in kept), key=lambda c: float(Q[h][i] @ summaries[c]))
            kept |= set(rest[len(rest) - (room // size - len(kept)) :])
            seen[h, i] = [j for c in sorted(kept) for j in chunks[c]]
    return seen


@pytest.mark.parametrize("normaliser", [None, Sigmoid(-1.0)])
@pytest.mark.parametrize("budget", [1, 2**23])
@pytest.mark.parametrize("weighed", [True, False])
def test_chunk_selection(normaliser, budget, weighed, monkeypatch):
    monkeypatch.setattr(_attention, "BUDGET", budget)
    attention = make(normaliser=normaliser, context=ChunkSelectPolicy(4, max_tokens=16))
    x = tokens(30)
    log_weight = 2 * tokens(30, seed=3)[..., 0] if weighed else torch.zeros(2, 30).double()
    log_weight[:, [5, 11, 12, 28]] = -math.inf
    out, weights = attention(x, log_weight=log_weight, need_weights=True)
    for b in range(2):
        seen = chunk_sets(attention, x[b], 4, 16, 1, 1, log_weight[b])
        row = _reference.softmax_row if normaliser is None else _reference.sigmoid_row(-1.0)
        case = {"log_weight": log_weight[b : b + 1], "row": row, "sees": lambda _, h, i, seen=seen: seen[h, i]}
        right, w = attend(attention, x[b : b + 1], **case)
        torch.testing.assert_close(out[b : b + 1], right, **TIGHT)
        torch.testing.assert_close(weights[b : b + 1], w, **TIGHT)


@pytest.mark.parametrize("kind", ["rotary", "alibi"])
def test_chunks_count_positions_anew(kind):
    attention = make(
        context=ChunkSelectPolicy(4, max_tokens=16), position=Rotary(50.0) if kind == "rotary" else ALiBi(2)
    )
    plain = make(position=attention.position)
    x = tokens(30, batch=1)
    out = attention(x, rows=slice(29, 30))[0]
    seen = chunk_sets(attention, x[0], 4, 16, 1, 1)
    heads = []
    for h in range(2):
        # The last query stands at the end of what it sees, so attention over its own set is the answer.
        heads.append(plain.head_outputs(x[:, seen[h, 29]])[0][:, h, -1])
    torch.testing.assert_close(out[:, 0], attention.out_proj(torch.cat(heads, dim=-1)), **TIGHT)


def test_chunks_without_any_weight_are_not_taken():
    attention = make(context=ChunkSelectPolicy(4, max_tokens=12))
    x = tokens(40, batch=1)
    log_weight = torch.full((1, 40), -math.inf).double()
    log_weight[0, [0, 17, 23, 39]] = 0
    out = attention(x, log_weight=log_weight, need_weights=True)[1]
    torch.testing.assert_close(out.sum(-1), torch.ones(1, 2, 40).double(), **TIGHT)
    assert ((out > 0).sum(-1) <= 3).all()
    nothing = attention.head_outputs(x, log_weight=torch.full_like(log_weight, -math.inf))[0]
    assert (nothing == 0).all()


def test_causal_chunks_see_no_future():
    attention = make(context=ChunkSelectPolicy(4, max_tokens=12), causal=True)
    x = tokens(30)
    weights = attention(x, need_weights=True)[1]
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 30).double(), **TIGHT)
    # A query's own chunk is always there.
    assert (weights.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_needle_among_512_is_found():
    torch.manual_seed(0)
    attention = make(context=ChunkSelectPolicy(16, max_tokens=64))
    with torch.no_grad():
        attention.in_proj.weight.copy_(torch.eye(8).repeat(3, 1))
        attention.in_proj.bias.zero_()
    found = 0
    for case in range(20):
        x = 0.3 * tokens(512, batch=1, seed=case)
        place = int(torch.randint(16, 496, ()))
        x[0, place] = x[0, 0] = 4 * torch.nn.functional.normalize(tokens(1, batch=1, seed=99 + case)[0, 0], dim=0)
        weights = attention(x, rows=slice(0, 1), need_weights=True)[1]
        # Heads share the dimensions; one of them has most of the needle's.
        found += bool((weights[0, :, 0, place] > 0).any())
    assert found >= 18


def test_scores_are_never_all_there(monkeypatch):
    """No tensor as large as the full matrix of scores while selecting."""
    largest = 0
    softmax = torch.Tensor.exp

    def watch(self):
        nonlocal largest
        largest = max(largest, self.numel())
        return softmax(self)

    monkeypatch.setattr(torch.Tensor, "exp", watch)
    make(context=ChunkSelectPolicy(8, max_tokens=32))(tokens(600, batch=1))
    assert 0 < largest < 600 * 600


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ChunkSelectPolicy(16, max_tokens=31), "at least 32"),
        (lambda: LandmarkPolicy(0, 1), "block_size=0"),
        (lambda: GroupedSoftmax(0), "block_size=0"),
        (lambda: make(context=LandmarkPolicy(3, 2)), r"normaliser=GroupedSoftmax\(3, lead=0\)"),
        (lambda: make(normaliser=GroupedSoftmax(4), context=LandmarkPolicy(3, 2)), "same layout"),
        (lambda: make(normaliser=GroupedSoftmax(4), context=ChunkSelectPolicy(4, 16)), "LandmarkPolicy"),
        (lambda: make(normaliser=SinkCalibration(), context=ChunkSelectPolicy(4, 16)), "looks at all weights"),
    ],
)
def test_bad_settings(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("count", [0, 2, 3, 9, 13])
@pytest.mark.parametrize("lead", [0, 2])
def test_landmarks_stand_where_the_layout_says(count, lead):
    x = tokens(count) + 100
    blocks = max(count - lead, 0) // 3
    each = torch.arange(2 * blocks * 8, dtype=torch.float64).view(2, blocks, 8) - 1000
    out = insert_landmarks(x, each, block_size=3, lead=lead)
    block, landmark = landmark_layout(torch.arange(out.shape[1]), out.shape[1], 3, lead)
    assert torch.equal(out[:, landmark], each)
    assert torch.equal(out[:, ~landmark], x)
    assert int(landmark.sum()) == blocks == int(block.max() if out.shape[1] else -1) + 1
    with pytest.raises(ValueError, match="one each"):
        insert_landmarks(x, torch.zeros(2, blocks + 1, 8), 3, lead)
