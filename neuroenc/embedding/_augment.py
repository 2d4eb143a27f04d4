"""Embeddings of augmented copies of pictures, for encoders that are trained on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError
from neuroenc._core.provenance import provenance
from neuroenc.data import Stimuli

#: Standard deviation of CLIP's pixels from 0 to 255, by which its preprocessing divides.
_PIXEL_SD = 255 * np.array([0.26862954, 0.26130258, 0.27577711])


def embed_augmented(
    embedder: Any,
    stimuli: Stimuli,
    copies: int = 8,
    *,
    scale: float = 0.05,
    shift: float = 4 / 224,
    noise: float = 0.05,
    seed: int = 0,
) -> xr.DataArray:
    r"""Embed augmented copies of pictures: brighter or darker, shifted, noisy.

    .. math:: I' = \mathrm{shift}_{dx, dy}(a I) + \epsilon, \qquad a \sim U(1 - s, 1 + s),\;
              \epsilon \sim N(0, (\mathrm{noise} \cdot \sigma)^2)

    with :math:`\sigma` the standard deviation of CLIP's pixels and the border's pixels going on where a picture was
    moved away. The published training draws them anew in every epoch; a frozen network's embeddings can be made once
    for a fixed number of copies, of which every epoch draws one (`neuroenc.encoders.descent_weights`).

    Parameters
    ----------
    embedder : ImageEmbedder
    stimuli : Stimuli
        With images.
    copies : int
    scale : float
        Largest relative change of the pixels.
    shift : float
        Largest shift as a share of each side; the published 4 of 224 pixels.
    noise : float
        In standard deviations of CLIP's pixels. Pixels are rounded, and kept from 0 to 255.
    seed : int
        A picture's copies depend on it and on the picture's place, not on batches.

    Returns
    -------
    DataArray (copy, stimulus, feature)
        Raw or of unit norm, as the embedder gives them.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (training of the encoder).

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> from neuroenc.embedding import ImageEmbedder
    >>> embed_augmented(ImageEmbedder("world", cache=False, progress=False), simulate_world(3), 2).shape
    (2, 3, 128)
    """
    check_whole("copies", copies)
    if stimuli.images is None or not len(stimuli):
        raise DataError(f"these {len(stimuli)} stimuli have no images (source {stimuli.source!r}).")
    parts, step = [], 256
    for start in range(0, len(stimuli), step):
        made, numbers = [], range(start, min(start + step, len(stimuli)))
        for n in numbers:
            rng = np.random.default_rng([seed, n])
            picture = np.asarray(stimuli.image(n))
            made += [_augmented(picture, rng, scale, shift, noise) for _ in range(copies)]
        ids = [f"{stimuli.ids[n]}#{k}" for n in numbers for k in range(copies)]
        # Pictures of a data set may differ in size.
        rows = [embedder.embed(Stimuli(np.array(ids), np.stack(made)))] if len({x.shape for x in made}) == 1 else []
        rows = rows or [embedder.embed(Stimuli(np.array([name]), x[None])) for name, x in zip(ids, made)]
        parts.append(np.concatenate([r.values for r in rows]).reshape(len(numbers), copies, -1))
    settings = {"copies": copies, "scale": scale, "shift": shift, "noise": noise, "seed": seed}
    return xr.DataArray(
        np.concatenate(parts).transpose(1, 0, 2),
        dims=("copy", "stimulus", "feature"),
        coords={"stimulus": stimuli.ids},
        attrs={"provenance": provenance(step="embed_augmented", **settings)},
    )


def _augmented(picture: np.ndarray, rng: np.random.Generator, scale: float, shift: float, noise: float) -> np.ndarray:
    most = [round(shift * side) for side in picture.shape[:2]]
    dy, dx = (int(rng.integers(-m, m + 1)) for m in most)
    rows, columns = (np.clip(np.arange(side) - d, 0, side - 1) for side, d in zip(picture.shape[:2], (dy, dx)))
    moved = picture[rows][:, columns] * rng.uniform(1 - scale, 1 + scale)
    return np.clip(np.rint(moved + noise * _PIXEL_SD * rng.standard_normal(moved.shape)), 0, 255).astype(np.uint8)
