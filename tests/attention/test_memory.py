"""Memories: streaming is attention in any order, a neural memory is least mean squares, cells are torch's."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from neuroenc.attention import AarenStack, ALiBi, Attention, Memory, NeuralMemory, RecurrentMemory
from neuroenc.attention._memory import StreamingAttention

TIGHT = {"atol": 1e-12, "rtol": 1e-10}


def trials(count, seed=0, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, d, generator=g, dtype=dtype) for n, d in ((3, 4), (count, 4), (count, 5)))
    log_weight = torch.randn(2, count, generator=g, dtype=dtype)
    log_weight[torch.rand(2, count, generator=g) < 0.3] = -math.inf
    return q * scale, k, v, log_weight


def full(q, k, v, log_weight=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    lw = torch.zeros_like(scores) if log_weight is None else log_weight[:, None]
    return torch.softmax(scores + lw, -1).nan_to_num(0.0) @ v


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 12),
    weighed=st.booleans(),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 30.0]),
    data=st.data(),
)
def test_any_order_and_any_tree_is_full_attention(count, weighed, seed, scale, data):
    q, k, v, lw = trials(count, seed, torch.float32, scale)
    lw = lw if weighed else None
    stream = StreamingAttention()
    order = data.draw(st.permutations(range(count)))
    states = []
    while order:
        size = data.draw(st.integers(1, len(order)))
        now, order = list(order[:size]), order[size:]
        states.append(stream.update(stream.init(q), k[:, now], v[:, now], None if lw is None else lw[:, now]))
    states.append(stream.init(q))
    while len(states) > 1:
        a = states.pop(data.draw(st.integers(0, len(states) - 1)))
        b = states.pop(data.draw(st.integers(0, len(states) - 1)))
        states.append(stream.merge(a, b))
    torch.testing.assert_close(stream.read(states[0]), full(q, k, v, lw), atol=1e-5, rtol=1e-5)


def test_merge_is_associative_and_has_a_neutral_state():
    q, k, v, lw = trials(9)
    stream = StreamingAttention()
    a, b, c = (stream.update(stream.init(q), k[:, i : i + 3], v[:, i : i + 3], lw[:, i : i + 3]) for i in (0, 3, 6))
    left, right = stream.merge(stream.merge(a, b), c), stream.merge(a, stream.merge(b, c))
    for x, y in zip(left, right):
        torch.testing.assert_close(x, y, **TIGHT)
    for x, y in zip(stream.merge(a, stream.init(q)), a):
        assert torch.equal(x, y)
    assert (stream.read(stream.init(q)) == 0).all()


def test_one_by_one_is_at_once_and_the_state_stays_small():
    q, k, v, lw = trials(50)
    stream = StreamingAttention()
    state = stream.init(q)
    sizes = set()
    for t in range(50):
        state = stream.update(state, k[:, t : t + 1], v[:, t : t + 1], lw[:, t : t + 1])
        sizes.add(sum(x.numel() for x in state))
        now = full(q, k[:, : t + 1], v[:, : t + 1], lw[:, : t + 1])
        torch.testing.assert_close(stream.read(state), now, atol=1e-10, rtol=1e-10)
    assert len(sizes) == 1


def test_streaming_is_attention_with_register_queries():
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    x, registers = torch.randn(3, 20, 8).double(), torch.randn(3, 2, 8).double()
    q, k, v = attention._project(registers, x)
    q = attention._scaled(q, torch.ones(3))
    stream = StreamingAttention()
    state = stream.init(q)
    for piece in (slice(0, 7), slice(7, 20)):
        state = stream.update(state, k[:, :, piece], v[:, :, piece])
    torch.testing.assert_close(stream.read(state), attention.head_outputs(registers, x)[0], **TIGHT)


def test_streaming_gradient():
    q, k, v, lw = trials(5)
    q, k, v = (t[:1].requires_grad_() for t in (q, k, v))
    stream = StreamingAttention()

    def run(q, k, v):
        a = stream.update(stream.init(q), k[:, :2], v[:, :2], lw[:1, :2])
        return stream.read(stream.update(a, k[:, 2:], v[:, 2:]))

    assert torch.autograd.gradcheck(run, (q, k, v))


def gated(memory, theta, eta, alpha):
    """Gates that are these numbers at every trial."""
    with torch.no_grad():
        memory.gate_out.weight.zero_()
        memory.gate_out.bias.copy_(torch.tensor([theta, eta, alpha]).logit())
    return memory


def test_linear_neural_memory_is_normalised_least_mean_squares():
    _, k, v, _ = trials(40)
    memory = gated(NeuralMemory(4, 5).double(), 0.3, 0.0, 0.0)
    found = memory(torch.cat([k, v], -1))
    for b in range(2):
        W = torch.zeros(5, 4, dtype=torch.float64)
        for t in range(40):
            W = W + 0.3 * torch.outer(v[b, t] - W @ k[b, t], k[b, t]) / (1 + k[b, t].square().sum())
        torch.testing.assert_close(found[b], W, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("persistent", [0, 3])
def test_neural_memory_by_autograd(persistent):
    torch.manual_seed(0)
    _, k, v, _ = trials(8)
    memory = NeuralMemory(4, 5, hidden=6, persistent=persistent, theta=0.2, eta=0.6, alpha=0.1).double()
    for p in memory.parameters():
        nn.init.normal_(p, std=0.5)
    tokens = torch.cat([k, v], -1)
    state = memory.update(memory.update(memory.init(2), tokens[:, :3]), tokens[:, 3:])
    for b in range(2):
        M, S = torch.zeros(5, 4).double(), torch.zeros(5, 4).double()
        for t, trial in enumerate([*memory.persistent, *tokens[b]]):
            key, value = memory.key.weight @ trial[:4], trial[4:]
            leaf = M.detach().requires_grad_()
            surprise = (leaf @ key - value).pow(2).sum()
            slope = torch.autograd.grad(surprise, leaf, retain_graph=True)[0]
            known = torch.stack([surprise.detach().log1p(), torch.tensor(math.log1p(t) / 5, dtype=surprise.dtype)])
            theta, eta, alpha = torch.sigmoid(
                memory.gate_out(nn.functional.silu(memory.gate_in(trial) + memory.gate_state(known)))
            )
            S = eta * S - theta * slope / (2 * (1 + key.square().sum()))
            M = (1 - alpha) * M + S
        torch.testing.assert_close(memory.read(state)[b], M @ memory.key.weight, **TIGHT)


def test_gates_persistent_trials_and_keys_learn():
    _, k, v, _ = trials(8)
    memory = NeuralMemory(4, 5, persistent=2).double()
    nn.init.normal_(memory.gate_out.weight)
    weights = memory(torch.cat([k, v], -1))
    (weights @ k.mT - v.mT).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in memory.parameters())


def test_no_gate_makes_a_neural_memory_diverge():
    memory = gated(NeuralMemory(4, 1), 0.999, 1e-6, 1e-6)
    _, k, v, _ = trials(300, dtype=torch.float32)
    assert memory(torch.cat([100 * k, v[..., :1]], -1)).abs().max() < 10


@pytest.mark.parametrize(
    "memory",
    [NeuralMemory(5, 4, theta=0.1, eta=0.5, alpha=0.1), RecurrentMemory(9), RecurrentMemory(9, kind="lstm")],
    ids=["neural", "gru", "lstm"],
)
def test_trials_without_weight_leave_no_trace(memory):
    memory = memory.double()
    _, k, v, _ = trials(9)
    tokens, log_weight = torch.cat([v, k], -1), torch.zeros(2, 9).double()
    log_weight[:, [1, 4, 5]] = -math.inf
    kept = [0, 2, 3, 6, 7, 8]
    torch.testing.assert_close(memory(tokens, log_weight), memory(tokens[:, kept]), **TIGHT)
    with pytest.raises(ValueError, match="Repeat the trials"):
        memory(tokens, log_weight + 0.5)
    with pytest.raises(ValueError, match="cannot be merged"):
        memory.merge(memory.init(2), memory.init(2))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cells_are_torchs(kind):
    torch.manual_seed(0)
    _, k, v, _ = trials(11)
    memory = RecurrentMemory(9, hidden=7, kind=kind).double()
    peer = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](9, 7, batch_first=True).double()
    peer.load_state_dict(memory.state_dict())
    tokens = torch.cat([k, v], -1)
    state = memory.update(memory.update(memory.init(2), tokens[:, :4]), tokens[:, 4:])
    _, last = peer(tokens)
    if kind == "lstm":
        torch.testing.assert_close(state.c, last[1][0], **TIGHT)
    torch.testing.assert_close(state.h, last[0][0] if kind == "lstm" else last[0], **TIGHT)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: NeuralMemory(4, theta=1.5), "theta=1.5"),
        (lambda: RecurrentMemory(4, kind="rnn"), "gru, lstm"),
        (lambda: AarenStack(8, 2, depth=0), "depth=0"),
        (lambda: AarenStack(8, 2, position=ALiBi(4)), r"ALiBi\(2\)"),
    ],
)
def test_bad_settings(run, words):
    with pytest.raises(ValueError, match=words):
        run()


def test_streams_of_other_queries_are_refused():
    q, k, v, _ = trials(3)
    stream = StreamingAttention()
    with pytest.raises(ValueError, match="same init"):
        stream.merge(stream.init(q), stream.init(q + 1))
    with pytest.raises(ValueError, match="one value a key"):
        stream.update(stream.init(q), k, v[:, :2])


@pytest.mark.parametrize("fades", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_aaren_streamed_is_aaren_at_once(depth, fades):
    torch.manual_seed(0)
    model = AarenStack(8, 2, depth=depth, queries=3, position=ALiBi(2) if fades else None).double()
    assert isinstance(model, Memory)
    x = torch.randn(2, 17, 8).double()
    log_weight = torch.zeros(2, 17).double()
    log_weight[0, 3:6], log_weight[1, 0], log_weight[:, 9] = -math.inf, -math.inf, math.log(3)
    state = model.init(2)
    for piece in (slice(0, 1), slice(1, 12), slice(12, 17)):
        state = model.update(state, x[:, piece], log_weight[:, piece])
        so_far = model(x[:, : piece.stop], log_weight[:, : piece.stop])
        torch.testing.assert_close(model.read(state), so_far, **TIGHT)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(model(x[:, order]), model(x))
    assert same == model.is_set == (depth == 1 and not fades)
    half = [model.update(model.init(2), x[:, piece]) for piece in (slice(0, 9), slice(9, 17))]
    if model.is_set:
        torch.testing.assert_close(model.read(model.merge(*half)), model(x), **TIGHT)
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge(*half)
    assert model.read(model.init(2)).isfinite().all()
    torch.testing.assert_close(model.read(model.init(2)), model(x[:, :1], torch.full((2, 1), -math.inf)))


def test_trials_of_a_fading_memory_weigh_by_their_age():
    torch.manual_seed(0)
    position = ALiBi(2)
    model, plain = (AarenStack(8, 2, position=p).double() for p in (position, None))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 12, 8).double()
    heads = []
    for slope in position.slopes.double():
        heads.append(plain(x, -slope * torch.arange(11, -1, -1.0).double()[None]))
    # With one slope for both heads, all is known of a memory of one head; here each slope moves its own head.
    assert not torch.allclose(model(x), heads[0])
    assert not torch.allclose(model(x), heads[1])
    position.slopes[:] = position.slopes[0]
    torch.testing.assert_close(model(x), heads[0], **TIGHT)


def test_aaren_by_loops():
    torch.manual_seed(0)
    model = AarenStack(8, 2, depth=2).double().eval()
    x = torch.randn(1, 5, 8).double()
    inner, last = model.layers
    z = torch.cat([x[:, t : t + 1] + inner.attention(inner.query, inner.norm1(x[:, : t + 1]))[0] for t in range(5)], 1)
    z = z + inner.feed_forward(inner.norm2(z))
    out = last.query + last.attention(last.query, last.norm1(z))[0]
    out = out + last.feed_forward(last.norm2(out))
    torch.testing.assert_close(model(x), out, **TIGHT)


def test_aaren_trains():
    model = AarenStack(8, 2, depth=2)
    model(torch.randn(2, 6, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
