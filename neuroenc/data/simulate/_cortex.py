"""The simulated cortex: what subjects with planted preferences answer to the simulated world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.data._build import make_responses
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.simulate._lexicon import FAMILIES, MEMBERS
from neuroenc.data.simulate._nuisances import Nuisances
from neuroenc.data.simulate._rois import AFFINE, ROIS, VOLUME_SHAPE, Voxels, energy_maps, make_voxels, noiseless


def _counts(n_voxels: Mapping[str, int] | int | None) -> dict[str, int]:
    defaults = {name: roi.count for name, roi in ROIS.items()}
    if n_voxels is None:
        return defaults
    if isinstance(n_voxels, Mapping):
        for name in n_voxels:
            one_of("roi", name, ROIS)
        counts = {name: int(n_voxels[name]) for name in ROIS if name in n_voxels}
    else:
        scale = int(n_voxels) / sum(defaults.values())
        counts = {name: round(scale * count) for name, count in defaults.items()}
    if not counts or min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise ConfigError(f"n_voxels={n_voxels!r} asks for no voxels; give a total or {{'FFA': 60, ...}}.")
    return counts


def _check_table(stimuli: Stimuli) -> None:
    needed = [*FAMILIES, *(f"{f}_x" for f in FAMILIES), *(f"member_{m}" for f in FAMILIES for m in MEMBERS[f])]
    missing = [c for c in needed if c not in stimuli.table.columns]
    if missing or stimuli.images is None:
        what = f"{len(missing)} of {len(needed)} latent columns, such as {missing[0]!r}" if missing else "images"
        raise DataError(
            f"the stimuli (source {stimuli.source!r}) lack {what}. The simulated cortex sees only the simulated "
            "world. Next step: stimuli = simulate_world(1000)."
        )


def _spoilt(
    signal: np.ndarray, ncsnr: np.ndarray, design: Design, share: float, nuisances: Nuisances, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Signal and white noise of ``share`` of the noise variance under nuisances, and the truth."""
    shown, n = signal[design.stimulus], len(design.stimulus)
    other = shown[:, rng.permutation(shown.shape[1])]
    alike, time = (design.repeat > 0).astype(float), np.linspace(0, 1, n)
    clean, truth = nuisances.signal(shown, other, alike, time, rng)
    # Outliers are in units of the response's standard deviation.
    whole = np.sqrt(1.0 + 1.0 / ncsnr**2)
    noise, planted = nuisances.noise(np.sqrt(share) / ncsnr / whole, n, rng)
    return (clean + noise * whole).astype(np.float32), truth | planted


