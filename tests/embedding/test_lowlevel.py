"""Low-level spaces against scikit-image and scipy, and by what they must answer to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import gabor

from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder
from neuroenc.embedding._lowlevel import FREQUENCIES, ORIENTATIONS, WINDOWS, Colour, GaborEnergy, LocalContrast

HOW = {"cache": False, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((2, 3, 96, 96)), (0, 0, 2, 2))
    return torch.as_tensor((smooth - smooth.min()) / np.ptp(smooth), dtype=torch.float32)


def grey(batch):
    return np.einsum("c,bcyx->byx", [0.299, 0.587, 0.114], batch.numpy().astype(float))


def test_gabor_energy_is_scikit_images(batch):
    found = GaborEnergy().maps(batch).numpy()
    picture = grey(batch)[0]
    for k, (f, angle) in enumerate((f, a) for f in FREQUENCIES for a in ORIENTATIONS):
        if f < 6:  # scikit-image takes seconds
            continue
        theta = np.deg2rad(angle)
        # Their window shrinks with obliqueness, ours does not.
        reach = 3 / max(abs(np.cos(theta)), abs(np.sin(theta))) - 1e-9
        real, imaginary = gabor(picture - picture.mean(), f / 96, theta, n_stds=reach, mode="reflect")
        np.testing.assert_allclose(found[0, k], np.hypot(real, imaginary), atol=1e-5)


def test_contrast_is_the_local_standard_deviation(batch):
    found = LocalContrast().maps(batch).numpy()
    picture = grey(batch)[1]
    for k, share in enumerate(WINDOWS):
        mean, square = (ndimage.gaussian_filter(x, share * 96) for x in (picture, picture**2))
        np.testing.assert_allclose(found[1, k], np.sqrt(np.maximum(square - mean**2, 0)), atol=1e-4)


def test_colour_is_lab(batch):
    found = Colour().maps(batch).numpy()
    lab = rgb2lab(batch.numpy().transpose(0, 2, 3, 1).astype(float)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found[:, :3], lab, atol=2e-2)
    np.testing.assert_allclose(found[:, 3], np.hypot(lab[:, 1], lab[:, 2]), atol=2e-2)


def test_a_grating_drives_its_own_channel_at_its_own_place():
    y, x = np.mgrid[:96, :96] / 96
    wave = np.where(x < 0.5, 0.5 + 0.5 * np.sin(2 * np.pi * 12 * y), 0.5)
    image = np.repeat((wave * 255).astype(np.uint8)[None, :, :, None], 3, axis=3)
    stimuli = Stimuli(["grating"], image)
    maps = ImageEmbedder("gabor", layer="map", **HOW).embed(stimuli)
    assert maps.shape == (1, 24, 16, 16)
    best = int(maps[0].mean(("y", "x")).argmax())
    assert (FREQUENCIES[best // 6], ORIENTATIONS[best % 6]) == (12.0, 90)
    assert float(maps[0, best, :, :6].mean()) > 20 * float(maps[0, best, :, 11:].mean())
    # Energy does not see the phase.
    shifted = Stimuli(["shifted"], np.roll(image, 2, axis=1))
    other = ImageEmbedder("gabor", layer="map", **HOW).embed(shifted)
    np.testing.assert_allclose(other[0, best, 3:13, 1:6], maps[0, best, 3:13, 1:6], rtol=0.05)
    assert ImageEmbedder("contrast", **HOW).embed(stimuli).shape == (1, 3)
    assert float(np.abs(ImageEmbedder("colour", **HOW).embed(stimuli)[0, 1:]).max()) < 0.1
