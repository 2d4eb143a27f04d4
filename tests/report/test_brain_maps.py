"""Maps with opacity, outlines, the flat cortex, anatomy under slices."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.path import Path

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.report import plot_mosaic, plot_surface
from neuroenc.report._style import figure_png
from neuroenc.report.brain._mesh import borders, flat_mesh, inflated_mesh, slice_edges
from neuroenc.report.brain._paint import CORTEX, Painter
from neuroenc.report.brain._surface import _parts


def _patch(centre: int, rings: int, hemi: str = "L") -> np.ndarray:
    """Vertices within some edges of another one."""
    faces = inflated_mesh(hemi)[1]
    found = {centre}
    for _ in range(rings):
        found |= set(faces[np.isin(faces, list(found)).any(axis=1)].ravel().tolist())
    return np.array(sorted(found))


def _labelled(values, vertex, **more):
    coords = {"vertex": ("voxel", vertex), "hemi": ("voxel", ["L"] * len(vertex)), "voxel": np.arange(len(vertex))}
    return xr.DataArray(values, dims="voxel", name="r", coords={**coords, **more})


def _colours(axes) -> np.ndarray:
    return next(c for c in axes.collections if isinstance(c, PolyCollection)).get_facecolors()


def test_opacity_mixes_the_colour_with_the_cortex():
    patch = _patch(4000, 2)
    values = np.full(len(patch), 1.0)
    figures = {
        a: plot_surface(
            values,
            patch,
            ["L"] * len(patch),
            alpha=np.full(len(patch), a),
            alpha_range=(0, 1),
            vmin=0,
            vmax=1,
            mesh="flat",
            cmap="plasma",
        )
        for a in (0.0, 0.5, 1.0)
    }
    bare, half, full = (_colours(figures[a].axes[0]) for a in (0.0, 0.5, 1.0))
    painted = np.abs(full - bare).max(axis=1) > 1e-6
    xy, faces, _ = flat_mesh("L")
    drawn = np.array([path.vertices[:3] for path in figures[1.0].axes[0].collections[0].get_paths()])
    np.testing.assert_allclose(drawn[painted], xy[faces[np.isin(faces, patch).any(axis=1)]])
    np.testing.assert_allclose(half, (bare + full) / 2, atol=1e-9)
    np.testing.assert_allclose(
        full[painted][:, :3], np.tile(matplotlib.colormaps["plasma"](1.0)[:3], (painted.sum(), 1))
    )


def test_the_legend_holds_the_colours_of_the_map():
    """Every number's colour stands in the plane at the number's place, read off through the axes."""
    rng = np.random.default_rng(1)
    first, second = rng.random(50) * 3, rng.random(50) - 0.2
    patch = _patch(4000, 4)[:50]
    figure = plot_surface(first, patch, ["L"] * 50, alpha=second, alpha_range=(0, 0.8), mesh="flat")
    axes = figure.axes[-1]
    image = axes.images[0].get_array()
    (x0, x1, y0, y1), (rows, columns) = axes.images[0].get_extent(), image.shape[:2]
    assert (x0, y0) == (0, 0)
    assert (x1, y1) == (pytest.approx(first.max()), pytest.approx(0.8))
    painter = Painter(first, opacity=(second, (0, 0.8), ""))
    rgba = painter.colours(painter.numbers, painter.alpha)
    rgb = rgba[:, :3] * rgba[:, 3:] + CORTEX * (1 - rgba[:, 3:])
    shown = image[
        (np.clip(second, 0, 0.8) / 0.8 * (rows - 1)).round().astype(int),
        (first / x1 * (columns - 1)).round().astype(int),
    ]
    np.testing.assert_allclose(np.asarray(shown), rgb, atol=0.03)
    assert axes.get_yticklabels()[0].get_text().startswith("≤")  # some lie below the range, and it is said


def test_outlines_separate_inside_from_outside():
    """Each border is a closed line around its part, half way between the vertices inside and those outside."""
    xy, faces, on = flat_mesh("L")
    far = np.linalg.norm(xy - xy[on].mean(axis=0), axis=1)
    middle, other = np.flatnonzero(on)[[far[on].argmin(), np.abs(far[on] - 60).argmin()]]
    inside = np.zeros(10242, bool)
    inside[_patch(int(middle), 5)] = True
    inside[middle] = False  # a hole
    inside[_patch(int(other), 2)] = True
    lines = borders(Figure().add_subplot(), xy, faces, inside)
    assert len(lines) == 3  # two borders and the hole
    assert all(np.array_equal(line[0], line[-1]) for line in lines)
    around = [Path(line).contains_points(xy[on]) for line in lines]
    np.testing.assert_array_equal(np.sum(around, axis=0) % 2 == 1, inside[on])
    assert len(_parts(inside, faces)) == 1  # the small part is less than a quarter


def test_a_flat_outline_ends_at_the_cuts():
    xy, faces, on = flat_mesh("L")
    inside = np.zeros(len(xy), bool)
    near = np.argsort(np.linalg.norm(inflated_mesh("L")[0] - inflated_mesh("L")[0][~on].mean(axis=0), axis=1))[:1500]
    inside[near] = True
    assert (~on[near]).any()
    for line in borders(Figure().add_subplot(), xy, faces, inside & on):
        assert np.linalg.norm(np.diff(line, axis=0), axis=1).max() < 12  # mm: no line over the page


@pytest.mark.parametrize("mesh", ["flat", "inflated"])
def test_regions_are_outlined_and_named(mesh):
    patch = _patch(4000, 4)
    core = np.isin(patch, _patch(4000, 2))
    r = _labelled(np.linspace(0, 1, len(patch)), patch, roi=("voxel", np.where(core, "FFA;OFA", "")))
    figure = plot_surface(r, rois=["FFA"], mesh=mesh)
    drawn = [
        c for a in figure.axes[:-1] for c in a.collections if isinstance(c, LineCollection) and len(c.get_segments())
    ]
    assert drawn
    names = [t.get_text() for a in figure.axes for t in a.texts]
    assert names.count("FFA") == 1
    assert "OFA" not in names
    bare = plot_surface(r, mesh=mesh)
    assert not [c for a in bare.axes[:-1] for c in a.collections if isinstance(c, LineCollection)]
    assert "Prediction accuracy, Pearson r" in [t.get_text() for t in figure.axes[-1].texts]


def test_labels_and_units_come_from_the_arrays():
    patch = _patch(4000, 2)
    r = _labelled(np.ones(len(patch)), patch).rename("beta").assign_attrs(units="% signal change")
    other = r.rename("noise_ceiling_r").assign_attrs(units="")
    axes = plot_surface(r, alpha=other, mesh="flat").axes[-1]
    assert axes.get_xlabel() == "beta (% signal change)"
    assert axes.texts[-1].get_text() == "Noise ceiling, correlation\n(opacity)"


def test_bad_maps_are_refused():
    patch = _patch(4000, 2)
    r = _labelled(np.ones(len(patch)), patch)
    with pytest.raises(DataError, match="other ids or in another order"):
        plot_surface(r, alpha=r.assign_coords(voxel=np.arange(len(patch))[::-1]))
    with pytest.raises(ConfigError, match="did you mean 'flat'"):
        plot_surface(r, mesh="flt")
    with pytest.raises(DataError, match="no coordinate 'roi'"):
        plot_surface(r, rois=True)
    with pytest.raises(ConfigError, match="did you mean 'FFA'"):
        plot_surface(r.assign_coords(roi=("voxel", ["FFA"] * len(patch))), rois=["FFB"])
    with pytest.raises(DataError, match="no coordinate 'vertex'"):
        plot_surface(r.drop_vars("vertex"))
    with pytest.raises(DataError, match="affine or the shape"):
        plot_mosaic(r.assign_coords(i=r["vertex"], j=r["vertex"], k=r["vertex"]))


def _cube():
    where = np.argwhere(np.ones((4, 3, 2), bool))
    coords = {a: ("voxel", where[:, n]) for n, a in enumerate("ijk")}
    coords["roi"] = ("voxel", np.where(where[:, 0] < 2, "V1", "V2"))
    attrs = {"affine": np.diag([2.0, 2, 2, 1]).ravel().tolist(), "volume_shape": [4, 3, 2]}
    return xr.DataArray(np.linspace(0, 1, len(where)), dims="voxel", name="r", coords=coords, attrs=attrs)


def test_edges_of_a_region_on_a_slice_enclose_its_pixels():
    mask = np.random.default_rng(5).random((7, 9)) > 0.5
    edges = slice_edges(mask)
    padded = np.pad(mask, 1).astype(int)
    assert len(edges) == np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    upright = edges[edges[:, 0, 0] == edges[:, 1, 0]]
    for x, y in np.argwhere(np.ones_like(mask)):  # a ray to the left crosses the border once for a pixel inside
        crossed = (upright[:, 0, 0] < x) & (upright[:, 0, 1] < y) & (upright[:, 1, 1] > y)
        assert crossed.sum() % 2 == mask[x, y]


def test_slices_take_places_outlines_and_anatomy():
    nib = pytest.importorskip("nibabel")
    r = _cube()
    plain = plot_mosaic(r, rois=True)
    assert [t.get_text() for t in plain.axes[0].texts][-2:] == ["V1", "V2"]
    fine = np.zeros((8, 6, 4), np.float32)
    fine[:4] = 100.0  # the half of V1 is bright
    image = nib.Nifti1Image(fine, np.diag([1.0, 1, 1, 1]))
    faint = plot_mosaic(r, alpha=np.zeros(r.size), alpha_range=(0, 1), background=image)
    shown = np.asarray(faint.axes[0].images[0].get_array())
    assert (shown[:, 0, :3] > 0.9).all()
    assert (shown[:, 3, :3] < 0.1).all()
    assert np.ptp(shown[..., :3], axis=2).max() < 1e-12  # nothing but grey where opacity is nought
    solid = plot_mosaic(r, alpha=np.ones(r.size), alpha_range=(0, 1), background=image, vmin=0, vmax=1)
    colour = np.asarray(solid.axes[0].images[0].get_array())[0, 0, :3]
    np.testing.assert_allclose(colour, matplotlib.colormaps["viridis"](0.0)[:3], atol=5e-3)
    with pytest.raises(DataError, match="background has shape"):
        plot_mosaic(r, background=np.zeros((2, 2, 2)))


def test_figures_depend_on_the_data_alone():
    patch = _patch(4000, 3)
    r = _labelled(np.linspace(0, 1, len(patch)), patch, roi=("voxel", ["FFA"] * len(patch)))
    order = np.random.default_rng(0).permutation(len(patch))
    options = {"rois": True, "mesh": "flat"}
    one = figure_png(plot_surface(r, alpha=r[::-1].values, **options))
    two = figure_png(plot_surface(r[order], alpha=r[::-1].values[order], **options))
    assert one == two
