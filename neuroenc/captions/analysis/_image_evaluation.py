"""Are images what a region wants? A second encoder answers; and images of a bank for captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions.analysis._tables import region_masks
from neuroenc.captions.analysis._texts import embed, unit
from neuroenc.captions.projection._project import IdCollector
from neuroenc.data import Stimuli
from neuroenc.retrieval import as_bank, top_k

__all__ = ["evaluate_images", "retrieve_images"]


def retrieve_images(
    captions: Sequence[str] | pd.DataFrame,
    bank: Any,
    embed_text: Any,
    *,
    k: int = 1,
    centre: bool = True,
    text_direction: Any = None,
    image_direction: Any = None,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    r"""The images of a bank nearest to each caption: what stands in for synthesis where there is no generator.

    .. math:: s_{tk} = \cos(t - \bar t,\; m_k - \bar m)

    with unit-norm texts t and images m; their means are taken away as in
    :class:`neuroenc.captions.RetrievalDecoder`.

    Parameters
    ----------
    captions : sequence of str, or DataFrame with ``caption``
    bank : array (n, feature), DataArray (stimulus, feature), path or list of shards
    embed_text : callable or TextEmbedder
    k : int
        Images a caption.
    centre : bool
    text_direction : array (feature,), optional
        Mean unit-norm text; default the mean of these captions, which must then be varied.
    image_direction : array (feature,), optional
        Default the mean of the bank.
    max_memory : str, int or None

    Returns
    -------
    DataFrame
        ``caption, rank, stimulus, score``; different captions once, in order.

    Raises
    ------
    DataError
        No captions, k above the bank's size, widths that differ, or a single caption without ``text_direction``.

    Examples
    --------
    >>> import numpy as np
    >>> bank = np.array([[2.0, 0.1], [0.1, 1.0]])
    >>> found = retrieve_images(["a dog", "a house"], bank, lambda t: np.eye(2)[[int("house" in x) for x in t]])
    >>> found[["caption", "stimulus"]].values.tolist()
    [['a dog', '0'], ['a house', '1']]
    """
    texts = captions["caption"] if isinstance(captions, pd.DataFrame) else captions
    names = list(dict.fromkeys(str(t) for t in texts))
    if not names:
        raise DataError("there are 0 captions; at least one is needed.")
    images = as_bank(bank)
    if not images.reusable:
        raise DataError("the bank is read twice. Next step: pass a list, array or path.")
    query = embed(embed_text, names)
    mean = np.zeros(query.shape[1])
    if centre:
        if text_direction is None and len(names) < 2:
            raise DataError("one caption has no mean to be centred on. Next step: text_direction=, or centre=False.")
        query = unit(query - (query.mean(axis=0) if text_direction is None else np.asarray(text_direction)))
        mean = _mean_direction(images, query.shape[1]) if image_direction is None else np.asarray(image_direction)
    ids = IdCollector()
    moved = as_bank(_centred(images, query.shape[1], mean))
    score, at = top_k(query, moved, k, normalise=False, max_memory=max_memory, seen=ids)
    return pd.DataFrame(
        {
            "caption": np.repeat(np.array(names, dtype=object), k),
            "rank": np.tile(np.arange(1, k + 1), len(names)),
            "stimulus": ids.names(at).ravel().astype(object),
            "score": score.ravel().astype(np.float64),
        }
    )


def _centred(bank: Any, width: int, mean: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit rows less the mean, at unit norm, a chunk at a time."""
    for chunk in bank.chunks(16384, width):
        names = chunk.names(np.arange(chunk.start, chunk.start + len(chunk.rows)))
        yield unit(unit(np.asarray(chunk.rows, dtype=np.float64)) - mean), names


def _mean_direction(bank: Any, width: int) -> np.ndarray:
    total, n = np.zeros(width), 0
    for chunk in bank.chunks(65536, width):
        total += unit(np.asarray(chunk.rows, dtype=np.float64)).sum(axis=0)
        n += len(chunk.rows)
    return total / n


def _roi_masks(rois: Any, n: int) -> dict[str, np.ndarray]:
    if isinstance(rois, (xr.DataArray, xr.Dataset)):
        rois = rois["roi"].values
    if isinstance(rois, Mapping):
        masks = {str(k): np.asarray(v, dtype=bool) for k, v in rois.items()}
    else:
        masks = region_masks(rois)
    for name, mask in masks.items():
        if mask.shape != (n,) or not mask.any():
            raise DataError(f"roi {name!r} has a mask of shape {mask.shape} with {mask.sum()} of {n} voxels.")
    return masks


