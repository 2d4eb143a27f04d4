"""Encoders of an old backbone on a new one."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc.embedding import BasisTransform


class CarriedEncoder:
    """A fitted encoder that reads a new backbone's features through a transform to its old ones.

    Attributes
    ----------
    encoder : LinearEncoder
        As it was fitted.
    transform : BasisTransform
    way : {"basis", "least_squares"}
    """

    def __init__(self, encoder: Any, transform: BasisTransform, way: str = "basis") -> None:
        one_of("way", way, ("basis", "least_squares"))
        self.encoder, self.transform, self.way = encoder, transform, way

    def __repr__(self) -> str:
        return f"CarriedEncoder({self.encoder!r}, way={self.way!r})"

    def predict(self, X: Any) -> Any:
        """Predicted responses (stimulus, voxel) of the new backbone's features."""
        return self.encoder.predict(self.transform.to_old(X, self.way))

    def score_voxels(self, X: Any, Y: Any, metric: str = "r") -> Any:
        """Score of each voxel on the new backbone's features."""
        return self.encoder.score_voxels(self.transform.to_old(X, self.way), Y, metric)

    def to_linear(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Weights (feature, voxel) on the new features and intercepts (voxel,), of the least-squares way.

        Raises
        ------
        ConfigError
            The basis way guesses some dimensions by a function that is not linear.
        """
        if self.way != "least_squares":
            raise ConfigError("a basis transform is not linear in the new features. Next step: way='least_squares'.")
        coef, intercept = self.encoder.to_linear()
        weights, offset = self.transform.linear_map()
        made = xr.DataArray(weights @ coef.values, dims=("feature", "voxel"), coords=_voxels(coef), attrs=coef.attrs)
        return made, intercept + np.asarray(offset @ coef.values)


def _voxels(coef: xr.DataArray) -> dict[str, Any]:
    return {str(k): c for k, c in coef.coords.items() if c.dims == ("voxel",)}


def carry_over(encoder: Any, transform: BasisTransform, way: str = "basis") -> CarriedEncoder:
    """Carry a fitted encoder over to a new backbone, without its responses.

    Parameters
    ----------
    encoder : LinearEncoder
        Fitted on the old backbone's features (vectors).
    transform : BasisTransform
        Fitted on stimuli that both backbones have seen; these need no responses.
    way : {"basis", "least_squares"}
        Least squares predicts responses at least as well; the basis way reads them off vectors that also hold the new
        backbone whole.

    Examples
    --------
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> new = rng.standard_normal((400, 16))
    >>> old = np.tanh(new @ rng.standard_normal((16, 6)) / 4)
    >>> Y = old @ rng.standard_normal((6, 3))
    >>> encoder = RidgeEncoder().fit(old[:200], Y[:200])
    >>> basis = BasisTransform(extra=6).fit(new[:300], old[:300])
    >>> bool((carry_over(encoder, basis).score_voxels(new[300:], Y[300:]) > 0.9).all())
    True
    """
    return CarriedEncoder(encoder, transform, way)
