"""netCDF and zarr files that lose nothing: values, dtypes, labels, attributes, names. And files of MATLAB, read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError, nearest_names
from neuroenc._core.files import atomic_path, check_readable_file, recover
from neuroenc._core.optional import require
from neuroenc.data._build import refuse_multiindex

_MARK = "neuroenc_object"
# Names that xarray and the CF conventions give a meaning of their own when a file is read.
_RESERVED = frozenset(
    """_FillValue missing_value scale_factor add_offset coordinates dtype _Unsigned calendar grid_mapping bounds
    ancillary_variables compress chunks _ARRAY_DIMENSIONS DIMENSION_LIST REFERENCE_LIST CLASS NAME""".split()  # noqa: SIM905
) | {_MARK}
_LONG_LIST = 1000


def save(obj: xr.DataArray | xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a DataArray or Dataset as netCDF (``.nc``) or zarr (``.zarr``), whole or not at all.

    Parameters
    ----------
    obj : DataArray or Dataset
        Values and coordinates: numbers, booleans or text. Dask arrays are written block by block.
        Attributes: text, numbers, booleans, None and lists of them; numpy's numbers and arrays, and tuples, come back
        as Python's numbers and lists. The byte order becomes the machine's.
    path : path ending in .nc or .zarr
        Replaced only when the new file is complete.

    Raises
    ------
    DataError
        The ending is unknown, something in ``obj`` would not come back as it is (MultiIndex, dates, nested attributes,
        names that files cannot have), or there is no room.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[1.0, 2.0]], stimulus=["a"], roi=["V1", ""])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(save(r, folder + "/r.nc")).identical(r)
    True
    """
    path = Path(path)
    zarr = _kind(path) == "zarr"
    dataset = _encode(obj)
    with atomic_path(path, directory=zarr) as temporary, warnings.catch_warnings():
        # A coordinate whose name has a blank: `load` makes it one again.
        warnings.filterwarnings("ignore", message="coordinate .* has a space in its name")
        try:
            if zarr:
                require("zarr", "big")
                # Format 2 has a specification for text; empty chunks are written so that a lost one is noticed.
                options: dict[str, Any] = {"zarr_format": 2, "consolidated": True, "write_empty_chunks": True}
                _uniform_chunks(dataset).to_zarr(temporary, mode="w", **options)
            else:
                _reserve(temporary, dataset)
                fill = {name: {"_FillValue": None} for name in dataset.variables}
                dataset.to_netcdf(temporary, mode="a", engine="h5netcdf", format="NETCDF4", encoding=fill)
        except (TypeError, ValueError, KeyError, NotImplementedError) as error:
            raise DataError(f"{path} cannot be written: {error}. Nothing was left behind.") from error
    return path


def _reserve(path: Path, dataset: xr.Dataset) -> None:
    """An empty netCDF file with room for ``dataset``: HDF5 crashes the interpreter where the disk is full."""
    import h5netcdf

    h5netcdf.File(path, "w").close()
    size = 2**16
    for variable in dataset.variables.values():
        if variable.dtype.kind == "U":
            # A reference of 16 bytes for each text, and the text with a header of 16, in pieces of 4 kB.
            texts = np.asarray(variable.values).ravel().tolist()
            size += int(sum(40 + len(text.encode()) for text in texts) * 1.1)
        else:
            size += variable.size * variable.dtype.itemsize
        size += 2**13 + len(str(dict(variable.attrs)))
    size += 4 * len(str(dict(dataset.attrs)))
    with open(path, "rb+") as handle:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(handle.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def load(
    path: str | os.PathLike[str], chunks: int | str | Mapping[str, int] | None = None
) -> xr.DataArray | xr.Dataset:
    """Read what :func:`save` wrote; also other netCDF-4 and zarr files (one variable gives a DataArray).

    Parameters
    ----------
    path : path ending in .nc or .zarr
    chunks : int, "auto" or mapping dim -> int, optional
        Read lazily as dask arrays with these chunks; by default everything is read into memory.

    Returns
    -------
    DataArray or Dataset

    Raises
    ------
    DataError
        The file is absent, cut short, damaged or of another format.

    Examples
    --------
    >>> load("absent.nc")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: absent.nc does not exist...
    """
    path = Path(path)
    kind = _kind(path)
    if not (recover(path) if kind == "zarr" else path.exists()):
        near = nearest_names(path.name, os.listdir(path.parent)) if path.parent.is_dir() else []
        hint = f"; nearest in {path.parent}: {', '.join(near)}" if near else ""
        raise DataError(f"{path} does not exist{hint}. Next step: check the path, or save the object first.")
    if kind == "nc":
        check_readable_file(path, "netCDF file")
    elif not path.is_dir():
        raise DataError(f"{path} is a file; a zarr store is a folder. Next step: copy the whole folder.")
    for package, needed in (("dask", chunks is not None), ("zarr", kind == "zarr")):
        if needed:
            require(package, "big")
    try:
        engine = "zarr" if kind == "zarr" else "h5netcdf"
        if kind == "nc":
            # First without h5netcdf, whose half-opened files complain on stderr when they are collected.
            h5py.File(path, "r").close()
        dataset = xr.open_dataset(path, engine=engine, chunks=chunks, decode_times=False, decode_timedelta=False)
        if kind == "zarr" and _MARK in dataset.attrs:
            _check_chunks(path)
        if chunks is None:
            with dataset:
                dataset.load()
        return _decode(dataset.drop_encoding())
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_unreadable(path, error)) from error


