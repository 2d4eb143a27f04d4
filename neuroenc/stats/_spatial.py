"""Null maps that keep the smoothness of a cortical map, and correlations of maps tested against them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata

from neuroenc._core.checks import check_whole, make_rng, one_of, share
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats
from neuroenc.stats._labels import match_voxels
from neuroenc.stats._tfce import check_edges

NULLS = ("spin", "moran", "permutation")
_MOST_UNIQUE = 2000  # places of a hemisphere: an assignment takes the cube of their number
_MOST_MORAN = 5000  # values: eigenvectors of all of them are computed at once
_MIRROR = np.array([-1.0, 1.0, 1.0])  # x is left to right
_NEIGHBOURS = 6  # of a vertex of a mesh


@dataclass(frozen=True)
class MapComparison:
    """Correlation of maps with its p against null maps; arrays are (n_maps,), or scalars for one map.

    Attributes
    ----------
    r : array, float64
        Correlation over the places where both maps are known.
    p : array, float64
        Two-sided, (1 + number of null correlations at least as large in size) / (1 + n).
    null : array (n, ...), float64
        Correlations with null maps of the second map.
    n_places : array, int
        Places that the correlation is over.
    kind, method : str
        As asked.
    """

    r: Floats
    p: Floats
    null: Floats
    n_places: NDArray[np.intp]
    kind: str
    method: str


def _check_places(values: Any, coordinates: Any, hemi: Any) -> tuple[Floats, Floats, NDArray[Any]]:
    maps, xyz = as_floats(values, "values"), as_floats(coordinates, "coordinates")
    n = maps.shape[-1] if maps.ndim else 0
    if xyz.shape != (n, 3):
        raise DataError(f"coordinates have shape {xyz.shape}; legal is ({n}, 3), one place for each value.")
    if not np.isfinite(xyz).all():
        raise DataError(f"{int((~np.isfinite(xyz)).any(axis=1).sum())} of {n} coordinates are not finite.")
    if hemi is None and hasattr(values, "coords") and "hemi" in values.coords:
        hemi = values["hemi"].values
    side = np.full(n, "L") if hemi is None else np.asarray(hemi).astype(str)
    if side.shape != (n,) or not set(side.tolist()) <= {"L", "R"}:
        found = sorted(set(side.ravel().tolist()) - {"L", "R"})[:3]
        raise DataError(f"hemi has shape {side.shape} and holds {found or ['L', 'R']}; legal is 'L' or 'R' for each.")
    return maps, xyz, side


def _spins(
    xyz: Floats,
    side: NDArray[Any],
    known: NDArray[np.bool_],
    n: int,
    rng: np.random.Generator,
    assign: str,
    least: float,
) -> Iterator[NDArray[np.intp]]:
    """For each rotation, the place whose value every place takes; -1 for none."""
    radius, parts = np.linalg.norm(xyz, axis=1), []
    if radius.min() < 0.5 * radius.max():
        raise DataError(
            f"coordinates are {radius.min():.3g} to {radius.max():.3g} from 0: they do not lie on a sphere. Next step: "
            "those of the registered sphere (neuroenc.data.load_mesh), not of the folded cortex."
        )
    for name in np.unique(side):
        at = np.flatnonzero(side == name)
        if assign == "unique" and at.size > _MOST_UNIQUE:
            raise DataError(
                f"assign='unique' matches at most {_MOST_UNIQUE} places of a hemisphere; {name} has {at.size}. "
                "Next step: assign='nearest' for vertices, or means over parcels."
            )
        unit = xyz[at] / radius[at, None]
        tree = cKDTree(unit)
        gap = np.median(tree.query(unit, 2)[0][:, 1]) if len(at) > 1 else 0.0
        parts.append((name, at, unit, tree, 2.0 * gap))
    made, tried = 0, 0
    while made < n:
        turn = Rotation.random(None, rng).as_matrix()
        index = np.full(len(xyz), -1, dtype=np.intp)
        for name, at, unit, tree, reach in parts:
            # The right hemisphere turns as the mirror image of the left one: symmetric maps stay symmetric.
            turned = unit @ turn.T if name == "L" else (unit * _MIRROR) @ turn.T * _MIRROR
            if assign == "unique":
                index[at] = at[linear_sum_assignment(-turned @ unit.T)[1]]
            else:
                distance, nearest = tree.query(turned)
                # Beyond the measured part of the sphere there is no value to take.
                index[at] = np.where(distance <= reach, at[nearest], -1)
        tried += 1
        if (known & (index >= 0) & known[index]).sum() >= least * known.sum():
            made += 1
            yield index
        elif tried >= 50 + 20 * max(made, 1):
            raise DataError(
                f"only {made} of {tried} rotations leave {least:.0%} of the {int(known.sum())} known places with a "
                "value: the map covers too little of the sphere to be spun. Next step: kind='moran', which stays "
                "within the measured part, or a map of whole hemispheres."
            )


def _smooth_basis(xyz: Floats, edges: NDArray[np.intp]) -> Floats:
    """Eigenvectors (place, place - 1) of the graph's Laplacian, the constant left out."""
    n = len(xyz)
    if n > _MOST_MORAN:
        raise DataError(
            f"kind='moran' needs eigenvectors of {n} places, and at most {_MOST_MORAN} are computed. Next step: "
            "kind='spin', a region, the first 2562 vertices of fsaverage5 (fsaverage4), or means over parcels."
        )
    laplacian = np.zeros((n, n))
    laplacian[edges[:, 0], edges[:, 1]] = laplacian[edges[:, 1], edges[:, 0]] = -1.0
    degree = -laplacian.sum(axis=1)
    laplacian[np.diag_indices(n)] = degree
    # The constant becomes the last eigenvector, of however many parts the graph has.
    laplacian += 4.0 * max(1.0, degree.max()) / n
    return np.asarray(eigh(laplacian, overwrite_a=True, check_finite=False)[1][:, :-1])


