"""How good captions of photographs are that nothing was learned from, without a CLIP as the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from caption_metrics import (
    bleu_counts,
    bleu_of_counts,
    chrf,
    cider,
    sentence_similarity,
)
from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.decoding._retrieval import RetrievalDecoder
from neuroenc.data import load_dataset
from neuroenc.embedding import ImageEmbedder
from neuroenc.retrieval._corpus import plain_text
from photo_texts import PHOTOGRAPHS, PhotoTexts, photo_texts

__all__ = ["PhotoEvaluation", "compare_captions", "evaluate_photographs"]

METRICS = ("bleu4", "chrf", "cider", "cider_plain", "similarity")


@dataclass(frozen=True)
class PhotoEvaluation:
    """Scores of captions of photographs.

    Attributes
    ----------
    scores : DataFrame
        ``method, metric, value, low, high``: 95 % intervals over photographs (`neuroenc.stats.sample_interval`).
    differences : DataFrame
        ``method, than, metric, value, low, high``: paired, on the same resamples.
    captions : DataFrame
        ``photograph``, one column a method, and the first human caption.
    """

    scores: pd.DataFrame
    differences: pd.DataFrame
    captions: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row a method, one column a metric, values with their intervals as text."""
        shown = self.scores.copy()
        rows = shown[["metric", "value", "low", "high"]].itertuples(index=False)
        shown["text"] = [f"{v:.{_digits(m)}f} [{a:.{_digits(m)}f}, {b:.{_digits(m)}f}]" for m, v, a, b in rows]
        order = list(dict.fromkeys(shown["method"]))
        return shown.pivot(index="method", columns="metric", values="text").loc[order, list(METRICS)]


def _digits(metric: str) -> int:
    return 1 if metric in ("bleu4", "chrf") else 2


def _samples(folds: Sequence[tuple[list[str], list[list[str]]]], weights: np.ndarray, embed: Any) -> np.ndarray:
    """Each metric for each row of weights (one a photograph), averaged over folds: (weights, metrics)."""
    out = np.zeros((len(weights), len(METRICS)))
    share = weights / weights.sum(axis=1, keepdims=True)
    for captions, references in folds:
        items = np.stack(
            [
                chrf(captions, references),
                cider(captions, references),
                cider(captions, references, variant="plain"),
                sentence_similarity(captions, references, embed),
            ]
        )
        counts = weights @ bleu_counts(captions, references)
        out += np.column_stack([[bleu_of_counts(row) for row in counts], share @ items.T]) / len(folds)
    return out


