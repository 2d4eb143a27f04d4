"""Captions as hypotheses: what a caption ranks first among new images, the voxel should answer to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_fraction, check_texts, check_whole, make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.tables import check_columns
from neuroenc.captions._linear import as_weights, select_voxels
from neuroenc.captions.checks._scoring import _ranks
from neuroenc.captions.text._vectors import embed
from neuroenc.data import average_repeats, match

#: Best and worst images that are named for a caption.
_SHOWN = 5


def test_caption(
    encoder: Any,
    text: Any,
    images: xr.DataArray,
    responses: xr.DataArray | None = None,
    *,
    embed_text: Callable[[list[str]], Any],
    text_direction: Any = None,
    others: Sequence[str] = (),
    seen: Sequence[Any] = (),
    top: float = 0.1,
    n_permutations: int = 999,
    features_normalised: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Test a caption as a hypothesis: responses to new images should follow their likeness to its text.

    .. math:: \rho_{cv} = \mathrm{Spearman}_i\big((t_c - \bar t) \cdot (x_i - \bar x),\; y_{iv}\big)

    with the caption's unit vector t, unit-norm images x (:math:`x_i - \bar x` scaled to unit length), and the response
    y: measured where ``responses`` are given, else predicted. Under the null images are exchangeable:
    :math:`p = (k + 1) / (n + 1)` with k of n permutations whose correlation is at least that of the caption. Predicted
    responses alone test whether caption and weights agree, not whether the voxel does.

    Parameters
    ----------
    encoder : encoder with ``to_linear()``, pair (coef, intercept), or DataArray (feature, voxel)
    text : str, sequence of str, or DataFrame ``voxel, caption``
        Captions, each tested on every voxel; of a table each row on its voxel.
    images : DataArray (stimulus, feature)
        Embeddings in the joint space, any norm, of images that neither the encoder was fitted on nor the caption was
        made from.
    responses : DataArray (stimulus, voxel) or (presentation, voxel), optional
        Measured responses to all or some of these images; repeats are averaged.
    embed_text : callable
        ``embed_text(list of str) -> (n, feature)``.
    text_direction : array (feature,), optional
        Mean unit vector of texts. Without it neither texts nor images are centred.
    others : sequence of str
        Captions of other voxels, for a second null: how many of them are followed as well.
    seen : sequence
        Stimuli of the training and of the caption's bank, which are refused.
    top : float
        Share of images that are compared with the rest.
    n_permutations : int
    features_normalised : bool
        Whether the encoder was fitted on unit-norm features.
    seed : int

    Returns
    -------
    DataFrame, one row a hypothesis
        ``voxel, caption, rho_predicted, rho_measured`` (NaN without ``responses``)``, top_minus_rest`` (mean response
        to the ``top`` images less that to the rest, in units of the responses)``, p, q`` (Benjamini-Hochberg over the
        table)``, p_others`` (share of ``others``, and one, that are followed at least as well; NaN without)``, best,
        worst`` (ids of the images most and least like the caption, joined by ";"). ``p`` and ``top_minus_rest`` are of
        measured responses where these are given.

    Raises
    ------
    DataError
        Fewer than 20 images, images that were ``seen``, widths or labels that do not fit, NaN responses.

    References
    ----------
    Matsuyama, Nishimoto & Takagi. LaVCa: LLM-assisted visual cortex captioning. ICLR 2026.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import make_features
    >>> rng = np.random.default_rng(0)
    >>> images = make_features(rng.standard_normal((60, 4)), stimulus=[f"s{k}" for k in range(60)])
    >>> def embed_text(texts):
    ...     return np.array([[float(n in t) for n in ("face", "dog", "hut", "car")] for t in texts])
    >>> found = test_caption(np.eye(4)[:, :1], ["a face", "a car"], images, embed_text=embed_text)
    >>> found[["caption", "p"]].values.tolist()[0], bool(found.rho_predicted[1] < 0.4)
    (['a face', 0.001], True)
    """
    check_whole("n_permutations", n_permutations)
    check_fraction("top", top)
    weights = as_weights(encoder)
    names = pd.Index(weights.coef["voxel"].values)
    asked = _asked(text, names)
    y = None if responses is None else average_repeats(responses)
    # Images that were not measured say nothing of the measured response.
    shown = images if y is None else match(images, y)
    ids, x = shown["stimulus"].values, np.asarray(shown.values, dtype=np.float64)
    again = sorted({str(i) for i in ids} & {str(s) for s in seen})
    if again:
        raise DataError(
            f"{len(again)} of {len(ids)} images were seen in training or by the caption's bank (first: {again[0]!r}). "
            "Next step: test on images that were held out."
        )
    if len(ids) < 20:
        raise DataError(f"{len(ids)} images are too few to test a caption on. Next step: at least 20 of them.")
    if x.ndim != 2 or x.shape[1] != weights.coef.sizes["feature"]:
        raise DataError(f"images have shape {x.shape}, and weights {weights.coef.shape}; they must share one space.")
    voxels, captions = asked["voxel"].to_numpy(), asked["caption"].tolist()
    at, kept = pd.factorize(names.get_indexer(voxels))
    weights = select_voxels(weights, kept)
    unit = unit_rows(x)
    predicted = (unit if features_normalised else x) @ weights.matrix().T + weights.intercept
    measured = None if y is None else _measured(y, weights.coef["voxel"].values)
    tested = predicted if measured is None else measured

    different, rival = list(dict.fromkeys(captions)), check_texts(list(others), "others")
    vectors = embed(embed_text, [*different, *rival], x.shape[1])
    if text_direction is not None:
        vectors, unit = unit_rows(vectors - np.asarray(text_direction)), unit_rows(unit - unit.mean(axis=0))
    likeness = unit @ vectors.T
    told, own = _ranks(likeness), _ranks(tested)
    which = pd.Index(different).get_indexer(captions)
    rho = np.einsum("ip,ip->p", told[:, which], own[:, at])
    order = np.argsort(-likeness, axis=0, kind="stable")
    n_top = max(1, round(top * len(ids)))
    orders = make_rng(seed).permuted(np.tile(np.arange(len(ids)), (n_permutations, 1)), axis=1)
    gap, p, p_others = (np.full(len(asked), np.nan) for _ in range(3))
    best, worst = np.empty(len(asked), dtype=object), np.empty(len(asked), dtype=object)
    for c in range(len(different)):
        rows = np.flatnonzero(which == c)
        first = order[:n_top, c]
        gap[rows] = tested[first][:, at[rows]].mean(axis=0) - tested[order[n_top:, c]][:, at[rows]].mean(axis=0)
        null = told[:, c][orders] @ own[:, at[rows]]
        # Equal but for rounding is at least as large.
        p[rows] = (1 + (null >= rho[rows] - 1e-9).sum(axis=0)) / (1 + n_permutations)
        best[rows], worst[rows] = (
            ";".join(map(str, ids[k])) for k in (order[:_SHOWN, c], order[: -_SHOWN - 1 : -1, c])
        )
    if rival:
        known = told[:, len(different) :].T @ own
        p_others = (1 + (known[:, at] >= rho - 1e-9).sum(axis=0)) / (1 + len(rival))
    p[np.isnan(rho)] = np.nan
    followed = np.einsum("ip,ip->p", told[:, which], _ranks(predicted)[:, at])
    table = {"rho_predicted": followed, "rho_measured": np.full(len(asked), np.nan) if measured is None else rho}
    table |= {"top_minus_rest": gap, "p": p, "q": stats.fdr(p), "p_others": p_others, "best": best, "worst": worst}
    return asked.assign(**table)


