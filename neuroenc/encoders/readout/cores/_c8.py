"""Layers equivariant to rotation by multiples of 45 degrees (the cyclic group C8), in plain torch.

A map holds ``fields``; each is a regular field of eight channels, one an orientation, so that channel
``8 f + o`` is field f at orientation o. Turning the input by 45 r degrees counter-clockwise turns every map
likewise and shifts orientations by r: ``out'[f, o](p) = out[f, o - r](R^-1 p)``.

Filters are combinations of rings times angular harmonics, ``exp(-(rho - rho_j)^2 / 2 s^2) cos(k theta)`` (and
sin), which turn analytically. Turns by 90 degrees only permute the pixels and are exact; those by 45 are exact
but for the sampling of filter and image.

Notes
-----
escnn [2]_, the maintained successor of the e2cnn that the published core used, has the same layers. It is not a
dependency: its own dependencies compile Fortran at installation (no wheels), where C8 alone takes the few
functions below.

References
----------
.. [1] Weiler & Cesa (2019), General E(2)-equivariant steerable CNNs, NeurIPS.
.. [2] Cesa, Lang & Weiler (2022), A program to build E(N)-equivariant steerable CNNs, ICLR.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.errors import ConfigError

__all__ = ["ORIENTATIONS", "FieldNorm", "GaussianPool", "GroupConv", "LiftConv", "ring_basis"]

#: Order of the group.
ORIENTATIONS = 8
_RING_WIDTH = 0.6


def _sampled(kernel: int, angle: float) -> Tensor:
    """Basis functions turned by ``angle`` (radians, counter-clockwise as seen), float64 (b, kernel, kernel)."""
    axis = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    # Seen with y up, so that a positive angle is what torch.rot90 does.
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    radius, theta = torch.hypot(x, y), torch.atan2(y, x) - angle
    found = []
    half = (kernel - 1) // 2
    for ring in range(half + 1):
        profile = torch.exp(-((radius - ring) ** 2) / (2 * _RING_WIDTH**2))
        # Harmonics that a ring of this radius can carry without aliasing on the pixel grid.
        top = 0 if ring == 0 else min(ring + 1, 4)
        found.append(profile)
        for k in range(1, top + 1):
            # The angle is undefined in the centre, and a harmonic has no value there.
            away = profile * (radius > 0)
            found.extend((away * torch.cos(k * theta), away * torch.sin(k * theta)))
    return torch.stack(found)


@lru_cache(maxsize=16)
def ring_basis(kernel: int) -> Tensor:
    """Basis filters at the eight orientations.

    Parameters
    ----------
    kernel : int
        Odd width of the filters, in pixels.

    Returns
    -------
    Tensor (8, b, kernel, kernel)
        float32; function b at orientation o is itself turned by 45 o degrees counter-clockwise, and orientation
        o + 2 is ``rot90`` of orientation o to the bit. Mean Euclidean norm over orientations is 1.

    Examples
    --------
    >>> basis = ring_basis(5)
    >>> basis.shape, bool((basis[2] == basis[0].rot90(1, (1, 2))).all())
    (torch.Size([8, 13, 5, 5]), True)
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel={kernel} must be odd and positive: a filter turns about its central pixel.")
    pair = torch.stack([_sampled(kernel, 0.0), _sampled(kernel, math.pi / 4)])
    pair = pair / pair.flatten(2).norm(dim=2).mean(0)[None, :, None, None]
    pair = pair.float()
    return torch.cat([pair.rot90(turns, (2, 3)) for turns in range(ORIENTATIONS // 2)])


class _RotatedConv(nn.Module):
    """A convolution whose filters are turned copies of trained ones."""

    basis: Tensor

    def __init__(self, fan_in: int, shape: tuple[int, ...], kernel: int, padding: int | None) -> None:
        super().__init__()
        basis = ring_basis(kernel)
        self.register_buffer("basis", basis.clone(), persistent=False)
        self.kernel, self.padding = kernel, kernel // 2 if padding is None else padding
        # He: the squared norm of what meets one output is 2 on average, for basis functions of unit norm.
        scale = math.sqrt(2.0 / (fan_in * basis.shape[1]))
        self.weight = nn.Parameter(torch.randn(*shape, basis.shape[1]) * scale)
        self._kept: tuple[Tensor, Tensor] | None = None

    def _rotate(self) -> Tensor:
        raise NotImplementedError

    def filters(self) -> Tensor:
        """Filters (8 * out_fields, channels, kernel, kernel); made once while the weights stay and need no gradient."""
        live = torch.is_grad_enabled() and self.weight.requires_grad
        # Half precision is for the convolution; turned filters stay exact.
        with torch.autocast(self.weight.device.type, enabled=False):
            if self.training or live:
                self._kept = None
                return self._rotate()
            # Compared by value: weights may be changed behind every counter of versions.
            if self._kept is None or not (
                self._kept[0].device == self.weight.device
                and self._kept[0].dtype == self.weight.dtype
                and torch.equal(self._kept[0], self.weight)
            ):
                # Not inference tensors, which a later backward pass to the input could not use.
                with torch.inference_mode(False), torch.no_grad():
                    self._kept = (self.weight.detach().clone(), self._rotate())
            return self._kept[1]

    def forward(self, x: Tensor) -> Tensor:
        """Convolution of ``x`` (B, channels, H, W)."""
        return functional.conv2d(x, self.filters(), padding=self.padding)


class LiftConv(_RotatedConv):
    """From channels to fields: ``out[f, o] = sum_c psi_fc(R_o^-1 .) * x_c``.

    Parameters
    ----------
    channels, fields : int
        ``8 * fields`` channels come out.
    kernel : int
        Odd.
    padding : int, optional
        Zeros on every side; ``kernel // 2``, which keeps the size, by default.

    Examples
    --------
    >>> LiftConv(3, 4, 5)(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 32, 16, 16])
    """

    def __init__(self, channels: int, fields: int, kernel: int, padding: int | None = None) -> None:
        super().__init__(channels, (fields, channels), kernel, padding)

    def _rotate(self) -> Tensor:
        turned = torch.einsum("fcb,obyx->focyx", self.weight, self.basis)
        return turned.flatten(0, 1)


class GroupConv(_RotatedConv):
    """From fields to fields: ``out[g, o] = sum_fi psi_{g, f, i - o}(R_o^-1 .) * x[f, i]``.

    Parameters
    ----------
    in_fields, fields : int
    kernel, padding : int
        As in `LiftConv`.

    Examples
    --------
    >>> GroupConv(4, 6, 3)(torch.zeros(1, 32, 16, 16)).shape
    torch.Size([1, 48, 16, 16])
    """

    def __init__(self, in_fields: int, fields: int, kernel: int, padding: int | None = None) -> None:
        super().__init__(in_fields * ORIENTATIONS, (fields, in_fields, ORIENTATIONS), kernel, padding)

    def _rotate(self) -> Tensor:
        turned = [
            torch.einsum("gfib,byx->gfiyx", self.weight.roll(o, dims=2), self.basis[o]) for o in range(ORIENTATIONS)
        ]
        return torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1)


class FieldNorm(nn.Module):
    """Batch normalisation with one mean, variance, gain and offset a field, shared by its eight orientations.

    Parameters
    ----------
    fields : int

    Examples
    --------
    >>> FieldNorm(4)(torch.zeros(2, 32, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(fields)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps, of the shape of ``x``."""
        b, _, h, w = x.shape
        return self.norm(x.reshape(b, -1, ORIENTATIONS * h, w)).reshape(x.shape)


class GaussianPool(nn.Module):
    """Gaussian low-pass of every channel, then one value every ``stride`` pixels.

    Samples lie symmetrically about the centre: for stride 2, between two pixels of an even size, and on every
    second pixel from the first to the last of an odd one. Only so does pooling commute with turns by 90 degrees.
    Borders are continued by their own values, so that they are not darkened.

    Parameters
    ----------
    stride : int
        1 or 2.
    sigma : float
        S.d. of the Gaussian in pixels.

    Examples
    --------
    >>> pool = GaussianPool(2)
    >>> pool(torch.zeros(1, 8, 16, 16)).shape, pool(torch.zeros(1, 8, 15, 15)).shape
    (torch.Size([1, 8, 8, 8]), torch.Size([1, 8, 8, 8]))
    """

    def __init__(self, stride: int = 2, sigma: float = 0.66) -> None:
        super().__init__()
        if stride not in (1, 2) or not sigma > 0:
            raise ConfigError(f"stride={stride} must be 1 or 2, and sigma={sigma} positive.")
        self.stride, self.sigma = stride, float(sigma)

    def size(self, n: int) -> int:
        """Pixels that ``n`` pixels become."""
        return n if self.stride == 1 else (n + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Pooled maps (B, C, size(H), size(W))."""
        rows, columns = (_pool_matrix(n, self.size(n), self.stride, self.sigma).to(x) for n in x.shape[2:])
        # Two small matrix products: several times faster on a CPU than a convolution of every channel alone.
        return rows @ x @ columns.T


@lru_cache(maxsize=64)
def _pool_matrix(n: int, out: int, stride: int, sigma: float) -> Tensor:
    first = 0.5 if stride == 2 and n % 2 == 0 else 0.0
    reach = math.ceil(3 * sigma)
    matrix = torch.zeros(out, n, dtype=torch.float64)
    for row in range(out):
        centre = first + stride * row
        for pixel in range(math.ceil(centre - reach), math.floor(centre + reach) + 1):
            weight = math.exp(-((pixel - centre) ** 2) / (2 * sigma**2))
            matrix[row, min(max(pixel, 0), n - 1)] += weight
    return (matrix / matrix.sum(1, keepdim=True)).float()