def compare_captions(
    methods: Mapping[str, Sequence[str]],
    human: Sequence[Sequence[str]],
    *,
    baselines: Sequence[str] = (),
    n_bootstraps: int = 1000,
    seed: int = 0,
    embed: Any = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Captions of several methods against human ones, and each human one against the others.

    Everything is scored against all human captions but one, averaged over the one that is left out: only so can
    people be measured like a method.

    Parameters
    ----------
    methods : mapping of str to sequence of str (n,)
    human : sequence of sequences of str (n, several)
        As many for each photograph, at least two.
    baselines : sequence of str
        Methods that the others are compared with.
    n_bootstraps : int
        Resamples of photographs, the same for all methods.
    seed : int
    embed : callable, optional
        As in :func:`sentence_similarity`.

    Returns
    -------
    tuple of DataFrame
        ``scores, differences`` of :class:`PhotoEvaluation`; the method of people is "human (leave one out)".

    Raises
    ------
    DataError
        Numbers do not agree.
    ConfigError
        Illegal settings.
    """
    several = {len(h) for h in human}
    if len(several) != 1 or min(several) < 2:
        raise DataError(f"photographs have {sorted(several)} human captions; legal is one number of at least 2.")
    wrong = {name: len(c) for name, c in methods.items() if len(c) != len(human)}
    if wrong or n_bootstraps < 1:
        raise DataError(f"{len(human)} photographs, captions {wrong}, n_bootstraps={n_bootstraps}; legal is one each.")
    unknown = [b for b in baselines if b not in methods]
    if unknown:
        raise ConfigError(f"baselines {unknown} are no methods; legal: {', '.join(methods)}.")
    n, k = len(human), min(several)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_bootstraps)
    weights = np.vstack([np.ones((1, n), dtype=np.int64), drawn])
    others = [[[c for j, c in enumerate(h) if j != left] for h in human] for left in range(k)]
    samples = {name: _samples([(list(c), o) for o in others], weights, embed) for name, c in methods.items()}
    own = [([h[left] for h in human], others[left]) for left in range(k)]
    samples["human (leave one out)"] = _samples(own, weights, embed)

    def rows(values: np.ndarray, **names: str) -> list[dict[str, Any]]:
        low, high, _ = stats.sample_interval(values[1:], values[0], n_units=n)
        return [
            {**names, "metric": m, "value": values[0, j], "low": low[j], "high": high[j]} for j, m in enumerate(METRICS)
        ]

    scores = [r for name, values in samples.items() for r in rows(values, method=name)]
    differences = [
        r
        for name in methods
        for than in baselines
        if name not in baselines
        for r in rows(samples[name] - samples[than], method=name, than=than)
    ]
    columns = ["method", "than", "metric", "value", "low", "high"]
    return pd.DataFrame(scores), pd.DataFrame(differences, columns=columns)


def evaluate_photographs(
    decoders: Mapping[str, Any] | None = None,
    *,
    texts: PhotoTexts | None = None,
    n_bootstraps: int = 1000,
    seed: int = 0,
    mirror: Any = None,
    device: str = "cpu",
    cache: bool = True,
    show: bool = True,
) -> PhotoEvaluation:
    """Captions of the 111 photographs of ``coco-permissive``, which nothing that ships was trained on.

    Beside each captioner stand "retrieval", the nearest caption of the bank (centred cosine, :class:`RetrievalDecoder`)
    without captions of these photographs; "shuffled", the first captioner's captions of other photographs; and people.
    Captioners and retrieval subtract the same mean direction, that of these photographs; no caption of theirs is read.

    Parameters
    ----------
    decoders : mapping of str to PrefixDecoder, optional
        Captioners of ConSE vectors; default ``load_captioner("photo")``.
    texts : PhotoTexts, optional
        The bank; default all captions of COCO 2017 validation of other photographs.
    n_bootstraps, seed : int
        Of the intervals.
    mirror
        As in :func:`neuroenc.data.load_dataset`.
    device : str
    cache : bool
        Keep vectors in the user's cache; those of the bank take minutes.
    show : bool

    Returns
    -------
    PhotoEvaluation

    Raises
    ------
    DataError
        The bank holds captions of the photographs.

    References
    ----------
    Chen et al. Microsoft COCO Captions: Data collection and evaluation server. 2015.
    """
    photographs = load_dataset(PHOTOGRAPHS, mirror=mirror, progress=show).stimuli
    assert photographs is not None
    ids = [str(i) for i in photographs.ids]
    texts = photo_texts(mirror=mirror, cache=cache, device=device, show=show) if texts is None else texts
    stray = sorted(set(ids) & set(texts.ids.tolist()))
    if stray:
        raise DataError(f"the bank holds captions of {len(stray)} photographs that are measured: {stray[:3]}.")
    if decoders is None:
        from neuroenc.captions.decoding._language_model import load_captioner

        decoders = {"photo": load_captioner("photo", device=device)}
    human = [[plain_text(c) for c in several][:5] for several in photographs.captions or ()]
    vectors = ImageEmbedder("conse", device=device, cache=cache, progress=show).embed(photographs).values
    mean = unit_rows(vectors.astype(np.float64)).mean(axis=0)
    found = {n: [c[0].text for c in d.generate(vectors, mean=mean)] for n, d in decoders.items()}
    projection = xr.Dataset(
        {"embedding": (("voxel", "feature"), vectors), "bank_direction": ("feature", mean)},
        coords={"voxel": np.arange(len(ids))},
    )
    bank = RetrievalDecoder(texts.captions, texts.vectors)
    found["retrieval"] = bank.decode(projection, top=1).sort_values("voxel")["caption"].tolist()
    found["shuffled"] = np.roll(next(iter(found.values())), len(ids) // 2).tolist()
    scores, differences = compare_captions(
        found, human, baselines=("retrieval", "shuffled"), n_bootstraps=n_bootstraps, seed=seed
    )
    captions = pd.DataFrame({"photograph": ids, **found, "human": [h[0] for h in human]})
    return PhotoEvaluation(scores, differences, captions)
