"""What loaders of large data sets share: where the data set is, and responses read session by session."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, hash_json, storage_errors
from neuroenc._core.memory import parse_memory
from neuroenc._core.paths import cache_dir
from neuroenc._core.progress import progress as progress_bar
from neuroenc.data._fetch import data_dir, mirror_dir
from neuroenc.data._images import forward
from neuroenc.data._labels import provenance_step
from neuroenc.data._nsd._betas import zscore_in_place
from neuroenc.data._nsd._load import _stored
from neuroenc.data._nsd._store import session_store, stamp, voxels_per_chunk
from neuroenc.data._preprocess import average_repeats
from neuroenc.data.loaders._source import Source

__all__ = ["bounds_of", "collect", "dataset_root", "like", "natural", "one_of", "subject_number", "unpacked", "within"]

#: Changes when the stored values would.
_FORMAT = 1


def dataset_root(source: Source, is_root: Callable[[Path], bool], expected: str) -> Path:
    """First of ``root``, the data folder and the mirror that looks like the data set, itself or one folder below."""
    name = source.manifest.name
    mirror = mirror_dir(source.mirror)
    given: list[Any] = [source.root] if source.root else [data_dir() / name, *([mirror / name] if mirror else [])]
    folders = [Path(f).expanduser() for f in given]
    for folder in folders:
        if folder.is_dir():
            for candidate in (folder, *sorted(x for x in folder.iterdir() if x.is_dir())):
                if is_root(candidate):
                    return candidate
    where = " nor ".join(str(f) for f in folders)
    raise DataError(
        f"{name} is not in {where}: {like(folders[0])} Expected: {expected}. {source.manifest.access} Next step:"
        f" load_dataset({name!r}, root='FOLDER'), or `neuroenc data describe FOLDER`."
    )


def like(folder: Path) -> str:
    """What a folder holds, and which known layout that is; for messages."""
    if not folder.is_dir():
        return "it does not exist."
    # Describing needs the loaders, which need this.
    from neuroenc.data._describe import recognise

    held = sorted(x.name for x in folder.iterdir())
    shown = ", ".join(held[:6]) + (f", ... ({len(held)} in all)" if len(held) > 6 else "")
    names = [f.title for f in recognise(folder)]
    looks = f" It looks like {' or '.join(names)}." if names else ""
    return f"it holds {shown or 'nothing'}.{looks}"


def one_of(kind: str, value: Any, legal: Sequence[Any]) -> Any:
    """The value, if it is legal."""
    if value not in legal:
        raise ConfigError(unknown_name(kind, value, legal))
    return value


def subject_number(subject: Any, n: int, pattern: str, what: str) -> int:
    """Number of a subject written as a number or in the data set's own way."""
    match = re.fullmatch(rf"(?:{pattern})?0*([1-9]\d*)", str(subject).strip(), flags=re.IGNORECASE)
    if not match or int(match[1]) > n:
        raise ConfigError(f"subject={subject!r} is none of {what}'s; legal are 1 to {n}.")
    return int(match[1])


def within(folder: Path, pattern: str, depth: int = 4) -> list[Path]:
    """Paths that match up to ``depth`` folders down, sorted; a whole disk is not searched."""
    return sorted(p for n in range(depth + 1) for p in folder.glob("*/" * n + pattern))


