"""Checks that speak: what was found, what is legal, and one next step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.data._build import FEATURE_DIMS, ZSCORED, check_hemi, inside_volume, refuse_multiindex, require_unique
from neuroenc.data._preprocess import Rows, group_rows, moments
from neuroenc.data._stimuli import EncodingData, Stimuli

_INTEGER = ("presentation", "session", "run", "repeat", "n_repeats", "voxel", "i", "j", "k", "vertex")
_TEXT = ("stimulus", "subject", "roi", "hemi")
_VOXEL = ("voxel", "i", "j", "k", "vertex", "hemi", "roi", "ncsnr")


def validate_responses(responses: xr.DataArray, *, zscored: str | None = None, allow_nan: bool = False) -> xr.DataArray:
    """Check that responses follow the schema, and optionally that they are z-scored.

    With m and s a voxel's mean and standard deviation within one session (or run), "z-scored" means
    ``|m| < 0.01`` and ``|s - 1| < 0.01`` in every session (divisor n or
    n - 1; constant voxels at 0 are legal).
    Where the attributes declare a z-scoring that was done on more presentations than are present (a
    split, one category), only gross departures of the median voxel are errors.

    Parameters
    ----------
    responses : DataArray (presentation, voxel) or (stimulus, voxel), float32
    zscored : {"session", "run"}, optional
        Required z-scoring. By default what the attributes declare is checked.
    allow_nan : bool
        Accept NaN values (infinite values are never accepted).

    Returns
    -------
    DataArray
        The same object.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[3.0], [5.0]], stimulus=["a", "b"], session=1)
    >>> validate_responses(r) is r
    True
    >>> validate_responses(r, zscored="session")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: responses are not z-scored within session: ...
    """
    if not isinstance(responses, xr.DataArray):
        raise DataError(
            f"responses are {type(responses).__name__} (expected xarray.DataArray). "
            "Next step: neuroenc.data.make_responses(values, stimulus=ids)."
        )
    dims = tuple(map(str, responses.dims))
    legal = (("presentation", "voxel"), ("stimulus", "voxel"))
    if dims not in legal:
        step = "responses.transpose(..., 'voxel')" if dims[::-1] in legal else "make_responses"
        raise DataError(
            f"responses have dims {dims} and shape {responses.shape}; legal are ('presentation', 'voxel') and "
            f"('stimulus', 'voxel'). Next step: {step}."
        )
    if responses.dtype != np.float32:
        raise DataError(f"responses are {responses.dtype} (expected float32). Next step: responses.astype('float32').")
    _check_labels(responses, dims[0])
    if "stimulus" not in responses.coords:
        raise DataError(
            f"responses have no 'stimulus' coordinate; found {sorted(map(str, responses.coords))}. "
            "Next step: responses.assign_coords(stimulus=('presentation', ids))."
        )
    if "stimulus" in responses.dims:
        step = "neuroenc.data.average_repeats on the presentation form"
        require_unique(responses["stimulus"].values, "stimulus ids", step)
    _check_voxels(responses)
    _check_repeats(responses, dims[0])
    _check_finite(responses, allow_nan)
    check_zscored(responses, zscored)
    return responses


def _check_repeats(responses: xr.DataArray, sample: str) -> None:
    """A stimulus has each repeat once; counts that begin again come from parts that were joined."""
    if sample != "presentation" or "repeat" not in responses.coords:
        return
    keys = [x for x in ("subject", "stimulus", "repeat") if x in responses.coords and responses[x].dims == (sample,)]
    frame = pd.DataFrame({x: responses[x].values for x in keys})
    twice = frame.duplicated().to_numpy()
    if twice.any():
        row = frame.iloc[int(np.argmax(twice))]
        raise DataError(
            f"{int(twice.sum())} presentations have a repeat that their stimulus had before, first "
            f"{row['stimulus']!r} repeat {row['repeat']}: were sessions joined that each count from 0? "
            "Next step: responses.drop_vars('repeat'), or make_responses to count anew."
        )


def _check_labels(obj: xr.DataArray | xr.Dataset, sample: str | None) -> None:
    """Type and dimension of every coordinate that the schema names."""
    refuse_multiindex(obj)
    for name in (*_INTEGER, *_TEXT, "ncsnr"):
        if name not in obj.coords:
            continue
        coord = obj[name]
        dim = "voxel" if name in _VOXEL else sample
        legal: list[tuple[str, ...]] = [(dim,)] if dim else [coord.dims]  # type: ignore[list-item]
        if name == "subject":
            legal.append(())
        if coord.dims not in legal:
            raise DataError(f"coordinate {name!r} has dims {coord.dims} (expected ({dim!r},)).")
        if name in _INTEGER and coord.dtype.kind not in "iu":
            raise DataError(
                f"coordinate {name!r} is {coord.dtype} (expected int64). "
                f"Next step: assign_coords({name}=({dim!r}, values.astype('int64')))."
            )
        if name in _TEXT and coord.dtype.kind != "U":
            first = coord.values.ravel()[:1].tolist()
            raise DataError(
                f"coordinate {name!r} is {coord.dtype}, first value {first} (expected text). "
                f"Next step: assign_coords({name}=({dim!r}, [str(x) for x in values]))."
            )


def _check_voxels(obj: xr.DataArray | xr.Dataset) -> None:
    if "voxel" not in obj.coords:
        raise DataError("no 'voxel' coordinate. Next step: assign_coords(voxel=range(n)) or make_responses.")
    step = "give each voxel its own number, e.g. assign_coords(voxel=range(n))"
    require_unique(obj["voxel"].values, "voxel ids", step)
    have = [x for x in "ijk" if x in obj.coords]
    if have and len(have) < 3:
        raise DataError(f"voxels have coordinates {have} only (expected all of i, j, k).")
    if "hemi" in obj.coords:
        check_hemi(obj["hemi"].values)
    affine, shape = obj.attrs.get("affine"), obj.attrs.get("volume_shape")
    if affine is not None and np.shape(affine) != (16,):
        raise DataError(
            f"attribute affine has shape {np.shape(affine)} (expected 16 numbers, row by row). "
            "Next step: responses.attrs['affine'] = img.affine.ravel().tolist()."
        )
    if shape is not None and np.shape(shape) != (3,):
        raise DataError(f"attribute volume_shape is {shape} (expected 3 integers).")
    if have and isinstance(obj, xr.DataArray):
        if affine is None or shape is None:
            raise DataError(
                "voxels have i, j, k but the attributes lack affine or volume_shape. "
                "Next step: attrs['affine'] = img.affine.ravel().tolist(); attrs['volume_shape'] = "
                "list(img.shape[:3])."
            )
        inside_volume(np.stack([obj[x].values for x in "ijk"], axis=1), shape)


def _check_finite(responses: xr.DataArray, allow_nan: bool) -> None:
    data = responses.data
    n_rows, n_voxels = responses.shape
    nan = np.zeros(n_voxels, dtype=np.int64)
    infinite = np.zeros(n_voxels, dtype=np.int64)
    step = max(1, 2**24 // max(1, n_voxels))
    for start in range(0, n_rows, step):
        block = np.asarray(data[start : start + step])
        if np.isfinite(block.sum(dtype=np.float64)):
            continue
        nan += np.isnan(block).sum(0)
        infinite += np.isinf(block).sum(0)
    for count, word, stop in ((infinite, "infinite", True), (nan, "NaN", not allow_nan)):
        bad = np.flatnonzero(count)
        if not stop or not bad.size:
            continue
        names = ""
        if "roi" in responses.coords:
            found = {x for entry in np.unique(responses["roi"].values[bad]) for x in entry.split(";") if x}
            names = f", in ROIs {sorted(found)[:6]}" if found else ", in no ROI"
        whole = int((count == n_rows).sum())
        raise DataError(
            f"{bad.size} of {n_voxels} voxels have {word} values ({int(count.sum())} values, {whole} voxels "
            f"throughout), first voxel ids {responses['voxel'].values[bad[:5]].tolist()}{names}. Next step: "
            "responses.dropna('voxel')"
            + (", or allow_nan=True." if word == "NaN" else " after responses.where(np.isfinite(responses)).")
        )


def validate_features(features: xr.DataArray, *, unit_norm: bool = False) -> xr.DataArray:
    """Check that features follow the schema, and optionally that every vector has unit norm.

    Parameters
    ----------
    features : DataArray (stimulus, feature), (stimulus, token, feature) or (stimulus, channel, y, x), float32
    unit_norm : bool
        Require ``| ||x|| - 1 | < 0.001`` over ``feature`` (or ``channel``). Also required where the attribute
        ``normalised`` is 1.

    Returns
    -------
    DataArray
        The same object.

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> validate_features(make_features([[3.0, 4.0]], stimulus=["a"]), unit_norm=True)
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: features are not unit norm: norms range 5..5 (expected 1)...
    """
    if not isinstance(features, xr.DataArray):
        raise DataError(
            f"features are {type(features).__name__} (expected xarray.DataArray). "
            "Next step: neuroenc.data.make_features(values, stimulus=ids)."
        )
    dims = tuple(map(str, features.dims))
    if dims not in FEATURE_DIMS.values():
        raise DataError(f"features have dims {dims}; legal are {', '.join(str(x) for x in FEATURE_DIMS.values())}.")
    if features.dtype != np.float32:
        raise DataError(f"features are {features.dtype} (expected float32). Next step: features.astype('float32').")
    if "stimulus" not in features.coords:
        raise DataError("features have no 'stimulus' coordinate. Next step: make_features(values, stimulus=ids).")
    _check_labels(features, "stimulus")
    axis = dims.index("feature" if "feature" in dims else "channel")
    need = unit_norm or bool(features.attrs.get("normalised", 0))
    step = max(1, 2**24 // max(1, int(np.prod(features.shape[1:]))))
    bad_rows = 0
    low, high = np.inf, -np.inf
    for start in range(0, features.shape[0], step):
        block = np.asarray(features.data[start : start + step])
        bad_rows += int((~np.isfinite(block.reshape(len(block), -1)).all(1)).sum())
        if need and block.size:
            norms = np.sqrt(np.einsum("...f,...f->...", *(np.moveaxis(block, axis, -1),) * 2, dtype=np.float64))
            low, high = min(low, norms.min()), max(high, norms.max())
    if bad_rows:
        raise DataError(f"{bad_rows} of {features.shape[0]} stimuli have NaN or infinite features.")
    if need and features.size and not (abs(low - 1) < 1e-3 and abs(high - 1) < 1e-3):
        declared = "" if not features.attrs.get("normalised", 0) else ", although declared normalised"
        raise DataError(
            f"features are not unit norm: norms range {low:.4g}..{high:.4g} (expected 1){declared}. "
            f"Next step: features / np.sqrt((features**2).sum({features.dims[axis]!r})), or an embedder with "
            "normalise=True."
        )
    return features


def validate(obj: Any) -> Any:
    """Check any object of the data model, chosen by what it is.

    Parameters
    ----------
    obj : DataArray (responses or features), Dataset (scores over voxel), Stimuli or EncodingData

    Returns
    -------
    The same object

    Raises
    ------
    DataError
        The object is none of these, or breaks the schema.

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> validate(make_features([[1.0]], stimulus=["a"])).name
    'features'
    """
    if isinstance(obj, EncodingData):
        if obj.responses is not None:
            validate_responses(obj.responses)
            if obj.stimuli is not None:
                obj.stimuli.index_of(np.unique(obj.responses["stimulus"].values))
        return obj
    if isinstance(obj, Stimuli):
        obj.__post_init__()
        return obj
    if isinstance(obj, xr.Dataset):
        _check_labels(obj, None)
        _check_voxels(obj)
        return obj
    if isinstance(obj, xr.DataArray):
        if obj.name == "responses" or "voxel" in obj.dims:
            return validate_responses(obj)
        if obj.name == "features" or {"feature", "channel"} & set(obj.dims):
            return validate_features(obj)
    raise DataError(
        f"cannot validate {type(obj).__name__} with dims {getattr(obj, 'dims', ())}; legal: responses, features, a "
        "Dataset over voxel, Stimuli, EncodingData."
    )


# A subset of a z-scored set (one category, a test split) has not mean 0 and sd 1 exactly; these bounds are
# on the median voxel, outside what a subset shows and well inside what raw signals show.
_SUBSET_MEAN, _SUBSET_SD, _SUBSET_MIN = 1.5, (0.1, 2.0), 8
_STRICT = 0.01


def check_zscored(responses: xr.DataArray, required: str | None) -> None:
    """Raise DataError unless ``responses`` are z-scored within ``required`` (default: what they declare)."""
    declared = str(responses.attrs.get("zscored", "none"))
    if declared not in ZSCORED:
        raise DataError(f"attribute zscored is {declared!r}; legal: {', '.join(ZSCORED)}.")
    by = required or declared
    if by not in ("session", "run"):
        if by == "none":
            return
        raise DataError(f"zscored={by!r} is not legal; use 'session' or 'run'.")
    if not responses.size:
        return
    averaged = responses.dims[0] == "stimulus"
    sufficient = declared == by or declared == "run"
    if averaged:
        if not sufficient:
            raise DataError(
                f"responses are averaged over repeats and declare zscored={declared!r} (required {by!r}). Next step: "
                f"neuroenc.data.average_repeats(neuroenc.data.zscore(presentations, by={by!r}))."
            )
        groups: list[tuple[str, Rows]] = [("all stimuli", slice(None))]
    else:
        groups = group_rows(responses, by)
    complete = responses.attrs.get("zscored_n") == responses.shape[0]
    strict = not averaged and (complete or not sufficient)
    ranges: list[tuple[float, ...]] = []
    wrong = 0
    for _, rows in groups:
        n, mean, sd = moments(responses.data, rows)
        alive = (sd > 1e-6) | (np.abs(mean) > 1e-6)
        alive &= np.isfinite(mean)
        if not alive.any() or (not strict and n < _SUBSET_MIN):
            continue
        mean, sd = mean[alive], sd[alive]
        ranges.append((mean.min(), mean.max(), sd.min(), sd.max()))
        if strict:
            off = np.abs(sd - 1) > _STRICT
            if n > 1:
                off &= np.abs(sd * np.sqrt(n / (n - 1)) - 1) > _STRICT
            wrong += int(bool((off | (np.abs(mean) > _STRICT)).any()))
        else:
            off_mean = np.median(np.abs(mean)) > _SUBSET_MEAN
            off_sd = not (0 if averaged else _SUBSET_SD[0]) <= np.median(sd) <= _SUBSET_SD[1]
            wrong += int(off_mean or off_sd)
    if wrong:
        low_mean, _, low_sd, _ = np.min(ranges, axis=0)
        _, high_mean, _, high_sd = np.max(ranges, axis=0)
        claim = f", although the attributes declare zscored={declared!r}" if sufficient else ""
        raise DataError(
            f"responses are not z-scored within {by}{claim}: voxel means range {low_mean:.3g}..{high_mean:.3g} and "
            f"standard deviations {low_sd:.3g}..{high_sd:.3g} (expected 0 and 1) in {wrong} of {len(groups)} "
            f"groups. Next step: neuroenc.data.zscore(responses, by={by!r})"
            + ("." if sufficient else f"; if these are part of a z-scored set, declare it: attrs['zscored'] = {by!r}.")
        )
