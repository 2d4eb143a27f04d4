"""Two regions or two subjects: what the captions of one say and those of the other do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroenc import stats
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions.analysis._separating import separating_phrases
from neuroenc.captions.analysis._tables import check_captions
from neuroenc.captions.analysis._texts import directions_of, unit

__all__ = ["contrast", "difference_captions"]


def contrast(
    captions_a: pd.DataFrame, captions_b: pd.DataFrame, *, names: tuple[str, str] = ("a", "b"), **options: Any
) -> pd.DataFrame:
    """Words and phrases that separate the captions of two sets of voxels.

    Parameters
    ----------
    captions_a, captions_b : DataFrame
        ``voxel, caption``: of two regions or subjects. The same voxel number in both is taken for two voxels, unless
        both tables are of one subject (equal ``subject``, or none) and the very same caption rows stand in both.
    names : (str, str)
    **options
        Of :func:`separating_phrases`: ``n, prior_strength, background, min_voxels, n_permutations, seed``, ...

    Returns
    -------
    DataFrame
        As :func:`separating_phrases`, ``group`` being one of the names: z scores with a prior, and permutation p over
        voxels.

    Raises
    ------
    DataError
        A table is empty, or voxels stand in both.

    References
    ----------
    Monroe, Colaresi & Quinn (2008), Fightin' words, Political Analysis 16(4).

    Examples
    --------
    >>> import pandas as pd
    >>> a = pd.DataFrame({"voxel": range(5), "caption": "a dog on the grass"})
    >>> b = pd.DataFrame({"voxel": range(5, 10), "caption": "a house on the grass"})
    >>> contrast(a, b, names=("FFA", "PPA"), n=(1, 1), n_permutations=99)[["group", "phrase"]].values.tolist()
    [['FFA', 'dog'], ['PPA', 'house']]
    """
    if names[0] == names[1]:
        raise DataError(f"both sides are named {names[0]!r}; they need different names.")
    sides = [check_captions(side) for side in (captions_a, captions_b)]
    keys = [c for c in ("subject", "voxel", "rank", "caption") if all(c in s for s in sides)]
    labels = [c for c in ("i", "j", "k", "vertex", "hemi", "roi") if all(c in s for s in sides)]
    shared = sides[0][keys + labels].merge(sides[1][keys + labels]).drop_duplicates()
    if len(shared):
        raise DataError(
            f"{shared['voxel'].nunique()} voxels stand on both sides with the same caption, the first is "
            f"{shared['voxel'].iloc[0]!r} (a voxel of two regions?). Next step: leave them out of one side."
        )
    both = pd.concat([side.assign(_side=name) for side, name in zip(sides, names)], ignore_index=True)
    both["voxel"] = both.groupby(["_side", *(["subject"] if "subject" in both else []), "voxel"], sort=False).ngroup()
    # "a" stands before "b" whatever the names are.
    out = separating_phrases(both.drop(columns=["subject"], errors="ignore"), "_side", **options)
    at = {name: i for i, name in enumerate(names)}
    return out.sort_values("group", key=lambda g: g.map(at), kind="stable").reset_index(drop=True)


def difference_captions(
    a: Any,
    b: Any,
    captions: list[str],
    embeddings: Any,
    *,
    names: tuple[str, str] = ("a", "b"),
    n: int = 10,
    centre: bool = True,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""The captions of a corpus that lie along the difference of two sets of voxels.

    .. math:: s_t = \cos\Bigl(\tfrac{1}{|A|}\sum_{v \in A} d_v - \tfrac{1}{|B|}\sum_{v \in B} d_v,\; t - \bar t\Bigr)

    This needs no captions of the voxels: a difference that no caption of a single voxel names can show here.

    Parameters
    ----------
    a, b : Dataset of :func:`neuroenc.captions.project` (or weights (feature, voxel))
    captions : list of str (m,)
    embeddings : array (m, feature)
        Their text vectors in the same space.
    names : (str, str)
    n : int
        Captions a side.
    centre : bool
    n_permutations, seed : int
        Voxels are permuted between a and b; p compares projections on :math:`t - \bar t`, not cosines, because a
        difference of nothing has a direction, too.

    Returns
    -------
    DataFrame
        ``group, rank, caption, score`` (cosine)``, z, p`` (one-sided)``, q`` (over all captions of the corpus).

    Raises
    ------
    DataError
        Widths or numbers do not fit, or a side has no voxel.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.tile([[1.0], [0.0]], 6), np.tile([[0.0], [1.0]], 6)
    >>> out = difference_captions(a, b, ["a dog", "a house"], np.eye(2), n=1)
    >>> out[["group", "caption"]].values.tolist()
    [['a', 'a dog'], ['b', 'a house']]
    """
    sides = []
    for side, name in ((a, names[0]), (b, names[1])):
        target, live, _, _ = directions_of(side, centre=centre)
        if not live.any():
            raise DataError(f"{name!r} has no voxel with a direction.")
        sides.append(target[live])
    vectors = unit(np.asarray(embeddings, dtype=np.float64))
    width = sides[0].shape[1]
    if vectors.shape != (len(captions), width) or sides[1].shape[1] != width:
        raise DataError(f"widths do not fit: voxels {width} and {sides[1].shape[1]}, captions {vectors.shape}.")
    text = vectors - vectors.mean(axis=0) if centre else vectors
    text = unit(text)
    along = np.concatenate(sides) @ text.T
    inside = np.arange(len(along)) < len(sides[0])
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    score = text @ unit(difference[None])[0]
    real = along[inside].mean(axis=0) - along[~inside].mean(axis=0)
    rng = make_rng(seed)
    weight = np.empty((n_permutations, len(along)))
    for row in weight:
        moved = rng.permutation(inside)
        row[:] = np.where(moved, 1 / inside.sum(), -1 / (~inside).sum())
    total, square, more, less = (np.zeros(len(captions)) for _ in range(4))
    for start in range(0, n_permutations, 64):
        drawn = weight[start : start + 64] @ along
        total, square = total + drawn.sum(axis=0), square + (drawn**2).sum(axis=0)
        more, less = more + (drawn >= real - 1e-12).sum(axis=0), less + (drawn <= real + 1e-12).sum(axis=0)
    spread = np.sqrt(np.maximum(square / n_permutations - (total / n_permutations) ** 2, 0))
    z = np.divide(real - total / n_permutations, spread, out=np.zeros_like(real), where=spread > 1e-12)
    frames = []
    for name, sign, count in ((names[0], 1, more), (names[1], -1, less)):
        p = (1 + count) / (1 + n_permutations)
        q = stats.fdr(p)
        at = np.argsort(-sign * score, kind="stable")[:n]
        frames.append(
            pd.DataFrame(
                {
                    "group": name,
                    "rank": np.arange(1, len(at) + 1),
                    "caption": [captions[i] for i in at],
                    "score": sign * score[at],
                    "z": sign * z[at],
                    "p": p[at],
                    "q": q[at],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
