"""Invariance: how far predicted responses stay when pictures are moved, scaled or turned, or texts misspelt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import check_texts, check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data import PERTURBATIONS, Stimuli, perturb_text, render_text

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
    coords = _voxels(before)
    values = {"invariance": (("transform", "voxel"), np.stack(r)), "shift": (("transform", "voxel"), np.stack(shift))}
    return xr.Dataset(values, coords={"transform": list(wanted), **coords}).assign_attrs(n_stimuli=len(stimuli))


def _voxels(predicted: Any) -> dict[str, Any]:
    """Coordinates of the voxels of predictions, where they have any."""
    labelled = isinstance(predicted, xr.DataArray) and "voxel" in predicted.dims
    return {str(k): c for k, c in predicted.coords.items() if c.dims == ("voxel",)} if labelled else {}


def invariance_index(
    encoder: Any,
    features: Callable[[Stimuli], Any],
    texts: Sequence[str],
    kind: str = "typo",
    *,
    other: str = "text",
    rate: float | None = None,
    n_bootstraps: int = 1000,
    batch_size: int = 256,
    seed: int = 0,
    **rendering: Any,
) -> xr.Dataset:
    r"""Measure how invariant each voxel's predictions for rendered texts are to misspelling, against a control.

    .. math:: I_v = \mathrm{corr}_n\bigl(\hat y_v(t_n), \hat y_v(t_n')\bigr)
              - \mathrm{corr}_n\bigl(\hat y_v(t_n), \hat y_v(t_n'')\bigr)

    with :math:`t_n'` the perturbed text, and :math:`t_n''` another text of the list, or the same text under another
    perturbation. A voxel that reads words should keep its response to a word with a typing error and lose it when the
    letters are scrambled; one that sees lines and edges keeps or loses both.

    Parameters
    ----------
    encoder : encoder
        Fitted; its ``predict`` takes what ``features`` gives.
    features : callable
        From stimuli to features: ``ImageEmbedder(...).embed`` for the rendered pictures, or
        ``TextEmbedder("FOLDER").embed_captions`` of a space of kind "rendered".
    texts : sequence of str (n,)
        Words or sentences, each once, that the encoder was not fitted on.
    kind : {"typo", "shuffle", "space", "scramble"}
        Perturbation, as of `neuroenc.data.perturb_text`.
    other : {"text", "typo", "shuffle", "space", "scramble"}
        Control: "text", another text of the list, which tells the correlation of texts that share nothing but being
        text; or a perturbation, at its own default rate, whose correlation is taken off.
    rate : float, optional
        Of ``kind``.
    n_bootstraps : int
        Resamples of texts.
    batch_size : int
        Texts that are rendered and predicted at once.
    seed : int
        Of the perturbations, of which text is the other, and of the resamples.
    **rendering
        ``font, size, position, shape, colour, background, wrap, clip`` of `neuroenc.data.render_text`.

    Returns
    -------
    Dataset (voxel,)
        ``index`` with ``low, high`` (95 %) and ``p`` (of 0) over texts, and the two correlations, ``r_perturbed`` and
        ``r_other``. NaN for voxels whose predictions do not vary.

    Raises
    ------
    ConfigError
        An unknown perturbation, or the same one on both sides.
    DataError
        Two texts are equal, fewer than three, or some that the perturbation leaves as they are; a text that does not
        fit into its picture.

    References
    ----------
    Xiao et al. (2024), Pixel Sentence Representation Learning, arXiv:2402.08183. Vinckier et al. (2007), Neuron 55:143
    (letter strings that are ever more like words).

    Examples
    --------
    >>> from neuroenc.embedding import ImageEmbedder
    >>> from neuroenc.encoders import RidgeEncoder
    >>> words = ["house", "mountain", "red", "teacher", "ball", "elephant", "car", "umbrella"]
    >>> embed = ImageEmbedder("contrast", cache=False, progress=False).embed
    >>> X = embed(render_text(words, shape=(64, 128)))
    >>> encoder = RidgeEncoder([1e-3], cv=2).fit(X, np.array([[len(word)] for word in words]))
    >>> found = invariance_index(encoder, embed, words, n_bootstraps=100, shape=(64, 128))
    >>> bool(found["r_perturbed"][0] > 0.8), sorted(found.data_vars)
    (True, ['high', 'index', 'low', 'p', 'r_other', 'r_perturbed'])
    """
    listed = check_texts(texts, "texts")
    one_of("kind", kind, PERTURBATIONS)
    one_of("other", other, ("text", *PERTURBATIONS))
    check_whole("batch_size", batch_size)
    if kind == other:
        raise ConfigError(f'kind and other are both "{kind}", of which the difference is 0. Next step: other="text".')
    if len(set(listed)) < len(listed) or len(listed) < 3:
        raise DataError(f"{len(listed)} texts, {len(set(listed))} of them different; expected at least 3, each once.")
    arms = {"clean": listed, kind: perturb_text(listed, kind, rate, seed=seed)}
    if other != "text":
        arms[other] = perturb_text(listed, other, seed=seed)
    for name in list(arms)[1:]:
        same = [a for a, b in zip(listed, arms[name]) if a == b]
        if same:
            raise DataError(
                f'{len(same)} of {len(listed)} texts stay as they are under "{name}", first {same[0]!r}. Next step: '
                "leave these out, or rate= above 0."
            )
    found: dict[str, np.ndarray] = {}
    coords: dict[str, Any] = {}
    for name, several in arms.items():
        parts = []
        for first in range(0, len(several), batch_size):
            some = several[first : first + batch_size]
            # Two texts may be equal once they are perturbed, so that they cannot be ids.
            ids = [f"{name} {first + n}" for n in range(len(some))]
            predicted = encoder.predict(features(render_text(some, ids=ids, **rendering)))
            coords = _voxels(predicted)
            parts.append(np.asarray(predicted, dtype=np.float64).reshape(len(some), -1))
        found[name] = np.concatenate(parts)
    clean = found["clean"]
    if other == "text":
        # Along one circle through all texts, no text is its own other.
        order = make_rng(seed).permutation(len(listed))
        found[other] = np.empty_like(clean)
        found[other][order] = clean[np.roll(order, 1)]
    result = stats.Resampler(n_bootstraps, seed=seed).difference(clean, found[kind], found[other])
    values = {"index": result.estimate, "low": result.low, "high": result.high, "p": result.p}
    values |= {"r_perturbed": stats.score(clean, found[kind], "r"), "r_other": stats.score(clean, found[other], "r")}
    table = xr.Dataset({name: ("voxel", x) for name, x in values.items()}, coords=coords)
    return table.assign_attrs(n_texts=len(listed), kind=kind, other=other)
