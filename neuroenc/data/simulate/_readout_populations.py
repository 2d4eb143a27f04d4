"""Feature maps and voxels that read them by a known mechanism: what readouts must be able to tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError

#: Mechanisms, from the simplest to those that depend on content.
KINDS = ("pooled", "gaussian", "mask", "moving", "scaling", "gated")

#: Object channels, after the textures: one that is always there, one of graded strength, two bystanders.
OBJECTS = ("place", "strength", "bystander-1", "bystander-2")
LATENTS = ("x", "y", "strength")

#: How far content shifts channels ("gated") and how strongly it scales ("scaling"); half the field of view = 1.
SHIFT, ZOOM = 0.55, 0.65
#: Smoothness of textures and size of objects, in fractions of the map's width.
GRAIN, BLOB = 0.07, 0.09


@dataclass(frozen=True)
class ReadoutPopulation:
    """Maps, responses and the planted truth; see :func:`simulate_readout_population`."""

    kind: str
    maps: xr.DataArray
    responses: xr.DataArray
    truth: xr.Dataset


def simulate_readout_population(
    kind: str,
    *,
    n_voxels: int = 64,
    n_stimuli: int = 2000,
    channels: int = 16,
    height: int = 12,
    width: int = 12,
    noise: float = 0.5,
    seed: int = 0,
) -> ReadoutPopulation:
    r"""Voxels that read feature maps by one mechanism, with noise, and everything that was planted.

    .. math:: y_{nv} = b_v + \sum_c f_{vc} \sum_p \tilde m_{nv}(p)\, \tilde x_{nc}(p) + \varepsilon_{nv}

    with mask :math:`\tilde m_{nv}(p) = m_v(\theta_{nv} [p, 1])` and maps
    :math:`\tilde x_{nc}(p) = x_{nc}(\vartheta_{nc} [p, 1])`, each sampled bilinearly and zero outside, positions
    in [-1, 1] with the edges of the map at -1 and 1 (``grid_sample`` of torch with ``align_corners=False``). The
    warps are the identity except where the kind says otherwise:

    - ``pooled``: :math:`m_v` is flat;
    - ``gaussian``: :math:`m_v` is a Gaussian;
    - ``mask``: :math:`m_v` is a ring or has two lobes, which no Gaussian fits;
    - ``moving``: the Gaussian follows the object of the ``place`` channel;
    - ``scaling``: the Gaussian shrinks about its centre as the ``strength`` object grows;
    - ``gated``: each channel is shifted by its own vector times the ``strength``, so that a voxel's weights of
      the channels at a place change with content.

    All warps are linear in ``content``, and ``content`` is linear in the maps: the centroid of the ``place``
    channel, and twice the sum of the ``strength`` channel less one.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    n_voxels, n_stimuli : int
    channels, height, width : int
        Shape of the maps; the last four channels are sparse objects, the others smooth random textures. Only
        textures drive voxels.
    noise : float
        Standard deviation of the noise in units of the signal's, for the median voxel; voxels differ by a
        factor of 1.2 (s.d. of the logarithm 0.2).
    seed : int
        Maps depend on the seed and the shape alone, so populations of several kinds with one seed saw the same
        stimuli, and fewer stimuli are the first of more.

    Returns
    -------
    ReadoutPopulation
        ``maps`` float32 (stimulus, channel, y, x); ``responses`` float32 (stimulus, voxel), z-scored, one trial
        each, with ``roi`` (the kind) and ``ncsnr`` (signal s.d. / noise s.d.);
        ``truth`` over the same labels:

        - ``signal`` (stimulus, voxel): noiseless responses, mean 0 and s.d. 1;
        - ``mask`` (voxel, y, x), sum 1; ``weights`` (voxel, channel); ``bias`` (voxel,);
        - ``rf_x``, ``rf_y``, ``rf_size`` (voxel,): centre and s.d. before any warp (half-width of the field of
          view = 1); NaN for ``pooled``; for ``mask`` the mask's own mean and mean s.d. of the two axes;
        - ``content`` (stimulus, latent): where the ``place`` object is (x, y) and the ``strength``, all in [-1, 1];
        - ``mask_warp`` (stimulus, voxel, row, column) for ``moving`` and ``scaling``, ``feature_warp``
          (stimulus, channel, row, column) for ``gated``: the 2 x 3 matrices.

    Raises
    ------
    ConfigError
        An unknown kind, an empty shape, fewer than 6 channels, or negative noise.

    Examples
    --------
    >>> population = simulate_readout_population("moving", n_voxels=5, n_stimuli=100)
    >>> population.maps.shape, population.responses.dims
    ((100, 16, 12, 12), ('stimulus', 'voxel'))
    >>> moved = population.truth["mask_warp"].sel(row="x", column="1")
    >>> bool(np.corrcoef(moved[:, 0], population.truth["content"].sel(latent="x"))[0, 1] < -0.99)
    True
    """
    one_of("kind of population", kind, KINDS)
    if min(n_voxels, height - 3, width - 3) < 1 or n_stimuli < 2 or channels < len(OBJECTS) + 2:
        raise ConfigError(
            f"{n_voxels} voxels, {n_stimuli} stimuli, maps of {channels} x {height} x {width}; legal: at least 1 "
            f"voxel, 2 stimuli, {len(OBJECTS) + 2} channels and 4 x 4 pixels."
        )
    if not 0 <= noise < np.inf:
        raise ConfigError(f"noise={noise} must be 0 or more and finite.")
    n_textures = channels - len(OBJECTS)
    textures = _textures(n_stimuli, n_textures, height, width, np.random.default_rng([seed, 0]))
    objects, content = _objects(n_stimuli, height, width, np.random.default_rng([seed, 1]))

    draw = np.random.default_rng([seed, 2, KINDS.index(kind)])
    masks, fields = _masks(kind, n_voxels, height, width, draw)
    weights = draw.normal(size=(n_voxels, n_textures)) * (draw.random((n_voxels, n_textures)) < 0.5)
    weights[np.arange(n_voxels), draw.integers(n_textures, size=n_voxels)] += draw.choice([-1.5, 1.5], n_voxels)
    warps: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    if kind in ("moving", "scaling"):
        warp = _mask_warps(kind, content, fields, draw)
        warps["mask_warp"] = (("stimulus", "voxel", "row", "column"), warp.astype(np.float32))
        signal = _warped_masks(textures, weights, fields, warp)
    else:
        seen = textures
        if kind == "gated":
            angle = draw.uniform(0, 2 * np.pi, n_textures)
            step = SHIFT * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            shift = content[:, 2, None, None] * step
            warp = np.tile(np.eye(2, 3), (n_stimuli, channels, 1, 1))
            warp[:, :n_textures, :, 2] = shift
            warps["feature_warp"] = (("stimulus", "channel", "row", "column"), warp.astype(np.float32))
            seen = _shifted(textures, shift)
        pooled = seen.reshape(n_stimuli, n_textures, -1) @ masks.reshape(n_voxels, -1).T
        signal = np.einsum("ncv,vc->nv", pooled, weights)

    mean, spread = signal.mean(axis=0), signal.std(axis=0)
    signal = (signal - mean) / spread
    sd = noise * np.exp(0.2 * draw.normal(size=n_voxels))
    responses = signal + sd * np.random.default_rng([seed, 3, KINDS.index(kind)]).normal(size=signal.shape)
    responses = (responses - responses.mean(axis=0)) / responses.std(axis=0)

    stimulus = np.array([f"map-{seed}-{i:06d}" for i in range(n_stimuli)])
    voxel = {
        "voxel": np.array([f"{kind}-{v:04d}" for v in range(n_voxels)]),
        "roi": ("voxel", np.full(n_voxels, kind)),
        "ncsnr": ("voxel", np.divide(1.0, sd, out=np.full(n_voxels, np.inf), where=sd > 0)),
    }
    names = np.array([f"texture-{c + 1}" for c in range(n_textures)] + list(OBJECTS))
    dims = ("stimulus", "channel", "y", "x")
    place = {"stimulus": stimulus, "y": _centres(height), "x": _centres(width)}
    full = np.concatenate([textures, objects], axis=1).astype(np.float32)
    truth = xr.Dataset(
        {
            "signal": (("stimulus", "voxel"), signal.astype(np.float32)),
            "mask": (("voxel", "y", "x"), masks),
            "weights": (("voxel", "channel"), np.pad(weights / spread[:, None], ((0, 0), (0, len(OBJECTS))))),
            "bias": ("voxel", -mean / spread),
            **{f"rf_{name}": ("voxel", fields[:, k]) for k, name in enumerate(("x", "y", "size"))},
            "content": (("stimulus", "latent"), content),
            **warps,
        },
        coords={**place, **voxel, "channel": names, "latent": list(LATENTS), "row": list("xy"), "column": list("xy1")},
        attrs={"kind": kind, "seed": seed, "noise": float(noise)},
    )
    rows = ("stimulus", "voxel")
    measured: dict[str, Any] = {"dims": rows, "coords": {"stimulus": stimulus, **voxel}, "name": "responses"}

    observed = xr.DataArray(responses.astype(np.float32), **measured)
    maps = xr.DataArray(full, {**place, "channel": names}, dims, "maps")
    return ReadoutPopulation(kind, maps, observed, truth)


def _centres(n: int) -> np.ndarray:
    return (2 * np.arange(n) + 1) / n - 1


def _textures(n: int, channels: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian fields of unit variance everywhere, smooth over ``GRAIN``."""
    smooth = []
    for size in (height, width):
        steps = np.arange(size)
        kernel = np.exp(-((steps[:, None] - steps) ** 2) / (2 * (GRAIN * size) ** 2))
        # Equal power in every row, or the edges of the maps would be louder than their middles.
        smooth.append(kernel / np.linalg.norm(kernel, axis=1, keepdims=True))
    return np.asarray(smooth[0] @ rng.standard_normal((n, channels, height, width)) @ smooth[1].T)


