"""Each readout against a slow reference in plain loops (float64, 1e-6), its gradients, and any chunk of voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout import MODES, READOUTS, make_readout

B, C, H, W, V = 3, 4, 5, 6, 5

OPTIONS = {
    "linear": {},
    "pooled": {},
    "linear pooled": {"pool": 3},
    "gaussian": {},
    "gaussian align": {"align_corners": True},
    "gaussian isotropic": {"covariance": "isotropic"},
    "gaussian integrate": {"read": "integrate", "covariance": "full"},
    "factorized": {},
    "factorized nonnegative": {
        "nonnegative": True,
        "mask_l1": 0.1,
        "smoothness": 0.3,
        "feature_l1": 0.2,
        "feature_l2": 0.1,
    },
    **{f"semantic {mode}": {"mode": mode} for mode in MODES},
    "semantic mask only": {"feature_mode": "none"},
    "semantic mixed": {"mode": "rotation", "feature_mode": "translation", "warp_l2": 0.2},
    "semantic context": {"context_shape": (3, 9, 9)},
    "attention": {"heads": 2},
    "attention groups": {"groups": [1, 0, 0, 1, 2]},
    "compression": {"channels": 2, "alpha": 0.1},
    "compression linear": {"channels": 3, "kernel": 5, "activation": "none"},
    "lowrank": {"rank": 2, "alpha": 0.1},
    "sentence_gate": {"gate_l2": 0.1},
    "sentence_gate context": {"context_shape": (3, 9, 9), "inner": "linear", "inner_options": {"pool": 3}},
    "patch_summary": {"keep": 0.3, "summaries": 2, "feature_l2": 0.1},
    "patch_summary context": {"context_shape": (3, 9, 9), "summaries": 2, "keep": 1.0},
    "codebook": {"codes": 5, "hidden": 4, "code_size": 3},
    "codebook groups": {"codes": 5, "hidden": 4, "groups": [1, 0, 0, 1, 2], "code": "relu"},
}


def build(case, seed=0, **more):
    """A readout in float64 with every parameter away from its start."""
    torch.manual_seed(seed)
    small = (
        {"warp_hidden": 8} if case.startswith("semantic") else {"key_size": 3} if case.startswith("attention") else {}
    )
    readout = make_readout(case.split()[0], (C, H, W), V, **OPTIONS[case], **small, **more).double()
    with torch.no_grad():
        for name, p in readout.named_parameters():
            p.add_(0.15 * torch.randn_like(p)) if "localization" in name else p.add_(0.3 * torch.randn_like(p))
        if case.startswith("gaussian"):
            readout.size.copy_(0.2 + 0.4 * torch.rand_like(readout.size))
            if readout.tilt is not None:
                readout.tilt.copy_(0.2 * torch.randn(V))
    readout.constrain()
    return readout.eval()


def inputs(case, seed=1):
    torch.manual_seed(seed)
    context = torch.randn(B, 3, 9, 9).double() if "context" in case else None
    return torch.randn(B, C, H, W).double(), context


# --- the slow reference -----------------------------------------------------------------------------------------------


def pixel(x, h, w):
    return x[h, w] if 0 <= h < x.shape[0] and 0 <= w < x.shape[1] else 0.0


def bilinear(x, px, py, border=False, align=False):
    """Value of map x (h, w) at position (px, py) in [-1, 1]."""
    height, width = x.shape
    col = (px + 1) / 2 * (width - 1) if align else ((px + 1) * width - 1) / 2
    row = (py + 1) / 2 * (height - 1) if align else ((py + 1) * height - 1) / 2
    if border:
        col, row = min(max(col, 0), width - 1), min(max(row, 0), height - 1)
    c0, r0 = math.floor(col), math.floor(row)
    value = 0.0
    for r, wr in ((r0, 1 - (row - r0)), (r0 + 1, row - r0)):
        for c, wc in ((c0, 1 - (col - c0)), (c0 + 1, col - c0)):
            value += wr * wc * pixel(x, r, c)
    return value


def matrix(p, mode):
    if mode == "affine":
        return np.array([[1 + p[0], p[1], p[2]], [p[3], 1 + p[4], p[5]]])
    sizes, used, part = {"rotation": 1, "translation": 2, "scale": 2, "shear": 2}, 0, {}
    for name in mode.split("_"):
        part[name] = p[used : used + sizes[name]]
        used += sizes[name]
    a = part.get("rotation", [0.0])[0]
    sx, sy = part.get("scale", [0.0, 0.0])
    hx, hy = part.get("shear", [0.0, 0.0])
    rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    square = rotation @ np.diag([np.exp(sx), np.exp(sy)]) @ np.array([[1, hx], [hy, 1]])
    return np.column_stack([square, part.get("translation", [0.0, 0.0])])


def warp(x, theta):
    height, width = x.shape
    out = np.zeros((height, width))
    for h in range(height):
        for w in range(width):
            place = np.array([(2 * w + 1) / width - 1, (2 * h + 1) / height - 1, 1.0])
            px, py = theta @ place
            out[h, w] = bilinear(x, px, py)
    return out


def head(net, u):
    hidden = np.maximum(net.first.weight.detach().numpy() @ u + net.first.bias.detach().numpy(), 0)
    return net.weight.detach().numpy() @ hidden + net.bias.detach().numpy()


def cell_means(x, cells):
    height, width = x.shape
    out = np.zeros((cells, cells))
    for i in range(cells):
        for j in range(cells):
            rows = slice(i * height // cells, -(-(i + 1) * height // cells))
            cols = slice(j * width // cells, -(-(j + 1) * width // cells))
            out[i, j] = x[rows, cols].mean()
    return out


def softmax(values):
    e = np.exp(np.asarray(values) - max(values))
    return e / e.sum()


def gated(readout, x, context):
    par = {k: p.detach().numpy() for k, p in readout.named_parameters()}
    told = x.mean((2, 3)).numpy()
    if context is not None:
        told = np.concatenate([told, context.mean((2, 3)).numpy()], 1)
    hidden = np.maximum(told @ par["first.weight"].T + par["first.bias"], 0)
    gate = 2 / (1 + np.exp(-(hidden @ par["last.weight"].T + par["last.bias"])))
    return x * torch.as_tensor(gate)[:, :, None, None]


def summarised(readout, par, x, context):
    """Summary tokens of one stimulus (C, H, W), patch by patch."""
    tokens, d = x.reshape(C, -1).T, readout.key_size**0.5
    query = par["voxel"] if context is None else par["text.weight"] @ context.mean((1, 2)) + par["text.bias"]
    scores = [query @ (par["patch.weight"] @ t + par["patch.bias"]) / d for t in tokens]
    kept = list(np.argsort(scores)[::-1][: readout.n_kept])
    rest = [p for p in range(len(tokens)) if p not in kept]
    keys = [par["key"] @ t + par["position"][p] for p, t in enumerate(tokens)]
    parts = [(scores[p], tokens[p], keys[p]) for p in kept]
    if rest:
        share = softmax([scores[p] for p in rest])
        parts.append([sum(a * part[p] for a, p in zip(share, rest)) for part in (scores, tokens, keys)])
    found = []
    for q in par["query"]:
        weight = softmax([q @ key / d - math.log1p(math.exp(-score)) for score, _, key in parts])
        found.append(sum(a * token for a, (_, token, _) in zip(weight, parts)))
    return np.array(found)


def reference(readout, x, context):
    """Responses (B, V), one stimulus, voxel, channel and place at a time."""
    if readout.name == "sentence_gate":
        return reference(readout.inner, gated(readout, x, context), None)
    x = x.numpy()
    y = np.zeros((B, V))
    par = {k: p.detach().numpy() for k, p in readout.named_parameters()}
    for b in range(B):
        if readout.name == "semantic":
            seen = x[b] if context is None else context.numpy()[b]
            net = readout.localization
            seen = np.einsum("kc,chw->khw", net.reduce.weight.detach().numpy()[..., 0, 0], seen)
            seen = seen + net.reduce.bias.detach().numpy()[:, None, None]
            if net.out != seen.shape[1:]:
                seen = np.stack([cell_means(s, net.out[0]) for s in seen])
            u = seen.ravel()
            on_masks = head(net.masks, u)
            on_maps = None if net.maps is None else head(net.maps, u)
        for v in range(V):
            total = par["bias"][v]
            if readout.name in ("linear", "pooled"):
                maps = x[b] if readout.pool is None else np.stack([cell_means(m, readout.pool) for m in x[b]])
                for k, value in enumerate(maps.ravel()):
                    total += par["weight"][v, k] * value
            elif readout.name == "compression":
                kernel, k = par["reduce.weight"], readout.reduce.kernel_size[0] // 2
                maps = np.zeros(readout.map_shape)
                for o, h, w in np.ndindex(maps.shape):
                    maps[o, h, w] = par["reduce.bias"][o]
                    for c, i, j in np.ndindex(kernel.shape[1:]):
                        maps[o, h, w] += kernel[o, c, i, j] * pixel(x[b, c], h + i - k, w + j - k)
                maps = np.maximum(maps, 0) if readout.activation == "relu" else maps
                total += par["weight"][v] @ maps.ravel()
            elif readout.name == "lowrank":
                for k in range(readout.rank):
                    total += par["loading"][v, k] * (par["component"][k] @ x[b].ravel())
            elif readout.name == "patch_summary":
                z = summarised(readout, par, x[b], None if context is None else context.numpy()[b])
                total += (par["feature"][v] * z).sum()
            elif readout.name == "codebook":
                hidden = par["first.weight"] @ x[b].ravel() + par["first.bias"]
                hidden = hidden if readout.region is None else hidden + par["region"][int(readout.group[v])]
                logits = par["last.weight"] @ np.maximum(hidden, 0) + par["last.bias"]
                use = softmax(logits) if readout.code == "softmax" else np.maximum(logits, 0)
                total += par["feature"][v] @ (use @ par["codebook"])
            elif readout.name == "attention":
                q = int(readout.group[v])
                for h in range(readout.heads):
                    logits = np.zeros(H * W)
                    for p in range(H * W):
                        key = par["key"] @ x[b].reshape(C, -1)[:, p] + par["position"][p]
                        logits[p] = par["query"][q, h] @ key / math.sqrt(readout.key_size)
                    a = np.exp(logits - logits.max())
                    a /= a.sum()
                    for c in range(C):
                        total += par["feature"][v, h, c] * (a @ x[b, c].ravel())
            elif readout.name == "gaussian" and readout.reads == "sample":
                px, py = np.clip(par["centre"][v], -1, 1)
                for c in range(C):
                    found = bilinear(x[b, c], px, py, border=True, align=readout.align_corners)
                    total += par["feature"][v, c] * found
            elif readout.name == "gaussian":
                s, t = par["size"][v], par["tilt"][v]
                root = np.array([[s[0], 0.0], [t, s[1]]])
                inverse = np.linalg.inv(root @ root.T)
                mask = np.zeros((H, W))
                for h in range(H):
                    for w in range(W):
                        d = np.array([(2 * w + 1) / W - 1, (2 * h + 1) / H - 1]) - par["centre"][v]
                        mask[h, w] = math.exp(-0.5 * d @ inverse @ d)
                mask /= mask.sum()
                for c in range(C):
                    total += par["feature"][v, c] * (mask * x[b, c]).sum()
            else:
                mask = par["mask"][v] / (math.sqrt((par["mask"][v] ** 2).sum()) + 1e-6)
                if readout.name == "semantic":
                    mask = warp(mask, matrix(on_masks[v], readout.mode))
                for c in range(C):
                    seen_map = x[b, c]
                    if readout.name == "semantic" and on_maps is not None:
                        seen_map = warp(seen_map, matrix(on_maps[c], readout.feature_mode))
                    total += par["feature"][v, c] * (seen_map * mask).sum()
            y[b, v] = total
    return y


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OPTIONS)
def test_equals_plain_loops(case):
    readout, (x, context) = build(case), inputs(case)
    found = readout(x, context).detach().numpy()
    np.testing.assert_allclose(found, reference(readout, x, context), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", OPTIONS)
def test_gradients_equal_finite_differences(case):
    readout, (x, context) = build(case), inputs(case)
    names = [n for n, _ in readout.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in readout.parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(readout, dict(zip(names, parameters)), (x, context))

    # Along random directions of all inputs at once.
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *values), atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("case", OPTIONS)
def test_no_parameter_is_dead(case):
    readout, (x, context) = build(case), inputs(case)
    if case.startswith("gaussian"):
        readout.train()  # the spread of a sampled point has a gradient in training only
    readout(x, context).square().sum().backward()
    dead = [n for n, p in readout.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not dead


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_any_chunk_gives_the_same_numbers_and_gradients(case, training):
    results = []
    for max_memory in (2**28, 1, 2000):
        readout, (x, context) = build(case, max_memory=max_memory), inputs(case)
        readout.train(training)
        torch.manual_seed(7)
        y = readout(x, context)
        (y * torch.arange(1.0, V + 1)).square().sum().backward()
        results.append([y.detach(), *(p.grad for p in readout.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["linear", "gaussian integrate", "factorized", "semantic affine", "attention"])
def test_permuting_voxels_permutes_responses(case):
    readout, (x, context) = build(case), inputs(case)
    before = readout(x, context)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for name, p in readout.named_parameters():
            if p.shape[:1] == (V,) and "maps" not in name and name != "localization.reduce.bias":
                p.copy_(p[order].clone())
    torch.testing.assert_close(readout(x, context), before[:, order])


def test_semantic_begins_as_the_factorised_readout():
    torch.manual_seed(0)
    semantic = make_readout("semantic", (C, H, W), V, init="normal")
    factorised = make_readout("factorized", (C, H, W), V, nonnegative=True)
    own = {k: v for k, v in semantic.state_dict().items() if "localization" not in k}
    factorised.load_state_dict(own)
    x = torch.randn(B, C, H, W)
    torch.testing.assert_close(semantic(x), factorised(x), rtol=1e-5, atol=1e-7)


def test_gaussian_sampling_averages_to_what_its_noise_says():
    """A map that is linear in position: the mean over samples is the value at the centre, the s.d. the slope's."""
    torch.manual_seed(0)
    x = torch.linspace(-0.95, 0.95, 20).expand(1, 1, 20, 20).repeat(20000, 1, 1, 1)
    readout = make_readout("gaussian", (1, 20, 20), 1, covariance="full")
    with torch.no_grad():
        readout.centre.fill_(0.0)
        readout.size.fill_(0.2)
        readout.feature.fill_(1.0)
    readout.train()
    with torch.no_grad():
        y = readout(x)
    assert abs(float(y.mean())) < 0.01
    assert abs(float(y.std()) - 0.2) < 0.005
    readout.eval()
    assert float(readout(x[:2]).detach().std()) == 0


