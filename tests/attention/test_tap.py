"""Taps: what goes in comes out, everything is restored, and heads that were wired by hand are found."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from neuroenc.attention import (
    Attention,
    Block,
    HeadTap,
    SinkCalibration,
    Stack,
    TaskEmbedding,
    circuit_overlap,
    mask_curve,
    path_patch,
    repeat_probe,
    retrieval_score,
    select_calibration_heads,
)


def stack(layers=3, seed=0):
    torch.manual_seed(seed)
    return Stack([Block(Attention(8, 2), hidden=16) for _ in range(layers)], registers=2).eval()


def tokens(seed=1, count=6, batch=3):
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(seed))


class Read(nn.Module):
    """The registers only: all that trials do to them goes through heads."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0][:, :2]


@pytest.fixture
def model():
    return Read(stack())


def recorded(model, x):
    with HeadTap(model) as tap:
        tap.record()
        out = model(x)
        return out, tap.recorded()


def test_a_tap_that_does_nothing_changes_nothing(model):
    x = tokens()
    plain = model(x)
    out, recording = recorded(model, x)
    assert torch.equal(out, plain)
    assert [len(calls) for calls in recording] == [1, 1, 1]
    assert recording[1][0].shape == (3, 2, 8, 4)
    layer = model.inner.blocks[0].attention
    h = model.inner.blocks[0].norm1(torch.cat([model.inner.registers.expand(3, -1, -1), x], 1))
    assert torch.equal(recording[0][0], layer.head_outputs(h)[0])


def test_patching_all_is_the_other_run_and_none_is_this_one(model):
    clean, corrupt = tokens(1), tokens(2)
    here, there = model(clean), model(corrupt)
    assert not torch.allclose(here, there)
    with HeadTap(model) as tap:
        tap.record()
        model(corrupt)
        recording = tap.recorded()
        tap.patch(recording)
        assert torch.equal(model(clean), there)
        tap.clear()
        tap.patch(recording, heads=[])
        assert torch.equal(model(clean), here)
        tap.clear()
        tap.patch(recording, heads=[(0, 0), (1, 1)])
        some = model(clean)
    assert not torch.allclose(some, here)
    assert not torch.allclose(some, there)
    assert torch.equal(model(clean), here)


def test_masks_by_hand(model):
    x = tokens()
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    with HeadTap(model) as tap:
        tap.mask([(1, 0)])
        masked = model(x)
    # A head that gives zeros is a head whose columns of the output projection are zero.
    with torch.no_grad():
        model.inner.blocks[1].attention.out_proj.weight[:, :4] = 0
    torch.testing.assert_close(masked, model(x), atol=1e-6, rtol=1e-5)
    model.load_state_dict(weights)
    z = recorded(model, x)[1][1][0]
    with HeadTap(model) as tap:
        tap.mask([(1, 0)], value="mean")
        tap.record()
        model(x)
        found = tap.recorded()[1][0]
    torch.testing.assert_close(found[:, 0], z[:, 0].mean((0, 1)).expand(3, 8, 4))
    assert torch.equal(found[:, 1], z[:, 1])


def test_mix_ends_and_gradient(model):
    x = tokens()
    target = [torch.randn(2, 4) for _ in range(3)]
    alpha = torch.tensor([[0.0, 0.0], [1.0, 0.25], [0.0, 0.0]], requires_grad=True)
    z = recorded(model, x)[1][1][0]
    with HeadTap(model) as tap:
        tap.mix(alpha, target, rows=slice(0, 1))
        tap.record()
        model(x).square().sum().backward()
        found = tap.recorded()
    assert torch.equal(found[1][0][:, 0, 0], target[1][0].expand(3, 4))
    torch.testing.assert_close(found[1][0][:, 1, 0], 0.75 * z[:, 1, 0] + 0.25 * target[1][1])
    assert torch.equal(found[1][0][:, :, 1:], z[:, :, 1:])
    assert torch.equal(found[0][0], recorded(model, x)[1][0][0])
    assert (alpha.grad != 0).all()


def test_all_is_restored_after_an_error(model):
    attention = model.inner.blocks[0].attention

    def failing():
        with HeadTap(model) as tap:
            tap.record()
            tap.mask([(0, 0)])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        failing()
    assert attention.tap is None


def test_nested_taps_are_refused(model):
    with HeadTap(model) as tap:
        with pytest.raises(ValueError, match=r"layers \[0, 1, 2\] are tapped already"), HeadTap(model):
            pass
        tap.record()
        model(tokens())
        assert len(tap.recorded()[0]) == 1
    assert all(b.attention.tap is None for b in model.inner.blocks)


def test_patch_refuses_other_shapes_and_calls(model):
    _, recording = recorded(model, tokens(count=5))
    with HeadTap(model) as tap:
        tap.patch(recording)
        with pytest.raises(ValueError, match="call 0 of layer 0"):
            model(tokens())
        tap.clear()
        tap.patch(recording)
        model(tokens(count=5))
        with pytest.raises(ValueError, match="no such call"):
            model(tokens(count=5))


