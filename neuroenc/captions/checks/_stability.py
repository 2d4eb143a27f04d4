"""Whether a voxel's caption stays when the bank, the trials or the half of the data change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._util.errors import DataError
from neuroenc._util.progress import progress as progress_bar
from neuroenc.captions._caption import shuffled_control
from neuroenc.captions._linear import as_weights, select_voxels
from neuroenc.captions.checks._scoring import caption_agreement

__all__ = ["caption_stability"]

#: (weights of one variant, bank to project them on)
Variant = tuple[Any, Any]


def caption_stability(
    variants: Mapping[str, Sequence[Variant]],
    decode: Callable[[xr.DataArray, Any], Sequence[str]],
    embed_text: Callable[[list[str]], Any],
    *,
    text_direction: Any = None,
    null_voxels: int = 100,
    n_shuffles: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Agreement of a voxel's captions among variants of its weights or of the bank.

    .. math:: a_v = \frac{2}{n (n - 1)} \sum_{f < g} \cos(t_{vf} - m,\; t_{vg} - m)

    with :math:`t_{vf}` the text vector of the caption of voxel v in variant f and m the mean direction of texts. Two
    nulls stand beside it: captions of other voxels (``shuffled voxels``), which agree as far as all captions are
    alike, and captions of weights whose features are shuffled anew in each variant (``shuffled weights``), which agree
    as far as the decoder says the same whatever it is given.

    Parameters
    ----------
    variants : mapping of str to sequence of (weights, bank)
        For each kind ("folds", "bootstrap", "halves", ...) at least two variants of the same voxels.
    decode : callable
        ``decode(weights, bank)`` gives the best caption of each voxel of a DataArray (feature, voxel).
    embed_text : callable
        ``embed_text(list of str)`` gives text vectors (n, feature).
    text_direction : array (feature,), optional
        m; without it texts of a contrastive space agree highly whatever they say.
    null_voxels : int
        Voxels, drawn at random, for the null of shuffled weights.
    n_shuffles : int
        Of the null of other voxels.
    seed : int
    progress : bool

    Returns
    -------
    voxels : DataFrame
        One row a voxel: ``voxel``, and for each kind its agreement, its ``<kind>_null`` (mean of the shuffled-weights
        null), and ``<kind>_same`` (share of pairs of variants with literally the same caption).
    summary : DataFrame
        ``kind, n_variants, mean, shuffled_voxels, shuffled_weights, same, p`` (of other voxels' captions).

    Raises
    ------
    DataError
        Fewer than two variants, or variants of different voxels.

    Examples
    --------
    >>> import numpy as np
    >>> words = {"face": [1.0, 0.0], "house": [0.0, 1.0]}
    >>> name = lambda weights, bank: [["face", "house"][int(np.argmax(w))] for w in weights.values.T]
    >>> coef = np.array([[1.0, 0.1, 0.9], [0.2, 1.0, 0.3]])
    >>> voxels, summary = caption_stability(
    ...     {"halves": [(coef, None), (coef + 0.01, None)]}, name, lambda t: [words[x] for x in t], progress=False)
    >>> voxels["halves"].tolist(), summary["same"].tolist()
    ([1.0, 1.0, 1.0], [1.0])
    """
    kinds = {k: [(as_weights(w), bank) for w, bank in v] for k, v in variants.items()}
    table: dict[str, Any] = {}
    rows = []
    rng = np.random.default_rng(seed)
    work = sum(2 * len(v) for v in kinds.values())
    with progress_bar(desc="stability", total=work, show=progress) as bar:
        for kind, several in kinds.items():
            voxels = _same_voxels(kind, several, table.get("voxel"))
            table.setdefault("voxel", voxels)
            texts = []
            for weights, bank in several:
                texts.append(_captions(decode, weights, bank))
                bar.update(1)
            agreement, info = caption_agreement(
                _vectors(texts, embed_text, text_direction), n_shuffles=n_shuffles, seed=seed
            )
            chosen = np.zeros(len(voxels), dtype=bool)
            chosen[rng.permutation(len(voxels))[:null_voxels]] = True
            null = []
            for number, (weights, bank) in enumerate(several):
                part = select_voxels(weights, chosen)
                mixed = as_weights(shuffled_control(part.coef, seed + 1 + number))
                null.append(_captions(decode, mixed, bank))
                bar.update(1)
            chance, _ = caption_agreement(_vectors(null, embed_text, text_direction), n_shuffles=1, seed=seed)
            same = _same(texts)
            table |= {kind: agreement, f"{kind}_null": np.full(len(voxels), chance.mean()), f"{kind}_same": same}
            rows.append(
                {
                    "kind": kind, "n_variants": len(several), "mean": info["mean"],
                    "shuffled_voxels": info["mean_shuffled"], "shuffled_weights": float(chance.mean()),
                    "same": float(same.mean()), "p": info["p"],
                }
            )  # fmt: skip
    return pd.DataFrame(table), pd.DataFrame(rows)


def _same_voxels(kind: str, several: Sequence[Any], known: Any) -> np.ndarray:
    if len(several) < 2:
        raise DataError(f"{kind}: {len(several)} variant; agreement needs at least two.")
    names = several[0][0].coef["voxel"].values if known is None else known
    for weights, _ in several:
        if not np.array_equal(weights.coef["voxel"].values, names):
            raise DataError(f"variants of {kind!r} name different voxels or another order. Next step: align them.")
    return names


def _captions(decode: Callable[[Any, Any], Sequence[str]], weights: Any, bank: Any) -> list[str]:
    found = [str(t) for t in decode(weights.coef, bank)]
    n = weights.coef.sizes["voxel"]
    if len(found) != n:
        raise DataError(f"decode gave {len(found)} captions for {n} voxels; legal is one a voxel.")
    return found


def _vectors(
    texts: Sequence[Sequence[str]], embed_text: Callable[[list[str]], Any], text_direction: Any
) -> np.ndarray:
    different = list(dict.fromkeys(t for several in texts for t in several))
    vectors = np.asarray(embed_text(different), dtype=np.float64)
    if text_direction is not None:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - np.asarray(text_direction)
    number = {t: k for k, t in enumerate(different)}
    return vectors[np.array([[number[t] for t in several] for several in texts])]


def _same(texts: Sequence[Sequence[str]]) -> np.ndarray:
    values = np.array(texts, dtype=object)
    n = len(values)
    pairs = [values[a] == values[b] for a in range(n) for b in range(a + 1, n)]
    return np.mean(np.array(pairs, dtype=float), axis=0)