@pytest.mark.parametrize("covariance", ["isotropic", "axis", "full"])
def test_gaussian_receptive_field_is_that_of_its_mask(covariance):
    readout = make_readout("gaussian", (C, 40, 40), 2, covariance=covariance, read="integrate")
    with torch.no_grad():
        readout.centre.copy_(torch.tensor([[0.2, -0.3], [-0.1, 0.4]]))
        readout.size.fill_(0.15)
    field = readout.receptive_field()
    other = make_readout("factorized", (C, 40, 40), 2)
    from neuroenc.encoders.readout._geometry import gaussian_masks

    with torch.no_grad():
        other.mask.copy_(gaussian_masks(readout.centre, readout.factor(), 40, 40))
    for name, value in other.receptive_field().items():
        torch.testing.assert_close(value, field[name].detach(), atol=2e-3, rtol=0)


def test_released_corner_convention_is_reported_in_edge_units():
    readout = make_readout("gaussian", (C, 10, 10), 1, align_corners=True)
    with torch.no_grad():
        readout.centre.copy_(torch.tensor([[1.0, -1.0]]))
    field = readout.receptive_field()
    # The centre of the last of ten pixels is at 0.9 of the way to the edge.
    assert float(field["x"]) == pytest.approx(0.9)
    assert float(field["y"]) == pytest.approx(-0.9)