def test_bad_taps(model):
    with pytest.raises(ValueError, match="no Attention in Linear"):
        HeadTap(nn.Linear(2, 2))
    tap = HeadTap(model)
    with pytest.raises(ValueError, match="the tap is closed"):
        tap.record()
    with tap:
        with pytest.raises(ValueError, match=r"no head \(0, 2\)"):
            tap.mask([(0, 2)])
        with pytest.raises(ValueError, match="zero, mean"):
            tap.mask([(0, 1)], value="noise")
        with pytest.raises(ValueError, match="nothing is being recorded"):
            tap.recorded()
        with pytest.raises(ValueError, match=r"legal: \(3, 2\) and 3"):
            tap.mix(torch.zeros(2, 2), [])


class Wired(nn.Module):
    """Two layers of two heads beside each other; the result is a sum of heads with weights chosen by hand."""

    def __init__(self, gains):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Attention(8, 2) for _ in gains)
        with torch.no_grad():
            for layer, gain in zip(self.layers, gains):
                layer.out_proj.weight.zero_()
                layer.out_proj.bias.zero_()
                layer.out_proj.weight[0, :4], layer.out_proj.weight[0, 4:] = gain[0], gain[1]

    def forward(self, x):
        return sum(layer(x)[0][..., 0] for layer in self.layers)


def importance(model, loss):
    """Increase of the loss without each head."""
    found = np.zeros((len(model.layers), 2))
    with HeadTap(model) as tap, torch.no_grad():
        clean = float(loss(model))
        for head in tap.heads:
            tap.clear()
            tap.mask([head])
            found[head] = float(loss(model)) - clean
    return xr.DataArray(found, dims=("layer", "head"))


def test_importance_and_disjoint_circuits():
    x = tokens()
    maps = []
    for gains in ([(5.0, 0.0), (0.0, 3.0)], [(0.0, 4.0), (2.0, 0.0)]):
        wired = Wired(gains)
        right = wired(x).detach()
        maps.append(importance(wired, lambda m, right=right: (m(x) - right).square().mean()))
        assert (maps[-1].values > 0).tolist() == (np.array(gains) > 0).tolist()
    found = circuit_overlap(*maps, top=2)
    assert found["overlap"] == 0
    assert found["correlation"] < 0
    assert circuit_overlap(maps[0], maps[0], top=2)["overlap"] == 1


def test_overlap_by_hand():
    a = xr.DataArray([[3.0, 2.0, 1.0], [0.0, np.nan, 0.5]], dims=("layer", "head"))
    b = xr.DataArray([[3.0, 0.0, 1.0], [2.0, np.nan, 0.5]], dims=("layer", "head"))
    found = circuit_overlap(a, b, top=3)
    assert (found["overlap"].item(), found["of_smaller"].item()) == (2 / 4, 2 / 3)
    assert np.isnan(circuit_overlap(a * np.nan, b * np.nan, top=1)["overlap"])
    with pytest.raises(ValueError, match="heads of one model"):
        circuit_overlap(a, b[:1], top=1)


def test_paths_of_parallel_heads_add_up():
    wired = Wired([(5.0, 0.0), (0.0, 3.0)])
    clean, corrupt = tokens(1), tokens(2)
    effect = path_patch(wired, lambda m: m(clean).sum(), lambda m: m(corrupt).sum())
    np.testing.assert_allclose(effect.sum(), 1, atol=1e-4)
    assert (effect.values[0, 1], effect.values[1, 0]) == (0, 0)


def test_paths_through_receivers(model):
    """The same four runs, written out."""
    clean, corrupt = tokens(1), tokens(2)
    score = lambda m, x: m(x)[:, 0].square().sum()  # noqa: E731
    sender, receivers = (0, 1), [(2, 0)]
    found = path_patch(model, lambda m: score(m, clean), lambda m: score(m, corrupt), receivers=receivers)
    m0, before = float(score(model, clean).detach()), recorded(model, clean)[1]
    m1, after = float(score(model, corrupt).detach()), recorded(model, corrupt)[1]
    others = [(i, j) for i in range(3) for j in range(2) if (i, j) not in {sender, *receivers}]
    with HeadTap(model) as tap:
        tap.patch(before, others)
        tap.patch(after, [sender])
        tap.record()
        model(clean)
        answers = tap.recorded()
        tap.clear()
        tap.patch(answers, receivers)
        result = float(score(model, clean).detach())
    np.testing.assert_allclose(found[sender], (result - m0) / (m1 - m0), rtol=1e-5)
    assert found[sender] != 0
    late = path_patch(model, lambda m: score(m, clean), lambda m: score(m, corrupt), receivers=[(0, 0)])
    np.testing.assert_allclose(late[2, 1], 0, atol=1e-6)
    with pytest.raises(ValueError, match="must differ"):
        path_patch(model, lambda m: score(m, clean), lambda m: score(m, clean))


