"""Text search over voxels by predicted response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc.captions._linear import as_weights, voxel_labels
from neuroenc.captions.analysis._lexicon import load_lexicon
from neuroenc.captions.text._vectors import directions_of, embed, prompt
from neuroenc.retrieval import second_stage


def default_reference() -> list[str]:
    """Some 400 short prompts of the shipped lexicon's words: what texts are compared with by default."""
    return list(dict.fromkeys(prompt("a photo of {}", w) for words in load_lexicon().values() for w in words))


def search_voxels(
    texts: str | Sequence[str],
    source: Any,
    embed_text: Any,
    *,
    intercept: Any = None,
    reference: Sequence[str] | None = None,
    image_direction: Any = None,
    top: int | None = None,
    rerank: Callable[[int, Any], Any] | None = None,
    rerank_depth: int = 100,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    r"""Search voxels by text: predicted response to a text, beside reference texts.

    .. math:: r_{tv} = w_v \cdot t' + b_v, \qquad z_{tv} = (r_{tv} - \mathrm{mean}_u r_{uv}) / \mathrm{sd}_u r_{uv}

    with reference texts u, and :math:`t'` the text's unit vector with the mean text replaced by the mean image (at
    unit norm), as an encoder of images needs it; without ``image_direction`` the centred text. For a projection,
    r is the cosine of the centred directions. A predicted response is larger for every text where a voxel is well
    predicted; z and percentile compare the text with other texts in the same voxel.

    Parameters
    ----------
    texts : str or sequence of str
    source : weights (feature, voxel), an encoder with ``to_linear()``, or a Dataset of :func:`project`
    embed_text : callable or TextEmbedder
    intercept : array (voxel,), optional
        With weights as an array.
    reference : sequence of str, optional
        Texts to compare with; default prompts "a photo of a ..." of the shipped lexicon. They also give the mean text.
        Give texts of the same form as those asked for, phrases for phrases and captions for captions: weights also
        tell forms of text apart, which no image ever taught them.
    image_direction : array (feature,), optional
        Of weights: mean unit-norm image, ``bank_direction`` of a projection.
    top : int, optional
        Voxels a text; default all.
    rerank : callable, optional
        A second stage, which orders the first voxels of each text anew: gives scores for the number of a text and
        voxels, the higher the better, such as :meth:`neuroenc.retrieval.CrossRanker.scorer` of the texts' tokens and
        of tokens (voxel, token, feature): the vectors of each voxel's best stimuli, say.
    rerank_depth : int
        How many voxels of each text it scores; the others follow in their order.
    max_memory : str, int or None

    Returns
    -------
    DataFrame
        ``text, rank, voxel, predicted, percentile`` (share of reference texts that are predicted to drive the voxel
        less), ``z`` and the voxel coordinates, sorted by text (as given) and ``z``. With ``rerank`` also
        ``rank_before``, by ``z``, and ``rerank_score``, NaN where it was not asked.

    Raises
    ------
    DataError
        Widths differ, the reference is too small, or the second stage gives no score.

    Examples
    --------
    >>> import numpy as np
    >>> def embed_text(texts):
    ...     return np.array([[1.0, 0.1 * len(t)] if "dog" in t else [0.1 * len(t), 1.0] for t in texts])
    >>> out = search_voxels("a dog", np.array([[0.0, 2.0], [1.0, 0.0]]), embed_text,
    ...                     reference=["a dog", "a house", "a street", "a man"])
    >>> out["voxel"].tolist()
    [1, 0]
    >>> out = search_voxels("a dog", np.array([[0.0, 2.0], [1.0, 0.0]]), embed_text,
    ...                     reference=["a dog", "a house", "a street", "a man"], rerank=lambda text, voxels: -voxels)
    >>> out[["voxel", "rank_before"]].values.tolist()
    [[0, 2], [1, 1]]
    """
    check_whole("top", 1 if top is None else top)
    check_whole("rerank_depth", rerank_depth)
    asked = [texts] if isinstance(texts, str) else list(texts)
    others = default_reference() if reference is None else list(reference)
    if not asked:
        raise DataError("no text is given.")
    if len(set(others)) < 3:
        raise DataError(f"{len(set(others))} different reference texts; at least 3 are needed, better hundreds.")
    labelled: xr.DataArray | xr.Dataset
    if isinstance(source, xr.Dataset):
        target, live, _ = directions_of(source)
        labelled, bias, moved = source, np.zeros(len(target)), None
    else:
        weights = as_weights(source, intercept)
        target, live = weights.matrix(), weights.valid()
        labelled, bias, moved = weights.coef, weights.intercept, image_direction
    vectors = embed(embed_text, [*asked, *others], target.shape[1])
    mean = vectors[len(asked) :].mean(axis=0)
    vectors = unit_rows(vectors - mean + (0.0 if moved is None else np.asarray(moved, dtype=np.float64)))
    query, compared = vectors[: len(asked)], vectors[len(asked) :]
    found = {name: np.full((len(asked), len(target)), np.nan) for name in ("predicted", "percentile", "z")}
    step = int(max(1, parse_memory(max_memory) // 4 // (8 * len(others))))
    rows = np.flatnonzero(live)
    for start in range(0, len(rows), step):
        at = rows[start : start + step]
        level, own = np.sort(compared @ target[at].T, axis=0), query @ target[at].T
        scale: np.ndarray = level.std(axis=0)
        for i, column in enumerate(own):
            # A text that is itself among the reference must not lose or win by the last bit.
            found["percentile"][i, at] = (level < column - 1e-6 * scale).mean(axis=0)
        z = np.divide(own - level.mean(axis=0), scale, out=np.full_like(own, np.nan), where=scale > 1e-12)
        found["z"][:, at], found["predicted"][:, at] = z, own + bias[at]
    frames = []
    for i, text in enumerate(asked):
        order = rows[np.argsort(-np.nan_to_num(found["z"][i, rows], nan=-np.inf), kind="stable")]
        more: dict[str, np.ndarray] = {}
        if rerank is not None:
            first = labelled["voxel"].values[order[:rerank_depth]][None]
            again = second_stage(first, lambda _, voxels, i=i: rerank(i, voxels))  # type: ignore[misc]
            before = np.arange(1, len(order) + 1)
            before[: first.size] = again.before[0]
            score = np.full(len(order), np.nan)
            score[: first.size] = again.scores[0]
            order, more = order[before - 1], {"rank_before": before[:top], "rerank_score": score[:top]}
        order = order[:top]
        named = {"text": text, "rank": np.arange(1, len(order) + 1), "voxel": labelled["voxel"].values[order]}
        frame = pd.DataFrame({**named, **{name: values[i, order] for name, values in found.items()}, **more})
        frames.append(pd.concat([frame, voxel_labels(labelled, order)], axis=1))
    return pd.concat(frames, ignore_index=True)
