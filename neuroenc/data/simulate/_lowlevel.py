"""Local orientation, contrast and colour energy of pictures, for the retinotopic areas."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import fft

from neuroenc.data._schema import Stimuli

__all__ = ["CHANNELS", "GRID", "ORIENTATIONS", "SCALES", "energy_maps"]

ORIENTATIONS = (0.0, 45.0, 90.0, 135.0)
SCALES = (6.0, 13.0)
GRID = 32
_PX, _PAD = 64, 8

#: Names of the maps: Gabor energy (direction of the grating's normal, cycles per picture), contrast, colour.
CHANNELS: tuple[str, ...] = (
    *(f"gabor {o:.0f} deg {s:.0f} cpp" for s in SCALES for o in ORIENTATIONS),
    "contrast",
    "red-green",
    "blue-yellow",
)


def _filters() -> list[tuple[np.ndarray, np.ndarray]]:
    """Per Gabor channel, the part of the spectrum that it passes (indices) and its gain there.

    A band is cut out around its centre frequency and brought back to pixels alone, on the coarse grid: the
    modulus, which is the energy, does not see the shift in frequency.
    """
    n = _PX + 2 * _PAD
    half = n * GRID // _PX // 2
    unit = _PX / n
    bank = []
    for scale in SCALES:
        for angle in np.deg2rad(ORIENTATIONS):
            centre = np.rint(np.array([np.sin(angle), np.cos(angle)]) * scale / unit).astype(int)
            ky, kx = (c + np.arange(-half, half) for c in centre)
            fy, fx = np.meshgrid(ky * unit, kx * unit, indexing="ij")
            along = fx * np.cos(angle) + fy * np.sin(angle) - scale
            across = -fx * np.sin(angle) + fy * np.cos(angle)
            gain = np.exp(-((along / (0.42 * scale)) ** 2 + (across / (0.38 * scale)) ** 2) / 2)
            bank.append(((ky % n)[:, None] * n + (kx % n), gain.astype(np.float32)))
    return bank


def energy_maps(stimuli: Stimuli, *, batch_size: int = 128) -> np.ndarray:
    """Energy of every channel at every place, each channel divided by its standard deviation.

    Parameters
    ----------
    stimuli : Stimuli
        Pictures of any size; they are brought to 64 x 64 pixels.
    batch_size : int
        Pictures filtered at once; the result does not depend on it.

    Returns
    -------
    float32 array (channel, stimulus, 1024)
        On a 32 x 32 grid, row by row from the top left; channels as in :data:`CHANNELS`.
    """
    bank = _filters()
    n, step = len(stimuli), _PX // GRID
    maps = np.empty((len(CHANNELS), n, GRID * GRID), dtype=np.float32)
    start = 0
    for images in stimuli.iter_images(batch_size):
        rgb = np.stack(
            [np.asarray(im if im.size == (_PX, _PX) else im.resize((_PX, _PX), Image.Resampling.BOX)) for im in images]
        ).astype(np.float32)
        rgb /= 255.0
        here = slice(start, start + len(rgb))
        start += len(rgb)
        luminance = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        # Mirrored margins keep the frame from looking like an edge.
        padded = np.pad(luminance, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)), mode="symmetric")
        spectrum = fft.fft2(padded - padded.mean(axis=(1, 2), keepdims=True))
        spectrum = spectrum.reshape(len(rgb), -1)
        margin = _PAD // step
        for c, (where, gain) in enumerate(bank):
            energy = np.abs(fft.ifft2(spectrum[:, where] * gain))[:, margin:-margin, margin:-margin]
            maps[c, here] = energy.reshape(len(rgb), -1)
        local = luminance.reshape(len(rgb), GRID, step, GRID, step)
        contrast = np.abs(luminance - luminance.mean(axis=(1, 2), keepdims=True))
        maps[-3, here] = _pool(contrast, step) + local.std(axis=(2, 4)).reshape(len(rgb), -1)
        maps[-2, here] = _pool(np.abs(rgb[..., 0] - rgb[..., 1]), step)
        maps[-1, here] = _pool(np.abs(rgb[..., 2] - rgb[..., :2].mean(axis=-1)), step)
    for c in range(len(maps)):
        maps[c] /= max(float(maps[c].std(dtype=np.float64)), 1e-6)
    return maps


def _pool(picture: np.ndarray, step: int) -> np.ndarray:
    n = len(picture)
    return picture.reshape(n, GRID, step, GRID, step).mean(axis=(2, 4)).reshape(n, GRID * GRID)
