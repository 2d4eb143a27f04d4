"""Linear readouts on flattened or pooled feature maps, trained or solved by ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders._labels import seen_patterns
from neuroenc.encoders.linear._ridge import RidgeEncoder
from neuroenc.encoders.readout._geometry import mask_moments
from neuroenc.encoders.readout._maps import Maps
from neuroenc.encoders.readout._protocol import Readout, register_readout

_PENALTIES = ("squared", "norm")


def pool_map(x: Any, cells: int | None) -> Any:
    """Maps (B, C, H, W) averaged over ``cells`` x ``cells`` cells; None leaves them."""
    return x if cells is None else functional.adaptive_avg_pool2d(x, cells)


@register_readout
class LinearReadout(Readout):
    r"""Linear readout: one weight per position and channel.

    .. math:: y_v = b_v + \sum_{c,h,w} W_{v,chw}\, x_{chw}

    `ReadoutEncoder` solves it in closed form, a penalty per voxel chosen by cross-validation. Trained by
    gradients, the penalty is :math:`\alpha \sum_v \lVert W_v \rVert^2` ("squared"; with the mean squared error of n
    stimuli the minimum is ridge regression with penalty :math:`n\alpha`) or the published
    :math:`\alpha (\lVert W \rVert_F + \lVert b \rVert_2)` ("norm": not squared, and one norm over all voxels).

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width.
    n_voxels : int
    pool : int, optional
        Average the map over pool x pool cells first.
    alpha : float
        Strength of the penalty.
    penalty : {"squared", "norm"}
    max_memory : int
        Bytes for one chunk of voxels.

    References
    ----------
    Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import LinearReadout
    >>> LinearReadout((8, 7, 7), 3)(torch.zeros(2, 8, 7, 7)).shape
    torch.Size([2, 3])
    """

    name: ClassVar[str] = "linear"
    closed_form: ClassVar[bool] = True

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        pool: int | None = None,
        alpha: float = 0.0,
        penalty: str = "squared",
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        channels, height, width = self.in_shape
        if pool is not None and not 1 <= pool <= min(height, width):
            raise ConfigError(
                f"pool={pool} cells a side on maps of {height} x {width}: choose 1 to {min(height, width)}."
            )
        one_of("penalty", penalty, _PENALTIES)
        self.pool, self.alpha, self.penalty = pool, float(alpha), penalty
        self.map_shape = self.in_shape if pool is None else (channels, pool, pool)
        n_features = self.map_shape[0] * self.map_shape[1] * self.map_shape[2]
        self.weight = self._initial(n_voxels, n_features)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def chunk_bytes(self, batch: int) -> float:
        """One row of output: the product needs nothing else."""
        return 4.0 * batch

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Pooled and flattened maps."""
        return pool_map(x, self.pool).flatten(1)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """``W vec(x) + b``."""
        return functional.linear(shared, self.weight[voxels], self.bias[voxels])

    def regulariser(self) -> Tensor:
        """Ridge penalty, or the published norms."""
        if self.penalty == "norm":
            return self.alpha * (self.weight.norm() + self.bias.norm())
        return self.alpha * self.weight.square().sum()

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Moments of the weights' energy summed over channels; none on a single cell."""
        _, height, width = self.map_shape
        if height * width == 1:
            return None
        energy = self.weight.detach().view(self.n_voxels, *self.map_shape).square().sum(1)
        return mask_moments(energy)

    def weights(self) -> xr.Dataset:
        """``weight`` (voxel, channel, y, x) and ``intercept`` (voxel)."""
        return self._labelled(weight=(("channel", "y", "x"), self.weight.view(self.n_voxels, *self.map_shape)))

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the ridge penalty, for training by gradients."""
        return {"alpha": [1e-4, 1e-3, 1e-2, 1e-1]}


@register_readout
class PooledReadout(LinearReadout):
    r"""Pooled readout: channel weights on spatially averaged feature maps.

    .. math:: y_v = b_v + \sum_c f_{vc} \frac{1}{HW}\sum_{h,w} x_{chw}

    Parameters
    ----------
    in_shape, n_voxels, alpha, penalty, max_memory
        As in `LinearReadout`.
    pool : int
        Cells a side; 1 is the global average.

    Examples
    --------
    >>> from neuroenc.encoders.readout import PooledReadout
    >>> PooledReadout((8, 7, 7), 3).weights().weight.shape
    (3, 8, 1, 1)
    """

    name: ClassVar[str] = "pooled"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        pool: int = 1,
        alpha: float = 0.0,
        penalty: str = "squared",
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, pool=pool, alpha=alpha, penalty=penalty, max_memory=max_memory)


def solve_ridge(
    readout: LinearReadout, maps: Maps, Y: np.ndarray, coords: dict[str, np.ndarray], cv: Any, **settings: Any
) -> dict[str, np.ndarray]:
    """Put the weights of a ridge regression into ``readout``.

    Voxels that saw the same stimuli are fitted together, on those stimuli.

    Returns
    -------
    dict
        ``alpha`` and ``best_score`` (V,).
    """
    with torch.no_grad():
        parts = [readout.prepare(maps.rows(r), None).cpu() for r in torch.arange(len(maps)).split(256)]
    X = torch.cat(parts).numpy()
    n_voxels = Y.shape[1]
    weight = np.zeros((n_voxels, X.shape[1]), dtype=np.float32)
    found = {"alpha": np.zeros(n_voxels), "best_score": np.zeros(n_voxels)}
    bias = np.zeros(n_voxels, dtype=np.float32)
    for rows, columns in seen_patterns(~np.isnan(Y)):
        here = {k: ("row", v[rows]) for k, v in coords.items()}
        labelled = xr.DataArray(X[rows], dims=("row", "feature"), coords=here)
        ridge = RidgeEncoder(cv=_folds(cv, rows, len(X)), **settings)
        ridge.fit(labelled, Y[np.ix_(rows, columns)])
        coef = ridge.coef_.T
        # A voxel that is constant in training has no best penalty and predicts its mean.
        blank = ~np.isfinite(coef).all(axis=1)
        weight[columns] = np.where(blank[:, None], 0, coef)
        bias[columns] = np.where(blank, Y[np.ix_(rows, columns)].mean(axis=0), ridge.intercept_)
        found["alpha"][columns], found["best_score"][columns] = ridge.alpha_, ridge.best_score_
    with torch.no_grad():
        readout.weight.copy_(torch.as_tensor(weight))
        readout.bias.copy_(torch.as_tensor(bias))
    return found


def _folds(cv: Any, rows: np.ndarray, n: int) -> Any:
    """Splits that name rows of all stimuli, as rows of those that a voxel saw."""
    if len(rows) == n or isinstance(cv, (int, np.integer, str)) or hasattr(cv, "split"):
        return cv
    place = np.full(n, -1)
    place[rows] = np.arange(len(rows))
    splits = [tuple(place[np.asarray(side)] for side in split) for split in cv]
    return [tuple(side[side >= 0] for side in split) for split in splits]


def raw_weights(
    readout: LinearReadout, mean: np.ndarray | None, scale: np.ndarray | None, layout: str, dropped: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (feature, voxel) and intercepts (voxel,) on features as the user passes them, flattened in C order.

    Undoes the pooling (a weight on an average is that weight over the number of places), the standardisation, and
    the order in which tokens became maps.
    """
    if not isinstance(readout, LinearReadout):
        raise ConfigError(
            f"readout {readout.name!r} is not linear with weights of its own for each place and channel. "
            "Next step: readout='linear' or 'pooled', or encoder.weights()."
        )
    channels, height, width = readout.in_shape
    n_voxels = readout.n_voxels
    weight = readout.weight.detach().cpu().double()
    if readout.pool is not None:
        places = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
        share = pool_map(places, readout.pool).flatten(1)
        weight = weight.view(n_voxels, channels, -1) @ share.T
    coef = weight.reshape(n_voxels, channels, height * width).numpy()
    intercept = readout.bias.detach().cpu().double().numpy()
    if scale is not None:
        coef = coef / scale[:, None]
    if mean is not None:
        intercept = intercept - (coef * mean[:, None]).sum(axis=(1, 2))
    if layout == "tokens":
        coef = coef.transpose(0, 2, 1)
        coef = np.pad(coef, ((0, 0), (dropped, 0), (0, 0)))
    return coef.reshape(n_voxels, -1).T.astype(np.float32), intercept.astype(np.float32)
