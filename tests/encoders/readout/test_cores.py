"""Cores: equivariance, equal parameters, nothing dead, frozen ones really frozen."""

from __future__ import annotations

import copy

import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout.cores import CORES, FrozenCore, make_core
from neuroenc.encoders.readout.cores._equivariant import FieldNorm, GaussianPool, GroupConv, LiftConv, ring_basis

# Fixed before measuring: how far a core may be from equivariant to 45 degrees, relative to what it gives; a plain
# core must be further off than three times that.
APPROXIMATE = 0.2


def turn(fields, turns):
    """Regular fields (B, 8 F, H, W) turned by 90 degrees: places turn, and orientations shift by two."""
    b, c, h, w = fields.shape
    turned = fields.rot90(turns, (2, 3)).reshape(b, c // 8, 8, h, w)
    return turned.roll(2 * turns, dims=2).reshape(b, c, h, w)


def lively(core, seed=0):
    """Statistics and gains away from their start, evaluation mode."""
    torch.manual_seed(seed)
    for part in core.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.2)
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    return core.eval()


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize(
    "layer",
    [GroupConv(2, 3, 5), GroupConv(2, 3, 3, 0), FieldNorm(2), GaussianPool(2), GaussianPool(1)],
    ids=["conv", "conv unpadded", "norm", "pool", "smooth"],
)
def test_layers_turn_exactly_by_90_degrees(layer, size, turns):
    torch.manual_seed(0)
    x = torch.randn(2, 16, size, size)
    layer = lively(layer)
    torch.testing.assert_close(layer(turn(x, turns)), turn(layer(x), turns), atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_lifting_and_the_whole_core_turn_exactly_by_90_degrees(turns):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 48, 48)
    for core in (LiftConv(3, 4, 5), lively(make_core("equivariant", (3, 48, 48), seed=1))):
        with torch.no_grad():
            torch.testing.assert_close(core(x.rot90(turns, (2, 3))), turn(core(x), turns), atol=1e-5, rtol=0)


def blurred(n, size, seed):
    """Smooth pictures inside a disc, as pictures turned by 45 degrees have to be."""
    torch.manual_seed(seed)
    spectrum = torch.fft.fft2(torch.randn(n, 3, size, size))
    f = torch.fft.fftfreq(size)
    spectrum = spectrum * torch.exp(-(f[:, None] ** 2 + f**2) / (2 * 0.08**2))
    x = torch.fft.ifft2(spectrum).real
    axis = torch.linspace(-1, 1, size)
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    return x / x.std() * torch.sigmoid((0.65 - radius) * 25)


def rotate45(x):
    a = torch.tensor(torch.pi / 4)
    # Counter-clockwise as seen, y down: a place is read from the place turned back.
    theta = torch.stack([torch.stack([a.cos(), -a.sin(), a * 0]), torch.stack([a.sin(), a.cos(), a * 0])])
    grid = torch.nn.functional.affine_grid(theta.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, mode="bicubic", align_corners=False)


def error45(core, shift):
    x = blurred(8, 65, 0)
    with torch.no_grad():
        base = core(torch.zeros_like(x))
        turned, plain = core(rotate45(x)) - base, core(x) - base
    expected = rotate45(plain)
    if shift:
        b, c, h, w = expected.shape
        expected = expected.reshape(b, c // 8, 8, h, w).roll(1, dims=2).reshape(b, c, h, w)
    return float((turned - expected).norm() / turned.norm())


def test_45_degrees_are_approximate_and_a_plain_core_is_far_off():
    equivariant = error45(lively(make_core("equivariant", (3, 65, 65), seed=0)), shift=True)
    plain = error45(lively(make_core("plain", (3, 65, 65), seed=0)), shift=False)
    assert equivariant < APPROXIMATE, (equivariant, plain)
    assert plain > 3 * APPROXIMATE, (equivariant, plain)


def test_filters_turn_to_the_bit():
    basis = ring_basis(5)
    for o in range(8):
        assert torch.equal(basis[(o + 2) % 8], basis[o].rot90(1, (1, 2)))


@pytest.mark.parametrize("fields", [4, 8, 12])
def test_twins_have_equal_parameters_and_maps(fields):
    pair = [make_core(name, (3, 64, 64), fields=fields) for name in ("equivariant", "plain")]
    counts = [core.n_parameters for core in pair]
    assert abs(counts[0] - counts[1]) <= 0.02 * counts[0]
    assert pair[0].out_shape == pair[1].out_shape
    assert counts[0] == sum(p.numel() for p in pair[0].parameters())


@pytest.mark.parametrize("name", sorted(CORES))
def test_every_parameter_has_a_gradient_and_shapes_are_as_said(name):
    core = make_core(name, (3, 32, 32) if name != "grid" else (16, 8, 8), seed=0)
    y = core(torch.randn(4, *core.in_shape))
    assert tuple(y.shape[1:]) == core.out_shape
    (y * torch.randn_like(y)).sum().backward()
    dead = [n for n, p in core.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not dead


@pytest.mark.parametrize("name", sorted(CORES))
def test_frozen_is_frozen(name):
    core = make_core(name, (3, 32, 32) if name != "grid" else (16, 8, 8), frozen=True)
    assert isinstance(core, FrozenCore)
    before = copy.deepcopy(core.state_dict())
    core.train()
    x = 5 + torch.randn(8, *core.in_shape)
    y = [core(x) for _ in range(3)]
    assert not y[0].requires_grad
    assert torch.equal(y[0], y[2])
    assert core.n_parameters == 0
    after = core.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_core_that_is_not_frozen_does_drift():
    core = make_core("plain", (3, 32, 32)).train()
    before = copy.deepcopy(core.state_dict())
    core(5 + torch.randn(8, 3, 32, 32))
    assert any(not torch.equal(v, before[k]) for k, v in core.state_dict().items())


def test_seeds_decide_the_weights_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (make_core("equivariant", (3, 32, 32), seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(a.parameters(), b.parameters(), c.parameters()))
    assert all(torch.equal(x, y) for x, y, _ in pairs)
    assert any(not torch.equal(x, z) for x, _, z in pairs)


def test_bad_settings_and_inputs_say_what_is_legal():
    with pytest.raises(ConfigError, match="equivariant"):
        make_core("equivarient", (3, 32, 32))
    with pytest.raises(ConfigError, match="fields"):
        make_core("equivariant", (3, 32, 32), field=3)
    with pytest.raises(ConfigError, match="too small"):
        make_core("equivariant", (3, 2, 2), preset="published")
    core = make_core("plain", (3, 32, 32))
    with pytest.raises(DataError, match="resize"):
        core(torch.zeros(1, 3, 33, 32))
    with pytest.raises(DataError, match="floating point"):
        core(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