def _objects(n: int, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Object channels (n, 4, height, width), each blob of sum one times its strength, and content (n, 3)."""
    drawn = rng.random((n, len(OBJECTS), 3))  # in one draw, so that more stimuli do not change the first
    at, draw = 1.5 * drawn[..., :2] - 0.75, drawn[..., 2]
    y, x = _centres(height), _centres(width)
    blobs = np.exp(-((y - at[..., 1, None]) ** 2) / (2 * (2 * BLOB) ** 2))[..., :, None]
    blobs = blobs * np.exp(-((x - at[..., 0, None]) ** 2) / (2 * (2 * BLOB) ** 2))[..., None, :]
    blobs /= blobs.sum(axis=(2, 3), keepdims=True)
    strength = (draw < 0.5).astype(float)
    strength[:, 0] = 1.0
    strength[:, 1] = (1 - np.cos(np.pi * draw[:, 1])) / 2  # often nearly absent or nearly full
    blobs *= strength[..., None, None]
    # Read off the maps themselves, so that it is exactly linear in them at any resolution.
    placed = blobs[:, 0]
    content = np.stack([placed.sum(axis=1) @ x, placed.sum(axis=2) @ y, 2 * blobs[:, 1].sum(axis=(1, 2)) - 1], axis=1)
    return blobs, content


def _masks(kind: str, n: int, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, height, width) of sum one, and x, y and size (n, 3)."""
    y, x = np.meshgrid(_centres(height), _centres(width), indexing="ij")
    reach = {"mask": 0.15, "moving": 0.25, "scaling": 0.4}.get(kind, 0.6)
    centre = rng.uniform(-reach, reach, size=(n, 2))
    size = rng.uniform(*{"scaling": (0.3, 0.45)}.get(kind, (0.16, 0.3)), size=n)
    fields = np.column_stack([centre, size])
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    wide = size[:, None, None]
    if kind == "pooled":
        return np.full((n, height, width), 1 / (height * width)), np.full((n, 3), np.nan)
    if kind != "mask":
        masks = np.exp(-(dx**2 + dy**2) / (2 * wide**2))
        return masks / masks.sum(axis=(1, 2), keepdims=True), fields
    apart = rng.uniform(0.5, 0.65, n)[:, None, None]
    angle = rng.uniform(0, np.pi, n)[:, None, None]
    wide = 0.12 + 0.3 * (wide - 0.16)
    ring = np.exp(-((np.hypot(dx, dy) - apart) ** 2) / (2 * wide**2))
    ax, ay = apart * np.cos(angle), apart * np.sin(angle)
    lobes = sum(np.exp(-((dx - s * ax) ** 2 + (dy - s * ay) ** 2) / (2 * (1.3 * wide) ** 2)) for s in (-1, 1))
    masks = np.where((np.arange(n) % 2)[:, None, None] == 0, ring, lobes)
    masks = masks / masks.sum(axis=(1, 2), keepdims=True)
    mx, my = (masks * x).sum(axis=(1, 2)), (masks * y).sum(axis=(1, 2))
    spread = ((masks * (x**2 + y**2)).sum(axis=(1, 2)) - mx**2 - my**2) / 2
    return masks, np.column_stack([mx, my, np.sqrt(spread)])


def _mask_warps(kind: str, content: np.ndarray, fields: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Matrices (stimulus, voxel, 2, 3) from where a mask is used to where it is read."""
    n, v = len(content), len(fields)
    gain = rng.uniform(0.85, 1.15, v)
    warp = np.tile(np.eye(2, 3), (n, v, 1, 1))
    if kind == "moving":
        warp[..., 2] = -gain[:, None] * content[:, None, :2]
    else:
        zoom = ZOOM / 1.15 * gain * content[:, 2, None]
        warp[..., 0, 0] += zoom
        warp[..., 1, 1] += zoom
        warp[..., 2] = -zoom[..., None] * fields[:, :2]  # about the centre, which stays where it is
    return warp


def _tents(positions: np.ndarray, size: int) -> np.ndarray:
    """Weights (..., size) of pixels in a bilinear sample at ``positions``; none from outside the map."""
    return np.maximum(0.0, 1 - np.abs(((positions + 1) * size - 1)[..., None] / 2 - np.arange(size)))


def _warped_masks(textures: np.ndarray, weights: np.ndarray, fields: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Signal (stimulus, voxel) where each stimulus has its own mask; Gaussian profiles, so by axis."""
    n, channels, height, width = textures.shape
    signal = np.empty((n, len(weights)))
    flat = textures.transpose(0, 2, 3, 1).reshape(-1, channels)
    for v in range(len(weights)):
        along = {}
        for axis, size in ((0, width), (1, height)):
            profile = np.exp(-((_centres(size) - fields[v, axis]) ** 2) / (2 * fields[v, 2] ** 2))
            at = warp[:, v, axis, axis, None] * _centres(size) + warp[:, v, axis, 2, None]
            along[axis] = _tents(at, size) @ (profile / profile.sum())
        drive = (flat @ weights[v]).reshape(n, height, width)
        signal[:, v] = np.einsum("nyx,ny,nx->n", drive, along[1], along[0], optimize=True)
    return signal


def _shifted(textures: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Each map sampled at ``p + shift`` (n, channel, 2), zero outside."""
    height, width = textures.shape[2:]
    rows = _tents(_centres(height) + shift[..., 1, None], height)
    columns = _tents(_centres(width) + shift[..., 0, None], width)
    return np.asarray(rows @ textures @ columns.swapaxes(-1, -2))