def _respond(
    signal: np.ndarray, ncsnr: np.ndarray, design: Design, drift: float, rng: np.random.Generator, nuisances: Nuisances
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Measured responses (presentation, voxel) in percent, planted gain and offset per session, and nuisances."""
    n_sessions, n_voxels = int(design.session.max()), signal.shape[1]
    noise = (1.0 / ncsnr).astype(np.float32)
    truth: dict[str, np.ndarray] = {}
    if nuisances.record:
        values, truth = _spoilt(signal, ncsnr, design, 1.0 - drift, nuisances, rng.spawn(1)[0])
    else:
        values = rng.standard_normal((len(design.stimulus), n_voxels), dtype=np.float32)
        values *= noise * np.float32(np.sqrt(1.0 - drift))
        values += signal[design.stimulus]
    # The drift is part of the noise budget: two slow shapes of unit variance share it.
    slow = np.stack([np.sqrt(3.0) * design.time, np.sqrt(5.0) * (1.5 * design.time**2 - 0.5)], axis=1)
    slow = slow.astype(np.float32)
    amplitude = rng.lognormal(0.0, 0.3, n_voxels)
    baseline = rng.normal(1.0, 0.5, n_voxels)
    gain = amplitude * rng.lognormal(0.0, 0.1, (n_sessions, 1)) * rng.lognormal(0.0, 0.1, (n_sessions, n_voxels))
    offset = baseline + rng.normal(0.0, 0.3, (n_sessions, 1)) + rng.normal(0.0, 0.3, (n_sessions, n_voxels))
    for s in range(1, n_sessions + 1):
        rows = design.session == s
        for r in np.unique(design.run[rows]):
            block = np.flatnonzero(rows & (design.run == r))
            weights = rng.standard_normal((2, n_voxels), dtype=np.float32) * noise * np.float32(np.sqrt(drift / 2))
            values[block] += slow[block] @ weights
        values[rows] *= gain[s - 1].astype(np.float32)
        values[rows] += offset[s - 1].astype(np.float32)
    return values, gain.astype(np.float32), offset.astype(np.float32), truth


def _truth(
    voxels: Voxels,
    members: np.ndarray,
    signal: np.ndarray,
    ids: np.ndarray,
    ncsnr: np.ndarray,
    n_averaged: int,
    gain: np.ndarray,
    offset: np.ndarray,
) -> xr.Dataset:
    numbers = {name: getattr(voxels, name) for name in ("rf_x", "rf_y", "rf_size")}
    numbers |= {"ncsnr": ncsnr, "noise_ceiling_r2": ncsnr**2 / (ncsnr**2 + 1.0 / n_averaged)}
    names = {"family": voxels.family, "second_family": voxels.second_family, "members": members}
    per_voxel = names | {"mixed": voxels.second_family != ""} | {k: x.astype(np.float32) for k, x in numbers.items()}
    known: dict[str, Any] = {name: ("voxel", value) for name, value in per_voxel.items()}
    known["signal"] = (("stimulus", "voxel"), signal)
    known |= {f"session_{k}": (("session", "voxel"), v) for k, v in (("gain", gain), ("offset", offset))}
    places = {"voxel": np.arange(len(ncsnr)), "stimulus": ids, "session": np.arange(1, len(gain) + 1)}
    truth = xr.Dataset(known, places | {k: ("voxel", getattr(voxels, k)) for k in ("roi", "hemi", "vertex")})
    for name in ("rf_x", "rf_y", "rf_size"):
        truth[name].attrs["units"] = "fraction of the picture's width, origin at its centre, y up"
    truth["ncsnr"].attrs["definition"] = "signal sd / noise sd of one presentation, after z-scoring by session"
    truth["noise_ceiling_r2"].attrs.update(convention="variance (R2)", n_averaged=n_averaged)
    truth["signal"].attrs["units"] = "z-score over stimuli, without noise"
    return truth


def simulate_cortex(
    stimuli: Stimuli,
    *,
    n_subjects: int = 1,
    n_voxels: Mapping[str, int] | int | None = None,
    n_sessions: int = 4,
    n_repeats: int = 1,
    test_ids: Sequence[str] | np.ndarray | None = None,
    test_repeats: int = 3,
    runs_per_session: int = 4,
    ncsnr: tuple[float, float] = (0.2, 1.5),
    mixed_share: float = 0.12,
    drift: float = 0.05,
    individual: float = 1.0,
    own: float = 0.6,
    unique: bool = False,
    nuisances: Nuisances | None = None,
    seed: int = 0,
) -> list[EncodingData]:
    r"""Responses of simulated subjects to scenes of the simulated world, with the planted truth.

    Presentation :math:`t` of stimulus :math:`i` in session :math:`s` gives voxel :math:`v` the response

    .. math:: y_{tv} = o_{sv} + g_{sv} \bigl( f_v(i) + (\epsilon_{tv} + d_{tv}) / \mathrm{ncsnr}_v \bigr)

    where :math:`f_v` is the noiseless response, z-scored over stimuli, :math:`\epsilon + d` is white trial
    noise and slow drift within the run, of unit variance together, and :math:`g, o` are gain and offset of
    the session. After z-scoring within session, ncsnr is therefore what NSD's estimator from repeats finds.

    V1, V2, V3 and hV4 pool Gabor energy (4 orientations, 2 scales), contrast and colour-opponent energy
    under a Gaussian receptive field in the contralateral half of the picture, followed by a compressive
    power; size grows with eccentricity and from V1 to hV4. OFA, FFA (face), EBA, FBA (body), PPA, OPA, RSC
    (place), VWFA (word, left only) and a food patch answer to objects of their family: in each region,
    sub-clusters along the anterior-posterior axis prefer some members (others drive them at about 0.6),
    moderately changed by size and by position (contralateral objects count more); some voxels are mixed,
    with a second family. Regions are contiguous patches of fsaverage5 around approximate published
    centres; they are not anatomical labels.

    Parameters
    ----------
    stimuli : Stimuli
        From :func:`simulate_world`.
    n_subjects : int
        Subjects differ, as far as ``individual`` says, in where regions lie, their size, receptive fields,
        member weights and ncsnr. Subject 1 is the same however many there are.
    n_voxels : int or mapping of region to int, optional
        Voxels wanted, in all (shared as by default) or per region (only those regions then); both
        hemispheres together. A subject has them up to individual size. Default about 800.
    n_sessions, runs_per_session : int
    n_repeats : int
        Presentations of each training stimulus.
    test_ids : sequence of str, optional
        Stimuli shown ``test_repeats`` times, to every subject, spread over sessions.
    test_repeats : int
    ncsnr : (float, float)
        Range of the planted ncsnr (signal sd / noise sd of one presentation, no unit); within it voxels
        follow a beta(2, 3) distribution.
    mixed_share : float
        Share of selective voxels with a second family.
    drift : float
        Share of the noise variance that is slow drift, 0 to below 1.
    individual : float
        How much subjects differ: 1 = as people, 0 = same layout and weights (the random draws of
        receptive-field tuning and noise still differ).
    own : float
        Share of each voxel's signal variance that lies along a direction of its own, from 0 to below 1. By default
        fitted weights are as alike as people's: median cosine .21 with the mean of the ten nearest voxels of another
        subject and .09 with ten random ones (BOLD5000: .18 to .31 and .05 to .11). At 0 a voxel is what its region and
        its place in it make it (.56 and .24), as where captions are judged by what was planted.
    unique : bool
        Deal the training stimuli out to the subjects instead of showing all to everyone.
    nuisances : Nuisances, optional
        What spoils responses besides. Stimuli that were shown before are suppressed; tuning turns to another voxel's.
    seed : int

    Returns
    -------
    list of EncodingData
        One per subject. ``responses``: (presentation, voxel) float32, "% signal change", not z-scored, in
        the order shown, with ``subject`` ("sub-01"), ``session``, ``run`` (from 1), ``repeat``, ``roi``,
        ``vertex``, ``hemi``, ``i, j, k``. It carries no ``ncsnr``: that is for the analysis to estimate.
        ``truth``: Dataset with, per voxel, ``family`` and ``second_family`` ("" = none), ``members``
        preferred (joined by ";"), ``mixed``, ``rf_x, rf_y, rf_size`` (fractions of the picture's width from
        its centre, y up; NaN where not retinotopic), ``ncsnr``, ``noise_ceiling_r2`` (variance that can be
        explained in the mean of the repeats of a test stimulus, of ``n_repeats`` without a test set); and
        ``signal`` (stimulus, voxel), ``session_gain``, ``session_offset`` (session, voxel); with nuisances also
        ``nuisance_*`` (presentation,) or (presentation, voxel).

    Raises
    ------
    ConfigError
        A setting is out of range, or a region does not exist.
    DataError
        The stimuli are not of the simulated world, or a test id is unknown.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25, 116-126 (ncsnr). Kay et al. (2013), J Neurophysiol 110,
    481-494 (compressive spatial summation).

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> world = simulate_world(24, seed=1)
    >>> data = simulate_cortex(world, n_voxels={"FFA": 10}, n_sessions=2, test_ids=world.ids[:4])[0]
    >>> data.responses.sizes["presentation"], sorted(set(data.truth.family.values.tolist()))
    (32, ['face'])
    """
    numbers = {"n_subjects": n_subjects, "n_sessions": n_sessions, "n_repeats": n_repeats}
    numbers |= {"test_repeats": test_repeats, "runs_per_session": runs_per_session}
    for name, value in numbers.items():
        check_whole(name, value)
    if not 0 < ncsnr[0] <= ncsnr[1]:
        raise ConfigError(f"ncsnr={ncsnr!r} must be a range of positive numbers, low first.")
    if not (0 <= drift < 1 and 0 <= own < 1 and 0 <= mixed_share <= 1 and individual >= 0):
        raise ConfigError(
            f"drift={drift} must be in [0, 1), own={own} in [0, 1), mixed_share={mixed_share} in [0, 1], "
            f"individual={individual} at least 0."
        )
    counts = _counts(n_voxels)
    _check_table(stimuli)
    is_test = np.zeros(len(stimuli), dtype=bool)
    if test_ids is not None:
        is_test[stimuli.index_of(test_ids)] = True
    shown = np.where(is_test, test_repeats, n_repeats)
    if unique and np.count_nonzero(~is_test) < n_subjects:
        raise ConfigError(f"{np.count_nonzero(~is_test)} training stimuli cannot be dealt to {n_subjects} subjects.")
    maps = energy_maps(stimuli)
    deal = np.random.default_rng([seed, 1_000_003]).permutation(np.flatnonzero(~is_test))
    settings = {"simulation": "cortex", "world": stimuli.source, "n_voxels": counts, **numbers, "ncsnr": list(ncsnr)}
    settings |= {"mixed_share": mixed_share, "drift": drift, "individual": individual, "unique": unique, "seed": seed}
    if own:
        settings["own"] = own
    if nuisances is not None:
        settings["nuisances"] = nuisances.record
    subjects = []
    for s in range(n_subjects):
        rows = np.arange(len(stimuli))
        if unique:
            rows = np.sort(np.concatenate([np.flatnonzero(is_test), deal[s::n_subjects]]))
        rng_layout, rng_tuning, rng_design, rng_noise = np.random.default_rng([seed, s]).spawn(4)
        voxels = make_voxels(counts, mixed_share, individual, rng_layout)
        own_stimuli = stimuli if len(rows) == len(stimuli) else stimuli.sel(stimuli.ids[rows])
        signal, members = noiseless(voxels, own_stimuli.table, maps[:, rows], individual, rng_tuning, own)
        low, high = ncsnr
        planted = low + (high - low) * rng_noise.beta(2.0, 3.0, len(voxels.roi))
        design = make_design(shown[rows], n_sessions, runs_per_session, rng_design)
        values, gain, offset, spoilt = _respond(signal, planted, design, drift, rng_noise, nuisances or Nuisances())
        labels: dict[str, Any] = {name: getattr(design, name) for name in ("session", "run", "repeat")}
        labels |= {name: getattr(voxels, name) for name in ("ijk", "vertex", "hemi", "roi")}
        labels |= {"stimulus": own_stimuli.ids[design.stimulus], "subject": f"sub-{s + 1:02d}", "space": "fsaverage5"}
        labels |= {"affine": AFFINE, "volume_shape": VOLUME_SHAPE, "units": "% signal change"}
        labels |= {"source": f"simulated cortex, seed {seed}, subject {s + 1}", "licence": "BSD-3-Clause"}
        responses = make_responses(values, **labels, provenance=provenance(**settings, subject=s + 1))
        averaged = test_repeats if is_test.any() else n_repeats
        truth = _truth(voxels, members, signal, own_stimuli.ids, planted, averaged, gain, offset)
        for key, x in spoilt.items():
            truth[f"nuisance_{key}"] = (("presentation", "voxel")[: x.ndim], x)
        subjects.append(EncodingData(responses, own_stimuli, truth))
    return subjects


@dataclass(frozen=True)
class Design:
    """One row per presentation, in the order shown; ``time`` runs from -1 to 1 within a run."""

    stimulus: np.ndarray
    session: np.ndarray
    run: np.ndarray
    repeat: np.ndarray
    time: np.ndarray


def make_design(counts: np.ndarray, n_sessions: int, runs_per_session: int, rng: np.random.Generator) -> Design:
    """Spread ``counts[i]`` presentations of stimulus ``i`` over sessions, in random order.

    Repeats of a stimulus fall into different sessions while there are enough of them. Sessions and runs are
    numbered from 1, runs anew in each session.
    """
    n = len(counts)
    stimulus = np.repeat(np.arange(n), counts)
    number = np.concatenate([np.arange(c) for c in counts])
    # Stimuli with the same number of repeats share the sessions evenly.
    first = np.empty(n, dtype=np.int64)
    for c in np.unique(counts):
        group = rng.permutation(np.flatnonzero(counts == c))
        first[group] = (np.arange(len(group)) + rng.integers(n_sessions)) % n_sessions
    step = np.maximum(1, n_sessions // np.maximum(counts, 1))
    session = (first[stimulus] + number * step[stimulus]) % n_sessions
    order = np.lexsort((rng.random(len(stimulus)), session))
    stimulus, session = stimulus[order], session[order]
    run = np.empty_like(session)
    time = np.empty(len(session))
    repeat = np.empty_like(session)
    for s in range(n_sessions):
        rows = np.flatnonzero(session == s)
        for r, block in enumerate(np.array_split(rows, min(runs_per_session, max(len(rows), 1)))):
            run[block] = r + 1
            time[block] = np.linspace(-1, 1, len(block)) if len(block) > 1 else 0.0
    by_stimulus = np.argsort(stimulus, kind="stable")
    repeat[by_stimulus] = np.concatenate([np.arange(c) for c in counts])
    return Design(stimulus, session + 1, run, repeat, time)
