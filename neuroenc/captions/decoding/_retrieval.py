"""Retrieval decoder, reranking, and predicted responses of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_ids, check_texts, check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions._linear import Weights, as_weights, voxel_labels
from neuroenc.captions.decoding._search import Generated, text_key
from neuroenc.captions.text._vectors import embed
from neuroenc.retrieval import DenseIndex


def weights_of(projection: xr.Dataset, coef: Any, intercept: Any) -> Weights | None:
    """Weights of the voxels of a projection, which must name the same; None without ``coef``."""
    weights = None if coef is None else as_weights(coef, intercept)
    if weights is not None and not np.array_equal(weights.coef["voxel"], projection["voxel"]):
        raise DataError("coef and projection name different voxels. Next step: project these same weights.")
    return weights


def _predicted(
    decoder: Any, projection: xr.Dataset, at: np.ndarray, texts: list[str], coef: Any, intercept: Any
) -> np.ndarray:
    """Response of voxel ``at[k]`` to ``texts[k]``, float64 (k,); NaN without ``coef`` or the decoder's ``embed_text``.

    Texts count at unit norm, or at the voxel's projected norm for an encoder of raw features. With the decoder's
    ``text_direction`` they are first moved across the modality gap: the mean of texts is replaced by that of images.
    """
    weights = weights_of(projection, coef, intercept)
    if weights is None or decoder.embed_text is None or not texts:
        return np.full(len(at), np.nan)
    vectors = embed(decoder.embed_text, texts)
    if decoder.text_direction is not None:
        vectors = unit_rows(vectors - decoder.text_direction + projection["bank_direction"].values)
    return _responses(weights, projection, at, vectors)


def _responses(weights: Weights, projection: xr.Dataset, at: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Response of voxel ``at[k]`` to the unit vector ``vectors[k]``, at its projected norm for raw features."""
    cosine = np.einsum("vd,vd->v", weights.matrix()[at], vectors)
    if not projection.attrs.get("features_normalised", 1):
        cosine *= np.linalg.norm(projection["embedding"].values[at], axis=1)
    return cosine + weights.intercept[at]


def caption_frame(
    decoder: Any, projection: xr.Dataset, rows: Any, found: Sequence[Sequence[Any]], coef: Any, intercept: Any
) -> pd.DataFrame:
    """The table of a :class:`PrefixDecoder`: ``found[k]`` are the captions (`Generated`) of voxel ``rows[k]``."""
    flat = [(row, rank, c) for row, several in zip(rows, found) for rank, c in enumerate(several, 1)]
    at = np.array([row for row, _, _ in flat], dtype=np.int64)
    texts, scores = [c.text for _, _, c in flat], [c.score for _, _, c in flat]
    predicted = _predicted(decoder, projection, at, texts, coef, intercept)
    ids = [decoder.origin(c.tokens) for _, _, c in flat]
    return _frame(projection, at, [rank for _, rank, _ in flat], texts, scores, ids, predicted)


def _frame(
    projection: xr.Dataset, at: np.ndarray, rank: Any, captions: list[str], score: Any, ids: list[str], predicted: Any
) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "voxel": projection["voxel"].values[at],
            "rank": np.asarray(rank, dtype=np.int64),
            "caption": np.array(captions, dtype=object),
            "score": np.asarray(score, dtype=np.float64),
            "caption_id": np.array(ids, dtype=object),
            "predicted": predicted,
        }
    )
    return pd.concat([frame, voxel_labels(projection, at)], axis=1)


def rerank(
    several: Sequence[list[Generated]],
    inputs: np.ndarray,
    weight: float,
    embed_text: Callable[[list[str]], Any],
    text_direction: np.ndarray | None = None,
) -> list[list[Generated]]:
    r"""Add to each caption's score how near the caption is to its embedding.

    .. math:: s'(y) = s(y) + \lambda \cos(x, \; t(y) - \bar t)

    with the decoder's input x and the mean direction of texts: two vectors around their own means where the decoder
    is centred, so that the gap between texts and images drops out.

    Parameters
    ----------
    several : sequence (n,) of list of Generated
    inputs : array (n, embedding_dim)
        As :meth:`PrefixDecoder.inputs` gives them.
    weight : float
        lambda, in nats a token.
    embed_text : callable
        ``embed_text(list of str) -> (m, embedding_dim)``.
    text_direction : array (embedding_dim,), optional
        The mean direction of texts; None: nothing is subtracted.

    Returns
    -------
    list of list of Generated
        In the order of ``several``; only scores differ.

    Examples
    --------
    >>> import numpy as np
    >>> known = {"a face": [1.0, 0.0], "a house": [0.0, 1.0]}
    >>> written = [Generated("a face", -1.0, [], True, 0), Generated("a house", -1.2, [], True, 0)]
    >>> found = rerank([written], np.array([[0.0, 1.0]]), 0.5, lambda texts: [known[t] for t in texts])
    >>> [round(c.score, 2) for c in found[0]]
    [-1.0, -0.7]
    """
    texts = [c.text for captions in several for c in captions]
    if not texts:
        return [list(captions) for captions in several]
    vectors = embed(embed_text, texts)
    if text_direction is not None:
        vectors = unit_rows(vectors - text_direction)
    x = unit_rows(np.asarray(inputs, dtype=np.float64))
    parts = np.split(vectors, np.cumsum([len(captions) for captions in several])[:-1])
    return [
        [c._replace(score=float(c.score + weight * (v @ row))) for c, v in zip(captions, part, strict=True)]
        for captions, part, row in zip(several, parts, x, strict=True)
    ]


