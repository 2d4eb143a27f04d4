"""Planted sinks: found, calmed, and nothing else touched."""

import pytest
import torch

from neuroenc.attention import Attention, Sigmoid, SinkCalibration, Softmax
from neuroenc.attention._tap import find_sinks


def planted(seed=0, sink=(3,), queries=40):
    scores = torch.randn(2, 3, queries, 9, generator=torch.Generator().manual_seed(seed)).double()
    scores[..., list(sink)] += 3
    return scores


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.4, 0.5, 0.6])
def test_find_sinks_by_loops(threshold):
    weights = Softmax()(planted(), torch.ones(2))
    visible = torch.rand(2, 3, 40, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    weights = weights * visible
    found = find_sinks(weights, threshold, keep_first=2, visible=visible)
    for b in range(2):
        for h in range(3):
            for j in range(9):
                seen = [i for i in range(40) if visible[b, h, i, j]]
                mean = sum(float(weights[b, h, i, j]) for i in seen) / len(seen)
                assert found[b, h, j] == (j >= 2 and mean > threshold)


@pytest.mark.parametrize("inner", [Softmax(), Sigmoid(0.0)])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_calibration(inner, beta):
    scores, n = planted(), torch.full((2,), 9.0)
    before = inner(scores, n)
    threshold = 0.9 if isinstance(inner, Sigmoid) else 0.3
    sink = find_sinks(before, threshold)
    assert torch.equal(sink, torch.arange(9).expand(2, 3, 9) == 3)
    after = SinkCalibration(inner, threshold, beta, heads=[0, 2])(scores, n)
    torch.testing.assert_close(after[:, 1], before[:, 1], atol=0, rtol=0)
    torch.testing.assert_close(after.sum(-1), before.sum(-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(after[:, 0, :, 3], beta * before[:, 0, :, 3], atol=1e-12, rtol=0)
    rest = [j for j in range(9) if j != 3]
    torch.testing.assert_close(
        after[:, 0][..., rest] / after[:, 0][..., rest].sum(-1, keepdim=True),
        before[:, 0][..., rest] / before[:, 0][..., rest].sum(-1, keepdim=True),
        atol=1e-12,
        rtol=0,
    )


def test_nothing_changes_without_sinks_and_in_rows_of_sinks_only():
    scores, n = planted(sink=()), torch.full((2,), 9.0)
    torch.testing.assert_close(SinkCalibration(threshold=0.9)(scores, n), Softmax()(scores, n), atol=1e-15, rtol=0)
    scores = planted()
    scores[:, :, 0, :3] = scores[:, :, 0, 4:] = -torch.inf
    out = SinkCalibration(threshold=0.3)(scores, n)
    assert torch.equal(out[:, :, 0], Softmax()(scores, n)[:, :, 0])


def test_first_keys_are_exempt():
    scores, n = planted(sink=(0,)), torch.full((2,), 9.0)
    assert not find_sinks(Softmax()(scores, n), 0.3).any()
    assert find_sinks(Softmax()(scores, n), 0.3, keep_first=0)[..., 0].all()


def test_rows_are_calmed_as_among_all_rows():
    torch.manual_seed(0)
    attention = Attention(8, 2, normaliser=SinkCalibration(threshold=0.15, beta=0.1)).double()
    torch.nn.init.normal_(attention.in_proj.weight, std=0.7)
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    out, weights = attention(x, need_weights=True)
    part, some = attention(x, rows=slice(2, 5), need_weights=True)
    assert torch.equal(part, out[:, 2:5])
    assert torch.equal(some, weights[:, :, 2:5])
    plain = Attention(8, 2).double()
    plain.load_state_dict(attention.state_dict())
    assert not torch.allclose(plain(x)[0], out)


def test_gradient():
    scores = planted(queries=4)[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: SinkCalibration(threshold=0.3)(s, torch.ones(1)), scores)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: SinkCalibration(beta=1.5), "beta=1.5"),
        (lambda: SinkCalibration(heads=[5])(planted(), torch.ones(2)), r"heads \[5\] of 3"),
        (lambda: find_sinks(torch.ones(3)), "query, key"),
    ],
)
def test_bad_settings(run, words):
    with pytest.raises(ValueError, match=words):
        run()
