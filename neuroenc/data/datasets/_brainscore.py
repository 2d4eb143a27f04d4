"""Assemblies of Brain-Score: a netCDF of responses, and a CSV of its stimuli."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import atomic_path, output_folder
from neuroenc._core.tables import read_table, write_table
from neuroenc.data._build import make_responses
from neuroenc.data._io import load
from neuroenc.data._stimuli import EncodingData, Stimuli

_DIMS = ("presentation", "neuroid", "time_bin")
#: Older files name their stimuli images.
_IDS = ("stimulus_id", "image_id")
_SHA1 = ("sha1", "stimulus_sha1", "image_file_sha1")
#: Attribute that holds ours, which an assembly has no place for.
_OURS = "neuroenc"


def is_assembly(path: str | os.PathLike[str]) -> bool:
    """Whether a netCDF file is an assembly of Brain-Score: it has the dimensions presentation and neuroid.

    Examples
    --------
    >>> is_assembly("betas.nii.gz")
    False
    """
    path = Path(path)
    if path.suffix != ".nc" or not path.is_file():
        return False
    try:
        return {"presentation", "neuroid"} <= set(load(path, chunks={}).dims)
    except DataError:
        return False


def read_assembly(
    path: str | os.PathLike[str],
    stimuli: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    *,
    subject: str | None = None,
    time_bin: int | str | None = None,
) -> EncodingData:
    """Responses and stimuli of a Brain-Score assembly (a `NeuroidAssembly` as its ``write_netcdf`` stores it).

    Parameters
    ----------
    path : path
        netCDF with dims presentation x neuroid (x time_bin) in any order, and the coordinate ``stimulus_id`` (older:
        ``image_id``) on presentation. ``repetition, session, run`` on presentation, ``subject`` or ``animal``, and
        ``roi`` or ``region`` on neuroid are taken for what they are here; all other coordinates stay.
    stimuli : path, optional
        CSV of the stimulus set: ``stimulus_id``, ``filename``, columns of its own; a column ``sha1`` is checked against
        the files.
    images : path, optional
        Folder in which ``filename`` lies. By default no images.
    subject : str, optional
        Of an assembly of several: which one. "all" keeps them side by side under the coordinate ``subject`` of voxel.
    time_bin : int or "mean", optional
        Which time bin of several, or their mean.

    Returns
    -------
    EncodingData
        ``responses`` (presentation, voxel), or (stimulus, voxel) where they were written so. ``extra``: the assembly's
        ``identifier`` and ``stimulus_set_identifier``.

    Raises
    ------
    ConfigError, DataError
        Other dimensions or no ids; several subjects or time bins and no choice; files that are missing or changed.

    References
    ----------
    Schrimpf et al. (2020), Integrative benchmarking to advance neurally mechanistic models of human intelligence,
    Neuron 108:413. The layout is that of brainscore_core's ``packaging.write_netcdf`` and ``StimulusSetLoader``.

    Examples
    --------
    >>> import tempfile
    >>> responses = make_responses([[1.0, 2.0], [3.0, 4.0]], stimulus=["cat", "dog"], roi=["V4", "IT"], subject="m1")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_assembly(responses, folder, identifier="lab.Objects2026")
    ...     found = read_assembly(files[0], files[1])
    >>> [path.name for path in files]
    ['assy_lab_Objects2026.nc', 'stimulus_lab_Objects2026.csv']
    >>> found.responses.roi.values.tolist(), found.stimuli.ids.tolist()
    (['V4', 'IT'], ['cat', 'dog'])
    """
    assembly = _one_array(Path(path))
    assembly = _one_bin(assembly, time_bin, str(path)).transpose("presentation", "neuroid")
    rows, columns = (
        {str(k): c.values for k, c in assembly.coords.items() if c.dims == (dim,) and k != dim} for dim in _DIMS[:2]
    )
    own = json.loads(assembly.attrs.get(_OURS, "{}"))
    name = next((n for n in _IDS if n in rows), None)
    if name is None:
        raise DataError(
            f"{path} has no stimulus_id on presentation; its coordinates there are {', '.join(rows) or 'none'}."
        )
    ids = rows.pop(name).astype(str)
    keep, of_voxel = _of_subject(columns, subject, str(path))
    columns = {k: v[keep] for k, v in columns.items()}
    labels: dict[str, Any] = {"stimulus": ids, "dim": own.get("dim", "presentation")}
    who = (
        of_voxel if isinstance(of_voxel, str) else next((rows.pop(k) for k in ("subject", "animal") if k in rows), None)
    )
    labels["subject"] = who if who is None or isinstance(who, str) else who.astype(str)
    for ours, theirs in (("session", "session"), ("run", "run"), ("repeat", "repetition")):
        values = rows.get(theirs)
        if labels["dim"] == "presentation" and values is not None and values.dtype.kind in "iu":
            labels[ours] = rows.pop(theirs)
    if labels["dim"] == "stimulus":
        rows.pop("repetition", None)
        labels["n_repeats"] = rows.pop("n_repeats", None)
    region = next((columns.pop(k) for k in ("roi", "region") if k in columns), None)
    labels["roi"] = None if region is None else [str(r) for r in region]
    if "voxel" in columns and columns["voxel"].dtype.kind in "iu" and len(set(columns["voxel"])) == int(keep.sum()):
        labels["voxel"] = columns.pop("voxel")
    if {"i", "j", "k"} <= set(columns) and "affine" in own:
        labels["ijk"] = np.stack([columns.pop(a) for a in "ijk"], axis=1)
        labels |= {k: own[k] for k in ("affine", "volume_shape")}
    if {"vertex", "hemi"} <= set(columns):
        labels |= {"vertex": columns.pop("vertex"), "hemi": columns.pop("hemi")}
    labels["ncsnr"] = columns.pop("ncsnr", None)
    attrs = {str(k): v for k, v in assembly.attrs.items() if isinstance(v, str)}
    labels |= {k: own[k] for k in ("space", "units", "zscored", "licence") if k in own}
    labels["source"] = attrs.get("identifier") or Path(path).stem
    responses = make_responses(assembly.values[:, keep], **labels, provenance={"data": Path(path).name})
    coords = {k: (responses.dims[0], v) for k, v in rows.items() if k not in responses.coords}
    coords |= {k: ("voxel", v) for k, v in columns.items() if k not in responses.coords}
    if of_voxel is not None and not isinstance(of_voxel, str):
        coords["subject"] = ("voxel", of_voxel[keep])
    extra: dict[str, Any] = {k: attrs[k] for k in ("identifier", "stimulus_set_identifier") if k in attrs}
    shown = None if stimuli is None else _stimuli(Path(stimuli), images, ids, labels["source"])
    return EncodingData(responses.assign_coords(coords), shown, extra=extra)


def _one_array(path: Path) -> xr.DataArray:
    found = load(path)
    arrays = [found] if isinstance(found, xr.DataArray) else [v for v in found.values() if "neuroid" in v.dims]
    if len(arrays) != 1 or not {"presentation", "neuroid"} <= set(arrays[0].dims) <= set(_DIMS):
        dims = ["(" + ", ".join(map(str, a.dims)) + ")" for a in arrays] or [", ".join(map(str, found.dims))]
        raise DataError(
            f"{path} is no assembly of neuroids: it holds {'; '.join(dims)}, expected one array (presentation, "
            "neuroid) or (presentation, neuroid, time_bin). Next step: neuroenc.data.load reads other netCDF files."
        )
    # What a data set says of itself stands beside its array.
    return arrays[0].assign_attrs({**found.attrs, **arrays[0].attrs})


def _one_bin(assembly: xr.DataArray, time_bin: int | str | None, path: str) -> xr.DataArray:
    if "time_bin" not in assembly.dims:
        return assembly
    n = assembly.sizes["time_bin"]
    if isinstance(time_bin, str):
        one_of("time_bin", time_bin, ("mean",))
        return assembly.mean("time_bin", keep_attrs=True)
    if time_bin is None and n > 1:
        edges = [assembly.coords[k].values for k in ("time_bin_start", "time_bin_end") if k in assembly.coords]
        told = ", ".join(f"{a} to {b}" for a, b in zip(*edges)) if len(edges) == 2 else "unnamed"
        raise ConfigError(f"{path} has {n} time bins ({told}). Next step: time_bin=0 to {n - 1}, or time_bin='mean'.")
    at = int(time_bin or 0)
    if not 0 <= at < n:
        raise ConfigError(f"time_bin={time_bin} is not legal; {path} has {n}, 0 to {n - 1}.")
    return assembly.isel(time_bin=at, drop=True)


def _of_subject(columns: dict[str, np.ndarray], subject: str | None, path: str) -> tuple[np.ndarray, Any]:
    """Voxels to take, and their subject: a name, one name each, or None where it is not told."""
    n = len(next(iter(columns.values()))) if columns else 0
    values = next((columns.pop(k).astype(str) for k in ("subject", "animal") if k in columns), None)
    if values is None:
        if subject not in (None, "all"):
            raise ConfigError(f"subject={subject!r}: {path} does not say of which subject a neuroid is.")
        return np.ones(n, dtype=bool), None
    names = list(dict.fromkeys(values.tolist()))
    if subject == "all":
        return np.ones(n, dtype=bool), values
    if subject is None and len(names) > 1:
        raise ConfigError(
            f"{path} is of {len(names)} subjects: {', '.join(names)}. Next step: subject={names[0]!r}, or "
            "subject='all'."
        )
    chosen = one_of("subject", names[0] if subject is None else str(subject), names)
    return values == chosen, chosen


def _stimuli(path: Path, images: Any, ids: np.ndarray, source: str) -> Stimuli:
    table = read_table(path, optional=[*_IDS, "filename"], what="stimulus set")
    name = next((n for n in _IDS if n in table), None)
    if name is None:
        raise DataError(f"{path} has columns {list(table.columns)}; expected stimulus_id, filename and others.")
    missing = sorted(set(ids) - set(table[name]))
    if missing:
        raise DataError(f"{path} lacks {len(missing)} stimuli of the assembly (first: {', '.join(missing[:3])}).")
    files = None
    if images is not None:
        if "filename" not in table:
            raise DataError(f"{path} has no column filename, so that images cannot be found; it has {list(table)}.")
        files = [Path(images).expanduser() / f for f in table["filename"]]
        lost = [f for f in files if not f.is_file()]
        if lost:
            raise DataError(f"{len(lost)} of {len(files)} files of {path} are missing (first: {lost[0]}).")
        sha1 = next((table[c] for c in _SHA1 if c in table), None)
        for file, told in zip(files, sha1 if sha1 is not None else ()):
            found = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
            if told and found != told:
                raise DataError(f"{file} has SHA-1 {found}, {path} says {told}. Next step: unpack the images again.")
    frame = table.drop(columns=name).set_axis(table[name].to_numpy(str), axis=0)
    return Stimuli(table[name].to_numpy(str), files, None, frame, source)


def write_assembly(
    responses: xr.DataArray,
    folder: str | os.PathLike[str],
    *,
    identifier: str,
    stimuli: Stimuli | None = None,
    time_bin: Sequence[float] | None = None,
) -> list[Path]:
    """Write responses as a Brain-Score assembly, with its stimulus set.

    Every coordinate travels: those of voxel to neuroid, where ``neuroid_id`` ("SUBJECT.VOXEL"), ``region`` and
    ``subject`` are added; of rows, ``stimulus`` becomes ``stimulus_id`` and ``repeat`` ``repetition``. What an assembly
    has no place for (affine, units, ...) is kept in one attribute, so that `read_assembly` gives the same responses.

    Parameters
    ----------
    responses : DataArray (presentation or stimulus, voxel)
    folder : path
    identifier : str
        Such as "lab.Author2026"; the files are ``assy_lab_Author2026.nc`` and ``stimulus_lab_Author2026.csv``.
    stimuli : Stimuli, optional
        Its table becomes columns of the CSV, and its images ``stimulus_lab_Author2026.zip``, with the names and SHA-1
        of the files in the CSV. A column ``object_name`` is also written on presentation.
    time_bin : (start, end), optional
        Milliseconds; adds the dimension time_bin, of one bin.

    Raises
    ------
    ConfigError, DataError
        An identifier that makes no file name, or stimuli that lack some of the responses.

    Examples
    --------
    See `read_assembly`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", identifier):
        raise ConfigError(f"identifier={identifier!r} is not legal; letters, digits, '.', '_' and '-' are.")
    dim = str(responses.dims[0])
    ids = responses.coords["stimulus"].values.astype(str)
    shown = Stimuli(np.asarray(pd.unique(pd.Series(ids)), dtype=str)) if stimuli is None else stimuli
    at = shown.index_of(ids)
    where = output_folder(folder)
    stem = identifier.replace(".", "_")
    coords: dict[str, Any] = {"stimulus_id": ("presentation", ids)}
    renamed = {"repeat": "repetition"}
    for name, coord in responses.coords.items():
        if name in ("presentation", "stimulus") or coord.ndim != 1:
            continue
        axis = "neuroid" if coord.dims == ("voxel",) else "presentation"
        coords[renamed.get(str(name), str(name))] = (axis, coord.values)
    if "repetition" not in coords:
        coords["repetition"] = ("presentation", np.zeros(len(ids), dtype=np.int64))
    n = responses.sizes["voxel"]
    who = np.unique(responses.coords["subject"].values.astype(str)) if "subject" in responses.coords else np.array([])
    if len(who) == 1:
        coords["subject"] = ("neuroid", np.repeat(who, n))
    owner = coords["subject"][1] if coords.get("subject", ("",))[0] == "neuroid" else np.repeat("", n)
    numbers = coords.get("voxel", ("", np.arange(n)))[1]
    names = [f"{s}.{v}" if s else str(v) for s, v in zip(owner, numbers)]
    coords["neuroid_id"] = ("neuroid", np.array(names))
    if "roi" in coords:
        coords["region"] = coords["roi"]
    if "object_name" in shown.table:
        coords["object_name"] = ("presentation", shown.table["object_name"].to_numpy(str)[at])
    values, dims = np.asarray(responses.values), ["presentation", "neuroid"]
    if time_bin is not None:
        start, end = time_bin
        values, dims = values[..., None], [*dims, "time_bin"]
        coords |= {"time_bin_start": ("time_bin", [start]), "time_bin_end": ("time_bin", [end])}
    own = {k: np.asarray(v).tolist() for k, v in responses.attrs.items() if k in _KEPT} | {"dim": dim}
    attrs = {"identifier": identifier, "stimulus_set_identifier": identifier, _OURS: json.dumps(own)}
    assembly = xr.DataArray(values, coords, dims, "data", attrs)
    netcdf = where / f"assy_{stem}.nc"
    with atomic_path(netcdf) as temporary:
        packed = {"data": {"zlib": True, "complevel": 4}}
        stored = assembly.to_dataset(promote_attrs=True)
        stored.to_netcdf(temporary, engine="h5netcdf", format="NETCDF4", encoding=packed)
    table = shown.table.reset_index(drop=True).drop(columns=["filename", "sha1"], errors="ignore")
    table.insert(0, "stimulus_id", shown.ids)
    written = [netcdf, where / f"stimulus_{stem}.csv"]
    if shown.images is not None:
        written.append(where / f"stimulus_{stem}.zip")
        table["filename"], table["sha1"] = _zip(shown, written[-1])
    write_table(table, written[1])
    return written


_KEPT = ("space", "affine", "volume_shape", "units", "zscored", "licence")


def _zip(stimuli: Stimuli, path: Path) -> tuple[list[str], list[str]]:
    """Names and SHA-1 of the images, which are packed as they are; arrays become PNG."""
    names, sums = [], []
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for k, name in enumerate(stimuli.ids.tolist()):
            if isinstance(stimuli.images, list):
                file = Path(stimuli.images[k])
                content, ending = file.read_bytes(), file.suffix
            else:
                buffer, ending = BytesIO(), ".png"
                stimuli.image(k).save(buffer, "PNG")
                content = buffer.getvalue()
            names.append(name if name.endswith(ending) else name + ending)
            sums.append(hashlib.sha1(content, usedforsecurity=False).hexdigest())
            # A fixed time: equal pictures make equal archives.
            archive.writestr(zipfile.ZipInfo(names[-1]), content)
    return names, sums