def _kind(path: Path) -> str:
    if path.suffix not in (".nc", ".zarr"):
        raise DataError(f"{path.name!r} ends in {path.suffix!r}; legal endings are .nc (netCDF) and .zarr.")
    return path.suffix[1:]


def _unreadable(path: Path, error: Exception) -> str:
    """What a file that cannot be read looks like from outside."""
    said = " ".join(str(error).split())[:200]
    step = "Next step: copy or download it again, or compute it again."
    if path.is_dir():
        n_files = sum(len(files) for _, _, files in os.walk(path))
        return f"{path} ({n_files} files) is damaged or not a zarr store, or lacks parts that it names: {said}. {step}"
    with open(path, "rb") as handle:
        start = handle.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        found = "begins as netCDF-4 but is truncated or damaged"
    elif start[:3] == b"CDF":
        found, step = "is netCDF 3 and not netCDF-4", "Next step: nccopy -4 old.nc new.nc."
    else:
        found = f"is not netCDF-4 (first bytes {start!r})" if start else "is empty"
    return f"{path} {found}: {path.stat().st_size:,} bytes; {said}. {step}"


def _native(value: Any) -> bool:
    """Whether both file formats return this attribute exactly as it is."""
    if isinstance(value, str):
        return bool(value) and "\0" not in value and _unicode(value)
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return bool(np.isfinite(value))
    if isinstance(value, list) and 1 < len(value) <= _LONG_LIST:
        return all(type(x) is type(value[0]) and type(x) in (int, float) and _native(x) for x in value)
    return False


def _unicode(text: str) -> bool:
    """Whether files can hold it: half of a surrogate pair has no encoding."""
    return text.isascii() or not any(0xD800 <= ord(c) < 0xE000 for c in text)


def _usable(name: object) -> bool:
    """Whether both formats keep this as the name of a variable or dimension."""
    if not isinstance(name, str) or not name or name != name.strip() or name.startswith("."):
        return False
    return name.isprintable() and "/" not in name and _unicode(name)


