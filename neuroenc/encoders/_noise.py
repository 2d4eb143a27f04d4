"""Noise covariance of responses over voxels, with shrinkage, for likelihoods of many voxels from few trials."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import share
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._labels import match_voxels, space_of, voxel_coords


@dataclass(frozen=True, eq=False)
class NoiseCovariance:
    r"""Covariance of noise over voxels, shrunk towards independent voxels (Ledoit-Wolf).

    .. math:: \Sigma = D\, \big((1 - a) R + a I\big)\, D

    with the standard deviations D and the sample correlations R of residuals, and the shrinkage a that has the least
    expected squared error (Ledoit & Wolf 2004, of standardised residuals), 1 for independent voxels. R has at most as
    many directions as there are trials, so that nothing of the size (voxel, voxel) is ever made.

    Attributes
    ----------
    residuals : array (trial, voxel), float64
        Standardised.
    sd : array (voxel,), float64
        Standard deviations D, in the unit of the responses.
    shrinkage : float
        a, from 0 to 1.
    given : float or None
        The shrinkage that was asked for.
    voxels : mapping or None
        Coordinates of the voxels, where residuals were labelled.
    space : mapping

    References
    ----------
    Ledoit & Wolf (2004), J. Multivar. Anal. 88:365.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.standard_normal((500, 1))
    >>> noise = NoiseCovariance.fit(shared + rng.standard_normal((500, 40)))
    >>> noise
    NoiseCovariance(500 trials, 40 voxels, shrinkage 0.011)
    >>> y = rng.standard_normal((3, 40))
    >>> np.allclose(noise.colour(noise.whiten(y)), y)
    True
    """

    residuals: np.ndarray
    sd: np.ndarray
    shrinkage: float
    given: float | None = None
    voxels: Any = None
    space: Any = None

    @classmethod
    def fit(cls, residuals: Any, *, shrinkage: float | None = None) -> Self:
        """Estimate it from residuals.

        Parameters
        ----------
        residuals : array (trial, voxel)
            Measured less predicted responses of trials that are not to be decoded: those of the fit, or of a
            cross-validation within them.
        shrinkage : float, optional
            From 0 (sample covariance) to 1 (independent voxels); default: Ledoit-Wolf.

        Returns
        -------
        NoiseCovariance

        Raises
        ------
        DataError
            Fewer than 3 trials, a voxel whose residuals are constant or not finite.
        """
        values = as_numpy(residuals, "residuals").astype(np.float64)
        if values.ndim != 2 or len(values) < 3 or not values.shape[1]:
            raise DataError(f"residuals have shape {values.shape}; legal is (trial, voxel), at least 3 trials.")
        voxels = voxel_coords(residuals)
        values = values - values.mean(axis=0)
        sd = np.sqrt((values**2).mean(axis=0))
        refuse_voxels(~(np.isfinite(sd) & (sd > 1e-12 * np.fmax.reduce(sd))), voxels, "residuals")
        values /= sd
        if shrinkage is None:
            amount = _ledoit_wolf(values)
        else:
            amount = share("shrinkage", shrinkage)
            if amount == 0 and values.shape[1] >= len(values):
                raise ConfigError(
                    f"shrinkage=0 of {values.shape[1]} voxels and {len(values)} trials: their sample covariance has no "
                    "inverse. Next step: shrinkage=None, Ledoit-Wolf."
                )
        return cls(values, sd, amount, shrinkage, voxels, space_of(residuals))

    def __len__(self) -> int:
        return len(self.sd)

    def __repr__(self) -> str:
        return f"NoiseCovariance({len(self.residuals)} trials, {len(self)} voxels, shrinkage {self.shrinkage:.3f})"

    def take(self, voxels: Any) -> NoiseCovariance:
        """That of some voxels (positions or mask), with a shrinkage of its own."""
        part = self.residuals[:, voxels]
        kept = None if self.voxels is None else {k: (d, v[voxels]) for k, (d, v) in self.voxels.items()}
        amount = _ledoit_wolf(part) if self.given is None else self.given
        return NoiseCovariance(part, self.sd[voxels], amount, self.given, kept, self.space)

    def with_sd(self, sd: Any) -> NoiseCovariance:
        """The same correlations with other standard deviations (voxel,): those of predictions of uncertain weights."""
        found = np.asarray(sd, dtype=np.float64)
        if found.shape != self.sd.shape or not (np.isfinite(found) & (found > 0)).all():
            raise DataError(f"sd has shape {found.shape}; legal: one number above 0 for each of {len(self)} voxels.")
        return NoiseCovariance(self.residuals, found, self.shrinkage, self.given, self.voxels, self.space)

    def like(self, responses: Any) -> NoiseCovariance:
        """Its voxels in the order of labelled ``responses``; as it is where one of both has no labels."""
        wanted = voxel_coords(responses)
        if wanted is None or self.voxels is None:
            if responses.shape[1] != len(self):
                raise DataError(f"the noise covariance has {len(self)} voxels, responses {responses.shape[1]}.")
            return self
        import xarray as xr

        mine = xr.DataArray(np.arange(len(self))[None], dims=("row", "voxel"), coords=self.voxels)
        order = match_voxels(wanted, space_of(responses), mine, "noise covariance").values[0]
        return self if (order == np.arange(len(order))).all() else self.take(order)

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of the shrunk correlations beyond the shrinkage, and their vectors (voxel, direction)."""
        n = len(self.residuals)
        _, size, vectors = np.linalg.svd(self.residuals, full_matrices=False)
        values = (1 - self.shrinkage) * size**2 / n
        keep = values > 1e-12
        return values[keep], vectors[keep].T

    def _power(self, x: np.ndarray, power: float) -> np.ndarray:
        """Rows times a power of the shrunk correlations."""
        values, vectors = self._spectrum
        if self.shrinkage == 0:
            return np.asarray((x @ vectors) * values**power @ vectors.T)
        base = self.shrinkage**power
        return np.asarray(base * x + (x @ vectors) * ((self.shrinkage + values) ** power - base) @ vectors.T)

    def whiten(self, responses: Any) -> np.ndarray:
        r"""Rows :math:`y\, D^{-1} ((1 - a) R + a I)^{-1/2}`, whose noise is white.

        Parameters
        ----------
        responses : array (n, voxel)

        Returns
        -------
        array (n, voxel), float64
        """
        return self._power(np.asarray(responses, dtype=np.float64) / self.sd, -0.5)

    def colour(self, white: Any) -> np.ndarray:
        """Undo `whiten`: rows of white noise get this covariance.

        Parameters
        ----------
        white : array (n, voxel)

        Returns
        -------
        array (n, voxel), float64
        """
        return self._power(np.asarray(white, dtype=np.float64), 0.5) * self.sd


def _ledoit_wolf(z: np.ndarray) -> float:
    """Shrinkage of standardised residuals (trial, voxel) towards independent voxels.

    As `sklearn.covariance.ledoit_wolf_shrinkage`, from the smaller of the two Gram matrices.
    """
    n, p = z.shape
    gram = z @ z.T if n < p else z.T @ z
    square = float((gram**2).sum()) / n**2
    apart = square - p  # squared distance of R from the identity, whose mean diagonal is 1
    error = (float((np.einsum("np,np->n", z, z) ** 2).sum()) / n - square) / n
    return 1.0 if apart <= 0 or p == 1 else float(min(max(error, 0.0), apart) / apart)


def refuse_voxels(bad: np.ndarray, voxels: Any, what: str) -> None:
    """Refuse voxels that are constant or not finite, by name."""
    if bad.any():
        at = np.flatnonzero(bad)
        names = voxels["voxel"][1][at] if voxels and "voxel" in voxels else at
        raise DataError(
            f"{len(at)} of {len(bad)} voxels have {what} that are constant or not finite (first: "
            f"{', '.join(map(str, names[:3]))}). Next step: leave them out, responses.sel(voxel=...)."
        )
