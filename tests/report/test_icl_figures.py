"""Figures of in-context encoders show the numbers they were given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli
from neuroenc.report import plot_confusion, plot_heads, plot_support_curves, plot_top_support, plot_weight_colours


@pytest.fixture
def curve():
    rows = [
        (m, g, s, 0.1 * i + 0.001 * s, 0.1 * i, 0.1 * i + 0.002 * s)
        for i, m in enumerate(("ridge", "anchored"))
        for g in ("all", "FFA", "PPA", "V1", "V2")
        for s in (20, 50, 200)
    ]
    return pd.DataFrame(rows, columns=["method", "group", "size", "explained_variance", "low", "high"])


def test_curves_have_a_panel_a_group_and_a_line_a_method(curve):
    figure = plot_support_curves(curve, groups=["FFA", "all"], reference={"all": 0.5})
    first, second = figure.axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("FFA", "all")
    lines = {line.get_label(): line for line in first.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["ridge", "anchored"]
    np.testing.assert_allclose(lines["anchored"].get_xydata(), [[20, 0.12], [50, 0.15], [200, 0.3]])
    assert first.get_xscale() == "log"
    assert any(np.allclose(line.get_ydata(), 0.5) for line in second.lines)
    assert not any(np.allclose(line.get_ydata(), 0.5) for line in first.lines)
    whole = plot_support_curves(curve)
    assert len([a for a in whole.axes if a.get_visible()]) == 5
    with pytest.raises(ConfigError, match="PPA"):
        plot_support_curves(curve, groups=["PPB"])


def test_mosaic_shows_the_named_images():
    grey = np.stack([np.full((6, 6, 3), 40 * k, np.uint8) for k in range(4)])
    pictures = Stimuli([f"s{k}" for k in range(4)], images=grey)
    table = pd.DataFrame(
        {
            "group": ["FFA"] * 4 + ["PPA"] * 4,
            "side": ["top", "top", "bottom", "bottom"] * 2,
            "rank": [0, 1, 0, 1] * 2,
            "stimulus": ["s2", "s0", "s3", "s1", "s1", "s2", "s0", "s3"],
            "attention": np.linspace(3, 0.1, 8),
        }
    )
    figure = plot_top_support(table, pictures, groups=["PPA"])
    shown = [int(axes.images[0].get_array().max()) // 40 for axes in figure.axes]
    assert shown == [1, 2, 0, 3]
    assert figure.axes[0].texts[0].get_text() == f"{table['attention'][4]:.1f}×"
    assert len(plot_top_support(table, pictures).axes) == 8


def test_colours_reach_the_surface():
    coords = {
        "vertex": ("voxel", [3, 70, 71]),
        "hemi": ("voxel", ["L", "L", "L"]),
    }
    values = np.array([[1.0, 0.0, 0.0], [0.2, 0.4, 1.0], [np.nan] * 3])
    rgb = xr.DataArray(values, dims=("voxel", "channel"), coords=coords)
    figure = plot_weight_colours(rgb, views=["lateral", "medial", "dorsal", "ventral"])
    painted = np.concatenate([c.get_facecolors() for axes in figure.axes for c in axes.collections])[:, :3]
    coloured = painted[np.ptp(painted, axis=1) > 0.1]
    assert len(coloured)
    assert all(np.abs(values[:2] - c).max(axis=1).min() < 1 / 15 for c in coloured)
    with pytest.raises(DataError, match="vertex"):
        plot_weight_colours(rgb.drop_vars("vertex"))
    with pytest.raises(DataError, match="channels"):
        plot_weight_colours(rgb[:, :2])


def test_matrices_hold_the_values():
    table = pd.DataFrame(
        {
            "face": [0.9, 0.1],
            "place": [0.1, 0.9],
            "n_voxels": [30, 12],
            "accuracy": 0.9,
            "null_accuracy": 0.5,
            "p": 0.01,
        },
        index=["FFA", "PPA"],
    )
    figure = plot_confusion(table)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.9, 0.1], [0.1, 0.9]])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["FFA  (30)", "PPA  (12)"]
    heads = xr.DataArray(np.arange(24.0).reshape(2, 3, 4) - 5, dims=("a", "layer", "head"), coords={"a": ["x", "y"]})
    figure = plot_heads(heads[1:])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), heads.values[1])
    assert figure.axes[0].images[0].get_clim() == (0, 18)
    assert plot_heads(heads).axes[0].images[0].get_clim() == (-18, 18)
    with pytest.raises(DataError, match="layer"):
        plot_heads(heads.rename(layer="depth"))