@runtime_checkable
class Decoder(Protocol):
    """Protocol of a decoder: projections of voxels to captions."""

    def decode(self, projection: xr.Dataset, top: int = 5, *, coef: Any = None, intercept: Any = None) -> pd.DataFrame:
        """Captions of each voxel.

        Parameters
        ----------
        projection : Dataset
            From :func:`neuroenc.captions.project`.
        top : int
            Captions a voxel.
        coef, intercept : optional
            The encoder's weights (feature, voxel) of the same voxels, for the predicted response.

        Returns
        -------
        DataFrame, one row per voxel and rank
            ``voxel, rank`` (from 1)``, caption, score, caption_id, predicted`` and the voxel coordinates
            ``i, j, k, vertex, hemi, roi`` that the projection has.
        """


def caption_vectors(captions: Sequence[str], embeddings: Any, ids: Any) -> tuple[list[str], np.ndarray, list[str]]:
    """Captions of a bank, their unit vectors (n, d) in float64, and the id of each."""
    texts = check_texts(captions, "captions")
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise DataError(f"{len(texts)} captions and embeddings of shape {vectors.shape}; legal is (n, d).")
    if not texts:
        raise DataError("the caption bank holds 0 captions; at least one is needed.")
    names = check_ids(ids, len(texts), "captions")
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(texts)} caption embeddings are NaN, infinite or zero; the first is caption "
            f"{bad[0]} ({texts[bad[0]][:60]!r})."
        )
    return texts, vectors / norms[:, None], names


