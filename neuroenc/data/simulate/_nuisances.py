"""What spoils responses of real subjects, planted: outliers, changing noise, drifting gain and tuning, saturation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.errors import ConfigError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Nuisances:
    r"""Nuisances of simulated responses; all are absent by default.

    Trials are in the order in which they were shown; :math:`u` runs from 0 at the first to 1 at the last.

    Parameters
    ----------
    outlying_trials : float
        Share of trials in which all voxels are outliers, as when the head moves.
    outlying_responses : float
        Share of single responses of single voxels that are outliers.
    outlier_sd : float
        Standard deviation that outliers have beside their noise, in those of the voxel's response.
    noise_spread : float
        Standard deviation over trials of the logarithm of the noise level, the same for all voxels.
    tails : float
        Degrees of freedom of Student's t, scaled to the noise's variance: over 2; infinity is normal.
    gain_drift : float
        Standard deviation over voxels of :math:`d_v` in the gain :math:`e^{d_v (u - 1/2)}`.
    turning : float
        Angle in radians by which a voxel's tuning has turned towards another one at the last trial.
    saturation : float
        Exponent of the signal's amount, 1 for none and below 1 for compression; its variance is kept.
    suppression : float
        Share that a response loses where what is shown is the same as just before; less where it is less alike.
    missing : float
        Share of responses that are missing.

    Raises
    ------
    ConfigError
        A share outside of 0 to below 1, or another value out of range.

    Examples
    --------
    >>> spoilt = Nuisances(outlying_trials=0.2)
    >>> noise, truth = spoilt.noise(np.ones(300), 50, np.random.default_rng(0))
    >>> int(truth["outlying_trial"].sum()), bool(noise[truth["outlying_trial"]].std() > 2.5 * noise.std() / 2)
    (10, True)
    """

    outlying_trials: float = 0.0
    outlying_responses: float = 0.0
    outlier_sd: float = 3.0
    noise_spread: float = 0.0
    tails: float = np.inf
    gain_drift: float = 0.0
    turning: float = 0.0
    saturation: float = 1.0
    suppression: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("outlying_trials", "outlying_responses", "suppression", "missing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a share, from 0 to below 1.")
        for name in ("outlier_sd", "noise_spread", "gain_drift", "turning"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number of at least 0.")
        if not self.tails > 2 or not 0 < self.saturation <= 1:
            raise ConfigError(f"tails={self.tails!r} must be over 2, saturation={self.saturation!r} over 0, at most 1.")

    @property
    def record(self) -> dict[str, float | str]:
        """Settings that are not the defaults, as JSON holds them."""
        plain = {f.name: f.default for f in fields(self)}
        return {k: str(v) if v == np.inf else v for k, v in asdict(self).items() if v != plain[k]}

    def draw(self, rng: np.random.Generator) -> Nuisances:
        """Nuisances of amounts between none and these, uniformly; each is there in two cases of three.

        Parameters
        ----------
        rng : Generator

        Returns
        -------
        Nuisances
            ``outlier_sd`` stays, and ``tails`` stay or are normal.

        Examples
        --------
        >>> drawn = Nuisances(gain_drift=0.8, saturation=0.5).draw(np.random.default_rng(0))
        >>> 0 <= drawn.gain_drift <= 0.8, 0.5 <= drawn.saturation <= 1, drawn.suppression
        (True, True, 0.0)
        """
        plain, found = {f.name: f.default for f in fields(self)}, {}
        for name, most in asdict(self).items():
            there, amount = rng.random() < 2 / 3, rng.random()
            if name == "outlier_sd":
                found[name] = most
            elif name == "tails":
                found[name] = most if there else np.inf
            else:
                found[name] = plain[name] + there * amount * (most - plain[name])
        return Nuisances(**found)

    def signal(
        self,
        signal: NDArray[Any],
        other: NDArray[Any],
        alike: NDArray[Any],
        time: NDArray[Any],
        rng: np.random.Generator,
    ) -> tuple[NDArray[Any], Arrays]:
        """Noiseless responses (trial, voxel) once tuning turns, saturates, is suppressed, and its gain drifts.

        Parameters
        ----------
        signal, other : arrays (trial, voxel)
            Of the voxels' tuning, and of what it turns to.
        alike : array (trial,)
            How alike what was shown is to what was shown before, from 0 to 1.
        time : array (trial,)
            u, from 0 to 1.
        rng : Generator

        Returns
        -------
        array (trial, voxel), and the truth: ``gain`` (trial, voxel), ``angle`` (trial,)
        """
        u = time[:, None]
        angle = self.turning * u
        turned = np.cos(angle) * signal + np.sin(angle) * other if self.turning else signal
        if self.saturation < 1:
            sd = turned.std(axis=0, keepdims=True)
            bent = np.sign(turned) * np.abs(turned) ** self.saturation
            turned = bent * sd / np.maximum(bent.std(axis=0, keepdims=True), np.finfo(float).tiny)
        gain = np.exp(self.gain_drift * rng.standard_normal(signal.shape[1]) * (u - 0.5))
        gain = gain * (1 - self.suppression * np.clip(alike, 0, 1))[:, None]
        return turned * gain, {"gain": gain, "angle": angle[:, 0]}

    def noise(self, sd: NDArray[Any], n: int, rng: np.random.Generator) -> tuple[NDArray[Any], Arrays]:
        """Noise (trial, voxel) of ``n`` trials.

        Parameters
        ----------
        sd : array (voxel,)
            Of the noise without outliers.
        n : int
        rng : Generator

        Returns
        -------
        array (trial, voxel), NaN where missing, and the truth: ``outlying_trial`` (trial,), ``outlying_response`` and
        ``missing`` (trial, voxel), booleans; ``level`` (trial,), the trials' noise over its mean square
        """
        v = len(sd)
        white = rng.standard_normal((n, v)) if self.tails == np.inf else rng.standard_t(self.tails, (n, v))
        if self.tails < np.inf:
            white *= np.sqrt((self.tails - 2) / self.tails)
        level = np.exp(self.noise_spread * rng.standard_normal(n)) if self.noise_spread else np.ones(n)
        level = level / np.sqrt((level**2).mean()) if n else level
        # As many as the share says, not about as many: few trials are what this is for.
        trials = np.zeros(n, dtype=bool)
        trials[rng.choice(n, round(self.outlying_trials * n), replace=False)] = True
        single = rng.random((n, v)) < self.outlying_responses if self.outlying_responses else np.zeros((n, v), bool)
        noise = white * level[:, None] * sd
        if trials.any() or single.any():
            noise = noise + self.outlier_sd * rng.standard_normal((n, v)) * (trials[:, None] | single)
        gone = rng.random((n, v)) < self.missing if self.missing else np.zeros((n, v), dtype=bool)
        truth = {"outlying_trial": trials, "outlying_response": single, "missing": gone, "level": level}
        return np.where(gone, np.nan, noise), truth
