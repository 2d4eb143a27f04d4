"""Losses against plain float64 loops, their gradients against finite differences, and sums over parts of a step."""

import math

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout._losses import LOSSES, make_loss


def data(seed=0, b=12, v=5, counts=False, share_nan=0.4):
    rng = np.random.default_rng(seed)
    pred = rng.normal(size=(b, v))
    target = rng.poisson(2.0, size=(b, v)).astype(float) if counts else rng.normal(size=(b, v)) + 0.5 * pred
    target[rng.random((b, v)) < share_nan] = np.nan
    target[:, 1] = np.nan  # a voxel that this batch did not see at all
    target[:, 2] = np.nan
    target[3, 2] = 1.0  # and one that saw a single image
    return pred, target


def concordance(p, t, correction=0):
    n = len(p)
    mean_p, mean_t = sum(p) / n, sum(t) / n
    cov = sum((a - mean_p) * (b - mean_t) for a, b in zip(p, t)) / n
    var_p = sum((a - mean_p) ** 2 for a in p) / (n - correction)
    var_t = sum((b - mean_t) ** 2 for b in t) / (n - correction)
    return 2 * cov / (var_p + var_t + (mean_p - mean_t) ** 2)


def by_loops(name, pred, target):
    b, v = pred.shape
    total = 0.0
    pairs = [[(pred[i, j], target[i, j]) for i in range(b) if not math.isnan(target[i, j])] for j in range(v)]
    seen = [x for x in pairs if x]
    if "mse" in name:
        total += sum(sum((p - t) ** 2 for p, t in x) / len(x) for x in seen)
    if name == "poisson":
        for x in seen:
            rates = [(math.log1p(math.exp(p)), t) for p, t in x]
            total += sum(r - t * math.log(r) for r, t in rates) / len(x)
    if name.endswith("ccc"):
        total += sum(1 - concordance(*zip(*x)) for x in seen)
    if name.endswith("ccc-batch"):
        total += len(seen) * (1 - concordance(*zip(*[pair for x in seen for pair in x]), correction=1))
    return total


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share_nan", [0.0, 0.4, 0.8])
def test_equals_plain_loops(name, share_nan):
    pred, target = data(counts=name == "poisson", share_nan=share_nan)
    found = make_loss(name)(torch.as_tensor(pred), torch.as_tensor(target))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(float(found), by_loops(name, pred, target), rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    pred, target = data(seed=1, b=6, v=4, counts=name == "poisson")
    x = torch.as_tensor(pred).requires_grad_()
    t = torch.as_tensor(target)
    assert torch.autograd.gradcheck(lambda p: make_loss(name)(p, t), x)
    make_loss(name)(x, t).backward()
    # What was not seen has no gradient: not NaN, exactly zero.
    assert torch.equal(x.grad[torch.isnan(t)], torch.zeros(int(torch.isnan(t).sum()), dtype=torch.float64))
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["mse", "poisson"])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 11), (5, 7)])
def test_parts_of_a_step_add_up(name, sizes):
    pred, target = data(seed=2, counts=name == "poisson")
    loss = make_loss(name)
    p, t = torch.as_tensor(pred), torch.as_tensor(target)
    count = (~torch.isnan(t)).sum(dim=0)
    parts = sum(loss(a, b, count) for a, b in zip(p.split(sizes), t.split(sizes)))
    torch.testing.assert_close(parts, loss(p, t), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["ccc", "ccc-batch"])
def test_parts_of_concordance_are_averaged(name):
    """Fully seen parts of equal size give the mean of their losses."""
    rng = np.random.default_rng(3)
    p, t = torch.as_tensor(rng.normal(size=(12, 3))), torch.as_tensor(rng.normal(size=(12, 3)))
    loss, count = make_loss(name), torch.full((3,), 12)
    parts = sum(loss(a, b, count) for a, b in zip(p.split(4), t.split(4)))
    mean = sum(loss(a, b) for a, b in zip(p.split(4), t.split(4))) / 3
    torch.testing.assert_close(parts, mean)
    assert abs(float(parts - loss(p, t))) > 1e-3  # not the concordance of the whole, which parts cannot know


@pytest.mark.parametrize("name", LOSSES)
def test_a_voxel_is_unmoved_by_entries_it_did_not_see(name):
    pred, target = data(seed=4, counts=name == "poisson")
    changed = pred.copy()
    changed[np.isnan(target)] += 100.0
    a, b = (make_loss(name)(torch.as_tensor(x), torch.as_tensor(target)) for x in (pred, changed))
    assert float(a) == float(b)


def test_perfect_and_reversed_predictions():
    t = torch.randn(50, 4, dtype=torch.float64)
    t = t - t.mean(dim=0)
    for name in ("ccc", "mse+ccc"):
        assert abs(float(make_loss(name)(t, t))) < 1e-12
    # As released: variances over n - 1, covariance over n, so that perfect predictions keep a loss of 1 / n.
    assert float(make_loss("ccc-batch")(t, t)) == pytest.approx(4 / 200)
    released = 1 - 2 * ((t - t.mean()) ** 2).mean() / (2 * t.var() + 0.0)
    assert float(make_loss("ccc-batch")(t, t)) == pytest.approx(4 * float(released))
    assert abs(float(make_loss("ccc")(-t, t)) - 2 * 4) < 1e-12


def test_constant_predictions_have_finite_gradients():
    for target in (torch.ones(4, 2), torch.full((4, 2), float("nan"))):
        pred = torch.ones(4, 2, requires_grad=True)
        for name in LOSSES:
            value = make_loss(name)(pred, target)
            (grad,) = torch.autograd.grad(value, pred)
            assert torch.isfinite(value)
            assert torch.isfinite(grad).all()


def test_poisson_far_below_zero_and_at_large_rates():
    loss = make_loss("poisson")
    pred = torch.tensor([[-200.0, -41.0, -39.0, 500.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 1.0, 500.0]])
    value = loss(pred, target)
    (grad,) = torch.autograd.grad(value, pred)
    expected = 200.0 + 41.0 + 39.0 + 500.0 - 500.0 * math.log(500.0)
    assert abs(float(value.detach()) / expected - 1) < 1e-5
    torch.testing.assert_close(grad[0, :3], -torch.ones(3), rtol=1e-5, atol=0)


def test_poisson_start_is_the_inverse_of_its_response():
    loss = make_loss("poisson")
    mean = torch.tensor([1e-3, 0.5, 3.0, 200.0], dtype=torch.float64)
    torch.testing.assert_close(loss.response(loss.start(mean)), mean)
    assert torch.isfinite(loss.start(torch.zeros(2))).all()
    assert torch.equal(make_loss("mse").start(mean), mean)
    assert torch.equal(make_loss("mse").response(mean), mean)


def test_half_precision_predictions_are_compared_in_single():
    target = torch.randn(64, 3)
    pred = target.to(torch.bfloat16)
    assert make_loss("mse")(pred, target).dtype == torch.float32


def test_errors():
    with pytest.raises(ConfigError, match="unknown loss 'mes'; did you mean 'mse'"):
        make_loss("mes")
    with pytest.raises(DataError, match=r"\(3, 2\).*\(3, 1\)"):
        make_loss("mse")(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(DataError, match=r"2 entries in 1 voxels.*first voxel: 1"):
        make_loss("poisson").check(np.array([[0.0, -1.0], [np.nan, -2.0], [1.0, 3.0]]))
    make_loss("poisson").check(np.array([[0.0, np.nan]]))
    make_loss("mse").check(np.array([[-1.0]]))
