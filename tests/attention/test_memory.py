"""Memories: streaming is attention in any order, a linear neural memory is least mean squares, cells are torch's."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from neuroenc.attention import AarenStack, Attention, NeuralMemory, RecurrentMemory, StreamingAttention

TIGHT = {"atol": 1e-12, "rtol": 1e-10}


def trials(count, seed=0, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, d, generator=g, dtype=dtype) for n, d in ((3, 4), (count, 4), (count, 5)))
    log_weight = torch.randn(2, count, generator=g, dtype=dtype)
    log_weight[torch.rand(2, count, generator=g) < 0.3] = -math.inf
    return q * scale, k, v, log_weight


def full(q, k, v, log_weight=None, kind="softmax", bias=0.0):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    lw = torch.zeros_like(scores) if log_weight is None else log_weight[:, None]
    if kind == "sigmoid":
        return (torch.sigmoid(scores + bias) * lw.exp()) @ v
    return torch.softmax(scores + lw, -1).nan_to_num(0.0) @ v


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 12),
    kind=st.sampled_from(["softmax", "sigmoid"]),
    weighed=st.booleans(),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 30.0]),
    data=st.data(),
)
def test_any_order_and_any_tree_is_full_attention(count, kind, weighed, seed, scale, data):
    q, k, v, lw = trials(count, seed, torch.float32, scale)
    lw = lw if weighed else None
    stream = StreamingAttention(kind, bias=-1.0)
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
    torch.testing.assert_close(stream.read(states[0]), full(q, k, v, lw, kind, -1.0), atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_one_by_one_is_at_once_and_the_state_stays_small(kind):
    q, k, v, lw = trials(50)
    stream = StreamingAttention(kind)
    state = stream.init(q)
    sizes = set()
    for t in range(50):
        state = stream.update(state, k[:, t : t + 1], v[:, t : t + 1], lw[:, t : t + 1])
        sizes.add(sum(x.numel() for x in state))
        now = full(q, k[:, : t + 1], v[:, : t + 1], lw[:, : t + 1], kind)
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


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_streaming_gradient(kind):
    q, k, v, lw = trials(5)
    q, k, v = (t[:1].requires_grad_() for t in (q, k, v))
    stream = StreamingAttention(kind)

    def run(q, k, v):
        a = stream.update(stream.init(q), k[:, :2], v[:, :2], lw[:1, :2])
        return stream.read(stream.update(a, k[:, 2:], v[:, 2:]))

    assert torch.autograd.gradcheck(run, (q, k, v))


def test_linear_neural_memory_is_least_mean_squares():
    _, k, v, _ = trials(40)
    memory = NeuralMemory(4, 5, theta=0.03).double()
    state = memory.update(memory.init(k), k, v)
    for b in range(2):
        W = torch.zeros(5, 4, dtype=torch.float64)
        for t in range(40):
            W = W + 2 * 0.03 * torch.outer(v[b, t] - W @ k[b, t], k[b, t])
        torch.testing.assert_close(state.weights[0][b], W, **TIGHT)
        torch.testing.assert_close(memory.read(state)[b], k[b] @ W.T, **TIGHT)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("gates", ["fixed", "data"])
def test_neural_memory_by_autograd(depth, gates):
    torch.manual_seed(depth)
    _, k, v, _ = trials(8)
    memory = NeuralMemory(4, 5, depth, hidden=6, gates=gates, theta=0.05, eta=0.6, alpha=0.1).double()
    if gates == "data":
        nn.init.normal_(memory.gate.weight)
    state = memory.update(memory.update(memory.init(k), k[:, :3], v[:, :3]), k[:, 3:], v[:, 3:])
    for b in range(2):
        weights = [w.detach().clone() for w in memory.first]
        momentum = [torch.zeros_like(w) for w in weights]
        for t in range(8):
            leaves = [w.clone().requires_grad_() for w in weights]
            x = k[b, t]
            for number, w in enumerate(leaves):
                x = w @ (x * torch.sigmoid(x) if number else x)
            slopes = torch.autograd.grad((x - v[b, t]).pow(2).sum(), leaves)
            theta, eta, alpha = (0.05, 0.6, 0.1)
            if gates == "data":
                theta, eta, alpha = torch.sigmoid(memory.gate.weight @ k[b, t] + memory.gate.bias).detach()
            momentum = [eta * s - theta * g for s, g in zip(momentum, slopes)]
            weights = [(1 - alpha) * w + s for w, s in zip(weights, momentum)]
        for found, right in zip(state.weights, weights):
            torch.testing.assert_close(found[b], right, **TIGHT)


def test_data_gates_start_at_the_fixed_ones_and_learn():
    _, k, v, _ = trials(8)
    given_ = {"theta": 0.05, "eta": 0.6, "alpha": 0.1}
    fixed, data = (NeuralMemory(4, 5, gates=g, **given_).double() for g in ("fixed", "data"))
    a, b = (m.read(m.update(m.init(k), k, v)) for m in (fixed, data))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    (b - v).pow(2).mean().backward()
    assert data.gate.weight.grad.abs().max() > 0
    deep = NeuralMemory(4, 5, depth=2, gates="data", **given_).double()
    deep.read(deep.update(deep.init(k), k, v)).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in deep.parameters())


@pytest.mark.parametrize(
    "memory",
    [
        NeuralMemory(4, 5, depth=2, theta=0.1, eta=0.5, alpha=0.1),
        RecurrentMemory(4, 5),
        RecurrentMemory(4, 5, kind="lstm"),
    ],
    ids=["neural", "gru", "lstm"],
)
def test_trials_without_weight_leave_no_trace(memory):
    memory = memory.double()
    q, k, v, _ = trials(9)
    log_weight = torch.zeros(2, 9).double()
    log_weight[:, [1, 4, 5]] = -math.inf
    kept = [0, 2, 3, 6, 7, 8]
    some = memory.read(memory.update(memory.init(q), k, v, log_weight))
    torch.testing.assert_close(some, memory.read(memory.update(memory.init(q), k[:, kept], v[:, kept])), **TIGHT)
    with pytest.raises(ValueError, match="Repeat the trials"):
        memory.update(memory.init(q), k, v, log_weight + 0.5)
    with pytest.raises(ValueError, match="cannot be merged"):
        memory.merge(memory.init(q), memory.init(q))
    with pytest.raises(ValueError, match="fold heads"):
        memory.update(memory.init(q), k, v[:, :3])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cells_are_torchs(kind):
    torch.manual_seed(0)
    q, k, v, _ = trials(11)
    memory = RecurrentMemory(4, 5, hidden=7, kind=kind).double()
    peer = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](9, 7, batch_first=True).double()
    peer.load_state_dict({name: p for name, p in memory.state_dict().items() if "readout" not in name})
    state = memory.update(memory.update(memory.init(q), k[:, :4], v[:, :4]), k[:, 4:], v[:, 4:])
    _, last = peer(torch.cat([k, v], -1))
    if kind == "lstm":
        torch.testing.assert_close(state.c, last[1][0], **TIGHT)
    torch.testing.assert_close(state.h, last[0][0] if kind == "lstm" else last[0], **TIGHT)
    assert memory.read(state).shape == (2, 3, 5)
    assert memory.read(state, k).shape == (2, 11, 5)


def test_forgetting_follows_drift_and_costs_in_a_still_world():
    """Planted: weights that walk; the same trials through both memories, prequential correlation."""
    g = torch.Generator().manual_seed(0)
    scores = {}
    for drift in (0.0, 0.05):
        w = torch.randn(20, 16, generator=g)
        right = {"keeps": [], "ridge": []}
        memory = NeuralMemory(16, 1, theta=0.02)
        state = memory.init(torch.zeros(20, 1, 16))
        xx, xy, truth = 10 * torch.eye(16).expand(20, 16, 16).clone(), torch.zeros(20, 16, 1), []
        for t in range(600):
            k = torch.randn(20, 1, 16, generator=g)
            y = (k * w[:, None]).sum(-1, keepdim=True) + torch.randn(20, 1, 1, generator=g)
            if t >= 100:
                right["keeps"].append(memory.read(state, k).detach())
                right["ridge"].append(k @ torch.linalg.solve(xx, xy))
                truth.append(y)
            with torch.no_grad():
                state = memory.update(state, k, y)
            xx, xy = xx + k.mT @ k, xy + k.mT @ y
            w = w + drift * torch.randn(20, 16, generator=g)
        truth = torch.cat(truth).flatten()
        scores[drift] = {
            n: torch.corrcoef(torch.stack([torch.cat(p).flatten(), truth]))[0, 1] for n, p in right.items()
        }
    assert scores[0.05]["keeps"] > scores[0.05]["ridge"] + 0.05
    assert scores[0.0]["ridge"] > scores[0.0]["keeps"]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: StreamingAttention("linear"), "softmax, sigmoid"),
        (lambda: NeuralMemory(4, 1, gates="learned"), "fixed, data"),
        (lambda: NeuralMemory(4, 1, theta=1.5), "theta=1.5"),
        (lambda: RecurrentMemory(4, 1, kind="rnn"), "gru, lstm"),
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
    with pytest.raises(ValueError, match="Leave query out"):
        stream.read(stream.init(q), q + 1)
    with pytest.raises(ValueError, match="one value a key"):
        stream.update(stream.init(q), k, v[:, :2])


@pytest.mark.parametrize("depth", [1, 3])
def test_aaren_streamed_is_aaren_at_once(depth):
    torch.manual_seed(0)
    model = AarenStack(8, 2, depth=depth, queries=3).double()
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
    assert same == (depth == 1)
    half = [model.update(model.init(2), x[:, piece]) for piece in (slice(0, 9), slice(9, 17))]
    if depth == 1:
        torch.testing.assert_close(model.read(model.merge(*half)), model(x), **TIGHT)
    else:
        with pytest.raises(ValueError, match="order matters"):
            model.merge(*half)
    assert model.read(model.init(2)).isfinite().all()
    torch.testing.assert_close(model.read(model.init(2)), model(x[:, :1], torch.full((2, 1), -math.inf)))


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