def test_penalties_equal_loops():
    readout = build("factorized nonnegative")
    expected = 0.0
    for v in range(V):
        m, f = readout.masks()[v].detach().numpy(), readout.feature[v].detach().numpy()
        rough = sum((m[h + 1, w] - m[h, w]) ** 2 for h in range(H - 1) for w in range(W))
        rough += sum((m[h, w + 1] - m[h, w]) ** 2 for h in range(H) for w in range(W - 1))
        expected += 0.1 * np.abs(m).sum() + 0.3 * rough + 0.2 * np.abs(f).sum() + 0.1 * (f**2).sum()
    assert float(readout.regulariser()) == pytest.approx(expected, abs=1e-9)


def test_published_linear_penalty_is_of_norms_not_squares():
    readout = make_readout("linear", (C, H, W), V, alpha=0.5, penalty="norm").double()
    with torch.no_grad():
        readout.weight.fill_(2.0)
        readout.bias.fill_(3.0)
    expected = 0.5 * (2.0 * math.sqrt(V * C * H * W) + 3.0 * math.sqrt(V))
    assert float(readout.regulariser()) == pytest.approx(expected, rel=1e-6)


def test_a_nonnegative_mask_that_lost_everything_begins_again():
    readout = make_readout("factorized", (C, H, W), V, nonnegative=True)
    with torch.no_grad():
        readout.mask[1] = -1.0
        readout.mask[2, 0, 0] = -1.0
    readout.constrain()
    assert float(readout.mask[1].min()) > 0
    assert float(readout.mask.min()) == 0
    assert float(readout.mask[2, 0, 0]) == 0


