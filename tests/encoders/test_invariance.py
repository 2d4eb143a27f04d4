"""Transform invariance: planted on what is pooled and on what is local."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from neuroenc._core.errors import ConfigError
from neuroenc.data import Stimuli
from neuroenc.encoders import invariance, transform_stimuli


def pictures(n=60, side=40, seed=0):
    rng = np.random.default_rng(seed)
    grey = ndimage.gaussian_filter(rng.random((n, side, side)), (0, 1.5, 1.5))
    grey = (grey - grey.min()) / np.ptp(grey) * rng.uniform(0.9, 1, (n, 1, 1))
    return Stimuli([f"p{i}" for i in range(n)], np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=-1))


class Planted:
    """Three voxels: mean brightness, brightness at the centre, and brightness off the centre."""

    def predict(self, images):
        y = np.stack([images.mean((1, 2)), images[:, 18:22, 18:22].mean((1, 2)), images[:, 4:8, 20:24].mean((1, 2))], 1)
        return xr.DataArray(
            y, dims=("stimulus", "voxel"), coords={"voxel": [7, 8, 9], "roi": ("voxel", ["a", "b", "b"])}
        )


def grey(stimuli):
    return np.asarray(stimuli.images, float)[..., 0]


def test_a_pooling_voxel_is_invariant_and_local_ones_are_not():
    found = invariance(Planted(), grey, pictures())
    table = found["invariance"]
    assert table.sel(voxel=7).min() > 0.95
    assert (table.sel(transform="translation")[1:] < 0.75).all()
    # The centre stays under scale and rotation, a place off the centre moves.
    for name in ("scale", "rotation"):
        assert table.sel(transform=name, voxel=8) > table.sel(transform=name, voxel=9) + 0.15
    assert found["roi"].values.tolist() == ["a", "b", "b"]
    assert (found["shift"].sel(voxel=7) < found["shift"].sel(voxel=9)).all()


def test_transforms_are_where_they_say():
    image = np.full((1, 40, 40, 3), 0, np.uint8)
    image[0, 10:14, 10:14] = 255
    stimuli = Stimuli(["dot"], image)

    def centre(found):
        weight = np.clip(grey(found)[0] - 30, 0, None)
        return [float((weight.sum(k) @ np.arange(40)) / weight.sum()) for k in (0, 1)]  # x, y

    np.testing.assert_allclose(centre(transform_stimuli(stimuli, "translation", (0.25, 0.0))), [21.5, 11.5], atol=0.2)
    np.testing.assert_allclose(centre(transform_stimuli(stimuli, "scale", 1.5)), [7.25, 7.25], atol=0.3)
    turned = centre(transform_stimuli(stimuli, "rotation", 90.0))  # counter-clockwise: from upper left to lower left
    np.testing.assert_allclose(turned, [11.5, 27.5], atol=0.3)
    with pytest.raises(ConfigError, match="rotation"):
        invariance(Planted(), grey, pictures(4), {"rotate": (5.0,)})
