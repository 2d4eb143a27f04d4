"""Other subjects' voxels at the same place of the cortex: the anatomical baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.incontext._evidence import Floats
from neuroenc.encoders.incontext._neighbours import SupportBased

__all__ = ["AnatomicalTransfer", "surface_positions"]


class AnatomicalTransfer(SupportBased):
    r"""Predicts a new subject's voxel by the encoders of other subjects' voxels that lie at the same place.

    .. math:: \hat y_v(x) = g_v \frac{1}{S} \sum_s \frac{\sum_{u \in N_k(v, s)} \kappa(|p_u - p_v|)
              \,(x \cdot w_u + b_u)} {\sum_{u \in N_k(v, s)} \kappa(|p_u - p_v|)} + o_v, \qquad
              \kappa(d) = e^{-d^2 / 2 h^2}

    Neighbours are in the same hemisphere, in each of the S training subjects that has voxels there. It is the
    anatomical baseline of BraInCoRL (fsaverage), and needs no support.

    Parameters
    ----------
    encoders : encoder or sequence of encoders
        Fitted, linear (`to_linear`), one per training subject.
    positions : array (voxel, 3), or one per training subject
        Where their voxels lie, in millimetres of a common space.
    target : array (voxel, 3)
        Where the new subject's voxels lie, in the same space; see `surface_positions`.
    hemispheres, target_hemisphere : array (voxel,) of labels (one per subject), optional
        Both or neither.
    k : int
        Neighbours a subject.
    bandwidth : float
        h, in millimetres.
    max_distance : float
        A subject none of whose voxels is nearer does not count; a voxel without any predicts 0.
    gain : {"none", "support"}
        ``"none"``: :math:`g = 1, o = 0`, responses of the support are not looked at. ``"support"``: a gain and offset a
        voxel by ridge regression on the support, shrunk towards 1 by ``gain_strength`` stimuli, never negative.
    gain_strength : float

    Attributes
    ----------
    coef_, intercept_ : arrays (feature, voxel) and (voxel,)
    n_neighbours_ : array (voxel,)
        Voxels of all subjects that were averaged.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X, W, where = rng.standard_normal((200, 4)), rng.standard_normal((4, 9)), np.arange(27.0).reshape(9, 3)
    >>> other = RidgeEncoder().fit(X, X @ W)
    >>> transfer = AnatomicalTransfer(other, where, where + 0.1, k=1).fit(X[:2], np.zeros((2, 9)))
    >>> bool(np.abs(transfer.predict(X) - X @ W).max() < 0.01)
    True
    """

    def __init__(
        self,
        encoders: Any = None,
        positions: Any = None,
        target: Any = None,
        *,
        hemispheres: Any = None,
        target_hemisphere: Any = None,
        k: int = 10,
        bandwidth: float = 5.0,
        max_distance: float = 20.0,
        gain: str = "none",
        gain_strength: float = 20.0,
    ) -> None:
        self.encoders = encoders
        self.positions = positions
        self.target = target
        self.hemispheres = hemispheres
        self.target_hemisphere = target_hemisphere
        self.k = k
        self.bandwidth = bandwidth
        self.max_distance = max_distance
        self.gain = gain
        self.gain_strength = gain_strength

    def __sklearn_clone__(self) -> Self:
        # The training subjects' encoders are data: a clone that forgot their fits would be of no use.
        return type(self)(**self.get_params(deep=False))

    def fit(self, X: Any, y: Any) -> Self:
        """Average the neighbours' weights; the responses y (n, voxel) tell gains, if asked for, and labels."""
        if self.gain not in ("none", "support"):
            raise ConfigError(f"gain={self.gain!r} is not legal; 'none' or 'support'.")
        values, responses = self._remember_support(X, y)
        coef, offset = self._transferred(responses.shape[1])
        if len(coef) != values.shape[1]:
            raise DataError(f"X has {values.shape[1]} features, the training subjects' encoders {len(coef)}.")
        if self.gain == "support":
            slope, shift = _gains(values @ coef + offset, responses.astype(np.float64), float(self.gain_strength))
            coef, offset = coef * slope, offset * slope + shift
        self.coef_, self.intercept_ = coef.astype(responses.dtype), offset.astype(responses.dtype)
        return self

    def predict(self, X: Any) -> Any:
        """Predicted responses (n, voxel)."""
        return self._labelled(self._query(X) @ self.coef_ + self.intercept_, X)

    def _transferred(self, n_voxels: int) -> tuple[Floats, Floats]:
        encoders, places, sides = _subjects(self.encoders, self.positions, self.hemispheres)
        target = np.asarray(self.target, dtype=np.float64)
        if target.shape != (n_voxels, 3):
            raise DataError(f"target has shape {target.shape}; expected ({n_voxels}, 3), a place for every voxel.")
        if (self.target_hemisphere is None) != (self.hemispheres is None):
            raise ConfigError("hemispheres and target_hemisphere are given together or not at all.")
        side = np.zeros(n_voxels) if self.target_hemisphere is None else np.asarray(self.target_hemisphere)
        linear = [encoder.to_linear() for encoder in encoders]
        coef, offset, subjects = np.zeros((linear[0][0].shape[0], n_voxels)), np.zeros(n_voxels), np.zeros(n_voxels)
        self.n_neighbours_ = np.zeros(n_voxels, dtype=int)
        for (weights, intercept), place, hemisphere in zip(linear, places, sides):
            mixing = np.zeros((weights.shape[1], n_voxels))
            for name in np.unique(side):
                members = np.flatnonzero(hemisphere == name) if self.hemispheres is not None else np.arange(len(place))
                voxels = np.flatnonzero(side == name)
                if len(members):
                    mixing[:, voxels] = self._kernel(place[members], target[voxels], members, len(place))
            found = mixing.sum(axis=0) > 0
            self.n_neighbours_ += (mixing > 0).sum(axis=0)
            coef += weights.values.astype(np.float64) @ mixing
            offset += intercept.values.astype(np.float64) @ mixing
            subjects += found
        subjects = np.maximum(subjects, 1)
        return coef / subjects, offset / subjects

    def _kernel(self, places: Floats, target: Floats, members: np.ndarray, n: int) -> Floats:
        """Weights (voxel of the subject, target voxel), each column summing to 1, or 0 where nothing is near."""
        k = min(int(self.k), len(members))
        distance, nearest = cKDTree(places).query(target, k=k, distance_upper_bound=float(self.max_distance))
        distance, nearest = distance.reshape(len(target), k), nearest.reshape(len(target), k)
        near = np.isfinite(distance)
        # Relative to the nearest, so that far neighbours do not underflow to no neighbour at all.
        least = np.where(near.any(axis=1), distance.min(axis=1), 0.0)[:, None]
        exponent = np.where(near, (least**2 - np.where(near, distance, 0.0) ** 2) / (2 * self.bandwidth**2), -np.inf)
        weight = np.exp(exponent)
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        mixing = np.zeros((n, len(target)))
        rows, columns = np.nonzero(near)
        mixing[members[nearest[rows, columns]], rows] = weight[rows, columns]
        return mixing


