"""Closed-form low-level spaces as image backbones: Gabor energy, local contrast, and colour.

Each gives maps on a 16 x 16 grid (layer "map") and their mean over places (layer None); pictures are brought to 96 x 96
pixels first, which ``preprocessing={"size": ...}`` changes. They are the controls that a network's features are
compared with: what they predict needs no learned feature.

References
----------
Adelson & Bergen (1985), J. Opt. Soc. Am. A 2:284. Kay, Naselaris, Prenger & Gallant (2008), Nature 452:352. Bex &
Makous (2002), J. Opt. Soc. Am. A 19:1096 (root mean square contrast). CIE 15:2004 (L*a*b*, D65).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from neuroenc.embedding._openclip import check_preprocessing, image_transform
from neuroenc.embedding._registry import Described, Output

_PREPROCESSING = {
    "size": 96,
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
GRID = 16
#: Of the Gabor filters: cycles per picture, orientations of the grating's normal in degrees, and octaves of bandwidth.
FREQUENCIES, ORIENTATIONS, BANDWIDTH = (3.0, 6.0, 12.0, 24.0), tuple(range(0, 180, 30)), 1.0
#: S.d. of the windows of local contrast, as shares of the picture.
WINDOWS = (1 / 48, 1 / 24, 1 / 12)


class LowLevel(Described):
    """A low-level space; subclasses say what a map is."""

    weights = "closed form"
    version: ClassVar[int] = 1

    def __init__(self, preprocessing: Mapping[str, Any] | None = None) -> None:
        self._preprocessing = check_preprocessing(_PREPROCESSING, preprocessing)

    def _content(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "grid": GRID}

    def layers(self) -> tuple[str, ...]:
        """The map."""
        return ("map",)

    def load(self, device: str) -> LowLevel:
        """Itself."""
        return self

    @property
    def preprocess(self) -> Any:
        """Picture to a tensor (3, y, x) from 0 to 1."""
        return image_transform(self._preprocessing)

    def encode(self, batch: Any, layer: str | None) -> Output:
        """The map on its grid, or its mean over places."""
        import torch

        found = torch.nn.functional.adaptive_avg_pool2d(self.maps(batch), GRID)
        return Output(found if layer == "map" else found.mean((2, 3)))

    @abstractmethod
    def maps(self, batch: Any) -> Any:
        """Maps (b, channel, y, x) of pictures (b, 3, y, x) with values from 0 to 1."""


def luminance(batch: Any) -> Any:
    """Luminance (b, y, x) of pictures as they are shown (Rec. 601)."""
    return 0.299 * batch[:, 0] + 0.587 * batch[:, 1] + 0.114 * batch[:, 2]


def _mirrored(maps: Any, margin: int) -> Any:
    """Maps (b, y, x) with their edges mirrored outwards, the outermost pixel repeated."""
    import torch

    for axis in (1, 2):
        n = maps.shape[axis]
        index = np.pad(np.arange(n), margin, mode="symmetric")
        maps = maps.index_select(axis, torch.as_tensor(index, device=maps.device))
    return maps


def _filtered(maps: Any, kernels: Sequence[np.ndarray]) -> Any:
    """Maps (b, y, x) convolved with each kernel (odd sides), edges mirrored, as (b, kernel, y, x)."""
    import torch

    margin = max(k.shape[0] // 2 for k in kernels)
    wide = _mirrored(maps, margin)
    spectrum, shape = torch.fft.fft2(wide), wide.shape[1:]
    found = []
    for kernel in kernels:
        padded = np.zeros(shape, dtype=complex)
        padded[: kernel.shape[0], : kernel.shape[1]] = kernel
        # The kernel's centre belongs to place 0.
        padded = np.roll(padded, [-(s // 2) for s in kernel.shape], axis=(0, 1))
        gain = torch.as_tensor(np.fft.fft2(padded).astype(np.complex64), device=maps.device)
        found.append(torch.fft.ifft2(spectrum * gain)[:, margin:-margin, margin:-margin])
    return torch.stack(found, dim=1)


def gabor_kernel(frequency: float, theta: float, bandwidth: float = BANDWIDTH) -> np.ndarray:
    """Complex Gabor filter: a round Gaussian, out to three s.d., times a wave.

    Parameters
    ----------
    frequency : float
        Cycles a pixel.
    theta : float
        Direction of the wave, in radians.
    bandwidth : float
        In octaves.

    Examples
    --------
    >>> gabor_kernel(0.25, 0.0).shape
    (15, 15)
    """
    octaves = 2.0**bandwidth
    sigma = np.sqrt(np.log(2) / 2) / np.pi * (octaves + 1) / (octaves - 1) / frequency
    reach = int(np.ceil(3 * sigma))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = x * np.cos(theta) + y * np.sin(theta)
    return np.exp(-(x**2 + y**2) / (2 * sigma**2) + 2j * np.pi * frequency * along) / (2 * np.pi * sigma**2)


class GaborEnergy(LowLevel):
    """Modulus of quadrature pairs of Gabor filters: 4 frequencies x 6 orientations."""

    name = "gabor"

    def maps(self, batch: Any) -> Any:
        """(b, 24, y, x), orientations of the lowest frequency first."""
        size = batch.shape[3]
        bank = [gabor_kernel(f / size, np.deg2rad(angle)) for f in FREQUENCIES for angle in ORIENTATIONS]
        grey = luminance(batch)
        return _filtered(grey - grey.mean((1, 2), keepdim=True), bank).abs()


class LocalContrast(LowLevel):
    """Standard deviation of luminance in Gaussian windows of three sizes."""

    name = "contrast"

    def maps(self, batch: Any) -> Any:
        """(b, 3, y, x), the smallest window first."""
        grey, bank = luminance(batch), []
        for share in WINDOWS:
            sigma = share * batch.shape[3]
            at = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
            line = np.exp(-(at**2) / (2 * sigma**2))
            bank.append(np.outer(line, line) / line.sum() ** 2)
        # Around the mean of the picture, where squares lose no digits.
        grey = grey - grey.mean((1, 2), keepdim=True)
        mean, square = _filtered(grey, bank).real, _filtered(grey**2, bank).real
        return (square - mean**2).clamp(min=0).sqrt()


class Colour(LowLevel):
    """CIE L*a*b*: lightness, red-green, blue-yellow, and chroma."""

    name = "colour"

    def maps(self, batch: Any) -> Any:
        """(b, 4, y, x); sRGB under D65."""
        import torch

        linear = torch.where(batch > 0.04045, ((batch + 0.055) / 1.055).clamp(min=0) ** 2.4, batch / 12.92)
        to_xyz = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
        white = torch.tensor([0.95047, 1.0, 1.08883], device=batch.device)
        xyz = torch.einsum("ij,bjyx->biyx", torch.tensor(to_xyz, device=batch.device), linear) / white[:, None, None]
        bent = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
        a, b = 500 * (bent[:, 0] - bent[:, 1]), 200 * (bent[:, 1] - bent[:, 2])
        return torch.stack([116 * bent[:, 1] - 16, a, b, (a**2 + b**2).sqrt()], dim=1)
