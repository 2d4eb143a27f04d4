"""What every analysis of captions needs: checked tables, regions, and counts of terms by voxel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from neuroenc._core.errors import DataError, unknown_name

__all__ = ["Terms", "check_captions", "count_terms", "region_masks", "roi_strings", "unique_texts", "voxel_keys"]


def check_captions(captions: pd.DataFrame, max_rank: int | None = None, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rows up to ``max_rank``; an error where needed columns are absent or nothing is left."""
    needed = ["voxel", "caption", *columns, *(["rank"] if max_rank is not None else [])]
    missing = [c for c in needed if c not in captions]
    if missing:
        raise DataError(
            f"captions have columns {list(captions.columns)}; {missing[0]!r} is needed. Next step: pass the table "
            "of a decoder (one row per voxel and rank)."
        )
    if max_rank is not None:
        captions = captions[captions["rank"] <= max_rank]
    if len(captions) == 0:
        raise DataError("the captions table has 0 rows; at least one caption is needed.")
    return captions.reset_index(drop=True)


def region_masks(rois: Iterable[Any]) -> dict[str, np.ndarray]:
    """Rows of each region, sorted by name: names joined by ";" count in each, "" counts as "none"."""
    codes, names = pd.factorize(np.asarray([str(x) for x in rois], dtype=object))
    found: dict[str, np.ndarray] = {}
    for code, entry in enumerate(names):
        here = codes == code
        for roi in [x for x in str(entry).split(";") if x] or ["none"]:
            found[roi] = found[roi] | here if roi in found else here
    return dict(sorted(found.items()))


def roi_strings(table: pd.DataFrame) -> Iterable[Any]:
    """The roi column, or "all" for every row where there is none."""
    return table["roi"] if "roi" in table else ["all"] * len(table)


def voxel_keys(captions: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Number of each row's voxel, and one row per voxel in order of appearance.

    Voxels of several subjects are told apart by a ``subject`` column.
    """
    columns = ["subject", "voxel"] if "subject" in captions else ["voxel"]
    number = captions.groupby(columns, sort=False).ngroup().to_numpy()
    first = np.unique(number, return_index=True)[1]
    return number, captions.iloc[first].reset_index(drop=True)


def unique_texts(texts: Iterable[Any]) -> tuple[list[str], np.ndarray]:
    """Different texts in order of appearance, and which one each row has."""
    codes, names = pd.factorize(np.asarray([str(x) for x in texts], dtype=object))
    return [str(x) for x in names], codes


@dataclass(frozen=True)
class Terms:
    """Which caption holds which term.

    Attributes
    ----------
    names : list
        Terms (text, or any hashable).
    rows : csr_matrix (caption, term)
        1 where the caption holds the term.
    """

    names: list[Any]
    rows: sparse.csr_matrix

    def by_voxel(self, voxel: np.ndarray, n_voxels: int) -> sparse.csr_matrix:
        """Number of captions of each voxel that hold each term (voxel, term)."""
        return sparse.csr_matrix(indicator(voxel, n_voxels) @ self.rows)

    def keep(self, mask: np.ndarray) -> Terms:
        """Only the terms where ``mask`` is True."""
        at = np.flatnonzero(mask)
        return Terms([self.names[i] for i in at], sparse.csr_matrix(self.rows[:, at]))


def indicator(groups: np.ndarray, n: int) -> sparse.csr_matrix:
    """Matrix (group, row) with 1 where the row is in the group."""
    one = np.ones(len(groups))
    return sparse.csr_matrix((one, (groups, np.arange(len(groups)))), shape=(n, len(groups)))


def count_terms(found: Sequence[Iterable[Any]], codes: np.ndarray) -> Terms:
    """Terms of every row from the terms of the different texts; a term counts once a caption."""
    number: dict[Any, int] = {}
    at, term = [], []
    for i, terms in enumerate(found):
        for name in sorted(set(terms)):
            at.append(i)
            term.append(number.setdefault(name, len(number)))
    shape = (len(found), len(number))
    unique = sparse.csr_matrix((np.ones(len(at)), (at, term)), shape=shape)
    return Terms(list(number), sparse.csr_matrix(unique[codes]))


def select_region(captions: pd.DataFrame, roi: str | None) -> pd.DataFrame:
    """The captions of one region, or all with None; an unknown name is an error with the nearest."""
    if roi is None:
        return captions
    masks = region_masks(roi_strings(captions))
    if roi not in masks:
        raise DataError(unknown_name("roi", roi, masks))
    return captions[masks[roi]].reset_index(drop=True)


def labels_of(first: pd.DataFrame, names: Iterable[str]) -> Mapping[str, Any]:
    """The voxel coordinates among ``names`` that a table of voxels has."""
    return {c: first[c].to_numpy() for c in names if c in first}