def _neighbours(xyz: Floats, side: NDArray[Any]) -> NDArray[np.intp]:
    """Nearest places of every place, as edges within hemispheres."""
    pairs = [np.empty((0, 2), dtype=np.intp)]
    for name in np.unique(side):
        at = np.flatnonzero(side == name)
        near = cKDTree(xyz[at]).query(xyz[at], range(2, min(_NEIGHBOURS, len(at) - 1) + 2))[1]
        pairs.append(np.stack([np.repeat(at, near.shape[1]), at[near.ravel()]], axis=1))
    return np.concatenate(pairs)


def _null_maps(
    maps: Floats, xyz: Floats, side: NDArray[Any], kind: str, n: int, seed: int, assign: str, least: float, edges: Any
) -> Iterator[Floats]:
    """``n`` times null maps of all ``maps`` (map, place), by the same rotation, signs or order."""
    rng, known = make_rng(seed), np.asarray(np.isfinite(maps).all(axis=0))
    if known.sum() < 4:
        raise DataError(f"{int(known.sum())} of {known.size} places are known in every map; at least 4 are needed.")
    if kind == "spin":
        for index in _spins(xyz, side, known, n, rng, assign, least):
            yield np.where(index >= 0, maps[:, index], np.nan)
        return
    at = np.flatnonzero(known)
    if kind == "moran":
        joined = _neighbours(xyz, side) if edges is None else check_edges(edges, known.size)
        where = np.full(known.size, -1, dtype=np.intp)
        where[at] = np.arange(at.size)
        inside = where[joined]
        basis = _smooth_basis(xyz[at], inside[(inside >= 0).all(axis=1)])
        centre = maps[:, at].mean(axis=1, keepdims=True)
        loadings = (maps[:, at] - centre) @ basis
    for _ in range(n):
        out = np.full(maps.shape, np.nan)
        if kind == "moran":
            signs = 1.0 - 2.0 * rng.integers(0, 2, basis.shape[1])
            out[:, at] = centre + (loadings * signs) @ basis.T
        else:
            out[:, at] = maps[:, at[rng.permutation(at.size)]]
        yield out