def test_warp_spread_measures_planted_warps():
    """A head of one hidden unit whose output is known: spreads in closed form."""
    torch.manual_seed(0)
    readout = make_readout(
        "semantic",
        (1, 8, 8),
        3,
        mode="rotation_translation_scale",
        context_shape=(1, 1, 1),
        warp_hidden=1,
        warp_channels=1,
    )
    net = readout.localization
    with torch.no_grad():
        for layer in (net.reduce, net.masks.first):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        # voxel 0 turns, voxel 1 moves along x, voxel 2 shrinks
        net.masks.weight[0, 0] = 0.3
        net.masks.weight[1, 1] = 0.2
        net.masks.weight[2, 3:] = 0.1
        readout.mask.zero_()
        readout.mask[:, 3:5, 3:5] = 1.0
    context = torch.linspace(0.5, 1.5, 9).view(9, 1, 1, 1)
    spread = readout.warp_spread(torch.zeros(9, 1, 8, 8), context)
    sd = float(context.std(correction=0))
    expected = {
        "rotation": [0.3 * sd, 0, 0],
        "translation": [0, 0.2 * sd, 0],
        "scale": [0, 0, 0.1 * sd],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(spread[name].numpy(), values, atol=1e-6)


def test_moved_masks_go_where_the_spread_says():
    readout = make_readout("semantic", (1, 20, 20), 1, mode="translation", feature_mode="none")
    with torch.no_grad():
        readout.mask.zero_()
        readout.mask[0, 9:11, 9:11] = 1.0
        readout.localization.masks.bias.copy_(torch.tensor([[-0.4, 0.2]]))
    x = torch.zeros(1, 1, 20, 20)
    from neuroenc.encoders.readout._geometry import identity_grid, mask_moments, sample_stack, warp_parts

    matrices = readout.warps(x)
    moved = sample_stack(readout.masks().detach(), matrices.transpose(0, 1), identity_grid(20, 20, x)).view(1, 20, 20)
    field = mask_moments(moved.square())
    shift = warp_parts(matrices)["translation"][0, 0]
    assert float(field["x"]) == pytest.approx(float(shift[0]), abs=1e-4) == pytest.approx(0.4, abs=1e-4)
    assert float(field["y"]) == pytest.approx(float(shift[1]), abs=1e-4) == pytest.approx(-0.2, abs=1e-4)


@pytest.mark.parametrize("name", sorted(READOUTS))
def test_weights_are_labelled_and_fields_of_each_voxel(name):
    readout = make_readout(name, (C, H, W), V)
    weights = readout.weights()
    assert weights.sizes["voxel"] == V
    assert weights.intercept.dims == ("voxel",)
    field = readout.receptive_field()
    if name in ("pooled", "codebook", "patch_summary"):
        assert field is None
    else:
        assert {k: tuple(v.shape) for k, v in field.items()} == dict.fromkeys(("x", "y", "size"), (V,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("factorised", {}, "factorized"),
        ("semantic", {"mode": "rotate"}, "rotation"),
        ("semantic", {"warp_12": 1.0}, "warp_l2"),
        ("gaussian", {"covariance": "ful"}, "full"),
        ("gaussian", {"read": "integrate", "align_corners": True}, "align_corners"),
        ("linear", {"pool": 9}, "choose 1 to 5"),
        ("attention", {"groups": [0, 2, 2, 2, 0]}, "none left out"),
    ],
)
def test_bad_settings_say_what_is_legal(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_readout(name, (C, H, W), V, **options)


def test_maps_of_another_shape_are_refused():
    readout = make_readout("semantic", (C, H, W), V, context_shape=(3, 9, 9))
    with pytest.raises(DataError, match="this readout reads"):
        readout(torch.zeros(1, C, H, W + 1))
    with pytest.raises(DataError, match="pass context="):
        readout(torch.zeros(1, C, H, W))