def evaluate_images(
    images: Stimuli | Mapping[str, Stimuli],
    encoder: Any,
    embedder: Any,
    rois: Any,
    *,
    natural: Stimuli,
    top: Mapping[str, Sequence[str]] | None = None,
    n_top: int = 100,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    source: str = "synthesised",
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predicted activation of images by a second encoder, beside a region's best natural images and random ones.

    The encoder must stand on another backbone than the one that captions and images came from: what is optimised in
    one feature space is not thereby good in another. Values are means over the voxels of a region.

    Parameters
    ----------
    images : Stimuli, or mapping of region to the Stimuli made for it
    encoder : fitted encoder
        ``predict`` gives (stimulus, voxel).
    embedder : callable or ImageEmbedder
        Stimuli to features as ``encoder`` was fitted on.
    rois : sequence (voxel,) of names (";" joins several), DataArray with a roi coordinate, or mapping of masks
    natural : Stimuli
        Natural images; best not those that the encoder was fitted on.
    top : mapping of region to stimulus ids, optional
        A region's best natural images by an independent measure: measured responses, or evidence of the first
        encoder. Without it they are picked by this very encoder, which favours them (``selection`` says "same
        encoder").
    n_top : int
        Their number, where they are picked here.
    n_bootstraps, confidence, seed
        Intervals over images.
    source : str
        Name of ``images`` in the tables.

    Returns
    -------
    summary : DataFrame
        ``roi, made_for, source`` (``source``, "natural top", "natural")``, selection, n_images, mean, low, high,
        above_natural`` (mean less that of all natural images, in their standard deviations)``, percentile`` (of the
        images among all natural ones, mean). ``made_for`` names the region that images were made or picked for ("" for
        all), so that activation of other regions stands beside the intended one.
    images : DataFrame
        ``roi, made_for, source, stimulus, predicted``: what figure 6 draws.

    Raises
    ------
    DataError
        Shapes do not fit, or an id or region is unknown.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 6).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import Stimuli
    >>> class Encoder:
    ...     def predict(self, X):
    ...         return np.asarray(X)
    >>> def brightness(stimuli):
    ...     return stimuli.images.mean((1, 2, 3))[:, None]
    >>> grey = np.arange(0, 200, 10)[:, None, None, None] * np.ones((1, 4, 4, 3))
    >>> natural = Stimuli([f"n{i}" for i in range(20)], grey.astype("uint8"))
    >>> made = Stimuli(["m"], np.full((1, 4, 4, 3), 250, "uint8"))
    >>> summary, _ = evaluate_images(made, Encoder(), brightness, ["V1"], natural=natural, n_top=2)
    >>> summary[["source", "mean"]].values.tolist()
    [['synthesised', 250.0], ['natural top', 185.0], ['natural', 95.0]]
    """
    sets = images if isinstance(images, Mapping) else {"": images}
    level = _predict(encoder, embedder, natural)
    masks = _roi_masks(rois, level.shape[1])
    for name in [*(s for s in sets if s), *(top or {})]:
        if name not in masks:
            raise DataError(f"images are for region {name!r}; the rois are {', '.join(masks)}.")
    if top is None and n_top > len(natural):
        raise DataError(f"n_top={n_top} of {len(natural)} natural images. Next step: a smaller n_top.")
    own = {name: _predict(encoder, embedder, one) for name, one in sets.items()}
    rng = make_rng(seed)
    summary, each = [], []
    for roi, mask in masks.items():
        base = level[:, mask].mean(axis=1)
        ordered, spread = np.sort(base), float(base.std()) or 1.0
        best = np.argsort(-base, kind="stable")[:n_top] if top is None else None
        rows = [(name, source, "", one.ids, own[name][:, mask].mean(axis=1)) for name, one in sets.items()]
        picks = {roi: best} if best is not None else {r: natural.index_of(list(ids)) for r, ids in (top or {}).items()}
        selection = "same encoder" if top is None else "given"
        rows += [(r, "natural top", selection, natural.ids[at], base[at]) for r, at in picks.items() if at is not None]
        rows.append(("", "natural", "", natural.ids, base))
        for made_for, kind, how, ids, values in rows:
            drawn = values[rng.integers(0, len(values), (n_bootstraps, len(values)))].mean(axis=1)
            percentile = float((np.searchsorted(ordered, values) / len(ordered)).mean())
            mean = float(values.mean())
            low, high, _ = stats.sample_interval(drawn, mean, n_units=len(values), confidence=confidence)
            above = (mean - float(base.mean())) / spread
            summary.append((roi, made_for, kind, how, len(values), mean, float(low), float(high), above, percentile))
            each.append(
                pd.DataFrame({"roi": roi, "made_for": made_for, "source": kind, "stimulus": ids, "predicted": values})
            )
    columns = [
        "roi",
        "made_for",
        "source",
        "selection",
        "n_images",
        "mean",
        "low",
        "high",
        "above_natural",
        "percentile",
    ]
    return pd.DataFrame(summary, columns=columns), pd.concat(each, ignore_index=True)


def _predict(encoder: Any, embedder: Callable[[Stimuli], Any] | Any, stimuli: Stimuli) -> np.ndarray:
    features = getattr(embedder, "embed", embedder)(stimuli)
    values = np.asarray(encoder.predict(features), dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.shape[0] != len(stimuli):
        raise DataError(f"the encoder predicted shape {values.shape} for {len(stimuli)} images.")
    if not np.isfinite(values).all():
        raise DataError("the encoder predicted NaN. Next step: leave voxels out that it was not fitted for.")
    return values