class RetrievalDecoder:
    r"""Retrieval decoder: nearest captions of a corpus to the projected weights.

    With ``centre=True`` the score of caption t for voxel i is the cosine of ``d_i - mean(m)`` and
    ``t - mean(t)``, where d_i is the projected direction, m the unit-norm images of the projection's
    bank and t the unit-norm captions of this decoder's bank. In contrastive image-text spaces such as
    CLIP, images and texts occupy two narrow cones that differ by a nearly constant vector (the modality
    gap). The plain cosine of a text and an image is then mostly the angle of the cones; text-side it is
    dominated by how generic a caption is, and image-side every softmax average holds much of the mean
    image. Subtracting each modality's mean leaves what distinguishes one image or text from another, so
    centring is the default. Use ``centre=False`` where captions and images share one cloud, or where the
    bank's mean is no meaningful origin (a handful of captions, a bank of one category).

    Parameters
    ----------
    captions : sequence of str, length n
        Equal texts (up to case, spaces and a full stop) become one, with the mean of their directions.
    embeddings : array or DataArray (n, d)
        Text embeddings of the captions in the space of the image bank; any norm.
    ids : sequence of str, length n, optional
        Stimulus id of each caption; default the caption's position as text.
    centre : bool
    image_direction : array (d,), optional
        Mean unit-norm image embedding; default is the ``bank_direction`` of the projection.
    max_memory : str, int or None
        For the search.

    Raises
    ------
    DataError
        Numbers do not agree, NaN or zero-norm embeddings.
    ConfigError
        ``centre=True`` with fewer than two different captions.

    References
    ----------
    Liang et al. Mind the gap: understanding the modality gap in multi-modal contrastive representation
    learning. NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import project
    >>> bank = np.array([[1.0, 0.1, 2.0], [0.1, 1.0, 2.0]])
    >>> text = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    >>> decoder = RetrievalDecoder(["a face", "a house"], text)
    >>> frame = decoder.decode(project(np.array([[0.0], [1.0], [0.0]]), bank, progress=False), top=1)
    >>> frame[["voxel", "rank", "caption"]].values.tolist()
    [[0, 1, 'a house']]
    """

    def __init__(
        self,
        captions: Sequence[str],
        embeddings: Any,
        ids: Sequence[str] | None = None,
        *,
        centre: bool = True,
        image_direction: Any = None,
        max_memory: str | int | None = None,
    ) -> None:
        texts, vectors, names = caption_vectors(captions, embeddings, ids)
        group, different = pd.factorize(np.array([text_key(x) for x in texts], dtype=object))
        merged = np.zeros((len(different), vectors.shape[1]))
        np.add.at(merged, group, vectors)
        position = np.unique(group, return_index=True)[1]
        self.captions = [texts[p] for p in position]
        self.ids = [names[p] for p in position]
        self.centre = bool(centre)
        self.directions = unit_rows(merged)
        self._mean = self.directions.mean(axis=0)
        if self.centre and len(self.captions) < 2:
            raise ConfigError("centre=True needs at least two different captions. Next step: centre=False.")
        self._image = None if image_direction is None else np.asarray(image_direction, dtype=np.float64)
        if self._image is not None and not (self._image.shape == vectors.shape[1:] and np.isfinite(self._image).all()):
            raise DataError(
                f"image_direction has shape {self._image.shape}; legal: {vectors.shape[1]} finite numbers, the width "
                "of a caption's embedding."
            )
        self._searched = self.directions - self._mean if self.centre else self.directions
        self._live = np.flatnonzero(np.linalg.norm(self._searched, axis=1) > 1e-9)
        if len(self._live) == 0:
            raise DataError("all captions have one embedding; they cannot be told apart.")
        self._index = DenseIndex(unit_rows(self._searched[self._live]).astype(np.float32))
        self._max_memory = max_memory

    def __len__(self) -> int:
        return len(self.captions)

    def __repr__(self) -> str:
        return f"RetrievalDecoder({len(self)} captions, centre={self.centre})"

    def decode(self, projection: xr.Dataset, top: int = 5, *, coef: Any = None, intercept: Any = None) -> pd.DataFrame:
        """The ``top`` captions of each voxel by cosine to its projected direction.

        Voxels without a projection (NaN) get no row. ``predicted`` (NaN without ``coef``) is the
        encoder's response to the caption's text embedding, at unit norm, or at the voxel's projected
        norm for an encoder of raw features; with ``centre=True`` the text is first moved across the
        modality gap (its mean replaced by the mean image direction), since the encoder knows images only.

        Parameters
        ----------
        projection : Dataset
        top : int
            At most the number of different captions is returned.
        coef, intercept : optional
            As in :class:`Decoder`.

        Returns
        -------
        DataFrame
            See :class:`Decoder`; ``score`` is the cosine, equal ones by order in the bank.

        Raises
        ------
        DataError
            Widths differ, or ``coef`` has other voxels than the projection.
        """
        check_whole("top", top)
        embedding = np.asarray(projection["embedding"].values, dtype=np.float64)
        width = self.directions.shape[1]
        if embedding.shape[1] != width:
            raise DataError(
                f"projected embeddings have width {embedding.shape[1]}, captions {width}; they must share one space. "
                "Next step: embed the captions with the text side of the encoder's backbone."
            )
        weights = weights_of(projection, coef, intercept)
        image = self._image_direction(projection)
        target = unit_rows(embedding)
        if self.centre:
            target = unit_rows(target - image)
        # The unit vector of a NaN row is 0, which centring would turn into a direction.
        rows = np.flatnonzero(np.isfinite(embedding).all(axis=1) & (np.linalg.norm(target, axis=1) > 0))
        k = min(int(top), len(self._live))
        score, at = np.zeros((0, k)), np.zeros((0, k), np.int64)
        if len(rows):
            score, at = self._index.search(target[rows], k, max_memory=self._max_memory)
        at, ranks, predicted = self._live[at], np.tile(np.arange(1, k + 1), len(rows)), np.full(len(rows) * k, np.nan)
        if weights is not None:
            moved = unit_rows(self.directions - self._mean + image) if self.centre else self.directions
            for rank in range(k):
                predicted[rank::k] = _responses(weights, projection, rows, moved[at[:, rank]])
        captions, ids = ([names[x] for x in at.ravel()] for names in (self.captions, self.ids))
        return _frame(projection, np.repeat(rows, k), ranks, captions, score.ravel(), ids, predicted)

    def _image_direction(self, projection: xr.Dataset) -> np.ndarray:
        if not self.centre:
            return np.zeros(self.directions.shape[1])
        if self._image is not None:
            return self._image
        if "bank_direction" not in projection:
            raise ConfigError(
                "centre=True needs the mean image direction, which this projection does not hold. "
                "Next step: RetrievalDecoder(..., image_direction=...), or centre=False."
            )
        return np.asarray(projection["bank_direction"].values, dtype=np.float64)