def _plain(value: Any, where: str) -> Any:
    """Attribute as plain Python; nested ones are refused because no file format keeps them."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(x, where) for x in value]
        if not any(isinstance(x, list) for x in items):
            return items
    raise DataError(
        f"attribute {where} is {type(value).__name__} ({str(value)[:40]!r}); legal: text, numbers, booleans, "
        "None and lists of them. Next step: json.dumps(value)."
    )


def _encode(obj: xr.DataArray | xr.Dataset) -> xr.Dataset:
    mark: dict[str, Any] = {"version": 1, "kind": "Dataset"}
    if isinstance(obj, xr.DataArray):
        if not isinstance(obj.name, (str, int, float, type(None))):
            raise DataError(f"the name {obj.name!r} is a {type(obj.name).__name__}; legal are text, numbers and None.")
        variable = str(obj.name) if _usable(obj.name) and obj.name not in {*obj.coords, *obj.dims} else "values"
        while variable in {*obj.coords, *obj.dims}:
            variable += "_"
        mark.update(kind="DataArray", name=obj.name, variable=variable)
        dataset = obj.to_dataset(name=variable, promote_attrs=False)
    elif isinstance(obj, xr.Dataset):
        dataset = obj.copy(deep=False)
    else:
        raise DataError(f"cannot save {type(obj).__name__}; legal: xarray.DataArray and Dataset.")
    refuse_multiindex(dataset)
    for name in (*dataset.variables, *dataset.dims):
        if not _usable(name):
            raise DataError(
                f"{name!r} cannot be the name of a variable or dimension in a file; legal: printable text without '/' "
                "that does not begin with '.' or a blank. Next step: .rename."
            )
    dataset = dataset.drop_encoding()
    # Files keep neither a coordinate whose name has a blank as such, nor that labels of a dimension are not its index.
    mark["coords"] = [str(name) for name in dataset.coords if " " in str(name)]
    mark["plain"] = [str(name) for name in dataset.coords if name in dataset.dims and name not in dataset.xindexes]
    kept: dict[str, dict[str, Any]] = {}
    for name, holder in [("", dataset), *((str(x), dataset[x]) for x in dataset.variables)]:
        where = name or "the data set"
        for key in holder.attrs:
            if not isinstance(key, str):
                raise DataError(f"attribute {key!r} of {where!r} has a name that is no text. Next step: str(name).")
        attrs = {k: _plain(v, f"{k!r} of {where!r}") for k, v in holder.attrs.items()}
        odd = {k: v for k, v in attrs.items() if k in _RESERVED or not _usable(k) or not _native(v)}
        if odd:
            kept[name] = odd
        holder.attrs = {k: v for k, v in attrs.items() if k not in odd}
    for key in list(dataset.variables):
        dataset = _check_values(dataset, str(key), dataset.variables[key])
    mark["attrs"] = kept
    dataset.attrs = {**dataset.attrs, _MARK: json.dumps(mark)}
    return dataset


def _check_values(dataset: xr.Dataset, name: str, variable: Any) -> xr.Dataset:
    """Text is '<U' without NUL; everything else is numbers or booleans."""
    if variable.dtype.kind not in "OTU":
        if variable.dtype.kind not in "biuf" or variable.dtype.itemsize == 0 or variable.dtype == np.longdouble:
            raise DataError(f"{name!r} has dtype {variable.dtype}; legal are numbers, booleans and text.")
        return dataset
    values = np.asarray(variable.values)
    listed = values.ravel().tolist()
    bad = [x for x in listed if not isinstance(x, str)]
    if bad:
        raise DataError(
            f"{name!r} holds {bad[0]!r} ({type(bad[0]).__name__}) among objects; legal: numbers, booleans and "
            "text. Next step: .astype(str) or .astype(float)."
        )
    if any("\0" in x for x in listed):
        raise DataError(f"{name!r} holds text with a NUL character, which netCDF cuts there.")
    if not all(map(_unicode, listed)):
        raise DataError(f"{name!r} holds half of a surrogate pair, which has no encoding. Next step: mend that text.")
    if variable.dtype.kind == "U":
        return dataset
    text = np.array(listed, dtype=str).reshape(values.shape) if listed else np.empty(values.shape, "<U1")
    coord, dataset = name in dataset.coords, dataset.assign({name: (variable.dims, text, variable.attrs)})
    return dataset.set_coords(name) if coord else dataset


def _decode(dataset: xr.Dataset) -> xr.DataArray | xr.Dataset:
    text = dataset.attrs.pop(_MARK, None)
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OT" and all(isinstance(x, str) for x in np.asarray(variable.values).ravel()):
            coord = name in dataset.coords
            dataset = dataset.assign({name: (variable.dims, np.asarray(variable.values).astype(str), variable.attrs)})
            dataset = dataset.set_coords(name) if coord else dataset
    for holder in (dataset, *(dataset[name] for name in dataset.variables)):
        plain = {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in holder.attrs.items()}
        holder.attrs = plain
    if text is None:
        return next(iter(dataset.data_vars.values())) if len(dataset.data_vars) == 1 else dataset
    mark = json.loads(text)
    dataset = dataset.set_coords([x for x in mark.get("coords", []) if x in dataset.variables])
    dataset = dataset.drop_indexes([x for x in mark.get("plain", []) if x in dataset.xindexes])
    for name, attrs in mark["attrs"].items():
        (dataset[name] if name else dataset).attrs.update(attrs)
    return dataset if mark["kind"] == "Dataset" else dataset[mark["variable"]].rename(mark["name"])


def _uniform_chunks(dataset: xr.Dataset) -> xr.Dataset:
    """Zarr needs equal chunks along each dimension."""
    for name, variable in dataset.variables.items():
        chunks = dict(zip(variable.dims, variable.chunks or ()))
        if any(len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0] for sizes in chunks.values()):
            dataset[name] = dataset[name].chunk({dim: max(sizes) for dim, sizes in chunks.items()})
    return dataset


def _check_chunks(path: Path) -> None:
    """A chunk that was lost would be read as zeros."""
    import zarr

    for name, a in zarr.open_group(str(path), mode="r").arrays():
        if a.size and a.nchunks_initialized < a.nchunks:
            raise DataError(
                f"{path}: array {name!r} has {a.nchunks_initialized} of {a.nchunks} chunks; the store is incomplete. "
                "Next step: copy it again with all its files, or compute it again."
            )


def read_mat(
    path: Path, needed: tuple[str, ...] = (), what: str = "MATLAB file", *, only: bool = False
) -> dict[str, Any]:
    """Variables of a MATLAB file (v4 to v7): all, or those that are needed and no other."""
    from scipy.io import loadmat

    path = check_readable_file(path, what)
    try:
        content: dict[str, Any] = loadmat(path, variable_names=list(needed) if only else None)
    except MemoryError:
        raise
    except NotImplementedError as error:
        raise DataError(
            f"{path} is of MATLAB 7.3 (HDF5), which is not read here. "
            "Next step: download it as published, or in MATLAB load it and save(..., '-v7')."
        ) from error
    except Exception as error:  # whatever scipy says of damaged files
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a MATLAB file ({error}): it is cut short or "
            "damaged. Next step: download it again."
        ) from error
    missing = [k for k in needed if k not in content]
    if missing:
        have = sorted(k for k in content if not k.startswith("__"))
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {have}.")
    return content
