"""Time series: responses with one row a volume, features brought to volumes, drifts and confounds taken out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr
from scipy.signal import savgol_filter

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data._build import along, check_labelled, make_features, make_responses, provenance_step
from neuroenc.data._preprocess import group_ids, group_rows

_PLACE = re.compile(r"(.*):(\d+)", flags=re.DOTALL)
_LOBES = 3


def make_timeseries(
    values: Any, *, tr: float, run: Any = 1, film: Any = None, start: float = 0.0, **labels: Any
) -> xr.DataArray:
    """BOLD time series ``Y[t, v]`` of voxel ``v`` at volume ``t``: responses to a movie or to continuous speech.

    A series is responses in presentation form whose rows are volumes in order of time, so that z-scoring, folds, files
    and encoders read it as any responses. Row ``t`` is named after what was shown and the number of its volume,
    "run01:0005" (or "ses01-run01:0005"), features by the same names; the coordinate ``time`` and the attribute ``tr``
    say that it is a series.

    Parameters
    ----------
    values : array (volume, voxel)
        Volumes of all runs one after another.
    tr : float, s
        Time from one volume to the next.
    run : int or sequence of int (volume,)
    film : str or sequence of str (volume,), optional
        What was shown, where runs showed the same: their volumes are then repeats of one stimulus, "film:0005".
    start : float, s
        Time of a run's first volume after the onset of what was shown.
    **labels
        Of `make_responses`, such as ``session``, ``subject``, ``roi``, ``vertex`` and ``hemi``.

    Returns
    -------
    xarray.DataArray
        float32, dims ``("presentation", "voxel")``, coordinates ``run`` and ``time`` (s from the onset of the run),
        ``attrs["tr"]`` (s).

    Raises
    ------
    DataError
        A repetition time outside 0 to 60 s (milliseconds?), or labels that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> y = make_timeseries(np.zeros((4, 2)), tr=1.5, run=[1, 1, 2, 2])
    >>> y.stimulus.values.tolist(), y.time.values.tolist()
    (['run01:0000', 'run01:0001', 'run02:0000', 'run02:0001'], [0.0, 1.5, 0.0, 1.5])
    """
    if not (np.isfinite(tr) and 0 < tr <= 60):
        raise DataError(f"tr={tr!r} is not legal; it is the time between volumes in seconds, above 0 and up to 60.")
    n = int(np.shape(values)[0])
    runs = along("run", run, n, np.int64, "volume")
    sessions = labels.get("session")
    keys = runs[None] if sessions is None else np.stack([along("session", sessions, n, np.int64, "volume"), runs])
    _, group = np.unique(keys, axis=1, return_inverse=True)
    group = group.reshape(-1)
    number = np.empty(n, dtype=np.int64)
    for g in range(group.max() + 1 if n else 0):
        rows = np.flatnonzero(group == g)
        if rows[-1] - rows[0] + 1 != len(rows):
            raise DataError(
                f"run {runs[rows[0]]} is not in one piece: its {len(rows)} volumes lie between rows {rows[0]} and "
                f"{rows[-1]}. Next step: put the volumes of a run one after another, or give session=."
            )
        number[rows] = np.arange(len(rows))
    if film is None:
        names = [f"run{k[-1]:02d}" if len(k) == 1 else f"ses{k[0]:02d}-run{k[1]:02d}" for k in keys.T.tolist()]
    else:
        names = along("film", film, n, str, "volume").tolist()
    ids = [f"{name}:{k:04d}" for name, k in zip(names, number.tolist())]
    found = make_responses(values, stimulus=ids, run=runs, **labels)
    time = start + tr * number.astype(np.float64)
    return found.assign_coords(time=("presentation", time)).assign_attrs(tr=float(tr))


def is_series(responses: xr.DataArray) -> bool:
    """Whether rows of responses are volumes of a time series (they have the coordinate ``time``).

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> is_series(make_responses([[0.0]], stimulus=["a"])), is_series(make_timeseries([[0.0]], tr=2.0))
    (False, True)
    """
    return "time" in responses.coords and responses["time"].dims == responses.dims[:1]


def volume_numbers(ids: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """What each volume shows and its number, of ids such as "run01:0005"; None where an id has no number.

    >>> volume_numbers(["run01:0005"])
    (array(['run01'], dtype='<U5'), array([5]))
    """
    found = [_PLACE.fullmatch(x) for x in np.asarray(ids).astype(str).tolist()]
    if not found or any(match is None for match in found):
        return None
    names, numbers = zip(*(match.groups() for match in found if match))
    return np.array(names), np.array(numbers).astype(np.int64)


def resample_to_volumes(
    features: Any,
    responses: xr.DataArray,
    *,
    times: Any = None,
    run: Any = None,
    session: Any = None,
    kind: str = "lanczos",
    lobes: int = _LOBES,
) -> xr.DataArray:
    r"""Features of frames or words, which have times of their own, at the times of the volumes.

    .. math:: x(t) = \sum_k x_k\, L\big((t - t_k) / T_R\big), \qquad
              L(u) = \operatorname{sinc}(u)\, \operatorname{sinc}(u / a) \text{ for } |u| < a

    with ``kind="lanczos"``, a low-pass filter at half the rate of the volumes: what changes faster than a volume can
    show is taken out instead of folded into slow changes. Sums are not divided by the number of samples, so that a
    volume with many words differs from one with few.

    Parameters
    ----------
    features : array (sample, feature)
        Labelled ones bring ``time``, ``run`` and ``session`` as coordinates of their rows.
    responses : DataArray (presentation, voxel)
        The series, see `make_timeseries`; gives the times, runs and names of the volumes.
    times : array (sample,), s
        From the onset of the run.
    run, session : int or array (sample,), optional
        Needed where the responses have several; numbered as theirs.
    kind : {"lanczos", "mean", "nearest"}
        "mean": of the samples from a volume's time to the next, 0 where there are none (ratings, words). "nearest": the
        sample next in time (scenes).
    lobes : int
        Of "lanczos": zero crossings on each side, a.

    Returns
    -------
    DataArray (stimulus, feature), float32
        Rows by the names of the volumes, each once, with coordinates ``run`` and ``time``.

    Raises
    ------
    DataError
        Responses that are no series, samples without times, or a run without samples.

    References
    ----------
    Huth, de Heer, Griffiths, Theunissen & Gallant (2016), Nature 532, 453-458 (Lanczos resampling of words).

    Examples
    --------
    >>> y = make_timeseries([[0.0]] * 3, tr=2.0)
    >>> x = resample_to_volumes([[1.0], [3.0], [5.0]], y, times=[0.0, 1.0, 4.5], kind="mean")
    >>> x.values.ravel().tolist()
    [2.0, 0.0, 5.0]
    """
    one_of("kind", kind, ("lanczos", "mean", "nearest"))
    check_whole("lobes", lobes, least=1)
    tr = series_tr(responses)
    values = np.asarray(as_numpy(features, "features"), dtype=np.float64)
    if values.ndim != 2:
        raise DataError(f"features have shape {values.shape}; legal is (sample, feature).")
    labelled = features.coords if isinstance(features, xr.DataArray) else {}
    where: dict[str, np.ndarray] = {}
    for name, given, dtype in (("time", times, np.float64), ("session", session, np.int64), ("run", run, np.int64)):
        given = labelled[name].values if given is None and name in labelled else given
        if name == "session" and name not in responses.coords:
            continue
        if given is None:
            if name == "time":
                raise DataError("samples have no times. Next step: times=SECONDS, from the onset of the run.")
            if len(np.unique(responses[name].values)) > 1:
                raise DataError(f"responses have several {name}s and samples none. Next step: {name}=NUMBERS.")
            given = int(responses[name].values[0])
        where[name] = along(name, given, len(values), dtype, "sample")
    _, first = np.unique(responses["stimulus"].values, return_index=True)
    rows = np.sort(first)
    runs, at = responses["run"].values[rows], responses["time"].values[rows]
    keys = [name for name in ("session", "run") if name in where]
    asked = np.stack([responses[name].values[rows] for name in keys], axis=1)
    given = np.stack([where[name] for name in keys], axis=1)
    out = np.zeros((len(rows), values.shape[1]))
    for key in np.unique(asked, axis=0):
        here, own = (np.flatnonzero((x == key).all(axis=1)) for x in (asked, given))
        if not len(own):
            names = [" ".join(f"{k} {n}" for k, n in zip(keys, x)) for x in (key, *np.unique(given, axis=0))]
            raise DataError(f"{names[0]} of the responses has no sample; samples are of {', '.join(names[1:6])}.")
        lag = at[here][:, None] - where["time"][own]
        if kind == "nearest":
            out[here] = values[own[np.abs(lag).argmin(axis=1)]]
        elif kind == "mean":
            inside = ((lag <= 1e-9) & (lag > 1e-9 - tr)).astype(np.float64)
            out[here] = inside @ values[own] / np.maximum(inside.sum(axis=1, keepdims=True), 1.0)
        else:
            u = lag / tr
            out[here] = np.where(np.abs(u) < lobes, np.sinc(u) * np.sinc(u / lobes), 0.0) @ values[own]
    more: dict[str, Any] = {}
    if "feature" in labelled:
        more["feature"] = labelled["feature"].values
    origin = {k: features.attrs[k] for k in ("backbone", "layer", "weights") if k in getattr(features, "attrs", {})}
    more |= {"run": ("stimulus", runs), "time": ("stimulus", at)}
    return make_features(out, stimulus=responses["stimulus"].values[rows], **origin, **more)


def series_tr(responses: xr.DataArray) -> float:
    """Repetition time (s) of a series; anything else is an error."""
    check_labelled(responses, "responses")
    if not is_series(responses) or "tr" not in responses.attrs or "run" not in responses.coords:
        raise DataError(
            f"responses are no time series: they need the coordinates run and time and the attribute tr; found "
            f"{sorted(map(str, responses.coords))}. Next step: neuroenc.data.make_timeseries(values, tr=..., run=...)."
        )
    return float(responses.attrs["tr"])


def clean_timeseries(
    responses: xr.DataArray,
    *,
    drift: str = "cosine",
    high_pass: float = 0.01,
    confounds: Any = None,
    trim: tuple[int, int] = (0, 0),
) -> xr.DataArray:
    r"""Take slow drifts and confounds out of a time series, run by run, and volumes off the ends of runs.

    .. math:: Y_r - N_r N_r^{+} Y_r, \qquad N_r = [1, \text{drifts}, \text{confounds}]

    as ``nilearn.signal.clean`` does. Stimuli are not read; still every volume of a run is changed by all others, so
    that training and test rows should be of different runs.

    Parameters
    ----------
    responses : DataArray (presentation, voxel)
        The series, see `make_timeseries`.
    drift : {"cosine", "linear", "savgol", "none"}
        "cosine": a discrete cosine basis up to ``high_pass``. "savgol": a third-order Savitzky-Golay fit over windows
        of ``1 / high_pass`` seconds, which is subtracted.
    high_pass : float, Hz
    confounds : array (volume, confound), optional
        Regressors such as head motion.
    trim : (int, int)
        Volumes that are dropped from the beginning and the end of each run, after cleaning.

    Returns
    -------
    DataArray (presentation, voxel), float32
        Each run has mean 0 before trimming; rows keep their names, so that delayed features still find them.

    Raises
    ------
    DataError, ConfigError
        Not a series, confounds of another length, or runs that are too short.

    Examples
    --------
    >>> import numpy as np
    >>> y = make_timeseries(np.arange(40.0)[:, None], tr=2.0)
    >>> bool(np.abs(clean_timeseries(y, drift="linear").values).max() < 1e-4)
    True
    """
    one_of("drift", drift, ("cosine", "linear", "savgol", "none"))
    tr = series_tr(responses)
    if not 0 < high_pass < 0.5 / tr:
        raise ConfigError(f"high_pass={high_pass} Hz is not legal; above 0 and below {0.5 / tr:g} (half of 1/tr).")
    first, last = (check_whole("trim", x, least=0) for x in trim)
    n = len(responses)
    regressors = np.zeros((n, 0)) if confounds is None else np.asarray(as_numpy(confounds, "confounds"), np.float64)
    regressors = regressors.reshape(len(regressors), -1)
    if len(regressors) != n or not np.isfinite(regressors).all():
        raise DataError(
            f"confounds have {len(regressors)} rows for {n} volumes, or hold NaN. Next step: one row a volume; fill "
            "the first value of derivatives with 0."
        )
    values = np.array(responses.values, dtype=np.float32)
    keep = np.ones(n, dtype=bool)
    for name, rows in group_rows(responses, "run"):
        part = np.arange(n)[rows]
        length = len(part)
        if length <= first + last + 2:
            raise DataError(f"{name} has {length} volumes, of which trim={trim} leaves too few.")
        keep[part[:first]] = keep[part[length - last :]] = False
        series, nuisance = values[part].astype(np.float64), [regressors[part]]
        if drift == "linear":
            nuisance.append(np.arange(length, dtype=np.float64)[:, None])
        elif drift == "cosine":
            nuisance.append(cosines(length, tr, high_pass))
        elif drift == "savgol":
            width = min(int(1 / (high_pass * tr)), length - 1) // 2 * 2 + 1
            series = series - savgol_filter(series, width, min(3, width - 1), axis=0)
        values[part] = without(series, np.column_stack(nuisance), name)
    done = provenance_step(
        responses.attrs, "clean_timeseries", drift=drift, high_pass=high_pass, confounds=confounds is not None
    )
    cleaned = responses.copy(deep=False, data=values).assign_attrs(provenance=done)
    return cleaned if keep.all() else cleaned.isel(presentation=np.flatnonzero(keep))


def cosines(n: int, tr: float, high_pass: float) -> np.ndarray:
    """Discrete cosines (n, k) slower than ``high_pass`` Hz, without the constant."""
    return np.cos(np.pi * np.outer((np.arange(n) + 0.5) / n, 1 + np.arange(int(2 * n * tr * high_pass))))


def without(series: np.ndarray, nuisance: np.ndarray, what: str) -> np.ndarray:
    """Series (volume, voxel) of one run less its mean and what regressors (volume, k) explain of it, float64."""
    series, design = series - series.mean(axis=0), nuisance - nuisance.mean(axis=0)
    if design.shape[1] >= len(series) - 1:
        raise DataError(f"{what} has {len(series)} volumes for {design.shape[1]} drifts and confounds.")
    if not design.shape[1]:
        return np.asarray(series)
    basis, strength, _ = np.linalg.svd(design / np.maximum(design.std(axis=0), 1e-300), full_matrices=False)
    basis = basis[:, strength > 1e-10 * max(float(strength[0]), 1e-300)]
    return np.asarray(series - basis @ (basis.T @ series))


def block_folds(responses: xr.DataArray, n_splits: int, gap: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Contiguous test blocks of every run, without the ``gap`` volumes beside them in training."""
    number = group_ids(responses, "run")[0]
    n, tests = len(number), [np.zeros(len(number), dtype=bool) for _ in range(n_splits)]
    purged = [np.zeros(n, dtype=bool) for _ in range(n_splits)]
    for g in range(number.max() + 1):
        rows = np.flatnonzero(number == g)
        if len(rows) < 2 * n_splits:
            raise DataError(f"{n_splits} blocks need {2 * n_splits} volumes a run at least; found {len(rows)}.")
        for k, block in enumerate(np.array_split(np.arange(len(rows)), n_splits)):
            tests[k][rows[block]] = True
            near = slice(max(0, int(block[0]) - gap), int(block[-1]) + 1 + gap)
            purged[k][rows[near]] = True
    # The same moment of a film that several runs showed is on one side.
    ids = responses["stimulus"].values
    known = [near | np.isin(ids, ids[test]) for near, test in zip(purged, tests)]
    found = [(np.flatnonzero(~near), np.flatnonzero(test)) for near, test in zip(known, tests)]
    if min(len(train) for train, _ in found) < 2:
        raise ConfigError(f"gap={gap} leaves no volumes to train on. Next step: a smaller gap, or fewer folds.")
    return found
