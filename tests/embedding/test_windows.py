"""Grids of image embeddings: each cell is what the window around it shows."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import Stimuli
from neuroenc.embedding import embed_windows


class MeanColour:
    """The mean of each channel: a real, if simple, image space."""

    def embed(self, stimuli):
        return xr.DataArray(stimuli.images.mean((1, 2)).astype(np.float32), dims=("stimulus", "feature"))


def test_a_cell_is_the_window_around_it():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    found = embed_windows(MeanColour(), Stimuli(["a", "b"], pictures), grid=4, window=0.25)
    assert found.shape == (2, 3, 4, 4)
    assert found["stimulus"].values.tolist() == ["a", "b"]
    # Windows of a quarter on a grid of four are the cells themselves.
    cells = pictures.reshape(2, 4, 8, 4, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.values, cells, atol=1e-3)


def test_the_border_goes_on_beyond_the_picture():
    found = embed_windows(MeanColour(), Stimuli(["a"], np.full((1, 32, 32, 3), 7, np.uint8)), grid=3, window=1.0)
    np.testing.assert_allclose(found.values, 7)


def test_what_cannot_be_embedded_is_refused():
    stimuli = Stimuli(["a"], np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="at most 1"):
        embed_windows(MeanColour(), stimuli, window=1.5)
    with pytest.raises(DataError, match="no images"):
        embed_windows(MeanColour(), Stimuli(["a"], captions=[["a dog"]]))
