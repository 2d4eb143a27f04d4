"""Transform invariance: how far a voxel's predicted responses stay when pictures are moved, scaled or turned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data import Stimuli

#: Transforms by name and the amounts that are tried: shares of the picture's side, factors, and degrees.
TRANSFORMS: dict[str, tuple[Any, ...]] = {
    "translation": ((0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)),
    "scale": (0.8, 1.25),
    "rotation": (-15.0, 15.0),
}


def transform_stimuli(stimuli: Stimuli, kind: str, amount: Any) -> Stimuli:
    """Move, scale or turn every picture about its centre; what comes into view has the picture's mean colour.

    Parameters
    ----------
    stimuli : Stimuli
        With images of one size.
    kind : {"translation", "scale", "rotation"}
    amount : (float, float) or float
        Shares of width and height (right and down), a factor, or degrees (counter-clockwise).

    Returns
    -------
    Stimuli

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> moved = transform_stimuli(simulate_world(2), "translation", (0.25, 0.0))
    >>> moved.images.shape == simulate_world(2).images.shape
    True
    """
    from PIL import Image

    if kind not in TRANSFORMS:
        raise ConfigError(unknown_name("transform", kind, TRANSFORMS))
    if stimuli.images is None:
        raise DataError(f"these {len(stimuli)} stimuli have no images (source {stimuli.source!r}).")
    made = []
    for n in range(len(stimuli)):
        image = stimuli.image(n)
        fill = tuple(round(float(c)) for c in np.asarray(image, float).mean((0, 1)))
        width, height = image.size
        # PIL asks where each pixel of the result comes from.
        matrix = np.eye(3)
        if kind == "translation":
            matrix[:2, 2] = -amount[0] * width, -amount[1] * height
        else:
            turn = np.deg2rad(amount) if kind == "rotation" else 0.0
            factor = 1.0 if kind == "rotation" else 1.0 / float(amount)
            centre = np.array([width / 2, height / 2])
            matrix[:2, :2] = factor * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            matrix[:2, 2] = centre - matrix[:2, :2] @ centre
        how: dict[str, Any] = {"resample": Image.Resampling.BILINEAR, "fillcolor": fill}
        made.append(np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix[:2].ravel().tolist(), **how)))
    if len({picture.shape for picture in made}) > 1:
        raise DataError("pictures have different sizes. Next step: give stimuli of one size.")
    return Stimuli(stimuli.ids, np.stack(made), stimuli.captions, stimuli.table, f"{stimuli.source} ({kind})")


def invariance(
    encoder: Any,
    features: Callable[[Stimuli], Any],
    stimuli: Stimuli,
    transforms: Mapping[str, tuple[Any, ...]] | None = None,
) -> xr.Dataset:
    """Measure how invariant each voxel's predictions are to translation, scale and rotation of the pictures.

    Parameters
    ----------
    encoder : encoder
        Fitted; its ``predict`` takes what ``features`` gives.
    features : callable
        From stimuli to features, such as ``ImageEmbedder(...).embed``.
    stimuli : Stimuli
        Pictures that the encoder was not fitted on.
    transforms : mapping of name to amounts, optional
        Default: a tenth of the side in four directions, factors 0.8 and 1.25, and 15 degrees both ways.

    Returns
    -------
    Dataset (transform, voxel)
        ``invariance``: correlation over stimuli of the predictions for a picture and for the transformed one, mean over
        amounts; 1 where the transform changes nothing. ``shift``: mean absolute change of the prediction in s.d. of
        the predictions.

    Raises
    ------
    ConfigError
        An unknown transform; the nearest is named.

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> from neuroenc.embedding import ImageEmbedder
    >>> from neuroenc.encoders import RidgeEncoder
    >>> scenes = simulate_world(40)
    >>> embed = ImageEmbedder("colour", cache=False, progress=False).embed
    >>> X = embed(scenes)
    >>> encoder = RidgeEncoder([0.1], cv=2).fit(X, X[:, :1].values)
    >>> found = invariance(encoder, embed, scenes, {"translation": ((0.1, 0.0),)})
    >>> bool(found.invariance.sel(transform="translation").item() > 0.8)
    True
    """
    wanted = TRANSFORMS if transforms is None else dict(transforms)
    for name in wanted:
        if name not in TRANSFORMS:
            raise ConfigError(unknown_name("transform", name, TRANSFORMS))
    before = encoder.predict(features(stimuli))
    base = np.asarray(before, dtype=np.float64).reshape(len(stimuli), -1)
    spread = np.where(base.std(axis=0) > 0, base.std(axis=0), np.nan)
    r, shift = [], []
    for name, amounts in wanted.items():
        each = []
        for amount in amounts:
            moved = encoder.predict(features(transform_stimuli(stimuli, name, amount)))
            each.append(np.asarray(moved, dtype=np.float64).reshape(base.shape))
        r.append(np.mean([stats.score(base, other, "r") for other in each], axis=0))
        shift.append(np.mean([np.abs(other - base).mean(axis=0) for other in each], axis=0) / spread)
    labelled = isinstance(before, xr.DataArray) and "voxel" in before.dims
    coords = {str(k): c for k, c in before.coords.items() if c.dims == ("voxel",)} if labelled else {}
    values = {"invariance": (("transform", "voxel"), np.stack(r)), "shift": (("transform", "voxel"), np.stack(shift))}
    return xr.Dataset(values, coords={"transform": list(wanted), **coords}).assign_attrs(n_stimuli=len(stimuli))