def spatial_null(
    values: Any,
    coordinates: Any,
    hemi: Any = None,
    *,
    kind: str = "spin",
    n: int = 1000,
    assign: str = "nearest",
    min_overlap: float = 0.5,
    edges: Any = None,
    seed: int = 0,
) -> Floats:
    r"""Null maps that keep the spatial autocorrelation of a map: spins of the sphere, or Moran randomisation.

    ``"spin"`` turns the sphere of the left hemisphere by a random rotation, that of the right one by its mirror image,
    and lets every place take the value of the nearest turned one. Medial wall (NaN, or not listed) turns along.
    ``"moran"`` flips the signs of the coefficients of the map in spatial eigenvectors :math:`e_i` (Moran spectral
    randomisation),

    .. math:: x^* = \bar x + \sum_i s_i\, e_i^\top (x - \bar x)\, e_i, \qquad s_i = \pm 1

    which keeps mean, variance and the differences between neighbours (Geary's c) exactly, and needs no whole sphere.
    The eigenvectors are those of the Laplacian of the graph of neighbours: with those of the centred weights, which
    take what lies beyond the border as 0, false positives of very smooth maps on a part of the cortex rise to a third.
    It takes hemispheres as independent: maps that are symmetric between them need ``"spin"``, or one hemisphere.
    ``"permutation"`` shuffles places, which no smooth map allows: it is here to be compared with.

    Parameters
    ----------
    values : DataArray (voxel,) or array (..., n_places)
        A map, or several that are turned together; NaN is not known.
    coordinates : array (n_places, 3)
        Of each value on the registered sphere, its centre at 0 (any unit); for means over parcels, those of parcels.
    hemi : sequence of {"L", "R"}, optional
        By default the coordinate, or one hemisphere.
    kind : {"spin", "moran", "permutation"}
    n : int
        Null maps.
    assign : {"nearest", "unique"}
        Of spins. "nearest": values can occur twice (Alexander-Bloch); "unique": each is used once, by the assignment
        of least distance, for parcels.
    min_overlap : float
        Share of the known places that must take a value; rotations that leave less are drawn again.
    edges : int array (edge, 2), optional
        Neighbours for ``"moran"``, from `mesh_edges`; by default the six nearest places.
    seed : int

    Returns
    -------
    array (n, ..., n_places), float64
        NaN where no value came to lie.

    Raises
    ------
    DataError
        Places do not fit the values, the map covers too little of the sphere, or too many places for eigenvectors.

    References
    ----------
    Alexander-Bloch et al. (2018), NeuroImage 178:540. Vasa et al. (2018), Cereb. Cortex 28:281. Markello & Misic
    (2021), NeuroImage 236:118052. Wagner & Dray (2015), Methods Ecol. Evol. 6:1169.

    Examples
    --------
    >>> import numpy as np
    >>> sphere = np.random.default_rng(0).standard_normal((400, 3))
    >>> sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    >>> gradient = sphere[:, 2]
    >>> spatial_null(gradient, sphere, n=3).shape
    (3, 400)
    >>> moran = spatial_null(gradient, sphere, kind="moran", n=2)
    >>> bool(np.allclose(moran.std(axis=1), gradient.std()))
    True
    """
    maps, xyz, side = _check_places(values, coordinates, hemi)
    kind, assign = one_of("kind", kind, NULLS), one_of("assign", assign, ("nearest", "unique"))
    n, least = check_whole("n", n), share("min_overlap", min_overlap)
    flat = maps.reshape(-1, maps.shape[-1])
    drawn = _null_maps(flat, xyz, side, kind, n, seed, assign, least, edges)
    return np.stack(list(drawn)).reshape(n, *maps.shape)