def test_mask_curve_of_planted_heads():
    x = tokens()
    wired = Wired([(5.0, 0.1), (0.1, 3.0)])
    right = wired(x).detach()
    loss = lambda m: (m(x) - right).square().mean()  # noqa: E731
    curve = mask_curve(wired, loss, importance(wired, loss), counts=[0, 1, 2], draws=20)
    assert curve["top"][0] == curve.attrs["clean"] == 0
    assert curve["top"][2] > 1.5 * curve["random"][2].mean()
    again = mask_curve(wired, loss, importance(wired, loss), counts=[0, 1, 2], draws=20)
    xr.testing.assert_identical(curve, again)
    with pytest.raises(ValueError, match="5 heads to mask of 4"):
        mask_curve(wired, loss, importance(wired, loss), counts=[5])


def test_retrieval_score_by_loops():
    g = torch.Generator().manual_seed(0)
    weights = [torch.rand(4, 3, 2, 7, generator=g), torch.rand(4, 2, 2, 7, generator=g)]
    match = torch.rand(4, 5, generator=g) > 0.5
    found = retrieval_score(weights, match, offset=2)
    assert found.shape == (2, 3)
    assert np.isnan(found[1, 2])
    for layer, w in enumerate(weights):
        for h in range(w.shape[1]):
            hits = [
                bool(match[b, max(range(5), key=lambda j, b=b, r=r, h=h, w=w: w[b, h, r, 2 + j])])
                for b in range(4)
                for r in range(2)
            ]
            assert found[layer, h] == sum(hits) / 8
    assert found.attrs["chance"] == pytest.approx(match.double().mean().item())
    assert (retrieval_score([torch.zeros(4, 1, 2, 5)], match) == 0).all()
    with pytest.raises(ValueError, match="number of registers"):
        retrieval_score(weights, match)
    with pytest.raises(ValueError, match="list over layers"):
        retrieval_score([weights[0][0]], match)


def test_calibration_heads_are_found_and_the_model_is_restored(model):
    x = tokens()
    first = model.inner.blocks[0].attention
    first.normaliser = SinkCalibration(threshold=0.05, beta=0.0, heads=[1])
    calmed = model(x).detach()
    first.normaliser = before = type(model.inner.blocks[1].attention.normaliser)()
    gain = select_calibration_heads(model, lambda m: (m(x) - calmed).square().mean(), threshold=0.05, beta=0.0)
    assert gain.argmax(...)["layer"] == 0
    assert gain.argmax(...)["head"] == 1
    np.testing.assert_allclose(gain[0, 1], gain.attrs["clean"], rtol=1e-6)
    assert first.normaliser is before


def test_task_embedding():
    """A task of two kinds of cases: the mean of many helps a case that shows little of it."""
    model = Read(stack())
    x = tokens(count=6, batch=64) + torch.linspace(0, 1, 8)
    right = model(x).mean(0).detach()
    task = TaskEmbedding.collect(model, [lambda m: m(x[:40]), lambda m: m(x[40:])], rows=slice(0, 2))
    z = recorded(model, x)[1]
    for vector, calls in zip(task.vectors, z):
        torch.testing.assert_close(vector, calls[0][:, :, :2].mean((0, 2)), atol=1e-5, rtol=1e-4)
    few = tokens(seed=5, count=1, batch=16)
    loss = lambda m: (m(few) - right).square().mean()  # noqa: E731
    plain = float(loss(model).detach())
    losses = task.fit_alpha(model, loss, steps=60)
    with task.inject(model), torch.no_grad():
        injected = float(loss(model))
    assert injected < 0.5 * plain
    assert losses[-1] < losses[0]
    assert task.alpha.dims == ("layer", "head")
    assert all(p.grad is None for p in model.parameters())
    assert float(loss(model).detach()) == plain
    with pytest.raises(ValueError, match="at least one each"):
        TaskEmbedding.collect(model, [])


def test_repeat_probe():
    def run(condition, lag):
        g = np.random.default_rng(lag)
        return {"repeat": 0.2 * lag, "novel": 4.0, "permuted": 1.0}[condition] * (1 + 0.01 * g.random(51))

    probe = repeat_probe(run, lags=[1, 10])
    np.testing.assert_allclose(probe["ratio"].sel(condition="repeat"), [0.05, 0.5])
    np.testing.assert_allclose(probe["ratio"].sel(condition="novel"), 1)
    with pytest.raises(ValueError, match="0 values"):
        repeat_probe(lambda condition, lag: [], [1])


def test_the_room_stands_on_torch_numpy_and_xarray_only():
    import ast
    from pathlib import Path

    import neuroenc.attention as room

    legal = {
        "torch",
        "numpy",
        "xarray",
        "lazy_loader",
        "__future__",
        "math",
        "collections",
        "contextlib",
        "functools",
        "itertools",
    }
    for path in Path(room.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                inside = name.startswith("neuroenc.attention")
                assert inside or name.split(".")[0] in legal | {"types", "typing"}, f"{path.name} imports {name}"
