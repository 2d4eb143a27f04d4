"""Sets of tokens: the words of a caption, the patches of an image, padded to one array and named by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numbers
from neuroenc._core.checks import check_ids
from neuroenc._core.errors import DataError

_SETS = 1024  # looked at together
_EXPECTED = "expected (set, token, feature), maps (set, channel, y, x), or a list of arrays (token, feature)"


class TokenSets(NamedTuple):
    """Sets of tokens as one array.

    Attributes
    ----------
    values : ndarray (set, token, feature) float32
        0 where there is no token.
    mask : ndarray (set, token) bool
        True where there is one; every set has at least one.
    ids : ndarray (set,) str
    dim : str
        What the ids are of, such as "stimulus"; "" where they are positions.
    """

    values: np.ndarray
    mask: np.ndarray
    ids: np.ndarray
    dim: str

    @property
    def width(self) -> int:
        """Features of a token."""
        return int(self.values.shape[2])

    def take(self, rows: Any) -> TokenSets:
        """Some of the sets."""
        return TokenSets(self.values[rows], self.mask[rows], self.ids[rows], self.dim)


def token_sets(sets: Any, what: str) -> TokenSets:
    """Sets of tokens of whatever form as one padded array.

    Parameters
    ----------
    sets : DataArray (id, token, feature) or (id, channel, y, x), array of such shape, or sequence of (token, feature)
        In an array, tokens whose features are all NaN are padding. Ids are the coordinate of the first dimension, such
        as ``stimulus`` or ``voxel``; positions without one. Vectors (id, feature) are sets of one token.
    what : str
        What errors call them.
    """
    if isinstance(sets, TokenSets):
        return sets
    ids, dim = None, ""
    if isinstance(sets, xr.DataArray):
        first = str(sets.dims[0])
        if first in sets.coords:
            ids, dim = sets[first].values, first
        if {"token", "feature"} <= set(sets.dims) and sets.ndim == 3:
            sets = sets.transpose(..., "token", "feature")
    if isinstance(sets, Sequence) and not isinstance(sets, (str, bytes)):
        values, mask = _padded(sets, what)
    else:
        values = as_numbers(sets, what)
        if values.ndim == 4:
            values = values.reshape(*values.shape[:2], -1).swapaxes(1, 2)
        values = values[:, None] if values.ndim == 2 else values
        if values.ndim != 3 or not values.size:
            raise DataError(f"{what} have shape {values.shape}; {_EXPECTED}.")
        values = np.asarray(values, np.float32)
        mask = np.empty(values.shape[:2], bool)
        spoilt = np.empty(values.shape[:2], bool)
        for a in range(0, len(values), _SETS):  # masks of all values at once would be as large as the tokens
            some = values[a : a + _SETS]
            mask[a : a + _SETS] = ~np.isnan(some).all(2)
            spoilt[a : a + _SETS] = mask[a : a + _SETS] & ~np.isfinite(some).all(2)
        if spoilt.any():
            raise DataError(
                f"{what}: {int(spoilt.sum())} tokens have values that are not finite, the first in set "
                f"{int(np.argwhere(spoilt)[0, 0])}. Legal is a token of numbers, or one that is all NaN (padding)."
            )
        values = values if mask.all() else np.where(mask[..., None], values, np.float32(0))
    names = np.array(check_ids(ids, len(values), what), dtype=str)
    if not mask.any(1).all():
        raise DataError(f"{what}: set {names[~mask.any(1)][0]!r} has no token; each needs at least one.")
    if len(set(names.tolist())) < len(names):
        twice = next(n for k, n in enumerate(names.tolist()) if n in names[:k])
        raise DataError(f"{what}: id {twice!r} stands twice; each set needs an id of its own.")
    return TokenSets(values, mask, names, dim)


def _padded(sets: Sequence[Any], what: str) -> tuple[np.ndarray, np.ndarray]:
    if not len(sets):
        raise DataError(f"there are 0 {what}; at least one set of tokens is needed.")
    each = [as_numbers(x, f"{what}[{n}]") for n, x in enumerate(sets)]
    each = [x[None] if x.ndim == 1 else x for x in each]
    shapes = [x.shape for x in each]
    if any(len(s) != 2 for s in shapes) or len({s[1] for s in shapes}) > 1:
        wrong = next((s for s in shapes if len(s) != 2 or s[1] != shapes[0][-1]), shapes[0])
        raise DataError(f"{what}: a set of shape {wrong} beside one of {shapes[0]}; {_EXPECTED} of one width.")
    values = np.zeros((len(each), max(s[0] for s in shapes), shapes[0][1]), np.float32)
    mask = np.zeros(values.shape[:2], bool)
    for n, x in enumerate(each):
        if not np.isfinite(x).all():
            raise DataError(f"{what}: set {n} has values that are not finite. Next step: leave those tokens out.")
        values[n, : len(x)], mask[n, : len(x)] = x, True
    return values, mask
