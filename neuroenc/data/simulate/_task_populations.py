"""Simulated voxels of several subjects or regions whose features are in conflict, bent or scaled by task."""

from __future__ import annotations

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError
from neuroenc.data.simulate._readout_populations import ReadoutPopulation

#: Kinds of population.
TASK_KINDS = ("conflict", "nonlinearity", "scale")
_BENDS = (np.abs, lambda h: np.maximum(h, 0) ** 2, lambda h: np.tanh(2 * h))
_SIZES = {"shared": 16, "own A": 8, "own B": 8}


def simulate_task_population(
    kind: str,
    *,
    n_voxels: int = 30,
    n_stimuli: int = 600,
    n_latents: int = 6,
    noise: float = 1.0,
    seed: int = 0,
) -> ReadoutPopulation:
    r"""Voxels of tasks that read 32 features through a few latents, with noise, and everything that was planted.

    .. math:: y_{nv} = s_k \sum_j r_{vj} f_k\Big(\sum_c U^k_{jc} x_{nc}\Big) + \varepsilon_{nv}

    for a voxel v of task k. Features come in three spaces, "shared" (half of them), "own A" and "own B".

    - ``conflict``: regions "A" and "B" of one subject. A reads :math:`[U, U_A, 0]`, B reads :math:`[-U, 0, U_B]`: the
      shared features with opposite sign, and a space of its own; :math:`f = \mathrm{relu}`.
    - ``nonlinearity``: subjects "s1" to "s3", all features alike, f by subject: absolute value, squared rectifier,
      tanh.
    - ``scale``: three subjects, f the rectifier, responses of s.d. 1, 3 and 10, two latents shared, the others their
      own.

    Parameters
    ----------
    kind : {"conflict", "nonlinearity", "scale"}
    n_voxels : int
        Of each task.
    n_stimuli, n_latents : int
    noise : float
        Standard deviation of the noise in units of the signal's.
    seed : int

    Returns
    -------
    ReadoutPopulation
        ``maps`` (stimulus, channel, 1, 1) with ``space`` on channel; ``responses`` (stimulus, voxel) with ``subject``
        and ``roi``; ``truth`` holds the noiseless ``signal`` (stimulus, voxel), and ``weights`` (voxel, latent).

    Raises
    ------
    ConfigError
        An unknown kind, empty sizes or negative noise.

    Examples
    --------
    >>> population = simulate_task_population("conflict", n_voxels=4, n_stimuli=50)
    >>> population.maps.shape, sorted(set(population.responses["roi"].values.tolist()))
    ((50, 32, 1, 1), ['A', 'B'])
    """
    one_of("kind of population", kind, TASK_KINDS)
    for name, value in {"n_voxels": n_voxels, "n_stimuli": n_stimuli, "n_latents": n_latents}.items():
        check_whole(name, value)
    if not 0 <= noise < np.inf:
        raise ConfigError(f"noise={noise} must be 0 or more and finite.")
    rng = np.random.default_rng([seed, TASK_KINDS.index(kind)])
    space = np.repeat(list(_SIZES), list(_SIZES.values()))
    x = rng.standard_normal((n_stimuli, len(space)))
    filters = rng.standard_normal((n_latents, len(space))) / np.sqrt(len(space))
    tasks = [("s1", "A"), ("s1", "B")] if kind == "conflict" else [(f"s{k}", "A") for k in (1, 2, 3)]
    signals, weights = [], []
    for k, (_, region) in enumerate(tasks):
        used = filters.copy()
        if kind == "conflict":
            used[:, space == "shared"] *= -1 if region == "B" else 1
            used[:, space == f"own {'A' if region == 'B' else 'B'}"] = 0
        elif kind == "scale":
            used[2:] = rng.standard_normal(used[2:].shape) / np.sqrt(len(space))
        latents = x @ used.T
        latents = _BENDS[k](latents) if kind == "nonlinearity" else np.maximum(latents, 0)
        read = rng.standard_normal((n_voxels, n_latents))
        signal = (latents - latents.mean(axis=0)) @ read.T
        scale = (1, 3, 10)[k] if kind == "scale" else 1
        signals.append(scale * signal / signal.std(axis=0))
        weights.append(read)
    signal = np.concatenate(signals, axis=1)
    values = signal + noise * signal.std(axis=0) * rng.standard_normal(signal.shape)
    labels = [np.repeat([task[k] for task in tasks], n_voxels) for k in (0, 1)]
    voxels = {"voxel": np.arange(signal.shape[1]), "subject": ("voxel", labels[0]), "roi": ("voxel", labels[1])}
    rows = {"stimulus": [f"stimulus{n:05d}" for n in range(n_stimuli)]}
    maps = xr.DataArray(
        x.astype(np.float32)[:, :, None, None],
        dims=("stimulus", "channel", "y", "x"),
        coords={**rows, "space": ("channel", space)},
        name="features",
    )
    responses = xr.DataArray(
        values.astype(np.float32), dims=("stimulus", "voxel"), coords={**rows, **voxels}, name="responses"
    )
    truth = xr.Dataset(
        {"signal": (("stimulus", "voxel"), signal), "weights": (("voxel", "latent"), np.concatenate(weights))},
        coords={**rows, **voxels},
        attrs={"kind": kind, "seed": seed, "noise": noise},
    )
    return ReadoutPopulation(kind, maps, responses, truth)
