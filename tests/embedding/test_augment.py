"""Augmented copies of pictures: shifts with a border that goes on, brightness, noise, and places that batches keep."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.data import Stimuli
from neuroenc.embedding import embed_augmented

PICTURES = np.random.default_rng(0).integers(60, 200, (3, 28, 28, 3)).astype(np.uint8)
STIMULI = Stimuli(["a", "b", "c"], PICTURES)


class Pixels:
    """Every pixel is a feature."""

    def embed(self, stimuli):
        values = stimuli.images.reshape(len(stimuli), -1).astype(np.float32)
        return xr.DataArray(values, dims=("stimulus", "feature"), coords={"stimulus": stimuli.ids})


def test_a_shift_moves_a_picture_and_its_border_goes_on():
    found = embed_augmented(Pixels(), STIMULI, 20, scale=0.0, shift=1 / 28, noise=0.0)
    padded = np.pad(PICTURES, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    legal = {padded[0, y : y + 28, x : x + 28].tobytes() for y in range(3) for x in range(3)}
    seen = {row.astype(np.uint8).tobytes() for row in found.sel(stimulus="a").values}
    assert seen <= legal
    assert len(seen) > 4


def test_brightness_and_noise_are_as_large_as_said():
    bright = embed_augmented(Pixels(), STIMULI, 50, shift=0.0, noise=0.0).values / PICTURES.reshape(3, -1)
    factor = bright.mean(axis=2)
    assert 0.94 < factor.min() < 0.96
    assert 1.04 < factor.max() < 1.06
    noisy = embed_augmented(Pixels(), STIMULI, 50, shift=0.0, scale=0.0).values - PICTURES.reshape(3, -1)
    sd = noisy.reshape(-1, 3).std(axis=0)
    np.testing.assert_allclose(sd, 0.05 * 255 * np.array([0.2686, 0.2613, 0.2758]), rtol=0.03)


def test_pictures_of_several_sizes_have_the_same_copies_as_alone():
    few = embed_augmented(Pixels(), STIMULI.sel(["a", "b"]), 2)
    xr.testing.assert_equal(few, embed_augmented(Pixels(), STIMULI, 2).sel(stimulus=["a", "b"]))
    assert few.dims == ("copy", "stimulus", "feature")
    with pytest.raises(DataError, match="no images"):
        embed_augmented(Pixels(), Stimuli(["a"], captions=[["x"]]))
