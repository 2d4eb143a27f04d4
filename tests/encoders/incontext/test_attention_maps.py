"""Attention to the support, sinks and heads, against models whose answer is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import (
    SyntheticEpisodes,
    circuit_overlap,
    head_importance,
    make_model,
    sink_report,
    support_attention,
    top_support,
    train_stage,
)

E, S, V = 8, 24, 10


@pytest.fixture(scope="module")
def model():
    model = make_model("small", n_features=E, dim=16, depth=3, hidden=32, form="published").eval()
    with torch.no_grad():  # so that attention is far from uniform
        for block in model.stack.blocks:
            block.attention.in_proj.weight *= 2
    return model


@pytest.fixture(scope="module")
def support():
    rng = np.random.default_rng(0)
    x = make_features(rng.standard_normal((S, E)), stimulus=[f"img{k}" for k in range(S)])
    y = xr.DataArray(
        rng.standard_normal((S, V)),
        dims=("stimulus", "voxel"),
        coords={"stimulus": x["stimulus"].values, "roi": ("voxel", ["FFA"] * 4 + ["PPA"] * 6)},
    )
    return x, y


def test_rows_are_those_of_the_whole_matrix(model, support):
    x, y = support
    wide = torch.tensor(x.values, dtype=torch.float32)
    whole = model.read(wide, torch.tensor(y.values.T.copy(), dtype=torch.float32), None, weights_of=slice(None))[1]
    found = support_attention(model, x, y, per_head=True)
    for layer, w in enumerate(whole):
        row = w[:, :, 0].detach().numpy()
        np.testing.assert_allclose(found[layer].values, row[..., 4:].transpose(1, 0, 2), atol=1e-6)
        np.testing.assert_allclose(found["registers"][layer].values, row[..., :4].sum(-1).T, atol=1e-6)
    mean = support_attention(model, x, y)
    np.testing.assert_allclose(mean, found.mean("head"), atol=1e-6)
    assert mean["roi"].values.tolist() == y["roi"].values.tolist()
    assert mean["stimulus"].values.tolist() == x["stimulus"].values.tolist()


def test_blocks_of_voxels_do_not_matter(model, support):
    whole = support_attention(model, *support)
    xr.testing.assert_allclose(whole, support_attention(model, *support, max_bytes=1), atol=1e-6)
    a, b = sink_report(model, *support), sink_report(model, *support, max_bytes=1)
    xr.testing.assert_allclose(a, b, atol=1e-6)


def test_encoder_knows_its_support(model, support):
    x, y = support
    fitted = InContextEncoder(model, device="cpu", response_scale="as-is").fit(x, y)
    np.testing.assert_allclose(support_attention(fitted), support_attention(model, x, y), atol=1e-6)
    scaled = InContextEncoder(model, device="cpu", response_scale="support").fit(x, 50 * y + 3)
    z = (y.values - y.values.mean(0)) / y.values.std(0)
    np.testing.assert_allclose(support_attention(scaled), support_attention(model, x, z), atol=1e-5)
    assert "roi" in support_attention(scaled).coords


def test_missing_responses_are_not_looked_at(model, support):
    x, y = support
    y = y.copy()
    y[3, :5] = np.nan
    found = support_attention(model, x, y)
    assert (found.values[:, :5, 3] == 0).all()
    assert (found.values[:, 5:, 3] > 0).all()
    less = np.delete(np.arange(S), 3)
    without = support_attention(model, x[less], y[less, :5])
    np.testing.assert_allclose(found.values[:, :5][..., less], without, atol=1e-6)


def planted_matcher():
    """A model whose register attends to images of large response: keys hold the response, values are free."""
    model = make_model("small", n_features=E, dim=16, depth=1, heads=1, hidden=4, form="published").eval()
    with torch.no_grad():
        for p in model.early.parameters():
            p.zero_()
        model.early.bypass.weight[0, -1] = 1.0
        model.early.bypass.weight[1, -1] = -1.0  # token = (y, -y, 0, ...): its norm keeps y's sign
        attention = model.stack.blocks[0].attention
        attention.in_proj.weight.zero_()
        attention.in_proj.bias.zero_()
        attention.in_proj.bias[0] = 4.0  # every query asks along the first channel
        attention.in_proj.weight[16, 0] = 1.0
    return model


def test_top_images_are_those_that_drive_the_region():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((S, E))
    liked = {"FFA": [2, 5, 7], "PPA": [11, 3, 0]}
    labels = np.array(["FFA"] * 5 + ["PPA"] * 5)
    y = -1 + 0.01 * rng.standard_normal((S, 10))
    for roi, images in liked.items():
        y[np.ix_(images, labels == roi)] = 1.0
    attention = support_attention(planted_matcher(), x, y).assign_coords(roi=("voxel", labels))
    attention = attention.assign_coords(stimulus=("support", [f"s{k}" for k in range(S)]))
    table = top_support(attention, y, k=3)
    for roi, images in liked.items():
        top = table[(table["group"] == roi) & (table["side"] == "top")]
        assert set(top["support"]) == set(images)
        assert set(top["stimulus"]) == {f"s{k}" for k in images}
        assert (top["response"] == 1).all()
        assert (top["attention"] > 3).all()
        bottom = table[(table["group"] == roi) & (table["side"] == "bottom")]
        assert bottom["attention"].max() < 0.2
    whole = top_support(attention, by=None, k=6)
    assert set(whole[whole["side"] == "top"]["support"]) == {0, 2, 3, 5, 7, 11}
    with pytest.raises(ConfigError, match="roi"):
        top_support(attention, by="rio")
    with pytest.raises(ConfigError, match="k=99"):
        top_support(attention, k=99)


def test_sinks_are_found_and_registers_counted(model):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((S, E)), -1 + 0.01 * rng.standard_normal((S, V))
    y[9] = 1.0  # one image that every voxel attends to
    report = sink_report(planted_matcher(), x, y)
    assert report["common_image"].item() == 9
    assert report["common"].item() == pytest.approx(report["largest"].item(), abs=1e-6)
    assert report["largest"].item() > 0.5
    assert report["sinks"].item() == 1
    assert report["effective"].item() < 5
    found = support_attention(model, x, y, per_head=True)
    other = sink_report(model, x, y)
    np.testing.assert_allclose(other["registers"], found["registers"].mean("voxel"), atol=1e-6)
    np.testing.assert_allclose(other["largest"], found.max("support").mean("voxel"), atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    source = SyntheticEpisodes(rng.standard_normal((800, 4)).astype(np.float32), ceiling=(0.7, 0.9))
    model = make_model("small", n_features=4, dim=32, depth=2, heads=4, hidden=32, form="published")
    train_stage(
        model,
        source,
        "pretrain",
        support=(30, 30),
        voxels=64,
        query=40,
        max_steps=400,
        evaluate_every=200,
        lr=3e-3,
        device="cpu",
    )
    return model, source


def test_importance_is_the_error_without_a_head(model):
    """Against the model run with that head cut out of the output projection."""
    rng = np.random.default_rng(4)
    x, y, xq, yq = (rng.standard_normal(s) for s in ((S, E), (S, V), (12, E), (12, V)))
    found = head_importance(model, x, y, xq, yq)
    fitted = InContextEncoder(model, device="cpu", response_scale="as-is").fit(x, y)
    np.testing.assert_allclose(found["clean"], ((fitted.predict(xq) - yq) ** 2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found, head_importance(model, x, y, xq, yq, max_bytes=1), atol=1e-5)
    layer, head = (int(v) for v in np.unravel_index(int(found.mean("voxel").values.argmax()), found.shape[:2]))
    wide = 16 // found.sizes["head"]
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut.stack.blocks[layer].attention.out_proj.weight[:, head * wide : (head + 1) * wide] = 0
    without = InContextEncoder(cut, device="cpu", response_scale="as-is").fit(x, y)
    error = ((without.predict(xq) - yq) ** 2).mean(0)
    np.testing.assert_allclose(found.values[layer, head], error - found["clean"], atol=1e-4)


@pytest.mark.slow
def test_heads_that_matter_are_shared_by_voxels_alike(trained):
    model, source = trained
    e = source.draw(np.random.default_rng(4), 60, 30, 100)
    found = head_importance(model, e.x.numpy(), e.y.numpy().T, e.xq.numpy(), e.yq.numpy().T)
    assert found.mean("voxel").max() > 0.02
    halves = found.assign_coords(roi=("voxel", np.arange(60) % 2))
    shared = circuit_overlap(halves, top=3)
    assert shared["overlap"].sel(a="0", b="1") >= 0.5
    assert shared["correlation"].sel(a="0", b="1") > 0.8
    assert float(shared["chance"]) < 0.3


def test_disjoint_circuits_do_not_overlap():
    values = np.zeros((2, 4, 6))
    values[0, :2, :3], values[1, 2:, 3:] = 1.0, 1.0
    table = xr.DataArray(values, dims=("layer", "head", "voxel"), coords={"roi": ("voxel", list("aaabbb"))})
    shared = circuit_overlap(table, top=2)
    np.testing.assert_array_equal(shared["overlap"], np.eye(2))
    with pytest.raises(ConfigError, match="top=9"):
        circuit_overlap(table, top=9)


def test_shapes_are_checked(model, support):
    x, y = support
    with pytest.raises(DataError, match="queries have shape"):
        head_importance(model, x, y, x, y[:, :3])
    with pytest.raises(DataError, match="features have 5 rows"):
        support_attention(model, x[:5], y)
    with pytest.raises(ConfigError, match="needed"):
        support_attention(model)
    with pytest.raises(ConfigError, match="neither"):
        support_attention("world", x, y)