def compare_maps(
    a: Any,
    b: Any,
    coordinates: Any = None,
    hemi: Any = None,
    *,
    null: str = "spin",
    method: str = "pearson",
    n: int = 1000,
    assign: str = "nearest",
    min_overlap: float = 0.5,
    edges: Any = None,
    seed: int = 0,
) -> MapComparison:
    r"""Correlation of two cortical maps, with a p that allows for their smoothness.

    Neighbouring vertices are alike, so that two unrelated smooth maps correlate far more than independent places
    would. The second map is replaced by null maps that keep its smoothness (`spatial_null`), and

    .. math:: p = \frac{1 + \#\{|r^*_k| \ge |r|\}}{1 + n}

    Parameters
    ----------
    a, b : DataArray (voxel,), or array (n_places,) or (n_maps, n_places)
        Labelled maps are matched by vertex and hemisphere. One map is compared with each of several.
    coordinates : array (n_places, 3), optional
        Of the places of ``a`` on the sphere; not needed for ``null="permutation"``.
    hemi : sequence of {"L", "R"}, optional
    null : {"spin", "moran", "permutation"}
    method : {"pearson", "spearman"}
        Ranks are those of each map as a whole.
    n, assign, min_overlap, edges, seed
        Of `spatial_null`.

    Raises
    ------
    DataError
        Labels or lengths that differ, or as `spatial_null`.

    References
    ----------
    Alexander-Bloch et al. (2018), NeuroImage 178:540. Markello & Misic (2021), NeuroImage 236:118052.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> sphere = rng.standard_normal((800, 3))
    >>> sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    >>> a, b = sphere[:, 2], 0.7 * sphere[:, 0] + 0.3 * sphere[:, 2]       # two smooth maps
    >>> naive, spin = (compare_maps(a, b, sphere, null=kind, n=199) for kind in ("permutation", "spin"))
    >>> round(float(naive.r), 1), float(naive.p), bool(spin.p > 0.2)
    (0.4, 0.005, True)
    """
    null, method = one_of("null", null, NULLS), one_of("method", method, ("pearson", "spearman"))
    assign = one_of("assign", assign, ("nearest", "unique"))
    n, least = check_whole("n", n), share("min_overlap", min_overlap)
    b = match_voxels(a, b, ("a", "b"))
    if coordinates is None:
        if null != "permutation":
            raise DataError(f"null={null!r} needs the places of the maps on the sphere: coordinates (n_places, 3).")
        coordinates = np.zeros((np.shape(a)[-1] if np.ndim(a) else 0, 3))
    one, xyz, side = _check_places(a, coordinates, hemi)
    two = as_floats(b, "b")
    if two.shape[-1:] != one.shape[-1:]:
        raise DataError(f"a has {one.shape[-1]} places and b {two.shape[-1:]}; both need the same.")
    shape = np.broadcast_shapes(one.shape[:-1], two.shape[:-1])
    first, second = (x.reshape(-1, x.shape[-1]) for x in (one, two))
    if method == "spearman":
        first, second = (np.stack([_ranks(x) for x in maps]) for maps in (first, second))
    r, places = _correlate(first, second)
    if (places < 4).any():
        raise DataError(f"a and b are both known in {int(places.min())} of {one.shape[-1]} places; at least 4.")
    drawn = _null_maps(second, xyz, side, null, n, seed, assign, least, edges)
    chance = np.stack([_correlate(first, x)[0] for x in drawn])
    with np.errstate(invalid="ignore"):
        beyond = (~(np.abs(chance) < np.abs(r) - 1e-12)).sum(axis=0)
    p = np.where(np.isnan(r), np.nan, (1.0 + beyond) / (1.0 + n))
    found: list[Any] = [x.reshape(shape)[()] for x in (r, p, places)]
    return MapComparison(found[0], found[1], chance.reshape(n, *shape), found[2], kind=null, method=method)


def _ranks(x: Floats) -> Floats:
    out, known = np.full(x.shape, np.nan), np.isfinite(x)
    out[known] = rankdata(x[known])
    return out


def _correlate(a: Floats, b: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Pearson r of rows over the columns where both are finite, and how many these are; one row meets every other."""
    both = np.isfinite(a) & np.isfinite(b)
    n = both.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = np.where(both, a, 0.0), np.where(both, b, 0.0)
        x -= np.where(both, (x.sum(axis=1) / n)[:, None], 0.0)
        y -= np.where(both, (y.sum(axis=1) / n)[:, None], 0.0)
        dot, xx, yy = (np.einsum("mv,mv->m", p, q) for p, q in ((x, y), (x, x), (y, y)))
        return np.clip(dot / np.sqrt(xx * yy), -1.0, 1.0), n
