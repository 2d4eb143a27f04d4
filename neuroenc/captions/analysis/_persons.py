"""People in captions: the share of person voxels of each region, and what clusters of voxels tell apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from neuroenc import stats
from neuroenc._core.checks import check_whole, make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.schema import VERDICTS
from neuroenc.captions.analysis._lexicon import concept_maps, load_lexicon, word_lists
from neuroenc.captions.analysis._words import indicator, region_masks

Lists = str | os.PathLike[str] | Mapping[str, Iterable[str]] | None


def _person(captions: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """One row a voxel: ``voxel, roi, person``."""
    maps = concept_maps(captions, {"person": load_lexicon()["person"], "ignore": load_lexicon()["ignore"]}, **options)
    roi = maps["roi"].values if "roi" in maps.coords else "all"
    return pd.DataFrame({"voxel": maps["voxel"].values, "roi": roi, "person": maps["named"].values[0]})


def person_voxels(captions: pd.DataFrame, **options: Any) -> list[Any]:
    """Voxels whose captions name a person (a word of the lexicon's list "person").

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption`` of one subject, or of several whose voxel ids differ.
    **options
        ``at_least, parser`` of :func:`concept_maps`.

    Returns
    -------
    list of voxel ids

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 7).

    Examples
    --------
    >>> import pandas as pd
    >>> person_voxels(pd.DataFrame({"voxel": [7, 9], "caption": ["two men", "a house"]}), parser="rules")
    [7]
    """
    found = _person(captions.drop(columns="subject", errors="ignore"), **options)
    return found.loc[found["person"], "voxel"].tolist()


def person_shares(
    captions: pd.DataFrame,
    shuffled: pd.DataFrame | None = None,
    phrases: pd.DataFrame | None = None,
    *,
    confidence: float = 0.95,
    **options: Any,
) -> pd.DataFrame:
    """Share of person voxels of each region, against voxels elsewhere and against shuffled weights.

    A voxel is a person voxel if its captions name a person: a man, a player, people (the lexicon's list "person").
    Intervals are Wilson's, p is Fisher's exact test of region by person: both take voxels for independent, and
    neighbouring ones are alike, so they are too narrow, and too small.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption`` (and ``rank, roi``) of one subject.
    shuffled : DataFrame, optional
        Captions of the same voxels' shuffled weights.
    phrases : DataFrame, optional
        Their phrases with verdicts, from `GroundingChecker.check`: language models write people into captions of
        places, too.
    confidence : float
    **options
        ``at_least, parser`` of :func:`concept_maps`.

    Returns
    -------
    DataFrame
        ``roi`` ("all" first)``, n_voxels, percent, low, high, percent_others, p, q`` (Benjamini-Hochberg over regions),
        and ``percent_supported`` (voxels with a supported phrase that names a person) and ``percent_shuffled`` where
        these tables are given.

    Raises
    ------
    DataError
        Captions are empty, or of several subjects.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 7 and table 2: the distribution of people).

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"voxel": range(8), "roi": ["EBA"] * 4 + ["PPA"] * 4,
    ...                       "caption": ["a man running"] * 4 + ["a house"] * 4})
    >>> out = person_shares(table, parser="rules")
    >>> out[["roi", "percent", "percent_others"]].values.tolist()
    [['all', 50.0, nan], ['EBA', 100.0, 0.0], ['PPA', 0.0, 100.0]]
    >>> float(out.p[1].round(3))
    0.029
    """
    own = _person(captions, **options)
    controls = {} if shuffled is None else {"percent_shuffled": _person(shuffled, **options)}
    if phrases is not None:
        held = phrases.loc[phrases["verdict"] == VERDICTS[0], ["voxel", "phrase"]].rename(columns={"phrase": "caption"})
        some = person_voxels(held, **{**options, "at_least": 0}) if len(held) else []
        controls = {"percent_supported": own[["voxel"]].assign(person=own["voxel"].isin(some)), **controls}
    person = own["person"].to_numpy()
    everything = np.ones(len(own), bool)
    rows = []
    for roi, here in [("all", everything), *((k, m) for k, m in region_masks(own["roi"]).items() if k != "all")]:
        count, n, rest, others = person[here].sum(), here.sum(), person[~here].sum(), (~here).sum()
        low, high = stats.share_interval(count, n, confidence=confidence)
        row = {"roi": roi, "n_voxels": int(n), "percent": 100 * count / n, "low": 100 * low, "high": 100 * high}
        row["percent_others"] = 100 * rest / others if others else np.nan
        row["p"] = fisher_exact([[count, n - count], [rest, others - rest]])[1] if others else np.nan
        for name, control in controls.items():
            mine = control.loc[control["voxel"].isin(own["voxel"][here]), "person"]
            row[name] = 100 * mine.mean() if len(mine) else np.nan
        rows.append(row)
    out = pd.DataFrame(rows).astype({"low": float, "high": float})
    out.insert(list(out).index("p") + 1, "q", stats.fdr(out["p"].to_numpy()))
    return out


def cluster_readings(
    captions: pd.DataFrame,
    clusters: Mapping[Any, Any],
    lists: Lists = None,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    r"""Read clusters of voxels by word lists: do they tell faces, bodies and groups of people apart?

    .. math:: z_{cl} = (s_{cl} - s_{\bar cl}) \Big/ \sqrt{s_l (1 - s_l) (1/n_c + 1/n_{\bar c})}

    with the share :math:`s_{cl}` of the cluster's voxels whose captions name a word of list l. p permutes voxels among
    clusters and takes the largest absolute z of all lists and clusters: any false reading at all. This null is
    spatially naive (neighbouring voxels are alike). Where clusters and captions come from the same weights, p says that
    a cluster's words are these rather than others, and not whether there are clusters (see :func:`cluster_voxels`).

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption``.
    clusters : mapping of voxel to cluster
        Such as ``VoxelClusters.mapping()``; voxels without captions are left out.
    lists : path or mapping of list to words, optional
        Default the shipped lists of people: face, body (parts, actions, a single person), group (several people).
    n_permutations, seed : int
        0 leaves p out (NaN).
    **options
        ``at_least, parser`` of :func:`concept_maps`.

    Returns
    -------
    DataFrame
        ``cluster, n_voxels, list, percent, percent_others, z, p``, a row for each cluster and list.

    Raises
    ------
    DataError
        Fewer than two clusters have captions.
    ConfigError
        The lists are not legal.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 8 and table 3: two clusters of EBA). Westfall & Young (1993),
    Resampling-based multiple testing (the largest statistic).

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"voxel": range(12), "caption": ["a man with a beard"] * 6 + ["two men together"] * 6})
    >>> out = cluster_readings(table, {v: 1 + v // 6 for v in range(12)}, parser="rules", n_permutations=200)
    >>> best = out.sort_values("z", ascending=False, kind="stable").groupby("cluster").first()
    >>> best["list"].tolist(), bool((best.p < 0.05).all())
    (['face', 'group'], True)
    """
    check_whole("n_permutations", n_permutations, 0)
    words = word_lists(lists, "lists", "people.toml", "words")
    mine = captions[captions["voxel"].isin(list(clusters))].drop(columns="subject", errors="ignore")
    labels, at = np.unique([clusters[v] for v in dict.fromkeys(mine["voxel"])], return_inverse=True)
    if len(labels) < 2:
        raise DataError(f"{len(labels)} cluster has captions; at least two are needed.")
    maps = concept_maps(mine, words, **options)
    named = maps["named"].values.astype(np.float64)
    n, size = named.shape[1], np.bincount(at).astype(np.float64)
    total = named.sum(axis=1)
    spread = np.sqrt(np.outer(1 / size + 1 / (n - size), total / n * (1 - total / n)))

    def compared(assigned: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = indicator(assigned, len(labels)) @ named.T
        inside, outside = counts / size[:, None], (total - counts) / (n - size)[:, None]
        return inside, outside, np.where(spread > 0, (inside - outside) / np.where(spread > 0, spread, 1), 0.0)

    inside, outside, z = compared(at)
    rng, above = make_rng(seed), np.zeros(z.shape)
    for _ in range(n_permutations):
        above += np.abs(compared(rng.permutation(at))[2]).max() >= np.abs(z) - 1e-9
    p = (1 + above) / (1 + n_permutations) if n_permutations else np.full(z.shape, np.nan)
    names = [str(x) for x in maps["concept"].values]
    return pd.DataFrame(
        {
            "cluster": np.repeat(labels, len(names)),
            "n_voxels": np.repeat(size.astype(int), len(names)),
            "list": names * len(labels),
            "percent": 100 * inside.ravel(),
            "percent_others": 100 * outside.ravel(),
            "z": z.ravel(),
            "p": p.ravel(),
        }
    )
