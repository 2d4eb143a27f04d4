"""Variance partitioning: unique and shared parts of feature spaces, from the scores of every subset of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.stats._blocks import Floats, as_floats
from neuroenc.stats._labels import match_voxels

SEPARATOR = " & "


def subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """List the non-empty subsets of feature spaces, smaller ones first.

    >>> subsets(["a", "b"])
    [('a',), ('b',), ('a', 'b')]
    """
    spaces = list(names)
    return [c for k in range(1, len(spaces) + 1) for c in combinations(spaces, k)]


@dataclass(frozen=True)
class Partition:
    """Outcome of `partition_variance`; all arrays have the shape of the scores.

    Attributes
    ----------
    spaces : tuple of str
        Feature spaces.
    parts : dict {tuple of str: array}
        Share of variance that exactly these spaces hold: ``("a",)`` is unique to a, ``("a", "b")`` is common to a
        and b (and, of three spaces, not in c).
    total : array
        Score of all spaces together; the parts add up to it.
    overfitted : array of bool
        Some joint model scores below one of its own parts: cross-validation lost more by the added features than
        they gave, and a unique part is biased downwards, a shared one upwards.
    suppressed : array of bool
        A shared part is negative: spaces explain more together than apart, which is no overlap of areas.
    """

    spaces: tuple[str, ...]
    parts: dict[tuple[str, ...], Floats]
    total: Floats
    overfitted: NDArray[np.bool_]
    suppressed: NDArray[np.bool_]


def _key(key: Any, spaces: tuple[str, ...]) -> tuple[str, ...]:
    members = {key} if isinstance(key, str) else {str(k) for k in key}
    if isinstance(key, str) and key not in spaces and SEPARATOR in key:
        members = set(key.split(SEPARATOR))
    for member in members:
        one_of("space", member, spaces)
    return tuple(s for s in spaces if s in members)


def partition_variance(
    scores: Mapping[Any, Any], spaces: Iterable[str] | None = None, *, unit: str = "r2", tolerance: float = 0.0
) -> Partition:
    r"""Unique and shared shares of variance of feature spaces (commonality analysis).

    With f(T) the score of the joint model of the spaces T and f of nothing 0, the part that exactly the spaces S
    hold is, by inclusion and exclusion,

    .. math:: C(S) = \sum_{T \subseteq S} (-1)^{|T| + 1} f(T \cup S^c)

    so that unique(a) = f(abc) - f(bc) and shared(a, b) = f(ac) + f(bc) - f(c) - f(abc), and all parts add up to
    f(all).

    What biases the parts: (1) scores on training data grow with the number of features, so that unique parts are
    too large: give cross-validated scores. (2) Cross-validated joint models can score below their parts where
    features are many and samples few (``overfitted``); one penalty for all spaces does this more than banded ridge.
    (3) A space with more features or less noise takes what both hold. (4) Suppression makes shared parts negative
    (``suppressed``). Nothing is clipped: clipping each part at 0 biases all of them upwards.

    Parameters
    ----------
    scores : mapping {spaces: array (..., n_voxels)}
        A score for every non-empty subset of the spaces; a key is one name, a tuple or set of names, or names
        joined by ``" & "``.
    spaces : sequence of str, optional
        Order of the spaces; default as they appear.
    unit : {"r2", "ev"}
        Shares of variance. Correlations do not add and are refused.
    tolerance : float
        Differences up to this are not flagged.

    Raises
    ------
    ValueError
        A subset without a score, correlations, shapes that differ, more than 6 spaces.

    References
    ----------
    Newton & Spurrell (1967), Applied Statistics 16:51. Lescroart, Stansbury & Gallant (2015), Front. Comput.
    Neurosci. 9:135. de Heer et al. (2017), J. Neurosci. 37:6539.

    Examples
    --------
    >>> import numpy as np
    >>> out = partition_variance({"vision": 0.4, "language": 0.3, ("vision", "language"): 0.5})
    >>> {k: float(v.round(2)) for k, v in out.parts.items()}
    {('vision',): 0.2, ('language',): 0.1, ('vision', 'language'): 0.2}
    """
    if str(unit) in ("r", "correlation", "pearson"):
        raise DataError(
            "correlations do not add up over feature spaces; score with metric='r2' or 'ev' "
            "(r**2 loses the sign and is biased upwards for weak voxels)."
        )
    unit = one_of("unit", unit, ("r2", "ev"))
    if not tolerance >= 0:
        raise ConfigError(f"tolerance={tolerance!r} is not legal; it must be a share of variance of at least 0.")
    if spaces is None:
        found: dict[str, None] = {}
        for key in scores:
            for name in key.split(SEPARATOR) if isinstance(key, str) else key:
                found.setdefault(str(name))
        names = tuple(found)
    else:
        names = tuple(map(str, spaces))
    if not 2 <= len(names) <= 6:
        raise DataError(f"got {len(names)} feature spaces ({', '.join(names) or 'none'}); legal are 2 to 6.")
    first = next(iter(scores.values()), None)
    values = {
        _key(k, names): as_floats(match_voxels(first, v, ("the first subset", str(k))), f"scores of {k}")
        for k, v in scores.items()
    }
    lacking = [s for s in subsets(names) if s not in values]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {2 ** len(names) - 1} subsets have no score (first: {SEPARATOR.join(lacking[0])}); "
            "fit a joint model of every subset."
        )
    shapes = {v.shape for v in values.values()}
    if len(shapes) > 1:
        raise DataError(f"scores have different shapes {sorted(shapes)}; all are (..., n_voxels).")
    above = [SEPARATOR.join(k) for k, v in values.items() if (v > 1.0 + 1e-9).any()]
    if above:
        raise DataError(
            f"scores of {', '.join(above[:3])} are above 1; legal are shares of variance, {unit} of 1 at most (not "
            "percent)."
        )
    values[()] = np.zeros(shapes.pop())
    parts = {part: _part(part, names, values) for part in subsets(names)}
    total = values[names]
    joint = [(s, tuple(x for x in s if x != member)) for s in subsets(names) if len(s) > 1 for member in s]
    overfitted = np.any([values[whole] < values[without] - tolerance for whole, without in joint], axis=0)
    suppressed = np.any([value < -tolerance for part, value in parts.items() if len(part) > 1], axis=0)
    return Partition(names, parts, total, overfitted, suppressed)


def _part(part: tuple[str, ...], names: tuple[str, ...], values: dict[tuple[str, ...], Floats]) -> Floats:
    rest = {s for s in names if s not in part}
    out = np.zeros_like(values[()])
    for inner in [(), *subsets(part)]:
        joint = tuple(s for s in names if s in rest or s in inner)
        out += (-1.0) ** (len(inner) + 1) * values[joint]
    return out