def _subjects(encoders: Any, positions: Any, hemispheres: Any) -> tuple[list[Any], list[Floats], list[np.ndarray]]:
    if encoders is None or positions is None:
        raise ConfigError("AnatomicalTransfer needs fitted encoders, their voxels' positions and the target's.")
    many = isinstance(encoders, Sequence)
    models = list(encoders) if many else [encoders]
    places = [np.asarray(p, dtype=np.float64) for p in (positions if many else [positions])]
    sides = [np.zeros(len(p)) for p in places]
    if hemispheres is not None:
        sides = [np.asarray(h) for h in (hemispheres if many else [hemispheres])]
    if not len(models) == len(places) == len(sides):
        raise DataError(f"{len(models)} encoders, {len(places)} sets of positions and {len(sides)} of hemispheres.")
    for model, place, side in zip(models, places, sides):
        n = model.to_linear()[0].sizes["voxel"]
        if place.shape != (n, 3) or len(side) != n:
            raise DataError(f"an encoder has {n} voxels, its positions shape {place.shape}; expected ({n}, 3).")
        if not np.isfinite(place).all():
            raise DataError("positions must be finite.")
    return models, places, sides


def _gains(predicted: Floats, responses: Floats, strength: float) -> tuple[Floats, Floats]:
    """Slope (voxel,) of responses on predictions, shrunk to 1 as by ``strength`` further stimuli, and offset."""
    seen = ~np.isnan(responses)
    n = np.maximum(seen.sum(axis=0), 1)
    mean_p = np.where(seen, predicted, 0).sum(axis=0) / n
    mean_y = np.where(seen, responses, 0).sum(axis=0) / n
    p, y = np.where(seen, predicted - mean_p, 0), np.where(seen, responses - mean_y, 0)
    variance = (p**2).sum(axis=0) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = ((p * y).sum(axis=0) + strength * variance) / ((p**2).sum(axis=0) + strength * variance)
    slope = np.where(variance > 0, np.maximum(slope, 0.0), 1.0)
    return slope, mean_y - slope * mean_p


def surface_positions(responses: xr.DataArray, vertices: Mapping[str, Any] | None = None) -> tuple[Floats, np.ndarray]:
    """Places (voxel, 3) in millimetres and hemispheres (voxel,) of responses on a surface.

    Parameters
    ----------
    responses : DataArray (..., voxel)
        With coordinates ``vertex`` and ``hemi``.
    vertices : mapping of hemisphere to array (vertex, 3), optional
        By default fsaverage5, midway between white matter and pia (needs nilearn); its vertices are the first ones of
        the denser fsaverage meshes.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> responses = make_responses([[0.0, 1.0]], stimulus=["a"], vertex=[2, 0], hemi=["L", "L"])
    >>> surface_positions(responses, {"L": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]})[0].tolist()
    [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    for name in ("vertex", "hemi"):
        if name not in responses.coords:
            raise DataError(f"responses have no voxel coordinate {name!r}; found {sorted(map(str, responses.coords))}.")
    if vertices is None:
        from neuroenc.data.simulate._rois import fsaverage5

        vertices = {side: xyz for side, (xyz, _) in fsaverage5().items()}
    hemi, vertex = responses["hemi"].values.astype(str), responses["vertex"].values
    places = np.empty((len(hemi), 3))
    for side in np.unique(hemi).tolist():
        if side not in vertices:
            raise DataError(f"vertices hold hemispheres {sorted(vertices)}; the responses have {side!r} too.")
        here, xyz = hemi == side, np.asarray(vertices[side], dtype=np.float64)
        if vertex[here].max() >= len(xyz):
            raise DataError(
                f"vertex {int(vertex[here].max())} of hemisphere {side}; the surface has {len(xyz)}. "
                "Next step: vertices= of the surface that the responses are on."
            )
        places[here] = xyz[vertex[here]]
    return places, hemi
