"""Tables and figures for notebooks."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.report import frequent_words, plot_accuracy, plot_mosaic, plot_surface, roi_summary
from neuroenc.report._style import figure_png
from neuroenc.report.brain._mesh import face_values, inflated_mesh
from neuroenc.report.brain._paint import Painter


def test_roi_summary_agrees_with_a_plain_computation(analysis):
    table = roi_summary(analysis.scores).set_index("roi")
    scores = analysis.scores
    for roi in ("V1", "FFA", "PPA"):
        mask = np.array([roi in x.split(";") for x in scores.roi.values])
        assert table.loc[roi, "n_voxels"] == mask.sum()
        assert table.loc[roi, "median_r"] == pytest.approx(np.median(scores.r.values[mask]))
        assert table.loc[roi, "median_ceiling_r"] == pytest.approx(np.median(scores.noise_ceiling_r.values[mask]))
    assert list(table.index)[:3] == ["V1", "V2", "hV4"]


def test_ceiling_conventions_are_not_mixed():
    scores = xr.Dataset({"r": ("voxel", [0.4, 0.4]), "noise_ceiling_r2": ("voxel", [0.64, 0.64])})
    row = roi_summary(scores).iloc[0]
    assert row["median_ceiling_r"] == pytest.approx(0.8)
    assert row["median_r_normalised"] == pytest.approx(0.5)


def test_missing_scores_are_left_out_of_medians_not_counted_as_zero():
    scores = xr.Dataset({"r": ("voxel", [0.4, np.nan, 0.6]), "noise_ceiling_r": ("voxel", [0.8, 0.8, 0.0])})
    row = roi_summary(scores).iloc[0]
    assert (row["roi"], row["n_voxels"]) == ("all voxels", 3)
    assert row["median_r"] == pytest.approx(0.5)
    assert row["median_r_normalised"] == pytest.approx(0.5)


def test_words_count_once_per_voxel_and_only_best_captions():
    captions = pd.DataFrame(
        {
            "voxel": [1, 1, 2, 3],
            "rank": [1, 0, 0, 0],
            "caption": ["a cat", "dog dog dog", "The Dog and a façade", ""],
        }
    )
    assert frequent_words(captions) == [("dog", 1.0), ("façade", 0.5)]


def test_accuracy_figure_shows_every_roi_at_its_median(analysis):
    figure = plot_accuracy(analysis.scores)
    strips, scatter = figure.axes
    table = roi_summary(analysis.scores)
    assert len(strips.get_yticklabels()) == len(table)
    drawn = {line.get_xdata()[0] for line in strips.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2}
    np.testing.assert_allclose(sorted(drawn), sorted(table["median_r"]), rtol=1e-6)
    assert scatter.get_xlabel().startswith("noise ceiling")


def test_figures_survive_strange_names_and_many_voxels():
    rng = np.random.default_rng(0)
    n = 6000
    roi = np.array([f"$area_{k}^{{" for k in rng.integers(0, 40, n)])
    scores = xr.Dataset(
        {"r": ("voxel", rng.random(n)), "noise_ceiling_r": ("voxel", rng.random(n))}, coords={"roi": ("voxel", roi)}
    )
    figure = plot_accuracy(scores)
    assert len(figure.axes[0].get_yticklabels()) == 24
    assert figure_png(figure)[:4] == b"\x89PNG"


def test_lone_vertex_colours_its_own_triangles_only():
    faces = inflated_mesh("L")[1]
    values = np.full(10242, np.nan)
    values[17] = 0.25
    painted = face_values(values, faces)
    np.testing.assert_array_equal(np.isfinite(painted), (faces == 17).any(axis=1))
    assert set(painted[np.isfinite(painted)]) == {0.25}


def test_angles_are_averaged_on_the_circle():
    faces = np.array([[0, 1, 2], [3, 3, 4], [5, 5, 5]])
    angles = np.array([170.0, -170.0, np.nan, 80.0, 110.0, np.nan])
    np.testing.assert_allclose(np.abs(face_values(angles, faces, (-180, 180))[:2]), [180, 90], atol=0.4)
    assert np.isnan(face_values(angles, faces, (-180, 180))[2])
    assert Painter(angles[:2], "twilight", (-180, 180)).cycle == (-180, 180)
    assert Painter(angles[:2], "viridis", (-180, 180)).cycle is None


def test_surface_paints_left_values_left():
    left = plot_surface([1.0], [4000], ["L"], views=["lateral"], vmin=0, vmax=1)
    panels = {t.get_text(): axes for axes in left.axes for t in axes.texts}
    painted = {
        name: bool((np.ptp(panels[name].collections[0].get_facecolors()[:, :3], axis=1) > 0.05).any())
        for name in ("L lateral", "R lateral")
    }
    back = plot_surface([1.0], [4000], ["L"], views=["medial"], vmin=0, vmax=1)
    seen = [(np.ptp(a.collections[0].get_facecolors()[:, :3], axis=1) > 0.05).any() for a in back.axes[:1]]
    assert painted["L lateral"] != bool(seen[0])
    assert not painted["R lateral"]


def test_mosaic_keeps_left_on_the_left_whatever_the_affine():
    # i runs from right to left in this image, so index 0 is the rightmost voxel.
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    figure = plot_mosaic([1.0, 0.0], [[0, 1, 0], [4, 1, 0]], affine=affine, volume_shape=(5, 3, 1), vmin=0, vmax=1)
    pixels = np.asarray(figure.axes[0].images[0].get_array())
    coloured = np.argwhere(pixels[..., 3] > 0)
    right = pixels[tuple(coloured[np.argmax(coloured[:, 1])])]
    left = pixels[tuple(coloured[np.argmin(coloured[:, 1])])]
    assert right[:3].sum() > left[:3].sum()  # viridis: 1 is bright yellow, 0 dark violet


def test_bad_places_and_views_are_named():
    with pytest.raises(DataError, match=r"vertices 20000\.\.20000 of hemisphere R do not fit fsaverage5"):
        plot_surface([0.1, 0.2], [1, 20000], ["L", "R"])
    with pytest.raises(DataError, match=r"hemi holds \['X'\]"):
        plot_surface([0.1], [1], ["x"])
    with pytest.raises(ConfigError, match="did you mean 'lateral'"):
        plot_surface([0.1], [1], ["L"], views=["laterl"])
    with pytest.raises(DataError, match="outside a volume of shape"):
        plot_mosaic([0.1], [[5, 0, 0]], affine=np.eye(4), volume_shape=(5, 5, 5))


def test_slices_stay_in_their_places_under_a_users_layout():
    ijk = np.argwhere(np.ones((4, 4, 3)))
    place = {"ijk": ijk, "affine": np.eye(4), "volume_shape": (4, 4, 3)}
    plain = plot_mosaic(np.arange(48.0), **place)
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        own = plot_mosaic(np.arange(48.0), **place)
        figure_png(own)
    assert [a.get_position().bounds for a in own.axes] == [a.get_position().bounds for a in plain.axes]
