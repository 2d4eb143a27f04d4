"""Captions put in order by what they say of their embedding, beside how well they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuroenc.captions.decoding._predicted import unit
from neuroenc.captions.decoding._search_settings import Generated

__all__ = ["rerank"]


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
    different = list(dict.fromkeys(c.text for captions in several for c in captions))
    if not different:
        return [list(captions) for captions in several]
    vectors = unit(np.asarray(embed_text(different), dtype=np.float64))
    if text_direction is not None:
        vectors = unit(vectors - text_direction)
    number = {text: k for k, text in enumerate(different)}
    x = unit(np.asarray(inputs, dtype=np.float64))
    return [
        [c._replace(score=float(c.score + weight * (vectors[number[c.text]] @ row))) for c in captions]
        for captions, row in zip(several, x, strict=True)
    ]
