"""The reader without gradients gives the model's own numbers, and steps aside where it cannot."""

import pytest
import torch

from neuroenc.encoders.incontext import _condition as _fast, make_model

torch.set_num_threads(1)


def setting(form="published", length_scale="log_n", support=20, **changes):
    shape = {"n_features": 8, "dim": 20, "depth": 3, "hidden": 24, "heads": 4, "length_scale": length_scale}
    model = make_model("small", form=form, **{**shape, **changes}).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, torch.randn(support, 8), torch.randn(5, support)


def same(a, b, tolerance=1e-5):
    for one, other in zip(a, b):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["published", "anchored"])
@pytest.mark.parametrize("length_scale", ["log_n", "none", "learned"])
@pytest.mark.parametrize("rows", [1, 7, 512])
def test_equals_the_model(monkeypatch, form, length_scale, rows):
    monkeypatch.setattr(_fast, "_ROWS", rows)
    model, x, y = setting(form, length_scale)
    reader = _fast.FastReader(model)
    with torch.inference_mode():
        # Supports of other sizes scale queries anew, and back.
        for n in (20, 1, 9, 20):
            same(reader(x[:n], y[:, :n]), model(x[:n], y[:, :n]))
        same(reader(x.expand(5, -1, -1), y), model(x, y))


def test_scale_after_the_projection_and_a_single_block():
    model, x, y = setting(depth=1)
    model.stack.blocks[0].attention.scale.before_projection = False
    with torch.inference_mode():
        same(_fast.FastReader(model)(x, y), model(x, y))


def test_masks_weights_and_taps_go_through_the_model():
    model, x, y = setting()
    reader = _fast.FastReader(model)
    gone = y.clone()
    gone[0, 3] = torch.nan
    with torch.inference_mode():
        same(reader(x, gone), model(x, gone))
        weight = torch.rand(20).log()
        same(reader(x, y, weight), model(x, y, weight))
        seen = []
        model.stack.blocks[1].attention.tap = lambda heads, weights: seen.append(1) or 0 * heads
        same(reader(x, y), model(x, y))
        assert len(seen) == 2
    with torch.enable_grad():
        assert reader(x, y).coef.requires_grad


def test_half_precision_is_near_and_leaves_the_model_alone():
    model, x, y = setting(dim=64, heads=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.inference_mode():
        exact = model(x, y).coef
        near = _fast.FastReader(model, half=True)(x, y).coef
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
