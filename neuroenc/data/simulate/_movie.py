"""A simulated BOLD time series: a movie's features through response functions whose peaks are planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.signal import lfilter
from scipy.stats import gamma

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError
from neuroenc._core.provenance import provenance
from neuroenc.data._series import make_timeseries, resample_to_volumes
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.simulate._rois import AFFINE, VOLUME_SHAPE, make_voxels

#: Mean peak (s) of the response function by region.
PEAKS = {"V1": 4.5, "hV4": 5.2, "FFA": 5.9, "PPA": 6.6}
_FRAME, _LENGTH = 0.5, 30.0


def hemodynamic_response(times: Any, peak: Any = 5.0) -> np.ndarray:
    r"""Double-gamma response function, stretched in time so that its first gamma peaks at ``peak``.

    .. math:: h(t) = g(5t / p; 6) - g(5t / p; 16) / 6, \qquad g(u; k) = u^{k-1} e^{-u} / (k-1)!

    SPM's canonical function has p = 5 s; it is divided by its largest value.

    Parameters
    ----------
    times : array (t,), s
    peak : float or array (voxel,), s

    Returns
    -------
    array (t,) or (t, voxel)

    Examples
    --------
    >>> hemodynamic_response([0.0, 5.0, 10.0]).round(2).tolist()
    [0.0, 1.0, 0.18]
    """
    stretched = 5.0 * np.asarray(times, dtype=np.float64).reshape(-1, *[1] * np.ndim(peak)) / np.asarray(peak)
    found = gamma.pdf(stretched, 6) - gamma.pdf(stretched, 16) / 6
    top = gamma.pdf(5.0, 6) - gamma.pdf(5.0, 16) / 6
    return np.asarray(found / top)


def simulate_movie(
    n_runs: int = 6,
    n_volumes: int = 150,
    n_features: int = 8,
    n_voxels: int = 400,
    *,
    tr: float = 2.0,
    signal: tuple[float, float] = (0.1, 0.6),
    driven: float = 0.75,
    autocorrelation: float = 0.4,
    drift: float = 0.5,
    seed: int = 0,
) -> EncodingData:
    r"""BOLD series of one subject who watches a film, with the peak of every voxel's response function planted.

    .. math:: y_v(t) = \sqrt{s_v}\, \Big(h_v * \sum_f w_{fv} x_f\Big)(t) + \sqrt{1 - s_v}\, e_v(t), \qquad
              e_v(t) = \rho\, e_v(t - 1) + \varepsilon_v(t) \text{ and slow drift}

    Features change slowly (autoregressive, a time constant of 3 s) and have two values a second. Response functions
    (`hemodynamic_response`) peak at 4.5 s in V1, 5.2 s in hV4, 5.9 s in FFA and 6.6 s in PPA, give or take 0.3 s a
    voxel. Some voxels answer to nothing.

    Parameters
    ----------
    n_runs, n_volumes, n_features, n_voxels : int
        ``n_volumes`` in each run. Voxels of four regions of fsaverage5, about as many as asked for.
    tr : float, s
    signal : (float, float)
        Range of the signal's share of variance, s, in driven voxels.
    driven : float
        Share of voxels that answer to the film.
    autocorrelation : float
        Of the noise from one volume to the next.
    drift : float
        Share of the noise variance that is slow (below 0.01 Hz).
    seed : int

    Returns
    -------
    EncodingData
        ``responses``: a series (`neuroenc.data.make_timeseries`) with ``run``, ``time``, ``roi``, ``vertex``, ``hemi``,
        ``i, j, k``. ``stimuli``: its volumes, ``table`` with a column a feature, resampled to them. ``truth``:
        ``peak_latency`` (s, NaN of voxels that are not driven), ``driven``, ``signal_share`` over ``voxel``. ``extra``:
        ``frames``, the features at their own times (sample, feature) with ``run`` and ``time`` (s).

    References
    ----------
    Friston et al. (1998), NeuroImage 7, 30-40 (the canonical response function).

    Examples
    --------
    >>> film = simulate_movie(n_runs=2, n_volumes=40, n_voxels=16)
    >>> film.responses.dims, film.responses.stimulus.values[40].item(), film.extra["frames"].shape
    (('presentation', 'voxel'), 'run02:0000', (320, 8))
    """
    sizes = {"n_runs": n_runs, "n_volumes": n_volumes, "n_features": n_features, "n_voxels": n_voxels}
    for name, value in sizes.items():
        check_whole(name, value)
    shares = {"driven": driven, "autocorrelation": autocorrelation, "drift": drift}
    low, high = signal
    if not (tr > 0 and 0 < low <= high < 1 and all(0 <= x < 1 for x in shares.values())):
        raise ConfigError(f"tr={tr} must be above 0, signal={signal} a range in (0, 1), and {shares} in [0, 1).")
    layout, design, tuning, noise = np.random.default_rng(seed).spawn(4)
    voxels = make_voxels({name: max(2, n_voxels // len(PEAKS)) for name in PEAKS}, 0.0, 1.0, layout)
    v = len(voxels.roi)
    peak = np.array([PEAKS[name] for name in voxels.roi]) + 0.3 * tuning.standard_normal(v)
    is_driven = tuning.random(v) < driven
    share = np.where(is_driven, tuning.uniform(low, high, v), 0.0)
    weights = tuning.standard_normal((n_features, v))
    kernel = hemodynamic_response(np.arange(0, _LENGTH, _FRAME), peak)
    n_frames, lead = round(n_volumes * tr / _FRAME), len(kernel)
    frames, series = [], []
    at = np.round(np.arange(n_volumes) * tr / _FRAME).astype(int)
    slow = np.arange(1, max(2, int(2 * n_volumes * tr * 0.01) + 1))
    basis = np.cos(np.pi * np.outer(np.arange(n_volumes) + 0.5, slow) / n_volumes)
    decay = np.exp(-_FRAME / 3.0)
    for _ in range(n_runs):
        x = lfilter([np.sqrt(1 - decay**2)], [1, -decay], design.standard_normal((n_frames + 100, n_features)), axis=0)
        x = x[100:]
        drive = x @ weights
        # Nothing was shown before a run, so that its response builds up from rest.
        total = lead + n_frames
        spectrum = np.fft.rfft(drive, total, axis=0) * np.fft.rfft(kernel, total, axis=0)
        bold = np.fft.irfft(spectrum, total, axis=0)[at]
        own = lfilter([1.0], [1, -autocorrelation], noise.standard_normal((n_volumes + 50, v)), axis=0)[50:]
        slowly = basis @ noise.standard_normal((len(slow), v))
        error = np.sqrt(1 - drift) * own / own.std(axis=0) + np.sqrt(drift) * slowly / slowly.std(axis=0)
        bold = (bold - bold.mean(axis=0)) / bold.std(axis=0)
        series.append(np.sqrt(share) * bold + np.sqrt(1 - share) * error)
        frames.append(x)
    labels: dict[str, Any] = {name: getattr(voxels, name) for name in ("ijk", "vertex", "hemi", "roi")}
    labels |= {"subject": "sub-01", "space": "fsaverage5", "affine": AFFINE, "volume_shape": VOLUME_SHAPE}
    labels |= {"source": f"simulated movie, seed {seed}", "licence": "BSD-3-Clause"}
    settings = {"simulation": "movie", **sizes, **shares, "tr": tr, "signal": list(signal), "seed": seed}
    run = np.repeat(np.arange(n_runs) + 1, n_volumes)
    responses = make_timeseries(np.concatenate(series), tr=tr, run=run, provenance=provenance(**settings), **labels)
    names = [f"feature{k + 1}" for k in range(n_features)]
    coords = {
        "run": ("sample", np.repeat(np.arange(n_runs) + 1, n_frames)),
        "time": ("sample", np.tile(np.arange(n_frames) * _FRAME, n_runs)),
        "feature": names,
    }
    shown = xr.DataArray(np.concatenate(frames), dims=("sample", "feature"), coords=coords, name="frames")
    at_volumes = resample_to_volumes(shown, responses)
    table = pd.DataFrame(at_volumes.values, columns=names, index=at_volumes["stimulus"].values)
    stimuli = Stimuli(at_volumes["stimulus"].values, table=table, source=labels["source"], licence="BSD-3-Clause")
    planted = {"peak_latency": np.where(is_driven, peak, np.nan), "driven": is_driven, "signal_share": share}
    place = {str(k): c for k, c in responses.coords.items() if c.dims == ("voxel",)}
    truth = xr.Dataset({k: ("voxel", x) for k, x in planted.items()}, coords=place)
    return EncodingData(responses, stimuli, truth, {"frames": shown})