def natural(path: Path) -> list[Any]:
    """Key that puts run 2 before run 10."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path.as_posix())]


def unpacked(path: Path, voxel: np.ndarray, budget: int) -> np.ndarray:
    """Values (time, voxel) of a 4-D NIfTI, float32; on disk where a quarter of the budget does not hold them.

    ``voxel`` are flat numbers, C order.
    """
    with forward(path, "data") as image:
        if len(image.shape) != 4:
            raise DataError(f"{path} has shape {tuple(image.shape)} (expected (x, y, z, time)).")
        shape = (int(image.shape[3]), len(voxel))
        step = max(1, budget // 8 // (8 * int(np.prod(image.shape[:3]))))
        small = shape[0] * shape[1] * 4 <= budget // 4
        parts: list[np.ndarray] = []
        with TemporaryFile() as handle:
            for start in range(0, shape[0], step):
                frames = np.asarray(image.dataobj[..., start : start + step], dtype=np.float32)
                rows = np.ascontiguousarray(frames.reshape(-1, frames.shape[3])[voxel].T)
                if small:
                    parts.append(rows)
                else:
                    # Written, not mapped: a full disk is an error here, and a crash (SIGBUS) of a mapped array.
                    with storage_errors(gettempdir()):
                        handle.write(rows.data.cast("B"))
            with storage_errors(gettempdir()):
                handle.flush()
            if small:
                return np.concatenate(parts) if parts else np.empty(shape, dtype=np.float32)
            return np.memmap(handle, dtype=np.float32, mode="r", shape=shape)


def bounds_of(session: np.ndarray) -> list[tuple[int, int]]:
    """First and last row of each stretch of equal numbers."""
    edges = np.flatnonzero(np.diff(session)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(session)], strict=True)) if len(session) else []


def collect(
    template: xr.DataArray,
    bounds: list[tuple[int, int]],
    read: Callable[[int, slice], np.ndarray],
    *,
    zscore: bool,
    repeats: str = "keep",
    by: str = "session",
    cache: Any = True,
    files: Sequence[Path] = (),
    settings: dict[str, Any],
    max_memory: Any = None,
    progress: bool = True,
) -> xr.DataArray:
    """Responses of all sessions under the template's labels: in memory where half of ``max_memory`` holds them.

    Parameters
    ----------
    template : DataArray (presentation, voxel)
        All labels; its values are not looked at.
    bounds : list of (first, last)
        Rows of each session.
    read : (session number, slice of voxels) -> float32 (row, voxel), which may be overwritten
    zscore : bool
        Every voxel within every session, population standard deviation; constant voxels become 0.
    repeats : {"keep", "average"}
    by : {"session", "run"}
        What the stretches of ``bounds`` are.
    cache : bool or path
        Where larger responses are stored (zarr, resumed where it stopped); False refuses them.
    files, settings
        What the store's name depends on.
    """
    one_of("value of repeats:", repeats, ("keep", "average"))
    budget = parse_memory(max_memory)
    n, n_voxels = template.shape
    if zscore:
        small = [last - first for first, last in bounds if last - first < 2]
        if small:
            raise DataError(
                f"{len(small)} of {len(bounds)} {by}s have one trial; z-scores need two. Next step: zscore=False."
            )
        template = template.copy(deep=False)
        template.attrs.update(units="z", zscored=by, zscored_n=n)
        template.attrs["provenance"] = provenance_step(template.attrs, "zscore", by=by, ddof=0)
    constant = np.zeros(n_voxels, dtype=np.int64)

    def values_of(number: int, block: slice) -> np.ndarray:
        values = np.ascontiguousarray(read(number, block), dtype=np.float32)
        if zscore:
            constant[block] += zscore_in_place(values, budget // 16)
        return values

    longest = max((last - first for first, last in bounds), default=1)
    chunk = voxels_per_chunk(longest, n_voxels, budget)
    width = max(chunk, budget // 8 // (4 * longest) // chunk * chunk)
    blocks = [slice(s, min(s + width, n_voxels)) for s in range(0, n_voxels, width)]
    needed = n * n_voxels * 4 * (2 if repeats == "average" else 1)
    bar = progress_bar(desc=f"{template.attrs['source']} {by}s", total=len(bounds) * len(blocks), show=progress)
    with bar:
        if needed <= budget // 2:
            data = np.empty((n, n_voxels), dtype=np.float32)
            for number, (first, last) in enumerate(bounds):
                for block in blocks:
                    data[first:last, block] = values_of(number, block)
                    bar.update(1)
            responses = template.copy(deep=False, data=data)
            responses = average_repeats(responses) if repeats == "average" else responses
        elif cache is False:
            raise DataError(
                f"{n} trials of {n_voxels} voxels need {needed:,} bytes, more than half of max_memory ({budget:,})."
                " Next step: cache=True streams them through the disk; or ask for fewer voxels."
            )
        else:
            stamps = [stamp(p) for p in files]
            labels = hash_array(template["voxel"].values, template["stimulus"].values)
            key = hash_json({"format": _FORMAT, **settings, "labels": labels, "files": stamps, "z": zscore, "by": by})
            name = template.attrs["source"].split()[0]
            folder = cache_dir() / name if cache is True else Path(cache).expanduser()
            path = folder / f"{name}-{key[:20]}.zarr"
            if not path.is_dir():
                session_store(path, template, bounds, blocks, chunk, values_of, bar.update)
            responses = _stored(path, template, repeats, budget)
    if constant.any():
        warnings.warn(
            f"{int((constant > 0).sum())} of {n_voxels} voxels are constant within at least one {by}"
            f" ({int((constant == len(bounds)).sum())} in all of them); they are 0 there.",
            stacklevel=3,
        )
    return responses