# Not a test of this package: pytest would collect it wherever it is imported.
test_caption.__test__ = False  # type: ignore[attr-defined]


def _asked(text: Any, voxels: pd.Index) -> pd.DataFrame:
    """Hypotheses: ``voxel, caption``."""
    if isinstance(text, pd.DataFrame):
        check_columns(text, ("voxel", "caption"), "text")
        asked = text[["voxel", "caption"]].reset_index(drop=True)
    else:
        texts = [text] if isinstance(text, str) else check_texts(text, "text")
        asked = pd.DataFrame({"voxel": np.tile(voxels, len(texts)), "caption": np.repeat(texts, len(voxels))})
    lost = asked.loc[~asked["voxel"].isin(voxels), "voxel"]
    if len(lost) or not len(asked):
        raise DataError(
            f"{len(lost)} of {len(asked)} captions are of voxels that the encoder does not have"
            f"{f' (first: {lost.iloc[0]!r})' if len(lost) else ''}. Next step: captions of the encoder's voxels."
        )
    return asked


def _measured(responses: xr.DataArray, voxels: np.ndarray) -> np.ndarray:
    """Responses (stimulus, voxel) of these voxels, by name."""
    at = pd.Index(responses["voxel"].values).get_indexer(voxels)
    if (at < 0).any():
        raise DataError(
            f"responses lack {int((at < 0).sum())} of {len(voxels)} voxels of the captions (first: "
            f"{voxels[at < 0][0]!r}). Next step: responses of the encoder's voxels."
        )
    values = np.asarray(responses.transpose("stimulus", "voxel").values, dtype=np.float64)[:, at]
    if not np.isfinite(values).all():
        raise DataError("responses hold NaN or infinite values. Next step: leave those stimuli or voxels out.")
    return values
